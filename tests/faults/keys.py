"""The object store's keys: two pairs for one user, so that a test may change from one to the other."""

from __future__ import annotations

import json
import secrets
from typing import Final

from tandem_operator.platforms.local.workdir import Workdir

#: As in a run's Secret.
SECOND_PAIR: Final = {"AWS_ACCESS_KEY_ID": "second-key", "AWS_SECRET_ACCESS_KEY": "second-secret-of-a-test"}


def give_two_keys(workdir: Workdir) -> None:
    """Before the server's first start: it makes itself one pair otherwise. The first pair is the one that is used."""
    first, second = (secrets.token_hex(10), secrets.token_hex(20)), tuple(SECOND_PAIR.values())
    credentials = [{"accessKey": access, "secretKey": secret} for access, secret in (first, second)]
    identity = {"name": "tandem", "credentials": credentials, "actions": ["Admin", "Read", "Write", "List"]}
    workdir.s3.mkdir(parents=True, exist_ok=True)
    (workdir.s3 / "identity.json").write_text(json.dumps({"identities": [identity]}))
