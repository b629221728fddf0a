"""The named points: each of the list is in the code, and the code names no other."""

from __future__ import annotations

import re
from pathlib import Path

from shoal import faults

ROOT = Path(faults.__file__).parent


def test_every_named_point_is_in_the_code_and_no_other() -> None:
    named = {
        point
        for file in ROOT.rglob("*.py")
        for point in re.findall(r'reach\("([a-z_.]+)"\)', file.read_text())
        if file.name != "faults.py"
    }
    assert named == set(faults.POINTS) | set(faults.MIGRATION_POINTS)
