"""Run on a host with a line of {name: secret} on standard input: which of them lie where they should not, by place.

With the word `watch` it looks at the processes alone, again and again until its standard input ends: what comes and
goes meanwhile is seen too. Nothing of it is in a command line, and it tells names alone.
"""

import base64
import gzip
import json
import os
import select
import subprocess
import sys

BLOCK = 1 << 20
# Where secrets may be, what is too large and nobody's words, and the journal, which is asked apart.
ALLOWED = ("/opt/citadel/config/secrets", "/opt/citadel/env", "/root/.citadel-admin-key", "/etc/citadel-lab",
           "/run/credentials", "/run/log/journal", "/var/log/journal", "/var/lib/postgresql",
           "/etc/pgpool2/pool_passwd")  # fmt: skip
TREES = {
    "/opt/citadel": ["/opt/citadel"],
    "unit files and configuration": ["/etc", "/run", "/usr/lib/systemd", "/usr/local"],
    "logs": ["/var/log"],
    "temporary files": ["/tmp", "/var/tmp", "/dev/shm", "/root", "/home"],
    "core dumps": ["/var/lib/systemd/coredump", "/var/crash", "/var/lib/apport"],
    "spools and state": ["/var/spool", "/var/lib/redis", "/var/cache"],
}
LARGEST = 256 << 20


def forms(secret):
    """A secret as it is, and as what carries it may write it."""
    text = secret.encode()
    return {text, text.hex().encode(), base64.b64encode(text).rstrip(b"=")}


def found(stream, wanted, longest):
    """The names whose secrets are in a stream of bytes, read in blocks that overlap."""
    names, rest = set(), b""
    while block := stream.read(BLOCK):
        window = rest + block
        names |= {name for name, shapes in wanted.items() if any(shape in window for shape in shapes)}
        rest = window[-longest:]
    return names


def files(tree):
    for folder, inner, names in os.walk(tree):
        inner[:] = [name for name in inner if not os.path.join(folder, name).startswith(ALLOWED)]
        for name in names:
            path = os.path.join(folder, name)
            if os.path.isfile(path) and not os.path.islink(path) and not path.startswith(ALLOWED):
                yield path


def processes(wanted, longest):
    """(which part of which command, the names in it)"""
    for process in (entry for entry in os.listdir("/proc") if entry.isdigit()):
        for part in ("cmdline", "environ"):
            try:
                with open(f"/proc/{process}/{part}", "rb") as file:
                    if names := found(file, wanted, longest):
                        yield f"{part} of {os.path.basename(os.readlink(f'/proc/{process}/exe'))}", names
            except OSError:
                continue  # it has ended


def main():
    secrets = json.loads(sys.stdin.readline())
    wanted = {name: forms(secret) for name, secret in secrets.items()}
    longest = max(len(shape) for shapes in wanted.values() for shape in shapes)
    said = {}  # in the order of finding, each once

    def tell(place, where, names):
        said.update({(place, where, name): None for name in sorted(names)})

    if sys.argv[1:] == ["watch"]:
        print("watching", flush=True)
        while not select.select([sys.stdin], [], [], 0.02)[0]:
            for where, names in processes(wanted, longest):
                tell("processes", where, names)
        return print(json.dumps(list(said)))
    for place, trees in TREES.items():
        for path in (path for tree in trees for path in files(tree)):
            if os.path.getsize(path) > LARGEST:
                continue
            try:
                with gzip.open(path) if path.endswith(".gz") else open(path, "rb") as file:
                    tell(place, path, found(file, wanted, longest))
            except OSError:
                continue  # it has gone, or is no file after all
    for where, names in processes(wanted, longest):
        tell("processes", where, names)
    journal = subprocess.Popen(["journalctl", "--no-pager", "--all", "-o", "export"], stdout=subprocess.PIPE)
    tell("journal", "journal", found(journal.stdout, wanted, longest))
    journal.wait()
    return print(json.dumps(list(said)))


main()
