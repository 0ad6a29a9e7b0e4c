"""The plain format: what a prompt looks like, and which answers can be read."""

from __future__ import annotations

from typing import Any

import dspy
import pytest
from dspy.utils.exceptions import AdapterParseError

from tandem_trainer.program.plain import PlainAdapter

ADAPTER = PlainAdapter()
SENTIMENT = dspy.Signature("review_text -> sentiment: Literal['Positive', 'Negative']", "Judge the review.")
REASONED = dspy.Signature("question -> reasoning, answer: int", "Answer the question.")


def prompt(signature: Any, inputs: dict[str, Any], demos: tuple[dict[str, Any], ...] = ()) -> str:
    (message,) = ADAPTER.format(signature, demos, inputs)
    assert message["role"] == "user"
    return message["content"]


def test_a_prompt_is_the_instruction_the_demos_and_the_inputs() -> None:
    demos = ({"review_text": "A delight.", "sentiment": "Positive"}, {"review_text": "Dull.", "sentiment": "Negative"})

    assert prompt(SENTIMENT, {"review_text": "Great."}, demos) == (
        "Judge the review.\n\n"
        "Review text: A delight.\nSentiment: Positive\n\n"
        "Review text: Dull.\nSentiment: Negative\n\n"
        "Review text: Great.\nSentiment:"
    )


def test_a_prompt_asks_for_the_first_output_only() -> None:
    assert prompt(REASONED, {"question": "1+1?"}) == "Answer the question.\n\nQuestion: 1+1?\nReasoning:"


def test_demos_leave_out_what_they_lack() -> None:
    demos = ({"question": "1+1?", "answer": 2}, {"question": "no outputs"}, {"answer": 5})

    assert "Question: 1+1?\nAnswer: 2\n\nQuestion: 2+2?" in prompt(REASONED, {"question": "2+2?"}, demos)
    assert "no outputs" not in prompt(REASONED, {"question": "2+2?"}, demos)


def test_blank_lines_in_demo_answers_are_closed_up_because_they_would_end_an_answer() -> None:
    demos = ({"question": "Why?", "reasoning": "First.\n\nSecond.\n \nThird.", "answer": 2},)

    assert "Reasoning: First.\nSecond.\nThird.\nAnswer: 2" in prompt(REASONED, {"question": "x"}, demos)


def test_completions_stop_at_a_blank_line_and_at_the_next_example() -> None:
    assert ADAPTER.stop_strings(SENTIMENT) == ("\n\n", "\nReview text:")


@pytest.mark.parametrize(
    "completion",
    [" Positive", "positive.", "\nPOSITIVE\n", '"Positive"', "Sentiment: positive", "**positive**!", "positive\nx"],
)
def test_a_choice_is_read_in_any_case_and_punctuation(completion: str) -> None:
    assert ADAPTER.parse(SENTIMENT, completion) == {"sentiment": "Positive"}


@pytest.mark.parametrize("completion", ["", "  \n", "Positive or Negative", "good", "posit"])
def test_an_answer_that_is_no_choice_is_unparsable(completion: str) -> None:
    with pytest.raises(AdapterParseError):
        ADAPTER.parse(SENTIMENT, completion)


@pytest.mark.parametrize(
    ("kind", "completion", "value"),
    [
        ("int", " 42", 42),
        ("int", "42.", 42),
        ("int", "42\nbecause", 42),
        ("float", "2.5", 2.5),
        ("float", "1e-3", 0.001),
        ("bool", "True", True),
        ("bool", "no.", False),
        ("list[str]", '["a", "b"]', ["a", "b"]),
        ("str", "two\nlines", "two\nlines"),
        ("str", "one\n\nQuestion: another", "one"),
        ("Literal[1, 2]", "2", 2),
        ("Optional[str]", "text", "text"),
    ],
)
def test_a_typed_answer_is_read(kind: str, completion: str, value: Any) -> None:
    assert ADAPTER.parse(dspy.Signature(f"question -> answer: {kind}"), completion) == {"answer": value}


@pytest.mark.parametrize(("kind", "completion"), [("int", "many"), ("float", "x"), ("bool", "maybe"), ("int", "4.5")])
def test_an_answer_of_another_type_is_unparsable(kind: str, completion: str) -> None:
    with pytest.raises(AdapterParseError, match="'Answer:' found"):
        ADAPTER.parse(dspy.Signature(f"question -> answer: {kind}"), completion)


def test_several_outputs_are_told_apart_by_their_markers() -> None:
    completion = " Two and two\nmake four.\nAnswer: 4\n\nQuestion: next"

    assert ADAPTER.parse(REASONED, completion) == {"reasoning": "Two and two\nmake four.", "answer": 4}


@pytest.mark.parametrize("completion", ["4", "thinking\nanswer is 4", "thinking\nAnswer:", "Answer: 4"])
def test_a_missing_output_is_unparsable(completion: str) -> None:
    with pytest.raises(AdapterParseError):
        ADAPTER.parse(REASONED, completion)


@pytest.mark.parametrize(
    ("signature", "outputs"),
    [
        (SENTIMENT, {"sentiment": "Negative"}),
        (REASONED, {"reasoning": "Count.\nAgain.", "answer": 12}),
        (dspy.Signature("text -> tags: list[str], score: float, ok: bool"), {"tags": ["a"], "score": 0.5, "ok": True}),
    ],
)
def test_what_is_written_can_be_read_again(signature: Any, outputs: dict[str, Any]) -> None:
    completion = ADAPTER.format_assistant_message_content(signature, outputs)

    assert completion.startswith(" ")
    assert ADAPTER.parse(signature, completion) == outputs


def test_an_instruction_that_is_changed_in_place_reaches_the_prompt() -> None:
    signature = dspy.Signature("question -> answer", "First.")
    assert prompt(signature, {"question": "x"}).startswith("First.")
    signature.instructions = "Second."
    assert prompt(signature, {"question": "x"}).startswith("Second.")
