"""What is checked before anything starts: each refusal is one line that names what to change."""

from __future__ import annotations

import socket
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from shoal.cluster import demo, hosting, runtime
from shoal.errors import ConfigurationError
from shoal.settings import Settings
from shoal.store.state_files import write_state


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        port = free.getsockname()[1]
    return Settings(data_dir=tmp_path, embedding_provider="hash", lancedb_path="", http_port=port, _env_file=None)


def test_a_data_directory_has_one_shoal_at_a_time(settings: Settings) -> None:
    match = r"another Shoal runs on .*SHOAL_DATA_DIR"
    with runtime.claimed(settings), pytest.raises(ConfigurationError, match=match):
        runtime.start(settings)
    runtime.claimed(settings).close()


def test_a_second_demo_does_not_empty_the_directory_of_the_first(settings: Settings) -> None:
    home = demo.demo_settings(settings)
    demo._empty(home.home)
    (home.home / "a.json").write_text("{}")
    with runtime.claimed(home), pytest.raises(ConfigurationError, match="another Shoal"):
        demo.tour(settings, count=20, stay=False)
    assert (home.home / "a.json").exists()


def test_a_port_in_use_is_refused_by_name(settings: Settings) -> None:
    with socket.socket() as taken:
        taken.bind(("127.0.0.1", settings.http_port))
        taken.listen()
        with pytest.raises(ConfigurationError, match="SHOAL_HTTP_PORT"):
            runtime.start(settings)


def test_tables_that_can_not_be_made_are_refused_by_name(settings: Settings) -> None:
    with pytest.raises(ConfigurationError, match="LANCEDB_PATH"):
        runtime.start(settings.model_copy(update={"lancedb_path": "/proc/nope"}))


def test_a_provider_without_a_key_is_refused_before_anything_starts(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    without = settings.model_copy(update={"embedding_provider": "openai", "openai_api_key": None})
    with pytest.raises(ConfigurationError, match="OPENAI_API_KEY"):
        runtime.start(without)
    runtime.claimed(settings).close()


def test_what_a_person_must_mend_ends_the_start_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(hosting, "REFUSALS_INTERVAL_S", 0.0)
    with pytest.raises(ConfigurationError, match="the key was refused"):
        hosting._wait_ready("http://127.0.0.1:9", lambda: ["the key was refused"])


def test_only_this_lifes_refusals_count(settings: Settings) -> None:
    now = datetime.now(UTC)
    write_state(settings, "status.json", {"cluster": "c", "at": now.isoformat(), "refusals": {"writer start": "no"}})
    assert hosting._refusals(settings, "c", now - timedelta(seconds=1)) == ["no"]
    assert hosting._refusals(settings, "another life", now - timedelta(seconds=1)) == []
    assert hosting._refusals(settings, "c", now + timedelta(seconds=1)) == []
