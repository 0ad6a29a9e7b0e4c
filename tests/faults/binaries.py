"""The programs of a control plane, where `tests/cluster/kubernetes/cluster build` keeps them."""

from __future__ import annotations

import os
import shutil
from pathlib import Path
from typing import Final

VERSION: Final = "1.20.2"
HOW: Final = "tests/cluster/kubernetes/cluster build"
_BUILT: Final = ("kube-apiserver", "kube-controller-manager")


def folder() -> Path:
    """Where the built ones are."""
    cache = os.environ.get("TANDEM_CACHE") or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "tandem"
    return Path(cache).expanduser() / f"kubernetes-{VERSION}"


def missing() -> list[str]:
    """Which programs this machine lacks."""
    built = [name for name in _BUILT if not os.access(folder() / name, os.X_OK)]
    return built + [name for name in ("etcd", "openssl") if shutil.which(name) is None]
