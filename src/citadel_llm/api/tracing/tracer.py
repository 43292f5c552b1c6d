"""What the gateway did, as spans, to a collector that speaks OTLP over HTTP: one span a request of the hot path.

    tracer = build_tracer(config.tracing, metrics, log, version=…, instance=…)    # None where no collector is named
    exchange.trace = tracer.begin(traceparent, tracestate)
    tracer.end("/v1/chat/completions", exchange, status, duration_s)
    await tracer.stop()

Spans have no words of prompts or answers, and no names of users. They wait in a bounded queue, and a thread sends them;
while the collector is away they are given up, and no request waits for it.
"""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import Sequence
from random import Random
from time import time_ns
from typing import TYPE_CHECKING, Any

from citadel_llm.api.tracing.context import Trace, trace_of
from citadel_llm.integration.metrics.conventions import OPERATIONS

if TYPE_CHECKING:
    from opentelemetry.sdk.trace import ReadableSpan

    from citadel_llm.api.middleware.exchange import Exchange
    from citadel_llm.integration.metrics import Metrics
    from citadel_llm.utils.config import Tracing
    from citadel_llm.utils.logging import LogWriter

__all__ = ["Tracer", "build_tracer"]

_STOP_S = 3.0  # for what is left at the end


def build_tracer(
    section: Tracing, metrics: Metrics, log: LogWriter, rng: Random, *, version: str, instance: str
) -> Tracer | None:
    """Nothing is imported where no collector is named."""
    return Tracer(section, metrics, log, rng, version=version, instance=instance) if section.endpoint else None


class Tracer:
    """See the module."""

    def __init__(
        self, section: Tracing, metrics: Metrics, log: LogWriter, rng: Random, *, version: str, instance: str
    ) -> None:
        # Heavy: only where wanted.
        from opentelemetry import trace as api  # noqa: PLC0415
        from opentelemetry.exporter.otlp.proto.http.trace_exporter import OTLPSpanExporter  # noqa: PLC0415
        from opentelemetry.sdk.resources import Resource  # noqa: PLC0415
        from opentelemetry.sdk.trace import ReadableSpan, export  # noqa: PLC0415
        from opentelemetry.sdk.util.instrumentation import InstrumentationScope  # noqa: PLC0415
        from opentelemetry.trace.status import Status, StatusCode  # noqa: PLC0415

        logging.getLogger("opentelemetry").setLevel(logging.CRITICAL)  # what it would say at each try is told once here
        self._api, self._span, self._rng = api, ReadableSpan, rng
        self._share = section.sample_share
        self._failed = Status(StatusCode.ERROR)
        self._unset = Status(StatusCode.UNSET)
        self._scope = InstrumentationScope("citadel_llm", version)
        self._resource = Resource(
            {"service.name": section.service_name, "service.version": version, "service.instance.id": instance}
        )
        loop, told = asyncio.get_running_loop(), [True]

        def tell(spans: int, *, sent: bool) -> None:
            metrics.spans(spans, sent=sent)
            if told[0] is not sent:
                told[0] = sent
                log.event(
                    "info" if sent else "warning", "traces_sent" if sent else "traces_not_sent", to=section.endpoint
                )

        class Telling(OTLPSpanExporter):
            def export(self, spans: Sequence[ReadableSpan]) -> export.SpanExportResult:
                result = super().export(spans)
                with contextlib.suppress(RuntimeError):  # the loop has ended
                    loop.call_soon_threadsafe(lambda: tell(len(spans), sent=result is export.SpanExportResult.SUCCESS))
                return result

        self._processor = export.BatchSpanProcessor(
            Telling(endpoint=section.endpoint, timeout=section.timeout_s),
            max_queue_size=section.queue,
            schedule_delay_millis=section.delay_s * 1000,
            max_export_batch_size=min(512, section.queue),
        )

    def begin(self, parent: bytes, state: bytes) -> Trace:
        """The trace of a request with these headers; a new one where they tell of none."""
        span_id = f"{self._rng.getrandbits(64) or 1:016x}"
        found = trace_of(parent, state, span_id) if parent else None
        if found is not None:
            return found
        return Trace(f"{self._rng.getrandbits(128) or 1:032x}", "", self._rng.random() < self._share, "", span_id)

    def end(self, route: str, exchange: Exchange, status: int, duration_s: float) -> None:
        """The request was answered."""
        trace = exchange.trace
        if trace is None or not trace.sampled:
            return
        operation, model = OPERATIONS.get(route, route), exchange.model
        error = exchange.error
        attributes: dict[str, Any] = {
            "gen_ai.operation.name": operation,
            "http.route": route,
            "http.response.status_code": status,
            "citadel.request_id": exchange.request_id,
            "citadel.retries": exchange.retries,
        }
        for name, value in (
            ("gen_ai.request.model", model),
            ("server.address", exchange.engine),
            ("gen_ai.usage.input_tokens", exchange.prompt_tokens),
            ("gen_ai.usage.output_tokens", exchange.completion_tokens),
            ("citadel.cache", exchange.cache),
            ("citadel.fallback_from", exchange.fallback_from),
            ("error.type", getattr(error, "code", None) or (type(error).__name__ if error is not None else None)),
        ):
            if value is not None and value != "":
                attributes[name] = value
        if exchange.first_token_at and exchange.stream:
            attributes["citadel.time_to_first_token_s"] = exchange.first_token_at - exchange.began
        flags, now = self._api.TraceFlags(self._api.TraceFlags.SAMPLED), time_ns()
        trace_id = int(trace.trace_id, 16)
        parent = self._api.SpanContext(trace_id, int(trace.parent_id, 16), True, flags) if trace.parent_id else None
        self._processor.on_end(
            self._span(
                f"{operation} {model}".rstrip(),
                context=self._api.SpanContext(trace_id, int(trace.span_id, 16), False, flags),
                parent=parent,
                resource=self._resource,
                attributes=attributes,
                kind=self._api.SpanKind.SERVER,
                status=self._failed if status >= 500 else self._unset,
                start_time=now - int(duration_s * 1e9),
                end_time=now,
                instrumentation_scope=self._scope,
            )
        )

    async def stop(self) -> None:
        """Send what is left, for a moment."""
        with contextlib.suppress(TimeoutError):
            await asyncio.wait_for(asyncio.to_thread(self._processor.shutdown), _STOP_S)
