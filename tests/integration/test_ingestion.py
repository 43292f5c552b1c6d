"""Files are put into stores whatever happens meanwhile: processes killed, Qdrant or the database away.

Run inside the lab: `bin/lab run pytest tests/integration/test_ingestion.py`; it needs the SQL host and the vector host.
"""

import asyncio
import contextlib
import random
import subprocess
import time
from functools import partial

import openai
import pytest
import pytest_asyncio
from files_site import memory_of
from sessions_site import opened
from sql_host import REPO, SQL_HOST

from engine_embeddings import Embeds
from gateways import spawned_gateway, write_keys
from upstreams import CHAT, Upstream, answers
from waiting import until

pytestmark = [pytest.mark.lab, pytest.mark.asyncio(loop_scope="module")]
DOCUMENTS, KILLS = 1000, 10


@pytest.fixture(scope="module")
def site(credentials):
    with opened(credentials) as made:
        made.owner = made.user("anna")
        made.key_of_anna = made.key("anna", made.owner)
        yield made


@pytest.fixture(scope="module")
def memory(credentials):
    with memory_of(credentials) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine():
    async with Upstream(Embeds()) as running:
        yield running


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    made = tmp_path_factory.mktemp("gateway")
    write_keys(made / "keys.json", {"file": "sk-nobodys"})
    return made


@pytest.fixture
def running(site, memory, engine, folder):
    """`running(instance)`: a gateway process."""

    def made(instance="1", **files):
        models = {
            "phi3": {"upstreams": [engine]},
            "minilm": {"upstreams": [engine], "kind": "embedding", "max_tokens": 256},
        }
        sections = memory.settings(folder, **{"lease_s": 2, "batch": 8, **files})
        return spawned_gateway(folder, models=models, instance=instance, **site.settings(folder), **sections)

    return made


@contextlib.asynccontextmanager
async def client_of(gateway, site):
    await gateway.logged("identities_read")
    async with openai.AsyncOpenAI(
        base_url=f"{gateway.url}/v1", api_key=site.key_of_anna, max_retries=0, timeout=60
    ) as client:
        yield client


async def completed(client, store, count, seconds=180):
    async def done():
        counts = (await client.vector_stores.retrieve(store)).file_counts
        assert not counts.failed
        return counts.completed == count

    await until(done, seconds, what=f"{count} files are in")


def chunks_of(memory, store):
    """{(file, chunk): (text, vector)}; each point once."""
    points = memory.points(store_id=store)
    found = {
        (payload["file_id"], payload["chunk"]): (payload["text"], tuple(vector["dense"]), payload["tenant"])
        for payload, vector in points.values()
    }
    assert len(found) == len(points)
    return found


def has_points(memory, store, count):
    return len(memory.points(store_id=store)) >= count


async def test_a_thousand_documents_are_put_in_by_two_instances_and_found(site, memory, running):
    async with running("1") as first, running("2") as second, client_of(first, site) as anna:
        topics = ["ship", "bridge", "garden", "engine", "harbour"]
        began = time.monotonic()

        async def upload(n):
            text = f"Document number{n} is about a {topics[n % 5]}. Its code is c{n * 7919}.".encode()
            return await anna.files.create(file=(f"{n}.txt", text), purpose="assistants")

        files = []
        for n in range(0, DOCUMENTS, 20):
            files += await asyncio.gather(*(upload(m) for m in range(n, n + 20)))
        uploaded = time.monotonic()
        store = await anna.vector_stores.create(name="thousand")
        batch = await anna.vector_stores.file_batches.create(store.id, file_ids=[file.id for file in files])
        assert batch.file_counts.total == DOCUMENTS
        await completed(anna, store.id, DOCUMENTS)
        done = time.monotonic()
        print(f"\n{DOCUMENTS} documents: uploaded in {uploaded - began:.1f} s, put in in {done - uploaded:.1f} s")
        assert len(memory.points(store_id=store.id)) == DOCUMENTS
        for n in random.Random(1).sample(range(DOCUMENTS), 20):
            for by in (first, second):
                async with client_of(by, site) as client:
                    found = (await client.vector_stores.search(store.id, query=f"the code c{n * 7919}")).data
                    assert found[0].filename == f"{n}.txt"
        metrics = await first.metrics()
        told = await second.metrics()
        name = 'citadel_gateway_files_ingestions_total{outcome="completed"}'
        assert metrics[name] + told[name] == DOCUMENTS
        assert min(metrics[name], told[name]) > 0, "both took part"
        await anna.vector_stores.delete(store.id)
        await until(lambda: not memory.points(store_id=store.id), 120, what="its points are gone")


async def test_killed_ten_times_it_comes_to_the_same_as_uninterrupted(site, memory, engine, running):
    rng = random.Random(7)
    words = [f"w{n}" for n in range(500)]
    strategy = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 30}}
    async with running() as gateway, client_of(gateway, site) as anna:
        files = [
            (
                await anna.files.create(
                    file=(f"{n}.txt", " ".join(rng.choices(words, k=3000)).encode()), purpose="assistants"
                )
            ).id
            for n in range(6)
        ]
        plain = await anna.vector_stores.create(file_ids=files, chunking_strategy=strategy)
        await completed(anna, plain.id, len(files))
    wanted = chunks_of(memory, plain.id)
    assert len(wanted) > 200

    async def slowly():
        await asyncio.sleep(0.02)

    engine.script = Embeds(pause=slowly)
    again, progress = "", []
    for kill in range(KILLS):
        async with running(f"k{kill}") as gateway:
            async with client_of(gateway, site) as anna:
                if not again:
                    again = (await anna.vector_stores.create(file_ids=files, chunking_strategy=strategy)).id
            # At any moment of the work: as soon as one more of some batches is written, and a little later.
            before, goal = len(memory.points(store_id=again)), rng.randrange(1, 24)
            wish = min(before + goal, len(wanted))
            await until(partial(has_points, memory, again, wish), 60, what="it goes on")
            await asyncio.sleep(rng.uniform(0, 0.05))
            gateway.process.kill()
            await gateway.ended()
        progress.append(len(memory.points(store_id=again)))
    assert progress == sorted(progress)
    assert progress[0] < len(wanted), "the kills were while it worked"
    engine.script = Embeds()
    async with running() as gateway, client_of(gateway, site) as anna:
        await completed(anna, again, len(files))
        assert chunks_of(memory, again) == wanted
        assert (await anna.vector_stores.retrieve(again)).usage_bytes == (
            await anna.vector_stores.retrieve(plain.id)
        ).usage_bytes
        # What was done before a kill is not embedded anew: each time at most what was under way.
        assert len(engine.script.texts) < len(wanted)


def systemctl(host, *words):
    subprocess.run([str(REPO / "bin/lab"), "exec", host, "systemctl", *words], check=True, timeout=60)


@pytest.fixture
def stopped():
    """`stopped(host, unit)`: the unit stopped, and running again after the test."""
    units = []

    def do(host, unit):
        units.append((host, unit))
        systemctl(host, "stop", unit)

    yield do
    for host, unit in units:
        systemctl(host, "start", unit)


async def timed(call):
    began = time.monotonic()
    with pytest.raises(openai.InternalServerError) as error:
        await call
    return error.value, time.monotonic() - began


QDRANT = ("hx-vector-server-01", "citadel-lab-qdrant.service")
POOLER = (SQL_HOST, "pgpool2.service")


async def test_without_qdrant_searches_are_refused_and_all_goes_on_when_it_is_back(
    site, memory, running, stopped, engine
):
    embeds = Embeds()

    async def both(call):
        await (answers(CHAT) if call.path == "/v1/chat/completions" else embeds)(call)

    engine.script = both
    async with running() as gateway, client_of(gateway, site) as anna:
        file = await anna.files.create(file=("a.txt", b"some text"), purpose="assistants")
        store = await anna.vector_stores.create(file_ids=[file.id])
        await completed(anna, store.id, 1)
        stopped(*QDRANT)
        error, seconds = await timed(anna.vector_stores.search(store.id, query="text"))
        assert (error.status_code, error.code) == (503, "vector_store_unavailable")
        assert seconds < 1.0
        other = await anna.files.create(file=("b.txt", b"another text"), purpose="assistants")
        added = await anna.vector_stores.files.create(store.id, file_id=other.id)
        assert added.status == "in_progress"
        question = [{"role": "user", "content": "hi"}]
        assert (await anna.chat.completions.create(model="phi3", messages=question)).choices[0].message.content
        systemctl(QDRANT[0], "start", QDRANT[1])
        await completed(anna, store.id, 2, 60)
        found = (await anna.vector_stores.search(store.id, query="another text")).data
        assert found[0].file_id == other.id
    engine.script = Embeds()


async def test_without_the_database_all_of_it_is_refused_and_goes_on_when_it_is_back(site, running, stopped):
    async with running() as gateway, client_of(gateway, site) as anna:
        store = await anna.vector_stores.create()
        stopped(*POOLER)

        async def refused():
            try:
                await anna.vector_stores.retrieve(store.id)
            except openai.InternalServerError as error:
                return error.code == "database_unavailable"
            return False

        await until(refused, 30, what="the database is seen to be away")
        for call in (
            anna.files.create(file=("a.txt", b"text"), purpose="assistants"),
            anna.vector_stores.search(store.id, query="text"),
            anna.files.list(),
        ):
            error, seconds = await timed(call)
            assert (error.status_code, error.code) == (503, "database_unavailable")
            assert seconds < 1.0
        systemctl(POOLER[0], "start", POOLER[1])

        async def back():
            with contextlib.suppress(openai.InternalServerError):
                return await anna.vector_stores.retrieve(store.id)

        await until(back, 60, what="the database is back")
