"""`shoal mcp`: the MCP server over stdio, for agents that start their servers themselves."""

from __future__ import annotations

from typing import Annotated
from urllib.parse import urlsplit

import typer

from shoal.errors import ConfigurationError


def mcp(
    url: Annotated[
        str, typer.Option("--url", envvar="SHOAL_URL", help="A running Shoal: its address, or that of its /mcp.")
    ] = "http://127.0.0.1:8000",
) -> None:
    """Serve MCP on stdin and stdout, by asking a running Shoal. The key, where it wants one: SHOAL_API_KEY.

    For Claude Code: `claude mcp add shoal -- shoal mcp --url http://localhost:8000`. Where the agent can speak HTTP,
    it needs no process of its own: `claude mcp add --transport http shoal http://localhost:8000/mcp`.
    """
    import logging
    import os
    import sys

    endpoint = endpoint_of(url)
    # Stdout belongs to the protocol: whatever logs, logs to stderr.
    logging.basicConfig(stream=sys.stderr, level=logging.WARNING, format="shoal mcp: %(message)s", force=True)
    from shoal.mcp.relay import relay_server

    server = relay_server(endpoint, os.environ.get("SHOAL_API_KEY") or None)
    print(f"shoal mcp: stdio, asking {endpoint}", file=sys.stderr)  # noqa: T201 - stderr
    server.run(transport="stdio", show_banner=False)


def endpoint_of(url: str) -> str:
    """The MCP endpoint of the Shoal at `url`. Raises ConfigurationError."""
    try:
        parts = urlsplit(url)
        is_sound = parts.scheme in ("http", "https") and bool(parts.hostname) and (parts.port or 1) > 0
    except ValueError:
        is_sound = False
    if not is_sound or parts.username or parts.password:
        raise ConfigurationError(f"--url: {url[:100]!r} is no http(s)://host:port; a key goes into SHOAL_API_KEY")
    path = parts.path.rstrip("/")
    return f"{parts.scheme}://{parts.netloc}{path if path.endswith('/mcp') else path + '/mcp'}"
