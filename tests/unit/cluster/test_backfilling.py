"""A backfill meets names that others made: none breaks its memory, its progress or the terminal."""

from __future__ import annotations

import io
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from shoal.cluster import backfilling
from shoal.cluster.asking import show_explanation
from shoal.cluster.backfilling import HIDDEN, MARK, About, Directory, Found, backfill, mark_of, name_of
from shoal.cluster.output import Exit, Format
from shoal.cluster.sending import PacedSender, StateFile, Window
from shoal.errors import TransientError
from shoal.records import Announcement, Position
from shoal.settings import Settings, load
from shoal.sources.messages import RawMessage, parse_message

ABOUT = About("nyiso_load", "nyiso", "load")
NOT_UTF_8 = os.fsdecode(b"b-\xff.json")


class Sender(PacedSender):
    """Takes all, and breaks off as the real one does: only the broker is missing."""

    def __init__(self, _: Settings, window: Window, *, save: Any, progress: Any, **__: Any) -> None:
        self.window, self._save, self._progress = window, save, progress
        self._tail = None

    def skip(self, why: str, mark: tuple[str, Any]) -> bool:
        self.window.skip(why, mark)
        self._progress(self.window)
        return True

    def finish(self) -> bool:
        raise TransientError("broken off")

    def leave(self) -> None:
        self._progress(self.window)
        self._save(self.window)


@pytest.mark.parametrize("name", ["a[/b]c", "\x1b[31mred\x9b0m", NOT_UTF_8])
def test_any_name_can_be_where_a_run_broke_off(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    asked: list[str] = []
    terminal = io.StringIO()
    shown = Console(file=terminal, force_terminal=True, color_system=None)

    def after(_: Directory, told: str) -> Iterator[Found]:
        asked.append(told)
        yield Found(name, None, HIDDEN)

    monkeypatch.setattr(backfilling, "PacedSender", Sender)
    monkeypatch.setattr(backfilling, "err", shown)
    monkeypatch.setattr(Directory, "after", after)
    place = tmp_path / (NOT_UTF_8 if name == NOT_UTF_8 else "place")
    place.mkdir()
    for _ in range(2):
        with pytest.raises(TransientError, match="broken off"):
            backfill(
                load(data_dir=tmp_path / "data"), str(place), ABOUT, rate=0, in_flight_max=1, timeout_s=1,
                restart=False, form=Format.table,
            )  # fmt: skip
    assert asked == ["", name]
    assert "\x1b[31m" not in terminal.getvalue()
    assert "\x1b" not in capsys.readouterr().err


def test_what_a_backfill_announces_says_so_and_waits_behind_what_is_new(tmp_path: Path) -> None:
    sent: list[RawMessage] = []

    class Heard(Sender):
        def send(self, topic: str, key: bytes, value: bytes, headers: Any, **_: Any) -> bool:
            sent.append(RawMessage(Position("c", topic, 0, len(sent), 0), key, value, tuple(headers)))
            return True

    place = tmp_path / "place"
    place.mkdir()
    (place / "a.json").write_text("{}")
    settings = load(data_dir=tmp_path / "data", allowed_file_roots=[place])
    sender = Heard(settings, Window(), save=None, progress=None)
    assert backfilling.announce(sender, Directory(str(place), ABOUT, settings).after(""), settings)
    (work,) = parse_message(sent[0], settings)
    assert isinstance(work, Announcement)
    assert (work.is_backfill, work.is_replay) == (True, False)


@pytest.mark.parametrize("name", ["", "a/b.json", "{hex}", "負荷", NOT_UTF_8])
def test_a_mark_is_kept_as_json_and_names_the_same(name: str, tmp_path: Path) -> None:
    file = StateFile(tmp_path, {})
    file.save({"marks": {MARK: mark_of(name)}})
    kept = file.load()
    assert kept is not None
    assert name_of(kept["marks"][MARK]) == name


def test_an_explanation_shows_no_character_that_a_terminal_obeys(capsys: pytest.CaptureFixture[str]) -> None:
    chunk = {"index": 0, "token_count": 1, "text": "a\x1b]0;title\x07\n\x9b31mb"}
    assert show_explanation({"traits": {}, "warnings": [], "chunks": [chunk]}, Format.table) == Exit.OK
    assert capsys.readouterr().out.replace("\n", "").isprintable()
