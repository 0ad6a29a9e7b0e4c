"""`tandem export`: where the result comes from (a run on a cluster, a run's folder, a result bundle), and the manifest
that serves it."""

from __future__ import annotations

import json
import os
from dataclasses import dataclass, replace
from pathlib import Path
from urllib.parse import urlsplit

import typer
import yaml

from tandem_api.adapters import PREDICTORS, PredictorAdapters
from tandem_api.errors import ConfigurationError, TandemError
from tandem_api.store import S3Store
from tandem_api.v1alpha1.status import Artifact
from tandem_operator.cli.cluster.access import Access, connect
from tandem_operator.cli.cluster.resource import read
from tandem_operator.cli.show import NoSuchRunError, find_run
from tandem_operator.export.manifests import Format, Options, manifests
from tandem_operator.export.servable import Servable, Store, servable

_SCORES, _ADAPTER = "scores.json", "adapter"


@dataclass(frozen=True)
class Found:
    """What is to be served, and where its files are on this machine."""

    servable: Servable
    adapter: Path | None = None
    """The adapter's folder here."""
    image: str | None = None
    """The image that the run's servers had."""


@dataclass(frozen=True)
class Changes:
    """What the user says otherwise than the run."""

    model: str | None = None
    credentials_secret: str | None = None
    service_account: str | None = None
    upload: str | None = None
    """s3://BUCKET/PREFIX/ to bring the adapter to."""


def export(name: str, access: Access, changes: Changes, options: Options, kind: Format) -> str:
    """The manifest as YAML. Raises ConfigurationError and the store's and the cluster's errors."""
    found = find(name, access)
    what = found.servable
    if changes.model is not None:
        what = replace(what, model=changes.model)
    if changes.upload is not None:
        what = upload(found, changes.upload)
        what = replace(what, model=changes.model or what.model)
    elif found.adapter is not None:
        raise ConfigurationError(
            f"the adapter lies on this machine ({found.adapter}), where no pod finds it; bring it to a bucket with "
            "--upload s3://BUCKET/PREFIX/ (the key: AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, the server: "
            "AWS_ENDPOINT_URL)"
        )
    given = {"credentials_secret": changes.credentials_secret, "service_account": changes.service_account}
    what = replace(what, store=replace(what.store, **{key: value for key, value in given.items() if value}))
    options = replace(options, image=options.image or found.image or _default_image())
    documents = manifests(what, options, kind)
    return yaml.safe_dump_all(documents, sort_keys=False, width=120)


def find(name: str, access: Access) -> Found:
    """A bundle or a run in a folder of that name; else a run on the cluster. Raises ConfigurationError that tells all
    places."""
    absent: NoSuchRunError | None = None
    if not access.is_given:
        if (Path(name) / _SCORES).is_file():
            return _bundle(Path(name))
        try:
            return _local(name)
        except NoSuchRunError as error:
            if "/" in name:
                raise ConfigurationError(f"{error}, and {Path(name) / _SCORES} does not exist, either") from error
            absent = error
    try:
        cluster = connect(access.kubeconfig, access.context)
        run = read(cluster.get(access.namespace or cluster.namespace, name))
    except TandemError as error:
        if absent is None:
            raise
        raise type(error)(f"{absent}\nOn a cluster: {error}") from error
    return Found(servable(run), image=run.spec.serving.image)


def upload(found: Found, target: str) -> Servable:
    """Bring the adapter to a bucket; what is to be served, with its new place. Raises ConfigurationError, and the
    store's errors."""
    what, parts = found.servable, urlsplit(target)
    if what.adapter is None:
        raise ConfigurationError(
            "--upload: the best program uses the base model; there is no adapter to bring anywhere"
        )
    if found.adapter is None:
        raise ConfigurationError(f"--upload: the adapter is in a bucket already: {what.adapter.uri}")
    if parts.scheme != "s3" or not parts.netloc:
        raise ConfigurationError(f"--upload: found {target!r}; allowed: s3://BUCKET/PREFIX/")
    if not found.adapter.is_dir():
        raise ConfigurationError(f"--upload: {found.adapter} does not exist; the result is not complete")
    endpoint, region = os.environ.get("AWS_ENDPOINT_URL") or None, os.environ.get("AWS_REGION") or None
    head = parts.path.strip("/")
    prefix = f"{head}/{what.served_name}/" if head else f"{what.served_name}/"
    stored = S3Store(parts.netloc, endpoint, region).put_folder(prefix, found.adapter)
    if stored.sha256 != what.adapter.sha256:
        raise ConfigurationError(
            f"{found.adapter} is not the run's adapter: its digest is {stored.sha256}, and that of the run's is "
            f"{what.adapter.sha256}; some file has changed"
        )
    adapter = what.adapter.model_copy(update={"uri": stored.uri})
    # The bundle lies on this machine, too.
    return replace(what, adapter=adapter, store=replace(what.store, endpoint=endpoint, region=region), result=None)


def _local(name: str) -> Found:
    workdir, run = find_run(name)
    what = servable(run)
    if run.spec.storage is not None:
        return Found(what)
    # The embedded server is this machine's own.
    what = replace(what, store=Store(), result=None)
    return Found(what, workdir.result / _ADAPTER if what.adapter is not None else None)


def _bundle(folder: Path) -> Found:
    path = folder / _SCORES
    try:
        scores = json.loads(path.read_text(encoding="utf-8"))
        run, best = scores["run"], scores["best"]
        tested = (scores.get("test") or best)["score"]
        what = Servable(run["name"], run["namespace"], run["uid"], run["model"], score=f"{tested:.4f}")
        sha256 = best["adapter"]
    except (ValueError, KeyError, TypeError) as error:
        raise ConfigurationError(f"{path} is not that of a result bundle: {error!r}") from error
    if sha256 is None:
        return Found(what)
    adapter = folder / _ADAPTER
    # Its place is known when it has been brought there.
    artifact = Artifact(uri=adapter.resolve().as_uri(), sha256=sha256, adapters=_adapters_in(adapter))
    return Found(replace(what, adapter=artifact), adapter)


def _adapters_in(folder: Path) -> int | None:
    path = folder / PREDICTORS
    if not path.is_file():
        return None
    try:
        return len(PredictorAdapters.model_validate_json(path.read_bytes()).predictors)
    except ValueError as error:
        raise ConfigurationError(f"{path} cannot be read: {error}") from error


def _default_image() -> str:
    from importlib import metadata

    try:
        return f"tandem-trainer:{metadata.version('tandem')}"
    except metadata.PackageNotFoundError:
        return "tandem-trainer"


def print_export(name: str, access: Access, changes: Changes, options: Options, kind: Format) -> None:
    """Print the manifest, and nothing else on stdout."""
    typer.echo(export(name, access, changes, options, kind), nl=False)
