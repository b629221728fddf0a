"""Where the time of a request goes, as it is told and counted."""

from __future__ import annotations

from typing import Any

import pytest

from loadtests.looks import server_timing
from shoal.serve_apps import stages
from shoal.serve_apps.stages import STAGES, Stages


def test_the_stages_of_a_request_add_up_to_the_whole_of_it() -> None:
    counted = Stages(10.0)
    counted.end("accept", 10.5)
    counted.end("search", 12.0)
    counted.end("accept", 12.25)
    counted.move("search", "queue", 0.5)
    assert counted.spent_s == {"accept": 0.75, "search": 1.0, "queue": 0.5}
    assert counted.header() == "accept;dur=750.00, search;dur=1000.00, queue;dur=500.00"
    counted.move("search", "queue", 99.0)
    assert counted.spent_s["search"] == 0.0, "no more is moved than there is"


def test_outside_of_a_request_nothing_is_counted() -> None:
    stages.ended("embed")
    stages.searched(1.0)
    with stages.counting() as counted:
        stages.ended("embed")
    stages.ended("send")
    assert set(counted.spent_s) == {"embed"}


@pytest.mark.parametrize(
    ("path", "expected"),
    [
        ("/api/v1/scrapes/search?query=load&limit=3", {"accept", "embed", "search", "queue", "compose", "send"}),
        ("/api/v1/scrapes/search?limit=3", {"accept", "search", "queue", "compose", "send"}),
        ("/nowhere", {"compose", "send"}),
    ],
)
async def test_a_caller_is_told_where_the_time_went(http: Any, path: str, expected: set[str]) -> None:
    answer = await http.get(path)
    told = server_timing(answer.headers["server-timing"])
    assert set(told) == expected <= set(STAGES)
    page = (await http.get("/metrics")).text
    assert all(f'stage="{stage}"' in page for stage in expected)
