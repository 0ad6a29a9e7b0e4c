"""Grounding (MIPRO, section 3.1): what the proposer is told of the data and of the program.

The questions are asked once for the search, not once per instruction. A source that cannot be had is left out, and the
reason is kept for the result.

Calls, for T training examples and P predictors: min(ceil(T / 10), 5) + 1 for the data, 1 for the program, and 1 for
each predictor's role where there are several.
"""

from __future__ import annotations

import inspect
import random
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import dspy

from tandem_api.canonical import seed_from
from tandem_api.v1alpha1.prompt_optimizers import Grounding
from tandem_trainer.lm.failures import CallFailedError
from tandem_trainer.lm.writer import Writer, Writing
from tandem_trainer.prompt.mipro import wording
from tandem_trainer.prompt.mipro.together import together
from tandem_trainer.prompt.optimizer import SearchTask

#: Examples that are shown at once.
BATCH = 10
#: Batches that are shown at most, and answers COMPLETE after which no more are.
MAX_BATCHES, MAX_COMPLETE = 5, 5


@dataclass
class Grounds:
    """What is known of the data and the program; empty where the source is off or failed."""

    data: str = ""
    program: str = ""
    roles: Mapping[str, str] = field(default_factory=dict)
    """By predictor."""
    failures: dict[str, str] = field(default_factory=dict)
    """Why a source was left out, by its name."""


async def ground(task: SearchTask, switches: Grounding, writer: Writer, how: Writing) -> Grounds:
    """Ask for what is switched on. Raises ServingError and BudgetExhausted, but nothing that concerns one source."""
    asker = _Asker(task, writer, how, Grounds())
    await together(*([asker.data()] if switches.data else []), *([asker.program()] if switches.program else []))
    return asker.grounds


@dataclass(frozen=True)
class _Asker:
    task: SearchTask
    writer: Writer
    how: Writing
    grounds: Grounds

    async def data(self) -> None:
        """Batch by batch the model adds observations, until it has often enough nothing to add; then it sums up."""
        if not self.task.train:
            self.grounds.failures["data"] = "there are no training examples"
            return
        examples = list(self.task.train)
        random.Random(seed_from(self.task.seed, self.task.step, "mipro", "data")).shuffle(examples)
        observations: list[str] = []
        complete = 0
        try:
            for begin in range(0, min(len(examples), BATCH * MAX_BATCHES), BATCH):
                shown = wording.rows_text([example.fields for example in examples[begin : begin + BATCH]])
                text = await self._ask(wording.observe(shown, "\n".join(observations)[-wording.MAX_EXAMPLES :]))
                if wording.is_complete(text):
                    complete += 1
                    if complete == MAX_COMPLETE:
                        break
                elif text:
                    observations.append(text)
            if observations:
                self.grounds.data = await self._ask(wording.condense("\n".join(observations)[-wording.MAX_EXAMPLES :]))
        except CallFailedError as error:
            self.grounds.failures["data"] = str(error)
            return
        if not self.grounds.data:
            self.grounds.failures["data"] = "the proposer wrote nothing of it"

    async def program(self) -> None:
        """What the program does, and what each of its predictors does in it."""
        try:
            code = source_of(self.task.program.module)
        except (OSError, TypeError) as error:
            self.grounds.failures["code"] = str(error)
            code = ""
        signatures = {name: wording.signature_text(name, self.task.fields[name]) for name in self.task.fields}
        try:
            program = await self._ask(wording.describe_program(code, "\n".join(signatures.values())))
        except CallFailedError as error:
            self.grounds.failures["program"] = str(error)
            return
        if not program:
            self.grounds.failures["program"] = "the proposer wrote nothing of it"
        self.grounds.program = program
        if len(signatures) > 1:
            roles = await together(*(self._role(name, line, program, code) for name, line in signatures.items()))
            self.grounds.roles = dict(zip(signatures, roles, strict=True))

    async def _role(self, predictor: str, signature: str, program: str, code: str) -> str:
        try:
            return await self._ask(wording.describe_role(predictor, signature, program, code))
        except CallFailedError as error:
            self.grounds.failures[f"role of {predictor}"] = str(error)
            return ""

    async def _ask(self, message: str) -> str:
        (text,) = await self.writer.write([{"role": "user", "content": message}], self.how, key=("mipro", "grounding"))
        return wording.read_summary(text)


def source_of(module: Any) -> str:
    """The code of a program: of its class, and of those of its sub-modules, but for DSPy's own.

    Raises OSError or TypeError where there is no source to be had.
    """
    kinds = dict.fromkeys(
        type(each) for _, each in module.named_sub_modules(dspy.Module) if not type(each).__module__.startswith("dspy.")
    )
    return "\n\n".join(inspect.getsource(kind) for kind in kinds)[: wording.MAX_CODE]
