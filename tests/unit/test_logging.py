"""The log: one JSON object a line, in order, bounded, and never in the way."""

import json
import logging
import os
import time

import pytest

from citadel_llm.utils.logging import Access, LogWriter, StdlibHandler


@pytest.fixture
def pipe():
    """A pipe that nobody reads yet: read end, write end."""
    read, write = os.pipe()
    yield read, write
    for fd in (read, write):
        try:
            os.close(fd)
        except OSError:
            continue


def lines_of(read, write):
    """All that was written."""
    os.close(write)
    with os.fdopen(os.dup(read), "rb") as stream:
        return [json.loads(line) for line in stream]


def test_events_are_lines_in_order_with_what_is_common_to_all(pipe):
    read, write = pipe
    log = LogWriter(write, static={"instance": "1"})
    log.start()
    for number in range(300):
        log.event("info", "counted", number=number)
    log.close()
    lines = lines_of(read, write)
    assert [line["number"] for line in lines] == list(range(300))
    assert {(line["level"], line["event"], line["instance"]) for line in lines} == {("info", "counted", "1")}
    assert abs(lines[0]["ts"] - time.time()) < 60


def test_an_event_is_written_soon_without_a_close(pipe):
    read, write = pipe
    log = LogWriter(write)
    log.start()
    log.event("info", "first")
    assert json.loads(os.read(read, 4096))["event"] == "first"
    log.event("info", "second")
    assert json.loads(os.read(read, 4096))["event"] == "second"
    log.close()


def test_an_event_after_the_close_is_written_at_once(pipe):
    read, write = pipe
    log = LogWriter(write)
    log.start()
    log.close()
    log.event("info", "late")
    assert [line["event"] for line in lines_of(read, write)] == ["late"]


def test_a_writer_that_never_started_writes_at_its_close(pipe):
    read, write = pipe
    log = LogWriter(write)
    log.event("info", "early")
    log.close()
    assert [line["event"] for line in lines_of(read, write)] == ["early"]


def test_any_text_is_one_line(pipe):
    read, write = pipe
    log = LogWriter(write)
    texts = ["a\nb", "\r\n\x00\x1f", "\u2028", '"quoted"', "🦜", "x" * 10_000]
    for text in texts:
        log.event("info", "said", text=text)
    log.close()
    assert [line["text"] for line in lines_of(read, write)] == texts


class Odd:
    def __str__(self):
        return "odd"


@pytest.mark.parametrize(
    ("value", "shown"),
    [(Odd(), "odd"), (b"bytes", "b'bytes'"), ({1, 2}, None), (1 << 70, None), ("\ud800", None), (float("nan"), None)],
)
def test_what_json_cannot_say_costs_no_line(pipe, value, shown):
    read, write = pipe
    log = LogWriter(write)
    log.event("info", "said", value=value)
    log.close()
    (line,) = lines_of(read, write)
    assert line["event"] == "said"
    if shown is not None:
        assert line["value"] == shown


def test_lines_beyond_the_bound_are_dropped_and_counted(pipe):
    read, write = pipe
    log = LogWriter(write, capacity=10)
    for number in range(25):
        log.event("info", "counted", number=number)
    assert log.dropped == 15
    log.close()
    lines = lines_of(read, write)
    assert [line["number"] for line in lines[:-1]] == list(range(10))
    assert (lines[-1]["event"], lines[-1]["count"], lines[-1]["level"]) == ("log_lines_dropped", 15, "warning")


def test_a_reader_that_stands_still_holds_up_neither_events_nor_the_end(pipe):
    read, write = pipe
    log = LogWriter(write, capacity=2000)
    log.start()
    began = time.monotonic()
    for _ in range(20_000):
        log.event("info", "said", text="x" * 100)
    assert time.monotonic() - began < 5
    assert log.dropped > 10_000
    log.close()
    log.event("info", "after the end")
    assert time.monotonic() - began < 10
    os.read(read, 1 << 20)  # let the thread go


def test_a_reader_that_has_gone_costs_nothing():
    read, write = os.pipe()
    os.close(read)
    log = LogWriter(write)
    log.start()
    for _ in range(100):
        log.event("info", "said")
    log.close()
    log.event("info", "after the end")
    os.close(write)
    assert log.dropped > 0


def test_records_of_the_standard_library_become_lines(pipe):
    read, write = pipe
    log = LogWriter(write)
    logger = logging.Logger("somewhere")
    logger.addHandler(StdlibHandler(log))
    logger.warning("%s of %d", "two", 3)
    try:
        raise ValueError("broken")
    except ValueError:
        logger.exception("it %s", "broke")
    logger.error("x" * 100_000)
    log.close()
    first, second, third = lines_of(read, write)
    assert (first["level"], first["event"], first["logger"], first["message"]) == (
        *("warning", "log", "somewhere"),
        "two of 3",
    )
    assert (second["level"], second["message"]) == ("error", "it broke")
    assert second["traceback"].rstrip().endswith("ValueError: broken")
    assert len(third["message"]) == 8192


@pytest.mark.parametrize("caller", ["alice", "\ud800"])
def test_the_line_of_a_request_is_like_any_other(pipe, caller):
    read, write = pipe
    log = LogWriter(write, static={"instance": "2"})
    log.start()
    values = (time.time(), "info", "access", "2", "r", "POST", "/p", 200, 1.5, None, "m", None, "e", caller)
    log.access(Access(*values, "::1", False, "bypass", 3, 4, False, 0, None))
    log.close()
    (line,) = lines_of(read, write)
    assert list(line)[:5] == ["ts", "level", "event", "instance", "request_id"]
    assert (line["status"], line["duration_ms"], line["error"]) == (200, 1.5, None)
    assert abs(line["ts"] - time.time()) < 60
