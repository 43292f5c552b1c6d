"""The text of a file, by what its bytes and its name say that it is."""

from __future__ import annotations

import io
import re
from collections.abc import Iterator
from pathlib import PurePath

__all__ = ["SUFFIXES", "DocumentError", "texts"]

_HTML = frozenset({".htm", ".html", ".xhtml"})
_MARKDOWN = frozenset({".markdown", ".md"})
_TEXT = frozenset(
    {"", ".txt", ".text", ".rst", ".csv", ".tsv", ".log", ".json", ".jsonl", ".xml", ".yaml", ".yml", ".toml", ".ini"}
    | {".c", ".cc", ".cpp", ".cs", ".css", ".go", ".h", ".java", ".js", ".php", ".py", ".rb", ".rs", ".sh", ".sql"}
    | {".tex", ".ts"}
)
SUFFIXES = _HTML | _MARKDOWN | _TEXT | {".pdf"}
_BOMS = ((b"\xef\xbb\xbf", "utf-8-sig"), (b"\xff\xfe\x00\x00", ""), (b"\xff\xfe", "utf-16"), (b"\xfe\xff", "utf-16"))
_BEGINS_HTML = re.compile(rb"\s*(<!doctype\s+html|<html[\s>])", re.IGNORECASE)
_PAGES = 20_000
_UNSEEN = "script, style, noscript, template, head > :not(title), svg, iframe"
# What is often uploaded and is no text: (first bytes, what it is).
_KNOWN = (
    (b"PK\x03\x04", "an archive, or an office document"),
    (b"\xd0\xcf\x11\xe0", "an old office document"),
    (b"\x1f\x8b", "compressed by gzip"),
    (b"\x89PNG", "a picture"),
    (b"\xff\xd8\xff", "a picture"),
    (b"GIF8", "a picture"),
    (b"\x7fELF", "a program"),
)


class DocumentError(Exception):
    """The file can't be taken; `code` is OpenAI's: `unsupported_file` or `invalid_file`."""

    def __init__(self, code: str, message: str) -> None:
        super().__init__(message)
        self.code = code


def texts(data: bytes, filename: str) -> Iterator[str]:
    """The file's text, in one piece or a page at a time. Raises DocumentError."""
    suffix = PurePath(filename.lower()).suffix
    is_pdf = b"%PDF-" in data[:1024]
    if suffix == ".pdf" and not is_pdf:
        raise DocumentError("invalid_file", "The file's name says PDF, and its content is not.")
    if is_pdf and suffix != ".pdf":
        raise DocumentError("invalid_file", f"The file's content is PDF, and its name says `{suffix or 'text'}`.")
    if is_pdf:
        yield from _pdf(data)
        return
    for begin, what in _KNOWN:
        if data.startswith(begin):
            raise DocumentError("unsupported_file", f"The file is {what}, which is not read here.")
    if suffix not in SUFFIXES:
        raise DocumentError("unsupported_file", f"Files named `{suffix[:16]}` are not read here.")
    text = _decoded(data)
    yield _html(text) if suffix in _HTML or _BEGINS_HTML.match(data[:1024]) else text


def _decoded(data: bytes) -> str:
    encoding = next((name for bom, name in _BOMS if data.startswith(bom)), "utf-8")
    try:
        text = data.decode(encoding) if encoding else None
    except UnicodeDecodeError as failure:
        raise DocumentError("invalid_file", f"The file is not text in UTF-8 or UTF-16: {failure.reason}.") from None
    if text is None or "\0" in text:
        raise DocumentError("unsupported_file", "The file is not text.")
    return text


def _html(text: str) -> str:
    from selectolax.lexbor import LexborHTMLParser  # noqa: PLC0415 — only where one is read

    tree = LexborHTMLParser(text)
    for node in tree.css(_UNSEEN):
        node.decompose()
    root = tree.root
    return "" if root is None else root.text(separator="\n", strip=True)


def _pdf(data: bytes) -> Iterator[str]:
    from pypdf import PdfReader  # noqa: PLC0415
    from pypdf.errors import PyPdfError  # noqa: PLC0415

    try:
        reader = PdfReader(io.BytesIO(data))
        if reader.is_encrypted and not reader.decrypt(""):
            raise DocumentError("invalid_file", "The PDF needs a password.")
        if len(reader.pages) > _PAGES:
            raise DocumentError("invalid_file", f"The PDF has more than {_PAGES} pages.")
        for page in reader.pages:
            yield page.extract_text() + "\n"
    except (MemoryError, DocumentError):
        raise
    except (
        PyPdfError,
        ValueError,
        LookupError,
        TypeError,
        AttributeError,
        OSError,
        RecursionError,
        ArithmeticError,
    ) as failure:
        raise DocumentError(
            "invalid_file", f"The PDF is broken: {type(failure).__name__}: {str(failure)[:200]}"
        ) from None
