"""How well the gateway gets on with what it asks: the database and its identities, the vectors, files, a collector."""

from __future__ import annotations

from citadel_monitoring.rule import Alert, Case, Group
from citadel_monitoring.rules.signals import SERVER, buckets, labelled
from citadel_monitoring.site import Site

__all__ = ["groups"]

_HERE = {"server": SERVER}
_JOB = {"job": "citadel-gateway"}
_STALE_S = 60  # who may call is looked up every second


def groups(site: Site) -> tuple[Group, ...]:
    """The group of this area."""
    return (Group("stores", (*_database(), *_vectors(), *_files(), *_traces())),)


def _slow(histogram: str, limit_s: float, of: str = "") -> str:
    """More than a tenth of what was measured in five minutes took longer. `of` selects among the histogram's series."""
    return f"histogram_quantile(0.9, sum by (server, le) (rate({histogram}_bucket{of}[5m]))) > {limit_s:g}"


def _database() -> tuple[Alert, ...]:
    seen = labelled("citadel_identity_seen_timestamp_seconds", **_JOB)
    wait, took = "citadel_database_wait_seconds", "citadel_database_seconds"
    return (
        Alert(
            name="CitadelIdentitiesStale",
            # 0 is an instance that has not reached the database since it began: CitadelDatabaseDown tells of that.
            expr="max by (server) (time() - (citadel_identity_seen_timestamp_seconds > 0)) > " + str(_STALE_S),
            for_s=30,
            severity="ticket",
            kind="symptom",
            component="database",
            summary="{{ $labels.server }} has not learnt who may call for more than a minute",
            meaning="Keys are judged by what was read last: one that was revoked meanwhile still works, a new one does not.",
            look=("CitadelDatabaseDown", "the gateway's journal for why it cannot read them"),
            remedy="Mend the database, or its rights: `--tags database`. The next look puts it right.",
            # In a case the clock begins at 0.
            fires=Case({seen: "1x30"}, at="3m", labels=_HERE),
            quiet=Case({seen: "1+10x30"}, at="3m"),
            dashboard="integrations",
        ),
        Alert(
            name="CitadelDatabaseSlow",
            expr=_slow(took, 1),
            for_s=120,
            severity="ticket",
            kind="symptom",
            component="database",
            summary="The database takes long to answer {{ $labels.server }}",
            meaning="One transaction in ten takes more than a second. Inference does not wait for it; administration, files and the audit log do.",
            look=("the SQL server's processors and disk", "long transactions: `pg_stat_activity`"),
            remedy="As for a slow database: end what blocks it, or give it what it lacks.",
            fires=Case(_spread(took, "1", "2.5", slow=True), at="8m", step_s=60, labels=_HERE),
            quiet=Case(_spread(took, "1", "2.5", slow=False), at="8m", step_s=60),
            dashboard="integrations",
        ),
        Alert(
            name="CitadelDatabasePoolBusy",
            expr=_slow(wait, 0.25),
            for_s=120,
            severity="ticket",
            kind="symptom",
            component="database",
            summary="{{ $labels.server }} waits for connections to the database",
            meaning="One caller in ten waits more than 250 ms for a connection of the gateway's pool.",
            look=("CitadelDatabaseSlow", "the dashboard: how long are connections held?"),
            remedy="Where the database itself is quick, raise `gateway_settings.database.connections`.",
            fires=Case(_spread(wait, "0.25", "0.5", slow=True), at="8m", step_s=60, labels=_HERE),
            quiet=Case(_spread(wait, "0.25", "0.5", slow=False), at="8m", step_s=60),
            dashboard="integrations",
        ),
    )


def _spread(histogram: str, inside: str, beyond: str, *, slow: bool, **more: str) -> dict[str, str]:
    """A histogram of two buckets whose values are all in the second, or all in the first."""
    found = buckets(histogram, "0x60" if slow else "0+100x60", "0+100x60", **_JOB, **more)
    return {name.replace('"0.01"', f'"{inside}"').replace('"0.05"', f'"{beyond}"'): v for name, v in found.items()}


def _vectors() -> tuple[Alert, ...]:
    up = labelled("citadel_gateway_vector_up", **_JOB)
    lost = labelled("citadel_gateway_vector_calls_total", **_JOB, operation="search", outcome="unavailable")
    seconds = "citadel_gateway_vector_call_seconds"
    return (
        Alert(
            name="CitadelVectorsDisconnected",
            # An instance learns by its next call alone that Qdrant is back: one that nobody asks may be behind.
            expr="min by (server) (citadel_gateway_vector_up) == 0"
            ' and sum by (server) (increase(citadel_gateway_vector_calls_total{outcome=~"unavailable|rejected"}[5m])) > 0',
            for_s=60,
            severity="ticket",
            kind="symptom",
            component="vector",
            summary="The gateway of {{ $labels.server }} gets no answer from Qdrant",
            meaning="An instance's last call to Qdrant failed, whether or not its port takes connections: its key, its certificate, or itself.",
            look=("CitadelVectorsDown", "`journalctl -u 'citadel-gateway@*' | grep vector_state`"),
            remedy="Mend Qdrant; after a change of its key `--tags vector,gateway`.",
            fires=Case({up: "1 1 0x30", lost: "0 0 1+1x30"}, at="2m", labels=_HERE),
            quiet=Case({up: "1 1 0x60", lost: "3x60"}, at="8m"),
            dashboard="integrations",
        ),
        Alert(
            name="CitadelVectorsSlow",
            expr=_slow(seconds, 0.5, '{operation="search"}'),
            for_s=120,
            severity="ticket",
            kind="symptom",
            component="vector",
            summary="Searches of vectors take long on {{ $labels.server }}",
            meaning="One search in ten takes more than half a second, its retries included: chats with retrieval wait for it.",
            look=("the vector server's processors and memory", "`citadel_gateway_vector_retries_total`"),
            remedy="Give Qdrant what it lacks, or make the collections smaller.",
            fires=Case(_spread(seconds, "0.5", "1", slow=True, operation="search"), at="8m", step_s=60, labels=_HERE),
            quiet=Case(_spread(seconds, "0.5", "1", slow=False, operation="search"), at="8m", step_s=60),
            dashboard="integrations",
        ),
    )


def _files() -> tuple[Alert, ...]:
    def worked(outcome: str) -> str:
        return labelled("citadel_gateway_files_ingestions_total", **_JOB, outcome=outcome)

    waiting = labelled("citadel_gateway_files_waiting", **_JOB)
    every = "sum by (server) (increase(citadel_gateway_files_ingestions_total"
    return (
        Alert(
            name="CitadelIngestionFails",
            expr=f'{every}{{outcome=~"failed|error"}}[15m])) > 3 and {every}{{outcome=~"failed|error"}}[15m]))'
            f' > 0.5 * {every}{{outcome=~"completed|failed|error"}}[15m]))',
            for_s=60,
            severity="ticket",
            kind="symptom",
            component="files",
            summary="Most files that callers put into stores fail on {{ $labels.server }}",
            meaning="More than half of the last quarter of an hour's files, and more than three, could not be made findable.",
            look=("`last_error` of the files in their stores", "`journalctl -u 'citadel-gateway@*' | grep ingestion`"),
            remedy="Where their contents are at fault, tell their owners; else mend the embedding model or Qdrant, and put them in again.",
            fires=Case({worked("failed"): "0+1x120", worked("completed"): "0x120"}, at="15m", step_s=60, labels=_HERE),
            quiet=Case({worked("failed"): "0+1x120", worked("completed"): "0+5x120"}, at="15m", step_s=60),
            dashboard="integrations",
        ),
        Alert(
            name="CitadelIngestionStuck",
            expr=f'max by (server) (min_over_time(citadel_gateway_files_waiting[15m])) > 0 unless {every}{{outcome=~"completed|failed|removed"}}[15m])) > 0',
            for_s=300,
            severity="ticket",
            kind="symptom",
            component="files",
            summary="Files wait on {{ $labels.server }}, and none is worked on to its end",
            meaning="For a quarter of an hour files have waited to be put in or taken out, and none was.",
            look=(
                "CitadelDatabaseDown, CitadelVectorsDown, the embedding model",
                "`citadel_gateway_files_ingestions_total` by outcome: paused?",
            ),
            remedy="Mend what they wait for; they go on by themselves.",
            fires=Case(
                {waiting: "3x200", worked("completed"): "7x200", worked("paused"): "0+1x200"},
                at="30m", step_s=60, labels=_HERE,
            ),
            quiet=Case({waiting: "3x200", worked("completed"): "0+1x200"}, at="30m", step_s=60),
            dashboard="integrations",
        ),
    )  # fmt: skip


def _traces() -> tuple[Alert, ...]:
    failed = labelled("citadel_trace_spans_total", **_JOB, outcome="failed")
    return (
        Alert(
            name="CitadelTracesNotSent",
            expr='sum by (server) (increase(citadel_trace_spans_total{outcome="failed"}[5m])) > 0',
            for_s=600,
            severity="ticket",
            kind="symptom",
            component="monitoring",
            summary="The collector takes no spans of {{ $labels.server }}",
            meaning="For ten minutes spans were given up. Requests are not touched by it.",
            look=("`journalctl -u 'citadel-gateway@*' | grep traces_not_sent`", "the collector itself"),
            remedy="Mend the collector, or correct or empty `gateway_otlp_endpoint` and play `--tags gateway`.",
            fires=Case({failed: "0+5x200"}, at="20m", step_s=60, labels=_HERE),
            quiet=Case({failed: "5x200"}, at="20m", step_s=60),
            dashboard="integrations",
        ),
    )
