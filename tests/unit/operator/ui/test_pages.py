"""The pages: every one can be made of whatever a run may look like, and nothing that was written becomes HTML."""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from typing import Any

import pytest
from tests.made_up_run import LAYOUT, MadeUp, going_on, lines, made_up
from tests.unit.trainer.report.sample import HOSTILE, RUNS, trials
from tests.unit.trainer.report.test_render import Page

from tandem_api.contract import CandidateScore
from tandem_api.records import WrittenText
from tandem_api.v1alpha1.status import Status
from tandem_operator.ui import journals, pages
from tandem_operator.ui.model import Live
from tandem_operator.ui.pages import Asked

ADDRESSES: tuple[tuple[str, dict[str, str]], ...] = (
    ("/", {}),
    ("/steps/{step}/search", {"step": "1"}),
    ("/steps/{step}/search", {"step": "3"}),
    ("/steps/{step}/trials/{trial}", {"step": "3", "trial": "3"}),
    ("/steps/{step}/training", {"step": "2"}),
    ("/steps/{step}/training", {"step": "1"}),
    ("/steps/{step}/{stage}/examples", {"step": "2", "stage": "traces"}),
    ("/steps/{step}/{stage}/examples", {"step": "3", "stage": "optimize"}),
    ("/logs", {}),
    ("/logs/{log}", {"log": "worker-1p-optimize-1"}),
)


def html(run: MadeUp, path: str, parts: dict[str, str] | None = None, **query: str) -> str | None:
    return pages.PAGES[path](run, Live(run).seen(), Asked(parts or {}, query))


def all_pages(run: MadeUp, **query: str) -> Iterator[str]:
    for path, parts in ADDRESSES:
        page = html(run, path, parts, **query)
        if page is not None:
            yield page


@pytest.mark.parametrize("status", [*RUNS, "going on", "new"])
def test_every_kind_of_run_can_be_shown(status: str) -> None:
    made = {"going on": going_on(), "new": Status()}.get(status) or RUNS[status]().status
    shown = [Page(page) for page in all_pages(made_up(made))]
    assert len(shown) >= 3
    assert {value for page in shown for value in page.values("src")} == {"/live.js"}


def test_nothing_that_was_written_becomes_html() -> None:
    run = made_up(text=lambda text: f"{text}{HOSTILE}")
    run.texts = {"worker-1p-optimize-1": HOSTILE}
    whole = "".join(all_pages(run, q="<script>", **{"with": "1", "order": HOSTILE, "kind": ""}))
    assert "<script>alert" not in whole and "<img" not in whole
    assert whole.count("&lt;script&gt;alert") > 50


def test_every_live_part_has_a_name_of_its_own() -> None:
    for page in map(Page, all_pages(made_up())):
        ids = page.values("id")
        assert len(ids) == len(set(ids))


@pytest.mark.parametrize(
    "damage",
    [b"", b"\xff\xfe\n", b"{\n", b"[]\n", b'{"key": 1}\n', b"null\n", b'{"index": 0, "score": NaN}\n', b"[" * 100_000],
    ids=["empty", "no text", "cut", "list", "other fields", "null", "nan", "deep"],
)
def test_a_damaged_journal_shows_what_can_be_read(damage: bytes) -> None:
    run = made_up()
    for key in list(run.store.objects):
        run.store.objects[f"{key.removesuffix('.jsonl')}-damaged.jsonl"] = damage
        run.store.objects[key] += damage
    run.store.objects[f"{LAYOUT.stage(2, 'w', 'train').root}train_log.jsonl"] += b'{"step": "x", "loss": null}\n'
    assert len(list(all_pages(run))) == len(ADDRESSES) - 1  # step 1 has no training
    live = Live(run)
    found = journals.scored_examples(live.seen().mirror, LAYOUT.stage(2, "w", "traces"))
    assert len(found.records) == 120
    told = html(run, "/steps/{step}/{stage}/examples", {"step": "2", "stage": "traces"}) or ""
    assert ("cannot be read" in told) == bool(damage)


def test_what_is_gone_from_the_store_is_gone_from_the_pages() -> None:
    run = made_up()
    live = Live(run)
    assert live.seen().mirror.keys("")
    run.store.objects.clear()
    live._next = 0
    assert live.seen().mirror.keys("") == []


def test_what_there_is_no_room_for_is_told() -> None:
    run = made_up()
    live = Live(run)
    live._mirror._max_bytes = 20_000
    seen = live.seen()
    assert any("left out" in problem for problem in seen.problems)
    assert sum(len(seen.mirror.get(key) or b"") for key in seen.mirror.keys("")) <= 20_000
    assert journals.trials(seen.mirror, LAYOUT.stage(3, "p", "optimize")).records, "tables come before journals"


@pytest.mark.parametrize(
    ("query", "found"),
    [
        ({}, 120),
        ({"result": "passed"}, 88),
        ({"status": "unparsable"}, 10),
        ({"q": "SECOND half"}, 20),
        ({"q": "no such words"}, 0),
        ({"q": "prediction seconds"}, 0),
        ({"candidate": "0" * 64}, 0),
        ({"page": "99999999999999"}, 120),
        ({"page": "-1"}, 120),
        ({"page": "²"}, 120),
    ],
)
def test_examples_are_filtered(query: dict[str, str], found: int) -> None:
    page = html(made_up(), "/steps/{step}/{stage}/examples", {"step": "2", "stage": "traces"}, **query) or ""
    assert (f"{found} of 120 runs" in page) if found else ("None of the 120 runs fits" in page)


def test_older_examples_are_on_further_pages_with_the_same_filter() -> None:
    parts = {"step": "2", "stage": "traces"}
    first = html(made_up(), "/steps/{step}/{stage}/examples", parts, q="review") or ""
    assert 'href="?q=review&amp;page=2">older' in first
    last = html(made_up(), "/steps/{step}/{stage}/examples", parts, q="review", page="3") or ""
    assert "Page 3 of 3" in last and "older" not in last


def test_another_run_of_the_same_name_is_shown_afresh() -> None:
    run = made_up()
    live = Live(run)
    assert live.seen().mirror.keys("")
    again: dict[str, Any] = json.loads(run.run.model_dump_json())
    run.run = type(run.run).model_validate(again | {"metadata": {"name": "reviews", "uid": "u2"}})
    live._next = 0
    assert live.seen().mirror.layout.uid == "u2" and live.seen().mirror.keys("") == []


SEARCH = LAYOUT.stage(3, "p", "optimize")


def test_the_best_first_compares_no_score_over_a_few_examples_with_one_over_all_of_validation() -> None:
    run = made_up()
    full = CandidateScore(score=0.8, low=0.7, high=0.9, n=200)
    changes: tuple[dict[str, Any], ...] = (
        {"n": 7, "score": 1.0, "dropped": True},
        {"n": 25, "score": 0.72},
        {"n": 25, "score": 0.85, "full": full},
        {"n": 25, "score": 0.9},
        {"n": 0, "score": None, "low": None, "high": None},
        {"n": 12, "score": 0.95},
        {"n": 25, "score": 0.84, "full": full.model_copy(update={"score": 0.75})},
        {"n": 25, "score": 0.99, "dropped": True},
    )
    table = [trial.model_copy(update=change) for trial, change in zip(trials(20, -1), changes, strict=False)]
    run.store.objects[SEARCH.trials] = lines(table)
    page = html(run, "/steps/{step}/search", {"step": "3"}, order="score") or ""
    assert re.findall(r">Trial (\d+)</a>", page) == ["2", "6", "3", "1", "0", "7", "5", "4"]


def test_a_score_on_all_of_validation_is_shown_beside_the_searchs_own() -> None:
    run = made_up()
    told = "On all of validation"
    page = html(run, "/steps/{step}/search", {"step": "3"}) or ""
    assert told in page and "72.5% (n = 40)" in page
    run.store.objects[SEARCH.trials] = lines(list(trials(12, 2, full=False)))
    assert told not in (html(run, "/steps/{step}/search", {"step": "3"}) or "")


def test_a_text_that_the_reader_has_opened_is_the_same_after_newer_ones() -> None:
    def shown() -> dict[str, str]:
        page = html(run, "/steps/{step}/search", {"step": "3"}) or ""
        return dict(re.findall(r'<details id="(text-\d+)"><summary>(.*?)</summary>', page))

    run = made_up()
    key = f"{SEARCH.calls}1.jsonl"
    texts = [WrittenText(key=f"w{n}", text=f"wording {n}") for n in range(63)]
    run.store.objects[key] = lines(texts[:60])
    before = shown()
    run.store.objects[key] = lines(texts)
    after = shown()
    assert len(before) == len(after) == pages.MAX_TEXTS
    assert "wording 62" in after.values() and "wording 62" not in before.values()
    both = before.keys() & after.keys()
    assert len(both) == 47 and all(before[name] == after[name] for name in both)


def test_one_log_is_shown_without_asking_for_the_list_of_all() -> None:
    run = made_up()

    def fail() -> Any:
        raise AssertionError("on a cluster that is three more requests")

    run.logs = fail  # type: ignore[method-assign]
    assert "scoring trial 3" in (html(run, "/logs/{log}", {"log": "worker-1p-optimize-1"}) or "")
