"""The store benchmark's own parts: what it writes and how it counts."""

from __future__ import annotations

from pathlib import Path

import lance
import numpy as np

from bench.corpus import BEGAN, MODEL, ClusteredVectors, Corpus, sha256
from bench.store import _compared, _during
from bench.store_queries import Sample
from bench.store_writer import Span
from bench.tables import Coverage, coverage
from shoal.settings import Settings
from shoal.store.writing import TableWriter


def test_a_document_is_the_same_whenever_it_is_asked_for() -> None:
    one, other = Corpus(16, chunks=2, words=24), Corpus(16, chunks=2, words=24)
    (_, wanted) = one.documents([4, 5], 10)
    again = other.document(5, 11)
    assert wanted.fetched == again.fetched
    assert wanted.vectors is not None
    assert again.vectors is not None
    np.testing.assert_array_equal(wanted.vectors, again.vectors)


def test_another_version_has_another_text_hash_and_vector_of_the_same_cluster() -> None:
    corpus = Corpus(64, chunks=1, words=24)
    first, second, stranger = corpus.document(1, 0), corpus.document(1, 1, version=1), corpus.document(2, 2)
    assert first.fetched.sha256 == sha256(1) != second.fetched.sha256
    assert first.fetched.extraction is not None
    assert second.fetched.extraction is not None
    assert first.fetched.extraction.chunks[0].text != second.fetched.extraction.chunks[0].text
    assert first.vectors is not None
    assert second.vectors is not None
    assert stranger.vectors is not None
    assert first.vectors[0] @ second.vectors[0] > first.vectors[0] @ stranger.vectors[0]


def test_clusters_are_of_very_unequal_size_and_hold_together() -> None:
    source, draw = ClusteredVectors(64, clusters=100), np.random.default_rng(0)
    clusters = source.clusters(draw, 2_000)
    sizes = np.sort(np.bincount(clusters, minlength=100))
    assert sizes[-1] > 10 * np.median(sizes)
    vectors = source.around(draw, clusters)
    np.testing.assert_allclose(np.linalg.norm(vectors, axis=1), 1, rtol=1e-5)
    likeness, same = vectors @ vectors.T, clusters[:, None] == clusters[None]
    np.fill_diagonal(same, False)
    assert likeness[same].mean() > likeness[~same].mean() + 0.2


def test_only_answers_that_began_during_the_upkeep_count_as_during_it() -> None:
    spans = [Span("build", "", 10, 20, 1.0), Span("fold", "", 20, 30, 1.0)]
    samples = [Sample(began, began) for began in (1.0, 11, 12, 13, 14, 15, 25)]
    found = _during((samples, 0.7), spans, "build")
    assert found is not None
    assert (found.count, found.p50_ms, found.p95_ms) == (5, 13, 15)
    assert _during((samples, 0.7), spans, "fold") is None, "one answer says nothing"
    assert _during(([], 0.0), spans, "build") is None


def test_a_figure_that_was_not_measured_has_no_ratio() -> None:
    names = (
        "data_bytes_per_row", "index_bytes_per_row", "build_cpu_s", "recall_at_10", "recall_at_10_refined",
        "query_cpu_ms", "exact_scan_cpu_ms", "upsert_rows_per_cpu_s",
    )  # fmt: skip
    whole: dict[str, float | None] = dict.fromkeys(names, 4.0)
    half: dict[str, float | None] = dict.fromkeys(names, 2.0) | {"build_cpu_s": None}
    found = _compared(whole, half)
    assert found["data_bytes_per_row_vs_float32"] == 0.5
    assert found["build_cpu_s_vs_float32"] is None


def test_a_chunk_written_behind_an_index_is_not_covered_and_the_fence_is_no_chunk(tmp_path: Path) -> None:
    writer = TableWriter.open(str(tmp_path), {}, MODEL, 8, settings=Settings(), now=BEGAN)
    assert coverage(str(tmp_path)) == Coverage(0, 0, None)
    writer.apply(Corpus(8, chunks=3, words=12).documents([1, 2], 1), (), BEGAN)
    assert coverage(str(tmp_path)) == Coverage(6, 0, None)
    lance.dataset(f"{tmp_path}/scraper_vectors.lance").optimize.optimize_indices(index_names=["content_summary_idx"])
    assert coverage(str(tmp_path)) == Coverage(6, 6, None)
    writer._tables["vectors"].refresh()
    writer.apply([Corpus(8, chunks=3, words=12).document(1, 3, version=1)], (), BEGAN)
    assert coverage(str(tmp_path)) == Coverage(6, 3, None)


def test_coverage_is_that_of_the_index_which_holds_least() -> None:
    assert Coverage(10, 10, None).share == 1.0, "without a vector index the search is exact"
    assert Coverage(10, 10, 5).share == 0.5
    assert Coverage(10, None, 10).share == 0.0
    assert Coverage(10, 10, None).is_whole(with_vectors=False)
    assert not Coverage(10, 10, None).is_whole(with_vectors=True)
    assert not Coverage(10, 10, 9).is_whole(with_vectors=True)
    assert Coverage(10, 9, 9).is_whole(with_vectors=True, spare=1)
