"""The one configuration file of the gateway and the command line, read and checked in one place.

    config = load_config(Path("/opt/citadel/config/citadel.yaml"))
    config.models["mixtral"].upstreams[0].port

Unknown keys are refused, and an error names the file, the path inside it and what was
expected there. Seconds and bytes are in the names.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any
from urllib.parse import urlsplit

import msgspec
import yaml
from msgspec import Meta

__all__ = ["Cache", "Config", "ConfigError", "Limits", "Model", "Timeouts", "Upstream", "load_config", "parse_config"]

Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Port = Annotated[int, Meta(ge=1, le=65_535)]

_MODEL_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._/-]{0,127}")


class ConfigError(Exception):
    """The configuration can't be used; the text says where and what was expected."""


class _Section(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A part of the file: immutable, and strict about what it does not know."""


class Timeouts(_Section, frozen=True, kw_only=True):
    """How long each phase of a request may take, in seconds."""

    connect_s: Seconds = 2.0
    body_s: Seconds = 30.0  # for the caller to send its request
    queue_s: Seconds = 30.0  # for a place at the model
    first_byte_s: Seconds = 600.0  # for the engine's first byte; a plain answer comes whole
    chunk_s: Seconds = 120.0  # between two pieces of a stream
    total_s: Seconds = 1800.0


class Limits(_Section, frozen=True, kw_only=True):
    """What one instance takes on at most."""

    body_bytes: Annotated[int, Meta(ge=1024, le=1 << 30)] = 8 << 20
    concurrency: Count = 256  # requests at a model at once, where the model names no number
    queue: Annotated[int, Meta(ge=0, le=1_000_000)] = 256  # waiting for a place at a model
    retry_after_s: Annotated[int, Meta(ge=1, le=3600)] = 5


class Probe(_Section, frozen=True, kw_only=True):
    """How the engines' state is watched."""

    interval_s: Seconds = 1.0
    timeout_s: Seconds = 2.0
    failures: Count = 3  # unanswered probes in a row before an engine counts as down; a refusal counts at once


class Cache(_Section, frozen=True, kw_only=True):
    """Answers that are asked for again: which, citadel_llm/integration/cache/response_cache.py says."""

    enabled: bool = False
    socket: str = "/run/citadel-redis/redis.sock"
    credentials_file: str = "/opt/citadel/config/secrets/redis-gateway.json"
    ttl_s: Seconds = 3600.0  # an answer is kept for so long
    max_answer_bytes: Annotated[int, Meta(ge=1024, le=4 << 20)] = 256 << 10  # larger ones are not kept
    timeout_ms: Annotated[float, Meta(gt=0, le=1000)] = 20.0  # Redis answers within this, or is done without
    max_in_flight: Count = 1024  # calls to Redis at once
    single_flight: bool = True  # identical requests at the same time are answered by one call


class Auth(_Section, frozen=True, kw_only=True):
    """Who may call. The file holds SHA-256 digests of the keys, never keys."""

    keys_file: str
    public_model_list: bool = True


class Server(_Section, frozen=True, kw_only=True):
    """The instance itself."""

    url: str = "http://127.0.0.1:8000"  # where `citadel status` asks
    keepalive_s: Seconds = 75.0  # an idle caller's connection
    drain_s: Annotated[float, Meta(ge=0, le=60)] = 1.0  # callers are told to reconnect elsewhere for so long
    shutdown_s: Seconds = 120.0  # then streams may finish for so long


class Upstream(_Section, frozen=True, kw_only=True):
    """One engine that serves a model."""

    url: str
    draining_marker: str | None = None  # while this file exists, nothing new is sent there

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme != "http" or not parts.hostname or parts.path not in ("", "/") or parts.query:
            raise ValueError(f"Expected `http://HOST:PORT`, got `{self.url}`")
        try:
            port = parts.port
        except ValueError as error:
            raise ValueError(f"Expected a port of 1 to 65535 in `{self.url}`") from error
        if port is None:
            raise ValueError(f"Expected a port in `{self.url}`, as in `http://127.0.0.1:11400`")

    @property
    def host(self) -> str:
        """The host name or address, without brackets."""
        return urlsplit(self.url).hostname or ""

    @property
    def port(self) -> int:
        """The TCP port."""
        return urlsplit(self.url).port or 0


class Model(_Section, frozen=True, kw_only=True):
    """A model that callers may name."""

    upstreams: Annotated[list[Upstream], Meta(min_length=1)]
    display_name: str = ""
    owned_by: str = "citadel"
    max_tokens: Count | None = None  # the context, in tokens
    concurrency: Count | None = None  # requests at once from this instance
    version: str = ""  # what its answers depend on, beside its name; another one finds no cached answer


class Config(_Section, frozen=True, kw_only=True):
    """The whole file."""

    auth: Auth
    models: Annotated[dict[str, Model], Meta(min_length=1)]
    server: Server = msgspec.field(default_factory=Server)
    limits: Limits = msgspec.field(default_factory=Limits)
    timeouts: Timeouts = msgspec.field(default_factory=Timeouts)
    probe: Probe = msgspec.field(default_factory=Probe)
    cache: Cache = msgspec.field(default_factory=Cache)
    created: int = 0  # Unix seconds; not of the file's text but its age, shown in /v1/models

    def __post_init__(self) -> None:
        for name in self.models:
            if not _MODEL_NAME.fullmatch(name):
                raise ValueError(f"Model name `{name}`: expected up to 128 letters, digits, `.`, `_`, `-` or `/`")


def parse_config(data: Any, *, created: int = 0) -> Config:
    """Check `data`, as YAML gives it. Raises ConfigError, with the path inside the file."""
    if not isinstance(data, Mapping):
        raise ConfigError("Expected a mapping with the keys `auth` and `models`")
    if "created" in data:
        raise ConfigError("Object contains unknown field `created`")
    try:
        return msgspec.convert({**data, "created": created}, Config)
    except msgspec.ValidationError as error:
        raise ConfigError(_located(data, error)) from error


def load_config(path: Path) -> Config:
    """Read and check the file at `path`. Raises ConfigError, which names the file."""
    try:
        text = path.read_text(encoding="utf-8")
        data = yaml.safe_load(text)
        return parse_config(data, created=int(path.stat().st_mtime))
    except OSError as error:
        raise ConfigError(f"{path}: can't be read: {error.strerror}") from error
    except UnicodeDecodeError as error:
        raise ConfigError(f"{path}: is not UTF-8 text") from error
    except yaml.YAMLError as error:
        raise ConfigError(f"{path}: is not YAML: {error}") from error
    except ConfigError as error:
        raise ConfigError(f"{path}: {error}") from error


def _located(data: Mapping[str, Any], error: msgspec.ValidationError) -> str:
    """The message with the model's name, where msgspec only says that it was some entry."""
    text = str(error)
    models = data.get("models")
    if "$.models[...]" in text and isinstance(models, Mapping):
        for name, entry in models.items():
            try:
                msgspec.convert(entry, Model)
            except msgspec.ValidationError as inner:
                where = f"`$.models.{name}"
                message = str(inner)
                return message.replace("`$", where) if "`$" in message else f"{message} - at {where}`"
    return text
