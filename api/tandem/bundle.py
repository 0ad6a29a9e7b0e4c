"""The result of a run as a folder: the program, its prompts, the adapter, the scores, the report."""

from __future__ import annotations

import json
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from tandem_api.adapters import PREDICTORS, PredictorAdapters
from tandem_api.errors import DataError
from tandem_api.records import PromptSet
from tandem_api.v1alpha1 import OptimizationRun
from tandem_api.v1alpha1.run import parse_run

#: What every bundle has.
_FILES = ("program.json", "prompts.json", "run.json", "scores.json")


@dataclass(frozen=True)
class Bundle:
    """A result bundle on this machine."""

    path: Path
    """Its folder."""

    @staticmethod
    def open(path: str | Path) -> Bundle:
        """The bundle in a folder. Raises DataError for a folder that is none."""
        folder = Path(path).expanduser().absolute()
        missing = [name for name in _FILES if not (folder / name).is_file()]
        if missing:
            raise DataError(f"{folder} is no result bundle of this version: {', '.join(missing)} is not there")
        return Bundle(folder)

    @cached_property
    def run(self) -> OptimizationRun:
        """What was asked for: the run's metadata and spec. Its status is not among them."""
        return parse_run(self._json("run.json"))

    @cached_property
    def prompts(self) -> PromptSet:
        """The best program's instructions and demos, by predictor."""
        try:
            return PromptSet.model_validate(self._json("prompts.json"))
        except ValidationError as error:
            raise DataError(f"{self.path / 'prompts.json'} holds no prompts: {error}") from error

    @cached_property
    def scores(self) -> dict[str, Any]:
        """Every number of the run: `scores.json`."""
        found: dict[str, Any] = self._json("scores.json")
        return found

    @property
    def adapter(self) -> Path | None:
        """The LoRA adapter's folder, in PEFT's format (one subfolder for each predictor that has its own); None: the
        best program runs on the base model."""
        folder = self.path / "adapter"
        return folder if folder.is_dir() else None

    @cached_property
    def predictors(self) -> tuple[str, ...]:
        """The predictors that have adapters of their own, in the order of the adapters; empty: one adapter, or none."""
        path = self.path / "adapter" / PREDICTORS
        if not path.is_file():
            return ()
        try:
            return PredictorAdapters.model_validate_json(path.read_bytes()).predictors
        except ValidationError as error:
            raise DataError(f"{path} does not tell whose the adapters are: {error}") from error

    @property
    def adapter_sha256(self) -> str | None:
        """The adapter's digest, as the run's status has it."""
        found: str | None = self.scores["best"]["adapter"]
        return found

    @property
    def report(self) -> Path:
        """The report, a web page."""
        return self.path / "report.html"

    def _json(self, name: str) -> Any:
        try:
            return json.loads((self.path / name).read_bytes())
        except (OSError, ValueError) as error:
            raise DataError(f"{self.path / name} cannot be read: {error}") from error
