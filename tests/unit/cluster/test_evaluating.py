"""Test sets of the BEIR layout: what is read, what is refused, and a small one through the whole pipeline."""

from __future__ import annotations

import json
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
import zstandard

from shoal.cluster.beir import Document, load
from shoal.cluster.evaluating import evaluate, own_directory
from shoal.cluster.output import Format
from shoal.errors import ConfigurationError
from shoal.settings import Settings
from shoal.store import purging
from shoal.store.state_files import list_states, write_state

TOPICS = ("wind", "solar", "hydro", "nuclear", "coal", "gas", "tides", "biomass", "storage", "imports")


def lines(entries: list[dict[str, Any]]) -> str:
    return "".join(json.dumps(entry) + "\n" for entry in entries)


def a_set(at: Path, *, corpus: list[dict[str, Any]] | None = None, qrels: str = "q1\td1\t1\n") -> Path:
    at.mkdir(exist_ok=True)
    entries = corpus or [{"_id": "d1", "title": "Wind", "text": "power of the wind"}]
    (at / "corpus.jsonl").write_text(lines(entries))
    (at / "queries.jsonl").write_text(lines([{"_id": "q1", "text": "wind"}, {"_id": "q2", "text": "not judged"}]))
    (at / "qrels.tsv").write_text("query-id\tcorpus-id\tscore\n" + qrels)
    return at


def test_a_compressed_corpus_of_several_frames_is_read_whole(tmp_path: Path) -> None:
    directory = a_set(tmp_path / "set")
    (directory / "corpus.jsonl").unlink()
    frames = [zstandard.compress(lines([{"_id": key, "text": f"text {key}"}]).encode()) for key in ("a", "b")]
    (directory / "corpus.jsonl.zst").write_bytes(b"".join(frames))
    assert list(load(directory).documents()) == [Document("a", "text a", ".txt"), Document("b", "text b", ".txt")]


def test_a_title_is_part_of_the_text_unless_the_record_is_a_file(tmp_path: Path) -> None:
    corpus = [
        {"_id": "1", "title": "Wind", "text": "is air"},
        {"_id": "2", "title": "what is asked", "text": "# Page", "format": "md"},
        {"_id": "3", "title": "", "text": "def f(): ...", "lang": "Python"},
        {"_id": "4", "text": "func f()", "path": "cmd/main.go"},
        {"_id": 5, "text": "odd", "format": "../../etc"},
    ]
    documents = list(load(a_set(tmp_path / "set", corpus=corpus)).documents())
    assert documents == [
        Document("1", "Wind\n\nis air", ".txt"),
        Document("2", "# Page", ".md"),
        Document("3", "def f(): ...", ".py"),
        Document("4", "func f()", ".go"),
        Document("5", "odd", ".txt"),
    ]


def test_only_queries_with_a_relevant_document_are_asked(tmp_path: Path) -> None:
    found = load(a_set(tmp_path / "set", qrels="q1\td1\t1\nq2\td1\t0\n"))
    assert found.queries == {"q1": "wind"}
    assert found.judgments == {"q1": {"d1": 1.0}}


def test_of_a_directory_of_qrels_test_counts_alone_else_all_of_them(tmp_path: Path) -> None:
    directory = a_set(tmp_path / "set")
    (directory / "qrels.tsv").unlink()
    (directory / "qrels").mkdir()
    (directory / "qrels" / "a.tsv").write_text("q1\td1\t1\n")
    (directory / "qrels" / "b.tsv").write_text("q2\t0\td2\t2\n")  # four columns, as TREC has them
    assert load(directory).judgments == {"q1": {"d1": 1.0}, "q2": {"d2": 2.0}}
    (directory / "qrels" / "test.tsv").write_text("q2\td3\t1\n")
    assert load(directory).judgments == {"q2": {"d3": 1.0}}


@pytest.mark.parametrize(
    ("file", "content", "said"),
    [
        ("corpus.jsonl", '{"_id": "d1", "text": "a"}\n{"_id": ', "corpus.jsonl:2 is no JSON"),
        ("corpus.jsonl", "[1]\n", "corpus.jsonl:1 is no JSON object"),
        ("corpus.jsonl", '{"text": "a"}\n', "corpus.jsonl:1 has no _id"),
        ("corpus.jsonl", '{"_id": "d1"}\n', "corpus.jsonl:1 has no text"),
        ("corpus.jsonl", '{"_id": "d1", "text": 7}\n', "corpus.jsonl:1: text is no text"),
        ("corpus.jsonl", b'{"_id": "d1", "text": "\xff"}\n', "corpus.jsonl:1 is no JSON"),
        ("queries.jsonl", '{"_id": "q1"}\n', "queries.jsonl:1 has no text"),
        ("queries.jsonl", '{"_id": "q1", "text": " "}\n', "the query is blank"),
        ("queries.jsonl", '{"_id": "q9", "text": "a"}\n', "query 'q1', which queries.jsonl does not have"),
        ("qrels.tsv", "h\th\th\nq1 d1 1\n", "qrels.tsv:2 is not: query, document and grade"),
        ("qrels.tsv", "q1\td1\tnan\n", "qrels.tsv:1: a grade is a number"),
        ("qrels.tsv", b"h\nq1\t\xff\t1\n", "qrels.tsv:2 is no UTF-8"),
        ("qrels.tsv", "q1\td1\t0\n", "nothing to measure"),
        ("qrels.tsv", "", "nothing to measure"),
        ("corpus.jsonl.zst", b"no zst", "is damaged"),
    ],
)
def test_what_is_malformed_is_named_by_file_and_line(
    tmp_path: Path, file: str, content: str | bytes, said: str
) -> None:
    directory = a_set(tmp_path / "set")
    if file.endswith(".zst"):
        (directory / "corpus.jsonl").unlink()
    (directory / file).write_bytes(content if isinstance(content, bytes) else content.encode())
    with pytest.raises(ConfigurationError, match=said):
        list(load(directory).documents())


@pytest.mark.parametrize("missing", ["corpus.jsonl", "queries.jsonl", "qrels.tsv"])
def test_a_missing_part_is_said(tmp_path: Path, missing: str) -> None:
    directory = a_set(tmp_path / "set")
    (directory / missing).unlink()
    with pytest.raises(ConfigurationError, match=missing.split(".")[0]):
        load(directory)
    with pytest.raises(ConfigurationError, match="is no directory"):
        load(tmp_path / "nowhere")


def test_a_small_set_goes_through_the_pipeline_and_leaves_only_its_cache(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    # 30 documents: of each topic a page, a text and a function; each query has the words of one topic.
    corpus = [{"_id": "empty", "text": " "}]
    for topic in TOPICS:
        corpus += [
            {
                "_id": f"{topic} page",
                "format": "md",
                "title": "not indexed",
                "text": f"# About {topic}\n\n{topic} now.",
            },
            {"_id": f"{topic} text", "title": f"Notes on {topic}", "text": f"Why {topic} matters to the grid."},
            {
                "_id": f"{topic} code",
                "lang": "python",
                "text": f"def read_{topic}(feed):\n    return feed['{topic}']\n",
            },
        ]
    directory = a_set(tmp_path / "set", corpus=corpus)
    (directory / "queries.jsonl").write_text(lines([{"_id": topic, "text": f"about {topic}"} for topic in TOPICS]))
    qrels = [f"{topic}\t{topic} {kind}\t1\n" for topic in TOPICS for kind in ("page", "text", "code")]
    (directory / "qrels.tsv").write_text("".join(qrels))
    settings = Settings(data_dir=tmp_path / "data", embedding_provider="hash", fetchers=1)

    assert evaluate(settings, directory, keep=False, form=Format.json) == 0
    printed = capsys.readouterr()
    answer = json.loads(printed.out)
    assert list(answer) == ["set", "modes"]
    assert answer["set"] == "set"
    assert list(answer["modes"]) == ["keyword", "vector", "hybrid"]
    for figures in answer["modes"].values():
        assert list(figures) == ["ndcg@10", "recall@10", "mrr@10"]
        assert all(0 <= value <= 1 for value in figures.values())
    assert answer["modes"]["keyword"] == {"ndcg@10": 1.0, "recall@10": 1.0, "mrr@10": 1.0}
    assert "30 documents in" in printed.err
    assert "not indexed: empty" in printed.err
    assert [file.name for file in (tmp_path / "data" / "eval").iterdir()] == ["embeddings.sqlite"]


def test_what_is_asked_of_the_service_and_its_retention_are_not_the_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(purging, "HOLD", timedelta(0))
    monkeypatch.setattr(purging, "LOOK_EVERY", timedelta(0))
    settings = Settings.model_validate(
        {
            "data_dir": tmp_path / "data", "embedding_provider": "hash", "fetchers": 1,
            "retention": {"*": {"keep_days": 1}},
        }
    )  # fmt: skip
    write_state(settings, purging.REQUEST, {"id": "r", "sequence": 1})
    evaluate(settings, a_set(tmp_path / "set"), keep=False, form=Format.json)
    assert json.loads(capsys.readouterr().out)["modes"]["keyword"]["recall@10"] == 1.0
    assert list_states(settings, "") == [purging.REQUEST]


def test_a_corpus_with_an_id_twice_is_refused(tmp_path: Path) -> None:
    corpus = [{"_id": "d1", "text": "one"}, {"_id": "d1", "text": "two"}]
    settings = Settings(data_dir=tmp_path / "data", embedding_provider="hash", fetchers=1)
    with pytest.raises(ConfigurationError, match="two documents with the _id 'd1'"):
        evaluate(settings, a_set(tmp_path / "set", corpus=corpus), keep=False, form=Format.json)


def test_tables_are_kept_on_request_and_those_of_a_killed_run_go(tmp_path: Path) -> None:
    left = tmp_path / "tables-4194304-x-abc"  # Linux numbers processes below
    left.mkdir(parents=True)
    with own_directory(tmp_path, "a/b", keep=True) as place:
        (place / "file").touch()
        assert not left.exists()
    (kept,) = tmp_path.iterdir()
    assert kept.name.startswith("kept-a_b-")
    with own_directory(tmp_path, "a/b", keep=False) as place:
        assert place.is_dir()
    assert list(tmp_path.iterdir()) == [kept]
