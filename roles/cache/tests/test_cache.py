"""A Redis for the gateway alone: on a socket, bounded, nothing on disk, and one user that may do little."""

import json
import re

import pytest

UNIT = "citadel-redis.service"
SOCKET = "/run/citadel-redis/redis.sock"

# Speaks to Redis as the gateway does; the password comes from the file and goes nowhere else.
SPEAK = """
import json, socket, sys
account, path, commands = sys.argv[1], sys.argv[2], json.loads(sys.argv[3])
connection = socket.socket(socket.AF_UNIX)
connection.settimeout(5)
connection.connect(path)
stream = connection.makefile("rwb")
def ask(*words):
    stream.write(b"*%d\\r\\n" % len(words))
    for word in map(str.encode, words):
        stream.write(b"$%d\\r\\n%b\\r\\n" % (len(word), word))
    stream.flush()
    line = stream.readline().decode().strip()
    if line.startswith("$") and line != "$-1":
        line = stream.read(int(line[1:]) + 2)[:-2].decode()
    return line
said = []
if account:
    found = json.load(open(account))
    said.append(ask("AUTH", found["user"], found["password"]))
print(json.dumps(said + [ask(*words) for words in commands]))
"""


@pytest.fixture(scope="module")
def show(host):
    """`show(*properties)`: properties of the unit by name."""

    def shown(*properties):
        said = host.run(f"systemctl show {UNIT} --property={','.join(properties)}")
        return dict(line.split("=", 1) for line in said.stdout.splitlines())

    return shown


@pytest.fixture(scope="module")
def credentials(site):
    return f"{site['citadel_root']}/config/secrets/redis-gateway.json"


@pytest.fixture(scope="module")
def speak(host, site, credentials):
    """`speak(*commands)`: Redis' replies to the gateway's user, asked by the service's user; `anonymous`: to nobody."""

    def spoken(*commands, anonymous=False, user=site["citadel_user"]):
        account = "" if anonymous else credentials
        said = host.run(f"runuser -u {user} -- python3 -c %s %s %s %s", SPEAK, account, SOCKET, json.dumps([*commands]))
        assert said.succeeded, said.stderr
        replies = json.loads(said.stdout)
        return replies if anonymous else replies[1:]

    return spoken


def test_the_unit_is_enabled_and_active_under_the_target(host, show):
    assert host.service(UNIT).is_enabled
    assert host.service(UNIT).is_running
    assert "citadel.target" in show("PartOf")["PartOf"]
    assert "citadel.target" in show("WantedBy")["WantedBy"]


def test_the_distributions_own_instance_is_off(host):
    own = host.service("redis-server.service")
    assert not own.is_running
    assert not own.is_enabled


def test_redis_listens_on_no_network(host, show):
    pid = show("MainPID")["MainPID"]
    listening = host.check_output("ss --listening --tcp --udp --processes --no-header --numeric")
    assert f"pid={pid}," not in listening
    assert show("RestrictAddressFamilies")["RestrictAddressFamilies"] == "AF_UNIX"
    assert show("PrivateNetwork")["PrivateNetwork"] == "yes"
    # Its own network namespace too, where systemd can make one: in a container it goes on without, and says so.
    own = host.check_output(f"readlink /proc/{pid}/ns/net") != host.check_output("readlink /proc/1/ns/net")
    said = host.check_output(f"journalctl --no-pager -o cat -u {UNIT} _PID={pid}")
    assert own or "PrivateNetwork=yes is configured, but the kernel does not support" in said


def test_the_socket_is_the_groups(host, site, role):
    socket = host.file(SOCKET)
    assert socket.is_socket
    assert (socket.user, socket.group, oct(socket.mode)) == (role["cache_user"], site["citadel_group"], "0o770")
    assert not host.run(f"runuser -u nobody -- ls {SOCKET}").succeeded


def test_it_does_not_run_as_the_gateways_user(host, role, site):
    pid = host.check_output(f"systemctl show {UNIT} --property=MainPID --value")
    assert host.file(f"/proc/{pid}").user == role["cache_user"] != site["citadel_user"]


def test_the_gateway_keeps_and_finds_a_value(speak, role):
    key = f"{role['cache_prefix']}test:conformance"
    assert speak(["SET", key, "v", "PX", "5000"], ["GET", key], ["DEL", key], ["GET", key]) == ["+OK", "v", ":1", "$-1"]


def test_the_gateway_may_use_nothing_but_its_own_keys_and_commands(speak, role):
    key = f"{role['cache_prefix']}x"
    forbidden = [
        ["GET", "another:key"], ["SET", "x", "y"], ["KEYS", "*"], ["SCAN", "0"], ["FLUSHALL"], ["CONFIG", "GET", "*"],
        ["ACL", "LIST"], ["EVAL", "return 1", "0"], ["SHUTDOWN"], ["DEBUG", "SLEEP", "0"], ["MONITOR"], ["DUMP", key],
        ["PUBLISH", "another", "x"], ["REPLICAOF", "127.0.0.1", "1"], ["MODULE", "LIST"], ["CLIENT", "LIST"],
    ]  # fmt: skip
    for words, reply in zip(forbidden, speak(*forbidden), strict=True):
        # DEBUG is refused to everybody, before anyone's rights are looked at.
        assert reply.startswith(("-NOPERM", "-ERR DEBUG command not allowed")), f"{words}: {reply}"


def test_nobody_gets_in_without_the_password(speak):
    for reply in speak(["PING"], ["AUTH", "default", ""], ["AUTH", "gateway", "guess"], anonymous=True):
        assert reply.startswith(("-NOAUTH", "-WRONGPASS")), reply


def test_the_password_is_known_to_the_group_alone_and_in_no_other_place(host, site, credentials):
    found = host.file(credentials)
    assert (found.user, found.group, oct(found.mode)) == ("root", site["citadel_group"], "0o640")
    # Redis holds the digest; the look for the password itself says only where it was found, never what it is.
    root = site["citadel_root"]
    look = (
        f'grep -rlFf <(python3 -c \'import json; print(json.load(open("{credentials}"))["password"])\') '
        f"{root}/config /etc/systemd/system"
    )
    assert host.run("bash -c %s", look).stdout.split() == [credentials]
    acl = host.file(f"{root}/config/secrets/redis-users.acl")
    assert (acl.user, acl.group, oct(acl.mode)) == ("root", site["citadel_group"], "0o640")


def test_what_watches_redis_has_a_user_that_sees_no_key(host, site):
    passwords = host.file(site["citadel_redis_observer_passwords"])
    assert (passwords.user, passwords.group, oct(passwords.mode)) == ("root", "root", "0o600")
    account = "/tmp/citadel-test-observer.json"
    made = (
        "import json,sys; f=json.load(open(sys.argv[1])); "
        "json.dump({'user': 'metrics', 'password': f['unix://' + sys.argv[3]]}, open(sys.argv[2], 'w'))"
    )
    try:
        host.check_output("python3 -c %s %s %s %s", made, passwords.path, account, SOCKET)
        asked = json.dumps([["INFO", "server"], ["GET", "citadel:x"], ["KEYS", "*"], ["SLOWLOG", "GET"]])
        said = json.loads(host.check_output("python3 -c %s %s %s %s", SPEAK, account, SOCKET, asked))
    finally:
        host.run(f"rm -f {account}")
    assert said[0] == "+OK"
    assert said[1].startswith("# Server")
    assert [reply.split()[0] for reply in said[2:]] == ["-NOPERM"] * 3


def test_memory_is_bounded_and_old_answers_make_room(host, show, site, role):
    config = host.file(f"{site['citadel_root']}/config/redis.conf").content_string
    assert f"\nmaxmemory {role['cache_memory_mb']}mb\n" in config
    assert f"\nmaxmemory-policy {role['cache_policy']}\n" in config
    # The setting, and not a kill: the old cgroup hierarchy that a container may have takes the bound and does not
    # hold to it.
    assert int(show("MemoryMax")["MemoryMax"]) >= role["cache_memory_mb"] * 2**20


def test_nothing_is_kept_on_disk(host, site):
    config = host.file(f"{site['citadel_root']}/config/redis.conf").content_string
    assert re.search(r'^save ""$', config, re.MULTILINE)
    assert re.search(r"^appendonly no$", config, re.MULTILINE)
    left = host.run("find /run/citadel-redis /var/lib/redis -name '*.rdb' -o -name '*.aof'")
    assert left.stdout == ""


def test_redis_sees_none_of_the_products_other_files(host, site):
    pid = host.check_output(f"systemctl show {UNIT} --property=MainPID --value")
    seen = host.check_output(f"ls -R /proc/{pid}/root{site['citadel_root']}")
    files = [line for line in seen.splitlines() if line and not line.endswith(":") and "." in line]
    assert sorted(files) == ["redis-users.acl", "redis.conf"]


def test_the_sandbox_is_rated_ok_or_better(host):
    rated = host.run(f"systemd-analyze security --no-pager {UNIT} | tail -n 1")
    level = float(re.search(r"level for \S+: ([0-9.]+)", rated.stdout).group(1))
    assert level < 5, rated.stdout  # 5 and more is "MEDIUM" in systemd's own words


@pytest.mark.disruptive
def test_a_killed_redis_is_back_within_seconds(host, speak, show):
    before = show("MainPID")["MainPID"]
    assert host.run(f"kill -9 {before}").succeeded
    again = (
        f"for i in $(seq 100); do systemctl is-active -q {UNIT} && test -S {SOCKET} && exit; sleep 0.1; done; exit 1"
    )
    assert host.run(again).succeeded
    assert show("MainPID")["MainPID"] not in ("0", before)
    assert speak(["PING"]) == ["+PONG"]
