"""Users are kept apart: whatever the stores, filters and keys, nobody finds what is another's.

Run inside the lab: `bin/lab run pytest tests/integration/test_files_apart.py`; it needs the SQL and the vector host.
"""

import asyncio

import openai
import pytest
import pytest_asyncio
from files_site import memory_of
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from sessions_site import opened

from engine_embeddings import Embeds
from gateways import spawned_gateway, write_keys
from upstreams import Upstream
from waiting import until

pytestmark = pytest.mark.lab
USERS, STORES, FILES = 3, 2, 3


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def world(credentials, tmp_path_factory):
    """Users with two keys each, whose stores have files of the same words; {(user, store): ids of its files}."""
    folder = tmp_path_factory.mktemp("gateway")
    write_keys(folder / "keys.json", {"file": "sk-nobodys"})
    with opened(credentials) as site, memory_of(credentials) as memory:
        users = [site.user(f"user{n}") for n in range(USERS)]
        keys = [[site.key(f"user{n}", id), site.key(f"user{n}-again", id)] for n, id in enumerate(users)]
        async with (
            Upstream(Embeds()) as embedding,
            spawned_gateway(
                folder,
                models={"minilm": {"upstreams": [embedding], "kind": "embedding", "max_tokens": 256}},
                **site.settings(folder),
                **memory.settings(folder),
            ) as gateway,
        ):
            await gateway.logged("identities_read")
            clients = [
                [openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=key, max_retries=0) for key in own]
                for own in keys
            ]
            stores = {}
            for user in range(USERS):
                client = clients[user][0]
                for _ in range(STORES):
                    store = await client.vector_stores.create()
                    files = {}
                    for n in range(FILES):
                        text = f"alpha beta gamma delta number {n}".encode()
                        file = await client.files.create(file=(f"{n}.txt", text), purpose="assistants")
                        await client.vector_stores.files.create(
                            store.id, file_id=file.id, attributes={"n": n, "even": n % 2 == 0, "owner": f"user{user}"}
                        )
                        files[file.id] = n

                    async def whole(client=client, id=store.id):
                        return (await client.vector_stores.retrieve(id)).file_counts.completed == FILES

                    await until(whole, 60, what="a store is whole")
                    stores[store.id] = (user, files)
            yield clients, stores
            for own in clients:
                for client in own:
                    await client.close()


comparisons = st.one_of(
    st.builds(
        lambda kind, value: {"type": kind, "key": "n", "value": value},
        st.sampled_from(["eq", "ne", "gt", "gte", "lt", "lte"]), st.integers(-1, FILES),
    ),
    st.builds(
        lambda kind, value: {"type": kind, "key": "even", "value": value}, st.sampled_from(["eq", "ne"]), st.booleans()
    ),
    st.builds(
        lambda kind, values: {"type": kind, "key": "owner", "value": values}, st.sampled_from(["in", "nin"]),
        st.lists(st.sampled_from([f"user{n}" for n in range(USERS)]), min_size=1, max_size=3),
    ),
)  # fmt: skip
filters = st.recursive(
    comparisons,
    lambda inner: st.builds(
        lambda kind, parts: {"type": kind, "filters": parts},
        st.sampled_from(["and", "or"]),
        st.lists(inner, min_size=1, max_size=3),
    ),
    max_leaves=5,
)


def passes(given, n, user):
    """What a filter means, said again."""
    kind = given["type"]
    if kind in ("and", "or"):
        return (all if kind == "and" else any)(passes(one, n, user) for one in given["filters"])
    has, value = {"n": n, "even": n % 2 == 0, "owner": f"user{user}"}[given["key"]], given["value"]
    return {
        "eq": lambda: has == value, "ne": lambda: has != value, "gt": lambda: has > value, "gte": lambda: has >= value,
        "lt": lambda: has < value, "lte": lambda: has <= value, "in": lambda: has in value,
        "nin": lambda: has not in value,
    }[kind]()  # fmt: skip


@pytest.mark.asyncio(loop_scope="module")
async def test_a_search_finds_what_is_ones_own_and_passes_and_nothing_else(world):
    clients, stores = world
    loop = asyncio.get_running_loop()

    @settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
    @given(
        user=st.integers(0, USERS - 1),
        key=st.integers(0, 1),
        at=st.integers(0, len(stores) - 1),
        wanted=st.none() | filters,
        query=st.sampled_from(["alpha", "number 1", "something else"]),
        ranker=st.sampled_from(["auto", "none"]),
    )
    def check(user, key, at, wanted, query, ranker):
        id = list(stores)[at]
        owner, files = stores[id]
        more = {} if wanted is None else {"filters": wanted}
        call = clients[user][key].vector_stores.search(
            id, query=query, max_num_results=50, ranking_options={"ranker": ranker}, **more
        )
        future = asyncio.run_coroutine_threadsafe(_settled(call), loop)
        found = future.result(timeout=60)
        if owner != user:
            assert isinstance(found, openai.NotFoundError)
            return
        allowed = {file for file, n in files.items() if wanted is None or passes(wanted, n, user)}
        # By meaning everything that passes is found, however far; there are fewer than are asked for.
        assert {one.file_id for one in found.data} == allowed

    await asyncio.to_thread(check)


async def _settled(call):
    try:
        return await call
    except openai.APIStatusError as error:
        return error
