"""`shoal cost estimate`: tokens, money and hours of a backfill or a change of model, before it is begun.

Of a place: everything there is listed; of each kind of file (by the ending of its name) a random few are read,
extracted and chunked exactly as ingest would, and their tokens are counted. Of a collection: the tokens of all its
chunks are known by its own model; a random few are counted again as the other model counts. estimation.py says how a
sample speaks for the whole. Nothing is embedded and nothing is paid; only a local model embeds some of the sample, to
see how fast it is here. An estimate is of all of it: what the cache still holds, or is unchanged, costs nothing.
"""

from __future__ import annotations

import random
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import Any

from shoal.cluster.backfilling import walk
from shoal.cluster.estimation import Estimate, Stratum, by_mean, by_ratio
from shoal.documents.pipeline import Context, Limits, TokenBudget, extract_document
from shoal.embeddings.models import create_model, token_budget
from shoal.embeddings.prices import BATCH_LANE, MILLION, Prices
from shoal.errors import BadDocument, ConfigurationError, DeadReason
from shoal.settings import Settings
from shoal.sources.ids import parse_location
from shoal.sources.s3 import S3Store
from shoal.spending import day_of
from shoal.store.sampling import sample_chunks

Json = dict[str, Any]
KINDS_MAX = 20
"""Endings that are sampled apart; the others are one kind."""
OTHER = "(other)"
SPEED_TEXTS = 16
SEED = 20260120
"""The same place gives the same sample, so two runs can be compared."""


@dataclass(frozen=True, slots=True)
class _File:
    """One object of a place. `read` gives its bytes; raises OSError, BadDocument, TransientError."""

    name: str
    size_bytes: int
    changed: datetime
    read: Callable[[], bytes]


@dataclass(slots=True)
class _Read:
    """What the sample of one kind came to."""

    texts: list[float] = field(default_factory=list)
    tokens: list[float] = field(default_factory=list)
    refused: int = 0


def estimate_path(
    place: str, settings: Settings, model: str, *, sample: int, say: Callable[[str], None] = lambda _: None
) -> Json:
    """Everything at `place` (s3://bucket/prefix, or a directory). Raises ConfigurationError, TransientError."""
    rng = random.Random(SEED)  # noqa: S311 - a sample
    kinds: dict[str, Stratum[_File]] = {}
    files = _objects(place, settings) if place.startswith("s3://") else _directory(place, settings)
    for number, file in enumerate(files, 1):
        ending = Path(file.name).suffix.lower()[:12] or "(none)"
        if ending not in kinds and len(kinds) >= KINDS_MAX:
            ending = OTHER
        kinds.setdefault(ending, Stratum(rng, sample)).add(file, file.size_bytes)
        if number % 10_000 == 0:
            say(f"listed {number} objects")
    budget = TokenBudget(*token_budget(settings, model))
    texts, tokens, sampled = Estimate(0.0), Estimate(0.0), list[str]()
    rows, refused = list[Json](), 0
    for ending, kind in sorted(kinds.items(), key=lambda pair: -pair[1].size_bytes):
        say(f"reading {len(kind.sample)} of {kind.size} {ending}")
        read = _Read()
        for file in kind.sample:
            sampled += _read(file, settings, budget, read)[: max(0, SPEED_TEXTS - len(sampled))]
        of_texts, of_tokens = by_mean(kind.size, read.texts), by_mean(kind.size, read.tokens)
        texts, tokens, refused = texts + of_texts, tokens + of_tokens, refused + read.refused
        rows.append({
            "kind": ending, "objects": kind.size, "bytes": kind.size_bytes, "sampled": len(kind.sample),
            "refused": read.refused, "tokens": round(of_tokens.total),
        })  # fmt: skip
    notes = [f"{refused} objects of the sample would be dead letters, and count nothing"] if refused else []
    what = {"place": place, "objects": sum(row["objects"] for row in rows), "bytes": sum(row["bytes"] for row in rows)}
    return what | {"kinds": rows} | _outcome(settings, model, texts, tokens, sampled, notes)


def estimate_collection(
    uri: str, options: dict[str, str], collection: str, settings: Settings, model: str, *, sample: int
) -> Json:
    """Every chunk of a collection, embedded anew by `model`. Raises ConfigurationError, TransientError."""
    count, tokens_max, _ = token_budget(settings, model)
    found = sample_chunks(uri, options, collection, sample, random.Random(SEED))  # noqa: S311 - a sample
    if found is None:
        raise ConfigurationError(f"there is no collection {collection!r} at {uri}: is LANCEDB_PATH right?")
    counted = [float(count(text)) for text, _ in found.sample]
    # A chunk without a count (of an earlier index) makes their sum worth nothing.
    known_total = float(found.tokens) if not found.uncounted else 0.0
    tokens = by_ratio(found.chunks, known_total, [float(tokens or 0) for _, tokens in found.sample], counted)
    notes = ["chunks keep their text; descriptions of APIs and reported fixes, some tokens per document, come on top"]
    if long := sum(each > tokens_max for each in counted):
        notes.append(f"{long} of the sample are longer than the {tokens_max} tokens that {model} is given: cut anew")
    texts = [text for (text, _), each in zip(found.sample, counted, strict=True) if each <= tokens_max][:SPEED_TEXTS]
    what = {"collection": collection, "from": found.model, "chunks": found.chunks, "sampled": len(found.sample)}
    return what | _outcome(settings, model, Estimate(found.chunks), tokens, texts, notes)


def _outcome(
    settings: Settings, model: str, texts: Estimate, tokens: Estimate, sampled: list[str], notes: list[str]
) -> Json:
    prices, today = Prices.load(settings.prices), day_of(datetime.now(UTC))
    price, batch = (prices.per_million(model, lane, today) for lane in ("backfill", BATCH_LANE))
    if price is None:
        notes.append(f"no price is known of {model}: put it into SHOAL_PRICES (docs/cost.md)")
    hours, limits = _hours(settings, model, texts, tokens, sampled)
    return {
        "model": model,
        "texts": _shown(texts),
        "tokens": _shown(tokens),
        "usd": None if price is None else _shown(tokens.scaled(price / MILLION), 4),
        "usd_by_batch_api": None if not batch else _shown(tokens.scaled(batch / MILLION), 4),
        "hours": None if hours is None else _shown(hours, 3),
        "limits": limits,
        "notes": [*notes, "what is in the cache or unchanged costs nothing: this is the most that it comes to"],
    }


def _hours(
    settings: Settings, model: str, texts: Estimate, tokens: Estimate, sampled: list[str]
) -> tuple[Estimate | None, str]:
    """How long it takes at the limits in force, and which they are."""
    if model.startswith("openai:"):
        from shoal.embeddings.openai_model import OpenAIModel

        per_min, requests_per_min = settings.openai_tokens_per_minute, settings.openai_requests_per_minute
        by_tokens = tokens.scaled(1 / per_min / 60)
        requests = max(
            tokens.total / OpenAIModel.batch_tokens_max, texts.total / (settings.openai_batch_inputs_max or 256)
        )
        by_requests = Estimate(requests / requests_per_min / 60)
        slower = max(by_tokens, by_requests, key=lambda each: each.total)
        return slower, (
            f"{per_min} tokens and {requests_per_min} requests a minute (SHOAL_OPENAI_TOKENS_PER_MINUTE, "
            "SHOAL_OPENAI_REQUESTS_PER_MINUTE; a running Shoal goes by what the provider's headers say)"
        )
    if not sampled:
        return None, "nothing was there to measure the model with"
    made = create_model(settings, model)
    try:
        made.embed(sampled[:1])  # loads what is loaded late
        began = time.perf_counter()
        made.embed(sampled)
        text_s = (time.perf_counter() - began) / len(sampled)
    finally:
        made.close()
    return texts.scaled(text_s / 3600), f"{1 / text_s:.1f} texts/s, measured here now with {len(sampled)} of the sample"


def _shown(estimate: Estimate, digits: int = 0) -> Json:
    def figure(value: float) -> float:
        return round(value, digits) if digits else round(value)

    return {"estimate": figure(estimate.total), "low": figure(estimate.low), "high": figure(estimate.high)}


def _read(file: _File, settings: Settings, budget: TokenBudget, read: _Read) -> list[str]:
    """Adds one file to `read`; its chunks' texts."""
    limits = Limits(settings.decompressed_bytes_max, settings.chunks_per_document_max)
    context = Context(Path(file.name).name, None, None, "UNKNOWN", "other", Path(file.name).parent.name, file.changed)
    try:
        if file.size_bytes > settings.object_bytes_max:
            raise BadDocument(DeadReason.TOO_LARGE, f"{file.size_bytes} bytes")
        extraction = extract_document(file.read(), context, limits, budget)
    except (BadDocument, OSError):
        read.refused += 1
        read.texts.append(0.0)
        read.tokens.append(0.0)
        return []
    described = [extraction.api_text] if extraction.api_text else []
    tokens = sum(chunk.token_count for chunk in extraction.chunks) + sum(map(budget.count, described))
    read.texts.append(float(len(extraction.chunks) + len(described)))
    read.tokens.append(float(tokens))
    return [chunk.text for chunk in extraction.chunks]


def _objects(place: str, settings: Settings) -> Iterator[_File]:
    bucket, _, prefix = place.removeprefix("s3://").partition("/")
    try:
        parse_location(f"s3://{bucket}/{prefix or 'any'}")
    except BadDocument as error:
        raise ConfigurationError(f"{place}: {error.message}") from None
    store = S3Store(settings)
    for listed in store.objects(bucket, prefix):
        if listed.size_bytes or not listed.key.endswith("/"):
            yield _File(
                listed.key, listed.size_bytes, listed.modified_at,
                partial(_body, store, bucket, listed.key, settings.object_bytes_max),
            )  # fmt: skip


def _body(store: S3Store, bucket: str, key: str, bytes_max: int) -> bytes:
    return store.get(bucket, key, bytes_max).data


def _directory(place: str, settings: Settings) -> Iterator[_File]:
    root = Path(place)
    if not root.is_dir():
        raise ConfigurationError(f"--path {place}: there is no such directory (or write s3://bucket/prefix)")
    for path in walk(root):
        if (
            any(part.startswith(".") for part in path.relative_to(root).parts)
            or path.is_symlink()
            or not path.is_file()
        ):
            continue  # as a backfill leaves them out
        about = path.stat()
        yield _File(str(path), about.st_size, datetime.fromtimestamp(about.st_mtime, UTC), path.read_bytes)
