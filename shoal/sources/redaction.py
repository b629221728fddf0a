"""Taking secrets out of what is stored or embedded: URLs, and the unknown fields of a message.

Guarantee: user and password before the host, and the values of query or fragment parameters whose name or
shape looks like a secret, are replaced by `REDACTED`; every other character stays as it was, so that an
address remains searchable. Addresses within a parameter are treated the same. It does not judge paths, nor
find secrets without a telling name or shape. It never fails: a text that is no URL comes back as it is.
"""

from __future__ import annotations

import re
from typing import Any
from urllib.parse import quote, unquote

REDACTED = "REDACTED"
_NESTING_MAX = 3  # a URL in a parameter of a URL in a parameter; deeper is an attack, and is redacted whole

_USERINFO = re.compile(r"^((?:[a-zA-Z][a-zA-Z0-9+.\-]*:)?[/\\]{2})[^/\\?#]*@")
_PARAMETER = re.compile(r"([?&;#])([^=&;#?]+)=([^&;#]*)")
_URL_IN_TEXT = re.compile(r"[a-zA-Z][a-zA-Z0-9+.\-]{1,20}://[^\s\"'<>]+")
# Matched on the name in lower case without '-', '_', '.' and blanks: api_key, X-Amz-Signature, securityToken.
_SECRET_NAME = re.compile(
    r"apikey|appkey|accesskey|secret|passw(or)?d|^pwd$|^pass$|token|^auth$|authorization|credential|signature|^sig$"
    r"|subscriptionkey|privatekey|^jwt$|^bearer$|^sessionid$|^sid$|^sessid$|^phpsessid$|^jsessionid$|^authkey$"
)
_SECRET_VALUE = re.compile(
    r"^(eyJ[\w\-]{8,}\.[\w\-]+\.[\w\-]*|(AKIA|ASIA)[0-9A-Z]{16}|sk-[\w\-]{16,}|gh[pousr]_\w{20,}|xox[abp]-\S{10,}"
    r"|[Bb](earer|asic)[ +]\S{8,})$"
)


def _is_secret_name(name: str) -> bool:
    return bool(_SECRET_NAME.search(re.sub(r"[-_.\s\[\]]", "", name.lower())))


def redact_url(url: str, nesting: int = 0) -> str:
    """`url` without credentials and secret-looking parameter values."""

    def parameter(match: re.Match[str]) -> str:
        lead, name, value = match.groups()
        plain_name, plain_value = unquote(name.replace("+", " ")), unquote(value.replace("+", " "))
        # A bare `key` is an API key in an address (Google's habit); in a message it is the name of an object.
        if value and (_is_secret_name(plain_name) or plain_name.lower() == "key" or _SECRET_VALUE.match(plain_value)):
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
            name: REDACTED if item and isinstance(item, str) and _is_secret_name(name) else redact_json(item, depth + 1)
            for name, item in value.items()
        }
    if isinstance(value, list):
        return [redact_json(item, depth + 1) for item in value]
    return value
