"""The strategy grammar: what it unrolls to, what it refuses, and that it says where."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tandem_api.strategy import MAX_STEPS, parse_strategy

STEP = st.sampled_from("pw").map(lambda kind: (kind, (kind,)))
SPACE = st.text(" \t\n", max_size=2)


@st.composite
def sequence(draw, items):
    """Items joined by arrows: (text, the steps it stands for)."""
    chosen = draw(st.lists(items, min_size=1, max_size=4))
    text = draw(SPACE).join([draw(SPACE) + item[0] for item in chosen[:1]])
    for item in chosen[1:]:
        text += f"{draw(SPACE)}->{draw(SPACE)}{item[0]}"
    return text + draw(SPACE), sum((item[1] for item in chosen), ())


@st.composite
def group(draw, items):
    """A sequence in parentheses, repeated or not."""
    text, steps = draw(sequence(items))
    count = draw(st.none() | st.integers(1, 5))
    repeat = "" if count is None else f"{draw(SPACE)}{{{draw(SPACE)}{count}{draw(SPACE)}}}"
    return f"({text}){repeat}", steps * (count or 1)


@given(sequence(st.recursive(STEP, group, max_leaves=6)))
def test_a_strategy_unrolls_to_the_steps_it_was_built_from(built):
    text, steps = built
    if len(steps) <= MAX_STEPS:
        assert parse_strategy(text) == steps
    else:
        with pytest.raises(ValueError, match=f"{MAX_STEPS}"):
            parse_strategy(text)


def test_vanilla_has_no_steps_and_goes_with_nothing_else():
    assert parse_strategy(" vanilla ") == ()
    for text in ("vanilla -> p", "p -> vanilla", "(vanilla){2}"):
        with pytest.raises(ValueError, match="vanilla stands alone, as the whole text; allowed: vanilla, or p"):
            parse_strategy(text)


@given(st.text("pw->(){}123 x", max_size=24))
def test_any_text_is_either_a_strategy_or_refused_with_what_is_allowed(text):
    try:
        steps = parse_strategy(text)
    except ValueError as error:
        assert "allowed" in str(error)
    else:
        assert 1 <= len(steps) <= MAX_STEPS
        assert parse_strategy(" -> ".join(steps)) == steps


@given(st.lists(st.sampled_from("pw"), min_size=1, max_size=MAX_STEPS))
def test_the_canonical_text_of_steps_parses_back_to_them(steps):
    assert parse_strategy(" -> ".join(steps)) == tuple(steps)


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "the strategy is empty"),
        (" \n", "the strategy is empty"),
        ("p -> ", "ends where 'p', 'w' or '\\(' is expected"),
        ("-> p", "found '->' at character 1"),
        ("p w", "found 'w' at character 3 where '->' or the end"),
        ("p -> x", "unexpected 'x' at character 6"),
        ("p -> pw", "unexpected 'pw' at character 6"),
        ("p - w", "unexpected '-' at character 3"),
        ("(p -> w", "ends where '\\)' is expected"),
        ("p)", "found '\\)' at character 2"),
        ("()", "found '\\)' at character 2"),
        ("(p){}", "found '}' at character 5 where a count"),
        ("(p){2", "ends where '}' is expected"),
        ("(p){0}", "count 0 at character 5 is out of range"),
        ("(p){33}", "count 33 at character 5 is out of range"),
        ("(p){" + "9" * 600 + "}", "count 99999999 at character 5 is out of range"),
        ("p{2}", "found '{' at character 2"),
        ("((p){32}){32}", "a group of 32 steps 32 times"),
        (" -> ".join("p" * 33), "has 33 steps; at most 32 are allowed"),
        ("(" * 10 + "p" + ")" * 10, "nested more than 8 deep"),
    ],
)
def test_a_malformed_strategy_is_refused_with_the_place_and_the_reason(text, message):
    with pytest.raises(ValueError, match=message):
        parse_strategy(text)
