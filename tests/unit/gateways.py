"""Real gateways for tests: `running_gateway` in this process, `spawned_gateway` as the command in one of its own.

Both read a configuration file written for the test, listen on a port of loopback, and log to a file.
"""

import asyncio
import contextlib
import hashlib
import json
import logging
import os
import signal
import socket
import sys
from pathlib import Path

import yaml

import callers
from citadel_llm import __version__
from citadel_llm.api.server import serve
from citadel_llm.api.state import GatewayState
from citadel_llm.integration.metrics import Metrics
from citadel_llm.utils.config import load_config
from citadel_llm.utils.keys import load_keys
from citadel_llm.utils.logging import LogWriter
from citadel_llm.utils.monitoring import Notifier
from waiting import in_time, until

KEYS = {"alice": callers.KEY, "bob": "sk-test-of-bob-9876543210"}

# Probes are quick, so that a test need not wait for a change of state, and a stop takes no longer than it must.
_QUICK = {
    "probe": {"interval_s": 0.05, "timeout_s": 0.5, "failures": 3, "load": "none"},
    "server": {"drain_s": 0, "shutdown_s": 5},
    # What one test does to its engines must not decide about the next one of the same gateway.
    "breaker": {"window": 1000, "min_requests": 1000},
    "balance": {"slow_start_s": 0},
}


def write_keys(path, keys):
    """A file of digests for {name: key}."""
    entries = [{"name": name, "sha256": hashlib.sha256(key.encode()).hexdigest()} for name, key in keys.items()]
    path.write_text(json.dumps(entries))


def write_config(folder, models, **sections):
    """A configuration for {name: [upstream or URL] or {"upstreams": ..., more}}; returns its path."""
    keys = folder / "keys.json"
    if not keys.exists():
        write_keys(keys, KEYS)
    config = {"auth": {"keys_file": str(keys), **sections.pop("auth", {})}, "models": {}}
    for name, given in models.items():
        entry = given if isinstance(given, dict) else {"upstreams": given}
        upstreams = [_upstream(one) for one in entry["upstreams"]]
        config["models"][name] = {**entry, "upstreams": upstreams}
    for section in {*_QUICK, *sections}:
        config[section] = {**_QUICK.get(section, {}), **sections.get(section, {})}
    path = folder / "citadel.yaml"
    path.write_text(yaml.safe_dump(config, sort_keys=False))
    return path


def _upstream(one):
    if isinstance(one, dict):
        return one
    return {"url": one if isinstance(one, str) else one.url}


class Gateway:
    """A running gateway."""

    def __init__(self, folder, log_path):
        self.folder = folder
        self.keys_file = folder / "keys.json"
        self.port = 0
        self._log = log_path

    @property
    def url(self):
        return f"http://127.0.0.1:{self.port}"

    @property
    def log_text(self):
        return self._log.read_text()

    def lines(self, event=None, **fields):
        """The log's lines so far; each must be a JSON object."""
        lines = [json.loads(line) for line in self.log_text.splitlines(keepends=True) if line.endswith("\n")]
        return [
            line
            for line in lines
            if event in (None, line["event"]) and all(line.get(name) == value for name, value in fields.items())
        ]

    async def logged(self, event, **fields):
        """Wait for a line; the first that fits."""
        found = await until(lambda: self.lines(event, **fields), what=f"a log line {event} with {fields}")
        return found[0]

    async def ask(self, *arguments, **options):
        return await callers.ask(self.port, *arguments, **options)

    async def get(self, path, **options):
        return await callers.get(self.port, path, **options)

    def caller(self, **options):
        return callers.Caller(self.port, **options)

    async def health(self, model="phi3"):
        """What /health says of a model."""
        return (await self.get("/health")).json["models"][model]

    async def seen(self, model="phi3", **fields):
        """Wait until /health says so of the model."""

        async def so():
            said = await self.health(model)
            return said if all(said[name] == value for name, value in fields.items()) else None

        return await until(so, what=f"{model} with {fields}")

    async def metrics(self):
        """The samples of /metrics, {`name{labels}`: value}."""
        answer = await self.get("/metrics")
        samples = (line.rsplit(" ", 1) for line in answer.body.decode().splitlines() if not line.startswith("#"))
        return {name: float(value) for name, value in samples}


def listening_socket():
    """A bound socket on a free port of loopback."""
    sock = socket.socket()
    sock.bind(("127.0.0.1", 0))
    sock.setblocking(False)
    return sock


class Manager:
    """A service manager's side of sd_notify: the messages come to a socket in `folder`."""

    def __init__(self, folder):
        self.path = str(folder / "notify")
        self.messages = []
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.bind(self.path)
        self._socket.setblocking(False)

    def __enter__(self):
        return self

    def __exit__(self, *_):
        self._socket.close()
        os.unlink(self.path)

    def heard(self, assignment):
        """How many messages so far held this assignment."""
        with contextlib.suppress(BlockingIOError):
            while True:
                self.messages.append(self._socket.recv(4096).decode().split("\n"))
        return sum(assignment in message for message in self.messages)


@contextlib.asynccontextmanager
async def running_gateway(folder, *, models, environ=None, sockets=(), **sections):
    """A gateway in this process, from its readiness to its end; one at a time, for signals are the process's.

    It serves on `sockets` too.
    """
    assert signal.getsignal(signal.SIGTERM) is signal.SIG_DFL, "another gateway runs in this process"
    config = load_config(write_config(folder, models, **sections))
    gateway = Gateway(folder, folder / "gateway.log")
    sock = listening_socket()
    gateway.port = sock.getsockname()[1]
    with Manager(folder) as manager, gateway._log.open("wb") as output:
        gateway.manager = manager
        log = LogWriter(output.fileno(), static={"instance": "1"})
        log.start()
        notifier = Notifier({"NOTIFY_SOCKET": manager.path, **(environ or {})})

        def make_state():
            gateway.state = GatewayState(
                config,
                lambda: load_keys(Path(config.auth.keys_file)),
                Metrics("1"),
                log,
                instance="1",
                version=__version__,
            )
            return gateway.state

        task = asyncio.create_task(serve(make_state, config, [sock, *sockets], notifier, log))
        try:
            await until(lambda: task.done() or manager.heard("READY=1"), what="the gateway is ready")
            yield gateway
        finally:
            if not task.done():
                os.kill(os.getpid(), signal.SIGTERM)
            await in_time(task)
            for name in (
                "uvicorn",
                "uvicorn.error",
                "asyncio",
            ):  # they would write to whatever has the file's number next
                logging.getLogger(name).handlers.clear()
            log.close()
            sock.close()


class Spawned(Gateway):
    """A gateway in a process of its own."""

    process = None

    def signal(self, number):
        self.process.send_signal(number)

    async def ended(self):
        """Wait for the process; its exit status."""
        return await in_time(self.process.wait())


@contextlib.asynccontextmanager
async def spawned_gateway(
    folder, *, models, instance="1", environ=None, arguments=(), module="citadel_llm.cli", **sections
):
    """`citadel gateway` as a process, from its readiness until it is told to stop."""
    path = write_config(folder, models, **sections)
    gateway = Spawned(folder, folder / f"gateway-{instance}.log")
    with gateway._log.open("wb") as output, (folder / f"gateway-{instance}.err").open("wb") as errors:
        gateway.process = await asyncio.create_subprocess_exec(
            *[sys.executable, "-m", module, "gateway", "--config", str(path), "--port", "0"],
            *["--instance", instance, *arguments],
            stdout=output,
            stderr=errors,
            env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path), **(environ or {})},
        )
    try:
        await until(
            lambda: gateway.lines("ready") or gateway.process.returncode is not None, 30, what="a spawned gateway"
        )
        assert gateway.process.returncode is None, (folder / f"gateway-{instance}.err").read_text()
        gateway.port = gateway.lines("starting")[0]["port"]
        yield gateway
    finally:
        if gateway.process.returncode is None:
            gateway.process.terminate()
            await gateway.ended()
