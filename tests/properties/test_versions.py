"""The order of versions: total, the order of time where versions name times, and the same however they are written."""

from __future__ import annotations

import json
from datetime import UTC, datetime, timedelta, timezone
from pathlib import Path

from hypothesis import example, given
from hypothesis import strategies as st

from shoal.records import Announcement, Position
from shoal.settings import load
from shoal.sources.messages import RawMessage, parse_message
from shoal.sources.versions import compact, comparable, parse_time
from tests.properties.profiles import examples

HOME = load(data_dir=Path("unused"))
# Within a few seconds, so that equal seconds and whole seconds are common; and anywhere.
NEAR = st.integers(0, 3_000).map(lambda ms: datetime(2025, 1, 20, 14, 30, tzinfo=UTC) + timedelta(milliseconds=ms))
WHOLE = NEAR.map(lambda moment: moment.replace(microsecond=0))
FAR = st.datetimes(datetime(1901, 1, 1), datetime(2199, 1, 1), timezones=st.just(UTC))
MOMENTS = NEAR | WHOLE | FAR


@st.composite
def written(draw: st.DrawFn, moment: datetime) -> str:
    """`moment` in one of the ways that people write it, exactly."""
    zone = draw(st.sampled_from([UTC, timezone(timedelta(hours=5, minutes=30)), timezone(-timedelta(hours=8))]))
    local = moment.astimezone(zone)
    text = local.isoformat(timespec=draw(st.sampled_from(["auto", "microseconds"])))
    if draw(st.booleans()) and zone is UTC:
        text = text.replace("+00:00", draw(st.sampled_from(["Z", "z", ""])))
    if draw(st.booleans()):
        text = text.replace("T", draw(st.sampled_from([" ", "_", "t"])))
    if draw(st.booleans()):
        text = compact(moment) if not moment.microsecond else text
    return draw(st.sampled_from(["", " "])) + text


@given(st.data(), MOMENTS, MOMENTS)
@examples(150)
def test_versions_that_name_times_compare_as_the_times_however_they_are_written(
    data: st.DataObject, first: datetime, second: datetime
) -> None:
    one, two = (comparable(data.draw(written(moment))) for moment in (first, second))
    assert (one < two, one == two) == (first < second, first == second)


@given(st.text() | MOMENTS.map(lambda moment: moment.isoformat()) | st.none())
@examples(150)
def test_what_was_made_comparable_stays_as_it_is(version: str | None) -> None:
    text = comparable(version)
    if parse_time(text) is None or "." not in text:  # `...Z.250000` is no way to write a time, only to sort it
        assert comparable(text) == text
    assert (text == "") == (not (version or "").strip())


SEQUENCERS = st.none() | st.integers(0, 2**64 - 1).map("{:X}".format) | st.integers(0, 2**64 - 1).map("{:018x}".format)


def version_of(at: datetime, sequencer: str | None) -> str:
    event = {
        "eventVersion": "2.1", "eventName": "ObjectCreated:Put", "eventTime": at.isoformat(timespec="milliseconds"),
        "s3": {"bucket": {"name": "bucket"}, "object": {"key": "k", "sequencer": sequencer}},
    }  # fmt: skip
    raw = RawMessage(Position("c", "t", 0, 0, 0), None, json.dumps({"Records": [event]}).encode())
    (work,) = parse_message(raw, HOME)
    assert isinstance(work, Announcement)
    return work.version


@given(NEAR | WHOLE, NEAR | WHOLE, SEQUENCERS, SEQUENCERS)
@example(
    WHOLE_SECOND := datetime(2025, 1, 20, 14, 30, tzinfo=UTC), WHOLE_SECOND + timedelta(milliseconds=250), "1", "2"
)
@examples(150)
def test_a_later_event_of_an_object_has_the_later_version(
    first: datetime, second: datetime, one: str | None, two: str | None
) -> None:
    if first < second:
        assert version_of(first, one) < version_of(second, two)


@given(NEAR | WHOLE, st.integers(0, 2**64 - 1), st.integers(0, 2**64 - 1))
@examples(80)
def test_events_of_one_millisecond_are_ordered_by_their_sequencers(at: datetime, one: int, two: int) -> None:
    assert (version_of(at, f"{one:X}") < version_of(at, f"{two:018x}")) == (one < two)
