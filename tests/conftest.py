"""What every test stands on: a clean environment, and the real servers for those that ask for them.

Settings come from the test alone: variables and settings files of the person or machine that runs the tests
are not seen. A real part that can't be had skips its tests with the reason, and fails them in CI.
"""

from __future__ import annotations

import contextlib
import logging
import os
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, TypeVar

import pytest
from hypothesis import HealthCheck
from hypothesis import settings as hypothesis_settings

from shoal.settings import Settings
from tests.fixtures.browser import browser
from tests.fixtures.browser import chromium as chromium_program
from tests.fixtures.kafka_server import KafkaServer, kafka_jars
from tests.fixtures.kubernetes import kubernetes_programs
from tests.fixtures.manifests import manifest_check
from tests.fixtures.parts import PartUnavailable
from tests.fixtures.prometheus import program
from tests.fixtures.s3_server import S3Server, s3_program

if TYPE_CHECKING:
    from playwright.sync_api import Browser

# No property depends on how busy the machine is. All else stays as it was: in CI that is another profile.
hypothesis_settings.register_profile(
    "unhurried", hypothesis_settings.default, deadline=None, suppress_health_check=[HealthCheck.too_slow]
)
hypothesis_settings.load_profile("unhurried")

T = TypeVar("T")

LEAKY_PREFIXES = ("AWS_", "KAFKA_", "OPENAI_", "SHOAL_")
LEAKY_NAMES = ("LANCEDB_PATH", "GO_BACKEND_URL", "RAY_ADDRESS")
KEPT_PREFIX = "SHOAL_TEST_"  # for the tests themselves: SHOAL_TEST_DATA

PARTS: dict[str, Callable[[], object]] = {
    "kafka_server": kafka_jars, "s3_server": s3_program, "chromium": chromium_program, "manifests": manifest_check,
    "kubernetes": kubernetes_programs,
}  # fmt: skip
INTEGRATION = {Path(__file__).parent / name for name in ("integration", "parts")}


def pytest_configure() -> None:
    for name in list(os.environ):
        if (name.startswith(LEAKY_PREFIXES) or name in LEAKY_NAMES) and not name.startswith(KEPT_PREFIX):
            del os.environ[name]
    os.environ["AWS_EC2_METADATA_DISABLED"] = "true"  # else boto3 without keys asks the network for some


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        needs_parts = not PARTS.keys().isdisjoint(getattr(item, "fixturenames", ()))
        if needs_parts or not INTEGRATION.isdisjoint(item.path.parents):
            item.add_marker(pytest.mark.integration)


def pytest_collection_finish(session: pytest.Session) -> None:
    """Builds the parts that the chosen tests need before the first test's clock runs."""
    if session.config.option.collectonly:
        return
    wanted = {name for item in session.items for name in getattr(item, "fixturenames", ())}
    for name in sorted(wanted & PARTS.keys()):
        try:
            PARTS[name]()
        except PartUnavailable:
            pass  # the fixture says so, at the test that asked for it


@pytest.fixture(autouse=True)
def no_settings_files(monkeypatch: pytest.MonkeyPatch) -> None:
    """The `.env` and `shoal.toml` of whoever runs the tests are not read. `settings_files` brings them back."""
    monkeypatch.setitem(Settings.model_config, "env_file", None)
    monkeypatch.setitem(Settings.model_config, "toml_file", None)


@pytest.fixture(autouse=True)
def logs_left_alone() -> None:
    """An actor made in a test's own process, or for a whole module, sets up `shoal`'s logger; `caplog` must hear it."""
    root = logging.getLogger("shoal")
    root.handlers.clear()
    root.propagate = True
    root.setLevel(logging.NOTSET)


@pytest.fixture
def settings_files(no_settings_files: None, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """An empty working directory in which `.env` and `shoal.toml` are read."""
    monkeypatch.setitem(Settings.model_config, "env_file", ".env")
    monkeypatch.setitem(Settings.model_config, "toml_file", "shoal.toml")
    monkeypatch.chdir(tmp_path)
    return tmp_path


@pytest.fixture(scope="session")
def kafka_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[KafkaServer]:
    """A real Kafka for the whole run: use topics and groups of your own, and leave it running."""
    server = _or_reason(lambda: KafkaServer(tmp_path_factory.mktemp("kafka") / "server"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[S3Server]:
    """A real S3 server for the whole run: use buckets of your own."""
    server = _or_reason(lambda: S3Server(tmp_path_factory.mktemp("s3") / "server"))
    yield server
    server.close()


@pytest.fixture(scope="session")
def promtool() -> str:
    """Prometheus' own tool; where it is, its server is too (tests.fixtures.prometheus)."""
    return _or_reason(lambda: program("promtool"))


@pytest.fixture(scope="session")
def manifests() -> tuple[str, tuple[str, ...]]:
    """The strict check of manifests: its program, and the CRDs."""
    return _or_reason(manifest_check)


@pytest.fixture(scope="session")
def kubernetes() -> Path:
    """The folder of Kubernetes' and the operator's programs (tests/envtest)."""
    return _or_reason(kubernetes_programs)


@pytest.fixture(scope="module")
def chromium() -> Iterator[Browser]:
    """A real Chromium: take a context of your own."""
    with contextlib.ExitStack() as stack:
        yield _or_reason(lambda: stack.enter_context(browser()))


def _or_reason(start: Callable[[], T]) -> T:
    try:
        return start()
    except PartUnavailable as error:
        if os.environ.get("CI") == "true":
            pytest.fail(f"in CI every part must be there: {error}")
        pytest.skip(str(error))
