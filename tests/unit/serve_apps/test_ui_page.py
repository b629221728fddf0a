"""The page's files: served with their types and headers, nothing beside them, and nothing from an outside host."""

from __future__ import annotations

import re

import pytest
from fastapi import FastAPI
from starlette.testclient import TestClient

from shoal.serve_apps import ui_page


@pytest.fixture
def client() -> TestClient:
    app = FastAPI()
    ui_page.install(app)
    return TestClient(app)


def test_the_page_may_load_and_call_only_its_own_service(client: TestClient) -> None:
    page = client.get("/ui/")
    assert (page.status_code, page.headers["content-type"]) == (200, "text/html; charset=utf-8")
    policy = dict(part.strip().split(" ", 1) for part in page.headers["content-security-policy"].split(";"))
    assert policy["default-src"] == "'none'"
    assert {policy[f"{kind}-src"] for kind in ("script", "style", "img", "connect")} == {"'self'"}
    assert page.headers["x-content-type-options"] == "nosniff"


def test_the_address_without_its_slash_leads_to_the_page(client: TestClient) -> None:
    answer = client.get("/ui", follow_redirects=False)
    assert (answer.status_code, answer.headers["location"]) == (308, "/ui/")


def test_every_file_that_another_names_is_there(client: TestClient) -> None:
    wanted, seen = ["index.html"], set()
    while wanted:
        name = wanted.pop()
        seen.add(name)
        answer = client.get(f"/ui/{name}")
        assert answer.status_code == 200, name
        named = re.findall(r'(?:src|href)="([\w.]+\.\w+)"|from "\./([\w.]+)"', answer.text)
        wanted += [file for pair in named for file in pair if file and file not in seen]
    assert {"app.js", "search.js", "document.js", "operations.js", "fixes.js", "style.css", "icon.svg"} <= seen


def test_no_file_names_an_outside_host_or_makes_markup_of_data() -> None:
    for name, (body, _, _) in ui_page._files().items():
        text = body.decode()
        assert not re.findall(r"https?://(?!www\.w3\.org/2000/svg)", text), name
        assert not re.findall(r"innerHTML|outerHTML|insertAdjacentHTML|document\.write|\beval\(|new Function", text), (
            name
        )


@pytest.mark.parametrize("name", ["nothing.js", "..%2frest.py", "%2e%2e/rest.py", "/etc/passwd", "rest.py"])
def test_nothing_else_is_served(client: TestClient, name: str) -> None:
    assert client.get(f"/ui/{name}").status_code == 404


def test_a_file_that_is_known_is_not_sent_again(client: TestClient) -> None:
    first = client.get("/ui/app.js")
    again = client.get("/ui/app.js", headers={"If-None-Match": first.headers["etag"]})
    assert (again.status_code, again.content) == (304, b"")
    assert client.get("/ui/app.js", headers={"If-None-Match": '"other"'}).status_code == 200
