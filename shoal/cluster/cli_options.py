"""The options that many commands share, and what they become. Imports nothing heavy: `shoal --help` reads it."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from shoal.errors import ConfigurationError

if TYPE_CHECKING:
    from shoal.cluster.output import Format
    from shoal.settings import Settings

Output = Annotated[str, typer.Option("-o", "--output", help="table or json.", metavar="table|json")]
DataDir = Annotated[Path | None, typer.Option("--data-dir", help="Local state (SHOAL_DATA_DIR).")]


def settings_with(**overrides: Any) -> Settings:
    """The settings in force, with those options that were given. Raises ConfigurationError."""
    from shoal.settings import load

    return load(**{name: value for name, value in overrides.items() if value is not None})


def format_of(output: str) -> Format:
    """What `-o` names. Raises ConfigurationError."""
    from shoal.cluster.output import Format

    try:
        return Format(output)
    except ValueError:
        raise ConfigurationError(f"-o {output}: choose table or json") from None
