"""Who watches the watchers: the server and its exporters, the rules themselves, and the dead-man's switch."""

from __future__ import annotations

from citadel_monitoring.rule import Alert, Case, Group
from citadel_monitoring.rules.signals import SERVER, labelled
from citadel_monitoring.site import Site

__all__ = ["groups"]


def groups(site: Site) -> tuple[Group, ...]:
    """The group of this area."""
    return (Group("watch", (*_always(), *_targets(), *_missing(site), *_metrics_server())),)


def _always() -> tuple[Alert, ...]:
    return (
        Alert(
            name="CitadelHeartbeat",
            expr="vector(1)",
            for_s=0,
            severity="none",
            kind="heartbeat",
            component="monitoring",
            summary="Alerts of the LLM servers reach their receiver",
            meaning="The dead-man's switch: it always fires. Whoever receives it knows by its absence that no alert can arrive.",
            look=("Prometheus' and Alertmanager's own state: `systemctl status prometheus prometheus-alertmanager`",),
            remedy="Start what is down on the metrics server. While this alert arrives there is nothing to do.",
            fires=Case({}, at="20s", labels={"kind": "heartbeat"}),
            quiet=Case({}, at="20s", labels={"kind": "heartbeat"}),  # it never is quiet
        ),
    )


def _targets() -> tuple[Alert, ...]:
    gateway, node, redis = (labelled("up", job=f"citadel-{job}", instance=job) for job in ("gateway", "node", "redis"))
    return (
        Alert(
            name="CitadelServerDown",
            expr='max by (server) (up{job=~"citadel-.+"}) == 0',
            for_s=20,
            severity="page",
            kind="cause",
            component="server",
            summary="{{ $labels.server }} answers none of its scrapes",
            meaning="Neither the gateway nor an engine nor an exporter of the server answers: it is down, or cut off.",
            look=("`ping` and ssh to the server", "the network between it and the metrics server"),
            remedy="Start the server, or mend its network. All units start with it; models take minutes to load.",
            fires=Case({gateway: "1 1 0x30", node: "1 1 0x30"}, at="1m", labels={"server": SERVER, "severity": "page"}),
            quiet=Case({gateway: "1 1 0x30", node: "1x30"}, at="1m"),
            dashboard="capacity",
        ),
        Alert(
            name="CitadelExporterDown",
            expr='up{job=~"citadel-(node|redis|probe)"} == 0',
            for_s=60,
            severity="ticket",
            kind="symptom",
            component="monitoring",
            summary="{{ $labels.job }} of {{ $labels.server }} cannot be scraped",
            meaning="The exporter does not answer, so that what it watches is not watched.",
            look=("`systemctl status 'citadel-exporter-*'` on the server",),
            remedy="`ansible-playbook playbooks/site.yml --tags monitoring` starts it again.",
            fires=Case({redis: "1 1 0x30"}, at="2m", labels={"server": SERVER, "job": "citadel-redis"}),
            quiet=Case({redis: "1 1 0 0 0 1x30"}, at="2m"),
            dashboard="integrations",
        ),
    )


def _missing(site: Site) -> tuple[Alert, ...]:
    """A target that is not even known has no `up`: each server is looked for by its name."""
    names = [server.name for server in site.servers]
    expr = " or ".join(f'absent(up{{job="citadel-gateway", server="{name}"}})' for name in names)
    there = {f'up{{job="citadel-gateway", server="{name}"}}': "1x30" for name in names}
    return (
        Alert(
            name="CitadelServerUnwatched",
            expr=expr,
            for_s=60,
            severity="page",
            kind="cause",
            component="monitoring",
            summary="{{ $labels.server }} is not among Prometheus' targets",
            meaning="Prometheus has no target of the server any more: nothing of it is watched.",
            look=(
                "`/targets` on Prometheus",
                "the drop-ins named `citadel` in Prometheus' configuration on the metrics server",
            ),
            remedy="`ansible-playbook playbooks/site.yml --tags monitoring` registers it again.",
            fires=Case({}, at="2m", labels={"server": names[0], "severity": "page"})
            if len(names) == 1
            else Case(dict(list(there.items())[1:]), at="2m", labels={"server": names[0]}),
            quiet=Case(there, at="2m"),
        ),
    )


def _metrics_server() -> tuple[Alert, ...]:
    failures = 'prometheus_rule_evaluation_failures_total{rule_group="/etc/x.yml;citadel-models"}'
    sent = 'alertmanager_notifications_failed_total{integration="webhook"}'
    return (
        Alert(
            name="CitadelRuleFails",
            expr='sum by (rule_group) (increase(prometheus_rule_evaluation_failures_total{rule_group=~".*;citadel-.*"}[5m])) > 0',
            for_s=60,
            severity="ticket",
            kind="symptom",
            component="monitoring",
            summary="A rule of {{ $labels.rule_group }} cannot be evaluated",
            meaning="Prometheus could not evaluate a rule of this project: what it should tell of goes untold.",
            look=("`/rules` on Prometheus shows the error beside the rule",),
            remedy="Often two series where one was expected. Correct the rule in `src/citadel_monitoring/rules/`, play `--tags monitoring`.",
            fires=Case({failures: "0+1x30"}, at="3m", labels={"severity": "ticket"}),
            quiet=Case({failures: "5x30"}, at="3m"),
        ),
        Alert(
            name="CitadelNotificationsFail",
            expr="sum by (integration) (increase(alertmanager_notifications_failed_total[5m])) > 0",
            for_s=60,
            severity="ticket",
            kind="symptom",
            component="monitoring",
            summary="Alertmanager cannot deliver by {{ $labels.integration }}",
            meaning="Notifications were not delivered: alerts do not reach people.",
            look=("`journalctl -u prometheus-alertmanager` on the metrics server", "the receiver's own state"),
            remedy="Mend the receiver, or its address in `vault_alert_receiver`, and play `--tags monitoring`.",
            fires=Case({sent: "0+1x30"}, at="3m", labels={"integration": "webhook"}),
            quiet=Case({sent: "3x30"}, at="3m"),
        ),
    )
