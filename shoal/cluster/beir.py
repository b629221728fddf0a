"""Reads a test set of the BEIR layout: documents, queries, and which document answers which query.

A directory with `corpus.jsonl` or `corpus.jsonl.zst` (`_id`, `text`, and where known `title`, `format`, `lang`,
`path`), `queries.jsonl` (`_id`, `text`) and `qrels.tsv` or `qrels/*.tsv` (query, document, grade; tab-separated, a
header line or none). Of several files in `qrels/`, `test.tsv` alone counts where it is, as BEIR has it.
Fails with ConfigurationError, which names the file and the line. Documents are read as they are needed: a corpus may
be larger than memory.
"""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from dataclasses import dataclass
from math import isfinite
from pathlib import Path, PurePosixPath
from typing import Any

import orjson
import zstandard

from shoal.errors import ConfigurationError

LINE_BYTES_MAX = 64 * 1024 * 1024
"""Longest line of a corpus; a file that is one line of gigabytes is no corpus."""
_CORPORA = ("corpus.jsonl", "corpus.jsonl.zst")
_SUFFIX = re.compile(r"\.[A-Za-z]\w{0,9}$")
_LANGUAGES = {
    "python": ".py", "go": ".go", "typescript": ".ts", "javascript": ".js", "java": ".java", "rust": ".rs", "c": ".c",
    "c++": ".cpp", "cpp": ".cpp", "c#": ".cs", "csharp": ".cs", "ruby": ".rb", "php": ".php", "shell": ".sh",
    "bash": ".sh", "sql": ".sql", "scala": ".scala", "kotlin": ".kt", "swift": ".swift", "lua": ".lua", "perl": ".pl",
}  # fmt: skip


@dataclass(frozen=True, slots=True)
class Document:
    """One entry of the corpus as a file: `suffix` (`.md`, `.py`; `.txt` where nothing tells) says what its text is."""

    key: str
    text: str
    suffix: str


@dataclass(frozen=True, slots=True)
class TestSet:
    """`queries`: the judged ones, by id. `judgments`: per query the grade of each judged document."""

    __test__ = False  # no test of pytest

    name: str
    corpus: Path
    queries: dict[str, str]
    judgments: dict[str, dict[str, float]]

    def documents(self) -> Iterator[Document]:
        """The corpus, in its order. Raises ConfigurationError."""
        for place, entry in _entries(self.corpus):
            yield _document(place, entry)


def load(directory: Path) -> TestSet:
    """Queries and judgments of the set; the corpus is only looked for. Raises ConfigurationError."""
    if not directory.is_dir():
        raise ConfigurationError(f"{directory} is no directory: name one with corpus.jsonl, queries.jsonl and qrels")
    corpus = next((directory / name for name in _CORPORA if (directory / name).is_file()), None)
    if corpus is None:
        raise ConfigurationError(f"{directory} has neither {' nor '.join(_CORPORA)}")
    judgments: dict[str, dict[str, float]] = {}
    for file in _qrels(directory):
        for query, document, grade in _judged(file):
            judgments.setdefault(query, {})[document] = grade
    asked = {_key(place, entry): _asked(place, entry) for place, entry in _entries(directory / "queries.jsonl")}
    judged = {query: grades for query, grades in judgments.items() if any(grade > 0 for grade in grades.values())}
    if unknown := sorted(judged.keys() - asked.keys()):
        raise ConfigurationError(f"{directory}: qrels judge query {unknown[0]!r}, which queries.jsonl does not have")
    if not judged:
        raise ConfigurationError(f"{directory}: no query has a relevant document in qrels: there is nothing to measure")
    queries = {query: asked[query] for query in asked if query in judged}
    return TestSet(directory.resolve().name, corpus, queries, {query: judged[query] for query in queries})


def _document(place: str, entry: dict[str, Any]) -> Document:
    """A record with a `format` is a file as it lay somewhere: its title stands in it, if anywhere, and may be what
    is asked for. The title of any other is a part of its text."""
    text, title = _text(place, entry, "text"), _text(place, entry, "title", optional=True)
    kind = _text(place, entry, "format", optional=True).lower()
    language = _text(place, entry, "lang", optional=True).lower()
    path = PurePosixPath(_text(place, entry, "path", optional=True)).suffix
    if kind:
        suffix = f".{kind.lstrip('.')}"
    else:
        suffix = _LANGUAGES.get(language) or path
        text = f"{title}\n\n{text}" if title.strip() and text.strip() else text or title
    return Document(_key(place, entry), text, suffix if _SUFFIX.fullmatch(suffix) else ".txt")


def _entries(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Each object of a JSON-lines file, with where it stands; blank lines are passed over."""
    for number, line in _lines(file):
        place = f"{file}:{number}"
        try:
            entry = orjson.loads(line)
        except orjson.JSONDecodeError as error:
            raise ConfigurationError(f"{place} is no JSON: {error}") from None
        if not isinstance(entry, dict):
            raise ConfigurationError(f"{place} is no JSON object")
        yield place, entry


def _lines(file: Path) -> Iterator[tuple[int, bytes]]:
    try:
        with file.open("rb") as raw:
            packed = zstandard.ZstdDecompressor(max_window_size=1 << 31).stream_reader(raw, read_across_frames=True)
            opened = io.BufferedReader(packed) if file.suffix == ".zst" else raw
            number = 0
            while line := opened.readline(LINE_BYTES_MAX + 1):
                number += 1
                if len(line) > LINE_BYTES_MAX:
                    raise ConfigurationError(f"{file}:{number} is longer than {LINE_BYTES_MAX} bytes")
                if line.strip():
                    yield number, line
    except zstandard.ZstdError as error:
        raise ConfigurationError(f"{file} is damaged: {error}") from None
    except OSError as error:
        raise ConfigurationError(f"{file} can't be read: {error.strerror or error}") from None


def _key(place: str, entry: dict[str, Any]) -> str:
    key = entry.get("_id")
    if not isinstance(key, str | int) or isinstance(key, bool) or not str(key):
        raise ConfigurationError(f"{place} has no _id")
    return str(key)


def _asked(place: str, entry: dict[str, Any]) -> str:
    text = _text(place, entry, "text")
    if not text.strip():
        raise ConfigurationError(f"{place}: the query is blank")
    return text


def _text(place: str, entry: dict[str, Any], name: str, *, optional: bool = False) -> str:
    value = entry.get(name)
    if value is None and optional:
        return ""
    if not isinstance(value, str):
        raise ConfigurationError(f"{place} has no {name}" if value is None else f"{place}: {name} is no text")
    return value


def _qrels(directory: Path) -> list[Path]:
    single = directory / "qrels.tsv"
    if single.is_file():
        return [single]
    files = sorted((directory / "qrels").glob("*.tsv"))
    if not files:
        raise ConfigurationError(f"{directory} has neither qrels.tsv nor qrels/*.tsv")
    return [file for file in files if file.name == "test.tsv"] or files


def _judged(file: Path) -> Iterator[tuple[str, str, float]]:
    for number, line in _lines(file):
        try:
            fields = line.decode().rstrip("\r\n").split("\t")
        except UnicodeDecodeError:
            raise ConfigurationError(f"{file}:{number} is no UTF-8") from None
        if len(fields) == 4:  # as TREC has it: query, 0, document, grade
            del fields[1]
        try:
            query, document, grade = fields[0].strip(), fields[1].strip(), float(fields[2])
        except (ValueError, IndexError):
            if number == 1:  # the header
                continue
            raise ConfigurationError(f"{file}:{number} is not: query, document and grade, with tabs between") from None
        if not isfinite(grade):
            raise ConfigurationError(f"{file}:{number}: a grade is a number, not {fields[2].strip()}")
        yield query, document, grade
