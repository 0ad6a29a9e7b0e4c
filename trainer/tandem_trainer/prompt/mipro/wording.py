"""What the proposer is asked, and how its answers are read. Pure.

Every question is one user message of titled parts that ends where the answer begins, so that a base model behind a
completions API goes on with it, and a chat model answers it. It is kept short: small models write the instructions.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from typing import Any

from tandem_trainer.prompt.demos import Demo, PredictorFields

#: Where a base model that goes on with a part of its own is cut off.
STOP = "\n=== "
#: One field's value is cut to this many characters, a batch of examples to that many.
MAX_VALUE, MAX_EXAMPLES = 400, 6000
#: Code of a program is cut to this many characters.
MAX_CODE = 6000
#: A longer instruction is cut at the end of a sentence.
MAX_INSTRUCTION = 1500
#: Summaries are cut to this many characters.
MAX_SUMMARY = 1500

#: The tips of the paper (appendix), in our words.
TIPS: Mapping[str, str] = {
    "none": "",
    "creative": "Feel free to be creative; try an approach that others would not think of.",
    "simple": "Keep it short, clear and simple.",
    "description": "Be detailed: describe the task and what a good answer is like.",
    "high-stakes": "Put the task into a situation where much depends on the right answer.",
    "persona": "Begin by telling the model who it is: an expert in this very task.",
}


def observe(examples: str, before: str) -> str:
    """Asks what there is to say of a batch of the data set, beyond what was said `before`."""
    parts = {"Examples of a data set": examples, "Observations so far": before}
    question = (
        "What do these examples show of the data set: topics, form and style of inputs and outputs, the task? "
        + ("Write only what is new. If nothing is, write COMPLETE." if before else "Write a few short observations.")
    )
    return _message(parts, question, "Observations")


def condense(observations: str) -> str:
    """Asks for the data set's summary."""
    return _message({"Observations on a data set": observations}, "Sum them up in 2 or 3 sentences.", "Summary")


def describe_program(code: str, signatures: str) -> str:
    """Asks what the program does."""
    parts = {"Code of a program that calls a language model": code, "Its steps": signatures}
    return _message(parts, "What task does the program solve, and how? Answer in 2 or 3 sentences.", "Description")


def describe_role(predictor: str, signature: str, program: str, code: str) -> str:
    """Asks what part of the work one step does."""
    parts = {
        "Code of a program that calls a language model": code,
        "What it does": program,
        "One of its steps": signature,
    }
    return _message(parts, f"What does the step {predictor!r} do for the program? Answer in 1 or 2 sentences.", "Role")


def propose(
    *, signature: str, seed: str, data: str, program: str, role: str, demos: str, history: str, tip: str
) -> str:
    """Asks for an instruction. Parts that are empty are left out; only the signature and the seed are always there."""
    parts = {
        "The data": data,
        "The program": program,
        "The step": signature,
        "What the step does": role,
        "Examples of the step": demos,
        "Earlier instructions and their scores (100 is best)": history,
        "The instruction now": seed,
    }
    question = (
        "A language model does this step. Write a better instruction for it: what it must do with the inputs, and what "
        f"the outputs must be like. {tip + ' ' if tip else ''}Write the instruction and nothing else."
    )
    return _message(parts, question, "The better instruction")


def _message(parts: Mapping[str, str], question: str, answer: str) -> str:
    blocks = [f"=== {title} ===\n{text.strip()}" for title, text in parts.items() if text.strip()]
    return "\n\n".join([*blocks, f"=== Task ===\n{question}", f"=== {answer} ===\n"])


def signature_text(name: str, fields: PredictorFields) -> str:
    """A predictor in one line, as in "answer: question, passages -> reasoning, answer"."""
    return f"{name}: {', '.join(fields.inputs)} -> {', '.join(fields.outputs)}"


def rows_text(rows: Sequence[Mapping[str, Any] | Demo]) -> str:
    """Examples or demos, one under another; cut to what small models can read."""
    texts: list[str] = []
    left = MAX_EXAMPLES
    for row in rows:
        text = "\n".join(f"{name}: {_cut(value)}" for name, value in row.items() if value is not None)
        left -= len(text)
        if left < 0 and texts:
            break
        texts.append(text)
    return "\n\n".join(texts)


def history_text(scored: Mapping[str, float]) -> str:
    """Instructions with their scores in [0, 1], the best last, as in OPRO (arXiv 2309.03409)."""
    ascending = sorted(scored.items(), key=lambda item: item[1])
    return "\n\n".join(f"Instruction: {text}\nScore: {100 * score:.0f}" for text, score in ascending)


def _cut(value: Any) -> str:
    text = " ".join(str(value).split())
    return text if len(text) <= MAX_VALUE else text[:MAX_VALUE] + "..."


def read_summary(text: str) -> str:
    """A summary as it was written, without what surrounds it."""
    return _without_frame(text)[:MAX_SUMMARY].strip()


def is_complete(text: str) -> bool:
    """Whether an answer says that there is nothing more to observe."""
    return text.strip(" \n\t*_\"'`.#-").upper().startswith("COMPLETE")


def read_instruction(text: str) -> str:
    """The instruction in an answer; empty when there is none."""
    found = _without_frame(text)
    if len(found) > MAX_INSTRUCTION:
        head = found[:MAX_INSTRUCTION]
        end = max(head.rfind(mark) for mark in (". ", ".\n", "! ", "!\n", "? ", "?\n", "\n"))
        found = head[: end + 1] if end > 0 else head
    return found.strip()


def normalized(instruction: str) -> str:
    """What is left of an instruction when case, spaces and the last mark do not count: equal ones repeat each other."""
    return " ".join(instruction.lower().split()).rstrip(".!: ")


_THOUGHTS = re.compile(r"^.*</think(?:ing)?>", re.DOTALL | re.IGNORECASE)
_FENCED = re.compile(r"```[a-z]*\n(.*?)(?:\n?```|\Z)", re.DOTALL | re.IGNORECASE)
_PREAMBLE = re.compile(
    r"^(?:sure|certainly|of course|okay|ok|here(?:'s| is| are)|below)\b[^\n]{0,200}:\s*\n+", re.IGNORECASE
)
_LABEL = re.compile(
    r"^[#*=\s]*(?:(?:the |a |my )?(?:better |new |improved |proposed |revised |final )*"
    r"(?:instructions?|prompt|answer|summary|description|observations|role)[*\s]*(?::|=+|\n))[*=\s]*",
    re.IGNORECASE,
)
_QUOTES = {'"': '"', "'": "'", "“": "”", "«": "»", "`": "`"}


def _without_frame(text: str) -> str:
    """Without the thoughts, pleasantries, labels, code fences and quotes that models put around what they write."""
    text = _THOUGHTS.sub("", text).split(STOP)[0].strip()
    before = None
    while text != before:
        before = text
        text = _LABEL.sub("", _PREAMBLE.sub("", text, count=1), count=1).strip()
        if fenced := _FENCED.match(text):
            text = fenced[1].strip()
        if len(text) > 1 and _QUOTES.get(text[0]) == text[-1] and text[0] not in text[1:-1]:
            text = text[1:-1].strip()
    return text
