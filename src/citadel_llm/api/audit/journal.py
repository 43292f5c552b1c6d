"""An append-only journal of one writer: what was written is found again after the end of the process, however it came.

    journal = Journal.open(Path("/opt/citadel/var/spool/audit"), "1", options, log)
    journal.append(payload)          # one write(2); no return before the kernel has it
    ticket = journal.begin_sync()    # what was appended so far
    sync(ticket)                     # on a thread: afterwards it survives the machine's end too
    journal.end_sync(ticket)
    entries = journal.read(1000)     # what was synced and not read yet: [(sequence, payload, bytes)]
    journal.done(entries[-1].sequence, size_bytes)

A journal is a folder: `lock`, held by whoever writes or carries it away; `chain`, whose name it is in the database; and
segments, each named after the sequence number of its first record. A record is its length, its CRC-32 and itself. An
empty one is damage: zeros that a machine's end left in the file. A segment is removed once all of it is done.
"""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
import re
import socket
import struct
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NamedTuple
from zlib import crc32

import msgspec

__all__ = ["Entry", "Journal", "JournalError", "Mark", "Options", "Ticket", "chain_host", "sync"]

_HEADER = struct.Struct("<II")
_pack, _unpack = _HEADER.pack, _HEADER.unpack_from
_MAX_RECORD_BYTES = 16 << 20  # a longer length is damage
_READ_BYTES = 1 << 20
_SUFFIX = ".journal"
_OURS = ("chain.new", "chain", "lock")  # beside the segments
_MAX_WAITING = 10_000

type Tell = Callable[..., None]  # (level, event, **fields): a log


class JournalError(Exception):
    """The folder can't be used; the text names it."""


class Entry(NamedTuple):
    """A record that was read; no record is empty: without a payload, nothing is left of what goes up to its number."""

    sequence: int
    payload: bytes
    size_bytes: int  # in its segment


@dataclass(frozen=True, slots=True)
class Ticket:
    """A synchronisation: of all records up to `last`."""

    last: int
    complete: list[int]  # descriptors that are closed afterwards
    current: int
    folder: Path | None


class Mark(msgspec.Struct, frozen=True):
    """The chain in the database that a journal goes to, and the sequence number after which it begins."""

    chain: str
    after: int = 0


@dataclass(frozen=True, slots=True)
class Options:
    """Sizes in bytes."""

    segment_bytes: int = 4 << 20
    spool_bytes: int = 256 << 20  # of what is not done


@dataclass(slots=True)
class _Segment:
    first: int  # the sequence number of its first record
    path: Path


class Journal:
    """See the module. Everything but `sync` is for one thread."""

    def __init__(self, folder: Path, lock: int, options: Options, tell: Tell) -> None:
        """Use `open` or `adopt`."""
        self.folder = folder
        self.options = options
        self._lock = lock
        self._tell = tell
        self._segments: deque[_Segment] = deque()
        self._waiting: deque[bytes] = deque()  # what the disk did not take
        self._unsynced: list[int] = []  # descriptors of segments that are complete
        self._folder_changed = False
        self._fd = -1
        self._size = 0  # of the segment that is written
        self._reader_fd = -1
        self._reader: _Segment | None = None
        self._buffer = b""
        self._at = 0  # in the buffer
        self._offset = 0  # in the segment that is read, of what follows the buffer
        self.pending_bytes = 0  # written and not done
        self.last = 0  # the sequence number of the last record
        self.synced = 0
        self.read_to = 0
        self._given_to = 0  # by `read`
        self.done_to = 0
        self.dropped = 0
        self.stalled = ""  # why the disk takes nothing
        self.mark = self._recover()
        self.began_after = self.last  # what came later is of this process
        self.known = False  # the database has been asked how far the chain has come

    # Opening

    @classmethod
    def open(cls, base: Path, name: str, options: Options, tell: Tell) -> Journal:
        """This writer's journal; where another process still holds that of its name, one beside it.

        Raises JournalError where the folder can't be used.
        """
        for suffix in ("", *(f".{number}" for number in range(1, 100))):
            found = cls.adopt(base / (re.sub(r"[^A-Za-z0-9_-]", "_", name) + suffix), options, tell, make=True)
            if found is not None:
                return found
        raise JournalError(f"{base}: there are a hundred journals of {name}, each held by another process")

    @classmethod
    def adopt(cls, folder: Path, options: Options, tell: Tell, *, make: bool = False) -> Journal | None:
        """The journal in that folder, unless another process holds it."""
        try:
            if make:
                folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            lock = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        except OSError as error:
            if not make and isinstance(error, FileNotFoundError):
                return None  # removed meanwhile
            raise JournalError(f"{folder}: {error.strerror}") from error
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            # It may have been removed, and made again, between the two calls.
            if os.stat(folder / "lock").st_ino != os.fstat(lock).st_ino:
                raise BlockingIOError
            return cls(folder, lock, options, tell)
        except (BlockingIOError, FileNotFoundError):
            os.close(lock)
            return None
        except OSError as error:
            os.close(lock)
            raise JournalError(f"{folder}: {error.strerror}") from error

    @staticmethod
    def is_carried(folder: Path) -> bool:
        """Whether nothing to carry is left there; what was rejected, and damaged files, are for somebody to look at."""
        try:
            names = {path.name for path in folder.iterdir()}
        except FileNotFoundError:  # removed meanwhile
            return True
        return bool(names - set(_OURS)) and not any(name.endswith(_SUFFIX) for name in names)

    def _recover(self) -> Mark:
        for path in sorted(self.folder.glob(f"*{_SUFFIX}")):
            self._segments.append(_Segment(int(path.name.removesuffix(_SUFFIX)), path))
        mark = self._read_mark()
        if not self._segments:
            self._segments.append(self._new_segment(mark.after + 1))
        newest = self._segments[-1]
        whole, count = _whole(newest.path)
        self._fd = os.open(newest.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        torn = os.fstat(self._fd).st_size - whole
        if torn:
            self._tell("warning", "audit_torn", file=str(newest.path), cut_bytes=torn)
            os.ftruncate(self._fd, whole)
        self._size = whole
        self.last = self.synced = newest.first + count - 1
        self.read_to = self._given_to = self.done_to = self._segments[0].first - 1
        self.pending_bytes = sum(segment.path.stat().st_size for segment in self._segments)
        with contextlib.suppress(OSError):
            os.fdatasync(self._fd)
        return mark

    def _read_mark(self) -> Mark:
        path = self.folder / "chain"
        with contextlib.suppress(FileNotFoundError, ValueError):
            return msgspec.json.decode(path.read_bytes(), type=Mark)
        first = self._segments[0].first if self._segments else 1
        return self.begin_chain(first - 1)

    def begin_chain(self, after: int) -> Mark:
        """Another chain, from the record after that one on: chains are never begun twice under one name."""
        name = f"{chain_host()}:{self.folder.name[:24]}:{os.urandom(6).hex()}"
        self.mark = Mark(name, after)
        new = self.folder / "chain.new"
        fd = os.open(new, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, msgspec.json.encode(self.mark))
            os.fsync(fd)
        finally:
            os.close(fd)
        new.replace(self.folder / "chain")
        _sync_folder(self.folder)
        return self.mark

    # Writing

    @property
    def full(self) -> bool:
        """Whether nothing more should come: the bound is reached, or the disk takes nothing."""
        return self.pending_bytes >= self.options.spool_bytes or bool(self._waiting)

    @property
    def waiting(self) -> int:
        """How many records are in memory alone, for the disk did not take them."""
        return len(self._waiting)

    def append(self, payload: bytes) -> bool:
        """Write a record; whether there is room for more.

        What the disk does not take is kept in memory, in its order, and written when it does.
        """
        frame = _pack(len(payload), crc32(payload)) + payload
        if self._waiting:
            self._wait(frame)
            return False
        try:
            written = os.write(self._fd, frame)
        except OSError as error:
            self._stall(error, frame)
            return False
        if written != len(frame):
            self._undo(OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), frame)
            return False
        self.last += 1
        self._size = size = self._size + written
        self.pending_bytes = pending = self.pending_bytes + written
        if size >= self.options.segment_bytes:
            self._rotate()
        return pending < self.options.spool_bytes

    def _undo(self, error: OSError, frame: bytes) -> None:
        """A part of a record was written: take it back."""
        try:
            os.ftruncate(self._fd, self._size)
        except OSError:
            self._rotate()  # the next record must not follow half of one
        self._stall(error, frame)

    def _stall(self, error: OSError, frame: bytes) -> None:
        if not self.stalled:
            self.stalled = error.strerror or str(error)
            self._tell("error", "audit_unwritable", folder=str(self.folder), error=self.stalled)
        self._wait(frame)

    def _wait(self, frame: bytes) -> None:
        if len(self._waiting) >= _MAX_WAITING:
            self.dropped += 1
            return
        self._waiting.append(frame)

    def retry(self) -> None:
        """Write what waits, as far as the disk takes it."""
        waiting, self._waiting = self._waiting, deque()
        if waiting and self._fd < 0:
            self._rotate()
        while waiting and not self._waiting:
            self.append(waiting.popleft()[_HEADER.size :])
        self._waiting.extend(waiting)
        if self.stalled and not self._waiting:
            self.stalled = ""
            self._tell("info", "audit_writable", folder=str(self.folder))

    def _rotate(self) -> None:
        if self._fd >= 0:
            self._unsynced.append(self._fd)
            self._fd = -1
        segment = self._new_segment(self.last + 1)
        try:
            self._fd = os.open(segment.path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        except FileExistsError:  # nothing whole was written to it
            self._fd = os.open(segment.path, os.O_WRONLY | os.O_APPEND | os.O_TRUNC | os.O_CLOEXEC, 0o600)
        except OSError:
            return  # the next write fails, and says so
        self._size = 0
        self._folder_changed = True
        if self._segments[-1].first != segment.first:
            self._segments.append(segment)

    def _new_segment(self, first: int) -> _Segment:
        return _Segment(first, self.folder / f"{first:020}{_SUFFIX}")

    def begin_sync(self) -> Ticket | None:
        """What is to be brought to the disk; None where nothing is."""
        if self.last == self.synced and not self._unsynced:
            return None
        complete, self._unsynced = self._unsynced, []
        folder = self.folder if self._folder_changed else None
        self._folder_changed = False
        return Ticket(self.last, complete, self._fd, folder)

    def end_sync(self, ticket: Ticket, error: OSError | None = None) -> None:
        """It is there; with an error, it may not be, and nothing more goes into those segments."""
        for fd in ticket.complete:
            os.close(fd)
        if error is None:
            self.synced = max(self.synced, ticket.last)
            return
        self._tell("error", "audit_not_synced", folder=str(self.folder), error=error.strerror)
        # The kernel says so once, and has given those pages up for written: what it still has of them is all there is.
        self.synced = max(self.synced, ticket.last)
        self._rotate()

    # Reading

    def read(self, limit: int) -> list[Entry]:
        """The next records that were synced, at most so many.

        Sequence numbers leap over what was damaged; where nothing follows it, an entry without a payload ends it.
        """
        found: list[Entry] = []
        while len(found) < limit and self.read_to < self.synced:
            if self._reader is None and not self._next_reader():
                break
            entry = self._next_entry()
            if entry is None:
                self._end_reader()
            else:
                found.append(entry)
                self.read_to = self._given_to = entry.sequence
        if not found and self.read_to > max(self._given_to, self.done_to):
            self._given_to = self.read_to
            found.append(Entry(self.read_to, b"", 0))
        return found

    def _next_reader(self) -> bool:
        for segment in tuple(self._segments):
            if segment.first > self.read_to:
                try:
                    self._reader_fd = os.open(segment.path, os.O_RDONLY | os.O_CLOEXEC)
                except FileNotFoundError:
                    self._removed(segment)
                    continue
                self._reader = segment
                self._buffer, self._at, self._offset = b"", 0, 0
                self.read_to = segment.first - 1
                return True
        return False

    def _removed(self, segment: _Segment) -> None:
        """Somebody has removed its file: what was in there is lost, which the numbers of what follows show."""
        self._tell("error", "audit_removed", file=str(segment.path))
        if segment is self._segments[-1]:  # which is written to: nobody would find what else goes in there
            self._rotate()
            self.read_to = self.last
        if segment is not self._segments[-1]:
            self._segments.remove(segment)

    def _next_entry(self) -> Entry | None:
        """The record that follows; None at the segment's end, or where it is damaged."""
        while True:
            at, size = self._at, _HEADER.size
            have = len(self._buffer) - at
            if have >= size:
                length, checksum = _unpack(self._buffer, at)
                if not 0 < length <= _MAX_RECORD_BYTES:
                    return None
                size += length
                if have >= size:
                    payload = self._buffer[at + _HEADER.size : at + size]
                    if crc32(payload) != checksum:
                        return None
                    self._at = at + size
                    return Entry(self.read_to + 1, payload, size)
            more = os.pread(self._reader_fd, max(_READ_BYTES, size), self._offset)
            if not more:
                return None
            self._offset += len(more)
            self._buffer, self._at = self._buffer[at:] + more, 0

    def _end_reader(self) -> None:
        """The segment that is read gives nothing more: go on with the next, if there is one."""
        assert self._reader is not None  # noqa: S101
        ended = self._reader
        following = next((segment for segment in self._segments if segment.first > ended.first), None)
        end = (following.first if following else self.last + 1) - 1
        lost = end - self.read_to
        if lost > 0:
            damaged = ended.path.with_suffix(".damaged")
            self._tell("error", "audit_damaged", file=str(damaged), records=lost)
            with contextlib.suppress(OSError):
                os.link(ended.path, damaged)
            if following is None:
                # Nobody writes after damage.
                self._rotate()
        os.close(self._reader_fd)
        self._reader, self._reader_fd = None, -1
        self.read_to = end

    def rewind(self) -> None:
        """Read again from the oldest segment on."""
        if self._reader is not None:
            os.close(self._reader_fd)
            self._reader, self._reader_fd = None, -1
        self.read_to = self._segments[0].first - 1
        self._given_to = self.done_to

    def done(self, sequence: int, size_bytes: int) -> None:
        """The records up to that one are where they belong; their size as they were read. Removes their segments."""
        self.done_to = max(self.done_to, sequence)
        self.pending_bytes = max(0, self.pending_bytes - size_bytes)
        while len(self._segments) > 1 and self._segments[1].first <= self.done_to + 1:
            self._remove(self._segments.popleft())
        if self.done_to >= self.last:
            self.pending_bytes = 0  # also what damage left behind

    def trim(self) -> int:
        """Keep within the bound by removing the oldest records; how many. Where there is nowhere to carry them to."""
        removed = 0
        while self.pending_bytes >= self.options.spool_bytes and len(self._segments) > 1:
            oldest = self._segments.popleft()
            try:
                self.pending_bytes -= oldest.path.stat().st_size
            except FileNotFoundError:  # somebody has removed it, and perhaps others: what is left is counted anew
                self.pending_bytes = sum(_size_of(segment.path) for segment in self._segments)
            removed += self._segments[0].first - oldest.first
            self.read_to = self._given_to = self.done_to = self._segments[0].first - 1
            self._remove(oldest)
        return removed

    def _remove(self, segment: _Segment) -> None:
        if self._reader is segment:
            os.close(self._reader_fd)
            self._reader, self._reader_fd = None, -1
        with contextlib.suppress(FileNotFoundError):
            segment.path.unlink()

    def reject(self, facts: dict[str, Any]) -> None:
        """Keep what the database does not take, beside the journal."""
        fd = os.open(self.folder / "rejected", os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, msgspec.json.encode(facts) + b"\n")
            os.fdatasync(fd)
        finally:
            os.close(fd)

    # The end

    def close(self, *, remove: bool = False) -> None:
        """Let go of it; `remove` the folder where nothing but what is done is in it."""
        try:
            self.retry()
            for fd in (*self._unsynced, self._fd, self._reader_fd):
                if fd >= 0:
                    os.close(fd)
            self._fd = self._reader_fd = -1
            self._reader, self._unsynced = None, []
            if remove and self.done_to >= self.last:
                self._remove_folder()
        finally:
            os.close(self._lock)

    def _remove_folder(self) -> None:
        for segment in self._segments:
            self._remove(segment)
        if all(path.name in _OURS for path in self.folder.iterdir()):
            for name in _OURS:
                (self.folder / name).unlink(missing_ok=True)
            self.folder.rmdir()


def chain_host() -> str:
    """How the names of this host's chains begin, up to a colon."""
    return socket.gethostname()[:80]


def sync(ticket: Ticket) -> None:
    """Bring to the disk what the ticket names. Raises OSError. For a thread: it takes milliseconds."""
    for fd in (*ticket.complete, ticket.current):
        if fd >= 0:
            os.fdatasync(fd)
    if ticket.folder is not None:
        _sync_folder(ticket.folder)


def _sync_folder(folder: Path) -> None:
    fd = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        os.fsync(fd)
    finally:
        os.close(fd)


def _size_of(path: Path) -> int:
    try:
        return path.stat().st_size
    except FileNotFoundError:
        return 0


def _whole(path: Path) -> tuple[int, int]:
    """Bytes and number of the records at the segment's beginning that are whole."""
    try:
        data = path.read_bytes()
    except FileNotFoundError:
        return 0, 0
    offset = count = 0
    while offset + _HEADER.size <= len(data):
        length, checksum = _unpack(data, offset)
        end = offset + _HEADER.size + length
        if not 0 < length <= _MAX_RECORD_BYTES or end > len(data):
            break
        if crc32(data[offset + _HEADER.size : end]) != checksum:
            break
        offset, count = end, count + 1
    return offset, count
