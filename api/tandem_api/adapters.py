"""Between the operator and the adapter sidecar of a serving pod: which adapters are wanted, and where they stand.

The operator writes `DesiredAdapters` into a ConfigMap that is mounted beside vLLM; the sidecar answers `AdaptersReport`
at GET /status.
"""

from __future__ import annotations

from collections import Counter
from typing import Annotated, Literal

from pydantic import Field, model_validator

from tandem_api.canonical import canonical_json, sha256_hex
from tandem_api.contract import Message
from tandem_api.v1alpha1.base import Sha256
from tandem_api.v1alpha1.status import MAX_MESSAGE, Artifact

#: The sidecar's: the file with the adapters that are wanted, and the folder that it shares with vLLM.
ENV_DESIRED_ADAPTERS = "TANDEM_DESIRED_ADAPTERS"
ENV_ADAPTERS_DIR = "TANDEM_ADAPTERS_DIR"
#: The key of `DesiredAdapters` in its ConfigMap.
DESIRED_KEY = "adapters.json"
#: vLLM holds so many adapters in memory; registered ones beyond them it would have to read again from disk.
MAX_ADAPTERS = 8

#: In a folder of several adapters: the file with `PredictorAdapters`.
PREDICTORS = "predictors.json"


def served_adapter(run: str) -> str:
    """The name under which the result of a run is served outside of Tandem; adapters of several predictors have a
    number each behind it (`contract.served_names`)."""
    return f"{run}-adapter"


#: No comma: vLLM's metrics put several names into one text.
AdapterName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9._-]*$", max_length=253)]


class DesiredAdapter(Message):
    """An adapter that every replica is to serve."""

    name: AdapterName
    """The name that calls use; one name, one content, for ever."""
    uri: Annotated[str, Field(pattern=r"^s3://[^/]+/(.+/)?$", max_length=1024)]
    """The folder that holds it, ending in a slash."""
    sha256: Sha256
    """The digest of the folder's list of files."""
    number: Annotated[int, Field(ge=0, lt=MAX_ADAPTERS)] | None = None
    """In a folder of several adapters: the subfolder that holds it."""

    @property
    def folder(self) -> str:
        """Where it lies below the folder that its files are fetched to."""
        return self.sha256 if self.number is None else f"{self.sha256}/{self.number}"

    @property
    def artifact(self) -> Artifact:
        """The folder in the object store."""
        return Artifact(uri=self.uri, sha256=self.sha256)


class DesiredAdapters(Message):
    """All adapters that every replica is to serve, and no others."""

    version: Literal[1] = 1
    adapters: Annotated[tuple[DesiredAdapter, ...], Field(max_length=MAX_ADAPTERS)] = ()

    @model_validator(mode="after")
    def _names_are_unique(self) -> DesiredAdapters:
        twice = [name for name, count in Counter(a.name for a in self.adapters).items() if count > 1]
        if twice:
            raise ValueError(f"found the name {twice[0]!r} more than once; each adapter has a name of its own")
        return self

    @property
    def text(self) -> str:
        """The file's content: the same adapters, the same text."""
        return canonical_json(self.model_dump(mode="json", exclude_none=True))

    @property
    def digest(self) -> str:
        """The sha256 (hex) of `text`."""
        return sha256_hex(self.text.encode())


class PredictorAdapters(Message):
    """`PREDICTORS` in a folder of several adapters: which of them is whose."""

    version: Literal[1] = 1
    predictors: Annotated[tuple[str, ...], Field(min_length=1, max_length=MAX_ADAPTERS)]
    """The predictor of each subfolder 0, 1, ...; predictors that are not here use the base model."""

    @model_validator(mode="after")
    def _predictors_are_unique(self) -> PredictorAdapters:
        if len(set(self.predictors)) < len(self.predictors):
            raise ValueError(f"found {', '.join(self.predictors)}; a predictor has one adapter")
        return self


class AdapterFailure(Message):
    """Why an adapter could not be loaded so far."""

    name: str
    message: Annotated[str, Field(max_length=MAX_MESSAGE)]
    permanent: bool
    """No retry helps; the sidecar has given it up until something else is wanted."""


class PendingAdapter(Message):
    """What an adapter waits for."""

    name: str
    message: Annotated[str, Field(max_length=MAX_MESSAGE)]


class AdaptersReport(Message):
    """Where the adapters of one replica stand."""

    ready: bool
    """vLLM is well and lists every adapter that is wanted."""
    message: str = ""
    """Why it is not ready, for people."""
    desired: str | None = None
    """`DesiredAdapters.digest` of what the sidecar sees mounted; None while it cannot be read."""
    loaded: tuple[str, ...] = ()
    failed: tuple[AdapterFailure, ...] = ()
    pending: tuple[PendingAdapter, ...] = ()
