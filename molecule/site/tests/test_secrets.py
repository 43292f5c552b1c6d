"""Secrets are planted, used and changed; then everything is searched for them: hosts, plays' output, the database.

What is searched with is checked too: a word that is planted where it may lie has to be found there.
"""

import base64
import contextlib
import json
import os
import re
import secrets
import subprocess
import time
from dataclasses import dataclass
from pathlib import Path

import httpx2
import psycopg
import pytest
import yaml

pytestmark = [pytest.mark.disruptive, pytest.mark.site]
REPO = Path(__file__).resolve().parents[3]
LLM_HOST, SQL_HOST = "hx-llm-server-01", "hx-sql-server-01"
SEARCH = Path(__file__).with_name("secrets_search.py").read_text()
OWN_SECRETS = "/opt/citadel/config/secrets"
ADMIN_KEY = "/root/.citadel-admin-key"
RANDOM = re.compile(r"(?=.*\d)[#>]?[\w+/=-]{20,}")
TABLES = """
select relname from pg_class
where relnamespace = 'llm'::regnamespace and relkind in ('r', 'p') and not relispartition order by relname
"""


def lab(host, *words, **options):
    done = subprocess.run(
        [str(REPO / "bin/lab"), "exec", host, *words], capture_output=True, text=True, timeout=300, **options
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def words_in(found, path=""):
    """{path: text} of everything in a structure that is long enough to be a secret and is no digest."""
    if isinstance(found, dict):
        return {k: v for name, inner in found.items() for k, v in words_in(inner, f"{path}.{name}").items()}
    if isinstance(found, list):
        return {k: v for number, inner in enumerate(found) for k, v in words_in(inner, f"{path}.{number}").items()}
    secret = (
        isinstance(found, str) and len(found) >= 16 and not path.endswith((".sha256", ".name", ".host", ".database"))
    )
    return {path: found} if secret else {}


@pytest.fixture(scope="module")
def known():
    """{name: secret}: the lab's own, and what the deployment made on the host."""
    text = yaml.safe_load((Path(os.environ["LAB_DIR"]) / "secrets.yml").read_text())
    found = {f"secrets.yml{path}": secret for path, secret in words_in(text).items()}
    for path in lab(LLM_HOST, "sh", "-c", f"find {OWN_SECRETS} /root/.citadel-* -type f 2>/dev/null || true").split():
        content = lab(LLM_HOST, "cat", path)
        if content.startswith("-----BEGIN"):
            found[path] = content.split("\n")[1]
        elif content.startswith("{"):
            found |= {f"{path}{name}": secret for name, secret in words_in(json.loads(content)).items()}
        else:
            found |= {f"{path}:{number}": word for number, word in enumerate(content.split()) if RANDOM.fullmatch(word)}
    assert {name.split(".")[-1] for name in found} >= {"key", "vault_database_password"}
    return found


@pytest.fixture(scope="module")
def changed(tmp_path_factory):
    """The site's secrets with other keys, none of an admin, and another password of the gateway's; their file too."""
    other = yaml.safe_load((Path(os.environ["LAB_DIR"]) / "secrets.yml").read_text())
    for entry in other["vault_gateway_api_keys"]:
        entry |= {"name": f"changed-{entry['name']}", "role": "developer", "key": f"sk-{secrets.token_urlsafe(32)}"}
    for name, value in other.items():
        if isinstance(value, str) and name != "vault_database_password":
            other[name] = secrets.token_urlsafe(32)
    path = tmp_path_factory.mktemp("secrets") / "changed.yml"
    path.write_text(yaml.safe_dump(other))
    path.chmod(0o600)
    return path, {f"changed{name}": secret for name, secret in words_in(other).items()}


@pytest.fixture(scope="module")
def planted(credentials):
    """What callers say, and are told, that is nobody else's business, after it was said in every way there is."""
    names = ("prompt", "key", "password", "first password", "own password", "query", "body")
    made = {name: f"planted-{name.replace(' ', '-')}-{secrets.token_hex(12)}" for name in names}
    made["short password"] = f"#{secrets.token_urlsafe(7)}"
    url, key = credentials["gateway_url"], credentials["admin_key"]
    made["login"] = basic = base64.b64encode(f"somebody:{made['password']}".encode()).decode()
    question = {"model": "phi3", "max_tokens": 4, "messages": [{"role": "user", "content": made["prompt"]}]}
    with httpx2.Client(base_url=url, timeout=60, headers={"authorization": f"Bearer {key}"}) as client:
        made |= _accepted(client, made, question)
        for path, body in (
            ("/v1/chat/completions", question),
            ("/v1/chat/completions", {**question, "stream": True}),
            ("/v1/chat/completions", {**question, "model": "no-such-model"}),
            ("/v1/chat/completions", {**question, "max_tokens": made["prompt"]}),
            ("/v1/completions", {"model": "phi3", "prompt": made["prompt"], "max_tokens": 4}),
            ("/v1/embeddings", {"model": "minilm", "input": made["prompt"]}),
            ("/v1/responses", {"model": "phi3", "input": made["prompt"], "max_output_tokens": 4, "store": False}),
        ):
            client.post(path, json=body)
        client.post("/v1/chat/completions", content=f'{{"model": "phi3", "messages": "{made["body"]}'.encode())
        client.get(f"/v1/models?api_key={made['query']}")
        for authorization in (f"Bearer {made['key']}", f"Basic {basic}", made["key"], f"Bearer {made['key']} x"):
            for path in ("/v1/models", "/admin/v1/keys"):
                client.get(path, headers={"authorization": authorization})
            client.post("/v1/chat/completions", json=question, headers={"authorization": authorization})
    return made


def _accepted(client, made, question):
    """What lets somebody in, made and used: a key, the one in its place, a password, another one in its place."""
    user = f"planted-{secrets.token_hex(4)}"

    def admin(method, path, body, status):
        answer = client.request(method, f"/admin/v1{path}", json=body)
        assert answer.status_code == status, answer.text
        return answer.json() if answer.content else {}

    new = {"name": user, "roles": ["developer"]}
    admin("POST", "/users", {**new, "password": made["short password"]}, 400)
    admin("POST", "/users", {**new, "password": made["first password"]}, 201)
    admin("PUT", f"/users/{user}/password", {"password": made["short password"]}, 400)
    admin("PUT", f"/users/{user}/password", {"password": made["own password"]}, 204)
    first = admin("POST", "/keys", {"name": "planted", "user": user}, 201)
    second = admin("POST", f"/keys/{first['id']}/rotate", {}, 201)
    login = base64.b64encode(f"{user}:{made['own password']}".encode()).decode()
    for authorization in (f"Bearer {first['key']}", f"Bearer {second['key']}", f"Basic {login}"):
        answer = client.post("/v1/chat/completions", json=question, headers={"authorization": authorization})
        assert answer.status_code == 200, answer.text
    admin("PATCH", f"/users/{user}", {"disabled": True}, 200)
    return {"first key": first["key"], "second key": second["key"], "own login": login}


@contextlib.contextmanager
def watched(wanted):
    """What is found in the host's processes meanwhile."""
    seen = []
    process = subprocess.Popen(
        [str(REPO / "bin/lab"), "exec", LLM_HOST, "python3", "-c", SEARCH, "watch"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.stdin.write(json.dumps(wanted) + "\n")
    process.stdin.flush()
    assert process.stdout.readline() == "watching\n"
    try:
        yield seen
    finally:
        seen.extend(json.loads(process.communicate(timeout=60)[0]))


@dataclass(frozen=True)
class Plays:
    """What was said by which play, what was seen in the processes meanwhile, and which key was made for an admin."""

    said: dict[str, str]
    processes: list[list[str]]
    admin: dict[str, object]


@pytest.fixture(scope="module")
def plays(play, known, changed, credentials):
    """Plays that change every secret, most loudly, with one that fails among them; then all is as it was."""
    with watched({**known, **changed[1]}) as seen:
        said, admin = _played(play, changed, credentials)
    return Plays({name: done.text for name, done in said.items()}, seen, admin)


def _played(play, changed, credentials):
    path, _ = changed
    loud = ("--diff", "-vvv", "-e", f"citadel_secrets_file={path}")
    said, admin = {}, {}
    try:
        said["a dry run"] = play("--check", "--tags", "cache,database,gateway", *loud)
        said["changed keys"] = play("--tags", "gateway", *loud)
        admin = _first_admin(credentials)
    finally:
        said["changed back"] = play("--diff", "-vvv", "--tags", "cache,database,gateway")
        admin["afterwards"] = lab(LLM_HOST, "sh", "-c", f"cat {ADMIN_KEY}; rm -f {ADMIN_KEY}").strip()
        with psycopg.connect(credentials["database_url"], autocommit=True) as connection:
            connection.execute("update llm.api_keys set revoked_at = now() where name = 'first' and origin = 'api'")
    wrong = path.with_name("wrong.yml")
    wrong.write_text(yaml.safe_dump({**yaml.safe_load(path.read_text()), "vault_database_password": "w" + "rong" * 8}))
    said["a wrong password"] = play("--check", "--diff", "-vvv", "--tags", "database", "-e",
                                    f"citadel_secrets_file={wrong}")  # fmt: skip
    said["a backup"] = play("--diff", "-vvv", playbook="backup")
    assert [said[name].code for name in ("changed keys", "changed back", "a backup")] == [0, 0, 0]
    assert said["a wrong password"].code != 0
    return said, admin


def _first_admin(credentials):
    """The key that a play made where no admin was declared: what it is, whose, and whether the gateway takes it."""
    owner, key = lab(LLM_HOST, "sh", "-c", f"stat -c '%U:%G %a' {ADMIN_KEY}; cat {ADMIN_KEY}").splitlines()
    deadline = time.monotonic() + 30  # an instance looks now and then who there is
    while True:
        answer = httpx2.get(
            f"{credentials['gateway_url']}/admin/v1/users", headers={"authorization": f"Bearer {key}"}, timeout=30
        )
        if answer.status_code == 200 or time.monotonic() > deadline:
            return {"key": key, "file": owner, "status": answer.status_code}
        time.sleep(0.2)


@pytest.fixture(scope="module")
def everything(known, changed, planted, plays):
    """{name: secret} of all that is searched for, once all of it has been used."""
    return {**known, **changed[1], **planted, "wrong": "w" + "rong" * 8, "the admin's": plays.admin["key"]}


@pytest.fixture(scope="module")
def control():
    """A word that lies in each kind of place, on purpose."""
    word = f"control-{secrets.token_hex(12)}"
    process = subprocess.Popen(
        [str(REPO / "bin/lab"), "exec", LLM_HOST, "python3", "-c",
         "import subprocess, sys; word = sys.stdin.readline().strip(); "
         "open('/tmp/control', 'w').write(word); open('/var/log/control', 'w').write(word); "
         "subprocess.run(['systemd-cat'], input=word.encode()); print('planted', flush=True); "
         "subprocess.run(['sh', '-c', 'read line # ' + word])"],
        stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
    )  # fmt: skip
    process.stdin.write(f"{word}\n")
    process.stdin.flush()
    assert process.stdout.readline() == "planted\n"
    yield word
    process.communicate("\n", timeout=60)
    lab(LLM_HOST, "rm", "-f", "/tmp/control", "/var/log/control")


@pytest.fixture(scope="module")
def search():
    """`search(host, {name: secret})`: [[place, where, name], ...]"""
    return lambda host, wanted: json.loads(lab(host, "python3", "-c", SEARCH, input=json.dumps(wanted) + "\n"))


def test_what_is_searched_with_finds_what_is_there(search, control):
    places = {place for place, _, _ in search(LLM_HOST, {"control": control})}
    assert places == {"temporary files", "logs", "journal", "processes"}


def test_no_secret_lies_on_the_llm_server_but_where_it_belongs(search, everything):
    assert search(LLM_HOST, everything) == []


def test_no_secret_lies_on_the_database_server(search, everything):
    assert search(SQL_HOST, everything) == []


def test_no_play_tells_a_secret_nor_gives_one_to_a_process(plays, everything):
    assert plays.processes == []
    said = plays.said.items()
    assert [(play, name) for play, text in said for name, secret in everything.items() if secret in text] == []


def test_where_no_admin_is_declared_one_gets_a_key_that_root_alone_may_read(plays):
    key = plays.admin["key"]
    assert plays.admin == {"key": key, "file": "root:root 600", "status": 200, "afterwards": key}
    assert "No admin had a key: one was made" in " ".join(plays.said["changed keys"].split())
    assert "one was made" not in plays.said["changed back"]


def test_no_table_holds_a_secret(credentials, everything):
    with psycopg.connect(credentials["database_url"], autocommit=True) as connection:
        assert held(connection, {"control": "Runs the service"}) == [("roles", "control")]
        assert held(connection, everything) == []


def held(connection, wanted):
    """[(table, name), ...] of what is in any column of any row of schema `llm`."""
    connection.execute("set search_path = pg_catalog")
    found = []
    for (table,) in connection.execute(TABLES).fetchall():
        for name, secret in wanted.items():
            shapes = [secret, secret.encode().hex(), base64.b64encode(secret.encode()).decode().rstrip("=")]
            there = connection.execute(
                f"select exists (select 1 from llm.{table} t where exists "
                "(select 1 from unnest(%s::text[]) as shape where position(shape in t::text) > 0))", [shapes],
            ).fetchone()  # fmt: skip
            found += [(table, name)] if there == (True,) else []
    return found


def test_a_process_that_dies_leaves_no_core(search, everything, credentials):
    holders = lab(LLM_HOST, "systemctl", "list-units", "--plain", "--no-legend", "--type=service", "citadel-*").split(
        "\n"
    )
    units = [line.split()[0] for line in holders if line.strip()]
    assert "citadel-gateway@1.service" in units
    limits = dict(
        zip(units, lab(LLM_HOST, "systemctl", "show", "--value", "-p", "LimitCORE", *units).split(), strict=True)
    )
    assert limits == dict.fromkeys(units, "0")
    lab(LLM_HOST, "touch", "/tmp/before")
    lab(LLM_HOST, "systemctl", "kill", "--signal=ABRT", "citadel-gateway@1.service")
    lab(LLM_HOST, "sh", "-c", "until systemctl is-active --quiet citadel-gateway@1.service; do sleep 0.1; done")
    cores = lab(LLM_HOST, "find", "/", "-xdev", "-newer", "/tmp/before", "-type", "f", "(", "-name", "core", "-o",
                "-name", "core.*", "-size", "+64k", ")", "-not", "-path", "/opt/citadel/env/*")  # fmt: skip
    assert cores == ""
    assert [entry for entry in search(LLM_HOST, everything) if entry[0] == "core dumps"] == []
