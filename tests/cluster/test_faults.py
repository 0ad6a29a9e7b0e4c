"""What a person can get wrong, or take away: each ends in a condition and an event that say what to do."""

from __future__ import annotations

from typing import Any

import pytest
from tests.cluster.harness import Namespace, reviews, until


def event(namespace: Namespace, run: str, reason: str) -> dict[str, Any] | None:
    """The run's event of that reason."""
    return next((event for event in namespace.events(run) if event["reason"] == reason), None)


def told(namespace: Namespace, run: str, reason: str) -> dict[str, Any]:
    """That event, which comes a moment after the status that it is about."""
    return until(15, f"the event {reason}", lambda: event(namespace, run, reason))


def ends(namespace: Namespace, run: str, seconds: float = 90) -> dict[str, Any]:
    """The run's Succeeded condition once it is no longer Unknown."""

    def look() -> dict[str, Any] | None:
        found = namespace.condition(run, "Succeeded")
        return found if found.get("status") in ("True", "False") else None

    return until(seconds, f"the end of {run}", look)


def released(namespace: Namespace, run: str) -> None:
    """Wait until nothing of the run holds a node any more."""

    def look() -> bool:
        pods = namespace.pods(run, "serving") + namespace.pods(run, "worker")
        return all(pod["status"]["phase"] in ("Succeeded", "Failed") for pod in pods)

    until(120, f"{run} to hold nothing", look)


def test_a_wrong_image_ends_the_run_with_the_image_in_its_message(namespace: Namespace) -> None:
    run = reviews(namespace.name, "wrong-image")
    run["spec"]["program"]["image"] = "docker.io/local/no-such-image:1"
    namespace.cluster.apply(run)
    until(
        60,
        "the condition",
        lambda: namespace.condition("wrong-image", "Progressing").get("reason") == "ImagePullBackOff",
    )
    end = ends(namespace, "wrong-image")
    assert (end["status"], end["reason"]) == ("False", "ImagePullBackOff")
    assert "docker.io/local/no-such-image:1" in end["message"] and "pull secrets" in end["message"]
    warning = told(namespace, "wrong-image", "ImagePullBackOff")
    assert warning["type"] == "Warning" and warning["count"] == 1
    told(namespace, "wrong-image", "RunFailed")
    released(namespace, "wrong-image")


def test_a_missing_secret_is_named_and_the_run_goes_on_when_it_is_there(namespace: Namespace) -> None:
    run = reviews(namespace.name, "no-secret", strategy="p")
    run["spec"]["storage"]["s3"]["credentialsSecret"] = "not-yet"
    namespace.cluster.apply(run)
    until(60, "the condition", lambda: namespace.condition("no-secret", "Progressing").get("reason") == "MissingSecret")
    assert "create secret generic not-yet" in namespace.condition("no-secret", "Progressing")["message"]
    keys = ("--from-literal=AWS_ACCESS_KEY_ID=tandem", "--from-literal=AWS_SECRET_ACCESS_KEY=a-secret-of-the-tests")
    namespace.kubectl("create", "secret", "generic", "not-yet", *keys)
    until(90, "the check to pass", lambda: namespace.condition("no-secret", "Accepted").get("status") == "True")
    namespace.kubectl("delete", "optrun", "no-secret", "--wait=true", "--timeout=60s")
    until(
        60, "its pods to go", lambda: not namespace.pods("no-secret", "serving") + namespace.pods("no-secret", "worker")
    )


def test_an_unschedulable_pod_is_told_of_and_goes_on_waiting(namespace: Namespace) -> None:
    run = reviews(namespace.name, "too-big")
    run["spec"]["workers"] = {"podTemplate": {"spec": {"nodeSelector": {"size": "enormous"}}}}
    namespace.cluster.apply(run)
    until(60, "the condition", lambda: namespace.condition("too-big", "Progressing").get("reason") == "Unschedulable")
    said = namespace.condition("too-big", "Progressing")["message"]
    assert "no node takes the pod since" in said and "nodeSelector" in said
    warning = told(namespace, "too-big", "Unschedulable")
    assert warning["type"] == "Warning"
    # A node that fits comes: the run goes on.
    namespace.cluster.kubectl("label", "node", "--all", "size=enormous")
    try:
        until(90, "the check to pass", lambda: namespace.condition("too-big", "Accepted").get("status") == "True")
    finally:
        namespace.cluster.kubectl("label", "node", "--all", "size-")
        namespace.kubectl("delete", "optrun", "too-big", "--wait=true", "--timeout=60s")


def test_resources_that_the_api_server_refuses_end_the_run_with_its_words(namespace: Namespace) -> None:
    run = reviews(namespace.name, "refused-job")
    run["spec"]["workers"] = {"resources": {"requests": {"cpu": "2"}, "limits": {"cpu": "1"}}}
    namespace.cluster.apply(run)
    end = ends(namespace, "refused-job", 60)
    assert (end["status"], end["reason"]) == ("False", "JobRefused")
    assert "must be less than or equal to cpu limit" in end["message"]
    assert "made of spec.workers" in end["message"]
    told(namespace, "refused-job", "RunFailed")


def test_a_quota_that_refuses_the_pods_is_told_of(namespace: Namespace) -> None:
    quota = {"apiVersion": "v1", "kind": "ResourceQuota", "metadata": {"name": "full", "namespace": namespace.name}}
    namespace.cluster.apply({**quota, "spec": {"hard": {"pods": "1"}}})
    try:
        namespace.cluster.apply(reviews(namespace.name, "over-quota", strategy="p"))
        reason = "CannotCreatePod"
        until(60, "the condition", lambda: namespace.condition("over-quota", "Progressing").get("reason") == reason)
        assert "exceeded quota: full" in namespace.condition("over-quota", "Progressing")["message"]
        told(namespace, "over-quota", reason)
    finally:
        namespace.kubectl("delete", "quota", "full")
        namespace.kubectl("delete", "optrun", "over-quota", "--wait=true", "--timeout=60s")


def test_a_bad_manifest_is_explained_and_a_corrected_one_is_carried_out(namespace: Namespace) -> None:
    namespace.cluster.apply(reviews(namespace.name, "bad", strategy="p -> x"))
    end = ends(namespace, "bad", 30)
    assert (end["status"], end["reason"]) == ("False", "InvalidSpec")
    assert end["message"].startswith("spec.strategy:")
    told(namespace, "bad", "InvalidSpec")
    namespace.cluster.apply(reviews(namespace.name, "bad", strategy="p"))
    until(90, "the check to pass", lambda: namespace.condition("bad", "Accepted").get("status") == "True")
    # Too late for another strategy now: it is told, and changes nothing.
    namespace.cluster.apply(reviews(namespace.name, "bad", strategy="w"))
    until(30, "the condition", lambda: namespace.condition("bad", "Accepted").get("reason") == "SpecChangeIgnored")
    stored = namespace.run("bad")
    assert stored is not None and stored["status"]["strategy"] == "p"
    namespace.kubectl("delete", "optrun", "bad", "--wait=true", "--timeout=60s")


@pytest.mark.parametrize(
    ("change", "field"),
    [
        ({"attempts": 99}, "spec.attempts"),
        ({"evaluation": {"concurrency": "many"}}, "spec.evaluation.concurrency"),
        ({"data": None}, "spec.data"),
    ],
)
def test_what_the_schema_forbids_is_refused_by_the_api_server(
    namespace: Namespace, change: dict[str, Any], field: str
) -> None:
    with pytest.raises(AssertionError, match=field):
        namespace.cluster.apply(reviews(namespace.name, "refused", **change))


def test_wrong_keys_end_the_run_with_what_the_store_says(namespace: Namespace) -> None:
    keys = ("--from-literal=AWS_ACCESS_KEY_ID=tandem", "--from-literal=AWS_SECRET_ACCESS_KEY=wrong")
    namespace.kubectl("create", "secret", "generic", "wrong-keys", *keys)
    run = reviews(namespace.name, "denied")
    run["spec"]["storage"]["s3"]["credentialsSecret"] = "wrong-keys"
    namespace.cluster.apply(run)
    end = ends(namespace, "denied")
    assert (end["status"], end["reason"]) == ("False", "StorageRefused")
    assert "secret key is wrong" in end["message"]


def test_suspending_stops_everything_and_resuming_goes_on(namespace: Namespace) -> None:
    namespace.cluster.apply(reviews(namespace.name, "held", strategy="p"))
    until(120, "the server to start", lambda: namespace.pods("held", "serving"))
    namespace.kubectl("patch", "optrun", "held", "--type=merge", "-p", '{"spec":{"suspend":true}}')
    until(60, "the pods to go", lambda: not namespace.pods("held", "serving"))
    assert namespace.condition("held", "Suspended")["status"] == "True"
    namespace.kubectl("patch", "optrun", "held", "--type=merge", "-p", '{"spec":{"suspend":false}}')
    until(60, "the server to come back", lambda: namespace.pods("held", "serving"))
    assert namespace.condition("held", "Suspended")["status"] == "False"
    namespace.kubectl("delete", "optrun", "held", "--wait=true", "--timeout=60s")
    until(60, "its pods to go", lambda: not namespace.pods("held", "serving"))


def test_the_deletion_policy_decides_about_the_objects(namespace: Namespace) -> None:
    for name, policy in (("kept", "Retain"), ("removed", "Delete")):
        run = reviews(namespace.name, name, strategy="p")
        run["spec"]["storage"]["deletionPolicy"] = policy
        namespace.cluster.apply(run)
        until(90, "the check to pass", lambda name=name: namespace.condition(name, "Accepted").get("status") == "True")
        assert namespace.objects(f"{namespace.name}/{name}/")
        namespace.kubectl("delete", "optrun", name, "--wait=true", "--timeout=120s")
    assert namespace.objects(f"{namespace.name}/kept/")
    assert not namespace.objects(f"{namespace.name}/removed/")


def test_a_run_whose_store_is_gone_can_be_deleted(namespace: Namespace) -> None:
    run = reviews(namespace.name, "orphan", strategy="p")
    run["spec"]["storage"]["deletionPolicy"] = "Delete"
    run["spec"]["storage"]["s3"]["endpoint"] = "http://no-such-store:8333"
    namespace.cluster.apply(run)
    until(60, "a worker", lambda: namespace.pods("orphan", "worker"))
    namespace.kubectl("delete", "optrun", "orphan", "--wait=true", "--timeout=400s")
    left = told(namespace, "orphan", "StorageNotRemoved")
    assert f"s3://tandem/{namespace.name}/orphan/" in left["message"]
