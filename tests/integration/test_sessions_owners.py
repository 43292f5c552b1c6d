"""Whatever two users do, in whatever order: neither sees anything of the other's, and each finds its own.

Run inside the lab: `bin/lab run pytest tests/integration/test_sessions_owners.py`; it needs the SQL host alone. The
statements are asked directly, on the lab's PostgreSQL through Pgpool-II.
"""

from random import Random

import pytest
import pytest_asyncio
from sessions_site import opened

from citadel_llm.api.sessions.items import item_of, new_id
from citadel_llm.integration.database import feedback, user_data
from citadel_llm.integration.database.pool import Database, Options
from citadel_llm.integration.database.responses import Answer, ConversationGone, Responses
from citadel_llm.integration.database.sessions import Sessions
from waiting import until

pytestmark = [pytest.mark.lab, pytest.mark.asyncio(loop_scope="module")]
STEPS = 250
SEEDS = [1, 2, 3]


@pytest.fixture(scope="module")
def sessions_site(credentials):
    with opened(credentials) as made:
        yield made


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def database(sessions_site):
    made = Database(sessions_site.target("database_gateway_url"), Options(timeout_s=10), on_change=lambda *_: None)
    await made.start()
    await until(lambda: made.up, what="the database")
    yield made
    await made.stop()


class Model:
    """What is to be there, by user; the operations do the same to the database, and compare."""

    def __init__(self, database, users, random):
        self.random = random
        self.users = users
        self.sessions = Sessions(database, ttl_s=3600)
        self.responses = Responses(database, self.sessions, ttl_s=3600)
        self.database = database
        self.conversations = {user: {} for user in users}  # {id: [item]}
        self.answers = {user: {} for user in users}  # {id: (input, output, previous)}
        self.ratings = {user: {} for user in users}  # {request: stars}

    def item(self, role="user"):
        text = f"{self.random.random()}"
        raw = b'{"role": "%b", "content": "%b"}' % (role.encode(), text.encode())
        return item_of(raw, max_bytes=9999, param="item")

    def some(self, things, other):
        """An id of the user's own, of the other one's, or of nobody; which of them is not told."""
        ids = [*things, *other, "nobody_0"]
        return self.random.choice(ids)

    async def create(self, me, _):
        items = [self.item() for _ in range(self.random.randrange(3))]
        made = await self.sessions.create(me, new_id("conv"), {}, items)
        self.conversations[me][made.id] = items

    async def add(self, me, other):
        id = self.some(self.conversations[me], self.conversations[other])
        items = [self.item()]
        done = await self.sessions.add(me, id, items, 10_000, 1 << 30)
        assert done is (True if id in self.conversations[me] else None)
        if done:
            self.conversations[me][id] = self.conversations[me][id] + items

    async def look(self, me, other):
        id = self.some(self.conversations[me], self.conversations[other])
        found = await self.sessions.history(me, id)
        listed = await self.sessions.items(me, id, "", 1000, descending=False)
        if id in self.conversations[me]:
            wanted = self.conversations[me][id]
            assert found is not None
            assert found[1] == [item.content for item in wanted]
            assert listed == wanted
            assert (found[0].items, found[0].bytes) == (len(wanted), sum(item.bytes for item in wanted))
        else:
            assert found is listed is None

    async def delete(self, me, other):
        id = self.some(self.conversations[me], self.conversations[other])
        assert await self.sessions.delete(me, id) is (id in self.conversations[me])
        self.conversations[me].pop(id, None)

    async def delete_item(self, me, other):
        id = self.some(self.conversations[me], self.conversations[other])
        owner = me if id in self.conversations[me] else other
        items = self.conversations[owner].get(id, [])
        item = self.random.choice([*(item.id for item in items), "msg_0"])
        assert (await self.sessions.item(me, id, item) is not None) is (owner == me and item != "msg_0")
        gone = await self.sessions.delete_item(me, id, item)
        assert (gone is not None) is (owner == me and item != "msg_0")
        if gone:
            self.conversations[me][id] = [one for one in items if one.id != item]

    async def answer(self, me, other):
        """A response that follows one, or is of a conversation, whosever they are."""
        previous = self.some(self.answers[me], self.answers[other]) if self.random.random() < 0.5 else None
        conversation = None
        refresh = []
        if previous is not None:
            chain = await self.responses.chain(me, previous, 10_000, 1 << 30)
            wanted = self.chain(me, previous)
            assert (chain is None) is (previous not in self.answers[me])
            if chain is None or wanted is None:
                assert chain is None or chain.broken
                return
            assert not chain.broken
            assert "".join(chain.arrays).replace("][", ",").replace("[,", "[").replace(",]", "]") == wanted
            refresh = chain.ids
        elif self.random.random() < 0.5:
            conversation = self.some(self.conversations[me], self.conversations[other])
        added, said = [self.item()], [self.item("assistant")]
        new = Answer(new_id("resp"), me, "phi3", added, said, "{}", "req-1", previous, conversation)
        if conversation is not None and conversation not in self.conversations[me]:
            with pytest.raises(ConversationGone):
                await self.responses.keep(new)
            assert await self.responses.get(me, new.id) is None
            return
        await self.responses.keep(new, refresh)
        before = self.conversations[me].get(conversation) if conversation else None
        self.answers[me][new.id] = (added, said, previous, conversation, before)
        if conversation:
            self.conversations[me][conversation] = before + added + said

    def chain(self, me, id):
        """The items as the JSON of one array; None where something of them is gone."""
        items = []
        while id is not None:
            if id not in self.answers[me]:
                return None
            added, said, previous, conversation, before = self.answers[me][id]
            items = added + said + items
            if conversation is not None:
                if conversation not in self.conversations[me]:
                    return None
                left = {item.id for item in self.conversations[me][conversation]}
                items = [item for item in before if item.id in left] + items
            id = previous
        return "[" + ",".join(item.content for item in items) + "]"

    async def show(self, me, other):
        id = self.some(self.answers[me], self.answers[other])
        found = await self.responses.get(me, id)
        assert (found is not None) is (id in self.answers[me])
        if found is not None:
            added, said, *_ = self.answers[me][id]
            assert found.input == "[" + ",".join(item.content for item in added) + "]"
            assert found.output == "[" + ",".join(item.content for item in said) + "]"

    async def forget(self, me, other):
        id = self.some(self.answers[me], self.answers[other])
        assert await self.responses.delete(me, id) is (id in self.answers[me])
        self.answers[me].pop(id, None)

    async def rate(self, me, _):
        request, stars = f"req-{self.random.randrange(5)}", self.random.randrange(1, 6)
        await feedback.put(self.database, me, request, None, stars, [], "")
        self.ratings[me][request] = stars

    async def check(self, me):
        """Lists and the export are exactly what is the user's own."""
        listed = await self.sessions.page(me, "", 10_000)
        assert {one.id for one in listed} == set(self.conversations[me])
        rated = await feedback.page(self.database, me, "", 100)
        assert {one.request_id: one.stars for one in rated} == self.ratings[me]
        text = b"".join([page async for page in user_data.export(self.database, me)]).decode()
        for user in self.users:
            own = user == me
            for id, items in self.conversations[user].items():
                assert (f'"{id}"' in text) is own
                assert all((item.content in text) is own for item in items)
            assert all((f'"{id}"' in text) is own for id in self.answers[user])


@pytest.mark.parametrize("seed", SEEDS)
async def test_neither_of_two_users_sees_anything_of_the_others(database, sessions_site, seed):
    random = Random(seed)
    users = [sessions_site.user(f"user-{seed}-{n}") for n in "ab"]
    model = Model(database, users, random)
    operations = [
        model.create, model.add, model.add, model.look, model.delete, model.delete_item, model.answer, model.answer,
        model.answer, model.show, model.forget, model.rate,
    ]  # fmt: skip
    for _ in range(STEPS):
        me, other = random.sample(users, 2)
        await random.choice(operations)(me, other)
    for user in users:
        await model.check(user)
    first, second = users
    await user_data.delete(database, first)
    model.conversations[first], model.answers[first], model.ratings[first] = {}, {}, {}
    for user in users:
        await model.check(user)
    assert b"".join([page async for page in user_data.export(database, first)]) == b""
    assert any(model.conversations[second].values())
