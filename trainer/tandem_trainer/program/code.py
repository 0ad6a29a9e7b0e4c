"""The user's Python code: where it lies, how its entry points are imported, and what its digest is."""

from __future__ import annotations

import hashlib
import importlib
import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from tandem_api.errors import ConfigurationError

#: Folders whose Python files are not the program's.
_FOREIGN = frozenset({"__pycache__", "node_modules", "site-packages"})


def import_entrypoint(entrypoint: str, *, field: str, code_path: Path | None = None) -> Any:
    """The object named by `package.module:name`, with `code_path` first on the import path.

    Raises ConfigurationError that names `field` of the spec, and says why the import failed.
    """
    module_name, _, name = entrypoint.partition(":")
    if code_path is not None:
        if not code_path.is_dir():
            raise ConfigurationError(f"{field}: found no folder {str(code_path)!r} with the code of {entrypoint!r}")
        make_importable(code_path)
    try:
        target: Any = importlib.import_module(module_name)
    except (Exception, SystemExit) as error:
        searched = f" (searched first: {code_path})" if code_path is not None else ""
        raise ConfigurationError(
            f"{field}: {module_name!r} cannot be imported: {type(error).__name__}: {error}{searched}"
        ) from error
    _refuse_shadowed(field, module_name, target, code_path)
    try:
        for part in name.split("."):
            target = getattr(target, part)
    except AttributeError as error:
        names = ", ".join(_public_names(target)) or "nothing"
        raise ConfigurationError(f"{field}: {module_name!r} has no {name!r}; it has: {names}") from error
    return target


def make_importable(code_path: Path) -> None:
    """Put that folder first on the import path."""
    folder = str(code_path.resolve())
    if sys.path[:1] != [folder]:
        sys.path.insert(0, folder)
    importlib.invalidate_caches()


def code_digest(entrypoint: str, code_path: Path | None) -> str:
    """sha256 over the Python files under `code_path`, or else over those of the entry point's top-level package."""
    top = entrypoint.partition(":")[0].partition(".")[0]
    root = code_path or _package_root(top)
    total = hashlib.sha256()
    if root is not None:
        for path in _python_files(root):
            total.update(f"{path.relative_to(root)}\0".encode())
            total.update(hashlib.sha256(path.read_bytes()).digest())
    return total.hexdigest()


def _refuse_shadowed(field: str, module_name: str, module: Any, code_path: Path | None) -> None:
    """A file of the user's that has the name of an installed module is never imported: say so."""
    if code_path is None:
        return
    wanted = code_path.joinpath(*module_name.split("."))
    file, folder = getattr(module, "__file__", None), code_path.resolve()
    is_ours = file is not None and Path(file).resolve().is_relative_to(folder)
    if not is_ours and (wanted.with_suffix(".py").is_file() or (wanted / "__init__.py").is_file()):
        raise ConfigurationError(
            f"{field}: {module_name!r} is the name of another module ({file or 'built in'}), which is imported instead "
            f"of {wanted.with_suffix('.py').name}; give your module another name"
        )


def _public_names(target: Any) -> list[str]:
    return [name for name in dir(target) if not name.startswith("_")][:20]


def _package_root(top: str) -> Path | None:
    file = getattr(sys.modules.get(top), "__file__", None)
    if file is None:
        return None
    path = Path(file)
    return path.parent if path.name == "__init__.py" else path


def _python_files(root: Path) -> Iterator[Path]:
    """The Python files under `root`, in a fixed order, without those of virtual environments and hidden folders."""
    if root.is_file():
        yield root
        return
    for folder, subfolders, files in os.walk(root):
        subfolders[:] = sorted(
            name
            for name in subfolders
            if name not in _FOREIGN and not name.startswith(".") and not Path(folder, name, "pyvenv.cfg").exists()
        )
        yield from (Path(folder, name) for name in sorted(files) if name.endswith(".py"))
