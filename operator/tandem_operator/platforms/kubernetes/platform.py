"""`KubernetesPlatform`: the engine's actions carried out on a cluster, for one pass over one run.

Nothing is remembered between two passes: what is, is read from the API server; what was decided is in the status.
"""

from __future__ import annotations

from dataclasses import dataclass, field, replace
from datetime import UTC, datetime
from typing import Any

from tandem_api.contract import StorageRef
from tandem_api.v1alpha1 import OptimizationRun, Status
from tandem_api.v1alpha1.run import Problem
from tandem_operator.actions import Action, EmitEvent, EnsureServing, StartTask, StopServing, StopTask
from tandem_operator.decide.names import task_name
from tandem_operator.decide.plan import current_stage, current_step
from tandem_operator.platforms.kubernetes import accepted, jobs, names, policies, serving
from tandem_operator.platforms.kubernetes.asking import Asking
from tandem_operator.platforms.kubernetes.children import Children, only, refusals
from tandem_operator.platforms.kubernetes.client import NOT_FOUND, Client
from tandem_operator.platforms.kubernetes.events import post
from tandem_operator.platforms.kubernetes.pod_state import (
    has_ended,
    has_owner,
    is_going,
    is_orphan,
    name_of,
    starts_slowly,
)
from tandem_operator.platforms.kubernetes.pods import accelerators
from tandem_operator.platforms.kubernetes.serving_state import observe_serving, pods_to_ask
from tandem_operator.platforms.kubernetes.task_state import current, is_over, lacks_pods, observe_task, task_of
from tandem_operator.settings import OperatorSettings
from tandem_operator.snapshot import Blocked, Observed, ServingObservation, TaskObservation

Object = dict[str, Any]


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
    children: Children
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
    _lively: frozenset[str] = frozenset()
    """Tasks of which there is a pod that has not ended, as far as is known."""
    _orphans: tuple[Object, ...] = ()
    """Workers that their Job has left behind."""
    _deployment: Object | None = None

    @property
    def namespace(self) -> str:
        return self.children.namespace

    @property
    def name(self) -> str:
        return self.children.name

    def load(self) -> OptimizationRun:
        """The resource with the spec that was accepted when it began. Raises InvalidRunError."""
        self.loaded, self.ignored = accepted.load(self.children, self.around.settings.defaults.training.resources)
        return self.loaded

    def observe(self, run: OptimizationRun) -> Observed:
        settings, metadata = self.around.settings, run.metadata
        assert run.spec.storage is not None
        s3 = run.spec.storage.s3
        self._look_at_jobs(run)
        pods = self._look_at_pods(run)
        workers = _of(pods, names.WORKER)
        self._lively = frozenset(task_of(pod) for pod in workers if not has_ended(pod))
        self._orphans = tuple(filter(is_orphan, workers))
        self._deployment = self.children.get("Deployment", names.serving_name(self.name))
        now = datetime.now(UTC)
        return Observed(
            namespace=metadata.namespace,
            name=metadata.name,
            uid=metadata.uid,
            generation=metadata.generation,
            now=now,
            storage=StorageRef(bucket=s3.bucket, prefix=s3.prefix, endpoint=s3.endpoint, region=s3.region),
            serving=self._observe_serving(run, _of(pods, names.SERVING), now),
            tasks=self._observe_tasks(workers, now),
            has_gpu=serving.has_accelerator(run, settings),
            serving_accelerators=accelerators(serving.serving_resources(run, settings)),
            training_accelerators=accelerators(run.spec.training.resources or settings.defaults.training.resources),
            ignored_changes="; ".join(map(str, self.ignored)),
            blocked=self.blocked,
        )

    def save(self, run: OptimizationRun, status: Status) -> None:
        """Store the status. Raises ApiException 409 when somebody has written to the resource since it was read."""
        self.children.save_status(status.to_json())

    def execute(self, run: OptimizationRun, action: Action) -> None:
        match action:
            case EnsureServing():
                with refusals("ServerRefused", "the model server, made of spec.serving and its podTemplate"):
                    self._serve(run, action)
            case StopServing():
                self._stop_serving()
            case StartTask():
                made_of = "spec.training" if action.request.stage == "train" else "spec.workers"
                with refusals("JobRefused", f"the Job {action.name}, made of {made_of} and its podTemplate"):
                    self._start(run, action)
            case StopTask():
                self._stop_task(action.name)
            case EmitEvent():
                post(self.around.client, self.children.raw, action, self.around.instance)

    def tidy(self, status: Status) -> None:
        """Let go of what is in the status: ended Jobs may be collected, and a finished run's server is deleted."""
        client, running = self.around.client, self._running_task(status)
        for name, job in list(self._jobs.items()):
            if name == running or is_going(job):
                continue
            if not is_over(job) or self._has_left_pods(name):
                self._stop_task(name)
                continue
            kind, holder = self._holder(name)
            if holder["spec"].get("ttlSecondsAfterFinished") is None:
                self.children.delete("ConfigMap", name)
                ttl = {"spec": {"ttlSecondsAfterFinished": self.around.settings.job_ttl_seconds}}
                client.patch(kind, self.namespace, name_of(holder), {**only(holder), **ttl})
        for pod in self._orphans:
            self.children.remove("Pod", pod)
        if status.finished is not None and self._deployment is not None:
            self.release()

    def release(self) -> None:
        """Delete everything that serves. The Deployment last: while it is there, a later pass knows what is left."""
        name = self.name
        for kind, of_kind in (
            ("Service", names.serving_name(name)),
            ("Service", names.replicas_name(name)),
            ("ConfigMap", names.adapters_name(name)),
            ("Deployment", names.serving_name(name)),
        ):
            self.children.delete(kind, of_kind)

    def guard(self, run: OptimizationRun) -> None:
        """Network policies come before the pods that they are about. Raises RefusedError where a name is taken."""
        if self.around.settings.network_policy.enabled:
            for policy in policies.network_policies(
                run, self.around.settings, self.around.operator_namespace, self.children.owner()
            ):
                self.children.apply(policy)

    def _look_at_jobs(self, run: OptimizationRun) -> None:
        """Out of the API server's cache. Only that there is no Job for the task under way must be so: it may have been
        made a moment ago. JobSets are few."""
        if run.spec.training.backend == "jobset":
            # JobSet may be removed while a run goes on, and all JobSets with it.
            jobsets = self.children.of_kind(names.JOBSET, names.WORKER, none_if=(NOT_FOUND,))
            self._jobsets = {task_of(jobset): jobset for jobset in jobsets}
            made = self.children.of_kind("Job", names.WORKER)
            # A JobSet's Job has a name of the JobSet's making.
            by_task = {task_of(job) if has_owner(job, names.JOBSET) else name_of(job): job for job in made}
            self._jobs = {**self._jobsets, **by_task}
            return
        self._jobs = {name_of(job): job for job in self.children.of_kind("Job", names.WORKER, may_be_late=True)}
        task = self._running_task(run.status)
        if task is not None and task not in self._jobs:
            job = self.children.get("Job", task)
            if job is not None:
                self._jobs[task] = job

    def _look_at_pods(self, run: OptimizationRun) -> list[Object]:
        """Out of the API server's cache; those of the task that is under way exactly, where it matters."""
        pods = self.children.of_kind("Pod", may_be_late=True)
        task = self._running_task(run.status)
        of_task = [pod for pod in pods if task_of(pod) == task]
        if task is None or not lacks_pods(self._jobs.get(task), of_task):
            return pods
        exact = self.children.of_kind("Pod", task=task)
        return [*(pod for pod in pods if task_of(pod) != task), *exact]

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
        get = self.children.get
        return next((f"{kind} {name}" for kind, name in wanted if get(kind, name, may_be_late=True) is None), None)

    def _has_left_pods(self, task: str) -> bool:
        """Whether an ended Job still has a pod that neither ends nor goes, and may hold an accelerator. Older clusters
        leave it where a Job got another pod while its node was lost, and then the first one's success."""
        if task not in self._lively:
            return False
        exact = self.children.of_kind("Pod", names.WORKER, task=task)
        return any(not has_ended(pod) and not is_going(pod) for pod in exact)

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
                lacks_request = task.waiting == "MissingConfigMap" and self.children.get("ConfigMap", name) is None
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
        owner, settings = self.children.owner(), self.around.settings
        self.guard(run)
        for service in serving.services(run, owner):
            self.children.apply(service)
        hot_loads = serving.hot_loads(run, settings)
        if hot_loads:
            self.children.apply(serving.adapters_configmap(run, wanted, owner))
        self.children.apply(serving.deployment(run, settings, wanted, owner))
        if hot_loads:
            self._hurry(run, wanted)

    def _hurry(self, run: OptimizationRun, wanted: EnsureServing) -> None:
        """Have the kubelet renew the pods' volumes now, not with its next round: it does so when a pod changes."""
        version = serving.desired_adapters(wanted).digest[:16]
        for pod in self.children.of_kind("Pod", names.SERVING, may_be_late=True):
            if (pod["metadata"].get("annotations") or {}).get(names.DESIRED) != version:
                note = {"metadata": {"annotations": {names.DESIRED: version}}}
                self.around.client.patch("Pod", self.namespace, name_of(pod), note)

    def _stop_serving(self) -> None:
        if self._deployment is not None and self._deployment["spec"].get("replicas", 1) != 0:
            metadata = serving.STOPPED["metadata"] | only(self._deployment)["metadata"]
            stopped = {**serving.STOPPED, "metadata": metadata}
            self.around.client.patch("Deployment", self.namespace, names.serving_name(self.name), stopped)

    def _stop_task(self, name: str) -> None:
        """Delete the Job in the foreground: it stays, and counts as running, until its pod has kept what it has."""
        job = self._jobs.get(name)
        if job is not None and not is_going(job):
            kind, holder = self._holder(name)
            self.children.remove(kind, holder, propagation="Foreground")
            self.children.delete("ConfigMap", name)
        self._jobs.pop(name, None)

    def _start(self, run: OptimizationRun, action: StartTask) -> None:
        owner = self.children.owner()
        self.children.check_fresh()
        self.guard(run)
        self.children.apply(jobs.request_configmap(run, action.name, action.request, owner))
        self.children.create(
            jobs.worker_job(run, self.around.settings, action.name, action.request, owner, self.around.version)
        )

    def _running_task(self, status: Status) -> str | None:
        """The task that the status says is running."""
        step = current_step(status.steps)
        stage = current_stage(step) if step is not None else None
        if status.finished is not None or step is None or stage is None or stage.state != "Running":
            return None
        return task_name(self.name, step.index, step.kind, stage.name, stage.attempt)


def _of(pods: list[Object], component: str) -> list[Object]:
    return [pod for pod in pods if pod["metadata"]["labels"].get(names.COMPONENT) == component]
