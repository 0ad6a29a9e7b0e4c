"""All that the operator creates: pods, names, policies, queues. (What the pods may do: test_pod_security.py.)"""

from __future__ import annotations

import re
from functools import cache
from ipaddress import ip_address, ip_network

import pytest
from tests.unit.operator.kubernetes.cluster import Object, copied
from tests.unit.operator.kubernetes.world import GPU, World, manifest, settings

from tandem_api.v1alpha1.run import parse_run
from tandem_operator.platforms.kubernetes import names
from tandem_operator.platforms.kubernetes.pods import accelerators
from tandem_operator.platforms.kubernetes.policies import network_policies
from tandem_trainer.serving import parse as parse_serving

NAME = re.compile(r"[a-z0-9]([-a-z0-9]*[a-z0-9])?")
LONG = "a-run-of-which-the-name-is-as-long-as-any-may-be-0001"[:52]
RESOURCES = {"limits": {"memory": "8Gi"}, "requests": {"cpu": "2"}}
WRITER = {"url": "https://api.example.com/v1", "model": "large", "keySecret": "writer"}
TEACHER = {"url": "http://vllm.team.svc:8000/v1", "model": "teacher", "keySecret": "teacher"}
SPECS = {
    "plain": {},
    "reload": {"serving": {"adapters": "reload", "resources": GPU}, "training": {"resources": GPU}},
    "rollout": {"serving": {"adapters": "rollout", "replicas": 3, "extraArgs": ["--max-model-len=4096"]}},
    "claim": {"model": {"uri": "pvc://models/org/model"}},
    "full": {
        "queue": "team-queue",
        "priorityClass": "low",
        "model": {"uri": "hf://org/model", "tokenSecret": "hugging-face"},
        "program": {
            "inline": {"signature": "review -> sentiment", "adapter": "plain"},
            "image": "team/program:1",
        },
        "serving": {"image": "team/vllm:1", "resources": RESOURCES},
        "training": {"resources": {"limits": {"memory": "16Gi"}}},
        "workers": {"resources": {"limits": {"memory": "1Gi"}}, "podTemplate": {"spec": {"nodeSelector": {"a": "b"}}}},
    },
    "models": {
        "strategy": [
            {"kind": "p", "promptOptimizer": {"type": "mipro", "proposer": WRITER, "teacher": TEACHER}},
            {"kind": "w"},
            {"kind": "p"},
        ],
        "promptOptimizer": {"type": "gepa", "proposer": {**WRITER, "keySecret": "other"}},
    },
    "mlflow": {
        "tracking": {
            "mlflow": {"uri": "http://mlflow.mlops:5000", "experiment": "e", "credentialsSecret": "mlflow-account"}
        }
    },
    "account": {"storage": {"s3": {"bucket": "bucket", "serviceAccount": "tandem-s3"}}},
}


@cache
def objects(which: str, name: str = "reviews", version: tuple[int, int] = (1, 33)) -> tuple[Object, ...]:
    """Every object that is created for a run, the cleanup of its storage included."""
    spec = SPECS[which]
    storage = {**manifest(**spec)["spec"]["storage"], "deletionPolicy": "Delete"}
    world = World(manifest(name, **{**spec, "storage": storage}))
    world.cluster.server_version = version
    world.passes = world.operator()
    made = []
    world.cluster.admission = lambda verb, thing: made.append(copied(thing)) if verb in ("create", "apply") else None
    world.finish()
    world.cluster.remove(world.run)
    world.turns(6)
    return tuple(thing for thing in made if thing["kind"] not in ("Pod", "Event"))


def of(things: tuple[Object, ...], kind: str, component: str = "") -> list[Object]:
    return [
        thing
        for thing in things
        if thing["kind"] == kind and component in ("", thing["metadata"]["labels"][names.COMPONENT])
    ]


def templates(which: str) -> dict[str, Object]:
    things = objects(which)
    return {t["metadata"]["name"]: t["spec"]["template"] for t in of(things, "Job") + of(things, "Deployment")}


def container(template: Object, name: str) -> Object:
    return next(c for c in template["spec"]["containers"] if c["name"] == name)


def variables(template: Object, name: str) -> dict[str, Object]:
    return {variable["name"]: variable for variable in container(template, name)["env"]}


@pytest.mark.parametrize("which", SPECS)
def test_every_pod_is_well_formed_and_holds_nothing_that_it_should_not(which):
    for name, template in templates(which).items():
        spec = template["spec"]
        assert spec["automountServiceAccountToken"] is False, name
        assert spec["enableServiceLinks"] is False, name
        volumes = [volume["name"] for volume in spec["volumes"]]
        assert len(volumes) == len(set(volumes)), name
        assert all(NAME.fullmatch(volume) and len(volume) <= 63 for volume in volumes), name
        for one in spec["containers"]:
            places = [mount["mountPath"] for mount in one["volumeMounts"]]
            assert len(places) == len(set(places)), name
            assert {mount["name"] for mount in one["volumeMounts"]} <= set(volumes), name
            assert len({v["name"] for v in one["env"]}) == len(one["env"]), name
            has_accelerator = any("/" in key for key in one["resources"].get("limits", {}))
            assert one["securityContext"]["readOnlyRootFilesystem"] is not has_accelerator, name
            hidden = {"name": "NVIDIA_VISIBLE_DEVICES", "value": "void"} in one["env"]
            assert hidden is not has_accelerator, name
        mounted = {mount["name"] for one in spec["containers"] for mount in one["volumeMounts"]}
        assert mounted == set(volumes), name


def test_secrets_are_referred_to_and_never_read():
    for name, template in templates("full").items():
        for one in template["spec"]["containers"]:
            found = variables(template, one["name"])
            for key in ("AWS_ACCESS_KEY_ID", "AWS_SECRET_ACCESS_KEY"):
                assert found[key]["valueFrom"] == {"secretKeyRef": {"name": "s3", "key": key}}, name
            assert found["AWS_SESSION_TOKEN"]["valueFrom"]["secretKeyRef"]["optional"] is True
            assert found["HF_TOKEN"]["valueFrom"]["secretKeyRef"] == {"name": "hugging-face", "key": "HF_TOKEN"}
            assert found["AWS_ENDPOINT_URL"]["value"] == "http://s3:9000"


def test_the_keys_of_other_models_reach_the_searches_that_ask_them_and_nothing_else():
    found: dict[str, Object] = {}
    for name, template in templates("models").items():
        for one in template["spec"]["containers"]:
            for variable in one["env"]:
                if variable["name"].endswith("_API_KEY"):
                    found.setdefault(name, {})[variable["name"]] = variable["valueFrom"]["secretKeyRef"]
    assert found == {
        "reviews-1p-optimize-1": {
            "TANDEM_PROPOSER_API_KEY": {"name": "writer", "key": "API_KEY"},
            "TANDEM_TEACHER_API_KEY": {"name": "teacher", "key": "API_KEY"},
        },
        "reviews-3p-optimize-1": {"TANDEM_PROPOSER_API_KEY": {"name": "other", "key": "API_KEY"}},
    }


def test_the_account_at_mlflow_reaches_the_workers_by_reference_and_is_missed_by_no_pod():
    for name, template in templates("mlflow").items():
        for one in template["spec"]["containers"]:
            found = {v["name"]: v for v in one["env"] if v["name"].startswith("MLFLOW_")}
            if one["name"] != "worker":
                assert found == {}, name
                continue
            assert found.keys() == {f"MLFLOW_TRACKING_{key}" for key in ("USERNAME", "PASSWORD", "TOKEN")}
            for key, variable in found.items():
                assert variable["valueFrom"] == {
                    "secretKeyRef": {"name": "mlflow-account", "key": key, "optional": True}
                }


def test_workers_and_not_servers_reach_mlflow():
    document = manifest(**SPECS["mlflow"])
    document["metadata"]["uid"] = "1"
    policies = network_policies(parse_run(document), settings(networkPolicy={"workerEgressPorts": []}), "system", {})
    servers, workers = (policy["spec"]["egress"] for policy in policies)
    address, pods = [rule for rule in workers if rule not in servers][:-1]
    assert [port["port"] for port in address["ports"]] == [5000]
    assert pods["to"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "mlops"}


def test_sets_are_walked_in_the_same_order_by_every_attempt():
    for template in templates("full").values():
        for one in template["spec"]["containers"]:
            assert {"name": "PYTHONHASHSEED", "value": "0"} in one["env"]


def test_a_service_account_takes_the_place_of_a_secret():
    for template in templates("account").values():
        assert template["spec"]["serviceAccountName"] == "tandem-s3"
        assert "AWS_ACCESS_KEY_ID" not in variables(template, template["spec"]["containers"][0]["name"])


def test_resources_are_the_run_s_or_the_defaults():
    full = templates("full")
    assert container(full["reviews-serving"], "vllm")["resources"] == RESOURCES
    assert container(full["reviews-2w-train-1"], "worker")["resources"] == {"limits": {"memory": "16Gi"}}
    assert container(full["reviews-1p-optimize-1"], "worker")["resources"] == {"limits": {"memory": "1Gi"}}
    kinds = {
        kind: {"resources": {"limits": {"memory": f"{number}Gi"}}}
        for number, kind in enumerate(("serving", "training", "workers"), start=1)
    }
    world = World(manifest(), settings(defaults=kinds))
    limits = {}

    def admit(verb, thing):
        if verb in ("create", "apply") and thing["kind"] in ("Job", "Deployment"):
            one = thing["spec"]["template"]["spec"]["containers"][0]
            limits[thing["metadata"]["name"]] = one["resources"]["limits"]["memory"]

    world.cluster.admission = admit
    world.finish()
    assert limits["reviews-serving"] == "1Gi"
    assert limits["reviews-2w-train-1"] == "2Gi"
    assert limits["reviews-2w-traces-1"] == "3Gi"


def test_an_accelerator_that_a_patch_gives_is_not_hidden():
    def made(patch: Object) -> Object:
        world = World(manifest(), settings(defaults={"podTemplate": {"spec": {"containers": [patch]}}}))
        world.until(lambda world: world.cluster.find("Deployment", "reviews-serving"))
        return container(world.cluster.find("Deployment", "reviews-serving")["spec"]["template"], "vllm")

    given = made({"name": "vllm", "resources": GPU})
    assert given["securityContext"]["readOnlyRootFilesystem"] is False
    assert "NVIDIA_VISIBLE_DEVICES" not in {v["name"] for v in given["env"]}
    told = made({"name": "vllm", "env": [{"name": "NVIDIA_VISIBLE_DEVICES", "value": "0"}]})
    assert [v["value"] for v in told["env"] if v["name"] == "NVIDIA_VISIBLE_DEVICES"] == ["0"]


def test_vllm_waits_for_its_engine_as_long_as_the_run_does():
    template = templates("plain")["reviews-serving"]
    probe = container(template, "vllm")["startupProbe"]
    assert variables(template, "vllm")["VLLM_ENGINE_READY_TIMEOUT_S"]["value"] == "1200"
    assert probe["periodSeconds"] * probe["failureThreshold"] == 1200


def test_images_are_the_run_s_or_the_operator_s():
    full, plain = templates("full"), templates("plain")
    assert container(full["reviews-serving"], "vllm")["image"] == "team/vllm:1"
    assert container(full["reviews-2w-train-1"], "worker")["image"] == "team/program:1"
    assert {c["image"] for t in plain.values() for c in t["spec"]["containers"]} == {"tandem-trainer:test"}


def test_queue_and_priority_are_passed_on():
    for job in of(objects("full"), "Job", names.WORKER):
        assert job["metadata"]["labels"][names.QUEUE] == "team-queue"
    assert all(t["spec"]["priorityClassName"] == "low" for t in templates("full").values())
    for job in of(objects("plain"), "Job"):
        assert not {names.QUEUE, names.QUEUE_PRIORITY} & job["metadata"]["labels"].keys()
    assert templates("full")["reviews-1p-optimize-1"]["spec"]["nodeSelector"] == {"a": "b"}


@pytest.mark.parametrize(
    ("version", "failures", "replacement"), [((1, 25), False, False), ((1, 26), True, False), ((1, 29), True, True)]
)
def test_older_clusters_get_no_fields_that_they_do_not_know(version, failures, replacement):
    for job in of(objects("plain", version=version), "Job", names.WORKER):
        spec = job["spec"]
        assert ("podFailurePolicy" in spec) is failures
        assert ("podReplacementPolicy" in spec) is replacement
        assert (spec["backoffLimit"], spec["template"]["spec"]["restartPolicy"]) == (0, "Never")
        assert "ttlSecondsAfterFinished" not in spec  # its result is not in the status yet


def test_every_object_is_owned_by_the_run_but_for_the_cleanup():
    for thing in objects("reload"):
        owners = thing["metadata"].get("ownerReferences")
        if thing["metadata"]["name"] == "reviews-cleanup":
            assert owners is None
        else:
            assert [(o["kind"], o["controller"], o["blockOwnerDeletion"]) for o in owners] == [
                ("OptimizationRun", True, True)
            ]


@pytest.mark.parametrize("name", ["a", LONG])
def test_names_and_labels_are_short_enough(name):
    assert len(LONG) == 52
    made = objects("reload", name)
    assert len(of(made, "Job")) == 9
    for thing in made:
        assert NAME.fullmatch(thing["metadata"]["name"])
        assert len(thing["metadata"]["name"]) <= 63
        template = thing.get("spec", {}).get("template", {"metadata": {"labels": {}}})
        labels = thing["metadata"]["labels"] | template["metadata"]["labels"]
        assert all(len(value) <= 63 for value in labels.values()), labels


def test_a_pod_is_chosen_by_its_own_run_only():
    for thing in of(objects("plain"), "Deployment"):
        selector = thing["spec"]["selector"]["matchLabels"]
        assert selector.items() <= thing["spec"]["template"]["metadata"]["labels"].items()
        assert names.RUN_UID in selector
    for service in of(objects("plain"), "Service"):
        assert service["spec"]["selector"] == selector
    assert {s["metadata"]["name"]: s["spec"].get("clusterIP") for s in of(objects("plain"), "Service")} == {
        "reviews-serving": None,
        "reviews-replicas": "None",
    }


def test_network_policies_let_in_the_run_s_workers_and_the_operator_only():
    found = {p["metadata"]["name"]: p["spec"] for p in of(objects("plain"), "NetworkPolicy")}
    servers, workers = found["reviews-serving"], found["reviews-workers"]
    uid = of(objects("plain"), "NetworkPolicy")[0]["metadata"]["labels"][names.RUN_UID]
    assert servers["podSelector"]["matchLabels"] == names.selector("reviews", uid, names.SERVING)
    assert servers["policyTypes"] == ["Ingress", "Egress"]
    calls, adapters = servers["ingress"]
    assert [port["port"] for port in calls["ports"]] == [8000]
    assert [port["port"] for port in adapters["ports"]] == [8081]
    allowed = [peer["podSelector"]["matchLabels"] for peer in calls["from"]]
    assert allowed[0] == names.selector("reviews", uid, names.WORKER)
    assert allowed[1][names.COMPONENT] == "operator"
    assert "tandem-system" in calls["from"][1]["namespaceSelector"]["matchLabels"].values()
    assert adapters["from"] == [calls["from"][1]]
    assert workers["policyTypes"] == ["Ingress", "Egress"]
    assert workers["ingress"][0]["from"] == [calls["from"][1]]
    assert workers["egress"][:-1] == servers["egress"]
    assert workers["egress"][-1] == {"to": [{"podSelector": servers["podSelector"]}], "ports": calls["ports"]}
    dns, outside, store = servers["egress"]
    assert sorted(port["port"] for port in dns["ports"]) == [53, 53, 5353, 5353]
    assert [port["port"] for port in outside["ports"]] == [80, 443, 9000]
    assert store == {"to": [{"podSelector": {}}]}


def outside(policy: Object, endpoint: str | None = "http://s3:9000") -> list[Object]:
    """What the pods of a run may reach but DNS, with these settings of policies and this object store."""
    storage = {"bucket": "bucket", "credentialsSecret": "s3", **({"endpoint": endpoint} if endpoint else {})}
    document = manifest(storage={"s3": storage})
    document["metadata"]["uid"] = "1"
    servers, _ = network_policies(parse_run(document), settings(networkPolicy=policy), "tandem-system", {})
    found: list[Object] = servers["spec"]["egress"][1:]
    return found


def test_the_cloud_s_metadata_address_is_out_of_reach():
    (rule, _) = outside({"workerEgressPorts": [3128]})
    assert [port["port"] for port in rule["ports"]] == [3128, 9000]
    blocks = [peer["ipBlock"] for peer in rule["to"] if "ipBlock" in peer]

    def reached(address: str) -> bool:
        where = ip_address(address)
        return any(
            where in ip_network(block["cidr"]) and not any(where in ip_network(part) for part in block["except"])
            for block in blocks
        )

    for address in ("169.254.169.254", "169.254.170.2", "169.254.170.23", "fd00:ec2::254", "fe80::a9fe:a9fe"):
        assert not reached(address), address
    for address in ("10.0.0.1", "192.0.2.7", "fd00::1", "2001:db8::1"):
        assert reached(address), address
    assert {"namespaceSelector": {}} in rule["to"]  # pods, which are no addresses to some network plugins
    for block in blocks:  # or the API server refuses the policy
        assert all(ip_network(part).subnet_of(ip_network(block["cidr"])) for part in block["except"])


def test_the_metadata_address_may_be_let_in_for_pods_that_get_their_identity_there():
    (rule, _) = outside({"workerMetadataAccess": True})
    assert rule == {"ports": [{"port": port, "protocol": "TCP"} for port in (80, 443, 9000)]}


@pytest.mark.parametrize(
    ("endpoint", "port", "namespace"),
    [
        (None, 443, None),
        ("http://s3:8333", 8333, ""),
        ("http://minio.storage:9000", 9000, "storage"),
        ("http://minio.storage.svc:9000", 9000, "storage"),
        ("http://minio.storage.svc.cluster.local", 80, "storage"),
        ("https://minio.storage.svc.cluster.local.", 443, "storage"),
        ("https://s3.eu-central-1.amazonaws.com", 443, None),
        ("https://minio.example.com:9000", 9000, None),
        ("http://192.0.2.7:9000", 9000, None),
        ("http://[fd00::7]:9000", 9000, None),
        ("http://localhost:9000", 9000, None),
    ],
)
def test_an_object_store_in_the_cluster_is_reached_at_its_pods_ports(
    endpoint: str | None, port: int, namespace: str | None
):
    rule, *store = outside({"workerEgressPorts": []}, endpoint)
    assert [item["port"] for item in rule["ports"]] == [port]
    if namespace is None:
        assert store == []
    elif namespace == "":
        assert store == [{"to": [{"podSelector": {}}]}]
    else:
        labels = {"kubernetes.io/metadata.name": namespace}
        assert store == [{"to": [{"namespaceSelector": {"matchLabels": labels}}]}]


def test_workers_and_not_servers_reach_the_apis_of_other_models():
    document = manifest(**SPECS["models"])
    document["metadata"]["uid"] = "1"
    policies = network_policies(parse_run(document), settings(networkPolicy={"workerEgressPorts": []}), "system", {})
    servers, workers = (policy["spec"]["egress"] for policy in policies)
    api, teacher, pods = [rule for rule in workers if rule not in servers][:-1]
    assert [port["port"] for port in api["ports"]] == [443]
    assert [port["port"] for port in teacher["ports"]] == [8000]
    assert api["to"] == teacher["to"] == servers[1]["to"]
    assert pods["to"][0]["namespaceSelector"]["matchLabels"] == {"kubernetes.io/metadata.name": "team"}


def test_network_policies_may_be_switched_off():
    world = World(set_up=settings(networkPolicy={"enabled": False})).finish()
    assert world.cluster.all("NetworkPolicy") == []


def test_network_policies_are_there_before_the_pods():
    kinds = [thing["kind"] for thing in objects("plain")]
    assert max(i for i, kind in enumerate(kinds) if kind == "NetworkPolicy") < kinds.index("Job")


@pytest.mark.parametrize("which", ["plain", "reload", "rollout", "claim"])
def test_the_servers_command_is_one_that_they_understand(which):
    for deployment in of(objects(which), "Deployment"):
        command = container(deployment["spec"]["template"], "vllm")["command"]
        options = parse_serving(command[command.index("tandem_trainer.serving") + 1 :])
        assert options.model == manifest(**SPECS[which])["spec"]["model"]["uri"]
        if which == "reload":
            assert options.mode == "reload"
        else:
            assert options.served_name == deployment["metadata"]["annotations"][names.SERVED_NAME]
        assert (options.adapter is not None) == (options.mode in ("merged", "rollout"))


def test_a_claim_is_mounted_read_only_where_the_model_is_read():
    found = templates("claim")
    for name, one in (("reviews-serving", "vllm"), ("reviews-2w-train-1", "worker")):
        mount = next(m for m in container(found[name], one)["volumeMounts"] if m["name"] == "model")
        assert (mount["mountPath"], mount["readOnly"]) == ("/tandem/models/models", True)
    assert not any(v["name"] == "model" for v in found["reviews-1p-optimize-1"]["spec"]["volumes"])


@pytest.mark.parametrize(
    ("limits", "count"),
    [({"nvidia.com/gpu": 4, "memory": "8Gi"}, 4), ({"nvidia.com/mig-1g.5gb": "2", "amd.com/gpu": "1"}, 3), ({}, 0)],
)
def test_the_accelerators_of_a_pod_are_counted(limits, count):
    assert accelerators({"limits": limits}) == count
