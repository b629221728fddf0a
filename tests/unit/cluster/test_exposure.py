"""Shoal does not start open to others by accident."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from shoal.cluster import runtime
from shoal.cluster.exposure import check_exposure, open_buckets
from shoal.errors import ConfigurationError, PermanentError
from shoal.settings import load
from tests.fixtures.callers import Callers


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
@pytest.mark.parametrize("auth", ["auto", "required"])
def test_on_this_machine_alone_no_key_is_needed(tmp_path: Path, host: str, auth: str) -> None:
    check_exposure(load(data_dir=tmp_path, http_host=host, auth=auth))


@pytest.mark.parametrize(
    "bound", [{"http_host": "0.0.0.0"}, {"http_host": "::"}, {"http_host": "10.0.0.7"}, {"http_host": "shoal.example"},
              {"ray_address": "auto"}],
)  # fmt: skip
def test_anywhere_else_it_names_both_ways_out(tmp_path: Path, bound: Any) -> None:
    with pytest.raises(ConfigurationError) as refused:
        check_exposure(load(data_dir=tmp_path, **bound))
    assert "shoal keys create" in str(refused.value)
    assert "SHOAL_AUTH=anyone_may_do_anything" in str(refused.value)
    check_exposure(load(data_dir=tmp_path, auth="anyone_may_do_anything", **bound))
    Callers(tmp_path).key("read")
    check_exposure(load(data_dir=tmp_path, **bound))


def test_an_identity_provider_is_as_good_as_a_key(tmp_path: Path) -> None:
    provider = {"oidc_issuer": "https://id.example", "oidc_audience": "https://shoal.example"}
    check_exposure(load(data_dir=tmp_path, http_host="0.0.0.0", **provider))


def test_a_revoked_key_is_none(tmp_path: Path) -> None:
    callers = Callers(tmp_path, http_host="0.0.0.0")
    callers.key("read")
    callers.revoke("read")
    with pytest.raises(ConfigurationError):
        check_exposure(callers.settings)


def test_a_damaged_file_of_keys_stops_the_start(tmp_path: Path) -> None:
    file = tmp_path / "keys.json"
    file.write_text("{")
    with pytest.raises(PermanentError, match="keys"):
        check_exposure(load(data_dir=tmp_path, http_host="0.0.0.0", keys_file=file))


def test_the_start_asks_before_it_does_anything(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(runtime, "choose_model", lambda _: pytest.fail("too late"))
    monkeypatch.setattr(runtime, "_check_port", lambda _: None)
    with pytest.raises(ConfigurationError, match="anyone_may_do_anything"):
        runtime.start(load(data_dir=tmp_path, http_host="0.0.0.0"))


def test_whoever_serves_others_and_reads_any_bucket_is_told(tmp_path: Path) -> None:
    assert open_buckets(load(data_dir=tmp_path)) is None
    assert open_buckets(load(data_dir=tmp_path, http_host="0.0.0.0", allowed_buckets=("scrapes",))) is None
    for reach in ({"http_host": "0.0.0.0"}, {"ray_address": "auto"}):
        assert "SHOAL_ALLOWED_BUCKETS" in (open_buckets(load(data_dir=tmp_path, **reach)) or "")
