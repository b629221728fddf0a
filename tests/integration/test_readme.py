"""The README's commands do what it says: run as they stand there."""

from __future__ import annotations

import os
import re
import shlex
import subprocess
from pathlib import Path

import pytest

from tests.fixtures.parts import free_ports
from tests.fixtures.stack import SHOAL, Stack

REPOSITORY = Path(__file__).resolve().parents[2]
README = (REPOSITORY / "README.md").read_text()
BLOCKS = re.findall(r"```sh\n(.*?)```", README, re.DOTALL)
COMMANDS = [
    shlex.split(line, comments=True)[1:]
    for block in BLOCKS
    for line in block.splitlines()
    if line.startswith(".venv/bin/shoal ")
]


@pytest.mark.parametrize("command", COMMANDS, ids=" ".join)
def test_every_shoal_command_is_accepted(command: list[str]) -> None:
    done = subprocess.run([SHOAL, *command, "--help"], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr


@pytest.mark.timeout(300)
def test_the_commands_for_ones_own_files_work_in_their_order(tmp_path: Path) -> None:
    scrapes = tmp_path / "stack" / "scrapes"
    scrapes.mkdir(parents=True)
    for zone in ("West", "Genesee", "Capital"):
        (scrapes / f"{zone.lower()[0]}.csv").write_text(f"Time Stamp,Zone,Load (MW)\n01/20/2025 00:00,{zone},1350\n")
    (scrapes / "a.csv").write_text("Time Stamp,Zone,Load Forecast (MW)\n01/21/2025 00:00,Central,1820\n")
    with Stack(tmp_path / "stack") as stack:
        for command in COMMANDS:
            if command[0] == "up":
                continue
            done = stack.run(*command)
            assert done.returncode == 0, f"shoal {shlex.join(command)}: {done.stdout}\n{done.stderr}"
            if command[0] == "publish":
                assert "4 indexed" in done.stdout
            if command[0] == "search":
                assert "NYISO" in done.stdout


@pytest.mark.timeout(600)
def test_make_demo_accounts_for_every_file(tmp_path: Path) -> None:
    assert "make demo ARGS=--exit" in README
    keep = {name: value for name, value in os.environ.items() if not name.startswith(("MAKE", "MFLAGS"))}
    environment = keep | {"SHOAL_DATA_DIR": str(tmp_path), "SHOAL_HTTP_PORT": str(free_ports(1)[0])}
    done = subprocess.run(
        ["make", "demo", "ARGS=--exit"], cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=580
    )
    assert done.returncode == 0, f"{done.stdout[-3000:]}\n{done.stderr[-3000:]}"
    assert "300 of 300 announced" in done.stdout
    for number in range(1, 7):
        assert f"\n{number}. " in done.stdout, "every question is asked"
