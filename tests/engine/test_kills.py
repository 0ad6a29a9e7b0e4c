"""Kill anything, at any moment: the run converges to the undisturbed result and pays for at most one batch twice."""

from __future__ import annotations

import re
import shutil
import signal
from concurrent.futures import ThreadPoolExecutor

import pytest
from tests.engine.world import CONCURRENCY, Engine

pytestmark = pytest.mark.case("one machine: children and commands killed")
#: A batch: the calls in flight, and as many again that may wait to be written (docs/local.md).
BATCH = 2 * CONCURRENCY
#: Kill points tried at the same time.
PARALLEL = 2


@pytest.fixture(scope="module")
def undisturbed(tmp_path_factory, bucket):
    """(the engine of a run that nothing disturbed, its number of writes)."""
    s3, environment = bucket
    engine = Engine(tmp_path_factory.mktemp("undisturbed") / "run", s3, environment)
    output = engine.drive()
    return engine, int(re.search(r"writes=(\d+)", output).group(1))


def assert_same_result(engine: Engine, undisturbed: Engine, *, kills: int = 1) -> None:
    assert engine.outcome() == undisturbed.outcome()
    wanted, calls = undisturbed.calls(), engine.calls()
    assert calls.keys() == wanted.keys()
    repeated = calls.total() - wanted.total()
    assert repeated <= BATCH * kills, f"{repeated} LM calls were paid for twice"
    assert engine.processes() == []


@pytest.mark.timeout(3600)
def test_the_engine_killed_before_any_write_converges(undisturbed, tmp_path, bucket, record_cases):
    reference, writes = undisturbed
    s3, environment = bucket
    print(f"{writes} kill points")
    assert writes >= 35

    def try_point(point: int) -> str | None:
        engine = Engine(tmp_path / f"{point}", s3, environment)
        try:
            engine.drive("--die-at", str(point), expect=-signal.SIGKILL)
            engine.drive()
            assert_same_result(engine, reference)
        except AssertionError as error:
            return f"kill before write {point}: {error}"
        shutil.rmtree(engine.folder)
        return None

    with ThreadPoolExecutor(PARALLEL) as pool:
        failures = [failure for failure in pool.map(try_point, range(writes)) if failure is not None]
    record_cases("one machine: engine killed before a write", writes, writes - len(failures))
    assert not failures, "\n\n".join(failures)


@pytest.mark.parametrize("stage", ["check", "evaluate", "optimize", "traces", "train"])
def test_a_worker_killed_in_the_middle_is_retried_and_repeats_one_batch(stage, engine, undisturbed):
    reference, _ = undisturbed
    process = engine.start("--latency", "0.03")
    task = engine.workdir / "tasks"

    def started() -> bool:
        return any(task.glob(f"engine-*-{stage}-1")) and bool(workers())

    def workers():
        return [p for p in engine.processes() if any(f"-{stage}-1" in part for part in _tasks_of(p))]

    engine.wait_for(f"stage {stage}", started)
    if stage in ("optimize", "traces", "evaluate"):
        seen = engine.calls().total()
        engine.wait_for("calls", lambda: engine.calls().total() > seen + 6)
    for worker in workers():
        worker.kill()
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output + engine.logs()
    outcome, wanted = engine.outcome(), reference.outcome()
    failures = [s["failures"] for step in outcome["steps"] for s in step["stages"]]
    assert sum(failures) == 1
    assert [s.get("score") for s in outcome["steps"]] == [s.get("score") for s in wanted["steps"]]
    assert outcome["best"] == wanted["best"] and outcome["usage"] == wanted["usage"]
    assert engine.calls().total() - reference.calls().total() <= BATCH


def _tasks_of(process) -> list[str]:
    try:
        return [process.environ().get("TANDEM_REQUEST_FILE", "")]
    except Exception:
        return []


def test_the_model_server_killed_in_the_middle_comes_back_and_the_stage_goes_on(engine, undisturbed):
    reference, _ = undisturbed
    process = engine.start("--latency", "0.03")
    engine.wait_for("calls of the p step", lambda: engine.calls().total() > 60)
    servers = [p for p in engine.processes() if "server.py" in " ".join(p.cmdline())]
    assert len(servers) == 1
    servers[0].kill()
    output, _ = process.communicate(timeout=200)
    assert process.returncode == 0, output + engine.logs()
    assert_same_result(engine, reference)


def test_a_kill_of_the_engine_leaves_no_process_behind(engine):
    process = engine.start("--latency", "0.05")
    engine.wait_for("calls", lambda: engine.calls().total() > 10)
    engine.kill(process)
    engine.wait_for("the children's end", lambda: not engine.processes(), timeout=120)


def test_ctrl_c_stops_cleanly_and_the_same_command_goes_on(engine, undisturbed):
    reference, _ = undisturbed
    process = engine.start("--latency", "0.03")
    engine.wait_for("calls of the p step", lambda: engine.calls().total() > 60)
    process.send_signal(signal.SIGINT)
    process.communicate(timeout=300)
    assert engine.processes() == []
    engine.drive()
    assert_same_result(engine, reference)
