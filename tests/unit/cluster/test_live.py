"""`shoal status --watch`: it outlives the service, and ends when its reader does."""

from __future__ import annotations

import io
import json
import os
import signal
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from shoal.client.client import RefusedError
from shoal.cluster.live import watch
from shoal.cluster.output import Exit, Format
from shoal.errors import TransientError

WELL = {"health": "ok", "reasons": [], "ingest": None, "age_s": 1.0, "warnings": [], "feeds": None}
AWAY = TransientError("Shoal can't be reached: is `shoal up` running?")


def script(*answers: Any) -> tuple[Callable[[], Any], Callable[[float], None]]:
    """What each look meets; Ctrl-C after the last."""
    left = list(answers)

    def ask() -> Any:
        answer = left.pop(0)
        if isinstance(answer, Exception):
            raise answer
        return answer

    def pause(_: float) -> None:
        if not left:
            raise KeyboardInterrupt

    return ask, pause


def watched(*answers: Any, terminal: bool = False) -> str:
    ask, pause = script(*answers)
    console = Console(file=io.StringIO(), width=120, highlight=False, force_terminal=terminal, color_system=None)
    assert watch(ask, 2.0, Format.table, console=console, pause=pause) == Exit.OK
    assert isinstance(console.file, io.StringIO)
    return console.file.getvalue()


def test_without_a_terminal_there_is_a_block_for_each_look() -> None:
    text = watched(WELL, WELL, {**WELL, "health": "degraded"})
    assert (text.count("\n--- ") + text.startswith("--- "), text.count("OK"), text.count("DEGRADED")) == (3, 2, 1)


def test_it_says_since_when_the_service_is_away_and_goes_on_when_it_is_back() -> None:
    """1. well; 2. away, twice; 3. back."""
    blocks = watched(WELL, AWAY, AWAY, {**WELL, "health": "degraded"}).split("--- ")[1:]
    since = [line for block in blocks for line in block.splitlines() if line.startswith("UNREACHABLE since")]
    assert len(since) == 2
    assert since[0].split(" (")[0] == since[1].split(" (")[0], "since the first, not the last"
    assert "is `shoal up` running?" in blocks[1]
    assert "last known" in blocks[2]
    assert "UNREACHABLE" not in blocks[3]
    assert "DEGRADED" in blocks[3]


def test_a_service_that_was_never_there_is_waited_for() -> None:
    assert "UNREACHABLE" in watched(AWAY, AWAY)


def test_an_error_inside_the_service_is_waited_out_and_a_refusal_ends_it() -> None:
    assert "UNREACHABLE" in watched(RefusedError("a bug", 500, {}))
    with pytest.raises(RefusedError):
        watched(RefusedError("no such call", 404, {}))


def test_on_a_terminal_the_last_view_stays_behind() -> None:
    text = watched(WELL, {**WELL, "health": "down"}, terminal=True)
    assert "DOWN" in text.rpartition("\x1b[?1049l")[2], "after the alternate screen was left"


def test_as_json_it_is_a_line_for_each_look(capsys: pytest.CaptureFixture[str]) -> None:
    ask, pause = script(WELL, AWAY, AWAY)
    assert watch(ask, 2.0, Format.json, pause=pause) == Exit.OK
    lines = [json.loads(line) for line in capsys.readouterr().out.splitlines()]
    assert [line["health"] for line in lines] == ["ok", "unreachable", "unreachable"]
    assert lines[1]["since"] == lines[2]["since"]
    assert "shoal up" in lines[1]["error"]


# --- as a process -----------------------------------------------------------------------------


class Answering(BaseHTTPRequestHandler):
    def do_GET(self) -> None:
        body = json.dumps(WELL).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, *_: Any) -> None:
        pass


@contextmanager
def a_service() -> Iterator[str]:
    with HTTPServer(("127.0.0.1", 0), Answering) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()
            thread.join()


def start(*arguments: str, cwd: Path) -> subprocess.Popen[str]:
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[3])}
    return subprocess.Popen(
        [sys.executable, "-c", "from shoal.cluster.cli import main; main()", "status", *arguments],
        cwd=cwd, env=environment, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True,
    )  # fmt: skip


def test_a_ctrl_c_that_falls_into_a_destructor_ends_it_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    """Python drops what is raised there, and tells `unraisablehook`."""
    dropped: list[Any] = []
    monkeypatch.setattr(sys, "unraisablehook", dropped.append)

    class Falling:
        def __del__(self) -> None:
            signal.raise_signal(signal.SIGINT)

    def ask() -> Any:
        assert not dropped, "it goes on"
        Falling()
        return WELL

    assert watch(ask, 2.0, Format.json, pause=lambda _: None) == Exit.OK
    assert len(dropped) == 1
    assert capsys.readouterr().out.count("\n") == 1, "what was asked for is shown"


def test_ctrl_c_is_how_one_ends_it(tmp_path: Path) -> None:
    with a_service() as url, start("--watch", "0.5", "-o", "json", "--url", url, cwd=tmp_path) as process:
        assert process.stdout is not None
        for _ in range(2):
            assert json.loads(process.stdout.readline())["health"] == "ok"
        process.send_signal(signal.SIGINT)
        _, errors = process.communicate(timeout=60)
    assert (process.returncode, errors) == (0, "")


def test_a_reader_that_goes_ends_it_without_a_word(tmp_path: Path) -> None:
    with a_service() as url, start("--watch", "0.5", "--url", url, cwd=tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline().startswith("--- ")
        process.stdout.close()
        assert process.wait(timeout=60) == 0
        assert process.stderr is not None
        assert process.stderr.read() == ""


def test_how_often_is_nothing_to_say_without_watching(tmp_path: Path) -> None:
    with start("5", cwd=tmp_path) as process:
        _, errors = process.communicate(timeout=60)
    assert process.returncode == Exit.USAGE
    assert "--watch" in errors
