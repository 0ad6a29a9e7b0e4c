"""From traces to token rows, tokenized as the model server does it. No torch here.

One row per predictor call: the prompt, then the completion, then the end of the answer; only the last two are learnt.
Source: BetterTogether (arXiv 2407.10930), section 3: by default the prompt is the program's original one, whatever
prompt the trace was made with.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Any, Literal

from tandem_api.canonical import digest
from tandem_api.errors import ConfigurationError, DataError
from tandem_api.records import TraceRow

Mode = Literal["chat", "completions"]
_SENTINEL = "TANDEM COMPLETION"


@dataclass(frozen=True)
class Pair:
    """A call of a predictor: what it is to be asked, and what it is to answer."""

    example: str
    predictor: str
    messages: tuple[dict[str, Any], ...]
    completion: str
    """As the server returned it: a leading space belongs to it, a stop string does not."""


@dataclass(frozen=True)
class Row:
    """A tokenized pair."""

    example: str
    input_ids: tuple[int, ...]
    prompt_tokens: int
    """So many tokens at the front are the prompt, and not learnt."""


@dataclass(frozen=True)
class TrainingSet:
    """What a training run learns from, and what it is watched on."""

    train: tuple[Row, ...]
    validation: tuple[Row, ...]
    """Rows of other examples; empty if none are held out."""
    dropped: int
    """Rows that were too long."""

    @property
    def sha256(self) -> str:
        """Digest of all token rows and their order."""
        parts = (self.train, self.validation)
        return digest([[[row.input_ids, row.prompt_tokens] for row in part] for part in parts])

    @property
    def tokens(self) -> int:
        """Tokens of the training rows, the prompts' included."""
        return sum(len(row.input_ids) for row in self.train)

    @property
    def longest(self) -> int:
        """Tokens of the longest row."""
        return max(len(row.input_ids) for row in (*self.train, *self.validation))


def select_pairs(traces: Iterable[TraceRow], prompts: Literal["vanilla", "optimized"]) -> list[Pair]:
    """One pair per call, in the order of the traces. `optimized` takes the messages that made the trace.

    Raises DataError for a trace without the original prompts' rendering of each of its calls.
    """
    pairs = []
    for trace in traces:
        if prompts == "vanilla" and len(trace.vanilla) != len(trace.calls):
            raise DataError(
                f"the trace of example {trace.example!r}, sample {trace.sample}, has {len(trace.calls)} calls but "
                f"{len(trace.vanilla)} vanilla prompts; make the traces again, or train on prompts: optimized"
            )
        for position, call in enumerate(trace.calls):
            messages = trace.vanilla[position] if prompts == "vanilla" else call.messages
            pairs.append(Pair(trace.example, call.predictor, messages, call.completion))
    return pairs


class Encoder:
    """Tokenizes pairs exactly as the model server tokenizes the prompt, and ends them as it ends an answer.

    `stop_ids`: the tokens at which the server ends an answer by itself (the model's generation configuration).
    """

    def __init__(self, tokenizer: Any, mode: Mode, stop_ids: Sequence[int] = ()) -> None:
        self._tokenizer = tokenizer
        self._mode = mode
        eos = tokenizer.eos_token_id
        self._stop_ids = tuple(dict.fromkeys([*([] if eos is None else [eos]), *stop_ids]))
        if not self._stop_ids:
            raise ConfigurationError(
                "model: its tokenizer has no eos_token and its generation_config.json no eos_token_id, so that no "
                "answer could ever end; add one of them to the model's files"
            )
        if mode == "chat" and not tokenizer.chat_template:
            raise ConfigurationError(
                "program: the adapters chat and json need a model with a chat template, which this one lacks; "
                "use adapter: plain, or a model tuned for chat"
            )

    def encode(self, pair: Pair) -> Row:
        """The pair's tokens. The prompt's tokens are the ones that the server will see, whatever follows them."""
        if self._mode == "chat":
            text = self._render(pair.messages, add_generation_prompt=True)
            end = self._end_of_turn(pair.messages)
        else:
            text = "".join(str(message["content"]) for message in pair.messages)
            end = self._stop_ids[:1]
        # vLLM adds special tokens to a plain prompt; a chat template writes its own.
        special = self._mode == "completions"
        prompt = self._tokens(text, special)
        whole = self._tokens(text + pair.completion, special)
        is_prefix = whole[: len(prompt)] == prompt
        # Else the prompt's last token would merge with the completion's beginning, which the server never sees.
        completion = whole[len(prompt) :] if is_prefix else self._tokens(pair.completion, False)
        return Row(pair.example, (*prompt, *completion, *end), len(prompt))

    def _tokens(self, text: str, special: bool) -> tuple[int, ...]:
        return tuple(self._tokenizer(text, add_special_tokens=special)["input_ids"])

    def _render(self, messages: Sequence[dict[str, Any]], *, add_generation_prompt: bool) -> str:
        import jinja2

        try:
            text: str = self._tokenizer.apply_chat_template(
                list(messages), add_generation_prompt=add_generation_prompt, tokenize=False
            )
        except (jinja2.TemplateError, TypeError, ValueError) as error:
            raise ConfigurationError(
                f"model: its chat template refuses the program's messages: {error}; use adapter: plain or another model"
            ) from error
        return text

    def _end_of_turn(self, messages: Sequence[dict[str, Any]]) -> tuple[int, ...]:
        """What the template writes after an answer, up to the token at which the server ends it."""
        answered = [*messages, {"role": "assistant", "content": _SENTINEL}]
        _, found, after = self._render(answered, add_generation_prompt=False).rpartition(_SENTINEL)
        tokens = self._tokens(after, False) if found else ()
        for position, token in enumerate(tokens):
            if token in self._stop_ids:
                return tokens[: position + 1]
        return self._stop_ids[:1]


def build_training_set(
    pairs: Sequence[Pair], encoder: Encoder, *, max_length: int, validation_fraction: str, seed: int
) -> TrainingSet:
    """Tokenize, drop what is too long, and hold out a part of the examples.

    Raises ConfigurationError when no row is short enough.
    """
    rows = [encoder.encode(pair) for pair in pairs]
    kept = [row for row in rows if len(row.input_ids) <= max_length]
    if not kept:
        shortest = min((len(row.input_ids) for row in rows), default=0)
        raise ConfigurationError(
            f"weightOptimizer.maxLength: all {len(rows)} training rows have more than {max_length} tokens, which is "
            f"the limit here (the shortest has {shortest}); raise maxLength, or shorten the prompts"
        )
    held_out = hold_out([row.example for row in kept], validation_fraction, seed)
    return TrainingSet(
        train=tuple(row for row in kept if row.example not in held_out),
        validation=tuple(row for row in kept if row.example in held_out),
        dropped=len(rows) - len(kept),
    )


def hold_out(examples: Iterable[str], fraction: str, seed: int) -> frozenset[str]:
    """A seeded sample of the examples: at least one if `fraction` is above 0, and never all.

    Whether an example is drawn depends on its id and the seed, not on the order or number of its rows.
    """
    shuffled = sorted(set(examples), key=lambda example: digest([seed, example]))
    if float(fraction) == 0 or len(shuffled) < 2:
        return frozenset()
    wanted = round(len(shuffled) * float(fraction))
    return frozenset(shuffled[: min(max(wanted, 1), len(shuffled) - 1)])
