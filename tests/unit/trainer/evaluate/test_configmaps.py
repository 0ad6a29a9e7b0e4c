"""Data and code from ConfigMaps, as the kubelet mounts them: links into a hidden folder that every change replaces."""

from __future__ import annotations

import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from tests.memory_store import MemoryStore

from tandem_api.errors import ConfigurationError, DataError
from tandem_api.v1alpha1.task import Code, Program
from tandem_trainer.evaluate.examples import load_splits
from tandem_trainer.evaluate.files import configmap_file
from tandem_trainer.program.code import code_digest, import_entrypoint
from tandem_trainer.stages.code import locate_code

ENTRYPOINT = "mounted_program:build"
CODE = {"mounted_program.py": "from mounted_parts import ANSWER\n\ndef build():\n    return ANSWER\n"}
PARTS = {"mounted_parts.py": "ANSWER = 42\n"}


def mount(folder: Path, files: dict[str, str], at: str = "2026_11_21_07_43_27.1") -> None:
    """What the kubelet makes of a ConfigMap; again, with another time, when the volume is mounted elsewhere."""
    version = folder / f"..{at}"
    version.mkdir(parents=True)
    for name, text in files.items():
        (version / name).write_text(text)
        link = folder / name
        if not link.is_symlink():
            link.symlink_to(f"..data/{name}")
    staged = folder / "..data_tmp"
    staged.symlink_to(version.name)
    staged.replace(folder / "..data")


@pytest.fixture
def mounts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    folder = tmp_path / "configmaps"
    rows = "".join(f'{{"q": "q{number}", "a": "a{number}"}}\n' for number in range(10))
    mount(folder / "questions", {"train.jsonl": rows, "dev.csv": "q,a\nq10,a10\n", "notes": "x"})
    mount(folder / "code", CODE | PARTS)
    monkeypatch.setenv("TANDEM_CONFIGMAPS", str(folder))
    return folder


@pytest.fixture
def load(make_spec: Callable[..., Any], store: MemoryStore) -> Callable[..., Any]:
    return lambda *args: load_splits(make_spec(*args), store)


@pytest.fixture
def locate(make_spec: Callable[..., Any], store: MemoryStore, tmp_path: Path) -> Callable[[str], Path | None]:
    def locate(uri: str) -> Path | None:
        program = Program(entrypoint=ENTRYPOINT, code=Code(uri=uri))
        return locate_code(make_spec().model_copy(update={"program": program}), store, tmp_path / "cache")

    return locate


def test_data_sets_are_read_from_mounted_configmaps(load: Any, mounts: Path) -> None:
    splits = load("configmap://questions/train.jsonl", "configmap://questions/dev.csv")
    assert (len(splits.train), splits.validation[0].fields["q"]) == (10, "q10")


@pytest.mark.parametrize(
    ("uri", "problem"),
    [
        ("configmap://questions/test.jsonl", r"no key 'test\.jsonl'; its keys: dev\.csv, notes, train\.jsonl"),
        ("configmap://answers/train.jsonl", r"'answers' is not mounted at .*; mounted there: code, questions"),
    ],
)
def test_what_is_not_there_is_told_with_what_is(load: Any, mounts: Path, uri: str, problem: str) -> None:
    with pytest.raises(DataError, match=rf"data\.train \(.*{problem}"):
        load(uri)


@pytest.mark.parametrize(
    "uri", ["configmap://train.jsonl", "configmap://questions/a/train.jsonl", "configmap://../..data/train.jsonl"]
)
def test_an_address_that_is_no_name_and_key_is_refused(mounts: Path, uri: str) -> None:
    """By the worker, too, whatever a manifest was let through with."""
    with pytest.raises(ConfigurationError, match=r"configmap://NAME/KEY"):
        configmap_file(uri, "data.train")


def test_one_machine_has_no_configmaps(load: Any, locate: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("TANDEM_CONFIGMAPS", raising=False)
    for use in (lambda: load("configmap://questions/train.jsonl"), lambda: locate("configmap://code")):
        with pytest.raises(ConfigurationError, match="only a cluster has ConfigMaps; write file:PATH"):
            use()


@pytest.fixture
def clean_imports(monkeypatch: pytest.MonkeyPatch) -> None:
    """Undo what importing the ConfigMap's code does to this process."""
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.setattr(sys, "dont_write_bytecode", True)
    for name in ("mounted_program", "mounted_parts"):
        monkeypatch.delitem(sys.modules, name, raising=False)


@pytest.mark.usefixtures("clean_imports")
def test_code_from_a_configmap_is_imported_from_its_mount(locate: Any, mounts: Path) -> None:
    folder = locate("configmap://code")
    assert folder == mounts / "code"
    assert import_entrypoint(ENTRYPOINT, field="program.entrypoint", code_path=folder)() == 42
    assert [path for path in sys.path if ".." in path] == []
    for name in ("mounted_program", "mounted_parts"):
        del sys.modules[name]


def test_the_digest_of_code_is_its_contents_and_not_when_it_was_mounted(locate: Any, mounts: Path) -> None:
    folder = locate("configmap://code")
    first = code_digest(ENTRYPOINT, folder)
    mount(folder, CODE | PARTS, at="2027_01_01_00_00_00.2")  # the old version's folder is still there
    assert code_digest(ENTRYPOINT, folder) == first
    mount(mounts / "elsewhere", CODE | PARTS, at="2027_02_02_00_00_00.3")
    assert code_digest(ENTRYPOINT, mounts / "elsewhere") == first
    mount(folder, CODE | {"mounted_parts.py": "ANSWER = 43\n"}, at="2027_03_03_00_00_00.4")
    assert code_digest(ENTRYPOINT, folder) != first


@pytest.mark.parametrize(
    ("uri", "error", "problem"),
    [
        ("configmap://questions", DataError, r"no key that ends in \.py; its keys: dev\.csv, notes, train\.jsonl"),
        ("configmap://other", DataError, "'other' is not mounted"),
        ("configmap://code/mounted_program.py", ConfigurationError, "configmap://NAME, whose keys are the Python file"),
    ],
)
def test_code_that_is_not_there_is_refused(
    locate: Any, mounts: Path, uri: str, error: type[Exception], problem: str
) -> None:
    with pytest.raises(error, match=rf"program\.code\.uri.*{problem}"):
        locate(uri)
