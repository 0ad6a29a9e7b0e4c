"""Which programs the platform starts. Tests put scripted ones in their place."""

from __future__ import annotations

import sys
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal

from tandem_api.v1alpha1.status import Artifact


@dataclass(frozen=True)
class ServerLaunch:
    """A model server as it is wanted."""

    model_uri: str
    name: str
    """The served model name."""
    port: int
    """On the loopback interface."""
    mode: Literal["base", "merged", "reload", "rollout"]
    adapter: Artifact | None
    extra_args: tuple[str, ...]
    """The user's own arguments for vLLM."""


def serving_argv(launch: ServerLaunch) -> tuple[str, ...]:
    """The launcher that prepares the model and becomes vLLM."""
    argv = [sys.executable, "-m", "tandem_trainer.serving"]
    argv += ["--model", launch.model_uri, "--port", str(launch.port), "--served-name", launch.name]
    argv += ["--mode", launch.mode]
    if launch.adapter is not None:
        argv += ["--adapter-uri", launch.adapter.uri, "--adapter-sha256", launch.adapter.sha256]
    return (*argv, "--", *launch.extra_args)


@dataclass(frozen=True)
class Commands:
    """The programs of a run."""

    worker: tuple[str, ...] = (sys.executable, "-m", "tandem_trainer.main")
    """One attempt of a stage; everything else is in its environment (`tandem_api.contract`)."""
    server: Callable[[ServerLaunch], tuple[str, ...]] = serving_argv
