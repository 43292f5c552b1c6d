"""The gateway's metrics. What each request adds to is kept in process and written into the files by `flush`, which the
gateway does ten times a second, for each scrape of its own, and at its end.

Instances behind one socket share a directory (`PROMETHEUS_MULTIPROC_DIR`), and whichever
answers a scrape adds them all up. Files there are named after the instance, not the process,
so that restarts go on counting in the same files instead of leaving new ones behind.
"""

from __future__ import annotations

import os
import platform
from collections.abc import Iterable
from functools import cached_property
from pathlib import Path
from threading import Lock

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Metric, generate_latest, values
from prometheus_client.exposition import CONTENT_TYPE_LATEST
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from citadel_llm.integration.metrics.audit import AuditMetrics
from citadel_llm.integration.metrics.business import BusinessMetrics, CostTally
from citadel_llm.integration.metrics.cache import CacheCounters
from citadel_llm.integration.metrics.conventions import Conventional
from citadel_llm.integration.metrics.database import DatabaseMetrics
from citadel_llm.integration.metrics.files import FileCounters
from citadel_llm.integration.metrics.semantic import SemanticCounters
from citadel_llm.integration.metrics.tally import Answers, Distribution
from citadel_llm.integration.metrics.vector import VectorCounters
from citadel_llm.utils.outcomes import Limit, NotAdmitted, UnknownCaller, outcome_of, words_of

__all__ = ["Metrics"]

_PREFIX = "citadel_gateway"
_DURATION = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 0.8, 1.0, 1.5, 2.0, 5.0, 10.0, 30.0, 60.0, 120.0, 600.0)
_FIRST = (0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1.0, 2.0, 5.0, 10.0, 30.0, 60.0)
# As OpenTelemetry's conventions for generative AI advise.
_PER_TOKEN = (0.01, 0.025, 0.05, 0.075, 0.1, 0.15, 0.2, 0.3, 0.4, 0.5, 0.75, 1.0, 2.5)
_TOKENS = (1, 4, 16, 64, 256, 1024, 4096, 16384, 65536, 262144, 1048576)


class Metrics:
    """All of them, with the children of a label set kept once they were used."""

    def __init__(self, instance: str, directory: str | None = None, version: str = "") -> None:
        """`directory` is shared with the other instances; None counts for this process alone."""
        self._instance = instance
        self._directory = directory
        if directory is not None:
            Path(directory).mkdir(parents=True, exist_ok=True)
            os.environ["PROMETHEUS_MULTIPROC_DIR"] = directory  # where the library looks, on every use
            values.ValueClass = values.MultiProcessValue(process_identifier=lambda: instance)  # type: ignore[no-untyped-call]
            mark_process_dead(instance, directory)  # type: ignore[no-untyped-call]
        self._registry = registry = CollectorRegistry()
        self._requests = Counter(
            f"{_PREFIX}_requests",
            "Answered requests; status 499 is a caller that hung up",
            ["route", "model", "status"],
            registry=registry,
        )
        self._duration = Histogram(
            f"{_PREFIX}_request_duration_seconds",
            "From the request's headers to the last byte of the answer",
            ["route", "model"],
            buckets=_DURATION,
            registry=registry,
        )
        self._first = Histogram(
            f"{_PREFIX}_time_to_first_token_seconds",
            "From the request's headers to the first byte of a stream's body",
            ["model"],
            buckets=_FIRST,
            registry=registry,
        )
        self._tokens = Counter(
            f"{_PREFIX}_tokens", "Tokens that the engines reported", ["model", "kind"], registry=registry
        )
        self._groups = Counter(
            f"{_PREFIX}_group_requests",
            "Answered requests by the strongest role of their caller: admin, operator, developer, viewer, custom; none",
            ["group", "model", "outcome"],
            registry=registry,
        )
        self._per_token = Histogram(
            "gen_ai_server_time_per_output_token_seconds",
            "Of streams: between the first piece and the last, by the tokens after the first",
            ["gen_ai_request_model"],
            buckets=_PER_TOKEN,
            registry=registry,
        )
        self._token_usage = Histogram(
            "gen_ai_client_token_usage",
            "Tokens of a request, as its engine reported them",
            ["gen_ai_request_model", "gen_ai_token_type"],
            buckets=_TOKENS,
            registry=registry,
        )
        build = Gauge(
            "citadel_build_info",
            "1, and what runs",
            ["version", "python"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        build.labels(version, platform.python_version()).set(1)
        self._retries = Counter(
            f"{_PREFIX}_retries", "Further attempts of a request, before any answer", ["model"], registry=registry
        )
        self._retries_denied = Counter(
            f"{_PREFIX}_retries_denied",
            "Further attempts that the retry budget did not allow",
            ["model"],
            registry=registry,
        )
        self._refusals = Counter(
            f"{_PREFIX}_refusals",
            f"Requests refused at once: {', '.join(words_of(NotAdmitted))}",
            ["model", "reason"],
            registry=registry,
        )
        self._refused_callers = Counter(
            "citadel_refused",
            f"Requests from nobody known: {', '.join(words_of(UnknownCaller))}, …",
            ["reason"],
            registry=registry,
        )
        self._limited = Counter(
            "citadel_limited",
            "Requests refused by a bound of `scope`, which `kind` names; `unavailable` where nothing could be counted",
            ["scope", "kind"],
            registry=registry,
        )
        # There before the first of them happens: of a series that begins at 1, Prometheus never sees the first.
        for reason in words_of(UnknownCaller):
            self._refused_callers.labels(reason)
        for kind in words_of(Limit):
            self._limited.labels("key", kind)
        self._limited.labels("everyone", "unavailable")
        self._queue_wait = Histogram(
            f"{_PREFIX}_queue_wait_seconds",
            "How long those requests waited for a place that had to",
            ["model"],
            buckets=_FIRST,
            registry=registry,
        )
        self._fallbacks = Counter(
            f"{_PREFIX}_fallbacks",
            "Requests for `model` that `answered_by` was asked for in its place",
            ["model", "answered_by"],
            registry=registry,
        )
        self._auto_choices = Counter(
            f"{_PREFIX}_auto_choices", "Models chosen for requests that named `auto`", ["model"], registry=registry
        )
        self._spans = Counter(
            "citadel_trace_spans", "Spans that the collector took, or did not", ["outcome"], registry=registry
        )
        for outcome in ("sent", "failed"):
            self._spans.labels(outcome)
        self.ejections = Counter(
            f"{_PREFIX}_ejections",
            "Times that a replica was left out for failing while others answered",
            ["model", "engine"],
            registry=registry,
        )
        self.breaker_state = Gauge(
            f"{_PREFIX}_breaker_state",
            "0 closed, 1 half open, 2 open; the most that any instance says",
            ["model", "engine"],
            registry=registry,
            multiprocess_mode="livemax",
        )
        self.in_flight = Gauge(
            f"{_PREFIX}_in_flight",
            "Requests at the engines",
            ["model"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.queued = Gauge(
            f"{_PREFIX}_queued",
            "Requests that wait for a place at a model",
            ["model"],
            registry=registry,
            multiprocess_mode="livesum",
        )
        self.engine_up = Gauge(
            f"{_PREFIX}_engine_up",
            "1 where new requests may be sent to the engine; the least that any instance says",
            ["model", "engine"],
            registry=registry,
            multiprocess_mode="livemin",
        )
        self.cache = CacheCounters(registry)
        self.vector = VectorCounters(registry)
        self.files = FileCounters(registry)
        self.semantic = SemanticCounters(registry)
        self.audit = AuditMetrics(registry)
        self.business = BusinessMetrics(registry)
        self.database = DatabaseMetrics(registry)
        self._answers: dict[tuple[str, str, int, str], Answers] = {}
        self._durations: dict[tuple[str, str], Distribution] = {}
        self._firsts: dict[str, Distribution] = {}
        self._paces: dict[str, Distribution] = {}
        self._token_pairs: dict[str, tuple[Distribution, Distribution]] = {}
        self._kept: list[Answers | Distribution | CostTally] = []
        self._flushing = Lock()

    # Made when first used: where there is no database, none is down.
    @cached_property
    def database_up(self) -> Gauge:
        """Whether the database answers."""
        return Gauge(
            "citadel_database_up",
            "1 where the database answers; the least that any instance says",
            registry=self._registry,
            multiprocess_mode="livemin",
        )

    @cached_property
    def _identities_seen(self) -> Gauge:
        return Gauge(
            "citadel_identity_seen_timestamp_seconds",
            "When the database last said who may call; the earliest that any instance says",
            registry=self._registry,
            multiprocess_mode="livemin",
        )

    def expect(self, model: str, engines: Iterable[str], fallback: Iterable[str]) -> None:
        """Let a model's series be there at 0."""
        for counter in (self._retries, self._retries_denied, self._auto_choices):
            counter.labels(model)
        for reason in words_of(NotAdmitted):
            self._refusals.labels(model, reason)
        for engine in engines:
            self.ejections.labels(model, engine)
        for other in fallback:
            self._fallbacks.labels(model, other)
        for histogram in (self._queue_wait, self._first, self._per_token):
            histogram.labels(model)

    def answered(self, route: str, model: str, status: int, duration_s: float, group: str = "none") -> None:
        """Count an answer. `route`, `model` and `group` are names of ours, never text of a caller."""
        key = (route, model, status, group)
        found = self._answers.get(key)
        if found is None:
            durations = self._durations.get(key[:2])
            if durations is None:
                durations = self._durations[key[:2]] = Distribution(self._duration.labels(route, model))
            found = self._answers[key] = Answers(
                durations,
                self._requests.labels(route, model, str(status)),
                self._groups.labels(group, model, outcome_of(status)),
            )
            self._kept.append(found)
        found.took(duration_s)

    def first_token(self, model: str, seconds: float) -> None:
        """Note the time to the first piece of a stream."""
        child = self._firsts.get(model)
        if child is None:
            child = self._firsts[model] = self._distribution(self._first.labels(model))
        child.observe(seconds)

    def pace(self, model: str, seconds: float) -> None:
        """Note the time that a stream took for each token after its first."""
        child = self._paces.get(model)
        if child is None:
            child = self._paces[model] = self._distribution(self._per_token.labels(model))
        child.observe(seconds)

    def tokens(self, model: str, prompt: int, completion: int) -> None:
        """Add what an engine reported as used."""
        found = self._token_pairs.get(model)
        if found is None:
            found = self._token_pairs[model] = (
                self._distribution(self._token_usage.labels(model, "input"), self._tokens.labels(model, "prompt")),
                self._distribution(self._token_usage.labels(model, "output"), self._tokens.labels(model, "completion")),
            )
            cost = self.business.cost(model, *found)
            if cost is not None:
                self._kept.append(cost)
        found[0].observe(prompt)
        found[1].observe(completion)

    def spans(self, count: int, *, sent: bool) -> None:
        """Count spans."""
        self._spans.labels("sent" if sent else "failed").inc(count)

    def retried(self, model: str) -> None:
        """Count a further attempt."""
        self._retries.labels(model).inc()

    def retry_denied(self, model: str) -> None:
        """Count an attempt that the budget did not allow."""
        self._retries_denied.labels(model).inc()

    def refused(self, model: str, reason: NotAdmitted) -> None:
        """Count a request that was not admitted."""
        self._refusals.labels(model, reason).inc()

    def refused_caller(self, reason: str) -> None:
        """Count a request that came from nobody known; `reason` is the refusal's code."""
        self._refused_callers.labels(reason).inc()

    def limited(self, scope: str, kind: str) -> None:
        """Count a request that did not fit under a bound; both are names of ours."""
        self._limited.labels(scope, kind).inc()

    def identities_seen(self) -> None:
        """Note that who may call is as the database has it."""
        self._identities_seen.set_to_current_time()

    def queue_waited(self, model: str, seconds: float) -> None:
        """Note how long a request waited for its place."""
        self._queue_wait.labels(model).observe(seconds)

    def fell_back(self, model: str, answered_by: str) -> None:
        """Count a request that another model was asked for."""
        self._fallbacks.labels(model, answered_by).inc()

    def auto_chose(self, model: str) -> None:
        """Count a choice."""
        self._auto_choices.labels(model).inc()

    def flush(self) -> None:
        """Write what was added since the last time."""
        with self._flushing:
            for one in tuple(self._kept):
                one.flush()

    def _distribution(self, child: Histogram, counter: Counter | None = None) -> Distribution:
        made = Distribution(child, counter)
        self._kept.append(made)
        return made

    def exposition(self) -> tuple[bytes, str]:
        """The text for a scrape and its content type. Reads files: not for the event loop's thread."""
        return generate_latest(Conventional(self._everybodys())), CONTENT_TYPE_LATEST

    def collect(self) -> Iterable[Metric]:
        """The same as numbers. Reads files: not for the event loop's thread."""
        return self._everybodys().collect()

    def _everybodys(self) -> CollectorRegistry:
        self.flush()
        if self._directory is None:
            return self._registry
        registry = CollectorRegistry()
        MultiProcessCollector(registry, self._directory)  # type: ignore[no-untyped-call]
        return registry

    def close(self) -> None:
        """Withdraw this instance's gauges; what it counted stays."""
        self.flush()
        if self._directory is not None:
            mark_process_dead(self._instance, self._directory)  # type: ignore[no-untyped-call]
