#!/usr/bin/env python3
"""A small model hub: what the official client asks of one to list and fetch a revision, from a directory.

    molecule/lab/hub.py DIRECTORY --port 8900

DIRECTORY/ORGANISATION/NAME/REVISION/ holds a revision's files. Large kinds of files are announced with the SHA-256
that they had when they were first listed, as a hub's storage does. Faults can be set on a running `Hub` by tests.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import re
import threading
from dataclasses import dataclass
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import unquote, urlsplit

LFS_SUFFIXES = {".safetensors", ".bin", ".model", ".gguf"}
API = re.compile(r"^/api/models/([^/]+/[^/]+)/revision/([^/]+)$")
TREE = re.compile(r"^/api/models/([^/]+/[^/]+)/tree/([^/]+)(/.*)?$")
RESOLVE = re.compile(r"^/([^/]+/[^/]+)/resolve/([^/]+)/(.+)$")
PIECE_BYTES = 1 << 16


@dataclass
class Cut:
    """The connection is cut after so many bytes of a file's body, so many times."""

    after_bytes: int
    times: int


@dataclass(frozen=True)
class Request:
    """What a client asked."""

    method: str
    path: str
    range: str


class Hub:
    """The server, on its own threads: `with Hub(directory) as hub: ... hub.url`."""

    def __init__(self, directory: Path, address: str = "127.0.0.1", port: int = 0) -> None:
        self.directory = directory
        self.requests: list[Request] = []
        self.cuts: dict[str, Cut] = {}
        self.tokens: dict[str, str] = {}  # repository: the token that it is open to
        self._sums: dict[Path, str] = {}
        self._lock = threading.Lock()
        self._server = ThreadingHTTPServer((address, port), type("BoundHandler", (Handler,), {"hub": self}))
        self.port = int(self._server.server_address[1])
        self.url = f"http://{address}:{self.port}"

    def __enter__(self) -> Hub:
        threading.Thread(target=self._server.serve_forever, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self._server.shutdown()
        self._server.server_close()

    def serve(self) -> None:
        self._server.serve_forever()

    def note(self, request: Request) -> None:
        with self._lock:
            self.requests.append(request)

    def sha256(self, path: Path) -> str:
        """The file's SHA-256 when it was first asked for: later damage does not change what was announced."""
        with self._lock:
            if path not in self._sums:
                with path.open("rb") as file:
                    self._sums[path] = hashlib.file_digest(file, "sha256").hexdigest()
            return self._sums[path]

    def take_cut(self, name: str) -> int | None:
        """Bytes after which this answer is cut, or None."""
        with self._lock:
            cut = self.cuts.get(name)
            if cut is None or cut.times <= 0:
                return None
            cut.times -= 1
            return cut.after_bytes

    def revision(self, repository: str, revision: str) -> Path | None:
        """The directory of a revision, which a commit of its own also names."""
        home = self.directory / repository
        if not home.is_dir():
            return None
        return next((p for p in home.iterdir() if p.is_dir() and revision in (p.name, commit(p))), None)


def commit(directory: Path) -> str:
    """The commit that a revision's name stands for: 40 hexadecimal digits."""
    name = directory.name
    return (
        name if re.fullmatch(r"[0-9a-f]{40}", name) else hashlib.sha1(name.encode(), usedforsecurity=False).hexdigest()
    )


class Handler(BaseHTTPRequestHandler):
    hub: Hub
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        """Requests are noted in `Hub.requests`, not printed."""

    def do_HEAD(self) -> None:
        self.answer(body=False)

    def do_GET(self) -> None:
        self.answer(body=True)

    def answer(self, body: bool) -> None:
        path = unquote(urlsplit(self.path).path)
        self.hub.note(Request(self.command, path, self.headers.get("Range", "")))
        for pattern, give in ((API, self.give_revision), (TREE, self.give_tree), (RESOLVE, self.give_file)):
            if match := pattern.match(path):
                repository, revision = match.group(1), match.group(2)
                token = self.hub.tokens.get(repository)
                if token and self.headers.get("Authorization") != f"Bearer {token}":
                    return self.refuse(403 if "Authorization" in self.headers else 401, "GatedRepo", body)
                if not (self.hub.directory / repository).is_dir():
                    return self.refuse(404, "RepoNotFound", body)
                directory = self.hub.revision(repository, revision)
                if directory is None:
                    return self.refuse(404, "RevisionNotFound", body)
                return give(directory, match, body)
        return self.refuse(404, "EntryNotFound", body)

    def refuse(self, status: int, code: str, body: bool) -> None:
        self.give_json({"error": code}, body, status, {"X-Error-Code": code, "X-Error-Message": code})

    def give_json(self, value: Any, body: bool, status: int = 200, headers: dict[str, str] | None = None) -> None:
        text = json.dumps(value).encode()
        self.send_response(status)
        for name, said in {"Content-Type": "application/json", **(headers or {})}.items():
            self.send_header(name, said)
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        if body:
            self.wfile.write(text)

    def facts(self, directory: Path, path: Path) -> dict[str, Any]:
        size = path.stat().st_size
        found: dict[str, Any] = {"rfilename": str(path.relative_to(directory)), "size": size, "blobId": etag(path)}
        if path.suffix in LFS_SUFFIXES:
            found["lfs"] = {"size": size, "sha256": self.hub.sha256(path), "pointerSize": 135}
        return found

    def give_revision(self, directory: Path, match: re.Match[str], body: bool) -> None:
        files = sorted(path for path in directory.rglob("*") if path.is_file())
        self.give_json(
            {
                "id": match.group(1), "modelId": match.group(1), "sha": commit(directory), "private": False,
                "gated": False, "disabled": False, "tags": [], "downloads": 0, "likes": 0,
                "siblings": [self.facts(directory, path) for path in files],
            },
            body,
        )  # fmt: skip

    def give_tree(self, directory: Path, match: re.Match[str], body: bool) -> None:
        entries = []
        for path in sorted(path for path in directory.rglob("*") if path.is_file()):
            facts = self.facts(directory, path)
            entry = {"type": "file", "path": facts["rfilename"], "size": facts["size"], "oid": facts["blobId"]}
            if "lfs" in facts:
                lfs = facts["lfs"]
                entry["lfs"] = {"oid": lfs["sha256"], "size": lfs["size"], "pointerSize": lfs["pointerSize"]}
            entries.append(entry)
        self.give_json(entries, body)

    def give_file(self, directory: Path, match: re.Match[str], body: bool) -> None:
        path = (directory / match.group(3)).resolve()
        if not path.is_relative_to(directory.resolve()) or not path.is_file():
            return self.refuse(404, "EntryNotFound", body)
        size, start = path.stat().st_size, 0
        if wanted := re.match(r"bytes=(\d+)-$", self.headers.get("Range", "")):
            start = int(wanted.group(1))
        lfs = path.suffix in LFS_SUFFIXES
        self.send_response(206 if wanted else 200)
        self.send_header("X-Repo-Commit", commit(directory))
        self.send_header("ETag", f'"{self.hub.sha256(path) if lfs else etag(path)}"')
        if lfs:
            self.send_header("X-Linked-Etag", f'"{self.hub.sha256(path)}"')
            self.send_header("X-Linked-Size", str(size))
        if wanted:
            self.send_header("Content-Range", f"bytes {start}-{size - 1}/{size}")
        self.send_header("Accept-Ranges", "bytes")
        self.send_header("Content-Length", str(size - start))
        self.end_headers()
        if body:
            self.send_body(path, start, self.hub.take_cut(match.group(3)))
        return None

    def send_body(self, path: Path, start: int, cut: int | None) -> None:
        left = cut
        with path.open("rb") as file:
            file.seek(start)
            while data := file.read(PIECE_BYTES if left is None else min(PIECE_BYTES, left)):
                self.wfile.write(data)
                left = None if left is None else left - len(data)
        if cut is not None:
            self.close_connection = True


def etag(path: Path) -> str:
    """What tells a small file's content: here, its name, size and time."""
    status = path.stat()
    text = f"{path.name} {status.st_size} {status.st_mtime_ns}"
    return hashlib.sha1(text.encode(), usedforsecurity=False).hexdigest()


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("directory", type=Path)
    options.add_argument("--address", default="0.0.0.0")
    options.add_argument("--port", type=int, default=8900)
    chosen = options.parse_args()
    Hub(chosen.directory, chosen.address, chosen.port).serve()


if __name__ == "__main__":
    main()
