"""The CRDs of a newer release of KubeRay, where they are at hand, as an API server reads them: with their CEL rules."""

from __future__ import annotations

import gzip
from pathlib import Path

import pytest

from tests.fixtures.kubernetes import ControlPlane
from tests.fixtures.manifests import KUBERAY, OVERLAYS, SHARED_CRDS

pytestmark = pytest.mark.timeout(900)


@pytest.mark.skipif(not SHARED_CRDS.is_dir(), reason="no CRDs of a newer release are at hand")
def test_they_take_every_overlay(kubernetes: object, tmp_path: Path) -> None:
    crds = tmp_path / "crds"
    crds.mkdir()
    for path in SHARED_CRDS.glob("*.yaml.gz"):
        (crds / path.stem).write_bytes(gzip.decompress(path.read_bytes()))
    plane = ControlPlane(tmp_path / "plane")
    try:
        plane.install_crds(crds)
        for name in OVERLAYS:
            overlay = KUBERAY / "overlays" / name
            plane.kubectl("apply", "-f", str(overlay / "namespace.yaml"))
            said = plane.kubectl("apply", "-k", str(overlay), "--dry-run=server", "--validate=strict")
            assert "raycluster.ray.io/shoal-ingest created (server dry run)" in said
            assert ("rayservice.ray.io/shoal-queries created (server dry run)" in said) == (name != "single-cluster")
    finally:
        plane.close()
