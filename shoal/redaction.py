"""Taking secrets out of what is stored, embedded or shown: URLs, request parameters, the unknown fields of a message.

Guarantee: user and password before the host, and the values of query or fragment parameters whose name or shape
looks like a secret, are replaced by `REDACTED`; names stay, since they tell how an API authenticates, and so does
every other character, so that an address remains searchable. Addresses within a parameter are treated the same.
It does not judge paths, nor find secrets without a telling name or shape. It never fails: a text that is no URL
comes back as it is.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote, unquote_plus

REDACTED = "REDACTED"
_NESTING_MAX = 3  # a URL in a parameter of a URL in a parameter; deeper is an attack, and is redacted whole

_USERINFO = re.compile(r"^((?:[a-zA-Z][a-zA-Z0-9+.\-]*:)?[/\\]{2})[^/\\?#]*@")
_PARAMETER = re.compile(r"([?&;#])([^=&;#?]+)=([^&;#]*)")
_URL_IN_TEXT = re.compile(r"[a-zA-Z][a-zA-Z0-9+.\-]{1,20}://[^\s\"'<>]+")
_NOT_A_LETTER = re.compile(r"[^a-z0-9]+")
# Matched on the name in lower case, letters and digits only: api_key, X-Amz-Signature, securityToken. `key` alone
# and words that end with it (sortkey, monkey) are no secrets in a message; `tokenize`, `secretary` are words.
_SECRET_NAME = re.compile(
    r"(?:api|app|access|auth|client|consumer|developer|encryption|functions?|license|master|private|secret|security"
    r"|service|shared|signing|subscription|user)key|secret(?!ar)|passw(?:or)?d|passphrase|token(?!i)|authorization"
    r"|credential|signature|clientid|^x?auth$|^pwd$|^pass$|^sig$|^jwt$|^bearer$|^sid$|^(?:php|j|asp)?sess(?:ion)?id$"
)
# Names that are a secret in one API and a plain choice in the next (sign=plus, code=A65, session=2).
_AMBIGUOUS_NAME = re.compile(r"^(?:key|code|sign|hash|appid|session)$")
_PLAIN_VALUE = re.compile(r"[\w-]{1,7}")
_SHAPES = (
    r"eyJ[\w-]{8,}\.[\w-]+\.[\w-]*|(?:AKIA|ASIA)[0-9A-Z]{16}|sk-[\w-]{16,}|shoal_[0-9a-z]{10}_[0-9A-Za-z]{49}|gh[pousr]_\w{20,}|xox[abp]-\S{10,}"
    r"|[Bb](?:earer|asic) \S{8,}"
)
_SECRET_VALUE = re.compile(
    rf"{_SHAPES}|[0-9a-fA-F]{{32,}}"
    # Base64 of 30 bytes and more: long, and of digits and both cases, which names of files and places are not.
    r"|(?=[^0-9]*[0-9])(?=[^a-z]*[a-z])(?=[^A-Z]*[A-Z])[A-Za-z0-9+/_-]{40,}={0,2}"
)

# In text that no parser takes (broken JSON, logs): name, separator, and a value that is quoted or has no blanks.
_TOKEN_IN_TEXT = re.compile(rf"\b(?:{_SHAPES})")
_NAME_IN_TEXT = re.compile(r"""(?<![\w.\-])([\w.\-]{1,100})\\?["']?\s{0,9}[:=]\s{0,9}\\?""")
_VALUE_IN_TEXT = re.compile(r"""(["'])(?:\\.|(?!\1)[^\\\n])*|[^\s"',;&<>{}\[\]()\\]+""")


def is_secret(name: str, value: str) -> bool:
    """Whether the value of a request parameter of that name, both decoded, must not be kept."""
    name = _NOT_A_LETTER.sub("", name.lower())
    if _SECRET_NAME.search(name) or _SECRET_VALUE.fullmatch(value.strip()):
        return True
    # A bare `key` is an API key in an address (Google's habit), however short.
    return bool(_AMBIGUOUS_NAME.match(name)) and (name == "key" or not _PLAIN_VALUE.fullmatch(value))


def redact_url(url: str, nesting: int = 0) -> str:
    """`url` without credentials and secret-looking parameter values."""

    def parameter(match: re.Match[str]) -> str:
        lead, name, value = match.groups()
        plain_value = unquote_plus(value)
        if value and is_secret(unquote_plus(name), plain_value):
            return f"{lead}{name}={REDACTED}"
        if "//" in plain_value:
            if nesting >= _NESTING_MAX:
                return f"{lead}{name}={REDACTED}"
            inner = redact_url(plain_value, nesting + 1)
            if inner != plain_value:
                return f"{lead}{name}={quote(inner, safe='')}"
        return match.group()

    return _PARAMETER.sub(parameter, _USERINFO.sub(r"\1", url))


def redact_json(value: Any, depth: int = 0) -> Any:
    """A JSON value with every URL in its texts redacted, and the texts under secret-looking names replaced."""
    if isinstance(value, str):
        return _URL_IN_TEXT.sub(lambda match: redact_url(match.group()), value) if "://" in value else value
    if depth >= 100:  # far deeper than any real message; recursion must not end the process
        return REDACTED
    if isinstance(value, dict):
        return {
            name: REDACTED
            if item and isinstance(item, str) and _SECRET_NAME.search(_NOT_A_LETTER.sub("", name.lower()))
            else redact_json(item, depth + 1)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [redact_json(item, depth + 1) for item in value]
    return value


def redact_text(text: str) -> str:
    """Free text, parsed or not, without credentials in its URLs, tokens of a known shape, and whatever follows a
    secret-looking name. Names, hashes and everything else stay."""
    text = _URL_IN_TEXT.sub(lambda match: redact_url(match.group()), text) if "://" in text else text
    text = _TOKEN_IN_TEXT.sub(REDACTED, text)
    kept: list[str] = []
    place = 0
    for name in _NAME_IN_TEXT.finditer(text):
        if name.start() < place or not _SECRET_NAME.search(_NOT_A_LETTER.sub("", name[1].lower())):
            continue
        if value := _VALUE_IN_TEXT.match(text, name.end()):
            kept += (text[place : name.end()], value[1] or "", REDACTED)
            place = value.end()
    return "".join((*kept, text[place:]))


def printable(text: str) -> str:
    """`text` with every character that a terminal would obey, or that hides, written as its code."""
    if text.isprintable():
        return text
    return "".join(c if c.isprintable() or c in "\n\t" else f"\\u{ord(c):04x}" for c in text)
