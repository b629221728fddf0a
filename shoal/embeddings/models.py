"""Embedding models by name: which one a name or the settings mean.

A name (`model_names`) is stored with each collection and says all that makes its vectors: `local:all-MiniLM-L6-v2`,
`openai:text-embedding-3-small@512`, `openai:intfloat/e5-base-v2+e5`, `hash:64`. Importing this module, and everything
here but `create_model`, loads no weights, no ONNX Runtime and no SDK, so that fetch workers can plan chunks. An
unknown name, a missing key or missing files raise ConfigurationError.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from shoal.embeddings.batch_provider import BatchProvider, why_none
from shoal.embeddings.embedding_model import EmbeddingModel
from shoal.embeddings.model_names import OPENAI_WIDTHS, ModelName, check_dimensions, known_of, parse
from shoal.embeddings.openai_window import openai_window
from shoal.embeddings.prefixes import PREFIXES, PrefixedModel, Prefixes, named
from shoal.embeddings.purposes import Charge, Purpose
from shoal.errors import ConfigurationError
from shoal.settings import Settings

_HASH_WIDTH = 64
_CHUNK_TOKENS = 1000  # what a chunk has where the model would take more
_CHUNK_TOKENS_MIN = 32


def default_model_name(settings: Settings) -> str:
    """The model that new collections get. Raises ConfigurationError where the settings contradict each other."""
    match settings.provider:
        case "hash":
            return f"hash:{_HASH_WIDTH}"
        case "openai":
            model, dimensions = settings.openai_embedding_model, settings.openai_embedding_dimensions
            if dimensions == OPENAI_WIDTHS.get(model):
                dimensions = 0
            if dimensions and model in OPENAI_WIDTHS:
                check_dimensions(model, dimensions)
            name = ModelName("openai", model, dimensions)
        case "local":
            from shoal.embeddings.local_model import PACKAGE_MODEL

            model = settings.model_dir.expanduser().resolve().name if settings.model_dir else PACKAGE_MODEL
            name = ModelName("local", model, is_quantised=settings.local_quantized)
    full = ModelName(name.provider, name.model, name.dimensions, name.is_quantised, _own_prefixes(settings, name).name)
    if parse(str(full)) != full:
        raise ConfigurationError(f"a model can't be called {model!r}: its name ends like a part of ours ({full})")
    return str(full)


def create_model(
    settings: Settings,
    name: str | None = None,
    *,
    width: int | None = None,
    on_charges: Callable[[Sequence[Charge]], None] | None = None,
) -> EmbeddingModel:
    """The model called `name`, or the default for new collections. Loads weights (a second) or makes a client.

    `width`: of its vectors, where a collection says so. `on_charges`: told, in whatever thread, of requests that the
    model sends beyond one per `embed` (a probe of a server, say), which nobody in particular pays. Nothing is asked of
    a provider here, so whoever starts in an outage of the provider starts all the same.
    """
    parsed = parse(name or default_model_name(settings))
    model: EmbeddingModel
    match parsed.provider:
        case "local":
            from shoal.embeddings.local_model import LocalModel, model_directory

            directory = model_directory(settings, parsed.model)
            bare = str(ModelName("local", parsed.model, is_quantised=parsed.is_quantised))
            graphs, threads = settings.home / "models", settings.embedding_threads
            model = LocalModel(directory, bare, graphs, threads, is_quantised=parsed.is_quantised)
        case "openai":
            from shoal.embeddings.openai_model import OpenAIModel

            def booked(requests: int, texts: int, tokens: int, has_failed: bool) -> None:
                if on_charges is not None:
                    on_charges([Charge(str(parsed), Purpose(), requests, texts, tokens, has_failed)])

            model = OpenAIModel(settings, parsed.model, dimensions=parsed.dimensions, width=width, on_own=booked)
        case _:
            from shoal.embeddings.hash_model import HashModel

            model = HashModel(int(parsed.model))
    prefixes = _prefixes(settings, parsed)
    return model if prefixes == Prefixes() else PrefixedModel(model, prefixes)


def create_batch_provider(settings: Settings, name: str, width: int) -> BatchProvider | None:
    """The Batch API behind the model called `name`; None where there is none to be tried (`batch_provider.why_none`).
    Asks nothing of the provider. Raises ConfigurationError."""
    if why_none(settings, name) is not None:
        return None
    from shoal.embeddings.openai_batches import OpenAIBatches
    from shoal.embeddings.openai_model import OpenAIModel

    parsed = parse(name)
    model = OpenAIModel(settings, parsed.model, dimensions=parsed.dimensions, width=width)
    return OpenAIBatches(model, _prefixes(settings, parsed))


def model_width(settings: Settings, name: str) -> int:
    """The length of the model's vectors. Only an OpenAI-compatible model that we don't know costs a request."""
    parsed = parse(name)
    match parsed.provider:
        case "local":
            from shoal.embeddings.bert_graph import read_shape
            from shoal.embeddings.local_model import model_directory

            return read_shape(model_directory(settings, parsed.model)).width
        case "openai":
            if known := parsed.dimensions or OPENAI_WIDTHS.get(parsed.model):
                return known
            model = create_model(settings, name)
            try:
                return model.width
            finally:
                model.close()
        case _:
            return int(parsed.model)


def token_budget(settings: Settings, name: str) -> tuple[Callable[[str], int], int, int]:
    """How to chunk for the model: (token count of a text, most tokens per chunk, tokens shared by neighbours).

    A chunk within the budget fits `max_input_tokens`, special tokens and prefix included, even where cutting a text
    into spans changed its count a little. The function can be pickled.
    """
    parsed = parse(name)
    count: Callable[[str], int]
    match parsed.provider:
        case "local":
            from shoal.embeddings.bert_graph import read_shape
            from shoal.embeddings.local_model import model_directory
            from shoal.embeddings.wordpieces import TokenCounter

            directory = model_directory(settings, parsed.model)
            count, room, part = TokenCounter(directory), read_shape(directory).max_input_tokens, 6
        case "openai":
            count, room = openai_window(settings, parsed.model)
            part = 5
        case _:
            from shoal.embeddings.hash_model import count_tokens

            return count_tokens, 250, 40
    prefixes = _prefixes(settings, parsed)
    # [CLS], [SEP] and some slack
    room = min(_CHUNK_TOKENS, room - 6 - max(count(prefixes.query), count(prefixes.document)))
    if room < _CHUNK_TOKENS_MIN:
        raise ConfigurationError(
            f"{name}: {room} tokens are left for a chunk; see SHOAL_OPENAI_MAX_INPUT_TOKENS and the prefixes"
        )
    return count, room, room // part


def _prefixes(settings: Settings, name: ModelName) -> Prefixes:
    return named(name.prefixes, _own_prefixes(settings, name)) if name.prefixes else Prefixes()


def _own_prefixes(settings: Settings, name: ModelName) -> Prefixes:
    """What a new collection of the model gets: the settings' prefixes, else the model's own."""
    known = PREFIXES.get(known_of(name.model).prefixes, Prefixes())
    if name.provider == "local":
        from shoal.embeddings.local_model import model_prompts

        known = model_prompts(settings, name.model) or known
    query, document = settings.embedding_query_prefix, settings.embedding_document_prefix
    return Prefixes(known.query if query is None else query, known.document if document is None else document)
