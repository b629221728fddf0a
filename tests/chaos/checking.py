"""The end of a campaign: the log is read to its end, Shoal stopped, and the tables are compared with the log."""

from __future__ import annotations

import time
from collections.abc import Callable

from confluent_kafka import Consumer, TopicPartition

from shoal.store.writing import storage_options
from tests.chaos.load import Load
from tests.chaos.messages import Message
from tests.chaos.oracle import Difference, difference, expected, story
from tests.chaos.places import COMMAND_PARTITIONS, COMMANDS, PARTITIONS, TOPIC, Place
from tests.chaos.tables import chunks_by, dead_letters, facts, logged

Say = Callable[[str], None]


class Progress:
    """How far Shoal's group has committed the log. Use `close`."""

    def __init__(self, place: Place) -> None:
        self._consumer = Consumer({"bootstrap.servers": place.kafka.bootstrap, "group.id": "chaos", "log_level": 0})
        self._places = [TopicPartition(TOPIC, number) for number in range(PARTITIONS)]
        self._places += [TopicPartition(COMMANDS, number) for number in range(COMMAND_PARTITIONS)]

    def left(self) -> dict[tuple[str, int], int]:
        """Messages that are not done yet, of each partition that has some. Nothing may be announced meanwhile."""
        found = {}
        for at in self._consumer.committed(self._places, timeout=30):
            end = self._consumer.get_watermark_offsets(at, timeout=30)[1]
            if end > max(0, at.offset):
                found[at.topic, at.partition] = end - max(0, at.offset)
        return found

    def close(self) -> None:
        self._consumer.close()


def verify(place: Place, say: Say) -> str | None:
    """What `shoal verify` finds wrong, if anything."""
    done = place.stack.run("verify", "-o", "json", timeout_s=600)
    said = f"{done.returncode} {' '.join(done.stdout.split())[-2000:]} {done.stderr[-1000:]}"
    say(f"shoal verify: {said}")
    return None if done.returncode == 0 else f"shoal verify says {said[:600]}"


def stop(place: Place, say: Say) -> str | None:
    """End the worker node and Shoal; what was wrong with that, if anything."""
    if place.node is not None:
        place.node.kill()
    began = time.time()
    try:
        place.stack.stop()
    except AssertionError as error:
        return f"shoal up did not stop as it should: {str(error)[-400:]}"
    say(f"shoal up stopped within {time.time() - began:.1f} s")
    return None


def compare(place: Place, load: Load, messages: dict[int, Message], say: Say) -> Difference:
    """The tables and dead letters against the log."""
    log = logged(place.kafka.bootstrap, (TOPIC, COMMANDS), messages)
    unsent = messages.keys() - {entry.serial for entry in log}
    assert not unsent, f"the log lacks what was announced: {unsent}"
    wanted = expected(log, chunks_by(place.settings, load.bodies))
    found = list(facts(place.tables, storage_options(place.settings)))
    dead = dead_letters(place.kafka.bootstrap, (TOPIC, COMMANDS))
    say(f"{len(log)} messages, {len(wanted.facts)} facts expected, {len(found)} found")
    say(f"{len(dead)} dead letters of {len(wanted.dead)} bad messages")
    differing = difference(wanted, found, dead)
    for line in story(differing, log):
        say(line)
    return differing
