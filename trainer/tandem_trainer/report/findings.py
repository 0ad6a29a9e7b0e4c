"""What the numbers say, in sentences: the verdict, and what a reader must know before trusting it. Pure."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from tandem_api.contract import CandidateScore
from tandem_api.pages.formats import counted, interval, percent, points
from tandem_api.v1alpha1.status import Artifact, Candidate, StageStatus, StepStatus
from tandem_trainer.report.facts import Facts

KINDS = {"baseline": "baseline", "p": "prompts", "w": "weights", "final": "final test"}


@dataclass(frozen=True)
class Verdict:
    """The run's outcome: one sentence, and what qualifies it."""

    headline: str
    details: tuple[str, ...]


@dataclass(frozen=True)
class Row:
    """A candidate, in words."""

    candidate: Candidate
    kind: str
    """The step's."""
    prompts: str
    weights: str
    is_best: bool
    is_baseline: bool

    @property
    def label(self) -> str:
        """Short enough for a phone's width: ``2 w: vanilla + adapter``."""
        prompts = "vanilla" if self.candidate.prompt_set is None else "optimized"
        return f"{self.candidate.step} {self.kind}: {prompts} + {'adapter' if self.candidate.adapter else 'base'}"


def step_name(step: StepStatus) -> str:
    """``step 2 (w)``; the baseline and the final test go by their names."""
    return f"step {step.index} ({step.kind})" if step.kind in ("p", "w") else f"the {KINDS[step.kind]}"


def candidate_rows(facts: Facts) -> tuple[Row, ...]:
    """Every candidate of the run, in the order of the steps."""
    return tuple(
        Row(
            candidate=candidate,
            kind=step.kind,
            prompts=prompts_name(facts, candidate),
            weights=weights_name(facts, candidate),
            is_best=candidate == facts.best,
            is_baseline=candidate == facts.status.baseline,
        )
        for step in facts.status.steps
        for candidate in step.candidates
    )


def prompts_name(facts: Facts, candidate: Candidate) -> str:
    """``vanilla``, or ``optimized`` with the step that found them."""
    return "vanilla" if candidate.prompt_set is None else f"optimized (step {_maker(facts, candidate.prompt_set)})"


def weights_name(facts: Facts, candidate: Candidate) -> str:
    """``base``, or ``adapter`` with the step that trained it."""
    return "base" if candidate.adapter is None else f"adapter (step {_maker(facts, candidate.adapter)})"


def _program(facts: Facts, candidate: Candidate) -> str:
    prompts, model = "the original prompts", "the base model"
    if candidate.prompt_set is not None:
        prompts = f"the prompts of step {_maker(facts, candidate.prompt_set)}"
    if candidate.adapter is not None:
        model = f"the model tuned in step {_maker(facts, candidate.adapter)}"
    return f"{prompts} on {model}"


def _maker(facts: Facts, artifact: Artifact) -> str:
    """The first step that made it."""
    for step in facts.status.steps:
        if artifact.sha256 in {made.sha256 for made in (step.prompt_set, step.adapter) if made is not None}:
            return str(step.index)
    return "?"


def verdict(facts: Facts) -> Verdict:
    """What the run came to."""
    best, baseline = facts.best, facts.status.baseline
    details: list[str] = []
    if baseline is None:
        headline = f"The best program scores {percent(best.score)} on validation."
    elif not any(step.kind in ("p", "w") for step in facts.status.steps):
        headline = f"The unchanged program scores {percent(best.score)} on validation."
    elif facts.is_unchanged:
        headline = f"No step beat the unchanged program, which scores {percent(best.score)} on validation."
    else:
        gain = float(best.score) - float(baseline.score)
        headline = (
            f"Validation score {percent(baseline.score)} \N{RIGHTWARDS ARROW} {percent(best.score)} "
            f"({points(gain)}) with {_program(facts, best)}."
        )
        if float(best.low) <= float(baseline.high):
            details.append(
                "The two 95% intervals on validation overlap, so that part or all of the gain may be chance."
            )
    details += _about_test(facts)
    if facts.changes.better or facts.changes.worse:
        change = facts.changes
        details.append(
            f"Of the validation examples, {change.better} are answered better than before, {change.worse} worse and "
            f"{change.same} as well."
        )
    return Verdict(headline, tuple(details))


def _about_test(facts: Facts) -> Iterator[str]:
    best, before = facts.best_test, facts.baseline_test
    if best is None and facts.is_unchanged:
        yield "No test set was given."
        return
    if best is None:
        yield (
            "No test set was given: the validation score is that of the candidate with the highest one, and so it is "
            "probably higher than what to expect on new examples."
        )
        return
    yield f"On the test set, which no step was given, it scores {_told(best)}."
    if facts.is_unchanged:
        return
    if before is None:
        yield "The unchanged program was not measured on the test set (the base model was not being served at the end)."
        return
    is_apart = best.low > before.high or before.low > best.high
    intervals = "do not overlap" if is_apart else "overlap, so that the difference may be chance"
    yield (
        f"The unchanged program scores {_told(before)} there: a difference of {points(best.score - before.score)}; "
        f"the two intervals {intervals}."
    )


def _told(score: CandidateScore) -> str:
    return f"{percent(score.score)} (95% interval {interval(score.low, score.high)}, n = {score.n:,})"


def warnings(facts: Facts) -> tuple[str, ...]:
    """What went other than a reader may assume: the run's course, its data, its failed examples, and details."""
    steps = facts.status.steps
    ended = [
        f"{_sentence(step_name(step))} was {step.state.lower()}: {_because(step.reason, step.message)}"
        for step in steps
        if step.state in ("Skipped", "Stopped", "Failed")
    ]
    details = [text for step in steps for text in _of_stages(step)]
    return tuple(_ended(text) for text in (*ended, *_of_check(facts), *_of_examples(facts), *details))


def _of_stages(step: StepStatus) -> Iterator[str]:
    for stage in step.stages:
        where = f"{_sentence(step_name(step))}, {stage.name}"
        if stage.message and stage.message != step.message and stage.state != "Running":
            yield f"{where}: {stage.message}"
        if stage.failures:
            yield f"{where}: {counted(stage.failures, 'attempt')} failed before one got through."
        yield from (f"{where}: {text}" for text in _of_facts(stage))


def _of_facts(stage: StageStatus) -> Iterator[str]:
    facts = stage.facts
    if stage.name == "train" and _number(facts, "dropped"):
        yield f"{counted(_number(facts, 'dropped'), 'row')} longer than weightOptimizer.maxLength left out of training."
    if stage.name == "train" and str(facts.get("packing", "on")) != "on":
        yield f"rows were not packed ({facts['packing']})."
    if stage.name == "traces" and _number(facts, "failed"):
        yield f"{facts['failed']} of {facts.get('runs', '?')} runs of the program failed and gave no trace."
    if stage.name == "optimize" and _number(facts, "train_in_validation"):
        yield (
            f"{counted(_number(facts, 'train_in_validation'), 'training example')} with the inputs of a validation "
            "example could not become demos."
        )


def _of_check(facts: Facts) -> Iterator[str]:
    check = next((s for step in facts.status.steps for s in step.stages if s.name == "check"), None)
    if check is None:
        return
    told = [str(value) for name, value in check.facts.items() if name.startswith("warning.")]
    yield from (_sentence(text) for text in told)
    more = _number(check.facts, "warnings") - len(told)
    if more > 0:
        yield f"{counted(more, 'more warning')} of the check {'is' if more == 1 else 'are'} not shown here."


def _of_examples(facts: Facts) -> Iterator[str]:
    best, baseline, test = facts.best, facts.status.baseline, facts.best_test
    if baseline is not None and baseline.errors and not facts.is_unchanged:
        yield (
            f"{baseline.errors} of {counted(baseline.n, 'validation example')} failed under the unchanged program and "
            "count as 0: part of the gain may be answers that can now be read."
        )
    if best.errors:
        yield f"{best.errors} of {counted(best.n, 'validation example')} fail under the best program and count as 0."
    if test is not None and test.errors:
        yield f"{test.errors} of {counted(test.n, 'test example')} fail under the best program and count as 0."


def _because(reason: str | None, message: str | None) -> str:
    if reason and message:
        return f"{message} ({reason})"
    return message or reason or "no reason was given"


def _number(facts: dict[str, int | str], name: str) -> int:
    value = facts.get(name, 0)
    return value if isinstance(value, int) else 0


def _sentence(text: str) -> str:
    return text[:1].upper() + text[1:]


def _ended(text: str) -> str:
    return text if text.endswith((".", "!", "?", ")")) else f"{text}."
