"""Both sides of similar-apis say the same kind of text, bounded, without secrets, whatever the input."""

from __future__ import annotations

from datetime import UTC, datetime
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from shoal.documents.api_text import TEXT_CHARS_MAX, api_text, describe_api, fitted
from shoal.documents.content import Content, FieldProfile, Section
from shoal.documents.context import Context
from shoal.records import ApiTraits

URL = "https://webservices.iso-ne.com/api/v1.1/genfuelmix/current"


def _indexed(url: str | None = URL, fields: tuple[FieldProfile, ...] = (), **more: Any) -> str:
    context = Context("x.json", None, url, "ISONE", "fuel_mix", "isone_genfuelmix", datetime(2025, 1, 1, tzinfo=UTC))
    return api_text(Content("JSON", more.pop("sections", ()), fields, **more), ApiTraits(auth_method="basic"), context)


FIELDS = (
    FieldProfile("$.GenFuelMixes.GenFuelMix[].BeginDate", "date-time", 9),
    FieldProfile("$.GenFuelMixes.GenFuelMix[].GenMw", "number", 9, unit="MW"),
    FieldProfile("$.GenFuelMixes.GenFuelMix[].FuelCategory", "string", 9, values=("Wind",)),
)


def test_both_sides_of_one_api_share_their_words():
    indexed = _indexed(fields=FIELDS)
    asked = describe_api(
        {
            "endpoint": URL,
            "method": "GET",
            "auth": {"type": "basic"},
            "response_fields": ["BeginDate", "GenMw", "FuelCategory"],
        }
    )
    for words in ("GET ISO New England", "gen fuel mix current", "begin date, gen mw, fuel category", "auth: basic"):
        assert words in indexed.replace("gen fuel mix, ", "")
        assert words in asked


@pytest.mark.parametrize(
    "fields",
    [
        {"fields": ["load_mw", "price"]},
        {"fields": {"load_mw": "number", "price": "number"}},
        {"response": {"data": [{"load_mw": 1.5, "price": 30}]}},
        {"response_fields": "load_mw, price"},
        {"schema": {"properties": {"load_mw": {"type": "number"}, "price": {"type": "number"}}}},
        {"fields": [{"name": "load_mw", "type": "float"}, {"name": "price", "type": "float"}]},
    ],
)
def test_fields_are_found_in_whatever_shape_they_are_given(fields: dict[str, Any]):
    text = describe_api({"endpoint": "https://x.org/a", **fields})
    listed = text.partition("fields: ")[2]
    assert "load mw" in listed
    assert "price" in listed
    assert "1.5" not in text


def test_units_stand_beside_their_fields():
    assert "load MW" in describe_api({"fields": {"load": "MW"}})
    assert "load MW" in _indexed(fields=(FieldProfile("load", "number", 1, unit="MW"),))


def test_a_base_address_and_a_path_are_one_endpoint():
    text = describe_api(
        {"endpoint": "/realtimehourlydemand/day/{day}", "base_url": "https://webservices.iso-ne.com/api/v1.1"}
    )
    assert "iso-ne" in text
    assert "demand" in text


def test_codes_of_request_parameters_are_said_in_words():
    text = describe_api({"endpoint": "https://web-api.tp.entsoe.eu/api?documentType=A44&in_Domain=10YFR-RTE------C"})
    assert "energy prices" in text
    assert "France" in text


@pytest.mark.parametrize("required", [True, False])
def test_whether_auth_is_required_is_said(required: bool):
    assert f"auth: {'required' if required else 'none'}" in describe_api(
        {"endpoint": "https://x.org", "auth_required": required}
    )


def test_columns_that_only_count_are_said_once():
    text = _indexed(fields=tuple(FieldProfile(f"H{i}", "number", 1) for i in range(96)))
    assert text.count("h") < 30


def test_without_a_url_source_and_dataset_tell():
    text = _indexed(url=None, fields=FIELDS)
    assert "ISO New England" in text
    assert "generation by fuel type" in text


@pytest.mark.parametrize(
    "spec",
    [
        {"endpoint": "https://user:S3CRETVALUE@x.org/a"},
        {"endpoint": "https://x.org/a?api_key=S3CRETVALUE"},
        {"endpoint": "https://x.org/a", "params": {"api_key": "S3CRETVALUE", "zone": "north"}},
        {"endpoint": "https://x.org/a", "headers": {"Authorization": "Bearer S3CRETVALUE", "X-Api-Key": "S3CRETVALUE"}},
        {"endpoint": "https://x.org/a", "auth": {"type": "bearer", "token": "S3CRETVALUE"}},
        {"endpoint": "https://x.org/a", "password": "S3CRETVALUE"},
        {"endpoint": "https://x.org/a", "auth": "S3CRETVALUE"},
    ],
)
def test_no_secret_is_embedded(spec: dict[str, Any]):
    assert "s3cretvalue" not in describe_api(spec).lower()


def test_a_secret_in_an_indexed_url_is_not_embedded():
    assert "s3cret" not in _indexed(url="https://u:s3cretvalue@x.org/load?token=s3cretvalue").lower()


def test_fitted_obeys_the_models_own_count():
    text = " ".join(f"word{i}" for i in range(300))
    assert len(fitted(text, lambda t: 2 * len(t.split()), 100).split()) <= 50
    assert fitted("x" * 5000, len, 10) == "x" * len(fitted("x" * 5000, len, 10))
    assert fitted("short", len, 10) == "short"


def test_hostile_nesting_is_bounded():
    deep: dict[str, Any] = {"endpoint": "https://x.org/deep"}
    at = deep
    for _ in range(5_000):
        at["fields"] = {"x": {}}
        at = at["fields"]["x"]
    wide = {
        "endpoint": "https://x.org/wide",
        "fields": {f"field_{i}_name": {"type": "x" * 10_000} for i in range(50_000)},
    }
    lists = {"endpoint": "https://x.org/lists", "a": [[[{"b": ["c"] * 10_000}] * 1_000] * 1_000] * 1_000}
    for spec, word in ((deep, "deep"), (wide, "wide"), (lists, "lists")):
        text = describe_api(spec)
        assert word in text
        assert len(text) <= TEXT_CHARS_MAX


JSON = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=30)),
    lambda inner: st.one_of(st.lists(inner, max_size=4), st.dictionaries(st.text(max_size=12), inner, max_size=4)),
    max_leaves=20,
)
KEYS = "endpoint url method auth fields params response pagination description name unit headers"
KEY = st.sampled_from(KEYS.split())


@settings(max_examples=200, deadline=None)
@given(st.dictionaries(st.one_of(KEY, st.text(max_size=10)), JSON, max_size=6))
def test_any_json_is_described(spec: dict[str, Any]):
    text = describe_api(spec)
    assert 0 < len(text) <= TEXT_CHARS_MAX
    text.encode("utf-8")
    assert "\n" not in text


@settings(max_examples=60, deadline=None)
@given(st.text(max_size=40), st.text(max_size=200), st.text(max_size=40), st.one_of(st.none(), st.text(max_size=60)))
def test_any_document_is_described(path: str, said: str, title: str, url: str | None):
    field = FieldProfile(path, "string", 1)
    text = _indexed(url=url, fields=(field,), sections=(Section(said),), title=title)
    assert 0 < len(text) <= TEXT_CHARS_MAX
