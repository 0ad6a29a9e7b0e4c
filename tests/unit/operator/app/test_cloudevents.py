"""Events as receivers get them: CloudEvents 1.0, signed, and nothing in them but facts of the status."""

from __future__ import annotations

import base64
import json
import re
import secrets
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from tests.receiver import Request, is_signed
from tests.unit.operator.app.test_transitions import ended, seen

from tandem_api.errors import ConfigurationError
from tandem_operator.app.cloudevents import CloudEvent, SigningKeys, cloud_event
from tandem_operator.app.transitions import Seen, happened

KEYS = [base64.b64encode(secrets.token_bytes(32)).decode() for _ in range(2)]
PRIVATE = "the patient's name is Rumpelstiltskin"


def candidate(step: int, score: str) -> dict[str, Any]:
    adapter = {"uri": "s3://bucket/adapter/", "sha256": "a" * 64}
    return {"id": "x", "step": step, "score": score, "low": "0.1", "high": "0.9", "n": 9, "adapter": adapter}


def run() -> Seen:
    status = ended()
    status |= {"strategy": "p -> w", "baseline": candidate(0, "0.40"), "best": candidate(1, "0.80")}
    status |= {"result": {"uri": "s3://bucket/result/", "sha256": "b" * 64}, "usage": {"promptTokens": 7}}
    for step in status["steps"]:
        step["message"] = PRIVATE
        step["stages"] = [{"name": "check", "message": PRIVATE, "facts": {"worst": PRIVATE}}]
    status["steps"][2]["reason"] = f"odd: {PRIVATE[:8]}"
    for condition in status["conditions"]:
        condition["message"] = PRIVATE
    return seen(status)


def events() -> list[dict[str, Any]]:
    return [json.loads(cloud_event(run(), one, "https://gpu-1.example.org/").body) for one in happened(run())]


def test_each_has_what_cloudevents_demand() -> None:
    found = events()
    assert [event["type"] for event in found] == [
        *("dev.tandem.run.started", "dev.tandem.step.started", "dev.tandem.step.finished"),
        *("dev.tandem.step.started", "dev.tandem.step.finished", "dev.tandem.step.finished"),
        *("dev.tandem.step.started", "dev.tandem.step.finished", "dev.tandem.run.succeeded"),
    ]
    where = "https://gpu-1.example.org/apis/tandem.dev/v1alpha1/namespaces/team/optimizationruns/reviews"
    for event in found:
        assert event["specversion"] == "1.0"
        assert event["source"] == where
        assert re.fullmatch(r"[A-Za-z0-9-]+", event["id"]), "fit for a header, and for a signature, without dots"
        assert datetime.fromisoformat(event["time"]).tzinfo is not None
        # Attributes are lower-case letters and digits.
        assert all(re.fullmatch(r"[a-z0-9]{1,20}", name) for name in event)
    assert found[4]["subject"] == "steps/1"
    assert "subject" not in found[0]


def test_a_step_and_the_end_have_their_facts() -> None:
    found = events()
    assert found[4]["data"]["step"] | {} == {
        "index": 1, "kind": "p", "state": "Succeeded", "started": "2026-11-22T08:05:00.250000Z",
        "finished": "2026-11-22T08:09:00.250000Z", "attempts": 0, "errors": 0, "tokens": 0, "gpuSeconds": 0,
    }  # fmt: skip
    end = found[-1]["data"]
    assert end["reason"] == "TargetReached"
    assert (end["baselineScore"], end["bestScore"], end["bestStep"]) == ("0.40", "0.80", 1)
    assert end["result"] == {"uri": "s3://bucket/result/", "sha256": "b" * 64}
    assert end["adapter"]["sha256"] == "a" * 64
    assert end["usage"]["promptTokens"] == 7


def test_no_message_leaves_the_cluster() -> None:
    text = json.dumps(events())
    assert "Rumpelstiltskin" not in text
    assert PRIVATE[:8] not in text


def signed(path: Path, body: bytes | None = None) -> Request:
    event = cloud_event(run(), happened(run())[0])
    headers = SigningKeys(path).headers(event, datetime.now(UTC))
    return Request("/", headers, event.body if body is None else body, True)


def test_a_receiver_with_the_key_can_tell_who_sent_it(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(f"whsec_{KEYS[0]}\n")
    assert is_signed(signed(path), KEYS[0])
    assert not is_signed(signed(path), KEYS[1])
    assert not is_signed(signed(path, b"{}"), KEYS[0])


def test_what_was_recorded_long_ago_or_is_no_signature_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(KEYS[0])
    event = cloud_event(run(), happened(run())[0])
    old = Request("/", SigningKeys(path).headers(event, datetime(2026, 1, 1, tzinfo=UTC)), event.body, True)
    assert not is_signed(old, KEYS[0])
    for name in ("webhook-id", "webhook-timestamp", "webhook-signature"):
        for value in (None, "", "v1,", "x"):
            request = signed(path)
            request.headers.update({name: value} if value is not None else {})
            request.headers.pop(name) if value is None else None
            assert not is_signed(request, KEYS[0])


def test_the_signature_is_that_of_standard_webhooks(tmp_path: Path) -> None:
    """The specification's own example: key, id, timestamp, body and signature."""
    path = tmp_path / "key"
    path.write_text("whsec_MfKQ9r8GKYqrTwjUPD8ILPZIo2LaLaSw")
    event = CloudEvent("msg_p5jXN8AQM9LWM0D4loKWxJek", b'{"test": 2432232314}')
    headers = SigningKeys(path).headers(event, datetime.fromtimestamp(1614265330, UTC))
    assert headers["webhook-signature"] == "v1,g0hM9SsE+OTPJTGt/tmIKtSyZlE3uFJELVlNIOLJ1OE="


def test_while_keys_change_both_are_used_and_the_file_is_read_anew(tmp_path: Path) -> None:
    path = tmp_path / "key"
    path.write_text(KEYS[0])
    assert not is_signed(signed(path), KEYS[1])
    path.write_text(f"{KEYS[1]}\n\n{KEYS[0]}\n")
    assert is_signed(signed(path), KEYS[0])
    assert is_signed(signed(path), KEYS[1])


@pytest.mark.parametrize(
    ("content", "said"),
    [
        (b"", "is empty"),
        (b"hunter2-is-my-password", "line 1: allowed is base64 of 24 to 64 bytes"),
        (base64.b64encode(b"short"), "line 1"),
        (f"{KEYS[0]}\n{base64.b64encode(bytes(65)).decode()}".encode(), "line 2"),
        ("schlüssel".encode(), "it is not text"),
        (None, "No such file"),
    ],
)
def test_a_key_that_cannot_be_used_is_named_and_not_quoted(tmp_path: Path, content: bytes | None, said: str) -> None:
    path = tmp_path / "key"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ConfigurationError) as caught:
        SigningKeys(path).read()
    assert said in str(caught.value)
    assert str(path) in str(caught.value)
    assert "hunter2" not in str(caught.value)
