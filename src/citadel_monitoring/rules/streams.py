"""Streams: how long callers wait for the first token of a model's answer, and for each one after it."""

from __future__ import annotations

from citadel_monitoring.rule import Alert, Case, Group
from citadel_monitoring.rules.signals import labelled, model_labels
from citadel_monitoring.site import Site

__all__ = ["PACE", "groups"]

PACE = "gen_ai_server_time_per_output_token_seconds"  # its models are named by `gen_ai_request_model`
_FIRST = "citadel_gateway_time_to_first_token_seconds"
_TOKEN_S = 0.25  # slower than most people read


def groups(site: Site) -> tuple[Group, ...]:
    """The group of this area."""
    return (Group("streams", (_first(), _pace())),)


def _case(name: str, label: str, slow: str, all_of_them: str = "0+100x120") -> dict[str, str]:
    """A histogram whose values are within 50 ms, but for those that `slow` leaves out, which are within a minute."""
    edges = {"0.05": slow, "60": all_of_them, "+Inf": all_of_them}
    return {
        labelled(f"{name}_bucket", job="citadel-gateway", **{label: "phi3"}, le=le): values
        for le, values in edges.items()
    }


def _first() -> Alert:
    found = f"histogram_quantile(0.9, sum by (server, model, le) (rate({_FIRST}_bucket[5m])))"
    return Alert(
        name="CitadelFirstTokenSlow",
        expr=f"{found} > on (model) group_left () citadel:latency_limit_seconds",
        for_s=300,
        severity="ticket",
        kind="symptom",
        component="model",
        summary="Streams of {{ $labels.model }} on {{ $labels.server }} begin late",
        meaning="One stream in ten has its first token later than the requirement has whole answers (`latency_ms`).",
        look=("the model's dashboard: waiting for a place, or for the engine?", "the length of prompts"),
        remedy="As for CitadelLatencyOverRequirement; for long prompts, prefix caching and limits of tokens.",
        fires=Case(_case(_FIRST, "model", "0x120"), at="15m", step_s=60, labels=model_labels()),
        quiet=Case(_case(_FIRST, "model", "0+99x120"), at="15m", step_s=60),
        dashboard="model",
    )


def _pace() -> Alert:
    found = f"histogram_quantile(0.5, sum by (server, gen_ai_request_model, le) (rate({PACE}_bucket[5m])))"
    return Alert(
        name="CitadelTokensSlow",
        expr=f'max by (server, model) (label_replace({found}, "model", "$1", "gen_ai_request_model", "(.+)")) > {_TOKEN_S}',
        for_s=300,
        severity="ticket",
        kind="symptom",
        component="model",
        summary="Streams of {{ $labels.model }} on {{ $labels.server }} are slower than people read",
        meaning=f"Half of the streams take longer than {_TOKEN_S} s for each token after the first.",
        look=(
            "the model's dashboard: requests running, KV cache",
            "the server's processors: is something else at work?",
        ),
        remedy="Less at once (`max_num_seqs`), more cores, or a replica.",
        fires=Case(_case(PACE, "gen_ai_request_model", "0x120"), at="15m", step_s=60, labels=model_labels()),
        quiet=Case(_case(PACE, "gen_ai_request_model", "0+99x120"), at="15m", step_s=60),
        dashboard="model",
    )
