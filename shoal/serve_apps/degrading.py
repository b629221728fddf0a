"""A search goes on without its embedder: by words, and saying so.

The one place where REST, MCP and the command line (all by way of the service) turn a question into the mode that
it will be answered by. Pages keep to one ranking: the cursor of a page by words says so, and the next page is by words
too, whether the embedder is back or not. A page behind one by meaning needs the question's vector again, which this
process mostly remembers; where it does not, the search begins anew by words, in the state of the pages before.
"""

from __future__ import annotations

from dataclasses import dataclass

from shoal.errors import ConfigurationError, TransientError
from shoal.records import SCRAPER_COLLECTION, Vector
from shoal.serve_apps.models import QueryType
from shoal.serve_apps.query_vectors import QueryVectors
from shoal.store.cursors import from_start

_BY_WORDS = "keyword."
"""What such a cursor begins with, and none of the store."""


@dataclass(frozen=True, slots=True)
class Way:
    """How a question is answered. `cursor`: the store's; `degraded`: by words, although asked by meaning."""

    mode: QueryType
    vector: Vector | None = None
    cursor: str | None = None
    degraded: bool = False

    def marked(self, cursor: str | None) -> str | None:
        """The store's next `cursor` as the caller gets it."""
        return _BY_WORDS + cursor if cursor and self.degraded else cursor


async def way_of(
    vectors: QueryVectors,
    model: str,
    query: str | None,
    mode: QueryType,
    cursor: str | None,
    warnings: list[str],
    collection: str = SCRAPER_COLLECTION,
) -> Way:
    """`mode` with the vector it needs, or keyword with a warning; without a query a listing. Raises PermanentError
    where the text itself can't be embedded."""
    by_words = cursor is not None and cursor.startswith(_BY_WORDS)
    if cursor is not None:
        cursor = cursor.removeprefix(_BY_WORDS)
    if not query:
        return Way("sql", cursor=cursor)
    if mode not in ("vector", "hybrid"):
        return Way(mode, cursor=cursor)
    if by_words:
        warnings.append(
            "these results are by keyword, as the page before them; start again without the cursor for others"
        )
        return Way("keyword", cursor=cursor, degraded=True)
    try:
        return Way(mode, await vectors.of(model, query, collection), cursor)
    except (TransientError, ConfigurationError) as error:  # the embedder's fault, not the question's
        if not cursor:
            warnings.append(f"{error}: these results are by keyword, and so are their further pages")
            return Way("keyword", degraded=True)
        warnings.append(
            f"{error}: the pages before can't be gone on with. These results are by keyword, from the first on, and so "
            "are their further pages; some may have been shown already"
        )
        return Way("keyword", cursor=from_start(cursor), degraded=True)
