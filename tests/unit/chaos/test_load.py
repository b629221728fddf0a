"""The campaign's load: a seed decides it, every kind comes, and what is about one document shares a partition."""

from __future__ import annotations

from collections import Counter
from itertools import islice

from tests.chaos.load import WEIGHTS, Load
from tests.chaos.messages import Message, Put


def made(seed: int, count: int) -> list[Message]:
    load = Load(seed, "t", 6, "c", 2)
    return list(islice(iter(load.next, None), count))


def test_a_seed_gives_the_same_messages_again() -> None:
    assert made(5, 300) == made(5, 300)
    assert made(5, 300) != made(6, 300)


def test_every_kind_of_message_comes() -> None:
    assert Counter(message.kind for message in made(1, 1500)).keys() == WEIGHTS.keys()


def test_whatever_is_about_one_document_is_in_one_partition() -> None:
    partitions: dict[str, set[int]] = {}
    for message in made(2, 1500):
        for effect in message.effects:
            if isinstance(effect, Put):
                partitions.setdefault(effect.document_id, set()).add(message.partition)
    assert {len(found) for found in partitions.values()} == {1}


def test_a_probe_can_be_sent_to_a_partition() -> None:
    load = Load(1, "t", 6, "c", 2)
    assert [load.probe(number).partition for number in range(6)] == list(range(6))
