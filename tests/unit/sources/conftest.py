"""What the tests of sources share: settings of a private home, and messages as the log has them."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from shoal.records import Position
from shoal.settings import Settings, load
from shoal.sources.messages import RawMessage

MakeRaw = Callable[..., RawMessage]


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    return load(data_dir=tmp_path / "home")


@pytest.fixture
def raw() -> MakeRaw:
    """Makes a message from a JSON value, bytes, or None for a tombstone."""

    def make(
        body: Any, *, key: bytes | None = b"key", topic: str = "scraper-notifications", **headers: bytes
    ) -> RawMessage:
        value = body if body is None or isinstance(body, bytes) else json.dumps(body).encode()
        named = tuple((name.replace("_", "."), data) for name, data in headers.items())
        return RawMessage(Position("cluster", topic, 3, 42, 1_737_383_400_000), key, value, named)

    return make


@pytest.fixture
def notification() -> dict[str, Any]:
    """A notification as deployed scrapers send it."""
    return {
        "dataset": "nyiso_load_forecast",
        "environment": "prod",
        "urn": "load_20250120_14.json",
        "location": "s3://scraper-data/nyiso/year=2025/month=01/day=20/load_20250120_14.json.gz",
        "version": "20250120T143000Z",
        "etag": '"9b2cf535f27731c974343645a3985328"',
        "metadata": {
            "publish_dtm": "2025-01-20T14:30:05Z",
            "source": "nyiso",
            "data_type": "load_forecast",
            "url": "https://user:pw@api.nyiso.com/load?date=20250120&api_key=hunter2",
            "s3_guid": "3f1c",
            "original_file_size": 45120,
            "original_file_md5sum": "9B2CF535F27731C974343645A3985328",
        },
    }
