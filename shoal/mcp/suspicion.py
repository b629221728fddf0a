"""Says which texts read as if they gave orders to the reader: a flag for agents, never a censor.

Indexed text was written by strangers, and a model that reads it may take it for what it was asked to do. `marks` names
what is conspicuous; the text itself is left as it is. It is a help, no wall: who writes with care passes it, so the
notice beside every answer stands whether anything was marked or not. Pure; linear in the text, whose length is bounded.
"""

from __future__ import annotations

import re
import unicodedata
from importlib.resources import files

TEXT_CHARS_MAX = 20_000
"""What is looked at of one text. A tool shows at most so much of one."""

_HIDDEN = ("Cf", "Co", "Cs")
_HIDDEN_MIN = 3
"""One soft hyphen or byte order mark is a habit of exporters; several in one text hide something, or spell it."""
_JOINERS = frozenset("\u200c\u200d\u00ad\ufeff")  # parts of scripts and of emoji, hyphens, byte order marks


def _read(text: str) -> tuple[tuple[str, re.Pattern[str]], ...]:
    names: dict[str, str] = {}
    found: list[tuple[str, re.Pattern[str]]] = []
    for line in text.splitlines():
        if definition := re.fullmatch(r"([A-Z_]+) = (.+)", line):
            names[definition[1]] = definition[2]
        elif rule := re.fullmatch(r"([a-z_]+): (.+)", line):
            pattern = re.sub(r"\{([A-Z_]+)\}", lambda name: names[name[1]], rule[2])
            found.append((rule[1], re.compile(pattern, re.IGNORECASE)))
    return tuple(found)


_PATTERNS = _read(files(__package__).joinpath("suspicious.txt").read_text("utf-8"))


def marks(text: str) -> tuple[str, ...]:
    """What is conspicuous in `text`, each once, in a fixed order; () where nothing is: `override`, `role`, `address`,
    `chat_markup`, `secrets`, `run`, `conceal`, `hidden_characters`."""
    looked = text[:TEXT_CHARS_MAX]
    hidden = sum(1 for c in looked if c > "\x7f" and c not in _JOINERS and unicodedata.category(c) in _HIDDEN)
    plain = _plain(looked)[:TEXT_CHARS_MAX]  # some characters unfold into many
    found = dict.fromkeys(name for name, pattern in _PATTERNS if pattern.search(plain))
    return (*found, "hidden_characters") if hidden >= _HIDDEN_MIN else tuple(found)


def _plain(text: str) -> str:
    """`text` as a reader takes it: without what can't be seen, letters of other shapes as the plain ones, blanks and
    single line breaks as one space (orders are wrapped like any prose)."""
    folded = unicodedata.normalize("NFKC", text).replace("\u2019", "'")
    seen = "".join(c for c in folded if c < "\x80" or unicodedata.category(c) not in _HIDDEN)
    return re.sub(r"[^\S\n]+", " ", re.sub(r"(?<!\n)\n[^\S\n]*(?=[^\s:])(?![^\n:]{1,12}:)", " ", seen))
