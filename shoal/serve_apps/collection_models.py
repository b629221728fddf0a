"""The body of the general search (contracts 3), validated at the border; what is unknown is refused."""

from __future__ import annotations

from dataclasses import replace
from typing import Any, Literal, Self

from pydantic import ConfigDict, Field, field_validator, model_validator

from shoal.serve_apps.filter_models import FilterTree
from shoal.serve_apps.models import InvalidParameter, Request, Text, state_of
from shoal.store.boosts import DAY_S, WEIGHT_MAX, Boosts
from shoal.store.facets import FACETS
from shoal.store.requests import CHUNKS_MAX

LIMIT_MAX = 200
"""Documents of one page. Each may carry several chunks of some kilobytes: more than this belongs on further pages."""


FacetName = Literal[FACETS]  # type: ignore[valid-type]


class BoostsAsked(Request):
    """Boosts of one search. What is absent stays as configured."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    recency: float | None = Field(None, ge=0, le=WEIGHT_MAX, description="Weight of being new; 0 is off.")
    half_life_days: float | None = Field(None, ge=0.001, le=36_500, description="Days in which `recency` halves.")
    title: float | None = Field(None, ge=0, le=WEIGHT_MAX, description="Weight of the query's words in the title.")
    identifier: bool | None = Field(
        None, description="A document whose id, urn, path or hash is the query comes first."
    )

    def over(self, configured: Boosts) -> Boosts:
        given: dict[str, Any] = self.model_dump(exclude_none=True)
        days = given.pop("half_life_days", None)
        return replace(configured, **given, **({} if days is None else {"half_life_s": days * DAY_S}))


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
    include_superseded: bool = Field(False, description="Older versions of documents too; only without a query.")
    as_of: Text | None = Field(
        None,
        max_length=40,
        description="The index as it was: a commit sequence, or a time (a date: its beginning, UTC).",
    )
    facets: tuple[FacetName, ...] = Field(
        (), max_length=len(FACETS), description="Columns whose values are counted, e.g. data_source, file_format."
    )
    highlight: bool = Field(False, description="A snippet of each chunk, with the places of the query's words.")
    chunks_per_document: int = Field(1, ge=1, le=CHUNKS_MAX, description="Best chunks shown of each document.")
    mmr_lambda: float | None = Field(
        None, ge=0, le=1, allow_inf_nan=False,
        description="Spread near-duplicates: 1 orders by score alone, towards 0 by difference. Absent: off.",
    )  # fmt: skip
    boosts: BoostsAsked | None = Field(None, description="What metadata adds to a match; absent: as configured.")
    rerank: bool = Field(
        False, description="Let the configured reranker order the best results; one page, without a cursor."
    )
    explain: bool = Field(False, description="Say how each result was ranked, by which plan, and in what time.")
    wait_token: str | None = Field(
        None, pattern=r"^\d{1,18}$", description="A commit sequence: wait until the index has seen it."
    )

    @field_validator("facets")
    @classmethod
    def _each_facet_once(cls, facets: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(dict.fromkeys(facets))

    @model_validator(mode="after")
    def _check(self) -> Self:
        if self.mode and not self.query:
            raise InvalidParameter("mode", "needs a query; leave it out to filter only")
        state_of(self.as_of)
        if self.rerank and not self.query:
            raise InvalidParameter("rerank", "needs a query")
        if self.rerank and self.cursor:
            raise InvalidParameter("rerank", "orders the best results of a query, which are one page: leave out cursor")
        return self


def body_schema() -> dict[str, Any]:
    """The JSON schema of the body, with its parts as components of the OpenAPI document (`components`)."""
    schema = CollectionSearch.model_json_schema(ref_template="#/components/schemas/{model}")
    return {name: value for name, value in schema.items() if name != "$defs"}


def components() -> dict[str, Any]:
    """What `body_schema` refers to: filters are recursive, so they need names."""
    schema = CollectionSearch.model_json_schema(ref_template="#/components/schemas/{model}")
    return dict(schema.get("$defs", {}))
