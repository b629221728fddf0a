"""No setting without a word: docs/settings.md and .env.example follow shoal/settings.py."""

from __future__ import annotations

import re
from pathlib import Path

import pytest
from pydantic import ValidationError

from docs.render_settings import env_example, sections, settings_page
from shoal.cluster.configuration import environment_names
from shoal.settings import Settings, load

ROOT = Path(__file__).parents[2]
REMEDY = "run `.venv/bin/python docs/render_settings.py`"


def test_every_setting_has_a_place_and_a_meaning() -> None:
    placed = [name for _, names in sections() for name in names]
    assert sorted(placed) == sorted(Settings.model_fields)
    assert [name for name, field in Settings.model_fields.items() if not field.description] == []


def test_the_settings_page_is_up_to_date() -> None:
    assert (ROOT / "docs" / "settings.md").read_text() == settings_page(), REMEDY


def test_the_env_example_is_up_to_date() -> None:
    assert (ROOT / ".env.example").read_text() == env_example(), REMEDY


def test_the_env_example_with_its_comments_opened_says_the_defaults(settings_files: Path) -> None:
    said = [f"{name}={value}" for name, value in example_lines() if value]
    assert len(said) > 30
    (settings_files / ".env").write_text("\n".join(said))
    read = load()
    assert read.model_fields_set >= {"data_dir", "kafka_topics", "http_port", "commit_linger_ms"}
    assert read.model_dump() == Settings.model_construct().model_dump()


def test_every_variable_of_the_env_example_is_read(monkeypatch: pytest.MonkeyPatch) -> None:
    variables = [name for name, _ in example_lines()]
    assert len(variables) == len(set(variables)) == len(Settings.model_fields)
    for variable in variables:
        monkeypatch.setenv(variable, "")
    unread = set(Settings.model_fields)
    try:
        unread -= Settings().model_fields_set
    except ValidationError as error:  # nothing is no number: that it was refused shows that it was read
        unread -= {_field_of(str(problem["loc"][0])) for problem in error.errors()}
        for variable in variables:
            if _field_of(variable) not in unread:
                monkeypatch.delenv(variable)
        unread -= Settings().model_fields_set
    assert unread == set()


def example_lines() -> list[tuple[str, str]]:
    return re.findall(r"^# ([A-Z0-9_]+)=(.*)$", env_example(), re.MULTILINE)


def _field_of(name: str) -> str:
    """The setting that a variable, or the place of a validation error, is about."""
    return next(
        field
        for field in Settings.model_fields
        if name == field or name.upper() in (variable.upper() for variable in environment_names(field))
    )
