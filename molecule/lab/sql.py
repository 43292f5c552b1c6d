"""The lab's SQL host: PostgreSQL on 5432 and Pgpool-II before it on 5433, SCRAM all the way, as the site has them.

The packages and what does not differ between labs are in an addition to the image; users, passwords and the database
are seen to at each boot, from the lab's secrets, before Pgpool-II starts.
"""

from __future__ import annotations

import json
import os
import re
from pathlib import Path

from settings import SQL_HOST, Lab

PACKAGES = ["postgresql", "pgpool2"]  # Debian 13: PostgreSQL 17, Pgpool-II 4.6
PORT = 5433
DATABASE = "citadel_ai"
OWNER, GATEWAY = "citadel_admin", "citadel_gateway"
# The variable of the secrets file, the name in credentials.json, and the user whose password it is.
ACCOUNTS = [
    ("vault_database_password", "database_url", OWNER),
    ("vault_database_gateway_password", "database_gateway_url", GATEWAY),
]
CHILDREN, POOLED = 32, 2
PROBE = (
    f"systemctl is-system-running --wait >/dev/null; bash -c '</dev/tcp/127.0.0.1/{PORT}' && "
    "systemctl is-active --quiet citadel-lab-sql.service"
)

POSTGRESQL = f"""\
listen_addresses = '*'
password_encryption = 'scram-sha-256'
max_connections = {CHILDREN * POOLED + 36}
log_timezone = 'UTC'
timezone = 'UTC'
"""
HBA = """\
local all postgres peer
host all all 0.0.0.0/0 scram-sha-256
"""
# Nothing of this fails over: there is one server, and while it is away Pgpool-II says so and goes on asking.
PGPOOL = f"""\
backend_clustering_mode = 'streaming_replication'
listen_addresses = '*'
port = {PORT}
unix_socket_directories = '/var/run/postgresql'
pcp_socket_dir = '/var/run/postgresql'
pid_file_name = '/var/run/postgresql/pgpool.pid'
logdir = '/var/log/postgresql'
backend_hostname0 = '127.0.0.1'
backend_port0 = 5432
backend_weight0 = 1
backend_flag0 = 'ALWAYS_PRIMARY|DISALLOW_TO_FAILOVER'
failover_on_backend_error = off
sr_check_period = 0
health_check_period = 0
enable_pool_hba = on
pool_passwd = 'pool_passwd'
num_init_children = {CHILDREN}
max_pool = {POOLED}
connection_cache = on
load_balance_mode = on
"""
POOL_HBA = "host all all 0.0.0.0/0 scram-sha-256\n"

# Pgpool-II stays when PostgreSQL is stopped, as on hosts of their own: neither unit is to pull the other down.
UNIT = """\
[Unit]
Description=Users, passwords and database of the lab
Wants=postgresql@{version}-main.service
After=postgresql@{version}-main.service
Before=pgpool2.service

[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/lib/citadel-lab-sql

[Install]
RequiredBy=pgpool2.service
"""

# Told to end politely, Pgpool-II now and then waits for callers that are gone, until systemd's patience ends.
STOP = """\
[Service]
KillSignal=SIGINT
KillMode=mixed
TimeoutStopSec=10
"""

# A password goes by standard input, never as a word of a command.
PREPARE = f"""\
#!/usr/bin/python3
# What is there already with the same passwords is left alone, so that a second boot costs nothing.
import hashlib, json, os, secrets, shutil, subprocess
accounts = json.load(open("/etc/citadel-lab/sql.json"))
mark = "/var/lib/postgresql/.citadel-lab"
digest = hashlib.sha256(json.dumps(accounts, sort_keys=True).encode()).hexdigest()
if os.path.exists(mark) and open(mark).read() == digest:
    raise SystemExit
def psql(text):
    command = ["runuser", "-u", "postgres", "--", "psql", "-qAtX", "-v", "ON_ERROR_STOP=1"]
    return subprocess.run(command, input=text, text=True, check=True, capture_output=True).stdout.split()
there, databases = psql("select rolname from pg_roles"), psql("select datname from pg_database")
for user, password in accounts.items():
    verb = "alter" if user in there else "create"
    psql(f"{{verb}} role {{user}} login password '{{password}}'")
if "{DATABASE}" not in databases:
    psql("create database {DATABASE} owner {OWNER}")
psql("revoke all on database {DATABASE} from public; grant connect, temporary on database {DATABASE} to {GATEWAY}")
key, entries = "/var/lib/postgresql/.pgpoolkey", "/etc/pgpool2/pool_passwd"
def private(path, text):
    with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        file.write(text)
    shutil.chown(path, "postgres", "postgres")
private(key, secrets.token_hex(24))
private(entries, "")
users = "/var/lib/postgresql/.citadel-lab-users"
private(users, "".join(f"{{user}}:{{password}}\\n" for user, password in accounts.items()))
try:
    command = ["runuser", "-u", "postgres", "--", "pg_enc", "-m", "-f", "/etc/pgpool2/pgpool.conf", "-k", key]
    subprocess.run([*command, "-i", users], check=True, capture_output=True)
finally:
    os.unlink(users)
private(mark, digest)
"""


def url(lab: Lab, user: str, password: str) -> str:
    """Where the database is, for a user, through Pgpool-II."""
    return f"postgresql://{user}:{password}@{lab.address(SQL_HOST)}:{PORT}/{DATABASE}"


def furnish(root: Path) -> None:
    """The configuration of both servers, and what runs between their starts."""
    version = next((root / "etc/postgresql").iterdir()).name
    folder = root / f"etc/postgresql/{version}/main"
    (folder / "conf.d/lab.conf").write_text(POSTGRESQL)
    (folder / "pg_hba.conf").write_text(HBA)
    (root / "etc/pgpool2/pgpool.conf").write_text(PGPOOL)
    (root / "etc/pgpool2/pool_hba.conf").write_text(POOL_HBA)
    script = root / "usr/local/lib/citadel-lab-sql"
    script.write_text(PREPARE)
    script.chmod(0o755)
    units = root / "etc/systemd/system"
    (units / "citadel-lab-sql.service").write_text(UNIT.format(version=version))
    (units / "pgpool2.service.d").mkdir(exist_ok=True)
    (units / "pgpool2.service.d/lab.conf").write_text(STOP)
    (units / "pgpool2.service.requires").mkdir(exist_ok=True)
    (units / "pgpool2.service.requires/citadel-lab-sql.service").symlink_to("../citadel-lab-sql.service")


def personalise(root: Path, lab: Lab) -> None:
    """The users with their passwords, where only the host's root may read them."""
    secrets = dict(re.findall(r"^(\w+): (\S+)$", (lab.directory / "secrets.yml").read_text(), re.M))
    target = root / "etc/citadel-lab/sql.json"
    target.parent.mkdir(exist_ok=True)
    with os.fdopen(os.open(target, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600), "w") as file:
        json.dump({user: secrets[variable] for variable, _, user in ACCOUNTS}, file)
