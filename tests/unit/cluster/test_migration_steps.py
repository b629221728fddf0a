"""`shoal migrate-model` as a person meets it: each step says what it did and what may come next, refuses the rest."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from shoal.cluster import migration_steps as steps
from shoal.cluster.migrating import in_use
from shoal.cluster.model_comparison import judged
from shoal.cluster.output import Exit, Format
from shoal.embeddings.hash_model import HashModel
from shoal.errors import ConfigurationError
from shoal.records import Embedded
from shoal.settings import Settings
from shoal.store.writing import TableWriter
from tests.fixtures.documents import MODEL, WIDTH, document
from tests.unit.cluster.test_migrating import NOW, WIDER


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    made = Settings(data_dir=tmp_path, embedding_provider="hash")
    writer = TableWriter.open(made.tables_uri, {}, MODEL, WIDTH, settings=made, now=NOW)
    writer.apply([_document(number) for number in range(6)], (), NOW)
    writer.close()
    return made


def _document(number: int) -> Embedded:
    return document(f"prod:ds:{number}", number, content=f"subject number {number}")


def yes(_: str) -> bool:
    return True


def no(_: str) -> bool:
    return False


def test_build_compare_switch_back_and_drop(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    questions = tmp_path / "questions.txt"
    questions.write_text("subject number 3\n\nsubject number 4\n")
    assert steps.build(settings, WIDER, 10_000, 0.02, questions, yes, Format.json) == Exit.OK
    built = json.loads(capsys.readouterr().out)
    assert built["comparison"]["questions"] == 2
    assert 0 < built["spent_tokens"] < 10_000
    assert steps.show(settings, Format.json) == Exit.OK
    assert json.loads(capsys.readouterr().out)["documents that differ"] == 0

    with pytest.raises(ConfigurationError, match="--switch moves it"):
        steps.move(settings, yes, Format.json, is_back=True)
    with pytest.raises(ConfigurationError, match="--cancel"):
        steps.remove(settings, yes, Format.json, is_cancel=False)
    assert steps.move(settings, no, Format.json, is_back=False) == Exit.FAILED
    assert in_use(settings).number == 1
    assert steps.move(settings, yes, Format.json, is_back=False) == Exit.OK
    assert json.loads(capsys.readouterr().out)["model"] == WIDER

    with pytest.raises(ConfigurationError, match="--back"):
        steps.build(settings, MODEL, None, None, None, yes, Format.json)
    assert steps.move(settings, yes, Format.json, is_back=True) == Exit.OK
    assert in_use(settings).facts.model == MODEL
    with pytest.raises(ConfigurationError, match="--drop"):
        steps.remove(settings, yes, Format.json, is_cancel=True)
    assert steps.remove(settings, no, Format.json, is_cancel=False) == Exit.FAILED
    assert steps.remove(settings, yes, Format.json, is_cancel=False) == Exit.OK
    with pytest.raises(ConfigurationError, match="nothing beside it"):
        steps.move(settings, yes, Format.json, is_back=True)


def test_nothing_is_made_before_it_is_agreed_to(settings: Settings) -> None:
    assert steps.build(settings, WIDER, None, None, None, no, Format.table) == Exit.FAILED
    assert not (Path(settings.tables_uri) / "_generations").exists()


def test_a_bound_that_does_not_suffice_spends_nothing_and_says_what_is_needed(
    settings: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    assert steps.build(settings, WIDER, 5, None, None, yes, Format.table) == Exit.FAILED
    assert "raise --max-tokens" in capsys.readouterr().err


def test_answers_are_compared_by_the_documents_that_both_find() -> None:
    found = judged(["a", "b", "c"], [["1", "2"], ["1"], []], [["2", "3"], ["1"], []], "questions")
    assert found.overlap == pytest.approx((0.5 + 1 + 1) / 3)
    assert found.same_first == pytest.approx(2 / 3)
    assert found.least == "a"
    assert judged([], [], [], "questions").questions == 0


def test_the_model_of_a_collection_is_that_of_the_generation_in_use(settings: Settings) -> None:
    from shoal.cluster.runtime import choose_model
    from shoal.store.place import current

    auto = settings.model_copy(update={"embedding_provider": "auto"})
    steps.build(settings, WIDER, None, None, None, yes, Format.table)
    assert choose_model(auto) == (MODEL, WIDTH)
    steps.move(settings, yes, Format.table, is_back=False)
    assert choose_model(auto) == (WIDER, HashModel(128).width)
    assert current(settings).tables_uri.endswith("_generations/2")
