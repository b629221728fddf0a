"""Files under allowed directories, read so that no location can lead anywhere else.

The path is resolved, checked against the allowed directories, and then opened again one component at a time
without following symlinks: a link that is swapped in between the check and the opening is refused, not
followed. Only regular files are read; sizes are checked before and counted while reading.
"""

from __future__ import annotations

import errno
import os
import stat
from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from shoal.errors import BadDocument, DeadReason, TransientError

_PIECE_BYTES = 1024 * 1024
_MISSING = (errno.ENOENT, errno.ENOTDIR, errno.ENAMETOOLONG)
_NO_ACCESS = (errno.EACCES, errno.EPERM)


def read_file(path: PurePosixPath, roots: Sequence[Path], bytes_max: int) -> bytes:
    """The bytes of the regular file at `path`, which must lie under one of `roots` after symlinks.

    Raises BadDocument(LOCATION_REFUSED | OBJECT_MISSING | TOO_LARGE | ACCESS_REFUSED), TransientError where
    the disk or the process is unwell.
    """
    descriptor, size = open_file(path, roots)
    try:
        if size > bytes_max:
            raise _too_large(size, bytes_max)
        return _read(descriptor, bytes_max)
    except OSError as error:
        raise _ours(error) from None
    finally:
        os.close(descriptor)


def open_file(path: PurePosixPath, roots: Sequence[Path]) -> tuple[int, int]:
    """(descriptor, size in bytes) of the regular file at `path`, opened to be read; the caller closes it. Raises as
    `read_file` does."""
    if ".." in path.parts:
        raise BadDocument(DeadReason.LOCATION_REFUSED, "a file location has no '..'")
    try:
        real = Path(path).resolve()
        root = next((base for base in (root.resolve() for root in roots) if real.is_relative_to(base)), None)
    except (RuntimeError, ValueError):  # a loop of symlinks; an embedded NUL
        root = None
    except OSError as error:
        raise _ours(error) from None
    if root is None or real == root:
        raise BadDocument(DeadReason.LOCATION_REFUSED, "the file is not under an allowed directory (allowed_roots)")
    try:
        descriptor = _open_beneath(root, real.relative_to(root).parts)
    except OSError as error:
        raise _ours(error) from None
    about = os.fstat(descriptor)
    if not stat.S_ISREG(about.st_mode):
        os.close(descriptor)
        raise BadDocument(DeadReason.LOCATION_REFUSED, "the location is not a regular file")
    return descriptor, about.st_size


def _open_beneath(root: Path, parts: Sequence[str]) -> int:
    directory = os.open(root, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        for part in parts[:-1]:
            following = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=directory)
            os.close(directory)
            directory = following
        # O_NONBLOCK: opening a FIFO must not wait for a writer.
        return os.open(parts[-1], os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC, dir_fd=directory)
    finally:
        os.close(directory)


def _read(descriptor: int, bytes_max: int) -> bytes:
    pieces, size = [], 0
    while piece := os.read(descriptor, _PIECE_BYTES):
        size += len(piece)
        if size > bytes_max:  # it grew while it was read
            raise _too_large(size, bytes_max)
        pieces.append(piece)
    return b"".join(pieces)


def _too_large(size: int, bytes_max: int) -> BadDocument:
    return BadDocument(DeadReason.TOO_LARGE, f"{size} bytes or more; object_bytes_max is {bytes_max}")


def _ours(error: OSError) -> BadDocument | TransientError:
    if error.errno in _MISSING:
        return BadDocument(DeadReason.OBJECT_MISSING, "there is no such file")
    if error.errno in _NO_ACCESS:
        return BadDocument(DeadReason.ACCESS_REFUSED, "the file may not be read by Shoal's user")
    if error.errno in (errno.ELOOP, errno.ENXIO, errno.EISDIR):  # swapped for a link; a socket
        return BadDocument(DeadReason.LOCATION_REFUSED, "the location is not a regular file")
    return TransientError(f"local disk: {error.strerror}")
