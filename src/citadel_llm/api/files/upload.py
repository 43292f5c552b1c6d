"""A body of multipart/form-data: one file, straight to the disk, and small fields."""

from __future__ import annotations

from collections.abc import AsyncIterator
from dataclasses import dataclass, field

from python_multipart import MultipartParser
from python_multipart.exceptions import FormParserError
from python_multipart.multipart import parse_options_header

from citadel_llm.api.errors import ApiError
from citadel_llm.api.files.content import Incoming, TooLarge

__all__ = ["Upload", "receive"]

_FIELDS, _FIELD_BYTES = 16, 4096
_HEADERS, _HEADER_BYTES = 16, 4096


@dataclass(slots=True)
class Upload:
    """What came beside the content, which is in an `Incoming`."""

    filename: str | None = None
    fields: dict[str, str] = field(default_factory=dict)


class _Part:
    """One part of the body, as far as it has come."""

    def __init__(self) -> None:
        self.headers: dict[bytes, bytes] = {}
        self.name, self.value = bytearray(), bytearray()
        self.field = ""
        self.filename: str | None = None
        self.data = bytearray()


class _Form:
    """The parser's events; what is for the disk waits in `pending` until the piece was parsed."""

    def __init__(self, boundary: bytes, upload: Upload, limit: int) -> None:
        self.upload = upload
        self.pending: list[bytes] = []
        self.ended = False
        self._part = _Part()
        self.parser = MultipartParser(
            boundary,
            {
                "on_part_begin": self._begin,
                "on_header_field": lambda data, start, end: self._header(self._part.name, data[start:end]),
                "on_header_value": lambda data, start, end: self._header(self._part.value, data[start:end]),
                "on_header_end": self._header_end,
                "on_headers_finished": self._headers_finished,
                "on_part_data": self._data,
                "on_part_end": self._end,
                "on_end": self._finish,
            },
            max_size=limit,
        )

    def _begin(self) -> None:
        self._part = _Part()

    def _header(self, where: bytearray, data: bytes) -> None:
        where += data
        if len(where) > _HEADER_BYTES or len(self._part.headers) > _HEADERS:
            raise _invalid("a part's headers are too large")

    def _header_end(self) -> None:
        part = self._part
        part.headers[bytes(part.name).lower()] = bytes(part.value)
        part.name.clear()
        part.value.clear()

    def _headers_finished(self) -> None:
        part = self._part
        _, options = parse_options_header(part.headers.get(b"content-disposition", b""))
        part.field = options.get(b"name", b"").decode("utf-8", "replace")
        if not part.field:
            raise _invalid("a part without a name")
        if part.field == "file":
            if self.upload.filename is not None:
                raise _invalid("more than one file")
            part.filename = options.get(b"filename", b"").decode("utf-8", "replace")
            self.upload.filename = part.filename
        elif len(self.upload.fields) >= _FIELDS:
            raise _invalid("too many fields")

    def _data(self, data: bytes, start: int, end: int) -> None:
        part = self._part
        if part.filename is not None:
            self.pending.append(data[start:end])
            return
        part.data += data[start:end]
        if len(part.data) > _FIELD_BYTES:
            raise _invalid(f"the field `{part.field[:64]}` is too large")

    def _end(self) -> None:
        part = self._part
        if part.filename is None:
            self.upload.fields[part.field] = part.data.decode("utf-8", "replace")

    def _finish(self) -> None:
        self.ended = True


def _invalid(what: str) -> ApiError:
    return ApiError(400, "invalid_request", f"The body is not a valid form: {what}.")


def _too_large(limit: int) -> ApiError:
    return ApiError(413, "file_too_large", f"A file may have {limit} bytes here.", param="file")


async def receive(
    content_type: str, length: int | None, body: AsyncIterator[bytes], incoming: Incoming, limit: int
) -> Upload:
    """Read the whole body; the field `file` goes into `incoming`. Raises ApiError 400, 413 and 415."""
    kind, options = parse_options_header(content_type)
    boundary = options.get(b"boundary")
    if kind != b"multipart/form-data" or not boundary or len(boundary) > 256:
        raise ApiError(415, "unsupported_media_type", "Expected a body of multipart/form-data.")
    most = limit + _FIELDS * (_FIELD_BYTES + _HEADERS * _HEADER_BYTES)
    if length is not None and length > most:
        raise _too_large(limit)
    upload = Upload()
    form = _Form(boundary, upload, most + 1)
    try:
        async for piece in body:
            if piece and form.parser.write(piece) < len(piece) and not form.ended:
                raise _too_large(limit)
            for data in form.pending:
                await incoming.write(data)
            form.pending.clear()
    except FormParserError as failure:
        raise _invalid(str(failure)[:200]) from None
    except TooLarge:
        raise _too_large(limit) from None
    if not form.ended:
        raise _invalid("it is cut off")
    if upload.filename is None:
        raise ApiError(400, "invalid_request", "The body has no `file`.", param="file")
    return upload
