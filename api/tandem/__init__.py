"""Tandem from Python: build a run, start it on a cluster or on this machine, follow it, use its result.

    import tandem
    from tandem_api.v1alpha1 import Metadata, OptimizationRun, Spec

    wanted = OptimizationRun(metadata=Metadata(name="reviews"), spec=Spec(...))
    run = tandem.Cluster().submit(wanted)  # or tandem.run_local(wanted)
    for state in run.watch():
        print(state)
    program = tandem.load_program(run.result(), "http://localhost:8000")

Importing it costs little: what talks to clusters, S3 and models is imported by what needs it.
"""

from tandem.bundle import Bundle
from tandem.cluster import Cluster, ClusterRun
from tandem.errors import RunFailedError, RunGoneError, RunNotFinishedError, RunStoppedError, WaitTimeoutError
from tandem.handle import Run
from tandem.local import LocalRun, open_local, run_local
from tandem.manifest import read_manifest
from tandem.program import load_program
from tandem.serving import serve
from tandem.state import Row, Scores, State
from tandem_api.errors import TandemError
from tandem_api.v1alpha1.run import ManifestError

__all__ = [
    "Bundle",
    "Cluster",
    "ClusterRun",
    "LocalRun",
    "ManifestError",
    "Row",
    "Run",
    "RunFailedError",
    "RunGoneError",
    "RunNotFinishedError",
    "RunStoppedError",
    "Scores",
    "State",
    "TandemError",
    "WaitTimeoutError",
    "load_program",
    "open_local",
    "read_manifest",
    "run_local",
    "serve",
]
