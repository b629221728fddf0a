"""Setting the readers' group back to how far given tables are: after a restore, what came since is read again.

The group's offsets belong to the tables that the readers fed last. Tables of an earlier moment lack what was done
since, and nobody would read it again. Offsets only go back here, or come where there are none: what is read twice is
`unchanged`, what is passed over is lost. The group must be empty, which Kafka itself checks: members that were ended a
moment ago, or killed, count until their session has timed out.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass

from confluent_kafka import ConsumerGroupTopicPartitions, KafkaError, KafkaException, TopicPartition

from shoal.errors import ConfigurationError
from shoal.settings import Settings
from shoal.sources.kafka import METADATA_TIMEOUT_S, SESSION_TIMEOUT_MS, Connection, admin_client, translated
from shoal.sources.log_reader import LogReader, Partition, Stretch

EMPTY_S = 2 * SESSION_TIMEOUT_MS / 1000
"""How long is waited for the group to be empty."""
AGAIN_S = 1.0
_TAKEN = frozenset({KafkaError.NON_EMPTY_GROUP, KafkaError.UNKNOWN_MEMBER_ID, KafkaError.REBALANCE_IN_PROGRESS})


@dataclass(frozen=True, slots=True)
class Rewound:
    """One partition: read again from `to`; it was read up to `was` (None: there was no offset). `gone`: messages that
    the tables lack and retention has taken."""

    topic: str
    partition: int
    was: int | None
    to: int
    gone: int = 0


def plan(
    stretches: Iterable[Stretch], committed: Mapping[Partition, int], done: Mapping[Partition, int]
) -> list[Rewound]:
    """What to set back. `done`: the next offset by the tables, of those partitions of which they have anything."""
    found = []
    for stretch in stretches:
        was, wanted = committed.get(stretch.key), done.get(stretch.key)
        if wanted is None and was is None:
            continue  # nobody read it: the readers begin as their settings say
        if wanted is None or wanted > stretch.end:  # nothing of it is in the tables, or of a topic of the same name
            wanted = stretch.start
        if was is None or was > wanted:
            to = max(wanted, stretch.start)
            found.append(Rewound(stretch.topic, stretch.partition, was, to, to - wanted))
    return found


def rewind(
    settings: Settings,
    connection: Connection,
    topics: Iterable[str],
    done: Mapping[Partition, int],
    waiting: Callable[[str], None] = lambda _: None,
    *,
    empty_s: float = EMPTY_S,
) -> list[Rewound]:
    """Set the readers' group back to `done`; what was changed. Raises ConfigurationError where the group has members
    after `empty_s`, or Kafka refuses; TransientError where it does not answer."""
    with LogReader(settings, connection) as log:
        stretches = log.whole(log.existing(topics))
        changes = plan(stretches, log.committed([stretch.key for stretch in stretches]), done)
    if not changes:
        return []
    admin = admin_client(settings, connection.brokers)
    wanted = [TopicPartition(change.topic, change.partition, change.to) for change in changes]
    deadline = time.monotonic() + empty_s
    while True:
        try:
            asked = admin.alter_consumer_group_offsets(
                [ConsumerGroupTopicPartitions(settings.kafka_group_id, wanted)], request_timeout=METADATA_TIMEOUT_S
            )
            answer = asked[settings.kafka_group_id].result(METADATA_TIMEOUT_S + 5)
            errors = [at.error for at in answer.topic_partitions if at.error is not None]
        except KafkaException as error:
            errors = [error.args[0]]
        if not errors:
            return changes
        if errors[0].code() not in _TAKEN:
            raise translated(errors[0])
        if time.monotonic() > deadline:
            raise ConfigurationError(
                f"the consumer group {settings.kafka_group_id} has members: stop the Shoal that works in it first "
                f"({errors[0].str()})"
            )
        waiting(f"the consumer group {settings.kafka_group_id} still has members: waiting for their session to end")
        time.sleep(AGAIN_S)
