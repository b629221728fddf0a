"""The catalogue of datasets: what there is of each, when it was first and last seen, how often it should come, and
whether it is overdue. Pure; the feeds are the store's, judged at the time of asking (store/cadence.py).
"""

from __future__ import annotations

from datetime import datetime
from typing import Any

from pydantic import Field

from shoal.serve_apps import list_cursors
from shoal.serve_apps.flow import entry_of
from shoal.serve_apps.models import Name, Request
from shoal.store.feeds import Catalogue, Feed

Json = dict[str, Any]


class DatasetsQuery(Request):
    """Parameters of `GET /api/v1/scrapes/datasets`."""

    data_source: Name | None = Field(None, description="Only of this source, in any case.", examples=["nyiso"])
    dataset: Name | None = Field(None, description="Only this dataset.")
    environment: Name | None = Field(None, description="dev, staging or prod.")
    overdue: bool | None = Field(None, description="Only those that are overdue, or only those known not to be.")
    limit: int = Field(100, ge=1, le=1000, description="Datasets per page.")
    cursor: str | None = Field(None, max_length=4000, description="`next_cursor` of the page before.")

    def wants(self, feed: Feed) -> bool:
        source = (feed.data_source or "").casefold()
        return (
            (self.data_source is None or self.data_source.casefold() == source)
            and self.dataset in (None, feed.dataset)
            and self.environment in (None, feed.environment)
        )


def datasets(catalogue: Catalogue, asked: DatasetsQuery, now: datetime) -> Json:
    """{datasets, total, overdue, at, next_cursor}: a page by environment and name. `total` and `overdue` count all that
    are meant, as the tables were at `at`."""
    entries = [described(feed, now) for feed in catalogue.feeds if asked.wants(feed)]
    entries = [entry for entry in entries if asked.overdue in (None, entry["overdue"])]
    entries.sort(key=_key)
    total, overdue = len(entries), sum(entry["overdue"] is True for entry in entries)
    if asked.cursor:
        environment, dataset = list_cursors.decode("datasets", asked.cursor, (str, str))
        entries = [entry for entry in entries if _key(entry) > (environment, dataset)]
    page = entries[: asked.limit]
    return {
        "datasets": page,
        "total": total,
        "overdue": overdue,
        "at": catalogue.at,
        "next_cursor": list_cursors.encode("datasets", *_key(page[-1])) if len(entries) > len(page) else None,
    }


def stable(body: Json) -> Json:
    """`body` without what changes while nothing arrives: how long a feed is silent, and when that was looked at."""
    entries = [{name: value for name, value in entry.items() if name != "silent_s"} for entry in body["datasets"]]
    return {**body, "datasets": entries, "at": None}


def described(feed: Feed, now: datetime) -> Json:
    """One dataset: as the status shows it, and what it is made of."""
    return {
        **entry_of(feed, now),
        "versions": feed.versions,
        "formats": dict(feed.formats),
        "first_seen_at": feed.first_seen_at,
    }


def _key(entry: Json) -> tuple[str, str]:
    return entry["environment"], entry["dataset"]
