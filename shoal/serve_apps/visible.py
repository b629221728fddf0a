"""The collections that whoever asks may know of: what lists and errors name, and nothing beyond."""

from __future__ import annotations

from shoal.records import SCRAPER_COLLECTION
from shoal.serve_apps.scopes import is_visible
from shoal.store.requests import UnknownCollectionError

COLLECTIONS = (SCRAPER_COLLECTION,)
"""All there are."""


def visible_collections() -> tuple[str, ...]:
    """Those of them that the caller may read."""
    return tuple(name for name in COLLECTIONS if is_visible(name))


def check_collection(name: str) -> None:
    """Raises UnknownCollectionError, the same for what is hidden and for what is not there."""
    visible = visible_collections()
    if name not in visible:
        known = ", ".join(visible) or "none"
        raise UnknownCollectionError(f"there is no collection {name[:60]!r} that you may read; those are: {known}")
