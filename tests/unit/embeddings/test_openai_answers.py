"""Only a list of embeddings that is whole and sane becomes vectors."""

from __future__ import annotations

import base64
import random
from typing import Any

import numpy as np
import orjson
import pytest
from hypothesis import given
from hypothesis import strategies as st

from shoal.embeddings.openai_answers import UnusableVector, WrongAnswer, may_be_cut, read_answer


def packed(values: list[float]) -> str:
    return base64.b64encode(np.array(values, "<f4").tobytes()).decode()


def body(*rows: Any, **fields: Any) -> bytes:
    return orjson.dumps({"object": "list", "data": list(rows), **fields})


def row(index: Any = 0, embedding: Any = (3.0, 4.0)) -> dict[str, Any]:
    return {"index": index, "embedding": list(embedding) if isinstance(embedding, tuple) else embedding}


@given(st.integers(1, 20), st.randoms(use_true_random=False), st.booleans())
def test_each_vector_stands_in_the_row_of_its_index(count: int, shuffle: random.Random, as_base64: bool) -> None:
    vectors = [[float(i + 1), 1.0, -2.5] for i in range(count)]
    rows = [row(i, packed(vector) if as_base64 else vector) for i, vector in enumerate(vectors)]
    shuffle.shuffle(rows)
    answer = read_answer(body(*rows), count)
    expected = np.array(vectors) / np.linalg.norm(vectors, axis=1, keepdims=True)
    assert answer.vectors.dtype == np.float32
    assert np.allclose(answer.vectors, expected, atol=1e-6)


def test_what_the_server_read_and_its_models_name_are_told() -> None:
    answer = read_answer(body(row(), usage={"prompt_tokens": 7, "total_tokens": 7}, model="m"), 1)
    assert (answer.tokens_read, answer.model) == (7, "m")
    for usage in ({}, None, {"prompt_tokens": 0}, {"prompt_tokens": "7"}, [7]):
        answer = read_answer(body(row(), usage=usage, model=None), 1)
        assert (answer.tokens_read, answer.model) == (None, "")


@pytest.mark.parametrize(
    ("answer", "words"),
    [
        (b"", "no JSON"),
        (b"<html>login</html>", "no JSON"),
        (b'{"data": [' * 100_000, "no JSON"),
        (b"\xff\xfe", "no JSON"),
        (b"[]", "a JSON list"),
        (b"null", "a JSON NoneType"),
        (b"{}", "no list under"),
        (orjson.dumps({"data": {"0": 1}}), "no list under"),
        (orjson.dumps({"error": {"message": "upstream\n failed", "code": "boom"}}), "an error: boom upstream failed"),
        (orjson.dumps({"error": "model not loaded"}), "model not loaded"),
        (body(), "0 embeddings for 1"),
        (body(row(0), row(1)), "2 embeddings for 1"),
        (body([1.0]), "no list under"),
        (body(row(1)), "index 1 among 1"),
        (body(row(-1)), "index -1"),
        (body(row("0")), "index 0"),
        (body(row(0.0)), "index 0.0"),
        (body(row(True)), "index True"),
        (body({"embedding": [1.0]}), "index None"),
        (body(row(0, "?")), "can't be read"),
        (body(row(0, "AAA=")), "can't be read"),
        (body(row(0, "AAAA AAAA")), "can't be read"),
        (body(row(0, base64.b64encode(bytes(6)).decode())), "can't be read"),
        (body(row(0, "")), "empty"),
        (body(row(0, [])), "no numbers|empty"),
        (body(row(0, [[1.0, 2.0]])), "nested"),
        (body(row(0, [[1.0], [1.0, 2.0]])), "can't be read"),
        (body(row(0, ["1.0", "2.0"])), "no numbers"),
        (body(row(0, [True, False])), "no numbers"),
        (body(row(0, [1.0, "x"])), "no numbers"),
        (body(row(0, [1.0, {}])), "no numbers"),
        (body(row(0, {"values": [1.0]})), "neither"),
        (body(row(0, None)), "neither"),
        (body({"index": 0}), "neither"),
        (body(row(0, [1.0] * 65_537)), "too wide"),
    ],
)
def test_what_is_no_list_of_embeddings_is_refused(answer: bytes, words: str) -> None:
    with pytest.raises(WrongAnswer, match=words) as caught:
        read_answer(answer, 1)
    assert not isinstance(caught.value, UnusableVector)


@pytest.mark.parametrize(
    ("rows", "words"),
    [
        ([row(0), row(0)], "two embeddings with the index 0"),
        ([row(0), row(2)], "index 2 among 2"),
        ([row(0), row(1, (1.0, 2.0, 3.0))], "2 widths"),
        ([row(0)], "1 embeddings for 2"),
    ],
)
def test_a_batch_that_does_not_fit_together_is_refused(rows: list[dict[str, Any]], words: str) -> None:
    with pytest.raises(WrongAnswer, match=words):
        read_answer(body(*rows), 2)


@pytest.mark.parametrize(
    "embedding",
    [
        [0.0, 0.0],
        [None, 1.0],
        [None, None],
        packed([float("nan"), 1.0]),
        packed([float("inf"), 1.0]),
        [1e308, 1e308],
    ],
)
def test_one_vector_that_is_zero_or_not_finite_spoils_the_answer(embedding: Any) -> None:
    with pytest.raises(UnusableVector):
        read_answer(body(row(0), row(1, embedding)), 2)


def test_a_code_in_a_200_is_told_apart() -> None:
    with pytest.raises(WrongAnswer) as caught:
        read_answer(orjson.dumps({"error": {"type": "insufficient_quota", "message": "pay"}}), 1)
    assert caught.value.code == "insufficient_quota"


@pytest.mark.parametrize(
    ("counts", "is_exact", "read", "expected"),
    [
        ([100], False, 130, False),
        ([250], False, 512, True),  # it fills the window: the rest may be gone
        ([250] * 32, False, 250 * 32 * 13 // 10, False),  # WordPiece's usual rate
        ([250] * 32, False, 250 * 32 * 2, True),
        ([250, 1, 1], False, 300, False),
        ([512], True, 512, False),
        ([512, 512], True, 1020, False),  # a server that leaves out special tokens
        ([512, 300], True, 700, True),
        ([8000], False, 16_000, True),
    ],
)
def test_a_cut_text_shows_in_what_the_server_read(counts: list[int], is_exact: bool, read: int, expected: bool) -> None:
    assert may_be_cut(counts, 512, is_exact=is_exact, read=read) is expected
