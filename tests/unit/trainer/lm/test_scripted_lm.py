"""The scripted LM server itself, as a process: other tests and the benchmark count on it."""

from __future__ import annotations

import json
import subprocess
import sys
import urllib.error
import urllib.request
from pathlib import Path
from typing import Any

SERVER = Path(__file__).parents[3] / "scripted_lm" / "server.py"


def post(url: str, body: dict[str, Any]) -> tuple[int, dict[str, Any]]:
    request = urllib.request.Request(url, json.dumps(body).encode(), {"Content-Type": "application/json"})
    try:
        with urllib.request.urlopen(request, timeout=5) as response:
            return response.status, json.load(response)
    except urllib.error.HTTPError as error:
        return error.code, json.load(error)


def test_a_script_answers_faults_are_served_and_everything_is_counted(tmp_path: Path) -> None:
    script, log = tmp_path / "answers.py", tmp_path / "requests.jsonl"
    script.write_text(
        "from tests.scripted_lm.server import Fault\n"
        "def answer(request):\n"
        "    return Fault(status=503) if request['nth'] == 1 else 'one two three\\n\\nfour'\n"
    )
    command = [sys.executable, str(SERVER), "--script", f"{script}:answer", "--log", str(log), "--model", "tuned"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout is not None
            url = process.stdout.readline().split()[-1]
            body = {"model": "tuned", "prompt": "Hi", "max_tokens": 2, "stop": ["\n\n"], "seed": 1}
            answers = [post(f"{url}/v1/completions", body) for _ in range(3)]
            refused = post(f"{url}/v1/chat/completions", {**body, "model": "base"})
            with urllib.request.urlopen(f"{url}/stats", timeout=5) as response:
                stats = json.load(response)
        finally:
            process.terminate()

    assert [status for status, _ in answers] == [200, 503, 200]
    assert answers[0][1]["choices"][0] == {"index": 0, "text": "one two", "finish_reason": "length"}
    assert refused[0] == 404
    assert refused[1]["error"]["type"] == "NotFoundError"
    assert stats["calls"] == {"tuned": 3, "base": 1}
    assert (stats["distinct"], stats["repeats"], stats["statuses"]) == (2, 1, {"200": 2, "503": 1, "404": 1})
    assert [json.loads(line)["seed"] for line in log.read_text().splitlines()] == [1, 1, 1, 1]
