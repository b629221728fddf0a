"""docs/guarantees.md names only tests that are there: a guarantee without its test would be a claim."""

from __future__ import annotations

import re
from pathlib import Path

ROOT = Path(__file__).parents[2]
NAMED = re.findall(r"`((?:tests/|test_|…::)[^`]*)`", (ROOT / "docs" / "guarantees.md").read_text())


def test_every_test_that_defends_a_guarantee_is_there() -> None:
    assert len(NAMED) > 20
    file = ROOT
    for named in NAMED:
        path, _, function = named.partition("::")
        if path.startswith("tests/"):
            file = ROOT / path
        elif path != "…":  # beside the one named before it
            file = next((ROOT / "tests").rglob(path), ROOT / path)
        assert file.exists(), named
        assert not function or f"def {function}(" in file.read_text(), named
