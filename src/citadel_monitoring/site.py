"""What is watched: servers, their models, and the peers that they ask."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

__all__ = ["Model", "Server", "Site"]


@dataclass(frozen=True)
class Model:
    """A model of a server. `limit_s` is what its answers may take on average, `target_s` what they should; 0: none."""

    name: str
    title: str
    port: int
    kind: str
    limit_s: float
    target_s: float


@dataclass(frozen=True)
class Server:
    """An LLM server. `peers` are those it asks, by what they are to it, as ADDRESS:PORT."""

    name: str
    address: str
    models: tuple[Model, ...]
    gateway_port: int = 8000
    https_port: int = 8443
    node_port: int = 9100
    redis_port: int = 9121
    probe_port: int = 9115
    https: bool = True
    peers: Mapping[str, str] | None = None

    @classmethod
    def read(cls, facts: Mapping[str, Any]) -> Server:
        """From plain data: these fields, with `models` as the plan of the host has them (`citadel_plan.models`)."""
        models = tuple(
            Model(
                name=model["name"],
                title=model["display_name"],
                port=int(model["port"]),
                kind=model["kind"],
                limit_s=model["latency_ms"] / 1000,
                target_s=model["latency_target_ms"] / 1000,
            )
            for model in facts["models"]
        )
        return cls(**{**facts, "models": models})


@dataclass(frozen=True)
class Site:
    """All servers, and where people look. `availability` is the part of all requests that is to be answered."""

    servers: tuple[Server, ...]
    grafana_url: str = "http://192.168.10.37:3000"
    runbooks: str = "docs/runbooks.md"
    availability: float = 0.99

    @classmethod
    def read(cls, servers: Sequence[Mapping[str, Any]], **more: Any) -> Site:
        """From plain data, each server as `Server.read` takes it."""
        return cls(tuple(Server.read(facts) for facts in servers), **more)

    @property
    def models(self) -> tuple[Model, ...]:
        """The models of all servers, each once, in their order."""
        found: dict[str, Model] = {}
        for server in self.servers:
            for model in server.models:
                found.setdefault(model.name, model)
        return tuple(found.values())
