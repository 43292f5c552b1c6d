"""What is measured: how each subject is installed, configured, started and asked for its version."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import yaml

from performance.load import MODEL
from performance.procs import NotStarted, free_port

__all__ = [
    "DATABASE",
    "KEY",
    "NAMES",
    "OTHERS",
    "REPO",
    "UNCOUNTED",
    "Launch",
    "citadel_config",
    "install",
    "launch",
    "version",
]

UNCOUNTED = "citadel-without-metrics"  # measured where it is asked for
NAMES = ("direct", "citadel", UNCOUNTED, "litellm", "sglang-router", "vllm-router")
REPO = Path(__file__).resolve().parents[2]
KEY = "sk-bench-0123456789abcdef0123456789abcdef"
OTHERS = tuple(f"caller-{n}" for n in range(100))  # who could call, too
DATABASE = "BENCH_DATABASE"  # set where our gateway has one: the folder with what it needs of it (database.py)


@dataclass(frozen=True)
class Launch:
    """How to start a subject that listens on the port it was given."""

    command: list[str]
    ready_path: str
    environment: Mapping[str, str] = field(default_factory=dict)
    key: str | None = None
    silent: bool = False
    limit_s: float = 60.0


def citadel_config(folder: Path, engine_url: str, *, concurrency: int = 256, queue: int = 256) -> Path:
    """Write the gateway's configuration and its keys. Whatever the gateway can switch on belongs here."""
    keys = folder / "keys.json"
    digest = hashlib.sha256(KEY.encode()).hexdigest()
    others = [{"name": name, "sha256": hashlib.sha256(name.encode()).hexdigest()} for name in OTHERS]
    keys.write_text(json.dumps([*others, {"name": "bench", "sha256": digest}]))
    config = folder / "citadel.yaml"
    data = {
        "auth": {"keys_file": str(keys)},
        "limits": {
            "concurrency": concurrency,
            "queue": queue,
            # Each is looked at and counted for every request. The table is in memory, as it is on a host.
            "default_requests_per_minute": 1_000_000_000,
            "default_tokens_per_minute": 1_000_000_000,
            "default_concurrent_requests": 1_000_000,
        },
        "audit": {"enabled": True, "directory": str(folder / "audit")},
        "models": {MODEL: {"upstreams": [{"url": engine_url}]}},
    }
    if place := os.environ.get(DATABASE):
        data["database"] = {"enabled": True, "credentials_file": f"{place}/database.json"}
        data["auth"] = {"pepper_file": f"{place}/pepper", "snapshot_file": str(folder / "identity.json")}
    config.write_text(yaml.safe_dump(data))
    return config


def _citadel(folder: Path, port: int, engine_url: str, **limits: int) -> Launch:
    config = citadel_config(folder, engine_url, **limits)
    return Launch(
        [sys.executable, "-m", "citadel_llm.cli", "gateway", "--config", str(config), "--port", str(port)],
        "/health/ready",
        {"PROMETHEUS_MULTIPROC_DIR": str(folder / "metrics")},
        key=KEY,
        silent=True,
    )


def _uncounted(folder: Path, port: int, engine_url: str) -> Launch:
    same = _citadel(folder, port, engine_url)
    script = str(Path(__file__).with_name("uncounted.py"))
    return replace(same, command=[sys.executable, script, *same.command[3:]])


def _litellm(folder: Path, port: int, engine_url: str) -> Launch:
    config = folder / "litellm.yaml"
    parameters = {"model": f"openai/{MODEL}", "api_base": f"{engine_url}/v1", "api_key": "none"}
    data = {
        "model_list": [{"model_name": MODEL, "litellm_params": parameters}],
        "general_settings": {"master_key": KEY},
    }
    config.write_text(yaml.safe_dump(data))
    return Launch(
        [
            *(str(_environment("litellm") / "bin" / "litellm"), "--config", str(config)),
            *("--host", "127.0.0.1", "--port", str(port), "--num_workers", "1", "--telemetry", "False"),
        ],
        "/health/liveliness",
        # Its price list comes with it: the newest one would be asked for over the network.
        {"LITELLM_LOCAL_MODEL_COST_MAP": "True", "LITELLM_LOG": "ERROR"},
        key=KEY,
        limit_s=90.0,
    )


def _router(name: str, *verb: str) -> Callable[..., Launch]:
    def start(folder: Path, port: int, engine_url: str) -> Launch:
        return Launch(
            [
                *(str(_environment(name) / "bin" / name), *verb),
                *("--worker-urls", engine_url, "--policy", "round_robin", "--log-level", "error"),
                *("--host", "127.0.0.1", "--port", str(port), "--prometheus-port", str(free_port())),
            ],
            "/health",
        )

    return start


_LAUNCHES: dict[str, Callable[..., Launch]] = {
    "citadel": _citadel,
    UNCOUNTED: _uncounted,
    "litellm": _litellm,
    "sglang-router": _router("sglang-router", "launch"),
    "vllm-router": _router("vllm-router"),
}


def launch(name: str, folder: Path, port: int, engine_url: str, **limits: int) -> Launch:
    """How to start `name` on `port` in front of the engine; its files go into `folder`. Only ours takes limits."""
    folder.mkdir(parents=True, exist_ok=True)
    return _LAUNCHES[name](folder, port, engine_url, **limits)


def _environment(name: str) -> Path:
    return REPO / "build" / "bench" / "env" / f"{name}-{sys.version_info.major}.{sys.version_info.minor}"


def install(name: str) -> None:
    """Make the peer's own environment from its hashed lock, unless it is there. Raises NotStarted."""
    if name in ("direct", "citadel", UNCOUNTED):
        return
    lock = REPO / "files" / "requirements" / f"bench-{name}.txt"
    folder = _environment(name)
    want = hashlib.sha256(lock.read_bytes()).hexdigest()
    stamp = folder / ".lock"
    if stamp.exists() and stamp.read_text() == want:
        return
    uv = str(Path(sys.executable).with_name("uv"))
    for command in (
        [uv, "venv", "--quiet", "--clear", "--python", sys.executable, str(folder)],
        [uv, "pip", "install", "--quiet", "--python", str(folder / "bin/python"), "--require-hashes", "-r", str(lock)],
    ):
        try:
            done = subprocess.run(command, capture_output=True, text=True, timeout=900, env=_index(os.environ))
        except (OSError, subprocess.TimeoutExpired) as error:
            raise NotStarted(f"could not be installed: {error}") from error
        if done.returncode:
            raise NotStarted(f"could not be installed: {done.stderr.strip()[-300:]}")
    stamp.write_text(want)


def _index(environment: Mapping[str, str]) -> dict[str, str]:
    """uv reads no pip.conf: an index that this machine's pip uses is handed over."""
    found = dict(environment)
    if not found.get("UV_DEFAULT_INDEX") and not found.get("UV_INDEX_URL"):
        asked = [sys.executable, "-m", "pip", "config", "get", "global.index-url"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=60)
        index = found.get("PIP_INDEX_URL") or (done.stdout.strip() if done.returncode == 0 else "")
        if index:
            found["UV_DEFAULT_INDEX"] = index
    return found


def version(name: str) -> str:
    """The version that is measured."""
    if name == "direct":
        return ""
    if name in ("citadel", UNCOUNTED):
        from citadel_llm import __version__  # noqa: PLC0415 — peers are measured without it

        return __version__
    code = f"import importlib.metadata as m; print(m.version({name!r}))"
    done = subprocess.run([str(_environment(name) / "bin/python"), "-c", code], capture_output=True, text=True)
    return done.stdout.strip()
