"""The semantic cache: a gateway process and the lab's Qdrant.

Run inside the lab: `bin/lab run pytest tests/integration/test_semantic.py`; it needs the vector host alone.
"""

import json

import openai
import pytest
import pytest_asyncio
from files_site import memory_of

from callers import ask
from engine_embeddings import Embeds
from gateways import KEYS, spawned_gateway, write_keys
from upstreams import CHAT, Upstream, answers
from waiting import until

pytestmark = [pytest.mark.lab, pytest.mark.asyncio(loop_scope="module")]


class Counts:
    """A model that numbers its answers."""

    def __init__(self):
        self.count = 0

    async def __call__(self, call):
        self.count += 1
        message = {"role": "assistant", "content": f"answer {self.count}"}
        choices = [{"index": 0, "message": message, "finish_reason": "stop"}]
        await answers({**CHAT, "choices": choices})(call)


@pytest.fixture(scope="module")
def memory(credentials):
    with memory_of(credentials) as made:
        made.make(f"{made.prefix}_phi3")
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine():
    async with Upstream(Counts()) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(memory, engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gateway")
    keys = {**KEYS, "carl": "sk-test-of-carl-1111111111"}
    (folder / "vector.json").write_text("{}")

    write_keys(folder / "keys.json", keys)
    sections = memory.settings(folder)
    async with (
        Upstream(Embeds()) as embedding,
        spawned_gateway(
            folder,
            models={
                "phi3": {"upstreams": [engine], "version": "v1"},
                "minilm": {"upstreams": [embedding], "kind": "embedding", "max_tokens": 256},
            },
            vector=sections["vector"],
            # These vectors are of words alone: one more or less of them costs much.
            semantic={"enabled": True, "keys": ["alice", "bob"], "threshold": 0.6, "timeout_s": 2.0},
        ) as running,
    ):
        running.keys = keys
        yield running


async def put(gateway, question, *, name="alice", system="Be brief.", headers=(), **more):
    messages = [{"role": "system", "content": system}, {"role": "user", "content": question}]
    body = json.dumps({"model": "phi3", "messages": messages, **more}).encode()
    answer = await ask(gateway.port, "POST", "/v1/chat/completions", body, key=gateway.keys[name], headers=headers)
    assert answer.status == 200
    return answer.headers["x-citadel-cache"], answer.json["choices"][0]["message"]["content"]


async def kept(gateway, count):
    async def so():
        return (await gateway.metrics()).get("citadel_gateway_semantic_kept_total") == count

    await until(so, 20, what=f"{count} answers are kept")


async def test_an_answer_is_given_again_to_the_same_question_in_other_words_and_to_nothing_else(gateway):
    first = await put(gateway, "How do I reset my password?")
    assert first[0] != "hit"
    await kept(gateway, 1)
    assert await put(gateway, "How can I reset my password, please?") == ("hit", first[1])
    others = [
        put(gateway, "How do I reset my 2 passwords?"),
        put(gateway, "Why can I not reset my password?"),
        put(gateway, "How do I reset my router?"),
        put(gateway, "How do I reset my password?", system="Be long."),
        put(gateway, "How do I reset my password?", max_tokens=7),
        put(gateway, "How do I reset my password?", name="bob"),
        put(gateway, "How do I reset my password?", headers=[(b"cache-control", b"no-cache")]),
    ]
    for other in others:
        found = await other
        assert found[0] != "hit"
        assert found[1] != first[1]
    metrics = await gateway.metrics()
    assert metrics['citadel_gateway_semantic_lookups_total{outcome="hit"}'] == 1
    assert metrics["citadel_gateway_semantic_guarded_total"] >= 1


async def test_keys_that_are_not_named_take_no_part(gateway):
    before = await gateway.metrics()
    for _ in range(2):
        assert (await put(gateway, "What is a bridge?", name="carl"))[0] != "hit"
    after = await gateway.metrics()
    name = 'citadel_gateway_semantic_lookups_total{outcome="miss"}'
    assert after[name] == before[name]


async def test_the_official_client_sees_a_hit_as_any_answer(gateway):
    async with openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=gateway.keys["bob"], max_retries=0) as client:
        found = []
        for question in ("What is the tallest tower in Japan?", "Which is the tallest tower in Japan?"):
            count = (await gateway.metrics()).get("citadel_gateway_semantic_kept_total", 0)
            raw = await client.chat.completions.with_raw_response.create(
                model="phi3", messages=[{"role": "user", "content": question}]
            )
            found.append((raw.parse(), raw.headers))
            if raw.headers["x-citadel-cache"] != "hit":
                await kept(gateway, count + 1)
        assert found[1][1]["x-citadel-cache"] == "hit"
        assert 0.6 < float(found[1][1]["x-citadel-cache-similarity"]) <= 1.001
        assert found[1][0].choices == found[0][0].choices
