"""What the facts mean and what to do about them: one function for each thing that is looked at. Pure."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from datetime import datetime
from typing import Final

from tandem_operator.cli.cluster.client import Resource
from tandem_operator.cli.cluster.doctor.facts import READ, WRITE, Facts, Unseen
from tandem_operator.cli.cluster.doctor.finding import Finding, fail, ok, warn
from tandem_operator.cli.cluster.doctor.needs import CLAIM, Needed
from tandem_operator.cli.cluster.doctor.pods import images_of, is_ready, not_pulled, pulled, why_not_ready
from tandem_operator.cli.cluster.doctor.schema import fields_of, own_definition

_ADMIN = "ask an administrator to run tandem doctor"
_INSTALL = "helm install tandem charts/tandem --namespace tandem-system --create-namespace"
_UPGRADE = "helm upgrade tandem charts/tandem --namespace tandem-system"
#: The oldest server that the chart supports.
_OLDEST: Final = (1, 20)
#: No clock is right: a leader renews each few seconds, and this is long after that.
_LEASE_SECONDS: Final = 60
_DEVICE_WORDS: Final = ("gpu", "tpu", "gaudi", "neuron", "xpu")
_OPTIONAL: Final = (
    ("jobset.x-k8s.io", "JobSet", "training over several nodes"),
    ("kueue.x-k8s.io", "Kueue", "spec.queue"),
    ("monitoring.coreos.com", "the Prometheus operator", "ServiceMonitor and alerts of the chart"),
)


def api(facts: Facts) -> Iterator[Finding]:
    """The server and its version."""
    version = facts.version
    said = f"{facts.server} answers in {facts.answer_seconds * 1000:.0f} ms: Kubernetes {version.get('gitVersion')}"
    digits = tuple(int("".join(filter(str.isdigit, str(version.get(part) or "0"))) or 0) for part in ("major", "minor"))
    if digits < _OLDEST:
        yield fail("api", said, f"upgrade the cluster to {_OLDEST[0]}.{_OLDEST[1]} or newer")
    else:
        yield ok("api", said)
    if facts.place is None:
        yield fail(
            "namespace",
            f"there is no namespace {facts.namespace!r}",
            f"kubectl create namespace {facts.namespace}, or choose another one with -n",
        )


def definition(facts: Facts) -> Iterator[Finding]:
    """The CustomResourceDefinition, and whether it is this version's."""
    if facts.served is None:
        yield fail("crd", "OptimizationRuns of tandem.dev/v1alpha1 are not served", f"install the chart: {_INSTALL}")
        return
    if isinstance(facts.served, Unseen):
        yield warn("crd", f"it cannot be seen whether OptimizationRuns are served: {facts.served.why}", _ADMIN)
        return
    found = facts.definition
    if not isinstance(found, dict):
        yield ok("crd", "tandem.dev/v1alpha1 is served (its fields are an administrator's to see)")
        return
    here, there = fields_of(own_definition()), fields_of(found)
    missing, unknown = sorted(here - there), sorted(there - here)
    if missing:
        yield fail(
            "crd",
            f"the definition is older than this tandem: it lacks {_some(missing)}",
            f"{_UPGRADE} (without Helm: kubectl apply -f crds/), or use the tandem of the installed version",
        )
    elif unknown:
        yield warn("crd", f"the definition is newer than this tandem: it has {_some(unknown)}", "upgrade tandem here")
    else:
        yield ok("crd", f"tandem.dev/v1alpha1 is served, with the {len(here)} fields of this version")


def operator(facts: Facts) -> Iterator[Finding]:
    """Whether it runs, leads, and looks after the namespace."""
    seen = facts.operators
    pods = seen.pods
    if isinstance(pods, Unseen):
        yield warn(
            "operator",
            f"its pods cannot be seen: {pods.why}",
            f"name its namespace with --operator-namespace, or {_ADMIN}",
        )
    elif not pods:
        where = f"in namespace {seen.namespace}" if seen.namespace is not None else "in the cluster"
        yield fail("operator", f"no pod of the operator is {where}", f"{_INSTALL}, or raise its replicas")
    else:
        ready = [pod for pod in pods if is_ready(pod)]
        said = f"{len(ready)} of {len(pods)} pods are ready in namespace {seen.namespace}: {', '.join(images_of(pods))}"
        if ready:
            yield ok("operator", said)
        else:
            name = pods[0]["metadata"]["name"]
            look = f"kubectl logs -n {seen.namespace} {name}; kubectl describe pod -n {seen.namespace} {name}"
            yield fail("operator", f"{said}; {why_not_ready(pods[0])}", look)
    yield from _leader(facts)
    namespaces = seen.settings.get("namespaces") or []
    if namespaces and facts.namespace not in namespaces:
        yield fail(
            "operator",
            f"it looks after {', '.join(namespaces)}, and not after {facts.namespace}",
            f"add {facts.namespace} to the chart's settings.namespaces, or choose another namespace with -n",
        )


def _leader(facts: Facts) -> Iterator[Finding]:
    lease, namespace = facts.operators.lease, facts.operators.namespace
    if namespace is None:
        return
    if isinstance(lease, Unseen):
        yield warn("leader", f"its Lease in namespace {namespace} cannot be seen: {lease.why}", _ADMIN)
        return
    spec = (lease or {}).get("spec") or {}
    holder, renewed = spec.get("holderIdentity"), spec.get("renewTime")
    if not holder or not renewed:
        yield fail(
            "leader", "no operator leads", f"kubectl logs -n {namespace} -l app.kubernetes.io/component=operator"
        )
        return
    since = (facts.now - datetime.fromisoformat(renewed)).total_seconds()
    said = f"{holder} leads, and has said so {max(0.0, since):.0f} s ago"
    if since > max(_LEASE_SECONDS, 2 * int(spec.get("leaseDurationSeconds") or 0)):
        yield fail("leader", said, f"the operator is away or hangs: kubectl get pods -n {namespace}")
    else:
        yield ok("leader", said)


def rights(facts: Facts) -> Iterator[Finding]:
    """What the user may do."""
    unseen = [right for right, may in facts.rights.items() if isinstance(may, Unseen)]
    if unseen:
        yield warn("rights", f"the API server does not say whether you may {unseen[0]}", _ADMIN)
        return
    no_read = [str(right) for right in READ if not facts.rights.get(right)]
    no_write = [str(right) for right in WRITE if not facts.rights.get(right)]
    where = f"in namespace {facts.namespace}"
    if no_read:
        grant = "ask for the role view there: kubectl create rolebinding NAME --clusterrole=view --user=YOU"
        yield fail("rights", f"you may not {', '.join(no_read)} {where}", grant)
    if no_write:
        grant = "ask for the role edit there: kubectl create rolebinding NAME --clusterrole=edit --user=YOU"
        yield warn("rights", f"you may look, but not {', '.join(no_write)} {where}", grant)
    if not no_read and not no_write:
        yield ok("rights", f"you may create, read, change and delete runs and read their logs {where}")


def images(facts: Facts) -> Iterator[Finding]:
    """Which images runs use, and whether a node could not pull one."""
    named = (facts.operators.settings.get("images") or {}).get("trainer")
    pods = [*_listed(facts.pods), *_listed(facts.operators.pods)]
    bad = {image: f"{reason}: {message}" for pod in pods for image, reason, message in not_pulled(pod)}
    for image, why in bad.items():
        yield fail(
            "images",
            f"{image} cannot be pulled: {why}",
            "correct images.* of the chart, or its pullSecrets, or push it",
        )
    if bad:
        return
    have = sorted({image for pod in pods for image in pulled(pod)})
    if named is None:
        yield warn("images", "the operator's settings cannot be seen, so neither which image runs use", _ADMIN)
    elif any(image == named or image.endswith(f"/{named}") for image in have):
        yield ok("images", f"runs use {named}; a node has pulled it")
    else:
        yield ok(
            "images", f"runs use {named}; no pod here has used it yet, so it is not known whether it can be pulled"
        )


def devices(facts: Facts) -> Iterator[Finding]:
    """The accelerators of the nodes, against what the manifest asks for."""
    if isinstance(facts.nodes, Unseen):
        yield warn("gpu", f"nodes cannot be seen: {facts.nodes.why}", "ask an administrator: kubectl describe nodes")
        return
    usable = [node for node in facts.nodes if is_ready(node) and not (node.get("spec") or {}).get("unschedulable")]
    if not usable:
        yield fail("gpu", f"none of {len(facts.nodes)} nodes is ready", "kubectl get nodes; kubectl describe node NAME")
        return
    offered: dict[str, list[int]] = {}
    for node in usable:
        for name, amount in ((node.get("status") or {}).get("allocatable") or {}).items():
            if "/" in name and str(amount).isdecimal() and int(amount):
                offered.setdefault(name, []).append(int(amount))
    asked = facts.needs.devices if facts.needs is not None else ()
    lacking = [
        (one.where, name, amount)
        for one in asked
        for name, amount in one.amounts.items()
        if max(offered.get(name, [0])) < amount
    ]
    for where, name, amount in lacking:
        most = max(offered.get(name, [0]))
        fix = "add a node with as many, install the device plugin of its maker, or ask for less"
        yield fail("gpu", f"{where} asks for {amount} {name}, and no node has more than {most}", fix)
    told = {
        name: amounts for name, amounts in offered.items() if _is_device(name) or any(name in d.amounts for d in asked)
    }
    for name, amounts in sorted(told.items()):
        yield ok("gpu", f"{sum(amounts)} {name} on {len(amounts)} of {len(usable)} ready nodes, {max(amounts)} at most")
    if not told and not lacking:
        message = f"no accelerator on {len(usable)} ready nodes"
        fix = "install the device plugin of its maker; without one give runs resources without GPUs"
        yield (
            ok("gpu", f"{message}, and the manifest asks for none")
            if asked == () and facts.needs
            else warn("gpu", message, fix)
        )


def dns(facts: Facts) -> Iterator[Finding]:
    """The cluster's DNS, as far as its Service says."""
    if isinstance(facts.dns, Unseen):
        yield warn("dns", f"the cluster's DNS cannot be seen: {facts.dns.why}", _ADMIN)
    elif not facts.dns:
        yield warn(
            "dns",
            "kube-system has no Service with the label k8s-app=kube-dns; another DNS may well be there",
            "kubectl run dns --rm -it --restart=Never --image=busybox -- nslookup kubernetes.default",
        )
    else:
        subsets = [subset for one in facts.dns for subset in one.get("subsets") or []]
        ready = sum(len(subset.get("addresses") or []) for subset in subsets)
        if ready:
            yield ok("dns", f"kube-dns has {ready} ready {'server' if ready == 1 else 'servers'}")
        else:
            yield fail(
                "dns", "kube-dns has no server that is ready", "kubectl get pods -n kube-system -l k8s-app=kube-dns"
            )


def optional_apis(facts: Facts) -> Iterator[Finding]:
    """APIs that some manifests need."""
    needs = facts.needs
    wanted = {
        "jobset.x-k8s.io": "spec.training.backend: jobset" if needs is not None and needs.jobset else "",
        "kueue.x-k8s.io": f"spec.queue: {needs.queue}" if needs is not None and needs.queue else "",
    }
    for group, name, use in _OPTIONAL:
        if group in facts.groups:
            yield ok("apis", f"{name} is installed")
        elif wanted.get(group):
            yield fail(
                "apis",
                f"the manifest says {wanted[group]}, and {name} is not installed",
                f"install {name}, or leave it out",
            )
        else:
            yield ok("apis", f"{name} is not installed; needed for {use} only")


def quotas(facts: Facts) -> Iterator[Finding]:
    """Quotas of the namespace that are used up."""
    if isinstance(facts.quotas, Unseen):
        yield warn(
            "quota", f"quotas cannot be seen: {facts.quotas.why}", f"kubectl describe quota -n {facts.namespace}"
        )
        return
    from kubernetes.utils.quantity import parse_quantity

    full = []
    for quota in facts.quotas:
        status = quota.get("status") or {}
        used = status.get("used") or {}
        for name, hard in (status.get("hard") or {}).items():
            if name in used and parse_quantity(used[name]) >= parse_quantity(hard):
                full.append(f"{name} of {quota['metadata']['name']} ({used[name]} of {hard})")
    if full:
        yield warn(
            "quota", f"used up: {', '.join(full)}; pods that need more wait", "raise it, or end other work there"
        )
    elif facts.quotas:
        yield ok("quota", f"{len(facts.quotas)} in namespace {facts.namespace}, none of it used up")
    else:
        yield ok("quota", f"none in namespace {facts.namespace}")


def storage(facts: Facts) -> Iterator[Finding]:
    """What the manifest names in its namespace."""
    for needed, found in facts.objects.items():
        yield _object(facts, needed, found)


def manifest(facts: Facts) -> Iterator[Finding]:
    """Whether the API server would take it."""
    if facts.accepted == "":
        yield ok("manifest", "the API server would accept it")
    elif facts.accepted is not None:
        yield fail("manifest", facts.accepted, "correct it, or what refuses it")


def _object(facts: Facts, needed: Needed, found: Resource | Unseen | None) -> Finding:
    kind = {"secrets": "Secret", "configmaps": "ConfigMap", "serviceaccounts": "ServiceAccount"}.get(
        needed.kind, "claim"
    )
    title = f"{kind} {needed.name}"
    check = "storage" if kind in ("Secret", "claim", "ServiceAccount") else "data"
    get = f"kubectl get {needed.kind} {needed.name} -n {facts.namespace}"
    if isinstance(found, Unseen):
        return warn(check, f"{title} cannot be seen: {found.why}", f"make sure that it is there: {get}")
    if found is None:
        return fail(
            check, f"there is no {title} in namespace {facts.namespace}", f"make it, or correct the manifest: {get}"
        )
    held = {**(found.get("data") or {}), **(found.get("stringData") or {}), **(found.get("binaryData") or {})}
    missing = [key for key in needed.keys if key not in held]
    if missing:
        has = f"it has {', '.join(sorted(held))}" if held else "it is empty"
        return fail(check, f"{title} has no {', '.join(missing)}; {has}", "add it, or correct the manifest")
    if needed.kind == CLAIM and (found.get("status") or {}).get("phase") != "Bound":
        phase = (found.get("status") or {}).get("phase")
        return warn(
            check,
            f"{title} is {phase}: it is bound when the first pod uses it, or never",
            f"kubectl describe pvc {needed.name} -n {facts.namespace}",
        )
    keys = f", with {', '.join(needed.keys)}" if needed.keys else ""
    return ok(check, f"{title} is there{keys}")


def _some(paths: list[str]) -> str:
    shown = ", ".join(paths[:3])
    return shown if len(paths) <= 3 else f"{shown} and {len(paths) - 3} more"


def _listed(found: list[Resource] | Unseen) -> list[Resource]:
    return found if isinstance(found, list) else []


def _is_device(name: str) -> bool:
    return any(word in name.lower() for word in _DEVICE_WORDS)


CHECKS: Final[tuple[Callable[[Facts], Iterator[Finding]], ...]] = (
    *(api, rights, definition, operator, images, devices, dns, optional_apis, quotas, storage, manifest),
)
