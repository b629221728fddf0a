"""Traits need evidence: what tells gives the trait, what only resembles gives None."""

from __future__ import annotations

import json
from datetime import UTC, datetime

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.documents.content import Content, FieldProfile, Section
from shoal.documents.traits import find_traits, template_url, typical_step

NOW = datetime(2025, 1, 20, 14, tzinfo=UTC)


def _traits(
    url: str | None = None, text: str = "", fields: tuple[FieldProfile, ...] = (), kind: str = "HTML", head: str = ""
):
    sections = (Section(text),) if text else ()
    return find_traits(Content(kind, sections, fields), url, head, NOW)


def _fields(*paths: str) -> tuple[FieldProfile, ...]:
    return tuple(FieldProfile(path, "string", 1) for path in paths)


def _times(low: str, high: str, distinct: int, count: int | None = None) -> FieldProfile:
    return FieldProfile("$.data[].time", "date-time", count or distinct, low, high, distinct=distinct)


# --- endpoint ------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "endpoint"),
    [
        (
            "https://webservices.iso-ne.com/api/v1.1/genfuelmix/day/20240309",
            "https://webservices.iso-ne.com/api/v1.1/genfuelmix/day/{date}",
        ),
        (
            "https://api.x.org/v2/load?api_key=abc123&offset=100&%24top=5",
            "https://api.x.org/v2/load?api_key={api_key}&offset={offset}&$top={top}",
        ),
        ("https://user:pw@x.org/r/8f14e45fceea167a5a36dedd4bea2543/d", "https://x.org/r/{id}/d"),
        ("http://mis.nyiso.com/csv/20250120rtfuelmix.csv", "http://mis.nyiso.com/csv/{date}rtfuelmix.csv"),
    ],
)
def test_an_endpoint_is_the_url_with_its_variables_named(url: str, endpoint: str):
    assert _traits(url).api_endpoint == endpoint


def test_no_endpoint_has_a_secret():
    traits = _traits("https://u:hunter2@x.org/a?token=tok-998877&sig=abcdefgh12345")
    assert "hunter2" not in repr(traits)
    assert "998877" not in repr(traits)
    assert "abcdefgh12345" not in repr(traits)


@pytest.mark.parametrize("url", ["", "file:///etc/passwd", "s3://b/k", "not a url", "http://[bad", None])
def test_what_is_no_web_address_is_no_endpoint(url: str | None):
    assert _traits(url).api_endpoint is None


def test_a_saved_page_tells_where_it_was_saved_from():
    head = "<!DOCTYPE html><!-- saved from url=(0030)https://pronos.adme.com.uy/gpf.php?fecha_ini=5 -->"
    assert _traits(head=head).api_endpoint == "https://pronos.adme.com.uy/gpf.php?fecha_ini={fecha_ini}"


def test_templating_refuses_other_schemes():
    with pytest.raises(ValueError, match="http"):
        template_url("ftp://x.org/a")


# --- auth ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "text", "method"),
    [
        ("https://x.org/a?api_key=1", "", "api_key"),
        ("https://x.org/a?securityToken=1", "", "api_key"),
        ("https://x.org/a?access_token=1", "", "bearer"),
        ("https://x.org/a?keyword=1&monkey=2", "", None),
        (None, "Access denied due to missing subscription key.", "api_key"),
        (None, "You need to register for an API key first.", "api_key"),
        (None, "Send the header Authorization: Bearer <jwt>.", "bearer"),
        (None, "The service uses HTTP Basic.", "basic"),
        (None, "Clients sign in with OAuth 2.0 as described.", "oauth2"),
        (None, "No API key required for this data set.", "none"),
        (None, "The key to success is a token of appreciation.", None),
        (None, "Please provide feedback about our basic service.", None),
    ],
)
def test_auth_is_told_by_names_and_statements(url: str | None, text: str, method: str | None):
    traits = _traits(url, text)
    assert traits.auth_method == method
    assert ("auth_method" in traits.evidence) == (method is not None)


@pytest.mark.parametrize(
    ("scheme", "method"),
    [
        ({"type": "apiKey", "in": "header", "name": "X-Key"}, "api_key"),
        ({"type": "apiKey", "in": "cookie", "name": "sid"}, "cookie"),
        ({"type": "http", "scheme": "bearer"}, "bearer"),
        ({"type": "http", "scheme": "basic"}, "basic"),
        ({"type": "oauth2", "flows": {}}, "oauth2"),
        ({"type": "mutualTLS"}, "mtls"),
    ],
)
def test_openapi_declares_auth_servers_and_paging_exactly(scheme: dict[str, object], method: str):
    spec = {
        "openapi": "3.1.0",
        "servers": [{"url": "https://api.x.org/v1"}],
        "components": {"securitySchemes": {"main": scheme}},
        "paths": {
            "/load": {"get": {"parameters": [{"name": "cursor", "in": "query"}, {"name": "zone", "in": "query"}]}}
        },
    }
    traits = _traits(kind="JSON", head=json.dumps(spec))
    assert (traits.auth_method, traits.api_endpoint, traits.pagination_type) == (
        method,
        "https://api.x.org/v1",
        "cursor",
    )


def test_swagger_two_and_yaml_are_read_too():
    spec = {
        "swagger": "2.0",
        "host": "x.org",
        "basePath": "/v2",
        "paths": {},
        "securityDefinitions": {"b": {"type": "basic"}},
    }
    assert _traits(kind="JSON", head=json.dumps(spec)).auth_method == "basic"
    text = "openapi: 3.0.0\nservers:\n  - url: https://y.org/api\ncomponents:\n  securitySchemes:\n    k:\n"
    text += "      type: http\n      scheme: bearer\n"
    traits = _traits(kind="CODE", head=text)
    assert (traits.auth_method, traits.api_endpoint) == ("bearer", "https://y.org/api")


# --- paging ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "paths", "head", "kind"),
    [
        ("https://x.org/a?page=2", (), "", "page"),
        ("https://x.org/a?startRow=1&rowCount=50000", (), "", "offset"),
        ("https://x.org/a?cursor=abc", (), "", "cursor"),
        (None, ("$.meta.next_cursor",), "", "cursor"),
        (None, ("$.nextPageToken",), "", "cursor"),
        (None, ("$._meta.totalPages",), "", "page"),
        (None, ("$.links.next",), "", "link"),
        (None, ("$['@odata.nextLink']", "$.@odata.nextLink"), "", "link"),
        (None, ("$.exceededTransferLimit",), "", "offset"),
        (None, ("$.count", "$.next", "$.previous", "$.results[]"), '{"next":"https://x.org/a?page=3"}', "page"),
        (None, ("$.next_day.price", "$.total", "$.page_title"), '{"next_day": 1}', None),
        ("https://x.org/homepage?zone=page", ("$.pages_printed",), "", None),
    ],
)
def test_paging_is_told_by_parameters_and_keys(url: str | None, paths: tuple[str, ...], head: str, kind: str | None):
    assert _traits(url, fields=_fields(*paths), kind="JSON", head=head).pagination_type == kind


# --- rate ------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "rate"),
    [
        ("You may send up to 60 requests per minute.", "60/min"),
        ("Limited to 1,000 calls per day and user.", "1000/day"),
        ("Rate limit: 5 per second.", "5/s"),
        ("At most 30 requests every 10 seconds are served.", "30/10s"),
        ("The plant made 60 MW per minute.", None),
        ("There were 400 requests for proposals.", None),
    ],
)
def test_a_rate_limit_is_about_requests(text: str, rate: str | None):
    assert _traits(text=text).rate_limit == rate


# --- freshness -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("text", "freshness"),
    [
        ("The data is updated every 5 minutes.", "5min"),
        ("This page refreshes every fifteen minutes automatically.", "15min"),
        ("New prices are published daily at noon.", "daily"),
        ("Figures are updated in real time.", "realtime"),
        ("Weekly updates are sent to members.", "weekly"),
        ("Bake for 40 minutes, then let it rest for an hour.", None),
        ("The meeting takes place every 5 minutes past noon.", None),
        ("Last updated 5 minutes ago.", None),
        ("Daily peak load by zone", None),
    ],
)
def test_freshness_in_prose_needs_a_verb_of_updating(text: str, freshness: str | None):
    assert _traits(text=text).data_freshness == freshness


@pytest.mark.parametrize(
    ("field", "freshness"),
    [
        (_times("2025-01-20T00:00", "2025-01-20T13:55", 168), "5min"),
        (_times("2025-01-19T00:00Z", "2025-01-20T13:00Z", 38), "hourly"),
        (_times("2025-01-01", "2025-01-20", 20), "daily"),
        (_times("2025-01-01", "2025-01-20", 20, count=480), None),  # dates beside an hour column
        (_times("2023-01-19T00:00Z", "2023-01-20T13:00Z", 38), None),  # an archive
        (_times("2025-01-19T00:00Z", "2025-01-20T13:00Z", 11), None),  # no even step
        (FieldProfile("a/resolution", "string", 2, values=("PT15M",)), "15min"),
        (FieldProfile("Unavailability/Available_Period/resolution", "string", 2, values=("PT1M",)), None),
    ],
)
def test_the_step_of_a_series_tells_freshness(field: FieldProfile, freshness: str | None):
    traits = _traits(fields=(field,), kind="XML")
    assert traits.data_freshness == freshness


def test_a_page_that_reloads_itself_is_fresh():
    assert _traits(head="<META http-equiv=refresh content=40>").data_freshness == "realtime"


def test_a_step_needs_four_times():
    assert typical_step(_times("2025-01-20T00:00", "2025-01-20T02:00", 3)) is None
    assert typical_step(FieldProfile("t", "date-time", 9, "yesterday", "today", distinct=9)) is None


# --- safety ----------------------------------------------------------------------------------------------


@settings(max_examples=150, deadline=None)
@given(st.text(max_size=200), st.one_of(st.none(), st.text(max_size=80), st.text(max_size=40).map("https://".__add__)))
def test_nothing_is_raised_and_every_trait_has_evidence(text: str, url: str | None):
    traits = _traits(url, text, kind="TEXT", head=text)
    found = {
        name
        for name in ("api_endpoint", "auth_method", "rate_limit", "data_freshness", "pagination_type")
        if getattr(traits, name)
    }
    assert found <= set(traits.evidence)
