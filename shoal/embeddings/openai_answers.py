"""What an embeddings endpoint answered: the body of a 200 as unit vectors in the order of the texts, or why not.

Guarantee: `read_answer` gives one vector per text, each put in its row by the answer's own `index`, all of one
width, finite and of length 1; anything else raises WrongAnswer, so a wrong vector never leaves this module. What
the width should be, and whether to ask again, is the client's business (`openai_model`). Pure: bytes in, no
network.
"""

from __future__ import annotations

import base64
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import numpy.typing as npt
import orjson

from shoal.records import Matrix

ANSWER_BYTES_MAX = 64 * 1024 * 1024
"""Far above any real answer: 256 vectors of 4096 numbers written out take 23 MB, in base64 6 MB."""
WIDTH_MAX = 65_536
# In a tokenizer we don't have, a text's share of the tokens may be this much above the average of its batch.
_UNEVEN = 1.25
# Special tokens that a server may leave out of its count, per text.
_SPECIALS_MAX = 4


class WrongAnswer(ValueError):
    """The body is no list of embeddings of the texts that were asked for. `code`: of an error told in a 200."""

    def __init__(self, message: str, code: str = "") -> None:
        super().__init__(message, code)
        self.message = message
        self.code = code

    def __str__(self) -> str:
        return self.message


class UnusableVector(WrongAnswer):
    """A list of embeddings, but one of them is zero or not finite: the text may be why."""


@dataclass(frozen=True, slots=True)
class Answer:
    """`vectors`: unit vectors, shape (texts, width). `tokens_read`: `usage.prompt_tokens`, None where it is not told.

    `model`: the name that the server gave its model, which need not be the one asked for.
    """

    vectors: Matrix
    tokens_read: int | None
    model: str


def read_answer(body: bytes, count: int) -> Answer:
    """The answer to a request of `count` texts. Raises WrongAnswer, and UnusableVector."""
    try:
        answer = orjson.loads(body)
    except orjson.JSONDecodeError as error:
        raise WrongAnswer(f"no JSON ({str(error)[:80]})") from None
    if not isinstance(answer, dict):
        raise WrongAnswer(f"a JSON {type(answer).__name__}")
    if "data" not in answer and answer.get("error"):
        raise _told_error(answer["error"])
    rows = _rows(answer.get("data"), count)
    vectors = [_vector(row.get("embedding"), i) for i, row in enumerate(rows)]
    widths = {len(vector) for vector in vectors}
    if len(widths) != 1:
        raise WrongAnswer(f"vectors of {len(widths)} widths")
    wide = np.stack(vectors)
    with np.errstate(over="ignore", invalid="ignore"):
        lengths = np.linalg.norm(wide, axis=1, keepdims=True)
    if not (np.isfinite(lengths) & (lengths > 0)).all():
        raise UnusableVector("a vector is zero or not finite")
    usage, model = answer.get("usage"), answer.get("model")
    read = usage.get("prompt_tokens") if isinstance(usage, dict) else None
    return Answer(
        (wide / lengths).astype(np.float32),
        read if isinstance(read, int) and read > 0 else None,
        model if isinstance(model, str) else "",
    )


def may_be_cut(counts: Sequence[int], limit: int, *, is_exact: bool, read: int) -> bool:
    """Whether a server that read `read` tokens of all texts together may have cut one of them at `limit` tokens.

    `counts`: our count of each text's tokens, by the model's own tokenizer (`is_exact`) or by another. Exact counts
    must be found again in the server's. Else a text that fills the window alone may have been cut; and a batch is
    in doubt where its longest text, at the batch's own rate of tokens, comes near the window.
    """
    if is_exact:
        return read + _SPECIALS_MAX * len(counts) < sum(counts)
    if len(counts) == 1:
        return read >= limit
    return max(counts) * read / max(1, sum(counts)) * _UNEVEN >= limit


def _told_error(error: Any) -> WrongAnswer:
    if not isinstance(error, dict):
        return WrongAnswer(f"an error: {' '.join(str(error).split())[:200]}")
    words = " ".join(str(error.get("message") or "").split())[:200]
    code = str(error.get("code") or error.get("type") or "")
    return WrongAnswer(f"an error: {code} {words}", code)


def _rows(rows: Any, count: int) -> list[dict[str, Any]]:
    """The rows in the order of the texts."""
    if not isinstance(rows, list) or not all(isinstance(row, dict) for row in rows):
        raise WrongAnswer("no list under `data`")
    if len(rows) != count:
        raise WrongAnswer(f"{len(rows)} embeddings for {count} texts")
    by_index: dict[int, dict[str, Any]] = {}
    for row in rows:
        index = row.get("index")
        if type(index) is not int or not 0 <= index < count:  # a bool is an int too
            raise WrongAnswer(f"an embedding with the index {str(index)[:20]} among {count}")
        if index in by_index:
            raise WrongAnswer(f"two embeddings with the index {index}")
        by_index[index] = row
    return [by_index[i] for i in range(count)]


def _vector(value: Any, i: int) -> npt.NDArray[np.float64]:
    """Base64 of little-endian float32, or a list of numbers; null, which some servers write for NaN, is NaN."""
    try:
        if isinstance(value, str):
            vector = np.frombuffer(base64.b64decode(value, validate=True), "<f4").astype(np.float64)
        elif isinstance(value, list):
            vector = np.asarray(value)
            if vector.dtype == object and all(number is None or type(number) in (int, float) for number in value):
                vector = vector.astype(np.float64)
            if vector.dtype.kind not in "iuf":
                raise ValueError("no numbers")
            vector = vector.astype(np.float64)
        else:
            raise ValueError("neither base64 nor a list")
    except (ValueError, TypeError, OverflowError) as error:
        raise WrongAnswer(f"embedding {i} can't be read: {error}") from None
    if vector.ndim != 1 or not 1 <= len(vector) <= WIDTH_MAX:
        raise WrongAnswer(f"embedding {i} is empty, nested or too wide")
    return vector
