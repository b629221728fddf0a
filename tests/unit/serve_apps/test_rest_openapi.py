"""What OpenAPI says of every call is so: each has examples, and its examples are what it takes and what it answers."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import pytest

from shoal.cluster.ingress import KEYED
from shoal.serve_apps import examples, problem_kinds, problems

CALLS = {
    ("get", "/"), ("get", "/healthz"), ("get", "/readyz"), ("get", "/metrics"), ("get", "/problems"),
    ("get", "/problems/{name}"), ("get", "/api/v1/scrapes/search"), ("get", "/api/v1/scrapes/datasets"),
    ("get", "/api/v1/scrapes/{hash}"), ("get", "/api/v1/collections"), ("get", "/api/v1/collections/{name}"),
    ("put", "/api/v1/collections/{name}"), ("delete", "/api/v1/collections/{name}"),
    ("post", "/api/v1/collections/{name}/search"), ("get", "/api/v1/collections/{name}/index"),
    ("post", "/api/v1/collections/{name}/documents"), ("get", "/api/v1/collections/{name}/documents/{id}"),
    ("delete", "/api/v1/collections/{name}/documents/{id}"),
    ("get", "/api/v1/collections/{name}/documents/{id}/raw"), ("post", "/api/v1/agents/context/similar-apis"),
    ("post", "/api/v1/agents/context/fix-patterns"), ("post", "/api/v1/agents/fixes"),
    ("patch", "/api/v1/agents/fixes/{id}"), ("get", "/api/v1/ingest"),
    ("get", "/api/v1/audit"),
    ("get", "/api/v1/cost"), ("get", "/api/v1/jobs/{job_id}"), ("get", "/api/v1/dead-letters"),
    ("post", "/api/v1/dead-letters/replay"),
}  # fmt: skip
ELSEWHERE = {
    ("get", "/api/v1/cost"): "test_rest_cost.py: it needs a ledger",
    ("get", "/metrics"): "test_rest_frame.py: it is no JSON",
    ("get", "/api/v1/collections/{name}/documents/{id}/raw"): "test_rest_documents.py: it is no JSON",
    ("put", "/api/v1/collections/{name}"): "501",
    ("delete", "/api/v1/collections/{name}"): "501",
}


@pytest.fixture
def document(stand: Any) -> dict[str, Any]:
    found: dict[str, Any] = stand.app().openapi()
    return found


def operations(document: dict[str, Any]) -> dict[tuple[str, str], dict[str, Any]]:
    return {(method, path): one for path, methods in document["paths"].items() for method, one in methods.items()}


def test_every_call_is_described(document: dict[str, Any]) -> None:
    described = operations(document)
    assert set(described) == CALLS
    for call, operation in described.items():
        assert operation.get("description"), call
        assert operation["responses"]["default"]["content"]["application/problem+json"]["example"], call


def test_the_ingress_sends_again_just_those_changes_that_heed_a_key(document: dict[str, Any]) -> None:
    heed = {
        (method.upper(), path)
        for (method, path), operation in operations(document).items()
        if any(one["name"].lower() == "idempotency-key" for one in operation.get("parameters", ()))
    }
    assert heed == KEYED


def test_every_call_has_an_example_of_its_answer_and_of_its_body(document: dict[str, Any]) -> None:
    for call, operation in operations(document).items():
        answers = [
            content
            for status, answer in operation["responses"].items()
            if status != "default"
            for content in answer.get("content", {}).values()
        ]
        assert any("example" in content or "binary" in str(content) for content in answers), call
        if call[0] == "post":
            (body,) = operation["requestBody"]["content"].values()
            assert "example" in body, call


@pytest.mark.parametrize("call", sorted(CALLS - set(ELSEWHERE)), ids=" ".join)
async def test_the_examples_of_a_call_are_what_it_takes_and_answers(
    call: tuple[str, str], filled: Any, client_of: Any
) -> None:
    app = filled.app()
    operation = operations(app.openapi())[call]
    path, query = call[1], {}
    for parameter in operation.get("parameters", ()):
        if not parameter.get("required"):
            continue
        value = (parameter["schema"].get("examples") or parameter.get("examples"))[0]
        if parameter["in"] == "path":
            path = path.replace(f"{{{parameter['name']}}}", value)
        else:
            query[parameter["name"]] = value
    sent: dict[str, Any] = {}
    for kind, content in operation.get("requestBody", {}).get("content", {}).items():
        sent = (
            {"json": content["example"]}
            if kind == "application/json"
            else {"content": content["example"], "headers": {"Content-Type": kind}}
        )
    async with client_of(filled) as http:
        answer = await http.request(call[0].upper(), path, params=query, **sent)
    assert answer.is_success, answer.text
    example = operation["responses"][str(answer.status_code)]["content"]["application/json"]["example"]
    assert set(example) <= set(answer.json()), "the example names a field that the answer has not"


async def test_the_example_of_a_problem_has_the_fields_of_one(http: Any) -> None:
    problem = (await http.get("/api/v1/scrapes/search?end_date=soon")).json()
    example = examples.PROBLEM["content"]["application/problem+json"]["example"]
    assert set(example) == set(problem)
    assert (example["type"], example["title"], example["advice"]) == (
        problem["type"], problem["title"], problem["advice"]
    )  # fmt: skip


def test_every_kind_of_problem_that_the_code_names_is_a_documented_one() -> None:
    sources = (Path(problems.__file__).parent).glob("*.py")
    named = {kind for source in sources for kind in re.findall(r'problem\(.*kind="([a-z-]+)"', source.read_text())}
    assert {"origin-refused", "starting", "refused"} <= named <= problem_kinds.KINDS.keys()
