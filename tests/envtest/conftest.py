"""One control plane for each overlay, to which the overlay was applied as docs/deploying.md says."""

from __future__ import annotations

import secrets
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest

from tests.envtest.stand_ins import Dashboards, Kubelet
from tests.fixtures.kubernetes import WAIT_S, ControlPlane
from tests.fixtures.manifests import KUBERAY, OVERLAYS

SECRETS = {
    "shoal-secrets": "OPENAI_API_KEY",
    "shoal-ray-token": "auth_token",
    "shoal-redis": "password",
    "shoal-metrics-key": "key",
}


@dataclass
class Applied:
    """An overlay on a control plane. `said` is what kubectl said as it applied it."""

    name: str
    namespace: str
    plane: ControlPlane
    kubelet: Kubelet
    dashboards: Dashboards
    said: str

    @property
    def directory(self) -> Path:
        return KUBERAY / "overlays" / self.name

    def get(self, kind: str, *words: str) -> list[dict[str, Any]]:
        return self.plane.get(kind, self.namespace, *words)

    def one(self, kind: str, name: str) -> dict[str, Any]:
        (found,) = (one for one in self.get(kind) if one["metadata"]["name"] == name)
        return found

    def kubectl(self, *words: str, given: Any = None) -> str:
        return self.plane.kubectl("-n", self.namespace, *words, given=given)

    def until(self, is_so: Callable[[], bool], timeout_s: float = WAIT_S) -> None:
        """Lets pods run, and returns once `is_so`. Raises StartFailed."""

        def looked() -> bool:
            self.kubelet.tick()
            return is_so()

        self.plane.until(looked, timeout_s)


@pytest.fixture(scope="module", params=OVERLAYS)
def applied(
    request: pytest.FixtureRequest, kubernetes: object, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Applied]:
    plane = ControlPlane(tmp_path_factory.mktemp("kubernetes") / request.param)
    token = secrets.token_hex(32)
    dashboards = Dashboards(token)
    try:
        plane.install_operator(dashboards.address)
        directory = KUBERAY / "overlays" / request.param
        plane.kubectl("apply", "-f", str(directory / "namespace.yaml"))
        (namespace,) = (name for name in plane.names("namespaces", "") if name.startswith("shoal"))
        for name, key in SECRETS.items():
            value = token if key == "auth_token" else "secret"
            plane.kubectl("-n", namespace, "create", "secret", "generic", name, f"--from-literal={key}={value}")
        tried = plane.kubectl("apply", "-k", str(directory), "--dry-run=server", "--validate=strict")
        said = plane.kubectl("apply", "-k", str(directory), "--validate=strict")
        assert tried.replace(" (server dry run)", "") == said
        yield Applied(request.param, namespace, plane, Kubelet(plane, namespace), dashboards, said)
    finally:
        plane.close()
        dashboards.close()
