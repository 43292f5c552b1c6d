"""What Prometheus asks of a server: one scrape job for all of them, and a file of targets a server."""

from __future__ import annotations

import json
from typing import Any

import yaml

from citadel_monitoring.site import Server

__all__ = ["SCRAPE_INTERVAL_S", "scrape_config", "targets", "targets_text"]

# With the rules' own interval, `for` and Alertmanager's waits this keeps an alert under two minutes.
SCRAPE_INTERVAL_S = 10
JOB = "citadel"


def targets(server: Server) -> list[dict[str, Any]]:
    """The server's targets as Prometheus' file discovery takes them. Each brings its own `job`, and `server`."""

    def one(port: int, job: str, **labels: str) -> dict[str, Any]:
        return {
            "targets": [f"{server.address}:{port}"],
            "labels": {"job": f"{JOB}-{job}", "server": server.name, **labels},
        }

    def probe(name: str, module: str, target: str) -> dict[str, Any]:
        asked = {"__metrics_path__": "/probe", "__param_module": module, "__param_target": target}
        return one(server.probe_port, "probe", probe=name, instance=target, **asked)

    found = [
        one(server.gateway_port, "gateway"),
        one(server.node_port, "node"),
        one(server.redis_port, "redis"),
        *[one(model.port, "model", model=model.name) for model in server.models],
        probe("gateway", "http", f"http://{server.address}:{server.gateway_port}/health/live"),
    ]
    if server.https:
        found.append(probe("certificate", "tls", f"{server.address}:{server.https_port}"))
    found += [probe(name, "tcp", address) for name, address in (server.peers or {}).items()]
    return found


def targets_text(server: Server) -> str:
    """The file of a server's targets."""
    return json.dumps(targets(server), indent=2) + "\n"


def scrape_config(folder: str, header: str) -> str:
    """The drop-in with the scrape job, for the files of targets in `folder`."""
    job = {
        "job_name": JOB,
        "scrape_interval": f"{SCRAPE_INTERVAL_S}s",
        "scrape_timeout": f"{SCRAPE_INTERVAL_S - 2}s",
        # What a server of ours says may never weigh on the site's Prometheus without bounds.
        "sample_limit": 50000,
        "label_limit": 100,  # over it the whole target would count as down
        "label_value_length_limit": 512,
        "file_sd_configs": [{"files": [f"{folder}/*.json"], "refresh_interval": "1m"}],
        # When a series began, and an engine's 40 settings as labels: nobody asks for them.
        "metric_relabel_configs": [
            {"source_labels": ["__name__"], "regex": ".+_created|vllm:cache_config_info", "action": "drop"}
        ],
    }
    return f"# {header}\n{yaml.safe_dump({'scrape_configs': [job]}, sort_keys=False)}"
