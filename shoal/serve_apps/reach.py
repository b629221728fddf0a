"""From where a request comes: whether only this machine can reach the service, and whether this request does.

Pure. Without a key a caller is let in only where all of it holds: the service is bound to a loopback address by our own
start, the connection comes from one, and the request's Host is one of its names. The last is what stops a web page that
points a name of its own at 127.0.0.1 (DNS rebinding); a reverse proxy on this machine shows by the Host, or by the
headers that such proxies add, that it asks for somebody else.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Iterable
from urllib.parse import urlsplit

FORWARDED = frozenset({"forwarded", "x-forwarded-for", "x-forwarded-host", "x-real-ip", "via"})
"""Headers of proxies. Serve's own adds none of them."""


def is_loopback(host: str) -> bool:
    """Whether `host` (a name or an address) is this machine seen from itself."""
    if host.casefold().rstrip(".") == "localhost":
        return True
    try:
        address = ipaddress.ip_address(host)
    except ValueError:
        return False
    mapped = getattr(address, "ipv4_mapped", None)
    return bool((mapped or address).is_loopback)


def host_name(header: str) -> str | None:
    """The name in a Host header, without its port, in lower case; None where it is not one."""
    if not header or any(c in header for c in "/\\@?#, \t") or not header.isprintable():
        return None
    try:
        parts = urlsplit(f"//{header}")
        _ = parts.port
        return parts.hostname
    except ValueError:
        return None


def asks_from_here(peer: str | None, host: str, header_names: Iterable[str]) -> bool:
    """Whether a request comes from this machine, for itself."""
    name = host_name(host)
    return (
        peer is not None
        and is_loopback(peer)
        and name is not None
        and is_loopback(name)
        and FORWARDED.isdisjoint(header_names)
    )
