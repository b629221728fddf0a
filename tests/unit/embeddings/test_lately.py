"""What was finished lately is never forgotten too early."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from shoal.embeddings.lately import Lately

KEYS = st.lists(st.sampled_from([bytes([n]) for n in range(12)]), max_size=60)


@given(before=KEYS, after=KEYS, keys_max=st.integers(1, 20))
def test_whatever_was_added_since_may_be_there(before: list[bytes], after: list[bytes], keys_max: int) -> None:
    lately = Lately(keys_max)
    for key in before:
        lately.add(key)
    since = lately.count
    for key in after:
        lately.add(key)
    assert all(lately.may_hold(key, since) for key in after)
    if len(after) <= keys_max:
        others = {bytes([n]) for n in range(12)} - set(after)
        assert not any(lately.may_hold(key, since) for key in others), "nothing is looked up for nothing"
