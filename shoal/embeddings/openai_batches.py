"""OpenAI's Batch API through a model's client: files up, a batch over them, its state, files down.

Guarantee: a request is what the model itself would post for the text, prefix and cut included, and an answer is read
and checked as a live one is. What the server says is taken for what the SDK promises only after a look: an answer of
another shape is a TransientError, an endpoint that is not there a ConfigurationError in one line. Nothing is retried.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

import orjson

from shoal.embeddings.batch_provider import Batch, EndpointRefused, Entry, NoBatchApi
from shoal.embeddings.openai_model import OpenAIModel
from shoal.embeddings.prefixes import Prefixes
from shoal.errors import ShoalError, TransientError
from shoal.records import Vector

_log = logging.getLogger(__name__)

URL = "/v1/embeddings"
LISTED_MAX = 2_000
"""Batches that are looked through for a tag: months of an account's, where the page before them ends sooner."""
_PAGE = 100  # the most that the endpoint lists at once
_CLOCKS_S = 900.0
"""A batch may look older than it is by what the provider's clock is behind ours."""
_ABSENT = (404, 405, 501)

Result = TypeVar("Result")


class OpenAIBatches:
    """A BatchProvider."""

    def __init__(self, model: OpenAIModel, prefixes: Prefixes) -> None:
        self._model, self._prefixes = model, prefixes
        self.name = f"{model.name}+{prefixes.name}" if prefixes.name else model.name

    def line(self, custom_id: str, entry: Entry) -> bytes:
        """One line, its end included."""
        body = self._model.request(self._prefixed(entry), entry.kind)
        return orjson.dumps({"custom_id": custom_id, "method": "POST", "url": URL, "body": body}) + b"\n"

    def upload(self, path: Path) -> str:
        """Files of purpose `batch` are removed by OpenAI after 30 days."""
        return self._called(
            lambda client: _text(client.files.create(file=path, purpose="batch"), "id"), is_endpoint=True
        )

    def find(self, tag: Mapping[str, str], since_s: float) -> Batch | None:
        """Newest first, up to the first that is older."""

        def look(client: Any) -> Batch | None:
            after: dict[str, str] = {}
            for _ in range(LISTED_MAX // _PAGE):
                page = client.batches.list(limit=_PAGE, **after)
                rows = _list(page, "data")
                for row in rows:
                    metadata = getattr(row, "metadata", None)
                    if isinstance(metadata, Mapping) and tag.items() <= metadata.items():
                        return _batch(row)
                    if float(getattr(row, "created_at", 0) or 0) < since_s - _CLOCKS_S:
                        return None
                if not rows or not getattr(page, "has_more", False):
                    return None
                after = {"after": _text(rows[-1], "id")}
            return None

        return self._called(look, is_endpoint=True)

    def create(self, file_id: str, tag: Mapping[str, str]) -> Batch:
        return self._called(
            lambda client: _batch(
                client.batches.create(
                    input_file_id=file_id, endpoint=URL, completion_window="24h", metadata=dict(tag)
                )
            )
        )  # fmt: skip

    def look(self, batch_id: str) -> Batch:
        return self._called(lambda client: _batch(client.batches.retrieve(batch_id)))

    def download(self, file_id: str, path: Path, bytes_max: int) -> None:
        """Streamed: an output file is some hundred MB."""

        def fetch(client: Any) -> None:
            size = 0
            with client.files.with_streaming_response.content(file_id) as response, path.open("wb") as file:
                for part in response.iter_bytes():
                    size += len(part)
                    if size > bytes_max:
                        raise EndpointRefused(200, f"the file {file_id} is longer than {bytes_max} bytes")
                    file.write(part)

        self._called(fetch)

    def delete(self, file_ids: Sequence[str]) -> None:
        for file_id in filter(None, file_ids):
            try:
                self._called(lambda client, file_id=file_id: client.files.delete(file_id))  # type: ignore[misc]
            except (ShoalError, EndpointRefused) as error:
                _log.info("the provider keeps the file %s for its month: %s", file_id, error)

    def read(self, body: bytes, entry: Entry) -> Vector:
        return self._model.read(body, self._prefixed(entry), entry.kind)

    def close(self) -> None:
        self._model.close()

    def _prefixed(self, entry: Entry) -> str:
        return (self._prefixes.query if entry.kind == "query" else self._prefixes.document) + entry.text

    def _called(self, call: Callable[[Any], Result], *, is_endpoint: bool = False) -> Result:
        """`is_endpoint`: nothing is named that could be missing but the endpoint itself."""
        try:
            return self._model.ask(call)
        except EndpointRefused as refused:
            if is_endpoint and refused.status in _ABSENT:
                raise NoBatchApi(
                    f"{self.name}: the server has no Batch API ({refused.status}): set SHOAL_OPENAI_BATCH_API=off and "
                    "leave out --half-price"
                ) from None
            raise
        except (AttributeError, TypeError, ValueError) as error:
            raise TransientError(f"{self.name}: the server's answer is none of the Batch API: {error}") from error


def _batch(told: Any) -> Batch:
    """Raises ValueError where it is none."""
    errors = getattr(getattr(told, "errors", None), "data", None) or []
    first = errors[0] if isinstance(errors, list) and errors else None
    return Batch(
        _text(told, "id"),
        _text(told, "status"),
        str(getattr(told, "output_file_id", None) or ""),
        str(getattr(told, "error_file_id", None) or ""),
        str(getattr(first, "code", None) or ""),
        " ".join(str(getattr(first, "message", None) or "").split())[:300],
    )


def _text(told: Any, name: str) -> str:
    value = getattr(told, name, None)
    if not isinstance(value, str) or not value:
        raise ValueError(f"it has no {name}")
    return value


def _list(told: Any, name: str) -> list[Any]:
    value = getattr(told, name, None)
    if not isinstance(value, list):
        raise ValueError(f"it has no {name}")
    return value
