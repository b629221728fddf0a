"""Unit tests run without Ray: what needs it belongs into tests/integration."""

from __future__ import annotations

import sys
from collections.abc import Iterator
from typing import Any, NoReturn

import pytest

from tests.fixtures import damage


@pytest.fixture(autouse=True)
def no_ray(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    """`ray.init` fails a unit test; one that imports Ray late and starts it all the same fails at its end."""

    def refuse(*_: Any, **__: Any) -> NoReturn:
        pytest.fail("a unit test must not start Ray: move it to tests/integration")

    if "ray" in sys.modules:
        monkeypatch.setattr("ray.init", refuse)
    yield
    if "ray" in sys.modules and sys.modules["ray"].is_initialized():
        sys.modules["ray"].shutdown()
        refuse()


@pytest.fixture(scope="session")
def whole(tmp_path_factory: pytest.TempPathFactory) -> str:
    """Sound tables (tests/fixtures/damage.py) to look at or to copy; nobody writes to them."""
    place = str(tmp_path_factory.mktemp("whole") / "lancedb")
    damage.build(place)
    return place
