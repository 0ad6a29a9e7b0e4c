"""The program for a model that is too small to keep to a format which it has not seen: with one worked example each."""

from __future__ import annotations

from typing import Any

import dspy
from multihop import MultiHop

_QUESTION = "In which town was the author of The Tin Whistle born?"
_BOOK = "The Tin Whistle | The Tin Whistle is a novel by Ada Norrby."
_AUTHOR = "Ada Norrby | Ada Norrby was a poet, born in Kallvik in 1871."
#: By predictor; neither the novel nor its author is in the corpus.
EXAMPLES: dict[str, dict[str, Any]] = {
    "generate_query[0].predict": {
        "context": [],
        "reasoning": "I need to know who wrote The Tin Whistle.",
        "query": "author of The Tin Whistle",
    },
    "generate_query[1].predict": {
        "context": [_BOOK],
        "reasoning": "Ada Norrby wrote The Tin Whistle. I need to know where Ada Norrby was born.",
        "query": "Ada Norrby born in",
    },
    "generate_answer.predict": {
        "context": [_BOOK, _AUTHOR],
        "reasoning": "Ada Norrby wrote The Tin Whistle. Ada Norrby was born in Kallvik.",
        "answer": "Kallvik",
    },
}


def build(corpus: str, passages: int = 3) -> dspy.Module:
    """`MultiHop` whose original prompts show the worked example."""
    program = MultiHop(corpus, hops=2, passages=passages)
    for name, predictor in program.named_predictors():
        predictor.demos = [{"question": _QUESTION, **EXAMPLES[name]}]
    return program
