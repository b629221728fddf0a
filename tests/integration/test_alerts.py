"""Every alert fires when it should, and does not when nearly: by Prometheus' own promtool."""

from __future__ import annotations

import subprocess
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml

RULES = Path(__file__).parents[2] / "kuberay" / "alerts" / "shoal.rules.yaml"
ALERTS = {
    rule["alert"]: rule for group in yaml.safe_load(RULES.read_text())["groups"] for rule in group["rules"]
}  # fmt: skip
AT = "60m"
Check = Callable[[list[dict[str, Any]]], subprocess.CompletedProcess[str]]
Series = dict[str, str]  # series -> its values, one a minute, in promtool's notation

STATUS = "shoal_status_age_seconds"
LAG, ENDED = "shoal_lag_records", "shoal_messages_ended_total"
REQUESTS, SEARCH = (
    "shoal_embedder_requests_total",
    'shoal_http_request_seconds_bucket{route="/mcp",replica="a",le="%s"}',
)
DEAD = 'shoal_dead_letters_total{reason="empty"}'


def buckets(slow_per_min: int) -> Series:
    """100 searches a minute, of which so many take between half a second and a second."""
    return {SEARCH % "0.5": f"0+{100 - slow_per_min}x60", SEARCH % "1.0": "0+100x60", SEARCH % "+Inf": "0+100x60"}


# What makes it fire, and what comes near and must not. Two replicas that show the same flow are one.
CASES: dict[str, tuple[Series, Series]] = {
    "ShoalNotScraped": ({"up": "0x60"}, {STATUS: "1x60"}),
    "ShoalStatusStale": ({STATUS: "61x60"}, {STATUS: "59x60"}),
    "ShoalDown": ({'shoal_health{health="down"}': "1x60"}, {'shoal_health{health="degraded"}': "1x60"}),
    "ShoalActorRestarts": (
        {'shoal_actor_restarts_total{actor="reader-0"}': "0x40 1+1x20"},
        {'shoal_actor_restarts_total{actor="reader-0"}': "0x40 1 1 2x20"},
    ),
    "ShoalDependencyUnwell": (
        {'shoal_dependency_unwell{dependency="s3://scrapes"}': "1x60"},
        {'shoal_dependency_unwell{dependency="s3://scrapes"}': "_x55 1x5"},
    ),
    "ShoalLagGrowing": (
        {f'{LAG}{{replica="a"}}': "0+10x60", f'{LAG}{{replica="b"}}': "0+10x60"},
        {f'{LAG}{{replica="a"}}': "1000-10x60", 'shoal_lag_records{namespace="other"}': "0+1x60"},
    ),
    "ShoalLagOld": ({"shoal_lag_seconds": "901x60"}, {"shoal_lag_seconds": "899x60"}),
    "ShoalPartitionStuck": (
        {'shoal_partition_unowned_seconds{topic="t",partition="0"}': "121x60"},
        {'shoal_partition_stuck_seconds{topic="t",partition="0"}': "299x60"},
    ),
    "ShoalBrokerDown": (
        {"shoal_broker_unreachable_seconds": "61x60"},
        {"shoal_broker_unreachable_seconds": "30x60", "shoal_lag_unknown_partitions": "0x60"},
    ),
    "ShoalDeadLetters": ({DEAD: "0+1x60"}, {DEAD: "0x50 3x10"}),
    "ShoalMostlyDeadLetters": ({DEAD: "0+6x60", ENDED: "0+10x60"}, {DEAD: "0+4x60", ENDED: "0+10x60"}),
    "ShoalFeedOverdue": ({'shoal_feeds{state="overdue"}': "2x60"}, {'shoal_feeds{state="unknown"}': "2x60"}),
    "ShoalProviderThrottled": (
        {'shoal_embedder_failed_requests_total{cause="throttled"}': "0+30x60", REQUESTS: "0+100x60"},
        {'shoal_embedder_failed_requests_total{cause="throttled"}': "0+10x60", REQUESTS: "0+100x60"},
    ),
    "ShoalProviderQuotaSpent": (
        {'shoal_embedder_failed_requests_total{cause="quota"}': "0x55 1x5"},
        {'shoal_embedder_failed_requests_total{cause="quota"}': "7x60"},
    ),
    "ShoalEmbedderUnwell": ({"shoal_embedder_unwell_seconds": "301x60"}, {"shoal_embedder_unwell_seconds": "200x60"}),
    "ShoalSearchesByKeywordsOnly": (
        {'shoal_query_embedder_unwell_seconds{replica="a"}': "121x60"},
        {'shoal_query_embedder_unwell_seconds{replica="a"}': "0x60"},
    ),
    "ShoalBudgetNearlySpent": (
        {"shoal_spent_month_usd": "81x60", "shoal_limit_month_usd": "100x60"},
        {"shoal_spent_day_usd": "81x60", "shoal_limit_day_usd": "0x60"},  # no limit
    ),
    "ShoalBudgetSpent": ({"shoal_budget_exhausted": "1x60"}, {"shoal_budget_exhausted": "0x60"}),
    "ShoalWriterNotCommitting": (
        {"shoal_last_commit_age_seconds": "601x60", LAG: "5x60"},
        {"shoal_last_commit_age_seconds": "9000x60", LAG: "0x60"},  # nothing to do
    ),
    "ShoalCommitsFail": ({"shoal_failed_commits_total": "0+1x60"}, {"shoal_failed_commits_total": "5x60"}),
    "ShoalFenceLost": (
        {"shoal_writer_epoch": "1+1x60"},
        {"shoal_writer_epoch": "1x30 2x30", "shoal_writer_ended": "0x60"},
    ),
    "ShoalIndexCoverageLow": (
        {"shoal_index_coverage_ratio": "0.8x60", "shoal_chunks": "6000x60"},
        {"shoal_index_coverage_ratio": "0.8x60", "shoal_chunks": "400x60"},
    ),
    "ShoalUpkeepFails": (
        {'shoal_index_failures{table="vectors",column="id"}': "3x60"},
        {'shoal_index_failures{table="vectors",column="id"}': "1x60", "shoal_failed_upkeep_total": "9x60"},
    ),
    "ShoalRecallLow": (
        {"shoal_recall_ratio": "0.94x65", "shoal_recall_target_ratio": "0.95x65"},
        {"shoal_recall_ratio": "0.95x65", "shoal_recall_target_ratio": "0.95x65"},
    ),
    "ShoalDiskFilling": (
        {"shoal_disk_free_bytes": "14x60", "shoal_disk_size_bytes": "100x60"},
        {"shoal_disk_free_bytes": "16x60", "shoal_disk_size_bytes": "100x60"},
    ),
    "ShoalDiskFull": (
        {"shoal_disk_free_bytes": "2x60", "shoal_disk_size_bytes": "100x60"},
        {"shoal_disk_free_bytes": "4x60", "shoal_disk_size_bytes": "100x60"},
    ),
    "ShoalSearchSlow": (buckets(6), buckets(4)),
    "ShoalErrorRate": (
        {'shoal_http_requests_total{status="500",replica="a"}': "0+3x60",
         'shoal_http_requests_total{status="200",replica="b"}': "0+97x60"},
        {'shoal_http_requests_total{status="501",replica="a"}': "0+50x60",
         'shoal_http_requests_total{status="200",replica="a"}': "0+50x60"},
    ),
}  # fmt: skip


def the_test(alert: str, series: Series, fires: int) -> dict[str, Any]:
    expression = f'count(ALERTS{{alertname="{alert}",alertstate="firing"}})'
    samples = [{"labels": "{}", "value": fires}] if fires else []
    return {
        "interval": "1m",
        "input_series": [{"series": name, "values": values} for name, values in series.items()],
        "promql_expr_test": [{"expr": expression, "eval_time": AT, "exp_samples": samples}],
    }


@pytest.fixture
def check(promtool: str, tmp_path: Path) -> Check:
    def checked(tests: list[dict[str, Any]]) -> subprocess.CompletedProcess[str]:
        file = tmp_path / "tests.yaml"
        file.write_text(yaml.safe_dump({"rule_files": [str(RULES)], "tests": tests}))
        return subprocess.run([promtool, "test", "rules", str(file)], capture_output=True, text=True, timeout=100)

    return checked


def test_every_alert_has_its_case() -> None:
    assert set(CASES) == set(ALERTS)


def test_each_alert_fires_when_it_should_and_not_when_nearly(check: Check) -> None:
    tests = []
    for alert, (bad, well) in CASES.items():
        # The recall's bound is an hour: its series are longer, and it is asked at their end.
        at = "64m" if alert == "ShoalRecallLow" else AT
        for series, fires in ((bad, 1), (well, 0)):
            test = the_test(alert, series, fires)
            test["promql_expr_test"][0]["eval_time"] = at
            tests.append(test)
    done = check(tests)
    assert done.returncode == 0, done.stdout + done.stderr


def test_a_test_that_expects_the_wrong_thing_fails(check: Check) -> None:
    done = check([the_test("ShoalDown", CASES["ShoalDown"][0], 0)])
    assert done.returncode == 1


def test_what_it_says_is_filled_in(check: Check) -> None:
    rule = ALERTS["ShoalPartitionStuck"]
    labels = {"topic": "t", "partition": "0"}
    expected = {
        "exp_labels": labels | rule["labels"],
        "exp_annotations": rule["annotations"] | {"summary": "t/0 stands still"},
    }
    test = the_test("ShoalPartitionStuck", CASES["ShoalPartitionStuck"][0], 1)
    test["alert_rule_test"] = [{"eval_time": AT, "alertname": "ShoalPartitionStuck", "exp_alerts": [expected]}]
    done = check([test])
    assert done.returncode == 0, done.stdout + done.stderr
