"""The test cluster's DNS: watches Services and Endpoints, writes a hosts file, and runs dnsmasq on it.

Names under cluster.local are answered from the hosts file; all others go to the servers of /etc/resolv.conf.
A and PTR records only: <service>.<namespace>.svc.cluster.local and, for headless services, one address for each ready
pod under the service's name and <hostname>.<service>.<namespace>.svc.cluster.local.
"""

from __future__ import annotations

import argparse
import base64
import http.client
import json
import os
import re
import signal
import ssl
import subprocess
import sys
import tempfile
import threading
import time
import urllib.request
from pathlib import Path
from types import FrameType
from typing import Any

_LIST_SECONDS = 30
_WATCH_SECONDS = 300
#: Changes come in bursts; the file is written once for all that come within this time.
_BURST_SECONDS = 0.05

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

    def __init__(self, api: Api, kind: str, changed: threading.Event) -> None:
        self.objects: Objects = {}
        self._api = api
        self._kind = kind
        self._changed = changed
        threading.Thread(target=self._run, name=f"watch-{kind}", daemon=True).start()

    def _run(self) -> None:
        while True:
            try:
                self._follow(self._list())
            except (OSError, http.client.HTTPException, ValueError, KeyError) as error:
                print(self._kind, repr(error), file=sys.stderr, flush=True)
                time.sleep(1)

    def _list(self) -> str:
        with self._api.get(f"/api/v1/{self._kind}", _LIST_SECONDS) as answer:
            listed = json.load(answer)
        self.objects = {_key(found): found for found in listed["items"]}
        self._changed.set()
        return str(listed["metadata"]["resourceVersion"])

    def _follow(self, version: str) -> None:
        query = f"watch=1&timeoutSeconds={_WATCH_SECONDS}&resourceVersion={version}"
        with self._api.get(f"/api/v1/{self._kind}?{query}", _WATCH_SECONDS + 30) as answer:
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


def hosts(services: Objects, endpoints: Objects) -> str:
    """The hosts file's text. Pure."""
    lines = set()
    for (namespace, name), service in services.items():
        domain = f"{name}.{namespace}.svc.cluster.local"
        address = service["spec"].get("clusterIP")
        if address and address != "None":
            lines.add(f"{address} {domain}")
        elif address == "None":
            for subset in endpoints.get((namespace, name), {}).get("subsets") or []:
                for pod in subset.get("addresses") or []:
                    own = f"{pod['hostname']}.{domain} " if pod.get("hostname") else ""
                    lines.add(f"{pod['ip']} {own}{domain}")
    return "\n".join(sorted(lines)) + "\n"


def main() -> int:
    """Serve until SIGTERM; returns an exit code only when dnsmasq ends by itself."""
    parser = argparse.ArgumentParser()
    parser.add_argument("--kubeconfig", required=True, type=Path)
    parser.add_argument("--dir", required=True, type=Path, help="where the hosts file is written")
    parser.add_argument("--listen", required=True, help="the address")
    parser.add_argument("--port", required=True, type=int)
    options = parser.parse_args()

    path: Path = options.dir / "hosts"
    path.write_text("")
    dnsmasq = subprocess.Popen(_dnsmasq(path, options.listen, options.port))

    def stop(_signal: int, _frame: FrameType | None) -> None:
        dnsmasq.terminate()
        os._exit(0)

    signal.signal(signal.SIGTERM, stop)
    signal.signal(signal.SIGINT, stop)

    changed = threading.Event()
    api = Api(options.kubeconfig)
    services = Mirror(api, "services", changed)
    endpoints = Mirror(api, "endpoints", changed)
    written = ""
    while dnsmasq.poll() is None:
        if not changed.wait(1):
            continue
        time.sleep(_BURST_SECONDS)
        changed.clear()
        text = hosts(services.objects, endpoints.objects)
        if text != written:
            new = path.with_suffix(".new")
            new.write_text(text)
            new.replace(path)
            dnsmasq.send_signal(signal.SIGHUP)
            written = text
    print(f"dnsmasq ended with {dnsmasq.returncode}", file=sys.stderr)
    return 1


def _dnsmasq(path: Path, listen: str, port: int) -> list[str]:
    options = [
        "keep-in-foreground",
        "conf-file=/dev/null",
        "user=root",
        "pid-file=",
        f"port={port}",
        f"listen-address={listen}",
        "bind-interfaces",
        "no-hosts",
        f"addn-hosts={path}",
        "local=/cluster.local/",
        "local-ttl=2",
        "no-negcache",
        "cache-size=1000",
        "resolv-file=/etc/resolv.conf",
        "log-facility=-",
    ]
    return ["dnsmasq", *(f"--{option}" for option in options)]


def _key(found: dict[str, Any]) -> tuple[str, str]:
    return found["metadata"]["namespace"], found["metadata"]["name"]


if __name__ == "__main__":
    raise SystemExit(main())
