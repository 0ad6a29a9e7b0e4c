"""A result served on this machine, to try it out."""

from __future__ import annotations

import os
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from tandem.bundle import Bundle
from tandem_api.adapters import served_adapter
from tandem_api.errors import ServingError
from tandem_api.v1alpha1.status import Artifact

_LOOK_SECONDS = 0.2


@contextmanager
def serve(bundle: Bundle | str | Path, *, port: int | None = None) -> Iterator[str]:
    """vLLM on this machine with the run's model and its adapter, as the run itself would serve it here: its address,
    as long as the block lasts. `port`: default a free one.

    On a CPU an adapter is merged into the weights, which takes a moment the first time. Raises ServingError with the
    end of vLLM's log when it does not start.
    """
    from tandem_operator.actions import EnsureServing
    from tandem_operator.decide.requests import adapter_mode
    from tandem_operator.platforms.local.commands import Commands
    from tandem_operator.platforms.local.machine import child_environment, has_accelerator
    from tandem_operator.platforms.local.serving import Serving
    from tandem_operator.platforms.local.workdir import Workdir

    found = bundle if isinstance(bundle, Bundle) else Bundle.open(bundle)
    run, adapter = found.run, _adapter(found)
    name = served_adapter(run.metadata.name) if adapter is not None else run.metadata.name
    wanted = EnsureServing(name, adapter, adapter_mode(run.spec, adapter, has_accelerator()))
    with tempfile.TemporaryDirectory(prefix="tandem-serve-") as folder:
        serving = Serving(Workdir(Path(folder)), Commands(), fixed_port=port)
        try:
            serving.ensure(wanted, run.spec, child_environment(os.environ))
            while (seen := serving.observe()) is not None and seen.state == "starting":
                time.sleep(_LOOK_SECONDS)
            if seen is None or seen.state == "failed":
                raise ServingError(seen.message if seen is not None else "the model server is gone")
            yield seen.url
        finally:
            serving.stop()


def _adapter(bundle: Bundle) -> Artifact | None:
    """The bundle's adapter as one that lies on this machine."""
    sha256 = bundle.adapter_sha256
    if bundle.adapter is None or sha256 is None:
        return None
    return Artifact(uri=f"{bundle.adapter.as_uri()}/", sha256=sha256, adapters=len(bundle.predictors) or None)
