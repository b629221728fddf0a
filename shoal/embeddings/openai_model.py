"""OpenAI's embedding endpoint, Azure's or a compatible server's: the only importer of the `openai` SDK.

Guarantee: a vector stands in the row of its text whatever order the server answered in, has the promised
width, is finite and of length 1; every failure is one of ours. Throttling and outages are TransientError;
credentials, quota, an unknown model or a server that is no such endpoint ConfigurationError; a text that the
server refuses is BadDocument, decided only after the server proved that it takes another text. No text is cut
unnoticed: at its first use a compatible server must show that it reads as many tokens as are sent to it, and its
count of tokens is held against ours ever after. An answer is read up to a bound. It retries nothing and waits for
nobody's turn: `service` does, by `limiter`, which it feeds with the headers of every answer. What it asks of the
server by itself (a probe, a batch sent in parts) it tells `on_own`, and its probes keep to the limiter like any
request. Nothing is asked of the server when the model is made. The key is never part of a message.
"""

from __future__ import annotations

import logging
import math
import re
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from threading import Lock
from typing import Any, Literal, NoReturn, TypeVar

import httpx2  # what the SDK speaks HTTP with: a body that is read in parts fails with its errors
import numpy as np
import openai

from shoal.embeddings import cl100k
from shoal.embeddings.batch_provider import EndpointRefused
from shoal.embeddings.limiter import RateLimiter
from shoal.embeddings.model_names import OPENAI_WIDTHS, ModelName
from shoal.embeddings.openai_answers import (
    ANSWER_BYTES_MAX,
    Answer,
    UnusableVector,
    WrongAnswer,
    may_be_cut,
    read_answer,
)
from shoal.embeddings.openai_window import openai_window
from shoal.embeddings.texts import Kind, check_texts
from shoal.embeddings.wordpieces import TokenCounter
from shoal.errors import BadDocument, ConfigurationError, DeadReason, QuotaError, ThrottledError, TransientError
from shoal.records import Matrix, Vector
from shoal.settings import Settings

_log = logging.getLogger(__name__)
Result = TypeVar("Result")

_PROBE_TEXT = "shoal"
# Codes that blame the input beyond doubt; any other 400 is proven with the probe text first.
_INPUT_CODES = {"context_length_exceeded", "max_tokens_per_request", "string_above_max_length"}
_TIMEOUT_S, _CONNECT_TIMEOUT_S = 60.0, 5.0
_ERROR_BYTES_MAX = 65_536  # of a refusal's body, which the SDK reads whole
_BATCH_REFUSED = re.compile(r"batch size \d+ > maximum allowed batch size (\d+)")  # Text Embeddings Inference
_INPUTS_MAX, _FOREIGN_INPUTS_MAX = 256, 32  # 32: what Text Embeddings Inference takes unless told otherwise
# One token in every vocabulary that knows English: a text of so many words has so many tokens.
_PROBE_WORD, _PROBE_SHARE = "the ", 0.9
_PROBE_TOKENS = 4  # of _PROBE_TEXT, in whatever tokenizer, special ones included
# A probe waits so long for room in the limits. Longer, and a thread of the embedder's is held that others need.
_PROBE_WAIT_S = 10.0

OnOwn = Callable[[int, int, int, bool], None]
"""(requests, texts, tokens, whether it failed) of what the model sends beyond one request per `embed`."""


class OpenAIModel:
    """An EmbeddingModel. Building it makes a client and asks nothing."""

    # The endpoint takes 2048 inputs and 300,000 tokens. More than this saves nothing and makes a failure dearer.
    # Of a small account's million a minute 3 %: what is left of a minute when no further batch fits is lost.
    batch_tokens_max = 30_000
    concurrency = 4

    def __init__(
        self,
        settings: Settings,
        model: str,
        *,
        dimensions: int = 0,
        width: int | None = None,
        on_own: OnOwn = lambda *_: None,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`width`: of the model's vectors, where it is known; every answer is held against it. `on_own`: see above.

        `dimensions`: asked of the server with every request, 0 for none. Raises ConfigurationError without a key.
        """
        self.name = str(ModelName("openai", model, dimensions))
        self._model = model
        self._dimensions = dimensions
        self._is_openais = model in OPENAI_WIDTHS
        self._count, self.max_input_tokens = openai_window(settings, model)
        self._is_exact = isinstance(self._count, TokenCounter)
        self._window = self.max_input_tokens * (1 if self._is_openais or self._is_exact else 2)
        self.batch_inputs_max = settings.openai_batch_inputs_max or (
            _INPUTS_MAX if self._is_openais else _FOREIGN_INPUTS_MAX
        )
        self._clock, self._sleep, self._on_own = clock, sleep, on_own
        self._client, self._served_as = _client(settings, model)
        self._is_azure = isinstance(self._client, openai.AzureOpenAI)
        self.limiter = RateLimiter(
            settings.openai_requests_per_minute,
            settings.openai_tokens_per_minute,
            clock(),
            share=1 - settings.embedding_query_share,
        )
        self._meeting = Lock()
        self._is_met = self._is_openais  # OpenAI refuses a long text, and says so
        self._format: Literal["base64", "float"] = "base64"
        self._width = dimensions or OPENAI_WIDTHS.get(model) or width

    @property
    def width(self) -> int:
        """Of the vectors. A request where nobody said it, and then raises what `embed` raises."""
        if self._width is None:
            self._probe(_PROBE_TEXT, _PROBE_TOKENS)
            assert self._width is not None, "every answer that is taken says the width"
        return self._width

    def count_tokens(self, text: str) -> int:
        """Tokens by the model's own tokenizer where it is known, special ones included; else by cl100k_base."""
        return self._count.whole(text) if isinstance(self._count, TokenCounter) else self._count(text)

    def embed(self, texts: Sequence[str], kind: Kind = "document") -> Matrix:
        """Vectors of `texts`, shape (texts, width). Raises BadDocument, TransientError, ConfigurationError."""
        texts = check_texts(texts, kind)
        if not texts:
            return np.empty((0, self.width), np.float32)
        if kind == "query":
            texts = [self._cut(text) for text in texts]
        counts = [self._at_most(text) for text in texts]
        if (most := max(counts)) > self.max_input_tokens:
            message = f"text of {most} tokens; {self.name} takes {self.max_input_tokens}"
            raise BadDocument(DeadReason.EMBEDDING_REJECTED, message)
        self._meet()
        return np.concatenate(list(self._parts(texts, counts, kind)))

    def close(self) -> None:
        """Closes the client's connections."""
        self._client.close()

    # --- for its Batch API (openai_batches) ---------------------------------------------------

    def request(self, text: str, kind: Kind) -> dict[str, Any]:
        """What `embed` would post for one text."""
        dimensions = {"dimensions": self._dimensions} if self._dimensions else {}
        text = self._cut(check_texts([text], kind)[0]) if kind == "query" else text
        return {"model": self._served_as, "input": text, "encoding_format": self._format, **dimensions}

    def read(self, body: bytes, text: str, kind: Kind) -> Vector:
        """The vector in an answer to `request`. Raises WrongAnswer, ConfigurationError."""
        answer = read_answer(body, 1)
        self._check(answer)
        counts = [] if kind == "query" or self._is_openais else [self.count_tokens(text)]
        if counts and self._may_have_cut(counts, answer.tokens_read):
            raise WrongAnswer(f"{answer.tokens_read} tokens were read: the text may have been cut")
        vector: Vector = answer.vectors[0]
        return vector

    def ask(self, call: Callable[[Any], Result]) -> Result:
        """What `call` gets from the SDK's client at another endpoint; the limits of embedding are left alone.

        Raises TransientError, ConfigurationError, EndpointRefused."""
        name = self.name
        try:
            return call(self._client)
        except openai.APIStatusError as error:
            status, code = error.status_code, error.code or error.type or ""
            if "insufficient_quota" in (error.code, error.type):
                raise QuotaError(f"{name}: the account's quota is used up: see its billing page") from error
            if status in (401, 403):
                raise ConfigurationError(f"{name}: the key was refused ({status} {code})") from error
            if status in (408, 409, 425, 429) or status >= 500:
                raise TransientError(
                    f"{name}: the server answered {status}", _retry_after_s(error.response.headers)
                ) from error
            raise EndpointRefused(status, f"{status} {code}: {self._plain(error.message)}") from error
        except (openai.OpenAIError, httpx2.HTTPError) as error:
            raise TransientError(f"{name}: {self._client.base_url.host}: {type(error).__name__}") from error

    def _cut(self, text: str) -> str:
        if isinstance(self._count, TokenCounter):
            return self._count.truncate(text, self.max_input_tokens)
        return text if len(text.encode()) <= self.max_input_tokens else cl100k.truncate(text, self.max_input_tokens)

    def _at_most(self, text: str) -> int:
        """The tokens of `text`, or more where that is within the limit too: a token of OpenAI's is a byte at least, and
        counting again what was counted for its batch costs more CPU than all else here. (Others' need exact counts.)"""
        size = len(text.encode())
        return size if self._is_openais and size <= self.max_input_tokens else self.count_tokens(text)

    def _parts(self, texts: list[str], counts: list[int], kind: Kind) -> Iterator[Matrix]:
        """The vectors of all texts, in as many requests as the server's limit of texts makes of them."""
        start = 0
        while start < len(texts):
            part = slice(start, start + self.batch_inputs_max)
            if start:
                self._on_own(1, 0, 0, False)
            try:
                # Of OpenAI's models the estimate is what they bill: there is nothing to correct.
                answer = self._request(texts[part], 0 if self._is_openais else sum(counts[part]))
            except _InputRefused as refusal:
                limit = _BATCH_REFUSED.search(str(refusal))
                if limit and 1 <= int(limit[1]) < self.batch_inputs_max:
                    self.batch_inputs_max = int(limit[1])  # learned: the next batches fit
                    self._on_own(1, len(texts[part]), sum(counts[part]), True)
                    continue
                if len(texts[part]) == 1 and not refusal.is_proven:
                    self._prove_by_probe(refusal)
                raise BadDocument(DeadReason.EMBEDDING_REJECTED, str(refusal)) from refusal
            if kind == "document" and self._may_have_cut(counts[part], answer.tokens_read):
                raise BadDocument(
                    DeadReason.EMBEDDING_REJECTED,
                    f"{self.name} read {answer.tokens_read} tokens of {len(counts[part])} texts, by our count "
                    f"{sum(counts[part])}, with room for {self._window} in each: a text may have been cut",
                )
            yield answer.vectors
            start += len(texts[part])

    def _may_have_cut(self, counts: Sequence[int], read: int | None) -> bool:
        return (
            not self._is_openais
            and read is not None
            and may_be_cut(counts, self._window, is_exact=self._is_exact, read=read)
        )

    def _meet(self) -> None:
        """Once, before the first texts: a server that we don't know must read as much of a text as it will be sent.

        Text Embeddings Inference and Ollama may cut without a word; what they read shows in `usage.prompt_tokens`.
        Raises ConfigurationError, and TransientError (the next call asks again).
        """
        with self._meeting:
            if self._is_met:
                return
            words = self._window - 8
            try:
                read = self._probe(_PROBE_WORD * words, words).tokens_read
            except _InputRefused as refusal:
                self._prove_by_probe(refusal)
                raise ConfigurationError(
                    f"{self.name}: the server refuses a text of {words} tokens ({refusal}): set "
                    "SHOAL_OPENAI_MAX_INPUT_TOKENS to what it takes"
                ) from None
            if read is None:
                _log.warning(
                    "%s: the server doesn't say how many tokens it reads: whether it cuts is unknown", self.name
                )
            elif read < words * _PROBE_SHARE:
                raise ConfigurationError(
                    f"{self.name}: the server reads {read} tokens of a text of {words} and leaves out the rest: set "
                    f"SHOAL_OPENAI_MAX_INPUT_TOKENS={max(64, read)}, or have it read more"
                )
            self._is_met = True

    def _prove_by_probe(self, refusal: _InputRefused) -> None:
        """A server that refuses everything is misconfigured; only one that takes another text proves this one bad."""
        try:
            self._probe(_PROBE_TEXT, _PROBE_TOKENS)
        except _InputRefused:
            raise ConfigurationError(f"{self.name}: the server refuses every text: {refusal}") from refusal

    def _probe(self, text: str, tokens: int) -> Answer:
        """A request of the model's own: within the limits, and told. Raises as `_request` does, and TransientError
        where there is no room for it soon."""
        waited_s = 0.0
        while wait_s := self.limiter.acquire(tokens, self._clock(), is_urgent=True):
            if waited_s + wait_s > _PROBE_WAIT_S:
                raise TransientError(f"{self.name}: no room for a first request within its limits", wait_s)
            self._sleep(wait_s)
            waited_s += wait_s
        has_failed = True
        try:
            answer = self._request([text], tokens)
            has_failed = False
            return answer
        finally:
            self._on_own(1, 1, tokens, has_failed)

    def _request(self, texts: list[str], tokens: int = 0) -> Answer:
        """`tokens`: our estimate, which the limiter has granted; what the server read corrects it."""
        sent_at, used = self._clock(), 0
        try:
            headers, body = self._post(texts, tokens)
        except openai.OpenAIError as error:
            self._translate(error, sent_at)
        except httpx2.TimeoutException as error:
            raise TransientError(f"{self.name}: the answer was not complete within {_TIMEOUT_S:.0f} s") from error
        except httpx2.HTTPError as error:
            raise TransientError(f"{self.name}: the answer broke off ({type(error).__name__})") from error
        try:
            answer = read_answer(body, len(texts))
            used = answer.tokens_read or 0
        except UnusableVector as error:
            raise _InputRefused(f"in the server's answer {error}", is_proven=False) from None
        except WrongAnswer as error:
            if "insufficient_quota" in error.code:
                raise QuotaError(f"{self.name}: the account's quota is used up: see its billing page") from None
            raise TransientError(
                f"{self.name}: the server's answer is no list of embeddings: {self._plain(str(error))}"
            ) from None
        finally:
            self.limiter.answered(headers, self._clock(), sent_at=sent_at, tokens=tokens, used=used)
        self._check(answer)
        return answer

    def _check(self, answer: Answer) -> None:
        width, wide = self._width, int(answer.vectors.shape[1])
        if width is not None and wide != width:
            raise ConfigurationError(
                f"{self.name}: the server's vectors are {wide} wide, the model's {width}: "
                + (
                    "it ignores the dimensions that it is asked for"
                    if self._dimensions
                    else f"{self._place} serves another model under this name"
                )
            )
        self._width = wide
        if self._is_openais and answer.model in OPENAI_WIDTHS and answer.model != self._model:
            raise ConfigurationError(  # two of OpenAI's models have the same width
                f"{self.name}: {self._place} answers with {answer.model}: "
                "see OPENAI_EMBEDDING_MODEL and SHOAL_AZURE_OPENAI_DEPLOYMENTS"
            )

    def _post(self, texts: list[str], tokens: int) -> tuple[Mapping[str, str], bytes]:
        """Headers and body of the server's 200. Raises the SDK's and its HTTP client's errors."""
        try:
            return self._send(texts)
        except openai.APIStatusError as error:
            # LiteLLM before a model that takes no such option (a 500 there), and some others.
            if self._format == "float" or "encoding_format" not in error.message:
                raise
            self._format = "float"
            self._on_own(1, len(texts), tokens, True)
            return self._send(texts)

    def _send(self, texts: list[str]) -> tuple[Mapping[str, str], bytes]:
        give_up_at = self._clock() + 2 * _TIMEOUT_S  # a server may also send a byte now and then, for ever
        body = bytearray()
        with self._client.embeddings.with_streaming_response.create(
            input=texts,
            model=self._served_as,
            encoding_format=self._format,
            dimensions=self._dimensions or openai.omit,
        ) as response:
            for part in response.iter_bytes():
                body += part
                if len(body) > ANSWER_BYTES_MAX:
                    raise TransientError(f"{self.name}: the server's answer is longer than {ANSWER_BYTES_MAX} bytes")
                if self._clock() > give_up_at:
                    raise TransientError(f"{self.name}: the answer was not complete within {2 * _TIMEOUT_S:.0f} s")
            return response.headers, bytes(body)

    @property
    def _place(self) -> str:
        return "the Azure deployment" if self._is_azure else "OPENAI_BASE_URL"

    def _plain(self, words: str) -> str:
        """A server's words in one line, without the key."""
        words = " ".join(words.split())[:200]
        return words.replace(self._client.api_key, "***")

    def _translate(self, error: openai.OpenAIError, sent_at: float) -> NoReturn:
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
                raise QuotaError(f"{name}: the account's quota is used up: see its billing page") from error
            case 429:
                retry_after_s = _retry_after_s(headers)
                self.limiter.throttled(headers, retry_after_s, self._clock(), sent_at=sent_at)
                raise ThrottledError(f"{name}: rate limit reached", retry_after_s) from error
            case 401 | 403:  # the server's own words hold a part of the key
                setting = "AZURE_OPENAI_API_KEY" if self._is_azure else "OPENAI_API_KEY"
                raise ConfigurationError(f"{name}: the key was refused ({status} {code}): see {setting}") from error
            case 400 | 413 | 422:
                words = self._plain(error.message)
                raise _InputRefused(f"{status} {code}: {words}", is_proven=code in _INPUT_CODES) from error
            case 408 | 409 | 425 | _ if status in (408, 409, 425) or status >= 500:
                raise TransientError(f"{name}: the server answered {status}", _retry_after_s(headers)) from error
            case _:
                settings = (
                    "AZURE_OPENAI_ENDPOINT, AZURE_OPENAI_API_VERSION and SHOAL_AZURE_OPENAI_DEPLOYMENTS"
                    if self._is_azure
                    else "OPENAI_BASE_URL and OPENAI_EMBEDDING_MODEL"
                )
                raise ConfigurationError(
                    f"{name}: {self._client.base_url.host} answered {status} {code}: see {settings}"
                ) from error


class _InputRefused(Exception):
    """The server refused the request's texts. `is_proven`: by a code that can mean nothing else."""

    def __init__(self, message: str, *, is_proven: bool) -> None:
        super().__init__(message)
        self.is_proven = is_proven


class _Bounded(httpx2.SyncByteStream):
    """The first bytes of a refusal's body: the SDK would read all of it, whatever its length."""

    def __init__(self, stream: Any) -> None:
        self._stream = stream

    def __iter__(self) -> Iterator[bytes]:
        left = _ERROR_BYTES_MAX
        for part in self._stream:
            yield part[:left]
            left -= len(part)
            if left <= 0:
                return

    def close(self) -> None:
        self._stream.close()


def _bound(response: httpx2.Response) -> None:
    if not response.is_success:
        response.stream = _Bounded(response.stream)


def _client(settings: Settings, model: str) -> tuple[openai.OpenAI, str]:
    """The SDK's client, and the name under which the server has the model. Raises ConfigurationError."""
    options: dict[str, Any] = {
        "max_retries": 0,  # its pauses would go round the limiter, and it retries insufficient_quota
        "timeout": openai.Timeout(_TIMEOUT_S, connect=_CONNECT_TIMEOUT_S),
        # Vectors hardly shrink, and what is not packed can't unfold to more than was sent.
        "default_headers": {"Accept-Encoding": "identity"},
        "http_client": openai.DefaultHttpxClient(event_hooks={"response": [_bound]}),
    }
    if endpoint := settings.azure_openai_endpoint:
        if settings.openai_base_url:
            raise ConfigurationError("both AZURE_OPENAI_ENDPOINT and OPENAI_BASE_URL are set: unset one")
        key = settings.azure_openai_api_key.get_secret_value() if settings.azure_openai_api_key else ""
        if not key:
            raise ConfigurationError(f"openai:{model} at Azure needs a key: set AZURE_OPENAI_API_KEY")
        azure = openai.AzureOpenAI(
            api_key=key, azure_endpoint=endpoint, api_version=settings.azure_openai_api_version, **options
        )
        return azure, settings.azure_openai_deployments.get(model, model)
    key = settings.openai_api_key.get_secret_value() if settings.openai_api_key else ""
    if not key and not settings.openai_base_url:
        raise ConfigurationError(f"openai:{model} needs a key: set OPENAI_API_KEY (or OPENAI_BASE_URL)")
    client = openai.OpenAI(
        api_key=key or "none",  # compatible servers without keys; the SDK insists on one
        base_url=settings.openai_base_url or "https://api.openai.com/v1",
        **options,
    )
    return client, model


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
