"""Ansible module: a folder of dashboards and their data source in Grafana, by its HTTP API."""

from __future__ import annotations

DOCUMENTATION = r"""
module: citadel_grafana
short_description: Keep a folder of dashboards and their data source in Grafana
description:
  - What is as it should be is not written again. Dashboards of the folder that are not given are removed, and so is
    everything with C(state=absent). Nothing outside the folder is touched.
options:
  url:
    description: Grafana's address.
    type: str
    required: true
  token:
    description: Token of a service account that may write folders, dashboards and data sources.
    type: str
    required: true
  folder:
    description: The folder, C(uid) and C(title).
    type: dict
    required: true
  source:
    description: The data source as Grafana's API takes it, with its C(uid).
    type: dict
    required: true
  dashboards:
    description: The dashboards as Grafana's API takes them, each with its C(uid), without id and version.
    type: list
    elements: dict
    default: []
  state:
    description: Whether they are to be there.
    type: str
    choices: [present, absent]
    default: present
author: Citadel
"""

EXAMPLES = r"""
- name: Show them in Grafana
  citadel_grafana:
    url: http://192.168.10.37:3000
    token: "{{ vault_grafana_token }}"
    folder: {uid: citadel, title: Citadel LLM}
    source: {uid: citadel-prometheus, name: Citadel Prometheus, type: prometheus, access: proxy, url: http://localhost:9090}
    dashboards: "{{ made }}"
"""

RETURN = r"""
written:
  description: What was made, changed or removed, as kind and uid.
  type: list
  returned: always
"""

import json
import urllib.error
import urllib.parse
import urllib.request

from ansible.module_utils.basic import AnsibleModule


class Refused(Exception):
    """Grafana's answer where it is not the one that is needed."""

    def __init__(self, status, text):
        super().__init__(text)
        self.status = status


class Grafana:
    """The calls that are needed, and a list of what they wrote."""

    def __init__(self, url, token, dry):
        self._url, self._token, self._dry = url.rstrip("/"), token, dry
        self.written = []

    def call(self, method, path, body=None):
        """The answer's body. Raises Refused with Grafana's own words."""
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {self._token}", "Content-Type": "application/json"}
        request = urllib.request.Request(self._url + path, data, headers, method=method)  # noqa: S310
        try:
            with urllib.request.urlopen(request, timeout=20) as answer:  # noqa: S310 - the address is the inventory's
                return json.loads(answer.read() or b"null")
        except urllib.error.HTTPError as error:
            text = error.read().decode(errors="replace")
            raise Refused(error.code, f"{method} {path}: {error.code} {text[:500]}") from error
        except (urllib.error.URLError, OSError, ValueError) as error:
            raise Refused(0, f"{method} {self._url}{path}: {error}") from error

    def get(self, path):
        """The answer's body, None where there is nothing."""
        try:
            return self.call("GET", path)
        except Refused as refused:
            if refused.status == 404:
                return None
            raise

    def write(self, what, method, path, body=None):
        self.written.append(what)
        if not self._dry:
            self.call(method, path, body)

    def keep(self, kind, path, new_path, wanted):
        """Make or change a thing with a uid where it is not as wanted."""
        uid = wanted["uid"]
        found = self.get(f"{path}/{uid}")
        if found is None:
            self.write(f"{kind} {uid}", "POST", new_path, wanted)
        elif not holds(found, wanted):
            # Grafana takes a change of a folder only with its version, or told to overwrite.
            self.write(f"{kind} {uid}", "PUT", f"{path}/{uid}", {**wanted, "overwrite": True})

    def keep_dashboard(self, wanted, folder):
        found = self.get(f"/api/dashboards/uid/{wanted['uid']}")
        if found is not None and found["meta"].get("folderUid") == folder and holds(found["dashboard"], wanted):
            return
        body = {"dashboard": wanted, "folderUid": folder, "overwrite": True, "message": "citadel"}
        self.write(f"dashboard {wanted['uid']}", "POST", "/api/dashboards/db", body)

    def inside(self, folder):
        """The uids of the dashboards in a folder."""
        query = urllib.parse.urlencode({"type": "dash-db", "folderUIDs": folder, "limit": 5000})
        return [entry["uid"] for entry in self.call("GET", f"/api/search?{query}") if entry.get("folderUid") == folder]

    def drop(self, kind, path):
        if self.get(path) is not None:
            self.write(f"{kind} {path.rsplit('/', 1)[1]}", "DELETE", path)


def holds(found, wanted):
    """Whether all that is wanted is in what was found; Grafana adds fields of its own."""
    if isinstance(wanted, dict):
        return isinstance(found, dict) and all(
            key in found and holds(found[key], value) for key, value in wanted.items()
        )
    if isinstance(wanted, list):
        return isinstance(found, list) and len(found) == len(wanted) and all(map(holds, found, wanted))
    return found == wanted


def present(grafana, folder, source, dashboards):
    grafana.keep("folder", "/api/folders", "/api/folders", folder)
    grafana.keep("source", "/api/datasources/uid", "/api/datasources", source)
    for wanted in dashboards:
        grafana.keep_dashboard(wanted, folder["uid"])
    ours = {wanted["uid"] for wanted in dashboards}
    for uid in grafana.inside(folder["uid"]):
        if uid not in ours:
            grafana.drop("dashboard", f"/api/dashboards/uid/{uid}")


def absent(grafana, folder, source):
    for uid in grafana.inside(folder["uid"]):
        grafana.drop("dashboard", f"/api/dashboards/uid/{uid}")
    grafana.drop("source", f"/api/datasources/uid/{source['uid']}")
    grafana.drop("folder", f"/api/folders/{folder['uid']}")


def main():
    module = AnsibleModule(
        argument_spec={
            "url": {"type": "str", "required": True},
            "token": {"type": "str", "required": True, "no_log": True},
            "folder": {"type": "dict", "required": True},
            "source": {"type": "dict", "required": True},
            "dashboards": {"type": "list", "elements": "dict", "default": []},
            "state": {"type": "str", "choices": ["present", "absent"], "default": "present"},
        },
        supports_check_mode=True,
    )
    wanted = module.params
    grafana = Grafana(wanted["url"], wanted["token"], module.check_mode)
    try:
        if wanted["state"] == "present":
            present(grafana, wanted["folder"], wanted["source"], wanted["dashboards"])
        else:
            absent(grafana, wanted["folder"], wanted["source"])
    except Refused as refused:
        hint = {
            401: " Is `vault_grafana_token` a token of this Grafana? docs/monitoring.md shows how one is made.",
            403: " The token's service account may not do this: docs/monitoring.md names the rights that it needs.",
        }.get(refused.status, "")
        module.fail_json(msg=f"Grafana: {refused}.{hint}", written=grafana.written)
    module.exit_json(changed=bool(grafana.written), written=grafana.written)


if __name__ == "__main__":
    main()
