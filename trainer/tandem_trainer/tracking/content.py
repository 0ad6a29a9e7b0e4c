"""What MLflow is to hold of a run: one page for the run and one for each step that has begun. Pure.

Pages are made of the status and of what the stages left in S3. The same content gives the same page, whoever makes it
and however often: what is there already is not written again.
"""

from __future__ import annotations

import json
import math
import re
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from typing import Any, Final

from tandem_api.contract import StageRequest
from tandem_api.store.s3 import MANIFEST
from tandem_api.v1alpha1.status import Artifact, StageStatus, Status, StepStatus
from tandem_trainer.tracking.client import Point, RunState

#: The tags by which pages are found again.
UID_TAG, STEP_TAG = "tandem.run-uid", "tandem.step"
#: The tags that say why there is no result: only a page that has failed, or was skipped, has them.
WHY_TAGS: Final = ("tandem.reason", "tandem.message")
#: As long as MLflow takes keys and values everywhere (its versions differ).
MAX_KEY, MAX_PARAM, MAX_TAG = 250, 500, 5000
#: The parts of the spec that say what is computed: they cannot change while the run lives, as parameters cannot.
_SPEC: Final = ("program", "metric", "data", "model", "promptOptimizer", "weightOptimizer", "evaluation", "seed")
_STATES: Final[Mapping[str, RunState]] = {
    "Succeeded": "FINISHED",
    "Skipped": "FINISHED",
    "Stopped": "FINISHED",
    "Failed": "FAILED",
}
#: Files of the bundle that MLflow links to, or takes.
BUNDLE_FILES: Final = {"report": "report.html", "program": "program.json", "scores": "scores.json"}
#: Reads an object of the run, None where there is none.
Read = Callable[[str], bytes | None]


@dataclass(frozen=True)
class Page:
    """What one run of MLflow is to hold."""

    name: str
    step: int | None
    """None: the run itself."""
    start: int
    """In milliseconds since 1970."""
    state: RunState
    end: int | None
    params: Mapping[str, str]
    tags: Mapping[str, str]
    points: tuple[Point, ...]


def run_page(request: StageRequest, status: Status, storage: str, read: Read) -> Page:
    """The run's own page. `storage`: the address of its prefix, whose objects `read` gives."""
    started = status.started or next((step.started for step in status.steps if step.started), None)
    failed = next((step for step in status.steps if step.state == "Failed"), None)
    is_over = status.finished is not None
    state: RunState = "RUNNING" if not is_over else "FAILED" if failed or status.best is None else "FINISHED"
    tags = {
        "tandem.strategy": request.spec.strategy_text,
        "tandem.storage": storage,
        **_why(failed),
        **_best_tags(status),
        **_result_tags(status.result),
        **_program_digest(request, status, read),
    }
    return Page(
        name=request.name,
        step=None,
        start=_ms(started),
        state=state,
        end=_ms(status.finished) if is_over else None,
        params=_params({"strategy": request.spec.strategy_text, **_chosen(request.spec.to_json())}),
        tags=_tags(request, tags),
        points=tuple(_finite(_run_points(status))),
    )


def step_page(request: StageRequest, step: StepStatus, read: Read) -> Page:
    """The page of a step that has begun. `read` gives what its stages left."""
    settings: dict[str, Any] = {}
    if step.kind == "p":
        settings = {"promptOptimizer": request.spec.prompts_of(step.index).to_json()}
    elif step.kind == "w":
        settings = {"weightOptimizer": request.spec.weights_of(step.index).to_json()}
    digests = {"prompt-set": step.prompt_set, "adapter": step.adapter, "traces": step.traces}
    tags = {
        STEP_TAG: str(step.index),
        "tandem.kind": step.kind,
        "tandem.state": step.state,
        **_why(step),
        **{f"tandem.{name}-sha256": one.sha256 for name, one in digests.items() if one is not None},
        **{f"tandem.{name}": one.uri for name, one in digests.items() if one is not None},
    }
    state = _STATES.get(step.state, "RUNNING")
    return Page(
        name=f"{request.name}-{step.index}-{step.kind}",
        step=step.index,
        start=_ms(step.started),
        state=state,
        end=_ms(step.finished) if state != "RUNNING" and step.finished else None,
        params=_params({"kind": step.kind, **settings}),
        tags=_tags(request, tags),
        points=tuple(_finite(_step_points(request, step, read))),
    )


def description(status: Status) -> str:
    """A registered version, for people."""
    best, test = status.best, status.test
    told = [f"validation score {best.score} (step {best.step})"] if best is not None else []
    if test is not None:
        told.append(f"test score {test.score}" + (f" (before: {test.baseline})" if test.baseline else ""))
    return ", ".join(told)


def seconds_in(step: StepStatus, moment: datetime) -> int:
    """Since the step began."""
    return max(0, int((moment - step.started).total_seconds())) if step.started is not None else 0


def settled_trials(trials: bytes) -> Iterator[tuple[str, int, float]]:
    """The trials of a search that goes on whose scores will not change any more: metric, index and score."""
    for index, trial in _trials(trials):
        if trial.get("full") is not None or trial.get("dropped"):
            key, score = _trial_score(trial)
            yield key, index, score


def live_point(key: str, value: float, step: int, moment: datetime) -> Point | None:
    """A point of this moment; None for what is no number."""
    return Point(key, float(value), step, _ms(moment)) if math.isfinite(value) else None


def _run_points(status: Status) -> Iterator[Point]:
    """By step: its score, the best so far, and what was spent up to then."""
    best, tokens, gpu_seconds = None, 0, 0
    for step in status.steps:
        tokens, gpu_seconds = tokens + step.tokens, gpu_seconds + step.gpu_seconds
        if step.finished is None or step.started is None:
            continue
        at = _ms(step.finished)
        if step.score is not None:
            score = float(step.score)
            best = score if best is None else max(best, score)
            yield Point("score", score, step.index, at)
        if best is not None:
            yield Point("best_score", best, step.index, at)
        yield Point("tokens", tokens, step.index, at)
        yield Point("gpu_seconds", gpu_seconds, step.index, at)
    if status.test is not None and status.finished is not None:
        yield from _test_points(status, _ms(status.finished))


def _test_points(status: Status, at: int) -> Iterator[Point]:
    assert status.test is not None
    yield Point("test_score", float(status.test.score), 0, at)
    if status.test.baseline is not None:
        yield Point("test_baseline_score", float(status.test.baseline), 0, at)


def _step_points(request: StageRequest, step: StepStatus, read: Read) -> Iterator[Point]:
    if step.finished is not None and step.score is not None:
        yield Point("score", float(step.score), 0, _ms(step.finished))
    calls = prompt_tokens = completion_tokens = gpu_seconds = 0
    for number, stage in enumerate(step.stages):
        if stage.finished is None or stage.state not in _STATES:
            continue
        usage = stage.usage
        calls, gpu_seconds = calls + usage.calls, gpu_seconds + usage.gpu_seconds
        prompt_tokens += usage.prompt_tokens
        completion_tokens += usage.completion_tokens
        spent = {
            "calls": calls,
            "tokens": prompt_tokens + completion_tokens,
            "prompt_tokens": prompt_tokens,
            "completion_tokens": completion_tokens,
            "gpu_seconds": gpu_seconds,
        }
        at = _ms(stage.finished)
        yield from (Point(key, value, number, at) for key, value in spent.items())
        for name, value in stage.facts.items():
            if isinstance(value, int):
                yield Point(_key(f"{stage.name}.{name}"), value, 0, at)
        yield from _bulk_points(request, step, stage, read)
    if step.kind != "p" and step.finished is not None:
        for number, candidate in enumerate(step.candidates):
            yield Point("candidate_score", float(candidate.score), number, _ms(step.finished))


def _bulk_points(request: StageRequest, step: StepStatus, stage: StageStatus, read: Read) -> Iterator[Point]:
    """The curves, spread over the time that the stage took: what S3 keeps of them has no time."""
    layout = request.layout.stage(step.index, step.kind, stage.name)
    if stage.name == "optimize":
        trials = _trials(read(layout.trials) or b"")
        scores = [(index, *_trial_score(trial)) for index, trial in trials if trial.get("score") is not None]
        for place, (index, key, score) in enumerate(scores, start=1):
            yield Point(key, score, index, _between(stage, place / len(scores)))
    elif stage.name == "train":
        lines = [json.loads(line) for line in (read(f"{layout.root}train_log.jsonl") or b"").splitlines()]
        last = max((int(line["step"]) for line in lines), default=1) or 1
        names = {"loss": "loss", "eval_loss": "eval_loss", "lr": "learning_rate"}
        for line in lines:
            at = _between(stage, int(line["step"]) / last)
            yield from (
                Point(name, float(line[old]), int(line["step"]), at) for old, name in names.items() if old in line
            )


def _trials(data: bytes) -> Iterator[tuple[int, dict[str, Any]]]:
    for line in data.splitlines():
        trial = json.loads(line)
        yield int(trial["index"]), trial


def _trial_score(trial: Mapping[str, Any]) -> tuple[str, float]:
    """Its metric and its value. What was not scored on all of validation has a metric of its own: a candidate that was
    dropped after a few lucky examples would be the curve's maximum."""
    full = trial.get("full")
    if full is not None:
        return "candidate_score", float(full["score"])
    return "candidate_score_partial", float(trial.get("score") or 0.0)


def _between(stage: StageStatus, part: float) -> int:
    end = _ms(stage.finished)
    start = _ms(stage.started) or end
    return round(start + (end - start) * part)


def _best_tags(status: Status) -> dict[str, str]:
    best = status.best
    if best is None:
        return {}
    tags = {"tandem.best": best.id, "tandem.best-step": str(best.step)}
    # Kept even where it is empty: a better candidate may have gone back to the original prompts.
    tags["tandem.best-prompt-set-sha256"] = best.prompt_set.sha256 if best.prompt_set is not None else "original"
    tags["tandem.best-adapter-sha256"] = best.adapter.sha256 if best.adapter is not None else "base model"
    return tags


def _result_tags(result: Artifact | None) -> dict[str, str]:
    if result is None:
        return {}
    links = {name: f"{result.uri}{file}" for name, file in BUNDLE_FILES.items()}
    listed = "\n".join(f"- {name}: `{uri}`" for name, uri in {"bundle": result.uri, **links}.items())
    return {
        "tandem.bundle": result.uri,
        "tandem.bundle-sha256": result.sha256,
        **{f"tandem.{name}": uri for name, uri in links.items()},
        "mlflow.note.content": f"The result bundle, in S3:\n\n{listed}\n",
    }


def _program_digest(request: StageRequest, status: Status, read: Read) -> dict[str, str]:
    """Of the bundle's program.json, out of the bundle's own list."""
    if status.result is None:
        return {}
    sha256 = json.loads(read(f"{request.layout.result}{MANIFEST}") or b"{}").get(BUNDLE_FILES["program"])
    return {"tandem.program-sha256": str(sha256)} if sha256 is not None else {}


def _why(step: StepStatus | None) -> dict[str, str]:
    if step is None or step.reason is None:
        return {}
    return {key: text for key, text in zip(WHY_TAGS, (step.reason, step.message), strict=True) if text}


def _tags(request: StageRequest, tags: Mapping[str, str]) -> dict[str, str]:
    identity = {UID_TAG: request.uid, "tandem.namespace": request.namespace, "tandem.name": request.name}
    return {key: value[:MAX_TAG] for key, value in {**identity, **tags}.items()}


def _chosen(spec: Mapping[str, Any]) -> dict[str, Any]:
    return {name: spec[name] for name in _SPEC if name in spec}


def _params(values: Mapping[str, Any]) -> dict[str, str]:
    """One parameter a leaf, under its path in the manifest. Names of Secrets are left out."""
    leaves = ((path, value) for path, value in _leaves(values, "") if not path.endswith("Secret"))
    return {_key(path): text[:MAX_PARAM] for path, text in leaves if text}


def _leaves(value: Any, path: str) -> Iterator[tuple[str, str]]:
    if isinstance(value, dict):
        for name, below in value.items():
            yield from _leaves(below, f"{path}.{name}" if path else str(name))
    else:
        yield path, value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _key(text: str) -> str:
    """A name as MLflow takes it."""
    return re.sub(r"[^\w. /-]", "_", text, flags=re.ASCII)[:MAX_KEY]


def _finite(points: Iterator[Point]) -> Iterator[Point]:
    """Without what no JSON can hold; of two values at one step the first."""
    seen = set()
    for point in points:
        if math.isfinite(point.value) and (point.key, point.step) not in seen:
            seen.add((point.key, point.step))
            yield replace(point, value=float(point.value))


def _ms(moment: datetime | None) -> int:
    return int(moment.timestamp() * 1000) if moment is not None else 0
