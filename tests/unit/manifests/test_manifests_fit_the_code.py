"""What the manifests name exists: commands, import paths, settings, Secrets, selectors, ports and versions."""

from __future__ import annotations

import importlib.metadata
import json
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
import typer
import yaml

from shoal.cluster.cli import app
from shoal.cluster.configuration import environment_names
from shoal.cluster.draining import JOIN_NOTICE_S, NOTICE_S
from shoal.cluster.ingress import haproxy_environment
from shoal.cluster.ray_environment import ALWAYS, HAPROXY
from shoal.settings import Settings, load
from tests.fixtures.manifests import KUBERAY, ROOT

SECRETS = {"shoal-secrets", "shoal-ray-token", "shoal-redis", "shoal-metrics-key"}
OURS_BY_NAME = "app.kubernetes.io/name"
COMPONENT = "app.kubernetes.io/component"
# Two differ from `shoal up`'s, with the reason beside them (base/foundation/kustomization.yaml).
OTHER_IN_A_CLUSTER = {"RAY_SERVE_DIRECT_INGRESS_MIN_DRAINING_PERIOD_S": "30", "RAY_health_check_failure_threshold": "5"}


def of(overlay: dict[str, Any], *kinds: str) -> list[dict[str, Any]]:
    return [one for one in overlay["objects"] if one["kind"] in kinds]


def named(overlay: dict[str, Any], kind: str, start: str) -> dict[str, Any]:
    (found,) = (one for one in of(overlay, kind) if one["metadata"]["name"].startswith(start))
    return found


def containers(overlay: dict[str, Any]) -> Iterator[dict[str, Any]]:
    """Every container of every pod, as the operator would make them."""
    for pod in overlay["pods"]:
        yield from pod["spec"].get("initContainers") or ()
        yield from pod["spec"]["containers"]


def everywhere(value: Any, key: str) -> Iterator[Any]:
    """Every value that stands under `key`, however deep."""
    if isinstance(value, dict):
        for name, part in value.items():
            if name == key:
                yield part
            yield from everywhere(part, key)
    elif isinstance(value, list):
        for part in value:
            yield from everywhere(part, key)


def parses(words: list[str]) -> None:
    """`shoal` knows this command, its options and its arguments; else what the command line raises of it."""
    command: Any = typer.main.get_command(app)
    context = None
    while True:
        if not hasattr(command, "resolve_command"):
            return
        context = context or command.make_context("shoal", ["--version"], resilient_parsing=True)
        name, command, words = command.resolve_command(context, list(words))
        assert command is not None, name
        context = command.make_context(name, list(words), parent=context)


def serve_configs(overlay: dict[str, Any]) -> dict[str, dict[str, Any]]:
    found = {"ingest": yaml.safe_load(named(overlay, "ConfigMap", "shoal-serve")["data"]["serve.yaml"])}
    for service in of(overlay, "RayService"):
        found[service["metadata"]["name"]] = yaml.safe_load(service["spec"]["serveConfigV2"])
    return found


def problems(*configs: dict[str, Any]) -> list[list[str]]:
    """What the strict check says of each; Ray Serve is imported in a process of its own."""
    program = (
        "import json, sys; from shoal.cluster.serve_config import problems; "
        "print(json.dumps([problems(one) for one in json.load(sys.stdin)]))"
    )
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", program], input=json.dumps(configs), capture_output=True, text=True,
        timeout=110, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr[-2000:]
    return list(json.loads(done.stdout.splitlines()[-1]))


def test_every_command_is_one_of_ours_or_of_the_base_image(overlay: dict[str, Any]) -> None:
    commands = [container["command"] for container in containers(overlay)]
    for container in containers(overlay):
        commands += [hook["exec"]["command"] for hook in (container.get("lifecycle") or {}).values()]
    ours = [command[1:] for command in commands if command[0] == "shoal"]
    assert len(ours) >= 5
    for words in ours:
        parses(words)
    assert {command[0] for command in commands} <= {"shoal", "/bin/bash", "sleep"}
    with pytest.raises(Exception, match="No such option"):  # of whichever Click the command line is made of
        parses(["drain", "--joined"])


def test_every_serve_config_is_right_to_the_last_key(checked: dict[str, Any]) -> None:
    configs = [config for one in checked["overlays"].values() for config in serve_configs(one).values()]
    assert len(configs) == 5
    assert problems(*configs) == [[]] * 5


# (what is done to queries' config, what must be said of it)
WRONG: dict[str, tuple[Any, str]] = {
    "a key on top": (lambda c: c.update(http_option={}), "http_option"),
    "a key below": (lambda c: c["http_options"].update(prot=8000), "http_options.prot"),
    "a key of an application": (lambda c: c["applications"][0].update(import_paths="x"), "import_paths"),
    "a key of a deployment": (lambda c: c["applications"][0]["deployments"][0].update(num_replica=2), "num_replica"),
    "a key of the resources": (
        lambda c: c["applications"][0]["deployments"][0]["ray_actor_options"].update(num_cpu=2), "num_cpu",
    ),
    "a key of autoscaling": (
        lambda c: c["applications"][0]["deployments"][0].update(autoscaling_config={"min_replica": 1}), "min_replica",
    ),
    "more at least than at most": (
        lambda c: c["applications"][0]["deployments"][0].update(
            autoscaling_config={"min_replicas": 5, "max_replicas": 1}
        ),
        "max_replicas",
    ),
    "a slash at the end": (lambda c: c["applications"][1].update(route_prefix="/mcp/"), "must not end with a slash"),
    "an import path": (lambda c: c["applications"][1].update(import_path="shoal.cluster.applications:mpc"), "mpc"),
    "a module": (lambda c: c["applications"][1].update(import_path="shoal.applications:mcp"), "can't be imported"),
    "arguments": (lambda c: c["applications"][1].update(args={"restart": "x"}), "args.restart"),
    "a deployment": (lambda c: c["applications"][1]["deployments"][0].update(name="Rest"), "none of Mcp"),
    "a name": (lambda c: c["applications"][0].update(name="main"), "must run under the name 'rest'"),
    "two of a route": (lambda c: c["applications"][1].update(route_prefix="/"), "duplicate"),
}  # fmt: skip


def test_every_mistake_in_a_serve_config_is_seen() -> None:
    text = yaml.safe_load((KUBERAY / "base/queries/ray-service.yaml").read_text())["spec"]["serveConfigV2"]
    broken = []
    for change, _ in WRONG.values():
        broken.append(yaml.safe_load(text))
        change(broken[-1])
    found = problems(*broken)
    unseen = {
        name: said
        for (name, (_, wanted)), said in zip(WRONG.items(), found, strict=True)
        if wanted not in "\n".join(said)
    }
    assert unseen == {}


def test_every_setting_is_one_and_its_value_is_taken(overlay: dict[str, Any], monkeypatch: pytest.MonkeyPatch) -> None:
    values = named(overlay, "ConfigMap", "shoal-settings")["data"]
    known = {name for field in Settings.model_fields for name in environment_names(field)}
    assert set(values) - known == {"AWS_REGION"}, "boto3's"
    for name, value in values.items():
        monkeypatch.setenv(name, value)
    settings = load()
    assert settings.auth == "required"
    assert not settings.is_embedded
    assert settings.tables_uri.startswith("s3://")
    assert settings.provider == ("openai" if overlay["name"] == "prod" else "local")
    if overlay["name"] == "prod":
        assert values["SHOAL_EMBEDDING_PROVIDER"] == "openai", "by choice, not by a key that happens to be there"
        assert settings.allowed_buckets


def test_rays_environment_is_that_of_shoal_up_but_for_two(overlay: dict[str, Any]) -> None:
    values = named(overlay, "ConfigMap", "shoal-ray-env")["data"]
    assert values == ALWAYS | HAPROXY | haproxy_environment(Settings().client_timeout_s) | OTHER_IN_A_CLUSTER


def test_every_config_map_volume_account_and_priority_that_is_named_is_there(overlay: dict[str, Any]) -> None:
    there = {(one["kind"], one["metadata"]["name"]) for one in overlay["objects"]}
    wanted = {("ConfigMap", one["name"]) for one in everywhere(overlay["objects"], "configMapRef")}
    wanted |= {("ConfigMap", one["name"]) for one in everywhere(overlay["objects"], "configMap") if one}
    wanted |= {
        ("PersistentVolumeClaim", one["claimName"]) for one in everywhere(overlay["objects"], "persistentVolumeClaim")
    }
    wanted |= {("PriorityClass", name) for name in everywhere(overlay["objects"], "priorityClassName")}
    wanted |= {("ServiceAccount", name) for name in everywhere(overlay["objects"], "serviceAccountName")}
    assert wanted <= there
    assert {kind for kind, _ in wanted} == {"ConfigMap", "PersistentVolumeClaim", "PriorityClass", "ServiceAccount"}


def test_every_secret_is_documented_and_prod_gets_it_from_the_store(overlay: dict[str, Any]) -> None:
    named_ones = {one["name"] for key in ("secretRef", "secretKeyRef") for one in everywhere(overlay["objects"], key)}
    named_ones |= set(everywhere(overlay["objects"], "secretName"))
    named_ones |= {one["name"] for one in everywhere(overlay["objects"], "credentials")}
    page = (ROOT / "docs/deploying.md").read_text()
    assert {"shoal-secrets", "shoal-ray-token"} <= named_ones <= SECRETS
    assert all(f"`{name}`" in page for name in named_ones)
    stored = {one["metadata"]["name"] for one in of(overlay, "ExternalSecret")}
    assert not of(overlay, "Secret"), "no secret stands in a file"
    assert stored == (SECRETS if overlay["name"] == "prod" else set())


def test_ray_is_the_one_of_the_image_and_images_have_a_version(overlay: dict[str, Any]) -> None:
    versions = set(everywhere([one["spec"] for one in of(overlay, "RayCluster", "RayService")], "rayVersion"))
    assert versions == {importlib.metadata.version("ray")}
    assert {container["image"] for container in containers(overlay)} == {"registry.example/shoal:0.1.0"}


def matches(selector: dict[str, Any], labels: dict[str, str]) -> bool:
    assert set(selector) <= {"matchLabels", "matchExpressions"}
    expressions = selector.get("matchExpressions", ())
    assert {one["operator"] for one in expressions} <= {"Exists", "In"}
    return selector.get("matchLabels", {}).items() <= labels.items() and all(
        one["key"] in labels and (one["operator"] == "Exists" or labels[one["key"]] in one["values"])
        for one in expressions
    )


def test_every_budget_counts_pods_that_there_are_and_only_by_a_number(overlay: dict[str, Any]) -> None:
    """Ray's pods have no controller with a scale: the eviction API can judge nothing but a number for them."""
    groups = {
        group["groupName"]: group["minReplicas"]
        for spec in everywhere(of(overlay, "RayCluster", "RayService"), "workerGroupSpecs") for group in spec
    }  # fmt: skip
    for budget in of(overlay, "PodDisruptionBudget"):
        spec = budget["spec"]
        assert set(spec) == {"minAvailable", "selector"}
        assert isinstance(spec["minAvailable"], int)
        pods = [
            pod["metadata"]["labels"] for pod in overlay["pods"] if matches(spec["selector"], pod["metadata"]["labels"])
        ]
        assert len(pods) == 1, budget["metadata"]["name"]
        least = groups.get(pods[0]["ray.io/group"], 1)
        assert spec["minAvailable"] <= least, "it would block every eviction"
    budgets = {one["metadata"]["name"] for one in of(overlay, "PodDisruptionBudget")}
    fault_tolerant = any(everywhere(of(overlay, "RayService"), "gcsFaultToleranceOptions"))
    assert ("shoal-queries-head" in budgets) == (bool(of(overlay, "RayService")) and not fault_tolerant)


def test_the_network_is_closed_but_for_who_is_named(overlay: dict[str, Any]) -> None:
    policies = {one["metadata"]["name"]: one["spec"] for one in of(overlay, "NetworkPolicy")}
    pods = [pod["metadata"]["labels"] for pod in overlay["pods"]]
    assert policies["shoal-closed"].keys() == {"podSelector", "policyTypes"}
    assert all(matches(policies["shoal-closed"]["podSelector"], labels) for labels in pods), "a pod is left open"
    for name, spec in policies.items():
        assert any(matches(spec["podSelector"], labels) for labels in pods), f"{name} is about no pod"
        for rule in spec.get("ingress", ()):
            assert rule.get("from"), f"{name} lets everybody in"
            for peer in rule["from"]:
                places, who = peer.get("namespaceSelector"), peer.get("podSelector")
                assert places != {} or who, f"{name} lets every namespace in"
                assert who is None or who.get("matchLabels"), f"{name} lets every pod in"
                if places is not None:
                    assert rule.get("ports"), f"{name} opens every port to another namespace"
                elif who is not None:
                    assert any(matches(who, labels) for labels in pods), f"{name} is for a pod that there is not"
    if "shoal-redis" in policies:  # the operator's Job that clears a deleted cluster's keys has its head's other labels
        (head,) = (one for one in pods if (one.get("ray.io/node-type"), one.get(COMPONENT)) == ("head", "queries"))
        assert matches(policies["shoal-redis"]["podSelector"], {**head, "ray.io/node-type": "redis-cleanup"})
    # Ray's own ports: from the same cluster, and 8265 for operator and deployer. From elsewhere only what is listed.
    from_elsewhere = {
        port["port"] for spec in policies.values() for rule in spec.get("ingress", ()) for peer in rule["from"]
        if "namespaceSelector" in peer for port in rule["ports"]
    }  # fmt: skip
    assert from_elsewhere == {8000, 8080, 8265}
    dashboard = [
        peer["podSelector"]["matchLabels"] for spec in policies.values() for rule in spec.get("ingress", ())
        for peer in rule["from"] if any(port["port"] == 8265 for port in rule.get("ports", ()))
    ]  # fmt: skip
    assert [labels[COMPONENT] for labels in dashboard] == ["kuberay-operator", "deployer"]


def test_nothing_is_placed_on_heads_and_every_cluster_asks_for_a_token(overlay: dict[str, Any]) -> None:
    clusters = [*of(overlay, "RayCluster"), *(one["spec"] for one in of(overlay, "RayService"))]
    for cluster in clusters:
        spec = cluster.get("spec") or cluster["rayClusterConfig"]
        assert spec["headGroupSpec"]["rayStartParams"]["num-cpus"] == "0"
        assert spec["authOptions"] == {"mode": "token", "secretName": "shoal-ray-token"}
        assert spec["autoscalerOptions"]["version"] == "v2"
    for pod in overlay["pods"]:
        is_head = pod["metadata"]["labels"].get("ray.io/node-type") == "head"
        assert pod["spec"]["serviceAccountName"] == ("shoal-head" if is_head else "shoal")
        assert is_head or pod["spec"]["automountServiceAccountToken"] is False, "it has nothing to ask the API server"
        for container in pod["spec"]["containers"]:
            names = {one["name"] for one in container.get("env") or ()}
            if container["name"].startswith("ray-") or container["name"] in {"autoscaler", "deployer"}:
                assert "RAY_AUTH_TOKEN" in names, container["name"]


def test_every_worker_of_queries_has_a_replica_of_each_and_none_is_ever_all_of_them(overlay: dict[str, Any]) -> None:
    values = named(overlay, "ConfigMap", "shoal-settings")["data"]
    least, most = (int(values[f"SHOAL_SERVE_REPLICAS_{which}"]) for which in ("MIN", "MAX"))
    for service in of(overlay, "RayService"):
        config = yaml.safe_load(service["spec"]["serveConfigV2"])
        assert config["proxy_location"] == "EveryNode"
        deployments = [one for application in config["applications"] for one in application["deployments"]]
        assert {one["name"] for one in deployments} == {"Rest", "QueryEmbedder", "Mcp"}
        assert {one["max_replicas_per_node"] for one in deployments} == {1}
        (group,) = service["spec"]["rayClusterConfig"]["workerGroupSpecs"]
        assert least == group["minReplicas"], (
            "a node without a replica answers nobody, a replica without one never runs"
        )
        assert most <= group["maxReplicas"]
        assert sum(one["ray_actor_options"]["num_cpus"] for one in deployments) <= float(group["resources"]["CPU"])
    assert least <= most
    assert "RAY_SERVE_USE_PACK_SCHEDULING_STRATEGY" not in named(overlay, "ConfigMap", "shoal-ray-env")["data"]


def test_ingest_is_one_cluster_that_begins_empty_and_only_queries_come_twice(overlay: dict[str, Any]) -> None:
    (ingest,) = of(overlay, "RayCluster")
    assert ingest["spec"]["upgradeStrategy"] == {"type": "Recreate"}
    assert "gcsFaultToleranceOptions" not in ingest["spec"]
    for service in of(overlay, "RayService"):
        assert [one["name"] for one in yaml.safe_load(service["spec"]["serveConfigV2"])["applications"]] == [
            "rest",
            "mcp",
        ]
    (core,) = (one for one in ingest["spec"]["workerGroupSpecs"] if one["groupName"] == "core")
    assert core["minReplicas"] == core["maxReplicas"] == 1
    assert core["resources"].keys() >= {named(overlay, "ConfigMap", "shoal-settings")["data"]["SHOAL_CORE_RESOURCE"]}


def test_pods_are_given_the_time_that_their_hooks_may_take(overlay: dict[str, Any]) -> None:
    seen = 0
    for pod in overlay["pods"]:
        for container in pod["spec"]["containers"]:
            hook = ((container.get("lifecycle") or {}).get("preStop") or {}).get("exec", {}).get("command")
            if not hook:
                continue
            seen += 1
            longest = float(hook[-1]) + (NOTICE_S + JOIN_NOTICE_S if hook[0] == "shoal" else 0)
            assert pod["spec"]["terminationGracePeriodSeconds"] >= longest + 30, "and Ray has 30 s to end"
            if pod["metadata"]["labels"][COMPONENT] == "ingest":
                is_head = pod["metadata"]["labels"]["ray.io/node-type"] == "head"
                assert ("--join" in hook) == (not is_head), "a node that goes alone must not stop all of ingest"
    assert seen >= 3


def test_what_is_kept_where_the_root_is_read_only_is_on_a_volume(overlay: dict[str, Any]) -> None:
    for pod in overlay["pods"]:
        for container in pod["spec"]["containers"]:
            mounts = {one["mountPath"] for one in container["volumeMounts"]}
            assert "/tmp" in mounts, container["name"]
            if container["name"] != "autoscaler" and container["name"] != "deployer":
                assert "/var/lib/shoal" in mounts, container["name"]
    assert re.search(r"^ENV .*?HOME=/var/lib/shoal", (ROOT / "Dockerfile").read_text(), re.M | re.S)


def test_a_config_of_the_deployer_is_checked_by_its_own_command(tmp_path: Path) -> None:
    """`shoal deploy --check` is what a person runs on a config of their own."""
    file = tmp_path / "serve.yaml"
    file.write_text((KUBERAY / "base/ingest/serve.yaml").read_text().replace("import_path:", "import_paths:"))
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", "from shoal.cluster.cli import main; main()", "deploy", str(file),
         "--check"],
        capture_output=True, text=True, timeout=110, cwd=ROOT,
    )  # fmt: skip
    assert done.returncode == 2, done.stderr
    assert "import_paths" in done.stderr
