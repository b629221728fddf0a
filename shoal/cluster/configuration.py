"""`shoal config show`: every setting in force, where it comes from and how it is set. Secrets are never shown."""

from __future__ import annotations

import os
from typing import Any

from pydantic import AliasChoices, SecretStr

from shoal.redaction import redact_url
from shoal.settings import Settings

SECRET_WORDS = ("password", "secret", "token", "key", "credential", "oauthbearer.config")


def environment_names(name: str) -> tuple[str, ...]:
    """The environment variables that set `name`, the preferred one first."""
    alias = Settings.model_fields[name].validation_alias
    if isinstance(alias, AliasChoices):
        known = [str(choice) for choice in alias.choices if str(choice) != name]
        return tuple(sorted(known, key=lambda choice: choice.startswith("SHOAL_")))
    return (f"SHOAL_{name.upper()}",)


def rows(settings: Settings) -> list[dict[str, Any]]:
    """One row per setting: `name`, `value`, `from` (default, environment, file), `set by`, `meaning`."""
    found = []
    for name, field in Settings.model_fields.items():
        names = environment_names(name)
        in_environment = next((variable for variable in names if variable in os.environ), None)
        given = name in settings.model_fields_set
        found.append(
            {
                "name": name,
                "value": shown(name, getattr(settings, name)),
                "from": in_environment or ("file or option" if given else "default"),
                "set by": " or ".join(names),
                "meaning": field.description,
            }
        )
    return found


def shown(name: str, value: Any) -> Any:
    """`value` as it may be printed: secrets become `***`, URLs lose their credentials."""
    if isinstance(value, SecretStr):
        return "***"
    if isinstance(value, dict) and name == "kafka_properties":
        return {key: "***" if _is_secret(key) else str(item) for key, item in value.items()}
    if isinstance(value, str) and "://" in value:
        return redact_url(value)
    if isinstance(value, tuple):
        return ",".join(str(item) for item in value)
    return value if isinstance(value, (int, float, bool, dict, type(None))) else str(value)


def _is_secret(key: str) -> bool:
    return any(word in key.lower() for word in SECRET_WORDS)
