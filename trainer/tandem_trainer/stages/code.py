"""Where the user's code lies on this machine: fetched and unpacked first, if it has to be."""

from __future__ import annotations

import io
import lzma
import re
import shutil
import tarfile
import tempfile
import zlib
from pathlib import Path, PurePosixPath
from urllib.parse import unquote, urlsplit

from tandem_api.canonical import sha256_hex
from tandem_api.errors import ConfigurationError, DataError
from tandem_api.store import ObjectStore
from tandem_api.v1alpha1 import Spec
from tandem_trainer.evaluate.files import configmap_folder, configmap_keys, read_s3

#: What an archive of code may hold at most, unpacked.
MAX_FILES, MAX_BYTES = 20_000, 2 << 30

#: What reading a damaged or hostile archive may raise.
_DAMAGED = (tarfile.TarError, EOFError, OSError, ValueError, zlib.error, lzma.LZMAError)

_CONFIGMAP = re.compile(r"configmap://(?P<name>[a-z0-9][a-z0-9.-]*)/?")


def locate_code(spec: Spec, store: ObjectStore, cache: Path) -> Path | None:
    """The folder of `program.code`; None: the code is installed (in the image, or in this environment).

    A tarball is verified and unpacked once, into a folder of `cache` that is named by its digest. A ConfigMap's keys
    are the files of one folder: modules, no packages.
    Raises ConfigurationError for a place that cannot be used here, DataError for a tarball that is missing, is not the
    one that was meant, or cannot be unpacked, and for a ConfigMap that is not mounted or holds no Python file.
    """
    code = spec.program.code
    if code is None:
        return None
    where = f"program.code.uri ({code.uri})"
    scheme = code.uri.partition(":")[0]
    if scheme == "file":
        folder = Path(unquote(urlsplit(code.uri).path)).absolute()
        if not folder.is_dir():
            raise ConfigurationError(f"{where}: {folder} is not a folder; name the folder that holds the code")
        return folder
    if scheme == "s3":
        assert code.sha256 is not None  # the spec's own rule
        return _unpacked(code.uri, code.sha256, spec, store, cache / "code", where)
    if scheme == "configmap":
        return _mounted(code.uri, where)
    raise ConfigurationError(
        f"{where}: {scheme}: cannot be used here; allowed: file:FOLDER, s3://bucket/key.tar.gz, configmap://name"
    )


def _mounted(uri: str, where: str) -> Path:
    match = _CONFIGMAP.fullmatch(uri)
    if match is None:
        raise ConfigurationError(f"{where}: allowed: configmap://NAME, whose keys are the Python files: module.py")
    folder = configmap_folder(match["name"], where)
    keys = configmap_keys(folder)
    if not any(key.endswith(".py") for key in keys):
        raise DataError(f"{where}: the ConfigMap has no key that ends in .py; its keys: {', '.join(keys) or 'none'}")
    return folder


def _extract(archive: tarfile.TarFile, folder: Path) -> None:
    """Unpack plain files and folders that stay below `folder`. Raises tarfile.TarError for anything else, before
    anything is written.

    Links are refused whole: that a link stays inside has been judged wrongly often, tarfile's own filter included.
    """
    members: list[tarfile.TarInfo] = []
    total = 0
    for member in archive:
        path = PurePosixPath(member.name)
        if path.is_absolute() or ".." in path.parts or not (member.isfile() or member.isdir()):
            raise tarfile.TarError(
                f"{member.name!r} is no plain file or folder below the archive's root; leave it out, or write the "
                "archive with --dereference"
            )
        total += member.size
        if len(members) == MAX_FILES or total > MAX_BYTES:
            raise tarfile.TarError(
                f"it has more than {MAX_FILES} files or {MAX_BYTES >> 20} MiB; put large files into the image "
                "(program.image) or beside the code"
            )
        member.mode = 0o755 if member.isdir() else 0o644
        members.append(member)
    for member in members:
        archive.extract(member, folder, set_attrs=False)


def _unpacked(uri: str, sha256: str, spec: Spec, store: ObjectStore, cache: Path, where: str) -> Path:
    folder = cache / sha256
    if folder.is_dir():
        return folder
    data = read_s3(uri, spec, store, where)
    if sha256_hex(data) != sha256:
        raise DataError(f"{where} has sha256 {sha256_hex(data)}, but program.code.sha256 is {sha256}")
    cache.mkdir(parents=True, exist_ok=True)
    staging = Path(tempfile.mkdtemp(prefix=f".{sha256[:12]}.", dir=cache))
    try:
        with tarfile.open(fileobj=io.BytesIO(data)) as archive:
            _extract(archive, staging)
        if not folder.is_dir():  # another process of this machine may have been faster
            staging.replace(folder)
    except _DAMAGED as error:
        if not folder.is_dir():
            raise DataError(f"{where} cannot be unpacked: {error}") from error
    finally:
        shutil.rmtree(staging, ignore_errors=True)
    return folder
