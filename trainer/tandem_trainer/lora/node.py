"""The worker on one of several machines that train together: `python -m tandem_trainer.lora.node`.

The first machine (NODE_RANK 0) is an ordinary worker. The others do the same work up to the training's end, and write
nothing to the object store: there is one result, and the first machine has it and tells it.
"""

from __future__ import annotations

import os
import sys
from functools import partial
from pathlib import Path

from tandem_api.canonical import sha256_hex
from tandem_api.contract import ENV_TERMINATION
from tandem_api.errors import EXIT_DONE
from tandem_api.store import S3Store
from tandem_api.v1alpha1.status import Artifact
from tandem_trainer import main as worker
from tandem_trainer.lora.world import ENV_NODE


class ReadingStore(S3Store):
    """An object store that takes what it is given and keeps nothing of it."""

    def put(self, key: str, data: bytes) -> Artifact:
        """Nothing is written."""
        return Artifact(uri=self.uri(key), sha256=sha256_hex(data))

    def put_file(self, key: str, path: Path) -> Artifact:
        """Nothing is written."""
        return self.put(key, path.read_bytes())

    def delete(self, prefix: str) -> int:
        """Nothing is deleted."""
        return 0


def main() -> int:
    """Do this machine's part. Returns the process's exit code; never raises."""
    if os.environ.get(ENV_NODE, "0") == "0":
        return worker.main()
    code = worker.work(partial(worker.open_store, ReadingStore))
    said = os.environ.get(ENV_TERMINATION)
    if code == EXIT_DONE and said:
        Path(said).write_text("")  # an empty result is none; why a machine failed it says itself
    return code


if __name__ == "__main__":
    sys.exit(main())
