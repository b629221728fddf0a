"""What a cluster that others run is told of Shoal: closed to who has no key, and refused where it could not work."""

from __future__ import annotations

import os
from pathlib import Path

import pytest
from pydantic import ValidationError

from shoal.cluster.applications import (
    IngestArguments,
    QueryArguments,
    cluster_settings,
    ingest,
    ingress_here,
)
from shoal.cluster.ray_environment import prepare
from shoal.errors import ConfigurationError
from shoal.serve_apps.guard import Policy
from shoal.settings import load


def test_nobody_is_let_in_without_a_key_because_he_seems_to_sit_on_this_machine(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    assert cluster_settings().auth == "required", "http_host says nothing of what Serve was bound to"
    assert Policy.of(cluster_settings()) != Policy.of(load())
    monkeypatch.setenv("SHOAL_AUTH", "anyone_may_do_anything")
    assert cluster_settings().auth == "anyone_may_do_anything", "who says so in so many words is taken at his word"


def test_ingest_without_kafka_is_refused_with_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ConfigurationError, match="KAFKA_BROKERS"):
        ingest(IngestArguments(restart=""))


def test_misspelt_arguments_are_refused() -> None:
    with pytest.raises(ValidationError, match="restarted"):
        IngestArguments.model_validate({"restarted": "now"})
    with pytest.raises(ValidationError, match="replicas"):
        QueryArguments.model_validate({"replicas": 2})


@pytest.fixture
def environment(monkeypatch: pytest.MonkeyPatch) -> None:
    """Put back as it was: `prepare` sets variables."""
    kept = dict(os.environ)
    for name in [name for name in os.environ if name.startswith("RAY_")]:
        monkeypatch.delenv(name)
    yield  # type: ignore[misc]
    for name in set(os.environ) - set(kept):
        del os.environ[name]


def test_anothers_cluster_has_its_ingress_and_its_token_and_we_take_both(
    environment: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    settings = load(data_dir=tmp_path, ray_address="10.0.0.1:6379")
    assert prepare(settings) == "proxy" == ingress_here()
    assert os.environ["RAY_AUTH_MODE"] == "disabled"
    assert "RAY_SERVE_ENABLE_HA_PROXY" not in os.environ
    monkeypatch.setenv("RAY_SERVE_ENABLE_HA_PROXY", "1")
    assert prepare(settings) == "haproxy" == ingress_here()


def test_a_token_that_is_given_is_used(environment: None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("RAY_AUTH_TOKEN", "of-the-cluster")
    prepare(load(data_dir=tmp_path, ray_address="10.0.0.1:6379"))
    assert os.environ["RAY_AUTH_TOKEN"] == "of-the-cluster"
    assert os.environ.get("RAY_AUTH_MODE") == "token"
