"""The manifests pass what a cluster would hold them against, and the check is shown to see what it is there for."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest

from tests.fixtures.manifests import KUBERAY, check

# (where, what stands there, a mistake, what must be said of it)
MISTAKES = {
    "a typo in Ray's kind": ("base/ingest/ray-cluster.yaml", "maxReplicas: 6", "maxReplica: 6", "maxReplica"),
    "a typo below a pod": (
        "base/queries/ray-service.yaml",
        "terminationGracePeriodSeconds: 60",
        "terminationGraceSeconds: 60",
        "terminationGraceSeconds",
    ),
    "a wrong case": ("base/ingest/disruption.yaml", "minAvailable: 1", "minavailable: 1", "minavailable"),
    "an unknown autoscaler": ("base/ingest/ray-cluster.yaml", "version: v2", "version: v3", "v3"),
    "an upgrade strategy that is none": (
        "base/queries/ray-service.yaml",
        "type: NewCluster}",
        "type: Recreate}",
        "Recreate",
    ),
    "a strategy where the operator refuses it": (
        "base/queries/ray-service.yaml",
        "    rayVersion: 2.60.0",
        "    rayVersion: 2.60.0\n    upgradeStrategy: {type: Recreate}",
        "upgradeStrategy cannot be set",
    ),
    "a token with a Ray that has none": (
        "base/ingest/ray-cluster.yaml",
        "rayVersion: 2.60.0",
        "rayVersion: 2.51.0",
        "minimum Ray version is 2.52.0",
    ),
    "more at least than at most": (
        "base/ingest/ray-cluster.yaml",
        "minReplicas: 1",
        "minReplicas: 9",
        "greater than maxReplicas",
    ),
    "a restart policy against autoscaler v2": (
        "base/ingest/ray-cluster.yaml",
        "        priorityClassName: shoal-ingest\n        # The drain",
        "        restartPolicy: Always\n        # The drain",
        "restartPolicy",
    ),
    "root": (
        "base/ingest/ray-cluster.yaml",
        "runAsNonRoot: true, runAsUser: 10001",
        "runAsNonRoot: false, runAsUser: 0",
        "not restricted",
    ),
    "capabilities": (
        "base/foundation/cron-jobs.yaml",
        "capabilities: {drop: [ALL]}",
        "capabilities: {add: [SYS_ADMIN]}",
        "not restricted",
    ),
    "a root that may be written": (
        "base/ingest/deployer.yaml",
        "readOnlyRootFilesystem: true",
        "readOnlyRootFilesystem: false",
        "may write its root",
    ),
    "a time that never comes": ("base/foundation/cron-jobs.yaml", '"17 2 * * *"', '"17 25 * * *"', "schedule"),
    "a port that is none": ("base/foundation/network-policies.yaml", "port: 8265}", "port: 82650}", "82650"),
    "a volume that is not there": (
        "base/ingest/deployer.yaml",
        "name: tmp, mountPath",
        "name: temp, mountPath",
        "volumeMounts",
    ),
    "a quantity that is none": ("base/ingest/cache.yaml", "storage: 20Gi", "storage: 20 GB", "quantit"),
    "memory without a bound": ("base/ingest/deployer.yaml", ", limits: {memory: 384Mi}", "", "lacks a request"),
    "a file that `kubectl apply -k` may not read": (
        "overlays/dev/kustomization.yaml",
        "namespace: shoal-dev",
        "namespace: shoal-dev\nconfigurations: [../../base/foundation/kustomizeconfig.yaml]",
        "is not in or below",
    ),
    "a kind that nobody checks": (
        "base/ingest/cache.yaml",
        "kind: PersistentVolumeClaim",
        "kind: PersistentVolumeClaims",
        "kind",
    ),
}


def test_every_overlay_is_valid(checked: dict[str, Any]) -> None:
    assert checked["findings"] == []
    assert all(len(one["objects"]) > 20 and len(one["pods"]) >= 6 for one in checked["overlays"].values())


def test_every_mistake_is_seen(manifests: object, tmp_path: Path) -> None:
    places = {}
    for number, (name, (file, right, wrong, _)) in enumerate(MISTAKES.items()):
        tree = tmp_path / str(number)
        shutil.copytree(KUBERAY, tree, ignore=shutil.ignore_patterns("tools"))
        text = (tree / file).read_text()
        assert right in text, f"{name}: {file} no longer says {right!r}"
        (tree / file).write_text(text.replace(right, wrong))
        places[name] = tree / "overlays" / "dev"
    found = check(list(places.values()))["findings"]
    unseen = [
        f"{name}: {[line for line in found if line.startswith(f'{place}:')]}"
        for name, place in places.items()
        if not any(line.startswith(f"{place}:") and MISTAKES[name][3] in line for line in found)
    ]
    assert unseen == []


@pytest.mark.parametrize("key", ["redisAddress", "redisPassword"])
def test_a_typo_in_fault_tolerance_is_seen(key: str, manifests: object, tmp_path: Path) -> None:
    shutil.copytree(KUBERAY, tmp_path / "k", ignore=shutil.ignore_patterns("tools"))
    file = tmp_path / "k" / "components/gcs-fault-tolerance/kustomization.yaml"
    file.write_text(file.read_text().replace(key, key[:-1]))
    found = check([tmp_path / "k/overlays/prod"])["findings"]
    assert any(key[:-1] in line for line in found), found
