"""The models: is each there, is it as fast as the requirements say, does it keep up."""

from __future__ import annotations

from citadel_monitoring.rule import Alert, Case, Group, Record
from citadel_monitoring.rules.signals import ANSWERS, ERRORS, answers, labelled, latency_series, model_labels
from citadel_monitoring.site import Model, Site

__all__ = ["groups", "latency_record"]

WINDOWS = ("1m", "2m", "1h")
_DURATION = 'citadel_gateway_request_duration_seconds_{part}{{route=~"/v1/.*", model!=""}}'


def groups(site: Site) -> tuple[Group, ...]:
    """The groups of this area."""
    return (
        Group("models-records", (*_requirements(site), *(latency_record(window) for window in WINDOWS), *_rates())),
        Group("models", (*_there(), *_latency(), *_errors(), *_load())),
    )


def _requirements(site: Site) -> tuple[Record, ...]:
    """The requirements' own numbers as series, so that rules and panels need no number of a model."""
    found = []
    for model in site.models:
        for name, seconds in (("limit", model.limit_s), ("target", model.target_s)):
            if seconds:
                found.append(_constant(name, model, seconds))
    return tuple(found)


def _constant(name: str, model: Model, seconds: float) -> Record:
    there = Case({}, at="20s", labels={}, value=seconds)
    return Record(f"citadel:latency_{name}_seconds", f"vector({seconds:g})", there, there, {"model": model.name})


def latency_record(window: str) -> Record:
    """The mean time of an answer over a window, by server and model; nothing where none was given."""
    total, count = (
        f"sum by (server, model) (rate({_DURATION.format(part=part)}[{window}]))" for part in ("sum", "count")
    )
    return Record(
        f"citadel:latency_seconds:mean{window}",
        f"{total} / ({count} > 0)",
        works=Case(latency_series(0.25), at="5m", labels=model_labels(), value=0.25),
        empty=Case(latency_series(0, rate_10s=0), at="5m"),
    )


def _rates() -> tuple[Record, ...]:
    tokens = labelled("citadel_gateway_tokens_total", job="citadel-gateway", model="phi3", kind="completion")
    return (
        Record(
            "citadel:requests:rate1m",
            f"sum by (server, model) (rate({ANSWERS}[1m]))",
            works=Case(answers("0+10x60"), at="5m", labels=model_labels(), value=1),
            empty=Case({}, at="5m"),
        ),
        Record(
            "citadel:errors:ratio_rate1m",
            f"(sum by (server, model) (rate({ERRORS}[1m])) or 0 * citadel:requests:rate1m) / (citadel:requests:rate1m > 0)",
            works=Case({**answers("0+5x60"), **answers("0+5x60", "503")}, at="5m", labels=model_labels(), value=0.5),
            empty=Case(answers("5x60"), at="5m"),
        ),
        Record(
            "citadel:tokens:rate1m",
            'sum by (server, model) (rate(citadel_gateway_tokens_total{model!=""}[1m]))',
            works=Case({tokens: "0+50x60"}, at="5m", labels=model_labels(), value=5),
            empty=Case({}, at="5m"),
        ),
    )


def _there() -> tuple[Alert, ...]:
    up = labelled("up", job="citadel-model", model="phi3", instance="a:11403")
    engine = labelled("citadel_gateway_engine_up", job="citadel-gateway", model="phi3", engine="127.0.0.1:11403")
    unit = labelled("node_systemd_service_restart_total", job="citadel-node", name="citadel-model@phi3.service")
    return (
        Alert(
            name="CitadelModelDown",
            # What the engine itself answers, and what the gateway sees of it: a hung engine still answers scrapes.
            expr='count by (server, model) ((up{job="citadel-model"} == 0) or (citadel_gateway_engine_up{engine=~"127[.].*"} == 0))',
            for_s=10,
            severity="page",
            kind="cause",
            component="model",
            summary="{{ $labels.model }} on {{ $labels.server }} does not answer",
            meaning="The model's engine is down or hangs. Requests go to another replica or to the model's fallback; without either they get 503.",
            look=(
                "`systemctl status citadel-model@NAME` and `journalctl -u citadel-model@NAME -e` on the server",
                "`curl http://SERVER:8000/health`: what the gateway says of each engine",
            ),
            remedy="systemd restarts it, and loading takes minutes. Where it has given up: mend what the journal names, "
            "`systemctl reset-failed citadel-model@NAME && systemctl start citadel-model@NAME`. Where it hangs: `systemctl restart citadel-model@NAME`.",
            fires=Case({up: "1 1 0x30", engine: "1 1 1 0x30"}, at="1m", labels={**model_labels(), "severity": "page"}),
            quiet=Case({up: "1 1 0 1x30", engine: "1x30"}, at="1m"),
            dashboard="model",
        ),
        Alert(
            name="CitadelModelRestarts",
            expr='sum by (server, model) (label_replace(increase(node_systemd_service_restart_total{name=~"citadel-model@.+"}[15m]), '
            '"model", "$1", "name", "citadel-model@(.+)[.]service")) > 2',
            for_s=10,
            severity="page",
            kind="cause",
            component="model",
            summary="{{ $labels.model }} on {{ $labels.server }} was restarted again and again",
            meaning="systemd has restarted the engine more than twice in a quarter of an hour: it does not stay up.",
            look=(
                "`journalctl -u citadel-model@NAME`: the last lines before each end",
                "memory: was it killed for it?",
            ),
            remedy="Mend the cause; where a new version brought it, go back: `playbooks/site.yml --tags engine,model` with the old one.",
            fires=Case({unit: "0x5 1 1 1 2 2 2 3 3 3 4x30"}, at="5m", labels=model_labels()),
            quiet=Case({unit: "0x5 1x60"}, at="5m"),
            dashboard="model",
        ),
    )


def _latency() -> tuple[Alert, ...]:
    def slower(word: str, window: str) -> str:
        return f"citadel:latency_seconds:mean{window} > on (model) group_left () citadel:latency_{word}_seconds"

    slow, target = latency_series(30), latency_series(0.01)
    return (
        Alert(
            name="CitadelLatencyOverRequirement",
            expr=f"({slower('limit', '2m')}) and on (server, model) (citadel:requests:rate1m > 0.02)",
            for_s=30,
            severity="page",
            kind="symptom",
            component="model",
            summary="{{ $labels.model }} on {{ $labels.server }} answers slower than required",
            meaning="Over two minutes the mean answer took longer than the requirement for this model (`latency_ms` in `citadel_models`).",
            look=(
                "the model's dashboard: queue, tokens per second, length of answers",
                "`vllm:num_requests_waiting`; the server's processors: is something else at work?",
            ),
            remedy="Less at once (`max_num_seqs`, limits of keys), more cores or a replica; long answers: lower `max_tokens` of callers.",
            fires=Case({**slow, **answers("0+10x60")}, at="5m", labels={**model_labels(), "severity": "page"}),
            quiet=Case({**target, **answers("0+10x60")}, at="5m"),
            dashboard="model",
        ),
        Alert(
            name="CitadelLatencyOverTarget",
            expr=slower("target", "1h"),
            for_s=600,
            severity="ticket",
            kind="symptom",
            component="model",
            summary="{{ $labels.model }} on {{ $labels.server }} misses its target for latency",
            meaning="Over an hour the mean answer took longer than the target for this model (`latency_target_ms` in `citadel_models`).",
            look=("the model's dashboard over a week: since when, and with which traffic?",),
            remedy="As for CitadelLatencyOverRequirement; there is time to plan.",
            fires=Case(latency_series(30, length=120), at="15m", step_s=60, labels=model_labels()),
            quiet=Case(latency_series(0.01, length=120), at="15m", step_s=60),
            dashboard="model",
        ),
    )


def _errors() -> tuple[Alert, ...]:
    return (
        Alert(
            name="CitadelModelErrors",
            expr="citadel:errors:ratio_rate1m > 0.05 and on (server, model) (citadel:requests:rate1m > 0.05)",
            for_s=30,
            severity="page",
            kind="symptom",
            component="model",
            summary="More than one in twenty requests to {{ $labels.model }} on {{ $labels.server }} fails",
            meaning="Requests for this model are answered with 5xx, though its engine answers. The requirement is 99% good answers.",
            look=("`journalctl -u 'citadel-gateway@*' -o cat | jq 'select(.status >= 500)'`", "the engine's journal"),
            remedy="The log line of a failed request names what happened at the engine; mend that.",
            fires=Case({**answers("0+8x60"), **answers("0+2x60", "502")}, at="3m", labels=model_labels()),
            quiet=Case({**answers("0+10x60"), **answers("1x60", "502")}, at="3m"),
            dashboard="model",
        ),
    )


def _load() -> tuple[Alert, ...]:
    gateway = {"job": "citadel-gateway", "model": "phi3"}
    queued = labelled("citadel_gateway_queued", **gateway)
    refused = labelled("citadel_gateway_refusals_total", **gateway, reason="queue_full")
    cache = labelled("vllm:kv_cache_usage_perc", job="citadel-model", model="phi3")
    return (
        Alert(
            name="CitadelModelQueues",
            expr="sum by (server, model) (citadel_gateway_queued) > 0",
            for_s=300,
            severity="ticket",
            kind="symptom",
            component="model",
            summary="Requests to {{ $labels.model }} on {{ $labels.server }} wait all the time",
            meaning="For five minutes there was always someone waiting for a place at the model: it is saturated.",
            look=("the model's dashboard: which keys ask, how long are the answers?",),
            remedy="A replica, more cores, a higher `max_num_seqs` where memory allows; limits for the keys that ask most.",
            fires=Case({queued: "3x60"}, at="6m", labels=model_labels()),
            quiet=Case({queued: "3x20 0 3x60"}, at="6m"),
            dashboard="model",
        ),
        Alert(
            name="CitadelModelRefuses",
            expr="sum by (server, model) (rate(citadel_gateway_refusals_total[1m])) > 0.1",
            for_s=30,
            severity="page",
            kind="symptom",
            component="model",
            summary="{{ $labels.server }} turns requests to {{ $labels.model }} away",
            meaning="The queue is full: callers get 429 or 503 with Retry-After, so that those who are let in keep their latency.",
            look=("the model's dashboard: traffic against what is usual",),
            remedy="As for CitadelModelQueues, and find out who asks so much (`docs/operations.md`).",
            fires=Case({refused: "0+5x60"}, at="3m", labels=model_labels()),
            quiet=Case({refused: "7x60"}, at="3m"),
            dashboard="model",
        ),
        Alert(
            name="CitadelKvCacheFull",
            expr='max by (server, model) (vllm:kv_cache_usage_perc{job="citadel-model"}) > 0.95',
            for_s=300,
            severity="ticket",
            kind="symptom",
            component="model",
            summary="The KV cache of {{ $labels.model }} on {{ $labels.server }} is full",
            meaning="The engine has no room for more tokens at once: it preempts requests and starts them again.",
            look=("`vllm:num_preemptions_total`; the length of prompts",),
            remedy="A larger `kv_cache` within the model's `memory`, a smaller `max_num_seqs`, or a replica.",
            fires=Case({cache: "0.99x60"}, at="6m", labels=model_labels()),
            quiet=Case({cache: "0.99x20 0.5 0.99x60"}, at="6m"),
            dashboard="model",
        ),
    )
