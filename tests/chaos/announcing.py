"""The campaign's side of the log: a thread that announces the load at a pace, and one that listens for outcomes.

Both outlive the broker's and the object store's deaths: an object is stored before it is announced, however long
that takes, and a message is sent until the broker has it.
"""

from __future__ import annotations

import queue
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

from confluent_kafka import Consumer, Producer, TopicPartition

from tests.chaos.load import Load
from tests.chaos.messages import BUCKET, Message
from tests.chaos.tables import SERIAL_HEADER

WAITING_MAX = 60  # announced and without outcome: more, and a kill's recovery would measure our own queue
FORGOTTEN_S = 120.0  # an outcome is a courtesy, and may be lost with its reader
OUTCOME_HEADER = "shoal.outcome.id"


class Announcing:
    """Use as a context manager. `on_outcome(serial, outcome)` is called from the listening thread."""

    def __init__(
        self,
        load: Load,
        bootstrap: str,
        s3: Any,
        outcomes: str,
        per_second: float,
        on_outcome: Callable[[int, str], None],
    ) -> None:
        self.load = load
        self.messages: dict[int, Message] = {}
        self.waiting: dict[int, float] = {}  # serial -> when it was announced
        self.sent = 0
        self._s3, self._bootstrap, self._outcomes = s3, bootstrap, outcomes
        self._per_second, self._on_outcome = per_second, on_outcome
        self._probes: queue.SimpleQueue[tuple[int | None, Callable[[int], None]]] = queue.SimpleQueue()
        self._pausing, self._ending = threading.Event(), threading.Event()
        self._producer = Producer(
            {
                "bootstrap.servers": bootstrap, "enable.idempotence": True, "acks": "all", "linger.ms": 2,
                "message.timeout.ms": 900_000, "reconnect.backoff.max.ms": 500, "log_level": 0,
            }
        )  # fmt: skip
        self._threads = [
            threading.Thread(target=self._announce, name="announcing", daemon=True),
            threading.Thread(target=self._listen, name="listening", daemon=True),
        ]
        self.failure: BaseException | None = None

    def __enter__(self) -> Announcing:
        for thread in self._threads:
            thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._ending.set()
        for thread in self._threads:
            thread.join(60)

    def probe(self, partition: int | None, told: Callable[[int], None]) -> None:
        """Announce a new document as the next message; `told` gets its serial."""
        self._probes.put((partition, told))

    def stop(self) -> None:
        """No more messages; returns once the log has all of them."""
        self._pausing.set()
        self._threads[0].join(120)
        left = self._producer.flush(300)
        assert not left, f"{left} messages could not be announced"

    def _announce(self) -> None:
        try:
            due = time.monotonic()
            while not (self._ending.is_set() or self._pausing.is_set()):
                self._producer.poll(0)
                try:
                    partition, told = self._probes.get_nowait()
                except queue.Empty:
                    if time.monotonic() < due or len(self.waiting) >= WAITING_MAX:
                        self._forget()
                        self._ending.wait(0.02)
                        continue
                    due = max(due + 1 / self._per_second, time.monotonic() - 1)
                    self._send(self.load.next())
                else:
                    message = self.load.probe(partition)
                    told(message.serial)
                    self._send(message)
        except BaseException as error:
            self.failure = error
            raise

    def _forget(self) -> None:
        before = time.monotonic() - FORGOTTEN_S
        for serial, at in list(self.waiting.items()):
            if at < before:
                self.waiting.pop(serial, None)

    def _send(self, message: Message) -> None:
        for key, body, content_type in message.objects:
            while not self._stored(key, body, content_type):
                if self._ending.wait(0.2):
                    return
        self.messages[message.serial] = replace(message, objects=())
        self.waiting[message.serial] = time.monotonic()
        headers: list[tuple[str, str | bytes | None]] = [
            (SERIAL_HEADER, str(message.serial)),
            (OUTCOME_HEADER, f"chaos:{message.serial}"),
        ]
        while True:
            try:
                self._producer.produce(
                    message.topic, message.value, message.key, partition=message.partition, headers=headers
                )
                break
            except BufferError:
                self._producer.poll(0.2)
        self.sent += 1

    def _stored(self, key: str, body: bytes, content_type: str) -> bool:
        try:
            self._s3.put_object(Bucket=BUCKET, Key=key, Body=body, ContentType=content_type)
        except Exception:  # the server is down: it is one of the victims
            return False
        return True

    def _listen(self) -> None:
        consumer = Consumer(
            {"bootstrap.servers": self._bootstrap, "group.id": "chaos-outcomes", "enable.auto.commit": False,
             "reconnect.backoff.max.ms": 500, "log_level": 0}
        )  # fmt: skip
        consumer.assign([TopicPartition(self._outcomes, 0, 0)])
        try:
            while not self._ending.is_set():
                for message in consumer.consume(200, timeout=0.2):
                    if message.error() is not None:
                        continue
                    name = (message.key() or b"").decode()
                    if name.startswith("chaos:"):
                        serial = int(name.removeprefix("chaos:").partition("/")[0])
                        self.waiting.pop(serial, None)
                        self._on_outcome(serial, (message.value() or b"").decode())
        finally:
            consumer.close()
