"""Whole small runs on the local platform, with scripted children."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest
from tests.unit.operator.local.children import (
    COMMANDS,
    WORKER,
    living,
    nothing_left,
    python,
    small_run,
    until,
)

from tandem_api.conditions import SUCCEEDED, is_true
from tandem_api.errors import ConfigurationError
from tandem_api.v1alpha1 import OptimizationRun
from tandem_operator.actions import EmitEvent
from tandem_operator.platforms.local.manifest import resolve
from tandem_operator.platforms.local.platform import LocalPlatform, LocalSettings
from tandem_operator.platforms.local.workdir import Workdir
from tandem_operator.reconcile import reconcile

SETTINGS = LocalSettings(commands=COMMANDS, has_gpu=False)


@pytest.fixture(autouse=True)
def credentials(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")


@pytest.fixture
def workdir(tmp_path: Path) -> Iterator[Path]:
    """A run's folder; nothing of the run may be alive after the test."""
    with nothing_left(tmp_path / "work") as folder:
        yield folder


def wanted(workdir: Path, **spec: object) -> OptimizationRun:
    return resolve(small_run(workdir.parent, **spec), workdir.parent)


def finish(platform: LocalPlatform) -> None:
    while not reconcile(platform).finished:
        platform.wait(0.2)


def starts(workdir: Path) -> list[str]:
    """Which stages were started, with their attempt."""
    return workdir.with_name(workdir.name + ".starts").read_text().splitlines()


ALL_STAGES = ["baseline check 1", "baseline evaluate 1", "p optimize 1", "final evaluate 1"]


def test_a_run_ends_with_its_result_in_the_status_and_nothing_running(workdir: Path) -> None:
    with LocalPlatform(workdir, wanted(workdir), SETTINGS) as platform:
        finish(platform)
        assert platform.fetch_result() is None
    run = Workdir(workdir).read_run()
    assert run is not None
    assert is_true(run.status.conditions, SUCCEEDED)
    assert run.status.best is not None
    assert run.status.best.id == "aaaaaaaaaaaa@base"
    assert starts(workdir) == ALL_STAGES


def test_keys_of_other_models_reach_the_search_that_asks_them_and_nothing_else(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = (
        "import json, os\n"
        "stage = json.load(open(os.environ['TANDEM_REQUEST_FILE']))['stage']\n"
        "keys = sorted(name for name in os.environ if name.endswith('_API_KEY') and name.startswith('TANDEM_'))\n"
        "with open(os.environ['TANDEM_WORKDIR'] + '.keys', 'a') as file: print(stage, *keys, file=file)\n"
    )
    monkeypatch.setenv("TANDEM_PROPOSER_API_KEY", "secret")
    monkeypatch.setenv("TANDEM_TEACHER_API_KEY", "secret")
    proposer = {"url": "https://api.example.com/v1", "model": "large", "keySecret": "writer"}
    asking = {"type": "mipro", "proposer": proposer, "teacher": {"url": "http://localhost:1/v1", "model": "open"}}
    settings = LocalSettings(commands=replace(COMMANDS, worker=python(note + WORKER)), has_gpu=False)
    with LocalPlatform(workdir, wanted(workdir, promptOptimizer=asking), settings) as platform:
        finish(platform)
    seen = workdir.with_name(workdir.name + ".keys").read_text().splitlines()
    assert seen == ["check", "evaluate", "optimize TANDEM_PROPOSER_API_KEY", "evaluate"]


def test_the_account_at_mlflow_reaches_the_workers_of_runs_that_name_a_secret_for_it(
    workdir: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    note = (
        "import os\n"
        "with open(os.environ['TANDEM_WORKDIR'] + '.keys', 'a') as file:\n"
        "    print(*(n for n in os.environ if n.startswith('MLFLOW_TRACKING_')), file=file)\n"
    )
    monkeypatch.setenv("MLFLOW_TRACKING_TOKEN", "secret")
    mlflow = {"uri": "http://localhost:1", "experiment": "e"}
    settings = LocalSettings(commands=replace(COMMANDS, worker=python(note + WORKER)), has_gpu=False)
    seen = []
    for number, account in enumerate(({}, {"credentialsSecret": "mlflow"})):
        place = workdir / str(number)
        run = wanted(workdir, strategy="vanilla", tracking={"mlflow": {**mlflow, **account}})
        with LocalPlatform(place, run, settings) as platform:
            finish(platform)
        seen.append(set(place.with_name(place.name + ".keys").read_text().splitlines()))
    assert seen == [{""}, {"MLFLOW_TRACKING_TOKEN"}]


def test_a_run_that_was_left_at_any_point_goes_on_and_repeats_no_finished_stage(workdir: Path) -> None:
    finished = False
    for _ in range(40):
        with LocalPlatform(workdir, wanted(workdir), SETTINGS) as platform:
            # Two passes each: one to get going, one to get a little further.
            for _ in range(2):
                finished = reconcile(platform).finished
                if finished:
                    break
                until(lambda p=platform: not p._tasks.children or p._tasks.children[0].exit_code is not None)
                until(lambda p=platform: (s := p._serving.observe()) is None or s.state != "starting")
        if finished:
            break
    assert finished
    assert starts(workdir) == ALL_STAGES


def test_events_reach_the_listener_and_the_file(workdir: Path) -> None:
    told: list[EmitEvent] = []
    settings = LocalSettings(commands=COMMANDS, has_gpu=False, on_event=told.append)
    with LocalPlatform(workdir, wanted(workdir), settings) as platform:
        finish(platform)
    assert told[-1].reason == "RunSucceeded"
    assert len(Workdir(workdir).events.read_text().splitlines()) == len(told)


def test_a_folder_in_use_is_refused_and_left_as_it_is(workdir: Path) -> None:
    with (
        LocalPlatform(workdir, wanted(workdir), SETTINGS) as platform,
        pytest.raises(ConfigurationError, match="in use by another"),
        LocalPlatform(workdir, wanted(workdir), SETTINGS),
    ):
        pass
    assert Workdir(workdir).read_run() == platform.load()


def test_a_failed_start_gives_the_folder_back(workdir: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.MonkeyPatch.context() as without:
        without.delenv("AWS_SECRET_ACCESS_KEY")
        with pytest.raises(ConfigurationError), LocalPlatform(workdir, wanted(workdir), SETTINGS):
            pass
    with LocalPlatform(workdir, wanted(workdir), SETTINGS) as platform:
        assert platform.load().metadata.generation == 1


def test_a_changed_spec_is_refused_before_anything_starts(workdir: Path) -> None:
    with LocalPlatform(workdir, wanted(workdir), SETTINGS) as platform:
        begun = platform.load()
    with (
        pytest.raises(ConfigurationError, match=r"spec\.seed"),
        LocalPlatform(workdir, wanted(workdir, seed=3), SETTINGS),
    ):
        pass
    with LocalPlatform(workdir, wanted(workdir, budget={"tokens": 10**6}), SETTINGS) as platform:
        assert platform.load().metadata.uid == begun.metadata.uid
        assert platform.load().metadata.generation == 2


def test_a_suspended_run_holds_nothing_and_goes_on_when_it_may(workdir: Path) -> None:
    with LocalPlatform(workdir, wanted(workdir, suspend=True), SETTINGS) as platform:
        finish(platform)
        assert living(workdir) == []
    with LocalPlatform(workdir, wanted(workdir), SETTINGS) as platform:
        finish(platform)
    assert starts(workdir) == ALL_STAGES
