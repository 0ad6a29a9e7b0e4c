"""What MIPRO chooses from: for every predictor one of its instructions and one of its demo sets. Pure."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tandem_api.records import PredictorPrompt, PromptSet
from tandem_api.v1alpha1.prompt_optimizers import Mipro
from tandem_trainer.prompt.demos import Demo

#: The n that all numbers follow from. The paper has no such presets; these are DSPy's.
SIZES = {"light": 6, "medium": 12, "heavy": 18}

#: Of every variable, by its name, the index of what is chosen.
Choice = Mapping[str, int]


@dataclass(frozen=True)
class Sizes:
    """How much is tried."""

    instructions: int
    """Per predictor, its own included."""
    demo_sets: int
    """Per predictor, the starting one included."""
    trials: int


def sizes_of(settings: Mipro, predictors: int) -> Sizes:
    """What `auto` stands for; `instructions`, `demoSets` and `trials` go before it.

    Trials, as in DSPy's MIPROv2: max(2 V log2 n, 1.5 n) for V variables; 10, 18 and 27 for a program of one predictor.
    To choose from there are n of what the variant chooses, but 2/3 n instructions where it chooses demo sets, too.
    (DSPy has n / 2 of these; each costs it three calls, and us one.)
    """
    n = SIZES[settings.auto]
    has_both = settings.variant == "mipro"
    chooses_demos = has_both or settings.variant == "bayesian-bootstrap"
    instructions = settings.instructions or (2 * n // 3 if has_both else n)
    variables = predictors * (2 if has_both else 1)
    return Sizes(
        instructions=1 if settings.variant == "bayesian-bootstrap" else instructions,
        demo_sets=(settings.demo_sets or n) if chooses_demos else 1,
        trials=settings.trials or int(max(2 * variables * math.log2(n), 1.5 * n)),
    )


@dataclass(frozen=True)
class Space:
    """The combinations. Index 0 of everything is the starting point's."""

    start: PromptSet
    instructions: Mapping[str, Sequence[str]]
    """By predictor."""
    demo_sets: Mapping[str, Sequence[Sequence[Demo]]]
    """By predictor."""

    @property
    def variables(self) -> dict[str, int]:
        """How many values each variable has; one with a single value is none."""
        instructions = {f"{name}.instruction": len(found) for name, found in self.instructions.items()}
        demo_sets = {f"{name}.demos": len(found) for name, found in self.demo_sets.items()}
        return {name: count for name, count in (instructions | demo_sets).items() if count > 1}

    @property
    def size(self) -> int:
        """How many combinations there are."""
        return math.prod(self.variables.values())

    def prompts(self, choice: Choice) -> PromptSet:
        """The prompt set of a combination; what `choice` does not name is the starting point's."""
        return PromptSet(
            predictors={
                name: PredictorPrompt(
                    instruction=self.instructions[name][choice.get(f"{name}.instruction", 0)],
                    demos=tuple(self.demo_sets[name][choice.get(f"{name}.demos", 0)]),
                )
                for name in self.start.predictors
            }
        )


def space_of(
    start: PromptSet, proposed: Mapping[str, Sequence[str]], demo_sets: Mapping[str, Sequence[Sequence[Demo]]]
) -> Space:
    """The space of these instructions and demo sets beside those of the starting point."""
    own = start.predictors
    return Space(
        start,
        {name: (prompt.instruction, *proposed.get(name, ())) for name, prompt in own.items()},
        {name: (prompt.demos, *demo_sets.get(name, ())) for name, prompt in own.items()},
    )
