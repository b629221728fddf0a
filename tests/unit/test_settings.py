"""One settings object: who wins, what is refused in one line, and what is derived."""

from __future__ import annotations

import pickle
from pathlib import Path

import pytest

from shoal.errors import ConfigurationError
from shoal.settings import load


def test_the_defaults_are_embedded_local_and_loopback() -> None:
    settings = load()
    assert settings.is_embedded
    assert settings.provider == "local"
    assert (settings.http_host, settings.http_port) == ("127.0.0.1", 8000)
    assert settings.kafka_topics == ("scraper-notifications",)
    assert settings.kafka_group_id == "lancedb-indexer"
    assert settings.tables_uri == str(Path(".shoal/lancedb").resolve())
    assert settings.file_roots == (Path(".shoal/objects").resolve(),)


@pytest.mark.parametrize(
    ("variable", "setting"),
    [
        ("KAFKA_BROKERS", "kafka_brokers"),
        ("KAFKA_BOOTSTRAP_SERVERS", "kafka_brokers"),
        ("KAFKA_GROUP_ID", "kafka_group_id"),
        ("LANCEDB_PATH", "lancedb_path"),
        ("OPENAI_BASE_URL", "openai_base_url"),
        ("OPENAI_EMBEDDING_MODEL", "openai_embedding_model"),
        ("AWS_ENDPOINT_URL", "s3_endpoint_url"),
    ],
)
def test_names_that_deployments_already_use_are_read(
    variable: str, setting: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, "http://somewhere:1")
    assert getattr(load(), setting) == "http://somewhere:1"
    monkeypatch.setenv(f"SHOAL_{setting.upper()}", "http://elsewhere:2")
    assert getattr(load(), setting) == "http://elsewhere:2"


def test_an_option_beats_the_environment_beats_dotenv_beats_toml(
    settings_files: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (settings_files / "shoal.toml").write_text("readers = 3\nhttp_port = 8003\nfetchers = 3\ncommit_linger_ms = 3\n")
    (settings_files / ".env").write_text("SHOAL_READERS=4\nSHOAL_HTTP_PORT=8004\nSHOAL_FETCHERS=4\n")
    monkeypatch.setenv("SHOAL_READERS", "5")
    monkeypatch.setenv("SHOAL_HTTP_PORT", "8005")
    settings = load(readers=6)
    assert (settings.readers, settings.http_port, settings.fetchers, settings.commit_linger_ms) == (6, 8005, 4, 3)


def test_lists_are_separated_by_commas(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KAFKA_TOPIC", "one, two,,three ")
    monkeypatch.setenv("SHOAL_ALLOWED_BUCKETS", "a,b")
    settings = load()
    assert settings.kafka_topics == ("one", "two", "three")
    assert settings.allowed_buckets == ("a", "b")


def test_client_properties_are_a_json_object(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_KAFKA_PROPERTIES", '{"sasl.password": "hidden", "security.protocol": "SASL_SSL"}')
    settings = load()
    assert settings.kafka_properties["security.protocol"] == "SASL_SSL"
    assert "hidden" not in repr(settings)


@pytest.mark.parametrize(
    ("variable", "value", "named"),
    [
        ("SHOAL_HTTP_PORT", "70000", "http_port"),
        ("SHOAL_READERS", "many", "readers"),
        ("SHOAL_READERS_MAX", "1", r"readers_max.*below readers \(2\)"),
        ("SHOAL_FETCHERS_MAX", "1", r"fetchers_max.*below fetchers \(2\)"),
        ("SHOAL_READER_CPUS", "1.5", "reader_cpus"),
        ("KAFKA_TOPIC", " , ", "kafka_topics|KAFKA_TOPIC"),
        ("KAFKA_AUTO_OFFSET_RESET", "first", "kafka_auto_offset_reset|KAFKA_AUTO_OFFSET_RESET"),
        ("SHOAL_EMBEDDING_PROVIDER", "magic", "embedding_provider"),
        ("SHOAL_KAFKA_PROPERTIES", "{not json", "kafka_properties"),
    ],
)
def test_a_wrong_setting_is_one_line_that_names_it(
    variable: str, value: str, named: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv(variable, value)
    with pytest.raises(ConfigurationError, match=named) as caught:
        load()
    assert "\n" not in str(caught.value)


def test_a_damaged_toml_file_is_a_configuration_error(settings_files: Path) -> None:
    (settings_files / "shoal.toml").write_text("readers = = 2")
    with pytest.raises(ConfigurationError) as caught:
        load()
    assert "\n" not in str(caught.value)


def test_a_key_decides_the_provider_of_new_collections_and_is_never_shown(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OPENAI_API_KEY", "sk-very-secret")
    settings = load()
    assert settings.provider == "openai"
    assert load(embedding_provider="local").provider == "local"
    assert "very-secret" not in f"{settings!r} {settings} {settings.model_dump()} {settings.model_dump_json()}"


def test_tables_may_lie_in_s3() -> None:
    assert load(lancedb_path="s3://bucket/prefix/").tables_uri == "s3://bucket/prefix"


def test_commits_to_s3_wait_longer_unless_they_are_told_to(monkeypatch: pytest.MonkeyPatch) -> None:
    assert load().commit_linger_s == 0.25
    assert load(lancedb_path="s3://b/t").commit_linger_s == 1.0
    monkeypatch.setenv("SHOAL_COMMIT_LINGER_MS", "250")
    told = load(lancedb_path="s3://b/t")
    assert told.commit_linger_s == pickle.loads(pickle.dumps(told)).commit_linger_s == 0.25
    monkeypatch.delenv("SHOAL_COMMIT_LINGER_MS")
    assert pickle.loads(pickle.dumps(load(lancedb_path="s3://b/t"))).commit_linger_s == 1.0


def test_an_unknown_variable_of_ours_is_ignored(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("SHOAL_FUTURE_SETTING", "1")
    assert not hasattr(load(), "future_setting")


def test_more_replicas_at_least_than_at_most_are_refused() -> None:
    with pytest.raises(ConfigurationError, match=r"serve_replicas_max: .*is below serve_replicas_min \(3\)"):
        load(serve_replicas_min=3)
    assert load(serve_replicas_min=3, serve_replicas_max=3).serve_replicas_max == 3
