"""The whole sidecar beside a scripted vLLM, over real HTTP."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from aiohttp import web
from tests.unit.trainer.adapters.fake_vllm import BASE, CANARY, RIGHT, Pod, error, pod, put_adapter, put_several

from tandem_api.adapters import DesiredAdapters
from tandem_api.errors import KeyRefusedError, StorageRefusedError, StorageUnavailableError
from tandem_trainer.adapters import __main__ as entry
from tandem_trainer.adapters import plan

Scenario = Callable[[Pod], Awaitable[None]]


@pytest.fixture(autouse=True)
def short_waits(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(plan, "FIRST_WAIT", 0.02)


@pytest.fixture
def play(tmp_path: Path) -> Callable[[Scenario], None]:
    """Play a scenario in a pod whose vLLM is up and whose sidecar is not."""

    def run(scenario: Scenario) -> None:
        async def whole() -> None:
            async with pod(tmp_path) as there:
                await asyncio.wait_for(scenario(there), 120)

        asyncio.run(whole())

    return run


def test_a_wanted_adapter_is_fetched_loaded_and_told_of(play: Any, tmp_path: Path) -> None:
    async def scenario(there: Pod) -> None:
        adapter = put_adapter(there.store, tmp_path)
        there.want(adapter)
        async with there.sidecar():
            found = await there.until(lambda found: found.ready)
            assert await there.is_ready()
            assert there.vllm.models == {adapter.name: there.root(adapter)}
            assert found.loaded == (adapter.name,)
            assert found.desired == DesiredAdapters(adapters=(adapter,)).digest
            assert (found.message, found.failed, found.pending) == ("", (), ())
            await asyncio.sleep(0.3)
            assert there.vllm.calls == [("load", adapter.name)]
            assert (await there.get("/healthz"))[0] == 200
            assert 'tandem_adapter_seconds_count{what="load"}' in (await there.get("/metrics"))[1]

    play(scenario)


def test_adapters_of_several_predictors_are_loaded_from_one_folder_and_each_has_its_canary(
    play: Any, tmp_path: Path
) -> None:
    async def scenario(there: Pod) -> None:
        one, *others = put_several(there.store, tmp_path, 3, canary=CANARY)
        there.want(one, *others)
        async with there.sidecar():
            await there.until(lambda found: found.ready)
            folder = there.folder / one.sha256
            assert there.vllm.models == {each.name: str(folder / str(each.number)) for each in (one, *others)}
            assert set(there.vllm.asked) == {each.name for each in (one, *others)}
            there.want(one)
            await there.until(lambda found: found.ready and set(there.vllm.models) == {one.name})

    play(scenario)


def test_one_wrong_adapter_of_several_is_no_readiness(play: Any, tmp_path: Path) -> None:
    async def scenario(there: Pod) -> None:
        wanted = put_several(there.store, tmp_path, 2, canary=CANARY)
        there.vllm.scores = lambda name: RIGHT if name == wanted[0].name else RIGHT - 2.0
        there.want(*wanted)
        async with there.sidecar():
            found = await there.until(lambda found: bool(found.failed))
            assert [failure.name for failure in found.failed] == [wanted[1].name] and not found.ready

    play(scenario)


def test_no_wanted_adapter_is_ready_as_soon_as_vllm_is(play: Any) -> None:
    async def scenario(there: Pod) -> None:
        there.want()
        there.vllm.health = 503
        async with there.sidecar():
            found = await there.until(lambda found: found.message != "")
            assert "/health answers 503" in found.message and not await there.is_ready()
            there.vllm.health = 200
            await there.until(lambda found: found.ready)

    play(scenario)


def test_the_adapter_is_fetched_while_vllm_starts_and_that_is_no_failure(play: Any, tmp_path: Path) -> None:
    async def scenario(there: Pod) -> None:
        adapter = put_adapter(there.store, tmp_path)
        there.want(adapter)
        await there.vllm.stop()
        async with there.sidecar():
            found = await there.until(lambda found: "waits for vLLM" in found.message)
            assert "does not answer" in found.message and found.failed == ()
            assert there.lies_there(adapter)
            await there.vllm.start()
            await there.until(lambda found: found.ready)

    play(scenario)


def test_a_vllm_that_is_started_anew_gets_its_adapters_again(play: Any, tmp_path: Path) -> None:
    async def scenario(there: Pod) -> None:
        adapters = [put_adapter(there.store, tmp_path, name) for name in ("first", "second")]
        there.want(*adapters)
        async with there.sidecar():
            await there.until(lambda found: found.ready)
            await there.vllm.stop()
            assert not await there.is_ready()
            await there.vllm.start()
            assert not await there.is_ready()
            await there.until(lambda found: found.ready)
            assert there.vllm.models == {adapter.name: there.root(adapter) for adapter in adapters}
            assert len(there.opened) == 2, "nothing is downloaded twice"

    play(scenario)


def test_a_sidecar_that_is_started_anew_touches_nothing_that_is_loaded(play: Any, tmp_path: Path) -> None:
    async def scenario(there: Pod) -> None:
        adapter = put_adapter(there.store, tmp_path)
        there.want(adapter)
        async with there.sidecar():
            await there.until(lambda found: found.ready)
        async with there.sidecar():
            await there.until(lambda found: found.ready)
            await asyncio.sleep(0.3)
            assert there.vllm.calls == [("load", adapter.name)]
            # What lies there is verified and used again when it is needed.
            await there.vllm.stop()
            await there.vllm.start()
            await there.until(lambda found: found.ready)
            assert there.opened == ["bucket"]

    play(scenario)


def test_what_an_earlier_container_left_damaged_is_fetched_again(play: Any, tmp_path: Path) -> None:
    async def scenario(there: Pod) -> None:
        adapter = put_adapter(there.store, tmp_path)
        there.want(adapter)
        damaged = there.folder / adapter.sha256
        damaged.mkdir(parents=True)
        (damaged / "adapter_model.safetensors").write_bytes(b"half")
        async with there.sidecar():
            await there.until(lambda found: found.ready)
            assert there.opened == ["bucket"]

    play(scenario)


def test_a_change_of_the_mounted_file_is_seen_at_once(play: Any, tmp_path: Path) -> None:
    async def scenario(there: Pod) -> None:
        first, second = (put_adapter(there.store, tmp_path, name) for name in ("first", "second"))
        there.want(first)
        async with there.sidecar():
            await there.until(lambda found: found.ready)
            there.want(first, second)
            assert not await there.is_ready(), "the file counts as it is now, not as the loop last saw it"
            found = await there.until(lambda found: found.ready)
            assert found.loaded == (first.name, second.name)

    play(scenario)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        (None, "cannot be read: No such file"),
        ("{", "Invalid JSON"),
        ('{"version": 2, "adapters": []}', "version: Input should be 1"),
        ('{"adapters": [{"name": "a", "uri": "file:/x", "sha256": "ff"}]}', "adapters.0.uri"),
    ],
)
def test_without_a_readable_list_nothing_is_done_and_nothing_is_ready(
    play: Any, tmp_path: Path, text: str | None, said: str
) -> None:
    async def scenario(there: Pod) -> None:
        adapter = put_adapter(there.store, tmp_path)
        there.vllm.models = {adapter.name: there.root(adapter)}
        if text is not None:
            there.mount(text)
        async with there.sidecar():
            await asyncio.sleep(0.3)
            found = await there.status()
            assert said in found.message and found.desired is None and not await there.is_ready()
            assert there.vllm.calls == [], "nobody has said that the adapter is wanted no longer"
            there.want(adapter)
            await there.until(lambda found: found.ready)

    play(scenario)


def test_a_bad_adapter_is_given_up_with_vllms_own_words(play: Any, tmp_path: Path) -> None:
    async def scenario(there: Pod) -> None:
        bad, good = (put_adapter(there.store, tmp_path, name) for name in ("bad", "good"))
        said = "LoRA rank 64 is greater than max_lora_rank 16."
        there.vllm.refusal = lambda name: error(500, said) if name == bad.name else None
        there.want(bad, good)
        async with there.sidecar():
            found = await there.until(lambda found: bool(found.failed and found.loaded))
            assert found.loaded == (good.name,)
            assert found.failed[0].permanent and said in found.failed[0].message
            await asyncio.sleep(0.3)
            assert there.vllm.calls.count(("load", bad.name)) == 1

    play(scenario)


def test_a_500_that_tells_nothing_is_tried_again_and_then_given_up(play: Any, tmp_path: Path) -> None:
    async def scenario(there: Pod) -> None:
        adapter = put_adapter(there.store, tmp_path)
        there.vllm.refusal = lambda name: error(500, "Call to add_lora method failed: no memory")
        there.want(adapter)
        async with there.sidecar():
            found = await there.until(lambda found: any(failure.permanent for failure in found.failed))
            assert len(there.vllm.calls) == plan.LOAD_ATTEMPTS
            assert "no memory" in found.failed[0].message
            assert "given up after 5 tries" in found.failed[0].message

    play(scenario)


def test_a_500_that_passes_is_got_over(play: Any, tmp_path: Path) -> None:
    async def scenario(there: Pod) -> None:
        adapter = put_adapter(there.store, tmp_path)
        there.vllm.refusal = lambda name: error(500, "busy") if len(there.vllm.calls) < 3 else None
        there.want(adapter)
        async with there.sidecar():
            found = await there.until(lambda found: found.ready)
            assert len(there.vllm.calls) == 3 and found.failed == ()

    play(scenario)


def test_a_load_that_ends_vllm_each_time_is_given_up(
    play: Any, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    async def scenario(there: Pod) -> None:
        adapter = put_adapter(there.store, tmp_path)

        def die(name: str) -> web.Response:
            there.vllm.health = 503
            return error(500, "EngineCore encountered an issue")

        there.vllm.refusal = die
        there.want(adapter)
        async with there.sidecar():
            for tries in range(1, plan.LOAD_ATTEMPTS + 1):
                # Up again only once the sidecar has seen it down: it looks after the load has been answered.
                await there.until(lambda found, tries=tries: f"try {tries}: " in caplog.text)
                there.vllm.health = 200
            found = await there.until(lambda found: any(failure.permanent for failure in found.failed))
            assert len(there.vllm.calls) == plan.LOAD_ATTEMPTS
            assert "/health answers 503" in found.failed[0].message

    play(scenario)


def test_a_name_that_another_folder_has_is_a_failure_while_that_vllm_lives(play: Any, tmp_path: Path) -> None:
    async def scenario(there: Pod) -> None:
        adapter = put_adapter(there.store, tmp_path)
        there.vllm.models = {adapter.name: "/elsewhere"}
        there.want(adapter)
        async with there.sidecar():
            found = await there.until(lambda found: bool(found.failed))
            assert found.failed[0].permanent and "/elsewhere" in found.failed[0].message
            assert not await there.is_ready()
            await asyncio.sleep(0.3)
            assert there.vllm.calls == [], "neither loaded over nor unloaded: it is not ours"
            await there.vllm.stop()
            await there.vllm.start()
            await there.until(lambda found: found.ready)

    play(scenario)


def test_already_loaded_counts_only_from_the_same_folder(play: Any, tmp_path: Path) -> None:
    async def scenario(there: Pod) -> None:
        same, other = (put_adapter(there.store, tmp_path, name) for name in ("same", "other"))

        def someone_was_faster(name: str) -> web.Response:
            there.vllm.models[name] = there.root(same) if name == same.name else "/elsewhere"
            return error(400, f"The lora adapter '{name}' has already been loaded.")

        there.vllm.refusal = someone_was_faster
        there.want(same, other)
        async with there.sidecar():
            found = await there.until(lambda found: bool(found.loaded and found.failed))
            assert found.loaded == (same.name,)
            assert found.failed[0].name == other.name and "/elsewhere" in found.failed[0].message

    play(scenario)


def test_files_that_vllm_does_not_find_are_looked_at_again(play: Any, tmp_path: Path) -> None:
    async def scenario(there: Pod) -> None:
        adapter = put_adapter(there.store, tmp_path)
        there.want(adapter)
        async with there.sidecar():
            await there.until(lambda found: found.ready)
            await there.vllm.stop()
            shutil.rmtree(there.root(adapter))
            await there.vllm.start()
            await there.until(lambda found: found.ready)
            assert len(there.opened) == 2

    play(scenario)


def test_an_adapter_that_is_wanted_no_longer_is_unloaded_after_its_last_call(play: Any, tmp_path: Path) -> None:
    async def scenario(there: Pod) -> None:
        old, new = (put_adapter(there.store, tmp_path, name) for name in ("old", "new"))
        there.want(old)
        async with there.sidecar():
            await there.until(lambda found: found.ready)
            there.vllm.running = (old.name,)
            there.want(new)
            await there.until(lambda found: found.ready)
            await asyncio.sleep(0.3)
            assert old.name in there.vllm.models
            there.vllm.running = (new.name,)
            await there.until(lambda found: old.name not in there.vllm.models)
            assert there.lies_there(old), "its files stay: a call in flight may still need them"

    play(scenario)


def test_where_vllm_does_not_tell_its_calls_nothing_is_unloaded(play: Any, tmp_path: Path) -> None:
    async def scenario(there: Pod) -> None:
        adapter = put_adapter(there.store, tmp_path)
        there.want(adapter)
        there.vllm.tells = False
        async with there.sidecar():
            await there.until(lambda found: found.ready)
            there.want()
            await asyncio.sleep(0.3)
            assert adapter.name in there.vllm.models

    play(scenario)


def test_files_beyond_the_bound_are_removed_only_when_nothing_is_going_on(play: Any, tmp_path: Path) -> None:
    async def scenario(there: Pod) -> None:
        adapters = [put_adapter(there.store, tmp_path, f"a{number}") for number in range(plan.KEPT_FOLDERS + 1)]
        async with there.sidecar():
            for number, adapter in enumerate(adapters):
                there.want(adapter)
                await there.until(lambda found: found.ready)
                if number == plan.KEPT_FOLDERS - 1:
                    there.vllm.running = (adapter.name,)
            await asyncio.sleep(0.3)
            assert all(there.lies_there(adapter) for adapter in adapters)
            there.vllm.running = ()
            await there.until(lambda found: len(list(there.folder.iterdir())) == plan.KEPT_FOLDERS)
            assert not there.lies_there(adapters[0])
            await there.until(lambda found: list(there.vllm.models) == [adapters[-1].name])

    play(scenario)


@pytest.mark.parametrize("damage", ["changed", "missing", "no manifest"])
def test_an_adapter_that_is_damaged_in_the_store_is_a_permanent_failure(play: Any, tmp_path: Path, damage: str) -> None:
    async def scenario(there: Pod) -> None:
        adapter = put_adapter(there.store, tmp_path)
        key = "runs/run/adapter/adapter_model.safetensors"
        if damage == "changed":
            there.store.objects[key] = b"other bytes"
        else:
            del there.store.objects[key if damage == "missing" else "runs/run/adapter/sha256sums.json"]
        there.want(adapter)
        async with there.sidecar():
            found = await there.until(lambda found: bool(found.failed))
            assert found.failed[0].permanent and "BadData" in found.failed[0].message
            await asyncio.sleep(0.3)
            assert there.opened == ["bucket"] and there.vllm.calls == []

    play(scenario)


@pytest.mark.parametrize(
    ("config", "said"), [({"r": 64}, "rank 64; vLLM was started for ranks up to 16"), ({"use_dora": True}, "DoRA")]
)
def test_an_adapter_that_vllm_could_not_serve_is_never_shown_to_it(
    play: Any, tmp_path: Path, config: dict[str, Any], said: str
) -> None:
    async def scenario(there: Pod) -> None:
        there.want(put_adapter(there.store, tmp_path, **config))
        async with there.sidecar():
            found = await there.until(lambda found: bool(found.failed))
            assert found.failed[0].permanent and said in found.failed[0].message
            assert there.vllm.calls == []

    play(scenario)


def test_a_store_that_does_not_answer_is_waited_for(play: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(there: Pod) -> None:
        adapter = put_adapter(there.store, tmp_path)
        there.want(adapter)
        fetch_folder = there.store.fetch_folder

        def unavailable(*arguments: Any) -> None:
            raise StorageUnavailableError("cannot read: connection refused")

        monkeypatch.setattr(there.store, "fetch_folder", unavailable)
        async with there.sidecar():
            await there.until(lambda found: len(there.opened) > plan.LOAD_ATTEMPTS)
            found = await there.status()
            assert not found.failed[0].permanent and "connection refused" in found.failed[0].message
            monkeypatch.setattr(there.store, "fetch_folder", fetch_folder)
            await there.until(lambda found: found.ready)

    play(scenario)


@pytest.mark.parametrize(("refused", "renewals"), [(KeyRefusedError, 1), (StorageRefusedError, 0)])
def test_another_key_is_asked_for_where_the_store_does_not_know_this_one(
    play: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refused: type[Exception], renewals: int
) -> None:
    async def scenario(there: Pod) -> None:
        def refuse(*arguments: Any) -> None:
            raise refused("cannot read: refused")

        monkeypatch.setattr(there.store, "fetch_folder", refuse)
        there.want(put_adapter(there.store, tmp_path))
        async with there.sidecar():
            found = await there.until(lambda found: bool(found.failed))
            assert found.failed[0].permanent and there.renewals == renewals

    play(scenario)


def test_a_container_ends_once_for_each_key_that_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Keys that were rotated while a server was up once failed the run with the server's next adapter."""

    def end(code: int) -> None:
        raise SystemExit(code)

    monkeypatch.setattr(os, "_exit", end)
    for key in ("first", "second"):
        monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", key)
        with pytest.raises(SystemExit, match="1"):
            entry._begin_anew(tmp_path)
        entry._begin_anew(tmp_path)
        assert all(key not in path.read_text() for path in tmp_path.iterdir())


def test_a_slow_download_holds_up_neither_the_loop_nor_the_others(
    play: Any, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    async def scenario(there: Pod) -> None:
        slow, fast = (put_adapter(there.store, tmp_path, name) for name in ("slow", "fast"))
        fetch_folder = there.store.fetch_folder
        goes_on = threading.Event()

        def slowly(artifact: Any, target: Path) -> None:
            if artifact.sha256 == slow.sha256:
                goes_on.wait(30)
            fetch_folder(artifact, target)

        monkeypatch.setattr(there.store, "fetch_folder", slowly)
        there.want(slow, fast)
        async with there.sidecar():
            found = await there.until(lambda found: found.loaded == (fast.name,))
            assert found.pending[0].name == slow.name and "being fetched" in found.pending[0].message
            goes_on.set()
            await there.until(lambda found: found.ready)

    play(scenario)


def test_it_is_healthy_only_while_its_loop_goes_round(play: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(there: Pod) -> None:
        there.want()
        async with there.sidecar():
            monkeypatch.setattr("tandem_trainer.adapters.server.STALE_SECONDS", 0.2)
            await there.until(lambda found: found.ready)
            assert (await there.get("/healthz"))[0] == 200
            monkeypatch.setattr("tandem_trainer.adapters.loop.files.read_desired", lambda path: 1 / 0)
            await asyncio.sleep(0.5)
            status, text = await there.get("/healthz")
            assert status == 503 and "has not gone round" in text

    play(scenario)


def test_the_process_starts_without_torch_and_ends_when_asked(tmp_path: Path) -> None:
    code = (
        "import sys, threading\n"
        "from tandem_trainer.adapters.__main__ import main\n"
        "def tell():\n"
        "    import urllib.request as r\n"
        "    while True:\n"
        "        try:\n"
        "            r.urlopen(f'http://127.0.0.1:{sys.argv[2]}/healthz').read(); break\n"
        "        except OSError: pass\n"
        "    heavy = {'torch', 'transformers', 'dspy', 'numpy', 'vllm'} & set(sys.modules)\n"
        "    print(sorted(heavy), flush=True)\n"
        "threading.Thread(target=tell, daemon=True).start()\n"
        "sys.exit(main(['--host', '127.0.0.1', *sys.argv[1:]]))\n"
    )
    environment = {
        **{name: value for name, value in os.environ.items() if name.lower() != "http_proxy"},
        "TANDEM_DESIRED_ADAPTERS": str(tmp_path / "none.json"),
        "TANDEM_ADAPTERS_DIR": str(tmp_path / "adapters"),
        "TANDEM_VLLM_URL": "http://127.0.0.1:9",
    }
    (tmp_path / "adapters" / ".half-a-download").mkdir(parents=True)
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    command = [sys.executable, "-c", code, "--port", str(port)]
    with subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        try:
            assert json.loads(process.stdout.readline()) == []
            assert list((tmp_path / "adapters").iterdir()) == []
            process.send_signal(signal.SIGTERM)
            assert process.wait(60) == 0
        finally:
            process.kill()


@pytest.mark.parametrize(("given", "said"), [(["--max-rank", "0"], "1 or more"), (["--rank", "8"], "usage")])
def test_wrong_options_are_refused(given: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    before = signal.getsignal(signal.SIGTERM), signal.getsignal(signal.SIGINT)
    try:
        assert entry.main(given) == 42
    finally:
        signal.signal(signal.SIGTERM, before[0])
        signal.signal(signal.SIGINT, before[1])
    assert said in capsys.readouterr().err


def test_an_adapter_is_ready_only_after_its_canary(play: Any, tmp_path: Path) -> None:
    async def scenario(there: Pod) -> None:
        adapter = put_adapter(there.store, tmp_path, canary=CANARY)
        there.want(adapter)
        there.vllm.scores = lambda name: error(503, "no room now")
        async with there.sidecar():
            found = await there.until(lambda found: bool(found.failed))
            assert "its canary: vLLM answered 503" in found.message and not await there.is_ready()
            assert there.vllm.calls == [("load", adapter.name)], "a call that fails is no verdict"
            there.vllm.scores = lambda name: RIGHT
            await there.until(lambda found: found.ready)
            assert there.vllm.calls == [("load", adapter.name)]
            proven = len(there.vllm.asked)
            await asyncio.sleep(0.3)
            assert len(there.vllm.asked) == proven, "once proven is enough"
        # Another container of the sidecar knows nothing and asks again.
        there.vllm.scores = lambda name: BASE
        async with there.sidecar():
            found = await there.until(lambda found: bool(found.failed))
            assert f"the server answers as {adapter.name!r} with the base model" in found.message

    play(scenario)


def test_a_vllm_that_answers_with_something_else_gets_the_adapter_again(play: Any, tmp_path: Path) -> None:
    async def scenario(there: Pod) -> None:
        adapter = put_adapter(there.store, tmp_path, canary=CANARY)
        there.want(adapter)
        # As if the first load had put other weights behind the name.
        there.vllm.scores = lambda name: RIGHT if there.vllm.calls.count(("load", name)) > 1 else -9.0
        async with there.sidecar():
            found = await there.until(lambda found: found.ready)
            assert found.loaded == (adapter.name,)
            assert there.vllm.calls == [(call, adapter.name) for call in ("load", "unload", "load")]
            # After a restart of vLLM all of it again.
            await there.vllm.stop()
            there.vllm.scores = lambda name: BASE
            await there.vllm.start()
            found = await there.until(lambda found: bool(found.failed))
            assert "with the base model" in found.message and not await there.is_ready()

    play(scenario)


def test_one_that_never_answers_with_the_adapter_is_given_up_and_never_ready(play: Any, tmp_path: Path) -> None:
    async def scenario(there: Pod) -> None:
        wrong, good = (put_adapter(there.store, tmp_path, name, canary=CANARY) for name in ("wrong", "good"))
        there.want(wrong, good)
        there.vllm.scores = lambda name: RIGHT if name == good.name else BASE
        async with there.sidecar():
            found = await there.until(lambda found: any(failure.permanent for failure in found.failed))
            assert "canary" in found.failed[0].message
            assert f"given up after {plan.LOAD_ATTEMPTS} tries" in found.failed[0].message
            await there.until(lambda found: wrong.name not in there.vllm.models)
            assert there.vllm.calls.count(("load", wrong.name)) == plan.LOAD_ATTEMPTS
            assert not await there.is_ready() and (await there.status()).loaded == (good.name,)

    play(scenario)


@pytest.mark.parametrize("status", [400, 422])
def test_a_vllm_that_refuses_the_canarys_call_for_good_keeps_nobody_waiting(
    play: Any, tmp_path: Path, status: int
) -> None:
    async def scenario(there: Pod) -> None:
        adapter = put_adapter(there.store, tmp_path, canary=CANARY)
        there.want(adapter)
        there.vllm.scores = lambda name: error(status, "prompt_logprobs is not supported")
        async with there.sidecar():
            await there.until(lambda found: found.ready)

    play(scenario)
