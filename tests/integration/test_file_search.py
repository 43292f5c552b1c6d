"""`file_search` in chats and responses: the official client, a gateway process, the lab's PostgreSQL and Qdrant.

Run inside the lab: `bin/lab run pytest tests/integration/test_file_search.py`; it needs the SQL and the vector host.
"""

import asyncio
import json
import subprocess

import openai
import pytest
import pytest_asyncio
from files_site import memory_of
from sessions_site import opened
from sql_host import REPO

from citadel_llm.api.files.passages import HEAD, QUESTION
from engine_embeddings import Embeds
from engine_responses import Talks
from gateways import spawned_gateway, write_keys
from upstreams import STREAM_HEAD, Upstream, answers, chunk
from waiting import until

pytestmark = [pytest.mark.lab, pytest.mark.asyncio(loop_scope="module")]
NAMES = ["anna", "bert"]


class Answers:
    """Engines that say what a test wants, and keep what they were asked."""

    def __init__(self):
        self.asked = []
        self.says = "It is cheese [1]."

    async def __call__(self, call):
        request = json.loads(call.body)
        self.asked.append(request)
        if call.path == "/v1/responses":
            talks = Talks()
            response = talks._response(request)
            response["output"][0]["content"][0]["text"] = self.says
            await (talks._stream(call, response) if request.get("stream") else answers(response)(call))
            return
        head = {"id": "chatcmpl-1", "created": 1, "model": request["model"]}
        usage = {"prompt_tokens": 7, "completion_tokens": 3, "total_tokens": 10}
        if not request.get("stream"):
            message = {"role": "assistant", "content": self.says}
            choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
            await answers({**head, "object": "chat.completion", "choices": choices, "usage": usage})(call)
            return
        await call.send(STREAM_HEAD)
        deltas = [({"content": letter}, None) for letter in self.says] + [({}, "stop")]
        for delta, reason in deltas:
            choices = [{"index": 0, "delta": delta, "finish_reason": reason}]
            event = {**head, "object": "chat.completion.chunk", "choices": choices}
            await call.send(chunk(f"data: {json.dumps(event)}\n\n".encode()))
        await call.send(chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")


@pytest.fixture(scope="module")
def site(credentials):
    with opened(credentials) as made:
        made.owners = {name: made.user(name) for name in NAMES}
        made.keys = {name: made.key(name, id) for name, id in made.owners.items()}
        yield made


@pytest.fixture(scope="module")
def memory(credentials):
    with memory_of(credentials) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine():
    async with Upstream(Answers()) as running:
        yield running


@pytest.fixture
def says(engine):
    engine.script = Answers()
    return engine.script


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(site, memory, engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gateway")
    write_keys(folder / "keys.json", {"file": "sk-nobodys"})
    async with (
        Upstream(Embeds()) as embedding,
        spawned_gateway(
            folder,
            models={
                "phi3": {"upstreams": [engine], "max_tokens": 4096},
                "minilm": {"upstreams": [embedding], "kind": "embedding", "max_tokens": 256},
            },
            **site.settings(folder),
            **memory.settings(folder),
        ) as running,
    ):
        await running.logged("identities_read")
        yield running


@pytest.fixture
def client(gateway, site):
    def made(name="anna"):
        return openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=site.keys[name], max_retries=0, timeout=30)

    return made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def store(gateway, site):
    """Anna's, with two files: (store, {filename: id})."""
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=site.keys["anna"], max_retries=0) as anna:
        texts = {"moon.txt": "The moon is made of green cheese.", "sun.txt": "The sun is a ball of hot gas."}
        ids = {}
        for name, text in texts.items():
            ids[name] = (await anna.files.create(file=(name, text.encode()), purpose="assistants")).id
        made = await anna.vector_stores.create(file_ids=list(ids.values()))

        async def whole():
            return (await anna.vector_stores.retrieve(made.id)).file_counts.completed == 2

        await until(whole, 30, what="the store is whole")
        yield made.id, ids


def tool(store, **more):
    return {"type": "file_search", "vector_store_ids": [store], **more}


QUESTIONS = [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "What is the moon made of?"}]


async def test_a_chat_is_given_passages_and_says_where_they_are_from(client, store, says):
    id, files = store
    answer = await client().chat.completions.create(
        model="phi3", messages=QUESTIONS, tools=[tool(id, max_num_results=1)], tool_choice="auto"
    )
    [asked] = says.asked
    passage = '[1] from "moon.txt"\nThe moon is made of green cheese.\n\n'
    question = {"role": "user", "content": f"{HEAD}{passage}{QUESTION}What is the moon made of?"}
    assert asked == {"model": "phi3", "messages": [QUESTIONS[0], question]}
    message = answer.choices[0].message
    assert message.content == "It is cheese [1]."
    [cited] = message.model_dump(exclude_unset=True)["annotations"]
    assert cited == {"type": "file_citation", "index": 13, "file_id": files["moon.txt"], "filename": "moon.txt"}


async def test_a_stream_of_a_chat_ends_with_its_citations(client, store, says):
    id, files = store
    says.says = "No numbers."
    stream = await client().chat.completions.create(model="phi3", messages=QUESTIONS, tools=[tool(id)], stream=True)
    chunks = [one async for one in stream]
    assert "".join(one.choices[0].delta.content or "" for one in chunks) == says.says
    last = chunks[-1].choices[0]
    assert last.finish_reason == "stop"
    cited = last.delta.model_dump()["annotations"]
    assert {one["file_id"] for one in cited} == set(files.values())
    assert {one["index"] for one in cited} == {len(says.says)}


async def test_parts_of_a_message_and_other_tools_stay(client, store, says):
    id, _ = store
    picture = {"type": "image_url", "image_url": {"url": "data:image/png;base64,AAAA"}}
    content = [{"type": "text", "text": "What is the sun?"}, picture]
    function = {"type": "function", "function": {"name": "f", "parameters": {"type": "object", "properties": {}}}}
    await client().chat.completions.create(
        model="phi3", messages=[{"role": "user", "content": content}], tools=[function, tool(id, max_num_results=1)]
    )
    [asked] = says.asked
    assert asked["tools"] == [function]
    before, *rest = asked["messages"][0]["content"]
    assert rest == content
    assert before["text"].startswith(HEAD)
    assert 'from "sun.txt"' in before["text"]


async def test_a_response_has_the_search_its_results_and_citations_and_is_followed(client, store, says):
    id, files = store
    anna = client()
    first = await anna.responses.create(
        model="phi3", input="What is the moon made of?", tools=[tool(id)], include=["file_search_call.results"]
    )
    search, message = first.output
    assert (search.type, search.status, search.queries) == (
        "file_search_call",
        "completed",
        ["What is the moon made of?"],
    )
    assert [one.filename for one in search.results] == ["moon.txt", "sun.txt"]
    assert search.results[0].text == "The moon is made of green cheese."
    [cited] = message.content[0].annotations
    assert (cited.type, cited.file_id, cited.index) == ("file_citation", files["moon.txt"], 13)
    assert first.tools[0].vector_store_ids == [id]
    assert "tools" not in says.asked[0]
    assert "include" not in says.asked[0]
    assert says.asked[0]["input"].startswith(HEAD)

    kept = await anna.responses.retrieve(first.id)
    assert [item.type for item in kept.output] == ["file_search_call", "message"]
    second = await anna.responses.create(model="phi3", input="And the sun?", previous_response_id=first.id)
    assert [item.type for item in second.output] == ["message"]
    given = says.asked[1]["input"]
    assert [item.get("type") for item in given] == ["message", "message", "message"], "engines see no searches"
    assert (
        given[0]["content"] == "What is the moon made of?"
        or given[0]["content"][0]["text"] == "What is the moon made of?"
    )


async def test_a_stream_of_a_response_tells_of_the_search_first(client, store, says):
    id, files = store
    stream = await client().responses.create(
        model="phi3", input="What is the moon made of?", tools=[tool(id)], stream=True
    )
    events = [event async for event in stream]
    kinds = [event.type for event in events]
    assert kinds[:7] == [
        "response.created",
        "response.in_progress",
        "response.output_item.added",
        "response.file_search_call.in_progress",
        "response.file_search_call.searching",
        "response.file_search_call.completed",
        "response.output_item.done",
    ]
    assert [event.sequence_number for event in events] == list(range(len(events)))
    deltas = [event for event in events if event.type == "response.output_text.delta"]
    assert {event.output_index for event in deltas} == {1}
    last = events[-1].response
    assert [item.type for item in last.output] == ["file_search_call", "message"]
    assert last.output[1].content[0].annotations[0].file_id == files["moon.txt"]
    assert last.output[0].results is None


async def test_filters_and_thresholds_choose(client, store, says):
    id, files = store
    anna = client()
    await anna.vector_stores.files.update(files["sun.txt"], vector_store_id=id, attributes={"star": True})
    filters = {"type": "eq", "key": "star", "value": True}
    await anna.chat.completions.create(model="phi3", messages=QUESTIONS, tools=[tool(id, filters=filters)])
    assert 'from "sun.txt"' in says.asked[0]["messages"][1]["content"]
    assert 'from "moon.txt"' not in says.asked[0]["messages"][1]["content"]
    nothing = {"type": "eq", "key": "star", "value": False}
    answer = await anna.chat.completions.create(model="phi3", messages=QUESTIONS, tools=[tool(id, filters=nothing)])
    assert says.asked[1]["messages"] == QUESTIONS
    assert answer.choices[0].message.model_dump()["annotations"] == []


async def test_what_cannot_be_is_told(client, store, says):
    id, _ = store
    anna, bert = client(), client("bert")
    for tools, status, words in (
        ([tool(id), tool(id)], 400, "one `file_search`"),
        ([{"type": "file_search"}], 400, "vector_store_ids"),
        ([tool(id, max_num_results=99)], 400, "max_num_results"),
        ([tool(id, filters={"type": "is"})], 400, "filters"),
        ([tool("vs_none")], 404, "no vector store"),
    ):
        with pytest.raises(openai.APIStatusError, match=words) as error:
            await anna.chat.completions.create(model="phi3", messages=QUESTIONS, tools=tools)
        assert error.value.status_code == status
    with pytest.raises(openai.NotFoundError):
        await bert.chat.completions.create(model="phi3", messages=QUESTIONS, tools=[tool(id)])
    with pytest.raises(openai.BadRequestError, match="text of the user's"):
        await anna.chat.completions.create(model="phi3", messages=QUESTIONS[:1], tools=[tool(id)])
    assert not says.asked


async def test_the_words_alone_change_nothing(client, says):
    messages = [{"role": "user", "content": "What is file_search?"}]
    answer = await client().chat.completions.create(model="phi3", messages=messages)
    assert says.asked[0]["messages"] == messages
    assert "annotations" not in answer.choices[0].message.model_dump(exclude_unset=True)


def qdrant(verb):
    words = ["exec", "hx-vector-server-01", "systemctl", verb, "citadel-lab-qdrant.service"]
    subprocess.run([str(REPO / "bin/lab"), *words], check=True, timeout=60)


async def test_without_qdrant_it_is_a_503_or_goes_on_without_as_the_caller_chooses(client, store, says):
    id, _ = store
    anna = client()
    await asyncio.to_thread(qdrant, "stop")
    try:
        with pytest.raises(openai.InternalServerError) as error:
            await anna.chat.completions.create(model="phi3", messages=QUESTIONS, tools=[tool(id)], seed=1)
        assert (error.value.status_code, error.value.code) == (503, "vector_store_unavailable")
        assert not says.asked
        answer = await anna.chat.completions.create(
            model="phi3", messages=QUESTIONS, tools=[tool(id)], extra_headers={"x-citadel-retrieval": "optional"}
        )
        assert answer.choices[0].message.content == says.says
        assert says.asked[0]["messages"] == QUESTIONS
    finally:
        await asyncio.to_thread(qdrant, "start")
