"""What REST and MCP accept, validated once at the border (pydantic); inside are plain values.

Every wrong value becomes an `InvalidParameter` that names the parameter and says what would be right. Empty
strings count as absent. Times without a zone are UTC. Nothing here touches a table or a clock.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from datetime import datetime
from typing import Annotated, Any, Literal, Self

from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, StringConstraints, ValidationError, model_validator

from shoal.errors import PermanentError
from shoal.serve_apps.times import time_bound

QueryType = Literal["sql", "vector", "keyword", "hybrid"]


class InvalidParameter(PermanentError):
    """One parameter of a request is wrong; `parameter` names it as the caller wrote it."""

    def __init__(self, parameter: str, message: str) -> None:
        super().__init__(parameter, message)
        self.parameter = parameter
        self.message = message

    def __str__(self) -> str:
        return f"{self.parameter}: {self.message}"


class NotFound(PermanentError):
    """What was named is not there."""


_CONTROL = r"\u0000-\u0008\u000b\u000c\u000e-\u001f\u007f"


def _no_control_characters(value: object) -> object:
    if isinstance(value, str) and re.search(f"[{_CONTROL}]", value):
        raise ValueError("contains control characters")
    return value


def _described(schema: dict[str, Any]) -> None:
    schema.setdefault("pattern", f"^[^{_CONTROL}]*$")  # where the field has a narrower one, that says it


def _is_empty(value: object) -> bool:
    # Python takes four control characters for white space: they are not nothing, they are refused.
    return value is None or (isinstance(value, str) and not value.strip() and not re.search(f"[{_CONTROL}]", value))


Text = Annotated[str, BeforeValidator(_no_control_characters), Field(json_schema_extra=_described)]
Name = Annotated[Text, StringConstraints(max_length=200, strip_whitespace=True)]
Sha256 = Annotated[str, StringConstraints(pattern=r"^[0-9a-fA-F]{64}$", to_lower=True, strip_whitespace=True)]


class Request(BaseModel):
    """Root of what a caller sends: frozen, empty strings absent."""

    model_config = ConfigDict(frozen=True, extra="ignore")

    @model_validator(mode="before")
    @classmethod
    def _empty_is_absent(cls, values: Any) -> Any:
        if not isinstance(values, Mapping):
            return values
        # Only of what we know: an unknown name stays, to be refused or ignored as such.
        return {k: v for k, v in values.items() if k not in cls.model_fields or not _is_empty(v)}

    @classmethod
    def read(cls, values: Mapping[str, object] | Self) -> Self:
        """`values` as this model. Raises InvalidParameter naming the first wrong one."""
        if isinstance(values, cls):
            return values
        try:
            return cls.model_validate(values)
        except ValidationError as error:
            raise invalid_parameter(error) from None

    @classmethod
    def unknown(cls, names: Mapping[str, object]) -> tuple[str, ...]:
        """Those of `names` that this model doesn't know, sorted, at most ten and each cut."""
        return tuple(sorted(name[:60] for name in names if name not in cls.model_fields))[:10]


def invalid_parameter(error: ValidationError) -> InvalidParameter:
    """The first of pydantic's complaints, as ours."""
    first = error.errors(include_url=False, include_input=False, include_context=False)[0]
    # Tags of a union (filter_models.py) stand in angle brackets: the caller did not write them.
    name = ".".join(str(part)[:60] for part in first["loc"] if not str(part).startswith("<")) or "body"
    return InvalidParameter(name, first["msg"].removeprefix("Value error, "))


def state_of(as_of: str | None) -> datetime | int | None:
    """What `as_of` names: a commit sequence, a time, or None. Raises InvalidParameter."""
    text = (as_of or "").strip()
    if not text:
        return None
    if re.fullmatch(r"[0-9]+", text):
        if len(text) > 18:
            raise InvalidParameter("as_of", "no commit sequence is so large")
        return int(text)
    try:
        return time_bound(text, is_end=False)[0]
    except ValueError as error:
        raise InvalidParameter("as_of", f"no commit sequence (412) and {error}") from None


class ScrapeSearch(Request):
    """Parameters of `GET /api/v1/scrapes/search` and of the MCP tool `search_scrapes`."""

    data_source: Name | None = Field(
        None, description="Who publishes it, in any case: nyiso, caiso.", examples=["nyiso"]
    )
    data_type: Name | None = Field(None, description="Kind of data, e.g. load_forecast.")
    dataset: Name | None = Field(None, description="Dataset, e.g. nyiso_load_forecast.")
    environment: Name | None = Field(None, description="dev, staging or prod.")
    scraper_name: Name | None = Field(None, description="The scraper that collected it.")
    file_format: Name | None = Field(None, description="JSON, CSV, XML, HTML, XLSX, ZIP, ... in any case.")
    start_date: Text | None = Field(
        None, max_length=40, description="Collected at or after: a date or a time (UTC).", examples=["2025-01-20"]
    )
    end_date: Text | None = Field(
        None, max_length=40, description="Collected until: a date includes that whole day.", examples=["2025-01-20"]
    )
    query: Text | None = Field(None, max_length=4000, description="What to look for, in words.")
    hash: Sha256 | None = Field(None, description="sha256 of the stored bytes, 64 hex digits.")
    mode: Literal["vector", "keyword", "hybrid"] | None = Field(
        None, description="How `query` is matched: by meaning (the default), by words, or both."
    )
    limit: int = Field(100, ge=1, le=1000, description="Documents (not chunks) per page.")
    cursor: str | None = Field(None, max_length=4000, description="`next_cursor` of the page before.")
    include_superseded: bool = Field(False, description="Older versions of documents too.")
    wait_token: str | None = Field(
        None, pattern=r"^\d{1,18}$", description="A commit sequence: wait until the index has seen it."
    )
    explain: bool = Field(False, description="Say how each result was ranked.")
    as_of: Text | None = Field(
        None,
        max_length=40,
        description="The index as it was: a commit sequence, or a time (a date: its beginning, UTC).",
    )

    @model_validator(mode="after")
    def _check(self) -> Self:
        for name, is_end in (("start_date", False), ("end_date", True)):
            if (value := getattr(self, name)) is not None:
                try:
                    time_bound(value, is_end=is_end)
                except ValueError as error:
                    raise InvalidParameter(name, str(error)) from None
        _ = self.state_of
        start, end = self.collected_from, self.collected_until
        if start and end and start > end[0]:
            raise InvalidParameter("end_date", "is before start_date")
        if self.mode and not self.query:
            raise InvalidParameter("mode", "needs a query; leave it out to filter only")
        return self

    @property
    def collected_from(self) -> datetime | None:
        """Inclusive lower bound of `collected_at`."""
        return time_bound(self.start_date, is_end=False)[0] if self.start_date else None

    @property
    def collected_until(self) -> tuple[datetime, bool] | None:
        """Upper bound of `collected_at`, and whether it is exclusive."""
        return time_bound(self.end_date, is_end=True) if self.end_date else None

    @property
    def state_of(self) -> datetime | int | None:
        """The state of the index that is asked for: a commit sequence or a time."""
        return state_of(self.as_of)


class FixPatternsQuery(Request):
    """Whose fixes, and for which error."""

    scraper_name: Name = Field(description="The scraper that fails.", examples=["nyiso_load_forecast"])
    error_type: Name | None = Field(None, description="e.g. HTTPError, KeyError, timeout.")
    error_message: Text | None = Field(None, max_length=4000, description="The message; similar ones are found too.")
    limit: int = Field(5, ge=1, le=20)


class FixReport(Request):
    """A fix that worked, or one that did not, for the next one who meets the same error."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    scraper_name: Name = Field(min_length=1, examples=["nyiso_load_forecast"])
    error_type: Name = Field(min_length=1, examples=["KeyError"])
    error_message: Text | None = Field(None, max_length=4000, examples=["KeyError: 'forecast'"])
    summary: Text = Field(min_length=1, max_length=4000, examples=["The field was renamed to load_forecast."])
    diff: Text | None = Field(None, max_length=64_000, description="The change, as a unified diff.")
    outcome: Literal["worked", "failed"] = Field(examples=["worked"])
    reported_by: Name | None = Field(None, description="Who says so.")


class FixMark(Request):
    """What became of a fix that was reported: that it is wrong (or right after all), or worked or failed after all."""

    model_config = ConfigDict(frozen=True, extra="forbid")

    wrong: bool | None = Field(None, description="True: nobody should apply it; it is kept, ranked last.")
    outcome: Literal["worked", "failed"] | None = Field(None, description="What really came of it.")
    note: Text | None = Field(None, max_length=4000, description="Why; its first 400 characters stand beside the mark.")

    @model_validator(mode="after")
    def _says_something(self) -> Self:
        if self.wrong is None and self.outcome is None:
            raise InvalidParameter("wrong", "say what became of the fix: wrong (true or false) or outcome")
        return self


class FixId(Request):
    """The id of a fix in a path."""

    id: Annotated[str, StringConstraints(pattern=r"^[A-Za-z0-9_.:-]{1,200}$")]


class SimilarApisQuery(Request):
    """How many similar APIs."""

    limit: int = Field(10, ge=1, le=50)


class Sha256Query(Request):
    """The hash in a path."""

    hash: Sha256
