"""Where a collection's tables are now: the one question that everybody asks who opens them by the settings."""

from __future__ import annotations

from shoal.errors import PermanentError
from shoal.records import SCRAPER_COLLECTION
from shoal.settings import Settings
from shoal.store.generations import Generation, active, other
from shoal.store.schemas import CollectionFacts
from shoal.store.writing import storage_options


def current_generation(settings: Settings, collection: str = SCRAPER_COLLECTION) -> Generation | None:
    """The generation in use; None where the collection does not exist. Raises TransientError, PermanentError."""
    return active(settings.tables_uri, storage_options(settings), collection)


def generation_to_open(settings: Settings, facts: CollectionFacts) -> Generation:
    """The generation in use; the first, with these facts, where the collection has yet to be made."""
    return current_generation(settings) or Generation(1, settings.tables_uri, facts)


def at(settings: Settings, uri: str) -> Settings:
    """The settings of whoever works on the tables at `uri`, and on what lies beside them. What belongs to the service
    (its status, its requests) stays at the settings' own place."""
    return settings.model_copy(update={"lancedb_path": uri})


def current(settings: Settings) -> Settings:
    """`at` the generation in use."""
    used = current_generation(settings)
    return settings if used is None or used.number == 1 else at(settings, used.uri)


def current_or_damaged(settings: Settings) -> Settings:
    """As `current`; where a fence on the way can't be read, the tables that have it: to be checked, not used."""
    way: list[str] = []
    try:
        used = active(settings.tables_uri, storage_options(settings), looked_at=way)
    except PermanentError:
        return at(settings, way[-1])
    return settings if used is None else at(settings, used.uri)


def has_another(settings: Settings) -> bool:
    """Whether a second generation lies beside the one in use."""
    used = current_generation(settings)
    return used is not None and other(settings.tables_uri, storage_options(settings), used) is not None
