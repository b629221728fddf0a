"""What is known of a document before its bytes are read, and how much may be made of them. Plain values."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime


@dataclass(frozen=True, slots=True)
class Limits:
    """`decompressed_bytes_max` bounds what gzip, zip and the like may unfold to; further chunks are left out."""

    decompressed_bytes_max: int
    chunks_max: int


@dataclass(frozen=True, slots=True)
class Context:
    """What the announcement says; its words become part of the text that is embedded.

    `name` is the file's name, `source_url` already without secrets, `data_type` and `dataset` as announced
    (`load_forecast`, `nyiso_load_forecast`).
    """

    name: str
    content_type: str | None
    source_url: str | None
    data_source: str
    data_type: str
    dataset: str
    collected_at: datetime
