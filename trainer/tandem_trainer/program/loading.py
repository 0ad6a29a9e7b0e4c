"""From the spec to a program whose prompt state is a plain value: instructions and demos by predictor name."""

from __future__ import annotations

import inspect
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import dspy

from tandem_api.canonical import digest
from tandem_api.errors import ConfigurationError, DataError, TandemError
from tandem_api.records import PredictorPrompt, PromptSet
from tandem_api.v1alpha1.spec import Spec
from tandem_api.v1alpha1.task import InlineProgram
from tandem_trainer.lm.client import Mode
from tandem_trainer.lm.served import check_options
from tandem_trainer.program.adapters import AdapterName, build_adapter
from tandem_trainer.program.code import code_digest, import_entrypoint
from tandem_trainer.program.plain import END, marker_of
from tandem_trainer.program.recording import NAME_ATTRIBUTE, as_json


@dataclass(frozen=True)
class LoadedProgram:
    """The user's program and its original prompts."""

    module: Any
    """The `dspy.Module`, as the user built it. Never run: `with_prompts` gives copies that are."""
    adapter_name: AdapterName
    adapter: Any
    vanilla: PromptSet
    """The program's original prompts."""
    sha256: str
    """Digest of the program's definition, code and original prompts."""
    _signatures: dict[str, Any] = field(repr=False)

    @property
    def predictors(self) -> tuple[str, ...]:
        """Names of the predictors that are optimized; those of frozen sub-modules (`_compiled`) are not among them."""
        return tuple(self._signatures)

    @property
    def mode(self) -> Mode:
        """Which API of the model server the adapter's messages are for."""
        mode: Mode = self.adapter.mode
        return mode

    @property
    def stop(self) -> tuple[str, ...]:
        """What ends every completion of the adapter's format; `chat` and `json` leave it to the model."""
        return (END,) if self.adapter_name == "plain" else ()

    def signature(self, predictor: str) -> Any:
        """The `dspy.Signature` of a predictor, with its original instruction."""
        return self._signatures[predictor]

    def with_prompts(self, prompts: PromptSet) -> Any:
        """A copy of the module that has these instructions and demos.

        Raises DataError when the prompt set is not one of this program.
        """
        if prompts.predictors.keys() != self._signatures.keys():
            raise DataError(
                f"the prompt set is for the predictors {sorted(prompts.predictors)}, "
                f"but the program has {sorted(self._signatures)}; was the program changed?"
            )
        module = self.module.deepcopy()
        originals = dict(self.module.named_predictors())
        for name, predictor in module.named_predictors():
            prompt = prompts.predictors[name]
            predictor.lm = originals[name].lm  # not a copy, which would open connections of its own
            predictor.signature = _with_instruction(predictor.signature, prompt.instruction)
            predictor.demos = [dict(demo) for demo in prompt.demos]
        return module

    def render(self, predictor: str, prompt: PredictorPrompt, inputs: dict[str, Any]) -> tuple[dict[str, Any], ...]:
        """The messages that this prompt gives for these inputs; for `plain` one user message, the whole prompt."""
        signature = _with_instruction(self._signatures[predictor], prompt.instruction)
        return tuple(self.adapter.format(signature, prompt.demos, dict(inputs)))


def load_program(spec: Spec, *, code_path: Path | None = None) -> LoadedProgram:
    """The program that `spec.program` defines; `code_path` is the folder of its code, put first on the import path.

    Raises ConfigurationError for whatever the user must change: an entry point that cannot be imported or called, a
    result that is no module or has no predictors, a signature that does not parse or does not fit the data.
    """
    program, name = spec.program, spec.program.adapter_name
    if program.inline is not None:
        module = _build_inline(program.inline, spec)
        definition: dict[str, Any] = program.inline.to_json()
    else:
        assert program.entrypoint is not None
        module = _call_entrypoint(program.entrypoint, program.arguments or {}, code_path)
        definition = {"entrypoint": program.entrypoint, "arguments": program.arguments, "adapter": name}
        definition["code"] = code_digest(program.entrypoint, code_path)
    signatures: dict[str, Any] = {}
    prompts: dict[str, PredictorPrompt] = {}
    for predictor_name, predictor in module.named_predictors():
        _check_predictor(predictor_name, predictor, name)
        setattr(predictor, NAME_ATTRIBUTE, predictor_name)
        signatures[predictor_name] = predictor.signature
        demos = tuple({key: as_json(value) for key, value in dict(demo).items()} for demo in predictor.demos)
        prompts[predictor_name] = PredictorPrompt(instruction=predictor.signature.instructions, demos=demos)
    if not signatures:
        raise ConfigurationError(
            f"program.entrypoint: {type(module).__name__} has no predictors to optimize; it needs at least one "
            "dspy.Predict (or a module made of them) as an attribute that is not frozen by _compiled"
        )
    if all(predictor.lm is not None for _, predictor in module.named_predictors()):
        raise ConfigurationError(
            f"program.entrypoint: every predictor of {type(module).__name__} has an LM of its own (predictor.lm, "
            "set_lm), so the run's model would never be called; leave the lm of those unset that shall use it"
        )
    vanilla = PromptSet(predictors=prompts)
    fields = {name: _field_types(signature) for name, signature in signatures.items()}
    sha256 = digest([definition, fields, vanilla.model_dump(mode="json")])
    return LoadedProgram(module, name, build_adapter(name), vanilla, sha256, signatures)


def _build_inline(inline: InlineProgram, spec: Spec) -> Any:
    try:
        signature = dspy.Signature(inline.signature, inline.instructions)
    except Exception as error:
        raise ConfigurationError(
            f"program.inline.signature: found {inline.signature!r}, which does not parse: {error}; "
            "write for example \"question -> answer\" or \"review -> sentiment: Literal['good', 'bad']\""
        ) from error
    if not signature.input_fields or not signature.output_fields:
        raise ConfigurationError(
            f"program.inline.signature: found {inline.signature!r}; it needs inputs and outputs: 'question -> answer'"
        )
    _check_inputs(spec.data.inputs, signature)
    if spec.metric.field is not None and spec.metric.field not in signature.output_fields:
        raise ConfigurationError(
            f"metric.field: found {spec.metric.field!r}; allowed, as outputs of program.inline.signature: "
            f"{', '.join(signature.output_fields)}"
        )
    return dspy.ChainOfThought(signature) if inline.module == "chain-of-thought" else dspy.Predict(signature)


def _check_inputs(inputs: tuple[str, ...], signature: Any) -> None:
    unknown = [name for name in inputs if name not in signature.input_fields]
    missing = [name for name, info in signature.input_fields.items() if info.is_required() and name not in inputs]
    if unknown or missing:
        raise ConfigurationError(
            f"data.inputs: found {', '.join(inputs)}, but the inputs of program.inline.signature are "
            f"{', '.join(signature.input_fields)}; make the two agree"
        )


def _call_entrypoint(entrypoint: str, arguments: dict[str, Any], code_path: Path | None) -> Any:
    field_name = "program.entrypoint"
    build = import_entrypoint(entrypoint, field=field_name, code_path=code_path)
    if not callable(build):
        raise ConfigurationError(
            f"{field_name}: {entrypoint!r} is of type {type(build).__name__}; it must be a function or class "
            "that returns a dspy.Module"
        )
    try:
        inspect.signature(build).bind(**arguments)
    except (TypeError, ValueError) as error:
        raise ConfigurationError(
            f"{field_name}: {entrypoint!r} cannot be called with program.arguments {sorted(arguments)}: {error}"
        ) from error
    try:
        module = build(**arguments)
    except TandemError:  # of our own tools, for example a corpus that cannot be fetched now
        raise
    except (Exception, SystemExit) as error:
        raise ConfigurationError(f"{field_name}: {entrypoint!r} failed: {type(error).__name__}: {error}") from error
    if not isinstance(module, dspy.Module):
        found = type(module).__name__
        raise ConfigurationError(f"{field_name}: {entrypoint!r} returned a {found!r}; it must return a dspy.Module")
    forward = getattr(type(module), "forward", None)
    if inspect.iscoroutinefunction(forward):
        raise ConfigurationError(f"{field_name}: {type(module).__name__}.forward is async; DSPy calls that aforward")
    if forward is None and not hasattr(type(module), "aforward"):
        raise ConfigurationError(f"{field_name}: {type(module).__name__} has neither forward nor aforward")
    return module


def _check_predictor(name: str, predictor: Any, adapter: AdapterName) -> None:
    if predictor.lm is None:  # a model of its own may take more
        try:
            check_options(predictor.config)
        except ValueError as error:
            raise ConfigurationError(
                f"program: the predictor {name!r} is made with an option that cannot be used: {error}"
            ) from error
    if not predictor.signature.output_fields:
        raise ConfigurationError(f"program: the predictor {name!r} has a signature without outputs")
    if adapter == "plain":
        markers = [marker_of(field_name) for field_name in predictor.signature.fields]
        twins = sorted({marker for marker in markers if markers.count(marker) > 1})
        if twins:
            raise ConfigurationError(
                f"program: two fields of the predictor {name!r} are both {twins[0]!r} in the plain format; rename one"
            )


def _field_types(signature: Any) -> dict[str, list[str]]:
    """What of a signature, beside its instruction, reaches the prompt or decides how answers are read."""
    return {
        name: [str(info.annotation), str((info.json_schema_extra or {}).get("desc", ""))]
        for name, info in signature.fields.items()
    }


@lru_cache(maxsize=1024)
def _with_instruction(signature: Any, instruction: str) -> Any:
    # A signature is a class, and making one costs about a millisecond.
    return signature if signature.instructions == instruction else signature.with_instructions(instruction)
