"""`KubernetesPlatform`: the engine's actions carried out on a cluster, for one pass over one run.

Nothing is remembered between two passes: what is, is read from the API server; what was decided is in the status.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from kubernetes.client import ApiException

from tandem_api.canonical import canonical_json, digest
from tandem_api.contract import StorageRef
from tandem_api.v1alpha1 import OptimizationRun, Spec, Status
from tandem_api.v1alpha1.run import API_VERSION, KIND, ManifestError, Problem, forbidden_changes, parse_run
from tandem_api.v1alpha1.spec import MUTABLE_FIELDS
from tandem_operator.actions import Action, EmitEvent, EnsureServing, StartTask, StopServing, StopTask
from tandem_operator.decide.names import task_name
from tandem_operator.decide.plan import current_stage, current_step
from tandem_operator.platforms.kubernetes import jobs, jobsets, names, policies, serving
from tandem_operator.platforms.kubernetes.asking import Asking
from tandem_operator.platforms.kubernetes.client import FORBIDDEN, NOT_FOUND, Client, what_it_says
from tandem_operator.platforms.kubernetes.events import post
from tandem_operator.platforms.kubernetes.manifest import cluster_problems
from tandem_operator.platforms.kubernetes.pod_state import has_ended, has_owner, is_going, name_of, starts_slowly
from tandem_operator.platforms.kubernetes.pods import accelerators
from tandem_operator.platforms.kubernetes.serving_state import observe_serving, pods_to_ask
from tandem_operator.platforms.kubernetes.task_state import current, is_over, observe_task, task_of
from tandem_operator.settings import OperatorSettings
from tandem_operator.snapshot import Blocked, Observed, ServingObservation, TaskObservation

Object = dict[str, Any]

_OTHER_VERSION = Problem("spec", "another version of the operator has accepted this run, and this one cannot read it")


_NO_JOBSET = Problem(
    "spec.training.backend",
    f"found 'jobset', but the cluster does not serve {jobsets.API_VERSION}; install JobSet "
    "(https://jobset.sigs.k8s.io) and create the run again, or write backend: job and nodes: 1",
)


class InvalidRunError(Exception):
    """The stored resource cannot be carried out: everything that is wrong with it."""

    def __init__(self, problems: list[Problem]) -> None:
        self.problems = problems
        super().__init__("\n".join(map(str, problems)))


class RefusedError(Exception):
    """The API server refuses to make something that the run needs."""

    def __init__(self, blocked: Blocked) -> None:
        self.blocked = blocked
        super().__init__(f"{blocked.reason}: {blocked.message}")


class TryAgainError(Exception):
    """Something of an earlier run of the same name is still in the way; a later pass will find it gone."""


@dataclass(frozen=True)
class Surroundings:
    """What all passes share."""

    client: Client
    settings: OperatorSettings
    asking: Asking
    operator_namespace: str
    instance: str
    """The operator's pod."""
    version: tuple[int, int]
    """Of the API server."""


@dataclass
class KubernetesPlatform:
    """A `Platform` for one run on a cluster."""

    around: Surroundings
    raw: Object
    """The resource as it was read at the beginning of this pass."""
    ignored: list[Problem] = field(default_factory=list)
    """Changes of the spec that came too late."""
    blocked: Blocked | None = None
    """What the API server refused in the last pass."""
    loaded: OptimizationRun | None = None
    """What `load` returned."""
    _jobs: dict[str, Object] = field(default_factory=dict)
    """By task; a JobSet that has no Job yet stands for it."""
    _jobsets: dict[str, Object] = field(default_factory=dict)
    """By task: what holds its Job."""
    _deployment: Object | None = None
    _is_fresh: bool = False
    """Whether a write of this pass has shown that `raw` is what is stored."""

    @property
    def namespace(self) -> str:
        return str(self.raw["metadata"]["namespace"])

    @property
    def name(self) -> str:
        return str(self.raw["metadata"]["name"])

    def load(self) -> OptimizationRun:
        """The resource with the spec that was accepted when it began. Raises InvalidRunError."""
        self.loaded = self._load()
        return self.loaded

    def _load(self) -> OptimizationRun:
        accepted = self._accepted()
        problems: list[Problem] = []
        try:
            run = parse_run(self.raw)
            problems = cluster_problems(run, self.around.settings.defaults.training.resources)
        except ManifestError as error:
            run, problems = None, error.problems
        if accepted is None:
            if run is None or problems:
                raise InvalidRunError(problems)
            if run.spec.training.backend == "jobset" and not self.around.client.serves(names.JOBSET):
                raise InvalidRunError([_NO_JOBSET])
            self._accept(run)
            return run
        if run is None:
            # What was accepted goes on; what has become of the manifest since is told, and changes nothing.
            self.ignored = problems
            # Whether it is held is heeded all the same: a suspended run must not go on because of a mistake elsewhere.
            suspend = self.raw["spec"].get("suspend", False)
            held = {"suspend": suspend} if isinstance(suspend, bool) else {}
            try:
                return parse_run({**self.raw, "spec": {**accepted.to_json(), **held}})
            except ManifestError as error:  # then it is the status that cannot be read
                raise InvalidRunError([_OTHER_VERSION, *error.problems]) from error
        self.ignored = forbidden_changes(accepted, run.spec)
        kept = {alias: value for alias, value in accepted.to_json().items() if alias not in MUTABLE_FIELDS}
        new = {alias: value for alias, value in run.spec.to_json().items() if alias in MUTABLE_FIELDS}
        return run.model_copy(update={"spec": Spec.model_validate({**kept, **new})})

    def observe(self, run: OptimizationRun) -> Observed:
        client, settings, metadata = self.around.client, self.around.settings, run.metadata
        assert run.spec.storage is not None
        s3 = run.spec.storage.s3
        ours = {names.RUN_UID: metadata.uid}
        has_jobsets = run.spec.training.backend == "jobset"
        self._jobsets = {task_of(jobset): jobset for jobset in self._workers(names.JOBSET)} if has_jobsets else {}
        # A JobSet's Job has a name of the JobSet's making.
        made = {task_of(job) if has_owner(job, names.JOBSET) else name_of(job): job for job in self._workers("Job")}
        self._jobs = {**self._jobsets, **made}
        pods = client.list("Pod", self.namespace, labels=ours)
        self._deployment = self._ours(client.get("Deployment", self.namespace, names.serving_name(self.name)))
        now = datetime.now(UTC)
        return Observed(
            namespace=metadata.namespace,
            name=metadata.name,
            uid=metadata.uid,
            generation=metadata.generation,
            now=now,
            storage=StorageRef(bucket=s3.bucket, prefix=s3.prefix, endpoint=s3.endpoint, region=s3.region),
            serving=self._observe_serving(run, _of(pods, names.SERVING), now),
            tasks=self._observe_tasks(_of(pods, names.WORKER), now),
            has_gpu=serving.has_accelerator(run, settings),
            serving_accelerators=accelerators(serving.serving_resources(run, settings)),
            training_accelerators=accelerators(run.spec.training.resources or settings.defaults.training.resources),
            ignored_changes="; ".join(map(str, self.ignored)),
            blocked=self.blocked,
        )

    def save(self, run: OptimizationRun, status: Status) -> None:
        """Store the status. Raises ApiException 409 when somebody has written to the resource since it was read."""
        body = {**self.raw, "status": status.to_json()}
        self.raw = self.around.client.replace_status(body)
        self._is_fresh = True

    def execute(self, run: OptimizationRun, action: Action) -> None:
        match action:
            case EnsureServing():
                with _refusals("ServerRefused", "the model server"):
                    self._serve(run, action)
            case StopServing():
                self._stop_serving()
            case StartTask():
                with _refusals("JobRefused", f"the Job {action.name}"):
                    self._start(run, action)
            case StopTask():
                self._stop_task(action.name)
            case EmitEvent():
                post(self.around.client, self.raw, action, self.around.instance)

    def tidy(self, status: Status) -> None:
        """Let go of what is in the status: ended Jobs may be collected, and a finished run's server is deleted."""
        client, running = self.around.client, self._running_task(status)
        for name, job in list(self._jobs.items()):
            if name == running or is_going(job):
                continue
            if not is_over(job):
                self._stop_task(name)
                continue
            kind, holder = self._holder(name)
            if holder["spec"].get("ttlSecondsAfterFinished") is None:
                self._delete_request(name)
                ttl = {"spec": {"ttlSecondsAfterFinished": self.around.settings.job_ttl_seconds}}
                client.patch(kind, self.namespace, name_of(holder), {**_only(holder), **ttl})
        if status.finished is not None and self._deployment is not None:
            self.release()

    def release(self) -> None:
        """Delete everything that serves. The Deployment last: while it is there, a later pass knows what is left."""
        client, name = self.around.client, self.name
        for kind, of_kind in (
            ("Service", names.serving_name(name)),
            ("Service", names.replicas_name(name)),
            ("ConfigMap", names.adapters_name(name)),
            ("Deployment", names.serving_name(name)),
        ):
            thing = self._ours(client.get(kind, self.namespace, of_kind))
            if thing is not None:
                client.delete(kind, self.namespace, of_kind, uid=thing["metadata"]["uid"])

    def guard(self, run: OptimizationRun) -> None:
        """Network policies come before the pods that they are about. Raises RefusedError where a name is taken."""
        if self.around.settings.network_policy.enabled:
            for policy in policies.network_policies(
                run, self.around.settings, self.around.operator_namespace, self.owner()
            ):
                self._apply(policy)

    def owner(self) -> Object:
        """What makes the garbage collector remove a child with its run."""
        return {
            "apiVersion": API_VERSION,
            "kind": KIND,
            "name": self.name,
            "uid": self.raw["metadata"]["uid"],
            "controller": True,
            "blockOwnerDeletion": True,
        }

    def _accepted(self) -> Spec | None:
        """The spec with which the run began; None before that."""
        stored = self._ours(self.around.client.get("ConfigMap", self.namespace, names.spec_name(self.name)))
        if stored is None:
            return None
        try:
            return parse_run({**self.raw, "spec": json.loads(stored["data"]["spec.json"]), "status": {}}).spec
        except ManifestError as error:
            raise InvalidRunError([_OTHER_VERSION, *error.problems]) from error

    def _accept(self, run: OptimizationRun) -> None:
        name = names.spec_name(self.name)
        body = {
            "apiVersion": "v1",
            "kind": "ConfigMap",
            "metadata": names.child(run, name, "run", self.owner()),
            "immutable": True,
            "data": {"spec.json": canonical_json(run.spec.to_json())},
        }
        with _refusals("SpecRefused", f"the ConfigMap {name} with the spec that was accepted"):
            is_new = self.around.client.create(body)
        if not is_new:
            try:
                self._clear("ConfigMap", self.around.client.get("ConfigMap", self.namespace, name))
            except RefusedError as error:
                raise InvalidRunError([Problem("metadata.name", error.blocked.message)]) from error

    def _ours(self, thing: Object | None) -> Object | None:
        """`thing`, if it is this run's and not that of an earlier one of the same name."""
        if thing is None or (thing["metadata"].get("labels") or {}).get(names.RUN_UID) != self.raw["metadata"]["uid"]:
            return None
        return thing

    def _clear(self, kind: str, known: Object | None) -> None:
        """Make way where `known` is, if it is not this run's.

        Raises TryAgainError when it is an earlier run's, which goes, and RefusedError when it is anybody else's.
        """
        if known is None or self._ours(known) is not None:
            return
        name = name_of(known)
        if (known["metadata"].get("labels") or {}).get(names.MANAGED_BY) != names.FIELD_MANAGER:
            fix = "delete it, or create the run under another name"
            said = f"the run needs a {kind} {name!r}, but there is one that is not Tandem's; {fix}"
            raise RefusedError(Blocked("NameTaken", said))
        self._check_fresh()
        self.around.client.delete(kind, self.namespace, name, uid=known["metadata"]["uid"])
        raise TryAgainError(f"the {kind} {name} belongs to an earlier run")

    def _check_fresh(self) -> None:
        """Raises ApiException 409 when `raw` is not what is stored.

        An API server that lags may answer every read of a pass with what was: the run's state before its last Job, or
        an earlier run of the same name. It cannot carry out a write so; this one changes nothing.
        """
        if not self._is_fresh:
            as_read = {"metadata": {"resourceVersion": self.raw["metadata"]["resourceVersion"]}}
            self.around.client.patch(KIND, self.namespace, self.name, as_read)
            self._is_fresh = True

    def _workers(self, kind: str) -> list[Object]:
        """The run's workers of that kind."""
        ours = {names.RUN_UID: self.raw["metadata"]["uid"], names.COMPONENT: names.WORKER}
        # JobSet may be removed while a run goes on, and all JobSets with it.
        none_if = (NOT_FOUND,) if kind == names.JOBSET else ()
        return self.around.client.list(kind, self.namespace, labels=ours, none_if=none_if)

    def _holder(self, task: str) -> tuple[str, Object]:
        """What is deleted, and collected in the end, with a task's Job: kind and object."""
        jobset = self._jobsets.get(task)
        return ("Job", self._jobs[task]) if jobset is None else (names.JOBSET, jobset)

    def _observe_serving(self, run: OptimizationRun, pods: list[Object], now: datetime) -> ServingObservation | None:
        settings = self.around.settings
        asked = pods_to_ask(self._deployment, pods)
        seen = observe_serving(
            self._deployment,
            pods,
            self.around.asking.servers(asked, with_sidecar=serving.hot_loads(run, settings)),
            url=serving.service_url(run),
            startup_seconds=run.spec.serving.startup_timeout_seconds,
            events=lambda thing: self._events(thing, now),
            now=now,
            settings=settings,
        )
        missing = self._missing(run) if seen is not None and seen.name else None
        if missing is not None:
            # Not what is wanted, whatever the pods say: it is made again.
            return ServingObservation("", "starting", message=f"the {missing} is gone", reason="Incomplete")
        return seen

    def _missing(self, run: OptimizationRun) -> str | None:
        """What servers stand on, and somebody has deleted: their address, or the list of their adapters."""
        wanted = [("Service", names.serving_name(self.name))]
        if serving.hot_loads(run, self.around.settings):
            wanted.append(("ConfigMap", names.adapters_name(self.name)))
        gone = (f"{kind} {name}" for kind, name in wanted if not self.around.client.get(kind, self.namespace, name))
        return next(gone, None)

    def _observe_tasks(self, pods: list[Object], now: datetime) -> dict[str, TaskObservation]:
        by_task: dict[str, list[Object]] = {name: [] for name in self._jobs}
        for pod in pods:
            by_task.setdefault(task_of(pod), []).append(pod)
        found = {}
        for name, of_task in by_task.items():
            job = self._jobs.get(name)
            latest = next(iter(current(p for p in of_task if not has_ended(p))), None)
            running = job is not None and not is_over(job)
            task = observe_task(
                job,
                of_task,
                events=lambda thing: self._events(thing, now),
                progress=self.around.asking.progress(latest) if running and latest is not None else None,
                now=now,
                settings=self.around.settings,
            )
            if task is not None:
                lacks_request = task.waiting == "MissingConfigMap" and self._request(name) is None
                found[name] = replace(task, lacks_request=lacks_request)
        return found

    def _events(self, thing: Object, now: datetime) -> list[Object]:
        """The events of a pod, or of a Job without pods, that has not begun to work for some time."""
        is_job = "template" in thing["spec"]  # the items of a list do not say of what kind they are
        if not is_job and not starts_slowly(thing, now):
            return []
        chosen = f"involvedObject.uid={thing['metadata']['uid']}"
        found = self.around.client.list("Event", self.namespace, fields=chosen)
        return sorted(found, key=lambda event: event.get("lastTimestamp") or event.get("eventTime") or "")

    def _serve(self, run: OptimizationRun, wanted: EnsureServing) -> None:
        owner, settings = self.owner(), self.around.settings
        self.guard(run)
        for service in serving.services(run, owner):
            self._apply(service)
        hot_loads = serving.hot_loads(run, settings)
        if hot_loads:
            self._apply(serving.adapters_configmap(run, wanted, owner))
        self._apply(serving.deployment(run, settings, wanted, owner))
        if hot_loads:
            self._hurry(run, wanted)

    def _hurry(self, run: OptimizationRun, wanted: EnsureServing) -> None:
        """Have the kubelet renew the pods' volumes now, not with its next round: it does so when a pod changes."""
        version = serving.desired_adapters(wanted).digest[:16]
        chosen = names.selector(self.name, run.metadata.uid, names.SERVING)
        for pod in self.around.client.list("Pod", self.namespace, labels=chosen):
            if (pod["metadata"].get("annotations") or {}).get(names.DESIRED) != version:
                note = {"metadata": {"annotations": {names.DESIRED: version}}}
                self.around.client.patch("Pod", self.namespace, name_of(pod), note)

    def _stop_serving(self) -> None:
        if self._deployment is not None and self._deployment["spec"].get("replicas", 1) != 0:
            metadata = serving.STOPPED["metadata"] | _only(self._deployment)["metadata"]
            stopped = {**serving.STOPPED, "metadata": metadata}
            self.around.client.patch("Deployment", self.namespace, names.serving_name(self.name), stopped)

    def _stop_task(self, name: str) -> None:
        """Delete the Job in the foreground: it stays, and counts as running, until its pod has kept what it has."""
        job = self._jobs.get(name)
        if job is not None and not is_going(job):
            kind, holder = self._holder(name)
            uid = holder["metadata"]["uid"]
            self.around.client.delete(kind, self.namespace, name_of(holder), uid=uid, propagation="Foreground")
            self._delete_request(name)
        self._jobs.pop(name, None)

    def _request(self, name: str) -> Object | None:
        return self._ours(self.around.client.get("ConfigMap", self.namespace, name))

    def _delete_request(self, name: str) -> None:
        """The ConfigMap of a task's request goes, unless it is a later run's of the same name."""
        request = self._request(name)
        if request is not None:
            self.around.client.delete("ConfigMap", self.namespace, name, uid=request["metadata"]["uid"])

    def _start(self, run: OptimizationRun, action: StartTask) -> None:
        client, owner = self.around.client, self.owner()
        self._check_fresh()
        self.guard(run)
        self._apply(jobs.request_configmap(run, action.name, action.request, owner))
        job = jobs.worker_job(run, self.around.settings, action.name, action.request, owner, self.around.version)
        if not client.create(job):
            self._clear(job["kind"], client.get(job["kind"], self.namespace, name_of(job)))

    def _apply(self, body: Object) -> None:
        """Server-side apply, unless that is how it is: an apply that changes nothing may still wake every watcher."""
        version = digest(body)
        metadata = body["metadata"]
        marked = {**metadata, "annotations": {**metadata.get("annotations", {}), names.APPLIED: version}}
        body = {**body, "metadata": marked}
        known = self.around.client.get(body["kind"], self.namespace, metadata["name"])
        if known is not None and _is_applied(known, body):
            return
        self._clear(body["kind"], known)
        if known is not None:
            body["metadata"] |= _only(known)["metadata"]
        self.around.client.apply(body)

    def _running_task(self, status: Status) -> str | None:
        """The task that the status says is running."""
        step = current_step(status.steps)
        stage = current_stage(step) if step is not None else None
        if status.finished is not None or step is None or stage is None or stage.state != "Running":
            return None
        return task_name(self.name, step.index, step.kind, stage.name, stage.attempt)


@contextmanager
def _refusals(reason: str, what: str) -> Iterator[None]:
    """Turns the API server's refusals into RefusedError; other errors of the call may pass by themselves."""
    try:
        yield
    except ApiException as error:
        said = what_it_says(error) or f"{error.status} {error.reason}"
        # Server-side apply reports a template with unknown fields or wrong types as an error of the server's own.
        is_wrong = error.status in (400, 422) or (error.status == 500 and "typed patch" in said)
        if not is_wrong and error.status not in (FORBIDDEN, NOT_FOUND):  # 404: JobSet was removed meanwhile
            raise
        raise RefusedError(Blocked(reason, f"the cluster refuses {what}: {said}", is_permanent=is_wrong)) from error


def _only(thing: Object) -> Object:
    """Part of a patch: it is refused for another object of the same name."""
    return {"metadata": {"uid": thing["metadata"]["uid"]}}


def _is_applied(known: Object, body: Object) -> bool:
    """Whether the object is as it was applied last, and nobody has scaled it since."""
    applied = (known["metadata"].get("annotations") or {}).get(names.APPLIED)
    is_same: bool = applied == body["metadata"]["annotations"][names.APPLIED]
    return is_same and known.get("spec", {}).get("replicas") == body.get("spec", {}).get("replicas")


def _of(pods: list[Object], component: str) -> list[Object]:
    return [pod for pod in pods if pod["metadata"]["labels"].get(names.COMPONENT) == component]
