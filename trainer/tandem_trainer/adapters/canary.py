"""The canary of an adapter: how likely a few known completions are with the adapter, and with the base model alone.

The trainer measures it and puts it into the adapter's folder. Whoever serves the adapter is asked for the same figures,
so that a server is found out that answers under the adapter's name with something else: the base model's weights,
another adapter's, damaged ones. Texts would not do: at temperature 0, 17 of 100 answers differed between one call at a
time and 32 at once. Log-probabilities stay within the noise of the arithmetic.

No torch here: `tandem_trainer.lora.canary` measures.
"""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping, Sequence
from pathlib import Path
from statistics import fmean
from typing import Annotated, Any, Final, Literal

from pydantic import Field, ValidationError, model_validator

from tandem_api.contract import Message
from tandem_api.store import ObjectStore
from tandem_api.store.s3 import folder_files
from tandem_api.v1alpha1.status import Artifact

#: In the adapter's folder. Adapters without it, older ones and other people's, are taken at their name.
CANARY_FILE: Final = "canary.json"
#: Rows with a smaller difference between adapter and base model, in nats per token, are no canary. The arithmetic's
#: noise is some hundredths: other devices, 16 bits instead of 32, adapter merged into the weights or not.
MIN_NATS: Final = 0.5
#: An answer is the adapter's if it is no farther from it than this part of the way to the base model.
TOLERANCE: Final = 0.5
#: Blocks that a wrong adapter has computed must not be found by later calls: the cache knows adapters by their names.
_CACHE_SALT: Final = "tandem-canary"


class CanaryRow(Message):
    """A prompt and a completion, and the log-probability of each of the completion's tokens, in nats.

    Of each token, for the mean of a few may well be the same for other weights.
    """

    tokens: tuple[int, ...]
    prompt_tokens: Annotated[int, Field(ge=1)]
    """So many tokens at the front are the prompt."""
    base: Annotated[tuple[float, ...], Field(min_length=1)]
    adapter: tuple[float, ...]

    @model_validator(mode="after")
    def _each_token_has_both(self) -> CanaryRow:
        if not len(self.base) == len(self.adapter) == len(self.tokens) - self.prompt_tokens:
            raise ValueError(f"{len(self.base)} and {len(self.adapter)} log-probabilities; wanted: one for each token")
        return self

    @property
    def nats(self) -> float:
        """How far the adapter is from the base model, per token."""
        return distance(self.adapter, self.base)


class Canary(Message):
    """The content of canary.json."""

    version: Literal[1] = 1
    rows: tuple[CanaryRow, ...] = ()
    reason: str = ""
    """Why there are no rows, and so nothing to tell the adapter by."""


class CanaryUnansweredError(Exception):
    """The server cannot be asked in this way; that says nothing about its weights."""


#: Asks a server's completions API; the body in, the answer's JSON out.
Complete = Callable[[Mapping[str, Any]], Awaitable[Mapping[str, Any]]]


def parse(content: bytes) -> Canary:
    """The canary in a file. One that this release cannot read is none, for it says nothing about the adapter."""
    try:
        return Canary.model_validate_json(content)
    except ValidationError as error:
        return Canary(reason=f"{CANARY_FILE} cannot be read: {error.errors()[0]['msg']}")


def read_canary(folder: Path) -> Canary:
    """The canary of the adapter that lies in `folder`."""
    try:
        return parse((folder / CANARY_FILE).read_bytes())
    except FileNotFoundError:
        return _ABSENT


def fetch_canaries(store: ObjectStore, adapter: Artifact) -> tuple[Canary, ...]:
    """The canary of an adapter in the store, or of each adapter of a folder of several; verified.

    Raises DataError when the folder is missing or damaged, and the store's errors.
    """
    sums = folder_files(store, adapter)
    folders = [""] if adapter.adapters is None else [f"{number}/" for number in range(adapter.adapters)]
    return tuple(
        parse(store.fetch(Artifact(uri=f"{adapter.uri}{name}", sha256=sums[name]))) if name in sums else _ABSENT
        for name in (f"{folder}{CANARY_FILE}" for folder in folders)
    )


async def find_fault(canary: Canary, name: str, complete: Complete) -> str | None:
    """Ask a server what it makes of the canary under the adapter's name.

    None: it has the adapter, or the canary has no rows. Raises what `complete` raises, and CanaryUnansweredError.
    """
    measured = [logprobs(row, await complete(question(name, row))) for row in canary.rows]
    return judge(canary, name, measured)


def judge(canary: Canary, name: str, measured: Sequence[Sequence[float]]) -> str | None:
    """What is wrong with a server that gives the rows' tokens these log-probabilities; None: nothing."""
    if not canary.rows:
        return None
    rows = list(zip(canary.rows, measured, strict=True))
    allowed = TOLERANCE * fmean(row.nats for row, _ in rows)
    from_adapter = fmean(distance(found, row.adapter) for row, found in rows)
    from_base = fmean(distance(found, row.base) for row, found in rows)
    if from_adapter <= allowed:
        return None
    return (
        f"the server answers as {name!r} with {'the base model' if from_base <= allowed else 'other weights'} (canary: "
        f"known completions are {from_adapter:.2f} nats per token away from the adapter, at most {allowed:.2f} are "
        f"allowed, and {from_base:.2f} from the base model)"
    )


def distance(one: Sequence[float], other: Sequence[float]) -> float:
    """How far log-probabilities of the same tokens are apart, on average."""
    return fmean(abs(a - b) for a, b in zip(one, other, strict=True))


def question(name: str, row: CanaryRow) -> dict[str, Any]:
    """The body of the call that makes a server score the row's tokens."""
    return {
        "model": name,
        "prompt": list(row.tokens),
        "max_tokens": 1,
        "temperature": 0,
        "prompt_logprobs": 1,
        "cache_salt": _CACHE_SALT,
    }


def logprobs(row: CanaryRow, answer: Mapping[str, Any]) -> list[float]:
    """Of the completion's tokens, out of vLLM's answer. Raises CanaryUnansweredError if it does not tell."""
    try:
        told = answer["choices"][0]["prompt_logprobs"]
        pairs = list(zip(row.tokens, told, strict=True))
        return [float(at[str(token)]["logprob"]) for token, at in pairs[row.prompt_tokens :]]
    except (LookupError, TypeError, ValueError) as error:
        raise CanaryUnansweredError("its answers hold no prompt_logprobs") from error


_ABSENT: Final = Canary(reason=f"there is no {CANARY_FILE}")
