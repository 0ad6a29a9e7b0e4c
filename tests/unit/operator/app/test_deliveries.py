"""Events on their way to real HTTP receivers: in order, retried, bounded, and never in anybody's way."""

from __future__ import annotations

import asyncio
import base64
import logging
import secrets
from collections.abc import Awaitable, Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from prometheus_client import CollectorRegistry, generate_latest
from pydantic import ValidationError
from tests.receiver import Receiver, is_signed
from tests.unit.operator.app.helpers import run_of, until_async
from tests.unit.operator.app.test_transitions import ended, seen

from tandem_operator.app import deliveries as module
from tandem_operator.app.deliveries import Deliveries
from tandem_operator.app.queue import Outcome
from tandem_operator.settings import CloudEvents

KEY = base64.b64encode(secrets.token_bytes(32)).decode()
WHERE = ("team", "reviews")


@pytest.fixture(autouse=True)
def quick(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(module, "FIRST_SECONDS", 0.02)
    monkeypatch.setattr(module, "LONGEST_SECONDS", 0.1)


@pytest.fixture
def receiver() -> Iterator[Receiver]:
    with Receiver() as found:
        yield found


class Case:
    """Deliveries to some URLs."""

    def __init__(self, folder: Path, *urls: str, **more: Any) -> None:
        path = folder / "key"
        path.write_text(KEY)
        self.settings = CloudEvents.model_validate(
            {"urls": urls, "signingKeyFile": path, "replaySeconds": 10**9, "timeoutSeconds": 2, **more}
        )
        self.registry = CollectorRegistry()

    def play(self, story: Callable[[Deliveries], Awaitable[None]]) -> None:
        async def main() -> None:
            made = Deliveries(self.settings, self.registry)
            running = asyncio.create_task(made.run())
            try:
                await story(made)
            finally:
                running.cancel()
                await asyncio.gather(running, return_exceptions=True)

        asyncio.run(main())

    def value(self, name: str, **labels: str) -> float:
        wanted = sorted(labels.items())
        return sum(
            sample.value
            for family in self.registry.collect()
            for sample in family.samples
            if sample.name == f"tandem_cloudevents_{name}" and [*wanted] == [
                (key, value) for key, value in sorted(sample.labels.items()) if key in labels
            ]
        )  # fmt: skip


def whole(uid: str = "u1", name: str = "reviews") -> Outcome:
    run = run_of(name, status=ended())
    return Outcome(None, run.model_copy(update={"metadata": run.metadata.model_copy(update={"uid": uid})}))


def test_a_runs_events_arrive_once_in_order_and_signed(tmp_path: Path, receiver: Receiver) -> None:
    case = Case(tmp_path, receiver.url)

    async def story(made: Deliveries) -> None:
        made.passed(WHERE, whole(), 0.1)
        made.passed(WHERE, whole(), 0.1)
        made.failed(WHERE, RuntimeError("x"), 0.1)
        await until_async(lambda: case.value("delivered_total") == 9)
        made.passed(WHERE, Outcome(None, None, is_gone=True), 0.1)
        made.passed(WHERE, Outcome(None, None, is_gone=True), 0.1)
        await until_async(lambda: case.value("delivered_total") == 10)

    case.play(story)
    kinds = [request.event["type"].removeprefix("dev.tandem.") for request in receiver.requests]
    assert kinds[0] == "run.started"
    assert kinds[-2:] == ["run.succeeded", "run.deleted"]
    assert [event["time"] for event in receiver.events[:-1]] == sorted(event["time"] for event in receiver.events[:-1])
    for request in receiver.requests:
        assert request.path == "/hooks/tandem"
        assert request.headers["content-type"] == "application/cloudevents+json"
        assert request.headers["webhook-id"] == request.event["id"]
        assert is_signed(request, KEY)
    assert case.value("waiting") == case.value("failed_attempts_total") == case.value("dropped_total") == 0


@pytest.mark.parametrize("fault", [500, 404, 429, 302, 30.0], ids=str)
def test_a_receiver_that_fails_for_a_while_gets_all_in_order(tmp_path: Path, receiver: Receiver, fault: Any) -> None:
    receiver.behaviour = lambda n: fault if n < 3 else 200
    # Whoever hangs is waited for as shortly as may be; the others may be slow.
    case = Case(tmp_path, receiver.url, timeoutSeconds=1 if isinstance(fault, float) else 60)

    async def story(made: Deliveries) -> None:
        made.passed(WHERE, whole(), 0.1)
        await until_async(lambda: case.value("delivered_total") == 9)

    case.play(story)
    assert len({request.event["id"] for request in receiver.requests[:4]}) == 1, "none overtakes the one that waits"
    assert {request.path for request in receiver.requests} == {"/hooks/tandem"}, "no redirect is followed"
    assert case.value("failed_attempts_total") >= 3


def test_a_receiver_that_is_down_gets_all_when_it_is_back(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    with Receiver() as receiver:
        receiver.down()
        case = Case(tmp_path, receiver.url)

        async def story(made: Deliveries) -> None:
            made.passed(WHERE, whole(), 0.1)
            await until_async(lambda: case.value("failed_attempts_total") > 4)
            assert case.value("waiting") == 9
            receiver.up()
            await until_async(lambda: case.value("delivered_total") == 9)

        with caplog.at_level(logging.INFO, logger=module.__name__):
            case.play(story)
        assert len(receiver.events) == 9
    said = [record.getMessage() for record in caplog.records if record.name == module.__name__]
    assert len(said) == 2, "once that it fails, once that it is back"
    assert f"127.0.0.1:{receiver.port} does not take them" in said[0]
    assert not any("/hooks" in line for line in said), "a path may be a secret"


def test_a_dead_receiver_holds_no_more_than_its_queue_and_nobody_else(tmp_path: Path, receiver: Receiver) -> None:
    with Receiver(lambda n: 60.0) as dead:
        case = Case(tmp_path, dead.url, receiver.url, queueSize=20, timeoutSeconds=60)

        async def story(made: Deliveries) -> None:
            for number in range(6):
                made.passed(("team", f"r{number}"), whole(f"u{number}", f"r{number}"), 0.1)
                await until_async(lambda n=number: len(receiver.events) == 9 * (n + 1))
            assert case.value("waiting", receiver=f"127.0.0.1:{dead.port}") == 21
            assert case.value("dropped_total", reason="QueueFull") == 54 - 21
            await made.drain(0.1)

        case.play(story)
    assert case.value("dropped_total", reason="Ended") == 21
    assert case.value("dropped_total", receiver=f"127.0.0.1:{receiver.port}") == 0


def test_an_event_that_is_refused_for_good_does_not_hold_up_the_others(tmp_path: Path, receiver: Receiver) -> None:
    receiver.behaviour = lambda n: 400 if n == 0 else 200
    case = Case(tmp_path, receiver.url)

    async def story(made: Deliveries) -> None:
        made.passed(WHERE, whole(), 0.1)
        await until_async(lambda: case.value("delivered_total") == 8)

    case.play(story)
    assert case.value("dropped_total", reason="Refused") == 1
    assert len(receiver.requests) == 9


def test_an_event_is_given_up_after_its_time(tmp_path: Path, receiver: Receiver) -> None:
    receiver.behaviour = lambda n: 500
    case = Case(tmp_path, receiver.url, retrySeconds=0)

    async def story(made: Deliveries) -> None:
        made.passed(WHERE, whole(), 0.1)
        await until_async(lambda: case.value("dropped_total", reason="GivenUp") == 9)

    case.play(story)
    assert len(receiver.requests) == 9


def test_a_key_that_is_spoilt_meanwhile_is_waited_for(tmp_path: Path, receiver: Receiver) -> None:
    case = Case(tmp_path, receiver.url)

    async def story(made: Deliveries) -> None:
        (tmp_path / "key").write_text("")
        made.passed(WHERE, whole(), 0.1)
        await until_async(lambda: case.value("failed_attempts_total") > 2)
        (tmp_path / "key").write_text(KEY)
        await until_async(lambda: case.value("delivered_total") == 9)

    case.play(story)
    assert all(is_signed(request, KEY) for request in receiver.requests)


def test_the_end_waits_for_what_is_on_its_way(tmp_path: Path, receiver: Receiver) -> None:
    case = Case(tmp_path, receiver.url)

    async def story(made: Deliveries) -> None:
        made.passed(WHERE, whole(), 0.1)
        await made.drain(30)

    case.play(story)
    assert len(receiver.events) == 9
    assert case.value("dropped_total") == 0


def test_two_processes_tell_the_same(tmp_path: Path, receiver: Receiver) -> None:
    case, again = Case(tmp_path, receiver.url), Case(tmp_path, receiver.url)

    async def story(made: Deliveries) -> None:
        made.passed(WHERE, whole(), 0.1)
        await made.drain(30)

    case.play(story)
    first = [request.body for request in receiver.requests]
    again.play(story)
    assert [request.body for request in receiver.requests] == first * 2


def test_what_happened_before_the_window_is_not_told_again(tmp_path: Path, receiver: Receiver) -> None:
    case = Case(tmp_path, receiver.url, replaySeconds=0)
    old = ended()
    for step in old["steps"]:
        step |= {name: "2020-01-01T00:00:00Z" for name in ("started", "finished") if name in step}
    for condition in old["conditions"]:
        condition["lastTransitionTime"] = "2020-01-01T00:00:00Z"
    old |= {"started": "2020-01-01T00:00:00Z", "finished": "2020-01-01T00:00:00Z"}

    async def story(made: Deliveries) -> None:
        made.passed(WHERE, Outcome(None, run_of(status=old)), 0.1)
        await made.drain(5)

    case.play(story)
    assert receiver.requests == []


def test_a_spare_tells_of_the_minutes_before_it_leads_not_of_those_before_it_began(
    tmp_path: Path, receiver: Receiver
) -> None:
    case = Case(tmp_path, receiver.url, replaySeconds=60)
    ended_at = datetime(2026, 11, 22, 8, 12, tzinfo=UTC)
    now = [ended_at - timedelta(days=7)]

    async def story() -> None:
        made = Deliveries(case.settings, case.registry, lambda: now[0])
        running = asyncio.create_task(made.run())
        now[0] = ended_at + timedelta(seconds=30)
        made.passed(WHERE, whole(), 0.1)
        await made.drain(30)
        running.cancel()
        await asyncio.gather(running, return_exceptions=True)

    asyncio.run(story())
    assert [event["type"] for event in receiver.events] == ["dev.tandem.step.finished", "dev.tandem.run.succeeded"]


def test_a_pass_that_came_to_nothing_is_no_deletion(tmp_path: Path, receiver: Receiver) -> None:
    case = Case(tmp_path, receiver.url)

    async def story(made: Deliveries) -> None:
        made.passed(WHERE, whole(), 0.1)
        made.passed(WHERE, Outcome(5.0, None), 0.1)
        made.passed(WHERE, whole(), 0.1)
        await made.drain(30)

    case.play(story)
    assert len(receiver.requests) == 9


def test_a_run_that_is_refused_fails(tmp_path: Path, receiver: Receiver) -> None:
    case = Case(tmp_path, receiver.url)
    condition = {"type": "Succeeded", "status": "False", "reason": "InvalidSpec", "message": "secret",
                 "lastTransitionTime": "2026-11-22T08:00:00Z"}  # fmt: skip

    async def story(made: Deliveries) -> None:
        made.passed(WHERE, Outcome(None, None, refused=seen({"conditions": [condition]})), 0.1)
        await made.drain(30)

    case.play(story)
    (event,) = receiver.events
    assert (event["type"], event["data"]["reason"]) == ("dev.tandem.run.failed", "InvalidSpec")


def test_without_a_receiver_nothing_is_kept(tmp_path: Path) -> None:
    async def story() -> None:
        made = Deliveries(CloudEvents(), CollectorRegistry())
        made.passed(WHERE, whole(), 0.1)
        assert made._seen == {}
        await made.drain(5)

    asyncio.run(story())


def test_two_paths_of_one_host_are_one_series(tmp_path: Path, receiver: Receiver) -> None:
    case = Case(tmp_path, receiver.url, receiver.url + "/other")

    async def story(made: Deliveries) -> None:
        made.passed(WHERE, whole(), 0.1)
        await made.drain(30)

    case.play(story)
    lines = generate_latest(case.registry).decode().splitlines()
    assert len([line for line in lines if line.startswith("tandem_cloudevents_waiting{")]) == 1
    assert case.value("delivered_total") == 18


@pytest.mark.parametrize(
    "url",
    ["ftp://x/", "receiver:80", "http:///path", "https://me:hunter2@x/", "https://:hunter2@x/", "https://x/#here", ""],
)
def test_a_url_that_is_none_is_refused_and_not_quoted(url: str) -> None:
    with pytest.raises(ValidationError) as caught:
        CloudEvents.model_validate({"urls": ["http://ok/", url], "signingKeyFile": "/key"})
    assert "number 1 is not allowed" in caught.value.errors()[0]["msg"]
    assert "hunter2" not in caught.value.errors()[0]["msg"]


def test_a_url_needs_a_key() -> None:
    with pytest.raises(ValidationError, match="always signed"):
        CloudEvents.model_validate({"urls": ["http://receiver/"]})
