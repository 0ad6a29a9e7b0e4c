"""An ObjectStore in memory, with S3's promises: strongly consistent, whole objects only."""

from __future__ import annotations

import json
from collections.abc import Callable, Iterator
from pathlib import Path

from tandem_api.canonical import canonical_json, sha256_hex
from tandem_api.errors import DataError
from tandem_api.store import ObjectInfo
from tandem_api.store.s3 import MANIFEST
from tandem_api.v1alpha1.status import Artifact


class MemoryStore:
    """`objects` may be read and changed by tests; `on_put` is called with the key before each write."""

    def __init__(self, bucket: str = "bucket", on_put: Callable[[str], None] = lambda key: None) -> None:
        self.objects: dict[str, bytes] = {}
        self.on_put = on_put
        self._root = f"s3://{bucket}/"

    def uri(self, key: str) -> str:
        return f"{self._root}{key}"

    def get(self, key: str) -> bytes | None:
        return self.objects.get(key)

    def put(self, key: str, data: bytes) -> Artifact:
        self.on_put(key)
        self.objects[key] = data
        return Artifact(uri=self.uri(key), sha256=sha256_hex(data))

    def put_file(self, key: str, path: Path) -> Artifact:
        return self.put(key, path.read_bytes())

    def list(self, prefix: str) -> Iterator[str]:
        yield from sorted(key for key in self.objects if key.startswith(prefix))

    def describe(self, prefix: str) -> Iterator[ObjectInfo]:
        for key in self.list(prefix):
            yield ObjectInfo(key, len(self.objects[key]), sha256_hex(self.objects[key]))

    def download(self, key: str, path: Path) -> None:
        if key not in self.objects:
            raise DataError(f"{self.uri(key)} is missing")
        path.write_bytes(self.objects[key])

    def delete(self, prefix: str) -> int:
        keys = list(self.list(prefix))
        for key in keys:
            del self.objects[key]
        return len(keys)

    def fetch(self, artifact: Artifact) -> bytes:
        data = self.get(artifact.uri.removeprefix(self._root))
        if data is None or sha256_hex(data) != artifact.sha256:
            raise DataError(f"{artifact.uri} is missing or not what was written")
        return data

    def put_folder(self, prefix: str, folder: Path) -> Artifact:
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        names = [path.relative_to(folder).as_posix() for path in files]
        sums = {name: self.put_file(f"{prefix}{name}", path).sha256 for name, path in zip(names, files, strict=True)}
        manifest = canonical_json(sums).encode()
        self.put(f"{prefix}{MANIFEST}", manifest)
        return Artifact(uri=self.uri(prefix), sha256=sha256_hex(manifest), count=len(sums))

    def fetch_folder(self, artifact: Artifact, target: Path) -> None:
        prefix = artifact.uri.removeprefix(self._root)
        manifest = self.get(f"{prefix}{MANIFEST}")
        if manifest is None or sha256_hex(manifest) != artifact.sha256:
            raise DataError(f"{artifact.uri} is missing or not what was written")
        for name, sha256 in json.loads(manifest).items():
            path = target / name
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(self.fetch(Artifact(uri=self.uri(f"{prefix}{name}"), sha256=sha256)))
