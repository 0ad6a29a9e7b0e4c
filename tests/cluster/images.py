"""Builds the operator's and the trainer's images for the test cluster with buildah, from the project's Dockerfiles.

    images.py CACHE

Prints a line `NAME ARCHIVE` for each: an archive of docker's form that is named by what the image is made of, so that
what has not changed is not built again. Run it with Python 3.11 and pip, as root, in a mount namespace of its own:
buildah leaves a mount behind.
"""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
#: In place of python:3.11-slim and of vLLM's image, for want of a registry. The libraries are vLLM's and torch's.
_SUITE = "bookworm"
_PACKAGES = "ca-certificates,libgomp1,libnuma1,python-is-python3,python3,python3-pip"
_NEEDLESS = ("usr/share/doc", "usr/share/man", "usr/share/locale", "var/lib/apt/lists", "var/cache/apt")
#: Archives of each kind that are kept, the latest used ones.
_KEEP = 2
#: Every build leaves layers for the next ones; with so many of them, buildah's store is begun anew (20 s).
_LAYERS = 300


@dataclass(frozen=True)
class Image:
    """An image and what decides its content."""

    name: str
    dockerfile: str
    sources: tuple[str, ...]
    arguments: tuple[str, ...] = ()
    layer: str | None = None
    """A Dockerfile for a last layer that only the test cluster needs."""


_COMMON = (".dockerignore", "pyproject.toml", "README.md", "requirements/local.txt", "tests/cluster/images.py", "api")
IMAGES = (
    Image(
        "docker.io/local/tandem-operator:test",
        "operator/Dockerfile",
        (*_COMMON, "operator", "requirements/operator.txt"),
    ),
    Image(
        "docker.io/local/tandem-trainer:test",
        "trainer/Dockerfile",
        (*_COMMON, "trainer", "tests/cluster/mounted.Dockerfile"),
        ("REQUIREMENTS=/dev/null",),
        "tests/cluster/mounted.Dockerfile",
    ),
)


class Builder:
    """buildah with a store of its own in the cache."""

    def __init__(self, cache: Path, work: Path) -> None:
        self._cache = cache
        self._store = cache / "store"
        self._work = work
        if len(list(self._store.glob("overlay/*"))) > _LAYERS:
            shutil.rmtree(self._store)

    def archive(self, image: Image) -> Path:
        """The image's archive, built if it is not there."""
        path = self._cache / f"{_short(image)}-{digest(image.sources)}.tar"
        if not path.is_file():
            _say(f"Building {image.name} ...")
            self._build(image)
            new = self._work / path.name
            self._buildah("push", "--quiet", image.name, f"docker-archive:{new}:{image.name}")
            new.replace(path)
            _say(f"{image.name}: {path.stat().st_size / 1e6:.0f} MB")
        path.touch()
        return path

    def tidy(self) -> None:
        """Remove what has not been used for long."""
        for kind in ("base-*", "wheels-*", *(f"{_short(image)}-*" for image in IMAGES)):
            for path in sorted(self._cache.glob(kind), key=_used, reverse=True)[_KEEP:]:
                shutil.rmtree(path) if path.is_dir() else path.unlink()

    def _build(self, image: Image) -> None:
        first = image.name if image.layer is None else f"{image.name}-bare"
        arguments = [f"BASE={self._base()}", *image.arguments]
        self._bud(ROOT, image.dockerfile, first, arguments)
        if image.layer is not None:
            empty = self._work / "empty"
            empty.mkdir()
            self._bud(empty, image.layer, image.name, [f"BASE={first}"])

    def _bud(self, context: Path, dockerfile: str, name: str, arguments: Iterable[str]) -> None:
        # chroot: other kinds of isolation need a network of their own and leave a bridge behind.
        options = ["--isolation=chroot", "--layers", "--force-rm", "--pull-never", "--quiet", *self._pip_options()]
        options += [f"--build-arg={argument}" for argument in arguments]
        self._buildah("bud", *options, f"--file={ROOT / dockerfile}", f"--tag={name}", str(context))

    def _pip_options(self) -> list[str]:
        """Options that let pip in a build find its packages, which pip here has fetched with this machine's settings
        (mirrors, certificates); a build itself has no network to rely on."""
        lists = ("requirements/operator.txt", "requirements/local.txt")
        wheels = self._cache / f"wheels-{digest(lists)}"
        if not wheels.is_dir():
            new = self._work / "wheels"
            pip = (sys.executable, "-m", "pip", "wheel", "--no-deps", "--wheel-dir", str(new))
            run(*pip, "--requirement", str(ROOT / lists[0]), "--constraint", str(ROOT / lists[1]), "setuptools")
            new.replace(wheels)
        os.utime(wheels)
        settings = self._work / "pip.conf"
        settings.write_text("[global]\nno-index = true\nfind-links = /wheels\n")
        return [f"--volume={settings}:/etc/pip.conf:ro", f"--volume={wheels}:/wheels:ro"]

    def _base(self) -> str:
        """The name of the base image, made if it is not there."""
        key = hashlib.sha256(" ".join((_SUITE, _PACKAGES, *_NEEDLESS)).encode()).hexdigest()[:16]
        name = f"docker.io/local/base:{key}"
        if not self._buildah("images", "--quiet", "--filter", f"reference={name}").strip():
            files = self._base_files(key)
            container = self._buildah("from", "scratch").strip()
            self._buildah("add", "--quiet", container, str(files), "/")
            self._buildah("commit", "--quiet", "--rm", container, name)
        return name

    def _base_files(self, key: str) -> Path:
        """A tar of Debian's smallest system with Python."""
        path = self._cache / f"base-{key}.tar"
        if path.is_file():
            return path
        _say("Making the base image with debootstrap (once) ...")
        system = self._work / "system"
        run("debootstrap", "--variant=minbase", f"--include={_PACKAGES}", _SUITE, str(system), mirror())
        for folder in _NEEDLESS:
            run("find", str(system / folder), "-mindepth", "1", "-delete")
        # Whoever builds an image may install into its system.
        for marker in system.glob("usr/lib/python3*/EXTERNALLY-MANAGED"):
            marker.unlink()
        new = self._work / path.name
        run("tar", "--numeric-owner", "--one-file-system", "-C", str(system), "-cf", str(new), ".")
        new.replace(path)
        return path

    def _buildah(self, verb: str, *arguments: str) -> str:
        store = [f"--root={self._store}", f"--runroot={self._work / 'run'}", "--storage-driver=overlay"]
        return run("buildah", *store, verb, *arguments, CONTAINERS_CONF=str(self._settings()))

    def _settings(self) -> Path:
        """buildah's own: else it leaves a lock in /etc/cni/net.d, which is for those who run containers."""
        settings = self._work / "containers.conf"
        settings.write_text(f'[network]\nnetwork_config_dir = "{self._work / "networks"}"\n')
        return settings


def digest(sources: Iterable[str]) -> str:
    """A short name for the content of these files and folders of the repository."""
    total = hashlib.sha256()
    for source in sources:
        start = ROOT / source
        for path in sorted(start.rglob("*")) if start.is_dir() else [start]:
            if path.is_file() and "__pycache__" not in path.parts and ".egg-info" not in str(path):
                content = hashlib.sha256(path.read_bytes()).hexdigest()
                total.update(f"{path.relative_to(ROOT)} {content}\n".encode())
    return total.hexdigest()[:16]


def mirror() -> str:
    """The Debian mirror that this machine uses itself."""
    found = run("apt-get", "indextargets", "--format", "$(REPO_URI) $(CODENAME) $(CREATED_BY)").splitlines()
    for line in found:
        address, suite, kind = line.split()
        if suite == _SUITE and kind == "Packages":
            return address
    raise SystemExit(f"images.py: apt has no mirror for Debian {_SUITE}; run apt-get update")


def run(*command: str, **environment: str) -> str:
    """The command's output. Its errors are shown, with all of its output, only if it fails."""
    done = subprocess.run(command, capture_output=True, text=True, check=False, env={**os.environ, **environment})
    if done.returncode != 0:
        raise SystemExit(f"{done.stdout}{done.stderr}\nimages.py: failed with {done.returncode}: {' '.join(command)}")
    return done.stdout


def _short(image: Image) -> str:
    return image.name.rpartition("/")[2].partition(":")[0]


def _used(path: Path) -> float:
    return path.stat().st_mtime


def _say(message: str) -> None:
    print(message, file=sys.stderr, flush=True)


def main() -> None:
    """Build what has changed and print where everything is."""
    cache = Path(sys.argv[1])
    cache.mkdir(parents=True, exist_ok=True)
    os.umask(0o022)
    with tempfile.TemporaryDirectory(dir=cache, prefix="work-") as work:
        builder = Builder(cache, Path(work))
        for image in IMAGES:
            print(image.name, builder.archive(image), flush=True)
        builder.tidy()


if __name__ == "__main__":
    main()
