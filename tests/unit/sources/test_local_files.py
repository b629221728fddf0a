from __future__ import annotations

import os
import socket
from pathlib import Path, PurePosixPath

import pytest

from shoal.errors import BadDocument, DeadReason
from shoal.sources.local_files import read_file


@pytest.fixture
def root(tmp_path: Path) -> Path:
    root = tmp_path / "allowed"
    root.mkdir()
    (tmp_path / "secret").write_bytes(b"secret")
    return root


def refused(path: Path | str, root: Path) -> DeadReason:
    with pytest.raises(BadDocument) as caught:
        read_file(PurePosixPath(path), [root], 1000)
    assert str(root) not in caught.value.message
    return caught.value.reason


def test_a_path_outside_the_allowed_root_is_refused_whether_it_exists_or_not(root):
    for path in (root.parent / "secret", root.parent / "nothing", "/etc/passwd", "/", root, root.parent):
        assert refused(path, root) is DeadReason.LOCATION_REFUSED
    assert refused(f"{root}/../secret", root) is DeadReason.LOCATION_REFUSED
    assert refused(f"{root}-evil/x", root) is DeadReason.LOCATION_REFUSED


def test_a_symlink_out_of_the_root_is_refused_at_any_depth(root):
    (root / "link").symlink_to(root.parent / "secret")
    (root / "up").symlink_to(root.parent)
    assert refused(root / "link", root) is DeadReason.LOCATION_REFUSED
    assert refused(root / "up" / "secret", root) is DeadReason.LOCATION_REFUSED


def test_a_symlink_within_the_root_is_followed(root):
    (root / "real").write_bytes(b"data")
    (root / "link").symlink_to(root / "real")
    assert read_file(PurePosixPath(root / "link"), [root], 1000) == b"data"


def test_a_root_that_is_itself_a_link_is_the_place_it_links_to(root):
    (root / "real").write_bytes(b"data")
    alias = root.parent / "alias"
    alias.symlink_to(root)
    assert read_file(PurePosixPath(alias / "real"), [alias], 1000) == b"data"


def test_a_link_swapped_in_after_the_check_is_not_followed(root, monkeypatch):
    """1. The path is a file. 2. It is checked. 3. It becomes a link to a secret. 4. It is opened."""
    path = root / "file"
    path.write_bytes(b"data")
    checked = Path.is_relative_to

    def check_and_swap(self: Path, *other: Path) -> bool:
        found = checked(self, *other)
        if self == path and not path.is_symlink():
            path.unlink()
            path.symlink_to(root.parent / "secret")
        return found

    monkeypatch.setattr(Path, "is_relative_to", check_and_swap)
    assert refused(path, root) is DeadReason.LOCATION_REFUSED
    assert path.is_symlink()


def test_what_is_no_regular_file_is_refused_and_nothing_waits(root):
    (root / "directory").mkdir()
    os.mkfifo(root / "fifo")
    (root / "loop").symlink_to(root / "loop")
    (root / "device").symlink_to("/dev/zero")
    with socket.socket(socket.AF_UNIX) as listening:
        listening.bind(str(root / "socket"))
        for name in ("directory", "fifo", "loop", "device", "socket"):
            assert refused(root / name, root) is DeadReason.LOCATION_REFUSED


def test_a_file_that_is_not_there_is_missing(root):
    (root / "file").write_bytes(b"data")
    assert refused(root / "missing", root) is DeadReason.OBJECT_MISSING
    assert refused(root / "file" / "below", root) is DeadReason.OBJECT_MISSING
    assert refused(root / ("x" * 300), root) is DeadReason.OBJECT_MISSING


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_that_may_not_be_read_is_refused_access(root):
    (root / "file").write_bytes(b"data")
    (root / "file").chmod(0)
    assert refused(root / "file", root) is DeadReason.ACCESS_REFUSED


def test_the_limit_counts_while_reading_not_only_before(root, monkeypatch):
    path = root / "growing"
    path.write_bytes(b"x" * 1000)
    real = os.fstat

    def before_it_grew(descriptor: int) -> os.stat_result:
        about = list(real(descriptor))
        about[6] = 10
        return os.stat_result(about)

    assert len(read_file(PurePosixPath(path), [root], 1000)) == 1000
    monkeypatch.setattr(os, "fstat", before_it_grew)
    with pytest.raises(BadDocument) as caught:
        read_file(PurePosixPath(path), [root], 999)
    assert caught.value.reason is DeadReason.TOO_LARGE


def test_no_descriptor_is_left_open(root):
    (root / "deep" / "er").mkdir(parents=True)
    (root / "deep" / "er" / "file").write_bytes(b"data")
    before = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    for _ in range(5):
        read_file(PurePosixPath(root / "deep/er/file"), [root], 1000)
        refused(root / "deep" / "er", root)
        refused(root / "deep" / "missing" / "x", root)
    after = len(os.listdir("/proc/self/fd")) if Path("/proc/self/fd").exists() else 0
    assert after == before
