"""The demo sets that MIPRO chooses from: those of bootstrap few-shot with random search (MIPRO, section 3.2)."""

from __future__ import annotations

from collections.abc import Callable

from tandem_api.v1alpha1.prompt_optimizers import BootstrapRandomSearch, DemoSearch, Mipro
from tandem_trainer.evaluate.evaluator import Job
from tandem_trainer.prompt.bfrs import build_candidates
from tandem_trainer.prompt.bootstrap import Bootstrap
from tandem_trainer.prompt.bootstrap import bootstrap as bootstrap_as_for_random_search
from tandem_trainer.prompt.demos import Demo, DemoPool, without_own_demos
from tandem_trainer.prompt.optimizer import SearchTask


async def bootstrap(
    task: SearchTask, settings: Mipro, sets: int, report: Callable[[int, str, float | None], None]
) -> Bootstrap:
    """Run the program on training examples, as for `sets` candidates of a random search."""
    return await bootstrap_as_for_random_search(task, _random_search(settings, sets), report)


def demo_sets(task: SearchTask, settings: Mipro, pool: DemoPool, sets: int) -> dict[str, list[tuple[Demo, ...]]]:
    """Of every predictor, the different demo sets beside its starting one: none, labelled ones, first and random draws.

    Fewer than `sets - 1` where the pool offers no more.
    """
    candidates = build_candidates(task.start, pool, _random_search(settings, sets), seed=task.seed, step=task.step)
    found: dict[str, list[tuple[Demo, ...]]] = {}
    for name, start in task.start.predictors.items():
        offered = [candidate.prompts.predictors[name].demos for candidate in candidates]
        found[name] = [
            demos for nth, demos in enumerate(offered) if demos != start.demos and demos not in offered[:nth]
        ]
    return found


def called(task: SearchTask) -> tuple[str, ...]:
    """The predictors that the program called in the runs of bootstrapping; all, where these tell nothing."""
    jobs = [Job(without_own_demos(task.start, example, task.inputs), example) for example in task.train]
    records = task.evaluator.scored(jobs, keep_calls=True)
    seen = {call.predictor for record in records if record is not None for call in record.calls}
    return tuple(name for name in task.start.predictors if name in seen or not seen)


def _random_search(settings: Mipro, sets: int) -> BootstrapRandomSearch:
    shared = {name: getattr(settings, name) for name in DemoSearch.model_fields}
    return BootstrapRandomSearch(**shared, candidates=max(1, sets))
