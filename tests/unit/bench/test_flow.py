"""The simulated flow: nothing is lost in it, a seed decides it, and it says of one node what was measured."""

from __future__ import annotations

import re
from dataclasses import asdict, replace
from pathlib import Path
from statistics import fmean

import pytest

from bench.flow.__main__ import ONE_INSTALLATION, ONE_NODE_PROVIDED, SIZES, main
from bench.flow.capacity import HEADROOM, bill, parts, plan, writer_s_per_document
from bench.flow.deployment import ONE_NODE, Load
from bench.flow.figures import Figures, parse_figures, read_figures
from bench.flow.flow import Flow
from bench.flow.looking import Look, calibrate, look
from bench.flow.tables import Table
from shoal.store.compaction import FAN_IN
from shoal.store.index_policy import Act

SCALING = Path(__file__).parents[3] / "docs" / "scaling.md"
TOLERANCE = 0.15
"""Of the measured throughput of one node: docs/scaling.md states it."""


@pytest.fixture(scope="module")
def figures() -> Figures:
    return read_figures()


@pytest.fixture(scope="module")
def overloaded(figures: Figures) -> Flow:
    """One node with a provider, asked for ten times what it can do."""
    flow = Flow(figures, replace(ONE_NODE_PROVIDED, table_rows=20_000), Load(300.0, 2.0), 60.0, seed=3)
    flow.run(60.0)
    return flow


def _look(figures: Figures, load: float, seed: int = 1) -> Look:
    deployment = replace(ONE_NODE_PROVIDED, table_rows=20_000)
    return look(figures, deployment, Load(load, 1.0), warm_up_s=5.0, seconds=20.0, seed=seed)


def test_one_node_does_what_make_bench_measured(figures: Figures) -> None:
    measured = figures.value("measured_documents_per_minute")
    assert fmean(calibrate(figures, seed) for seed in (1, 2, 3)) == pytest.approx(measured, rel=TOLERANCE)


def test_the_parts_of_a_document_add_up_to_what_the_whole_stack_was_measured_to_take(figures: Figures) -> None:
    actors = ("reader_cpu_ms", "fetcher_cpu_ms", "embedder_cpu_ms", "ray_cpu_ms")
    spent = sum(figures.value(name) for name in actors) + figures.spreads["extract_cpu_ms"].mean
    spent += figures.value("embedder_cpu_chunk_ms") * figures.spreads["chunks_local"].mean
    spent += figures.value("local_model_cpu_per_kilotoken_ms") * figures.spreads["tokens_local"].mean / 1000
    spent += 1000 * writer_s_per_document(figures, replace(ONE_NODE, commit_rows_max=65))[0]  # 20 documents a commit
    rate_per_s = figures.value("measured_documents_per_minute") / 60
    spent += 1000 * figures.value("background_cores") / rate_per_s
    assert spent == pytest.approx(figures.value("measured_cpu_ms_per_document"), rel=0.1)


def test_what_was_announced_is_committed_in_flight_or_in_the_log(overloaded: Flow) -> None:
    counts = overloaded.counts
    lag = counts.announced - sum(overloaded.log.offsets)
    assert counts.polled == sum(overloaded.log.offsets)
    assert counts.announced == counts.committed + overloaded.in_flight() + lag
    assert lag > 0, "it was asked for more than it can do"


def test_offsets_count_as_committed_only_behind_the_documents(overloaded: Flow) -> None:
    assert 0 < overloaded.counts.offsets <= overloaded.counts.committed
    for reader in overloaded.readers:
        reader.intake.offsets.check_invariants()


def test_the_readers_hold_no_more_than_their_bounds(overloaded: Flow) -> None:
    for reader in overloaded.readers:
        assert reader.in_flight.highest <= overloaded.deployment.in_flight_items_max
        assert reader.credits.held_bytes <= overloaded.deployment.in_flight_bytes_max + reader.credits.message_bytes


def test_a_drained_flow_has_committed_everything_once(figures: Figures) -> None:
    flow = Flow(figures, ONE_NODE_PROVIDED, Load(backlog=300), 600.0, seed=2)
    flow.run(600.0)
    assert (flow.counts.committed, flow.counts.offsets, flow.in_flight()) == (300, 300, 0)
    assert flow.writer.documents == 300
    assert [reader.credits.payload_bytes for reader in flow.readers] == [0, 0]


def test_the_same_seed_gives_the_same_run_and_another_one_another(figures: Figures) -> None:
    assert asdict(_look(figures, 15.0)) == asdict(_look(figures, 15.0))
    assert _look(figures, 15.0).latency_s != _look(figures, 15.0, seed=2).latency_s


def test_littles_law_holds_over_the_whole_flow(figures: Figures) -> None:
    flow = Flow(figures, ONE_NODE_PROVIDED, Load(10.0), 150.0, seed=1)
    flow.run(10.0)
    flow.restart()
    flow.run(150.0)
    took = sum(flow.counts.latencies)  # from the announcement: a poll's wait is in it, and not in `in_flight`
    in_flight = sum(reader.in_flight.mean(flow.engine.now) for reader in flow.readers) * 140.0
    assert in_flight <= took == pytest.approx(in_flight, rel=0.15)


def test_more_than_it_can_do_is_not_carried_and_says_what_is_at_its_end(figures: Figures) -> None:
    found = _look(figures, 400.0)
    assert not found.is_carried
    assert found.saturates.startswith("cores of this machine")
    assert found.lag > 0
    assert found.paused > 0.5, "the readers hold back"


def test_a_tier_is_used_up_and_never_refuses(figures: Figures) -> None:
    deployment = replace(ONE_INSTALLATION, tier="tier1", table_rows=20_000)
    flow = Flow(figures, deployment, Load(60.0), 120.0, seed=1)
    flow.run(60.0)
    flow.restart()
    flow.run(120.0)
    assert flow.embedding.refused == 0
    assert 0.9 <= flow.embedding.utilisation() <= 1.01


def test_what_arithmetic_proposes_carries_the_load(figures: Figures) -> None:
    load = Load(300.0, 30.0)
    deployment = plan(figures, load, replace(ONE_INSTALLATION, table_rows=20_000))
    assert deployment.installations > 1
    assert look(figures, deployment, load, warm_up_s=10.0, seconds=20.0, seed=1).is_carried


def test_a_plan_leaves_each_serial_part_its_headroom(figures: Figures) -> None:
    for rate in (10.0, 1_000.0, 100_000.0):
        deployment = plan(figures, Load(rate), ONE_INSTALLATION)
        least = min(part.documents_per_s for part in parts(figures, deployment) if part.name == "the embedder")
        assert rate / deployment.installations <= HEADROOM * least
        assert deployment.partitions >= deployment.readers


def test_the_document_on_scaling_says_what_the_arithmetic_says(figures: Figures) -> None:
    told = dict(re.findall(r"^\| ([^|]+?) \| ([\d,]+) \|", SCALING.read_text(), re.MULTILINE))
    at = [parts(figures, replace(ONE_INSTALLATION, table_rows=rows)) for rows in SIZES]
    for part in (part for found in at for part in found):
        (number,) = (value for name, value in told.items() if name.startswith(part.name))
        assert int(number.replace(",", "")) == pytest.approx(part.documents_per_s, abs=0.5), part.name


def test_a_writer_carries_less_the_larger_its_tables_are(figures: Figures) -> None:
    costs = [
        writer_s_per_document(figures, replace(ONE_INSTALLATION, table_rows=rows))[0]
        for rows in (0, 20_000, 100_000, 1_000_000, 10_000_000)
    ]
    assert costs == sorted(costs)
    assert costs[-1] > 5 * costs[-2], "folds write the indexes anew"


def test_a_bill_grows_with_the_load(figures: Figures) -> None:
    one, thousand = (bill(figures, Load(rate), rate / 10) for rate in (10.0, 10_000.0))
    assert thousand.usd_a_day == pytest.approx(1_000 * one.usd_a_day)
    assert thousand.tokens_per_minute == pytest.approx(10_000 * 60 * figures.spreads["tokens_openai"].mean)


def test_a_tables_fragments_hold_its_rows_whatever_is_compacted() -> None:
    table = Table(30_000, 1536)
    for turn in range(400):
        table.written(30)
        if turn % 40 == 39:
            table.compact()
    assert sum(one.rows for one in table.fragments) == table.rows == 42_000
    assert table.rewritten
    assert len([one for one in table.fragments if one.rows < FAN_IN**2]) < 80


def test_rows_are_indexed_or_not_and_a_build_takes_those_that_were_there() -> None:
    table = Table(30_000, 1536)
    table.written(4_000)
    table.fold()
    assert (sum(table.segments), table.unindexed) == (34_000, 0)
    table.written(1_000)
    table.built(Act.TRAIN, 34_500)
    assert (table.segments, table.unindexed, table.trained_rows) == ([34_500], 500, 34_500)


def test_drawn_documents_have_the_measured_mean(figures: Figures) -> None:
    for spread in figures.spreads.values():
        drawn = [spread.at((at + 0.5) / 20_000) for at in range(20_000)]
        assert sum(drawn) / len(drawn) == pytest.approx(spread.mean, rel=0.01)
        assert drawn == sorted(drawn)


def test_a_law_goes_through_its_points_and_grows_with_the_rows_beyond(figures: Figures) -> None:
    law = figures.laws["fold_cpu_ms"]
    assert [law.at(rows) for rows, _ in law.points] == pytest.approx([cost for _, cost in law.points])
    last, cost = law.points[-1]
    assert law.at(10 * last) == pytest.approx(10 * cost)
    assert law.at(0) == law.points[0][1]


@pytest.mark.parametrize(
    ("tables", "says"),
    [
        ({"figure": {"a": {"value": 1, "unit": "s", "kind": "measured"}}}, "source"),
        ({"figure": {"a": {"value": 1, "unit": "s", "kind": "guessed", "source": "x"}}}, "kind is one of"),
        ({"figure": {"a": {"value": "1", "unit": "s", "kind": "measured", "source": "x"}}}, "a number"),
        ({"figure": {"a": {"value": 1, "kind": "measured", "source": "x"}}}, "unit"),
        ({"law": {"a": {"points": [[1, 1]], "kind": "measured", "source": "x"}}}, "two points"),
        ({"spread": {"a": {"mean": 1, "quantiles": [1, 2], "kind": "measured", "source": "x"}}}, "quantiles"),
    ],
)
def test_a_figure_that_is_wrong_or_of_nobody_is_refused(tables: dict[str, object], says: str) -> None:
    with pytest.raises(ValueError, match=says):
        parse_figures(tables)


def test_no_figure_waits_to_be_filled_in(figures: Figures) -> None:
    assert [one.name for one in figures.figures.values() if "TODO" in one.source] == []


def test_the_command_prints_what_it_found(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["sweep", "--times", "1", "--seconds", "3", "--warm-up", "1", "--table-rows", "5000"]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert sum(line.startswith("| x1 | one node, as it comes |") for line in lines) == 2
    assert main(["parts"]) == 0
    assert "the writer, 10,000,000 chunks" in capsys.readouterr().out
    assert main(["figures"]) == 0


def test_wrong_usage_is_a_line_that_says_what_is_wrong(capsys: pytest.CaptureFixture[str]) -> None:
    for wrong in (["--seconds", "0"], ["--figures", "/nowhere.toml"]):
        with pytest.raises(SystemExit):
            main(wrong)
        assert wrong[0] in capsys.readouterr().err


def test_one_node_is_shoals_own_defaults() -> None:
    from shoal.settings import Settings

    settings = Settings()  # type: ignore[call-arg]
    assert (ONE_NODE.readers, ONE_NODE.fetchers, ONE_NODE.partitions) == (
        settings.readers, settings.fetchers, settings.embedded_partitions,
    )  # fmt: skip
    assert ONE_NODE.linger_s == settings.commit_linger_s
    assert (ONE_NODE.commit_rows_max, ONE_NODE.commit_bytes_max, ONE_NODE.compact_commits) == (
        settings.commit_rows_max, settings.commit_bytes_max, settings.compact_commits,
    )  # fmt: skip
    assert (ONE_NODE.in_flight_items_max, ONE_NODE.in_flight_bytes_max) == (
        settings.in_flight_items_max, settings.in_flight_bytes_max,
    )  # fmt: skip
