"""A run's pages in MLflow, brought up to what they are to hold.

MLflow has no transactions and no keys to find a run by, so everything is looked up before it is written: a run by its
tags, a point by its step. What is there already is left: whoever died at any moment, the next one goes on. A run that
was made twice all the same (by a request that was given up and carried out later) is found twice and kept once.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping
from dataclasses import replace

from tandem_api.v1alpha1.infrastructure import MLflow
from tandem_trainer.tracking.client import MLflowClient, Point, Run
from tandem_trainer.tracking.content import BUNDLE_FILES, STEP_TAG, UID_TAG, WHY_TAGS, Page

_PARENT_TAG = "mlflow.parentRunId"
_STATE_TAG = "tandem.state"


class Logbook:
    """The pages of the run `uid`. Every method raises TrackingError; `refresh` comes first."""

    def __init__(self, client: MLflowClient, settings: MLflow, uid: str) -> None:
        self._client = client
        self._settings = settings
        self._uid = uid
        self._experiment = ""
        self._runs: dict[int | None, Run] = {}
        self._steps: dict[tuple[str, str], set[int]] = {}
        """Of a run and metric: the steps that have a value."""

    def refresh(self) -> None:
        """See what is there."""
        if not self._experiment:
            self._experiment = self._client.experiment(self._settings.experiment)
        found: dict[int | None, list[Run]] = {}
        for run in self._client.search(self._experiment, UID_TAG, self._uid):
            step = run.tags.get(STEP_TAG)
            found.setdefault(int(step) if step is not None else None, []).append(run)
        self._runs = {step: self._only_one(runs) for step, runs in found.items()}

    def is_complete(self, step: int, state: str) -> bool:
        """Whether the step's page has been written to its end, which was this state of the step."""
        run = self._runs.get(step)
        ended = run is not None and run.status not in ("RUNNING", "SCHEDULED")
        return run is not None and ended and run.tags.get(_STATE_TAG) == state

    def open(self, page: Page) -> None:
        """Make the page's run, if there is none."""
        if page.step not in self._runs:
            parent = self._parent(page)
            self._runs[page.step] = self._client.create_run(
                self._experiment, page.name, page.start, parent, page.tags
            )  # fmt: skip

    def write(self, page: Page, more: Iterable[Point] = ()) -> None:
        """Write what the page's run lacks, and how it stands last: whatever has an end is complete."""
        self.open(page)
        run, parent = self._runs[page.step], self._parent(page)
        wanted = {**page.tags, **({_PARENT_TAG: parent} if parent is not None else {})}
        tags = {key: value for key, value in wanted.items() if run.tags.get(key) != value}
        params = {key: value for key, value in page.params.items() if key not in run.params}
        points = self._missing(run, [*page.points, *more])
        # What was taken for failed and went on. First, as a page whose end is told may not be written again.
        outdated = [key for key in WHY_TAGS if key in run.tags and key not in wanted]
        for key in outdated:
            self._client.delete_tag(run.id, key)
        try:
            self._client.log(run.id, points, params, tags)
        except Exception:
            # Part of it may be there: it is looked up again.
            self._steps = {key: steps for key, steps in self._steps.items() if key[0] != run.id}
            raise
        for point in points:
            self._steps[run.id, point.key].add(point.step)
        if run.status != page.state:
            self._client.update_run(run.id, page.state, page.end)
        kept = {key: value for key, value in run.tags.items() if key not in outdated}
        known = {"tags": {**kept, **wanted}, "params": {**run.params, **params}, "status": page.state}
        self._runs[page.step] = replace(run, **known)  # type: ignore[arg-type]

    def keep_result(self, bundle: str, read: Callable[[str], bytes | None], text: str, tags: Mapping[str, str]) -> None:
        """Upload the bundle's files and register the program, as far as the settings say so. `read` takes the name of
        a file of the bundle, whose address is `bundle`."""
        run = self._runs[None]
        if self._settings.artifacts == "upload":
            for name in BUNDLE_FILES.values():
                data = read(name)
                if data is not None:
                    self._client.upload(run.artifact_uri, name, data)
        if self._settings.registered_model is not None:
            self._client.register(self._settings.registered_model, bundle, run.id, text, tags)

    def address(self, uri: str) -> str:
        """Where people look at the run."""
        return f"{uri.rstrip('/')}/#/experiments/{self._experiment}/runs/{self._runs[None].id}"

    def _parent(self, page: Page) -> str | None:
        return self._runs[None].id if page.step is not None else None

    def _only_one(self, runs: list[Run]) -> Run:
        """The fullest of them, the first made of equal ones; the others are deleted."""
        kept, *others = sorted(runs, key=lambda run: (-len(run.metrics), run.start, run.id))
        for run in others:
            self._client.delete_run(run.id)
        return kept

    def _missing(self, run: Run, points: Iterable[Point]) -> list[Point]:
        """Those whose metric has no value at their step; of several at one step the first."""
        found: dict[tuple[str, int], Point] = {}
        for point in points:
            key = (run.id, point.key)
            if key not in self._steps:
                self._steps[key] = self._client.steps(run.id, point.key) if point.key in run.metrics else set()
            if point.step not in self._steps[key]:
                found.setdefault((point.key, point.step), point)
        return list(found.values())
