"""What can go wrong with a call, and what each response of the server means."""

from __future__ import annotations

import aiohttp
import orjson

from tandem_api.errors import ServingError, TandemError

#: Foreign text in an error message is cut to this many characters.
MAX_DETAIL = 400


class CallFailedError(TandemError):
    """The server works, but not for this call (a prompt that is too long): the example's failure, never retried."""

    code = "CallFailed"


class PromptTooLongError(CallFailedError):
    """The prompt and the wanted completion do not fit into the model's context."""

    code = "PromptTooLong"


class BudgetExhausted(TandemError):  # noqa: N818 - not a fault: the signal that a stage ends with what it has
    """The token budget is used up; raised before the next call is made."""

    code = "BudgetExhausted"


class Unavailable(Exception):  # noqa: N818 - never leaves this package
    """No answer this time; another try may get one."""

    def __init__(self, detail: str, retry_after: float = 0.0) -> None:
        super().__init__(detail)
        self.retry_after = retry_after


class Suspect(Unavailable):
    """No answer, and the call itself may be the reason: a 500, a timeout, a garbled body."""


class ModelMissing(Unavailable):
    """The server answers, but not for the wanted model. A replica that restarts may lack its adapter for a while."""


def unavailable(error: BaseException) -> Unavailable:
    """The exception for a request that got no response."""
    is_slow = isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError)
    return (Suspect if is_slow else Unavailable)(describe(error))


def refusal(status: int, data: bytes, retry_after: str | None) -> Exception:
    """The exception for a response with a status other than 200."""
    message, is_vllm = _message(data)
    detail = f"HTTP {status}: {message}"
    if status in (401, 403):
        return ServingError(f"the model server refuses our requests: {detail}; check its API key and network policy")
    if status == 404 and is_vllm:
        return ModelMissing(detail)
    if status in (500, 408):
        return Suspect(detail)
    if status > 500 or status in (404, 409, 425, 429) or status < 400:
        return Unavailable(detail, _seconds(retry_after))
    if "context length" in message or "max_model_len" in message or "too long" in message:
        return PromptTooLongError(detail)
    return CallFailedError(detail)


def _message(data: bytes) -> tuple[str, bool]:
    """The error's message, and whether it has the shape of an OpenAI-compatible server's."""
    try:
        answer = orjson.loads(data)
    except ValueError:
        return cut(data), False
    error = answer.get("error", answer) if isinstance(answer, dict) else answer
    if isinstance(error, dict) and "message" in error:
        return str(error["message"])[:MAX_DETAIL], True
    return cut(data), False


def _seconds(retry_after: str | None) -> float:
    """Retry-After as seconds; the date form is rare enough to be ignored."""
    try:
        return max(0.0, float(retry_after or 0))
    except ValueError:
        return 0.0


def cut(data: bytes) -> str:
    return data[:MAX_DETAIL].decode(errors="replace")


def describe(error: BaseException) -> str:
    if isinstance(error, TimeoutError) and not isinstance(error, aiohttp.ConnectionTimeoutError):
        return "no answer in time (evaluation.requestTimeoutSeconds)"
    return f"{type(error).__name__}: {error}"[:MAX_DETAIL]
