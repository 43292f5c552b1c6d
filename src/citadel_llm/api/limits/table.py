"""What was used, in memory that all gateway processes of a host share: a file of fixed size, mapped by each of them.

    table = Table("/run/citadel-gateway/limits")        # None: this process alone
    if table.lock():
        try:
            at = table.record(digest_of("key", "7d3c…"), now_ns, now_s)
            table.words[at + WINDOW] ...
        finally:
            table.unlock()

The lock is the kernel's (flock): a process that dies gives it up. It is never waited for, and what happens under it
takes microseconds. One that was stopped amid it keeps it; the others then get no lock, and refuse rather than guess.

Each process has a place, which it holds by a lock of its own for as long as it lives: its column of requests at once is
worth nothing any more as soon as that lock is free, however it died.

A subject's record is found by its digest. Where there is none, the record of somebody is taken of whom nothing counts
any more.
"""

from __future__ import annotations

import fcntl
import hashlib
import mmap
import os
import struct
import time
from typing import Final

from citadel_llm.api.limits import bucket, budget, settlement, window
from citadel_llm.utils.config import ConfigError

__all__ = ["BUCKET", "BUDGET", "COLUMNS", "HIGH", "TOUCHED", "WINDOW", "Table", "TableFull", "digest_of"]

_LAYOUT: Final = 1  # another one is another file
_MAGIC: Final = 0x43_49_54_4C_4D_54_00_00 + _LAYOUT
_RECORDS: Final = 16_384
_PROBES: Final = 64
_PLACES: Final = 64  # processes at once
_BYTES: Final = 8

# The head, in words
_CREATED: Final = 1  # on the monotonic clock
HIGH: Final = 2  # places that were ever taken
_TAKEN: Final = 16  # by place
_INDEX: Final = 512  # the digest of each record's subject, two words; 0 first: nobody's
_FIRST: Final = _INDEX + 2 * _RECORDS

_RECORD: Final = 1536  # three pages of memory, which are taken up with the record's first use
_SIZE: Final = (_FIRST + _RECORDS * _RECORD) * _BYTES
# In a record
TOUCHED: Final = 0
BUCKET: Final = 1
BUDGET: Final = BUCKET + bucket.WORDS
COLUMNS: Final = 32  # requests at once, by place
WINDOW: Final = COLUMNS + _PLACES

assert settlement.BUCKET == BUCKET and settlement.BUDGET == BUDGET  # noqa: PT018, S101
assert BUDGET + budget.WORDS <= settlement.TOLD_AT  # noqa: S101
assert WINDOW + window.WORDS <= settlement.COLUMNS  # noqa: S101
assert settlement.COLUMNS + _PLACES <= _RECORD  # noqa: S101

_EMPTY = memoryview(bytes(max(_FIRST, _RECORD) * _BYTES)).cast("q")
_FLOCK = struct.Struct("hhqqi4x")  # struct flock of 64-bit Linux
_PLACE_LOCKS: Final = 1 << 40  # offsets in the file, far behind its end
_SPIN_NS: Final = 300_000
_IDLE_NS: Final = window.MINUTE_NS + window.QUANTUM_NS


class TableFull(Exception):
    """More subjects at once than there are records, or no memory for one."""


def digest_of(scope: str, subject: str) -> tuple[int, int]:
    """A subject's name in the table; the first is never 0."""
    high, low = struct.unpack("qq", hashlib.blake2b(f"{scope}\0{subject}".encode(), digest_size=16).digest())
    return high or 1, low


class Table:
    """This process's view of it."""

    def __init__(self, path: str | None) -> None:
        """Raises ConfigError where the file can't be used, or as many processes as there are places use it."""
        self._name = path or "the table of limits"
        self.place = self._fd = -1
        self._views: dict[int, memoryview[int]] = {}
        try:
            if path is None:
                self._fd = os.memfd_create("citadel-limits")
            else:
                self._fd = os.open(f"{path}-{_LAYOUT}", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW, 0o600)
            self._lock_to_begin()
            try:
                if os.fstat(self._fd).st_size not in (0, _SIZE):
                    raise self._unusable("is not a table of limits of this release")
                os.ftruncate(self._fd, _SIZE)
                os.posix_fallocate(self._fd, 0, _FIRST * _BYTES)
                self._map = mmap.mmap(self._fd, _SIZE)
                self.words: memoryview[int] = memoryview(self._map).cast("q")
                self._begin()
                self.place = self._take_place()
            finally:
                self.unlock()
        except OSError as error:
            self._give_up()
            raise self._unusable(f"can't be used: {error.strerror}") from error
        except ConfigError:
            self._give_up()
            raise

    def _give_up(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)

    def _unusable(self, why: str) -> ConfigError:
        return ConfigError(f"{self._name}: {why}")

    def _lock_to_begin(self) -> None:
        end = time.monotonic() + 5.0
        while not self.lock():
            if time.monotonic() > end:
                raise self._unusable("another process keeps it locked")
            time.sleep(0.001)

    def close(self) -> None:
        """Leave."""
        if self.lock():
            try:
                self._clear_column(self.place)
                self.words[_TAKEN + self.place] = 0
            finally:
                self.unlock()
        for view in self._views.values():
            view.release()
        self.words.release()
        self._map.close()
        os.close(self._fd)

    # The lock

    def lock(self, spin_ns: int = _SPIN_NS) -> bool:
        """Whether this process has it now. Somebody else's is over in microseconds, and tried for so long."""
        end = 0
        while True:
            try:
                fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                now = time.monotonic_ns()
                end = end or now + spin_ns
                if now >= end:
                    return False
                os.sched_yield()
            else:
                return True

    def unlock(self) -> None:
        """Give it up."""
        fcntl.flock(self._fd, fcntl.LOCK_UN)

    # Places of processes; all under the lock

    def _begin(self) -> None:
        words, now = self.words, time.monotonic_ns()
        if words[0] not in (0, _MAGIC):
            raise self._unusable("is not a table of limits of this release")
        if words[0] == 0 or words[_CREATED] > now:  # new, or of a time before this host was started
            words[0] = 0
            words[1:_FIRST] = _EMPTY[1:_FIRST]
            words[_CREATED] = now
            words[0] = _MAGIC

    def _take_place(self) -> int:
        self.free_places()
        for place in range(_PLACES):
            if not self.words[_TAKEN + place] and self._own(place):
                self.words[_TAKEN + place] = 1
                self.words[HIGH] = max(self.words[HIGH], place + 1)
                return place
        raise self._unusable(f"{_PLACES} processes use it already")

    def _own(self, place: int) -> bool:
        wanted = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _PLACE_LOCKS + place, 1, 0)
        try:
            fcntl.fcntl(self._fd, fcntl.F_OFD_SETLK, wanted)
        except OSError:
            return False
        return True

    def free_places(self) -> None:
        """What dead processes held at once is nobody's any more."""
        for place in range(self.words[HIGH]):
            if self.words[_TAKEN + place] and place != self.place and not self._alive(place):
                self._clear_column(place)
                self.words[_TAKEN + place] = 0

    def _alive(self, place: int) -> bool:
        asked = _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, _PLACE_LOCKS + place, 1, 0)
        kind: int = _FLOCK.unpack(fcntl.fcntl(self._fd, fcntl.F_OFD_GETLK, asked))[0]
        return kind != fcntl.F_UNLCK

    def _clear_column(self, place: int) -> None:
        words = self.words
        for record in range(_RECORDS):
            if words[_INDEX + 2 * record]:
                column = _FIRST + record * _RECORD + COLUMNS + place
                if words[column]:
                    words[column] = 0

    def at_once(self, at: int) -> int:
        """How many requests of the record's subject are under way, in all processes."""
        first = at + COLUMNS
        return sum(self.words[first : first + self.words[HIGH]])

    # Records; all under the lock

    def holds(self, at: int, digest: tuple[int, int]) -> bool:
        """Whether the record there is still this subject's."""
        entry = self.entry_of(at)
        return self.words[entry] == digest[0] and self.words[entry + 1] == digest[1]

    @staticmethod
    def entry_of(at: int) -> int:
        """Where the digest of the record's subject is."""
        return _INDEX + (at - _FIRST) // _RECORD * 2

    def view(self, at: int) -> memoryview[int]:
        """The words of the record there, from 0 on: small numbers are found sooner than sums. Good until `close`."""
        view = self._views.get(at)
        if view is None:
            view = self._views[at] = self.words[at : at + _RECORD]
        return view

    @property
    def places(self) -> int:
        """How many were ever taken."""
        return self.words[HIGH]

    def find(self, digest: tuple[int, int]) -> int:
        """Where the subject's record is; 0: it has none."""
        words, (high, low) = self.words, digest
        for probe in range(_PROBES):
            record = (low + probe) % _RECORDS
            if words[_INDEX + 2 * record] == high and words[_INDEX + 2 * record + 1] == low:
                return _FIRST + record * _RECORD
        return 0

    def record(self, digest: tuple[int, int], now_ns: int, now_s: float) -> int:
        """Where the subject's record is, made where there is none. Raises TableFull."""
        at = self.find(digest)
        if at:
            return at
        records = [(digest[1] + probe) % _RECORDS for probe in range(_PROBES)]
        words = self.words
        record = next((one for one in records if not words[_INDEX + 2 * one]), None)
        if record is None:
            record = next((one for one in records if self._idle(_FIRST + one * _RECORD, now_ns, now_s)), None)
        if record is None:
            raise TableFull("no record is free")
        at = _FIRST + record * _RECORD
        try:
            os.posix_fallocate(self._fd, at * _BYTES, _RECORD * _BYTES)
        except OSError as error:
            raise TableFull(error.strerror) from error
        words[_INDEX + 2 * record] = 0
        words[at : at + _RECORD] = _EMPTY[:_RECORD]
        words[at + TOUCHED] = now_ns
        words[_INDEX + 2 * record + 1] = digest[1]
        words[_INDEX + 2 * record] = digest[0]
        return at

    def _idle(self, at: int, now_ns: int, now_s: float) -> bool:
        words = self.words
        settlement.fold(words, at, self.places, now_ns, words[at + BUCKET + 2] or None, False)
        return (
            words[at + TOUCHED] + _IDLE_NS < now_ns
            and bucket.drained(words, at + BUCKET, now_ns)
            and not budget.kept(words, at + BUDGET, now_s)
            and not self.at_once(at)
        )
