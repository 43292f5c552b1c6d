"""The audit log of a gateway without a database: each request is in its journal before its answer is complete."""

import asyncio
import os

import pytest

from callers import BODY, KEY, STREAM_BODY
from citadel_llm.api.audit.action import action_of, hot_action
from citadel_llm.api.audit.audit import Audit
from citadel_llm.api.audit.journal import Journal, Options
from citadel_llm.api.audit.record import Record, decode
from citadel_llm.api.audit.refusals import Refusals
from citadel_llm.integration.metrics import Metrics
from citadel_llm.utils.config import Audit as Section
from upstreams import CHAT, STREAM_HEAD, answers, chunk, says_and_stalls, stalls, streams
from waiting import until

MORE = {"enabled": True}


@pytest.fixture
def audited(serve, upstream, tmp_path):
    """`async with audited() as gateway`: one that keeps a journal."""

    def start(**audit):
        section = {"enabled": True, "directory": str(tmp_path / "spool"), **audit}
        return serve(models={"phi3": [upstream]}, audit=section)

    return start


@pytest.fixture
def records(tmp_path):
    """`records()`: what is in the journal's files now, as another process would find it."""

    def read():
        found = []
        for path in sorted((tmp_path / "spool/1").glob("*.journal")):
            data, at = path.read_bytes(), 0
            while at + 8 <= len(data):
                length = int.from_bytes(data[at : at + 4], "little")
                found.append(decode(data[at + 8 : at + 8 + length]))
                at += 8 + length
        return found

    return read


async def test_a_request_is_written_before_its_answer_is_complete(audited, records):
    async with audited() as gateway:
        for body in (BODY, STREAM_BODY):
            answer = await gateway.ask(body=body)
            assert records()[-1].request_id == answer.headers["x-request-id"]


async def test_a_record_says_who_what_when_and_how_it_came_out(audited, records, upstream):
    upstream.script = streams()
    async with audited() as gateway:
        answer = await gateway.ask(body=STREAM_BODY)
    (one,) = records()
    assert (one.kind, one.action, one.request_id) == ("request", "chat.completions", answer.headers["x-request-id"])
    assert (one.user_name, one.key_name, one.user_id) == ("alice", "alice", None)
    assert (one.model, one.served_by, one.client) == ("phi3", upstream.address, "127.0.0.1")
    assert (one.outcome, one.status, one.error_code) == ("ok", 200, None)
    assert (one.streamed, one.cached, one.prompt_tokens, one.completion_tokens) == (True, False, 7, 3)
    assert 0 < one.first_token_us <= one.latency_us < 10_000_000
    assert (one.content_policy, one.content, one.detail) == ("none", None, None)


async def test_outcomes_are_told_apart(audited, records, upstream):
    async with audited() as gateway:
        assert (await gateway.ask(body=b"{")).status == 400
        assert (await gateway.ask(body=b'{"model": "none"}')).status == 404
        upstream.script = answers({"error": {"message": "no", "code": "an\x00 odd code"}}, 501)
        assert (await gateway.ask()).status == 501
        upstream.script = stalls()
        async with gateway.caller() as caller:
            await caller.request()
            await upstream.asked(2)
        await until(lambda: len(records()) == 4, what="four records")
        upstream.script = says_and_stalls(STREAM_HEAD, chunk(b"data: {}\n\n"))
        async with gateway.caller() as caller:
            await caller.request(body=STREAM_BODY)
            await caller.head()
            await caller.piece()
        await until(lambda: len(records()) == 5, what="five records")
    assert [one.outcome for one in records()] == ["refused", "refused", "error", "cancelled", "cancelled"]
    assert records()[1].error_code == "model_not_found"
    assert "\x00" not in records()[2].error_code


async def test_other_requests_of_known_callers_are_written_down_and_looks_of_machines_are_not(audited, records):
    async with audited() as gateway:
        for path in ("/health", "/health/live", "/metrics", "/openapi.json", "/v1/models"):
            assert (await gateway.get(path)).status == 200
        assert records() == []
        assert (await gateway.get("/v1/models", key=KEY)).status == 200
        assert (await gateway.get("/v1/responses/x", key=KEY)).status == 404
        assert (await gateway.get("/admin/v1/audit?limit=0", key=KEY)).status == 400
        assert (await gateway.get("/admin/v1/usage", key=KEY)).status == 501  # no database here
    assert [(one.kind, one.action, one.outcome, one.user_name) for one in records()] == [
        ("request", "models.read", "ok", "alice"),
        ("request", "responses.read", "refused", "alice"),
        ("admin", "audit.read", "refused", "alice"),
        ("admin", "usage.read", "error", "alice"),
    ]


async def test_callers_that_nobody_knows_make_one_record_however_many_they_are(audited, records):
    async with audited() as gateway:
        for key in [None, "sk-wrong"] * 25:
            assert (await gateway.ask(key=key)).status == 401
        assert (await gateway.get("/v1/models", key="sk-wrong")).status == 401
        assert records() == []
    (one,) = records()  # at the end; else once a minute
    assert (one.kind, one.action, one.outcome) == ("security", "callers.refused", "refused")
    assert one.detail == {
        "instance": "1", "counts": {"missing_api_key": 25, "invalid_api_key": 26}, "addresses": ["127.0.0.1"],
    }  # fmt: skip


def test_however_many_reasons_and_addresses_there_are_few_are_kept():
    refusals = Refusals()
    for n in range(1000):
        refusals.note(f"reason {n}", f"192.0.2.{n}")
    found = refusals.take()
    assert len(found["counts"]) == 16
    assert len(found["addresses"]) == 5
    assert refusals.take() is None


async def test_without_a_database_the_journal_keeps_within_its_bound_and_nobody_is_refused(audited, tmp_path):
    async with audited(spool_bytes=16384, segment_bytes=4096) as gateway:
        for _ in range(300):
            assert (await gateway.ask()).status == 200
        audit = (await gateway.get("/health")).json["audit"]
        assert audit["spool_limit_bytes"] == 16384 >= audit["spool_bytes"]
        assert (await gateway.metrics())["citadel_audit_dropped_total"] > 100
    assert sum(path.stat().st_size for path in (tmp_path / "spool/1").iterdir()) < 2 * 16384


async def test_whoever_removes_files_of_the_journal_makes_no_request_fail(audited, tmp_path):
    async with audited(spool_bytes=16384, segment_bytes=4096) as gateway:
        for number in range(300):
            if number % 60 == 59:
                for path in sorted((tmp_path / "spool/1").glob("*.journal"))[:2]:
                    path.unlink()
            assert (await gateway.ask()).status == 200
        audit = (await gateway.get("/health")).json["audit"]
        assert (audit["state"], audit["spool_bytes"] <= 16384) == ("ok", True)
    assert sum(path.stat().st_size for path in (tmp_path / "spool/1").iterdir()) < 2 * 16384


async def test_what_goes_wrong_with_the_upkeep_is_told_once_and_later_records_get_to_the_disk(tmp_path):
    told = []
    section = Section(enabled=True, directory=str(tmp_path / "spool"), segment_bytes=4096)
    metrics = Metrics("1")

    def failing():
        audit.publish()
        return b"citadel_audit_failing 1.0" in metrics.exposition()[0]

    def tell(level, event, **fields):
        told.append((event, fields, failing(), audit.state["error"]))

    audit = Audit(section, None, metrics.audit, tell, instance="1")

    try:
        while not audit.journal._unsynced:
            audit.write(Record(1, "request", "chat", "req-1"))
        os.close(audit.journal._unsynced[0])
        audit.start()
        await until(lambda: told, what="it is told")
        audit.write(Record(2, "request", "chat", "req-2"))
        await until(lambda: audit.journal.synced == audit.journal.last, what="all is on the disk")
        await until(lambda: not failing(), what="it is well again")
        assert audit.state["error"] is None
    finally:
        await audit.stop()
    error = "OSError: [Errno 9] Bad file descriptor"
    assert [words for words in told if words[0] == "audit_upkeep_failed"] == [
        ("audit_upkeep_failed", {"error": error}, True, error)
    ]


async def test_health_and_metrics_show_the_journal(audited):
    async with audited() as gateway:
        await gateway.ask()
        audit = (await gateway.get("/health")).json["audit"]
        assert (audit["state"], audit["pending"], audit["error"]) == ("ok", 1, None)
        metrics = await gateway.metrics()
    assert metrics["citadel_audit_queue"] == 1
    assert metrics["citadel_audit_spool_bytes"] == audit["spool_bytes"] > 100
    assert metrics["citadel_audit_spool_limit_bytes"] == audit["spool_limit_bytes"]


async def test_an_instance_without_an_audit_log_says_so(gateway):
    assert (await gateway.get("/health")).json["audit"] is None


@pytest.mark.parametrize("policy", ["hash", "full"])
async def test_contents_are_kept_by_policy_and_the_answer_is_the_same(audited, records, upstream, tmp_path, policy):
    (tmp_path / "key").write_text("0123456789abcdef")
    upstream.script = answers({**CHAT, "note": "a@b.example"})
    async with audited(content=policy, hash_key_file=str(tmp_path / "key")) as gateway:
        answer = await gateway.ask()
        assert answer.json["note"] == "a@b.example"
        upstream.script = streams()
        assert (await gateway.ask(body=STREAM_BODY)).events[-1] == b"[DONE]"
    whole, stream = records()
    assert whole.content_policy == policy
    if policy == "full":
        assert whole.content["answer"]["note"] == "[email]"
        assert whole.content["request"]["messages"][0]["content"] == "Hello"
        assert stream.content["answer"] == "Hello."
    else:
        assert {len(digest) for digest in whole.content.values()} == {64}
        assert whole.content["request_hmac_sha256"] != stream.content["request_hmac_sha256"]


async def test_a_folder_that_cannot_be_used_ends_the_start_and_is_named(tmp_path, serve, upstream):
    (tmp_path / "file").write_text("")
    with pytest.raises(Exception, match="file"):
        async with serve(models={"phi3": [upstream]}, audit={"enabled": True, "directory": str(tmp_path / "file/x")}):
            pass


async def test_what_was_left_is_found_by_the_next_start(audited, records):
    async with audited() as gateway:
        await gateway.ask()
    async with audited() as gateway:
        await gateway.ask()
        assert (await gateway.get("/health")).json["audit"]["pending"] == 2
    assert len(records()) == 2


def test_actions_are_named_after_routes():
    assert action_of("POST", "/admin/v1/keys") == "keys.create"
    assert action_of("GET", "/admin/v1/keys/{key_id}") == "keys.read"
    assert action_of("POST", "/admin/v1/keys/{key_id}/rotate") == "keys.rotate"
    assert action_of("PUT", "/admin/v1/limits/{scope}/{subject}") == "limits.update"
    assert action_of("DELETE", "/v1/responses/{response_id}") == "responses.delete"
    assert hot_action("/v1/messages/count_tokens") == "messages.count_tokens"
    assert hot_action("/tokenize") == "tokenize"


async def test_a_journal_is_not_read_while_it_is_synchronised_and_loses_nothing(tmp_path):
    """Synchronisation runs on a thread, and segments end meanwhile."""
    journal = Journal.open(tmp_path, "1", Options(segment_bytes=4096), lambda *_, **__: None)
    from citadel_llm.api.audit import journal as module  # noqa: PLC0415

    count = 0
    for _ in range(20):
        ticket = journal.begin_sync()
        running = asyncio.create_task(asyncio.to_thread(module.sync, ticket)) if ticket else None
        for _ in range(200):
            journal.append(b"%d" % count)
            count += 1
        if running is not None:
            await running
            journal.end_sync(ticket)
    ticket = journal.begin_sync()
    module.sync(ticket)
    journal.end_sync(ticket)
    assert [int(entry.payload) for entry in journal.read(10_000)] == list(range(count))
    journal.close()
