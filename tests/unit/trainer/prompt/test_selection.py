"""Which candidate wins, and which examples may become demos."""

from __future__ import annotations

from tandem_trainer.evaluate.examples import Example
from tandem_trainer.prompt.selection import best, without_overlap


def test_of_equal_scores_the_earlier_wins() -> None:
    assert best([0.5, 0.75, 0.75, 0.25]) == 1
    assert best([0.0]) == 0


def test_training_examples_with_the_inputs_of_a_validation_example_are_left_out() -> None:
    train = [Example("a", {"q": "1", "answer": "x"}), Example("b", {"q": "2", "answer": "x"})]
    validation = [Example("other", {"q": "1", "answer": "differs"})]
    assert [example.id for example in without_overlap(train, validation, ("q",))] == ["b"]
