"""The command line as users run it, by itself and as kubectl's plugin: child processes with a kubeconfig, against the
real API server, the real operator and a real object store. The pods of the runs are no processes."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from typing import Any, Final

import pytest
import yaml
from tests.faults.control_plane import ROOT, write_kubeconfig
from tests.faults.instant_runs import LEASE, script
from tests.faults.world import RUN_SECONDS, Ground, World

from tandem_api.v1alpha1.run import KIND

#: As long as a run's name may be.
LONG: Final = "reviews-" + "x" * 44
_PROGRAMS: Final[dict[str, str]] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["scripts"]
_LABELS: Final = {"app.kubernetes.io/name": "tandem", "app.kubernetes.io/component": "operator"}


class User:
    """Somebody with a kubeconfig, and `tandem` on the PATH."""

    def __init__(self, world: World, name: str, token: str) -> None:
        self.world = world
        self.folder = world.folder / name
        self.folder.mkdir(parents=True, exist_ok=True)
        kubeconfig = self.folder / "kubeconfig"
        write_kubeconfig(kubeconfig, world.ground.plane.url, token)
        document = yaml.safe_load(kubeconfig.read_text())
        document["contexts"][0]["context"]["namespace"] = world.namespace
        kubeconfig.write_text(yaml.safe_dump(document))
        for name, target in _PROGRAMS.items():
            module, _, function = target.partition(":")
            path = self.folder / name
            path.write_text(f"#!{sys.executable}\nfrom {module} import {function}\n{function}()\n")
            path.chmod(0o755)
        ours = {name: value for name, value in os.environ.items() if not name.lower().endswith("_proxy")}
        for name in [name for name in ours if name.startswith("AWS_")]:
            del ours[name]
        environment = {
            **ours,
            **world.ground.storage.credentials,
            "KUBECONFIG": str(kubeconfig),
            "PATH": f"{self.folder}:{ours['PATH']}",
            "COLUMNS": "80",
            "HOME": str(self.folder),
        }
        self.surroundings: dict[str, Any] = {"env": environment, "cwd": self.folder, "text": True}
        """Of every command."""

    def run(self, *command: str, code: int = 0, seconds: float = 120.0) -> str:
        """What a command prints. Fails unless it ends with that code."""
        done = self.tried(*command, seconds=seconds)
        assert done.returncode == code, f"{' '.join(command)}\n{done.stdout}{done.stderr}\n{self.world.logs()}"
        return done.stdout

    def tried(self, *command: str, seconds: float = 120.0) -> subprocess.CompletedProcess[str]:
        """A command that may fail."""
        return subprocess.run(command, **self.surroundings, capture_output=True, timeout=seconds, check=False)

    def tandem(self, *arguments: str, code: int = 0, seconds: float = 120.0) -> str:
        """The same of `tandem`."""
        return self.run("tandem", *arguments, code=code, seconds=seconds)

    def write(self, name: str, **spec: Any) -> str:
        """A manifest of a small run, as a file."""
        path = self.folder / f"{name}.yaml"
        path.write_text(yaml.safe_dump(self.world.manifest(name, **spec)))
        return str(path)


@pytest.fixture(scope="module")
def user(ground: Ground) -> Iterator[User]:
    """An administrator, in a namespace of this module's own. The operator is not started yet."""
    with World(ground, "cli", {"lease": LEASE}) as world:
        world.kubelet.scripts[world.namespace] = script()
        yield User(world, "admin", ground.plane.token)


def pretend_pod(world: World) -> None:
    """The pod that the operator's process would have in a cluster, and no kubelet takes up."""
    metadata = {"name": "operator-0", "namespace": world.namespace, "labels": _LABELS}
    world.kubelet.hold(
        lambda pod: (pod["metadata"]["namespace"], pod["metadata"]["name"]) == (world.namespace, "operator-0")
    )
    spec = {
        "automountServiceAccountToken": False,
        "containers": [{"name": "operator", "image": "tandem-operator:test"}],
    }
    world.api.create({"apiVersion": "v1", "kind": "Pod", "metadata": metadata, "spec": spec})
    status = {"phase": "Running", "conditions": [{"type": "Ready", "status": "True"}]}
    world.api.patch("Pod", world.namespace, "operator-0", {"status": status}, subresource="status")


def fits(text: str) -> bool:
    return max(map(len, map(str.rstrip, text.splitlines()))) <= 80


def levels(text: str) -> dict[str, set[str]]:
    """By check."""
    found: dict[str, set[str]] = {}
    for one in json.loads(text):
        found.setdefault(one["check"], set()).add(one["level"])
    return found


def doctor(user: User, *arguments: str, code: int) -> dict[str, set[str]]:
    where = ("--operator-namespace", user.world.namespace, "-o", "json")
    return levels(user.tandem("doctor", *where, *arguments, code=code))


def test_the_doctor_misses_what_is_not_there(user: User) -> None:
    found = doctor(user, code=1)
    assert found["operator"] == found["leader"] == {"fail"}
    assert found["api"] == found["crd"] == found["rights"] == {"ok"}
    manifest = user.write("broken", storage={"s3": {**user.world.s3, "credentialsSecret": "nowhere"}})
    found = doctor(user, "-f", manifest, code=1)
    assert "fail" in found["storage"]
    assert found["data"] == {"ok"}
    assert found["manifest"] == {"ok"}
    assert fits(user.tandem("doctor", "-f", manifest, code=1))
    assert user.world.api.list(KIND, user.world.namespace) == []


def test_a_run_is_submitted_watched_to_its_end_and_looked_at(user: User) -> None:
    let_go = user.world.kubelet.hold(lambda pod: pod["metadata"]["namespace"] == user.world.namespace)
    user.world.operator.start()
    manifest = user.write(LONG, strategy="p")
    assert "would be accepted" in user.tandem("submit", "-f", manifest, "--dry-run")
    assert user.tandem("submit", "-f", manifest, "-o", "name") == f"optimizationrun.tandem.dev/{LONG}\n"
    assert "exists already" in user.tandem("submit", "-f", manifest)

    user.world.wait("its first worker", lambda: user.world.pods(LONG))
    with subprocess.Popen(("tandem", "watch", LONG), **user.surroundings, stdout=subprocess.PIPE) as watching:
        assert watching.stdout is not None
        assert "going on with step 0 (baseline), check" in watching.stdout.readline()
        let_go()
        watched, _ = watching.communicate(timeout=RUN_SECONDS)
    assert watching.returncode == 0
    assert "step 1 (p), optimize: done" in watched
    assert "outcome     Succeeded" in watched

    listed = user.tandem("list")
    assert fits(listed)
    assert listed.replace("\n", "").count("x") >= 44
    assert user.tandem("list", "-A", "-o", "name").split().count(f"optimizationrun.tandem.dev/{LONG}") == 1
    assert "Completed" in user.tandem("list", "-o", "wide")
    told = user.tandem("status", LONG)
    assert fits("\n".join(line for line in told.splitlines() if not line.startswith("result ")))
    assert f"{LONG}: Succeeded" in told
    uid = json.loads(user.tandem("status", LONG, "-o", "json"))["metadata"]["uid"]
    assert uid == user.world.run(LONG)["metadata"]["uid"]

    events = user.tandem("events", LONG)
    assert fits(events)
    reasons = [line[20:].split("  ")[0] for line in events.splitlines()[1:] if line[:1].strip()]
    assert reasons[0] == "StepStarted" and reasons[-1] == "RunSucceeded"

    # Workers that are no processes write nothing, and name a bucket of their own: this is the last one's.
    folder = f"{user.world.namespace}/{LONG}/{uid}/result/"
    result = {"uri": f"s3://{user.world.s3['bucket']}/{folder}"}
    user.world.api.patch(KIND, user.world.namespace, LONG, {"status": {"result": result}}, subresource="status")
    assert "result/report.html does not exist" in user.tried("tandem", "report", LONG).stderr
    user.world.store.put(f"{folder}report.html", b"<html>the report</html>")
    assert user.tandem("report", LONG) == f"{LONG}-report.html\n"
    assert (user.folder / f"{LONG}-report.html").read_text() == "<html>the report</html>"
    assert user.tandem("watch", LONG, "-n", user.world.namespace).count("outcome") == 1


def test_the_doctor_finds_a_cluster_healthy_that_is(user: User) -> None:
    pretend_pod(user.world)
    found = doctor(user, "-f", user.write("another"), code=0)
    assert found["operator"] == found["leader"] == found["crd"] == found["rights"] == found["storage"] == {"ok"}
    assert found["gpu"] == {"ok"}
    user.world.operator.stop()
    user.world.wait("the Lease to be let go of", lambda: doctor_says_nobody_leads(user))
    user.world.operator.start()


def doctor_says_nobody_leads(user: User) -> bool:
    done = user.tried("tandem", "doctor", "--operator-namespace", user.world.namespace, "-o", "json")
    return done.returncode == 1 and levels(done.stdout)["leader"] == {"fail"}


def test_a_run_is_suspended_resumed_and_cancelled(user: User) -> None:
    let_go = user.world.kubelet.hold(lambda pod: pod["metadata"]["namespace"] == user.world.namespace)
    try:
        user.tandem("submit", "-f", user.write("held"))
        user.world.wait("its first worker", lambda: user.world.pods("held"))
        assert "keeps everything" in user.tandem("suspend", "held")
        user.world.wait("the suspension", lambda: user.world.condition("Suspended", "held").get("status") == "True")
        assert "has no report yet" in user.tried("tandem", "report", "held").stderr
        assert "held: Suspended" in user.tandem("status", "held")
        assert "goes on" in user.tandem("resume", "held")
        user.world.wait("its end", lambda: user.world.condition("Suspended", "held").get("status") == "False")
        assert "is deleted" in user.tandem("cancel", "held", "--yes")
        assert "there is no run 'held'" in user.tried("tandem", "status", "held", "-n", user.world.namespace).stderr
    finally:
        let_go()


def test_kubectl_runs_it_as_its_plugin(user: User) -> None:
    done = subprocess.run([ROOT / "tools/kubernetes-tools"], capture_output=True, text=True, check=False)
    kubectl = shutil.which("kubectl", path=done.stdout.strip() or None)
    if kubectl is None:
        pytest.skip(f"needs kubectl: {done.stderr.strip()}")
    assert "kubectl-tandem" in user.run(kubectl, "plugin", "list")
    assert user.run(kubectl, "tandem", "list", "-o", "name") == f"optimizationrun.tandem.dev/{LONG}\n"
    assert "Usage: kubectl tandem status" in user.run(kubectl, "tandem", "status", "--help")
    # Nothing is completed while the machine is too busy to answer in time.
    complete = (kubectl, "__complete", "tandem", "status", "rev")
    user.world.wait("the name of the run", lambda: LONG in user.run(*complete).splitlines())
    gone = user.tried(kubectl, "tandem", "status", "reviews", "-n", user.world.namespace)
    assert gone.returncode == 2
    assert f"did you mean {LONG}?" in gone.stderr or f"there are: {LONG}" in gone.stderr


def test_somebody_without_rights_is_told_which_are_missing(user: User) -> None:
    body = {"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": {}}
    path = f"/api/v1/namespaces/{user.world.namespace}/serviceaccounts/default/token"
    token = user.world.api.call("POST", path, body)["status"]["token"]
    nobody = User(user.world, "nobody", token)
    refused = nobody.tried("tandem", "list")
    assert refused.returncode == 2
    assert "you lack the right to list optimizationruns.tandem.dev in namespace" in refused.stderr
    assert doctor(nobody, code=1)["rights"] == {"fail", "warn"}
