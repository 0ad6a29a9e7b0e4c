"""What the sources must not do: read pickles that came from somewhere, run what a user wrote outside of a worker, hold
keys in images. The sources themselves are read, so that a new line that does it fails here."""

from __future__ import annotations

import ast
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
PACKAGES = ("api", "operator", "trainer")
SOURCES = sorted(path for part in (*PACKAGES, "examples", "tools") for path in (ROOT / part).rglob("*.py"))
#: Modules that make objects, and with them calls, of bytes.
PICKLERS = {"pickle", "_pickle", "cPickle", "dill", "cloudpickle", "joblib", "shelve", "marshal", "diskcache"}
ARCHIVERS = {"tarfile", "zipfile"}
#: (file, what it does): why that is no danger.
ALLOWED = {
    ("trainer/tandem_trainer/lora/together.py", "import pickle"): "writes for its own child processes",
    (
        "trainer/tandem_trainer/lora/process.py",
        "import pickle",
    ): "reads what its parent wrote, where no other pod writes: test_hostile_files.py",
    ("trainer/tandem_trainer/lora/process.py", "pickle.loads"): "the same",
    ("trainer/tandem_trainer/stages/code.py", "import tarfile"): "unpacks code, in the worker: test_code_archives.py",
    (
        "trainer/tandem_trainer/main.py",
        "import of a computed name",
    ): "a stage of ours, by the name that its type allows",
    ("trainer/tandem_trainer/stages/optimize.py", "import of a computed name"): "an optimizer of ours, by its type",
    ("trainer/tandem_trainer/program/code.py", "import of a computed name"): "the user's program, in the worker",
    ("operator/tandem_operator/platforms/local/workdir.py", "yaml.load"): "with a safe loader, of the C library",
    ("examples/hotpotqa/prepare.py", "import tarfile"): "reads members, unpacks none; a tool for people",
}


def findings(tree: ast.Module) -> Iterator[str]:
    """What in a source would run what it reads."""
    for node in ast.walk(tree):
        match node:
            case ast.Import(names=names):
                yield from (f"import {_top(one.name)}" for one in names if _top(one.name) in PICKLERS | ARCHIVERS)
            case ast.ImportFrom(module=str(module)) if _top(module) in PICKLERS | ARCHIVERS:
                yield f"import {_top(module)}"
            case ast.Call():
                yield from _calls(node)


def _top(module: str) -> str:
    return module.partition(".")[0]


def _calls(call: ast.Call) -> Iterator[str]:
    name = ast.unparse(call.func)
    given = {keyword.arg: ast.unparse(keyword.value) for keyword in call.keywords}
    if re.search(r"(^|\.)(c?pickle|dill|joblib|marshal|cloudpickle)\.loads?$", name):
        yield name
    if name == "torch.load" and given.get("weights_only") != "True":
        yield name
    if name.endswith("read_pickle") or given.get("allow_pickle") == "True" or given.get("trust_remote_code") == "True":
        yield f"{name} of pickles or code"
    if name in ("yaml.load", "yaml.load_all", "yaml.unsafe_load", "yaml.full_load"):
        yield name
    if name in ("eval", "exec", "compile", "__import__", "os.system", "os.popen", "runpy.run_path", "runpy.run_module"):
        yield name
    if given.get("shell") == "True" or name.endswith((".unpack_archive", ".spec_from_file_location")):
        yield name
    if name.endswith("import_module") and not (call.args and isinstance(call.args[0], ast.Constant)):
        yield "import of a computed name"


def test_nothing_is_unpickled_evaluated_or_unpacked_but_what_is_known_here():
    found = {
        (path.relative_to(ROOT).as_posix(), what)
        for path in SOURCES
        for what in findings(ast.parse(path.read_text(encoding="utf-8")))
    }
    assert found == ALLOWED.keys()


@pytest.mark.parametrize(
    "line",
    [
        *("import pickle", "from dill import loads", "import joblib as j", "import torch; torch.load(f)", "eval(text)"),
        *("torch.load(f, weights_only=False)", "np.load(f, allow_pickle=True)", "pd.read_pickle(f)", "yaml.load(f)"),
        *("AutoModel.from_pretrained(m, trust_remote_code=True)", "subprocess.run(c, shell=True)", "os.system(c)"),
        *("shutil.unpack_archive(f)", "import_module(name)", "importlib.import_module(f'a.{b}')", "import zipfile"),
    ],
)
def test_the_search_finds_each_of_them(line):
    assert list(findings(ast.parse(line)))


# The operator.


def test_the_operators_process_has_nothing_that_runs_a_users_code():
    script = "import sys, tandem_operator.app.main; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], capture_output=True, text=True, check=True, timeout=120)
    loaded = set(done.stdout.split())
    assert "tandem_operator.app.passes" in loaded
    foreign = {
        "tandem_trainer",
        "dspy",
        "torch",
        "transformers",
        "vllm",
        "boto3",
        "litellm",
        "datasets",
        "huggingface_hub",
    }
    assert {_top(name) for name in loaded} & foreign == set()
    for name in (name for name in loaded if name.startswith(("tandem_operator", "tandem_api"))):
        package = "operator" if name.startswith("tandem_operator") else "api"
        path = ROOT / package / name.replace(".", "/")
        source = path / "__init__.py" if path.is_dir() else path.with_suffix(".py")
        tree = ast.parse(source.read_text(encoding="utf-8"))
        assert list(findings(tree)) == [], name
        imported = {ast.unparse(node) for node in ast.walk(tree) if isinstance(node, ast.Import | ast.ImportFrom)}
        assert not any("subprocess" in line for line in imported), name


# The images.

DOCKERFILES = [ROOT / "operator/Dockerfile", ROOT / "trainer/Dockerfile"]
_SECRET = re.compile(r"(key|token|secret|password|passwd|credential)", re.IGNORECASE)


def instructions(path: Path) -> list[tuple[str, str]]:
    """The lines of a Dockerfile, joined where they go on: (instruction, the rest)."""
    text = re.sub(r"\\\n", " ", re.sub(r"^#.*\n", "", path.read_text(encoding="utf-8"), flags=re.MULTILINE))
    return [(line.split()[0].upper(), line.partition(" ")[2].strip()) for line in text.splitlines() if line.strip()]


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_an_image_runs_as_a_user_that_is_a_number_and_not_root(path):
    last = instructions(path)[::-1]
    user = next(rest for instruction, rest in last if instruction in ("USER", "FROM"))
    assert re.fullmatch(r"[1-9]\d*:[1-9]\d*", user), "the kubelet can tell a number from root, not a name"


@pytest.mark.parametrize("path", DOCKERFILES, ids=lambda path: path.parent.name)
def test_an_image_holds_no_keys_and_takes_packages_by_their_pins(path):
    for instruction, rest in instructions(path):
        if instruction in ("ENV", "ARG"):
            assert not _SECRET.search(rest), f"{instruction} {rest}: it stays in the image"
        assert instruction != "ADD", "ADD fetches and unpacks; COPY does neither"
        assert not re.search(r"(curl|wget|--trusted-host|--extra-index-url|chmod \S*777|sudo)", rest)
        if "pip install" in rest:
            is_pinned = "--constraint" in rest or "--requirement" in rest
            assert is_pinned or rest.endswith("/usr/share/tandem/wheel/*.whl"), rest


def test_the_pins_are_exact():
    for path in (ROOT / "requirements").glob("*.txt"):
        lines = (line.split("#")[0].strip() for line in path.read_text(encoding="utf-8").splitlines())
        assert [line for line in lines if line and not re.fullmatch(r"[\w.-]+==[\w.+]+", line)] == [], path.name


def _matching(pattern: str) -> Callable[[str], bool]:
    return lambda text: re.search(pattern, text) is not None


@pytest.mark.parametrize(
    ("what", "is_found"),
    [
        ("a private key", _matching(r"-----BEGIN [A-Z ]*PRIVATE KEY-----\n[A-Za-z0-9+/]{20}")),
        ("a key of AWS", _matching(r"\bAKIA[0-9A-Z]{16}\b")),
        ("a token of the Hub", _matching(r"\bhf_[A-Za-z0-9]{30,}\b")),
        ("a token of GitHub", _matching(r"\bgh[pousr]_[A-Za-z0-9]{36,}\b")),
    ],
)
def test_no_key_lies_in_the_repository(what, is_found):
    listed = subprocess.run(["git", "ls-files"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("no git here")
    for name in listed.stdout.splitlines():
        path = ROOT / name
        if path.is_file() and path.stat().st_size < 5 << 20:
            assert not is_found(path.read_text(encoding="utf-8", errors="replace")), f"{name}: {what}"
