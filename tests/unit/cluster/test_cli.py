"""The command line as a user meets it: instant help, exit codes, data on stdout and nothing else there."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

CLI = "from shoal.cluster.cli import main; main()"


def shoal(*arguments: str, cwd: Path, **environment: str) -> subprocess.CompletedProcess[str]:
    clean = {name: value for name, value in os.environ.items() if not name.startswith(("SHOAL_", "KAFKA_", "LANCEDB_"))}
    return subprocess.run(
        [sys.executable, "-c", CLI, *arguments], cwd=cwd, env=clean | {"PYTHONPATH": _root()} | environment,
        capture_output=True, text=True, timeout=60, check=False,
    )  # fmt: skip


def _root() -> str:
    return str(Path(__file__).parents[3])


def test_help_imports_neither_ray_nor_any_heavy_library(tmp_path: Path) -> None:
    code = (
        "import sys\nfrom shoal.cluster.cli import app\n"
        "try:\n    app(['--help'])\nexcept SystemExit:\n    pass\n"
        "heavy = {'ray', 'lancedb', 'lance', 'pyarrow', 'numpy', 'boto3', 'confluent_kafka', 'fastapi', 'pydantic'}\n"
        "sys.exit(','.join(sorted(heavy & set(sys.modules))) or 0)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False, cwd=tmp_path,
        env=os.environ | {"PYTHONPATH": _root()},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "Exit codes" in done.stdout


def test_a_wrong_setting_is_one_line_that_names_it(tmp_path: Path) -> None:
    done = shoal("config", "show", cwd=tmp_path, SHOAL_HTTP_PORT="70000")
    assert done.returncode == 2
    assert "http_port" in done.stderr
    assert "Traceback" not in done.stderr
    assert done.stdout == ""


@pytest.mark.parametrize(
    ("arguments", "code"),
    [
        (("config", "show", "-o", "yaml"), 2),
        (("no-such-command",), 2),
        (("search", "--limit", "0"), 2),
        (("status", "--url", "http://127.0.0.1:9"), 3),
        (("publish", "no-such-file"), 2),
        (("--version",), 0),
    ],
)
def test_exit_codes_are_as_documented(tmp_path: Path, arguments: tuple[str, ...], code: int) -> None:
    done = shoal(*arguments, cwd=tmp_path)
    assert done.returncode == code, done.stderr
    assert "Traceback" not in done.stderr


def test_json_stands_alone_on_stdout(tmp_path: Path) -> None:
    done = shoal("config", "show", "-o", "json", cwd=tmp_path, OPENAI_API_KEY="sk-very-secret")
    assert done.returncode == 0
    assert {row["name"] for row in json.loads(done.stdout)} >= {"http_port", "openai_api_key"}
    assert "very-secret" not in done.stdout + done.stderr


def test_publish_without_a_service_keeps_the_messages_and_says_when_they_are_announced(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    done = shoal("publish", "a.json", "--source", "x", "-o", "json", cwd=tmp_path)
    assert done.returncode == 0, done.stderr
    assert json.loads(done.stdout)["announced"] == 1
    assert "announced when `shoal up` starts" in " ".join(done.stderr.split())
    assert (tmp_path / ".shoal" / "journal.sqlite").exists()


def test_publish_and_wait_without_a_service_says_what_to_start(tmp_path: Path) -> None:
    (tmp_path / "a.json").write_text("{}")
    done = shoal("publish", "a.json", "--source", "x", "--wait", cwd=tmp_path)
    assert done.returncode == 3
    assert "shoal up" in done.stderr
