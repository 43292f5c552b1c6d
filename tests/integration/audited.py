"""Gateways in processes of their own that write an audit log, on this side of the lab, and what arrives of it."""

import asyncio
import json
from collections import Counter

from sql_host import GATEWAY, on_the_host

from callers import ask
from citadel_llm.integration.database import migrate
from citadel_llm.integration.database.connection import connected
from citadel_llm.integration.database.target import Target
from citadel_llm.integration.database.verify import connect, verify
from gateways import KEYS, spawned_gateway
from waiting import until

# Its own unit's stop would stop Pgpool-II too, which requires it; so, it ends as by an accident.
STOP_POSTGRESQL = ("pg_ctlcluster", "--skip-systemctl-redirect", "-m", "immediate", "17", "main", "stop")
START_POSTGRESQL = ("systemctl", "start", "postgresql@17-main")
STOP_PGPOOL, START_PGPOOL = ("systemctl", "stop", "pgpool2"), ("systemctl", "start", "pgpool2")


def prepared(target, folder):
    """The newest schema in an empty database; the file that tells gateways of it, and their sections."""
    with connected(target()) as engine:
        migrate.upgrade(engine, GATEWAY)
    place = target("database_gateway_url")
    path = folder / "database.json"
    path.write_text(json.dumps({name: getattr(place, name) for name in Target.__dataclass_fields__}))
    (folder / "pepper").write_text("a pepper of the tests, long enough")
    return {
        "auth": {"pepper_file": str(folder / "pepper"), "snapshot_file": str(folder / "identity.json")},
        "database": {"enabled": True, "credentials_file": str(path), "retry_s": 0.2, "timeout_s": 2},
        "audit": {"enabled": True, "directory": str(folder / "spool")},
    }


def spawn(folder, upstream, sections, instance="1", **more):
    # The engine is in the test's own process: where a busy machine holds that up, the engine is not down.
    more = {"probe": {"timeout_s": 10}, **more}
    merged = {name: {**sections.get(name, {}), **more.get(name, {})} for name in {*sections, *more}}
    return spawned_gateway(folder, models={"phi3": [upstream]}, instance=instance, **merged)


def verdicts(place):
    """{chain: (rows, wrong_at, why)}"""
    with connect(place) as connection:
        return {one.chain: (one.rows, one.wrong_at, one.why) for one in verify(connection)}


async def made_key(gateways):
    """A key of the database's, which every one of these gateways has seen."""
    admin = KEYS["alice"]
    for path, document in (
        ("users", {"name": "anna", "roles": ["developer"]}),
        ("keys", {"name": "load", "user": "anna"}),
    ):
        body = json.dumps(document).encode()
        answer = await ask(gateways[0].port, "POST", f"/admin/v1/{path}", body, key=admin)
        assert answer.status == 201, answer.body
    key = answer.json["key"]
    for gateway in gateways:

        async def knows(port=gateway.port):
            return (await ask(port, key=key)).status == 200

        await until(knows, what="the key is known")
    return key


class Load:
    """Requests without a pause at several gateways, until it is told to stop; what was answered, by its id."""

    def __init__(self, gateways, key, callers_each=4):
        self._key = key
        self.answered, self.failed, self.broken = {}, [], []
        self._gateways = gateways
        self._callers = callers_each
        self._killed = set()
        self._stopped = False
        self._tasks = []

    async def __aenter__(self):
        self._tasks = [
            asyncio.create_task(self._call(gateway, f"{gateway.number}-{caller}"))
            for gateway in self._gateways
            for caller in range(self._callers)
        ]
        return self

    async def __aexit__(self, *_):
        self._stopped = True
        await asyncio.gather(*self._tasks)

    def spare(self, gateway):
        """Connections of this one may break from now on."""
        self._killed.add(gateway)

    async def _call(self, gateway, name):
        number = 0
        while not self._stopped and gateway not in self._killed:
            number += 1
            request_id = f"load-{name}-{number}"
            stream = number % 5 == 0
            body = json.dumps({"model": "phi3", "stream": stream, "messages": [{"role": "user", "content": "Hi"}]})
            try:
                named = [(b"x-request-id", request_id.encode())]
                answer = await ask(gateway.port, body=body.encode(), headers=named, key=self._key)
            except (OSError, asyncio.IncompleteReadError, TimeoutError) as failure:
                (self.broken if gateway in self._killed else self.failed).append((request_id, repr(failure)))
                continue
            if answer.complete and answer.status == 200:
                self.answered[request_id] = gateway.number
            else:
                (self.broken if gateway in self._killed else self.failed).append((request_id, answer.status))
            await asyncio.sleep(0.005)


ROWS = """
select request_id, chain, position, outcome, at from llm.audit_log
where request_id like 'load-%' order by chain, position
"""


def compare(rows, load):
    """Every answered request has one row; no row is there twice; each chain's rows are in the order of their time."""
    counts = Counter(row[0] for row in rows)
    missing = [name for name in load.answered if name not in counts]
    twice = [name for name, count in counts.items() if count > 1]
    assert (missing, twice) == ([], []), (len(rows), len(load.answered))
    asked = {*load.answered, *(name for name, _ in load.broken)}
    assert [name for name in counts if name not in asked] == [], "rows of requests that nobody made"
    times = {}
    for _, chain, _, _, at in rows:
        times.setdefault(chain, []).append(at)
    for chain, found in times.items():
        assert found == sorted(found), chain


__all__ = [
    "ROWS", "START_PGPOOL", "START_POSTGRESQL", "STOP_PGPOOL", "STOP_POSTGRESQL", "Load", "compare", "made_key",
    "on_the_host", "prepared", "spawn", "verdicts",
]  # fmt: skip
