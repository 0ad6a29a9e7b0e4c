"""How the operator is set up: one YAML file, written by the chart, named by TANDEM_OPERATOR_CONFIG."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any, Literal
from urllib.parse import urlsplit

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, field_validator, model_validator
from pydantic.alias_generators import to_camel

from tandem_api.errors import ConfigurationError

ENV_CONFIG = "TANDEM_OPERATOR_CONFIG"

_Object = dict[str, Any]


class _Settings(BaseModel):
    model_config = ConfigDict(alias_generator=to_camel, populate_by_name=True, extra="forbid", frozen=True)


class Images(_Settings):
    """What pods run."""

    trainer: str = Field(min_length=1)
    """The image of workers, model servers, adapter sidecars and cleanups, where a run names no other."""
    pull_policy: Literal["Always", "IfNotPresent", "Never"] = "IfNotPresent"
    pull_secrets: tuple[str, ...] = ()


class PodDefaults(_Settings):
    """What one kind of pod gets where a run says nothing."""

    resources: _Object = Field(default_factory=dict)


class Defaults(_Settings):
    """What runs get where they say nothing."""

    serving: PodDefaults = PodDefaults()
    training: PodDefaults = PodDefaults()
    workers: PodDefaults = PodDefaults()
    cache_volume: _Object = Field(default_factory=lambda: {"emptyDir": {}})
    """The volume source of the model cache."""
    pod_template: _Object = Field(default_factory=dict)
    """The platform team's patch of every pod."""


class NetworkPolicies(_Settings):
    """Who may talk to whom."""

    enabled: bool = True
    worker_egress_ports: tuple[int, ...] = (80, 443)
    """TCP ports that workers and model servers may reach, beside each other, the run's object store and DNS."""
    worker_metadata_access: bool = False
    """Whether they may reach the cloud's metadata address, from where some clouds give pods their identity."""
    metrics_from: tuple[_Object, ...] = ()
    """Who may read the metrics of runs' pods beside the operator, as NetworkPolicy peers; empty: nobody."""


class Lease(_Settings):
    """Which replica leads."""

    name: str = "tandem-operator"
    duration_seconds: int = Field(15, ge=2)
    renew_seconds: int = Field(5, ge=1)


class CloudEvents(_Settings):
    """Who hears of the transitions of runs and their steps. No run can name a receiver."""

    urls: tuple[str, ...] = ()
    """Where events are posted to; empty: nowhere."""
    signing_key_file: Path | None = None
    """The file with the keys that events are signed with, one a line. Needed with a URL."""
    source: str = ""
    """What the events' `source` begins with, to tell clusters apart, such as https://gpu-1.example.org."""
    timeout_seconds: int = Field(10, ge=1, le=300)
    """For one attempt."""
    retry_seconds: int = Field(600, ge=0)
    """For how long one event is tried again, with growing waits of up to a minute."""
    replay_seconds: int = Field(900, ge=0)
    """A new leader sends what happened so long before it began once more, under the same ids."""
    queue_size: int = Field(5000, ge=1)
    """Events that wait for one receiver at most; beyond that the oldest are dropped."""

    @field_validator("urls")
    @classmethod
    def _check_urls(cls, urls: tuple[str, ...]) -> tuple[str, ...]:
        for number, url in enumerate(urls):
            parts = urlsplit(url)
            if parts.scheme not in ("http", "https") or not parts.hostname or "@" in parts.netloc or parts.fragment:
                # Not quoted: a wrong one may hold a password.
                raise ValueError(f"number {number} is not allowed; write http(s)://HOST[:PORT][/PATH], without a user")
        return urls

    @model_validator(mode="after")
    def _check_key(self) -> CloudEvents:
        if self.urls and self.signing_key_file is None:
            raise ValueError("urls need a signingKeyFile: events are always signed")
        return self


class OperatorSettings(_Settings):
    """All of it."""

    images: Images
    namespaces: tuple[str, ...] = ()
    """Where runs are looked after; empty: in the whole cluster."""
    accelerator_resource: str = "nvidia.com/gpu"
    """The resource that the defaults ask for; a run may name any other."""
    defaults: Defaults = Defaults()
    network_policy: NetworkPolicies = NetworkPolicies()
    start_failure_seconds: int = Field(600, ge=1)
    """A pod that cannot start, for its image or a missing Secret, is given up after this."""
    unschedulable_seconds: int = Field(600, ge=1)
    """After this an unschedulable pod is told about."""
    resync_seconds: int = Field(600, ge=1)
    """Every run is looked at again at least this often."""
    poll_seconds: int = Field(10, ge=1)
    """A run that goes on is looked at again at least this often."""
    workers: int = Field(4, ge=1, le=64)
    """Runs that are reconciled at once."""
    job_ttl_seconds: int = Field(3600, ge=0)
    """How long a Job stays after its result is in the status."""
    lease: Lease = Lease()
    metrics_port: int = Field(8080, ge=1, le=65535)
    health_port: int = Field(8081, ge=1, le=65535)
    log_format: Literal["json", "text"] = "json"
    cloud_events: CloudEvents = CloudEvents()


def load_settings(environment: Mapping[str, str] = os.environ) -> OperatorSettings:
    """The settings of this process. Raises ConfigurationError that names the file and every wrong field."""
    name = environment.get(ENV_CONFIG)
    if not name:
        raise ConfigurationError(f"{ENV_CONFIG} is not set; it names the operator's settings file (YAML)")
    try:
        document = yaml.safe_load(Path(name).read_bytes())
    except (OSError, yaml.YAMLError) as error:
        raise ConfigurationError(f"{name} cannot be read: {error}") from error
    try:
        return OperatorSettings.model_validate(document or {})
    except ValidationError as error:
        lines = [f"  {'.'.join(map(str, e['loc']))}: {e['msg']}" for e in error.errors()]
        raise ConfigurationError("\n".join([f"{name} is not valid:", *lines])) from error
