"""Trace context goes on to the engine; spans go to a collector, of which there is a real one here: it decodes them."""

import asyncio
import contextlib
import http.server
import threading

import pytest
from opentelemetry.proto.collector.trace.v1.trace_service_pb2 import ExportTraceServiceRequest

from callers import STREAM_BODY
from citadel_llm.api.tracing.context import trace_of
from upstreams import answers, streams
from waiting import until

PARENT = b"00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01"


class Collector(contextlib.AbstractContextManager):
    """Takes OTLP over HTTP, and keeps the spans."""

    def __init__(self, status=200):
        self.spans, self.resources, self.status = [], [], status

    def __enter__(self):
        collector = self

        class Handler(http.server.BaseHTTPRequestHandler):
            def do_POST(self):
                told = ExportTraceServiceRequest()
                told.ParseFromString(self.rfile.read(int(self.headers["content-length"])))
                for resource in told.resource_spans:
                    collector.resources.append(facts(resource.resource.attributes))
                    for scope in resource.scope_spans:
                        collector.spans.extend(scope.spans)
                self.send_response(collector.status)
                self.send_header("content-length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        self._server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), Handler)
        self.url = f"http://127.0.0.1:{self._server.server_address[1]}/v1/traces"
        self._thread = threading.Thread(target=self._server.serve_forever)
        self._thread.start()
        return self

    def __exit__(self, *_):
        self._server.shutdown()
        self._thread.join()
        self._server.server_close()


def facts(attributes):
    return {one.key: getattr(one.value, one.value.WhichOneof("value")) for one in attributes}


def sent(engine):
    """The trace headers of the request that the engine got last."""
    found = (engine.calls[-1].headers.get(name) for name in ("traceparent", "tracestate"))
    return tuple(value and value.encode() for value in found)


@pytest.fixture
def collector():
    with Collector() as running:
        yield running


@pytest.fixture
def traced(serve, upstream, collector):
    """A gateway that tells the collector."""
    return serve(models={"phi3": [upstream]}, tracing={"endpoint": collector.url, "delay_s": 0.05})


async def test_a_callers_trace_goes_on_to_the_engine_as_it_is(gateway, upstream):
    upstream.script = answers()
    await gateway.ask(headers=[(b"traceparent", PARENT), (b"tracestate", b"vendor=1,other=2")])
    assert sent(upstream) == (PARENT, b"vendor=1,other=2")
    await gateway.ask()
    assert sent(upstream) == (None, None)


@pytest.mark.parametrize(
    "parent",
    [
        b"00-" + b"0" * 32 + b"-00f067aa0ba902b7-01",
        b"00-4bf92f3577b34da6a3ce929d0e0e4736-" + b"0" * 16 + b"-01",
        b"ff-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01",
        b"00-4BF92F3577B34DA6A3CE929D0E0E4736-00f067aa0ba902b7-01",
        PARENT + b"-more",
        PARENT[:-1],
        PARENT + b"x" * 100_000,
        b"\xff\xfe",
        b"",
    ],
)
async def test_what_is_no_trace_goes_nowhere(gateway, upstream, parent):
    assert trace_of(parent, b"") is None
    if len(parent) < 1000:  # the server itself refuses the longest
        upstream.script = answers()
        assert (await gateway.ask(headers=[(b"traceparent", parent), (b"tracestate", b"a=1")])).status == 200
        assert sent(upstream) == (None, None)


async def test_two_parents_are_none_and_a_bad_state_is_left_out(gateway, upstream):
    upstream.script = answers()
    await gateway.ask(headers=[(b"traceparent", PARENT), (b"traceparent", PARENT)])
    assert sent(upstream) == (None, None)
    await gateway.ask(headers=[(b"traceparent", PARENT), (b"tracestate", b"a=" + b"x" * 600)])
    assert sent(upstream) == (PARENT, None)


def test_a_later_version_is_read_as_far_as_it_is_known():
    found = trace_of(b"01" + PARENT[2:] + b"-more", b"")
    assert found.lines == f"traceparent: {PARENT.decode()}\r\n"


async def test_a_request_is_a_span_of_its_callers_trace_and_the_engine_is_told_of_it(traced, upstream, collector):
    async with traced as gateway:
        upstream.script = streams()
        answer = await gateway.ask(body=STREAM_BODY, headers=[(b"traceparent", PARENT), (b"tracestate", b"a=1")])
        [span] = await until(lambda: collector.spans, what="the span is there")
        assert span.name == "chat phi3"
        assert span.trace_id.hex() == PARENT[3:35].decode()
        assert span.parent_span_id.hex() == PARENT[36:52].decode()
        assert sent(upstream) == (b"00-%b-%b-01" % (PARENT[3:35], span.span_id.hex().encode()), b"a=1")
        said = facts(span.attributes)
        first = said.pop("citadel.time_to_first_token_s")
        assert 0 < first <= (span.end_time_unix_nano - span.start_time_unix_nano) / 1e9
        assert said == {
            "gen_ai.operation.name": "chat",
            "gen_ai.request.model": "phi3",
            "gen_ai.usage.input_tokens": 7,
            "gen_ai.usage.output_tokens": 3,
            "http.route": "/v1/chat/completions",
            "http.response.status_code": 200,
            "server.address": upstream.address,
            "citadel.request_id": answer.headers["x-request-id"],
            "citadel.retries": 0,
            "citadel.cache": "bypass",
        }
        assert collector.resources[0]["service.name"] == "citadel-gateway"
        assert (await gateway.metrics())['citadel_trace_spans_total{outcome="sent"}'] == 1


async def test_a_trace_begins_where_the_caller_has_none_and_one_that_is_not_sampled_is_not_told(
    traced, upstream, collector
):
    async with traced as gateway:
        upstream.script = answers()
        await gateway.ask(headers=[(b"traceparent", PARENT[:-1] + b"0")])
        parent, _ = sent(upstream)
        assert parent.startswith(PARENT[:36])
        assert parent.endswith(b"-00")
        await gateway.ask()
        [span] = await until(lambda: collector.spans, what="the span is there")
        assert span.parent_span_id == b""
        assert span.trace_id.hex() != PARENT[3:35].decode()


async def test_a_failure_is_told_with_its_code_and_without_words(traced, upstream, collector):
    async with traced as gateway:
        upstream.script = answers(b'{"error": "secret words"}', status=500)
        await gateway.ask()
        [span] = await until(lambda: collector.spans, what="the span is there")
        assert facts(span.attributes)["error.type"] == "upstream_error"
        assert span.status.code == 2
        assert "secret words" not in str(span)


async def test_no_request_waits_for_a_collector_that_is_not_there(serve, upstream):
    upstream.script = answers()
    tracing = {"endpoint": "http://127.0.0.1:9/v1/traces", "delay_s": 0.01, "queue": 5, "timeout_s": 0.3}
    async with serve(models={"phi3": [upstream]}, tracing=tracing) as gateway:
        for _ in range(50):
            assert (await gateway.ask()).status == 200
        await gateway.logged("traces_not_sent")
        assert (await gateway.metrics())['citadel_trace_spans_total{outcome="failed"}'] >= 1
        assert len(gateway.lines("traces_not_sent")) == 1
        async with asyncio.timeout(10):
            assert (await gateway.ask()).status == 200
