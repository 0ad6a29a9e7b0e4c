"""The adapter sidecar beside a real vLLM, with real adapters in a real S3 server."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import aiohttp
import pytest

from tandem_api.adapters import AdaptersReport, DesiredAdapter, DesiredAdapters
from tandem_operator.platforms.local.machine import free_port
from tandem_operator.platforms.local.storage import EmbeddedStorage, client
from tandem_operator.platforms.local.workdir import Workdir
from tandem_trainer.adapters.canary import CANARY_FILE, Canary, distance, find_fault, logprobs, question, read_canary

#: What vLLM is started for. The sidecar is told more, so that vLLM itself refuses the adapter above it.
RANK, TOLD_RANK = 8, 16
#: A context long enough for calls that last, on a model that answers at once.
CONTEXT = 2048


def write_model(folder: Path, size: int = 128) -> None:
    """A Llama of random weights with heads of a size that vLLM serves on a CPU."""
    from tests.unit.trainer.lora.tiny import tiny_tokenizer
    from transformers import LlamaConfig, LlamaForCausalLM

    tokenizer = tiny_tokenizer()
    config = LlamaConfig(
        vocab_size=len(tokenizer),
        hidden_size=size,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=size // 64,
        num_key_value_heads=size // 64,
        max_position_embeddings=CONTEXT,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
        initializer_range=0.2,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    tokenizer.save_pretrained(folder)


def write_adapter(model: Path, folder: Path, rank: int) -> None:
    """An adapter of random weights, so that it answers otherwise than the model does, and its canary."""
    from peft import LoraConfig, get_peft_model
    from transformers import AutoModelForCausalLM

    from tandem_trainer.lora.canary import write_canary
    from tandem_trainer.lora.dataset import Row

    config = LoraConfig(r=rank, lora_alpha=8 * rank, target_modules=["q_proj", "v_proj"], init_lora_weights=False)
    tuned = get_peft_model(AutoModelForCausalLM.from_pretrained(model), config)
    tuned.save_pretrained(folder)
    rows = [Row(f"{n}", tuple((7 * n + 3 * position) % 250 for position in range(60)), 40) for n in range(12)]
    write_canary(tuned, rows, folder)


class Pod:
    """vLLM and the sidecar as processes, and the files and addresses that they share."""

    def __init__(self, folder: Path, model: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.mounted = folder / "desired.json"
        self.port, self.sidecar_port = free_port(), free_port()
        self._model = model
        self._environment = environment | {
            "TANDEM_CACHE": str(folder / "cache"),
            "TANDEM_DESIRED_ADAPTERS": str(self.mounted),
            "TANDEM_ADAPTERS_DIR": str(folder / "adapters"),
            "TANDEM_VLLM_URL": f"http://127.0.0.1:{self.port}",
        }
        self._processes: dict[str, subprocess.Popen[bytes]] = {}

    def start_vllm(self) -> None:
        command = ["tandem_trainer.serving", "--model", self._model.as_uri(), "--port", str(self.port)]
        command += ["--served-name", "base", "--mode", "reload", "--rank", str(RANK)]
        self._start("vllm", *command)

    def start_sidecar(self) -> None:
        options = ["--max-rank", str(TOLD_RANK), "--host", "127.0.0.1", "--port", str(self.sidecar_port)]
        self._start("sidecar", "tandem_trainer.adapters", *options)

    def end(self, name: str, number: int) -> int:
        """Send a signal to a process and its children. Returns its exit code."""
        process = self._processes.pop(name)
        os.killpg(process.pid, number)
        return process.wait(30)

    def end_all(self) -> None:
        for name in list(self._processes):
            self.end(name, signal.SIGKILL)

    def want(self, *adapters: DesiredAdapter) -> None:
        staging = self.mounted.with_suffix(".tmp")
        staging.write_text(DesiredAdapters(adapters=adapters).text)
        staging.replace(self.mounted)

    def log(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()

    def memory(self, name: str) -> float:
        """MiB that the process has in memory."""
        status = Path(f"/proc/{self._processes[name].pid}/status").read_text()
        return int(status.partition("VmRSS:")[2].split()[0]) / 1024

    def status(self) -> AdaptersReport:
        return AdaptersReport.model_validate_json(json.dumps(asyncio.run(get(f"{self.sidecar}/status"))[1]))

    def until(self, condition: Callable[[AdaptersReport], bool], seconds: float = 60) -> AdaptersReport:
        deadline = time.monotonic() + seconds
        while not condition(found := self.status()):
            for name, process in self._processes.items():
                assert process.poll() is None, self.log(name)[-4000:]
            assert time.monotonic() < deadline, (found, self.log("sidecar"), self.log("vllm")[-4000:])
            time.sleep(0.1)
        return found

    @property
    def sidecar(self) -> str:
        return f"http://127.0.0.1:{self.sidecar_port}"

    @property
    def vllm(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def complete(self, model: str, tokens: int = 8) -> tuple[int, Any]:
        """One completion: the status and the text or the error."""
        return asyncio.run(complete(self.vllm, model, tokens))

    def _start(self, name: str, *command: str) -> None:
        with (self.folder / f"{name}.log").open("ab") as log:
            self._processes[name] = subprocess.Popen(
                [sys.executable, "-m", *command],
                env=self._environment,
                stdout=log,
                stderr=log,
                cwd=self.folder,
                start_new_session=True,
            )


async def get(url: str) -> tuple[int, Any]:
    """The status and the JSON; waits for a server that is only about to listen."""
    deadline = time.monotonic() + 20
    async with aiohttp.ClientSession() as session:
        while True:
            try:
                async with session.get(url) as response:
                    return response.status, await response.json()
            except aiohttp.ClientConnectorError:
                assert time.monotonic() < deadline, f"nobody listens at {url}"
                await asyncio.sleep(0.05)


async def complete(url: str, model: str, tokens: int) -> tuple[int, Any]:
    body = {"model": model, "prompt": "Is the review positive or negative?", "temperature": 0, "max_tokens": tokens}
    async with (
        aiohttp.ClientSession() as session,
        session.post(f"{url}/v1/completions", json=body | {"ignore_eos": True}) as response,
    ):
        answer = await response.json()
        return response.status, answer["choices"][0]["text"] if response.status == 200 else answer


async def judge_all(url: str, canary: Canary, *, right: str, wrong: tuple[str, ...]) -> None:
    async with aiohttp.ClientSession() as session:

        async def ask(body: Mapping[str, Any]) -> Mapping[str, Any]:
            async with session.post(f"{url}/v1/completions", json=body) as response:
                assert response.status == 200, await response.text()
                return dict(await response.json())

        assert await find_fault(canary, right, ask) is None
        for name in wrong:
            fault = await find_fault(canary, name, ask)
            assert fault is not None and ("with the base model" in fault) == (name == "base"), fault
        for name in (right, *wrong):
            away = [distance(logprobs(row, await ask(question(name, row))), row.adapter) for row in canary.rows]
            print(f"{name}: {', '.join(f'{nats:.3f}' for nats in away)} nats per token away from the adapter")


@pytest.fixture(scope="module")
def adapters(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[Pod, dict[str, DesiredAdapter]]]:
    """A pod that wants nothing yet, and the adapters in its bucket: `one`, `two`, `wide` of a rank too high, `alien` of
    another model, `forged` with the canary of `one` and the weights of `two`."""
    folder = tmp_path_factory.mktemp("pod")
    (folder / "work").mkdir()
    clean = {name: value for name, value in os.environ.items() if not name.startswith("AWS_")}
    storage = EmbeddedStorage(Workdir(folder / "work"), clean, warn=lambda message: None)
    storage.start()
    write_model(folder / "model")
    write_model(folder / "larger", 256)
    for name, model, rank in (("one", "model", 8), ("two", "model", 4), ("wide", "model", 16), ("alien", "larger", 8)):
        write_adapter(folder / model, folder / name, rank)
    shutil.copytree(folder / "two", folder / "forged")
    shutil.copyfile(folder / "one" / CANARY_FILE, folder / "forged" / CANARY_FILE)
    storage.wait_until_ready()
    store = client(storage.ref, storage.credentials)
    found = {}
    for name in ("one", "two", "wide", "alien", "forged"):
        artifact = store.put_folder(f"runs/{name}/adapter/", folder / name)
        found[name] = DesiredAdapter(name=f"{name}-{artifact.sha256[:16]}", uri=artifact.uri, sha256=artifact.sha256)
    # As in an image, there is no C++ compiler.
    environment = clean | dict(storage.credentials) | {"AWS_ENDPOINT_URL": str(storage.ref.endpoint), "CXX": "none"}
    pod = Pod(folder, folder / "model", environment)
    pod.want()
    pod.start_vllm()
    pod.start_sidecar()
    yield pod, found
    pod.end_all()
    storage.stop()


@pytest.mark.timeout(900)
def test_a_real_adapter_through_its_life(adapters: tuple[Pod, dict[str, DesiredAdapter]]) -> None:
    pod, found = adapters
    one, two, wide = found["one"], found["two"], found["wide"]
    begun = time.monotonic()
    assert asyncio.run(get(f"{pod.sidecar}/readyz"))[0] == 503
    print(f"sidecar: answers after {time.monotonic() - begun:.1f} s")
    pod.until(lambda report: report.ready, 300)
    print(f"vLLM: up after {time.monotonic() - begun:.1f} s")

    # Loaded, and it answers as itself; a name that nobody serves is never answered by another model.
    begun = time.monotonic()
    pod.want(one)
    pod.until(lambda report: report.ready, 300)  # vLLM compiles its kernels in the first call, the canary's
    seconds, memory = time.monotonic() - begun, pod.memory("sidecar")
    print(f"fetched and loaded within {seconds:.2f} s; the sidecar has {memory:.0f} MiB")
    assert memory < 150
    status, text = pod.complete(one.name)
    assert status == 200 and text != pod.complete("base")[1]
    assert pod.complete("one-0000000000000000")[0] == 404

    # vLLM itself refuses a rank that our check has let through, and the others are not touched by that.
    pod.want(one, two, wide)
    report = pod.until(lambda report: bool(report.failed) and len(report.loaded) == 2)
    assert report.failed[0].name == wide.name and report.failed[0].permanent
    assert "rank 16 is greater than max_lora_rank 8" in report.failed[0].message
    assert pod.complete(two.name)[0] == 200
    pod.want(one, two, found["alien"])
    report = pod.until(lambda report: any(failure.permanent for failure in report.failed))
    print(f"an adapter of another model: {report.failed[0].message}")
    assert report.failed[0].name == found["alien"].name and pod.complete(two.name)[0] == 200

    # What a server answers under a name is held against the canary: the right adapter passes, whatever else does not.
    canary = read_canary(pod.folder / "one")
    assert len(canary.rows) == 3, canary.reason
    asyncio.run(judge_all(pod.vllm, canary, right=one.name, wrong=(two.name, "base")))
    pod.want(one, two, found["forged"])
    report = pod.until(lambda report: any(failure.permanent for failure in report.failed), 120)
    assert f"the server answers as {found['forged'].name!r} with other weights (canary" in report.failed[0].message
    assert set(report.loaded) == {one.name, two.name}
    assert pod.complete(found["forged"].name)[0] == 404

    # Calls that have begun when their adapter is dropped come to their end; after them it is gone.
    async def drop_meanwhile() -> list[tuple[int, Any]]:
        calls = [asyncio.create_task(complete(pod.vllm, two.name, 300)) for _ in range(4)]
        await asyncio.sleep(0.5)
        assert not any(call.done() for call in calls), "the calls are too short for this test"
        pod.want(one)
        await asyncio.sleep(2)
        listed = {model["id"] for model in (await get(f"{pod.vllm}/v1/models"))[1]["data"]}
        assert two.name in listed or all(call.done() for call in calls)
        return await asyncio.gather(*calls)

    begun = time.monotonic()
    assert [status for status, _ in asyncio.run(drop_meanwhile())] == [200] * 4
    print(f"four calls of 300 tokens took {time.monotonic() - begun:.1f} s")
    deadline = time.monotonic() + 20
    while pod.complete(two.name, 1)[0] != 404:
        assert time.monotonic() < deadline
        time.sleep(1)
    assert pod.complete(one.name) == (200, text)

    # A sidecar that is started anew finds everything as it is.
    assert pod.end("sidecar", signal.SIGTERM) == 0
    pod.start_sidecar()
    begun = time.monotonic()
    pod.until(lambda report: report.ready)
    print(f"a new sidecar is ready after {time.monotonic() - begun:.1f} s")
    assert pod.log("sidecar").count(f"{one.name}: loaded") == 1

    # A vLLM that is started anew has lost its adapters, and gets them before anything is ready.
    pod.end("vllm", signal.SIGKILL)
    assert asyncio.run(get(f"{pod.sidecar}/readyz"))[0] == 503
    begun = time.monotonic()
    pod.start_vllm()
    pod.until(lambda report: report.ready, 300)
    print(f"a new vLLM has its adapter after {time.monotonic() - begun:.1f} s")
    assert pod.complete(one.name) == (200, text)
    assert pod.log("sidecar").count(f"{one.name}: loaded") == 2
    assert pod.log("sidecar").count(f"{one.name}: vLLM answers as its canary says") == 3
