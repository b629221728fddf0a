"""What each stage can carry by arithmetic, and what deployment a load wants. Pure.

Every serial part (one process) carries the inverse of what it takes for a document; `plan` gives each `HEADROOM` of
that and counts how many are wanted. The simulation then tells whether it is enough: queues, bounds and batches are in
it, and not here.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, replace

from bench.flow.deployment import MESSAGE_BYTES, Deployment, Load
from bench.flow.figures import Figures
from bench.flow.tables import FOLDED_TABLES
from shoal.actors.fetcher import HELD_OBJECTS_MAX
from shoal.store.maintenance import FOLD_ROWS

HEADROOM = 0.65
"""Of what a serial part can do. Above, a queue is long half of the time; below, machines stand idle."""
DAY_S = 86_400.0
EARLIER_STAGES_S = 0.5
PARTITIONS_PER_READER = 4


@dataclass(frozen=True, slots=True)
class Part:
    """One serial part of an installation: documents a second that it carries when it is never idle, and why."""

    name: str
    documents_per_s: float
    arithmetic: str


def parts(figures: Figures, deployment: Deployment) -> list[Part]:
    """What one of each can do, the least first."""
    rows = deployment.table_rows
    kind = "openai" if deployment.tier else "local"
    reader, fetcher = figures.value("reader_cpu_ms"), figures.value("fetcher_cpu_ms")
    extract = figures.spreads["extract_cpu_ms"].mean
    chunks, tokens = figures.spreads[f"chunks_{kind}"].mean, figures.spreads[f"tokens_{kind}"].mean
    embedder = figures.value("embedder_cpu_ms") + figures.value("embedder_cpu_chunk_ms") * chunks
    slot = (extract + fetcher + (figures.value("s3_get_first_byte_ms") if deployment.storage == "s3" else 0)) / 1000
    writer_s, told = writer_s_per_document(figures, deployment)
    found = [
        Part("a reader", 1000 / reader, f"1000 / {reader:g} CPU-ms"),
        Part("a fetch worker's child", 1000 / extract, f"1000 / {extract:g} CPU-ms of extraction"),
        Part("a fetch worker's slots", HELD_OBJECTS_MAX / slot, f"{HELD_OBJECTS_MAX} at once / {slot:.3f} s each"),
        Part("the embedder", 1000 / embedder, f"1000 / {embedder:.1f} CPU-ms"),
        Part(f"the writer, {rows:,} chunks", 1 / writer_s, told),
    ]
    if deployment.tier:
        limit = figures.tiers[deployment.tier].tokens_per_minute
        name = f"{deployment.tier}'s tokens"
        found.append(Part(name, limit / 60 / tokens, f"{limit:,.0f} a minute / 60 / {tokens:g} tokens"))
    else:
        spent = tokens * figures.value("local_model_cpu_per_kilotoken_ms") / 1000
        cores = deployment.core_cores or deployment.flow_cores
        found.append(
            Part(
                "the local model",
                1000 * cores / spent,
                f"{cores} cores x 1000 / {spent:.0f} CPU-ms of {tokens:g} tokens",
            )
        )
    return sorted(found, key=lambda part: part.documents_per_s)


def writer_s_per_document(figures: Figures, deployment: Deployment) -> tuple[float, str]:
    """Seconds of the writer's thread for a document when commits are full, upkeep included; and how it comes to that.

    A step of upkeep follows each commit. A round of folds (a step for each table) is due after FOLD_ROWS chunks, so
    under full commits each of these steps is a fold.
    """
    kind = "openai" if deployment.tier else "local"
    chunks = figures.spreads[f"chunks_{kind}"].mean
    documents = deployment.commit_rows_max / (1 + chunks)
    wait_s = figures.seconds("s3_commit_wait_ms") if deployment.storage == "s3" else 0.0
    commit_s = figures.seconds(f"commit_cpu_{deployment.storage}_ms") + wait_s
    commit_s += figures.seconds("commit_cpu_row_ms") * deployment.commit_rows_max
    fold_s = figures.laws["fold_cpu_ms"].at(deployment.table_rows) / 1000 + wait_s / 2
    compact_s = 2 * figures.laws["compaction_cpu_ms"].at(deployment.table_rows) / 1000 / deployment.compact_commits
    folds = min(1.0, FOLDED_TABLES * documents * chunks / FOLD_ROWS)  # steps for each commit
    whole_s = commit_s + folds * fold_s + compact_s
    told = (
        f"{documents:.0f} documents / (commit {commit_s:.2f} s + fold {folds * fold_s:.2f} s "
        f"+ compaction {compact_s:.2f} s)"
    )
    return whole_s / documents, told


def plan(figures: Figures, load: Load, template: Deployment) -> Deployment:
    """The least of everything that carries `load`, by arithmetic, with `template`'s settings."""
    by_name = {part.name.partition(",")[0]: part.documents_per_s for part in parts(figures, template)}
    serial = min(
        rate for name, rate in by_name.items() if name in ("the embedder", "the writer", f"{template.tier}'s tokens")
    )
    installations = max(1, math.ceil(load.documents_per_s / (HEADROOM * serial)))
    each = load.documents_per_s / installations
    # A reader holds so many documents at most, and each from its poll to its commit: through a step of upkeep too.
    held = each * _from_poll_to_commit_s(figures, template) / template.in_flight_items_max
    readers = max(1, math.ceil(max(each / by_name["a reader"], held) / HEADROOM))
    fetcher = min(by_name["a fetch worker's child"], by_name["a fetch worker's slots"])
    fetchers = max(2, math.ceil(each / (HEADROOM * fetcher)))
    flow_ms = figures.value("reader_cpu_ms") + figures.value("fetcher_cpu_ms") + figures.value("ray_cpu_ms")
    flow_ms += figures.spreads["extract_cpu_ms"].mean
    question_ms = figures.laws["question_cpu_ms"].at(template.table_rows) + figures.value("question_http_cpu_ms")
    questions = load.questions_per_s / installations
    return replace(
        template,
        name="what carries it",
        installations=installations,
        readers=readers,
        partitions=readers * PARTITIONS_PER_READER,
        fetchers=fetchers,
        flow_cores=max(2, math.ceil((each * flow_ms / 1000 + figures.value("background_cores")) / HEADROOM)),
        core_cores=4,
        query_cores=max(2, math.ceil(questions * question_ms / 1000 / HEADROOM)),
    )


def _from_poll_to_commit_s(figures: Figures, deployment: Deployment) -> float:
    """About how long: fetching and embedding, the wait for company, a step of upkeep, and the commit."""
    steps_s = figures.laws["fold_cpu_ms"].at(deployment.table_rows) / 1000 + EARLIER_STAGES_S
    commit_s = figures.seconds("commit_cpu_row_ms") * deployment.commit_rows_max
    wait_s = figures.seconds("s3_commit_wait_ms") if deployment.storage == "s3" else 0.0
    return deployment.linger_s + steps_s + commit_s + wait_s


@dataclass(frozen=True, slots=True)
class Bill:
    """What a load takes of what all installations share, and what it leaves behind."""

    tokens_per_minute: float
    tier5_accounts: float
    usd_a_day: float
    gets_per_s: float
    prefixes_for_gets: int
    puts_per_s: float
    kafka_bytes_per_s: float
    chunks_a_day: float
    table_bytes_a_day: float
    object_bytes_a_day: float


def bill(figures: Figures, load: Load, commits_per_s: float) -> Bill:
    """With OpenAI's model, tables in S3 and every document new."""
    rate = load.documents_per_s
    tokens = rate * figures.spreads["tokens_openai"].mean
    gets = rate + figures.value("s3_commit_gets") * commits_per_s
    puts = figures.value("s3_commit_puts") * commits_per_s
    chunks = rate * DAY_S * figures.spreads["chunks_openai"].mean
    return Bill(
        60 * tokens,
        60 * tokens / figures.tiers["tier5"].tokens_per_minute,
        tokens * DAY_S * figures.value("usd_per_million_tokens") / 1e6,
        gets,
        math.ceil(gets / figures.value("s3_get_per_s")),
        puts,
        rate * MESSAGE_BYTES,
        chunks,
        chunks * (figures.value("table_bytes_per_chunk") + figures.value("index_bytes_per_chunk")),
        rate * DAY_S * figures.spreads["bytes"].mean,
    )
