"""The simulated outside systems: object store, extraction, embedding provider and its cache."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from shoal.embeddings.hash_model import count_tokens
from shoal.embeddings.limiter import RateLimiter
from shoal.embeddings.texts import Kind
from shoal.errors import BadDocument, ConfigurationError, DeadReason, TransientError
from shoal.records import Chunk, Extraction, Matrix, Vector
from shoal.sources.s3 import S3Object
from tests.simulation.kernel import World, here

WIDTH = 4
MODEL = f"hash:{WIDTH}"
REFUSED_TEXT = "the provider refuses this"
BROKEN_TEXT = b"no reader can read this"


class Systems:
    """What is outside of Shoal, for all processes."""

    def __init__(self, world: World) -> None:
        self.world = world
        self.objects: dict[tuple[str, str, str | None], bytes] = {}
        self.poisoned: set[str] = set()  # keys that fail by themselves, for ever
        self.outages: dict[str, float] = {}  # system -> until when it fails everybody
        self.throttled_until = 0.0
        self.cache: dict[bytes, Vector] = {}

    def outage(self, system: str, seconds: float) -> None:
        self.outages[system] = self.world.now() + seconds
        self.world.note("outage", system, f"{seconds:.1f}")

    def is_out(self, system: str) -> bool:
        return self.outages.get(system, 0.0) > self.world.now() and self.world.dice.faults_on


class Store:
    """S3Store.get."""

    def __init__(self, systems: Systems) -> None:
        self._systems = systems

    def get(
        self, bucket: str, key: str, bytes_max: int, *, version_id: str | None = None, if_match: str | None = None
    ) -> S3Object:
        dice = self._systems.world.dice
        if self._systems.is_out(bucket):
            dice.happened["bucket_outage"] += 1
            if dice.rng.random() < 0.2:
                raise ConfigurationError(f"{bucket}: access denied, simulated")
            raise TransientError(f"{bucket} is down, simulated")
        if key in self._systems.poisoned:
            dice.happened["poisoned_object"] += 1
            raise TransientError(f"{key} fails, simulated")
        if dice.hit("object_failed"):
            raise TransientError("503, simulated")
        if dice.hit("object_throttled"):
            raise TransientError("slow down, simulated", retry_after_s=dice.between(0.1, 5.0))
        data = self._systems.objects.get((bucket, key, version_id))
        if data is None:
            raise BadDocument(DeadReason.OBJECT_MISSING, f"no {key}")
        return S3Object(data=data, etag=hashlib.md5(data).hexdigest(), version_id=version_id, content_type=None)

    def is_alive(self, bucket: str) -> bool:
        return not self._systems.is_out(bucket)


class Extractor:
    """ExtractionPool.extract: each line is a chunk."""

    kills = 0

    def __init__(self, *_: Any, **__: Any) -> None: ...

    async def extract(self, data: bytes, context: Any) -> Extraction:
        here().check()
        if data.startswith(BROKEN_TEXT):
            raise BadDocument(DeadReason.EXTRACTION_FAILED, "simulated")
        lines = data.decode().splitlines()
        chunks = tuple(Chunk(at, line, None, 0, len(line), count_tokens(line)) for at, line in enumerate(lines))
        return Extraction("TEXT", "text/plain", "utf-8", None, chunks, None, None)

    def close(self) -> None: ...


class Model:
    """An EmbeddingModel with a provider behind it that throttles, fails and refuses."""

    name = MODEL
    width = WIDTH
    max_input_tokens = 256
    batch_inputs_max = 8
    batch_tokens_max = 1_000
    concurrency = 2

    def __init__(self, systems: Systems) -> None:
        self._systems = systems
        self.limiter = RateLimiter(6_000, 600_000, systems.world.now())

    def count_tokens(self, text: str) -> int:
        return count_tokens(text)

    def embed(self, texts: Sequence[str], kind: Kind = "document") -> Matrix:
        world = self._systems.world
        dice = world.dice
        here().check()
        if self._systems.is_out("provider"):
            dice.happened["provider_outage"] += 1
            raise TransientError("the provider is down, simulated")
        if dice.hit("provider_throttled"):
            wait = dice.between(0.2, 4.0)
            self.limiter.throttled({}, wait, world.now())
            raise TransientError("429, simulated", retry_after_s=wait)
        if dice.hit("provider_failed"):
            raise TransientError("500, simulated")
        if any(REFUSED_TEXT in text for text in texts):
            dice.happened["provider_refused"] += 1
            raise BadDocument(DeadReason.EMBEDDING_REJECTED, "simulated")
        self.limiter.answered({}, world.now())
        return np.stack([vector_of(text) for text in texts])

    def close(self) -> None: ...


def vector_of(text: str) -> Vector:
    digest = hashlib.blake2b(text.encode(), digest_size=WIDTH).digest()
    vector = np.frombuffer(digest, np.uint8).astype(np.float32) + 1
    return vector / np.float32(np.linalg.norm(vector))


class Cache:
    """EmbeddingCache: survives its process, or not."""

    def __init__(self, systems: Systems) -> None:
        self._kept = systems.cache

    def get_many(self, keys: Sequence[bytes], width: int) -> dict[bytes, Vector]:
        return {key: self._kept[key] for key in keys if key in self._kept}

    def put_many(self, rows: Mapping[bytes, Vector]) -> None:
        here().check()
        self._kept.update(rows)

    def close(self) -> None: ...
