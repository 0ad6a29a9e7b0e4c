"""Which cluster is meant, and as whom: the kubeconfig as kubectl reads it, or the account of the pod that we run in."""

from __future__ import annotations

import logging
import os
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tandem_api.errors import ConfigurationError
from tandem_operator.cli.cluster.client import Cluster
from tandem_operator.cli.invocation import program

if TYPE_CHECKING:
    from kubernetes.client import Configuration

_POD_NAMESPACE = Path("/var/run/secrets/kubernetes.io/serviceaccount/namespace")
_DEFAULT = "~/.kube/config"


@dataclass(frozen=True)
class Access:
    """What the user said about the cluster; None: nothing."""

    namespace: str | None = None
    context: str | None = None
    kubeconfig: Path | None = None

    @property
    def is_given(self) -> bool:
        """Whether a cluster is meant at all, where it might also be a folder."""
        return any(value is not None for value in (self.namespace, self.context, self.kubeconfig))

    def at(self, namespace: str) -> Access:
        """The same, with the namespace that it came to."""
        return replace(self, namespace=namespace)

    @property
    def arguments(self) -> str:
        """The same as options, for the commands that we tell people."""
        options = (("-n", self.namespace), ("--context", self.context), ("--kubeconfig", self.kubeconfig))
        return "".join(f" {option} {value}" for option, value in options if value is not None)


def connect(kubeconfig: Path | None = None, context: str | None = None) -> Cluster:
    """The cluster of the kubeconfig's context, or the one that we run in. Nothing is sent yet.

    Raises ConfigurationError when there is no kubeconfig, or none that can be used.
    """
    import urllib3
    from kubernetes.client import ApiClient, Configuration

    configuration = Configuration()
    # A command tells at once what is wrong; what has to go on through faults tries again itself.
    configuration.retries = 0
    paths = _kubeconfigs(kubeconfig)
    if paths:
        namespace = _load(configuration, os.pathsep.join(map(str, paths)), context)
    elif kubeconfig is None and context is None and "KUBERNETES_SERVICE_HOST" in os.environ:
        namespace = _load_pod_account(configuration)
    else:
        looked = kubeconfig or os.environ.get("KUBECONFIG") or _DEFAULT
        raise ConfigurationError(
            f"there is no kubeconfig: {looked} does not exist; set KUBECONFIG or give --kubeconfig FILE. "
            f"A run on this machine needs none: {program()} run -f FILE --local"
        )
    if not configuration.verify_ssl:
        # Whoever wrote that into the kubeconfig need not be told with each request; kubectl does not, either.
        urllib3.disable_warnings(urllib3.exceptions.InsecureRequestWarning)
    client = ApiClient(configuration)
    client.user_agent = "tandem"
    return Cluster(client, configuration.host, namespace)


def context_names(kubeconfig: Path | None = None) -> list[str]:
    """The contexts of the kubeconfig, for people to choose from; none without one."""
    import yaml

    found = []
    for path in _kubeconfigs(kubeconfig):
        document = yaml.safe_load(path.read_text(encoding="utf-8")) or {}
        found += [str(item["name"]) for item in document.get("contexts") or []]
    return found


def _kubeconfigs(named: Path | None) -> list[Path]:
    if named is not None:
        candidates = [named]
    else:
        variable = os.environ.get("KUBECONFIG")
        candidates = [Path(part) for part in variable.split(os.pathsep) if part] if variable else [Path(_DEFAULT)]
    return [path for path in (candidate.expanduser() for candidate in candidates) if path.is_file()]


def _load(configuration: Configuration, paths: str, context: str | None) -> str:
    """Fill the configuration; the context's namespace."""
    import yaml
    from kubernetes.config import ConfigException
    from kubernetes.config.kube_config import KubeConfigLoader, KubeConfigMerger

    try:
        with _complaints() as complaints:
            merged: Any = KubeConfigMerger(paths)
            names = [str(item.value["name"]) for item in merged.config["contexts"]]
            chosen = context or merged.config.value.get("current-context")
            if chosen not in names:
                raise ConfigurationError(_no_context(paths, chosen, names))
            loader: Any = KubeConfigLoader(
                config_dict=merged.config,
                active_context=chosen,
                config_base_path=None,
                config_persister=merged.save_changes,
            )
            loader.load_and_set(configuration)
    except (ConfigException, yaml.YAMLError, OSError, ValueError, TypeError, AttributeError) as error:
        raise ConfigurationError(f"the kubeconfig {paths} cannot be used: {error}") from error
    if complaints:
        raise ConfigurationError(f"the kubeconfig {paths} cannot be used to log in: {'; '.join(complaints)}")
    return str(loader.current_context["context"].get("namespace") or "default")


def _no_context(paths: str, chosen: str | None, names: list[str]) -> str:
    allowed = f"allowed: {', '.join(names)}" if names else "it has none"
    if not chosen:
        return f"the kubeconfig {paths} has no current context; choose one with --context ({allowed})"
    return f"the kubeconfig {paths} has no context {chosen!r}; {allowed}"


def _load_pod_account(configuration: Configuration) -> str:
    from kubernetes.config import ConfigException, load_incluster_config

    try:
        load_incluster_config(configuration)
    except ConfigException as error:
        raise ConfigurationError(
            f"there is no kubeconfig, and this pod's own account cannot be used: {error}"
        ) from error
    return _POD_NAMESPACE.read_text().strip() if _POD_NAMESPACE.is_file() else "default"


@contextmanager
def _complaints() -> Iterator[list[str]]:
    """What the client logs about a login that fails, which it does not raise."""
    told: list[str] = []

    class Collector(logging.Handler):
        def emit(self, record: logging.LogRecord) -> None:
            told.append(record.getMessage().strip())

    collector = Collector(level=logging.ERROR)
    logging.getLogger().addHandler(collector)
    try:
        yield told
    finally:
        logging.getLogger().removeHandler(collector)
