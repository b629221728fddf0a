"""OpenAI's embedding endpoint, or a compatible server's: the only importer of the `openai` SDK.

Guarantee: a vector stands in the row of its text whatever order the server answered in, has the promised
width, is finite and of length 1; every failure is one of ours. Throttling and outages are TransientError;
credentials, quota, an unknown model or a server that is no such endpoint ConfigurationError; a text that the
server refuses is BadDocument, decided only after the server proved that it takes another text. It retries
nothing and never waits: `service` does, by `limiter`, which it feeds with the headers of every answer. The key
is never part of a message.
"""

from __future__ import annotations

import base64
import math
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NoReturn

import numpy as np
import numpy.typing as npt
import openai
import orjson

from shoal.embeddings import cl100k
from shoal.embeddings.limiter import RateLimiter
from shoal.embeddings.models import OPENAI_WIDTHS
from shoal.embeddings.texts import Kind, check_texts
from shoal.errors import BadDocument, ConfigurationError, DeadReason, TransientError
from shoal.records import Matrix
from shoal.settings import Settings

_PROBE_TEXT = "shoal"
# Codes that blame the input beyond doubt; any other 400 is proven with the probe text first.
_INPUT_CODES = {"context_length_exceeded", "max_tokens_per_request", "string_above_max_length"}
_TIMEOUT_S, _CONNECT_TIMEOUT_S = 60.0, 5.0


class OpenAIModel:
    """An EmbeddingModel. Building it makes a client; only a model whose width nobody knows costs a request."""

    max_input_tokens = 8191  # 8192 by the SDK's documentation, 8191 by older ones
    # The endpoint takes 2048 inputs and 300,000 tokens. More than this saves nothing and makes a failure dearer.
    batch_inputs_max = 256
    # Of a small account's million a minute 3 %: what is left of a minute when no further batch fits is lost.
    batch_tokens_max = 30_000
    concurrency = 4

    def __init__(
        self,
        settings: Settings,
        model: str,
        *,
        width: int | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """`width`: of the model's vectors, where it is known; every answer is held against it.

        Raises ConfigurationError without a key, and what `embed` raises where the width must be asked for.
        """
        key = settings.openai_api_key.get_secret_value() if settings.openai_api_key else ""
        if not key and not settings.openai_base_url:
            raise ConfigurationError(f"openai:{model} needs a key: set OPENAI_API_KEY (or OPENAI_BASE_URL)")
        self.name = f"openai:{model}"
        self._model = model
        self._clock = clock
        self._client = openai.OpenAI(
            api_key=key or "none",  # compatible servers without keys; the SDK insists on one
            base_url=settings.openai_base_url or "https://api.openai.com/v1",
            max_retries=0,  # its pauses would go round the limiter, and it retries insufficient_quota
            timeout=openai.Timeout(_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S),
        )
        self.limiter = RateLimiter(
            settings.openai_requests_per_minute,
            settings.openai_tokens_per_minute,
            clock(),
            share=1 - settings.embedding_query_share,
        )
        self.width = OPENAI_WIDTHS.get(model) or width or self._request([_PROBE_TEXT], None).shape[1]

    def count_tokens(self, text: str) -> int:
        """Tokens by cl100k_base: exact for OpenAI's models, a good guess for others."""
        return cl100k.count(text)

    def embed(self, texts: Sequence[str], kind: Kind = "document") -> Matrix:
        """Vectors of `texts`, shape (texts, width). Raises BadDocument, TransientError, ConfigurationError."""
        texts = check_texts(texts, kind)
        if not texts:
            return np.empty((0, self.width), np.float32)
        if kind == "query":
            texts = [cl100k.truncate(text, self.max_input_tokens) for text in texts]
        longest = max(self.count_tokens(text) for text in texts)
        if longest > self.max_input_tokens:
            raise BadDocument(
                DeadReason.EMBEDDING_REJECTED, f"text of {longest} tokens; {self.name} takes {self.max_input_tokens}"
            )
        try:
            return self._request(texts, self.width)
        except _InputRefused as refusal:
            if len(texts) == 1 and not refusal.is_proven:
                self._prove_by_probe(refusal)
            raise BadDocument(DeadReason.EMBEDDING_REJECTED, str(refusal)) from refusal

    def _prove_by_probe(self, refusal: _InputRefused) -> None:
        """A server that refuses everything is misconfigured; only one that takes another text proves this one bad."""
        try:
            self._request([_PROBE_TEXT], self.width)
        except _InputRefused:
            raise ConfigurationError(f"{self.name}: the server refuses every text: {refusal}") from refusal

    def _request(self, texts: list[str], width: int | None) -> Matrix:
        sent_at = self._clock()
        try:
            response = self._client.embeddings.with_raw_response.create(
                input=texts, model=self._model, encoding_format="base64"
            )
        except openai.OpenAIError as error:
            self._translate(error)
        headers: Mapping[str, str] = response.headers
        self.limiter.answered(headers, self._clock(), sent_at=sent_at)
        try:
            rows = orjson.loads(response.content)["data"]
            vectors = _vectors(rows, len(texts))
        except (ValueError, KeyError, TypeError) as error:
            raise TransientError(f"{self.name}: the server's answer is no list of embeddings: {error}") from None
        if width is not None and vectors.shape[1] != width:
            raise ConfigurationError(
                f"{self.name}: the server's vectors are {vectors.shape[1]} wide, the model's {width}: "
                "OPENAI_BASE_URL serves another model under this name"
            )
        lengths = np.linalg.norm(vectors, axis=1, keepdims=True)
        if not (np.isfinite(lengths) & (lengths > 0)).all():
            raise _InputRefused("the server's vector is not finite or zero", is_proven=False)
        unit: Matrix = (vectors / lengths).astype(np.float32)
        return unit

    def close(self) -> None:
        """Closes the client's connections."""
        self._client.close()

    def _translate(self, error: openai.OpenAIError) -> NoReturn:
        name = self.name
        if isinstance(error, openai.APITimeoutError):
            raise TransientError(f"{name}: no answer within {_TIMEOUT_S:.0f} s") from error
        if isinstance(error, openai.APIConnectionError):
            raise TransientError(f"{name}: no connection to {self._client.base_url.host}") from error
        if not isinstance(error, openai.APIStatusError):
            raise TransientError(f"{name}: {type(error).__name__}") from error
        status, code, headers = error.status_code, error.code or error.type or "", error.response.headers
        match status:
            case 429 if "insufficient_quota" in (error.code, error.type):
                raise ConfigurationError(f"{name}: the account's quota is used up: see its billing page") from error
            case 429:
                retry_after_s = _retry_after_s(headers)
                self.limiter.throttled(headers, retry_after_s, self._clock())
                raise TransientError(f"{name}: rate limit reached", retry_after_s) from error
            case 401 | 403:  # the server's own words hold a part of the key
                raise ConfigurationError(
                    f"{name}: the key was refused ({status} {code}): see OPENAI_API_KEY"
                ) from error
            case 400 | 413 | 422:
                words = " ".join(error.message.split())[:200]
                raise _InputRefused(f"{status} {code}: {words}", is_proven=code in _INPUT_CODES) from error
            case 408 | 409 | 425 | _ if status in (408, 409, 425) or status >= 500:
                raise TransientError(f"{name}: the server answered {status}", _retry_after_s(headers)) from error
            case _:
                raise ConfigurationError(
                    f"{name}: {self._client.base_url.host} answered {status} {code}: "
                    "see OPENAI_BASE_URL and OPENAI_EMBEDDING_MODEL"
                ) from error


class _InputRefused(Exception):
    """The server refused the request's texts. `is_proven`: by a code that can mean nothing else."""

    def __init__(self, message: str, *, is_proven: bool) -> None:
        super().__init__(message)
        self.is_proven = is_proven


def _vectors(rows: Any, count: int) -> npt.NDArray[np.float64]:
    """Rows of the answer by their `index`; base64 or lists of numbers. Raises ValueError, KeyError, TypeError."""
    by_index = {int(row["index"]): row["embedding"] for row in rows}
    if len(rows) != count or by_index.keys() != set(range(count)):
        raise ValueError(f"{len(rows)} embeddings for {count} texts")
    decoded = [
        np.frombuffer(base64.b64decode(value, validate=True), "<f4").astype(np.float64)
        if isinstance(value, str)
        else np.asarray(value, np.float64)
        for value in (by_index[i] for i in range(count))
    ]
    if len({vector.shape for vector in decoded}) != 1 or decoded[0].ndim != 1 or not decoded[0].size:
        raise ValueError("embeddings of several shapes, or empty ones")
    return np.stack(decoded)


def _retry_after_s(headers: Mapping[str, str]) -> float | None:
    """Seconds of `retry-after-ms` or `retry-after`; dates, which OpenAI doesn't send, are ignored."""
    for name, unit in (("retry-after-ms", 0.001), ("retry-after", 1.0)):
        try:
            value = float(headers[name]) * unit
        except (KeyError, ValueError):
            continue
        if math.isfinite(value) and value >= 0:
            return value
    return None
