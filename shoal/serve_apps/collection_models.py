"""The body of the general search (contracts 3), validated at the border; what is unknown is refused."""

from __future__ import annotations

from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, model_validator

from shoal.serve_apps.filter_models import FilterTree
from shoal.serve_apps.models import InvalidParameter, Request, Text

LIMIT_MAX = 200
"""Documents of one page. Each may carry several chunks of some kilobytes: more than this belongs on further pages."""


class CollectionSearch(Request):
    """Body of `POST /api/v1/collections/{name}/search`."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    query: Text | None = Field(
        None, max_length=4000, description='What to look for, in words; what stands in "quotes" must occur so.'
    )
    mode: Literal["hybrid", "vector", "keyword"] | None = Field(
        None, description="How `query` is matched: by meaning and words (hybrid, the default), or by one of them."
    )
    filters: FilterTree | None = Field(None, description="Conditions that every result meets.")
    limit: int = Field(10, ge=1, le=LIMIT_MAX, description="Documents (not chunks) per page.")
    cursor: str | None = Field(None, max_length=4000, description="`next_cursor` of the page before.")
    explain: bool = Field(False, description="Say how each result was ranked, by which plan, and in what time.")
    wait_token: str | None = Field(
        None, pattern=r"^\d{1,18}$", description="A commit sequence: wait until the index has seen it."
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.mode and not self.query:
            raise InvalidParameter("mode", "needs a query; leave it out to filter only")
        return self


def body_schema() -> dict[str, Any]:
    """The JSON schema of the body, with its parts as components of the OpenAPI document (`components`)."""
    schema = CollectionSearch.model_json_schema(ref_template="#/components/schemas/{model}")
    return {name: value for name, value in schema.items() if name != "$defs"}


def components() -> dict[str, Any]:
    """What `body_schema` refers to: filters are recursive, so they need names."""
    schema = CollectionSearch.model_json_schema(ref_template="#/components/schemas/{model}")
    return dict(schema.get("$defs", {}))
