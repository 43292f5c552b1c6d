"""The console: one page of HTML, CSS and ES modules that shows what the gateway's API says, with the viewer's rights.

    pages = read_pages()
    pages["app.js"].body, pages["app.js"].headers

Nothing in here needs more than Python's standard library: the metrics server runs it as it is.
"""

from __future__ import annotations

from dataclasses import dataclass
from hashlib import sha256
from pathlib import Path

__all__ = ["HEADERS", "Page", "read_pages"]

_FOLDER = Path(__file__).parent / "static"
_KINDS = {".html": "text/html; charset=utf-8", ".css": "text/css", ".js": "text/javascript", ".svg": "image/svg+xml"}

# The page loads only its own files and talks only to where it came from; nothing may frame it; no text becomes code.
HEADERS = {
    "content-security-policy": "; ".join(
        [
            "default-src 'none'",
            *(f"{kind}-src 'self'" for kind in ("script", "style", "img", "connect")),
            *(f"{what} 'none'" for what in ("base-uri", "form-action", "frame-ancestors", "trusted-types")),
            "require-trusted-types-for 'script'",
        ]
    ),
    "cross-origin-opener-policy": "same-origin",
    "cross-origin-resource-policy": "same-origin",
    "permissions-policy": "camera=(), geolocation=(), microphone=()",
    "referrer-policy": "no-referrer",
    "x-content-type-options": "nosniff",
    "x-frame-options": "DENY",
    "cache-control": "no-cache",  # a new release shows at once; what did not change costs a 304
}


@dataclass(frozen=True)
class Page:
    """One file."""

    body: bytes
    headers: dict[str, str]


def read_pages() -> dict[str, Page]:
    """Every file by its name, read once: some tens of kilobytes. Raises OSError."""
    pages = {}
    for path in sorted(_FOLDER.iterdir()):
        if path.suffix in _KINDS:
            body = path.read_bytes()
            etag = f'"{sha256(body).hexdigest()[:24]}"'
            pages[path.name] = Page(body, {**HEADERS, "content-type": _KINDS[path.suffix], "etag": etag})
    return pages
