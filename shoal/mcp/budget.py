"""Keeps an answer within the tokens that its caller has room for.

Guarantee: what `fitted` returns counts at most `tokens_max` as JSON, by the counter it was given. Items are kept from
the first; each is shortened before it is dropped only where it would not fit alone. The counter is a parameter: where
there is none, the bytes of the text stand for its tokens, which no byte-level tokenizer exceeds. Pure.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping, Sequence
from typing import Any

Count = Callable[[str], int]
Item = Mapping[str, Any]

TOKENS_DEFAULT = 6_000
"""Tokens of cl100k. Claude Code warns at 10,000 of its own tokens and cuts at 25,000; other vocabularies take up to
1.4 times as many for the same JSON."""
TOKENS_MIN = 1_000
"""Below this the frame of an answer and one result with its names don't fit."""
TOKENS_MAX = 16_000

_CUTS = (700, 400, 200, 100, 50, 25, 12)


def count_bytes(text: str) -> int:
    """An upper bound of the tokens of `text` in any byte-level vocabulary."""
    return len(text.encode("utf-8", "replace"))


def size(value: Any, count: Count) -> int:
    """Tokens of `value` as compact JSON."""
    return count(json.dumps(value, ensure_ascii=False, separators=(",", ":"), default=str))


def fitted(
    frame: Mapping[str, Any], name: str, items: Sequence[Item], tokens_max: int, count: Count
) -> tuple[list[dict[str, Any]], bool]:
    """How many of `items`, from the first, `frame` can carry as its list `name`; and whether the first had to be
    shortened to fit at all. An empty list where not even that helps."""
    room = tokens_max - size({**frame, name: []}, count)
    kept: list[dict[str, Any]] = []
    for item in items:
        room -= size(item, count) + 1
        if room < 0:
            break
        kept.append(dict(item))
    # The whole may count a little more than its parts: words join differently at the seams.
    while kept and size({**frame, name: kept}, count) > tokens_max:
        kept.pop()
    if kept or not items:
        return kept, False
    for cut in _CUTS:
        short = [shortened(items[0], cut)]
        if size({**frame, name: short}, count) <= tokens_max:
            return short, True
    return [], True


def shortened(item: Item, chars_max: int) -> dict[str, Any]:
    """`item` with every text in it cut to `chars_max`, but for its `id`, by which the rest can be asked for."""
    return {key: value if key == "id" else _cut(value, chars_max) for key, value in item.items()}


def _cut(value: Any, chars_max: int) -> Any:
    if isinstance(value, str):
        return value if len(value) <= chars_max else value[: chars_max - 1] + "…"
    if isinstance(value, Mapping):
        return {key: _cut(part, chars_max) for key, part in value.items()}
    if isinstance(value, list | tuple):
        return [_cut(part, chars_max) for part in value]
    return value


def longest_prefix(text: str, fits: Callable[[str], bool]) -> int:
    """The length of the longest beginning of `text` that `fits` (a test that longer texts fail); up to a blank where
    one is near, so that words stay whole."""
    low, high = 0, len(text)
    if fits(text):
        return high
    while low < high:
        middle = (low + high + 1) // 2
        low, high = (middle, high) if fits(text[:middle]) else (low, middle - 1)
    space = max(text.rfind(" ", 0, low), text.rfind("\n", 0, low))
    return space + 1 if space > low * 3 // 4 and fits(text[: space + 1]) else low
