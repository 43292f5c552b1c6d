"""A real Redis, with the configuration and the user's rights that the role `cache` gives it."""

import asyncio
import contextlib
import hashlib
import json
import os
import shutil
import signal
import subprocess
import time
from pathlib import Path
from random import Random

import jinja2
import yaml

from citadel_llm.integration.cache.connection import Options
from citadel_llm.integration.cache.redis import Redis, load_credentials

ROLE = Path(__file__).resolve().parents[2] / "roles/cache"
PASSWORD = "a-password-of-the-tests"
ADMIN = "admin-of-the-tests"
DEADLINE_S = 30


async def until(true, what, deadline_s=DEADLINE_S):
    """Wait until `true()` is, and return it."""
    end = time.monotonic() + deadline_s
    while not (found := true()):
        assert time.monotonic() < end, f"not within {deadline_s} s: {what}"
        await asyncio.sleep(0.002)
    return found


class Server:
    """A redis-server on a socket in `folder`; may be killed, hung, continued and started again."""

    def __init__(self, folder, **variables):
        self.folder = folder
        self.socket = str(folder / "redis.sock")
        self.credentials_file = folder / "redis-gateway.json"
        self.credentials_file.write_text(json.dumps({"user": "gateway", "password": PASSWORD}))
        defaults = yaml.safe_load((ROLE / "defaults/main.yml").read_text())
        self._acl(defaults)
        self._config({**defaults, **variables})
        self._process = None

    def __enter__(self):
        self.start()
        return self

    def __exit__(self, *_):
        self.stop()

    def _acl(self, defaults):
        rules = [f"~{defaults['cache_prefix']}*", f"&{defaults['cache_prefix']}*"]
        rules += [f"+{command}" for command in defaults["cache_commands"]]
        digest = hashlib.sha256(PASSWORD.encode()).hexdigest()
        (self.folder / "users.acl").write_text(
            "user default reset off\n"
            f"user gateway reset on #{digest} {' '.join(rules)}\n"
            f"user admin reset on >{ADMIN} ~* &* +@all\n"
        )

    def _config(self, variables):
        environment = jinja2.Environment(trim_blocks=True, undefined=jinja2.StrictUndefined, autoescape=False)
        environment.filters["dirname"] = os.path.dirname
        text = (ROLE / "templates/redis.conf.j2").read_text()
        self.config = self.folder / "redis.conf"
        self.config.write_text(
            environment.from_string(text).render(
                ansible_managed="for a test",
                citadel_redis_socket=self.socket,
                __cache_acl=str(self.folder / "users.acl"),
                **variables,
            )
        )

    def start(self):
        # Debian's redis-tools has the server too, under another name; what it is goes by the name it is called by.
        binary = shutil.which("redis-server") or shutil.which("redis-check-rdb")
        assert binary, "Redis is missing: bin/setup installs it"
        with (self.folder / "redis.log").open("ab") as log:
            self._process = subprocess.Popen(
                ["redis-server", str(self.config)], executable=binary, stdout=log, stderr=log, stdin=subprocess.DEVNULL
            )
        end = time.monotonic() + DEADLINE_S
        while self.ask("PING") != "PONG":
            assert self._process.poll() is None, (self.folder / "redis.log").read_text()
            assert time.monotonic() < end, "Redis does not start"
            time.sleep(0.01)

    def ask(self, *words):
        """What Redis answers to the administrator."""
        command = ["redis-cli", "-s", self.socket, "--user", "admin", "--pass", ADMIN, "--no-auth-warning", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=DEADLINE_S).stdout.strip()

    def kill(self):
        self._process.kill()
        self._process.wait()

    def hang(self):
        self._process.send_signal(signal.SIGSTOP)

    def go_on(self):
        self._process.send_signal(signal.SIGCONT)

    def stop(self):
        if self._process is not None and self._process.poll() is None:
            self._process.kill()
            self._process.wait()

    @property
    def load_credentials(self):
        return lambda: load_credentials(self.credentials_file)


@contextlib.asynccontextmanager
async def connected(server, *, wait=True, **options):
    """A client of the server, and what it told of its connection."""
    changes = []
    redis = Redis(
        server.socket,
        server.load_credentials,
        Options(**options),
        on_change=lambda up, reason: changes.append((up, reason)),
        rng=Random(7),
    )
    redis.changes = changes
    redis.start()
    try:
        if wait:
            await until(lambda: redis.up, "connected")
        yield redis
    finally:
        await redis.stop()
