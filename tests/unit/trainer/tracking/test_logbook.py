"""What is in MLflow already is not written again, whoever wrote it and wherever it stopped."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import pytest
from tests.unit.trainer.tracking.fake_mlflow import FakeMLflow, serving

from tandem_api.v1alpha1.infrastructure import MLflow
from tandem_trainer.tracking.client import MLflowClient, Point, TrackingError
from tandem_trainer.tracking.content import STEP_TAG, UID_TAG, WHY_TAGS, Page
from tandem_trainer.tracking.logbook import Logbook

RUN = Page("reviews", None, 1, "FINISHED", 9, {"seed": "0"}, {UID_TAG: "u1"}, (Point("score", 0.5, 0, 5),))
STEP = Page(
    "reviews-1-p",
    1,
    2,
    "FINISHED",
    8,
    {"kind": "p"},
    {UID_TAG: "u1", STEP_TAG: "1", "tandem.state": "Succeeded"},
    tuple(Point("candidate_score", 0.1 * n, n, n) for n in range(5)),
)


@pytest.fixture
def fake() -> Iterator[FakeMLflow]:
    with serving(FakeMLflow()) as served:
        yield served


def log(fake: FakeMLflow, *pages: Page) -> None:
    """What a worker does that knows nothing of those before it."""
    logbook = Logbook(MLflowClient(fake.uri, {}), MLflow(uri=fake.uri, experiment="e"), "u1")
    logbook.refresh()
    for page in pages:
        logbook.open(replace(page, state="RUNNING"))
    for page in pages:
        logbook.write(page)


def content(fake: FakeMLflow) -> list[Any]:
    return [
        (run["info"]["status"], {kind: sorted(map(json.dumps, values)) for kind, values in run["data"].items()})
        for run in fake.runs
        if run["info"]["lifecycle_stage"] == "active"
    ]


def test_logging_again_writes_nothing(fake):
    log(fake, RUN, STEP)
    before, asked = content(fake), len(fake.requests)
    log(fake, RUN, STEP)
    assert content(fake) == before
    writes = [path for _, path, _ in fake.requests[asked:] if not path.endswith(("search", "get-by-name"))]
    assert [path for path in writes if not path.endswith("get-history")] == []


@pytest.mark.parametrize("is_done", [False, True], ids=["before", "after"])
@pytest.mark.parametrize("nth", range(6))
def test_a_worker_that_dies_at_any_write_leaves_nothing_that_is_written_twice(fake, nth, is_done):
    with serving(FakeMLflow()) as undisturbed:
        log(undisturbed, RUN, STEP)
    writes = 0

    def fail(method: str, path: str, body: dict[str, Any]) -> tuple[int, bytes] | None:
        nonlocal writes
        if not path.endswith(("create", "log-batch", "update")):
            return None
        writes += 1
        if writes != nth + 1:
            return None
        if is_done:
            fake._answer(path.rpartition("/2.0/mlflow/")[2], body)
        return 500, b""

    fake.script = fail
    with pytest.raises(TrackingError, match="500"):
        log(fake, RUN, STEP)
    log(fake, RUN, STEP)
    assert content(fake) == content(undisturbed)


def test_of_two_runs_for_one_step_the_fuller_one_is_kept(fake):
    log(fake, RUN, STEP)
    client = MLflowClient(fake.uri, {})
    late = client.create_run("7", STEP.name, STEP.start, None, STEP.tags)
    log(fake, RUN, STEP)
    alive = Counter(run["info"]["lifecycle_stage"] for run in fake.runs)
    assert alive == {"active": 2, "deleted": 1}
    assert next(r for r in fake.runs if r["info"]["run_id"] == late.id)["info"]["lifecycle_stage"] == "deleted"


def test_a_run_that_was_taken_for_failed_and_goes_on_is_running_again(fake):
    log(fake, replace(RUN, state="FAILED"))
    log(fake, replace(RUN, state="RUNNING", end=None))
    assert content(fake)[0][0] == "RUNNING"


def test_what_succeeds_after_its_failure_was_logged_keeps_no_reason_of_it(fake):
    pages = (RUN, STEP)
    for reason in ({"tandem.reason": "OOMKilled", "tandem.message": "of 2 Gi"}, {"tandem.reason": "Evicted"}):
        log(fake, *(replace(page, state="FAILED", tags={**page.tags, **reason}) for page in pages))
        tags = [{tag["key"]: tag["value"] for tag in run["data"]["tags"]} for run in fake.runs]
        assert [{key: one[key] for key in one if key in WHY_TAGS} for one in tags] == [reason, reason]
    log(fake, *pages)
    told = {tag["key"] for run in fake.runs for tag in run["data"]["tags"]}
    assert not told & set(WHY_TAGS) and {run["info"]["status"] for run in fake.runs} == {"FINISHED"}
