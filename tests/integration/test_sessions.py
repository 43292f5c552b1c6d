"""Conversations and kept responses: the official client, a gateway process, the lab's PostgreSQL through Pgpool-II.

Run inside the lab: `bin/lab run pytest tests/integration/test_sessions.py`; it needs the SQL host alone. The engine is
one of the tests' own that behaves as vLLM does.
"""

import asyncio
import json
import secrets
import uuid
from collections import Counter
from datetime import timedelta

import openai
import pytest
import pytest_asyncio
from sessions_site import opened
from sql_host import on_the_host

from citadel_llm.integration.database.connection import connected
from citadel_llm.integration.database.expiry import remove_expired
from engine_responses import Talks, said_in
from gateways import spawned_gateway, write_keys
from upstreams import Upstream
from waiting import until

pytestmark = [pytest.mark.lab, pytest.mark.asyncio(loop_scope="module")]
TTL_DAYS = 7
NAMES = ["anna", "bert", "admin", "carl:conversations", "dora:feedback"]


@pytest.fixture(scope="module")
def site(credentials):
    with opened(credentials) as made:
        made.owners = {name: made.user(name) for name in NAMES}
        made.keys = {name: made.key(name, id) for name, id in made.owners.items()}
        made.keys["file"] = f"sk-of-{secrets.token_hex(16)}"
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine():
    async with Upstream(Talks()) as running:
        yield running


@pytest.fixture
def talks(engine):
    """The engine's script, fresh."""
    engine.script = Talks()
    return engine.script


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(site, engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gateway")
    write_keys(folder / "keys.json", {"file": site.keys["file"]})
    async with spawned_gateway(
        folder,
        models={"phi3": {"upstreams": [engine], "max_tokens": 4096}},
        **site.settings(folder),
        sessions={"ttl_days": TTL_DAYS, "max_items": 30, "max_bytes": 65536, "max_item_bytes": 16384},
    ) as running:
        await running.logged("identities_read")
        yield running


@pytest.fixture
def client(gateway, site):
    """`client(name)`: the official client with that user's key."""

    def made(name="anna"):
        return openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=site.keys[name], max_retries=0, timeout=30)

    return made


async def ask(client, text, **more):
    return await client.responses.create(model="phi3", input=text, **more)


# -- responses --------------------------------------------------------------------------------------------------


async def test_a_response_is_kept_and_followed(client, talks):
    anna = client()
    first = await ask(anna, "one", instructions="Be brief.")
    assert first.id.startswith("resp_")
    assert (first.output_text, first.previous_response_id, first.conversation) == ("1: one", None, None)
    assert first.store is True
    second = await ask(anna, "two", previous_response_id=first.id)
    assert (second.output_text, second.previous_response_id) == ("3: two", first.id)
    third = await ask(anna, [{"role": "user", "content": "three"}], previous_response_id=second.id)
    assert said_in(talks.asked[-1]) == ["one", "1: one", "two", "3: two", "three"]
    assert "instructions" not in talks.asked[-1], "they are of their own response alone"
    found = await anna.responses.retrieve(third.id)
    assert found.model_dump() == third.model_dump()
    items = await anna.responses.input_items.list(third.id)
    assert [item.content[0].text for item in items.data] == ["three"]


async def test_a_stream_is_kept_before_its_end_and_followed(client, talks):
    anna = client()
    stream = await ask(anna, "one", stream=True)
    events = [event async for event in stream]
    whole = [event.response for event in events if hasattr(event, "response")]
    assert [event.type for event in events][-1] == "response.completed"
    assert len({response.id for response in whole}) == 1
    assert whole[-1].store is True
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole[-1].output_text == "1: one"
    second = await ask(anna, "two", previous_response_id=whole[-1].id)
    assert second.output_text == "3: two"
    found = await anna.responses.retrieve(whole[-1].id)
    assert found.model_dump() == whole[-1].model_dump()


async def test_a_response_in_a_conversation_adds_to_it(client, talks):
    anna = client()
    conversation = await anna.conversations.create(
        metadata={"topic": "test"}, items=[{"type": "message", "role": "user", "content": "zero"}]
    )
    first = await ask(anna, "one", conversation=conversation.id)
    assert (first.output_text, first.conversation.id) == ("2: one", conversation.id)
    stream = await ask(anna, "two", conversation={"id": conversation.id}, stream=True)
    events = [event async for event in stream]
    assert events[-1].response.output_text == "4: two"
    items = [item async for item in anna.conversations.items.list(conversation.id, order="asc", limit=2)]
    assert [item.content[0].text for item in items] == ["zero", "one", "2: one", "two", "4: two"]
    assert items[2].id == first.output[0].id
    branch = await ask(anna, "other", previous_response_id=first.id)
    assert said_in(talks.asked[-1]) == ["zero", "one", "2: one", "other"]
    assert branch.output_text == "4: other"


async def test_a_function_is_called_and_its_output_goes_back(client, engine):
    call = {
        "id": "fc_" + "0" * 32, "type": "function_call", "call_id": "call_1", "name": "weather", "arguments": "{}",
        "status": "completed",
    }  # fmt: skip
    engine.script = Talks(item=call)
    anna = client()
    first = await ask(anna, "How is it?")
    assert first.output[0].call_id == "call_1"
    engine.script = talks = Talks()
    output = {"type": "function_call_output", "call_id": "call_1", "output": "rain"}
    second = await ask(anna, [output], previous_response_id=first.id)
    assert second.output_text == "3: rain"
    assert [item.get("type") for item in talks.asked[-1]["input"]] == ["message", "function_call", output["type"]]


async def test_what_is_not_to_be_kept_is_not_there(client, talks):
    anna = client()
    answer = await anna.responses.with_raw_response.create(model="phi3", input="one", store=False)
    assert "x-citadel-stored" not in answer.headers
    with pytest.raises(openai.NotFoundError) as refused:
        await anna.responses.retrieve(answer.parse().id)
    assert refused.value.code == "response_not_found"
    with pytest.raises(openai.NotFoundError) as refused:
        await ask(anna, "two", previous_response_id=answer.parse().id)
    assert (refused.value.code, refused.value.param) == ("previous_response_not_found", "previous_response_id")


async def test_a_follow_up_need_not_be_kept_itself(client, talks):
    anna = client()
    first = await ask(anna, "one")
    second = await ask(anna, "two", previous_response_id=first.id, store=False)
    assert (second.output_text, second.store) == ("3: two", False)
    with pytest.raises(openai.NotFoundError):
        await anna.responses.retrieve(second.id)


async def test_a_failed_response_is_not_kept(client, engine):
    engine.script = Talks(status="failed")
    answer = await client().responses.with_raw_response.create(model="phi3", input="one")
    assert (answer.headers["x-citadel-stored"], answer.parse().store) == ("false", False)
    with pytest.raises(openai.NotFoundError):
        await client().responses.retrieve(answer.parse().id)


async def test_an_incomplete_response_is_kept(client, engine):
    engine.script = Talks(status="incomplete")
    first = await ask(client(), "one")
    assert (await client().responses.retrieve(first.id)).status == "incomplete"


async def test_a_stream_that_its_caller_leaves_is_not_kept(client, engine, site, gateway):
    left = asyncio.Event()
    engine.script = Talks(pause=left.wait)
    before = site.sql("select count(*) from llm.responses")
    stream = await ask(client(), "one", stream=True)
    await anext(aiter(stream))
    await stream.close()
    await gateway.logged("access", path="/v1/responses", status=499)
    left.set()
    assert site.sql("select count(*) from llm.responses") == before


async def test_two_answers_to_one_request_have_ids_of_their_own(client, talks):
    """A request that determines its answer, at the same time: what is kept is shared with nobody."""
    answers = await asyncio.gather(*[ask(client(), "one", temperature=0) for _ in range(4)])
    assert len({answer.id for answer in answers}) == 4
    assert len(talks.asked) == 4


async def test_an_answer_that_is_deleted_ends_what_follows_it(client, talks):
    anna = client()
    first = await ask(anna, "one")
    second = await ask(anna, "two", previous_response_id=first.id)
    await anna.responses.delete(first.id)
    with pytest.raises(openai.NotFoundError):
        await anna.responses.retrieve(first.id)
    with pytest.raises(openai.NotFoundError, match="Something that it follows"):
        await ask(anna, "three", previous_response_id=second.id)


async def test_both_ways_at_once_are_refused_and_so_is_what_is_no_id(client, talks):
    anna = client()
    for wrong in (
        {"previous_response_id": "resp_1", "conversation": "conv_1"}, {"previous_response_id": 5}, {"store": "yes"},
        {"conversation": {"name": "a"}},
    ):  # fmt: skip
        with pytest.raises(openai.BadRequestError) as refused:
            await ask(anna, "one", extra_body=wrong)
        assert refused.value.param in wrong
    for strange in ("", "conv_\x00", "conv_é", "x" * 200):
        with pytest.raises(openai.NotFoundError):
            await ask(anna, "one", conversation=strange)
        with pytest.raises(openai.NotFoundError):
            await ask(anna, "one", previous_response_id=strange or "\x00")
    assert talks.asked == []


async def test_what_the_database_would_not_take_as_text_comes_back_as_it_was(client, talks):
    anna = client()
    said = "NUL \x00, a quote ' and \" and \\u0000, 漢🏛, \u2028 and a line\nmore"
    first = await ask(anna, said, metadata={"a": "b"})
    await ask(anna, "two", previous_response_id=first.id)
    assert said_in(talks.asked[-1])[0] == said
    items = await anna.responses.input_items.list(first.id)
    assert items.data[0].content[0].text == said


async def test_a_chain_has_bounds(client, talks):
    anna = client()
    with pytest.raises(openai.BadRequestError) as refused:
        await ask(anna, "x" * 17_000)
    assert refused.value.code == "item_too_large"
    last = None
    for _ in range(15):
        last = await ask(anna, "more", previous_response_id=last.id if last else None)
    with pytest.raises(openai.BadRequestError) as refused:
        await ask(anna, "more", previous_response_id=last.id)
    assert (refused.value.code, refused.value.param) == ("conversation_too_long", "previous_response_id")
    first = await ask(anna, "x" * 16_200)
    second = await ask(anna, "y" * 16_200, previous_response_id=first.id)
    with pytest.raises(openai.BadRequestError) as refused:
        await ask(anna, "z", previous_response_id=second.id)
    assert refused.value.code == "conversation_too_long"


async def test_what_a_conversation_had_before_a_chain_counts_in_bytes(client, talks):
    """Four bytes a character: as many characters would fit."""
    anna = client()
    conversation = await anna.conversations.create(items=[message("🏛" * 3800) for _ in range(4)])
    first = await ask(anna, "one", conversation=conversation.id)
    with pytest.raises(openai.BadRequestError) as refused:
        await ask(anna, "x" * 6000, previous_response_id=first.id)
    assert (refused.value.code, refused.value.param) == ("conversation_too_long", "previous_response_id")


# -- conversations ----------------------------------------------------------------------------------------------


def message(text, role="user"):
    return {"type": "message", "role": role, "content": text}


async def test_a_conversation_lives_from_its_creation_to_its_deletion(client):
    anna = client()
    made = await anna.conversations.create(metadata={"topic": "one"})
    assert made.id.startswith("conv_")
    assert (made.object, made.metadata) == ("conversation", {"topic": "one"})
    assert (await anna.conversations.retrieve(made.id)).model_dump() == made.model_dump()
    changed = await anna.conversations.update(made.id, metadata={"topic": "two"})
    assert changed.metadata == {"topic": "two"}
    gone = await anna.conversations.delete(made.id)
    assert (gone.id, gone.deleted, gone.object) == (made.id, True, "conversation.deleted")
    for again in (anna.conversations.retrieve, anna.conversations.delete, anna.conversations.items.list):
        with pytest.raises(openai.NotFoundError):
            await again(made.id)


async def test_items_are_added_listed_shown_and_deleted(client):
    anna = client()
    conversation = await anna.conversations.create()
    with pytest.raises(openai.BadRequestError):
        await anna.conversations.items.create(conversation.id, items=[message(str(n)) for n in range(21)])
    added = await anna.conversations.items.create(
        conversation.id, items=[message("a"), message("b", "assistant"), message([{"type": "input_text", "text": "c"}])]
    )
    a, b, c = added.data
    assert (a.status, a.content[0].type, b.content[0].type, c.content[0].text) == (
        "completed", "input_text", "output_text", "c",
    )  # fmt: skip
    assert (added.first_id, added.last_id, added.has_more) == (a.id, c.id, False)

    async def listed(**how):
        page = await anna.conversations.items.list(conversation.id, **how)
        return [item.id for item in page.data], page.has_more

    assert await listed() == ([c.id, b.id, a.id], False)
    assert await listed(order="asc", limit=2) == ([a.id, b.id], True)
    assert await listed(order="asc", after=b.id) == ([c.id], False)
    assert await listed(after=a.id) == ([], False)
    assert (await anna.conversations.items.retrieve(b.id, conversation_id=conversation.id)).id == b.id
    assert (await anna.conversations.items.delete(b.id, conversation_id=conversation.id)).id == conversation.id
    assert await listed(order="asc") == ([a.id, c.id], False)
    for missing in (anna.conversations.items.retrieve, anna.conversations.items.delete):
        with pytest.raises(openai.NotFoundError):
            await missing(b.id, conversation_id=conversation.id)
    with pytest.raises(openai.NotFoundError):
        await listed(after=b.id)


@pytest.mark.parametrize(
    "wrong",
    [
        {"metadata": {str(n): "a" for n in range(17)}},
        {"metadata": {"k" * 65: "a"}},
        {"metadata": {"k": "v" * 513}},
        {"metadata": {"k": 5}},
        {"metadata": {"k": "\x00"}},
        {"items": [{"role": "user"}]},
        {"items": [{"type": "message", "role": "nobody", "content": "a"}]},
        {"items": ["a"]},
        {"items": [{"type": "x" * 65}]},
        {"items": [message("x" * 17_000)]},
        {"items": [message("\ud800")]},
        {"owner": "bert"},
        {"user_id": "00000000-0000-4000-8000-000000000000"},
    ],
)
async def test_what_no_conversation_may_hold_is_refused(gateway, site, wrong):
    answer = await gateway.ask("POST", "/v1/conversations", json.dumps(wrong).encode(), key=site.keys["anna"])
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")


async def test_a_conversation_has_bounds(client, talks):
    anna = client()
    conversation = await anna.conversations.create(items=[message(str(n)) for n in range(20)])
    await anna.conversations.items.create(conversation.id, items=[message(str(n)) for n in range(9)])
    await ask(anna, "the last", conversation=conversation.id)
    with pytest.raises(openai.BadRequestError) as refused:
        await anna.conversations.items.create(conversation.id, items=[message("more")])
    assert refused.value.code == "conversation_too_long"
    with pytest.raises(openai.BadRequestError) as refused:
        await ask(anna, "more", conversation=conversation.id)
    assert refused.value.code == "conversation_too_long"


async def test_items_that_are_added_at_once_have_an_order_and_are_all_there(client):
    anna = client()
    conversation = await anna.conversations.create()
    await asyncio.gather(
        *[anna.conversations.items.create(conversation.id, items=[message(f"{n}.{m}") for m in "ab"]) for n in range(8)]
    )
    said = [item.content[0].text async for item in anna.conversations.items.list(conversation.id, order="asc")]
    assert sorted(said) == sorted(f"{n}.{m}" for n in range(8) for m in "ab")
    assert all(a[0] == b[0] for a, b in zip(said[::2], said[1::2], strict=True)), "each request's are together"


async def test_ones_own_conversations_are_listed_the_last_used_first(gateway, client, site):
    bert = client("bert")
    made = [(await bert.conversations.create()).id for _ in range(3)]
    await bert.conversations.items.create(made[0], items=[message("a")])

    async def listed(query=""):
        page = (await gateway.get(f"/v1/conversations{query}", key=site.keys["bert"])).json
        return [entry["id"] for entry in page["data"]], page["has_more"]

    assert await listed("?limit=2") == ([made[0], made[2]], True)
    assert (await listed(f"?after={made[2]}"))[0][0] == made[1]
    await bert.conversations.create()
    other = await gateway.get("/v1/conversations?limit=100", key=site.keys["anna"])
    assert not set(made) & {entry["id"] for entry in other.json["data"]}


async def test_a_conversation_is_exported_whole_and_by_lines(gateway, client, site):
    anna = client()
    conversation = await anna.conversations.create(metadata={"a": "b"})
    for start in (0, 10):
        await anna.conversations.items.create(
            conversation.id, items=[message(f"line\n{n}") for n in range(start, start + 10)]
        )
    path = f"/v1/conversations/{conversation.id}/export"
    whole = (await gateway.get(path, key=site.keys["anna"])).json
    lines = (await gateway.get(f"{path}?format=jsonl", key=site.keys["anna"])).body.splitlines()
    assert whole["metadata"] == {"a": "b"}
    assert [item["content"][0]["text"] for item in whole["items"]] == [f"line\n{n}" for n in range(20)]
    assert [json.loads(line) for line in lines[1:]] == whole["items"]


# -- whose they are ---------------------------------------------------------------------------------------------


async def test_what_is_somebody_elses_is_not_found(client, gateway, site, talks):
    anna, bert = client(), client("bert")
    conversation = await anna.conversations.create(items=[message("a")])
    item = (await anna.conversations.items.list(conversation.id)).data[0]
    response = await ask(anna, "one", conversation=conversation.id)
    talks.asked.clear()
    for attempt in (
        lambda: bert.conversations.retrieve(conversation.id),
        lambda: bert.conversations.update(conversation.id, metadata={}),
        lambda: bert.conversations.delete(conversation.id),
        lambda: bert.conversations.items.list(conversation.id),
        lambda: bert.conversations.items.list(conversation.id, after=item.id),
        lambda: bert.conversations.items.create(conversation.id, items=[message("b")]),
        lambda: bert.conversations.items.retrieve(item.id, conversation_id=conversation.id),
        lambda: bert.conversations.items.delete(item.id, conversation_id=conversation.id),
        lambda: bert.get(f"/conversations/{conversation.id}/export", cast_to=object),
        lambda: bert.get(f"/conversations?after={conversation.id}", cast_to=object),
        lambda: bert.responses.retrieve(response.id),
        lambda: bert.responses.delete(response.id),
        lambda: bert.responses.input_items.list(response.id),
        lambda: ask(bert, "two", previous_response_id=response.id),
        lambda: ask(bert, "two", conversation=conversation.id),
    ):
        with pytest.raises(openai.NotFoundError):
            await attempt()
    assert talks.asked == []
    assert len((await anna.conversations.items.list(conversation.id)).data) == 3
    assert (await anna.responses.retrieve(response.id)).id == response.id


async def test_who_may_not_keep_anything_is_answered_and_told(client, talks):
    carl = client("carl:conversations")
    answer = await carl.responses.with_raw_response.create(model="phi3", input="one")
    assert (answer.headers["x-citadel-stored"], answer.parse().store) == ("false", False)
    for attempt in (
        lambda: ask(carl, "one", store=True), lambda: ask(carl, "one", conversation="conv_1"),
        carl.conversations.create, lambda: carl.responses.retrieve("resp_1"),
    ):  # fmt: skip
        with pytest.raises(openai.PermissionDeniedError):
            await attempt()


async def test_a_key_of_a_file_has_nothing_kept_and_is_told_so(client, talks):
    nobody = client("file")
    answer = await nobody.responses.with_raw_response.create(model="phi3", input="one")
    assert (answer.headers["x-citadel-stored"], answer.parse().store) == ("false", False)
    for attempt in (
        lambda: ask(nobody, "one", store=True), lambda: ask(nobody, "one", previous_response_id="resp_1"),
        nobody.conversations.create,
    ):  # fmt: skip
        with pytest.raises(openai.InternalServerError) as refused:
            await attempt()
        assert (refused.value.status_code, refused.value.code) == (501, "not_kept")
        assert refused.value.response.headers["x-should-retry"] == "false"
    with pytest.raises(openai.NotFoundError):
        await nobody.responses.retrieve("resp_1")


async def test_all_that_is_kept_of_a_user_is_exported_and_deleted(gateway, client, site, talks):
    dora = client("dora:feedback")
    conversation = await dora.conversations.create(items=[message(str(n)) for n in range(20)])
    await ask(dora, "one", conversation=conversation.id)
    await ask(dora, "two")
    site.sql(
        "insert into llm.feedback (request_id, user_id, stars) values ('req-of-dora', %s, 5)",
        site.owners["dora:feedback"],
    )

    async def data(method="GET", path="/v1/me/data", who="dora:feedback"):
        return await gateway.ask(method, path, None, key=site.keys[who])

    def kinds(answer):
        return Counter(json.loads(line)["object"] for line in answer.body.splitlines())

    wanted = {"conversation": 1, "conversation.item": 22, "kept_response": 2, "feedback": 1}
    assert kinds(await data()) == wanted
    other = f"/admin/v1/users/{site.owners['dora:feedback']}/data"
    assert (await data(path=other)).status == 403
    assert kinds(await data(path=other, who="admin")) == wanted
    for nobody in (str(uuid.uuid4()), "x", "%00" * 12):
        assert (await data("DELETE", f"/admin/v1/users/{nobody}/data", "admin")).status == 404
    gone = await data("DELETE", other, "admin")
    counts = {"conversations": 1, "responses": 2, "feedback": 1, "files": 0, "vector_stores": 0}
    assert gone.json == {"object": "user.data.deleted", **counts}
    assert kinds(await data()) == {}
    assert (await data("DELETE")).json["conversations"] == 0


# -- ratings ----------------------------------------------------------------------------------------------------


async def test_an_answer_is_rated_once_by_each_caller(gateway, client, site, talks):
    answer = await client().responses.with_raw_response.create(model="phi3", input="one")
    request_id = answer.headers["x-request-id"]

    async def rate(who="anna", **said):
        body = json.dumps({"request_id": request_id, **said}).encode()
        return await gateway.ask("POST", "/v1/feedback", body, key=site.keys[who])

    async def counted(kind, model="phi3"):
        found = await gateway.metrics()
        labels = f'{{kind="{kind}",model="{model}"}}'
        return tuple(found[f"citadel_feedback{part}_total{labels}"] for part in ("", "_withdrawn"))

    assert await counted("up") == (0, 0)
    first = await rate(thumb="up", comment="Good.")
    assert await counted("up") == (1, 0)
    assert (first.status, first.json["thumb"], first.json["stars"], first.json["model"]) == (200, "up", None, "phi3")
    second = await rate(stars=2, labels=["slow"])
    assert (second.json["thumb"], second.json["stars"], second.json["labels"]) == (None, 2, ["slow"])
    assert (await counted("up"), await counted("stars_2")) == ((1, 1), (1, 0))
    assert (await rate("bert", thumb="down")).json["model"] is None, "it was not bert's request"
    assert await counted("down", "unknown") == (1, 0)
    rows = site.sql("select rating, stars from llm.feedback where request_id = %s order by stars", request_id)
    assert rows == [(None, 2), (-1, None)]
    listed = (await gateway.get("/v1/feedback", key=site.keys["anna"])).json
    assert request_id in [entry["request_id"] for entry in listed["data"]]
    for status in (204, 404):
        gone = await gateway.ask("DELETE", f"/v1/feedback/{request_id}", None, key=site.keys["anna"])
        assert gone.status == status
    assert await counted("stars_2") == (1, 1)
    assert (await rate("dora:feedback", thumb="up")).status == 403


async def test_of_votes_that_come_at_once_one_stands_and_it_counts_once(gateway, site):
    """A double click, and more: what was counted less what was withdrawn is what stands."""
    before = await gateway.metrics()
    bodies = [json.dumps({"request_id": "req-click", "thumb": ("up", "down")[n % 2]}).encode() for n in range(12)]
    for _ in range(3):
        answers = await asyncio.gather(
            *(gateway.ask("POST", "/v1/feedback", body, key=site.keys["anna"]) for body in bodies)
        )
        assert {answer.status for answer in answers} == {200}
    after = await gateway.metrics()

    def standing(kind):
        labels = f'{{kind="{kind}",model="unknown"}}'
        names = (f"citadel_feedback_total{labels}", f"citadel_feedback_withdrawn_total{labels}")
        given, withdrawn = (after[name] - before[name] for name in names)
        return given - withdrawn

    ((rating,),) = site.sql("select rating from llm.feedback where request_id = 'req-click'")
    assert (standing("up"), standing("down")) == ((1, 0) if rating == 1 else (0, 1))


@pytest.mark.parametrize(
    "wrong",
    [
        {}, {"thumb": "sideways"}, {"stars": 0}, {"stars": 6}, {"stars": 2.5}, {"stars": 5, "comment": "x" * 4097},
        {"stars": 5, "user_id": "x"}, {"stars": 5, "comment": "\x00"}, {"stars": 5, "request_id": "\x00"},
        {"stars": 5, "labels": ["x" * 65]},
    ],
)  # fmt: skip
async def test_what_is_no_rating_is_refused(gateway, site, wrong):
    body = json.dumps({"request_id": "req-1", **wrong}).encode()
    answer = await gateway.ask("POST", "/v1/feedback", body, key=site.keys["anna"])
    assert (answer.status, answer.error["type"]) == (400, "invalid_request_error")


# -- time, and the database away --------------------------------------------------------------------------------


async def test_what_is_new_is_kept_for_as_many_days_as_are_configured(client, site, talks):
    anna = client()
    conversation = await anna.conversations.create()
    response = await ask(anna, "one")
    for table, id in (("sessions", conversation.id), ("responses", response.id)):
        assert site.sql(f"select expires_at - created_at from llm.{table} where id = %s", id) == [
            (timedelta(days=TTL_DAYS),)
        ]


async def test_what_has_expired_is_not_found_and_is_removed_by_the_timers_command(client, site, talks, tmp_path):
    anna = client()
    conversation = await anna.conversations.create(items=[message("a")])
    first = await ask(anna, "one")
    second = await ask(anna, "two", previous_response_id=first.id)
    alone = await ask(anna, "alone")
    site.sql("update llm.sessions set expires_at = now() where id = %s", conversation.id)
    site.sql("update llm.responses set expires_at = now() where id = %s", alone.id)
    for attempt in (
        lambda: anna.conversations.retrieve(conversation.id), lambda: anna.responses.retrieve(alone.id),
        lambda: anna.conversations.items.list(conversation.id),
        lambda: ask(anna, "more", conversation=conversation.id),
        lambda: ask(anna, "more", previous_response_id=alone.id),
    ):  # fmt: skip
        with pytest.raises(openai.NotFoundError):
            await attempt()
    kept = (
        "select (select count(*) from llm.responses where id = %s), "
        "(select count(*) from llm.messages where session_id = %s)"
    )
    assert site.sql(kept, alone.id, conversation.id) == [(1, 1)]
    # As the gateway's own user, which the timer's command is.
    with connected(site.target("database_gateway_url")) as engine:
        removed = await asyncio.to_thread(remove_expired, engine)
    assert min(removed.values()) >= 1
    assert site.sql(kept, alone.id, conversation.id) == [(0, 0)]
    # What something follows lives longer than it.
    until = dict(site.sql("select id, expires_at from llm.responses where id in (%s, %s)", first.id, second.id))
    assert until[first.id] > until[second.id]


async def test_while_the_database_is_away_plain_requests_are_answered_and_the_others_told_soon(
    client, gateway, talks, site
):
    anna = client()
    first = await ask(anna, "one")
    conversation = await anna.conversations.create()
    on_the_host("systemctl", "stop", "pgpool2")
    try:
        await gateway.logged("database_state", up=False)
        for stream in (False, True):
            answer = await anna.responses.with_raw_response.create(model="phi3", input="one", stream=stream)
            assert answer.headers["x-citadel-stored"] == "false"
            parsed = answer.parse()
            whole = [event async for event in parsed][-1].response if stream else parsed
            assert (whole.output_text, whole.store) == ("1: one", False)
        for attempt in (
            lambda: ask(anna, "two", store=True), lambda: ask(anna, "two", previous_response_id=first.id),
            lambda: ask(anna, "two", conversation=conversation.id), anna.conversations.create,
            lambda: anna.responses.retrieve(first.id), lambda: anna.get("/me/data", cast_to=object),
        ):  # fmt: skip
            async with asyncio.timeout(2.5):
                with pytest.raises(openai.InternalServerError) as refused:
                    await attempt()
            assert (refused.value.status_code, refused.value.code) == (503, "database_unavailable")
            assert int(refused.value.response.headers["retry-after"]) > 0
    finally:
        on_the_host("systemctl", "start", "pgpool2")
    await until_answered(anna, first.id)
    assert (await ask(anna, "two", previous_response_id=first.id)).output_text == "3: two"


async def test_a_database_that_goes_away_amid_an_answer_is_told_where_that_was_wanted(client, gateway, engine, site):
    anna = client()

    arrived, gone = 0, asyncio.Event()

    async def stop():
        """Once all four are being answered, and before any of them is."""
        nonlocal arrived
        arrived += 1
        if arrived == 4:
            await asyncio.to_thread(on_the_host, "systemctl", "stop", "pgpool2")
            gone.set()
        await gone.wait()

    async def last(stream, store):
        answer = await ask(anna, "one", stream=stream, store=store)
        return [event async for event in answer][-1].response if stream else answer

    engine.script = Talks(pause=stop)
    wanted = [(stream, store) for stream in (False, True) for store in (True, openai.omit)]
    try:
        said = await asyncio.gather(*[last(*how) for how in wanted], return_exceptions=True)
    finally:
        on_the_host("systemctl", "start", "pgpool2")
    for (_, store), answer in zip(wanted, said, strict=True):
        if store is True:
            assert isinstance(answer, openai.APIError)
            assert "can't be reached at the moment" in str(answer)
        else:
            assert answer.store is False
    await until_answered(anna, None)


async def until_answered(client, id):
    async def answers():
        try:
            return await (client.conversations.create() if id is None else client.responses.retrieve(id))
        except openai.InternalServerError:
            return None

    await until(answers, 30, what="the database is back")
