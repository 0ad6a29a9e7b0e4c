"""Bootstrap few-shot with random search (BFRS): which prompt sets a `p` step tries.

Source: BetterTogether (arXiv 2407.10930), section 3, with the candidates in DSPy's order: the starting prompts,
zero-shot, labelled demos only, the first passing traces, then random draws of them. Pure: everything depends on the
arguments and the seed, and nothing on the order in which results came in.
"""

from __future__ import annotations

import random
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from tandem_api.canonical import seed_from
from tandem_api.records import PredictorPrompt, PromptSet
from tandem_api.v1alpha1.prompt_optimizers import BootstrapRandomSearch
from tandem_trainer.evaluate.examples import Example
from tandem_trainer.prompt.candidates import Candidate
from tandem_trainer.prompt.demos import Demo, DemoPool, ExampleDemos, PredictorPool, is_made_from, without_own_demos

#: How often a draw that repeats an earlier candidate is drawn again before the search is content with fewer.
MAX_DRAWS = 32


def build_candidates(
    start: PromptSet, pool: DemoPool, settings: BootstrapRandomSearch, *, seed: int, step: int
) -> tuple[Candidate, ...]:
    """The candidates, all different, the starting prompts first; at most `settings.candidates`.

    Fewer when the pool offers no more different draws: without a passing trace only the starting prompts, zero-shot
    and the labelled demos are left. `zero-shot` names the starting prompts themselves when these hold no demos.
    """
    zero_shot = _with_demos(start, {})
    found = {start.sha256: Candidate("zero-shot" if zero_shot == start else "starting", start)}
    fixed: list[Candidate] = [
        Candidate("zero-shot", zero_shot),
        Candidate("labeled", _with_demos(start, _labeled(pool, settings, (seed, step, "labeled")))),
        Candidate("bootstrapped", _with_demos(start, _bootstrapped(pool, settings, (seed, step, "first")))),
    ]
    for candidate in fixed:
        found.setdefault(candidate.prompts.sha256, candidate)
    while len(found) < settings.candidates and _can_bootstrap(pool, settings):
        draws = _draws(start, pool, settings, (seed, step, len(found)))
        fresh = next((prompts for prompts in draws if prompts.sha256 not in found), None)
        if fresh is None:
            break
        found[fresh.sha256] = Candidate("random", fresh)
    return tuple(found.values())[: settings.candidates]


def retry_prompts(
    start: PromptSet,
    pool: DemoPool,
    settings: BootstrapRandomSearch,
    example: Example,
    inputs: Sequence[str],
    *,
    seed: int,
    step: int,
) -> PromptSet | None:
    """The starting prompts with labelled demos, to run `example` once more after it failed with `start`.

    All examples see the same demos, so that the server's prefix cache holds them; only an example that is among them
    sees another one in its own place. None when there is no labelled demo to add.
    """
    demos: dict[str, list[Demo]] = {}
    for name, of_predictor in pool.items():
        labeled = _alike(of_predictor, settings)
        chosen = _sample(labeled, settings.max_labeled_demos + 1, (seed, step, "retry", name))
        others = [offer.demos[0] for offer in chosen if not is_made_from(offer.demos[0], example, inputs)]
        demos[name] = others[: settings.max_labeled_demos]
    return _with_demos(without_own_demos(start, example, inputs), demos, keep=True) if any(demos.values()) else None


def _with_demos(start: PromptSet, demos: Mapping[str, Sequence[Demo]], *, keep: bool = False) -> PromptSet:
    """`start` with these demos; a predictor that is given none keeps its own if `keep`, else it has none."""
    return PromptSet(
        predictors={
            name: PredictorPrompt(
                instruction=prompt.instruction, demos=tuple(demos.get(name, ())) or (prompt.demos if keep else ())
            )
            for name, prompt in start.predictors.items()
        }
    )


def _can_bootstrap(pool: DemoPool, settings: BootstrapRandomSearch) -> bool:
    return settings.max_bootstrapped_demos > 0 and any(of_predictor.bootstrapped for of_predictor in pool.values())


def _labeled(pool: DemoPool, settings: BootstrapRandomSearch, seed: tuple[Any, ...]) -> dict[str, list[Demo]]:
    return {
        name: [offer.demos[0] for offer in _sample(_alike(of_predictor, settings), settings.max_labeled_demos, key)]
        for name, of_predictor in pool.items()
        for key in [(*seed, name)]
    }


def _alike(pool: PredictorPool, settings: BootstrapRandomSearch) -> Sequence[ExampleDemos]:
    """Labelled demos that may stand together: where some have the reasoning, those without it are left out."""
    return pool.labeled if settings.mix_labeled else pool.complete or pool.labeled


def _bootstrapped(pool: DemoPool, settings: BootstrapRandomSearch, seed: tuple[Any, ...]) -> dict[str, list[Demo]]:
    """The first passing traces of every predictor, in the order of the examples; nothing when none passed."""
    if not _can_bootstrap(pool, settings):
        return {}
    most = settings.max_bootstrapped_demos
    return {
        name: _filled(of_predictor, of_predictor.bootstrapped[:most], settings, (*seed, name))
        for name, of_predictor in pool.items()
    }


def _draws(
    start: PromptSet, pool: DemoPool, settings: BootstrapRandomSearch, seed: tuple[Any, ...]
) -> Iterator[PromptSet]:
    """Random candidates: one demo count for all predictors, each predictor's demos drawn independently."""
    for draw in range(MAX_DRAWS):
        count = random.Random(seed_from(*seed, draw, "count")).randint(1, settings.max_bootstrapped_demos)
        demos = {}
        for name, of_predictor in pool.items():
            key = (*seed, draw, name)
            demos[name] = _filled(of_predictor, _sample(of_predictor.bootstrapped, count, key), settings, key)
        yield _with_demos(start, demos)


def _filled(
    pool: PredictorPool, chosen: Sequence[ExampleDemos], settings: BootstrapRandomSearch, seed: tuple[Any, ...]
) -> list[Demo]:
    """One call of each chosen trace, then labelled demos of other examples, up to `max_labeled_demos`."""
    demos = [_one_call(offer, seed) for offer in chosen]
    used = {offer.example for offer in chosen}
    labeled = pool.labeled if settings.mix_labeled else pool.complete
    others = [offer for offer in labeled if offer.example not in used and offer.demos[0] not in demos]
    missing = max(0, settings.max_labeled_demos - len(demos))
    return demos + [offer.demos[0] for offer in _sample(others, missing, (*seed, "fill"))]


def _one_call(offer: ExampleDemos, seed: tuple[Any, ...]) -> Demo:
    """A predictor that was called several times for an example gives one of these calls, all equally likely."""
    return offer.demos[seed_from(*seed, "call", offer.example) % len(offer.demos)]


def _sample(offers: Sequence[ExampleDemos], count: int, seed: tuple[Any, ...]) -> list[ExampleDemos]:
    return random.Random(seed_from(*seed)).sample(offers, min(count, len(offers)))
