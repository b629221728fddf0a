"""Bytes to text: which encoding, decided in a fixed order, and text as we keep it.

Order: byte order mark, strict UTF-8, the declared charset, NUL-pattern UTF-16, Shift-JIS by its kana, then
cp1252 unless charset-normalizer names a multi-byte or Cyrillic codec on enough non-ASCII bytes (alone it takes
latin-1 for cp1257, so it is asked last and may only name these). Never raises: what can't be decoded becomes
U+FFFD with a warning. `clean` removes what may not stand in stored text.
"""

from __future__ import annotations

import codecs
import re
from typing import NamedTuple

from charset_normalizer import from_bytes

_BOMS = (
    (codecs.BOM_UTF8, "utf-8"),
    (codecs.BOM_UTF32_LE, "utf-32-le"),
    (codecs.BOM_UTF32_BE, "utf-32-be"),
    (codecs.BOM_UTF16_LE, "utf-16-le"),
    (codecs.BOM_UTF16_BE, "utf-16-be"),
)
_DETECTABLE = ["cp932", "euc_jp", "gb18030", "big5", "cp949", "cp1251", "koi8_r", "cp866", "iso8859_5"]
_HIGH_RUN = re.compile(rb"[\x80-\xff]+")
_KANA = re.compile("[ぁ-ゖァ-ヺー]")
_SAMPLE_BYTES = 65536
# Below this many non-ASCII bytes detection is a guess, and cp1252 is the better one.
_DETECTION_BYTES_MIN = 40

# Control characters but tab and newline, bidirectional controls (they can make a text read as another),
# zero-width characters and byte order marks, lone surrogates (they can't be stored as UTF-8), noncharacters.
_UNWANTED = re.compile(
    "[\x00-\x08\x0b-\x1f\x7f-\x9f\xad\u061c\u200b-\u200f\u202a-\u202e\u2060-\u2069\ufeff\ufff9-\ufffb\ufffe\uffff"
    "\U000e0000-\U000e007f\ud800-\udfff]"
)
_LINE_ENDS = re.compile("\r\n?|[\x0b\x0c\x85\u2028\u2029]")


class Decoded(NamedTuple):
    text: str
    charset: str
    warnings: tuple[str, ...] = ()


def decode(data: bytes, declared: str | None = None) -> Decoded:
    """The text of `data` without its byte order mark. `declared` is what a header or the file itself says."""
    for bom, charset in _BOMS:
        if data.startswith(bom):
            return _forced(data[len(bom) :], charset)
    if _looks_utf16(data) is None:
        try:
            return Decoded(data.decode("utf-8"), "utf-8")
        except UnicodeDecodeError as error:
            if error.start > len(data) - 4:  # cut off within the last character
                return _forced(data, "utf-8")
    codec = _codec(declared)
    if codec is not None and codec != "utf-8":
        try:
            return Decoded(data.decode(codec), codec)
        except (UnicodeDecodeError, ValueError):
            pass
    charset = _looks_utf16(data) or _legacy(data)
    return _forced(data, charset)


def clean(text: str) -> str:
    """`text` as it may be stored and embedded: one kind of line end, nothing invisible, no lone surrogates."""
    return _UNWANTED.sub("", _LINE_ENDS.sub("\n", text))


def repair_mojibake(text: str) -> str:
    """UTF-8 that was once decoded as Latin-1 and encoded again reads right; any other text is left alone."""
    if text.isascii() or max(text) > "\xff":
        return text
    try:
        return text.encode("latin-1").decode("utf-8")
    except UnicodeError:
        return text


def _forced(data: bytes, charset: str) -> Decoded:
    text = data.decode(charset, "replace")
    broken = text.count("\ufffd") - (data.count("\ufffd".encode()) if charset == "utf-8" else 0)
    if broken <= 0:
        return Decoded(text, charset)
    return Decoded(text, charset, (f"{broken} sequences are not valid {charset} and were replaced",))


def _codec(name: str | None) -> str | None:
    if not name:
        return None
    try:
        info = codecs.lookup(name.strip().strip("\"'"))
    except (LookupError, ValueError):
        return None
    if not getattr(info, "_is_text_encoding", True):  # base64, rot13, zlib: no charsets
        return None
    # The web's rule: what is declared latin-1 or ascii is cp1252, and shift_jis is cp932.
    return {"iso8859-1": "cp1252", "ascii": "cp1252", "shift_jis": "cp932"}.get(info.name, info.name)


def _looks_utf16(data: bytes) -> str | None:
    """UTF-16 text of mostly Latin letters has a NUL in every other byte; other text has none."""
    sample = data[:4096]
    half = len(sample) // 2
    if half < 2:
        return None
    even, odd = sample[0::2].count(0), sample[1::2].count(0)
    if odd > 0.4 * half and even < 0.1 * half:
        return "utf-16-le"
    if even > 0.4 * half and odd < 0.1 * half:
        return "utf-16-be"
    return None


def _legacy(data: bytes) -> str:
    runs = [match.group() for match in _HIGH_RUN.finditer(data[:_SAMPLE_BYTES])]
    high = sum(map(len, runs))
    if not runs:
        return "cp1252"
    try:
        # Kana have the lead bytes 0x82 and 0x83, which no Latin text has between letters.
        japanese = data[:_SAMPLE_BYTES].decode("cp932", "strict" if len(data) <= _SAMPLE_BYTES else "ignore")
        if len(_KANA.findall(japanese)) >= 2:
            return "cp932"
    except UnicodeDecodeError:
        pass
    # Other charsets hardly ever form a valid sequence: where most are, the text is damaged UTF-8.
    valid = sum(len(run.decode("utf-8", "ignore").encode()) for run in runs)
    if valid > 0.6 * high:
        return "utf-8"
    if high >= _DETECTION_BYTES_MIN and high / len(runs) >= 1.8:
        best = from_bytes(data[:_SAMPLE_BYTES], cp_isolation=_DETECTABLE, enable_fallback=False).best()
        if best is not None and best.encoding in _DETECTABLE:
            return best.encoding
    return "cp1252"
