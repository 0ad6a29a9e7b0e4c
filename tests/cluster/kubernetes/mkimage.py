"""Makes an image archive (OCI layout) from one plain root file system tar, without a container engine.

mkimage.py NAME ROOTFS_TAR ENTRYPOINT_JSON OUT_TAR
"""

from __future__ import annotations

import hashlib
import io
import json
import sys
import tarfile
from pathlib import Path
from typing import Any

_CREATED = "2026-01-01T00:00:00Z"
_MEDIA = "application/vnd.oci.image"
_PATH = "PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin"


def make_image(name: str, layer: Path, entrypoint: list[str], out: Path) -> None:
    """Write the archive `out` of an image with this name, one layer and this entry point (none when empty)."""
    with layer.open("rb") as file:
        layer_digest = hashlib.file_digest(file, "sha256").hexdigest()
    configuration = {
        "architecture": "amd64",
        "os": "linux",
        "created": _CREATED,
        "config": {"Entrypoint": entrypoint or None, "Env": [_PATH]},
        "rootfs": {"type": "layers", "diff_ids": [f"sha256:{layer_digest}"]},
        "history": [{"created": _CREATED}],
    }
    config = json.dumps(configuration).encode()
    manifest = json.dumps(
        {
            "schemaVersion": 2,
            "mediaType": f"{_MEDIA}.manifest.v1+json",
            "config": _descriptor(f"{_MEDIA}.config.v1+json", config),
            "layers": [
                {
                    "mediaType": f"{_MEDIA}.layer.v1.tar",
                    "digest": f"sha256:{layer_digest}",
                    "size": layer.stat().st_size,
                }
            ],
        }
    ).encode()
    names = {"io.containerd.image.name": name, "org.opencontainers.image.ref.name": name}
    index = {
        "schemaVersion": 2,
        "manifests": [{**_descriptor(f"{_MEDIA}.manifest.v1+json", manifest), "annotations": names}],
    }
    with tarfile.open(out, "w") as archive:
        _add(archive, "oci-layout", b'{"imageLayoutVersion":"1.0.0"}')
        _add(archive, "index.json", json.dumps(index).encode())
        for content in (config, manifest):
            _add(archive, f"blobs/sha256/{hashlib.sha256(content).hexdigest()}", content)
        archive.add(layer, f"blobs/sha256/{layer_digest}")


def _descriptor(media_type: str, content: bytes) -> dict[str, Any]:
    return {"mediaType": media_type, "digest": f"sha256:{hashlib.sha256(content).hexdigest()}", "size": len(content)}


def _add(archive: tarfile.TarFile, path: str, content: bytes) -> None:
    entry = tarfile.TarInfo(path)
    entry.size = len(content)
    archive.addfile(entry, io.BytesIO(content))


if __name__ == "__main__":
    make_image(sys.argv[1], Path(sys.argv[2]), json.loads(sys.argv[3]), Path(sys.argv[4]))
