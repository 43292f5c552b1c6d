"""Conversations and kept responses: the official client, a gateway process, the lab's PostgreSQL through Pgpool-II.

Run inside the lab: `bin/lab run pytest tests/integration/test_sessions.py`; it needs the SQL host alone. The engine is
one of the tests' own that behaves as vLLM does.
"""

import json
import secrets
import uuid
from urllib.parse import urlsplit

import openai
import psycopg
import pytest
import pytest_asyncio
from sql_host import GATEWAY, OWNER, on_the_host

from citadel_llm.integration.database import migrate
from citadel_llm.integration.database.connection import connected
from citadel_llm.integration.database.target import Target
from engine_responses import Talks, said_in
from gateways import spawned_gateway, write_keys
from upstreams import Upstream

pytestmark = [pytest.mark.lab, pytest.mark.asyncio(loop_scope="module")]
NAMES = ["anna", "bert", "admin", "carl:conversations", "dora:feedback"]


class Site:
    """A database of the tests' own, its users, and their keys."""

    def __init__(self, credentials):
        self._credentials = credentials
        self.name = f"citadel_test_{secrets.token_hex(4)}"
        self.owners = {name: str(uuid.uuid4()) for name in NAMES}
        self.keys = {name: f"sk-of-{secrets.token_hex(16)}" for name in [*NAMES, "file"]}

    def target(self, fact="database_url"):
        url = urlsplit(self._credentials[fact])
        return Target(url.hostname, url.port, self.name, url.username, url.password)

    def sql(self, statement, *values):
        """Its rows, as the owner."""
        place = self.target()
        with psycopg.connect(
            host=place.host, port=place.port, dbname=place.database, user=place.user, password=place.password
        ) as connection:
            cursor = connection.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    def settings(self, folder):
        """What a gateway's configuration says of the database."""
        path = folder / "database.json"
        path.write_text(json.dumps(vars(self.target("database_gateway_url"))))
        return {"enabled": True, "credentials_file": str(path), "retry_s": 0.1}


@pytest.fixture(scope="module")
def site(credentials):
    made = Site(credentials)
    on_the_host("runuser", "-u", "postgres", "--", "createdb", f"--owner={OWNER}", made.name)
    try:
        with connected(made.target()) as engine:
            migrate.upgrade(engine, GATEWAY)
        for name, id in made.owners.items():
            made.sql("insert into llm.users (id, name) values (%s, %s)", id, name)
        yield made
    finally:
        on_the_host("runuser", "-u", "postgres", "--", "dropdb", "--force", made.name)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def engine():
    async with Upstream(Talks()) as running:
        yield running


@pytest.fixture
def talks(engine):
    """The engine's script, fresh."""
    engine.script = Talks()
    return engine.script


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(site, engine, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gateway")
    write_keys(folder / "keys.json", site.keys)
    async with spawned_gateway(
        folder,
        models={"phi3": {"upstreams": [engine], "max_tokens": 4096}},
        module="owned_keys",
        environ={"CITADEL_TEST_OWNERS": json.dumps(site.owners)},
        database=site.settings(folder),
        sessions={"max_items": 30, "max_bytes": 65536, "max_item_bytes": 16384},
    ) as running:
        await running.logged("database_state", up=True)
        yield running


@pytest.fixture
def client(gateway, site):
    """`client(name)`: the official client with that user's key."""

    def made(name="anna"):
        return openai.AsyncOpenAI(base_url=f"{gateway.url}/v1", api_key=site.keys[name], max_retries=0, timeout=30)

    return made


async def ask(client, text, **more):
    return await client.responses.create(model="phi3", input=text, **more)


# -- responses --------------------------------------------------------------------------------------------------


async def test_a_response_is_kept_and_followed(client, talks):
    anna = client()
    first = await ask(anna, "one", instructions="Be brief.")
    assert first.id.startswith("resp_")
    assert (first.output_text, first.previous_response_id, first.conversation) == ("1: one", None, None)
    assert first.store is True
    second = await ask(anna, "two", previous_response_id=first.id)
    assert (second.output_text, second.previous_response_id) == ("3: two", first.id)
    third = await ask(anna, [{"role": "user", "content": "three"}], previous_response_id=second.id)
    assert said_in(talks.asked[-1]) == ["one", "1: one", "two", "3: two", "three"]
    assert "instructions" not in talks.asked[-1], "they are of their own response alone"
    found = await anna.responses.retrieve(third.id)
    assert found.model_dump() == third.model_dump()
    items = await anna.responses.input_items.list(third.id)
    assert [item.content[0].text for item in items.data] == ["three"]


async def test_a_stream_is_kept_before_its_end_and_followed(client, talks):
    anna = client()
    stream = await ask(anna, "one", stream=True)
    events = [event async for event in stream]
    whole = [event.response for event in events if hasattr(event, "response")]
    assert [event.type for event in events][-1] == "response.completed"
    assert len({response.id for response in whole}) == 1
    assert whole[-1].store is True
    text = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert text == whole[-1].output_text == "1: one"
    second = await ask(anna, "two", previous_response_id=whole[-1].id)
    assert second.output_text == "3: two"
    found = await anna.responses.retrieve(whole[-1].id)
    assert found.model_dump() == whole[-1].model_dump()


async def test_a_response_in_a_conversation_adds_to_it(client, talks):
    anna = client()
    conversation = await anna.conversations.create(
        metadata={"topic": "test"}, items=[{"type": "message", "role": "user", "content": "zero"}]
    )
    first = await ask(anna, "one", conversation=conversation.id)
    assert (first.output_text, first.conversation.id) == ("2: one", conversation.id)
    stream = await ask(anna, "two", conversation={"id": conversation.id}, stream=True)
    events = [event async for event in stream]
    assert events[-1].response.output_text == "4: two"
    items = [item async for item in anna.conversations.items.list(conversation.id, order="asc", limit=2)]
    assert [item.content[0].text for item in items] == ["zero", "one", "2: one", "two", "4: two"]
    assert items[2].id == first.output[0].id
    branch = await ask(anna, "other", previous_response_id=first.id)
    assert said_in(talks.asked[-1]) == ["zero", "one", "2: one", "other"]
    assert branch.output_text == "4: other"
