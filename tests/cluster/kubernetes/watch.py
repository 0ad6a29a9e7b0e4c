"""Objects of the API server, kept up to date: what the parts of the test cluster that are ours stand on. Needs nothing
but Python itself."""

from __future__ import annotations

import base64
import http.client
import json
import re
import ssl
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from typing import Any

_LIST_SECONDS = 30
_WATCH_SECONDS = 300

Objects = dict[tuple[str, str], dict[str, Any]]
"""By namespace and name."""


class Api:
    """The API server, as the user of a kubeconfig that this project wrote (its certificates are in the file)."""

    def __init__(self, kubeconfig: Path) -> None:
        self._text = kubeconfig.read_text()
        found = re.search(r'server: "?(https://[^"\s,}]+)', self._text)
        if found is None:
            raise ValueError(f"no server in {kubeconfig}")
        self._server = found.group(1)
        self._context = ssl.create_default_context(cadata=self._field("certificate-authority-data"))
        with tempfile.NamedTemporaryFile("w", suffix=".pem") as file:
            file.write(self._field("client-certificate-data") + self._field("client-key-data"))
            file.flush()
            self._context.load_cert_chain(file.name)

    def get(self, path: str, timeout: float) -> Any:
        """The open response; raises OSError."""
        return urllib.request.urlopen(self._server + path, context=self._context, timeout=timeout)

    def _field(self, name: str) -> str:
        found = re.search(name + r": ([A-Za-z0-9+/=]+)", self._text)
        if found is None:
            raise ValueError(f"no {name} in the kubeconfig")
        return base64.b64decode(found.group(1)).decode()


class Mirror:
    """All objects of one kind, kept up to date by a thread of its own."""

    def __init__(self, api: Api, path: str, changed: threading.Event) -> None:
        """`path`: the kind's, as in `/api/v1/pods`."""
        self.objects: Objects = {}
        self.is_listed = False
        self._api = api
        self._path = path
        self._changed = changed
        threading.Thread(target=self._run, name=f"watch-{path}", daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                self._follow(self._list())
            except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
                print(self._path, repr(error), file=sys.stderr, flush=True)
                time.sleep(1)

    def _list(self) -> str:
        with self._api.get(self._path, _LIST_SECONDS) as answer:
            listed = json.load(answer)
        self.objects = {_key(found): found for found in listed["items"]}
        self.is_listed = True
        self._changed.set()
        return str(listed["metadata"]["resourceVersion"])

    def _follow(self, version: str) -> None:
        query = f"watch=1&timeoutSeconds={_WATCH_SECONDS}&resourceVersion={version}"
        with self._api.get(f"{self._path}?{query}", _WATCH_SECONDS + 30) as answer:
            for line in answer:
                event = json.loads(line)
                if event["type"] == "ERROR":
                    return
                # Replaced whole, so that the writer's thread never sees it change while it reads.
                if event["type"] == "DELETED":
                    gone = _key(event["object"])
                    self.objects = {key: found for key, found in self.objects.items() if key != gone}
                else:
                    self.objects = {**self.objects, _key(event["object"]): event["object"]}
                self._changed.set()


def _key(found: dict[str, Any]) -> tuple[str, str]:
    return found["metadata"].get("namespace", ""), found["metadata"]["name"]
