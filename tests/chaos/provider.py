"""An OpenAI-compatible embedding provider that throttles and fails: `python -m tests.chaos.provider PORT SEED`.

A process of its own, so that it answers while the campaign is busy, and is a system apart to Shoal. What it does to
a request is drawn from the seed: an answer, 429 with retry-after and rate-limit headers, 500, a silence, a reset
connection, half an answer. It begins well-behaved; `POST /control {"bad": true}` lets it loose. Its vectors are
those of the hash model, three times too long, so that whoever knows a text knows its vector.
"""

from __future__ import annotations

import base64
import json
import random
import socket
import struct
import sys
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any

from shoal.embeddings.hash_model import HashModel

WIDTH = 64
TEXT_CHARS = 800  # of a text that its vector knows: the hash model takes 256 words
HANG_S = (2.0, 10.0)  # then the connection is closed: a client's own timeout of a minute would be the only thing tested
RATES = {"throttle": 0.06, "error": 0.04, "hang": 0.01, "reset": 0.02, "truncate": 0.02}
LIMITS = {"x-ratelimit-limit-requests": "3000", "x-ratelimit-limit-tokens": "1000000"}


def vectors(texts: list[str]) -> Any:
    """What the provider answers for `texts`, normalised."""
    return HashModel(WIDTH).embed([text[:TEXT_CHARS] for text in texts], "query")


class _Provider:
    def __init__(self, seed: int) -> None:
        self.bad = False
        self.counts: dict[str, int] = {}
        self._rng = random.Random(seed)
        self._lock = threading.Lock()

    def draw(self) -> tuple[str, float]:
        """What becomes of the next request, and a number between 0 and 1 for whatever that needs."""
        with self._lock:
            drawn, detail = self._rng.random(), self._rng.random()
            fate = "answer"
            if self.bad:
                for name, rate in RATES.items():
                    if drawn < rate:
                        fate = name
                        break
                    drawn -= rate
            self.counts[fate] = self.counts.get(fate, 0) + 1
            return fate, detail


def _handler(provider: _Provider) -> type[BaseHTTPRequestHandler]:
    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self._answer(200, provider.counts)

        def do_POST(self) -> None:
            request = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
            if self.path == "/control":
                provider.bad = bool(request["bad"])
                self._answer(200, {})
                return
            fate, detail = provider.draw()
            try:
                self._meet(fate, detail, request)
            except OSError:  # whoever asked was killed meanwhile
                self.close_connection = True

        def _meet(self, fate: str, detail: float, request: dict[str, Any]) -> None:
            if fate == "throttle":
                wait_ms = int(200 + 1800 * detail)
                headers = LIMITS | {
                    "retry-after-ms": str(wait_ms),
                    "retry-after": str(1 + wait_ms // 1000),
                    "x-ratelimit-remaining-requests": "0",
                    "x-ratelimit-reset-requests": f"{wait_ms}ms",
                }
                error = {"message": "Rate limit reached", "type": "requests", "code": "rate_limit_exceeded"}
                self._answer(429, {"error": error}, headers)
            elif fate == "error":
                self._answer(500 if detail < 0.5 else 503, {"error": {"message": "The server had an error"}})
            elif fate == "hang":
                time.sleep(HANG_S[0] + (HANG_S[1] - HANG_S[0]) * detail)
                self._reset()
            elif fate == "reset":
                self._reset()
            else:
                self._answer(200, _embeddings(request), LIMITS, keep=detail if fate == "truncate" else 1.0)

        def _answer(self, status: int, body: Any, headers: dict[str, str] | None = None, keep: float = 1.0) -> None:
            raw = json.dumps(body).encode()
            self.send_response(status)
            for name, value in {"Content-Type": "application/json", **(headers or {})}.items():
                self.send_header(name, value)
            self.send_header("Content-Length", str(len(raw)))
            self.end_headers()
            self.wfile.write(raw[: int(keep * len(raw))])
            if keep < 1.0:
                self.close_connection = True

        def _reset(self) -> None:
            self.close_connection = True
            self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            self.connection.close()

        def log_message(self, *arguments: object) -> None:
            pass

    return Handler


def _embeddings(request: dict[str, Any]) -> dict[str, Any]:
    texts = [request["input"]] if isinstance(request["input"], str) else request["input"]
    rows = 3 * vectors(texts)
    data = [
        {"object": "embedding", "index": at, "embedding": base64.b64encode(row.astype("<f4").tobytes()).decode()}
        for at, row in enumerate(rows)
    ]
    usage = {"prompt_tokens": 1, "total_tokens": 1}
    return {"object": "list", "data": data, "model": request["model"], "usage": usage}


if __name__ == "__main__":
    server = ThreadingHTTPServer(("127.0.0.1", int(sys.argv[1])), _handler(_Provider(int(sys.argv[2]))))
    server.daemon_threads = True
    server.serve_forever()
