"""Each overlay on a real API server, and what the real KubeRay operator makes of it (docs/deploying.md).

The static checks (tests/unit/manifests) say what a cluster should do; here it does it. No container runs: what a node
or Ray itself would do is said by the stand-ins, so nothing here is about Shoal's own processes. The tests of an overlay
build on each other, in this order.
"""

from __future__ import annotations

import json
import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
import yaml

from tests.envtest.conftest import Applied
from tests.fixtures.kubernetes import OPERATOR_NAMESPACE, KubectlFailed
from tests.fixtures.manifests import KUBERAY

pytestmark = pytest.mark.timeout(900)  # on a busy machine: it waits for what it waits for

NAME, COMPONENT, NODE_TYPE = "app.kubernetes.io/name", "app.kubernetes.io/component", "ray.io/node-type"
GROUPS = {  # (component, group): pods, in each overlay
    "dev": {("ingest", "core"): 1, ("ingest", "flow"): 1, ("queries", "queries"): 1},
    "prod": {("ingest", "core"): 1, ("ingest", "flow"): 3, ("queries", "queries"): 3},
    "single-cluster": {("ingest", "core"): 1, ("ingest", "flow"): 2},
}
RAY_START = {  # what each group's Ray is told that it may place
    "headgroup": "--num-cpus=0 ", "core": "--num-cpus=0 ", "flow": "--num-cpus=3 ", "queries": "--num-cpus=3 ",
}  # fmt: skip
TOKEN = [
    {"name": "RAY_AUTH_MODE", "value": "token"},
    {"name": "RAY_AUTH_TOKEN", "valueFrom": {"secretKeyRef": {"name": "shoal-ray-token", "key": "auth_token"}}},
]
# What the operator says while it and its caches catch up with each other. It tries again at once.
PASSING = ("found 0 head", "the object has been modified", "already exists")


def ray_pods(applied: Applied, component: str = "") -> list[dict[str, Any]]:
    selector = f"{NODE_TYPE} in (head,worker)" + (f",{COMPONENT}={component}" if component else "")
    return applied.get("pods", "-l", selector)


def names(found: list[dict[str, Any]]) -> set[str]:
    return {one["metadata"]["name"] for one in found}


def counted(pods: list[dict[str, Any]]) -> dict[tuple[str, str], int]:
    labels = [pod["metadata"]["labels"] for pod in pods]
    return dict(Counter((one[COMPONENT], one["ray.io/group"]) for one in labels))


def wanted(applied: Applied) -> dict[tuple[str, str], int]:
    heads = {(component, "headgroup"): 1 for component, _ in GROUPS[applied.name]}
    return heads | GROUPS[applied.name]


def conditions(one: dict[str, Any]) -> dict[str, str]:
    return {each["type"]: each["status"] for each in one.get("status", {}).get("conditions", ())}


def rendered(applied: Applied, *kinds: str) -> list[dict[str, Any]]:
    objects = yaml.safe_load_all(applied.kubectl("kustomize", str(applied.directory)))
    return [one for one in objects if one["kind"] in kinds]


def cluster_specs(applied: Applied) -> dict[str, dict[str, Any]]:
    """The specs of Ray clusters as written, by component."""
    return {
        one["metadata"]["labels"][COMPONENT]: one["spec"].get("rayClusterConfig", one["spec"])
        for one in rendered(applied, "RayCluster", "RayService")
    }


def lacks(made: Any, asked: Any, where: str = "") -> list[str]:
    """What of `asked` is not in `made`; lists by content, whatever the operator adds to them."""
    if isinstance(asked, dict):
        if not isinstance(made, dict):
            return [where]
        return [each for key in asked for each in lacks(made.get(key), asked[key], f"{where}.{key}")]
    if isinstance(asked, list):
        return [
            f"{where}[{number}]" for number, one in enumerate(asked)
            if not any(lacks(each, one) == [] for each in made or ())
        ]  # fmt: skip
    return [] if made == asked else [f"{where}: {made!r}, not {asked!r}"]


def endpoints(applied: Applied, service: str) -> set[str]:
    """The pods behind a Service."""
    slices = applied.get("endpointslices", "-l", f"kubernetes.io/service-name={service}")
    return {each["targetRef"]["name"] for one in slices for each in one["endpoints"] or ()}


def test_everything_is_taken_just_as_it_is_written(applied: Applied) -> None:
    lines = applied.said.splitlines()
    assert len(lines) == len(list(yaml.safe_load_all(applied.kubectl("kustomize", str(applied.directory))))) > 20
    assert [
        line for line in lines if not line.endswith((" created", "namespace/" + applied.namespace + " unchanged"))
    ] == []
    # Neither a default nor an admission plugin changes a word of it, and the operator only one that says nothing: a
    # second apply begins nothing anew.
    _, differs, said = applied.plane.try_kubectl("diff", "-k", str(applied.directory))
    changed = {line[1:].strip() for line in differs.splitlines() if line[:1] in "+-" and line[:3] not in {"+++", "---"}}
    assert said == ""
    assert {each for each in changed if not each.startswith("generation: ")} <= {"scaleStrategy: {}"}, differs


def test_the_api_server_is_as_strict_as_it_should_be(applied: Applied) -> None:
    cluster = rendered(applied, "RayCluster")[0]
    cluster["spec"]["workerGroupSpecs"][1]["maxReplica"] = 3
    with pytest.raises(KubectlFailed, match="unknown field"):
        applied.kubectl("apply", "-f", "-", "--dry-run=server", "--validate=strict", given=cluster)
    with pytest.raises(KubectlFailed, match="violates PodSecurity"):
        applied.kubectl("run", "root", "--image=registry.example/any", "--dry-run=server")


def test_the_operator_makes_the_pods_that_are_asked_for(applied: Applied) -> None:
    applied.plane.until(lambda: counted(ray_pods(applied)) == wanted(applied))
    specs = cluster_specs(applied)
    priorities = {one["metadata"]["name"]: one["value"] for one in applied.get("priorityclasses")}
    for pod in ray_pods(applied):
        labels, spec = pod["metadata"]["labels"], pod["spec"]
        asked = specs[labels[COMPONENT]]
        is_head = labels[NODE_TYPE] == "head"
        groups = [asked["headGroupSpec"]] if is_head else asked["workerGroupSpecs"]
        (template,) = (one["template"] for one in groups if is_head or one["groupName"] == labels["ray.io/group"])
        assert lacks(pod, template) == [], pod["metadata"]["name"]
        assert spec["priority"] == priorities[spec["priorityClassName"]]
        assert [one["name"] for one in spec["containers"]] == (
            ["ray-head", "autoscaler"] if is_head else ["ray-worker"]
        )
        assert [one["name"] for one in spec.get("initContainers", ())] == ([] if is_head else ["wait-gcs-ready"])
        assert any(one["name"].startswith("kube-api-access") for one in spec["volumes"]) == is_head
        if is_head:
            assert lacks(spec["containers"][1], {"resources": asked["autoscalerOptions"]["resources"]}) == []
        (start,) = spec["containers"][0]["args"]
        assert RAY_START[labels["ray.io/group"]] in f"{start} ", start
        assert ("--resources='{\"shoal_core\":1}'" in start) == (labels["ray.io/group"] == "core")
        for container in [*spec.get("initContainers", ()), *spec["containers"]]:
            # The restricted standard the API server saw to; these it does not ask for.
            assert container["securityContext"]["readOnlyRootFilesystem"] is True
            assert "memory" in container["resources"]["limits"]
            assert lacks(container["env"], TOKEN) == []


def test_only_the_head_of_queries_in_prod_keeps_what_it_knows_in_redis(applied: Applied) -> None:
    for pod in applied.get("pods", "-l", f"{NODE_TYPE}=head"):
        is_kept = applied.name == "prod" and pod["metadata"]["labels"][COMPONENT] == "queries"
        assert pod["metadata"]["annotations"]["ray.io/ft-enabled"] == ("true" if is_kept else "false")
        env = {one["name"]: one for one in pod["spec"]["containers"][0]["env"]}
        assert ("RAY_REDIS_ADDRESS" in env) == is_kept
        if is_kept:
            assert env["RAY_REDIS_ADDRESS"]["value"] == "redis:6379"
            assert env["REDIS_PASSWORD"]["valueFrom"]["secretKeyRef"] == {"name": "shoal-redis", "key": "password"}
            cluster = pod["metadata"]["labels"]["ray.io/cluster"]
            # Its own for each cluster: two of them, in an upgrade, do not write over each other.
            (uid,) = (one["metadata"]["uid"] for one in applied.get("raycluster") if one["metadata"]["name"] == cluster)
            assert env["RAY_external_storage_namespace"]["value"] == uid


def test_clusters_become_ready_and_the_operator_applies_the_serve_config(applied: Applied) -> None:
    def is_ready() -> bool:
        clusters, services = applied.get("raycluster"), applied.get("rayservice")
        ready = all(one.get("status", {}).get("state") == "ready" for one in clusters)
        return ready and all(conditions(one).get("Ready") == "True" for one in services)

    applied.until(is_ready)
    for cluster in applied.get("raycluster"):
        found = conditions(cluster)
        assert (found["HeadPodReady"], found["RayClusterProvisioned"]) == ("True", "True")
        component = cluster["metadata"]["labels"][COMPONENT]
        workers = sum(count for (which, _), count in GROUPS[applied.name].items() if which == component)
        assert cluster["status"]["readyWorkerReplicas"] == workers
    services = rendered(applied, "RayService")
    assert len(applied.dashboards.configs) == len(services) == (0 if applied.name == "single-cluster" else 1)
    for service in services:
        # With the token; to the head of its cluster; and what it sends means what is written.
        assert list(applied.dashboards.configs.values()) == [yaml.safe_load(service["spec"]["serveConfigV2"])]
    assert applied.dashboards.refused == applied.dashboards.other == []


def test_services_lead_to_the_pods_that_they_are_for(applied: Applied) -> None:
    heads = {
        pod["metadata"]["labels"][COMPONENT]: pod["metadata"]["name"]
        for pod in applied.get("pods", "-l", f"{NODE_TYPE}=head")
    }
    (deployer,) = rendered(applied, "Deployment")
    env = {one["name"]: one.get("value") for one in deployer["spec"]["template"]["spec"]["containers"][0]["env"]}
    assert env["RAY_DASHBOARD_ADDRESS"] == "http://shoal-ingest-head-svc:8265"
    applied.plane.until(lambda: endpoints(applied, "shoal-ingest-head-svc") == {heads["ingest"]})
    assert 8265 in {port["port"] for port in applied.one("services", "shoal-ingest-head-svc")["spec"]["ports"]}
    if applied.name == "single-cluster":
        applied.plane.until(lambda: endpoints(applied, "shoal") == {heads["ingest"]})
        return
    workers = names(applied.get("pods", "-l", f"{COMPONENT}=queries,{NODE_TYPE}=worker"))
    applied.plane.until(lambda: endpoints(applied, "shoal-queries-serve-svc") == workers)
    # The operator makes this one too, by its own application's name and not by ours, so it finds nobody. Nothing of
    # ours uses it; docs/deploying.md says how a person reaches the dashboard.
    assert endpoints(applied, "shoal-queries-head-svc") == set()
    for monitor in rendered(applied, "ServiceMonitor"):
        serves = applied.one("services", "shoal-queries-serve-svc")
        assert lacks(serves["metadata"]["labels"], monitor["spec"]["selector"]["matchLabels"]) == []
        assert {one["port"] for one in monitor["spec"]["endpoints"]} <= {one["name"] for one in serves["spec"]["ports"]}


def test_the_deployer_runs_and_an_audit_can_be_run_now(applied: Applied) -> None:
    applied.kubectl("create", "job", "--from=cronjob/shoal-check", "check-now")
    applied.until(lambda: conditions(applied.one("jobs", "check-now")).get("Complete") == "True")
    applied.until(lambda: conditions(applied.one("deployments", "shoal-deployer")).get("Available") == "True")


def test_every_policy_is_about_pods_that_there_are_and_the_operator_is_let_in(applied: Applied) -> None:
    for policy in rendered(applied, "NetworkPolicy"):
        selector = policy["spec"]["podSelector"]
        words = [f"{key}={value}" for key, value in selector.get("matchLabels", {}).items()]
        words += [f"{one['key']} in ({','.join(one['values'])})" for one in selector.get("matchExpressions", ())]
        assert applied.get("pods", "-l", ",".join(words)), policy["metadata"]["name"]
    (dashboard,) = (one for one in rendered(applied, "NetworkPolicy") if one["metadata"]["name"] == "shoal-dashboard")
    (who,) = (
        peer["podSelector"]["matchLabels"]
        for rule in dashboard["spec"]["ingress"] for peer in rule["from"] if "namespaceSelector" in peer
    )  # fmt: skip
    operators = applied.plane.get("pods", OPERATOR_NAMESPACE, "-l", ",".join(f"{key}={who[key]}" for key in who))
    assert len(operators) == 1  # as the operator's own manifests install it


def test_budgets_hold_heads_and_core_and_let_the_others_go(applied: Applied) -> None:
    def is_known(budget: dict[str, Any]) -> bool:
        status = budget.get("status", {})
        return status.get("currentHealthy", 0) == status.get("expectedPods", 0) > 0

    applied.until(lambda: all(is_known(one) for one in applied.get("poddisruptionbudgets")))
    for pod in ray_pods(applied):
        labels, name = pod["metadata"]["labels"], pod["metadata"]["name"]
        eviction = {
            "apiVersion": "policy/v1", "kind": "Eviction", "metadata": {"name": name},
            "deleteOptions": {"dryRun": ["All"]},
        }  # fmt: skip
        path = f"/api/v1/namespaces/{applied.namespace}/pods/{name}/eviction"
        code, _, said = applied.plane.try_kubectl("create", "--raw", path, "-f", "-", given=eviction)
        may_go = labels["ray.io/group"] in {"flow", "queries"} or (
            applied.name == "prod" and labels[COMPONENT] == "queries"  # Redis remembers what its head knew
        )
        assert (code == 0) == may_go, f"{name}: {said}"
        assert may_go or "disruption budget" in said


def test_a_budget_of_another_kind_would_hold_every_pod(applied: Applied) -> None:
    """Why kuberay/ has numbers of `minAvailable` only: Ray's pods have no controller with a scale."""
    budget = {
        "apiVersion": "policy/v1", "kind": "PodDisruptionBudget", "metadata": {"name": "another"},
        "spec": {"maxUnavailable": 1, "selector": {"matchLabels": {"ray.io/group": "flow"}}},
    }  # fmt: skip
    applied.kubectl("create", "-f", "-", given=budget)
    applied.plane.until(
        lambda: conditions(applied.one("poddisruptionbudgets", "another")).get("DisruptionAllowed") == "False"
    )
    status = applied.one("poddisruptionbudgets", "another")["status"]
    assert (status["disruptionsAllowed"], status["conditions"][0]["reason"]) == (0, "SyncFailed")
    applied.kubectl("delete", "poddisruptionbudget", "another")


def test_the_autoscaler_may_scale_and_an_apply_takes_nothing_from_it(applied: Applied) -> None:
    def may(account: str, *words: str) -> bool:
        who = f"--as=system:serviceaccount:{applied.namespace}:{account}"
        return applied.plane.try_kubectl("-n", applied.namespace, "auth", "can-i", *words, who)[1].strip() == "yes"

    assert may("shoal-head", "patch", "rayclusters.ray.io/shoal-ingest")
    assert may("shoal-head", "list", "pods")
    assert not may("shoal-head", "list", "secrets")
    assert not may("shoal", "list", "pods")
    more = GROUPS[applied.name]["ingest", "flow"] + 1
    path = {"op": "replace", "path": "/spec/workerGroupSpecs/1/replicas", "value": more}
    applied.kubectl(
        "patch", "raycluster", "shoal-ingest", "--type=json", "-p", json.dumps([path]),
        f"--as=system:serviceaccount:{applied.namespace}:shoal-head",
    )  # fmt: skip
    applied.until(lambda: counted(ray_pods(applied, "ingest")).get(("ingest", "flow")) == more)
    # Whoever applies the manifests again sets `replicas` back. The operator ends no pod for that: the autoscaler may.
    before = names(ray_pods(applied))
    applied.kubectl("apply", "-k", str(applied.directory))

    def is_seen() -> bool:
        cluster = applied.one("raycluster", "shoal-ingest")
        return cluster["status"].get("observedGeneration") == cluster["metadata"]["generation"]

    applied.plane.until(is_seen)
    applied.plane.until(lambda: applied.one("raycluster", "shoal-ingest")["status"]["desiredWorkerReplicas"] < more + 1)
    pods = ray_pods(applied)
    assert names(pods) == before
    assert not any("deletionTimestamp" in pod["metadata"] for pod in pods)


def test_a_changed_setting_begins_ingest_anew_and_a_second_cluster_of_queries(applied: Applied, tmp_path: Path) -> None:
    tree = shutil.copytree(KUBERAY, tmp_path / "kuberay", ignore=shutil.ignore_patterns("tools"))
    file = tree / "base" / "foundation" / "settings.env"
    file.write_text(file.read_text() + "SHOAL_LOG_LEVEL=DEBUG\n")
    old = {component: ray_pods(applied, component) for component, _ in GROUPS[applied.name]}
    applied.kubectl("apply", "-k", str(tree / "overlays" / applied.name))

    # Ingest: all are told at once, and no worker begins while one of before is there, though its head be gone.
    def ending() -> set[str]:
        return {
            pod["metadata"]["name"] for pod in ray_pods(applied, "ingest") if "deletionTimestamp" in pod["metadata"]
        }

    applied.plane.until(lambda: ending() == names(old["ingest"]))
    (head,) = (one["metadata"]["name"] for one in old["ingest"] if one["metadata"]["labels"][NODE_TYPE] == "head")
    applied.plane.try_kubectl("-n", applied.namespace, "delete", "pod", head, "--force", "--grace-period=0")
    applied.plane.until(lambda: bool(names(ray_pods(applied, "ingest")) - names(old["ingest"])))
    begun = [one for one in ray_pods(applied, "ingest") if one["metadata"]["name"] not in names(old["ingest"])]
    assert [one["metadata"]["labels"][NODE_TYPE] for one in begun] == ["head"]
    applied.until(lambda: counted(ray_pods(applied, "ingest")).get(("ingest", "flow")) is not None and not ending())
    applied.until(lambda: applied.one("raycluster", "shoal-ingest")["status"].get("state") == "ready")
    (settings,) = {
        source["configMapRef"]["name"]
        for pod in ray_pods(applied, "ingest") for source in pod["spec"]["containers"][0]["envFrom"]
        if source.get("configMapRef", {}).get("name", "").startswith("shoal-settings")
    }  # fmt: skip
    assert applied.one("configmaps", settings)["data"]["SHOAL_LOG_LEVEL"] == "DEBUG"

    if (
        "queries" in old
    ):  # the Service moves over once the new cluster serves, and the old one stays for those on their way
        applied.until(lambda: bool(endpoints(applied, "shoal-queries-serve-svc").isdisjoint(names(old["queries"]))))
        pods = ray_pods(applied, "queries")
        assert names(old["queries"]) <= names(pods)
        assert not any("deletionTimestamp" in pod["metadata"] for pod in pods)
        assert len(applied.dashboards.configs) == 2


def test_nobody_complained(applied: Applied) -> None:
    events = applied.get("events", "--field-selector=type=Warning")
    passing = (*PASSING, "another", "check-now")  # the last two: the budget and the Job of these tests
    warnings = [f"{one['involvedObject']['name']}: {one['reason']}: {one['message']}" for one in events]
    assert [warning for warning in warnings if not any(word in warning for word in passing)] == []
    errors = [str(line.get("error", line)) for line in applied.plane.operator_log() if line["level"] == "error"]
    assert [error for error in errors if not any(word in error for word in PASSING)] == []


def test_it_is_removed_as_the_page_says(applied: Applied) -> None:
    if applied.name != "single-cluster":
        applied.kubectl("delete", "rayservice", "shoal-queries", "--wait=false")
        if applied.name == "prod":
            # The operator clears the cluster's keys in Redis, from a pod that may be there and reach it.
            applied.until(lambda: bool(applied.get("pods", "-l", f"{NODE_TYPE}=redis-cleanup")))
            (policy,) = (one for one in rendered(applied, "NetworkPolicy") if one["metadata"]["name"] == "shoal-redis")
            for pod in applied.get("pods", "-l", f"{NODE_TYPE}=redis-cleanup"):
                labels = pod["metadata"]["labels"]
                assert lacks(labels, policy["spec"]["podSelector"]["matchLabels"]) == []
                (one,) = policy["spec"]["podSelector"]["matchExpressions"]
                assert labels[one["key"]] in one["values"]
        applied.until(lambda: names(applied.get("raycluster")) == {"shoal-ingest"})
        applied.until(lambda: applied.get("rayservice") == [])
    applied.plane.kubectl("delete", "-k", str(applied.directory), "--ignore-not-found", "--wait=false")
    applied.until(lambda: applied.namespace not in applied.plane.names("namespaces", ""))
    assert not any(name.startswith("shoal") for name in applied.plane.names("priorityclasses", ""))
