"""Offsets go back to what the tables have, and never past what they lack."""

from __future__ import annotations

import pytest

from shoal.sources.log_reader import Stretch
from shoal.sources.rewinding import Rewound, plan

LOG = Stretch("t", 0, 10, 100)


@pytest.mark.parametrize(
    ("was", "done", "expected"),
    [
        (80, 40, Rewound("t", 0, 80, 40)),
        (80, 80, None),
        (40, 80, None),  # the readers tell the tables before they commit: a restart there is nothing to mend
        (80, 4, Rewound("t", 0, 80, 10, 6)),  # retention took six
        (80, None, Rewound("t", 0, 80, 10)),  # a partition that is younger than the tables
        (None, 40, Rewound("t", 0, None, 40)),  # the group was forgotten
        (None, None, None),
        (None, 400, Rewound("t", 0, None, 10)),  # the topic was made anew
        (80, 400, Rewound("t", 0, 80, 10)),
        (10, None, None),
    ],
)
def test_a_partition_is_read_again_from_where_the_tables_end(
    was: int | None, done: int | None, expected: Rewound | None
) -> None:
    committed = {} if was is None else {LOG.key: was}
    positions = {} if done is None else {LOG.key: done}
    assert plan([LOG], committed, positions) == ([] if expected is None else [expected])
