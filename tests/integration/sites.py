"""Gateways at the lab's PostgreSQL: a database of the test's own, its pepper, and the processes that use it."""

import asyncio
import contextlib
import json
import os
import secrets
import subprocess
import sys
import time

import psycopg
from sql_host import GATEWAY, create_database, drop_database, place

from callers import ask
from citadel_llm.integration.database import migrate
from citadel_llm.integration.database.connection import connected
from citadel_llm.integration.database.target import Target
from gateways import spawned_gateway
from waiting import until


@contextlib.contextmanager
def migrated_database(credentials):
    """A `Site` with an empty schema of the newest revision."""
    name = f"citadel_test_{secrets.token_hex(4)}"
    create_database(name)
    try:
        site = Site(credentials, name)
        with connected(site.target("database_url")) as engine:
            migrate.upgrade(engine, GATEWAY)
        yield site
    finally:
        drop_database(name)


class Site:
    """A database, and what belongs to it on a host that uses it."""

    def __init__(self, credentials, name):
        self._credentials = credentials
        self._name = name
        self.pepper = secrets.token_urlsafe(32)
        self.admin_key = f"sk-{secrets.token_urlsafe(32)}"

    def target(self, fact="database_gateway_url"):
        return Target(**place(self._credentials[fact], self._name))

    def sql(self, statement, values=(), fact="database_url"):
        """Its rows, in a transaction of the owner's."""
        at = self.target(fact)
        with psycopg.connect(
            host=at.host, port=at.port, dbname=at.database, user=at.user, password=at.password
        ) as connection:
            cursor = connection.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    def place(self, folder):
        """What the roles place on a host; the settings that name it."""
        (folder / "database.json").write_text(json.dumps(vars(self.target())))
        (folder / "pepper").write_text(self.pepper + "\n")
        return {
            "auth": {
                "keys_file": None,
                "pepper_file": str(folder / "pepper"),
                "snapshot_file": str(folder / "identity.json"),
            },
            "database": {"enabled": True, "credentials_file": str(folder / "database.json"), "retry_s": 0.1},
        }

    def bring(self, folder, *keys, pepper=None, options=()):
        """`citadel identity import` of these keys; the finished process."""
        self.place(folder)
        words = [sys.executable, "-m", "citadel_llm.cli", "identity", "import", "--stdin"]
        return subprocess.run(
            [*words, "--credentials", str(folder / "database.json"), *options],
            input=json.dumps({"pepper": pepper or self.pepper, "keys": list(keys)}),
            text=True,
            capture_output=True,
            timeout=60,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
        )

    def brought(self, folder, *keys, options=()):
        """The same; what was done."""
        done = self.bring(folder, *keys, options=options)
        assert done.returncode == 0, done.stderr
        return json.loads(done.stdout)

    @contextlib.asynccontextmanager
    async def gateway(self, folder, models, *, instance="1", redis=None, ready=True, **sections):
        """A gateway process of this site; it knows the site's admin, where it is `ready`."""
        settings = self.place(folder)
        for name, section in sections.items():
            settings[name] = {**settings.get(name, {}), **section}
        if redis is not None:
            settings["cache"] = {
                "enabled": True,
                "socket": redis.socket,
                "credentials_file": str(redis.credentials_file),
            }
        async with spawned_gateway(folder, models=models, instance=instance, **settings) as gateway:
            if ready:
                await gateway.logged("identities_read")
            yield gateway

    async def admin(self, gateway, method, path, body=None, *, key=None):
        """What the admin API answers."""
        data = None if body is None else json.dumps(body).encode()
        return await ask(gateway.port, method, f"/admin/v1{path}", data, key=key or self.admin_key)


async def within(seconds, condition, what):
    """How long it took until `condition()`, an async callable, was true; at most `seconds`."""
    began = time.monotonic()
    await until(condition, seconds, what=what)
    return time.monotonic() - began


async def every(seconds, condition):
    """`condition()` holds for so long."""
    end = time.monotonic() + seconds
    while time.monotonic() < end:
        assert await condition()
        await asyncio.sleep(0.05)
