"""What an API server's refusals and a network's faults mean to a user, and what to do about them. Pure."""

from __future__ import annotations

import json
from dataclasses import dataclass
from typing import Any

from tandem_api.errors import ConfigurationError, TandemError

RUNS = "optimizationruns"
#: Answers that a later attempt may not meet again.
_PASSING = frozenset({429, 500, 502, 503, 504})


class UnreachableError(TandemError):
    """The cluster does not answer, or answers with a passing fault."""

    code = "ClusterUnreachable"


class NoSuchObjectError(ConfigurationError):
    """The run or pod is not there, in a namespace that may have others."""

    code = "NotFound"


class AlreadyExistsError(ConfigurationError):
    """A run of that name is there."""

    code = "AlreadyExists"


class NoLogError(TandemError):
    """The container has no log: it has not started, or never did."""

    code = "NoLog"


class ExpiredError(TandemError):
    """A watch's place in history is forgotten: begin anew from the present."""

    code = "Expired"


@dataclass(frozen=True)
class Request:
    """What was asked of the API server."""

    server: str
    verb: str
    """As in RBAC: get, list, watch, create, patch, delete."""
    resource: str
    """`optimizationruns`, `pods` or `pods/log`."""
    namespace: str | None
    """None: all namespaces."""
    name: str = ""

    @property
    def where(self) -> str:
        """For messages."""
        return f"in namespace {self.namespace}" if self.namespace is not None else "in all namespaces"


def explain(request: Request, error: Exception) -> TandemError:
    """The error to raise instead of `error`, which the Kubernetes client or urllib3 raised."""
    status = getattr(error, "status", None)
    if not isinstance(status, int):
        return UnreachableError(_unreachable(request, _cause(error)))
    if status == 0:
        return ConfigurationError(_unreachable(request, _reason(error)))
    answer = _answer(error)
    message = str(answer.get("message") or _reason(error))
    match status:
        case 401:
            return ConfigurationError(
                f"{request.server} does not accept your credentials: log in to the cluster again, or choose another "
                "account with --context or --kubeconfig"
            )
        case 403:
            return ConfigurationError(_forbidden(request, message))
        case 404:
            return _missing(request, answer, message)
        case 409 if request.verb == "create":
            return AlreadyExistsError(f"a run {request.name!r} exists already {request.where}")
        case 410:
            return ExpiredError(message)
        case 400 if request.resource == "pods/log":
            return NoLogError(f"{request.name} has no log: {message}")
        case 400 | 422:
            return ConfigurationError(
                "\n".join([f"the API server refuses to {request.verb} {_what(request)}:", *_causes(answer, message)])
            )
        case _ if status in _PASSING:
            return UnreachableError(f"{request.server} answers {status}: {message}; try again")
        case _:
            return TandemError(f"{request.server} answers {status} to {request.verb} {request.resource}: {message}")


def _what(request: Request) -> str:
    return request.name or request.resource


def _unreachable(request: Request, cause: str) -> str:
    return (
        f"cannot connect to {request.server}: {cause}\n"
        "Is the cluster up and reachable from here? --context and --kubeconfig choose another one."
    )


def _forbidden(request: Request, message: str) -> str:
    if " cannot " not in message:  # a quota, an admission webhook, a namespace that is going away
        return f"the cluster does not allow to {request.verb} {_what(request)}: {message}"
    group = f"{RUNS}.tandem.dev" if request.resource == RUNS else request.resource
    if request.resource != RUNS:
        role = "view, which includes pods and their logs"
    elif request.verb in ("get", "list", "watch"):
        role = "tandem-viewer or tandem-editor"
    else:
        role = "tandem-editor"
    return (
        f"you lack the right to {request.verb} {group} {request.where}; ask for the ClusterRole {role}\n"
        f"  the API server says: {message}"
    )


def _missing(request: Request, answer: dict[str, Any], message: str) -> TandemError:
    """The object, the namespace, or the whole type of resource."""
    details = answer.get("details") or {}
    if details.get("kind") == "namespaces" or message.startswith("namespaces "):
        return ConfigurationError(
            f"there is no namespace {request.namespace!r}: kubectl create namespace {request.namespace}, "
            "or choose another one with -n"
        )
    if request.name and details.get("name") == request.name:
        return NoSuchObjectError(f"there is no {_singular(request.resource)} {request.name!r} {request.where}")
    if request.resource != RUNS:
        return TandemError(f"{request.server} answers 404 to {request.verb} {request.resource}: {message}")
    return ConfigurationError(
        f"the cluster {request.server} does not know OptimizationRuns: the CRD is not installed: "
        "helm install tandem charts/tandem"
    )


def _singular(resource: str) -> str:
    return {RUNS: "run"}.get(resource, resource.partition("/")[0].removesuffix("s"))


def _causes(answer: dict[str, Any], message: str) -> list[str]:
    causes = (answer.get("details") or {}).get("causes") or []
    told = [f"  {cause.get('field') or '(manifest)'}: {cause.get('message')}" for cause in causes]
    return told or [f"  {line}" for line in message.splitlines()]


def _answer(error: Exception) -> dict[str, Any]:
    """The API server's Status object; empty where something else answered."""
    try:
        answer = json.loads(getattr(error, "body", None) or "")
    except ValueError:
        return {}
    return answer if isinstance(answer, dict) else {}


def _reason(error: Exception) -> str:
    return str(getattr(error, "reason", None) or error).replace("\n", ": ")


def _cause(error: Exception) -> str:
    """The innermost cause: urllib3 wraps what went wrong in what it was doing."""
    inner = getattr(error, "reason", None)
    text = str(inner if isinstance(inner, Exception) else error)
    # "HTTPConnection(host=..., port=...): Failed to establish a new connection: [Errno 111] Connection refused"
    return text.rpartition(": Failed to establish a new connection: ")[2].rpartition("]")[2].strip() or text
