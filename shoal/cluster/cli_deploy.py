"""`shoal deploy`: apply a Serve config on a Ray cluster that others run, and keep it applied."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer


def deploy(
    config: Annotated[Path, typer.Argument(help="The Serve config, YAML.")],
    address: Annotated[
        str, typer.Option(envvar="RAY_DASHBOARD_ADDRESS", help="The dashboard of the cluster's head.")
    ] = "http://127.0.0.1:8265",
    watch: Annotated[
        bool, typer.Option("--watch", help="Keep it applied until SIGTERM: what is lost comes back.")
    ] = False,
    check: Annotated[
        bool, typer.Option("--check", help="Only check the file, strictly; nothing is asked of a cluster.")
    ] = False,
    restart: Annotated[
        bool, typer.Option("--restart", help="Have ingest begin anew, say after `shoal drain`; queries go on.")
    ] = False,
    timeout: Annotated[float, typer.Option(min=1, help="Seconds until all of it must run; not with --watch.")] = 600,
) -> None:
    """Apply a Serve config on a running Ray cluster, and wait until its applications run.

    It is checked first: keys that Ray would leave out without a word, import paths, arguments. Applying what runs
    already changes nothing. The cluster's token is taken from RAY_AUTH_TOKEN or RAY_AUTH_TOKEN_PATH. On Kubernetes a
    small Deployment runs `shoal deploy /etc/shoal/serve.yaml --watch` beside the ingest cluster (docs/deploying.md);
    queries there are a RayService, whose operator does the same. Exit codes: 1 Serve refuses the config, 2 it or the
    token is wrong, 3 the dashboard does not answer, 4 not running within --timeout.
    """
    from datetime import UTC, datetime

    from shoal.cluster.applying import Applier, Dashboard, keep_applied, token_of
    from shoal.cluster.output import Exit, say
    from shoal.cluster.serve_config import problems, read_config
    from shoal.errors import ConfigurationError

    if watch and check:
        raise ConfigurationError("--watch and --check: choose one")
    wanted = read_config(config)
    if found := problems(wanted):
        raise ConfigurationError(f"{config} is wrong:\n" + "\n".join(f"  {line}" for line in found))
    if check:
        say(f"{config}: well formed; {', '.join(str(one['name']) for one in wanted['applications'])}")
        return
    mark = datetime.now(UTC).isoformat(timespec="seconds") if restart else ""
    is_running = keep_applied(
        Applier(wanted), Dashboard(address, token_of()), say, restart=mark, until_running_s=None if watch else timeout
    )
    if not is_running:
        say(f"not all of it runs after {timeout:g} s: see the lines above, and the head's dashboard")
    raise typer.Exit(Exit.OK if is_running else Exit.TIMEOUT)
