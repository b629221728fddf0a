"""`shoal keys` as a person and a script use it."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from shoal.cluster.cli import app
from shoal.cluster.keys import duration, expiry
from shoal.errors import ConfigurationError, PermanentError
from shoal.serve_apps.api_keys import KeyRing
from shoal.serve_apps.key_store import keys_place, load_ring
from shoal.settings import load

Run = Callable[..., Result]
NOW = datetime(2026, 1, 20, 12, tzinfo=UTC)


@pytest.fixture
def run(tmp_path: Path) -> Run:
    def command(*arguments: str) -> Result:
        result = CliRunner().invoke(app, ["keys", *arguments, "--data-dir", str(tmp_path)])
        if result.exception is not None and not isinstance(result.exception, SystemExit):
            raise result.exception
        return result

    return command


def ring(tmp_path: Path) -> KeyRing:
    return load_ring(keys_place(load(data_dir=tmp_path)))[0]


def test_create_prints_the_key_once_and_alone_on_stdout(run: Run, tmp_path: Path) -> None:
    made = run("create", "--name", "ci", "--scope", "write:scraper", "--expires", "90d")
    key = made.stdout.strip()
    assert re.fullmatch(r"shoal_[0-9a-z]{10}_[0-9A-Za-z]{49}", key)
    assert key not in made.stderr
    caller = ring(tmp_path).verify(key, datetime.now(UTC))
    assert caller is not None
    assert [str(grant) for grant in caller.grants] == ["write:scraper"]
    assert ring(tmp_path).verify(key, datetime.now(UTC) + timedelta(days=91)) is None
    everywhere = "".join(path.read_text() for path in tmp_path.rglob("*") if path.is_file())
    assert key.split("_")[2] not in everywhere


def test_list_shows_everything_but_the_key(run: Run) -> None:
    key = run("create", "--name", "claude").stdout.strip()
    shown = json.loads(run("list", "-o", "json").stdout)
    assert [(row["name"], row["scopes"], row["state"]) for row in shown] == [("claude", ["read"], "active")]
    assert set(shown[0]) >= {"id", "created_at", "last_used_at", "expires_at", "revoked_at"}
    assert "claude" in run("list").stdout
    assert key[-49:] not in json.dumps(shown)
    assert "sha256" not in shown[0]


def test_revoke_ends_a_key(run: Run, tmp_path: Path) -> None:
    key = run("create", "--name", "a").stdout.strip()
    assert "10 s" in run("revoke", "a").stderr
    assert ring(tmp_path).verify(key, datetime.now(UTC)) is None
    with pytest.raises(PermanentError, match="shoal keys list"):
        run("revoke", "nobody")


def test_rotate_gives_the_same_rights_and_lets_the_old_key_end_later(run: Run, tmp_path: Path) -> None:
    old = run("create", "--name", "a", "--scope", "admin:pages", "--rate", "60", "--expires", "10d").stdout.strip()
    new = run("rotate", "a", "--overlap", "1h").stdout.strip()
    now = datetime.now(UTC)
    before, after = ring(tmp_path).verify(old, now), ring(tmp_path).verify(new, now)
    assert before is not None
    assert after is not None
    assert (before.grants, before.rate_per_minute) == (after.grants, after.rate_per_minute)
    later = now + timedelta(hours=2)
    assert ring(tmp_path).verify(old, later) is None
    assert ring(tmp_path).verify(new, later) is not None
    assert run("rotate", "a", "--overlap", "0s").stdout.strip(), "the name means the newer one"
    assert ring(tmp_path).verify(new, datetime.now(UTC)) is None


@pytest.mark.parametrize(
    "wrong",
    [
        ("--scope", "root"),
        ("--expires", "soon"),
        ("--expires", "2001-01-01"),
        ("--name", "\x1b[2J"),
        ("--expires", "0s"),
    ],
)
def test_a_wrong_argument_makes_no_key(run: Run, tmp_path: Path, wrong: tuple[str, str]) -> None:
    with pytest.raises(ConfigurationError):
        run("create", "--name", "a", *wrong)
    assert len(ring(tmp_path)) == 0


def test_times_of_keys_are_read() -> None:
    assert expiry("", NOW) is None
    assert expiry("12h", NOW) == NOW + timedelta(hours=12)
    assert expiry("2030-01-31", NOW) == datetime(2030, 2, 1, tzinfo=UTC), "that day included"
    for wrong in ("", "1y", "-1d", "99999w", "1.5d"):
        with pytest.raises(ConfigurationError):
            duration(wrong)


def test_the_help_teaches() -> None:
    text = CliRunner().invoke(app, ["keys", "--help"]).stdout
    assert "shoal keys create --name" in text
    assert "SHOAL_API_KEY" in text
    for command in ("create", "list", "revoke", "rotate"):
        assert command in text
