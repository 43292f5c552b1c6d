"""`python -m citadel_monitoring [DIRECTORY]`: writes the dashboards, the rules, their cases and the runbook of the
production inventory into the repository, to be read and compared there. The role `monitoring` makes its own, of its
site.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import yaml

from citadel_llm.utils.plan import make_plan
from citadel_monitoring.dashboards import dashboards
from citadel_monitoring.rule import cases_texts, rules_text
from citadel_monitoring.rules import all_groups
from citadel_monitoring.runbooks import runbooks_text
from citadel_monitoring.site import Site

__all__ = ["REPO", "files", "production"]

REPO = Path(__file__).resolve().parents[2]
HEADER = "Written by `make monitoring` from src/citadel_monitoring/rules/ and citadel_models: change it there."


def production(repo: Path = REPO, more_models: dict[str, Any] | None = None) -> Site:
    """The site of inventory/production.yml, as far as monitoring needs it."""

    def read(path: str) -> Any:
        return yaml.safe_load((repo / path).read_text())

    groups = read("inventory/production.yml")["all"]["children"]

    def address(group: str) -> str:
        return str(next(iter(groups[group]["hosts"].values()))["ansible_host"])

    models = {**read("group_vars/llm_servers/models.yml")["citadel_models"], **(more_models or {})}
    shared = read("group_vars/all/citadel.yml")
    peers = {
        "database": f"{address('sql_servers')}:{read('group_vars/sql_servers/database.yml')['citadel_database_port']}",
        "vector": f"{address('vector_servers')}:{read('group_vars/vector_servers/vector.yml')['citadel_vector_port']}",
    }
    servers = [
        {
            "name": name,
            "address": host["ansible_host"],
            "models": make_plan(models)["models"],
            "gateway_port": shared["citadel_gateway_port"],
            "https_port": shared["citadel_gateway_https_port"],
            "peers": peers,
        }
        for name, host in groups["llm_servers"]["hosts"].items()
    ]
    grafana = read("group_vars/metrics_servers/metrics.yml")["citadel_grafana_port"]
    return Site.read(servers, grafana_url=f"http://{address('metrics_servers')}:{grafana}")


def files(site: Site) -> dict[str, str]:
    """The texts of all files, by their paths in the repository."""
    groups = all_groups(site)
    found = {f"files/dashboards/{name}.json": text for name, text in dashboards(site).items()}
    found["files/rules/citadel.yml"] = rules_text(groups, site, HEADER)
    found |= {f"files/rules/{name}": f"# {HEADER}\n{text}" for name, text in cases_texts(groups, "citadel.yml").items()}
    found["docs/runbooks.md"] = runbooks_text(groups)
    return found


def main(repo: Path) -> None:
    for path, text in files(production()).items():
        target = repo / path
        target.parent.mkdir(parents=True, exist_ok=True)
        target.write_text(text)


if __name__ == "__main__":
    main(Path(sys.argv[1]) if len(sys.argv) > 1 else REPO)
