"""The steps of `shoal migrate-model` as a person asks for them: each an exit code. The work is in migrating.py."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from shoal.cluster.embedding_texts import Embedder
from shoal.cluster.migrating import BudgetReached, Migration, beside, can_go_back, in_use, to_copy, uris
from shoal.cluster.model_comparison import Comparison, compare
from shoal.cluster.output import Exit, Format, emit_json, emit_pairs, say
from shoal.embeddings.models import model_width
from shoal.errors import ConfigurationError, TransientError
from shoal.settings import Settings
from shoal.store.dropping import drop
from shoal.store.generations import Generation
from shoal.store.mirroring import difference, opened, refresh
from shoal.store.writing import storage_options

FOLLOW_S = 5.0
"""Between two looks of `--follow`: each reads the keys of both sides, a second for some hundred thousand chunks."""

Confirm = Callable[[str], bool]


def build(
    settings: Settings,
    model: str,
    tokens_max: int | None,
    usd_per_million: float | None,
    queries: Path | None,
    confirm: Confirm,
    form: Format,
) -> int:
    """Build the copy with `model`, or bring it up to date; then compare."""
    used, copy = to_copy(settings, model, model_width(settings, model))
    if can_go_back(settings, copy, used):
        raise ConfigurationError(f"the collection was in {copy.facts.model} before: --back moves it there")
    asked = _read_queries(queries)
    with _embedder(settings, copy) as embedder:
        # Counted on the original alone: nothing is made before it is agreed to.
        estimate = Migration.foresee(settings, used, copy, embedder)
        said = f"{estimate.documents} documents, {estimate.chunks} chunks, {estimate.tokens} tokens at most to embed"
        if usd_per_million:
            said += f", at most ${usd_per_million * estimate.tokens / 1e6:,.2f}"
        say(f"{used.facts.model} to {model}: {said}; on disk about what the tables in use take")
        if estimate.chunks and not confirm("Build it beside the tables in use?"):
            say("nothing was built")
            return Exit.FAILED
        migration = Migration.open(settings, used, copy, embedder, tokens_max, say)
        try:
            migration.build()
        except BudgetReached as error:
            say(str(error))
            return Exit.FAILED
        finally:
            migration.close()
        with _embedder(settings, used) as old:
            found = asyncio.run(compare(settings, used, copy, old, embedder, asked))
    _show_comparison(found, form, {"generation": copy.number, "model": model, "spent_tokens": migration.budget.spent})
    say("built. `shoal migrate-model scraper --switch` moves the collection; --cancel removes what was built")
    return Exit.OK


def _read_queries(file: Path | None) -> list[str]:
    if file is None:
        return []
    try:
        lines = [line.strip() for line in file.read_text().splitlines()]
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigurationError(f"--queries {file}: {error}") from None
    if not any(lines):
        raise ConfigurationError(f"--queries {file}: no question in it")
    return [line for line in lines if line]


def _show_comparison(found: Comparison, form: Format, built: dict[str, Any]) -> None:
    if form is Format.json:
        emit_json({**built, "comparison": found.to_json()})
        return
    emit_pairs(built)
    if not found.questions:
        say("nothing to compare by: no question was asked lately, and no file was given (--queries)")
        return
    emit_pairs(
        {
            "questions": found.questions,
            "overlap@10": found.overlap,
            "same first": found.same_first,
            "differs most": found.least,
        }
    )
    say(
        f"{found.of_what}: of the ten first documents, {found.overlap:.0%} are the same on average. It says how much "
        "answers change, not which are better: for that, --queries with questions whose answers you know"
    )


def follow(settings: Settings, tokens_max: int | None, *, pause: Callable[[float], None] = time.sleep) -> int:
    """Keep the generation beside the one in use up to date, until it is stopped."""
    used = in_use(settings)
    other = _other(settings, used)
    with _embedder(settings, other) as embedder:
        migration = Migration.open(settings, used, other, embedder, tokens_max, say)
        try:
            while True:
                migration.catch_up()
                pause(FOLLOW_S)
        except BudgetReached as error:
            say(str(error))
            return Exit.FAILED
        finally:
            migration.close()


def move(settings: Settings, confirm: Confirm, form: Format, *, is_back: bool) -> int:
    """Catch up and move the collection."""
    used = in_use(settings)
    other = _other(settings, used)
    was_there = can_go_back(settings, other, used)
    if is_back and not was_there:
        raise ConfigurationError(f"the collection has never been in {other.facts.model}: --switch moves it there")
    if not confirm(f"Move the collection from {used.facts.model} to {other.facts.model}?"):
        say("nothing was moved")
        return Exit.FAILED
    with _embedder(settings, other) as embedder:
        migration = Migration.open(settings, used, other, embedder, None, say)
        try:
            moved = migration.switch()
        except TransientError:
            if in_use(settings).number != other.number:
                raise
            moved = in_use(settings)  # the answer was lost, the commit was not
        finally:
            migration.close()
    result = {"generation": moved.number, "model": moved.facts.model, "width": moved.facts.width, "turn": moved.turn}
    if form is Format.json:
        emit_json(result)
    else:
        emit_pairs(result)
    say(
        f"moved. A running Shoal follows within seconds; `--back` returns to {used.facts.model}, `--drop` removes it. "
        "Settings that name the model (SHOAL_EMBEDDING_PROVIDER, OPENAI_EMBEDDING_MODEL) must agree at the next start"
    )
    return Exit.OK


def remove(settings: Settings, confirm: Confirm, form: Format, *, is_cancel: bool) -> int:
    """Remove the generation beside the one in use."""
    used = in_use(settings)
    other = _other(settings, used)
    was_there = can_go_back(settings, other, used)
    if is_cancel == was_there:
        right = "--drop" if was_there else "--cancel"
        before = "was in it before" if was_there else "was never in it"
        raise ConfigurationError(
            f"generation {other.number} ({other.facts.model}): the collection {before}: use {right}"
        )
    if not confirm(f"Remove the tables of {other.facts.model} ({other.uri}) for good?"):
        say("nothing was removed")
        return Exit.FAILED
    drop(settings, storage_options(settings), other, used)
    if form is Format.json:
        emit_json({"removed": other.number, "model": other.facts.model})
    say(f"removed {other.facts.model}; the collection is in {used.facts.model}")
    return Exit.OK


def show(settings: Settings, form: Format) -> int:
    """What there is."""
    used = in_use(settings)
    found: dict[str, Any] = {
        "in use": f"generation {used.number}: {used.facts.model}, {used.facts.width} wide",
        "beside": None, "documents that differ": None,
    }  # fmt: skip
    other = beside(settings, used)
    if other is not None:
        options = storage_options(settings)
        role = "was in use before (--back, --drop)" if can_go_back(settings, other, used) else "never used yet"
        found["beside"] = f"generation {other.number}: {other.facts.model}, {other.facts.width} wide, {role}"
        try:
            original, copy = opened(uris(used.uri), options), opened(uris(other.uri), options)
        except TransientError:
            found["documents that differ"] = "not all tables of the copy are made yet"
        else:
            refresh(original)
            left = difference(original, copy)
            found["documents that differ"] = len(left.documents)
            found["fixes and jobs that differ"] = len(left.keys)
    if form is Format.json:
        emit_json(found)
    else:
        emit_pairs(found)
    return Exit.OK


def _other(settings: Settings, used: Generation) -> Generation:
    found = beside(settings, used)
    if found is None:
        raise ConfigurationError(f"the collection has {used.facts.model} and nothing beside it: begin with --to MODEL")
    return found


@contextmanager
def _embedder(settings: Settings, of: Generation) -> Iterator[Embedder]:
    embedder = Embedder(settings, of.facts.model, of.facts.width)
    try:
        yield embedder
    finally:
        embedder.close()
