"""The error tree: what went wrong, whether to try again, and what to do next.

An adapter that knows its vendor decides between the branches once; everyone else only branches on them.
`TransientError` is a bad system that may recover, `ConfigurationError` a bad system that a person must mend,
`PermanentError` an operation that will never succeed, and `BadDocument` a bad record: data, never a reason
to stop the others (G4, G5). Every class survives pickling, since errors cross process borders.
"""

from __future__ import annotations

from enum import StrEnum


class DeadReason(StrEnum):
    """Why a message became a dead letter: the closed list of contracts 1.5."""

    NOT_JSON = "not_json"
    SCHEMA_INVALID = "schema_invalid"
    UNKNOWN_VERSION = "unknown_version"
    TOO_LARGE = "too_large"
    LOCATION_REFUSED = "location_refused"
    OBJECT_MISSING = "object_missing"
    OBJECT_MISMATCH = "object_mismatch"
    OBJECT_UNAVAILABLE = "object_unavailable"
    ACCESS_REFUSED = "access_refused"
    EMPTY = "empty"
    UNSUPPORTED_FORMAT = "unsupported_format"
    EXTRACTION_FAILED = "extraction_failed"
    EMBEDDING_REJECTED = "embedding_rejected"
    WRITE_REJECTED = "write_rejected"
    COLLECTION_REFUSED = "collection_refused"


class ShoalError(Exception):
    """Root of every error of ours. `str(error)` is one line that says what to do next."""


class TransientError(ShoalError):
    """A system is unwell; the same call may succeed later.

    `retry_after_s`: what the system asked for, in seconds, or None where it named nothing.
    """

    def __init__(self, message: str, retry_after_s: float | None = None) -> None:
        super().__init__(message, retry_after_s)
        self.message = message
        self.retry_after_s = retry_after_s

    def __str__(self) -> str:
        return self.message


class ThrottledError(TransientError):
    """The system answers, and wants to be asked less often."""


class FullError(TransientError):
    """As many wait for this as may: come back later."""


class PermanentError(ShoalError):
    """The same call will fail the same way for ever."""


class ConfigurationError(PermanentError):
    """A person must change a setting, a permission or a key; retrying or dead-lettering would only flood."""


class QuotaError(ConfigurationError):
    """What the account may use is used up: somebody must pay, or wait for the next month."""


class FencedError(PermanentError):
    """Another writer holds a higher epoch: this one must end (G3)."""


class BadDocument(PermanentError):
    """This record can't be used; it ends as a dead letter with `reason`, the others go on (G4)."""

    def __init__(self, reason: DeadReason, message: str) -> None:
        super().__init__(reason, message)
        self.reason = reason
        self.message = message

    def __str__(self) -> str:
        return f"{self.reason}: {self.message}"
