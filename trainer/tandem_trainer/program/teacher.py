"""A teacher's program: another program that writes demos for the predictors of the program that is optimized."""

from __future__ import annotations

from pathlib import Path

from tandem_api.errors import ConfigurationError
from tandem_api.v1alpha1.prompt_optimizers import Teacher
from tandem_api.v1alpha1.spec import Spec
from tandem_api.v1alpha1.task import Program
from tandem_trainer.program.loading import LoadedProgram, load_program

_FIELD = "promptOptimizer.teacher"


def load_teacher(spec: Spec, settings: Teacher, program: LoadedProgram, *, code_path: Path | None) -> LoadedProgram:
    """The program of `settings.entrypoint`, in the format of `program` and from the same code.

    Raises ConfigurationError as `load_program` does, and for one that has not the same predictors with the same input
    and output fields: its traces could not become demos.
    """
    assert settings.entrypoint is not None
    own = Program(
        entrypoint=settings.entrypoint,
        arguments=settings.arguments,
        adapter=program.adapter_name,
        code=spec.program.code,
    )
    try:
        teacher = load_program(spec.model_copy(update={"program": own}), code_path=code_path)
    except ConfigurationError as error:
        text = str(error)
        for name in ("entrypoint", "arguments"):
            text = text.replace(f"program.{name}", f"{_FIELD}.{name}")
        raise ConfigurationError(text if text.startswith(_FIELD) else f"{_FIELD}: {text}") from error
    differences = _differences(teacher, program)
    if differences:
        raise ConfigurationError(
            f"{_FIELD}.entrypoint: {settings.entrypoint!r} has not the predictors of the program: "
            f"{'; '.join(differences)}; a teacher has the same predictors, inputs and outputs"
        )
    return teacher


def _differences(teacher: LoadedProgram, program: LoadedProgram) -> list[str]:
    lacking = [name for name in program.predictors if name not in teacher.predictors]
    more = [name for name in teacher.predictors if name not in program.predictors]
    if lacking or more:
        return [f"it has {', '.join(teacher.predictors)}, the program {', '.join(program.predictors)}"]
    found = []
    for name in program.predictors:
        theirs, ours = teacher.signature(name), program.signature(name)
        for kind in ("input_fields", "output_fields"):
            if getattr(theirs, kind).keys() != getattr(ours, kind).keys():
                said, wanted = (", ".join(getattr(signature, kind)) for signature in (theirs, ours))
                found.append(f"the {kind.removesuffix('_fields')}s of {name!r} are {said}, the program's {wanted}")
    return found
