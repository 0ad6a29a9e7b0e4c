"""What each adapter of a training is learnt from: one on all rows, or one for each predictor. No torch here."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from tandem_api.adapters import MAX_ADAPTERS
from tandem_api.errors import ConfigurationError
from tandem_api.records import TraceRow
from tandem_api.v1alpha1.weight_optimizers import WeightOptimizer
from tandem_trainer.adapters.predictors import adapter_folders, read_predictors, write_predictors
from tandem_trainer.lora.dataset import Pair, select_pairs
from tandem_trainer.traces.filtering import traces_by_predictor


@dataclass(frozen=True)
class Share:
    """The part of one adapter."""

    predictor: str | None
    """Whose it is; None: all predictors share it."""
    pairs: tuple[Pair, ...]
    """Its rows. Empty: there are too few, and it stays as it is."""
    start: Path | None
    """The folder of the adapter that it continues."""


def divide(traces: Sequence[TraceRow], settings: WeightOptimizer, start: Path | None) -> tuple[Share, ...]:
    """Who learns from what, in a fixed order. `start`: the folder of the adapter, or the adapters, of before.

    A predictor with too few traces keeps the adapter that it has, or the base model: then it is not among them.
    Raises ConfigurationError where the adapters of before are of the other kind, or there are too many predictors.
    """
    pairs = select_pairs(traces, settings.prompts)
    before = dict(zip(read_predictors(start), adapter_folders(start), strict=False)) if start is not None else {}
    if start is not None and bool(before) != (settings.adapters == "per-predictor"):
        raise ConfigurationError(
            f"weightOptimizer.adapters: found {settings.adapters}, but the step before left "
            f"{'an adapter for each predictor' if before else 'one adapter'}; keep that, or set startFrom: original"
        )
    if settings.adapters == "shared":
        return (Share(None, tuple(pairs), start),)
    enough = max(1, settings.min_per_predictor)
    learning = {name for name, count in traces_by_predictor(traces).items() if count >= enough}
    names = sorted(learning | before.keys())
    if len(names) > MAX_ADAPTERS:
        raise ConfigurationError(
            f"weightOptimizer.adapters: per-predictor: found {len(names)} predictors to train; at most {MAX_ADAPTERS} "
            "adapters can be served at once: raise traces.minPerPredictor, or set adapters: shared"
        )
    return tuple(
        Share(name, tuple(pair for pair in pairs if name in learning and pair.predictor == name), before.get(name))
        for name in names
    )


def gather(shares: Sequence[Share], trained: Sequence[Path | None], folder: Path) -> tuple[str, ...]:
    """Put the adapters of all predictors into `folder`: what was trained, or what a share stays with. Returns whose
    they are."""
    for number, (share, adapter) in enumerate(zip(shares, trained, strict=True)):
        source = adapter or share.start
        assert source is not None, f"{share.predictor} has neither rows nor an adapter"
        shutil.copytree(source, folder / str(number))
    predictors = tuple(share.predictor or "" for share in shares)
    write_predictors(folder, predictors)
    return predictors
