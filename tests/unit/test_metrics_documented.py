"""Every metric has its row, its convention and its place in the docs; and what is exported is in the table."""

from __future__ import annotations

import re
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from prometheus_client.parser import text_string_to_metric_families

from docs.render_metrics import metrics_page
from shoal.histograms import Durations
from shoal.metric_table import STAGES, TABLE
from shoal.metrics import EmbedderStatistics
from shoal.serve_apps import embedder_metrics
from shoal.serve_apps.flow_metrics import SERIES_MAX, Samples
from shoal.serve_apps.metrics_page import Metrics, text
from shoal.serve_apps.ray_mirror import RayMirror
from shoal.serve_apps.request_frame import Answered
from tests.fixtures.full_status import FEEDS, INDEXES, a_full_status

ROOT = Path(__file__).parents[2]
NOW = datetime(2026, 1, 20, 3, tzinfo=UTC)


def the_page() -> str:
    """With a value for every row of the table."""
    metrics = Metrics("host:1")
    metrics.observe(Answered("GET", "/api/v1/scrapes/search", 200, 0.03, {"search": 0.02}))
    durations = Durations()
    durations.observe("stage.provider_request", 0.2)
    embedder = EmbedderStatistics(
        model="hash:8", width=8, pid=1, uptime_s=1, texts=2, cache_hits=1, requests=1, tokens=9, queued_texts=0,
        request_failures={"throttled": 1}, durations=durations.counts(),
    )  # fmt: skip
    page = metrics.page(a_full_status(NOW), NOW, feeds=FEEDS, indexes=INDEXES)
    return (page + text(embedder_metrics.families([embedder], "host:2"))).decode()


def test_docs_metrics_is_made_from_the_table() -> None:
    remedy = "run `.venv/bin/python docs/render_metrics.py`"
    assert (ROOT / "docs" / "metrics.md").read_text() == metrics_page(), remedy


def test_every_row_of_the_table_is_exported_and_nothing_else_is() -> None:
    families = {family.name: family for family in text_string_to_metric_families(the_page())}
    exported = {name + ("_total" if family.type == "counter" else "") for name, family in families.items()}
    assert exported == set(TABLE)
    for name, row in TABLE.items():
        family = families[name.removesuffix("_total")]
        assert (family.type, family.documentation) == (row.kind, row.meaning)
        labels = {frozenset(sample.labels) - {"le"} for sample in family.samples}
        assert labels == {frozenset(row.labels)}, name


@pytest.mark.parametrize("name", TABLE)
def test_names_follow_the_convention(name: str) -> None:
    row = TABLE[name]
    assert re.fullmatch(r"shoal(_[a-z]+)+", name)
    assert name.endswith("_total") == (row.kind == "counter")
    assert row.kind != "histogram" or row.unit == "seconds"
    assert not re.search(r"_(ms|s|mb|kb|percent)(_total)?$", name)
    assert row.meaning.endswith(".")
    assert not {"document", "id", "user", "query", "url", "key", "hash"} & set(row.labels)


def test_every_stage_that_is_measured_has_its_line() -> None:
    named = {stage for stage, _ in STAGES}
    sources = "".join(path.read_text() for path in [*(ROOT / "shoal").glob("actors/*.py"), *_embeddings()])
    literal = set(re.findall(r'"stage\.([a-z_]+)"', sources)) | set(re.findall(r'_timed\("([a-z_]+)"', sources))
    retried = {stage.replace(" ", "_") for stage in re.findall(r'_retrying\(\s*item, "([a-z ]+)"', sources)}
    assert literal | retried | {"commit"} == named


def _embeddings() -> list[Path]:
    return list((ROOT / "shoal" / "embeddings").glob("*.py"))


def test_a_name_that_is_not_in_the_table_can_not_be_exported() -> None:
    with pytest.raises(KeyError):
        Samples().put("made_up", 1)
    with pytest.raises(ValueError, match="labels"):
        Samples().put("partition_lag_records", 1, "topic")


def test_series_are_bounded() -> None:
    found = Samples()
    for number in range(2 * SERIES_MAX):
        found.put("partition_lag_records", number, "t", number)
    (family,) = found.families()
    assert len(family.samples) == SERIES_MAX


class _Gauge:
    def __init__(self, name: str, description: str, labels: tuple[str, ...]) -> None:
        self.name, self.labels, self.values = name, labels, dict[Any, float]()

    def set(self, value: float, tags: dict[str, str]) -> None:
        assert tuple(tags) == self.labels
        self.values[tuple(tags.values())] = value


def test_the_mirror_sets_every_sample_again_each_time() -> None:
    made: dict[str, _Gauge] = {}

    def make(name: str, description: str, labels: tuple[str, ...]) -> _Gauge:
        assert name not in made
        made[name] = _Gauge(name, description, labels)
        return made[name]

    mirror = RayMirror(make)
    metrics = Metrics("host:1")
    for _ in range(2):
        metrics.observe(Answered("GET", "/", 200, 0.03))
        mirror.show(metrics.families())
    assert made["shoal_http_requests_total"].values == {("GET", "/", "200", "host:1"): 2}
    assert made["shoal_http_request_seconds_bucket"].values["GET", "/", "200", "host:1", "0.05"] == 2
    for gauge in made.values():
        gauge.values.clear()
    mirror.show(metrics.families())
    assert all(gauge.values for gauge in made.values())
