"""`make bench`: what it reads, what it computes, and what it says of a peer that is not there."""

import json
from dataclasses import replace

import pytest
from performance.load import Outcome, parse, write_request
from performance.machine import memory_gib
from performance.measure import CONNECTIONS, Point, Turn
from performance.procs import NotStarted, pick_cores, rss_kib_of, ticks_of
from performance.report import as_list, between_markers, markdown, plain_command
from performance.soak import Soak
from performance.stats import Spread, added, cell, ratio, spread
from performance.subjects import KEY, REPO, citadel_config
from performance.targets import missed, targets

from citadel_llm.utils.config import load_config
from citadel_llm.utils.keys import load_keys

SAID = {
    "took_s": 3.0,
    "started": 110,
    "answered": 100,
    "requests_per_s": 33.3,
    "broken": 1,
    "unconnected": 0,
    "unanswered": 2,
    "hung_up": 0,
    "streams": 0,
    "events": 0,
    "retry_after": 6,
    "statuses": {"200": 100, "429": 5, "503": 1, "500": 1},
    "latency_us": {"count": 100, "p50": 250.0, "p90": 300.0, "p99": 1000.0, "max": 2000.0, "mean": 260.0},
    "first_token_us": {"count": 0},
    "refused_us": {"count": 7, "p50": 100.0, "p99": 400.0, "max": 500.0},
}


def outcome(rate, p50_ms=1.0, failed=0):
    return Outcome(
        requests_per_s=rate,
        answered=100,
        failed=failed,
        events=0,
        hung_up=0,
        p50_ms=p50_ms,
        p99_ms=p50_ms * 2,
        first_p50_ms=p50_ms,
        first_p99_ms=p50_ms,
        took_s=1.0,
    )


def turn(rate, p50_ms=1.0, cpu_us=100.0):
    result = Turn(points={n: Point(outcome(rate, p50_ms), cpu_us, 0.9) for n in CONNECTIONS}, rss_mb=50.0)
    result.stream = result.first = result.first_quickack = outcome(rate, p50_ms)
    return result


@pytest.fixture
def turns():
    """Two rounds of three subjects, of which one could not be started."""
    return {
        "direct": [turn(1000, 0.1), turn(500, 0.2)],
        "citadel": [turn(100, 1.1), turn(50, 2.2)],
        "litellm": [Turn(reason="could not be installed: no such | version"), Turn(reason="the same")],
    }


def test_the_generators_line_is_read_with_every_failure_named():
    found = parse(json.dumps(SAID))

    assert (found.p50_ms, found.p99_ms, found.refused_p99_ms) == (0.25, 1.0, 0.4)
    assert found.failures == {"broken": 1, "unanswered": 2, "status 429": 5, "status 503": 1, "status 500": 1}
    assert found.failed == 10
    assert (found.refused, found.retry_after) == (6, 6)


def test_without_a_stream_there_is_no_time_to_the_first_token():
    assert parse(json.dumps(SAID)).first_p50_ms is None


@pytest.mark.parametrize("events", [None, 8, 100])
def test_a_request_has_a_body_of_200_bytes_whether_plain_or_a_stream(tmp_path, events):
    write_request(tmp_path / "request", 8000, key="sk-x", events=events)

    head, _, body = (tmp_path / "request").read_bytes().partition(b"\r\n\r\n")

    assert len(body) == 200
    assert b"content-length: 200" in head
    assert b"authorization: Bearer sk-x" in head
    assert json.loads(body).get("stream", False) is (events is not None)


def test_ratios_are_taken_within_each_round_so_that_a_slow_round_cancels_out():
    assert ratio([100, 50, 200], [200, 100, 400]) == Spread(0.5, 0.5, 0.5)


def test_a_round_that_lacks_a_figure_is_left_out():
    assert ratio([100, None, 300], [100, 100, 100]) == Spread(2.0, 1.0, 3.0)
    assert added([1.5, 2.0], [1.0, None]) == Spread(0.5, 0.5, 0.5)
    assert spread([None, None]) is None


def test_a_cell_shows_the_median_and_the_range_where_there_is_one():
    assert cell(Spread(1234.5, 1000.0, 2000.0)) == "1,234 (1,000 to 2,000)"
    assert cell(Spread(0.25, 0.25, 0.25), 2) == "0.25"
    assert cell(None) == "-"


def test_processor_time_is_read_past_a_name_with_spaces_and_brackets():
    stat = "7 (a (b) c) S 1 7 7 0 -1 4194304 100 0 0 0 11 22 3 4 20 0 1 0 100 1000 10"

    assert ticks_of(stat) == 11 + 22 + 3 + 4


def test_memory_is_read_from_what_the_kernel_writes():
    assert rss_kib_of("Name:\tx\nVmRSS:\t   2048 kB\nThreads:\t1\n") == 2048
    assert rss_kib_of("") == 0
    assert memory_gib("MemTotal:       25165824 kB\nMemFree: 1 kB\n") == 24.0


def test_the_two_cores_are_physical_ones_where_the_machine_has_such():
    pairs = {0: "0-1", 1: "0-1", 2: "2-3", 3: "2-3"}

    cores = pick_cores({0, 1, 2, 3}, pairs.__getitem__)

    assert (cores.subject, cores.others) == (0, 2)


def test_one_core_is_too_few():
    with pytest.raises(NotStarted, match="two cores are needed"):
        pick_cores({3}, str)


def test_the_gateways_own_code_takes_the_configuration_and_the_key(tmp_path):
    config = load_config(citadel_config(tmp_path, "http://127.0.0.1:9000", concurrency=3, queue=2))

    assert (config.limits.concurrency, config.limits.queue) == (3, 2)
    assert load_keys(tmp_path / "keys.json").name_of(KEY.encode()) == "bench"


def test_the_list_has_every_subject_at_every_number_of_connections(turns):
    found = as_list(turns, {"citadel": "1.0"})

    assert [(entry["name"], entry["connections"]) for entry in found] == [
        (name, n) for name in turns for n in CONNECTIONS
    ]
    ours = next(entry for entry in found if entry["name"] == "citadel" and entry["connections"] == 16)
    assert (ours["requests_per_s"], ours["added_p50_ms"], ours["failed"]) == (75.0, 1.5, 0)


def test_what_was_not_measured_says_why_and_has_no_figures(turns):
    entry = next(entry for entry in as_list(turns, {}) if entry["name"] == "litellm")

    assert entry["measured"] is False
    assert entry["reason"] == "could not be installed: no such | version"
    assert all(entry[figure] is None for figure in ("requests_per_s", "p50_ms", "p99_ms", "rss_mb", "failed"))


def test_the_tables_say_so_too_and_stay_tables(turns):
    text = markdown(turns, {}, ["Machine: 2 cores."], None, None)

    row = next(line for line in text.splitlines() if line.startswith("| litellm"))
    assert "not measured: could not be installed: no such / version" in row
    widths = {line.count("|") for line in text.split("### Throughput")[1].split("###")[0].splitlines() if line}
    assert len(widths) == 1


def test_a_busy_machine_is_named_in_the_report(turns):
    calm = markdown(turns, {}, [], None, None)
    for own in turns["citadel"]:
        own.points[16] = replace(own.points[16], core_share=0.3)

    assert "Others used the machine" not in calm
    assert "got only 30% of its core" in markdown(turns, {}, [], None, None)


def test_a_target_that_was_missed_is_named_and_a_goal_fails_nothing(turns):
    turns["sglang-router"] = [turn(99), turn(52)]
    turns["vllm-router"] = [turn(200), turn(100)]

    found = targets(turns, None, None)

    peers = {target.what: target for target in found if "of sglang" in target.what or "of vllm" in target.what}
    assert {target.met for what, target in peers.items() if "sglang" in what} == {False}
    assert peers["requests a second at 16, of sglang-router's"].found == "0.99 (0.96 to 1.01)"
    assert {(target.met, target.kind) for what, target in peers.items() if "vllm" in what} == {(False, "goal")}
    assert not [target for target in missed(found) if "vllm" in target.what]
    assert "| requests a second at 1, of vllm-router's | goal | at least 1 | 0.50 | NOT met |" in markdown(
        turns, {}, [], None, None, found
    )


def test_what_a_peer_that_is_not_there_was_to_show_is_not_measured(turns):
    found = {target.what: target.met for target in targets(turns, None, None)}

    assert found["requests a second at 16, of litellm's"] is None


def test_with_something_else_on_the_cores_peers_are_a_goal(turns):
    turns["sglang-router"] = [turn(200), turn(200)]

    assert not [target for target in missed(targets(turns, None, None, shared=True)) if "sglang" in target.what]


@pytest.mark.parametrize(
    ("worse", "said"),
    [
        ({}, []),
        ({"failed": 2}, ["failed in the soak"]),
        ({"open_files_after": 11}, ["connections left after it"]),
        ({"still_busy_at_engine": 1}, ["streams that the engine still ran after it"]),
        ({"curve": [(12_500 * n, 10.0 * n) for n in range(1, 5)]}, ["memory grown over 50,000 requests, MB"]),
    ],
)
def test_a_soak_is_judged_by_what_failed_what_is_left_and_what_grew(worse, said):
    calm = {"requests": 50_000, "curve": [(12_500 * n, 80.0) for n in range(1, 5)], "open_files_before": 10}

    found = targets({}, Soak(**{**calm, "open_files_after": 10, **worse}), None)

    assert [target.what for target in missed(found)] == said


def test_a_page_keeps_what_is_around_its_markers(tmp_path):
    page = tmp_path / "bench.md"
    page.write_text("# Title\n<!-- begin: written by make bench -->\nold\n<!-- end: written by make bench -->\nlast\n")

    between_markers(page, "new")

    text = page.read_text()
    assert text.startswith("# Title\n")
    assert text.endswith("last\n")
    assert "new" in text
    assert "old" not in text


def test_commands_are_shown_without_this_machines_paths():
    assert plain_command([f"{REPO}/build/x", "--config", f"{REPO}/build/c.yaml"]) == "build/x --config build/c.yaml"
