"""A collection of a test's own on the lab's vector host, and the settings of a gateway that keeps files in it."""

import contextlib
import json
import secrets
import urllib.request

from engine_embeddings import SIZE, write_tokenizer


class Memory:
    """It."""

    def __init__(self, credentials):
        self._credentials = credentials
        self.prefix = f"test{secrets.token_hex(4)}"
        self.collection = f"{self.prefix}_minilm"  # an alias
        self.behind = f"{self.collection}-minilm-1"

    def ask(self, method, path, body=None):
        """Qdrant's answer."""
        request = urllib.request.Request(
            f"{self._credentials['qdrant_url']}{path}",
            method=method,
            data=None if body is None else json.dumps(body).encode(),
            headers={"api-key": self._credentials["qdrant_api_key"], "content-type": "application/json"},
        )
        with urllib.request.urlopen(request, timeout=60) as answer:
            return json.load(answer)["result"]

    def make(self, name):
        """A collection of documents, as the role makes it."""
        vectors = {
            "vectors": {"dense": {"size": SIZE, "distance": "Cosine"}},
            "sparse_vectors": {"bm25": {"modifier": "idf"}},
        }
        self.ask("PUT", f"/collections/{name}", vectors)
        for field, kind in (
            ("tenant", "keyword"),
            ("store_id", "keyword"),
            ("file_id", "keyword"),
            ("chunk", "integer"),
        ):
            schema = {"field_name": field, "field_schema": kind}
            self.ask("PUT", f"/collections/{name}/index?wait=true", schema)

    def points(self, **wanted):
        """{id: (payload, vector)} of all points with these fields."""
        allowed = {"must": [{"key": key, "match": {"value": value}} for key, value in wanted.items()]}
        found, offset = {}, None
        while True:
            body = {"filter": allowed, "limit": 1000, "with_payload": True, "with_vector": True}
            page = self.ask("POST", f"/collections/{self.collection}/points/scroll", {**body, "offset": offset})
            found |= {one["id"]: (one["payload"], one["vector"]) for one in page["points"]}
            offset = page["next_page_offset"]
            if offset is None:
                return found

    def settings(self, folder, **files):
        """The sections of a gateway's configuration."""
        (folder / "vector.json").write_text(json.dumps({"api_key": self._credentials["qdrant_api_key"]}))
        tokenizer = folder / "tokenizer.json"
        if not tokenizer.exists():
            write_tokenizer(tokenizer)
        return {
            "vector": {
                "enabled": True, "url": self._credentials["qdrant_url"], "prefix": self.prefix,
                "credentials_file": str(folder / "vector.json"),
            },
            "files": {
                "enabled": True, "path": str(folder / "files"), "tokenizer": str(tokenizer), "poll_s": 0.2,
                "retry_s": 0.3, **files,
            },
        }  # fmt: skip


@contextlib.contextmanager
def memory_of(credentials):
    """A `Memory` that is gone afterwards."""
    made = Memory(credentials)
    made.make(made.behind)
    alias = {"create_alias": {"alias_name": made.collection, "collection_name": made.behind}}
    made.ask("POST", "/collections/aliases", {"actions": [alias]})
    try:
        yield made
    finally:
        for one in made.ask("GET", "/collections")["collections"]:
            if one["name"].startswith(made.prefix):
                made.ask("DELETE", f"/collections/{one['name']}")
