"""Where half-price jobs lie: small files beside the tables, written by a command and moved by the embedder.

    half-price-job-ID.json       what is asked for; the command writes it last, so a job that is there is whole
    half-price-part-ID-00000.json  the texts of one request file; removed when they are served
    half-price-state-ID.json     how it is; the embedder alone writes it

JSON values only: what they mean stands in `embeddings/batch_job.py`.
"""

from __future__ import annotations

from typing import Any

from shoal.settings import Settings
from shoal.store.state_files import list_states, read_state, remove_state, write_state

_JOB, _STATE, _PART = "half-price-job-", "half-price-state-", "half-price-part-"
_END = ".json"


class HalfPriceShelf:
    """Blocking. Every method raises TransientError where the store is unwell, OSError where the disk is."""

    def __init__(self, settings: Settings) -> None:
        self._settings = settings

    def jobs(self, beginning: str = "") -> list[str]:
        """Ids that begin so, in order of name."""
        return [name[len(_JOB) : -len(_END)] for name in list_states(self._settings, _JOB + beginning)]

    def job(self, job: str) -> Any | None:
        return read_state(self._settings, f"{_JOB}{job}{_END}")

    def ask(self, job: str, value: Any) -> None:
        """The job is whole: the embedder may begin."""
        write_state(self._settings, f"{_JOB}{job}{_END}", value)

    def state(self, job: str) -> Any | None:
        return read_state(self._settings, f"{_STATE}{job}{_END}")

    def save(self, job: str, state: Any) -> None:
        write_state(self._settings, f"{_STATE}{job}{_END}", state)

    def part(self, job: str, number: int) -> Any | None:
        return read_state(self._settings, _part(job, number))

    def write_part(self, job: str, number: int, value: Any) -> None:
        write_state(self._settings, _part(job, number), value)

    def drop_part(self, job: str, number: int) -> None:
        remove_state(self._settings, _part(job, number))

    def forget(self, job: str) -> None:
        """Remove all of a job; the request first, so that nobody takes up the rest."""
        remove_state(self._settings, f"{_JOB}{job}{_END}")
        remove_state(self._settings, f"{_STATE}{job}{_END}")
        self.sweep(job)

    def sweep(self, beginning: str) -> None:
        """Remove the parts of jobs that begin so and were never whole: of a planning that was killed."""
        whole = set(self.jobs(beginning))
        for name in list_states(self._settings, _PART + beginning):
            if name[len(_PART) : -len(_END)].rpartition("-")[0] not in whole:
                remove_state(self._settings, name)


def _part(job: str, number: int) -> str:
    return f"{_PART}{job}-{number:05}{_END}"
