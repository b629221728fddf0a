"""What the half-price lane needs of a provider's Batch API, whoever the provider is.

A batch is a file of requests that the provider answers within a day, at half its price. This module holds the words of
that (a request file's texts, a batch's state, a refusal) and the rule of who offers it; `openai_batches` speaks it,
`batch_lane` drives it, tests fake it. Pure: no network and no SDK.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol
from urllib.parse import urlsplit

from shoal.embeddings.texts import Kind
from shoal.errors import ConfigurationError
from shoal.records import Vector
from shoal.settings import Settings


@dataclass(frozen=True, slots=True)
class Entry:
    """A text of a request file. `tokens`: as they are counted for its price."""

    text: str
    kind: Kind
    tokens: int


@dataclass(frozen=True, slots=True)
class Batch:
    """A batch as the provider tells of it. `status`: OpenAI's word; `output_id` and `error_id`: its files, where it has
    them; `code` and `message`: why all of it failed."""

    id: str
    status: str
    output_id: str = ""
    error_id: str = ""
    code: str = ""
    message: str = ""


class EndpointRefused(Exception):
    """The provider answered a call of the Batch API with `status`, which asking again does not change."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(status, message)
        self.status, self.message = status, message

    def __str__(self) -> str:
        return self.message


class NoBatchApi(ConfigurationError):
    """The server has none."""


class BatchProvider(Protocol):
    """Blocking calls. Each raises TransientError (whether it was done is then unknown), ConfigurationError,
    EndpointRefused."""

    @property
    def name(self) -> str:
        """Of the model, as the cache's keys have it."""

    def line(self, custom_id: str, entry: Entry) -> bytes:
        """The request of one text, as a line of the file."""

    def upload(self, path: Path) -> str:
        """The id of the uploaded file."""

    def find(self, tag: Mapping[str, str], since_s: float) -> Batch | None:
        """The batch that carries `tag`, of those created at `since_s` (Unix time) or later."""

    def create(self, file_id: str, tag: Mapping[str, str]) -> Batch:
        """A new batch over an uploaded file."""

    def look(self, batch_id: str) -> Batch:
        """How it is now."""

    def download(self, file_id: str, path: Path, bytes_max: int) -> None:
        """The whole of a file, to `path`. A longer one raises EndpointRefused."""

    def delete(self, file_ids: Sequence[str]) -> None:
        """Of files that have served. Never raises: the provider removes them by itself after a month."""

    def read(self, body: bytes, entry: Entry) -> Vector:
        """The unit vector in the answer to `entry`, held against all that a live answer is held against. Raises
        ValueError, ConfigurationError."""

    def close(self) -> None:
        """Gives back connections."""


def why_none(settings: Settings, model: str) -> str | None:
    """Why `model` can't be had at half price here, with what to do; None where it can be tried."""
    if not model.startswith("openai:"):
        return f"{model} is no provider's: it costs nothing, there is no half of it. Leave out --half-price"
    match settings.openai_batch_api:
        case "off":
            return "SHOAL_OPENAI_BATCH_API is off: set it to on, or leave out --half-price"
        case "on":
            return None
    if settings.azure_openai_endpoint:
        where = "Azure OpenAI wants deployments of their own for batches"
    elif settings.openai_base_url and urlsplit(settings.openai_base_url).hostname != "api.openai.com":
        where = "few servers that are compatible with OpenAI have a Batch API"
    else:
        return None
    return f"{where}: set SHOAL_OPENAI_BATCH_API=on to try it, or leave out --half-price"
