"""What is done about a vLLM's adapters, and what is told: without I/O."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from tandem_api.adapters import MAX_ADAPTERS, DesiredAdapter, DesiredAdapters
from tandem_trainer.adapters.plan import (
    KEPT_FOLDERS,
    LOAD_ATTEMPTS,
    LONGEST_WAIT,
    Activity,
    Fetch,
    Load,
    Memory,
    Observed,
    Problem,
    Prove,
    Remove,
    Trouble,
    Unload,
    after,
    asks_activity,
    judge_load,
    plan,
    report,
)
from tandem_trainer.serving import MAX_CPU_LORAS

FOLDER = Path("/tandem/adapters")
IDLE = Activity(0, frozenset())
UP = Observed(up=True, activity=IDLE)
DOWN = Observed(up=False, message="vLLM does not answer")


def adapter(number: int) -> DesiredAdapter:
    sha256 = f"{number:064x}"
    return DesiredAdapter(name=f"run-{number}", uri=f"s3://bucket/{number}/", sha256=sha256)


A, B, C = adapter(10), adapter(11), adapter(12)


def wanted(*adapters: DesiredAdapter) -> DesiredAdapters:
    return DesiredAdapters(adapters=adapters)


def listing(*adapters: DesiredAdapter, observed: Observed = UP, **others: str) -> Observed:
    roots = {a.name: f"{FOLDER}/{a.sha256}" for a in adapters}
    return replace(observed, roots={**roots, **others})


def memory(*fetched: DesiredAdapter, **more: object) -> Memory:
    return replace(Memory(FOLDER, frozenset(fetched)), **more)  # type: ignore[arg-type]


def actions(desired: DesiredAdapters, observed: Observed, known: Memory, now: float = 100.0) -> list[object]:
    return list(plan(desired, observed, known, now))


def test_the_api_and_the_launcher_agree_on_how_many_there_may_be() -> None:
    assert MAX_ADAPTERS == MAX_CPU_LORAS


def test_first_the_files_then_vllm() -> None:
    assert actions(wanted(A), UP, memory()) == [Fetch(A)]
    assert actions(wanted(A), UP, memory(A)) == [Load(A)]
    assert actions(wanted(A), listing(A), memory(A)) == [Prove(A)]
    assert actions(wanted(A), listing(A), memory(A, proofs={A: True})) == []


def test_adapters_of_one_folder_are_fetched_one_after_another_and_loaded_at_once() -> None:
    first, second = (A.model_copy(update={"name": f"{A.name}-{n}", "number": n}) for n in (0, 1))
    both = wanted(first, second)
    assert actions(both, UP, memory()) == [Fetch(first)]
    assert actions(both, UP, memory(underway=frozenset({first.name}))) == []
    assert actions(both, UP, memory(first)) == [Load(first), Fetch(second)]
    assert actions(both, UP, memory(first, underway=frozenset({first.name}))) == [Fetch(second)]
    assert actions(both, UP, memory(first, second)) == [Load(first), Load(second)]
    roots = {first.name: f"{FOLDER}/{A.sha256}/0", second.name: f"{FOLDER}/{A.sha256}/1"}
    there, proven = replace(UP, roots=roots), memory(first, second, proofs={first: True, second: True})
    assert actions(both, there, proven) == [] and report(both, there, proven).ready
    # Each from its own subfolder: the other one's is a conflict.
    swapped = replace(UP, roots={first.name: roots[second.name], second.name: roots[first.name]})
    assert not report(both, swapped, memory(first, second, proofs={first: True, second: True})).ready


def test_adapters_of_several_predictors_are_unloaded_and_their_folder_stays_while_one_is_registered() -> None:
    roots = {f"{A.name}-{n}": f"{FOLDER}/{A.sha256}/{n}" for n in (0, 1)}
    assert actions(wanted(), replace(UP, roots=roots), memory()) == [Unload(name) for name in sorted(roots)]
    lying = (A.sha256, *(adapter(100 + n).sha256 for n in range(KEPT_FOLDERS)))
    registered = replace(UP, roots={f"{A.name}-1": roots[f"{A.name}-1"]}, activity=IDLE)
    removed = [one for one in actions(wanted(), registered, memory(folders=lying)) if isinstance(one, Remove)]
    assert removed == [Remove(adapter(100).sha256)]


def test_what_is_loaded_from_the_right_folder_needs_a_proof_only_even_if_we_know_nothing_of_it() -> None:
    assert actions(wanted(A), listing(A), memory()) == [Prove(A)]


def test_what_vllm_does_not_really_answer_with_is_unloaded_and_loaded_again_after_a_while() -> None:
    trouble = after(None, Problem("counted", "answers with the base model"), now=100.0)
    wrong = memory(A, proofs={A: False}, troubles={A: trouble})
    assert actions(wanted(A), listing(A), wrong) == [Unload(A.name)]
    found = report(wanted(A), listing(A), wrong)
    assert not found.ready and found.loaded == () and found.failed[0].message == "answers with the base model"
    unloaded = replace(wrong, proofs={})
    assert actions(wanted(A), UP, unloaded, now=100.5) == []
    assert actions(wanted(A), UP, unloaded, now=101.0) == [Load(A)]
    given_up = replace(wrong, troubles={A: replace(trouble, permanent=True)})
    assert actions(wanted(A), listing(A), given_up, now=1000.0) == [Unload(A.name)]


def test_a_proof_that_could_not_be_had_is_asked_for_again_after_a_while() -> None:
    busy = memory(A, troubles={A: after(None, Problem("passing", "its canary: vLLM answered 503"), now=100.0)})
    assert actions(wanted(A), listing(A), busy, now=100.5) == []
    assert actions(wanted(A), listing(A), busy, now=101.0) == [Prove(A)]
    assert not report(wanted(A), listing(A), busy).ready


def test_a_load_that_was_given_up_and_that_vllm_lists_after_all_is_proven() -> None:
    given_up = Trouble("no answer", permanent=True, retry_at=100.0, tries=5, counted=5)
    assert actions(wanted(A), listing(A), memory(A, troubles={A: given_up})) == [Prove(A)]


def test_files_are_fetched_while_vllm_starts_and_loaded_when_it_is_up() -> None:
    assert actions(wanted(A), DOWN, memory()) == [Fetch(A)]
    assert actions(wanted(A), DOWN, memory(A)) == []


def test_after_a_restart_of_vllm_everything_is_loaded_again() -> None:
    assert actions(wanted(A, B), UP, memory(A, B)) == [Load(A), Load(B)]


def test_one_thing_at_a_time_is_done_about_a_name() -> None:
    assert actions(wanted(A), UP, memory(underway=frozenset({A.name}))) == []
    assert actions(wanted(), listing(A), memory(underway=frozenset({A.name}))) == []


def test_a_name_that_is_taken_is_left_alone_and_told_of_as_permanent() -> None:
    observed = listing(**{A.name: "/elsewhere"})
    assert actions(wanted(A), observed, memory(A)) == []
    failure = report(wanted(A), observed, memory(A)).failed[0]
    assert failure.permanent and "/elsewhere" in failure.message and f"{FOLDER}/{A.sha256}" in failure.message


def test_what_is_wanted_no_longer_is_unloaded_when_it_has_no_calls() -> None:
    assert actions(wanted(), listing(A, B), memory()) == [Unload(A.name), Unload(B.name)]
    busy = replace(listing(A, B), activity=Activity(1, frozenset({A.name})))
    assert actions(wanted(), busy, memory()) == [Unload(B.name)]
    assert actions(wanted(), replace(busy, activity=None), memory()) == [], "vLLM does not tell"
    assert actions(wanted(), replace(busy, activity=Activity(1, frozenset(), engines=2)), memory()) == []


def test_other_peoples_adapters_are_not_unloaded_but_take_room() -> None:
    others = {f"other-{number}": f"/models/{number}" for number in range(MAX_CPU_LORAS)}
    assert actions(wanted(A), listing(**others), memory(A)) == []
    assert "8 adapters are registered" in report(wanted(A), listing(**others), memory(A)).message


def test_calls_are_asked_for_only_where_they_matter() -> None:
    assert not asks_activity(wanted(A), listing(A), memory(A))
    assert asks_activity(wanted(), listing(A), memory(A))
    assert not asks_activity(wanted(), replace(DOWN, roots={A.name: f"{FOLDER}/{A.sha256}"}), memory())
    assert asks_activity(wanted(), UP, memory(folders=tuple(f"{n}" for n in range(KEPT_FOLDERS + 1))))


def test_no_more_are_registered_than_fit_into_memory() -> None:
    old = [adapter(number) for number in range(MAX_CPU_LORAS)]
    busy = frozenset(a.name for a in old[1:])
    full = replace(listing(*old), activity=Activity(len(busy), busy))
    assert actions(wanted(A, B), full, memory(A, B)) == [Unload(old[0].name)]
    seven = replace(listing(*old[1:]), activity=full.activity)
    assert actions(wanted(A, B), seven, memory(A, B)) == [Load(A)]
    assert actions(wanted(A, B), seven, memory(A, B, underway=frozenset({A.name}))) == []
    waiting = report(wanted(A), full, memory(A)).pending[0].message
    assert "at most 8" in waiting and old[1].name in waiting


def test_trouble_is_waited_out_and_a_permanent_one_ends_it() -> None:
    troubled = Trouble("no", permanent=False, retry_at=101.0, tries=1, counted=1)
    assert actions(wanted(A), UP, memory(A, troubles={A: troubled}), now=100.0) == []
    assert actions(wanted(A), UP, memory(A, troubles={A: troubled}), now=101.0) == [Load(A)]
    hopeless = replace(troubled, permanent=True)
    assert actions(wanted(A), UP, memory(A, troubles={A: hopeless}), now=1000.0) == []
    corrected = A.model_copy(update={"uri": "s3://bucket/elsewhere/"})
    assert actions(wanted(corrected), UP, memory(troubles={A: hopeless})) == [Fetch(corrected)]


def test_waits_grow_up_to_a_bound_and_only_counted_problems_end_the_tries() -> None:
    trouble, waits = None, []
    for _ in range(20):
        trouble = after(trouble, Problem("passing", "busy"), now=0.0)
        waits.append(trouble.retry_at)
    assert waits[:4] == [1.0, 2.0, 4.0, 8.0] and waits[-1] == LONGEST_WAIT and not trouble.permanent
    for number in range(LOAD_ATTEMPTS):
        assert not trouble.permanent
        trouble = after(trouble, Problem("counted", f"no {number}"), now=0.0)
    assert trouble.permanent and trouble.message == f"no 4 (given up after {LOAD_ATTEMPTS} tries)"
    assert after(None, Problem("permanent", "never"), now=0.0).permanent


def test_old_files_are_removed_oldest_first_and_only_if_nobody_can_need_them() -> None:
    folders = tuple(adapter(number).sha256 for number in range(KEPT_FOLDERS + 2))
    # The oldest is wanted, the second is listed: the next two go.
    desired, observed = wanted(adapter(0)), listing(adapter(0), adapter(1))
    busy = replace(observed, activity=Activity(1, frozenset({adapter(1).name})))
    lying = memory(folders=folders, proofs={adapter(0): True})
    assert actions(desired, replace(observed, activity=IDLE), lying) == [
        Unload(adapter(1).name),
        Remove(folders[2]),
        Remove(folders[3]),
    ]
    assert actions(desired, busy, lying) == []
    assert actions(desired, replace(observed, activity=None), lying) == []
    assert Remove(folders[2]) not in actions(desired, observed, replace(lying, underway=frozenset({"x"})))
    assert Remove(folders[2]) not in actions(desired, DOWN, lying)
    assert Remove(folders[2]) not in actions(desired, observed, memory(folders=folders[:KEPT_FOLDERS]))


ROOT = f"{FOLDER}/{A.sha256}"


@pytest.mark.parametrize(
    ("status", "text", "observed", "kind"),
    [
        (200, "Success", listing(A), None),
        (400, "has already been loaded", listing(A), None),
        (None, "got no answer: timeout", listing(A), None),
        (400, "has already been loaded", listing(**{A.name: "/elsewhere"}), "passing"),
        (400, "conflicts with a served base model", UP, "permanent"),
        (401, "Unauthorized", UP, "permanent"),
        (404, "No adapter found", UP, "counted"),
        (500, "LoRA rank 64 is greater than max_lora_rank 16.", UP, "permanent"),
        (500, "vLLM does not yet support DoRA.", UP, "permanent"),
        (500, "Adapter bias is not supported.", UP, "permanent"),
        (500, "Missing required configuration fields: {'r'}", UP, "permanent"),
        (500, "expected target modules in {'q_proj'} but received ['x'].", UP, "permanent"),
        (500, "The size of tensor a (128) must match the size of tensor b (256)", UP, "permanent"),
        (500, "out of memory", UP, "counted"),
        (500, "does not support", DOWN, "counted"),
        (None, "got no answer: Server disconnected", DOWN, "counted"),
        (None, "got no answer: timeout", UP, "counted"),
        (200, "Success", UP, "counted"),
        (503, "busy", UP, "counted"),
    ],
)
def test_only_what_vllm_lists_counts_as_loaded(
    status: int | None, text: str, observed: Observed, kind: str | None
) -> None:
    problem = judge_load(status, text, observed, A.name, ROOT)
    assert (problem and problem.kind) == kind
    if problem is not None and kind != "passing":
        assert text in problem.message


def test_the_report_tells_of_every_wanted_adapter_once() -> None:
    trouble = Trouble("size mismatch", permanent=True, retry_at=0.0, tries=5, counted=5)
    known = memory(A, troubles={A: trouble, B: trouble}, proofs={A: True})
    found = report(wanted(A, B, C), listing(A), known)
    assert not found.ready
    assert found.loaded == (A.name,), "what is proven has no trouble any more"
    assert [(failure.name, failure.permanent) for failure in found.failed] == [(B.name, True)]
    assert [(waiting.name, waiting.message) for waiting in found.pending] == [
        (C.name, "it is being fetched from s3://bucket/12/")
    ]
    assert found.message.startswith(f"{B.name}: size mismatch; {C.name}: ")


def test_it_is_ready_when_all_are_loaded_and_vllm_is_up() -> None:
    assert report(wanted(), UP, memory()).ready
    assert report(wanted(A), listing(A, B), memory(proofs={A: True})).ready, "more than is wanted does no harm"
    unproven = report(wanted(A), listing(A), memory())
    assert (unproven.ready, unproven.message) == (False, f"{A.name}: it is loaded, and vLLM is asked for its canary")
    assert not report(wanted(), DOWN, memory()).ready
    assert report(wanted(), DOWN, memory()).message == DOWN.message
    unreadable = report("x.json cannot be read", UP, memory())
    assert (unreadable.ready, unreadable.desired, unreadable.message) == (False, None, "x.json cannot be read")


def test_long_messages_fit_into_the_report() -> None:
    trouble = Trouble("x" * 5000, permanent=True, retry_at=0.0, tries=1, counted=0)
    assert len(report(wanted(A), UP, memory(troubles={A: trouble})).failed[0].message) == 2048
