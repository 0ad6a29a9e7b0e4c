"""`tandem ui` as a process: what others on this machine can see of it."""

from __future__ import annotations

import os
import re
import signal
import stat
import subprocess
import sys
import time
from pathlib import Path
from urllib.parse import unquote, urlsplit

import yaml
from tests.made_up_run import made_up

#: Writes its arguments down, whole at once.
BROWSER = """#!/bin/sh
printf '%s\\n' "$@" > "$0.part"
mv "$0.part" "$0.argv"
"""


def test_no_argument_of_the_browser_holds_the_token(tmp_path: Path) -> None:
    """Every user of the machine may read command lines; the token is in a file that only this user may read."""
    (tmp_path / "run").mkdir()
    (tmp_path / "run" / "status.yaml").write_text(yaml.safe_dump(made_up().run.to_json()))
    browser, seen = tmp_path / "browser", tmp_path / "browser.argv"
    browser.write_text(BROWSER)
    browser.chmod(0o700)
    command = [sys.executable, "-m", "tandem_operator.cli.main", "ui", str(tmp_path / "run"), "--open"]
    environment = {**os.environ, "BROWSER": str(browser)}
    process = subprocess.Popen(command, env=environment, stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    try:
        printed = "".join(process.stdout.readline() for _ in range(2))
        address = re.search(r"http://127\.0\.0\.1:\d+/\?token=(\S{40,})", printed)
        assert address is not None, printed
        ends = time.monotonic() + 60
        while not seen.exists() and time.monotonic() < ends:
            time.sleep(0.01)
        argument = seen.read_text().strip()
        assert address[1] not in argument and argument.startswith("file:///")
        page = Path(unquote(urlsplit(argument).path))
        assert stat.S_IMODE(page.stat().st_mode) == 0o600
        assert f'content="0; url={address[0]}"' in page.read_text()
        process.send_signal(signal.SIGTERM)
        assert process.wait(60) == 0
        assert not page.exists()
    finally:
        process.kill()
        process.wait()
