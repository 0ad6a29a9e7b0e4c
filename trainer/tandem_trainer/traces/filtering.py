"""From scored runs of the program to the traces that a `w` step trains on. Pure.

Source: BetterTogether (arXiv 2407.10930), BootstrapFinetune: run the program, keep the traces whose score reaches the
threshold, pair every completion with the vanilla prompt.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any

from tandem_api.records import PredictorCall, ScoredExample, TraceRow
from tandem_api.v1alpha1.weight_optimizers import Traces

Messages = tuple[dict[str, Any], ...]
#: Renders a call of a run with the program's original prompt.
RenderVanilla = Callable[[ScoredExample, PredictorCall], Messages]


@dataclass(frozen=True)
class TraceCounts:
    """What became of the runs: runs = failed + not passed + passed; passed = kept + duplicates + capped."""

    runs: int
    failed: int
    """Runs whose call, answer, program or metric failed."""
    passed: int
    """Runs that reached the threshold with a call that can be trained on."""
    duplicates: int
    """Passing runs whose completions repeat those of an earlier run of the same example."""
    capped: int
    """Different passing runs beyond `maxPerExample`."""
    kept: int
    examples: int
    """Examples with at least one kept trace."""
    unparsed: int
    """Calls left out of kept traces because their completion could not be parsed (the program recovered from it)."""
    rows: tuple[tuple[str, int], ...]
    """Kept calls of every predictor, by name."""
    traces: tuple[tuple[str, int], ...]
    """Kept traces with a call of a predictor, for each that the served model answered in any of the runs."""

    def below(self, minimum: int) -> tuple[tuple[str, int], ...]:
        """The predictors that were called but are in fewer kept traces. One that is never called lacks nothing."""
        return tuple((name, count) for name, count in self.traces if count < minimum)


def passed(record: ScoredExample, threshold: str) -> bool:
    """Whether a run counts as passing: it did not fail, and its score reaches the threshold (a decimal string).

    The one rule of every optimizer; never a score's truthiness.
    """
    return record.status == "ok" and record.score >= float(threshold)


def select_traces(
    records: Sequence[ScoredExample], settings: Traces, predictors: Iterable[str], vanilla: RenderVanilla
) -> tuple[list[TraceRow], TraceCounts]:
    """The rows to keep, in the order in which `records` first names their examples, and the counts.

    Of one example the best scores come first, then the lower sample numbers. `vanilla` renders a call with the
    program's original prompt. Every name in `predictors` is counted, also those that were never called.
    """
    by_example: dict[str, list[ScoredExample]] = {}
    for record in records:
        by_example.setdefault(record.example, []).append(record)
    rows: list[TraceRow] = []
    passing = different = unparsed = 0
    for runs in by_example.values():
        good = [run for run in runs if passed(run, settings.threshold) and any(_is_row(call) for call in run.calls)]
        distinct = _distinct(sorted(good, key=lambda run: (-run.score, run.sample)))
        kept = distinct[: settings.max_per_example]
        passing += len(good)
        different += len(distinct)
        unparsed += sum(call.outputs is None and not call.own_lm for run in kept for call in run.calls)
        rows += [_row(run, vanilla) for run in kept]
    called = Counter(call.predictor for row in rows for call in row.calls)
    seen = {call.predictor for record in records for call in record.calls if not call.own_lm}
    names = dict.fromkeys([*predictors, *sorted(seen)])
    held = traces_by_predictor(rows)
    return rows, TraceCounts(
        runs=len(records),
        failed=sum(record.status != "ok" for record in records),
        passed=passing,
        duplicates=passing - different,
        capped=different - len(rows),
        kept=len(rows),
        examples=len({row.example for row in rows}),
        unparsed=unparsed,
        rows=tuple((name, called[name]) for name in names),
        traces=tuple((name, held[name]) for name in names if name in seen),
    )


def traces_by_predictor(rows: Iterable[TraceRow]) -> Counter[str]:
    """How many traces hold a call of each predictor."""
    return Counter(name for row in rows for name in {call.predictor for call in row.calls})


def _is_row(call: PredictorCall) -> bool:
    """Whether the served model can be trained on a call: it made it, and its completion could be parsed."""
    return call.outputs is not None and not call.own_lm


def _distinct(runs: Iterable[ScoredExample]) -> list[ScoredExample]:
    """The first run of each different sequence of completions."""
    first: dict[tuple[tuple[str, str], ...], ScoredExample] = {}
    for run in runs:
        first.setdefault(tuple((call.predictor, call.completion) for call in run.calls), run)
    return list(first.values())


def _row(run: ScoredExample, vanilla: RenderVanilla) -> TraceRow:
    calls = tuple(call for call in run.calls if _is_row(call))
    return TraceRow(
        example=run.example,
        sample=run.sample,
        score=run.score,
        calls=calls,
        vanilla=tuple(vanilla(run, call) for call in calls),
    )
