"""The commands of docs/rest.md are accepted as they stand there, and no call is without one."""

from __future__ import annotations

import re
import shlex
from datetime import UTC, datetime
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest
from starlette.routing import Match

from shoal.serve_apps import examples
from shoal.store.feeds import Catalogue

ROOT = Path(__file__).parents[3]
BLOCK = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "rest.md").read_text(), re.DOTALL)[0]
COMMANDS = [line for line in BLOCK.splitlines() if line.startswith("curl ")]
NEEDS = {"/api/v1/cost": 503}  # a ledger, which the fakes have not


def parsed(command: str) -> tuple[str, str, dict[str, str], str | None]:
    """(method, target, headers, body) of a curl command, as curl sends it."""
    words = iter(shlex.split(command)[1:])
    method, target, headers, body = "", "", {}, None
    for word in words:
        if word in ("-d", "--data-binary"):
            body = next(words)
            headers.setdefault("Content-Type", "application/x-www-form-urlencoded")
        elif word == "-H":
            name, _, value = next(words).partition(": ")
            headers[name] = value
        elif word == "-X":
            method = next(words)
        elif word != "-L":
            target = word
    url = urlsplit(target)
    return method or ("POST" if body else "GET"), f"{url.path}?{url.query}" if url.query else url.path, headers, body


@pytest.mark.parametrize("command", COMMANDS)
async def test_every_command_is_accepted(command: str, stand: Any, letter: Any, client_of: Any) -> None:
    place = stand.settings.home / "objects" / "a.json"
    place.parent.mkdir(parents=True)
    place.write_text("{}")
    row = {"id": examples.ID, "version": "1", "sha256_hash": examples.SHA256, "s3_path": place.as_uri()}
    stand.index.documents.rows = [row]
    stand.index.catalogue = Catalogue(datetime(2025, 1, 20, tzinfo=UTC), ())
    stand.index.jobs = {"0190c6e2-7a52-7c3e-8d54-3f1f0a7be5c1": {"status": "done"}}
    stand.letters.found = [letter(0)]
    method, target, headers, body = parsed(command)
    async with client_of(stand) as http:
        answer = await http.request(method, target, headers=headers, content=body)
    assert answer.status_code == NEEDS.get(urlsplit(target).path, answer.status_code)
    if urlsplit(target).path not in NEEDS:
        assert answer.is_success, answer.text


def test_no_call_is_without_a_command(stand: Any) -> None:
    app = stand.app()
    asked = {(method, urlsplit(target).path) for method, target, _, _ in map(parsed, COMMANDS)}
    left_out = {"/", "/healthz", "/problems"}
    for route in app.routes:
        if not getattr(route, "include_in_schema", False) or route.path in left_out:
            continue
        for method in route.methods - {"HEAD"}:
            if method in ("PUT", "DELETE") and route.path == "/api/v1/collections/{name}":
                continue  # 501
            scopes = ({"type": "http", "method": method, "path": path} for asking, path in asked if asking == method)
            assert any(route.matches(scope)[0] is Match.FULL for scope in scopes), (method, route.path)
