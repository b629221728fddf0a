"""Schemathesis holds the running application to its own OpenAPI document, with data that fits it and data that doesn't.

Deterministic: the same cases in each run. What comes of values that no client library would send: test_rest_hostile.py.
"""

from __future__ import annotations

from typing import Any

import pytest
import schemathesis
from hypothesis import HealthCheck, Phase, given, settings
from hypothesis.errors import Unsatisfiable
from schemathesis import GenerationMode
from schemathesis.checks import not_a_server_error
from schemathesis.specs.openapi import checks

from shoal.serve_apps.cost import Costs

EXAMPLES = 8
CLOSED = {"PUT /api/v1/collections/{name}", "DELETE /api/v1/collections/{name}"}
"""Answered 501, and described so."""

EITHER = "POST /api/v1/agents/context/fix-patterns"
"""Its parameters stand in the body or in the query, so a body without them may be right."""

BEYOND = {
    "cursor": "it is what an answer gave", "wait_token": "so is this", "as_of": "a time or a commit",
    "start_date": "a date", "end_date": "a date", "since": "a date", "until": "a date", "collected_at": "a time",
    "id": "bytes, not characters, or of a form of its own", "job_id": "it is what an answer gave",
    "ids": "ids or filters, not both, and not nothing", "filters": "each column has its own operators and values",
    "wrong": "this or an outcome", "body": "what is nested too deeply", "query": "a mode asks for one",
    "mode": "it asks for a query", "highlight": "it asks for a query", "boosts": "they ask for a ranking",
    "rerank": "it asks for a query", "mmr_lambda": "it asks for a ranking", "include_superseded": "not of rankings",
    "chunks_per_document": "of a ranking", "facets": "columns by name", "by": "columns by name",
    "scraper_name": "in the body or in the query",
}  # fmt: skip
"""What a schema can't say of a parameter: a refusal that names it is right although the schema was kept."""

HELD = [
    not_a_server_error, checks.status_code_conformance, checks.content_type_conformance,
    checks.response_headers_conformance, checks.response_schema_conformance,
]  # fmt: skip


def is_taken(_context: Any, response: Any, case: Any) -> None:
    """Data that fits the description is not refused for what the description could have said."""
    if response.status_code in (400, 422):
        problem = response.json()
        assert problem.get("parameter") in BEYOND, f"{case.operation.label}: {problem['detail']}"


def is_refused(context: Any, response: Any, case: Any) -> Any:
    """Data that does not fit is refused, be it for its size."""
    if response.status_code in (413, 414) or case.operation.label == EITHER:
        return None
    return checks.negative_data_rejection(context, response, case)


@pytest.fixture
def document(filled: Any) -> Any:
    return schemathesis.openapi.from_asgi("/openapi.json", filled.app(Costs(filled.settings)))


@pytest.mark.parametrize("mode", list(GenerationMode))
def test_every_call_keeps_to_its_description(document: Any, mode: GenerationMode) -> None:
    asked, wrong = 0, {}
    for found in document.get_all_operations():
        operation = found.ok()
        if operation.label in CLOSED:
            continue

        @settings(
            max_examples=EXAMPLES, derandomize=True, deadline=None, database=None, phases=[Phase.generate],
            suppress_health_check=list(HealthCheck),
        )  # fmt: skip
        @given(operation.as_strategy(generation_mode=mode))
        def holds(case: Any) -> None:
            nonlocal asked
            asked += 1
            case.validate_response(case.call(), checks=[*HELD, is_taken if mode.is_positive else is_refused])

        try:
            holds()
        except Unsatisfiable:
            assert mode.is_negative, operation.label  # it takes nothing that could be wrong
        except (Exception, BaseExceptionGroup) as error:  # Schemathesis gathers its own in one of those
            wrong[operation.label] = str(error)
    assert not wrong, "\n\n".join(f"{call}: {why[:1500]}" for call, why in wrong.items())
    assert asked > 100
