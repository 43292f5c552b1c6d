"""How fast files become findable: a gateway of this machine's, the lab's PostgreSQL and Qdrant, made-up documents.

The embedding model's time is told apart: with the tests' engine it is next to nothing, with `--embedding URL` it is a
real one's. CPU is that of the gateway and of the processes that read for it; Qdrant and PostgreSQL have theirs beside.
"""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import json
import os
import random
import tempfile
import time
from collections.abc import AsyncIterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import openai
from files_site import memory_of
from running_lab import known_credentials
from sessions_site import opened

from engine_embeddings import Embeds
from gateways import spawned_gateway, write_keys
from performance.procs import ticks_of
from performance.report import table as table_of
from upstreams import Upstream
from waiting import until

__all__ = ["main"]

WORDS = [f"{a}{b}" for a in ("ha", "ko", "lim", "pre", "so", "tra", "un", "ver") for b in ("bor", "den", "lig", "mat")]


@dataclass(frozen=True)
class Kind:
    """Documents of one kind."""

    name: str
    count: int
    words: int
    html: bool = False

    def document(self, number: int) -> tuple[str, bytes]:
        """Its name and its content."""
        rng = random.Random(number)
        lines = [" ".join(rng.choices(WORDS, k=20)) + "." for _ in range(max(1, self.words // 20))]
        if self.html:
            body = "".join(f"<p>{line}</p>\n" for line in lines)
            return f"{number}.html", f"<!doctype html><title>{number}</title><body>{body}</body>".encode()
        return f"{number}.md", "\n\n".join(lines).encode()


KINDS = (Kind("short notes", 1000, 40), Kind("long Markdown", 20, 20_000), Kind("long HTML", 20, 20_000, html=True))


def cpu_s(pid: int) -> float:
    """What a process and all below it have used, those included that have ended."""
    found, waiting = 0, [pid]
    while waiting:
        one = waiting.pop()
        with contextlib.suppress(OSError):
            stat = Path(f"/proc/{one}/stat").read_text()
            found += ticks_of(stat) + sum(map(int, stat.rpartition(")")[2].split()[13:15]))
            for task in Path(f"/proc/{one}/task").iterdir():
                waiting += map(int, (task / "children").read_text().split())
    return found / os.sysconf("SC_CLK_TCK")


async def measured(client: openai.AsyncOpenAI, gateway: Any, kind: Kind) -> dict[str, float]:
    """Puts the documents of that kind into a store."""
    files = []
    for first in range(0, kind.count, 20):
        some = range(first, min(first + 20, kind.count))
        files += await asyncio.gather(*(client.files.create(file=kind.document(n), purpose="assistants") for n in some))
    before, used, began = await gateway.metrics(), cpu_s(gateway.process.pid), time.monotonic()
    store = await client.vector_stores.create(name=kind.name)
    await client.vector_stores.file_batches.create(store.id, file_ids=[file.id for file in files])

    async def done() -> bool:
        counts = (await client.vector_stores.retrieve(store.id)).file_counts
        assert not counts.failed, counts
        return counts.completed == kind.count

    await until(done, 600, what=f"{kind.count} files are in")
    took, used = time.monotonic() - began, cpu_s(gateway.process.pid) - used
    after = await gateway.metrics()
    embedding = after["citadel_gateway_files_embedding_seconds_sum"] - before.get(
        "citadel_gateway_files_embedding_seconds_sum", 0.0
    )
    chunks = after["citadel_gateway_files_chunks_total"] - before.get("citadel_gateway_files_chunks_total", 0.0)
    return {
        "documents": kind.count,
        "bytes": sum(file.bytes for file in files),
        "chunks": chunks,
        "took_s": took,
        "embedding_s": embedding,
        "cpu_s": used,
    }


@contextlib.asynccontextmanager
async def serving(credentials: dict[str, str], folder: Path, embedding: str) -> AsyncIterator[Any]:
    """A gateway with one worker, and a client of a user's."""
    with opened(credentials) as site, memory_of(credentials) as memory:
        write_keys(folder / "keys.json", {"file": "sk-nobodys"})
        key = site.key("anna", site.user("anna"))
        async with Upstream(Embeds()) as engine:
            models = {"minilm": {"upstreams": [embedding or engine], "kind": "embedding", "max_tokens": 256}}
            sections = {**site.settings(folder), **memory.settings(folder)}
            async with spawned_gateway(folder, models=models, **sections) as gateway:
                await gateway.logged("identities_read")
                async with openai.AsyncOpenAI(
                    base_url=f"{gateway.url}/v1", api_key=key, max_retries=0, timeout=120
                ) as client:
                    yield client, gateway


async def run(credentials: dict[str, str], embedding: str) -> dict[str, dict[str, float]]:
    """Every kind, one after the other."""
    with tempfile.TemporaryDirectory() as folder:
        async with serving(credentials, Path(folder), embedding) as (client, gateway):
            return {kind.name: await measured(client, gateway, kind) for kind in KINDS}


def table(found: dict[str, dict[str, float]]) -> str:
    """As Markdown."""
    rows = [
        [
            name,
            f"{one['documents']:.0f}",
            f"{one['bytes'] / 1e6:.2f}",
            f"{one['chunks']:.0f}",
            f"{one['took_s']:.1f}",
            f"{one['embedding_s']:.1f}",
            f"{one['cpu_s']:.1f}",
            f"{one['documents'] / one['cpu_s']:.0f}",
            f"{one['chunks'] / one['cpu_s']:.0f}",
        ]
        for name, one in found.items()
    ]
    head = [
        "",
        "documents",
        "MB",
        "chunks",
        "took, s",
        "of it the embedding, s",
        "CPU, s",
        "documents / core s",
        "chunks / core s",
    ]
    return table_of(head, rows)


def main(words: list[str]) -> int:
    """Measure; JSON to build/bench/ingestion.json, a table to stdout."""
    parser = argparse.ArgumentParser(prog="bin/bench-ingestion", description=__doc__)
    parser.add_argument("--embedding", default="", metavar="URL", help="an engine of the embedding model")
    given = parser.parse_args(words)
    if "LAB_DIR" not in os.environ:
        parser.error("this needs the running lab: bin/lab run bin/bench-ingestion")
    credentials = known_credentials()
    found = asyncio.run(run(credentials, given.embedding))
    out = Path(__file__).resolve().parents[2] / "build/bench"
    out.mkdir(parents=True, exist_ok=True)
    (out / "ingestion.json").write_text(json.dumps(found, indent=1) + "\n")
    print(table(found))
    return 0
