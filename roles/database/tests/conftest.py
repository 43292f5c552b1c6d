"""Who the tests of the database are there: the gateway's user, on the host, and the owner, from the controller."""

import json
import os
import subprocess

import psycopg
import pytest
import yaml

# Each entry in a transaction of its own that is rolled back. The password comes from the file and goes nowhere else.
ASK = """
import json, sys, time
import psycopg
found = json.load(open(sys.argv[1]))
said = []
with psycopg.connect(host=found["host"], port=found["port"], dbname=found["database"], user=found["user"],
                     password=found["password"], connect_timeout=10, autocommit=True) as connection:
    for statements in json.loads(sys.argv[2]):
        began, result = time.perf_counter(), {"rows": [], "refused": None, "text": ""}
        try:
            with connection.transaction(force_rollback=True):
                for statement in statements:
                    cursor = connection.execute(statement)
                if cursor.description:
                    result["rows"] = cursor.fetchall()
        except psycopg.Error as error:
            result["refused"], result["text"] = error.sqlstate, str(error)
        result["took_ms"] = (time.perf_counter() - began) * 1000
        said.append(result)
print(json.dumps(said, default=str))
"""


@pytest.fixture(scope="module")
def credentials(site):
    return f"{site['citadel_root']}/config/secrets/database-gateway.json"


@pytest.fixture(scope="module")
def run_as(host, site):
    """`run_as(user, *words)`: what the migrations' Python says, run by a user of the host."""

    def ran(user, *words):
        python = f"{site['citadel_root']}/env/database/bin/python"
        return host.run(f"runuser -u {user} -- {python} {' '.join(['%s'] * len(words))}", *words)

    return ran


@pytest.fixture(scope="module")
def gateway(run_as, site, credentials):
    """`gateway(*transactions)`: what each gives the gateway's own user; one is a statement, or several."""

    def asked(*transactions):
        wanted = [[entry] if isinstance(entry, str) else list(entry) for entry in transactions]
        said = run_as(site["citadel_user"], "-c", ASK, credentials, json.dumps(wanted))
        assert said.succeeded, said.stderr
        return json.loads(said.stdout)

    return asked


@pytest.fixture(scope="module")
def place(host, site):
    """Where the database is, as the inventory says."""
    peer = host.ansible.get_variables()["groups"]["sql_servers"][0]
    known = type(host).get_host(f"ansible://{peer}", ansible_inventory=host.backend.ansible_inventory)
    found = known.ansible.get_variables()
    return {
        "host": found["ansible_host"],
        "port": found["citadel_database_port"],
        "dbname": found["citadel_database_name"],
        "owner": found["citadel_database_user"],
        "gateway": found["citadel_database_gateway_user"],
    }


@pytest.fixture(scope="module")
def owner(site, place):
    """A connection of the owner, whose password is in the site's secrets file, vault or plain."""
    path = site["citadel_secrets_file"]
    with open(path, encoding="utf-8") as file:
        text = file.read()
    if text.startswith("$ANSIBLE_VAULT"):
        shown = subprocess.run(["ansible-vault", "view", path], capture_output=True, text=True, env=os.environ)
        assert shown.returncode == 0, (
            f"{path} cannot be opened: set ANSIBLE_VAULT_PASSWORD_FILE ({shown.stderr.strip()})"
        )
        text = shown.stdout
    with psycopg.connect(
        host=place["host"],
        port=place["port"],
        dbname=place["dbname"],
        user=place["owner"],
        password=yaml.safe_load(text)["vault_database_password"],
        autocommit=True,
        connect_timeout=10,
    ) as connection:
        yield connection
