"""Log lines say what they are about, as text and as JSON, and hold no secrets."""

from __future__ import annotations

import asyncio
import json
import logging
import sys

import pytest

from shoal.log_format import JsonLines, TextLines, about, formatter


def a_record(message: str, *arguments: object, error: bool = False) -> logging.LogRecord:
    info = None
    if error:
        try:
            raise ValueError("GET https://me:hunter2@example.org/")
        except ValueError:
            info = sys.exc_info()
    return logging.LogRecord("shoal.reader", logging.INFO, "", 0, message, arguments, info)


def test_a_line_names_the_document_and_its_place() -> None:
    with about(document="prod:load:a.csv", topic="t", partition=2, offset=7, trace=None):
        line = json.loads(JsonLines().format(a_record("said %s", "so")))
        text = TextLines().format(a_record("said"))
    assert line.items() >= {
        "document": "prod:load:a.csv", "topic": "t", "partition": 2, "offset": 7, "message": "said so", "level": "INFO",
        "logger": "shoal.reader",
    }.items()  # fmt: skip
    assert "trace" not in line
    assert text.endswith("said [document=prod:load:a.csv topic=t partition=2 offset=7]")
    assert "[" not in TextLines().format(a_record("said"))


async def test_tasks_do_not_mix_up_what_they_are_about() -> None:
    lines: list[dict[str, object]] = []

    async def work(name: str, first: asyncio.Event, then: asyncio.Event) -> None:
        with about(document=name):
            first.set()
            await then.wait()
            lines.append(json.loads(JsonLines().format(a_record(name))))

    one, two = asyncio.Event(), asyncio.Event()
    await asyncio.gather(work("a", one, two), work("b", two, one))
    assert [line["document"] == line["message"] for line in lines] == [True, True]


@pytest.mark.parametrize("form", ["text", "json"])
def test_secrets_are_taken_out(form: str) -> None:
    line = formatter("json" if form == "json" else "text").format(
        a_record("GET https://example.org/?api_key=hunter2 failed: Authorization: Bearer hunter2hunter2", error=True)
    )
    assert "hunter2" not in line
    assert "ValueError" in line


def test_json_is_one_line_whatever_is_in_it() -> None:
    with about(document="a\nb", odd=object()):
        assert JsonLines().format(a_record("two\nlines", error=True)).count("\n") == 0
