"""The logs of a run's pods: the right one, whole, and across the stages."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from typing import Any, get_args

import pytest
from tests.unit.operator.cli.cluster_case import at_stage, ended, manifest, tandem, wait_for, with_status
from tests.unit.operator.cli.fake_cluster import FakeCluster

from tandem_api.v1alpha1.run import parse_run
from tandem_api.v1alpha1.status import StageName
from tandem_operator.cli.cluster import logs, patience
from tandem_operator.cli.cluster.access import connect
from tandem_operator.cli.cluster.commands import Stage
from tandem_operator.cli.cluster.failures import UnreachableError
from tandem_operator.cli.cluster.pods import Attempt, Choice, expects_more, parse_pod, parse_task
from tandem_operator.cli.cluster.resource import read
from tandem_operator.decide.names import task_name
from tandem_operator.platforms.kubernetes.names import labels

RUNNING = {"running": {"startedAt": "2026-11-21T12:00:00Z"}}
ENDED = {"terminated": {"exitCode": 0, "reason": "Completed"}}


def pod(name: str, minute: int = 0, *, task: str = "", state: Any = None, uid: str = "uid-small") -> dict[str, Any]:
    kind, container = ("worker", "worker") if task else ("serving", "vllm")
    more = {"task": task, "stage": "x"} if task else {}
    return {
        "metadata": {
            "name": name,
            "uid": f"pod-{name}",
            "creationTimestamp": f"2026-11-21T12:{minute:02}:00Z",
            "labels": labels("small", uid, kind, **more),
        },
        "spec": {"restartPolicy": "Never" if task else "Always"},
        "status": {"phase": "Running", "containerStatuses": [{"name": container, "state": state or RUNNING}]},
    }


def printed(*texts: str, minute: int = 0) -> list[str]:
    """Lines of a log as the kubelet gives them."""
    return [f"2026-11-21T12:{minute:02}:{second:02}.5Z {text}\n" for second, text in enumerate(texts)]


def end(cluster: FakeCluster, name: str) -> None:
    for one in cluster.pods:
        if one["metadata"]["name"] == name:
            one["status"]["containerStatuses"][0]["state"] = ENDED


@pytest.fixture
def run(cluster: FakeCluster) -> FakeCluster:
    """A run with two workers that have ended, one that runs, a model server, and a pod of a run before it."""
    cluster.put(with_status(manifest(), at_stage("optimize")))
    for index, (task, state) in enumerate(
        (
            ("small-0b-check-1", ENDED),
            ("small-0b-evaluate-1", ENDED),
            ("small-1p-optimize-1", RUNNING),
        )
    ):
        cluster.pods.append(pod(f"{task}-abc", index, task=task, state=state))
        cluster.logs[f"{task}-abc"] = [iter(printed(f"{task} one", "two"))]
    cluster.pods.append(pod("small-serving-x", 1))
    cluster.logs["small-serving-x"] = [iter(printed("INFO vLLM"))]
    cluster.pods.append(pod("old", 9, task="small-0b-check-1", uid="another"))
    return cluster


@pytest.mark.parametrize(
    ("options", "name"),
    [
        ((), "small-1p-optimize-1"),
        (("--step", "0"), "small-0b-evaluate-1"),
        (("--stage", "check"), "small-0b-check-1"),
        (("--step", "0", "--stage", "evaluate", "--attempt", "1"), "small-0b-evaluate-1"),
    ],
)
def test_the_newest_worker_that_fits_is_read(run: FakeCluster, options: tuple[str, ...], name: str) -> None:
    result = tandem("logs", "small", *options)
    assert result.exit_code == 0
    assert result.stdout == f"{name} one\ntwo\n"
    assert result.stderr.startswith(f"==> {name}-abc (step ")


def test_the_model_server_is_read_on_demand(run: FakeCluster) -> None:
    result = tandem("logs", "small", "--serving")
    assert result.stdout == "INFO vLLM\n"
    [query] = [query for path, query, _ in run.asked("GET") if path.endswith("/log")]
    assert query["container"] == "vllm"
    tandem("logs", "small", "--serving", "--previous")
    assert run.asked("GET")[-1][1]["previous"] == "true"


def test_what_is_not_there_is_told_with_what_is(run: FakeCluster) -> None:
    result = tandem("logs", "small", "--step", "2")
    assert result.exit_code == 2
    assert (
        "no worker of small fits --step 2; there are: step 0 (baseline), check, attempt 1; "
        "step 0 (baseline), evaluate, attempt 1; step 1 (p), optimize, attempt 1"
    ) in result.stderr
    run.pods.clear()
    assert "small has no workers now; -f waits for the next" in tandem("logs", "small").stderr
    assert "small has no model server now" in tandem("logs", "small", "--serving").stderr


def test_options_that_exclude_each_other_are_told(run: FakeCluster) -> None:
    assert "drop --stage train" in tandem("logs", "small", "--serving", "--stage", "train").stderr
    assert "drop --follow" in tandem("logs", "small", "--previous", "-f").stderr


def test_a_pod_that_has_not_started_is_told_with_its_cause(run: FakeCluster) -> None:
    state = {"waiting": {"reason": "ImagePullBackOff", "message": "no such image"}}
    run.pods.append(pod("late", 5, task="small-1p-optimize-2", state=state))
    result = tandem("logs", "small")
    assert result.exit_code == 1
    assert "attempt 2) has no log yet: ImagePullBackOff: no such image; -f waits for it" in result.stderr


def test_a_container_that_crashed_and_starts_again_has_a_log_of_before(run: FakeCluster) -> None:
    state = {"waiting": {"reason": "CrashLoopBackOff", "message": "back-off 40s"}}
    late = pod("small-serving-y", 5, state=state)
    run.pods.append(late)
    [container] = late["status"]["containerStatuses"]
    assert "has no log yet: CrashLoopBackOff: back-off 40s; -f waits" in tandem("logs", "small", "--serving").stderr
    for more in ({"restartCount": 2}, {"lastState": {"terminated": {"exitCode": 1}}, "restartCount": 0}):
        late["status"]["containerStatuses"] = [{**container, **more}]
        result = tandem("logs", "small", "--serving")
        assert result.exit_code == 1
        assert "waits: CrashLoopBackOff: back-off 40s; --previous shows how it ended" in result.stderr


def growing(parts: list[str], then: Callable[[], None]) -> Iterator[str]:
    """A log that is followed: what is in it, and what happens at its end."""
    yield from parts
    then()


def test_following_goes_across_the_pods_of_two_stages(run: FakeCluster) -> None:
    """The first worker ends, the next one waits for its image, prints, and the run ends."""
    late = pod("small-2w-traces-1-abc", 7, task="small-2w-traces-1")
    late["status"] = {"phase": "Pending", "conditions": []}

    def next_stage() -> None:
        end(run, "small-1p-optimize-1-abc")
        run.pods.append(late)

    def last_end() -> None:
        late["status"]["containerStatuses"][0]["state"] = ENDED
        run.put(with_status(manifest(), ended()))

    run.logs["small-1p-optimize-1-abc"] = [growing(printed("a", "b"), next_stage), iter(printed("a", "b", "c"))]
    run.logs[late["metadata"]["name"]] = [
        growing(printed("d", minute=7), last_end),
        iter(printed("d", "e", minute=7)),
    ]

    def start_late() -> None:
        looks = "/pods/small-2w-traces-1-abc"
        wait_for(lambda: sum(path.endswith(looks) for path, _, _ in run.asked("GET")) > 2)
        late["status"] = {"phase": "Running", "containerStatuses": [{"name": "worker", "state": RUNNING}]}

    threading.Thread(target=start_late, daemon=True).start()
    result = tandem("logs", "small", "-f")
    assert result.exit_code == 0
    # Each line once, also those that came between the end of the stream and the end of the container.
    assert result.stdout == "a\nb\nc\nd\ne\n"
    titles = [line for line in result.stderr.splitlines() if "waiting for the next" not in line]
    assert titles == [
        "==> small-1p-optimize-1-abc (step 1 (p), optimize, attempt 1)",
        "==> small-2w-traces-1-abc (step 2 (w), traces, attempt 1)",
        "==> small-2w-traces-1-abc waits: its containers are being created",
    ]


def break_off() -> None:
    raise ConnectionAbortedError


def finish(run: FakeCluster) -> None:
    """The worker ends, and the run with it."""
    end(run, "small-1p-optimize-1-abc")
    run.put(with_status(manifest(), ended()))


def test_a_log_that_breaks_off_is_taken_up_where_it_was(run: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(patience, "_FIRST_PAUSE", 0.01)

    run.logs["small-1p-optimize-1-abc"] = [
        growing(printed("a", "b"), break_off),
        growing(printed("a", "b", "c"), lambda: finish(run)),
        iter(printed("a", "b", "c")),
    ]
    result = tandem("logs", "small", "-f")
    assert result.exit_code == 0
    assert result.stdout == "a\nb\nc\n"
    reads = [query for path, query, _ in run.asked("GET") if path.endswith("/log")]
    assert "sinceSeconds" not in reads[0]
    assert int(reads[1]["sinceSeconds"]) > 300


def follow(*, sleep: Callable[[float], None], clock: Callable[[], float]) -> None:
    """What `-f` does, with this clock."""
    cluster = connect()
    reader = logs.Reader(cluster, "default", logs.Wanted(Choice()))
    logs._follow(reader, read(cluster.get("default", "small")), sleep, clock)


@pytest.mark.parametrize(
    ("seconds", "lines"),
    [
        pytest.param(300, [(), (), (), (), ()], id="quiet for as long as one reads"),
        pytest.param(1, [("a",), ("a", "b"), ("a", "b", "c")], id="lines come before the connection breaks"),
    ],
)
def test_a_worker_that_runs_is_followed_however_often_its_log_breaks_off(
    run: FakeCluster, capsys: pytest.CaptureFixture[str], seconds: int, lines: list[tuple[str, ...]]
) -> None:
    now = [0.0]

    def wait(seconds: float) -> None:
        now[0] += max(seconds, 350.0 if lines[-1] else 0.0)

    def break_off() -> None:
        now[0] += seconds
        raise ConnectionAbortedError

    def finish() -> None:
        end(run, "small-1p-optimize-1-abc")
        run.put(with_status(manifest(), ended()))

    whole = printed("a", "b", "c", "d")
    run.logs["small-1p-optimize-1-abc"] = [
        *(growing(whole[: len(texts)], break_off) for texts in lines),
        growing(whole, finish),
        iter(whole),
    ]
    follow(sleep=wait, clock=lambda: now[0])
    assert capsys.readouterr().out == "a\nb\nc\nd\n"


def test_a_log_that_never_answers_is_given_up(run: FakeCluster) -> None:
    now = [0.0]

    def wait(seconds: float) -> None:
        now[0] += seconds

    def break_off() -> Iterator[str]:
        raise ConnectionAbortedError
        yield

    run.logs["small-1p-optimize-1-abc"] = [break_off() for _ in range(100)]
    with pytest.raises(UnreachableError):
        follow(sleep=wait, clock=lambda: now[0])
    assert now[0] > patience.LIMIT_SECONDS


def test_lines_that_come_out_of_order_are_all_printed_once(run: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    """The runtime writes the standard output and the standard error as they come, each with a moment of its own."""
    monkeypatch.setattr(patience, "_FIRST_PAUSE", 0.01)

    first, second, third, last = printed("a", "b", "c", "d")
    twin = second.replace("b", "b at the same moment")
    run.logs["small-1p-optimize-1-abc"] = [iter([second, twin, first, third])]
    assert tandem("logs", "small").stdout == "b\nb at the same moment\na\nc\n"
    run.logs["small-1p-optimize-1-abc"] = [
        growing([third, first, second], break_off),
        growing([third, first, second, last], lambda: finish(run)),
        iter([third, first, second, last]),
    ]
    assert tandem("logs", "small", "-f").stdout == "c\na\nb\nd\n"


def test_following_waits_for_the_first_worker_and_ends_with_the_run(run: FakeCluster) -> None:
    run.pods.clear()

    def work() -> None:
        wait_for(lambda: sum(path.endswith("/pods") for path, _, _ in run.asked("GET")) > 2)
        run.put(with_status(manifest(), ended()))

    threading.Thread(target=work, daemon=True).start()
    result = tandem("logs", "small", "-f")
    assert result.exit_code == 0
    assert result.stderr == "==> waiting for the next worker\n"


def test_a_pod_that_goes_away_ends_its_log(run: FakeCluster) -> None:
    def go() -> None:
        run.pods[:] = [one for one in run.pods if "optimize" not in one["metadata"]["name"]]
        run.put(with_status(manifest(), ended()))

    run.logs["small-1p-optimize-1-abc"] = [growing(printed("a"), go)]
    result = tandem("logs", "small", "-f", "--attempt", "1", "--step", "1")
    assert (result.exit_code, result.stdout) == (0, "a\n")


def test_ctrl_c_stops_the_reading_only(run: FakeCluster, monkeypatch: pytest.MonkeyPatch) -> None:
    def interrupt(reader: logs.Reader, pod: Any, **options: Any) -> None:
        raise KeyboardInterrupt

    monkeypatch.setattr(logs.Reader, "print_log", interrupt)
    result = tandem("logs", "small", "-f")
    assert result.exit_code == 130
    assert "stopped reading; the run goes on" in result.stderr


def test_a_last_line_without_an_end_and_what_is_no_text_are_printed(run: FakeCluster) -> None:
    run.logs["small-1p-optimize-1-abc"] = [iter(["2026-11-21T12:00:00Z an umlaut: ä\n", "no stamp"])]
    assert tandem("logs", "small").stdout == "an umlaut: ä\nno stamp\n"


@pytest.mark.parametrize(
    ("line", "stamp", "text"),
    [
        ("2026-11-21T12:00:00Z a b", ("2026-11-21T12:00:00", "000000000"), "a b"),
        ("2026-11-21T12:00:00.5Z ", ("2026-11-21T12:00:00", "500000000"), ""),
        ("2026-11-21T12:00:00.123456789+02:00 x", ("2026-11-21T12:00:00", "123456789"), "x"),
        ("plain text of some length", None, "plain text of some length"),
        ("", None, ""),
    ],
)
def test_moments_are_told_from_texts(line: str, stamp: tuple[str, str] | None, text: str) -> None:
    assert logs.split_stamp(line) == (stamp, text)


def test_a_task_is_known_by_its_name() -> None:
    name = task_name("small-1p-run", 12, "final", "evaluate", 3)
    assert parse_task(name) == Attempt(12, "final", "evaluate", 3)
    assert parse_task(task_name("small-1p-run", 2, "w", "select-3", 1)) == Attempt(2, "w", "select-3", 1)
    assert parse_task("anything") is None
    assert sorted(Stage) == sorted(get_args(StageName))


@pytest.mark.parametrize(
    ("choice", "want"),
    [
        (Choice(), True),
        (Choice(step=1), True),
        (Choice(step=0), False),
        (Choice(stage="optimize", attempt=1), True),
        (Choice(stage="optimize", attempt=2), True),
        (Choice(stage="train"), False),
    ],
)
def test_following_ends_when_nothing_that_is_wanted_can_come(choice: Choice, want: bool) -> None:
    assert expects_more(parse_run(with_status(manifest(), at_stage("optimize"))), choice) is want
    assert not expects_more(parse_run(with_status(manifest(), ended())), choice)
    assert expects_more(parse_run(manifest()), choice)


@pytest.mark.parametrize(
    ("train", "choice", "want"),
    [
        ("Pending", Choice(stage="select-1"), True),
        ("Running", Choice(stage="select-2", step=1), True),
        ("Running", Choice(stage="select-1", attempt=1), True),
        ("Running", Choice(stage="select-1", step=2), False),
        ("Running", Choice(stage="traces"), False),
        ("Succeeded", Choice(stage="select-1"), False),
    ],
)
def test_select_stages_are_waited_for_until_their_step_has_trained(train: str, choice: Choice, want: bool) -> None:
    """They are in the status only then."""
    status = at_stage("train", train, stage={"attempt": 2})
    assert expects_more(parse_run(with_status(manifest(), status)), choice) is want


@pytest.mark.parametrize(
    ("status", "policy", "state", "why"),
    [
        (
            {"conditions": [{"type": "PodScheduled", "status": "False", "reason": "Unschedulable", "message": "0/3"}]},
            "Never",
            "waiting",
            "Unschedulable: 0/3",
        ),
        (
            {"initContainerStatuses": [{"name": "fetch", "state": {"waiting": {"reason": "ErrImagePull"}}}]},
            "Never",
            "waiting",
            "ErrImagePull",
        ),
        (
            {
                "containerStatuses": [
                    {"name": "worker", "state": {"terminated": {"reason": "OOMKilled", "exitCode": 137}}}
                ]
            },
            "Never",
            "terminated",
            "OOMKilled with exit code 137",
        ),
        (
            {"containerStatuses": [{"name": "worker", "state": {"terminated": {"reason": "Error", "exitCode": 1}}}]},
            "Always",
            "waiting",
            "it starts again after Error with exit code 1",
        ),
        ({"phase": "Failed", "reason": "Evicted", "message": "disk"}, "Never", "terminated", "Evicted: disk"),
        ({}, "Never", "waiting", "its containers are being created"),
    ],
)
def test_a_pod_says_how_it_is(status: dict[str, Any], policy: str, state: str, why: str) -> None:
    raw = {"metadata": {"name": "x"}, "spec": {"restartPolicy": policy}, "status": status}
    found = parse_pod(raw, "worker")
    assert (found.state, found.why) == (state, why)
