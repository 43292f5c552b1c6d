"""The process that reads one file: `python -m citadel_llm.integration.documents.extract`, started by `process.py`.

Standard input is the file. Standard output has a line of JSON for each chunk, `[text, parts]`, and a last one that is
an object: `{"bytes": of the text}` or `{"code", "message"}`.
"""

from __future__ import annotations

import argparse
import contextlib
import logging
import os
import resource
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, BinaryIO

import msgspec

from citadel_llm.integration.documents.chunks import chunks
from citadel_llm.integration.documents.parsers import DocumentError, texts

__all__ = ["main"]


def main(words: Sequence[str] | None = None) -> int:
    """Read, cut and write."""
    parser = argparse.ArgumentParser()
    for name in ("max-tokens", "overlap-tokens", "part-tokens", "memory-bytes", "cpu-s", "text-bytes"):
        parser.add_argument(f"--{name}", type=int, required=True)
    parser.add_argument("--tokenizer", required=True)
    parser.add_argument("--filename", required=True)
    given = parser.parse_args(words)
    _bound(given.memory_bytes, given.cpu_s)
    logging.disable()  # what a broken PDF has of a library to say
    out = sys.stdout.buffer
    encode = msgspec.json.Encoder().encode
    read = 0

    def counted(pieces: Iterable[str]) -> Iterator[str]:
        nonlocal read
        for piece in pieces:
            read += len(piece.encode("utf-8", "replace"))
            if read > given.text_bytes:
                raise DocumentError("invalid_file", f"The file has more than {given.text_bytes} bytes of text.")
            yield piece.encode("utf-8", "replace").decode()  # half a surrogate pair is no text

    try:
        _write(out, given, counted(texts(sys.stdin.buffer.read(), given.filename)), encode)
        last: dict[str, Any] = {"bytes": read}
    except DocumentError as failure:
        last = {"code": failure.code, "message": str(failure)}
    except MemoryError:
        last = {"code": "invalid_file", "message": "The file needs more memory to be read than it may have."}
    with contextlib.suppress(BrokenPipeError):
        out.write(encode(last) + b"\n")
        out.flush()
    os._exit(0)  # what is left needs no tidying, and might have no memory for it


def _write(out: BinaryIO, given: argparse.Namespace, found: Iterable[str], encode: Callable[[Any], bytes]) -> None:
    from tokenizers import Tokenizer  # noqa: PLC0415 — after the bounds are set

    tokenizer = Tokenizer.from_file(given.tokenizer)
    tokenizer.no_truncation()
    tokenizer.no_padding()

    def count(words: Sequence[str]) -> list[int]:
        return [len(one.ids) for one in tokenizer.encode_batch_fast(list(words), add_special_tokens=False)]

    for chunk in chunks(
        found,
        count,
        max_tokens=given.max_tokens,
        overlap_tokens=given.overlap_tokens,
        part_tokens=given.part_tokens,
    ):
        out.write(encode([chunk.text, chunk.parts]) + b"\n")
        out.flush()


def _bound(memory_bytes: int, cpu_s: int) -> None:
    resource.setrlimit(resource.RLIMIT_AS, (memory_bytes, memory_bytes))
    resource.setrlimit(resource.RLIMIT_CPU, (cpu_s, cpu_s))
    resource.setrlimit(resource.RLIMIT_FSIZE, (0, 0))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))
    resource.setrlimit(resource.RLIMIT_NOFILE, (64, 64))


if __name__ == "__main__":
    sys.exit(main())
