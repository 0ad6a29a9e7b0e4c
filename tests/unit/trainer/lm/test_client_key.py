"""The key of an API is sent to it and told to nobody else, whatever the API answers."""

from __future__ import annotations

import traceback

import pytest
from tests.scripted_lm.server import Fault, ScriptedServer
from tests.unit.trainer.lm.test_client import call, with_client

from tandem_api.errors import TandemError

KEY = "sk-canary-8f1Q/zz+Wq=7"


@pytest.mark.parametrize("status", [400, 401, 403, 404, 408, 429, 500, 503])
@pytest.mark.parametrize("is_ours", [True, False])
def test_an_error_that_repeats_the_key_is_told_without_it(status, is_ours, caplog):
    text = f"Incorrect API key provided: {KEY}. The header was: Bearer {KEY}"
    with ScriptedServer(lambda _: Fault(status=status, text=text)) as server, pytest.raises(TandemError) as caught:
        with_client(server.url, lambda client: client.complete(call()), api_key=KEY, is_ours=is_ours)
    told = "".join(traceback.format_exception(caught.value)) + caplog.text
    assert "Incorrect API key provided: ...." in told, "the rest of what it says is told"
    assert KEY not in told
