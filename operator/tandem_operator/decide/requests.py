"""What each stage is asked to do: pure builders of `StageRequest`."""

from __future__ import annotations

from typing import Literal

from tandem_api.contract import Endpoint, Prompts, StageRequest
from tandem_api.v1alpha1 import Spec, Status
from tandem_api.v1alpha1.status import Artifact, Candidate, StageStatus, StepStatus
from tandem_operator.decide.names import served_name
from tandem_operator.decide.plan import ProgramState, best_stage, epoch_of, program_before
from tandem_operator.snapshot import Observed

VANILLA = Prompts(label="vanilla")


def needs_server(spec: Spec, step: StepStatus, stage: StageStatus) -> bool:
    """Whether the stage calls a model. The final one does not where there is no test set."""
    if step.kind == "final":
        return spec.data.test is not None
    return stage.name not in ("check", "train")


def adapter_mode(spec: Spec, adapter: Artifact | None, has_gpu: bool) -> Literal["base", "merged", "reload", "rollout"]:
    """How the server gets its adapter: merged weights where there is no GPU (vllm.md, section 17)."""
    return "base" if adapter is None else tuned_mode(spec, has_gpu)


def tuned_mode(spec: Spec, has_gpu: bool) -> Literal["merged", "reload", "rollout"]:
    """How any adapter is served. A merged model can hold one only, so that several are always applied by vLLM."""
    return spec.serving.adapters or ("reload" if has_gpu or spec.has_own_adapters else "merged")


def program_for(status: Status, step: StepStatus, stage: StageStatus) -> ProgramState:
    """The prompts and the adapter that a stage runs with."""
    if step.kind == "final" and status.best is not None:
        return ProgramState(status.best.prompt_set, status.best.adapter)
    before = program_before(status.steps, step.index)
    epoch = epoch_of(step, stage)
    adapter = epoch.adapter if epoch is not None else step.adapter
    if step.kind == "w" and adapter is not None:
        return ProgramState(before.prompt_set, adapter)
    return before


def build_request(
    spec: Spec, status: Status, observed: Observed, step: StepStatus, stage: StageStatus, url: str
) -> StageRequest:
    """The request of the stage's current attempt. `url` is the model server's; unused by stages without one."""
    program = program_for(status, step, stage)
    base = StageRequest(
        namespace=observed.namespace,
        name=observed.name,
        uid=observed.uid,
        index=step.index,
        kind=step.kind,
        stage=stage.name,
        attempt=stage.attempt,
        spec=spec,
        storage=observed.storage,
        data_digests=data_digests(status),
        tokens_left=tokens_left(spec, status, step),
        status=_settled(status) if step.kind == "final" or spec.mlflow is not None else None,
    )
    endpoint = None
    if needs_server(spec, step, stage):
        endpoint = Endpoint(url=url, model=served_name(observed.name, program.adapter), adapter=program.adapter)
    match stage.name:
        case "check":
            return base
        case "optimize":
            previous = spec.steps[step.index - 1].start_from == "previous"
            start = _prompts(program.prompt_set) if previous else VANILLA
            return base.model_copy(
                update={
                    "endpoint": endpoint,
                    "prompts": (start,),
                    "prompt_optimizer": spec.prompts_of(step.index),
                }
            )
        case "traces":
            return base.model_copy(
                update={
                    "endpoint": endpoint,
                    "prompts": (_prompts(program.prompt_set),),
                    "weight_optimizer": spec.weights_of(step.index),
                }
            )
        case "train":
            fresh = spec.steps[step.index - 1].start_from == "original"
            return base.model_copy(
                update={
                    "prompts": (_prompts(program.prompt_set),),
                    "weight_optimizer": spec.weights_of(step.index),
                    "traces": step.traces,
                    "start_adapter": None if fresh else program.adapter,
                    "merge": tuned_mode(spec, observed.has_gpu) == "merged",
                }
            )
        case "evaluate":
            return base.model_copy(
                update={
                    "endpoint": endpoint,
                    "prompts": _scored_prompts(status.best, step, program),
                    "split": "test" if step.kind == "final" else "validation",
                    "best_stage": best_stage(step),
                }
            )
        case _:  # select-1 to select-8
            epoch = epoch_of(step, stage)
            assert epoch is not None, f"{stage.name} was planned without an adapter"
            return base.model_copy(
                update={
                    "endpoint": endpoint,
                    "prompts": (VANILLA,),
                    "weight_optimizer": spec.weights_of(step.index),
                    "epoch": epoch.epoch,
                    "best_stage": best_stage(step),
                }
            )


def _prompts(prompt_set: Artifact | None) -> Prompts:
    return VANILLA if prompt_set is None else Prompts(label="current", artifact=prompt_set)


def _scored_prompts(best: Candidate | None, step: StepStatus, program: ProgramState) -> tuple[Prompts, ...]:
    """Which prompts an evaluation scores: the best program's at the end, both kinds after a `w` (cross-scoring)."""
    if step.kind == "baseline" or program.prompt_set is None:
        return (VANILLA,)
    current = Prompts(label="current", artifact=program.prompt_set)
    if step.kind == "final":
        # The base model is being served anyway: the unchanged program's test score costs no other server.
        return (current,) if program.adapter is not None else (current, VANILLA)
    return (VANILLA, current)


def _settled(status: Status) -> Status:
    """The status without what is going on at this moment: whoever builds the request again must get the same one."""
    return status.model_copy(update={"conditions": (), "step": None, "phase": Status().phase})


def data_digests(status: Status) -> dict[str, str]:
    """The digests of the splits as the `check` stage saw them."""
    facts = next((s.facts for step in status.steps[:1] for s in step.stages if s.name == "check"), {})
    return {
        key.removeprefix("digest."): str(value) for key, value in sorted(facts.items()) if key.startswith("digest.")
    }


def tokens_left(spec: Spec, status: Status, step: StepStatus) -> int | None:
    """What remains of the token budget; the final test is outside of it."""
    if spec.budget.tokens is None or step.kind == "final":
        return None
    # A stage's own spending so far is in its ledger, and the worker counts it again: leave it in.
    own = sum(stage.usage.tokens for stage in step.stages if stage.state == "Running")
    return max(0, spec.budget.tokens - status.usage.tokens + own)
