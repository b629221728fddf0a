"""What is simulated: one deployment under one load.

An `installation` is what Shoal is today: topics, readers, fetchers, one embedder, one writer and its pair of tables.
More of them share nothing but Kafka's brokers and the bucket, so of several equal ones one is simulated with its share
of the load.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

MESSAGE_BYTES = 1_000  # of an announcement


@dataclass(frozen=True, slots=True)
class Deployment:
    """Counts are of one installation, but for `installations`. Cores of 0 in `core_cores` and `query_cores`: everything
    runs on the `flow_cores` of one machine. `tier`: of the provider's account, one for each installation; empty: the
    local model, which takes cores of the core node."""

    name: str
    installations: int = 1
    partitions: int = 4
    readers: int = 2
    fetchers: int = 2
    flow_cores: int = 2
    core_cores: int = 0
    query_cores: int = 0
    tier: str = ""
    storage: Literal["disk", "s3"] = "disk"
    linger_s: float = 0.25
    table_rows: int = 0
    in_flight_items_max: int = 256
    in_flight_bytes_max: int = 128 * 1024 * 1024
    commit_rows_max: int = 2_000
    commit_bytes_max: int = 64 * 1024 * 1024
    compact_commits: int = 40

    @property
    def is_one_machine(self) -> bool:
        return not self.core_cores


ONE_NODE = Deployment("one node, as it comes")


@dataclass(frozen=True, slots=True)
class Load:
    """Of the whole, all installations together. `backlog`: documents that wait in the log at the start, and no more
    come; `has_publisher`: who announces them works on the same machine. `idle_neighbours`: other stacks on it."""

    documents_per_s: float = 0.0
    questions_per_s: float = 0.0
    backlog: int = 0
    has_publisher: bool = False
    idle_neighbours: int = 0
