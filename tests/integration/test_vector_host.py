"""The lab's vector host, asked by the real qdrant-client: over REST and over gRPC, on the one port.

Run inside the lab: `bin/lab run pytest tests/integration/test_vector_host.py`; it needs the vector host alone.
"""

import contextlib
import hashlib
import math
import random
import secrets
import subprocess
import time
import urllib.error
import urllib.request
import uuid
from pathlib import Path

import grpc
import httpx
import pytest
from qdrant_client import QdrantClient, models
from qdrant_client import grpc as wire
from qdrant_client.http.exceptions import UnexpectedResponse

pytestmark = [pytest.mark.lab, pytest.mark.filterwarnings("ignore:Api key is used with an insecure connection")]
REPO = Path(__file__).resolve().parents[2]
HOST = "hx-vector-server-01"
UNIT = "citadel-lab-qdrant.service"
DEADLINE_S = 60
SIZE = 8
REFUSALS = (UnexpectedResponse, grpc.RpcError)


def on_the_host(*words):
    subprocess.run([str(REPO / "bin/lab"), "exec", HOST, *words], check=True, timeout=60, stdin=subprocess.DEVNULL)


def until(condition, what):
    deadline = time.monotonic() + DEADLINE_S
    while not condition():
        assert time.monotonic() < deadline, f"not within {DEADLINE_S} s: {what}"
        time.sleep(0.05)


def status(error):
    """What a refusal says of itself, as REST's status or gRPC's code."""
    return error.status_code if isinstance(error, UnexpectedResponse) else error.code().name


def connected(credentials, protocol, key=None):
    url = credentials["qdrant_url"]
    return QdrantClient(  # the key goes in clear, inside the lab's own network
        url=url,
        grpc_port=int(url.rsplit(":", 1)[1]),
        prefer_grpc=protocol == "grpc",
        api_key=key or credentials["qdrant_api_key"],
        timeout=30,
        cloud_inference=True,
    )


@pytest.fixture(params=["rest", "grpc"])
def client(request, credentials):
    with contextlib.closing(connected(credentials, request.param)) as made:
        yield made


@pytest.fixture
def name(credentials):
    """The name of a collection that is gone afterwards, with all that begins with it."""
    made = f"test-{secrets.token_hex(4)}"
    yield made
    with contextlib.closing(connected(credentials, "rest")) as client:
        for found in client.get_collections().collections:
            if found.name.startswith(made):
                client.delete_collection(found.name)


def unit_vectors(count, seed=1):
    rng = random.Random(seed)
    made = [[rng.gauss(0, 1) for _ in range(SIZE)] for _ in range(count)]
    return [[x / math.sqrt(sum(y * y for y in vector)) for x in vector] for vector in made]


VECTORS = unit_vectors(200)


def cosine(a, b):
    return sum(x * y for x, y in zip(a, b, strict=True))


def nearest(target, count, allowed=lambda number: True):
    found = [number for number in range(len(VECTORS)) if allowed(number)]
    return sorted(found, key=lambda number: -cosine(VECTORS[number], target))[:count]


@pytest.fixture
def filled(client, name):
    """A collection of 200 points: dense and BM25 vectors, and a payload."""
    client.create_collection(
        name,
        vectors_config=models.VectorParams(size=SIZE, distance=models.Distance.COSINE),
        sparse_vectors_config={"bm25": models.SparseVectorParams(modifier=models.Modifier.IDF)},
    )
    client.create_payload_index(name, "tenant", models.KeywordIndexParams(type="keyword", is_tenant=True))
    client.create_payload_index(name, "n", models.PayloadSchemaType.INTEGER)
    client.upsert(
        name,
        [
            models.PointStruct(
                id=number,
                vector={
                    "": vector,
                    "bm25": models.Document(text=f"the text {number} of {number % 7}fold", model="Qdrant/bm25"),
                },
                payload={"tenant": f"t{number % 2}", "n": number, "empty": None, "tags": ["a", f"tag{number % 5}"]},
            )
            for number, vector in enumerate(VECTORS)
        ],
    )
    return name


def ids(answer):
    return [point.id for point in answer.points]


# -- collections ------------------------------------------------------------------------------------------------------


def test_a_collection_is_made_listed_changed_and_gone(client, name):
    assert not client.collection_exists(name)
    client.create_collection(
        name,
        vectors_config={"text": models.VectorParams(size=SIZE, distance=models.Distance.DOT, on_disk=True)},
        hnsw_config=models.HnswConfigDiff(m=24, ef_construct=128),
        quantization_config=models.ScalarQuantization(
            scalar=models.ScalarQuantizationConfig(type=models.ScalarType.INT8, quantile=0.99, always_ram=True)
        ),
        metadata={"made_for": "a test"},
    )
    assert client.collection_exists(name)
    assert name in [one.name for one in client.get_collections().collections]

    client.update_collection(
        name,
        hnsw_config=models.HnswConfigDiff(ef_construct=200),
        vectors_config={"text": models.VectorParamsDiff(hnsw_config=models.HnswConfigDiff(m=8))},
        optimizers_config=models.OptimizersConfigDiff(indexing_threshold=5000),
    )
    info = client.get_collection(name)
    text = info.config.params.vectors["text"]
    assert (text.size, text.distance, text.on_disk, text.hnsw_config.m) == (SIZE, models.Distance.DOT, True, 8)
    assert (info.config.hnsw_config.m, info.config.hnsw_config.ef_construct) == (24, 200)
    assert info.config.optimizer_config.indexing_threshold == 5000
    assert info.config.quantization_config.scalar.quantile == pytest.approx(0.99)
    assert info.config.metadata == {"made_for": "a test"}
    until(lambda: client.get_collection(name).status is models.CollectionStatus.GREEN, "the collection is green")

    client.update_collection(name, quantization_config=models.Disabled.DISABLED)
    assert client.get_collection(name).config.quantization_config is None

    assert client.delete_collection(name)
    assert not client.collection_exists(name)
    with pytest.raises(REFUSALS) as refused:
        client.get_collection(name)
    assert status(refused.value) in {404, "NOT_FOUND"}


def test_a_name_is_given_once(client, name):
    one = models.VectorParams(size=SIZE, distance=models.Distance.COSINE)
    client.create_collection(name, vectors_config=one)
    with pytest.raises(REFUSALS) as refused:
        client.create_collection(name, vectors_config=one)
    assert status(refused.value) in {409, "ALREADY_EXISTS"}


def test_a_collections_indexes_are_told_and_dropped(client, filled):
    schema = client.get_collection(filled).payload_schema
    assert schema["tenant"].data_type is models.PayloadSchemaType.KEYWORD
    assert (schema["tenant"].params.is_tenant, schema["tenant"].points) == (True, 200)
    assert schema["n"].data_type is models.PayloadSchemaType.INTEGER
    client.delete_payload_index(filled, "n")
    assert set(client.get_collection(filled).payload_schema) == {"tenant"}


def test_an_alias_moves_from_one_collection_to_another_at_once(client, name):
    vectors = models.VectorParams(size=SIZE, distance=models.Distance.COSINE)
    alias = f"{name}-alias"
    for number, one in enumerate((f"{name}-1", f"{name}-2")):
        client.create_collection(one, vectors_config=vectors)
        client.upsert(one, [models.PointStruct(id=number, vector=VECTORS[0])])
    client.update_collection_aliases(
        [models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name=f"{name}-1", alias_name=alias))]
    )
    assert ids(client.query_points(alias, VECTORS[0])) == [0]
    client.update_collection_aliases(
        [
            models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)),
            models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name=f"{name}-2", alias_name=alias)),
        ]
    )
    assert ids(client.query_points(alias, VECTORS[0])) == [1]
    assert [one.alias_name for one in client.get_collection_aliases(f"{name}-2").aliases] == [alias]
    assert (alias, f"{name}-2") in {(one.alias_name, one.collection_name) for one in client.get_aliases().aliases}

    unknown = models.CreateAlias(collection_name=f"{name}-none", alias_name=f"{name}-other")
    with pytest.raises(REFUSALS):
        client.update_collection_aliases(
            [
                models.DeleteAliasOperation(delete_alias=models.DeleteAlias(alias_name=alias)),
                models.CreateAliasOperation(create_alias=unknown),
            ]
        )
    assert ids(client.query_points(alias, VECTORS[0])) == [1], "all of the changes, or none"


# -- searches ---------------------------------------------------------------------------------------------------------


def test_a_search_finds_what_arithmetic_finds(client, filled):
    found = client.query_points(filled, VECTORS[3], limit=5, with_payload=True)
    assert ids(found) == nearest(VECTORS[3], 5)
    assert [point.score for point in found.points] == pytest.approx(
        [cosine(VECTORS[3], VECTORS[number]) for number in nearest(VECTORS[3], 5)], abs=1e-5
    )
    assert found.points[0].payload == {"tenant": "t1", "n": 3, "empty": None, "tags": ["a", "tag3"]}


@pytest.mark.parametrize(
    ("condition", "allowed"),
    [
        (models.FieldCondition(key="tenant", match=models.MatchValue(value="t0")), lambda n: n % 2 == 0),
        (models.FieldCondition(key="n", range=models.Range(gte=50, lt=60)), lambda n: 50 <= n < 60),
        (models.FieldCondition(key="tags", match=models.MatchAny(any=["tag1", "tag2"])), lambda n: n % 5 in {1, 2}),
        (
            models.FieldCondition(key="tags", match=models.MatchExcept(**{"except": ["a", "tag1"]})),
            lambda n: n % 5 != 1,
        ),
        (models.HasIdCondition(has_id=[4, 9, 11]), lambda n: n in {4, 9, 11}),
        (models.IsEmptyCondition(is_empty=models.PayloadField(key="none")), lambda n: True),
        (models.IsNullCondition(is_null=models.PayloadField(key="tenant")), lambda n: False),
        (models.FieldCondition(key="tags", values_count=models.ValuesCount(gte=3)), lambda n: False),
        (
            models.Filter(
                should=[
                    models.FieldCondition(key="n", match=models.MatchValue(value=1)),
                    models.FieldCondition(key="n", match=models.MatchValue(value=2)),
                ]
            ),
            lambda n: n in {1, 2},
        ),
    ],
)
def test_a_filter_lets_through_what_it_says(client, filled, condition, allowed):
    for asked, letting in (
        (models.Filter(must=[condition]), allowed),
        (models.Filter(must_not=[condition]), lambda n: not allowed(n)),
    ):
        found = ids(client.query_points(filled, VECTORS[0], query_filter=asked, limit=200))
        assert found == nearest(VECTORS[0], 200, letting)
        assert client.count(filled, count_filter=asked).count == len(found)


def test_a_search_by_a_points_id_leaves_that_point_out(client, filled):
    assert ids(client.query_points(filled, 3, limit=4)) == nearest(VECTORS[3], 5)[1:]


def test_bm25_finds_words_and_fusion_joins_both(client, filled):
    words = models.Document(text="fold text 77", model="Qdrant/bm25")
    sparse = ids(client.query_points(filled, words, using="bm25", limit=3))
    assert sparse[0] == 77
    for fusion in (models.FusionQuery(fusion=models.Fusion.RRF), models.FusionQuery(fusion=models.Fusion.DBSF)):
        joined = ids(
            client.query_points(
                filled,
                prefetch=[
                    models.Prefetch(query=VECTORS[3], limit=5),
                    models.Prefetch(query=words, using="bm25", limit=5),
                ],
                query=fusion,
                limit=10,
            )
        )
        assert {3, 77} <= set(joined[:4]), fusion
        assert set(nearest(VECTORS[3], 5)) <= set(joined)


def test_sparse_vectors_come_back_as_they_were_given(client, filled):
    given = models.SparseVector(indices=[3, 9], values=[0.5, 2.0])
    client.upsert(filled, [models.PointStruct(id=900, vector={"": VECTORS[0], "bm25": given})])
    [found] = client.retrieve(filled, [900], with_vectors=True)
    assert dict(zip(found.vector["bm25"].indices, found.vector["bm25"].values, strict=True)) == {3: 0.5, 9: 2.0}
    assert found.vector[""] == pytest.approx(VECTORS[0], abs=1e-5)


def test_several_searches_go_in_one_call(client, filled):
    asked = [models.QueryRequest(query=VECTORS[number], limit=1) for number in (5, 6)]
    assert [ids(answer) for answer in client.query_batch_points(filled, asked)] == [[5], [6]]


def test_scrolling_sees_every_point_once(client, filled):
    seen, offset = [], None
    while True:
        page, offset = client.scroll(filled, limit=64, offset=offset, with_payload=["n"])
        seen += page
        if offset is None:
            break
    assert [point.id for point in seen] == list(range(200))
    assert seen[7].payload == {"n": 7}
    by_field, _ = client.scroll(filled, limit=3, order_by=models.OrderBy(key="n", direction=models.Direction.DESC))
    assert [point.id for point in by_field] == [199, 198, 197]


def test_values_of_a_field_are_counted(client, filled):
    hits = client.facet(filled, "tenant", exact=True).hits
    assert {hit.value: hit.count for hit in hits} == {"t0": 100, "t1": 100}


# -- writing ----------------------------------------------------------------------------------------------------------


def test_points_have_numbers_or_uuids_and_are_replaced(client, filled):
    one = str(uuid.uuid4())
    client.upsert(filled, [models.PointStruct(id=one, vector=VECTORS[0], payload={"v": 1})])
    client.upsert(filled, [models.PointStruct(id=one, vector=VECTORS[1], payload={"v": 2})])
    [found] = client.retrieve(filled, [one], with_vectors=[""])
    assert (found.id, found.payload) == (one, {"v": 2})
    assert client.count(filled).count == 201


def test_payloads_are_set_replaced_and_cleared(client, filled):
    def payload(number):
        return client.retrieve(filled, [number])[0].payload

    client.set_payload(filled, {"more": {"deep": 1}}, points=[1])
    assert (payload(1)["more"], payload(1)["n"]) == ({"deep": 1}, 1)
    client.set_payload(
        filled, {"seen": True}, points=models.Filter(must=[models.FieldCondition(key="n", range=models.Range(lt=10))])
    )
    seen = models.Filter(must=[models.FieldCondition(key="seen", match=models.MatchValue(value=True))])
    assert client.count(filled, count_filter=seen).count == 10
    client.delete_payload(filled, keys=["more"], points=[1])
    assert "more" not in payload(1)
    client.overwrite_payload(filled, {"only": "this"}, points=[2])
    assert payload(2) == {"only": "this"}
    client.clear_payload(filled, points_selector=[2])
    assert payload(2) == {}


def test_points_are_deleted_by_id_and_by_filter(client, filled):
    client.delete(filled, points_selector=[0, 1, 2])
    tenant = models.Filter(must=[models.FieldCondition(key="tenant", match=models.MatchValue(value="t1"))])
    client.delete(filled, points_selector=tenant)
    assert client.count(filled).count == 98
    assert client.count(filled, count_filter=tenant).count == 0
    assert ids(client.query_points(filled, VECTORS[0], limit=200)) == nearest(
        VECTORS[0], 200, lambda n: n % 2 == 0 and n > 2
    )


def test_a_batch_of_operations_is_done_in_order(client, filled):
    client.batch_update_points(
        filled,
        [
            models.UpsertOperation(
                upsert=models.PointsList(points=[models.PointStruct(id=500, vector=VECTORS[0], payload={"a": 1})])
            ),
            models.SetPayloadOperation(set_payload=models.SetPayload(payload={"b": 2}, points=[500])),
            models.DeleteOperation(delete=models.PointIdsList(points=[0])),
        ],
    )
    assert client.retrieve(filled, [500])[0].payload == {"a": 1, "b": 2}
    assert client.retrieve(filled, [0]) == []


@pytest.mark.parametrize(
    "wrong",
    [
        models.PointStruct(id=1, vector=VECTORS[0][:3]),
        models.PointStruct(id=1, vector={"no-such-vector": VECTORS[0]}),
        models.PointStruct(id="neither number nor uuid", vector=VECTORS[0]),
    ],
)
def test_a_wrong_point_is_refused(client, filled, wrong):
    with pytest.raises(REFUSALS) as refused:
        client.upsert(filled, [wrong])
    assert status(refused.value) in {400, "INVALID_ARGUMENT"}


# -- upkeep -----------------------------------------------------------------------------------------------------------


def test_a_large_collection_gets_its_index_beside_the_searches(client, name):
    client.create_collection(
        name,
        vectors_config=models.VectorParams(size=SIZE, distance=models.Distance.COSINE),
        optimizers_config=models.OptimizersConfigDiff(indexing_threshold=100),
    )
    vectors = unit_vectors(6000, seed=2)
    for start in range(0, len(vectors), 1000):
        client.upsert(
            name,
            [models.PointStruct(id=start + n, vector=vector) for n, vector in enumerate(vectors[start : start + 1000])],
        )
        assert ids(client.query_points(name, vectors[start], limit=1)) == [start]

    late, meanwhile = unit_vectors(100, seed=3), 0
    while client.get_collection(name).status is models.CollectionStatus.YELLOW and meanwhile < len(late):
        client.upsert(name, [models.PointStruct(id=100_000 + meanwhile, vector=late[meanwhile])])
        assert ids(client.query_points(name, vectors[meanwhile], limit=1)) == [meanwhile]
        client.delete(name, points_selector=[5999 - meanwhile])
        meanwhile += 1
    assert meanwhile > 0, "it was not indexed in the background"

    def indexed():
        info = client.get_collection(name)
        return info.status is models.CollectionStatus.GREEN and info.indexed_vectors_count >= 5000 - meanwhile

    until(indexed, "its vectors are indexed")
    assert client.count(name).count == len(vectors)
    for number in range(meanwhile):
        assert ids(client.query_points(name, late[number], limit=1)) == [100_000 + number]
    assert client.retrieve(name, list(range(5999, 5999 - meanwhile, -1))) == []


def test_a_collection_is_deleted_while_it_is_being_indexed(client, name):
    client.create_collection(
        name,
        vectors_config=models.VectorParams(size=SIZE, distance=models.Distance.COSINE),
        optimizers_config=models.OptimizersConfigDiff(indexing_threshold=10),
    )
    vectors = unit_vectors(1000, seed=2)
    client.upsert(name, [models.PointStruct(id=n, vector=vector) for n, vector in enumerate(vectors)])
    until(lambda: client.get_collection(name).status is models.CollectionStatus.YELLOW, "it waits to be indexed")
    assert client.delete_collection(name)
    assert not client.collection_exists(name)


def test_a_snapshot_is_made_fetched_and_recovered(client, filled, name, credentials, tmp_path):
    made = client.create_snapshot(filled)
    assert [one.name for one in client.list_snapshots(filled)] == [made.name]
    address = f"{credentials['qdrant_url']}/collections/{filled}/snapshots/{made.name}"
    headers = {"api-key": credentials["qdrant_api_key"]}
    fetched = httpx.get(address, headers=headers).raise_for_status().content
    assert hashlib.sha256(fetched).hexdigest() == made.checksum
    assert len(fetched) == made.size

    client.delete(filled, points_selector=list(range(100)))
    with contextlib.closing(connected(credentials, "rest")) as rest:  # recovering is REST's alone
        rest.recover_snapshot(filled, location=address, api_key=credentials["qdrant_api_key"])
        assert rest.count(filled).count == 200
        assert set(rest.get_collection(filled).payload_schema) == {"tenant", "n"}

        upload = f"{credentials['qdrant_url']}/collections/{name}-new/snapshots/upload"
        httpx.post(upload, headers=headers, files={"snapshot": fetched}).raise_for_status()
        assert ids(rest.query_points(f"{name}-new", VECTORS[3], limit=1)) == [3]

        broken = httpx.post(upload, headers=headers, files={"snapshot": fetched[: len(fetched) // 2]})
        assert broken.status_code == 400
        assert rest.count(f"{name}-new").count == 200, "a broken snapshot replaces nothing"
    client.delete_snapshot(filled, made.name)
    assert client.list_snapshots(filled) == []


# -- access and trouble -----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("protocol", ["rest", "grpc"])
@pytest.mark.parametrize("key", ["wrong", "ключ", None])
def test_a_wrong_key_is_refused(credentials, protocol, key):
    if protocol == "grpc":
        address = credentials["qdrant_url"].removeprefix("http://")
        metadata = [("api-key", key)] if key == "wrong" else []
        with grpc.insecure_channel(address) as channel, pytest.raises(grpc.RpcError) as refused:
            wire.CollectionsStub(channel).List(wire.ListCollectionsRequest(), metadata=metadata, timeout=10)
        assert refused.value.code() is grpc.StatusCode.UNAUTHENTICATED
    else:
        headers = [(b"api-key", key.encode())] if key else []
        for path in ("/collections", "/metrics", "/graphql?query={collections{name}}"):
            assert httpx.get(f"{credentials['qdrant_url']}{path}", headers=headers).status_code == 401


def test_whether_it_lives_is_told_to_everybody(credentials):
    for path in ("/healthz", "/livez", "/readyz"):
        assert httpx.get(f"{credentials['qdrant_url']}{path}").status_code == 200


def test_what_is_not_done_says_so(client, filled):
    with pytest.raises(REFUSALS) as refused:
        client.query_points(filled, models.RecommendQuery(recommend=models.RecommendInput(positive=[1])))
    assert status(refused.value) in {501, "UNIMPLEMENTED"}
    assert "not done by the lab" in str(refused.value)


def test_graphql_reads(client, filled, credentials):
    query = """query ($name: String!, $request: JSON!, $filter: JSON!) {
      collection(name: $name) { name points }
      search(collection: $name, request: $request) { id score payload }
      count(collection: $name, filter: $filter)
      scroll(collection: $name, limit: 2) { points { id } next }
    }"""
    variables = {
        "name": filled,
        "request": {"query": VECTORS[3], "limit": 2, "with_payload": ["n"]},
        "filter": {"must": [{"key": "tenant", "match": {"value": "t0"}}]},
    }
    answer = httpx.post(
        f"{credentials['qdrant_url']}/graphql",
        json={"query": query, "variables": variables},
        headers={"api-key": credentials["qdrant_api_key"]},
    ).json()
    assert "errors" not in answer, answer
    data = answer["data"]
    assert data["collection"] == {"name": filled, "points": 200}
    assert [point["id"] for point in data["search"]] == [str(number) for number in nearest(VECTORS[3], 2)]
    assert (data["search"][0]["payload"], data["count"]) == ({"n": 3}, 100)
    assert data["scroll"] == {"points": [{"id": "0"}, {"id": "1"}], "next": "2"}


@pytest.mark.parametrize("how", ["systemctl restart", "systemctl kill --kill-whom=main --signal=SIGKILL"])
def test_what_was_acknowledged_survives(client, filled, how, credentials):
    alias = f"{filled}-alias"
    client.update_collection_aliases(
        [models.CreateAliasOperation(create_alias=models.CreateAlias(collection_name=filled, alias_name=alias))]
    )
    client.upsert(filled, [models.PointStruct(id=700, vector=VECTORS[0], payload={"last": True})])
    before = client.get_collection(filled).config
    on_the_host(*how.split(), UNIT)

    def answers():
        try:
            return urllib.request.urlopen(f"{credentials['qdrant_url']}/readyz", timeout=2).status == 200
        except OSError:
            return False

    until(answers, "the host answers again")
    with contextlib.closing(connected(credentials, "rest")) as again:
        assert again.count(alias).count == 201
        assert again.retrieve(alias, [700])[0].payload == {"last": True}
        assert again.get_collection(filled).config == before
        assert set(again.get_collection(filled).payload_schema) == {"tenant", "n"}
        assert ids(again.query_points(alias, VECTORS[3], limit=5)) == nearest(VECTORS[3], 5)
