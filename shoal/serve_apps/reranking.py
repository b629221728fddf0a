"""A reranker (a cross-encoder behind HTTP) reorders the best of a ranking; it never fails or delays a query.

Two forms are spoken, both as `POST {url}`: Text Embeddings Inference ({query, texts} -> [{index, score}]) and Cohere
({model, query, documents, top_n} -> {results: [{index, relevance_score}]}). What is sent is bounded (documents,
characters), and so is the wait: late, failing, or answering nonsense, it is skipped with a note, and after a few
failures in a row it is left alone for a while. Only this module speaks to it.
"""

from __future__ import annotations

import asyncio
import math
import time
from collections.abc import Callable, Sequence
from typing import Any, Literal

import httpx

from shoal.settings import Settings

CANDIDATES_MAX = 50
"""Documents of one request: a cross-encoder reads each with the query (some 5 ms on a GPU, 50 ms on a core)."""
TEXT_CHARS_MAX = 2_000
"""Of one document: about 512 tokens, which is what such models read; they cut the rest themselves."""
QUERY_CHARS_MAX = 1_000
FAILURES_MAX = 3
REST_S = 30.0
"""After `FAILURES_MAX` failures in a row no query waits for it for so long."""
_ANSWER_BYTES_MAX = 1024 * 1024

Form = Literal["tei", "cohere"]


class SkippedError(Exception):
    """Why the reranker's opinion is missing; to be shown as a note."""


class Reranker:
    """One per process, used from its event loop. `transport`: for tests."""

    def __init__(
        self,
        url: str,
        *,
        form: Form = "tei",
        model: str = "",
        key: str | None = None,
        deadline_s: float = 1.0,
        transport: httpx.AsyncBaseTransport | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        headers = {"Authorization": f"Bearer {key}"} if key else {}
        self._http = httpx.AsyncClient(headers=headers, timeout=deadline_s, transport=transport)
        self._url, self._form, self._model, self._deadline_s = url, form, model, deadline_s
        self._clock = clock
        self._failures = 0
        self._rests_until = float("-inf")

    @classmethod
    def of(cls, settings: Settings) -> Reranker | None:
        """As configured; None where there is none."""
        if not settings.rerank_url:
            return None
        key = settings.rerank_api_key.get_secret_value() if settings.rerank_api_key else None
        return cls(
            settings.rerank_url, form=settings.rerank_form, model=settings.rerank_model, key=key,
            deadline_s=settings.rerank_timeout_s,
        )  # fmt: skip

    async def scores(self, query: str, texts: Sequence[str]) -> list[float]:
        """A score for each of `texts` (at most CANDIDATES_MAX), higher is better. Raises SkippedError."""
        assert 0 < len(texts) <= CANDIDATES_MAX
        if self._clock() < self._rests_until:
            raise SkippedError("the reranker failed several times and is left alone for some seconds")
        try:
            # The client's own timeout is per read: a server that drips would outlast it.
            scores = await asyncio.wait_for(self._ask(query, texts), self._deadline_s)
        except TimeoutError:
            raise self._failed(f"the reranker did not answer within {self._deadline_s:g} s") from None
        except (httpx.HTTPError, httpx.InvalidURL, httpx.StreamError) as error:
            raise self._failed(f"the reranker can't be asked ({type(error).__name__})") from None
        # Numbers beyond a float overflow; what is nested thousands deep exhausts the parser.
        except (ValueError, KeyError, TypeError, AttributeError, IndexError, OverflowError, RecursionError):
            raise self._failed("the reranker's answer could not be read; check rerank_form") from None
        self._failures = 0
        return scores

    async def _ask(self, query: str, texts: Sequence[str]) -> list[float]:
        cut = [text[:TEXT_CHARS_MAX] for text in texts]
        asked: dict[str, Any] = {"query": query[:QUERY_CHARS_MAX]}
        if self._form == "cohere":
            asked |= {"documents": cut, "top_n": len(cut)} | ({"model": self._model} if self._model else {})
        else:
            asked |= {"texts": cut, "truncate": True}
        async with self._http.stream("POST", self._url, json=asked) as response:
            response.raise_for_status()
            body = bytearray()
            async for part in response.aiter_bytes():
                body += part
                if len(body) > _ANSWER_BYTES_MAX:
                    raise ValueError("too large")
        answer = httpx.Response(200, content=bytes(body)).json()
        entries = answer["results"] if self._form == "cohere" else answer
        scores: list[float | None] = [None] * len(texts)
        for entry in entries:
            value = float(entry["relevance_score" if self._form == "cohere" else "score"])
            if not math.isfinite(value) or not 0 <= entry["index"] < len(texts):
                raise ValueError("out of range")
            scores[entry["index"]] = value
        if any(score is None for score in scores):
            raise ValueError("incomplete")
        return [score for score in scores if score is not None]

    def _failed(self, why: str) -> SkippedError:
        self._failures += 1
        if self._failures >= FAILURES_MAX:
            self._failures, self._rests_until = 0, self._clock() + REST_S
        return SkippedError(why)
