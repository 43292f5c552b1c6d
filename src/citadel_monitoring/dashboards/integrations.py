"""What the gateway works with: the peers' answers, Redis, the audit log's way to the database."""

from __future__ import annotations

from collections.abc import Sequence

from citadel_monitoring.dashboards.model import quantile
from citadel_monitoring.dashboards.panels import Board, Panel, Query, Row, graph, number
from citadel_monitoring.site import Site

__all__ = ["BOARD"]

_S = 'server=~"$server"'
_RATE = "[$__rate_interval]"


def rows(site: Site) -> Sequence[Row]:
    """State, peers, Redis, audit."""
    peers = sorted({name for server in site.servers for name in server.peers or {}})
    return (
        Row("State", _state(peers), 5),
        Row("Peers", _peers()),
        Row("Redis", _redis()),
        Row("Database and audit log", _audit()),
        Row("Vectors, files, traces", _more()),
    )


def _state(peers: Sequence[str]) -> Sequence[Panel]:
    return (
        number("Targets that answer", Query(f'avg(up{{{_S}, job=~"citadel-.+"}})'), unit="percentunit", bad=1, good_is_high=True),
        number("Redis", Query(f"min(redis_up{{{_S}}})"), bad=1, good_is_high=True),
        *(
            number(name.capitalize(), Query(f'min(probe_success{{{_S}, probe="{name}"}})'), bad=1, good_is_high=True, text="1 where it takes connections.")
            for name in peers
        ),
    )  # fmt: skip


def _peers() -> Sequence[Panel]:
    return (
        graph("Probes that succeed", Query(f"min by (probe) (probe_success{{{_S}}})", "{{probe}}")),
        graph("How long they take", Query(f"max by (probe) (probe_duration_seconds{{{_S}}})", "{{probe}}"), unit="s"),
        graph("Connected to Redis", Query(f"min(citadel_gateway_cache_up{{{_S}}})", "gateway")),
        graph("Connected to the database", Query(f"min(citadel_database_up{{{_S}}}) or min(probe_success{{{_S}, probe=\"database\"}}) or vector(0)", "gateway")),
    )  # fmt: skip


def _redis() -> Sequence[Panel]:
    found = f"sum(rate(redis_keyspace_hits_total{{{_S}}}{_RATE}))"
    asked = f"({found} + sum(rate(redis_keyspace_misses_total{{{_S}}}{_RATE})) > 0)"
    return (
        graph("Memory", Query(f"sum(redis_memory_used_bytes{{{_S}}})", "used"), Query(f"sum(redis_memory_max_bytes{{{_S}}})", "bound"), unit="bytes"),
        graph("Found", Query(f"{found} / {asked} or vector(0)", "hits"), unit="percentunit"),
        graph("Commands a second", Query(f"sum(rate(redis_commands_processed_total{{{_S}}}{_RATE}))", "commands"), unit="ops"),
        graph("Clients, and keys that made room", Query(f"sum(redis_connected_clients{{{_S}}})", "clients"), Query(f"sum(rate(redis_evicted_keys_total{{{_S}}}{_RATE}))", "evicted a second")),
    )  # fmt: skip


def _audit() -> Sequence[Panel]:
    """Where the site has no database, all of it is 0."""
    age = f"time() - min(citadel_identity_seen_timestamp_seconds{{{_S}}} > 0) or vector(0)"
    return (
        *(
            graph(title, *(Query(quantile(q, f"citadel_database_{name}", _S), f"p{q * 100:g}") for q in (0.5, 0.95)), unit="s")
            for title, name in (("Waiting for a connection", "wait_seconds"), ("A transaction", "seconds"))
        ),
        graph("Told that the database is away", Query(f"sum(rate(citadel_database_unavailable_total{{{_S}}}{_RATE})) or vector(0)", "callers"), unit="ops"),
        graph("Who may call was read", Query(age, "ago"), unit="s", limit=60),
        graph("Records a second", *(Query(f"sum(rate(citadel_audit_{name}_total{{{_S}}}{_RATE})) or vector(0)", name) for name in ("written", "rejected", "dropped", "lost", "refused")), unit="ops"),
        graph("Waiting in memory", Query(f"sum(citadel_audit_queue{{{_S}}}) or vector(0)", "records")),
        graph("Waiting on disk", Query(f"sum(citadel_audit_spool_bytes{{{_S}}}) or vector(0)", "spool"), Query(f"sum(citadel_audit_spool_limit_bytes{{{_S}}}) or vector(0)", "bound"), unit="bytes"),
    )  # fmt: skip


def _more() -> Sequence[Panel]:
    calls = "citadel_gateway_vector_calls_total"
    return (
        graph("Calls to Qdrant", Query(f"sum by (outcome) (rate({calls}{{{_S}}}{_RATE})) or on () vector(0)", "{{outcome}}"), unit="ops", stacked=True),
        graph("Searches of vectors", *(Query(quantile(q, "citadel_gateway_vector_call_seconds", f'{_S}, operation="search"'), f"p{q * 100:g}") for q in (0.5, 0.95)), unit="s"),
        graph("Files worked on", Query(f"sum by (outcome) (rate(citadel_gateway_files_ingestions_total{{{_S}}}{_RATE})) or on () vector(0)", "{{outcome}}"), unit="ops"),
        graph("Files that wait", Query(f"max(citadel_gateway_files_waiting{{{_S}}}) or vector(0)", "files")),
        graph("Spans for the collector", Query(f"sum by (outcome) (rate(citadel_trace_spans_total{{{_S}}}{_RATE})) or on () vector(0)", "{{outcome}}"), unit="ops"),
    )  # fmt: skip


BOARD = Board("integrations", rows)
