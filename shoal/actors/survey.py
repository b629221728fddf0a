"""What only a broker can tell about a reader's partitions, for the status: asked beside the work, which never waits."""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Iterable
from dataclasses import dataclass

from confluent_kafka import Consumer, KafkaException, TopicPartition

from shoal.actors.offsets import TopicPartition as Key

ASK_S = 2.0  # bound of a question to the brokers
STOP_LOOK_S = 0.05


@dataclass(frozen=True, slots=True)
class Surveyed:
    """What the brokers said of a partition; -1 and None where they said nothing yet."""

    committed: int | None = None
    low: int = -1
    high: int = -1


class Survey:
    """Asks the brokers what the client does not know by itself, in a thread of its own: completions, commits and
    polls never wait for an answer. `found` is replaced entry by entry and may be read at any time."""

    def __init__(self, consumer: Consumer, topic: str) -> None:
        """`topic`: one that is there, to ask about."""
        self._topic = topic
        self.found: dict[Key, Surveyed] = {}
        self.heard_at = 0.0  # when a broker last answered
        self._consumer = consumer
        self._round = 0
        self._questions: queue.Queue[tuple[dict[Key, bool], bool] | None] = queue.Queue(1)
        self._thread = threading.Thread(target=self._main, name="survey", daemon=True)
        self._thread.start()

    def ask(self, partitions: dict[Key, bool], *, is_lost: bool = False) -> None:
        """Look at these, with their committed offset where True; nothing happens while an earlier round is on.
        `is_lost`: also whether any broker answers at all, which one without partitions would never learn."""
        if (partitions or is_lost) and self._questions.empty():
            self._questions.put((partitions, is_lost))

    def forget(self, keys: Iterable[Key]) -> None:
        """What was said of these is of an earlier assignment; what a round under way brings is one too."""
        for key in keys:
            self.found.pop(key, None)
        self._round += 1

    def stop(self) -> None:
        """End the thread before the consumer is closed under it."""
        while self._thread.is_alive():
            try:
                self._questions.put_nowait(None)
            except queue.Full:
                pass
            self._thread.join(STOP_LOOK_S)

    def _main(self) -> None:
        while (asked := self._questions.get()) is not None:
            partitions, is_lost = asked
            began = self._round
            if is_lost and _answers(self._consumer, self._topic):
                self.heard_at = time.monotonic()
            for key, wants_committed in partitions.items():
                low, high = watermarks(self._consumer, key, cached=False)
                if high < 0:
                    break  # they don't answer: the rest of the round would only wait as well
                committed = _committed(self._consumer, key) if wants_committed else None
                if self._round != began:
                    break
                known = self.found.get(key, Surveyed())
                self.found[key] = Surveyed(known.committed if committed is None else committed, low, high)


def _answers(consumer: Consumer, topic: str) -> bool:
    try:
        consumer.list_topics(topic, timeout=ASK_S)
    except KafkaException:
        return False
    return True


def _committed(consumer: Consumer, key: Key) -> int | None:
    """The group's offset, or None where there is none or nobody answers."""
    try:
        offset = consumer.committed([TopicPartition(*key)], timeout=ASK_S)[0].offset
    except KafkaException:
        return None
    return offset if offset >= 0 else None


def watermarks(consumer: Consumer, key: Key, *, cached: bool) -> tuple[int, int]:
    """(low, high), what the client saw last or what the broker says; (-1, -1) where that is unknown."""
    try:
        found: tuple[int, int] | None = consumer.get_watermark_offsets(
            TopicPartition(*key), timeout=ASK_S, cached=cached
        )
    except KafkaException:
        return (-1, -1)
    return (-1, -1) if found is None else found
