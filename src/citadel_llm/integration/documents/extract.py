"""The process that reads files: `python -m citadel_llm.integration.documents.extract`, started by `process.py`.

Its standard input is a socket. Each message is a `Task` in JSON, with two descriptors: the file, and where its chunks
go. Each is done by a fork, which has bounds of its own and none of the others' memory. It writes a line of JSON for
each chunk, `[text, parts]`, and a last one that is an object: `{"bytes": of the text}` or `{"code", "message"}`.
"""

from __future__ import annotations

import contextlib
import logging
import os
import resource
import signal
import socket
import sys
from collections.abc import Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import msgspec

from citadel_llm.integration.documents.chunks import chunks
from citadel_llm.integration.documents.parsers import DocumentError, texts

__all__ = ["MESSAGE_BYTES", "Task", "main"]

MESSAGE_BYTES = 1 << 16


class Task(msgspec.Struct, frozen=True, kw_only=True):
    """How a file is read and cut, and what may be spent on it."""

    filename: str
    tokenizer: str  # the path of a tokenizer.json
    max_tokens: int
    overlap_tokens: int
    part_tokens: int  # what the embedding model takes at once
    memory_bytes: int
    cpu_s: int
    text_bytes: int


_task = msgspec.json.Decoder(Task)
_encode = msgspec.json.Encoder().encode


def main() -> int:
    """Fork for each message, until the socket's other end is closed."""
    # What every fork needs is loaded once. No thread may run when it forks.
    import tokenizers  # noqa: F401, PLC0415

    signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    with socket.socket(fileno=sys.stdin.fileno()) as asked:
        while True:
            message, descriptors, _, _ = socket.recv_fds(asked, MESSAGE_BYTES, 2)
            if not message:
                return 0
            if len(descriptors) == 2 and os.fork() == 0:
                _child(message, *descriptors)
            for descriptor in descriptors:
                os.close(descriptor)


def _child(message: bytes, source: int, target: int) -> None:
    try:
        os.dup2(source, 0)
        os.dup2(target, 1)
        os.closerange(3, 64)
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)
        task = _task.decode(message)
        _bound(task)
        logging.disable()  # what a broken PDF has of a library to say
        with open(0, "rb", closefd=False) as file, open(1, "wb", closefd=False) as out:
            _read(task, file, out)
    finally:
        os._exit(0)  # what is left needs no tidying, and might have no memory for it


def _read(task: Task, file: BinaryIO, out: BinaryIO) -> None:
    size_bytes = 0

    def counted(pieces: Iterable[str]) -> Iterator[str]:
        nonlocal size_bytes
        for piece in pieces:
            encoded = piece.encode("utf-8", "replace")  # half a surrogate pair is no text
            size_bytes += len(encoded)
            if size_bytes > task.text_bytes:
                raise DocumentError("invalid_file", f"The file has more than {task.text_bytes} bytes of text.")
            yield encoded.decode()

    last: dict[str, Any]
    try:
        _write(out, task, counted(texts(file.read(), task.filename)))
        last = {"bytes": size_bytes}
    except DocumentError as failure:
        last = {"code": failure.code, "message": str(failure)}
    except MemoryError:
        last = {"code": "invalid_file", "message": "The file needs more memory to be read than it may have."}
    with contextlib.suppress(BrokenPipeError):
        out.write(_encode(last) + b"\n")
        out.flush()


def _write(out: BinaryIO, task: Task, found: Iterable[str]) -> None:
    from tokenizers import Tokenizer  # noqa: PLC0415

    tokenizer = Tokenizer.from_file(task.tokenizer)
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(words: Sequence[str]) -> list[int]:
        return [len(one.ids) for one in tokenizer.encode_batch_fast(list(words), add_special_tokens=False)]

    for chunk in chunks(
        found,
        count,
        max_tokens=task.max_tokens,
        overlap_tokens=task.overlap_tokens,
        part_tokens=task.part_tokens,
    ):
        out.write(_encode([chunk.text, chunk.parts]) + b"\n")
        out.flush()


def _bound(task: Task) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (task.memory_bytes, task.memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (task.cpu_s, task.cpu_s))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


if __name__ == "__main__":
    sys.exit(main())
