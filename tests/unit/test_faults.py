"""Named points: what an armed one does, and that the list of them is the code's."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
from pathlib import Path

from shoal.faults import DIRECTORY_VARIABLE, MIGRATION_POINTS, POINTS

SOURCE = Path(__file__).parents[2] / "shoal"
SCRIPT = """
import sys, time
from shoal.faults import reach
reach("writer.before_ack")
print("went on", flush=True)
time.sleep(float(sys.argv[1]))
print("survived", flush=True)
"""


def passing(directory: Path | None, sleep_s: float = 0.0) -> subprocess.CompletedProcess[str]:
    """A process that passes the point writer.before_ack."""
    environment = {name: value for name, value in os.environ.items() if name != DIRECTORY_VARIABLE}
    if directory is not None:
        environment[DIRECTORY_VARIABLE] = str(directory)
    return subprocess.run(
        [sys.executable, "-c", SCRIPT, str(sleep_s)], env=environment, capture_output=True, text=True, timeout=60
    )


def test_every_point_is_somewhere_in_the_code_and_in_the_list() -> None:
    found = {
        point
        for path in SOURCE.rglob("*.py")
        if path.name != "faults.py"
        for point in re.findall(r'\breach\("([a-z_.]+)"\)', path.read_text())
    }
    assert found == {*POINTS, *MIGRATION_POINTS}


def test_nothing_happens_unless_it_was_asked_for(tmp_path: Path) -> None:
    assert "survived" in passing(None).stdout
    assert "survived" in passing(tmp_path).stdout


def test_an_armed_point_ends_the_first_process_that_gets_there_and_no_other(tmp_path: Path) -> None:
    (tmp_path / "writer.before_ack").write_text("0")
    done = passing(tmp_path)
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == ""
    assert [path.name.partition("-")[0] for path in tmp_path.iterdir()] == ["writer.before_ack.taken"]
    assert "survived" in passing(tmp_path).stdout


def test_a_delayed_point_is_hit_in_the_middle_of_what_follows(tmp_path: Path) -> None:
    (tmp_path / "writer.before_ack").write_text("50")
    done = passing(tmp_path, sleep_s=50.0)
    assert done.returncode == -signal.SIGKILL
    assert done.stdout == "went on\n"
