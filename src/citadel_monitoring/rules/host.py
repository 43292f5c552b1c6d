"""The server itself: disks, memory, processors, clock, units."""

from __future__ import annotations

from citadel_monitoring.rule import Alert, Case, Group
from citadel_monitoring.rules.signals import SERVER, labelled
from citadel_monitoring.site import Site

__all__ = ["groups"]

_HERE = {"server": SERVER}
_DISKS = 'job="citadel-node"'


def groups(site: Site) -> tuple[Group, ...]:
    """The group of this area."""
    return (Group("host", (*_disks(), *_memory(), *_rest())),)


def _share(kind: str, size: str) -> str:
    """The least share that is free, of each mount that can be written to."""
    share = f"node_filesystem_{kind}{{{_DISKS}}} / (node_filesystem_{size}{{{_DISKS}}} > 0)"
    return f"min by (server, mountpoint) ({share} unless node_filesystem_readonly == 1)"


def _disks() -> tuple[Alert, ...]:
    where = {"job": "citadel-node", "device": "d", "fstype": "ext4", "mountpoint": "/opt/citadel"}
    readonly = labelled("node_filesystem_readonly", **where)
    free, size, inodes, all_inodes = (
        labelled(f"node_filesystem_{name}", **where) for name in ("avail_bytes", "size_bytes", "files_free", "files")
    )
    there = {**_HERE, "mountpoint": "/opt/citadel"}
    look = ("`df -h` and `du -xsh /opt/citadel/*` on the server",)
    remedy = (
        "Old releases and environments: `/opt/citadel/env`, `/opt/citadel/src/releases`. Old weights: `/opt/citadel/models`. "
        "The journal: `journalctl --vacuum-size=1G`."
    )
    return (
        Alert(
            name="CitadelDiskFull",
            expr=f"{_share('avail_bytes', 'size_bytes')} < 0.05",
            for_s=15,
            severity="page",
            kind="cause",
            component="disk",
            summary="{{ $labels.mountpoint }} on {{ $labels.server }} is full",
            meaning="Less than 5% is free. On a full disk neither audit records nor logs can be kept.",
            look=look,
            remedy=remedy,
            fires=Case({free: "4x30", size: "100x30"}, at="1m", labels={**there, "severity": "page"}),
            quiet=Case({free: "4x30", size: "100x30", readonly: "1x30"}, at="1m"),
            dashboard="capacity",
        ),
        Alert(
            name="CitadelDiskLow",
            expr=f"{_share('avail_bytes', 'size_bytes')} < 0.15",
            for_s=300,
            severity="ticket",
            kind="symptom",
            component="disk",
            summary="{{ $labels.mountpoint }} on {{ $labels.server }} has little room left",
            meaning="Less than 15% is free.",
            look=look,
            remedy=remedy,
            fires=Case({free: "12x60", size: "100x60"}, at="6m", labels=there),
            quiet=Case({free: "20x60", size: "100x60"}, at="6m"),
            dashboard="capacity",
        ),
        Alert(
            name="CitadelDiskFills",
            expr=f"min by (server, mountpoint) (predict_linear(node_filesystem_avail_bytes{{{_DISKS}}}[1h], 24 * 3600)) < 0"
            f" and on (server, mountpoint) min by (server, mountpoint) (count_over_time(node_filesystem_avail_bytes{{{_DISKS}}}[1h])) > 180"
            f" and on (server, mountpoint) {_share('avail_bytes', 'size_bytes')} < 0.5",
            for_s=600,
            severity="ticket",
            kind="symptom",
            component="disk",
            summary="{{ $labels.mountpoint }} on {{ $labels.server }} is full within a day",
            meaning="At the rate of the last hour nothing is left within 24 hours.",
            look=look,
            remedy=remedy,
            fires=Case({free: "45-0.02x400", size: "100x400"}, at="50m", step_s=60, labels=there),
            quiet=Case({free: "45x400", size: "100x400"}, at="50m", step_s=60),
            dashboard="capacity",
        ),
        Alert(
            name="CitadelInodesLow",
            expr=f"{_share('files_free', 'files')} < 0.05",
            for_s=60,
            severity="ticket",
            kind="symptom",
            component="disk",
            summary="{{ $labels.mountpoint }} on {{ $labels.server }} has few inodes left",
            meaning="No more files can be made soon, though there may be room.",
            look=("`df -i` on the server",),
            remedy="Find the directory with the many small files and clear it.",
            fires=Case({inodes: "1x30", all_inodes: "100x30"}, at="2m", labels=there),
            quiet=Case({inodes: "50x30", all_inodes: "100x30"}, at="2m"),
            dashboard="capacity",
        ),
    )


def _memory() -> tuple[Alert, ...]:
    free, total = (labelled(f"node_memory_{name}_bytes", job="citadel-node") for name in ("MemAvailable", "MemTotal"))
    killed = labelled("node_vmstat_oom_kill", job="citadel-node")
    share = 'node_memory_MemAvailable_bytes{job="citadel-node"} / node_memory_MemTotal_bytes{job="citadel-node"}'
    remedy = "Lower `memory`, `kv_cache` or `max_num_seqs` of a model in `citadel_models`, serve fewer models, or add memory."
    return (
        Alert(
            name="CitadelMemoryFull",
            expr=f"{share} < 0.03",
            for_s=30,
            severity="page",
            kind="cause",
            component="memory",
            summary="{{ $labels.server }} has no memory left",
            meaning="Less than 3% is available: the kernel is about to end a process.",
            look=("`ps aux --sort=-rss | head` on the server",),
            remedy=remedy,
            fires=Case({free: "2x30", total: "100x30"}, at="2m", labels={**_HERE, "severity": "page"}),
            quiet=Case({free: "20x30", total: "100x30"}, at="2m"),
            dashboard="capacity",
        ),
        Alert(
            name="CitadelMemoryLow",
            expr=f"{share} < 0.08",
            for_s=600,
            severity="ticket",
            kind="symptom",
            component="memory",
            summary="{{ $labels.server }} is short of memory",
            meaning="Less than 8% was available for ten minutes.",
            look=("the capacity dashboard: since when?",),
            remedy=remedy,
            fires=Case({free: "6x120", total: "100x120"}, at="12m", step_s=60, labels=_HERE),
            quiet=Case({free: "20x120", total: "100x120"}, at="12m", step_s=60),
            dashboard="capacity",
        ),
        Alert(
            name="CitadelOutOfMemory",
            expr='increase(node_vmstat_oom_kill{job="citadel-node"}[5m]) > 0',
            for_s=0,
            severity="page",
            kind="cause",
            component="memory",
            summary="The kernel of {{ $labels.server }} ended a process for its memory",
            meaning="Usually an engine that outgrew its bound; systemd starts it again.",
            look=("`journalctl -k | grep -i oom`: which one?",),
            remedy=remedy,
            fires=Case({killed: "0x3 1x30"}, at="1m", labels={**_HERE, "severity": "page"}),
            quiet=Case({killed: "5x30"}, at="1m"),
            dashboard="capacity",
        ),
    )


def _rest() -> tuple[Alert, ...]:
    idle = labelled("node_cpu_seconds_total", job="citadel-node", cpu="0", mode="idle")
    clock = labelled("node_time_seconds", job="citadel-node")
    failed = labelled("node_systemd_unit_state", job="citadel-node", name="citadel-database.service", state="failed")
    return (
        Alert(
            name="CitadelCpuSaturated",
            expr='1 - avg by (server) (rate(node_cpu_seconds_total{job="citadel-node", mode="idle"}[5m])) > 0.95',
            for_s=900,
            severity="ticket",
            kind="symptom",
            component="cpu",
            summary="The processors of {{ $labels.server }} have nothing left",
            meaning="For a quarter of an hour more than 95% was used. Engines use what they get: look whether latency suffers.",
            look=("the capacity dashboard; `top` on the server",),
            remedy="Another server or replica, fewer models, or lower limits.",
            fires=Case({idle: "0+0.1x200"}, at="25m", step_s=60, labels=_HERE),
            quiet=Case({idle: "0+8x200"}, at="25m", step_s=60),
            dashboard="capacity",
        ),
        Alert(
            name="CitadelClockWrong",
            expr='abs(node_time_seconds{job="citadel-node"} - timestamp(node_time_seconds{job="citadel-node"})) > 5',
            for_s=60,
            severity="ticket",
            kind="symptom",
            component="clock",
            summary="The clock of {{ $labels.server }} is wrong",
            meaning="It differs by more than five seconds from the metrics server's: records and certificates get wrong times.",
            look=("`timedatectl` on both servers",),
            remedy="`systemctl restart systemd-timesyncd`; is the time server reachable?",
            fires=Case({clock: "100+10x30"}, at="3m", labels=_HERE),
            quiet=Case({clock: "0+10x30"}, at="3m"),
            dashboard="capacity",
        ),
        Alert(
            name="CitadelUnitFailed",
            # Those that have alerts of their own are left to them.
            expr='max by (server, name) (node_systemd_unit_state{name=~"citadel-.+", '
            'name!~"citadel-(model@|gateway|redis|exporter).+", state="failed"}) == 1',
            for_s=60,
            severity="ticket",
            kind="symptom",
            component="unit",
            summary="{{ $labels.name }} on {{ $labels.server }} has failed",
            meaning="The unit is left failed by systemd. For a timer's service: what it does daily was not done.",
            look=("`systemctl status NAME` and `journalctl -u NAME -e`",),
            remedy="Mend what its last lines name, then `systemctl reset-failed NAME && systemctl start NAME`.",
            fires=Case({failed: "0 1x30"}, at="2m", labels={**_HERE, "name": "citadel-database.service"}),
            quiet=Case({failed: "0x30"}, at="2m"),
            dashboard="capacity",
        ),
    )
