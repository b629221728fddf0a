"""The query embedder's keeper of the book: its way to the log and to the table (the rooms of actors and of Serve
know nothing of each other, so each has its own)."""

from __future__ import annotations

from functools import partial

from shoal.embeddings.spend_keeping import SpendKeeper, keeper_of
from shoal.records import SCRAPER_COLLECTION
from shoal.settings import Settings
from shoal.sources.command_sender import CommandSender
from shoal.sources.kafka import open_producer
from shoal.spending import SPEND_KIND
from shoal.store.place import current
from shoal.store.spending import read_books
from shoal.store.writing import storage_options


def open_keeper(settings: Settings) -> SpendKeeper:
    """Costs nothing until something is spent, or a budget is set. Raises ConfigurationError."""
    sender = CommandSender(partial(open_producer, settings), settings.command_topic)
    return keeper_of(
        settings,
        partial(sender.send, SPEND_KIND, SCRAPER_COLLECTION, actor="query embedder"),
        lambda since: read_books(current(settings).tables_uri, storage_options(settings), since),
    )
