"""Differences of texts: nothing is lost, and a reader can follow them."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tandem_api.records import PredictorPrompt, PromptSet
from tandem_operator.ui import diff
from tandem_operator.ui.diff import Part, compare
from tandem_operator.ui.views import prompt_diff

TEXTS = st.text(st.sampled_from("ab .,\n<é"), max_size=60)


def side(parts: tuple[Part, ...], kind: str) -> str:
    return "".join(part.text for part in parts if part.kind in ("same", kind))


@given(TEXTS, TEXTS)
def test_both_texts_can_be_put_together_again(old: str, new: str) -> None:
    parts = compare(old, new)
    assert side(parts, "removed") == old and side(parts, "added") == new


def test_equal_texts_have_one_part() -> None:
    assert compare("as it was", "as it was") == (Part("same", "as it was"),)
    assert compare("", "") == ()


def test_a_change_within_a_sentence_is_told_by_words() -> None:
    assert compare("Answer with one word only.", "Answer with two words only.") == (
        Part("same", "Answer with "), Part("removed", "one word"), Part("added", "two words"), Part("same", " only."),
    )  # fmt: skip


def test_long_texts_are_compared_by_lines(monkeypatch) -> None:
    monkeypatch.setattr(diff, "MAX_WORDS", 5)
    assert compare("one a\ntwo b\n", "one a\ntwo c\n")[1:] == (Part("removed", "two b\n"), Part("added", "two c\n"))


def test_demos_are_told_apart_whatever_they_hold() -> None:
    kept, gone, new = {"a": [1, {"b": None}]}, {"a": "x"}, {"a": "y"}
    old = PromptSet(predictors={"p": PredictorPrompt(instruction="", demos=(kept, gone)),
                                "q": PredictorPrompt(instruction="only old")})  # fmt: skip
    changed = PromptSet(predictors={"p": PredictorPrompt(instruction="", demos=(new, kept))})
    first, second = prompt_diff(old, changed)
    assert first.demos == (("added", new), ("same", kept), ("removed", gone))
    assert second.instruction == (Part("removed", "only old"),)
