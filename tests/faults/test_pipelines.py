"""What pipelines see of a run on a real API server: CloudEvents at a real receiver, whatever happens to it and to the
operator, and the exit codes of the CI job."""

from __future__ import annotations

import base64
import json
import os
import secrets
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import yaml
from tests.faults.stages import LONG_LEASE
from tests.faults.test_secrets import forms
from tests.faults.world import Ground, World
from tests.receiver import Receiver, is_signed

from tandem_api.errors import DataError
from tandem_api.v1alpha1 import Status
from tandem_operator.app.transitions import Seen, happened
from tandem_trainer import serving as launcher

ROOT = Path(__file__).parents[2]
CI_JOB = ROOT / "examples/pipelines/ci.sh"
TANDEM = (sys.executable, "-c", "from tandem_operator.cli.main import main; main()")
KEY = base64.b64encode(secrets.token_bytes(32)).decode()


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as found:
        yield found


@pytest.fixture
def telling(make_world: Callable[..., World], receiver: Receiver, tmp_path: Path) -> World:
    """A world whose operator sends events to the receiver. A loaded machine does not take its Lease."""
    key = tmp_path / "signing-key"
    key.write_text(KEY)
    events = {"urls": [receiver.url], "signingKeyFile": str(key), "timeoutSeconds": 5}
    return make_world(cloudEvents=events, lease=LONG_LEASE)


def expected(world: World) -> list[str]:
    """The ids that the run's status tells, in order."""
    run = world.run()
    status = Status.model_validate(run["status"])
    return [one.id for one in happened(Seen(world.namespace, "run", run["metadata"]["uid"], status))]


def wait_for_all(world: World, receiver: Receiver) -> list[dict[str, Any]]:
    """Everything that the receiver has got of the run that has ended, once it has all."""
    ids = expected(world)
    world.wait("all events", lambda: {event["id"] for event in receiver.events} >= set(ids), 120)
    return receiver.events


def test_a_runs_events_arrive_signed_complete_in_order_and_without_secrets(telling: World, receiver: Receiver) -> None:
    telling.operator.start()
    telling.apply_run(strategy="p")
    status = telling.wait_finished()
    events = wait_for_all(telling, receiver)
    assert [event["id"] for event in events] == expected(telling)
    assert [event["type"] for event in events] == [
        "dev.tandem.run.started",
        *["dev.tandem.step.started", "dev.tandem.step.finished"] * 3,
        "dev.tandem.run.succeeded",
    ]
    assert events[-1]["data"]["result"]["sha256"] == status["result"]["sha256"]
    assert all(is_signed(request, KEY) for request in receiver.requests)
    sent = b"".join(request.body + str(request.headers).encode() for request in receiver.requests)
    for value in (telling.ground.storage.credentials["AWS_SECRET_ACCESS_KEY"], KEY):
        assert not [form for form in forms(value) if form in sent]
    assert b"item 0 is" not in sent, "an example of the user's"

    # A clean end and a new leader: the same once more.
    telling.operator.stop()
    telling.operator.start()
    telling.wait("the same again", lambda: len(receiver.requests) >= 2 * len(events), 60)
    told = {(request.event["id"], request.event["type"], request.event["time"]) for request in receiver.requests}
    assert len(told) == len(events)

    # What is refused, and what is deleted.
    telling.apply_run("refused", strategy="x -> y")
    telling.wait("the refusal", lambda: len(receiver.events) > len(events))
    assert receiver.events[-1]["type"] == "dev.tandem.run.failed"
    assert receiver.events[-1]["data"]["reason"] == "InvalidSpec"
    telling.api.delete("OptimizationRun", telling.namespace, "run")
    telling.wait("the deletion", lambda: receiver.events[-1]["type"] == "dev.tandem.run.deleted")
    assert receiver.events[-1]["data"]["uid"] == events[0]["data"]["uid"]


def test_no_event_is_lost_when_receiver_and_operator_die_in_turns(telling: World, receiver: Receiver) -> None:
    receiver.behaviour = lambda n: 60.0
    telling.operator.start()
    telling.apply_run(strategy="p")
    telling.wait("an attempt", lambda: receiver.requests)
    # The run goes on while the receiver hangs, and what waits for it dies with the operator.
    telling.wait("the baseline", lambda: telling.status()["steps"][0].get("finished"), 120)
    assert receiver.events == []
    telling.operator.kill()
    receiver.down()
    receiver.behaviour = lambda n: 500 if n % 4 == 1 else 204
    telling.operator.start()
    telling.wait("a refused connection", lambda: "ClientConnectorError" in telling.operator.tail())
    receiver.up()
    telling.wait("some events", lambda: len(receiver.events) >= 3, 120)
    telling.operator.restart()
    telling.wait_finished()
    events = wait_for_all(telling, receiver)
    assert [event["id"] for event in events] == expected(telling)
    assert all(is_signed(request, KEY) for request in receiver.requests)
    told = {(request.event["id"], request.event["type"], request.event["time"]) for request in receiver.requests}
    assert len(told) == len(events), "whoever tells it, a transition has one id, type and time"
    assert "tandem_cloudevents_delivered_total" in telling.operator.metrics()


# --- the CI job -------------------------------------------------------------------------------------------------------


@pytest.fixture(scope="session")
def kubectl() -> str:
    """The folder of the real kubectl."""
    done = subprocess.run([str(ROOT / "tools/kubernetes-tools")], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"tools/kubernetes-tools brought no kubectl: {done.stderr.strip()[-200:]}")
    return done.stdout.strip()


@pytest.fixture
def world(make_world: Callable[..., World]) -> World:
    """Its operator keeps its Lease, however slow the machine is."""
    return make_world(lease=LONG_LEASE)


@pytest.fixture
def ci_job(world: World, kubectl: str, tmp_path: Path) -> Callable[..., subprocess.CompletedProcess[str]]:
    def run(manifest: dict[str, Any], seconds: int = 240, **more: str) -> subprocess.CompletedProcess[str]:
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(manifest))
        environment = {"KUBECONFIG": str(world.ground.plane.kubeconfig), "HOME": str(tmp_path), **more}
        environment["PATH"] = f"{kubectl}:{os.environ['PATH']}"
        command = [str(CI_JOB), str(path), str(seconds)]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=300)

    return run


CiJob = Callable[..., subprocess.CompletedProcess[str]]


def test_the_ci_job_ends_as_the_run_does_and_the_result_can_be_served(
    world: World, ci_job: CiJob, kubectl: str, tmp_path: Path
) -> None:
    world.operator.start()
    done = ci_job(world.manifest(strategy="vanilla"))
    assert done.returncode == 0, done.stderr
    result = world.status()["result"]
    assert done.stdout.splitlines() == [f"uri={result['uri']}", f"sha256={result['sha256']}"]
    again = ci_job(world.manifest(strategy="vanilla"))
    assert (again.returncode, again.stdout) == (0, done.stdout), "the job may be started again"

    environment = {"KUBECONFIG": str(world.ground.plane.kubeconfig), "HOME": str(tmp_path)}
    environment["PATH"] = f"{kubectl}:{os.environ['PATH']}"
    exported = subprocess.run(
        [*TANDEM, "export", "run", "-n", world.namespace], env=environment, capture_output=True, text=True, timeout=120
    )
    assert exported.returncode == 0, exported.stderr
    apply = ["kubectl", "apply", "--dry-run=server", "-o", "name", "-f", "-"]
    applied = subprocess.run(apply, input=exported.stdout, env=environment, capture_output=True, text=True, timeout=120)
    assert applied.stdout.split() == ["deployment.apps/model-run", "service/model-run"], applied.stderr

    failed = ci_job(world.manifest("bad", metric={"builtin": "exact-match", "field": "nonsense"}))
    assert failed.returncode == 1, failed.stderr
    assert world.condition("Succeeded", "bad")["reason"] in failed.stderr


def test_the_ci_job_ends_in_time_and_cancels_if_it_is_told_to(world: World, ci_job: CiJob) -> None:
    world.operator.start()
    held = world.manifest("held", suspend=True)
    done = ci_job(held, 5)
    assert done.returncode == 124, done.stderr
    assert "not over in time: Suspended" in done.stderr
    assert world.run("held")
    assert ci_job(held, 2, CANCEL="1").returncode == 124
    world.wait("the deletion", lambda: world.api.get("OptimizationRun", world.namespace, "held") is None)

    refused = ci_job(world.manifest("refused", seed="x"))
    assert refused.returncode == 2, refused.stderr
    assert world.api.get("OptimizationRun", world.namespace, "refused") is None


# --- Kubeflow ---------------------------------------------------------------------------------------------------------

KUBEFLOW = """
import sys
sys.path.insert(0, sys.argv[1])
from kfp import dsl
from kubeflow_pipeline import optimize
metrics = dsl.Metrics(name="metrics", uri=sys.argv[4], metadata={})
print(*optimize.python_func(open(sys.argv[2]).read(), sys.argv[3], metrics, 0.1))
print(metrics.metadata["best"])
"""


def test_kubeflows_component_ends_as_the_run_does(world: World, tmp_path: Path) -> None:
    done = subprocess.run([str(ROOT / "tools/side-environment"), "pipelines"], capture_output=True, text=True)
    if done.returncode:
        pytest.skip(f"tools/side-environment pipelines needs PyPI: {done.stderr.strip()[-200:]}")
    world.operator.start()

    def component(manifest: dict[str, Any]) -> subprocess.CompletedProcess[str]:
        path = tmp_path / "run.yaml"
        path.write_text(yaml.safe_dump(manifest))
        environment = {"KUBECONFIG": str(world.ground.plane.kubeconfig), "HOME": str(tmp_path)}
        where = [str(CI_JOB.parent), str(path), world.namespace, str(tmp_path / "metrics")]
        command = [done.stdout.strip(), "-c", KUBEFLOW, *where]
        return subprocess.run(command, env=environment, capture_output=True, text=True, timeout=500)

    good = component(world.manifest(strategy="vanilla"))
    assert good.returncode == 0, good.stderr
    status = world.status()
    assert good.stdout.split() == [
        *(status["result"]["uri"], status["result"]["sha256"]),
        str(float(status["best"]["score"])),
    ]
    bad = component(world.manifest("bad", metric={"builtin": "exact-match", "field": "nonsense"}))
    assert bad.returncode == 1
    assert f"the run failed: {world.condition('Succeeded', 'bad')['reason']}" in bad.stderr


# --- the result, served -----------------------------------------------------------------------------------------------


def test_the_launcher_takes_an_exported_adapter_from_the_bucket_and_no_other(
    ground: Ground, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """From a bundle on this machine by way of the real command and a real bucket to the launcher's cache."""
    ref = ground.storage.ref
    keys = {**ground.storage.credentials, "AWS_ENDPOINT_URL": str(ref.endpoint), "AWS_REGION": str(ref.region)}
    for name, value in keys.items():
        monkeypatch.setenv(name, value)
    adapter = tmp_path / "result/adapter"
    adapter.mkdir(parents=True)
    (adapter / "adapter_config.json").write_text('{"r": 8}')
    (adapter / "adapter_model.safetensors").write_bytes(os.urandom(1000))
    artifact = ground.store.put_folder(f"elsewhere-{secrets.token_hex(4)}/", adapter)
    run = {"namespace": "team", "name": "small", "uid": "u1", "model": "hf://org/name"}
    scores = {"run": run, "best": {"score": 0.5, "adapter": artifact.sha256}}
    (tmp_path / "result/scores.json").write_text(json.dumps(scores))
    target = f"s3://{ref.bucket}/exported-{secrets.token_hex(4)}"
    command = [*TANDEM, "export", str(tmp_path / "result"), "--upload", target]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    deployment, _ = yaml.safe_load_all(done.stdout)
    (container,) = deployment["spec"]["template"]["spec"]["containers"]
    written = {one["name"]: one["value"] for one in container["env"] if "value" in one}
    assert written["AWS_ENDPOINT_URL"] == ref.endpoint
    assert ground.storage.credentials["AWS_SECRET_ACCESS_KEY"] not in done.stdout

    options = launcher.parse(container["command"][3:])
    assert options.adapter is not None
    folder = launcher._fetch_adapter(options, options.adapter, tmp_path / "cache")
    for path in adapter.iterdir():
        assert (folder / path.name).read_bytes() == path.read_bytes()
    key = f"{options.adapter.uri.removeprefix(f's3://{ref.bucket}/')}adapter_model.safetensors"
    ground.store.put(key, b"somebody else's weights")
    with pytest.raises(DataError, match="is damaged"):
        launcher._fetch_adapter(options, options.adapter, tmp_path / "another-cache")
