"""The verdict and the warnings: what is claimed, and with which caution."""

from __future__ import annotations

from dataclasses import replace

import pytest
from tests.unit.trainer.report.sample import HOSTILE, nothing_gained, odd_program, prompts_only, whole

from tandem_api.contract import CandidateScore
from tandem_trainer.report.findings import candidate_rows, verdict, warnings


def test_the_verdict_names_gain_origin_and_the_test_score_with_its_interval() -> None:
    found = verdict(whole())
    assert found.headline == (
        "Validation score 55.0% → 87.5% (+32.5 points) with the prompts of step 3 on the model tuned in step 2."
    )
    assert "scores 82.0% (95% interval 76.1% to 86.7%, n = 200)" in found.details[0]
    assert found.details[1].startswith("The unchanged program was not measured on the test set")
    assert found.details[2].startswith("Of the validation examples, 15 are answered better than before, 2 worse")


@pytest.mark.parametrize(
    ("low", "high", "wanted"),
    [
        (0.461, 0.598, "a difference of +18.0 points; the two intervals do not overlap."),
        (0.461, 0.650, "the two intervals overlap, so that the difference may be chance."),
    ],
)
def test_test_scores_are_compared_with_the_unchanged_programs(low: float, high: float, wanted: str) -> None:
    facts = prompts_only()
    unchanged = CandidateScore(prompts=None, score=0.53, low=low, high=high, n=200)
    details = verdict(replace(facts, test=(facts.test[0], unchanged))).details
    assert any(text.endswith(wanted) for text in details)
    assert "The two 95% intervals on validation overlap" in details[0]


def test_no_gain_is_said_plainly() -> None:
    found = verdict(nothing_gained())
    assert found.headline == "No step beat the unchanged program, which scores 55.0% on validation."
    assert found.details == ("No test set was given.",)


def test_a_run_without_steps_is_not_told_that_no_step_was_better() -> None:
    facts = nothing_gained()
    status = facts.status.model_copy(update={"steps": (facts.status.steps[0], facts.status.steps[-1])})
    headline = verdict(replace(facts, status=status)).headline
    assert headline == "The unchanged program scores 55.0% on validation."


def test_without_a_test_set_the_validation_score_is_called_optimistic() -> None:
    assert "probably higher than what to expect on new examples" in verdict(replace(whole(), test=())).details[0]


def test_the_base_program_under_an_adapter_is_not_the_unchanged_program() -> None:
    """Its test score has no prompt set of its own, but it is the tuned model's."""
    facts = odd_program()
    assert not facts.is_unchanged and facts.baseline_test is None
    assert nothing_gained().is_unchanged and replace(nothing_gained(), test=whole().test).baseline_test is not None


def test_rows_name_prompts_and_weights_by_the_step_that_made_them() -> None:
    rows = candidate_rows(whole())
    assert [(row.prompts, row.weights) for row in rows] == [
        ("vanilla", "base"),
        ("optimized (step 1)", "base"),
        ("vanilla", "adapter (step 2)"),
        ("optimized (step 1)", "adapter (step 2)"),
        ("optimized (step 3)", "adapter (step 2)"),
    ]
    assert [row.is_best for row in rows] == [False] * 4 + [True]
    assert [row.is_baseline for row in rows] == [True] + [False] * 4


def test_warnings_tell_of_data_failures_retries_and_messages() -> None:
    assert warnings(whole()) == (
        "3 of 40 validation examples have the same inputs as train examples.",
        HOSTILE + ".",
        "6 of 40 validation examples failed under the unchanged program and count as 0: part of the gain may be "
        "answers that can now be read.",
        "1 of 40 validation examples fail under the best program and count as 0.",
        "3 of 200 test examples fail under the best program and count as 0.",
        "Step 1 (p), optimize: 1 attempt failed before one got through.",
        "Step 2 (w), traces: 4 of 240 runs of the program failed and gave no trace.",
        "Step 2 (w), train: 2 rows longer than weightOptimizer.maxLength left out of training.",
        "Step 2 (w), train: rows were not packed (off: with eager attention this model's rows would see each other).",
        "Step 3 (p), optimize: none of the labelled candidates helped.",
    )


def test_skipped_and_stopped_steps_are_told_first_and_once() -> None:
    found = warnings(nothing_gained())
    assert found[:3] == (
        "Step 1 (p) was stopped: 500 of 500 tokens are spent; it ended while demos were bootstrapped (BudgetExhausted)",
        "Step 2 (w) was skipped: 2 traces were kept, at least 8 are needed (TooFewTraces)",
        "Step 3 (p) was skipped: 500 of 500 tokens are spent (BudgetExhausted)",
    )
    assert len(found) == 4


def test_warnings_of_the_check_that_did_not_fit_are_counted() -> None:
    facts = whole()
    check = facts.status.steps[0].stages[0]
    more = check.model_copy(update={"facts": {**check.facts, "warnings": 9}})
    first = facts.status.steps[0].model_copy(update={"stages": (more, *facts.status.steps[0].stages[1:])})
    status = facts.status.model_copy(update={"steps": (first, *facts.status.steps[1:])})
    assert "7 more warnings of the check are not shown here." in warnings(replace(facts, status=status))
