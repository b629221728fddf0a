"""`shoal keys`: API keys for REST and MCP. Their work is in keys.py."""

from __future__ import annotations

from typing import Annotated

import typer

from shoal.cluster.cli_options import DataDir, Output, format_of, settings_with

keys_app = typer.Typer(
    help="API keys: who may ask (read), change (write) and administer (admin), over REST and MCP alike.\n\n"
    "On this machine alone (http_host 127.0.0.1) none is needed. Bound to anything else, Shoal wants one first:\n\n"
    "  shoal keys create --name claude --scope read\n\n"
    "Callers send it as `Authorization: Bearer shoal_...` or `X-API-Key: shoal_...`; the commands of this program read "
    "it from SHOAL_API_KEY. Only its hash is kept, beside the tables (LANCEDB_PATH): running replicas follow every "
    "change within 10 s, with no restart. docs/security.md.",
    no_args_is_help=True,
)

Key = Annotated[str, typer.Argument(help="Its id, or its name where only one active key has it.", metavar="KEY")]
Scopes = Annotated[
    list[str] | None,
    typer.Option("--scope", help="read, write or admin (each includes those before), of all collections or of one: "
                 "write:scraper. Repeatable."),
]  # fmt: skip


@keys_app.command()
def create(
    name: Annotated[str, typer.Option(help="Who or what will use it; stands in the audit log.")],
    scope: Scopes = None,
    expires: Annotated[str, typer.Option(help="When it ends: in 90d, 12h, or at a time (UTC). Empty: never.")] = "",
    rate: Annotated[
        int, typer.Option(min=0, max=1_000_000, help="Requests per minute; 0: as SHOAL_RATE_LIMIT_PER_MINUTE says.")
    ] = 0,
    output: Output = "table",
    data_dir: DataDir = None,
) -> None:
    """Make a key and print it: this once, since only its hash is kept.

    The key is stdout's only line: `KEY=$(shoal keys create --name ci --scope write:scraper --expires 90d)`.
    Without --scope it may read everything.
    """
    from shoal.cluster.keys import create_key

    create_key(settings_with(data_dir=data_dir), name, scope or ["read"], expires, rate, format_of(output))


@keys_app.command("list")
def list_(output: Output = "table", data_dir: DataDir = None) -> None:
    """Every key: id, name, scopes, when it was made, last used (to the minute), expires or was revoked."""
    from shoal.cluster.keys import list_keys

    list_keys(settings_with(data_dir=data_dir), format_of(output))


@keys_app.command()
def revoke(key: Key, data_dir: DataDir = None) -> None:
    """End a key now: every replica refuses it within 10 s. It can't be undone; make another one."""
    from shoal.cluster.keys import revoke_key

    revoke_key(settings_with(data_dir=data_dir), key)


@keys_app.command()
def rotate(
    key: Key,
    overlap: Annotated[
        str, typer.Option(help="How long the old key still works, to exchange it where it is used: 1h, 7d, 0s.")
    ] = "24h",
    output: Output = "table",
    data_dir: DataDir = None,
) -> None:
    """Make a key with the same name, scopes, rate and lifetime, and let the old one end after --overlap."""
    from shoal.cluster.keys import rotate_key

    rotate_key(settings_with(data_dir=data_dir), key, overlap, format_of(output))
