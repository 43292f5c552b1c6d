"""How much is left: processors, memory, disks, network, and places at the engines."""

from __future__ import annotations

from collections.abc import Sequence

from citadel_monitoring.dashboards.panels import Board, Panel, Query, Row, graph, number
from citadel_monitoring.site import Site

__all__ = ["BOARD"]

_S = 'server=~"$server", job="citadel-node"'
_RATE = "[$__rate_interval]"
_WRITABLE = "unless node_filesystem_readonly == 1"


def rows(site: Site) -> Sequence[Row]:
    """Now, the machine, the engines, the units."""
    return (Row("Now", _now(), 5), Row("Machine", _machine()), Row("Engines and units", _engines()))


def _used(by: str) -> str:
    share = f"node_filesystem_avail_bytes{{{_S}}} / (node_filesystem_size_bytes{{{_S}}} > 0)"
    return f"1 - min by ({by}) ({share} {_WRITABLE})"


def _now() -> Sequence[Panel]:
    memory = f"1 - min(node_memory_MemAvailable_bytes{{{_S}}} / node_memory_MemTotal_bytes{{{_S}}})"
    return (
        number(
            "Processors used",
            Query(f'1 - avg(rate(node_cpu_seconds_total{{{_S}, mode="idle"}}[5m]))'),
            unit="percentunit",
            warn=0.8,
            bad=0.95,
        ),
        number("Memory used", Query(memory), unit="percentunit", warn=0.92, bad=0.97),
        number("Fullest disk", Query(f"max({_used('server, mountpoint')})"), unit="percentunit", warn=0.85, bad=0.95),
        number("Up for", Query(f"time() - max(node_boot_time_seconds{{{_S}}})"), unit="s"),
    )


def _machine() -> Sequence[Panel]:
    return (
        graph("Processors by use", Query(f'sum by (mode) (rate(node_cpu_seconds_total{{{_S}, mode!="idle"}}{_RATE}))', "{{mode}}"), stacked=True, text="In processors: 1 is one of them, all of the time."),
        graph("Load", *(Query(f"max(node_load{minutes}{{{_S}}})", f"{minutes} min") for minutes in (1, 5, 15))),
        graph("Memory", Query(f"sum(node_memory_MemAvailable_bytes{{{_S}}})", "available"), Query(f"sum(node_memory_MemTotal_bytes{{{_S}}})", "all"), unit="bytes"),
        graph("Disks used", Query(_used("mountpoint"), "{{mountpoint}}"), unit="percentunit", limit=0.95),
        graph("Network in", Query(f'sum by (device) (rate(node_network_receive_bytes_total{{{_S}, device!="lo"}}{_RATE}))', "{{device}}"), unit="Bps"),
        graph("Network out", Query(f'sum by (device) (rate(node_network_transmit_bytes_total{{{_S}, device!="lo"}}{_RATE}))', "{{device}}"), unit="Bps"),
        graph("Open files", Query(f"max(node_filefd_allocated{{{_S}}})", "open")),
        graph("Clock against the metrics server", Query(f"max(node_time_seconds{{{_S}}} - timestamp(node_time_seconds{{{_S}}}))", "ahead"), unit="s", least=None),
    )  # fmt: skip


def _engines() -> Sequence[Panel]:
    of = 'server=~"$server"'
    return (
        graph(
            "At the engines",
            Query(f"sum by (model) (vllm:num_requests_running{{{of}}}) or on () vector(0)", "{{model}}"),
            stacked=True,
        ),
        graph(
            "KV cache used",
            Query(f"max by (model) (vllm:kv_cache_usage_perc{{{of}}}) or on () vector(0)", "{{model}}"),
            unit="percentunit",
            limit=0.95,
        ),
        graph(
            "Units that run",
            Query(
                f'sum by (name) (node_systemd_unit_state{{{_S}, state="active", name=~"citadel-.+[.]service"}})',
                "{{name}}",
            ),
        ),
        graph(
            "Restarts by systemd in an hour",
            Query(
                f'sum by (name) (increase(node_systemd_service_restart_total{{{_S}, name=~"citadel-.+"}}[1h]))',
                "{{name}}",
            ),
        ),
    )


BOARD = Board("capacity", rows)
