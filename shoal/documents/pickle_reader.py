"""Python pickles to `Content`, without ever loading one: loading runs code of whoever wrote it.

`pickletools.genops` decodes the opcodes and executes none. Strings and numbers in them are listed, names of
classes set aside; a string that is a whole JSON, HTML or XML document is read as that document (a scraper's
pickled response). Bounded in opcodes and characters. Raises BadDocument(EXTRACTION_FAILED) for what is no whole
pickle. It doesn't rebuild the objects: which string is whose key stays unknown.
"""

from __future__ import annotations

import pickletools
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from typing import Any

from shoal.documents import sniff
from shoal.documents.charset import clean, decode
from shoal.documents.content import Content, Section
from shoal.documents.profiles import is_prose, profile, readable
from shoal.errors import BadDocument, DeadReason

OPCODES_MAX = 1_000_000  # half a second; a pickle of more has said what it is about
STRINGS_MAX = 20_000
TEXT_CHARS_MAX = 200_000  # of prose
DOCUMENT_CHARS_MIN = 200  # a shorter string of JSON is a value
SHOWN_MAX = 120
WARNING = "a Python pickle: its strings were listed, nothing in it was run"

ReadText = Callable[[bytes], Content]
_GETS = frozenset({"GET", "BINGET", "LONG_BINGET"})
_PUTS = frozenset({"PUT", "BINPUT", "LONG_BINPUT"})


@dataclass(slots=True)
class _Found:
    texts: list[str] = field(default_factory=list)
    numbers: list[float] = field(default_factory=list)
    classes: dict[str, None] = field(default_factory=dict)
    is_cut: bool = False


def read_pickle(data: bytes, read_text: ReadText) -> Content:
    """Describe a pickle. `read_text(bytes)` reads a document that one of its strings is, or raises BadDocument."""
    found = _listed(data)
    warnings = (WARNING, *(("only its beginning was listed",) if found.is_cut else ()))
    for text in sorted((text for text in found.texts if len(text) >= DOCUMENT_CHARS_MIN), key=len, reverse=True)[:3]:
        if sniff.text_format(text, "", None) in ("JSON", "HTML", "XML"):
            try:
                content = read_text(text.encode("utf-8", "replace"))
            except BadDocument:
                continue
            return replace(content, warnings=(*warnings, *content.warnings))
    fields = (profile("numbers", found.numbers).profile,) if found.numbers else ()
    return Content("PICKLE", tuple(_sections(found)), fields, warnings=warnings)


def _sections(found: _Found) -> list[Section]:
    distinct = list(dict.fromkeys(said for text in found.texts if (said := clean(readable(text)).strip())))
    prose = [text for text in distinct if is_prose(text) or len(text) > 200]
    words = [text for text in distinct if len(text) <= 200 and not is_prose(text) and any(map(str.isalpha, text))]
    lines = ["Pickled Python objects" + (f" with the strings {', '.join(words[:SHOWN_MAX])}" if words else "")]
    if found.classes:
        lines.append(f"Classes: {', '.join(list(found.classes)[:20])}")
    sections = [Section("\n".join(lines)[:4000])]
    if prose:
        sections.append(Section("\n".join(prose)[:TEXT_CHARS_MAX], "Text"))
    return sections


def _listed(data: bytes) -> _Found:
    found = _Found()
    memo: dict[int, str | None] = {}
    pushed: list[str | None] = []  # the last strings: STACK_GLOBAL takes two of them as module and name
    try:
        argument: Any
        for at, (opcode, argument, _) in enumerate(pickletools.genops(data)):
            if at >= OPCODES_MAX or len(found.texts) >= STRINGS_MAX:
                found.is_cut = True
                break
            name = opcode.name
            if name == "MEMOIZE":
                memo[len(memo)] = pushed[-1] if pushed else None
            elif name in _PUTS:
                memo[int(argument)] = pushed[-1] if pushed else None
            elif name in _GETS:
                pushed = [*pushed[-1:], memo.get(int(argument))]
            elif name == "STACK_GLOBAL":
                _name_class(found, [text for text in pushed if text])
                pushed = [None]
            elif name in ("GLOBAL", "INST"):
                found.classes[clean(str(argument).replace(" ", "."))[:100]] = None
                pushed = [None]
            elif opcode.stack_after:
                text = _text(argument)
                if text is not None:
                    found.texts.append(text)
                elif isinstance(argument, float):  # integers are mostly bookkeeping: offsets, flags, widths
                    found.numbers.append(argument)
                pushed = [*pushed[-1:], text]
    except Exception as error:  # genops raises whatever a hostile argument makes of its decoders
        raise BadDocument(DeadReason.EXTRACTION_FAILED, f"damaged pickle: {str(error)[:160]}") from None
    return found


def _name_class(found: _Found, names: list[str]) -> None:
    """The two strings before were a module and a class in it, no data."""
    if len(names) == 2:
        found.classes[clean(".".join(names))[:100]] = None
    for name in reversed(names):
        if found.texts and found.texts[-1] == name:
            found.texts.pop()


def _text(argument: object) -> str | None:
    """A string, or bytes that are text (the body of a response)."""
    if isinstance(argument, str):
        return argument
    if (
        isinstance(argument, (bytes, bytearray))
        and len(argument) >= 16
        and sniff.binary_format(bytes(argument)) is None
    ):
        decoded = decode(bytes(argument))
        return decoded.text if "\ufffd" not in decoded.text else None
    return None
