#!/usr/bin/env python3
"""Where the lab's Alertmanager sends its notifications: each is kept with the time of its arrival.

    sink.py FILE.jsonl --port 9099

POST /NAME keeps a notification for that receiver; GET /notifications[?receiver=NAME&since=SECONDS] gives them back, the
oldest first: `{"at": seconds of the epoch, "receiver": NAME, "body": what Alertmanager sent}`.
"""

from __future__ import annotations

import argparse
import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit


class Handler(BaseHTTPRequestHandler):
    file: Path
    lock = threading.Lock()
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        """What comes is kept, not printed."""

    def do_POST(self) -> None:
        at = time.time()
        text = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        kept = {"at": at, "receiver": urlsplit(self.path).path.strip("/"), "body": json.loads(text)}
        with self.lock, self.file.open("a") as file:
            file.write(json.dumps(kept) + "\n")
        self.answer([])

    def do_GET(self) -> None:
        query = parse_qs(urlsplit(self.path).query)
        since, receiver = float(query.get("since", ["0"])[0]), query.get("receiver", [""])[0]
        with self.lock:
            lines = self.file.read_text().splitlines() if self.file.exists() else []
        kept = [json.loads(line) for line in lines]
        self.answer([one for one in kept if one["at"] >= since and receiver in ("", one["receiver"])])

    def answer(self, said: Any) -> None:
        text = json.dumps(said).encode()
        self.send_response(200)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(text)))
        self.end_headers()
        self.wfile.write(text)


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("file", type=Path)
    options.add_argument("--address", default="0.0.0.0")
    options.add_argument("--port", type=int, default=9099)
    chosen = options.parse_args()
    bound = type("BoundHandler", (Handler,), {"file": chosen.file})
    ThreadingHTTPServer((chosen.address, chosen.port), bound).serve_forever()


if __name__ == "__main__":
    main()
