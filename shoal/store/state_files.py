"""Small shared state beside the tables: `{tables}/_shoal/NAME`, on disk or in S3 (contracts 5).

Written whole by one owner, read by anybody; a reader sees the old or the new text, never half of one.
"""

from __future__ import annotations

import contextlib
import logging
import os
import tempfile
from datetime import datetime
from functools import lru_cache
from pathlib import Path
from typing import Any

import boto3
import orjson
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from shoal.errors import TransientError
from shoal.faults import reach
from shoal.settings import Settings

log = logging.getLogger("shoal.store")

DIRECTORY = "_shoal"
UNFINISHED_PREFIX = ".writing-"
"""Begins the name of a file that is not whole yet; the table writer removes those whose writer was killed."""


def write_state(settings: Settings, name: str, value: Any) -> None:
    """Replace `name` by `value` as JSON. Raises TransientError where the store is unwell."""
    data = orjson.dumps(value, option=orjson.OPT_NON_STR_KEYS)  # counters are keyed by our enumerations
    bucket, key = s3_place(settings, name)
    if bucket is not None:
        try:
            s3_client(settings.s3_endpoint_url).put_object(Bucket=bucket, Key=key, Body=data)
        except (BotoCoreError, ClientError) as error:
            raise TransientError(f"state file {name}: {error}") from None
        return
    directory = Path(settings.tables_uri) / DIRECTORY
    directory.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=directory, prefix=UNFINISHED_PREFIX)
    try:
        with os.fdopen(handle, "wb") as file:
            file.write(data)
        reach("state.writing")
        os.replace(temporary, directory / name)
    except BaseException:  # a full disk; what is left would keep it full
        Path(temporary).unlink(missing_ok=True)
        raise


def read_state(settings: Settings, name: str) -> Any | None:
    """The last value written, or None where there is none yet. Raises TransientError."""
    bucket, key = s3_place(settings, name)
    if bucket is not None:
        try:
            body = s3_client(settings.s3_endpoint_url).get_object(Bucket=bucket, Key=key)["Body"].read()
        except ClientError as error:
            if error.response.get("Error", {}).get("Code") in ("NoSuchKey", "404"):
                return None
            raise TransientError(f"state file {name}: {error}") from None
        except BotoCoreError as error:
            raise TransientError(f"state file {name}: {error}") from None
    else:
        try:
            body = (Path(settings.tables_uri) / DIRECTORY / name).read_bytes()
        except FileNotFoundError:
            return None
    try:
        return orjson.loads(body)
    except ValueError:  # empty after a power loss, say: its owner writes it anew
        log.warning("state file %s is damaged and counts as absent", name)
        return None


def list_states(settings: Settings, prefix: str) -> list[str]:
    """The names that begin with `prefix`, at most 1000. Raises TransientError."""
    bucket, key = s3_place(settings, prefix)
    if bucket is None:
        try:
            names = os.listdir(Path(settings.tables_uri) / DIRECTORY)
        except FileNotFoundError:
            return []
        return sorted(name for name in names if name.startswith(prefix))[:1000]
    try:
        found = s3_client(settings.s3_endpoint_url).list_objects_v2(Bucket=bucket, Prefix=key).get("Contents", ())
    except (BotoCoreError, ClientError) as error:
        raise TransientError(f"state files {prefix}*: {error}") from None
    return [str(entry["Key"]).rpartition("/")[2] for entry in found]


def remove_state(settings: Settings, name: str) -> None:
    """Remove `name`; nothing where it is gone already. Raises TransientError."""
    bucket, key = s3_place(settings, name)
    if bucket is None:
        (Path(settings.tables_uri) / DIRECTORY / name).unlink(missing_ok=True)
        return
    try:
        s3_client(settings.s3_endpoint_url).delete_object(Bucket=bucket, Key=key)
    except (BotoCoreError, ClientError) as error:
        raise TransientError(f"state file {name}: {error}") from None


def remove_old_states(settings: Settings, prefix: str, before: datetime) -> int:
    """Remove those of `list_states` that were last written before `before`, by the storage's clock; how many. Raises
    TransientError, OSError."""
    bucket, key = s3_place(settings, prefix)
    if bucket is None:
        written = {}
        for name in list_states(settings, prefix):
            with contextlib.suppress(FileNotFoundError):
                written[name] = (Path(settings.tables_uri) / DIRECTORY / name).stat().st_mtime
        old = [name for name, at_s in written.items() if at_s < before.timestamp()]
    else:
        try:
            found = s3_client(settings.s3_endpoint_url).list_objects_v2(Bucket=bucket, Prefix=key).get("Contents", ())
        except (BotoCoreError, ClientError) as error:
            raise TransientError(f"state files {prefix}*: {error}") from None
        old = [str(entry["Key"]).rpartition("/")[2] for entry in found if entry["LastModified"] < before]
    for name in old:
        remove_state(settings, name)
    return len(old)


def s3_place(settings: Settings, name: str) -> tuple[str | None, str]:
    uri = settings.tables_uri
    if not uri.startswith("s3://"):
        return None, ""
    bucket, _, prefix = uri.removeprefix("s3://").partition("/")
    return bucket, "/".join(part for part in (prefix, DIRECTORY, name) if part)


@lru_cache(maxsize=4)
def s3_client(endpoint_url: str | None) -> Any:
    # Short: whoever writes a state has other things to do, and does it again in seconds.
    config = Config(connect_timeout=3, read_timeout=10, retries={"mode": "standard", "total_max_attempts": 2})
    return boto3.client("s3", endpoint_url=endpoint_url, config=config)
