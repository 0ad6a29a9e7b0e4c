"""The model server as a child process: one at a time, watched by a thread that asks it how it is."""

from __future__ import annotations

import http.client
import json
import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from tandem_api.errors import PERMANENT_EXIT_CODES, ConfigurationError
from tandem_api.v1alpha1 import Spec
from tandem_operator.actions import EnsureServing
from tandem_operator.platforms.local.commands import Commands, ServerLaunch
from tandem_operator.platforms.local.machine import LOOPBACK, free_port, is_free
from tandem_operator.platforms.local.processes import Child, Launch, never, spawn
from tandem_operator.platforms.local.workdir import Workdir
from tandem_operator.snapshot import ServingObservation

#: How long vLLM and its engine process may take to end after SIGTERM, before they are killed.
GRACE_SECONDS = 10.0
#: A server that was ready and does not answer for this long is given up. Busy processors make answers slow.
UNHEALTHY_SECONDS = 30.0
_ANSWER_SECONDS = 5.0
_STARTING_INTERVAL, _READY_INTERVAL = 0.25, 2.0


class Probe:
    """Asks a server again and again, in a thread of its own, so that no slow answer ever holds up the engine."""

    def __init__(self, port: int, names: tuple[str, ...]) -> None:
        self._port = port
        self._names = frozenset(names)
        self._ready = threading.Event()
        self._ended = threading.Event()
        self._last_healthy = time.monotonic()
        self._thread = threading.Thread(target=self._run, name=f"probe-{port}", daemon=True)
        self._thread.start()

    @property
    def is_ready(self) -> bool:
        """Whether it has listed all that is wanted."""
        return self._ready.is_set()

    @property
    def unhealthy_seconds(self) -> float:
        """For how long a server that was ready has not been well."""
        return time.monotonic() - self._last_healthy if self.is_ready else 0.0

    def close(self) -> None:
        """Ask no more."""
        self._ended.set()

    def _run(self) -> None:
        while not self._ended.wait(_READY_INTERVAL if self.is_ready else _STARTING_INTERVAL):
            if self._is_well():
                self._last_healthy = time.monotonic()
                self._ready.set()

    def _is_well(self) -> bool:
        connection = http.client.HTTPConnection(LOOPBACK, self._port, timeout=_ANSWER_SECONDS)
        try:
            connection.request("GET", "/health" if self.is_ready else "/v1/models")
            answer = connection.getresponse()
            body = answer.read()
            if answer.status != 200:
                return False
            return self.is_ready or self._names <= {model["id"] for model in json.loads(body)["data"]}
        except (OSError, http.client.HTTPException, ValueError, KeyError, TypeError):
            return False
        finally:
            connection.close()


@dataclass(frozen=True)
class _Server:
    """The server that is there."""

    wanted: EnsureServing
    launch: ServerLaunch
    child: Child
    probe: Probe
    startup_seconds: float
    failure: str | None = None
    """Why it was given up, once it was; then it stays so."""


class Serving:
    """What is served now."""

    def __init__(
        self, workdir: Workdir, commands: Commands, *, fixed_port: int | None, hurry: Callable[[], bool] = never
    ) -> None:
        self._workdir = workdir
        self._commands = commands
        self._fixed_port = fixed_port
        self._hurry = hurry
        self._port: int | None = None
        self._server: _Server | None = None

    @property
    def children(self) -> tuple[Child, ...]:
        """The process that is there."""
        return (self._server.child,) if self._server is not None else ()

    def ensure(self, wanted: EnsureServing, spec: Spec, environment: Mapping[str, str]) -> None:
        """Serve this and nothing else; does nothing if that is so. Returns when it is started, not when it is ready."""
        if self._server is not None:
            if self._server.wanted == wanted:
                return
            self.stop()
        launch = ServerLaunch(
            model_uri=spec.model.uri,
            name=wanted.name,
            port=self._choose_port(),
            mode=wanted.mode,
            adapter=wanted.adapter,
            extra_args=spec.serving.extra_args,
        )
        log = self._workdir.log("serving")
        child = spawn(
            Launch("serving", self._commands.server(launch), environment, self._workdir.path, log), self._workdir.path
        )
        probe = Probe(launch.port, wanted.names)
        self._server = _Server(wanted, launch, child, probe, float(spec.serving.startup_timeout_seconds))

    def stop(self) -> bool:
        """Serve nothing; returns when the processes are gone: whether there were any."""
        if self._server is None:
            return False
        self._server.probe.close()
        self._server.child.stop(GRACE_SECONDS, self._hurry)
        self._server = None
        return True

    def observe(self) -> ServingObservation | None:
        """How the server is; None when there is none."""
        server = self._server
        if server is None:
            return None
        name, restart = server.wanted.name, server.wanted.restart
        code = server.child.exit_code
        if self._is_failed():
            failure, permanent = self._describe_failure(), code in PERMANENT_EXIT_CODES
            return ServingObservation(name, "failed", message=failure, permanent=permanent, restart=restart)
        if server.probe.is_ready:
            return ServingObservation(name, "ready", url=f"http://{LOOPBACK}:{server.launch.port}", restart=restart)
        loading = f"the model server is loading; see {server.child.log}"
        return ServingObservation(name, "starting", message=loading, restart=restart)

    def _is_failed(self) -> bool:
        server = self._server
        if server is None:
            return False
        waited = time.monotonic() - server.child.started
        return (
            server.failure is not None
            or server.child.exit_code is not None
            or (not server.probe.is_ready and waited > server.startup_seconds)
            or server.probe.unhealthy_seconds > UNHEALTHY_SECONDS
        )

    def _describe_failure(self) -> str:
        """Why it failed, the same text each time it is asked, so that the status stays as it is."""
        server = self._server
        assert server is not None
        if server.failure is None:
            code = server.child.exit_code
            if code is not None:
                ended = f"it was killed by signal {-code}" if code < 0 else f"it ended with exit code {code}"
                what = f"{ended} {'after it was' if server.probe.is_ready else 'before it was'} ready"
            elif server.probe.is_ready:
                what = f"it has not answered for {UNHEALTHY_SECONDS:.0f} seconds"
            else:
                what = (
                    f"it was not ready within {server.startup_seconds:.0f} seconds (spec.serving.startupTimeoutSeconds)"
                )
            errors = server.child.errors()
            cause = f":\n{errors}" if errors else ""
            failure = f"{what}{cause}\nThe end of {server.child.log}:\n{server.child.tail() or '(empty)'}"
            self._server = server = replace(server, failure=failure)
        return str(server.failure)

    def _choose_port(self) -> int:
        """The same port for the whole run, so that a worker which tries again finds the server that was started anew;
        another one only when somebody else has taken it. Raises ConfigurationError when the user's own is taken."""
        if self._fixed_port is not None:
            if not is_free(self._fixed_port):
                raise ConfigurationError(
                    f"port {self._fixed_port} (--serving-port) is in use by another process; choose another one, or "
                    "leave the option out"
                )
            return self._fixed_port
        if self._port is None or not is_free(self._port):
            self._port = free_port()
        return self._port
