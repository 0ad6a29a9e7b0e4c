"""Where a run happens: serving, training, storage, tracking."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import BeforeValidator, Field, field_validator, model_validator

from tandem_api.v1alpha1.base import Form, FreeForm, Integer, Model, ObjectName, WebAddress, cel, rule, shown
from tandem_api.v1alpha1.podtemplate import checked, checked_resources

#: vLLM arguments that Tandem sets itself.
RESERVED_ARGUMENTS = ("model", "served-model-name", "host", "port", "api-key", "lora-modules", "enable-lora")
_STORE = WebAddress("https://host or http://host:9000", "credentialsSecret names the Secret with the keys")
_Endpoint = Annotated[str, Field(pattern=_STORE.pattern, max_length=512), BeforeValidator(_STORE.check)]
_TRACKER = WebAddress(
    "https://mlflow.example.org or http://mlflow.mlops:5000", "credentialsSecret names the Secret with the account"
)
_TrackingUri = Annotated[str, Field(pattern=_TRACKER.pattern, max_length=512), BeforeValidator(_TRACKER.check)]
_EXPERIMENT = Form(r"^[^\x00-\x1f\x7f]+$", "a name of one line")
_REGISTERED = Form(r"^[^/:\x22\x27\x00-\x1f\x7f]+$", "a name of one line, without slashes, colons and quotes")
_RESERVED_PATTERN = "|".join(RESERVED_ARGUMENTS).replace("-", "[-_]")


class Serving(Model):
    """How vLLM serves the model."""

    replicas: Integer = Field(1, ge=1, le=256)
    """Servers of the same model; more of them evaluate faster."""
    image: str | None = Field(None, min_length=1, max_length=512)
    """The image of the model server. Default: the operator's trainer image."""
    resources: FreeForm | None = None
    """Kubernetes resources of the vLLM container."""
    pod_template: FreeForm | None = None
    """A patch of the pod template; Tandem's own fields win."""
    extra_args: tuple[Annotated[str, Field(max_length=512)], ...] = Field((), max_length=64)
    """More arguments for vLLM, for example "--max-model-len=4096"."""
    adapters: Literal["reload", "rollout", "merged"] | None = None
    """How a tuned adapter is served: loaded into the running server, by a new roll-out, or merged into the weights.
    Default: reload with a GPU or for adapters of several predictors (which cannot be merged), merged without one."""
    handover: Literal["release", "keep"] = "release"
    """Whether serving gives its GPU back while weights are trained."""
    startup_timeout_seconds: Integer = Field(1200, ge=10, le=86_400)
    """How long the server may take until it is ready."""

    @field_validator("resources")
    @classmethod
    def _amounts(cls, value: FreeForm | None) -> FreeForm | None:
        return checked_resources(value)

    @field_validator("pod_template")
    @classmethod
    def _patch(cls, value: FreeForm | None) -> FreeForm | None:
        return checked(value, ("vllm", "adapters"))

    @field_validator("extra_args")
    @classmethod
    def _reserved(cls, value: tuple[str, ...]) -> tuple[str, ...]:
        for argument in value:
            name = argument.split("=")[0].replace("_", "-")  # vLLM takes both spellings
            if not argument.startswith("-"):
                raise ValueError(f"found {shown(argument)}; write each argument as one item: '--name=value'")
            if name.removeprefix("--") in RESERVED_ARGUMENTS:
                raise ValueError(f"found {name}, which Tandem sets itself; remove it")
        return value

    model_config = cel(
        rule(
            "!has(self.extraArgs) || self.extraArgs.all(argument, argument.startsWith('-'))",
            "extraArgs: write each argument as one item: '--name=value'",
        ),
        rule(
            "!has(self.extraArgs) || "
            f"!self.extraArgs.exists(argument, argument.matches('^--({_RESERVED_PATTERN})(=|$)'))",
            "extraArgs holds an argument that Tandem sets itself; remove it",
        ),
    )


class Training(Model):
    """Where weights are trained."""

    resources: FreeForm | None = None
    """Kubernetes resources of the training container."""
    nodes: Integer = Field(1, ge=1, le=64)
    """Machines that train together."""
    backend: Literal["job", "jobset", "trainjob"] = "job"
    """What runs the training on a cluster: a plain Job, or a JobSet for several machines; `trainjob` is refused
    for now."""
    pod_template: FreeForm | None = None
    """A patch of the pod template; Tandem's own fields win."""

    @field_validator("resources")
    @classmethod
    def _amounts(cls, value: FreeForm | None) -> FreeForm | None:
        return checked_resources(value)

    @field_validator("pod_template")
    @classmethod
    def _patch(cls, value: FreeForm | None) -> FreeForm | None:
        return checked(value, ("worker",))


class Workers(Model):
    """Where programs run: the workers that call the model and hold no accelerator."""

    resources: FreeForm | None = None
    """Kubernetes resources of the worker's container."""
    pod_template: FreeForm | None = None
    """A patch of the pod template; Tandem's own fields win."""

    @field_validator("resources")
    @classmethod
    def _amounts(cls, value: FreeForm | None) -> FreeForm | None:
        return checked_resources(value)

    @field_validator("pod_template")
    @classmethod
    def _patch(cls, value: FreeForm | None) -> FreeForm | None:
        return checked(value, ("worker",))


class S3(Model):
    """An S3 bucket."""

    bucket: str = Field(min_length=3, max_length=63, pattern=r"^[a-z0-9][a-z0-9.-]*[a-z0-9]$")
    """The bucket's name."""
    # Kubernetes 1.20 takes an empty text for null and refuses it: none is sent.
    prefix: str = Field("", max_length=512, pattern=r"^[A-Za-z0-9._/-]*$", exclude_if=lambda prefix: not prefix)
    """What the keys of all runs begin with; without `.` and `..` parts."""
    endpoint: _Endpoint | None = None
    """The server, if it is not AWS."""
    region: str | None = Field(None, max_length=64, pattern=r"^[A-Za-z0-9-]+$")
    """The bucket's region. Default: AWS_REGION, or us-east-1."""
    credentials_secret: ObjectName | None = None
    """A Secret with AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY. On one machine: those two environment variables."""
    service_account: ObjectName | None = None
    """A service account with rights of its own to the bucket, instead of a Secret."""

    @model_validator(mode="after")
    def _one_identity(self) -> Self:
        if self.credentials_secret is not None and self.service_account is not None:
            raise ValueError("at most one of credentialsSecret and serviceAccount may be given")
        return self

    @field_validator("prefix")
    @classmethod
    def _no_traversal(cls, value: str) -> str:
        if any(part in ("..", ".") for part in value.split("/")):
            raise ValueError(f"found {shown(value)}; a prefix may not contain '.' or '..' parts")
        return value.strip("/")

    model_config = cel(
        rule(
            "!(has(self.credentialsSecret) && has(self.serviceAccount))",
            "at most one of credentialsSecret and serviceAccount may be given",
        ),
        rule(
            "!has(self.prefix) || !self.prefix.matches('(^|/)[.][.]?(/|$)')",
            "a prefix may not contain '.' or '..' parts",
        ),
    )


class Storage(Model):
    """Where everything is kept."""

    s3: S3
    """The bucket."""
    deletion_policy: Literal["Retain", "Delete"] = "Retain"
    """What happens to the run's objects when the resource is deleted."""


class MLflow(Model):
    """An MLflow server. The run neither waits for it nor fails with it."""

    uri: _TrackingUri
    """The tracking server, as in MLFLOW_TRACKING_URI."""
    experiment: Annotated[
        str, Field(min_length=1, max_length=256, pattern=_EXPERIMENT.pattern), BeforeValidator(_EXPERIMENT.check)
    ]
    """The experiment that the run is logged to; it is created if there is none."""
    credentials_secret: ObjectName | None = None
    """A Secret with MLFLOW_TRACKING_USERNAME and MLFLOW_TRACKING_PASSWORD, or with MLFLOW_TRACKING_TOKEN. On one
    machine: the environment variables of these names."""
    artifacts: Literal["link", "upload"] = "link"
    """Whether the report, the program and the scores stay in the bucket and MLflow has their addresses, or are put
    into MLflow, too. The adapter stays in the bucket."""
    registered_model: (
        Annotated[
            str, Field(min_length=1, max_length=256, pattern=_REGISTERED.pattern), BeforeValidator(_REGISTERED.check)
        ]
        | None
    ) = None
    """The registered model that the best program becomes a version of. Default: it becomes none."""


class Tracking(Model):
    """Experiment tracking."""

    mlflow: MLflow | None = None
    """Where the run's parameters, scores and artifacts are logged, too."""
