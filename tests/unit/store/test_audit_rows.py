"""What the audit reads of the tables is held by nobody: where cleanup was quicker, it says so and what to do."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import lance
import pyarrow as pa
import pytest

from shoal.errors import TransientError
from shoal.store.audit_rows import TablesSnapshot
from shoal.store.fence import Fence


@pytest.mark.parametrize("gone", ["data/*", "_deletions/*"])
def test_a_version_that_was_cleaned_up_meanwhile_is_one_line_that_says_what_to_do(tmp_path: Path, gone: str) -> None:
    uri = str(tmp_path / "jobs.lance")
    rows = pa.table({"command_id": list("abc"), "fence": pa.nulls(3, pa.string())})
    lance.write_dataset(rows, uri)
    lance.dataset(uri).delete("command_id = 'a'")
    table: Any = SimpleNamespace(dataset=lance.dataset(uri), uri=uri, fence=Fence(1, 1, None, "model", 4, 1))
    held = TablesSnapshot({"metadata": table, "vectors": table, "jobs": table}, is_torn=False)
    for path in Path(uri).glob(gone):
        path.unlink()
    with pytest.raises(TransientError, match=r"cleaned up meanwhile.*--from-time") as told:
        list(held.job_ids())
    assert "\n" not in str(told.value)
