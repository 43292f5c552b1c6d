"""Files and vector stores: the official client, gateway processes, the lab's PostgreSQL through Pgpool-II, its Qdrant.

Run inside the lab: `bin/lab run pytest tests/integration/test_files.py`; it needs the SQL host and the vector host. The
embedding engine is one of the tests' own.
"""

import asyncio
import hashlib
import secrets
import zlib
from itertools import pairwise

import httpx
import openai
import pytest
import pytest_asyncio
from files_site import memory_of
from sessions_site import opened

from engine_embeddings import Embeds
from gateways import spawned_gateway, write_keys
from upstreams import Upstream
from waiting import until

pytestmark = [pytest.mark.lab, pytest.mark.asyncio(loop_scope="module")]
NAMES = ["anna", "bert"]
STATIC = {"type": "static", "static": {"max_chunk_size_tokens": 100, "chunk_overlap_tokens": 20}}


@pytest.fixture(scope="module")
def site(credentials):
    with opened(credentials) as made:
        made.owners = {name: made.user(name) for name in NAMES}
        made.keys = {name: made.key(name, id) for name, id in made.owners.items()}
        made.keys["file"] = f"sk-of-{secrets.token_hex(16)}"
        yield made


@pytest.fixture(scope="module")
def memory(credentials):
    with memory_of(credentials) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine():
    async with Upstream(Embeds()) as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(site, memory, engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gateway")
    write_keys(folder / "keys.json", {"file": site.keys["file"]})
    async with spawned_gateway(
        folder,
        models={"minilm": {"upstreams": [engine], "kind": "embedding", "max_tokens": 256}},
        **site.settings(folder),
        **memory.settings(folder, max_file_bytes=4 << 20, user_bytes=64 << 20),
    ) as running:
        await running.logged("identities_read")
        yield running


@pytest.fixture
def client(gateway, site):
    """`client(name)`: the official client with that user's key."""

    def made(name="anna"):
        return openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=site.keys[name], max_retries=0, timeout=60)

    return made


def contents(gateway):
    """The digests of what lies on the gateway's disk."""
    return {path.name for path in (gateway.folder / "files").glob("??/*")} - set()


async def upload(client, text, name="a.txt", **more):
    data = text if isinstance(text, bytes) else text.encode()
    return await client.files.create(file=(name, data), purpose="assistants", **more)


async def put(client, store, *files, **more):
    """The batch, once all is done."""
    batch = await client.vector_stores.file_batches.create(store.id, file_ids=[file.id for file in files], **more)

    async def done():
        found = await client.vector_stores.file_batches.retrieve(batch.id, vector_store_id=store.id)
        return found if found.status != "in_progress" else None

    return await until(done, 60, what="a batch is done")


async def search(client, store, query, **more):
    return (await client.vector_stores.search(store.id, query=query, **more)).data


# -- files ------------------------------------------------------------------------------------------------------


async def test_a_file_is_uploaded_listed_read_and_deleted(client, gateway):
    anna = client()
    text = b"The quick brown fox.\n" * 10_000
    file = await upload(anna, text, "Füchse.txt", expires_after={"anchor": "created_at", "seconds": 3600})
    assert (file.object, file.bytes, file.filename, file.purpose) == ("file", len(text), "Füchse.txt", "assistants")
    assert file.expires_at - file.created_at == 3600
    assert await anna.files.retrieve(file.id) == file
    assert (await anna.files.content(file.id)).content == text
    assert file.id in [one.id async for one in anna.files.list()]
    assert hashlib.sha256(text).hexdigest() in contents(gateway)
    assert (await anna.files.delete(file.id)).deleted
    assert hashlib.sha256(text).hexdigest() not in contents(gateway)
    with pytest.raises(openai.NotFoundError):
        await anna.files.retrieve(file.id)


async def test_one_content_is_kept_once_and_as_long_as_any_file_has_it(client, gateway):
    anna, bert = client(), client("bert")
    text = b"shared" * 1000
    name = hashlib.sha256(text).hexdigest()
    first, second = await upload(anna, text), await upload(bert, text)
    await anna.files.delete(first.id)
    assert name in contents(gateway)
    assert (await bert.files.content(second.id)).content == text
    await bert.files.delete(second.id)
    assert name not in contents(gateway)


async def test_lists_are_paged_both_ways(client):
    anna = client()
    files = [await upload(anna, f"page {n}", purpose_name := f"{n}.txt") for n in range(5)]
    assert purpose_name
    ids = {file.id for file in files}
    for order in ("asc", "desc"):
        seen = [file.id async for file in anna.files.list(limit=2, order=order) if file.id in ids]
        wanted = [file.id for file in files]
        assert seen == (wanted if order == "asc" else wanted[::-1])
    for file in files:
        await anna.files.delete(file.id)


async def test_what_is_wrong_with_an_upload_is_told(client, gateway, site):
    anna = client()
    with pytest.raises(openai.APIStatusError, match="A file may have 4194304 bytes") as error:
        await upload(anna, b"x" * (5 << 20))
    assert error.value.status_code == 413
    with pytest.raises(openai.BadRequestError, match="purpose"):
        await anna.files.create(file=("a.txt", b"x"), purpose="nothing")
    headers = {"authorization": f"Bearer {site.keys['anna']}"}
    async with httpx.AsyncClient(base_url=gateway.url, headers=headers) as plain:
        answer = await plain.post("/v1/files", json={"purpose": "assistants"})
        assert (answer.status_code, answer.json()["error"]["code"]) == (415, "unsupported_media_type")
        cut = b'--b\r\ncontent-disposition: form-data; name="file"; filename="a"\r\n\r\nhalf'
        multipart = {"content-type": "multipart/form-data; boundary=b"}
        answer = await plain.post("/v1/files", content=cut, headers=multipart)
        assert answer.status_code == 400
        assert "cut off" in answer.text
        answer = await plain.post("/v1/files", content=b"--b\r\n" + b"x" * 100_000, headers=multipart)
        assert answer.status_code == 400
    assert not list((gateway.folder / "files/new").iterdir()), "nothing is left of what was refused"


async def test_a_users_files_are_bounded(client):
    bert = client("bert")
    made = []
    with pytest.raises(openai.BadRequestError, match="67108864 bytes") as error:  # noqa: PT012
        for n in range(20):
            made.append(await upload(bert, bytes([n]) * (4 << 20)))
    assert error.value.code == "quota_exceeded"
    assert len(made) == 16
    for file in made:
        await bert.files.delete(file.id)


async def test_a_files_key_has_no_files(client):
    with pytest.raises(openai.APIStatusError) as error:
        await upload(client("file"), "text")
    assert error.value.status_code == 501


# -- stores -----------------------------------------------------------------------------------------------------


async def test_a_store_is_made_filled_searched_and_deleted(client, memory, site):
    anna = client()
    fox = await upload(anna, "The quick brown fox jumps over the lazy dog.", "fox.txt")
    moon = await upload(anna, "# Moon\n\nThe moon is made of green cheese.", "moon.md")
    page = await upload(
        anna, "<html><head><style>p {}</style></head><body><p>Bees make honey.</p></body></html>", "bees.html"
    )
    store = await anna.vector_stores.create(
        name="animals", file_ids=[fox.id], metadata={"a": "b"}, expires_after={"anchor": "last_active_at", "days": 7}
    )
    batch = await put(anna, store, moon, page)
    assert (batch.status, batch.file_counts.completed, batch.file_counts.total) == ("completed", 2, 2)

    async def whole():
        return (await anna.vector_stores.retrieve(store.id)).status == "completed"

    await until(whole, 30, what="the store is whole")
    found = await anna.vector_stores.retrieve(store.id)
    assert (found.file_counts.completed, found.name, found.metadata) == (3, "animals", {"a": "b"})
    assert found.usage_bytes > 100
    best = (await search(anna, store, "what is the moon made of", max_num_results=2))[0]
    assert (best.file_id, best.filename, best.content[0].text) == (
        moon.id,
        "moon.md",
        "# Moon\n\nThe moon is made of green cheese.",
    )
    [bees] = await search(anna, store, "honey", max_num_results=1)
    assert bees.content[0].text == "Bees make honey."
    tenants = {payload["tenant"] for payload, _ in memory.points(store_id=store.id).values()}
    assert tenants == {site.owners["anna"]}
    listed = [file.id async for file in anna.vector_stores.files.list(store.id, limit=1)]
    assert set(listed) == {fox.id, moon.id, page.id}

    await anna.vector_stores.files.delete(moon.id, vector_store_id=store.id)
    assert moon.id not in {one.file_id for one in await search(anna, store, "moon cheese")}
    await until(lambda: not memory.points(file_id=moon.id), 30, what="its points are gone")
    assert (await anna.files.retrieve(moon.id)).id == moon.id, "the file is still there"

    await anna.files.delete(fox.id)
    assert fox.id not in {one.file_id for one in await search(anna, store, "quick brown fox")}
    assert (await anna.vector_stores.delete(store.id)).deleted
    with pytest.raises(openai.NotFoundError):
        await search(anna, store, "honey")
    await until(lambda: not memory.points(store_id=store.id), 30, what="the store's points are gone")


async def test_attributes_filter_and_can_be_changed(client):
    anna = client()
    store = await anna.vector_stores.create(name="filters")
    years = {2019: "draft", 2020: "final", 2021: "final"}
    ids = {}
    for year, state in years.items():
        file = await upload(anna, f"report of the year {year}", f"{year}.txt")
        attributes = {"year": year, "state": state, "odd.name": year % 2 == 1, "share": year / 10}
        await anna.vector_stores.files.create(store.id, file_id=file.id, attributes=attributes)
        ids[file.id] = year

    async def whole():
        return (await anna.vector_stores.retrieve(store.id)).file_counts.completed == 3

    await until(whole, 30, what="the files are in")

    async def years_of(filters):
        return {ids[one.file_id] for one in await search(anna, store, "report", filters=filters, max_num_results=50)}

    def is_(kind, key, value):
        return {"type": kind, "key": key, "value": value}

    assert await years_of(is_("eq", "year", 2020)) == {2020}
    assert await years_of(is_("ne", "year", 2020)) == {2019, 2021}
    assert await years_of(is_("gte", "year", 2020)) == {2020, 2021}
    assert await years_of(is_("lt", "share", 202.0)) == {2019}
    assert await years_of(is_("eq", "odd.name", True)) == {2019, 2021}
    assert await years_of(is_("in", "state", ["draft", "none"])) == {2019}
    assert await years_of(is_("nin", "year", [2019, 2021])) == {2020}
    both = {"type": "and", "filters": [is_("eq", "state", "final"), is_("gt", "year", 2020)]}
    either = {"type": "or", "filters": [is_("eq", "state", "draft"), both]}
    assert await years_of(either) == {2019, 2021}
    with pytest.raises(openai.BadRequestError, match="filters"):
        await years_of({"type": "near", "key": "year", "value": 1})
    [draft] = [id for id, year in ids.items() if year == 2019]
    changed = await anna.vector_stores.files.update(draft, vector_store_id=store.id, attributes={"state": "final"})
    assert changed.attributes == {"state": "final"}
    assert await years_of(is_("eq", "state", "final")) == {2019, 2020, 2021}
    [hit] = [one for one in await search(anna, store, "report") if one.file_id == draft]
    assert hit.attributes == {"state": "final"}
    whole = await search(
        anna, store, ["report", "year 2021"], ranking_options={"ranker": "none", "score_threshold": 0.3}
    )
    assert {ids[one.file_id] for one in whole} == {2019, 2020, 2021}
    await anna.vector_stores.delete(store.id)


async def test_long_texts_are_cut_as_told_and_read_back(client, memory):
    anna = client()
    words = [f"w{n}" for n in range(1000)]
    file = await upload(anna, " ".join(words))
    store = await anna.vector_stores.create()
    await put(anna, store, file, chunking_strategy=STATIC)
    chunks = [
        one.text.split() for one in (await anna.vector_stores.files.content(file.id, vector_store_id=store.id)).data
    ]
    assert [len(chunk) for chunk in chunks[:-1]] == [100] * (len(chunks) - 1)
    assert all(one[80:] == next_[:20] for one, next_ in pairwise(chunks))
    assert chunks[0] + [word for chunk in chunks[1:] for word in chunk[20:]] == words
    # Larger than the embedding model takes at once; and what was there before of smaller chunks is gone.
    larger = {"type": "static", "static": {"max_chunk_size_tokens": 600, "chunk_overlap_tokens": 0}}
    await put(anna, store, file, chunking_strategy=larger)
    assert {payload["chunk"] for payload, _ in memory.points(store_id=store.id).values()} == {0, 1}
    found = await anna.vector_stores.files.retrieve(file.id, vector_store_id=store.id)
    assert found.chunking_strategy.static.max_chunk_size_tokens == 600
    await anna.vector_stores.delete(store.id)


async def test_a_batch_is_cancelled(client, memory, engine):
    anna = client()
    files = [await upload(anna, f"text {n} " * 5) for n in range(6)]
    store = await anna.vector_stores.create()
    held = asyncio.Event()
    engine.script = Embeds(pause=held.wait)
    try:
        batch = await anna.vector_stores.file_batches.create(store.id, file_ids=[file.id for file in files])
        cancelled = await anna.vector_stores.file_batches.cancel(batch.id, vector_store_id=store.id)
    finally:
        held.set()
        engine.script = Embeds()
    assert cancelled.status == "cancelled"
    counts = cancelled.file_counts
    assert counts.in_progress == 0
    assert counts.cancelled + counts.completed == 6
    await until(
        lambda: len(memory.points(store_id=store.id)) == counts.completed, 30, what="no points of what was not put in"
    )
    await anna.vector_stores.delete(store.id)


def pdf_of(stream):
    """A PDF of one page with this compressed stream."""
    objects = [
        b"<</Type/Catalog/Pages 2 0 R>>",
        b"<</Type/Pages/Kids[3 0 R]/Count 1>>",
        b"<</Type/Page/Parent 2 0 R/Contents 4 0 R/MediaBox[0 0 9 9]/Resources<<>>>>",
        b"<</Length %d/Filter/FlateDecode>>stream\n%b\nendstream" % (len(stream), stream),
    ]
    out, places = b"%PDF-1.4\n", []
    for number, one in enumerate(objects, 1):
        places.append(b"%010d 00000 n \n" % len(out))
        out += b"%d 0 obj%bendobj\n" % (number, one)
    table = b"xref\n0 5\n0000000000 65535 f \n" + b"".join(places)
    return out + table + b"trailer<</Root 1 0 R/Size 5>>\nstartxref\n%d\n%%%%EOF" % len(out)


HOSTILE = {
    "word.docx": (b"PK\x03\x04" + b"\0" * 100, "unsupported_file", "archive"),
    "broken.pdf": (b"%PDF-1.7\nnothing", "invalid_file", "PDF is broken"),
    "text.pdf": (b"just text", "invalid_file", "name says PDF"),
    "pdf.txt": (b"%PDF-1.7\n", "invalid_file", "content is PDF"),
    "latin.txt": (b"gr\xfc\xdfe", "invalid_file", "UTF-8"),
    "binary.txt": (b"abc\0def", "unsupported_file", "not text"),
    "picture.png": (b"\x89PNG\r\n", "unsupported_file", "picture"),
    "empty.txt": (b" \n ", "invalid_file", "no text"),
    "bomb.pdf": (pdf_of(zlib.compress(b"\0" * (1 << 30), 9)), "invalid_file", "no text"),
}  # fmt: skip


async def test_hostile_documents_are_errors_that_say_why(client, memory):
    anna = client()
    store = await anna.vector_stores.create()
    files = {name: await upload(anna, data, name) for name, (data, _, _) in HOSTILE.items()}
    batch = await put(anna, store, *files.values())
    assert batch.status == "failed"
    for name, file in files.items():
        found = await anna.vector_stores.files.retrieve(file.id, vector_store_id=store.id)
        _, code, words = HOSTILE[name]
        assert found.last_error is not None, name
        assert (found.status, found.last_error.code) == ("failed", code), (name, found.last_error)
        assert words in found.last_error.message, (name, found.last_error)
    assert not memory.points(store_id=store.id)


async def test_a_line_without_an_end_is_cut(client):
    anna = client()
    file = await upload(anna, b"a" * (1 << 20))
    store = await anna.vector_stores.create()
    batch = await put(anna, store, file)
    assert batch.file_counts.completed == 1
    await anna.vector_stores.delete(store.id)


async def test_nobody_sees_anothers_files_and_stores(client):
    anna, bert = client(), client("bert")
    file = await upload(anna, "a secret of Anna's")
    store = await anna.vector_stores.create(name="hers")
    await put(anna, store, file)
    theirs = await bert.vector_stores.create(name="his")
    refused = [
        bert.files.retrieve(file.id), bert.files.content(file.id), bert.files.delete(file.id),
        bert.vector_stores.retrieve(store.id), bert.vector_stores.delete(store.id),
        bert.vector_stores.update(store.id, name="mine"), bert.vector_stores.search(store.id, query="secret"),
        bert.vector_stores.files.list(store.id), bert.vector_stores.files.retrieve(file.id, vector_store_id=store.id),
        bert.vector_stores.files.content(file.id, vector_store_id=store.id),
        bert.vector_stores.files.delete(file.id, vector_store_id=store.id),
        bert.vector_stores.files.create(theirs.id, file_id=file.id),
        bert.vector_stores.file_batches.create(theirs.id, file_ids=[file.id]),
        bert.vector_stores.create(file_ids=[file.id]),
    ]  # fmt: skip
    for call in refused:
        with pytest.raises(openai.NotFoundError):
            await call
    assert store.id not in [one.id async for one in bert.vector_stores.list()]
    assert file.id not in [one.id async for one in bert.files.list()]
    assert not await search(bert, theirs, "secret")
    [hit] = await search(anna, store, "secret")
    assert hit.file_id == file.id


async def test_all_that_is_kept_of_a_user_has_files_and_stores_and_goes_with_them(client, gateway, site, memory):
    bert = client("bert")
    file = await upload(bert, "Bert's own words")
    store = await bert.vector_stores.create(name="Bert's")
    await put(bert, store, file)
    headers = {"authorization": f"Bearer {site.keys['bert']}"}
    async with httpx.AsyncClient(base_url=gateway.url, headers=headers) as plain:
        exported = (await plain.get("/v1/me/data")).text
        assert file.id in exported
        assert store.id in exported
        gone = (await plain.delete("/v1/me/data")).json()
    assert gone["files"] >= 1
    assert gone["vector_stores"] >= 1
    assert [one async for one in bert.vector_stores.list()] == []
    assert [one async for one in bert.files.list()] == []
    await until(lambda: not memory.points(store_id=store.id), 30, what="the points are gone")
