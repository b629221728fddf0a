"""The overlays as rendered and checked, once for all tests here."""

from __future__ import annotations

from typing import Any

import pytest

from tests.fixtures.manifests import KUBERAY, OVERLAYS, check


@pytest.fixture(scope="session")
def checked(manifests: object) -> dict[str, Any]:
    """What the strict check said of every overlay."""
    return check([KUBERAY / "overlays" / name for name in OVERLAYS])


@pytest.fixture(params=OVERLAYS)
def overlay(request: pytest.FixtureRequest, checked: dict[str, Any]) -> dict[str, Any]:
    """{name, objects, pods} of one overlay."""
    return {"name": request.param, **checked["overlays"][str(KUBERAY / "overlays" / request.param)]}
