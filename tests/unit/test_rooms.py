"""The rooms' import rules hold: what [tool.importlinter] in pyproject.toml says, and that it says it of every room."""

from __future__ import annotations

import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest
from importlinter.cli import EXIT_STATUS_SUCCESS

ROOT = Path(__file__).parents[2]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())
CONTRACTS: dict[str, dict[str, Any]] = {
    contract["id"]: contract for contract in PROJECT["tool"]["importlinter"]["contracts"]
}
OWNERS = {  # who may import what a contract forbids to all others
    "lancedb": {"store"},
    "kafka": {"sources", "actors", "cluster"},
    "models": {"embeddings"},
    "s3": {"sources", "store"},
    "no-ray-below-the-actors": {"actors", "serve_apps", "cluster"},
}


def rooms() -> set[str]:
    """Every room and every module of the base."""
    entries = (ROOT / "shoal").iterdir()
    return {entry.stem for entry in entries if (entry / "__init__.py").exists() or entry.suffix == ".py"} - {"__init__"}


def test_no_room_imports_what_it_may_not() -> None:
    done = _lint(ROOT / "pyproject.toml")
    assert done.returncode == EXIT_STATUS_SUCCESS, done.stdout


@pytest.mark.parametrize("contract", OWNERS)
def test_a_contract_holds_for_every_room_but_its_owners(contract: str) -> None:
    held = {module.removeprefix("shoal.") for module in CONTRACTS[contract]["source_modules"]}
    assert held == rooms() - OWNERS[contract]


def test_a_forbidden_import_is_found(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    # 1. a package in which the store's vendor is imported by another room, under the contract as it stands
    package = tmp_path / "shoal"
    for module in CONTRACTS["lancedb"]["source_modules"]:
        file = tmp_path / module.replace(".", "/") / "__init__.py"
        file.parent.mkdir(parents=True, exist_ok=True)
        file.touch()
    (package / "__init__.py").touch()
    (package / "sources" / "__init__.py").write_text("import lancedb\n")
    lines = ["[importlinter]", "root_package = shoal", "include_external_packages = True", "[importlinter:contract:1]"]
    for name, value in CONTRACTS["lancedb"].items():
        if name != "id":
            lines.append(f"{name} = " + ("\n    ".join(["", *value]) if isinstance(value, list) else str(value)))
    config = tmp_path / "rules.ini"
    config.write_text("\n".join(lines))
    # 2. it is refused, and once the import is gone it is not
    monkeypatch.syspath_prepend(str(tmp_path))
    monkeypatch.chdir(tmp_path)
    assert _lint(config).returncode != EXIT_STATUS_SUCCESS
    (package / "sources" / "__init__.py").write_text("")
    assert _lint(config).returncode == EXIT_STATUS_SUCCESS


def _lint(config: Path) -> subprocess.CompletedProcess[str]:
    """In a process of its own: the linter configures logging, after which the loggers that there are hear nothing."""
    code = (
        f"import sys; from importlinter.cli import lint_imports; sys.exit(lint_imports({str(config)!r}, no_cache=True))"
    )
    return subprocess.run([sys.executable, "-c", code], cwd=config.parent, capture_output=True, text=True, check=False)
