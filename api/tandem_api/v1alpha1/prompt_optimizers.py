"""The settings of prompt optimization: one model a type, told apart by `type`.

A field that several types have means the same in all of them. Defaults follow the papers where they publish a value
(`docs/optimizers.md` says which) and what a first run needs elsewhere.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Annotated, Any, Final, Literal, Self

from pydantic import BeforeValidator, Discriminator, Field, Tag, model_validator

from tandem_api.v1alpha1.base import (
    Boolean,
    Entrypoint,
    Form,
    Fraction,
    FreeForm,
    Integer,
    Model,
    ObjectName,
    PositiveDecimal,
    WebAddress,
    cel,
    rule,
)

_API = WebAddress("https://host/v1 or https://host:8000/v1", "keySecret names the Secret with the key")
#: The address of an OpenAI-compatible API, as OPENAI_BASE_URL is written: https://host/v1.
_ApiUrl = Annotated[str, Field(pattern=_API.pattern, max_length=512), BeforeValidator(_API.check)]
_CLASS = Form(
    r"^[A-Za-z_][A-Za-z0-9_]*((\.[A-Za-z_][A-Za-z0-9_]*)*:[A-Za-z_][A-Za-z0-9_]*)?$",
    'a class of dspy such as "SIMBA", or one of yours as "package.module:Class"',
)


class Proposer(Model):
    """The model that writes instructions: the served one, or another one behind an OpenAI-compatible API."""

    url: _ApiUrl | None = None
    """Base URL of that API, as in "https://host/v1". Default: the served model writes."""
    model: str | None = Field(None, min_length=1, max_length=256)
    """The model's name there."""
    key_secret: ObjectName | None = None
    """A Secret with API_KEY; without it no key is sent. On one machine: the variable TANDEM_PROPOSER_API_KEY."""
    temperature: PositiveDecimal = "0.7"
    """Sampling temperature of what it writes. The paper: 0.7."""
    max_tokens: Integer = Field(512, ge=16, le=131_072)
    """Longest text that it writes, in tokens; with what it is shown it must fit into the model's context."""

    @model_validator(mode="after")
    def _url_with_model(self) -> Self:
        if (self.url is None) != (self.model is None) or (self.key_secret is not None and self.url is None):
            raise ValueError("url and model go together, and keySecret goes with them")
        return self

    model_config = cel(
        rule(
            "has(self.url) == has(self.model) && (!has(self.keySecret) || has(self.url))",
            "url and model go together, and keySecret goes with them",
        ),
    )


class Teacher(Model):
    """What writes the demos in the program's place: another model, a stronger program, or both."""

    url: _ApiUrl | None = None
    """Base URL of an OpenAI-compatible API, as in "https://host/v1". Default: the served model."""
    model: str | None = Field(None, min_length=1, max_length=256)
    """The model's name there."""
    key_secret: ObjectName | None = None
    """A Secret with API_KEY; without it no key is sent. On one machine: the variable TANDEM_TEACHER_API_KEY."""
    entrypoint: Entrypoint | None = None
    """A program with the same predictors (their names, inputs and outputs), as "package.module:name"."""
    arguments: FreeForm | None = None
    """Keyword arguments for the entry point."""

    @model_validator(mode="after")
    def _is_another(self) -> Self:
        if (self.url is None) != (self.model is None) or (self.key_secret is not None and self.url is None):
            raise ValueError("url and model go together, and keySecret goes with them")
        if self.url is None and self.entrypoint is None:
            raise ValueError("a teacher is another model (url and model), another program (entrypoint), or both")
        if self.arguments is not None and self.entrypoint is None:
            raise ValueError("arguments belong to an entrypoint")
        return self

    model_config = cel(
        rule(
            "has(self.url) == has(self.model) && (!has(self.keySecret) || has(self.url))",
            "url and model go together, and keySecret goes with them",
        ),
        rule(
            "has(self.url) || has(self.entrypoint)",
            "a teacher is another model (url and model), another program (entrypoint), or both",
        ),
        rule("!has(self.arguments) || has(self.entrypoint)", "arguments belong to an entrypoint"),
    )


class Racing(Model):
    """Racing evaluation: candidates that are worse than the leader beyond doubt are dropped early."""

    error_rate: Fraction = "0.05"
    """How likely the whole race may drop a candidate that a full evaluation would have found to be the best."""
    first_round: Integer = Field(10, ge=2, le=10_000)
    """Examples before the first look; each further round has as many, or half of those seen if that is more."""


class Search(Model):
    """What all types have."""

    train_size: Integer | None = Field(None, ge=1)
    """Learn from at most this many training examples (seeded sample)."""
    validation_size: Integer | None = Field(None, ge=1)
    """Search on at most this many validation examples (seeded sample); the best candidate is scored on all of them."""


class DemoSearch(Search):
    """What the types that choose demos have."""

    max_bootstrapped_demos: Integer = Field(3, ge=0, le=64)
    """Demos from passing traces, per predictor."""
    max_labeled_demos: Integer = Field(3, ge=0, le=64)
    """Demos of a predictor in all, filled up with labelled examples where these have all its outputs."""
    threshold: Fraction = "1"
    """A trace passes when its score is at least this."""
    samples_per_example: Integer = Field(1, ge=1, le=64)
    """Runs of the program per training example while demos are bootstrapped; each different passing trace is kept."""
    temperature: PositiveDecimal = "0.7"
    """Sampling temperature of those runs; used where samplesPerExample > 1 (one run uses the model's own)."""
    passing_examples: Integer | None = Field(None, ge=1)
    """Bootstrapping ends once so many training examples have passed. Default: maxBootstrappedDemos and one for each
    candidate or demo set; all training examples with exhaustive."""
    mix_labeled: Boolean = False
    """Let labelled demos that lack the reasoning of a chain of thought stand beside demos that have it."""
    teacher: Teacher | None = None
    """What writes the demos. Default: the program itself on the served model."""
    racing: Racing = Racing()
    """How candidates are dropped early."""
    exhaustive: Boolean = False
    """No racing: every candidate gets what the paper's procedure gives it."""


class BootstrapRandomSearch(DemoSearch):
    """Bootstrap few-shot with random search (BFRS): BetterTogether (arXiv 2407.10930) section 3 and appendix."""

    type: Literal["bootstrap-random-search"] = "bootstrap-random-search"
    """Bootstrap few-shot with random search."""
    candidates: Integer = Field(12, ge=1, le=256)
    """Candidate programs, the zero-shot, labelled and unshuffled ones included. The paper: 6."""


class Grounding(Model):
    """What the proposer is shown (MIPRO, section 3.1); a source that fails is told of, and left out."""

    data: Boolean = True
    """A summary of the training set."""
    program: Boolean = True
    """A summary of the program, from its code and signatures, and the predictor's role in it."""
    demos: Boolean = True
    """Bootstrapped demos of the predictor."""
    tips: Boolean = True
    """One of the paper's tips, drawn at random."""
    history: Boolean = True
    """Instructions of the predictor that were scored before, with their scores."""


class Mipro(DemoSearch):
    """MIPRO (arXiv 2406.11695): proposed instructions and bootstrapped demos, searched by Bayesian optimization."""

    type: Literal["mipro"] = "mipro"
    """MIPRO and its variants."""
    variant: Literal["mipro", "zero-shot", "bayesian-bootstrap", "module-opro", "mipro++"] = "mipro"
    """`mipro`: instructions and demos; `zero-shot`: instructions only; `bayesian-bootstrap`: demos only;
    `module-opro`: instructions written in rounds from the scored ones before; `mipro++`: instructions, whose
    proposer's own settings are searched, too. `zero-shot`, `module-opro` and `mipro++` do not read demoSets;
    `module-opro` and `mipro++` do not read instructions; `bayesian-bootstrap` reads neither instructions, grounding
    nor proposer."""
    auto: Literal["light", "medium", "heavy"] = "light"
    """How much is tried, where `instructions`, `demoSets` or `trials` do not say it."""
    instructions: Integer | None = Field(None, ge=1, le=256)
    """Instructions per predictor, the program's own included."""
    demo_sets: Integer | None = Field(None, ge=1, le=256)
    """Demo sets per predictor, the empty one included."""
    trials: Integer | None = Field(None, ge=1, le=10_000)
    """Combinations that are tried."""
    minibatch_size: Integer = Field(35, ge=1, le=10_000)
    """Examples on which a combination is tried."""
    full_evaluation_every: Integer = Field(10, ge=1, le=1000)
    """After so many trials the combination with the best mean is evaluated in full."""
    search_on: Literal["validation", "train"] = "validation"
    """Which examples the search scores on. The paper: train. The result is scored on validation either way."""
    proposer: Proposer = Proposer()
    """The model that writes the instructions."""
    grounding: Grounding = Grounding()
    """What it is shown."""


class Gepa(Search):
    """GEPA (arXiv 2507.19457): instructions that a model rewrites after reflecting on feedback, by the gepa library."""

    type: Literal["gepa"] = "gepa"
    """Reflective prompt evolution."""
    auto: Literal["light", "medium", "heavy"] = "light"
    """How many runs of the program are made, where `maxMetricCalls` does not say it."""
    max_metric_calls: Integer | None = Field(None, ge=1, le=1_000_000)
    """Runs of the program in the search; those of the starting prompts on the search's validation examples are always
    made."""
    reflection_minibatch_size: Integer = Field(3, ge=1, le=256)
    """Examples that a reflection looks at."""
    candidate_selection: Literal["pareto", "current-best", "epsilon-greedy"] = "pareto"
    """Which candidate is changed next."""
    merge: Boolean = True
    """Combine candidates that are good on different examples."""
    proposer: Proposer = Proposer()
    """The model that reflects and writes."""


class DspyOptimizer(Search):
    """Any optimizer of DSPy; its calls of models are recorded, so that a restart replays them."""

    type: Literal["dspy"] = "dspy"
    """An optimizer of DSPy."""
    class_name: Annotated[
        str, Field(min_length=1, max_length=256, pattern=_CLASS.pattern), BeforeValidator(_CLASS.check)
    ]
    """Its class: a name in `dspy` such as SIMBA, or "package.module:Class"."""
    args: FreeForm | None = None
    """Arguments of its constructor; Tandem gives the metric and the models (prompt_model, reflection_lm, ...)."""
    compile_args: FreeForm | None = None
    """Arguments of its compile method; Tandem gives the program and the examples."""
    proposer: Proposer = Proposer()
    """The model that it is given where it asks for one beside the program's own."""


#: The settings' model of each type; the first is the default.
TYPES: Final[Mapping[str, type[Search]]] = {
    "bootstrap-random-search": BootstrapRandomSearch,
    "mipro": Mipro,
    "gepa": Gepa,
    "dspy": DspyOptimizer,
}


def _type_of(value: Any) -> str:
    default = next(iter(TYPES))
    return str(value.get("type", default) if isinstance(value, dict) else getattr(value, "type", default))


#: How a `p` step searches for prompts; `type` tells which, and is bootstrap-random-search if it is not given.
PromptOptimizer = Annotated[
    Annotated[BootstrapRandomSearch, Tag("bootstrap-random-search")]
    | Annotated[Mipro, Tag("mipro")]
    | Annotated[Gepa, Tag("gepa")]
    | Annotated[DspyOptimizer, Tag("dspy")],
    Discriminator(_type_of),
]
