"""`shoal drain`: let a running service finish what is in flight and take nothing new."""

from __future__ import annotations

from typing import Annotated

import typer

from shoal.cluster.cli_options import DataDir, Output, format_of, settings_with


def drain(
    timeout: Annotated[float, typer.Option(min=0, help="Seconds that what is in flight may take to end.")] = 60,
    join: Annotated[
        bool, typer.Option("--join", help="Ask for nothing: wait where another has asked, else return at once.")
    ] = False,
    output: Output = "table",
    data_dir: DataDir = None,
) -> None:
    """Let the running service finish what is in flight, commit, leave the consumer group and take nothing new.

    It finds the service by its tables (LANCEDB_PATH, SHOAL_DATA_DIR). Queries go on being served until it is
    stopped; only a restart reads on. Nothing is lost by what does not end in time (exit code 4): the next start
    gets it again. For a preStop hook of what takes the whole service with it (Ray's head): `shoal drain --timeout 45`;
    of one node among several, which may go alone: `shoal drain --join --timeout 45`.
    """
    from shoal.cluster.draining import join_drain, request_drain
    from shoal.cluster.output import Exit, Format, emit_json, say

    form = format_of(output)
    answer = (join_drain if join else request_drain)(settings_with(data_dir=data_dir), timeout)
    left = sum(answer["left"].values())
    if form is Format.json:
        emit_json(answer)
    elif answer["state"] == "none":
        say("no drain was asked for")
    elif answer["state"] != "drained":
        say(f"not drained within {timeout:g} s: {left} messages are still in flight")
    elif left:
        say(f"drained, but {left} messages did not end within {timeout:g} s: they are delivered again after a restart")
    else:
        say("drained: everything in flight has ended, and nothing new is taken")
    is_done = answer["state"] != "draining" and not left
    raise typer.Exit(Exit.OK if is_done else Exit.TIMEOUT)
