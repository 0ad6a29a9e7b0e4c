"""What runs in containers, as functions for a zygote: each gets the container's arguments and returns its exit code.

Everything is the real thing, but for the worker's `train` stage and vLLM: those are the engine tests' scripted ones.
"""

from __future__ import annotations

import itertools
import os
import sys
from collections.abc import Sequence
from datetime import datetime, timedelta, tzinfo
from pathlib import Path
from typing import Final

ENGINE: Final = Path(__file__).parents[1] / "engine"
#: In the environment of each container here: its pod's address.
ENV_ADDRESS: Final = "TANDEM_TEST_ADDRESS"
#: In the environment of vLLM here: where its calls are logged, seconds per call, and whether it has metrics.
ENV_LOG, ENV_LATENCY, ENV_METRICS = "TANDEM_TEST_LM_LOG", "TANDEM_TEST_LM_LATENCY", "TANDEM_TEST_LM_METRICS"
#: In the environment of the operator: for how many seconds it waits for an answer of the API server, and a file with
#: the seconds by which its wall clock is wrong.
ENV_PATIENCE, ENV_CLOCK = "TANDEM_TEST_API_SECONDS", "TANDEM_TEST_CLOCK"
#: What the two zygotes import: most of what a start costs otherwise.
TRAINER_MODULES: Final = (
    "tests.faults.children",
    "tests.engine.worker",
    "tests.scripted_lm.server",
    "tandem_trainer.main",
    "tandem_trainer.cleanup",
    "tandem_trainer.progress_server",
    "tandem_trainer.adapters.__main__",
    "tandem_trainer.stages.check",
    "tandem_trainer.stages.evaluate",
    "tandem_trainer.stages.final",
    "tandem_trainer.stages.optimize",
    "tandem_trainer.stages.select",
    "tandem_trainer.stages.traces",
    "tandem_trainer.prompt.bfrs",
    "boto3",
)
OPERATOR_MODULES: Final = ("tests.faults.children", "tandem_operator.app.main")


def worker(arguments: Sequence[str]) -> int:
    """`python -m tandem_trainer.main` with the scripted `train` stage."""
    from tests.engine import worker as scripted

    from tandem_trainer import main, progress_server

    # In a pod every address is its own.
    progress_server.ADDRESS = os.environ[ENV_ADDRESS]
    scripted.install()
    return main.main()


def vllm(arguments: Sequence[str]) -> int:
    """`python -m tandem_trainer.serving` and the vLLM that it becomes: the scripted server in its place."""
    from tests.scripted_lm import server

    given = dict(itertools.pairwise(arguments))
    argv = ["server", "--host", os.environ[ENV_ADDRESS], "--port", given["--port"]]
    argv += ["--model", given["--served-name"], "--script", f"{ENGINE / 'model.py'}:answer"]
    argv += ["--latency", os.environ.get(ENV_LATENCY, "0"), "--log", os.environ[ENV_LOG]]
    argv += ["--metrics"] if ENV_METRICS in os.environ else []
    sys.argv = argv
    server.main()
    return 0


def adapters(arguments: Sequence[str]) -> int:
    """`python -m tandem_trainer.adapters`."""
    from tandem_trainer.adapters import __main__ as sidecar

    address = os.environ[ENV_ADDRESS]
    return sidecar.main([*arguments, "--host", address, "--vllm", f"http://{address}:8000"])


def cleanup(arguments: Sequence[str]) -> int:
    """`python -m tandem_trainer.cleanup`."""
    from tandem_trainer import cleanup as removal

    return removal.main(arguments)


def operator(arguments: Sequence[str]) -> int:
    """`python -m tandem_operator.app.main`."""
    from kubernetes.config import kube_config

    from tandem_operator.app import main
    from tandem_operator.platforms.kubernetes import client

    if ENV_PATIENCE in os.environ:
        client._OPTIONS["_request_timeout"] = (5.0, float(os.environ[ENV_PATIENCE]))
    if ENV_CLOCK in os.environ:
        _set_clock(Path(os.environ[ENV_CLOCK]))
    # It was read from the environment when the zygote imported it.
    kube_config.KUBE_CONFIG_DEFAULT_LOCATION = os.environ["KUBECONFIG"]
    main.main()


def _set_clock(offset: Path) -> None:
    """Have the operator's modules see a wall clock that is wrong by the seconds in the file, which may change."""

    class Wrong(datetime):
        @classmethod
        def now(cls, tz: tzinfo | None = None) -> datetime:  # type: ignore[override]
            return datetime.now(tz) + timedelta(seconds=float(offset.read_text()))

    for name, module in list(sys.modules.items()):
        if name.startswith("tandem_operator.") and getattr(module, "datetime", None) is datetime:
            module.datetime = Wrong  # type: ignore[attr-defined]
