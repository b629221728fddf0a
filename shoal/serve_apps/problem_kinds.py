"""The kinds of problem that Shoal answers with, and the body of one (RFC 9457).

Pure, and free of imports: whoever stands before the application (front.py, the ingress) speaks of problems as it does.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True, slots=True)
class Kind:
    """One kind of problem: the end of its `type`, what it is called, what it means, and what to do."""

    name: str
    status: int
    title: str
    advice: str


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("bad-request", 400, "The request could not be read", "Send a body of JSON, as /docs shows it."),
        Kind("unauthenticated", 401, "Nobody known asks", "Send an API key: Authorization: Bearer KEY."),
        Kind("forbidden", 403, "This caller may not do this", "Ask with a key whose scope has this call."),
        Kind("origin-refused", 403, "A page of another origin, or another name, asks",
             "Who runs this lets origins in by SHOAL_ALLOWED_ORIGINS, and names by SHOAL_ALLOWED_HOSTS."),
        Kind("location-refused", 403, "The file lies where nothing is read from",
             "Let allowed_roots or allowed_buckets name the place, if it is meant to be read."),
        Kind("not-found", 404, "There is nothing here", "Look at the path and the id; /docs lists the calls."),
        Kind("method-not-allowed", 405, "This path does not take this method", "The header Allow says which it takes."),
        Kind("request-timeout", 408, "The request did not come in time", "Send it all at once, and read the answer."),
        Kind("gone", 410, "The file is not there any more", "The document is still indexed; its file was taken away."),
        Kind("too-large", 413, "The body is too large", "The detail says how many bytes there may be."),
        Kind("uri-too-long", 414, "The URL is too long", "POST .../collections/{name}/search takes long questions."),
        Kind("unsupported-media-type", 415, "The body is of another kind than this call takes",
             "The detail says which Content-Type to send."),
        Kind("invalid-parameter", 422, "A parameter is wrong", "`parameter` names it, the detail says what is right."),
        Kind("refused", 422, "The writer did not take it", "`job` says why; a changed request is another job."),
        Kind("too-many-requests", 429, "Too many requests", "Come back after the seconds of Retry-After."),
        Kind("internal", 500, "Something went wrong on our side", "Tell who runs this the request_id; the log has it."),
        Kind("misconfigured", 500, "Something is set wrongly on our side", "Who runs this must change what it says."),
        Kind("not-implemented", 501, "Shoal can't do this yet", "The detail says what there is instead."),
        Kind("replica-lost", 502, "The replica that had this request died",
             "Ask a question again at once; of a change, look first whether it was done."),
        Kind("unavailable", 503, "Not available right now", "Come back after the seconds of Retry-After."),
        Kind("starting", 503, "The tables are not there yet", "Start `shoal up` on these tables, or wait for it."),
        Kind("timeout", 504, "There was no answer in time", "Ask for less, or send a longer X-Request-Timeout."),
    )
}  # fmt: skip
"""Every problem that REST answers with. A name is never given another meaning."""

_BY_STATUS: Mapping[int, Kind] = {kind.status: kind for kind in reversed(list(KINDS.values()))}


def problem_body(
    status: int, detail: str, request_id: str, *, kind: str | None = None, title: str | None = None
) -> dict[str, Any]:
    """The body of one error; `kind` is the stable end of its `type`, else what is usual for `status`."""
    known = KINDS[kind] if kind else _BY_STATUS.get(status) or Kind(f"http-{status}", status, "The request failed", "")
    return {
        "type": f"urn:shoal:problem:{known.name}",
        "title": title or known.title,
        "status": status,
        "detail": detail,
        "advice": known.advice,
        "see": f"/problems/{known.name}",
        "request_id": request_id,
    }
