"""Hosts the two query applications alone, as a process: `python serve_host.py DATA_DIR PORT INGRESS`.

No ingest side: a test writes the tables. Ends when its standard input closes, so it can't outlive its test.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path


def main(data_dir: str, port: str, ingress: str) -> None:
    from shoal.cluster import ray_environment
    from shoal.settings import Settings

    Settings.model_config.update(env_file=None, toml_file=None)
    settings = Settings(
        data_dir=Path(data_dir),
        embedding_provider="hash",
        http_port=int(port),
        haproxy="auto" if ingress == "haproxy" else "off",
    )
    assert ray_environment.prepare(settings) == ingress

    import ray
    from ray import serve

    from shoal.serve_apps.apps import REST, mcp_app, rest_app

    logging.getLogger("ray.serve").setLevel(logging.WARNING)
    for is_last in (False, True):
        try:
            ray.init(
                address="local",  # not one that another test, or somebody else, left its address of
                num_cpus=2,
                include_dashboard=False,
                object_store_memory=100_000_000,
                log_to_driver=False,
            )
            break
        except Exception:  # Ray gives its own processes 30 s, which a crowded machine may need more than once
            if is_last:
                raise
            ray.shutdown()
    serve.start(
        http_options={"host": "127.0.0.1", "port": int(port)},
        logging_config={"log_level": "WARNING", "enable_access_log": False},
    )
    serve.run_many(
        [
            serve.RunTarget(rest_app(settings), name=REST, route_prefix="/"),
            serve.RunTarget(mcp_app(settings), name="mcp", route_prefix="/mcp"),
        ]
    )
    sys.stdin.read()
    serve.shutdown()
    ray.shutdown()


if __name__ == "__main__":
    main(*sys.argv[1:])
