"""Errors cross process borders: each must come out of a pickle as it went in."""

from __future__ import annotations

import importlib
import inspect
import pickle
import pkgutil
from pathlib import Path

import pytest

import shoal
from shoal.errors import (
    BadDocument,
    ConfigurationError,
    DeadReason,
    FencedError,
    PermanentError,
    ShoalError,
    TransientError,
)

CONTRACT_REASONS = """not_json, schema_invalid, unknown_version, too_large, location_refused, object_missing,
    object_mismatch, object_unavailable, access_refused, empty, unsupported_format, extraction_failed,
    embedding_rejected, write_rejected, collection_refused"""


@pytest.mark.parametrize("protocol", range(pickle.HIGHEST_PROTOCOL + 1))
@pytest.mark.parametrize(
    "error",
    [
        ShoalError("a"),
        TransientError("the store is slow", 2.5),
        TransientError("the store is slow"),
        PermanentError("b"),
        ConfigurationError("set KAFKA_BROKERS"),
        FencedError("epoch 3 < 4"),
        BadDocument(DeadReason.TOO_LARGE, "65 MiB"),
    ],
    ids=lambda error: type(error).__name__,
)
def test_an_error_survives_pickling(error: ShoalError, protocol: int) -> None:
    copy = pickle.loads(pickle.dumps(error, protocol))
    assert type(copy) is type(error)
    assert (str(copy), copy.args, vars(copy)) == (str(error), error.args, vars(error))


def test_errors_of_the_other_rooms_survive_pickling_too() -> None:
    broken = []
    for error_class in _all_errors():
        error = _example(error_class)
        copy = pickle.loads(pickle.dumps(error))
        if (type(copy), str(copy), vars(copy)) != (error_class, str(error), vars(error)):
            broken.append(error_class.__qualname__)
    assert broken == []


def test_the_tree_says_whether_to_try_again() -> None:
    for error_class in (ConfigurationError, FencedError, BadDocument):
        assert issubclass(error_class, PermanentError)
        assert not issubclass(error_class, TransientError)


def test_the_reasons_are_those_of_the_contract() -> None:
    assert {str(reason) for reason in DeadReason} == {word.strip() for word in CONTRACT_REASONS.split(",")}


def test_a_bad_document_says_its_reason_first() -> None:
    assert str(BadDocument(DeadReason.EMPTY, "0 bytes")) == "empty: 0 bytes"


def _all_errors() -> list[type[ShoalError]]:
    """Every subclass in the rooms that import no Ray (importing those costs seconds)."""
    package = Path(shoal.__file__).parent
    for room in ("documents", "embeddings", "sources", "store", "mcp", "client"):
        for module in pkgutil.iter_modules([str(package / room)]):
            importlib.import_module(f"shoal.{room}.{module.name}")
    importlib.import_module("shoal.actors.pipeline")
    found, queue = [], [ShoalError]
    while queue:
        error_class = queue.pop()
        found.append(error_class)
        queue += error_class.__subclasses__()
    return [error_class for error_class in found if error_class.__module__.startswith("shoal.")]


def _example(error_class: type[ShoalError]) -> ShoalError:
    """An instance with something plausible for each required argument."""
    values: dict[str, object] = {"DeadReason": DeadReason.EMPTY, "int": 429, "float": 1.5}
    if error_class.__init__ is Exception.__init__:
        return error_class("words")
    required = [
        parameter
        for parameter in inspect.signature(error_class).parameters.values()
        if parameter.default is parameter.empty
        and parameter.kind in (parameter.POSITIONAL_ONLY, parameter.POSITIONAL_OR_KEYWORD)
    ]
    return error_class(*(values.get(str(parameter.annotation), "words") for parameter in required))
