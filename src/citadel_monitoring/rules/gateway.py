"""The gateway: is it there, does it keep the availability that is required, what does it do about failing engines."""

from __future__ import annotations

from citadel_monitoring.rule import INTERVAL_S, Alert, Case, Group, Record, seconds
from citadel_monitoring.rules.signals import ANSWERS, ERRORS, SERVER, answers, labelled, model_labels
from citadel_monitoring.site import Site
from citadel_monitoring.targets import SCRAPE_INTERVAL_S

__all__ = ["BURNS", "WINDOWS", "groups"]

WINDOWS = ("5m", "30m", "1h", "2h", "6h", "1d", "3d")
# Severity, long window, short window, factor: the budget of 30 days is spent within 30 d / factor. The long window tells
# that it matters, the short one that it still goes on (Google, The Site Reliability Workbook, chapter 5).
BURNS = (
    ("page", "1h", "5m", 14.4),
    ("page", "6h", "30m", 6.0),
    ("ticket", "1d", "2h", 3.0),
    ("ticket", "3d", "6h", 1.0),
)
# Not answered at all, by the probe, and answered with a failure: both are time that callers lost.
_PROBE = 'probe_success{job="citadel-probe", probe="gateway"}'
_PROBE_CASE = labelled("probe_success", job="citadel-probe", probe="gateway", instance="a")
# Of the same target; it is there too where the probe itself is away with its server.
_WATCHED = 'up{job="citadel-probe", probe="gateway"}'
_WATCHED_CASE = labelled("up", job="citadel-probe", probe="gateway", instance="a")


def groups(site: Site) -> tuple[Group, ...]:
    """The groups of this area."""
    return (
        Group(
            "availability-records",
            (*(unavailability(window) for window in WINDOWS), *(watched(window) for _, window, _, _ in BURNS)),
            interval_s=30,
        ),
        Group("gateway", (*_there(), *_burns(1 - site.availability), *_engines(), *_callers())),
    )


def unavailability(window: str) -> Record:
    """The part of a window's requests, and of its time, that was not answered; by server, from 0 to 1."""
    asked = f"sum by (server) (rate({ANSWERS}[{window}]))"
    failed = f"sum by (server) (rate({ERRORS}[{window}])) / ({asked} > 0)"
    silent = f"(1 - avg by (server) (avg_over_time({_PROBE}[{window}])))"
    return Record(
        f"citadel:unavailability:ratio{window}",
        f"clamp_max({silent} + ({failed} or 0 * {silent}), 1)",
        works=Case({_PROBE_CASE: "1 0 1 0 1 0 1 0 1 0"}, at="90s", labels={"server": SERVER}, value=0.5),
        empty=Case(answers("0+10x60"), at="2m"),
    )


def watched(window: str) -> Record:
    """The part of a window in which the server's gateway was watched at all; by server, from 0 to 1."""
    samples = seconds(window) // SCRAPE_INTERVAL_S
    return Record(
        f"citadel:watched:ratio{window}",
        f"clamp_max(max by (server) (count_over_time({_WATCHED}[{window}])) / {samples}, 1)",
        # 18 samples, of a server that answers or does not.
        works=Case({_WATCHED_CASE: "_x2 1x8 0x8"}, at="3m30s", labels={"server": SERVER}, value=18 / samples),
        empty=Case({_PROBE_CASE: "1x30"}, at="2m"),
    )


def _there() -> tuple[Alert, ...]:
    up = labelled("up", job="citadel-gateway", instance="a:8000")
    unit = labelled("node_systemd_unit_state", job="citadel-node", name="citadel-gateway@2.service", state="active")
    end = labelled("probe_ssl_earliest_cert_expiry", job="citadel-probe", probe="certificate", instance="a:8443")
    expiry = 'min by (server, instance) (probe_ssl_earliest_cert_expiry{job="citadel-probe"}) - time()'
    return (
        Alert(
            name="CitadelGatewayDown",
            expr=f'count by (server) ((up{{job="citadel-gateway"}} == 0) or ({_PROBE} == 0)) > 0',
            for_s=15,
            severity="page",
            kind="cause",
            component="gateway",
            summary="The gateway of {{ $labels.server }} does not answer",
            meaning="Nobody gets an answer from this server, whatever the state of its models.",
            look=(
                "`systemctl status citadel-gateway.socket 'citadel-gateway@*'`",
                "`journalctl -u 'citadel-gateway@*' -e`",
            ),
            remedy="`systemctl restart citadel-gateway.socket` and the instances; after a bad release `--tags gateway` with the one before.",
            fires=Case(
                {up: "1 1 0x30", _PROBE_CASE: "1 1 0x30"}, at="1m", labels={"server": SERVER, "severity": "page"}
            ),
            quiet=Case({up: "1 1 0 1x30", _PROBE_CASE: "1x30"}, at="1m"),
            dashboard="gateway",
        ),
        Alert(
            name="CitadelGatewayInstanceDown",
            expr='max by (server, name) (node_systemd_unit_state{name=~"citadel-gateway@.+[.]service", state="active"}) == 0',
            for_s=60,
            severity="ticket",
            kind="symptom",
            component="gateway",
            summary="{{ $labels.name }} on {{ $labels.server }} does not run",
            meaning="One of the gateway's instances is down; those that remain answer behind the same socket.",
            look=("`journalctl -u NAME -e` on the server",),
            remedy="systemd starts it again; where it has ended for good, mend what its last lines name.",
            fires=Case({unit: "1 1 0x30"}, at="2m", labels={"server": SERVER, "name": "citadel-gateway@2.service"}),
            quiet=Case({unit: "1 1 0 0 0 1x30"}, at="2m"),
            dashboard="gateway",
        ),
        Alert(
            name="CitadelCertificateExpired",
            expr=f"{expiry} < 2 * 86400",
            for_s=10,
            severity="page",
            kind="cause",
            component="certificate",
            summary="The certificate of {{ $labels.instance }} has ended, or does within two days",
            meaning="Callers of HTTPS refuse the connection once it has ended. The gateway's own certificate is renewed weeks before.",
            look=(
                "`systemctl status citadel-certificate.timer citadel-certificate.service`",
                "`openssl s_client -connect ADDRESS:8443`",
            ),
            remedy="`/opt/citadel/bin/citadel-certificate ensure --force …` as the unit has it, or place the site's own and play `--tags gateway`.",
            fires=Case({end: "86400x30"}, at="1m", labels={"server": SERVER, "instance": "a:8443", "severity": "page"}),
            quiet=Case({end: "864000x30"}, at="1m"),
            dashboard="gateway",
        ),
        Alert(
            name="CitadelCertificateEnds",
            expr=f"{expiry} < 10 * 86400",
            for_s=60,
            severity="ticket",
            kind="symptom",
            component="certificate",
            summary="The certificate of {{ $labels.instance }} ends within ten days",
            meaning="It should have been renewed by now.",
            look=("`systemctl status citadel-certificate.timer citadel-certificate.service`",),
            remedy="As for CitadelCertificateExpired.",
            fires=Case({end: "700000x30"}, at="2m", labels={"server": SERVER, "severity": "ticket"}),
            quiet=Case({end: "2600000x30"}, at="2m"),
            dashboard="gateway",
        ),
    )


def _lately_away(away_s: float) -> tuple[dict[str, str], str]:
    """A new server that was away for the last quarter of its history, and when that history ends."""
    lost = round(away_s / INTERVAL_S)
    length = 4 * lost
    return {_PROBE_CASE: f"1x{length - lost - 1} 0x{lost}", _WATCHED_CASE: f"1x{length}"}, f"{length * INTERVAL_S}s"


def _burns(budget: float) -> tuple[Alert, ...]:
    found = []
    for severity, long, short, factor in BURNS:
        bad = f"{factor * budget:g}"
        spent_s = factor * budget * seconds(long)
        away, after = _lately_away(1.5 * spent_s)
        blink, soon_after = _lately_away(0.5 * spent_s)
        found.append(
            Alert(
                name=f"CitadelAvailabilityBurn{long}",
                # A budget is time of the whole window: minutes of a server that is new are no more of it than of another.
                expr=f"citadel:unavailability:ratio{long} * citadel:watched:ratio{long} > {bad} "
                f"and citadel:unavailability:ratio{short} > {bad}",
                for_s=30 if severity == "page" else 300,
                severity=severity,
                kind="symptom",
                component="availability",
                summary=f"{{{{ $labels.server }}}} spends its error budget {factor:g} times too fast",
                meaning=f"Over {long} and still over {short}, more than {factor * budget:.1%} of requests failed or found nobody. "
                f"At this rate the budget of 30 days ({budget:.0%}) is spent in {30 / factor:.1f} days.",
                look=(
                    "the overview: which models fail?",
                    "other alerts of this server: one of them is usually the cause",
                ),
                remedy="Mend the cause. Put off changes until the budget has recovered.",
                fires=Case(away, at=after, step_s=60, labels={"server": SERVER, "severity": severity}),
                quiet=Case({**blink, **answers("0+1000x2000"), **answers("0+1x2000", "503")}, at=soon_after, step_s=60),
            )
        )
    return tuple(found)


def _engines() -> tuple[Alert, ...]:
    gateway = {"job": "citadel-gateway", "model": "phi3"}
    breaker = labelled("citadel_gateway_breaker_state", **gateway, engine="e")
    ejected = labelled("citadel_gateway_ejections_total", **gateway, engine="e")
    retries, denied = (labelled(f"citadel_gateway_{name}_total", **gateway) for name in ("retries", "retries_denied"))
    fallback = labelled("citadel_gateway_fallbacks_total", **gateway, answered_by="hermes")
    every = "sum by (server, model)"
    return (
        Alert(
            name="CitadelBreakerOpen",
            expr="max by (server, model) (citadel_gateway_breaker_state) == 2",
            for_s=60,
            severity="ticket",
            kind="symptom",
            component="model",
            summary="{{ $labels.server }} sends nothing to an engine of {{ $labels.model }}",
            meaning="The engine failed so often that the gateway's breaker is open; it is tried again from time to time.",
            look=("`/health` of the gateway: which engine?", "the engine's journal"),
            remedy="Mend the engine; the breaker closes by itself.",
            fires=Case({breaker: "0 2x30"}, at="3m", labels=model_labels()),
            quiet=Case({breaker: "0 2 2 2 1 0x30"}, at="3m"),
            dashboard="model",
        ),
        Alert(
            name="CitadelEngineEjected",
            expr=f"{every} (increase(citadel_gateway_ejections_total[5m])) > 0",
            for_s=30,
            severity="ticket",
            kind="symptom",
            component="model",
            summary="An engine of {{ $labels.model }} fails while others answer ({{ $labels.server }})",
            meaning="The engine was left out for a while, since it failed where the model's other replicas did not.",
            look=("`citadel_gateway_ejections_total` by engine",),
            remedy="Look at that engine's host; restart its unit.",
            fires=Case({ejected: "0x5 1x30"}, at="2m", labels=model_labels()),
            quiet=Case({ejected: "4x60"}, at="2m"),
            dashboard="model",
        ),
        Alert(
            name="CitadelRetries",
            expr=f"{every} (rate(citadel_gateway_retries_total[5m])) > 0.1 * {every} (rate({ANSWERS}[5m]))",
            for_s=120,
            severity="ticket",
            kind="symptom",
            component="model",
            summary="More than one in ten requests to {{ $labels.model }} needs a second attempt ({{ $labels.server }})",
            meaning="Engines fail before their first byte; callers see a slower answer, not a failure.",
            look=("the engines' journals",),
            remedy="Mend the failing engine before the retries run out of their budget.",
            fires=Case({retries: "0+5x60", **answers("0+10x60")}, at="8m", step_s=60, labels=model_labels()),
            quiet=Case({retries: "0+0.5x60", **answers("0+10x60")}, at="8m", step_s=60),
            dashboard="model",
        ),
        Alert(
            name="CitadelRetryBudgetSpent",
            expr=f"{every} (increase(citadel_gateway_retries_denied_total[5m])) > 0",
            for_s=30,
            severity="ticket",
            kind="symptom",
            component="model",
            summary="Retries for {{ $labels.model }} have run out of their budget ({{ $labels.server }})",
            meaning="So many attempts fail that further ones are not made, lest they make it worse: callers see failures.",
            look=("CitadelModelErrors and CitadelRetries of the same model",),
            remedy="Mend the failing engine.",
            fires=Case({denied: "0+1x60"}, at="3m", labels=model_labels()),
            quiet=Case({denied: "9x60"}, at="3m"),
            dashboard="model",
        ),
        Alert(
            name="CitadelFallbacks",
            expr=f"{every} (rate(citadel_gateway_fallbacks_total[5m])) > 0",
            for_s=300,
            severity="ticket",
            kind="symptom",
            component="model",
            summary="Requests for {{ $labels.model }} are answered by other models ({{ $labels.server }})",
            meaning="For five minutes the model could not answer itself, and its fallback did.",
            look=("is the model's engine up?",),
            remedy="As for CitadelModelDown.",
            fires=Case({fallback: "0+2x120"}, at="12m", step_s=60, labels=model_labels()),
            quiet=Case({fallback: "7x120"}, at="12m", step_s=60),
            dashboard="model",
        ),
    )


def _callers() -> tuple[Alert, ...]:
    limited = labelled("citadel_limited_total", job="citadel-gateway", scope="key", kind="requests_per_minute")
    refused = labelled("citadel_refused_total", job="citadel-gateway", reason="invalid_api_key")
    return (
        Alert(
            name="CitadelCallersLimited",
            expr="sum by (server, scope, kind) (rate(citadel_limited_total[5m])) > 1",
            for_s=300,
            severity="ticket",
            kind="symptom",
            component="limits",
            summary="Callers run into the limit of {{ $labels.kind }} by {{ $labels.scope }} on {{ $labels.server }}",
            meaning="More than one request a second is turned away for a limit, for five minutes.",
            look=("the gateway's dashboard; which keys are they?",),
            remedy="A caller that asks too much: talk to its owner. A limit that is too low: raise it.",
            fires=Case({limited: "0+30x120"}, at="12m", step_s=60, labels={"server": SERVER, "scope": "key"}),
            quiet=Case({limited: "0+1x120"}, at="12m", step_s=60),
            dashboard="gateway",
        ),
        Alert(
            name="CitadelCallersRefused",
            expr="sum by (server, reason) (rate(citadel_refused_total[5m])) > 1",
            for_s=120,
            severity="ticket",
            kind="symptom",
            component="identity",
            summary="{{ $labels.server }} refuses many callers: {{ $labels.reason }}",
            meaning="More than one request a second is refused for who asks: a caller with an old key, or someone who tries keys.",
            look=("the log lines with status 401 and 403: which addresses?",),
            remedy="An old key: give its owner a new one. Someone who tries keys: shut the address out before the gateway.",
            fires=Case(
                {refused: "0+30x120"}, at="8m", step_s=60, labels={"server": SERVER, "reason": "invalid_api_key"}
            ),
            quiet=Case({refused: "0+1x120"}, at="8m", step_s=60),
            dashboard="gateway",
        ),
    )
