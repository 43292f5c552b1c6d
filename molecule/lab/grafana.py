#!/usr/bin/env python3
"""What stands in for Grafana in the lab: the HTTP calls that this project makes to it, recorded and answered.

    grafana.py STATE.json --settings SETTINGS.json --port 3000

It keeps folders, data sources and dashboards over restarts, lets in who brings the token, and refuses a dashboard that
Grafana's own schema (`grafana-foundation-sdk`) does not hold. It shows nothing: see docs/lab-grafana.md.
"""

from __future__ import annotations

import argparse
import json
import os
import re
import threading
from collections.abc import Callable
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models.dashboard import Dashboard

VERSION = "stand-in"
UID = re.compile(r"[A-Za-z0-9_-]{1,40}")
State = dict[str, Any]


class Refusal(Exception):
    """An answer other than 200, in Grafana's shape."""

    def __init__(self, status: int, message: str) -> None:
        super().__init__(message)
        self.status = status


def lost(given: Any, kept: Any, where: str = "dashboard") -> str:
    """The first thing of `given` that is not in `kept`, by its path; empty where all of it is."""
    if isinstance(given, dict) and isinstance(kept, dict):
        found = (
            lost(value, kept[key], f"{where}.{key}") if key in kept else f"{where}.{key}"
            for key, value in given.items()
        )
        return next((one for one in found if one), "")
    if isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        found = (lost(one, other, f"{where}[{n}]") for n, (one, other) in enumerate(zip(given, kept, strict=True)))
        return next((one for one in found if one), "")
    return "" if given == kept else where


def check_dashboard(dashboard: State) -> None:
    """Refuses what Grafana's schema has no place for: all of it must come back from a reading by the SDK."""
    register_default_plugins()
    try:
        read = Dashboard.from_json(json.loads(json.dumps(dashboard)))
        kept = json.loads(JSONEncoder(sort_keys=True).encode(read))
    except (KeyError, TypeError, ValueError, AttributeError) as error:
        raise Refusal(400, f"not a dashboard of Grafana's schema: {type(error).__name__}: {error}") from error
    if where := lost(dashboard, kept):
        raise Refusal(400, f"Grafana's schema does not know {where}, or not with that value")


class Store:
    """What Grafana would have in its database, in one file that is replaced in one step."""

    def __init__(self, path: Path, owners: State) -> None:
        self._path = path
        self.lock = threading.Lock()
        self.calls: list[dict[str, Any]] = []
        if path.exists():
            self.state: State = json.loads(path.read_text())
        else:
            self.state = {"folders": {}, "datasources": {}, "dashboards": {}, **owners}

    def save(self) -> None:
        partial = self._path.with_suffix(".partial")
        partial.write_text(json.dumps(self.state, indent=1))
        os.replace(partial, self._path)


class Grafana:
    """The calls, each from the path's UID, the query and the body to the answer's body."""

    def __init__(self, store: Store) -> None:
        self.store = store
        one = {"folders": r"/api/folders/([\w-]+)", "datasources": r"/api/datasources/uid/([\w-]+)"}
        dashboards = r"/api/dashboards/uid/([\w-]+)"
        routes: list[tuple[str, str, Callable[[str, dict[str, list[str]], Any], Any]]] = [
            ("GET", r"/api/folders", lambda _, q, b: list(store.state["folders"].values())),
            ("POST", r"/api/folders", lambda _, q, b: self.add("folders", b, "title")),
            ("PUT", one["folders"], lambda uid, q, b: self.change("folders", uid, b)),
            ("DELETE", one["folders"], lambda uid, q, b: self.drop_folder(uid)),
            ("GET", r"/api/datasources", lambda _, q, b: list(store.state["datasources"].values())),
            ("POST", r"/api/datasources", lambda _, q, b: self.add("datasources", b, "name")),
            ("PUT", one["datasources"], lambda uid, q, b: self.change("datasources", uid, b)),
            ("DELETE", one["datasources"], lambda uid, q, b: self.drop("datasources", uid)),
            ("POST", r"/api/dashboards/db", lambda _, q, b: self.write_dashboard(b)),
            ("DELETE", dashboards, lambda uid, q, b: self.drop("dashboards", uid)),
            ("GET", dashboards, lambda uid, q, b: self.dashboard(uid)),
            ("GET", r"/api/search", lambda _, q, b: self.search(q)),
        ]
        routes += [("GET", path, lambda uid, q, b, kind=kind: self.get(kind, uid)) for kind, path in one.items()]  # type: ignore[misc]
        self._routes = [(method, re.compile(path), call) for method, path, call in routes]

    def answer(self, method: str, path: str, query: dict[str, list[str]], body: Any) -> Any:
        for wanted, pattern, call in self._routes:
            if method == wanted and (match := pattern.fullmatch(path)):
                return call(match.group(1) if match.groups() else "", query, body)
        raise Refusal(501, f"the lab's Grafana does not know {method} {path}")

    def get(self, kind: str, uid: str) -> State:
        try:
            return self.store.state[kind][uid]  # type: ignore[no-any-return]
        except KeyError:
            raise Refusal(404, f"{kind}: {uid} not found") from None

    def add(self, kind: str, body: State, name: str) -> State:
        uid = body.get("uid", "")
        if not UID.fullmatch(uid) or not body.get(name):
            raise Refusal(400, f"{kind}: uid and {name} are needed")
        known = self.store.state[kind]
        if uid in known or any(entry[name] == body[name] for entry in known.values()):
            raise Refusal(409 if kind == "datasources" else 412, f"{kind}: {uid} or its {name} is taken")
        known[uid] = {**body, "id": len(known) + 1, "version": 1}
        return known[uid]  # type: ignore[no-any-return]

    def change(self, kind: str, uid: str, body: State) -> State:
        found = self.get(kind, uid)
        if found.get("readOnly"):
            raise Refusal(403, f"{kind}: {uid} is provisioned from a file")
        found.update({**body, "uid": uid, "id": found["id"], "version": found["version"] + 1})
        return found

    def drop(self, kind: str, uid: str) -> State:
        self.get(kind, uid)
        del self.store.state[kind][uid]
        return {"message": f"{uid} deleted"}

    def drop_folder(self, uid: str) -> State:
        done = self.drop("folders", uid)
        inside = [name for name, entry in self.store.state["dashboards"].items() if entry["meta"]["folderUid"] == uid]
        for name in inside:
            del self.store.state["dashboards"][name]
        return done

    def dashboard(self, uid: str) -> State:
        return self.get("dashboards", uid)

    def write_dashboard(self, body: State) -> State:
        dashboard = dict(body["dashboard"])
        uid, folder = dashboard.get("uid", ""), body.get("folderUid", "")
        if not UID.fullmatch(uid) or not dashboard.get("title"):
            raise Refusal(400, "dashboards: uid and title are needed")
        if folder and folder not in self.store.state["folders"]:
            raise Refusal(400, f"folder {folder} not found")
        dashboard.pop("id", None)
        check_dashboard(dashboard)
        known = self.store.state["dashboards"]
        for other, entry in known.items():
            same = (entry["meta"]["folderUid"], entry["dashboard"]["title"]) == (folder, dashboard["title"])
            if other != uid and same:
                raise Refusal(412, f"a dashboard named {dashboard['title']} is in the folder")
        before = known[uid]["dashboard"]["version"] if uid in known else 0
        if before and not body.get("overwrite") and dashboard.get("version") != before:
            raise Refusal(412, "the dashboard has been changed by someone else")
        dashboard["version"] = before + 1
        dashboard["id"] = known[uid]["dashboard"]["id"] if uid in known else len(known) + 1
        known[uid] = {"dashboard": dashboard, "meta": {"folderUid": folder, "version": before + 1}}
        return {"uid": uid, "id": dashboard["id"], "version": before + 1, "status": "success", "url": f"/d/{uid}"}

    def search(self, query: dict[str, list[str]]) -> list[State]:
        folders = [one for text in query.get("folderUIDs", []) for one in text.split(",")]
        tags = set(query.get("tag", []))
        return [
            {
                "uid": uid,
                "title": entry["dashboard"]["title"],
                "type": "dash-db",
                "folderUid": entry["meta"]["folderUid"],
            }
            for uid, entry in self.store.state["dashboards"].items()
            if (not folders or entry["meta"]["folderUid"] in folders)
            and tags <= set(entry["dashboard"].get("tags", []))
        ]


class Handler(BaseHTTPRequestHandler):
    grafana: Grafana
    token: str
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *arguments: Any) -> None:
        """Calls are kept in the store, not printed."""

    def serve(self) -> None:
        address = urlsplit(self.path)
        length = int(self.headers.get("Content-Length", 0))
        text, store = self.rfile.read(length), self.grafana.store
        status, said = 200, None
        with store.lock:
            try:
                if address.path == "/api/health":
                    said = {"database": "ok", "version": VERSION}
                elif self.headers.get("Authorization") != f"Bearer {self.token}":
                    raise Refusal(401, "Unauthorized")
                elif address.path == "/lab/calls":
                    said = store.calls
                else:
                    store.calls.append({"method": self.command, "path": address.path})
                    body = json.loads(text) if text else None
                    said = self.grafana.answer(self.command, address.path, parse_qs(address.query), body)
                    if self.command != "GET":
                        store.save()
            except Refusal as refusal:
                status, said = refusal.status, {"message": str(refusal)}
            except (KeyError, ValueError, TypeError) as error:
                status, said = 400, {"message": f"bad request: {error!r}"}
            answer = json.dumps(said).encode()
        self.send_response(status)
        self.send_header("Content-Type", "application/json")
        self.send_header("Content-Length", str(len(answer)))
        self.end_headers()
        self.wfile.write(answer)

    do_GET = do_POST = do_PUT = do_DELETE = serve


def main() -> None:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    options.add_argument("state", type=Path)
    options.add_argument("--settings", type=Path, required=True, help="JSON with `grafana_token` and `grafana_owners`")
    options.add_argument("--address", default="0.0.0.0")
    options.add_argument("--port", type=int, default=3000)
    chosen = options.parse_args()
    settings = json.loads(chosen.settings.read_text())
    grafana = Grafana(Store(chosen.state, settings["grafana_owners"]))
    bound = type("BoundHandler", (Handler,), {"grafana": grafana, "token": settings["grafana_token"]})
    ThreadingHTTPServer((chosen.address, chosen.port), bound).serve_forever()


if __name__ == "__main__":
    main()
