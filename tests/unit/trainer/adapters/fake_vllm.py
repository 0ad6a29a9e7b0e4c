"""A scripted vLLM with the answers of 0.32 for adapters, and a sidecar beside it, all on one event loop."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import aiohttp
from aiohttp import web
from tests.memory_store import MemoryStore

from tandem_api.adapters import AdaptersReport, DesiredAdapter, DesiredAdapters
from tandem_api.contract import served_names
from tandem_trainer.adapters.canary import CANARY_FILE, Canary, CanaryRow
from tandem_trainer.adapters.loop import Settings, Sidecar
from tandem_trainer.adapters.predictors import write_predictors
from tandem_trainer.adapters.server import application
from tandem_trainer.adapters.vllm import VLLM
from tandem_trainer.lora.servable import CONFIG_FILE, WEIGHTS_FILE

CONFIG: dict[str, Any] = {"peft_type": "LORA", "r": 8, "lora_alpha": 16, "target_modules": ["q_proj"]}
#: What `FakeVLLM.logprob` has to be for the adapter, and for the base model.
RIGHT, BASE = -0.5, -3.0
CANARY = Canary(
    rows=tuple(CanaryRow(tokens=(1, 2, n), prompt_tokens=2, base=(BASE,), adapter=(RIGHT,)) for n in (3, 4))
)


def put_adapter(
    store: MemoryStore, folder: Path, name: str = "run", canary: Canary | None = None, **config: Any
) -> DesiredAdapter:
    """An adapter of that configuration in the store; other names, other bytes."""
    source = folder / f"source-{name}"
    source.mkdir()
    (source / CONFIG_FILE).write_text(json.dumps({**CONFIG, **config}))
    (source / WEIGHTS_FILE).write_bytes(name.encode())
    if canary is not None:
        (source / CANARY_FILE).write_text(canary.model_dump_json())
    artifact = store.put_folder(f"runs/{name}/adapter/", source)
    return DesiredAdapter(name=f"{name}-{artifact.sha256[:16]}", uri=artifact.uri, sha256=artifact.sha256)


def put_several(store: MemoryStore, folder: Path, count: int, canary: Canary | None = None) -> list[DesiredAdapter]:
    """Adapters of so many predictors in one folder of the store."""
    source = folder / "source-several"
    for number in range(count):
        (source / str(number)).mkdir(parents=True)
        (source / str(number) / CONFIG_FILE).write_text(json.dumps(CONFIG))
        (source / str(number) / WEIGHTS_FILE).write_bytes(str(number).encode())
        if canary is not None:
            (source / str(number) / CANARY_FILE).write_text(canary.model_dump_json())
    write_predictors(source, tuple(f"predictor-{number}" for number in range(count)))
    artifact = store.put_folder("runs/several/adapter/", source)
    names = served_names("run-several", artifact.model_copy(update={"adapters": count}))
    return [
        DesiredAdapter(name=name, uri=artifact.uri, sha256=artifact.sha256, number=number)
        for number, name in enumerate(names)
    ]


class FakeVLLM:
    """Loads whatever it is told to, unless `refusal` says otherwise. `start` and `stop` are its container's."""

    def __init__(self) -> None:
        self.port = 0
        self.health = 200
        self.models: dict[str, str] = {}
        self.running: tuple[str, ...] = ()
        self.tells = True
        """Whether /metrics holds vLLM's own."""
        self.refusal: Callable[[str], web.Response | None] = lambda name: None
        self.scores: Callable[[str], float | web.Response] = lambda name: RIGHT
        """The log-probability of every token under an adapter's name, or another answer to that question."""
        self.calls: list[tuple[str, str]] = []
        """(load or unload, name)."""
        self.asked: list[str] = []
        """The names of completion calls."""
        self._runner: web.AppRunner | None = None

    async def start(self) -> None:
        app = web.Application()
        app.add_routes(
            [
                web.get("/health", self._health),
                web.get("/v1/models", self._list),
                web.get("/metrics", self._metrics),
                web.post("/v1/completions", self._complete),
                web.post("/v1/load_lora_adapter", self._load),
                web.post("/v1/unload_lora_adapter", self._unload),
            ]
        )
        self.models = {}
        self._runner = web.AppRunner(app, shutdown_timeout=1)
        await self._runner.setup()
        site = web.TCPSite(self._runner, "127.0.0.1", self.port, reuse_address=True)
        await site.start()
        self.port = self._runner.addresses[0][1]

    async def stop(self) -> None:
        assert self._runner is not None
        await self._runner.cleanup()

    async def _health(self, request: web.Request) -> web.Response:
        return web.Response(status=self.health)

    async def _list(self, request: web.Request) -> web.Response:
        base = {"id": "base", "root": "/models/base", "parent": None}
        return web.json_response(
            {"data": [base, *({"id": n, "root": r, "parent": "base"} for n, r in self.models.items())]}
        )

    async def _metrics(self, request: web.Request) -> web.Response:
        return web.Response(text=metrics(self.running) if self.tells else "# nothing\n")

    async def _complete(self, request: web.Request) -> web.Response:
        body = await request.json()
        name = body["model"]
        self.asked.append(name)
        if name not in self.models:
            return error(404, f"The model `{name}` does not exist.")
        score = self.scores(name)
        if isinstance(score, web.Response):
            return score
        told = [{str(token): {"logprob": score}} for token in body["prompt"][1:]]
        return web.json_response({"model": name, "choices": [{"text": "", "prompt_logprobs": [None, *told]}]})

    async def _load(self, request: web.Request) -> web.Response:
        body = await request.json()
        name, root = body["lora_name"], Path(body["lora_path"])
        self.calls.append(("load", name))
        refusal = self.refusal(name)
        if refusal is not None:
            return refusal
        if name in self.models:
            return error(400, f"The lora adapter '{name}' has already been loaded.")
        if not (root / CONFIG_FILE).is_file():
            return error(404, f"Loading lora {name} failed: No adapter found for {root}")
        self.models[name] = str(root)
        return web.Response(text=f"Success: LoRA adapter '{name}' added successfully.")

    async def _unload(self, request: web.Request) -> web.Response:
        name = (await request.json())["lora_name"]
        self.calls.append(("unload", name))
        if self.models.pop(name, None) is None:
            return error(404, f"The lora adapter '{name}' cannot be found.")
        return web.Response(text=f"Success: LoRA adapter '{name}' removed successfully.")


def error(status: int, message: str) -> web.Response:
    """vLLM's error body."""
    return web.json_response({"error": {"message": message, "type": "X", "code": status}}, status=status)


def metrics(running: tuple[str, ...] = (), waiting: tuple[str, ...] = (), engines: int = 1) -> str:
    """What vLLM's /metrics tells of adapters that have a call each; all its other metrics are left out."""
    names, now = ",".join(running), time.time()
    lines = ["# TYPE vllm:num_requests_running gauge", "# TYPE vllm:lora_requests_info gauge"]
    for engine in range(engines):
        labels = f'{{engine="{engine}",model_name="base"}}'
        lines.append(f"vllm:num_requests_running{labels} {len(running) if engine == 0 else 0}.0")
        lines.append(f"vllm:num_requests_waiting{labels} {len(waiting) if engine == 0 else 0}.0")
    for adapters, waits, seen in (("long-ago", "", now - 60), (names, ",".join(waiting), now)):
        labels = f'max_lora="1",running_lora_adapters="{adapters}",waiting_lora_adapters="{waits}"'
        lines.append(f"vllm:lora_requests_info{{{labels}}} {seen!r}")
    return "\n".join(lines) + "\n"


@dataclass
class Pod:
    """vLLM, the sidecar, and what they share."""

    tmp: Path
    store: MemoryStore = field(default_factory=MemoryStore)
    vllm: FakeVLLM = field(default_factory=FakeVLLM)
    url: str = ""
    opened: list[str] = field(default_factory=list)
    """The buckets that were opened, one for each download."""
    renewals: int = 0
    """How often the sidecar has asked for another key."""
    _http: aiohttp.ClientSession | None = None
    _loop: asyncio.Task[None] | None = None
    _versions: int = 0

    @property
    def folder(self) -> Path:
        return self.tmp / "adapters"

    @property
    def mounted(self) -> Path:
        return self.tmp / "desired" / "adapters.json"

    def _renew(self) -> None:
        self.renewals += 1

    def root(self, adapter: DesiredAdapter) -> str:
        """Where it is to lie."""
        return str(self.folder / adapter.sha256)

    def lies_there(self, adapter: DesiredAdapter) -> bool:
        return (self.folder / adapter.sha256).is_dir()

    def want(self, *adapters: DesiredAdapter) -> None:
        self.mount(DesiredAdapters(adapters=adapters).text)

    def mount(self, text: str) -> None:
        """Change the file as the kubelet does: a new folder, and a link that is moved to it at once."""
        self._versions += 1
        data = self.mounted.parent / f"..version{self._versions}"
        data.mkdir(parents=True)
        (data / "adapters.json").write_text(text)
        link = self.mounted.parent / "..data_tmp"
        link.symlink_to(data.name)
        link.replace(self.mounted.parent / "..data")
        if not self.mounted.is_symlink():
            self.mounted.symlink_to("..data/adapters.json")

    @asynccontextmanager
    async def sidecar(self, max_rank: int = 16) -> AsyncIterator[None]:
        """A container of the sidecar. vLLM's may be up or not."""
        self.folder.mkdir(exist_ok=True)
        settings = Settings(self.mounted, self.folder, max_rank, interval=0.1, file_interval=0.02)
        async with aiohttp.ClientSession(connector=aiohttp.TCPConnector(force_close=True)) as session:
            sidecar = Sidecar(settings, VLLM(session, f"http://127.0.0.1:{self.vllm.port}"), self._open, self._renew)
            runner = web.AppRunner(application(sidecar), shutdown_timeout=1)
            await runner.setup()
            await web.TCPSite(runner, "127.0.0.1", 0).start()
            self.url = f"http://127.0.0.1:{runner.addresses[0][1]}"
            self._http = session
            loop = asyncio.create_task(sidecar.run())
            try:
                yield
            finally:
                loop.cancel()
                with suppress(asyncio.CancelledError):
                    await loop
                await runner.cleanup()

    async def get(self, path: str) -> tuple[int, str]:
        assert self._http is not None
        async with self._http.get(f"{self.url}{path}") as response:
            return response.status, await response.text()

    async def status(self) -> AdaptersReport:
        status, text = await self.get("/status")
        assert status == 200
        return AdaptersReport.model_validate_json(text)

    async def is_ready(self) -> bool:
        status, text = await self.get("/readyz")
        assert (status == 200) == AdaptersReport.model_validate_json(text).ready
        return status == 200

    async def until(self, condition: Callable[[AdaptersReport], bool], seconds: float = 50) -> AdaptersReport:
        """The first status for which the condition holds."""
        deadline = time.monotonic() + seconds
        while not condition(found := await self.status()):
            assert time.monotonic() < deadline, found
            await asyncio.sleep(0.02)
        return found

    def _open(self, bucket: str) -> MemoryStore:
        self.opened.append(bucket)
        return self.store


@asynccontextmanager
async def pod(tmp: Path) -> AsyncIterator[Pod]:
    """A pod whose vLLM runs."""
    found = Pod(tmp)
    await found.vllm.start()
    try:
        yield found
    finally:
        await found.vllm.stop()
