"""Ansible module: Qdrant's collections, payload indexes and aliases, brought to what is wanted, with nothing lost.

`ansible.builtin.uri` would make each anew or ask in a loop, and could say nothing in a dry run.
"""

from __future__ import annotations

import http.client
import json
import re
import urllib.error
import urllib.request
from typing import Any
from urllib.parse import quote

from ansible.module_utils.basic import AnsibleModule

DOCUMENTATION = r"""
module: citadel_vector
short_description: Keep Qdrant's collections as they are wanted
description:
  - Makes collections, indexes and aliases that are missing, and changes settings that differ. What can't be changed in
    place (a vector's size or distance) is made anew only with C(allow_destructive), and is a failure else; so is the
    deleting of collections that begin with C(prefix) and that nothing wants.
  - An alias that leads to another collection is moved where that one, or nothing in it, would be missed; else it is
    listed in C(pending), since the new collection has to be filled first.
  - Uses the REST API and the standard library alone. In check mode it only reads.
options:
  url:
    description: Where Qdrant is, C(http://HOST:PORT).
    type: str
    required: true
  api_key:
    description: Its API key.
    type: str
    required: true
  collections:
    description: Entries with C(name), C(alias), C(settings) (as Qdrant's call takes them) and C(indexes) (by field).
    type: list
    elements: dict
    required: true
  prefix:
    description: Collections and aliases whose names begin so, and an underscore, are this project's own.
    type: str
    required: true
  allow_destructive:
    description: Whether collections may be made anew or deleted, with what is in them.
    type: bool
    default: false
  timeout_s:
    description: For one answer, in seconds.
    type: int
    default: 30
author: Citadel
"""

EXAMPLES = r"""
- name: Bring the collections to what the models need
  citadel_vector:
    url: http://192.168.10.30:8000
    api_key: "{{ key }}"
    prefix: citadel
    collections: "{{ citadel_plan.models | citadel_collections }}"
"""

RETURN = r"""
actions:
  description: What was done, or would be.
  type: list
  elements: str
  returned: always
pending:
  description: Aliases that wait for their new collection to be filled.
  type: list
  elements: str
  returned: always
stale:
  description: Collections of this prefix that nothing wants.
  type: list
  elements: str
  returned: always
"""


NEEDED = (1, 16)  # the gateway's client relies on it to keep tenants apart


class Refused(Exception):
    """Qdrant does not answer, or not as it should."""


class Qdrant:
    """Its REST API, as far as it is needed here."""

    def __init__(self, url: str, key: str, timeout_s: int) -> None:
        self._url, self._key, self._timeout_s = url.rstrip("/"), key, timeout_s

    def call(self, method: str, path: str, body: Any = None) -> Any:
        """The result of a call; None for what is not there. Raises Refused."""
        found = self.answer(method, path, body)
        try:
            return None if found is None else found["result"]
        except (KeyError, TypeError) as error:
            raise Refused(f"{self._url} does not answer as Qdrant does: {method} {path} gave no result") from error

    def version(self) -> tuple[int, ...]:
        """Qdrant's version; empty where a gateway before it does not tell."""
        try:
            found = self.answer("GET", "/")
        except Refused:  # a gateway's own page; what is truly wrong, the next call says
            return ()
        text = found.get("version", "") if isinstance(found, dict) and "qdrant" in str(found.get("title")) else ""
        return tuple(int(part) for part in re.findall(r"\d+", text)[:2])

    def answer(self, method: str, path: str, body: Any = None) -> Any:
        """The whole answer; None for what is not there. Raises Refused."""
        request = urllib.request.Request(  # noqa: S310 — http or https, as main() saw
            f"{self._url}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"api-key": self._key, "content-type": "application/json"},
        )
        try:
            with urllib.request.urlopen(request, timeout=self._timeout_s) as answer:  # noqa: S310
                return json.load(answer)
        except urllib.error.HTTPError as error:
            if error.code == 404 and method == "GET":
                return None
            text = error.read(2000).decode(errors="replace")
            if error.code in {401, 403}:
                raise Refused(f"{self._url} refuses the API key: vault_qdrant_api_key is not the one it has") from error
            raise Refused(f"{method} {path}: {error.code} {text}") from error
        except (OSError, ValueError, http.client.HTTPException) as error:
            raise Refused(f"{self._url} does not answer as Qdrant does: {error}") from error


def at(name: str) -> str:
    """The path of a collection."""
    return f"/collections/{quote(name, safe='')}"


def differing(wanted: Any, found: Any) -> bool:
    """Whether something that is wanted is not so; what nothing is said of is left as it is."""
    if isinstance(wanted, dict):
        if not isinstance(found, dict):
            return True
        return any(differing(value, found.get(key)) for key, value in wanted.items())
    if isinstance(wanted, float) or isinstance(found, float):
        return not isinstance(found, (int, float)) or abs(wanted - found) > 1e-6
    return bool(wanted != found) and not (wanted in (None, False) and found in (None, False))


def seen(info: dict[str, Any]) -> dict[str, Any]:
    """A collection's present settings, written as the call that makes one takes them."""
    config = info["config"]
    params = config["params"]
    vectors = params.get("vectors") or {}
    return {
        "vectors": {"": vectors} if "size" in vectors else vectors,  # the nameless one is written bare
        "sparse_vectors": params.get("sparse_vectors") or {},
        "on_disk_payload": params.get("on_disk_payload"),
        "hnsw_config": config.get("hnsw_config") or {},
        "optimizers_config": config.get("optimizer_config") or {},
        "quantization_config": config.get("quantization_config"),
        "metadata": config.get("metadata") or {},
    }


def fixed(settings: dict[str, Any]) -> dict[str, Any]:
    """What can't be changed in place: sizes, distances, and which vectors there are."""
    vectors = {
        name: {key: one.get(key) for key in ("size", "distance", "datatype")}
        for name, one in settings["vectors"].items()
    }
    return {"vectors": vectors, "sparse_vectors": {name: {} for name in settings.get("sparse_vectors", {})}}


def change(wanted: dict[str, Any], present: dict[str, Any]) -> dict[str, Any]:
    """The body of the call that brings what can be changed to what is wanted; empty where nothing differs."""
    body: dict[str, Any] = {}
    for key in ("hnsw_config", "optimizers_config", "metadata"):
        if key in wanted and differing(wanted[key], present[key]):
            body[key] = wanted[key]
    if "on_disk_payload" in wanted and differing(wanted["on_disk_payload"], present["on_disk_payload"]):
        body["params"] = {"on_disk_payload": wanted["on_disk_payload"]}
    quantization = wanted.get("quantization_config")
    if quantization is None and present["quantization_config"]:
        body["quantization_config"] = "Disabled"
    elif quantization is not None and differing(quantization, present["quantization_config"]):
        body["quantization_config"] = quantization
    own = {name: {"on_disk": one["on_disk"]} for name, one in wanted["vectors"].items() if "on_disk" in one}
    if differing(own, present["vectors"]):
        body["vectors"] = own
    if differing(wanted.get("sparse_vectors", {}), present["sparse_vectors"]):
        body["sparse_vectors"] = wanted["sparse_vectors"]
    return body


def restricted(found: Any, wanted: Any) -> Any:
    """Of what is there, that of which something is wanted, for a diff that shows nothing else."""
    if isinstance(wanted, dict) and isinstance(found, dict):
        return {key: restricted(found.get(key), value) for key, value in wanted.items()}
    return found


class Run:
    """One run: looks, notes what differs, and does it where it is no dry run."""

    def __init__(self, qdrant: Qdrant, params: dict[str, Any], *, dry: bool) -> None:
        self.qdrant, self.dry = qdrant, dry
        self.wanted: list[dict[str, Any]] = params["collections"]
        self.prefix, self.destructive = f"{params['prefix']}_", params["allow_destructive"]
        self.actions: list[str] = []
        self.pending: list[str] = []
        self.stale: list[str] = []
        self.refused: list[str] = []
        self.led_to: set[str] = set()  # by aliases that stay as they are for now
        self.gone: set[str] = set()  # deleted, with what leads to them
        self.before: dict[str, Any] = {}
        self.after: dict[str, Any] = {}
        self.todo: list[tuple[str, str, Any]] = []

    def look(self) -> None:
        """Compares everything, and changes nothing."""
        version = self.qdrant.version()
        if version and version < NEEDED:
            needed = ".".join(map(str, NEEDED))
            raise Refused(
                f"Qdrant {'.'.join(map(str, version))} is too old: {needed} is needed, for upserts with a filter"
            )
        names = {one["name"] for one in self.qdrant.call("GET", "/collections")["collections"]}
        listed = self.qdrant.call("GET", "/aliases")["aliases"]
        aliases = {one["alias_name"]: one["collection_name"] for one in listed}
        for entry in self.wanted:
            self.collection(entry, entry["name"] in names)
        self.aliases(aliases, names)
        self.leftovers(names)

    def do(self, what: str, method: str, path: str, body: Any = None) -> None:
        self.actions.append(what)
        self.todo.append((method, path, body))

    def collection(self, entry: dict[str, Any], there: bool) -> None:
        name, settings, indexes = entry["name"], entry["settings"], entry["indexes"]
        info = self.qdrant.call("GET", at(name)) if there else None
        present = seen(info) if info else None
        schema = (info or {}).get("payload_schema") or {}
        found = {field: {"type": one["data_type"], **(one.get("params") or {})} for field, one in schema.items()}
        self.before[name] = (
            {"settings": restricted(present, settings), "indexes": restricted(found, indexes)} if info else None
        )
        self.after[name] = {"settings": settings, "indexes": indexes}
        if present is None:
            self.make(name, settings, indexes)
        elif differing(fixed(settings), fixed(present)):
            if not self.destructive:
                self.refused.append(f"{name}: its vectors are {fixed(present)}, wanted are {fixed(settings)}")
                return
            self.do(f"delete {name}, with {info['points_count']} points", "DELETE", at(name))
            self.gone.add(name)
            self.make(name, settings, indexes)
        else:
            body = change(settings, present)
            if body:
                self.do(f"change {', '.join(sorted(body))} of {name}", "PATCH", at(name), body)
            for field, one in indexes.items():
                if field not in found:
                    self.index(name, field, one)
                elif differing(one, found[field]):
                    path = f"{at(name)}/index/{quote(field, safe='')}?wait=true"
                    self.do(f"drop the index on {field} of {name}", "DELETE", path)
                    self.index(name, field, one)

    def make(self, name: str, settings: dict[str, Any], indexes: dict[str, Any]) -> None:
        self.do(f"make {name}", "PUT", at(name), settings)
        for field, one in indexes.items():
            self.index(name, field, one)

    def index(self, name: str, field: str, schema: dict[str, Any]) -> None:
        body = {"field_name": field, "field_schema": schema}
        self.do(f"index {field} of {name}", "PUT", f"{at(name)}/index?wait=true", body)

    def aliases(self, aliases: dict[str, str], names: set[str]) -> None:
        actions: list[dict[str, Any]] = []
        refused = {text.split(":")[0] for text in self.refused}
        for entry in self.wanted:
            alias, name = entry["alias"], entry["name"]
            present = None if aliases.get(alias) in self.gone else aliases.get(alias)
            self.before[f"alias {alias}"], self.after[f"alias {alias}"] = present, name
            if present == name or name in refused:
                continue
            if present in names and (held := self.points(present)):
                # Whoever fills the new one moves the alias when it is complete.
                self.pending.append(f"{alias}: leads to the {held} points of {present}, until {name} is filled")
                self.after[f"alias {alias}"] = present
                self.led_to.add(present)
                continue
            if present is not None:
                actions.append({"delete_alias": {"alias_name": alias}})
            actions.append({"create_alias": {"alias_name": alias, "collection_name": name}})
        if actions:
            made = ", ".join(one["create_alias"]["alias_name"] for one in actions if "create_alias" in one)
            self.do(f"lead {made} to their collections", "POST", "/collections/aliases", {"actions": actions})

    def points(self, name: str) -> int:
        info = self.qdrant.call("GET", at(name))
        return int(info["points_count"] or 0) if info else 0

    def leftovers(self, names: set[str]) -> None:
        kept = {entry["name"] for entry in self.wanted} | self.led_to
        self.stale = sorted(name for name in names if name.startswith(self.prefix) and name not in kept)
        for name in self.stale if self.destructive else []:
            self.before[name], self.after[name] = {"points": self.points(name)}, None
            self.do(f"delete {name}, which nothing wants", "DELETE", at(name))

    def act(self) -> None:
        """Does what was noted, in that order."""
        for method, path, body in [] if self.dry else self.todo:
            self.qdrant.call(method, path, body)


def text(state: dict[str, Any]) -> str:
    """A state as a diff shows it, line by line."""
    return json.dumps(state, indent=2, sort_keys=True) + "\n"


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "api_key": {"type": "str", "required": True, "no_log": True},
            "collections": {"type": "list", "elements": "dict", "required": True},
            "prefix": {"type": "str", "required": True},
            "allow_destructive": {"type": "bool", "default": False},
            "timeout_s": {"type": "int", "default": 30},
        },
        supports_check_mode=True,
    )
    if not module.params["url"].startswith(("http://", "https://")):
        module.fail_json(msg=f"url: expected http://HOST:PORT or https://HOST:PORT, got {module.params['url']}")
    qdrant = Qdrant(module.params["url"], module.params["api_key"], module.params["timeout_s"])
    run = Run(qdrant, module.params, dry=module.check_mode)
    said: dict[str, Any] = {}
    try:
        run.look()
        said = {"actions": run.actions, "pending": run.pending, "stale": run.stale}
        if run.refused:
            module.fail_json(
                msg="Nothing was changed, since this would lose what is in there; vector_allow_destructive permits it. "
                + "; ".join(run.refused),
                **said,
            )
        run.act()
    except Refused as error:
        module.fail_json(msg=str(error), **said)
    module.exit_json(changed=bool(run.actions), diff={"before": text(run.before), "after": text(run.after)}, **said)


if __name__ == "__main__":
    main()
