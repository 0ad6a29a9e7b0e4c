"""The plain format: `Field: value` lines for the completions API, which base and small models follow best.

    Decide whether the review is positive or negative.

    Review: A delight.
    Sentiment: positive

    Review: Two hours that I will not get back.
    Sentiment:

The model continues the last line; a blank line ends its answer.
"""

from __future__ import annotations

import re
import string
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, Literal, get_args, get_origin

import dspy
from dspy.adapters.utils import format_field_value, parse_value
from dspy.utils.exceptions import AdapterParseError

from tandem_trainer.lm.client import Mode
from tandem_trainer.program.recording import RecordingAdapter

#: Ends an answer: what follows it would be the next example.
END = "\n\n"
_BLANK_LINES = re.compile(r"\n\s*\n")
_PUNCTUATION = string.punctuation + string.whitespace + "“”‘’«»…"


@dataclass(frozen=True)
class _Field:
    name: str
    marker: str
    """`Review text:` for `review_text`."""
    info: Any


@dataclass(frozen=True)
class _Layout:
    """What the format needs to know of a signature."""

    instruction: str
    inputs: tuple[_Field, ...]
    outputs: tuple[_Field, ...]
    stop: tuple[str, ...]


def marker_of(name: str) -> str:
    """The line's beginning for a field: `review_text` becomes `Review text:`."""
    words = name.replace("_", " ").strip()
    return f"{words[:1].upper()}{words[1:]}:"


class PlainAdapter(RecordingAdapter, dspy.Adapter):  # type: ignore[misc]  # DSPy has no types
    """Renders one prompt (a single user message) and reads `Field: value` lines.

    Several outputs are told apart by their markers, in the signature's order. Since a blank line ends an answer, values
    of outputs hold none: those in demos are closed up.
    """

    mode: Mode = "completions"

    def stop_strings(self, signature: Any) -> tuple[str, ...]:
        """A blank line, and the marker that would begin another example."""
        return _layout(signature).stop

    def format(self, signature: Any, demos: Any, inputs: dict[str, Any]) -> list[dict[str, Any]]:
        """The prompt: the instruction, the demos, the inputs and the first output's marker."""
        layout = _layout(signature)
        blocks = [layout.instruction] if layout.instruction else []
        for demo in demos:
            outputs = _lines(layout.outputs, demo, closed_up=True)
            given = _lines(layout.inputs, demo)
            if given and outputs:
                blocks.append("\n".join(given + outputs))
        blocks.append(self.format_user_message_content(signature, inputs, main_request=True))
        return [{"role": "user", "content": END.join(blocks)}]

    def _call_preprocess(self, lm: Any, lm_kwargs: Any, signature: Any, inputs: Any) -> Any:
        # DSPy plans tools and other abilities of chat models here; a plain prompt has none.
        return signature

    def format_user_message_content(
        self, signature: Any, inputs: dict[str, Any], prefix: str = "", suffix: str = "", main_request: bool = False
    ) -> str:
        """The inputs' lines; with `main_request` also the first output's marker, which the completion continues."""
        layout = _layout(signature)
        lines = _lines(layout.inputs, inputs) + ([layout.outputs[0].marker] if main_request else [])
        return END.join(part for part in (prefix, "\n".join(lines), suffix) if part)

    def format_assistant_message_content(
        self, signature: Any, outputs: dict[str, Any], missing_field_message: str | None = None
    ) -> str:
        """The completion that would have given these outputs: it continues the first output's marker."""
        fields = _layout(signature).outputs
        known = {field.name: outputs.get(field.name, missing_field_message) for field in fields}
        return "\n".join(_lines(fields, known, closed_up=True)).removeprefix(fields[0].marker)

    def parse(self, signature: Any, completion: str) -> dict[str, Any]:
        """The outputs. Raises AdapterParseError for a missing field or a value of another type."""
        fields = _layout(signature).outputs
        rest = completion
        if rest.lstrip().startswith(fields[0].marker):
            rest = rest.lstrip()[len(fields[0].marker) :]
        rest = rest.strip().split(END, 1)[0] if len(fields) == 1 else rest.strip()
        outputs: dict[str, Any] = {}
        for field, following in zip(fields, [*fields[1:], None], strict=True):
            text = rest
            if following is not None:
                found = re.search(rf"(?:^|\n)[ \t]*{re.escape(following.marker)}", rest)
                if found is None:
                    raise _error(signature, completion, f"there is no line that begins with {following.marker!r}")
                text, rest = rest[: found.start()], rest[found.end() :].strip()
            else:
                text = text.split(END, 1)[0]
            outputs[field.name] = _value(signature, completion, field, text.strip())
        return outputs


def _value(signature: Any, completion: str, field: _Field, text: str) -> Any:
    annotation = field.info.annotation
    if not text:
        raise _error(signature, completion, f"{field.marker!r} has no value")
    if annotation is str:
        return text
    if get_origin(annotation) is Literal:
        choice = _choice(text, get_args(annotation))
        if choice is None:
            allowed = ", ".join(map(str, get_args(annotation)))
            raise _error(signature, completion, f"{field.marker!r} found {text[:80]!r}; allowed: {allowed}")
        return choice
    problem: ValueError | None = None
    for candidate in (text, text.split("\n", 1)[0].rstrip(" .,;:!")):
        try:
            return parse_value(candidate, annotation)
        except ValueError as error:
            problem = problem or error
    reason = str(problem).splitlines()[0]
    raise _error(signature, completion, f"{field.marker!r} found {text[:80]!r}: {reason}") from problem


def _choice(text: str, allowed: tuple[Any, ...]) -> Any:
    """The allowed value that `text`, or its first line, names; upper and lower case and punctuation do not matter."""
    if text in allowed:
        return text
    by_name = {str(value).strip(_PUNCTUATION).casefold(): value for value in reversed(allowed)}
    for candidate in (text, text.split("\n", 1)[0]):
        value = by_name.get(candidate.strip(_PUNCTUATION).casefold())
        if value is not None:
            return value
    return None


def _error(signature: Any, completion: str, message: str) -> AdapterParseError:
    return AdapterParseError(
        adapter_name="PlainAdapter", signature=signature, lm_response=completion, message=message, parsed_result=None
    )


def _lines(fields: tuple[_Field, ...], values: Any, *, closed_up: bool = False) -> list[str]:
    """`Marker: value` for every field that has a value."""
    lines = []
    for field in fields:
        value = values.get(field.name)
        if value is None:
            continue
        text = value if type(value) is str else format_field_value(field.info, value)
        text = text.strip()
        lines.append(f"{field.marker} {_BLANK_LINES.sub(chr(10), text) if closed_up else text}")
    return lines


def _layout(signature: Any) -> _Layout:
    # The instruction is the one part of a signature that can be changed in place.
    return _layout_of(signature, signature.__doc__)


@lru_cache(maxsize=256)
def _layout_of(signature: Any, _: str) -> _Layout:
    inputs = tuple(_Field(name, marker_of(name), info) for name, info in signature.input_fields.items())
    outputs = tuple(_Field(name, marker_of(name), info) for name, info in signature.output_fields.items())
    return _Layout(
        instruction=signature.instructions.strip(),
        inputs=inputs,
        outputs=outputs,
        stop=(END, *(f"\n{field.marker}" for field in inputs[:1])),
    )
