"""What ships for agents' hosts: the files say what is true, and what their readers ask for."""

from __future__ import annotations

import json
import re
import tomllib
from pathlib import Path
from typing import Any

import jsonschema
import pytest

from shoal import __version__
from shoal.cluster.cli_mcp import endpoint_of
from shoal.errors import ConfigurationError
from shoal.mcp.server import INSTRUCTIONS
from tests.unit.mcp.test_server import TOOLS

ROOT = Path(__file__).parents[3]

_INPUT: dict[str, Any] = {
    "type": "object",
    "properties": {
        "description": {"type": "string"}, "isRequired": {"type": "boolean"}, "isSecret": {"type": "boolean"},
        "format": {"enum": ["string", "number", "boolean", "filepath"]}, "default": {"type": "string"},
        "value": {"type": "string"}, "name": {"type": "string"}, "type": {"enum": ["positional", "named"]},
    },
    "additionalProperties": False,
}  # fmt: skip
REGISTRY = {
    # What the registry's schema of 2025-12-11 asks of what we use; the whole is at the address in `$schema`.
    "type": "object",
    "required": ["$schema", "name", "description", "version", "packages"],
    "additionalProperties": False,
    "properties": {
        "$schema": {
            "pattern": r"^https://static\.modelcontextprotocol\.io/schemas/\d{4}-\d\d-\d\d/server\.schema\.json$"
        },
        "name": {"type": "string", "minLength": 3, "maxLength": 200, "pattern": r"^[a-zA-Z0-9.-]+/[a-zA-Z0-9._-]+$"},
        "title": {"type": "string", "minLength": 1, "maxLength": 100},
        "description": {"type": "string", "minLength": 1, "maxLength": 100},
        "version": {"type": "string", "maxLength": 255, "not": {"const": "latest"}},
        "packages": {
            "type": "array",
            "items": {
                "type": "object",
                "required": ["registryType", "identifier", "transport"],
                "additionalProperties": False,
                "properties": {
                    "registryType": {"enum": ["npm", "pypi", "oci", "nuget", "mcpb"]},
                    "identifier": {"type": "string"},
                    "version": {"type": "string", "minLength": 1, "not": {"const": "latest"}},
                    "runtimeHint": {"type": "string"},
                    "transport": {"type": "object", "required": ["type"], "properties": {"type": {"const": "stdio"}}},
                    "packageArguments": {"type": "array", "items": {**_INPUT, "required": ["type"]}},
                    "environmentVariables": {"type": "array", "items": {**_INPUT, "required": ["name"]}},
                },
            },
        },
    },
}


def test_server_json_is_what_the_registry_asks_for_and_of_this_version() -> None:
    server = json.loads((ROOT / "server.json").read_text())
    jsonschema.validate(server, REGISTRY)
    (package,) = server["packages"]
    assert server["version"] == package["version"] == __version__
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    assert (package["identifier"], project["scripts"]["shoal"]) == (project["name"], "shoal.cluster.cli:main")
    assert package["packageArguments"][0]["value"] == "mcp"


def test_mcp_json_names_the_http_endpoint() -> None:
    server = json.loads((ROOT / ".mcp.json").read_text())["mcpServers"]["shoal"]
    assert server == {"type": "http", "url": "${SHOAL_URL:-http://localhost:8000}/mcp"}


def test_the_skill_names_every_tool_and_says_when_to_use_it() -> None:
    text = (ROOT / "skills/shoal/SKILL.md").read_text()
    matter = re.match(r"---\nname: shoal\ndescription: (.+)\n---\n", text)
    assert matter
    assert 100 < len(matter[1]) <= 1024
    assert all(f"`{tool}" in text for tool in TOOLS)
    assert len(text.splitlines()) < 100


@pytest.mark.parametrize("place", ["README.md", "docs/mcp.md"])
def test_the_documents_have_the_very_line_that_connects_claude_code_and_name_every_tool(place: str) -> None:
    text = (ROOT / place).read_text()
    assert "\nclaude mcp add --transport http shoal http://localhost:8000/mcp\n" in text
    assert all(f"`{tool}`" in text for tool in TOOLS)


def test_the_instructions_name_every_tool() -> None:
    assert all(tool in INSTRUCTIONS for tool in TOOLS)
    assert len(INSTRUCTIONS) < 2_000, "they are in every conversation"


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        ("http://localhost:8000", "http://localhost:8000/mcp"),
        ("http://localhost:8000/", "http://localhost:8000/mcp"),
        ("https://shoal.example.org/mcp/", "https://shoal.example.org/mcp"),
        ("https://example.org/shoal", "https://example.org/shoal/mcp"),
        ("http://[::1]:8000", "http://[::1]:8000/mcp"),
    ],
)
def test_the_endpoint_is_found_from_the_address_of_a_shoal(url: str, endpoint: str) -> None:
    assert endpoint_of(url) == endpoint


@pytest.mark.parametrize("url", ["", "localhost:8000", "ftp://x", "http://", "http://x:port", "http://me:key@x"])
def test_what_is_no_address_is_refused_by_name(url: str) -> None:
    with pytest.raises(ConfigurationError, match="--url"):
        endpoint_of(url)
