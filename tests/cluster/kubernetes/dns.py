"""The test cluster's DNS: watches Services and Endpoints, writes a hosts file, and runs dnsmasq on it.

Names under cluster.local are answered from the hosts file; all others go to the servers of /etc/resolv.conf.
A and PTR records only: <service>.<namespace>.svc.cluster.local and, for headless services, one address for each ready
pod under the service's name and <hostname>.<service>.<namespace>.svc.cluster.local.
"""

from __future__ import annotations

import argparse
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from types import FrameType

from tests.cluster.kubernetes.watch import Api, Mirror, Objects

#: Changes come in bursts; the file is written once for all that come within this time.
_BURST_SECONDS = 0.05


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
    services = Mirror(api, "/api/v1/services", changed)
    endpoints = Mirror(api, "/api/v1/endpoints", changed)
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


if __name__ == "__main__":
    raise SystemExit(main())
