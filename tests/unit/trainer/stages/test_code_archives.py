"""Archives of code are unpacked below their folder in the cache, plain files and folders only, within bounds."""

from __future__ import annotations

import gzip
import io
import tarfile
from pathlib import Path

import pytest
from tests.memory_store import MemoryStore
from tests.unit.api.manifests import document

from tandem_api.errors import DataError
from tandem_api.v1alpha1.run import parse_run
from tandem_trainer.stages import code
from tandem_trainer.stages.code import locate_code

Member = tuple[tarfile.TarInfo, bytes]


def plain(name: str, content: bytes = b"x = 1\n") -> Member:
    info = tarfile.TarInfo(name)
    info.size = len(content)
    return info, content


def special(name: str, kind: bytes, link: str = "") -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.linkname, info.devmajor, info.devminor = kind, link, 1, 3
    return info, b""


def renamed(name: str) -> Member:
    """A file whose name is said in an extended header, as it is."""
    info, content = plain("a.py")
    info.pax_headers = {"path": name}
    return info, content


def folder(name: str, mode: int = 0o755) -> Member:
    info = tarfile.TarInfo(name)
    info.type, info.mode = tarfile.DIRTYPE, mode
    return info, b""


def tarball(*members: Member) -> bytes:
    data = io.BytesIO()
    with tarfile.open(fileobj=data, mode="w:gz", format=tarfile.PAX_FORMAT) as archive:
        for info, content in members:
            archive.addfile(info, io.BytesIO(content))
    return data.getvalue()


def claiming(size: int) -> bytes:
    """An archive with one sparse file of that size: 1 KiB that unpacks to anything."""
    info = tarfile.TarInfo("bomb.py")
    header = bytearray(info.tobuf(tarfile.GNU_FORMAT))
    header[156:157] = tarfile.GNUTYPE_SPARSE
    header[483:495] = b"\x80" + size.to_bytes(11, "big")
    header[148:156] = b" " * 8
    header[148:156] = b"%06o\0 " % sum(header)
    return gzip.compress(bytes(header) + b"\0" * 1024)


@pytest.fixture
def unpack(tmp_path: Path):
    """Locate the code of a run whose tarball has these bytes."""
    store, cache = MemoryStore(), tmp_path / "cache"

    def run(data: bytes) -> Path | None:
        artifact = store.put("code.tar.gz", data)
        program = {"entrypoint": "a:b", "code": {"uri": artifact.uri, "sha256": artifact.sha256}}
        return locate_code(parse_run(document(program=program)).spec, store, cache)

    return run


def files(root: Path) -> set[str]:
    return {path.relative_to(root).as_posix() for path in root.rglob("*") if not path.is_dir()}


def test_files_and_folders_are_unpacked_without_their_rights_and_owners(unpack):
    info, content = plain("pkg/run.py")
    info.mode, info.uid, info.uname = 0o4777, 0, "root"
    found = unpack(tarball(folder("./pkg", 0o777), (info, content), plain("./top.py")))
    assert files(found) == {"pkg/run.py", "top.py"}
    assert not any(path.stat().st_mode & 0o7022 for path in found.rglob("*"))


HOSTILE = {
    "a file above": [plain("../outside.py")],
    "a file above, later": [plain("a.py"), plain("a/../../outside.py")],
    "an absolute file": [plain("/tmp/outside.py")],
    "an absolute folder": [folder("/tmp/outside")],
    "a link to a file of the machine": [special("link", tarfile.SYMTYPE, "/etc/passwd")],
    "a link upwards": [special("link", tarfile.SYMTYPE, "../..")],
    "a file through a link": [special("here", tarfile.SYMTYPE, ".."), plain("here/outside.py")],
    "a link that seems to stay inside": [folder("a"), special("a/b", tarfile.SYMTYPE, "../c")],
    "a hard link outside": [special("link", tarfile.LNKTYPE, "/etc/passwd")],
    "a hard link inside": [plain("a.py"), special("b.py", tarfile.LNKTYPE, "a.py")],
    "a character device": [special("null", tarfile.CHRTYPE)],
    "a block device": [special("disk", tarfile.BLKTYPE)],
    "a pipe": [special("pipe", tarfile.FIFOTYPE)],
    "a zero byte in the name": [renamed("a\0b.py")],
    "a name that is too long": [plain("a" * 300)],
    "a file as a folder": [plain("a"), plain("a/b.py")],
}


@pytest.mark.parametrize("members", HOSTILE.values(), ids=HOSTILE.keys())
def test_a_hostile_archive_is_refused_and_leaves_nothing(unpack, tmp_path, members):
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack(tarball(*members))
    assert files(tmp_path) == set()
    assert not Path("/tmp/outside.py").exists() and not Path("/tmp/outside").exists()


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"no archive",
        tarball(plain("a.py"))[:60],
        tarball(plain("a.py", b"y" * 9999))[:-20],
        gzip.compress(b"x" * 99),
    ],
    ids=["empty", "text", "cut in its head", "cut in its end", "no tar inside"],
)
def test_a_damaged_archive_is_told(unpack, tmp_path, data):
    with pytest.raises(DataError, match="cannot be unpacked"):
        unpack(data)
    assert files(tmp_path) == set()


def test_damaged_bytes_anywhere_are_told_or_harmless(unpack, tmp_path):
    whole = tarball(plain("a.py", bytes(range(256)) * 8), plain("b.py"))
    for position in range(0, len(whole), 7):
        damaged = bytearray(whole)
        damaged[position] ^= 0xFF
        try:
            unpack(bytes(damaged))
        except DataError as error:
            assert "cannot be unpacked" in str(error)


def test_a_sparse_bomb_is_refused_by_its_size(unpack, tmp_path):
    with pytest.raises(DataError, match="more than 20000 files or 2048 MiB"):
        unpack(claiming(1 << 50))
    assert files(tmp_path) == set()


def test_an_archive_of_many_large_files_is_refused_before_any_is_written(unpack, tmp_path, monkeypatch):
    monkeypatch.setattr(code, "MAX_BYTES", 1 << 20)
    with pytest.raises(DataError, match="put large files into the image"):
        unpack(tarball(*(plain(f"{n}.py", b"\0" * (300 << 10)) for n in range(4))))
    assert files(tmp_path) == set()


def test_an_archive_of_too_many_files_is_refused(unpack, tmp_path, monkeypatch):
    monkeypatch.setattr(code, "MAX_FILES", 50)
    assert len(files(unpack(tarball(*(plain(f"{n}.py") for n in range(50)))))) == 50
    before = files(tmp_path)
    with pytest.raises(DataError, match="more than 50 files"):
        unpack(tarball(*(plain(f"{n}.py") for n in range(51))))
    assert files(tmp_path) == before
