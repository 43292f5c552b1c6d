"""Metrics that are added up in process arrive where Prometheus looks, each once."""

import threading

from prometheus_client import CollectorRegistry, Counter, Histogram, generate_latest

from citadel_llm.integration.metrics import Metrics
from citadel_llm.integration.metrics.tally import Answers, Distribution

VALUES = [0.0, 0.1, 0.1000001, 0.25, 1, 5, 5.1, 1e9, -1]


def test_a_distribution_is_what_the_library_would_have_made_of_the_values():
    ours, theirs = CollectorRegistry(), CollectorRegistry()
    buckets = (0.1, 0.25, 1, 5)
    child = Histogram("h", "h", ["a"], buckets=buckets, registry=ours).labels("1")
    reference = Histogram("h", "h", ["a"], buckets=buckets, registry=theirs).labels("1")
    kept = Distribution(child)
    for value in VALUES:
        kept.observe(value)
        reference.observe(value)
        if value == 0.25:
            kept.flush()
    kept.flush()
    kept.flush()

    def lines(registry):
        return [line for line in generate_latest(registry).splitlines() if b"_created" not in line]

    assert lines(ours) == lines(theirs)


def test_what_is_added_while_another_thread_writes_is_counted_once():
    registry = CollectorRegistry()
    durations = Distribution(Histogram("h", "h", ["a"], registry=registry).labels("1"))
    kept = Answers(durations, Counter("c", "c", ["a"], registry=registry).labels("1"))
    over = threading.Event()

    def write():
        while not over.is_set():
            kept.flush()

    thread = threading.Thread(target=write)
    thread.start()
    for _ in range(50_000):
        kept.took(1.0)
    over.set()
    thread.join(10)
    kept.flush()
    assert registry.get_sample_value("c_total", {"a": "1"}) == 50_000
    assert registry.get_sample_value("h_count", {"a": "1"}) == registry.get_sample_value("h_sum", {"a": "1"}) == 50_000


def test_the_sum_of_a_distribution_counts_where_it_is_worth_a_counter():
    registry = CollectorRegistry()
    counter = Counter("c", "c", registry=registry)
    kept = Distribution(Histogram("h", "h", registry=registry), counter)
    for value in (3, 4, 0):
        kept.observe(value)
    kept.flush()
    kept.observe(5)
    kept.flush()
    assert (registry.get_sample_value("c_total"), kept.total) == (12, 12)


def test_what_was_not_written_yet_is_there_for_a_scrape_and_after_the_end():
    metrics = Metrics("1")
    metrics.answered("/r", "m", 200, 0.3)
    metrics.tokens("m", 7, 3)
    text = metrics.exposition()[0].decode()
    assert 'citadel_gateway_requests_total{model="m",route="/r",status="200"} 1.0' in text
    assert 'citadel_gateway_tokens_total{kind="prompt",model="m"} 7.0' in text
    metrics.answered("/r", "m", 200, 0.3)
    metrics.close()
    labels = {"model": "m", "route": "/r", "status": "200"}
    assert metrics._registry.get_sample_value("citadel_gateway_requests_total", labels) == 2
