"""What the service is worth: how well models answer, what callers think of the answers, what both cost."""

from __future__ import annotations

from citadel_monitoring.rule import Alert, Case, Group, Record
from citadel_monitoring.rules.signals import labelled, model_labels
from citadel_monitoring.site import Site

__all__ = ["HOURLY", "SATISFACTION", "STANDING", "STARS", "groups"]

STANDING = "citadel:feedback:standing30d"
SATISFACTION = "citadel:satisfaction:ratio30d"
STARS = "citadel:satisfaction:stars30d"
HOURLY = "citadel:cost:increase1h"
_SATISFIED = 'kind=~"up|stars_4|stars_5"'
_BY = "by (server, model)"
_ACCURACY = "max by (server, model) (citadel_evaluation_accuracy_ratio)"
# Opinions are few and their window is long: a sample each five minutes tells as much, at a thirtieth of the work.
_WINDOW = "[30d:5m]"
_WANTED = 0.9  # the requirement
_ENOUGH = 20  # opinions; fewer say nothing of a model
_DROP = 0.05
_LATE_S = 3 * 86400


def groups(site: Site) -> tuple[Group, ...]:
    """The group of this area: nothing of it changes in seconds."""
    return (Group("business", (*_records(), *_accuracy(), *_satisfaction()), interval_s=60),)


def _given(kind: str, values: str, name: str = "citadel_feedback_total") -> dict[str, str]:
    return {labelled(name, job="citadel-gateway", model="phi3", kind=kind): values}


def _records() -> tuple[Record, ...]:
    withdrawn = "citadel_feedback_withdrawn_total"
    stars = {
        labelled(STANDING, model="phi3", kind=f"stars_{n}"): f"{count}x400"
        for n, count in ((1, 1), (2, 0), (3, 0), (4, 1), (5, 2))
    }
    return (
        Record(
            STANDING,
            f"sum by (server, model, kind) (increase(citadel_feedback_total{_WINDOW})) "
            f"- sum by (server, model, kind) (increase({withdrawn}{_WINDOW}))",
            # Ten are given within the first five minutes, and four of them taken back; the window begins with the series.
            works=Case(
                _given("up", "0 10x400") | _given("up", "0 4x400", withdrawn),
                at="60m",
                step_s=60,
                labels={**model_labels(), "kind": "up"},
                value=6,
            ),
            empty=Case({labelled("citadel_feedback_other", model="phi3"): "1x400"}, at="60m", step_s=60),
        ),
        Record(
            SATISFACTION,
            f"sum {_BY} ({STANDING}{{{_SATISFIED}}}) / (sum {_BY} ({STANDING}) > 0)",
            works=Case(
                {labelled(STANDING, model="phi3", kind=kind): f"{count}x400"
                 for kind, count in (("up", 5), ("down", 2), ("stars_5", 1), ("stars_2", 2))},
                at="5m", step_s=60, labels=model_labels(), value=0.6,
            ),
            empty=Case({labelled(STANDING, model="phi3", kind="up"): "0x400"}, at="5m", step_s=60),
        ),
        Record(
            STARS,
            "(" + " + ".join(f'{n} * sum {_BY} ({STANDING}{{kind="stars_{n}"}})' for n in range(1, 6)) + ")"
            f' / (sum {_BY} ({STANDING}{{kind=~"stars_.*"}}) > 0)',
            works=Case(stars, at="5m", step_s=60, labels=model_labels(), value=3.75),
            empty=Case(dict.fromkeys(stars, "0x400"), at="5m", step_s=60),
        ),
        Record(
            HOURLY,
            f"sum {_BY} (increase(citadel_cost_total[1h]))",
            works=Case(
                {labelled("citadel_cost_total", job="citadel-gateway", model="phi3"): "0+1x400"},
                at="60m", step_s=60, labels=model_labels(), value=360,
            ),
            empty=Case({labelled("citadel_cost_per_hour", model="phi3"): "1x400"}, at="60m", step_s=60),
        ),
    )  # fmt: skip


def _accuracy() -> tuple[Alert, ...]:
    """An evaluation that comes to nothing leaves its unit failed, which CitadelUnitFailed tells."""
    accuracy, at = (
        labelled(f"citadel_evaluation_{name}", job="citadel-node", model="phi3")
        for name in ("accuracy_ratio", "timestamp_seconds")
    )
    return (
        Alert(
            name="CitadelAccuracyDropped",
            expr=f"{_ACCURACY} < max by (server, model) (avg_over_time(citadel_evaluation_accuracy_ratio[14d:5m])) - {_DROP}",
            for_s=60,
            severity="ticket",
            kind="symptom",
            component="model",
            summary="{{ $labels.model }} on {{ $labels.server }} answers fewer questions rightly than it did",
            meaning="Of the same questions at least three in sixty less than on average in two weeks. The same weights answer the same: "
            "something of the model is not what it was.",
            look=(
                "`citadel evaluate MODEL`: which subjects?",
                "what changed before: the weights' version, `dtype`, `engine_args`, the engine's own version, the questions",
            ),
            remedy="Bring back what was changed: its entry in `citadel_models`, then `--tags weights,model`. Where the change is "
            "wanted, the alert ends as the average follows.",
            fires=Case({accuracy: "0.8x720 0.6x120"}, at="130m", step_s=60, labels=model_labels()),
            quiet=Case({accuracy: "0.8x720 0.77x120"}, at="130m", step_s=60),
            dashboard="business",
        ),
        Alert(
            name="CitadelEvaluationOld",
            expr=f"time() - max by (server, model) (citadel_evaluation_timestamp_seconds) > {_LATE_S}",
            for_s=60,
            severity="ticket",
            kind="symptom",
            component="model",
            summary="{{ $labels.model }} on {{ $labels.server }} has not been evaluated for three days",
            meaning="How well it answers is not known: the figure that is shown is the old one.",
            look=(
                "`systemctl status citadel-evaluation.timer citadel-evaluation.service`",
                "`journalctl -u citadel-evaluation -e`: what it says of the model",
            ),
            remedy="Mend what its last lines name, then `systemctl start citadel-evaluation`.",
            fires=Case({at: f"-{_LATE_S}x60"}, at="5m", step_s=60, labels=model_labels()),
            quiet=Case({at: f"-{_LATE_S - 3600}x60"}, at="5m", step_s=60),
            dashboard="business",
        ),
    )


def _satisfaction() -> tuple[Alert, ...]:
    up, down = (labelled(STANDING, model="phi3", kind=kind) for kind in ("up", "down"))
    return (
        Alert(
            name="CitadelSatisfactionLow",
            expr=f"{SATISFACTION} < {_WANTED} and sum {_BY} ({STANDING}) >= {_ENOUGH}",
            for_s=600,
            severity="ticket",
            kind="symptom",
            component="model",
            summary="Callers are not content with {{ $labels.model }} on {{ $labels.server }}",
            meaning=f"Of the opinions of 30 days, {_ENOUGH} or more, less than {_WANTED:.0%} are a thumb up or four stars and more.",
            look=(
                "the comments and labels in `llm.feedback`, and their requests in the audit log",
                "was it slow? CitadelLatency…, the model's dashboard",
            ),
            remedy="What callers name: another model behind the alias, other instructions, less load.",
            fires=Case({up: "15x120", down: "5x120"}, at="15m", step_s=60, labels=model_labels()),
            quiet=Case({up: "6x120", down: "5x120"}, at="15m", step_s=60),
            dashboard="business",
        ),
    )
