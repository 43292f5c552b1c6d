"""The playbooks that make a backup and bring it back, on a site that serves."""

import json
import os
from pathlib import Path

import httpx2
import psycopg
import pytest

from citadel_llm.integration.database.manifest import verify

pytestmark = [pytest.mark.disruptive, pytest.mark.site]
BACKUPS = "/opt/citadel/data/backups"


@pytest.fixture
def owner(credentials):
    """A connection of the database's owner."""
    with psycopg.connect(credentials["database_url"], autocommit=True) as connection:
        yield connection


@pytest.fixture
def mark(owner):
    """`mark(name)`: a user in the database, so that one state of it can be told from another; gone afterwards."""
    names = []

    def made(name):
        owner.execute("insert into llm.users (name) values (%s) on conflict do nothing", [name])
        names.append(name)

    yield made
    owner.execute("delete from llm.users where name = any(%s)", [names])
    for (schema,) in owner.execute("select nspname from pg_namespace where nspname like 'llm_before_%'").fetchall():
        owner.execute(f"drop schema {schema} cascade")


def marked(owner):
    rows = owner.execute("select name from llm.users where name like 'marked-%' order by name")
    return [name for (name,) in rows]


def answers(credentials):
    return httpx2.get(f"{credentials['gateway_url']}/health/live", timeout=30).status_code == 200


def test_a_backup_is_made_and_copied_and_brought_back(play, on_host, credentials, owner, mark, tmp_path):
    mark("marked-before")
    done = play("-e", f"database_backup_fetch_to={tmp_path}", playbook="backup")
    assert done.code == 0, done.text
    (copied,) = tmp_path.iterdir()
    assert verify(copied).database == owner.info.dbname
    assert (copied.stat().st_mode & 0o777) == 0o700
    assert on_host("stat", "-c", "%U %a", BACKUPS, f"{BACKUPS}/{copied.name}").split("\n")[:2] == ["citadel 700"] * 2
    names = on_host("tar", "-tzf", f"{BACKUPS}/{copied.name}/config.tar.gz").split()
    assert "config/citadel.yaml" in names
    assert [name for name in names if "secrets" in name] == []
    mark("marked-after")

    # A schema in use stays as it is, and the gateway is started again.
    done = play("-e", f"database_restore_from={copied.name}", playbook="restore")
    assert done.code != 0
    assert "Nothing was restored, and the database is as it was." in done.text
    assert "-e database_restore_replace=true" in done.text
    assert marked(owner) == ["marked-after", "marked-before"]
    assert answers(credentials)

    done = play("-e", "database_restore_from=latest", "-e", "database_restore_replace=true", playbook="restore")
    assert done.code == 0, done.text
    assert marked(owner) == ["marked-before"]
    assert answers(credentials)
    assert on_host("systemctl", "is-active", "citadel-gateway.socket", "citadel-gateway@1", "citadel-gateway@2",
                   "citadel-backup.timer", "citadel-database.timer").split() == ["active"] * 5  # fmt: skip


def test_a_backup_that_is_not_there_or_damaged_stops_nothing(play, on_host, credentials):
    done = play("-e", "database_restore_from=2020-01-01T00-00-00Z", playbook="restore")
    assert done.code != 0
    assert "There is no backup 2020-01-01T00-00-00Z" in done.text
    assert play(playbook="backup").code == 0
    newest = on_host("ls", BACKUPS).split()[-1]
    on_host("truncate", "-s", "10", f"{BACKUPS}/{newest}/users.copy.gz")
    before = on_host("systemctl", "show", "-p", "MainPID", "citadel-gateway@1")
    try:
        done = play("-e", f"database_restore_from={newest}", "-e", "database_restore_replace=true", playbook="restore")
    finally:
        on_host("rm", "-r", f"{BACKUPS}/{newest}")
    assert done.code != 0
    assert "users.copy.gz: 10 bytes, the manifest says" in " ".join(done.text.split())
    assert on_host("systemctl", "show", "-p", "MainPID", "citadel-gateway@1") == before
    assert answers(credentials)


def test_the_owners_password_is_in_no_output(play, mark):
    mark("marked-in-use")  # so that the restore is refused, and everything is told of the refusal
    secrets = (Path(os.environ["LAB_DIR"]) / "credentials.json").read_text()
    password = psycopg.conninfo.conninfo_to_dict(json.loads(secrets)["database_url"])["password"]
    done = play("-vvv", "-e", "database_restore_from=latest", playbook="restore")
    assert done.code != 0
    assert password not in done.text
