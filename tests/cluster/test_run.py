"""`examples/reviews` with real vLLM and real LoRA training, applied with kubectl, under the operator of the chart; and
all the while the operator, a model server and a training pod are killed."""

from __future__ import annotations

import base64
import subprocess
import time
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from tests.cluster.harness import OPERATOR_NAMESPACE, RESOURCE, ROOT, Namespace, reviews, until
from tests.cluster.test_cli import User
from tests.cluster.test_install import metrics

OPERATOR_KILLS = 10
SECONDS = 1200


def is_alive(pod: dict[str, Any]) -> bool:
    """Whether it holds its node's resources."""
    return pod["status"]["phase"] not in ("Succeeded", "Failed")


@dataclass
class Killer:
    """Follows a run to its end, looks at what is there at once, and kills."""

    namespace: Namespace
    run: str
    operators: list[str] = field(default_factory=list)
    """The moments at which the operator was killed."""
    servers: list[str] = field(default_factory=list)
    trainers: list[str] = field(default_factory=list)
    both: list[str] = field(default_factory=list)
    """Moments at which a server and a training pod were there together."""
    seen: set[str] = field(default_factory=set)
    scores_seen: list[str] = field(default_factory=list)

    def follow(self) -> dict[str, Any]:
        """The finished run."""
        end = time.monotonic() + SECONDS
        while time.monotonic() < end:
            run = self.namespace.run(self.run)
            assert run is not None
            if (run.get("status") or {}).get("finished") and not self._pods():
                return run
            self._look(run)
            time.sleep(0.3)
        raise AssertionError(
            f"{self.run} did not end within {SECONDS} s: {self.namespace.kubectl('describe', 'optrun', self.run)}"
        )

    def _pods(self) -> list[dict[str, Any]]:
        found = self.namespace.pods(self.run, "serving") + self.namespace.pods(self.run, "worker")
        return [pod for pod in found if is_alive(pod)]

    def _look(self, run: dict[str, Any]) -> None:
        status = run.get("status") or {}
        step, serving = status.get("step") or {}, status.get("serving") or {}
        pods = self._pods()
        servers = [pod for pod in pods if pod["metadata"]["labels"]["app.kubernetes.io/component"] == "serving"]
        trainers = [pod for pod in pods if pod["metadata"]["labels"].get("tandem.dev/stage") == "train"]
        if servers and trainers:
            self.both.append(str(step))
        worker = next((pod for pod in pods if pod not in servers), None)
        is_working = worker is not None and worker["status"]["phase"] == "Running"
        parts = (
            step.get("index"),
            step.get("stage"),
            step.get("attempt"),
            serving.get("name"),
            is_working,
            bool(servers),
        )
        moment = " ".join(map(str, parts))
        if step.get("stage") == "optimize" and (step.get("progress") or 0) > 0 and not self.servers:
            self.servers.append(moment)
            self._kill(servers[0])
        elif trainers and is_working and not self.trainers:
            self.trainers.append(moment)
            self._kill(trainers[0])
        elif moment not in self.seen and len(self.operators) < OPERATOR_KILLS:
            self.operators.append(moment)
            self._kill_operator()
        self.seen.add(moment)

    def _kill(self, pod: dict[str, Any]) -> None:
        self.namespace.kubectl("delete", "pod", pod["metadata"]["name"], "--grace-period=0", "--force", "--wait=false")

    def _kill_operator(self) -> None:
        chosen = ("-l", "app.kubernetes.io/component=operator")
        kubectl = self.namespace.cluster.kubectl
        kubectl("delete", "pod", "-n", OPERATOR_NAMESPACE, *chosen, "--grace-period=0", "--force", "--wait=false")


@pytest.fixture(scope="module")
def story(namespace: Namespace) -> Iterator[tuple[Killer, dict[str, Any]]]:
    """The run, to its end."""
    namespace.cluster.apply(reviews(namespace.name))
    killer = Killer(namespace, "reviews")
    run = killer.follow()
    print(f"operator killed {len(killer.operators)} times: {killer.operators}")
    yield killer, run


def condition(run: dict[str, Any], kind: str) -> dict[str, Any]:
    return next(c for c in run["status"]["conditions"] if c["type"] == kind)


@pytest.mark.timeout(SECONDS + 120)
def test_the_run_succeeds_whatever_is_killed(story: tuple[Killer, dict[str, Any]]) -> None:
    killer, run = story
    assert condition(run, "Succeeded")["status"] == "True", condition(run, "Succeeded")
    assert len(killer.operators) == OPERATOR_KILLS and len(killer.servers) == 1 and len(killer.trainers) == 1
    states = {(step["kind"], step["state"]) for step in run["status"]["steps"]}
    assert states <= {("baseline", "Succeeded"), ("p", "Succeeded"), ("w", "Succeeded"), ("final", "Succeeded")}
    assert float(run["status"]["best"]["score"]) > float(run["status"]["baseline"]["score"])
    assert run["status"]["test"]["n"] == 24
    # Deaths are told, and none of them was paid for with more than one more attempt of a stage.
    assert all(stage["attempt"] <= 2 for step in run["status"]["steps"] for stage in step["stages"])


def test_the_gpu_is_handed_over(story: tuple[Killer, dict[str, Any]]) -> None:
    killer, _ = story
    assert killer.both == []
    assert any("train" in moment for moment in killer.seen)


def test_the_result_lies_in_the_store_and_nothing_runs_any_more(
    story: tuple[Killer, dict[str, Any]], namespace: Namespace
) -> None:
    _, run = story
    root = f"{namespace.name}/reviews/{run['metadata']['uid']}/"
    assert run["status"]["result"]["uri"] == f"s3://tandem/{root}result/"
    keys = namespace.objects(root)
    assert {f"{root}result/{name}" for name in ("program.json", "scores.json", "report.html")} <= {*keys}
    until(30, "the servers to go", lambda: not namespace.cluster.items("deployments", namespace.name))
    assert [pod for pod in namespace.pods("reviews", "serving") if is_alive(pod)] == []


def test_waiting_tools_see_its_end(story: tuple[Killer, dict[str, Any]], namespace: Namespace) -> None:
    namespace.kubectl("wait", "--for=condition=Succeeded", "optrun/reviews", "--timeout=10s")
    _, run = story
    # What kstatus (Argo CD, Flux) reads: the generation is seen, and nothing progresses or fails.
    assert run["status"]["observedGeneration"] == run["metadata"]["generation"]
    assert condition(run, "Progressing")["status"] == "False"


def test_describe_alone_explains_the_run(story: tuple[Killer, dict[str, Any]], namespace: Namespace) -> None:
    said = namespace.kubectl("describe", "optrun", "reviews")
    for text in ("Best:", "Baseline:", "StepStarted", "StepSucceeded", "RunSucceeded", "best validation score"):
        assert text in said, text
    line = namespace.kubectl("get", "optrun").splitlines()
    assert line[0].split() == ["NAME", "STRATEGY", "STEP", "STAGE", "BEST", "SUCCEEDED", "AGE"]
    assert "p -> w -> p" in line[1] and "True" in line[1]


def test_the_operator_writes_nothing_about_a_finished_run(
    story: tuple[Killer, dict[str, Any]], namespace: Namespace
) -> None:
    first = namespace.run("reviews")
    time.sleep(8)
    second = namespace.run("reviews")
    assert first is not None and second is not None
    assert first["metadata"]["resourceVersion"] == second["metadata"]["resourceVersion"]


def test_metrics_tell_of_it(story: tuple[Killer, dict[str, Any]], namespace: Namespace) -> None:
    _, run = story
    text = until(30, "the metrics", lambda: _with_scores(metrics(namespace.cluster)))
    where = f'name="reviews",namespace="{namespace.name}"'
    swapped = f'namespace="{namespace.name}",name="reviews"'
    line = next(x for x in text.splitlines() if x.startswith("tandem_run_best_score{") and (where in x or swapped in x))
    assert float(line.split()[-1]) == pytest.approx(float(run["status"]["best"]["score"]))
    assert 'tandem_runs{state="Succeeded"} 1.0' in text


def _with_scores(text: str) -> str | None:
    return text if "tandem_run_best_score{" in text else None


def test_the_command_line_shows_it(story: tuple[Killer, dict[str, Any]], namespace: Namespace) -> None:
    def tandem(*arguments: str) -> subprocess.CompletedProcess[str]:
        cluster = namespace.cluster
        command = [ROOT / ".venv/bin/tandem", *arguments, "-n", namespace.name, "--kubeconfig", cluster.kubeconfig]
        command += ["--context", cluster.context] if cluster.context is not None else []
        return subprocess.run(command, capture_output=True, text=True)

    status = tandem("status", "reviews")
    assert status.returncode == 0 and "outcome" in status.stdout and "Succeeded" in status.stdout, status.stderr
    listed = tandem("list")
    assert "reviews" in listed.stdout and "p -> w -> p" in listed.stdout
    watched = tandem("watch", "reviews")
    assert watched.returncode == 0, watched.stdout + watched.stderr


def test_one_job_an_attempt_is_recorded(story: tuple[Killer, dict[str, Any]], namespace: Namespace) -> None:
    _, run = story
    attempts = sum(stage["attempt"] for step in run["status"]["steps"] for stage in step["stages"])
    jobs = namespace.cluster.items("jobs", namespace.name, "tandem.dev/run=reviews")
    assert len(jobs) <= attempts
    # Their results are in the status: now they may be collected.
    assert all(job["spec"]["ttlSecondsAfterFinished"] == 3600 for job in jobs)
    assert namespace.cluster.get(RESOURCE, "reviews", namespace.name) is not None


def test_its_owner_reads_the_report_with_kubectl_tandem(
    story: tuple[Killer, dict[str, Any]], namespace: Namespace, tmp_path: Path
) -> None:
    _, run = story
    user = User(namespace, tmp_path)
    assert "outcome     Succeeded" in user.run("watch", "reviews")
    assert "RunSucceeded" in user.run("events", "reviews")
    kubectl = (str(namespace.cluster.tools / "kubectl"), *user.where)
    forward = (*kubectl, "port-forward", "pod/s3", ":8333")
    with subprocess.Popen(forward, stdout=subprocess.PIPE, text=True, env=user.environment) as process:
        try:
            assert process.stdout is not None
            port = process.stdout.readline().split(" -> ")[0].rpartition(":")[2]
            secret = namespace.cluster.get("secret", "s3-credentials", namespace.name)
            assert secret is not None
            keys = {name: base64.b64decode(value).decode() for name, value in secret["data"].items()}
            user.run("report", "reviews", "--endpoint", f"http://127.0.0.1:{port}", **keys)
        finally:
            process.terminate()
    assert run["metadata"]["name"] in (tmp_path / "reviews-report.html").read_text()
