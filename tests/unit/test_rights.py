"""The operator's rights: the table in docs/cluster.md and the chart's rules say the same. (tests/faults asks a real API
server whether that is what it grants.)"""

from __future__ import annotations

import re
from pathlib import Path

import yaml

ROOT = Path(__file__).parents[2]
#: The groups of the table's resources: the table names resources alone.
GROUPS = {
    **dict.fromkeys(("optimizationruns", "optimizationruns/status", "optimizationruns/finalizers"), "tandem.dev"),
    "jobs": "batch",
    "jobsets": "jobset.x-k8s.io",
    "deployments": "apps",
    "networkpolicies": "networking.k8s.io",
    **dict.fromkeys(("services", "configmaps", "pods", "events"), ""),
    "leases": "coordination.k8s.io",
}
#: (group, resource, verb)
Right = tuple[str, str, str]


def table() -> set[Right]:
    """The rights of the operator as the documentation has them, without those on its Lease."""
    section = (ROOT / "docs/cluster.md").read_text(encoding="utf-8").partition("## 7. Rights")[2].partition("\n## ")[0]
    found: set[Right] = set()
    resource = ""
    for row in re.findall(r"^\|(.+)\|$", section.partition("| role |")[0], re.MULTILINE):
        name, verbs = (cell.strip() for cell in row.split("|")[:2])
        named = re.match(r"`([a-z/]+)`", name)
        resource = named[1] if named else resource
        if resource in GROUPS and resource != "leases":
            found |= {(GROUPS[resource], resource, verb) for verb in verbs.split(", ")}
    return found


def test_the_table_is_read_whole():
    rights = table()
    assert {resource for _, resource, _ in rights} == GROUPS.keys() - {"leases"}
    assert ("batch", "jobs", "watch") in rights and ("", "events", "list") in rights
    assert ("tandem.dev", "optimizationruns", "patch") in rights, "a row without a name belongs to the one above"


def test_the_table_and_the_charts_rules_are_the_same():
    rules = yaml.safe_load((ROOT / "charts/tandem/files/operator-rules.yaml").read_text(encoding="utf-8"))
    assert all(rule.keys() == {"apiGroups", "resources", "verbs"} for rule in rules)
    assert table() == {
        (group, resource, verb)
        for rule in rules
        for group in rule["apiGroups"]
        for resource in rule["resources"]
        for verb in rule["verbs"]
    }
