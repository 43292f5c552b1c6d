"""The gateway's client of Qdrant, by each protocol, against the lab's vector host, which is stopped meanwhile.

Run inside the lab: `bin/lab run pytest tests/integration/test_vector_client.py`; it needs the vector host alone.
"""

import asyncio
import json
import math
import random
import secrets
import subprocess
import time
import urllib.error
import urllib.request
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from citadel_llm.integration.metrics.vector import VectorCounters
from citadel_llm.integration.vector.build import build_vector
from citadel_llm.integration.vector.errors import VectorReadOnly, VectorRefused, VectorUnavailable
from citadel_llm.integration.vector.points import Point
from citadel_llm.utils.config import Vector

pytestmark = pytest.mark.lab
REPO = Path(__file__).resolve().parents[2]
HOST = "hx-vector-server-01"
UNIT = "citadel-lab-qdrant.service"
DEADLINE_S = 60
SIZE = 16
WRITING = ["rest", "grpc"]
ALL = [*WRITING, "graphql"]


def on_the_host(*words):
    subprocess.run([str(REPO / "bin/lab"), "exec", HOST, *words], check=True, timeout=60, stdin=subprocess.DEVNULL)


@pytest.fixture
def ask(credentials):
    """`ask(method, path, body)`: Qdrant's answer, by REST alone."""

    def asked(method, path, body=None):
        request = urllib.request.Request(
            f"{credentials['qdrant_url']}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"api-key": credentials["qdrant_api_key"], "content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=30) as answer:
            return json.load(answer)["result"]

    return asked


def running(ask):
    try:
        ask("GET", "/readyz")
    except urllib.error.HTTPError:
        return False
    except json.JSONDecodeError:
        return True  # its answer is no JSON
    except OSError:
        return False
    return True


@pytest.fixture
def stopped(ask):
    """`stopped(verb)`: the service stopped (or frozen), and running again after the test."""

    def do(*words):
        on_the_host("systemctl", *words, UNIT)

    yield do
    on_the_host("systemctl", "kill", "--signal=SIGCONT", "--kill-whom=main", UNIT)
    on_the_host("systemctl", "start", UNIT)
    deadline = time.monotonic() + DEADLINE_S
    while not running(ask):
        assert time.monotonic() < deadline, "the host does not answer again"
        time.sleep(0.05)


@pytest.fixture
def collection(ask):
    """A collection as the role makes one, but smaller, by its alias."""
    name = f"test-{secrets.token_hex(4)}"
    settings = {
        "vectors": {"dense": {"size": SIZE, "distance": "Cosine"}},
        "sparse_vectors": {"bm25": {"modifier": "idf"}},
    }
    for one in (f"{name}-1", f"{name}-2"):
        ask("PUT", f"/collections/{one}", settings)
        index = {"field_name": "tenant", "field_schema": {"type": "keyword", "is_tenant": True}}
        ask("PUT", f"/collections/{one}/index?wait=true", index)
    ask(
        "POST",
        "/collections/aliases",
        {"actions": [{"create_alias": {"alias_name": name, "collection_name": f"{name}-1"}}]},
    )
    yield name
    for one in (f"{name}-1", f"{name}-2"):
        ask("DELETE", f"/collections/{one}")


class Changes(list):
    def __call__(self, up, reason):
        self.append((up, reason))


@pytest.fixture
async def make(credentials, tmp_path):
    """`make(protocol, **settings)`: a client; its registry and what it told are attributes."""
    file = tmp_path / "vector.json"
    file.write_text(json.dumps({"api_key": credentials["qdrant_api_key"]}))
    made = []

    async def makes(protocol, **changes):
        config = Vector(
            **{
                "enabled": True,
                "url": credentials["qdrant_url"],
                "protocol": protocol,
                "credentials_file": str(file),
                "cache_ttl_s": 0.0,
                **changes,
            }
        )
        registry, told = CollectorRegistry(), Changes()
        client = build_vector(config, VectorCounters(registry), told)
        client.registry, client.told, client.key_file = registry, told, file
        made.append(client)
        await client.prepare()
        return client

    yield makes
    for client in made:
        await client.close()


def vector(seed):
    rng = random.Random(seed)
    made = [rng.gauss(0, 1) for _ in range(SIZE)]
    length = math.sqrt(sum(x * x for x in made))
    return [x / length for x in made]


def points(count, *, first=0, text="text number {}"):
    return [
        Point(
            id=number,
            vector=vector(number),
            text=text.format(number),
            payload={"n": number, "file_id": f"f{number % 3}"},
        )
        for number in range(first, first + count)
    ]


def in_file(name):
    return {"must": [{"key": "file_id", "match": {"value": name}}]}


# -- what it does -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", WRITING)
async def test_points_are_written_found_changed_and_deleted(make, collection, protocol):
    client = await make(protocol, batch=16)
    assert await client.upsert(collection, points(50), tenant="a") == 50

    hits = await client.search(collection, tenant="a", vector=vector(7), limit=3, with_vectors=True)
    assert (hits[0].id, hits[0].payload["n"]) == (7, 7)
    assert hits[0].score == pytest.approx(1, abs=1e-4)
    assert hits[0].vector == pytest.approx(vector(7), abs=1e-4)
    assert [hit.id for hit in await client.search(collection, tenant="a", text="number 23", limit=1)] == [23]
    both = await client.search(collection, tenant="a", vector=vector(7), text="23", limit=4)
    assert {7, 23} <= {hit.id for hit in both}

    allowed = await client.search(collection, tenant="a", vector=vector(7), allowed=in_file("f2"), limit=50)
    assert {hit.payload["file_id"] for hit in allowed} == {"f2"}
    assert len(allowed) == await client.count(collection, tenant="a", allowed=in_file("f2")) == 16
    assert await client.search(collection, tenant="a", vector=vector(7), score_threshold=1.1) == []

    await client.set_payload(collection, {"seen": True}, tenant="a", ids=[1, 2])
    assert [hit.payload.get("seen") for hit in await client.retrieve(collection, [1, 3], tenant="a")] == [True, None]
    assert [hit.id async for hit in client.each(collection, tenant="a", page=16)] == list(range(50))

    await client.delete(collection, tenant="a", ids=[0])
    await client.delete(collection, tenant="a", allowed=in_file("f1"))
    assert await client.count(collection, tenant="a") == 50 - 17 - 1
    await client.delete(collection, tenant="a")
    assert await client.count(collection, tenant=None) == 0


@pytest.mark.parametrize("protocol", ALL)
async def test_every_protocol_reads_the_same(make, collection, protocol):
    await (await make("rest")).upsert(collection, points(30), tenant="a")
    client = await make(protocol)
    hits = await client.search(collection, tenant="a", vector=vector(7), limit=3)
    assert (hits[0].id, hits[0].payload["n"], hits[0].score) == (7, 7, pytest.approx(1, abs=1e-4))
    assert [hit.id for hit in await client.search(collection, tenant="a", text="number 23", limit=1)] == [23]
    assert await client.count(collection, tenant="a", allowed=in_file("f2")) == 10
    assert [hit.id async for hit in client.each(collection, tenant="a", page=7)] == list(range(30))
    assert [hit.payload["n"] for hit in await client.retrieve(collection, [4, 99], tenant="a")] == [4]
    assert f"{collection}-1" in await client.collections()
    assert (await client.aliases())[collection] == f"{collection}-1"
    assert client.state == {"up": True, "breaker": "closed", "error": None}


async def test_graphql_does_not_write_and_says_so(make, collection):
    client = await make("graphql")
    with pytest.raises(VectorReadOnly, match="`rest` or `grpc`"):
        await client.upsert(collection, points(1), tenant="a")
    assert client.state["up"] is True


@pytest.mark.parametrize("protocol", WRITING)
async def test_an_alias_moves_and_a_search_sees_the_old_or_the_new(make, collection, protocol):
    client = await make(protocol, cache_ttl_s=60.0)
    await client.upsert(f"{collection}-1", [Point(id=1, vector=vector(1))], tenant="a")
    await client.upsert(f"{collection}-2", [Point(id=2, vector=vector(2))], tenant="a")
    seen, moved = set(), asyncio.Event()

    async def search():
        while not moved.is_set():
            seen.add(tuple(hit.id for hit in await client.search(collection, tenant="a", vector=vector(3), fresh=True)))

    searching = asyncio.create_task(search())
    for target in ("2", "1") * 10:
        await client.point_alias(collection, f"{collection}-{target}")
    moved.set()
    await searching
    assert seen <= {(1,), (2,)}
    await client.search(collection, tenant="a", vector=vector(3))
    await client.point_alias(collection, f"{collection}-2")
    assert [hit.id for hit in await client.search(collection, tenant="a", vector=vector(3))] == [2], "nothing kept"


# -- tenants ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", WRITING)
async def test_tenants_do_not_see_or_touch_each_others_points(make, collection, protocol):
    client = await make(protocol)
    await client.upsert(collection, points(20), tenant="a")
    await client.upsert(collection, points(20, first=100), tenant="b")
    everything = {"should": [{"key": "tenant", "match": {"value": "a"}}, {"key": "tenant", "match": {"value": "b"}}]}
    found = await client.search(collection, tenant="b", vector=vector(1), text="number", allowed=everything, limit=99)
    assert {hit.payload["tenant"] for hit in found} == {"b"}
    assert await client.retrieve(collection, [1, 2], tenant="b") == []
    assert await client.count(collection, tenant="b", allowed=everything) == 20

    await client.set_payload(collection, {"stolen": True}, tenant="b", ids=[1])
    await client.upsert(collection, [Point(id=2, vector=vector(2), payload={"stolen": True})], tenant="b")
    await client.delete(collection, tenant="b", ids=[3], allowed=everything)
    await client.delete(collection, tenant="b")
    kept = await client.retrieve(collection, [1, 2, 3], tenant="a")
    assert [(hit.id, "stolen" in hit.payload) for hit in kept] == [(1, False), (2, False), (3, False)]
    assert await client.count(collection, tenant=None) == 20
    with pytest.raises(ValueError, match="not for callers"):
        await client.set_payload(collection, {"tenant": "a"}, tenant="b")


async def test_no_filter_of_a_caller_shows_another_tenants_point(make, collection):
    """Random filters, over what the points have and have not, each asked as both tenants."""
    client = await make("rest")
    await client.upsert(collection, points(15), tenant="a")
    await client.upsert(collection, points(15, first=100), tenant="b")
    condition = st.one_of(
        st.builds(
            lambda key, value: {"key": key, "match": {"value": value}},
            st.sampled_from(["tenant", "file_id", "none"]),
            st.sampled_from(["a", "b", "f1"]),
        ),
        st.builds(lambda ids: {"has_id": ids}, st.lists(st.sampled_from([1, 2, 101, 102]), max_size=3)),
        st.builds(lambda key: {"is_empty": {"key": key}}, st.sampled_from(["tenant", "n", "none"])),
    )
    group = st.lists(condition, min_size=1, max_size=3)
    filters = st.dictionaries(st.sampled_from(["must", "should", "must_not"]), group, min_size=1)
    loop = asyncio.get_running_loop()

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(allowed=filters, tenant=st.sampled_from(["a", "b"]))
    def holds(allowed, tenant):
        async def look():
            found = await client.search(collection, tenant=tenant, vector=vector(1), allowed=allowed, limit=50)
            page = await client.scroll(collection, tenant=tenant, allowed=allowed)
            return [*found, *page.points]

        seen = asyncio.run_coroutine_threadsafe(look(), loop).result(30)
        assert {hit.payload["tenant"] for hit in seen} <= {tenant}

    await asyncio.to_thread(holds)


# -- the cache --------------------------------------------------------------------------------------------------------


async def test_a_search_is_asked_once_and_again_after_a_write(make, collection):
    client = await make("rest", cache_ttl_s=60.0)

    def lookups(outcome):
        return client.registry.get_sample_value("citadel_gateway_vector_cache_lookups_total", {"outcome": outcome})

    await client.upsert(collection, points(5), tenant="a")
    first = await client.search(collection, tenant="a", vector=vector(1))
    assert await client.search(collection, tenant="a", vector=vector(1)) == first
    assert (lookups("miss"), lookups("hit")) == (1, 1)
    assert await client.search(collection, tenant="b", vector=vector(1)) == [], "another tenant's is another search"
    await client.delete(collection, tenant="a", ids=[1])
    assert 1 not in {hit.id for hit in await client.search(collection, tenant="a", vector=vector(1))}
    assert (lookups("miss"), lookups("hit")) == (3, 1)


# -- trouble ----------------------------------------------------------------------------------------------------------


async def fails(call):
    """That the call fails as unavailable; how long it took, in seconds."""
    began = time.monotonic()
    with pytest.raises(VectorUnavailable):
        await call
    return time.monotonic() - began


async def recovered(client, collection, expected):
    """The same client, until it answers again; nothing is restarted but Qdrant."""
    deadline = time.monotonic() + DEADLINE_S
    while True:
        try:
            hits = await client.search(collection, tenant="a", vector=vector(1), limit=1)
        except VectorUnavailable:
            assert time.monotonic() < deadline, "it does not recover"
            await asyncio.sleep(0.05)
        else:
            assert [hit.id for hit in hits] == expected
            return


@pytest.mark.parametrize("protocol", ALL)
@pytest.mark.parametrize("how", [["stop"], ["kill", "--signal=SIGSTOP", "--kill-whom=main"]])
async def test_qdrant_is_away_and_back(make, collection, ask, stopped, protocol, how):
    """Stopped, or frozen: then it takes connections and says nothing."""
    await (await make("rest")).upsert(collection, points(3), tenant="a")
    client = await make(protocol)
    assert [hit.id for hit in await client.search(collection, tenant="a", vector=vector(1), limit=1)] == [1]
    await asyncio.to_thread(stopped, *how)

    took = [await fails(client.search(collection, tenant="a", vector=vector(1))) for _ in range(6)]
    if protocol != "graphql":
        # Nothing was heard for a second, so that its health is asked first, and quickly.
        took += [await fails(client.upsert(collection, points(1), tenant="a"))]
    # The promise is a second; a busy machine is given its share on top.
    assert max(took) < 3, took
    assert client.state["breaker"] == "open"
    assert client.state["up"] is False
    assert client.told[-1][0] is False
    rejected = {"operation": "search", "outcome": "rejected"}
    assert client.registry.get_sample_value("citadel_gateway_vector_calls_total", rejected) >= 1

    verb = ["start"] if how == ["stop"] else ["kill", "--signal=SIGCONT", "--kill-whom=main"]
    await asyncio.to_thread(stopped, *verb)
    await recovered(client, collection, [1])
    assert client.told[-1] == (True, "")
    if protocol != "graphql":
        assert await client.upsert(collection, points(3, first=10), tenant="a") == 3


@pytest.mark.parametrize("protocol", ALL)
async def test_a_restart_between_two_calls_goes_unnoticed(make, collection, ask, stopped, protocol):
    """What was open is closed by then: the next call finds it out, and is made again."""
    await (await make("rest")).upsert(collection, points(3), tenant="a")
    client = await make(protocol)
    await client.search(collection, tenant="a", vector=vector(1))
    await asyncio.to_thread(stopped, "restart")
    hits = await client.search(collection, tenant="a", vector=vector(1), limit=1)
    assert [hit.id for hit in hits] == [1]


@pytest.mark.parametrize("protocol", ALL)
async def test_another_key_is_taken_up_without_a_restart(make, collection, credentials, protocol):
    await (await make("rest")).upsert(collection, points(3), tenant="a")
    client = await make(protocol, attempts=1)
    client.key_file.write_text(json.dumps({"api_key": "wrong"}))
    await client.close()
    with pytest.raises(VectorUnavailable, match="refuses the API key"):
        await client.search(collection, tenant="a", vector=vector(1))
    client.key_file.write_text(json.dumps({"api_key": credentials["qdrant_api_key"]}))
    assert len(await client.search(collection, tenant="a", vector=vector(1))) == 3


@pytest.mark.parametrize("protocol", ALL)
async def test_what_is_wrong_with_a_request_is_told_and_is_no_trouble(make, collection, protocol):
    client = await make(protocol)
    for _ in range(12):
        with pytest.raises(VectorRefused) as refused:
            await client.search(f"{collection}-none", tenant="a", vector=vector(1))
        assert refused.value.status == 404
        with pytest.raises(VectorRefused) as refused:
            await client.search(collection, tenant="a", vector=[1.0, 2.0])
        assert refused.value.status == 400
        with pytest.raises(VectorRefused) as refused:
            await client.count(collection, tenant="a", allowed={"must": [{"no": "condition"}]})
        assert refused.value.status == 400
    assert client.state == {"up": True, "breaker": "closed", "error": None}


async def test_a_missing_credentials_file_is_told(make, tmp_path):
    client = await make("rest", credentials_file=str(tmp_path / "none.json"))
    assert client.state["up"] is False
    with pytest.raises(VectorUnavailable, match=r"none\.json: expected a JSON object with `api_key`"):
        await client.count("any", tenant="a")


async def test_nobody_listens_there_at_all(make):
    client = await make("rest", url="http://127.0.0.1:9")
    assert client.state["up"] is False
    assert await fails(client.count("any", tenant="a")) < 3
