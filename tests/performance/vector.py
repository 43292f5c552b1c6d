"""Recall and latency of searches on a vector host, through the gateway's own client, with the role's own settings.

Made-up vectors of two kinds. `topics` are like embeddings of texts: 2,000 groups on a surface of 32 dimensions within
the 384, and queries from the same groups. `noise` has no structure at all, which no index is made for: the worst case.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import os
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy
import yaml
from running_lab import known_credentials

from citadel_llm.integration.vector.build import build_vector
from citadel_llm.integration.vector.client import VectorClient
from citadel_llm.integration.vector.collections import collections
from citadel_llm.integration.vector.points import Point
from citadel_llm.utils.config import Vector
from citadel_llm.utils.plan import make_plan

REPO = Path(__file__).resolve().parents[2]
NAME, TENANTS, TOP = "bench-vector", 10, 10
GROUPS, SURFACE = 2000, 32


class Silent:
    """Counts nothing."""

    def called(self, *_: Any) -> None: ...
    def retried(self) -> None: ...
    def looked_up(self, *_: Any) -> None: ...
    def breaker(self, *_: Any) -> None: ...


def made(kind: str, count: int, size: int, seed: int) -> numpy.ndarray:
    """`count` unit vectors; those of other seeds are from the same distribution."""
    rng = numpy.random.default_rng(seed)
    if kind == "noise":
        found = rng.standard_normal((count, size), dtype="float32")
    else:
        fixed = numpy.random.default_rng(7)
        lift = fixed.standard_normal((SURFACE, size), dtype="float32")
        centres = fixed.standard_normal((GROUPS, SURFACE), dtype="float32")
        inner = centres[rng.integers(GROUPS, size=count)] + 0.5 * rng.standard_normal((count, SURFACE), dtype="float32")
        found = inner @ lift + 0.3 * rng.standard_normal((count, size), dtype="float32")
    return found / numpy.linalg.norm(found, axis=1, keepdims=True)


def settings() -> dict[str, Any]:
    """What the role makes a collection of documents with."""
    models = yaml.safe_load((REPO / "group_vars/llm_servers/models.yml").read_text())["citadel_models"]
    role = yaml.safe_load((REPO / "roles/vector/defaults/main.yml").read_text())
    planned = make_plan(models, host_cores=16)["models"]
    wanted = collections(planned, hnsw=role["vector_hnsw"], quantization=role["vector_quantization"])
    return next(one for one in wanted if one["purpose"] == "documents")


async def call(lab: dict[str, str], method: str, path: str, body: Any = None) -> Any:
    """Qdrant's answer to what the client has no call for."""
    import httpx  # noqa: PLC0415 — as in the client, nobody else carries it

    async with httpx.AsyncClient(timeout=60, headers={"api-key": lab["qdrant_api_key"]}) as client:
        answer = await client.request(method, f"{lab['qdrant_url']}{path}", json=body)
    return answer.raise_for_status().json()["result"]


def batches(vectors: numpy.ndarray, tenant: int) -> Iterator[Point]:
    for number in range(tenant, len(vectors), TENANTS):
        yield Point(id=number, vector=vectors[number].tolist(), payload={"n": number})


async def searched(client: VectorClient, queries: numpy.ndarray, **asked: Any) -> tuple[list[set[Any]], list[float]]:
    """By query: the ids found, and how long it took, in milliseconds."""
    found, took = [], []
    for query in queries:
        began = time.perf_counter()
        hits = await client.search(NAME, vector=query.tolist(), limit=TOP, **asked)
        took.append((time.perf_counter() - began) * 1e3)
        found.append({hit.id for hit in hits})
    return found, took


def recall(found: list[set[Any]], truth: list[set[Any]]) -> float:
    return sum(len(one & other) for one, other in zip(found, truth, strict=True)) / sum(map(len, truth))


async def measure(options: argparse.Namespace, lab: dict[str, str], key_file: Path) -> list[dict[str, Any]]:
    wanted = settings()
    size = wanted["dimensions"]

    def client(protocol: str, ef: int = options.ef) -> VectorClient:
        config = Vector(
            enabled=True, url=lab["qdrant_url"], protocol=protocol, credentials_file=str(key_file), timeout_s=30.0,
            write_timeout_s=120.0, cache_ttl_s=0.0, search_ef=ef,
        )  # fmt: skip
        made_client = build_vector(config, Silent(), lambda *_: None)
        assert made_client is not None
        return made_client

    await call(lab, "DELETE", f"/collections/{NAME}")
    await call(lab, "PUT", f"/collections/{NAME}", wanted["settings"])
    for field, schema in wanted["indexes"].items():
        body = {"field_name": field, "field_schema": schema}
        await call(lab, "PUT", f"/collections/{NAME}/index?wait=true", body)
    vectors = made(options.kind, options.count, size, seed=1)
    writer = client("grpc")
    await writer.prepare()
    began = time.perf_counter()
    for tenant in range(TENANTS):
        await writer.upsert(NAME, batches(vectors, tenant), tenant=f"t{tenant}")
    written_s = time.perf_counter() - began
    while (info := await call(lab, "GET", f"/collections/{NAME}"))["status"] != "green":
        await asyncio.sleep(0.5)
    indexed_s = time.perf_counter() - began
    print(
        f"{options.count} vectors of {size} ({options.kind}): written in {written_s:.0f} s "
        f"({options.count / written_s:.0f}/s), indexed after {indexed_s:.0f} s, {info['segments_count']} segments"
    )
    queries = made(options.kind, options.queries, size, seed=2)
    rows: list[dict[str, Any]] = []
    for scope, tenant in (("all", None), ("one tenant", "t3")):
        truth, exact_ms = await searched(writer, queries, tenant=tenant, exact=True)
        rows.append(row(scope, "grpc", "exact", 1.0, exact_ms))
        for protocol, ef in (("rest", options.ef), ("grpc", options.ef), ("grpc", 2 * options.ef), ("grpc", 64)):
            asking = client(protocol, ef)
            await asking.prepare()
            await searched(asking, queries[:20], tenant=tenant)
            found, took = await searched(asking, queries, tenant=tenant)
            rows.append(row(scope, protocol, f"ef {ef}", recall(found, truth), took))
            await asking.close()
    await writer.close()
    if not options.keep:
        await call(lab, "DELETE", f"/collections/{NAME}")
    return rows


def row(scope: str, protocol: str, how: str, recalled: float, took: list[float]) -> dict[str, Any]:
    p50, p95, p99 = numpy.percentile(took, [50, 95, 99])
    return {
        "scope": scope, "protocol": protocol, "search": how, "recall_at_10": round(recalled, 4),
        "p50_ms": round(float(p50), 2), "p95_ms": round(float(p95), 2), "p99_ms": round(float(p99), 2),
    }  # fmt: skip


def main(words: list[str]) -> int:
    """The command; prints a table and writes build/bench/vector-KIND.json."""
    parser = argparse.ArgumentParser(prog="bench-vector", description=__doc__)
    parser.add_argument("--count", type=int, default=100_000)
    parser.add_argument("--queries", type=int, default=500)
    parser.add_argument("--kind", choices=["topics", "noise"], default="topics")
    parser.add_argument("--ef", type=int, default=Vector().search_ef, help="candidates that a search weighs")
    parser.add_argument("--keep", action="store_true", help="leave the collection there")
    options = parser.parse_args(words)
    if "LAB_DIR" not in os.environ:
        parser.error("run it inside the lab: bin/lab run bin/bench-vector")
    lab = known_credentials()
    folder = REPO / "build/bench"
    folder.mkdir(parents=True, exist_ok=True)
    key_file = folder / "vector-key.json"
    key_file.touch(mode=0o600)
    key_file.write_text(json.dumps({"api_key": lab["qdrant_api_key"]}))
    try:
        rows = asyncio.run(measure(options, lab, key_file))
    finally:
        key_file.unlink()
    print("| points | protocol | search | recall@10 | p50, ms | p95, ms | p99, ms |\n|---|---|---|---|---|---|---|")
    for one in rows:
        print("| " + " | ".join(str(value) for value in one.values()) + " |")
    (folder / f"vector-{options.kind}.json").write_text(json.dumps(rows, indent=2) + "\n")
    return 0
