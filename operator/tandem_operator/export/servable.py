"""What of a finished run is to be served: its model, the best program's adapter, and where both lie. Pure."""

from __future__ import annotations

from dataclasses import dataclass

from tandem_api import conditions
from tandem_api.contract import served_names
from tandem_api.errors import ConfigurationError
from tandem_api.v1alpha1 import OptimizationRun
from tandem_api.v1alpha1.infrastructure import S3
from tandem_api.v1alpha1.status import Artifact
from tandem_operator.decide.names import served_name


@dataclass(frozen=True)
class Store:
    """Where the adapter is fetched from, as the pods see it, and with which key."""

    endpoint: str | None = None
    region: str | None = None
    credentials_secret: str | None = None
    service_account: str | None = None

    @classmethod
    def of(cls, s3: S3) -> Store:
        """The same of a run's storage."""
        return cls(s3.endpoint, s3.region, s3.credentials_secret, s3.service_account)


@dataclass(frozen=True)
class Servable:
    """Everything that a manifest needs to know of a run."""

    run: str
    """Its name."""
    namespace: str
    uid: str
    model: str
    """The base model's URI."""
    adapter: Artifact | None = None
    """The best program's; None: the base model with the best prompts."""
    store: Store = Store()
    token_secret: str | None = None
    """With the Hub's token, for a model that needs one."""
    is_merged: bool = False
    """Whether the run served its adapters merged into the model."""
    arguments: tuple[str, ...] = ()
    """The run's own for vLLM."""
    result: Artifact | None = None
    """The result bundle, with the prompts."""
    score: str | None = None
    """The best program's on the test set, or else on the validation set."""

    @property
    def served_name(self) -> str:
        """The name that calls use, as in the run: made of the adapter's digest."""
        return served_name(self.run, self.adapter)

    @property
    def served_names(self) -> tuple[str, ...]:
        """All of them, where predictors have adapters of their own."""
        return served_names(self.served_name, self.adapter)


def servable(run: OptimizationRun) -> Servable:
    """What a run has found. Raises ConfigurationError for one that has not succeeded."""
    metadata, spec, status = run.metadata, run.spec, run.status
    where = f"{metadata.namespace}/{metadata.name}"
    succeeded = conditions.find(status.conditions, conditions.SUCCEEDED)
    if succeeded is None or succeeded.status != "True" or status.best is None:
        raise ConfigurationError(
            f"the run {where} is at {status.phase}; only one that has succeeded has a result that can be served"
        )
    return Servable(
        run=metadata.name,
        namespace=metadata.namespace,
        uid=metadata.uid,
        model=spec.model.uri,
        adapter=status.best.adapter,
        store=Store.of(spec.storage.s3) if spec.storage is not None else Store(),
        token_secret=spec.model.token_secret,
        is_merged=spec.serving.adapters == "merged",
        arguments=tuple(spec.serving.extra_args),
        result=status.result,
        score=status.test.score if status.test is not None else status.best.score,
    )
