"""A database of the tests' own on the lab's SQL host, its users, and the keys that are theirs."""

import contextlib
import json
import secrets
import uuid

import psycopg
from sql_host import GATEWAY, create_database, drop_database, place

from citadel_llm.api.identity.permissions import BUILT_IN
from citadel_llm.integration.database import migrate
from citadel_llm.integration.database.connection import connected
from citadel_llm.integration.database.target import Target
from citadel_llm.utils.keys import digest_of, pepper_of


class Site:
    """One of them."""

    def __init__(self, credentials):
        self._credentials = credentials
        self.name = f"citadel_test_{secrets.token_hex(4)}"
        self.pepper = secrets.token_urlsafe(32)

    def target(self, fact="database_url"):
        """The database, by the user of that fact."""
        return Target(**place(self._credentials[fact], self.name))

    def sql(self, statement, *values):
        """Its rows, as the owner."""
        at = self.target()
        with psycopg.connect(
            host=at.host, port=at.port, dbname=at.database, user=at.user, password=at.password
        ) as connection:
            cursor = connection.execute(statement, values)
            return cursor.fetchall() if cursor.description else []

    def user(self, name):
        """A new user's id."""
        id = str(uuid.uuid4())
        self.sql("insert into llm.users (id, name) values (%s, %s)", id, name)
        return id

    def key(self, name, user_id):
        """A new key of that user, a developer, or an admin by that name; `NAME:PERMISSION` may all but that."""
        _, _, without = name.partition(":")
        role = "admin" if name == "admin" else "developer"
        if without:
            role = f"no-{without}"
            self.sql("insert into llm.roles (name) values (%s) on conflict do nothing", role)
            for permission in BUILT_IN["developer"] - {without}:
                self.sql("insert into llm.grants (role, permission) values (%s, %s)", role, permission)
        given = "insert into llm.user_roles (user_id, role) values (%s, %s) on conflict do nothing"
        self.sql(given, user_id, role)
        made = f"sk-{secrets.token_hex(32)}"
        digest = digest_of(made.encode(), pepper_of(self.pepper))
        self.sql(
            "insert into llm.api_keys (user_id, name, prefix, digest) values (%s, %s, %s, %s)",
            *(user_id, f"{name}-{made[3:9]}", made[:8], digest),
        )
        return made

    def settings(self, folder):
        """What a gateway's configuration says of the database and of who may call."""
        path = folder / "database.json"
        path.write_text(json.dumps(vars(self.target("database_gateway_url"))))
        (folder / "pepper").write_text(self.pepper)
        return {
            "database": {"enabled": True, "credentials_file": str(path), "retry_s": 0.1},
            "auth": {"pepper_file": str(folder / "pepper"), "snapshot_file": str(folder / "identity.json")},
        }


@contextlib.contextmanager
def opened(credentials):
    """A `Site` with an empty schema of the newest revision."""
    made = Site(credentials)
    create_database(made.name)
    try:
        with connected(made.target()) as engine:
            migrate.upgrade(engine, GATEWAY)
        yield made
    finally:
        drop_database(made.name)
