"""Who may do what: a caller, its grants (scope per collection), and what they allow.

Pure. A scope includes those below it: admin, write, read. A grant names one collection or all of them (`*`); a caller
may do what any of its grants allows. The grammar, in `shoal keys create --scope`, in the keys' file and in a token's
claim alike: `read`, `write:scraper`, `admin`. Text that is not of it grants nothing.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from enum import IntEnum

EVERY = "*"
GRANTS_MAX = 100

_GRANT = re.compile(r"(read|write|admin)(?::([A-Za-z0-9][A-Za-z0-9_.-]{0,199}|\*))?")


class Scope(IntEnum):
    """What a caller may do to a collection; a higher one includes the lower."""

    READ = 1
    WRITE = 2
    ADMIN = 3

    def __str__(self) -> str:
        return self.name.lower()


@dataclass(frozen=True, slots=True)
class Grant:
    """`scope` on `collection`, or on all of them."""

    scope: Scope
    collection: str = EVERY

    def __str__(self) -> str:
        return str(self.scope) if self.collection == EVERY else f"{self.scope}:{self.collection}"


def read_grant(text: str) -> Grant:
    """`read`, `write:scraper`. Raises ValueError that says what would be right."""
    found = _GRANT.fullmatch(text)
    if found is None:
        raise ValueError(f"{text[:60]!r} is no scope: read, write or admin, alone or with a collection (read:scraper)")
    return Grant(Scope[found[1].upper()], found[2] or EVERY)


def read_grants(texts: Iterable[str]) -> tuple[Grant, ...]:
    """Those of `texts` that are grants; at most GRANTS_MAX."""
    found = []
    for text in texts:
        try:
            found.append(read_grant(text))
        except ValueError:
            continue
    return tuple(found[:GRANTS_MAX])


@dataclass(frozen=True, slots=True)
class Caller:
    """Who asks. `id` is stable and no secret: a key's id, a token's subject, or `anonymous`."""

    id: str
    name: str
    kind: str  # key, token, anonymous
    grants: tuple[Grant, ...]
    rate_per_minute: int = 0  # 0: as the setting says

    def may(self, scope: Scope, collection: str) -> bool:
        """Whether it has `scope` on `collection` (EVERY: on all of them)."""
        return any(grant.scope >= scope and (grant.collection in (EVERY, collection)) for grant in self.grants)

    def may_anywhere(self, scope: Scope) -> bool:
        """Whether it has `scope` on any collection."""
        return any(grant.scope >= scope for grant in self.grants)


ANYONE = Caller("anonymous", "anonymous", "anonymous", (Grant(Scope.ADMIN),))
"""Who asks without a key, where none is needed."""

_CALLER: ContextVar[Caller | None] = ContextVar("caller", default=None)


@contextmanager
def asking(who: Caller | None) -> Iterator[None]:
    """`caller()` is `who` inside of it, in this task and those that it starts."""
    token = _CALLER.set(who)
    try:
        yield
    finally:
        _CALLER.reset(token)


def caller() -> Caller | None:
    """Who asks, in this request; None outside of one, and where nothing guards."""
    return _CALLER.get()


def is_visible(collection: str) -> bool:
    """Whether whoever asks may know of `collection`. Lists are filtered by this; nobody asks: all are."""
    asks = caller()
    return asks is None or asks.may(Scope.READ, collection)


def attributed(actor: str) -> str:
    """`actor` (rest, mcp) with who it was, as it stands in commands: `rest:k3j9x2m4qa`. Two callers' equal
    Idempotency-Keys are two commands by this."""
    asks = caller()
    return actor if asks is None or asks.kind == "anonymous" else f"{actor}:{asks.id}"[:200]
