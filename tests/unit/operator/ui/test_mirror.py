"""Copies of a run's objects: all that pages show and nothing beside, read once, parsed once."""

from __future__ import annotations

import weakref
from types import SimpleNamespace

import pytest
from tests.made_up_run import LAYOUT, lines, made_up, prompts, record
from tests.memory_store import MemoryStore
from tests.unit.trainer.report import sample

from tandem_api.layout import RunLayout
from tandem_api.v1alpha1 import OptimizationRun
from tandem_operator.ui import journals, model
from tandem_operator.ui.mirror import Mirror
from tandem_operator.ui.model import Live

SEARCH = LAYOUT.stage(1, "p", "optimize")


def in_store(**objects: bytes) -> MemoryStore:
    """A search's objects."""
    store = MemoryStore()
    store.objects = {SEARCH.root + name.replace("__", "/") + ".jsonl": data for name, data in objects.items()}
    return store


def mirror_of(store: MemoryStore, max_bytes: int = 1 << 20) -> Mirror:
    mirror = Mirror(LAYOUT, max_bytes)
    mirror.sync(store)
    return mirror


@pytest.mark.parametrize(
    ("prefix", "namespace", "name"),
    [
        ("ml/checkpoints", "team", "reviews"),
        ("ml/adapter", "team", "reviews"),
        ("ml", "checkpoints", "reviews"),
        ("", "team", "adapter"),
        ("", "team", "adapters"),
    ],
)
def test_prefix_namespace_and_run_may_be_named_as_what_is_left_out(prefix: str, namespace: str, name: str) -> None:
    layout = RunLayout(prefix, namespace, name, "u1")
    stage = layout.stage(1, "w", "train")
    store = MemoryStore()
    wanted = {f"{stage.root}train_log.jsonl", f"{stage.ledger}1.jsonl"}
    large = {f"{stage.adapter}config.json", f"{stage.checkpoints}9/state.json", f"{stage.epoch_adapter(1)}config.json"}
    store.objects = dict.fromkeys(wanted | large | {layout.run_json, stage.request}, b"{}\n")
    mirror = Mirror(layout)
    mirror.sync(store)
    assert set(mirror.keys("")) == wanted


def test_tables_come_before_journals_in_a_namespace_that_is_named_as_one() -> None:
    layout = RunLayout("ml", "ledger", "reviews", "u1")
    stage = layout.stage(1, "p", "optimize")
    store = MemoryStore()
    store.objects = {f"{stage.ledger}1.jsonl": b"x" * 80, stage.trials: b"x" * 80}
    mirror = Mirror(layout, max_bytes=100)
    mirror.sync(store)
    assert mirror.keys("") == [stage.trials]


def test_what_fits_no_longer_is_given_up_and_comes_back() -> None:
    store = in_store(ledger__1=b"x" * 60, trials=b"x" * 10)
    mirror = mirror_of(store, max_bytes=100)
    assert mirror.left_out == 0
    store.objects[SEARCH.trials] = b"x" * 50
    mirror.sync(store)
    assert (mirror.left_out, mirror.keys("")) == (1, [SEARCH.trials])
    store.objects[SEARCH.trials] = b"x" * 40
    mirror.sync(store)
    assert (mirror.left_out, len(mirror.keys(""))) == (0, 2)


def test_of_a_journal_of_very_many_objects_none_is_parsed_at_the_second_look() -> None:
    line = lines([record(1, prompts(1))]).decode()
    key = record(1, prompts(1)).key
    store = in_store(**{f"ledger__{n:08}": line.replace(key, f"{key}-{n}").encode() for n in range(16_500)})
    mirror = mirror_of(store, max_bytes=1 << 30)
    first = journals.scored_examples(mirror, SEARCH).records
    mirror.sync(store)
    second = journals.scored_examples(mirror, SEARCH).records
    assert len(first) == 16_500
    assert all(one is other for one, other in zip(first, second, strict=True))


def test_records_are_kept_no_longer_than_their_object() -> None:
    store = in_store(trials=lines(list(sample.trials(20, 2))))
    mirror = mirror_of(store)
    table = weakref.ref(journals.trials(mirror, SEARCH))
    assert table() is journals.trials(mirror, SEARCH)
    store.objects.clear()
    mirror.sync(store)
    assert table() is None


def test_a_table_that_was_rewritten_is_read_anew() -> None:
    trials = list(sample.trials(20, 2))
    store = in_store(trials=lines(trials[:5]))
    mirror = mirror_of(store)
    assert len(journals.trials(mirror, SEARCH).records) == 5
    store.objects[SEARCH.trials] = lines(trials)
    mirror.sync(store)
    assert len(journals.trials(mirror, SEARCH).records) == 20


def test_a_look_that_takes_long_is_not_repeated_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    run, clock = made_up(), SimpleNamespace(now=100.0)
    looks: list[float] = []
    monkeypatch.setattr(model, "time", SimpleNamespace(monotonic=lambda: clock.now))

    def slow(_: OptimizationRun, __: Mirror) -> None:
        looks.append(clock.now)
        clock.now += 10

    run.sync = slow  # type: ignore[method-assign]
    live = Live(run)
    for _ in range(35):
        live.seen()
        clock.now += 1
    assert looks == [100, 130], "pages have the time between"
