"""What a cluster does by itself, one step at a time: kubelet, Job and Deployment controllers, garbage collector.

Workers end as a script says; model servers serve what their command line, or the adapters' ConfigMap, says.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tests.unit.operator.decide.world import scripted
from tests.unit.operator.kubernetes.cluster import Clock, Cluster, Object, copied, is_going, labels_of, stamp

from tandem_api.adapters import DesiredAdapters
from tandem_api.canonical import digest
from tandem_api.contract import StageFailure, StageRequest, StageResult
from tandem_operator.platforms.kubernetes import names
from tandem_operator.platforms.kubernetes.jobsets import COMPLETION_INDEX

#: The kubelet renews mounted ConfigMaps that often by itself.
_MOUNT_SECONDS = 60


@dataclass(frozen=True)
class Ending:
    """How a worker that does not succeed ends."""

    code: int
    message: str = ""
    reason: str = "Error"
    disrupted: bool = False
    """The pod has the condition DisruptionTarget."""
    pod_reason: str = ""
    pod_message: str = ""


def speaking(code: int, error: str, message: str) -> Ending:
    """A worker that says why it fails."""
    return Ending(code, StageFailure(error=error, message=message).model_dump_json())


def ordinary(request: StageRequest) -> StageResult:
    """What the workers of an ordinary run answer."""
    result = scripted(request)
    if result.adapter is None:
        return result
    folder = result.adapter.model_copy(update={"uri": f"{result.adapter.uri}/"})
    return result.model_copy(update={"adapter": folder})


@dataclass
class Controllers:
    """All of them."""

    cluster: Cluster
    script: Callable[[StageRequest], StageResult | Ending | None] = ordinary
    """How a worker ends; None: it goes on."""
    hold: Callable[[Object], Object | None] = lambda pod: None
    """The status of a pod that cannot start, or does not get ready; None: nothing holds it up."""
    others: Ending | None = None
    """How the machines of a JobSet end but the first; None: as the script says."""
    makes_jobs: bool = True
    """Whether the JobSet controller works."""
    refuse_pods: str = ""
    """Why admission refuses all pods."""
    progress: Callable[[], Any] = lambda: None
    """What workers answer at /progress."""
    refused_adapters: str = ""
    """Why sidecars give every adapter up."""
    cleanup_code: int = 0
    asked: dict[str, StageRequest] = field(default_factory=dict)
    """By pod uid: the request that was mounted when the worker began."""
    memory: dict[str, tuple[datetime, str, tuple[str, ...]]] = field(default_factory=dict)
    """By pod uid: when the adapters' ConfigMap was mounted, the annotation then, the names in it."""

    @property
    def requests(self) -> list[StageRequest]:
        """Of every worker that began, in order."""
        return list(self.asked.values())

    def step(self, seconds: float = 2.0) -> None:
        self.cluster.pass_time(seconds)
        for pod in self.cluster.all("Pod"):
            self._kubelet(pod)
        for jobset in self.cluster.all("JobSet"):
            self._jobset(jobset)
        for job in self.cluster.all("Job"):
            self._job(job)
        for deployment in self.cluster.all("Deployment"):
            self._deployment(deployment)
        self.cluster.collect()

    def fetch(self, host: str, port: int, path: str) -> Any:
        """What a pod answers over HTTP."""
        pod = next((p for p in self.cluster.all("Pod") if status_of(p).get("podIP") == host), None)
        if pod is None or is_going(pod) or status_of(pod)["phase"] != "Running":
            return None
        match port, path:
            case names.VLLM_PORT, "/v1/models":
                is_up = all(c["ready"] for c in status_of(pod)["containerStatuses"] if c["name"] == "vllm")
                return {"data": [{"id": name} for name in self.served(pod)]} if is_up else None
            case names.ADAPTERS_PORT, "/status":
                if self.refused_adapters and self._desired(pod):
                    failure = {"name": self._desired(pod)[0], "message": self.refused_adapters, "permanent": True}
                    return {"ready": False, "failed": [failure]}
                return {"ready": True, "failed": []}
            case names.PROGRESS_PORT, "/progress":
                return self.progress()
        return None

    def served(self, pod: Object) -> tuple[str, ...]:
        """The names that a server of this pod serves."""
        command = container_of(pod, "vllm")["command"]
        served = (command[command.index("--served-name") + 1],)
        if command[command.index("--mode") + 1] != "reload":
            return served
        return (*served, *(self._desired(pod) if not self.refused_adapters else ()))

    def _desired(self, pod: Object) -> tuple[str, ...]:
        return self.memory[pod["metadata"]["uid"]][2]

    def _mount(self, pod: Object) -> None:
        note = (pod["metadata"].get("annotations") or {}).get(names.DESIRED, "")
        mounted = self.memory.get(pod["metadata"]["uid"])
        if mounted and mounted[1] == note and (Clock.current - mounted[0]).total_seconds() < _MOUNT_SECONDS:
            return
        volume = next((v for v in pod["spec"]["volumes"] if v["name"] == "desired"), None)
        held: tuple[str, ...] = ()
        if volume is not None:
            configmap = self.cluster.find("ConfigMap", volume["configMap"]["name"])
            assert configmap is not None
            desired = DesiredAdapters.model_validate_json(configmap["data"]["adapters.json"])
            held = tuple(adapter.name for adapter in desired.adapters)
        self.memory[pod["metadata"]["uid"]] = (Clock.current, note, held)

    def _kubelet(self, pod: Object) -> None:
        status = status_of(pod)
        if is_going(pod):
            job = self._owner(pod, "Job")
            if job is not None and status.get("phase") == "Running":
                job["status"]["failed"] = job["status"].get("failed", 0) + 1
            self.cluster.gone(pod)
        elif status.get("phase") in (None, "Pending"):
            held = self.hold(pod)
            self._set(pod, held if held is not None else self._running(pod))
        elif status["phase"] == "Running":
            if labels_of(pod)[names.COMPONENT] == names.SERVING:
                self._mount(pod)
                held = self.hold(pod)
                self._set(pod, {**status, **(held if held is not None else ready(pod))})
            else:
                self._work(pod)

    def _running(self, pod: Object) -> Object:
        number = int(pod["metadata"]["resourceVersion"])
        began = [{"type": "PodScheduled", "status": "True"}, {"type": "Ready", "status": "False"}]
        if labels_of(pod)[names.COMPONENT] == names.SERVING:
            self._mount(pod)
        if labels_of(pod)[names.COMPONENT] == names.WORKER:
            self.asked[pod["metadata"]["uid"]] = self._request(pod)
        return {
            "phase": "Running",
            "podIP": f"10.0.{number // 256}.{number % 256}",
            "startTime": stamp(),
            "conditions": [{**condition, "lastTransitionTime": stamp()} for condition in began],
            "containerStatuses": [
                {"name": c["name"], "image": c["image"], "ready": False, "state": {"running": {"startedAt": stamp()}}}
                for c in pod["spec"]["containers"]
            ],
        }

    def _request(self, pod: Object) -> StageRequest:
        volume = next(v for v in pod["spec"]["volumes"] if v["name"] == "request")
        configmap = self.cluster.find("ConfigMap", volume["configMap"]["name"])
        assert configmap is not None, "the pod would wait for its request for ever"
        return StageRequest.model_validate_json(configmap["data"]["request.json"])

    def _work(self, pod: Object) -> None:
        if labels_of(pod)[names.COMPONENT] == names.CLEANUP:
            answer: StageResult | Ending | None = Ending(self.cleanup_code) if self.cleanup_code else StageResult()
        else:
            is_first = (pod["metadata"].get("annotations") or {}).get(COMPLETION_INDEX, "0") == "0"
            answer = self.script(self.asked[pod["metadata"]["uid"]]) if is_first or not self.others else self.others
        if answer is None:
            return
        if isinstance(answer, StageResult):
            ended: Object = {"exitCode": 0, "reason": "Completed", "message": answer.to_message()}
            self._set(pod, {**status_of(pod), "phase": "Succeeded", **_ended(pod, ended)})
            return
        ended = {"exitCode": answer.code, "reason": answer.reason, "message": answer.message}
        status = {**status_of(pod), "phase": "Failed", **_ended(pod, ended)}
        if answer.disrupted:
            status["conditions"] = [*status["conditions"], {"type": "DisruptionTarget", "status": "True"}]
        if answer.pod_reason:
            status |= {"reason": answer.pod_reason, "message": answer.pod_message}
        self._set(pod, status)

    def _jobset(self, jobset: Object) -> None:
        (replicated,) = jobset["spec"]["replicatedJobs"]
        name = f"{jobset['metadata']['name']}-{replicated['name']}-0"
        job = self.cluster.find("Job", name)
        if job is None and not is_going(jobset) and self.makes_jobs:
            body = copied(replicated["template"])
            body["metadata"] |= {"name": name, "ownerReferences": [_reference(jobset)]}
            self.cluster.add({"apiVersion": "batch/v1", "kind": "Job", **body})
        elif job is not None and _ended_job(job):
            jobset["status"] = {"completionTime": job["status"]["completionTime"]}
            self._expire(jobset)

    def _job(self, job: Object) -> None:
        if is_going(job) or _ended_job(job):
            self._expire(job)
            return
        status, spec = job.setdefault("status", {}), job["spec"]
        pods = self.cluster.owned("Pod", job)
        alive = [p for p in pods if status_of(p).get("phase") not in ("Succeeded", "Failed")]
        if spec.get("suspend"):
            status.pop("startTime", None)
            for pod in alive:
                self._delete(pod)
            return
        status.setdefault("startTime", Clock.current)
        failed = [p for p in pods if status_of(p).get("phase") == "Failed" and not _is_ignored(job, p)]
        if (Clock.current - status["startTime"]).total_seconds() > spec["activeDeadlineSeconds"]:
            for pod in alive:
                self._delete(pod)
            if not alive:
                self._end_job(job, "Failed", "DeadlineExceeded")
        elif sum(status_of(p).get("phase") == "Succeeded" for p in pods) >= spec.get("completions", 1):
            self._end_job(job, "Complete", "CompletionsReached")
        elif len(failed) + status.get("failed", 0) > spec["backoffLimit"]:
            for pod in alive:
                self._delete(pod)
            self._end_job(job, "Failed", "BackoffLimitExceeded")
        elif not alive and self.refuse_pods:
            self.cluster.tell(job, "Job", "FailedCreate", self.refuse_pods)
        elif not alive:
            for number in range(len(pods), len(pods) + spec.get("parallelism", 1)):
                pod = self._add_pod(job, spec["template"], number)
                if spec.get("completionMode") == "Indexed":
                    pod["metadata"].setdefault("annotations", {})[COMPLETION_INDEX] = str(number)

    def _end_job(self, job: Object, kind: str, reason: str) -> None:
        job["status"]["conditions"] = [{"type": kind, "status": "True", "reason": reason}]
        job["status"]["completionTime"] = Clock.current
        self.cluster.touch(job)

    def _expire(self, job: Object) -> None:
        seconds = job["spec"].get("ttlSecondsAfterFinished")
        ended = job.get("status", {}).get("completionTime")
        if seconds is not None and ended and not is_going(job) and (Clock.current - ended).total_seconds() > seconds:
            self.cluster.remove(job, propagation="Foreground")

    def _deployment(self, deployment: Object) -> None:
        if is_going(deployment):
            return
        version = digest(deployment["spec"]["template"])
        pods, wanted = self.cluster.owned("Pod", deployment), deployment["spec"].get("replicas", 1)
        current = [p for p in pods if labels_of(p)["pod-template-hash"] == version and not is_going(p)]
        for pod in [p for p in pods if p not in current] + current[wanted:]:
            self._delete(pod)
        if len(current) < wanted and len(current) == len(pods):
            if self.refuse_pods:
                refused = {"type": "ReplicaFailure", "status": "True", "message": self.refuse_pods}
                deployment["status"] = {"conditions": [refused]}
                return
            deployment["status"] = {}
            for number in range(len(current), wanted):
                self._add_pod(deployment, deployment["spec"]["template"], number)["metadata"]["labels"] |= {
                    "pod-template-hash": version
                }

    def _add_pod(self, owner: Object, template: Object, number: int) -> Object:
        name = f"{owner['metadata']['name']}-{number}-{len(self.cluster.writes)}"
        body = copied(template)
        where = {"name": name, "namespace": owner["metadata"]["namespace"]}
        body["metadata"] |= {**where, "ownerReferences": [_reference(owner)]}
        return self.cluster.add({"apiVersion": "v1", "kind": "Pod", **body, "status": {"phase": "Pending"}})

    def _delete(self, pod: Object) -> None:
        if not is_going(pod):
            self.cluster.remove(pod)

    def _owner(self, thing: Object, kind: str) -> Object | None:
        uids = {owner["uid"] for owner in thing["metadata"].get("ownerReferences") or []}
        return next((t for t in self.cluster.all(kind) if t["metadata"]["uid"] in uids), None)

    def _set(self, pod: Object, status: Object) -> None:
        self.cluster.change(pod, {**pod, "status": status})


def status_of(thing: Object) -> Object:
    return thing.get("status") or {}


def container_of(pod: Object, name: str) -> Object:
    return next(c for c in pod["spec"]["containers"] if c["name"] == name)


def ready(pod: Object) -> Object:
    """The parts of a pod's status that say that it is ready."""
    status = status_of(pod)
    if any(c.get("type") == "Ready" and c["status"] == "True" for c in status["conditions"]):
        return {}
    others = [c for c in status["conditions"] if c["type"] != "Ready"]
    return {
        "conditions": [*others, {"type": "Ready", "status": "True", "lastTransitionTime": stamp()}],
        "containerStatuses": [{**c, "ready": True} for c in status["containerStatuses"]],
    }


def _reference(owner: Object) -> Object:
    kind = {key: owner[key] for key in ("apiVersion", "kind")}
    return {**kind, "name": owner["metadata"]["name"], "uid": owner["metadata"]["uid"], "controller": True}


def _ended(pod: Object, ended: Object) -> Object:
    first = status_of(pod)["containerStatuses"][0]
    return {"containerStatuses": [{**first, "ready": False, "state": {"terminated": ended}}]}


def _ended_job(job: Object) -> bool:
    return any(c["status"] == "True" for c in job.get("status", {}).get("conditions", []))


def _is_ignored(job: Object, pod: Object) -> bool:
    rules = (job["spec"].get("podFailurePolicy") or {}).get("rules", [])
    is_disrupted = any(c["type"] == "DisruptionTarget" for c in status_of(pod)["conditions"])
    return is_disrupted and any(rule["action"] == "Ignore" for rule in rules)
