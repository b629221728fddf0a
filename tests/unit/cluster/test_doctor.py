"""The doctor: each finding says what to do, and one broken thing hides no other."""

from __future__ import annotations

import socket
from pathlib import Path
from typing import Any

import pytest

from shoal.cluster import doctor
from shoal.cluster.asking import show_findings
from shoal.cluster.doctor import Finding, examine
from shoal.cluster.output import Exit, Format
from shoal.errors import ConfigurationError
from shoal.settings import Settings, load


def verdicts(settings: Settings) -> dict[str, Finding]:
    return {finding.check: finding for finding in examine(settings)}


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return Settings(data_dir=tmp_path / "new" / "shoal", embedding_provider="hash", lancedb_path="", _env_file=None)


def test_a_good_machine_has_no_failing_finding_and_the_doctor_leaves_no_trace(settings: Settings) -> None:
    found = verdicts(settings)
    assert {finding.check for finding in found.values() if finding.verdict == "fail"} == set()
    assert not settings.home.parent.exists(), "it looks, and changes nothing"


def test_a_data_directory_that_can_not_be_written_fails_and_names_its_setting(tmp_path: Path) -> None:
    found = verdicts(Settings(data_dir=Path("/proc/nope"), embedding_provider="hash", _env_file=None))
    assert found["data directory"].verdict == "fail"
    assert "SHOAL_DATA_DIR" in found["data directory"].detail


def test_a_provider_without_its_key_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    found = verdicts(Settings(data_dir=tmp_path, embedding_provider="openai", openai_base_url=None, _env_file=None))
    assert found["embedding model"].verdict == "fail"
    assert "OPENAI_API_KEY" in found["embedding model"].detail


def test_a_port_in_use_is_said_to_be(settings: Settings) -> None:
    with socket.socket() as listener:
        listener.bind(("127.0.0.1", 0))
        listener.listen()
        port = listener.getsockname()[1]
        found = verdicts(settings.model_copy(update={"http_port": port}))
    assert "something runs there" in found["http port"].detail


@pytest.mark.parametrize("error", [ConfigurationError("mend it"), OSError("disk"), ModuleNotFoundError("lancedb")])
def test_one_check_that_fails_does_not_hide_the_others(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(_: Settings) -> Finding:
        raise error

    monkeypatch.setattr(doctor, "_lance", broken)
    found = verdicts(settings)
    assert found["table format"].verdict == "fail"
    assert str(error) in found["table format"].detail
    assert found["ingress"].verdict in ("ok", "warn")


@pytest.mark.parametrize(("verdict", "code"), [("ok", Exit.OK), ("warn", Exit.OK), ("fail", Exit.FAILED)])
def test_only_a_failing_finding_is_an_exit_code(verdict: str, code: Exit, capsys: pytest.CaptureFixture[str]) -> None:
    assert show_findings([Finding("x", verdict, "y")], Format.json) is code  # type: ignore[arg-type]
    assert '"verdict"' in capsys.readouterr().out


def test_other_lance_packages_than_the_locked_pair_fail(monkeypatch: pytest.MonkeyPatch, settings: Settings) -> None:
    monkeypatch.setattr(doctor, "LANCE_PAIR", {"lancedb": "0.0.1"})
    assert "lock file" in verdicts(settings)["table format"].detail


def test_what_others_could_reach_is_a_finding(tmp_path: Path) -> None:
    def reach(**changed: Any) -> Finding:
        return verdicts(load(data_dir=tmp_path, embedding_provider="hash", **changed))["access"]

    assert reach().verdict == "ok"
    assert (reach(http_host="0.0.0.0").verdict, "shoal keys create" in reach(http_host="0.0.0.0").detail) == (
        "fail",
        True,
    )
    open_to_all = reach(http_host="0.0.0.0", auth="anyone_may_do_anything")
    assert (open_to_all.verdict, "SHOAL_ALLOWED_BUCKETS" in open_to_all.detail) == ("warn", True)


def test_places_that_can_not_be_reached_are_named_with_what_follows(tmp_path: Path) -> None:
    with socket.socket() as nobody:  # bound, and nobody listens
        nobody.bind(("127.0.0.1", 0))
        place = f"127.0.0.1:{nobody.getsockname()[1]}"
        found = verdicts(
            Settings(
                data_dir=tmp_path,
                embedding_provider="openai",
                openai_api_key="sk-x",
                _env_file=None,
                openai_base_url=f"http://{place}/v1",
                otlp_endpoint=f"http://{place}",
            )
        )
    assert found["provider"].verdict == "fail"
    assert found["traces"].verdict == "warn"  # spans are lost, work is not
    assert place in found["provider"].detail
    assert place in found["traces"].detail


def test_an_open_port_without_keys_fails(tmp_path: Path) -> None:
    found = verdicts(Settings(data_dir=tmp_path, embedding_provider="hash", http_host="0.0.0.0", _env_file=None))
    assert found["access"].verdict == "fail"
    assert "shoal keys create" in found["access"].detail
