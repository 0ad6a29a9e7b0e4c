"""What the proposer is asked, and how its answers are read."""

from __future__ import annotations

import pytest

from tandem_trainer.prompt.mipro import wording


@pytest.mark.parametrize(
    "answer",
    [
        "Name the code of the item.",
        '"Name the code of the item."',
        "Instruction: Name the code of the item.",
        "**Improved instruction:** Name the code of the item.",
        "The better instruction:\n\nName the code of the item.",
        "Sure! Here is a better instruction for the step:\n\nName the code of the item.",
        "Here's the new instruction:\n\n```text\nName the code of the item.\n```",
        "```\nName the code of the item.\n```\nI hope that it helps.",
        "<think>They want it short.</think>\nInstruction: “Name the code of the item.”",
        "Name the code of the item.\n\n=== Examples ===\nitem: 3",
        "=== The better instruction ===\nName the code of the item.",
    ],
)
def test_only_the_instruction_is_read_from_an_answer(answer: str) -> None:
    assert wording.read_instruction(answer) == "Name the code of the item."


@pytest.mark.parametrize(
    "instruction", ['Answer "yes" or "no".', "Prompt the user.\nThen stop:\n- a\n- b", "'A' or 'B'"]
)
def test_an_instruction_with_quotes_and_lists_of_its_own_stays_as_it_is(instruction: str) -> None:
    assert wording.read_instruction(instruction) == instruction


@pytest.mark.parametrize("answer", ["", "  \n", '""', "```\n```", "<think>nothing</think>"])
def test_an_answer_without_an_instruction_is_empty(answer: str) -> None:
    assert wording.read_instruction(answer) == ""


def test_an_absurdly_long_instruction_is_cut_at_the_end_of_a_sentence() -> None:
    found = wording.read_instruction("Look at the item. " * 500)
    assert len(found) <= wording.MAX_INSTRUCTION and found.endswith("item.")


def test_instructions_that_differ_in_case_and_spaces_repeat_each_other() -> None:
    assert wording.normalized("Name  the\ncode.") == wording.normalized("name the code")
    assert wording.normalized("Name the code") != wording.normalized("Name the codes")


def test_parts_without_text_are_not_shown() -> None:
    text = wording.propose(
        signature="s: q -> a", seed="Answer.", data="", program="", role="", demos="", history="", tip=""
    )
    assert "The data" not in text and "Earlier" not in text
    assert "=== The step ===\ns: q -> a" in text and "=== The instruction now ===\nAnswer." in text
    assert text.endswith("=== The better instruction ===\n"), "a base model goes on from here"


def test_the_best_instruction_is_shown_last() -> None:
    assert wording.history_text({"good": 0.9, "bad": 0.1}) == (
        "Instruction: bad\nScore: 10\n\nInstruction: good\nScore: 90"
    )


def test_long_examples_are_cut_to_what_small_models_can_read() -> None:
    text = wording.rows_text([{"question": "x" * 10_000, "none": None}] * 100)
    assert len(text) <= wording.MAX_EXAMPLES + wording.MAX_VALUE + 200 and "none" not in text


@pytest.mark.parametrize(("text", "complete"), [("COMPLETE", True), ("**Complete.**", True), ("It is complete", False)])
def test_an_answer_that_there_is_nothing_more_is_known(text: str, complete: bool) -> None:
    assert wording.is_complete(text) == complete
