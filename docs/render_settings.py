"""Writes docs/settings.md and .env.example from the one list of settings: `python docs/render_settings.py`.

A test compares both files with what this makes, so no setting stays undocumented.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any, get_args

from pydantic import SecretStr

import shoal.settings
from shoal.cluster.configuration import environment_names
from shoal.settings import Settings

ROOT = Path(__file__).resolve().parents[1]
INTRODUCTION = """\
# Settings

Every setting has a default that is safe on a laptop. A value is taken from the first of: a command's option, the
environment, `.env`, `shoal.toml` (both in the working directory), the default. In `shoal.toml` a setting has the
name in the first column; in the environment and in `.env` any of the names in the second, where a name that begins
with `SHOAL_` wins. Lists are separated by commas. `shoal config show` prints the values in force and where each
comes from. A wrong value stops the start with one line that names the setting; secrets are never printed.

S3 keys and the region come from the usual `AWS_` variables, which boto3 reads itself.

*Made by `python docs/render_settings.py` from shoal/settings.py: edit that one.*
"""


def sections() -> Iterator[tuple[str, list[str]]]:
    """The groups of settings as shoal/settings.py has them: (heading, names)."""
    source = Path(shoal.settings.__file__).read_text()
    for heading, body in re.findall(r"# --- ([^-]+?) -+\n(.*?)(?=# ---|    @|\Z)", source, re.DOTALL):
        yield heading.strip(), list(re.findall(r"^    (\w+):", body, re.MULTILINE))


def example_value(name: str) -> str:
    """The default as an environment variable would say it; empty where there is none."""
    default = Settings.model_fields[name].get_default(call_default_factory=True)
    if default is None:
        return ""
    if isinstance(default, tuple):
        return ",".join(str(part) for part in default)
    if isinstance(default, Mapping):
        return json.dumps(default) if default else ""
    return str(default)


def settings_page() -> str:
    """docs/settings.md."""
    parts = [INTRODUCTION]
    for heading, names in sections():
        parts.append(f"\n## {heading[0].upper()}{heading[1:]}\n\n| setting | environment | default | meaning |\n")
        parts.append("|---|---|---|---|\n")
        for name in names:
            variables = ", ".join(f"`{variable}`" for variable in environment_names(name))
            default = f"`{value}`" if (value := example_value(name)) else "none"
            parts.append(f"| `{name}` | {variables} | {default} | {_meaning(name).replace('|', chr(92) + '|')} |\n")
    return "".join(parts)


def env_example() -> str:
    """.env.example."""
    parts = ["# Copy to .env and set what differs. Each line shows the default; docs/settings.md tells more.\n"]
    for heading, names in sections():
        parts.append(f"\n# --- {heading} ---\n")
        for name in names:
            parts.append(f"# {_meaning(name)}\n# {environment_names(name)[0]}={example_value(name)}\n")
    return "".join(parts)


def _meaning(name: str) -> str:
    field = Settings.model_fields[name]
    choices = [str(choice) for choice in get_args(field.annotation) if isinstance(choice, str)]
    said = field.description or ""
    if choices:
        said += f" One of: {', '.join(choices)}."
    return said + (" Secret." if _is_secret(field.annotation) else "")


def _is_secret(annotation: Any) -> bool:
    return annotation is SecretStr or SecretStr in get_args(annotation)


if __name__ == "__main__":
    (ROOT / "docs" / "settings.md").write_text(settings_page())
    (ROOT / ".env.example").write_text(env_example())
