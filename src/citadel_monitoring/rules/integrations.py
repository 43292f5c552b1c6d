"""What the gateway works with: Redis, the database, the vectors, and the audit log on its way to the database."""

from __future__ import annotations

from citadel_monitoring.rule import Alert, Case, Group
from citadel_monitoring.rules.signals import SERVER, buckets, labelled
from citadel_monitoring.site import Site

__all__ = ["groups"]

_HERE = {"server": SERVER}


def groups(site: Site) -> tuple[Group, ...]:
    """The group of this area."""
    return (Group("integrations", (*_redis(), *_peers(), *_audit())),)


def _redis() -> tuple[Alert, ...]:
    up = labelled("redis_up", job="citadel-redis")
    connected = labelled("citadel_gateway_cache_up", job="citadel-gateway")
    rejected = labelled("redis_rejected_connections_total", job="citadel-redis")
    lookups = "citadel_gateway_cache_lookup_seconds"
    return (
        Alert(
            name="CitadelRedisDown",
            expr='max by (server) (redis_up{job="citadel-redis"}) == 0',
            for_s=15,
            severity="page",
            kind="cause",
            component="cache",
            summary="Redis on {{ $labels.server }} does not answer",
            meaning="Answers are not cached, and limits hold for each of the gateway's instances alone. Requests are answered all the same.",
            look=("`systemctl status citadel-redis` and its journal",),
            remedy="`systemctl start citadel-redis`; after a change of its account `--tags cache,monitoring`. Nothing is lost.",
            fires=Case({up: "1 1 0x30"}, at="1m", labels={**_HERE, "severity": "page"}),
            quiet=Case({up: "1 1 0 1x30"}, at="1m"),
            dashboard="integrations",
        ),
        Alert(
            name="CitadelCacheDisconnected",
            expr="min by (server) (citadel_gateway_cache_up) == 0",
            for_s=60,
            severity="ticket",
            kind="symptom",
            component="cache",
            summary="The gateway of {{ $labels.server }} has no connection to Redis",
            meaning="Redis answers its exporter, but an instance of the gateway cannot use it: its account, or its socket's rights.",
            look=("`journalctl -u 'citadel-gateway@*' | grep redis`", "`ls -l /run/citadel-redis`"),
            remedy="`ansible-playbook playbooks/site.yml --tags cache,gateway`",
            fires=Case({connected: "1 1 0x30"}, at="2m", labels=_HERE),
            quiet=Case({connected: "1 1 0 0 1x30"}, at="2m"),
            dashboard="integrations",
        ),
        Alert(
            name="CitadelRedisRefusesClients",
            expr='increase(redis_rejected_connections_total{job="citadel-redis"}[5m]) > 0',
            for_s=30,
            severity="ticket",
            kind="symptom",
            component="cache",
            summary="Redis on {{ $labels.server }} has no place for more clients",
            meaning="More connections were asked for than `cache_clients` allows.",
            look=("`redis_connected_clients`; how many instances has the gateway?",),
            remedy="Raise `cache_clients` and play `--tags cache`.",
            fires=Case({rejected: "0+1x60"}, at="3m", labels=_HERE),
            quiet=Case({rejected: "3x60"}, at="3m"),
            dashboard="integrations",
        ),
        Alert(
            name="CitadelCacheSlow",
            expr=f"histogram_quantile(0.95, sum by (server, le) (rate({lookups}_bucket[5m]))) > 0.02",
            for_s=120,
            severity="ticket",
            kind="symptom",
            component="cache",
            summary="Redis on {{ $labels.server }} takes long to look an answer up",
            meaning="One in twenty look-ups takes longer than 20 ms: every request that can be cached waits for it.",
            look=("`redis_slowlog_length`; the server's processors",),
            remedy="Smaller cached answers (`cache_value_mb`), or turn the cache off with `gateway_cache: false` until it is mended.",
            fires=Case(buckets(lookups, "0+1x60", "0+100x60", job="citadel-gateway"), at="8m", step_s=60, labels=_HERE),
            quiet=Case(buckets(lookups, "0+100x60", "0+100x60", job="citadel-gateway"), at="8m", step_s=60),
            dashboard="integrations",
        ),
    )


def _peers() -> tuple[Alert, ...]:
    def probe(name: str) -> str:
        return labelled("probe_success", job="citadel-probe", probe=name, instance="peer")

    known = labelled("citadel_database_up", job="citadel-gateway")
    return (
        Alert(
            name="CitadelDatabaseDown",
            # What the gateway's own pool says, and whether Pgpool-II takes connections.
            expr='count by (server) ((citadel_database_up == 0) or (probe_success{job="citadel-probe", probe="database"} == 0)) > 0',
            for_s=15,
            severity="page",
            kind="cause",
            component="database",
            summary="{{ $labels.server }} cannot reach the database",
            meaning="Inference goes on and known keys keep working; audit and usage records are kept on disk until it is back.",
            look=("`systemctl status pgpool2 postgresql` on the SQL server", "the network between the two servers"),
            remedy="Mend the database; what was kept on disk is written by itself, in order. Watch CitadelAuditSpool meanwhile.",
            fires=Case({known: "1x30", probe("database"): "1 1 0x30"}, at="1m", labels={**_HERE, "severity": "page"}),
            quiet=Case({known: "1x30", probe("database"): "1 1 0 1x30"}, at="1m"),
            dashboard="integrations",
        ),
        Alert(
            name="CitadelVectorsDown",
            expr='count by (server) (probe_success{job="citadel-probe", probe="vector"} == 0) > 0',
            for_s=15,
            severity="page",
            kind="cause",
            component="vector",
            summary="{{ $labels.server }} cannot reach the vector database",
            meaning="Chats go on without retrieval, or calls for vectors get 503, as the caller chose.",
            look=("`curl http://192.168.10.30:8000/healthz`", "the network between the two servers"),
            remedy="Mend the vector server; nothing is to be done here.",
            fires=Case({probe("vector"): "1 1 0x30"}, at="1m", labels={**_HERE, "severity": "page"}),
            quiet=Case({probe("vector"): "1 1 0 1x30"}, at="1m"),
            dashboard="integrations",
        ),
    )


def _audit() -> tuple[Alert, ...]:
    """Over what the gateway's audit writer counts: its queue, its spool on disk, what it wrote and what was not taken."""
    queue, spool, limit, rejected, dropped, refused, full, lost, failing = (
        labelled(f"citadel_audit_{name}", job="citadel-gateway")
        for name in (
            *("queue", "spool_bytes", "spool_limit_bytes", "rejected_total", "dropped_total", "refused_total"),
            *("full", "lost_total", "failing"),
        )
    )
    return (
        Alert(
            name="CitadelAuditSpool",
            expr="sum by (server) (citadel_audit_spool_bytes) > 0",
            for_s=600,
            severity="ticket",
            kind="symptom",
            component="database",
            summary="Audit records of {{ $labels.server }} wait on disk for the database",
            meaning="For ten minutes records could not be written to the database; they are kept and will be, in order, once.",
            look=("CitadelDatabaseDown; the gateway's journal for why the database refuses them",),
            remedy="Mend the database, or its rights: `--tags database`.",
            fires=Case({spool: "0 1000+100x120"}, at="15m", step_s=60, labels=_HERE),
            quiet=Case({spool: "0 1000x30 0x120"}, at="15m", step_s=60),
            dashboard="integrations",
        ),
        Alert(
            name="CitadelAuditSpoolFull",
            expr="max by (server) (citadel_audit_spool_bytes / citadel_audit_spool_limit_bytes) > 0.8",
            for_s=30,
            severity="page",
            kind="cause",
            component="audit",
            summary="The audit spool of {{ $labels.server }} is nearly full",
            meaning="When it is full, requests cannot be recorded any more.",
            look=("CitadelDatabaseDown: since when?", "`du -sh /opt/citadel/var`"),
            remedy="Bring the database back. Until then raise the spool's limit where the disk has room.",
            fires=Case({spool: "900x30", limit: "1000x30"}, at="2m", labels={**_HERE, "severity": "page"}),
            quiet=Case({spool: "500x30", limit: "1000x30"}, at="2m"),
            dashboard="integrations",
        ),
        Alert(
            name="CitadelAuditRejected",
            expr="sum by (server) (increase(citadel_audit_rejected_total[5m])) > 0",
            for_s=10,
            severity="page",
            kind="cause",
            component="audit",
            summary="{{ $labels.server }} could not record requests",
            meaning="The database refused audit records for what is in them: they are put aside, and have to be looked at.",
            look=("the gateway's journal: which records, and why",),
            remedy="Mend what they are refused for, then replay them.",
            fires=Case({rejected: "0x3 1x30"}, at="2m", labels={**_HERE, "severity": "page"}),
            quiet=Case({rejected: "4x30"}, at="2m"),
            dashboard="integrations",
        ),
        Alert(
            name="CitadelAuditQueue",
            expr="sum by (server) (citadel_audit_queue) > 1000",
            for_s=60,
            severity="ticket",
            kind="symptom",
            component="database",
            summary="Audit records of {{ $labels.server }} queue up in memory",
            meaning="The database takes records slower than they come; past the queue's bound they go to disk.",
            look=("how long do the database's statements take?",),
            remedy="As for a slow database: look at its own dashboards.",
            fires=Case({queue: "5000x30"}, at="2m", labels=_HERE),
            quiet=Case({queue: "20x30"}, at="2m"),
            dashboard="integrations",
        ),
        Alert(
            name="CitadelAuditLost",
            expr="sum by (server) (increase(citadel_audit_dropped_total[5m]) + increase(citadel_audit_refused_total[5m])) > 0"
            " or sum by (server) (citadel_audit_full) > 0",
            for_s=10,
            severity="page",
            kind="cause",
            component="audit",
            summary="The audit log of {{ $labels.server }} has no room",
            meaning="A journal is full, or its disk is: as `audit.when_full` says, requests are refused or their records given up.",
            look=("`df -h /opt/citadel/var`", "CitadelDatabaseDown: since when?", "the gateway's journal"),
            remedy="Make room on the disk, or bring the database back: the journals then empty by themselves.",
            fires=Case(
                {dropped: "0x3 5x30", refused: "0x33", full: "0x33"}, at="2m", labels={**_HERE, "severity": "page"}
            ),
            quiet=Case({dropped: "5x30", refused: "4x30", full: "0x30"}, at="2m"),
            dashboard="integrations",
        ),
        Alert(
            name="CitadelAuditDamaged",
            expr="sum by (server) (increase(citadel_audit_lost_total[5m])) > 0",
            for_s=10,
            severity="page",
            kind="cause",
            component="audit",
            summary="Audit records of {{ $labels.server }} are lost: a file of a journal was damaged or removed",
            meaning="Requests were answered of which nothing is left in the audit log. Rows `audit.lost` say which numbers of which chain.",
            look=(
                "`citadel audit --outcome lost`: how many, and when",
                "the gateway's journal for `audit_damaged` and `audit_removed`: which file; what was damaged is kept beside it",
                "`dmesg` for the disk; the host's own logs for who removed it",
            ),
            remedy="Keep the `.damaged` files, mend or replace the disk. What was lost does not come back; nothing else is to be done.",
            fires=Case({lost: "0x3 40x30"}, at="2m", labels={**_HERE, "severity": "page"}),
            quiet=Case({lost: "40x30"}, at="2m"),
            dashboard="integrations",
        ),
        Alert(
            name="CitadelAuditFailing",
            expr="sum by (server) (citadel_audit_failing) > 0",
            for_s=60,
            severity="page",
            kind="cause",
            component="audit",
            summary="A journal of {{ $labels.server }} can't be brought to the disk, or read",
            meaning="Requests are answered and written down, and what is written stays with the system's memory, or on the disk: it does not get to the database.",
            look=(
                "the gateway's journal for `audit_upkeep_failed` and `audit_waits`: they name the error",
                "`ls -la /opt/citadel/var/spool/audit`: do the files belong to the gateway's user?",
                "open files of the gateway against `LimitNOFILE`",
            ),
            remedy="Mend what the error names; all of it is carried afterwards, in order. A restart of the instance begins anew with what is on the disk.",
            fires=Case({failing: "0x3 1x30"}, at="3m", labels={**_HERE, "severity": "page"}),
            quiet=Case({failing: "0x3 1x2 0x30"}, at="3m"),
            dashboard="integrations",
        ),
    )
