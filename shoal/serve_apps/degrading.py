"""A search goes on without its embedder: by words, and saying so.

The one place where REST, MCP and the command line (all by way of the service) turn a question into the mode that
it will be answered by. A further page is the exception: words would order it differently than the page before.
"""

from __future__ import annotations

from shoal.errors import ConfigurationError, TransientError
from shoal.records import Vector
from shoal.serve_apps.models import QueryType
from shoal.serve_apps.query_vectors import QueryVectors


async def mode_and_vector(
    vectors: QueryVectors, model: str, query: str, mode: QueryType, cursor: str | None, warnings: list[str]
) -> tuple[QueryType, Vector | None]:
    """`mode` with the vector it needs, or keyword with a warning. Raises TransientError | ConfigurationError where
    `cursor` goes on with a ranking by meaning; PermanentError where the text itself can't be embedded."""
    if mode not in ("vector", "hybrid"):
        return mode, None
    try:
        return mode, await vectors.of(model, query)
    except (TransientError, ConfigurationError) as error:  # the embedder's fault, not the question's
        if cursor:
            raise
        warnings.append(f"{error}: these results are by keyword; page on with mode=keyword")
        return "keyword", None
