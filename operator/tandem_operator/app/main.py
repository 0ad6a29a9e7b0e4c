"""`python -m tandem_operator.app.main`: the operator process.

Exit codes: 0 ended by SIGTERM, 1 something failed or the leadership was lost, 2 the settings are wrong.
"""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import sys
import threading
from collections.abc import Callable, Mapping
from typing import NoReturn

import kubernetes

from tandem_api.errors import ConfigurationError
from tandem_operator.app import logs
from tandem_operator.app.cloudevents import SigningKeys
from tandem_operator.app.cluster import RunLister
from tandem_operator.app.lease import LeaseElector
from tandem_operator.app.metrics import Metrics
from tandem_operator.app.passes import Passes
from tandem_operator.app.process import Operator, Parts
from tandem_operator.app.queue import Reconcile
from tandem_operator.platforms.kubernetes.asking import Asking
from tandem_operator.platforms.kubernetes.calls import Hear
from tandem_operator.platforms.kubernetes.client import Client, api_client
from tandem_operator.platforms.kubernetes.platform import Surroundings
from tandem_operator.settings import OperatorSettings, load_settings

EXIT_DONE, EXIT_FAILED, EXIT_SETTINGS = 0, 1, 2
#: After SIGTERM the process is gone by then, whatever hangs; the kubelet kills after 30 s.
_END_SECONDS = 24.0
#: API servers read JSON up to 10,000 objects in each other, and Python's code takes a few calls for each.
_RECURSION, _STACK_BYTES = 60_000, 64 * 2**20
ENV_POD, ENV_NAMESPACE = "POD_NAME", "POD_NAMESPACE"
_LOG = logging.getLogger(__name__)

MakeReconcile = Callable[[OperatorSettings, str, str, Callable[[], bool], Hear], Reconcile]


def passes(
    settings: OperatorSettings, identity: str, namespace: str, may_write: Callable[[], bool], hear: Hear
) -> Reconcile:
    """The real passes, on a client of the cluster. Raises when the API server does not answer."""
    client = Client(api_client(hear), may_write)
    return Passes(Surroundings(client, settings, Asking(), namespace, identity, client.version())).reconcile_run


def run(environment: Mapping[str, str] = os.environ, make_reconcile: MakeReconcile = passes) -> int:
    """The process from its settings to its exit code. Passes may still run in threads when it returns."""
    try:
        settings = load_settings(environment)
        identity, namespace = _identity(environment)
        if settings.cloud_events.signing_key_file is not None:
            SigningKeys(settings.cloud_events.signing_key_file).read()
    except ConfigurationError as error:
        print(f"error: {error}", file=sys.stderr)
        return EXIT_SETTINGS
    logs.configure(settings.log_format)
    _allow_deep_json()
    try:
        # All that the leader needs, so that a spare only has to begin.
        metrics = Metrics()
        api = api_client(metrics.called)
        elector = LeaseElector(kubernetes.client.CoordinationV1Api(api), settings.lease, namespace, identity)
        reconcile = make_reconcile(settings, identity, namespace, elector.is_held, metrics.called)
        parts = Parts(reconcile, RunLister(api, settings.namespaces), elector, metrics)
        in_order = asyncio.run(_live(settings, parts))
    except Exception:
        _LOG.critical("the operator ends", exc_info=True)
        return EXIT_FAILED
    _LOG.info("ended in good order" if in_order else "ended with passes still running")
    return EXIT_DONE


def main() -> NoReturn:
    """Run and end. Not by returning: the interpreter would wait for every thread, also one that hangs."""
    code = run()
    logging.shutdown()
    sys.stderr.flush()
    os._exit(code)


def _allow_deep_json() -> None:
    """Read whatever the API server stores. Python's limit is far below, and one such run would end the list of all."""
    sys.setrecursionlimit(_RECURSION)
    # For the threads to come; memory that is not used is not taken.
    threading.stack_size(_STACK_BYTES)


async def _live(settings: OperatorSettings, parts: Parts) -> bool:
    stop = asyncio.Event()
    loop = asyncio.get_running_loop()
    for number in (signal.SIGTERM, signal.SIGINT):
        loop.add_signal_handler(number, _asked_to_stop, stop, number)
    return await Operator(settings, parts).run(stop)


def _asked_to_stop(stop: asyncio.Event, number: signal.Signals) -> None:
    if not stop.is_set():
        _LOG.info("%s: ending", number.name)
        stop.set()
        last = threading.Timer(_END_SECONDS, _end_now)
        last.daemon = True
        last.start()


def _end_now() -> None:
    _LOG.error("ending took longer than %.0f s: something hangs", _END_SECONDS)
    logging.shutdown()
    os._exit(EXIT_DONE)


def _identity(environment: Mapping[str, str]) -> tuple[str, str]:
    """This replica's name and the namespace of its Lease."""
    for name in (ENV_POD, ENV_NAMESPACE):
        if not environment.get(name):
            raise ConfigurationError(f"{name} is not set; the pod gets it from its own metadata (downward API)")
    return environment[ENV_POD], environment[ENV_NAMESPACE]


if __name__ == "__main__":
    main()
