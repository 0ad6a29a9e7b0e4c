"""What is optimized: the program, the metric and the data."""

from __future__ import annotations

from typing import Annotated, Literal, Self

from pydantic import Field, model_validator

from tandem_api.v1alpha1.base import CodeUri, DataUri, Entrypoint, Fraction, FreeForm, Integer, Model, Sha256, cel, rule


class InlineProgram(Model):
    """A program of one predictor, written in the manifest."""

    module: Literal["predict", "chain-of-thought"] = "predict"
    """`predict` answers at once; `chain-of-thought` adds a `reasoning` field before the outputs."""
    signature: str = Field(min_length=3, max_length=2048, pattern=r"->")
    """A DSPy signature: "question -> answer", with types if wanted: "review -> sentiment: Literal['good', 'bad']"."""
    instructions: str | None = Field(None, max_length=16384)
    """The seed instruction. Without one the signature's own default is used."""
    adapter: Literal["chat", "json", "plain"] = "chat"
    """How prompts are written and answers read: DSPy's chat or JSON format over the chat API, or `plain`
    (`Field: value` lines over the completions API), which base and small models follow best."""


class Code(Model):
    """Where the user's Python code lies."""

    uri: CodeUri
    """A folder (file:, on one machine), an S3 tarball (s3://bucket/key.tar.gz) or a ConfigMap (configmap://name)."""
    sha256: Sha256 | None = None
    """Digest of the tarball; required for s3://."""

    @model_validator(mode="after")
    def _digest_for_s3(self) -> Self:
        if self.uri.startswith("s3://") and self.sha256 is None:
            raise ValueError("code from s3:// needs its sha256, so that a run never executes other code than you meant")
        return self

    model_config = cel(rule("!self.uri.startsWith('s3://') || has(self.sha256)", "code from s3:// needs its sha256"))


class Program(Model):
    """The program under optimization: exactly one of `entrypoint` and `inline`."""

    entrypoint: Entrypoint | None = None
    """A callable without required arguments that returns a dspy.Module, as "package.module:name"."""
    inline: InlineProgram | None = None
    """A program of one predictor, written in the manifest."""
    adapter: Literal["chat", "json", "plain"] | None = None
    """The adapter of an `entrypoint` program (default chat); an inline program says it under `inline`."""
    arguments: FreeForm | None = None
    """Keyword arguments for the entry point."""
    code: Code | None = None
    """Where the entry points' code lies. On one machine: the manifest's folder, unless said otherwise."""
    image: str | None = Field(None, min_length=1, max_length=512)
    """The image of the workers, with the code and what it needs. Default: the operator's trainer image."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.entrypoint is None) == (self.inline is None):
            raise ValueError("exactly one of entrypoint and inline must be given")
        if self.inline is not None and (self.adapter is not None or self.arguments is not None):
            raise ValueError("adapter and arguments belong to an entrypoint program; an inline one has inline.adapter")
        return self

    @property
    def adapter_name(self) -> Literal["chat", "json", "plain"]:
        """The adapter in force."""
        if self.inline is not None:
            return self.inline.adapter
        return self.adapter or "chat"

    model_config = cel(
        rule("has(self.entrypoint) != has(self.inline)", "exactly one of entrypoint and inline must be given"),
        rule(
            "!has(self.inline) || (!has(self.adapter) && !has(self.arguments))",
            "adapter and arguments belong to an entrypoint program; an inline one has inline.adapter",
        ),
    )


class Metric(Model):
    """How an answer is scored, in [0, 1]: exactly one of `entrypoint` and `builtin`."""

    entrypoint: Entrypoint | None = None
    """`metric(example, prediction, trace=None) -> float`, as "package.module:name". It may also return a dict or a
    dspy.Prediction with `score` and `feedback`, which gepa reads."""
    builtin: Literal["exact-match", "numeric", "f1", "contains"] | None = None
    """A metric of ours; it compares `field` of the example with the same field of the prediction."""
    field: str | None = Field(None, min_length=1, max_length=128)
    """The output field that a builtin metric compares."""

    @model_validator(mode="after")
    def _exactly_one(self) -> Self:
        if (self.entrypoint is None) == (self.builtin is None):
            raise ValueError("exactly one of entrypoint and builtin must be given")
        if (self.builtin is None) != (self.field is None):
            raise ValueError("field goes with builtin: it names the output field that the builtin metric compares")
        return self

    model_config = cel(
        rule("has(self.entrypoint) != has(self.builtin)", "exactly one of entrypoint and builtin must be given"),
        rule("has(self.builtin) == has(self.field)", "field goes with builtin"),
    )


class Split(Model):
    """One data set: JSON Lines, JSON or CSV by its ending."""

    uri: DataUri
    """file:, s3://, configmap:// or hf://datasets/owner/name/path. A relative file: path starts at the manifest."""
    limit: Integer | None = Field(None, ge=1, le=10_000_000)
    """Use at most this many examples, sampled with `seed`."""
    seed: Integer = Field(0, ge=0, le=2**31 - 1)
    """The seed of that sample."""


class Holdout(Model):
    """How a validation set is cut from the training set where none is given."""

    fraction: Fraction = "0.2"
    """The part of the training set that is held out."""
    stratify: str | None = Field(None, max_length=128)
    """The field whose values keep their proportions. Default: the metric's `field`, where its values repeat."""


class Data(Model):
    """The examples."""

    train: Split
    """What optimizers may learn from."""
    validation: Split | None = None
    """What every candidate is scored on. Default: a seeded, shuffled, stratified hold-out of `train`."""
    holdout: Holdout = Holdout()
    """How that hold-out is cut."""
    test: Split | None = None
    """Touched once, at the end, by the best program."""
    inputs: tuple[Annotated[str, Field(max_length=128)], ...] = Field(min_length=1, max_length=64)
    """The fields that the program is given; the others are what the metric may compare with."""
