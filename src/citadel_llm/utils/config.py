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
from typing import Annotated, Any, Literal
from urllib.parse import urlsplit

import msgspec
import yaml
from msgspec import Meta

__all__ = [
    "AUTO",
    "Audit",
    "Auto",
    "Balance",
    "Breaker",
    "Cache",
    "Config",
    "ConfigError",
    "Console",
    "Cost",
    "Database",
    "Ejection",
    "Feature",
    "Files",
    "Limits",
    "Model",
    "Policy",
    "Probe",
    "Retry",
    "Semantic",
    "Sessions",
    "Timeouts",
    "Tls",
    "Upstream",
    "Vector",
    "load_config",
    "parse_config",
]

AUTO = "auto"  # the name under which a caller leaves the choice of the model to the gateway

Seconds = Annotated[float, Meta(gt=0, le=86_400)]
Count = Annotated[int, Meta(ge=1, le=1_000_000)]
Bound = Annotated[int, Meta(ge=0, le=1_000_000_000_000)]
Port = Annotated[int, Meta(ge=1, le=65_535)]
Share = Annotated[float, Meta(ge=0, le=1)]
Latency = Annotated[float, Meta(ge=0, le=86_400_000)]
Money = Annotated[float, Meta(ge=0, le=1e12)]
Rate = Annotated[float, Meta(gt=0, le=1e9)]

type Policy = Literal["least_outstanding", "prefix", "session"]
type Feature = Literal["tools", "images", "response_format"]

_HOST = re.compile(r"[A-Za-z0-9._-]+|[0-9A-Fa-f:.]+(%[A-Za-z0-9._-]+)?")  # a name, or an IPv6 address
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
    queue_per_key: Count | None = None  # of those, waiting for one caller; none: as many as leave room for others
    # Who would wait more than so many times as long as the model's requests take is refused: those who are let in
    # then take at most about twice as long as without a queue.
    wait_factor: Annotated[float, Meta(gt=0, le=1000)] = 0.9
    retry_after_s: Annotated[int, Meta(ge=1, le=3600)] = 5  # told to callers where nothing better is known
    # Of each key that nobody set others for; null is no bound.
    default_requests_per_minute: Bound | None = 60_000
    default_tokens_per_minute: Bound | None = 100_000_000
    default_concurrent_requests: Bound | None = 4096
    # What was used, in memory that the host's instances share: a file in a folder that is in memory; none: alone.
    table_file: str | None = None
    hosts: Annotated[int, Meta(ge=1, le=1000)] = 1  # that share each bound, in equal parts
    host: Annotated[int, Meta(ge=0, le=999)] = 0  # which of them this is

    def __post_init__(self) -> None:
        if self.host >= self.hosts:
            raise ValueError(f"Expected `host` < `hosts`, got {self.host} and {self.hosts}")


class Probe(_Section, frozen=True, kw_only=True):
    """How the engines' state is watched."""

    interval_s: Seconds = 1.0
    timeout_s: Seconds = 2.0
    failures: Count = 3  # unanswered probes in a row before an engine counts as down; a refusal counts at once
    load: Literal["metrics", "none"] = "metrics"  # ask replicas how many requests wait inside them


class Balance(_Section, frozen=True, kw_only=True):
    """How the replicas of a model share its requests; which policy it is, each model says."""

    slow_start_s: Annotated[float, Meta(ge=0, le=3600)] = (
        10.0  # a replica that came back takes so long to its full share
    )
    prefix_bytes: Annotated[int, Meta(ge=16, le=1 << 20)] = 1024  # of the prompt, that `prefix` looks at
    load_factor: Annotated[float, Meta(ge=1, le=100)] = 1.25  # `prefix`: a replica's load to the average's, at most


class Breaker(_Section, frozen=True, kw_only=True):
    """When a replica gets nothing more for a while, and how it is tried again."""

    window: Annotated[int, Meta(ge=1, le=1000)] = 20  # the last so many answers are looked at
    min_requests: Annotated[int, Meta(ge=1, le=1000)] = 10  # fewer decide nothing
    failure_share: Annotated[float, Meta(gt=0, le=1)] = 0.5  # opens at this share of failures
    open_s: Seconds = 5.0  # the first pause; each further one is twice as long
    max_open_s: Seconds = 60.0
    trials: Annotated[int, Meta(ge=1, le=100)] = 2  # half open: at once at most, and good answers until it closes

    def __post_init__(self) -> None:
        if self.min_requests > self.window:
            raise ValueError(f"Expected `min_requests` <= `window`, got {self.min_requests} and {self.window}")
        if self.max_open_s < self.open_s:
            raise ValueError(f"Expected `open_s` <= `max_open_s`, got {self.open_s:g} and {self.max_open_s:g}")


class Ejection(_Section, frozen=True, kw_only=True):
    """When a replica that fails while others answer is left out, beside the active probes."""

    failures: Count = 5  # in a row
    base_s: Seconds = 5.0  # the first time; longer each time it happens again
    max_s: Seconds = 120.0
    max_share: Share = (
        0.5  # of a model's replicas, left out at once; one is left out, where there are two, whatever it is
    )


class Retry(_Section, frozen=True, kw_only=True):
    """How a request is sent again, before the first byte of its answer."""

    attempts: Annotated[int, Meta(ge=1, le=10)] = 2  # in all
    base_s: Seconds = 0.05  # the pause before a replica is asked again: at random up to this, doubled each time
    max_s: Seconds = 1.0
    budget_share: Share = 0.2  # second attempts to requests, over time
    budget_floor_per_s: Annotated[float, Meta(ge=0, le=10_000)] = 1.0  # allowed even where few requests come
    budget_burst: Count | None = (
        None  # saved up at most; none: a model's `concurrency`, so that losing a replica is covered
    )
    statuses: list[Annotated[int, Meta(ge=500, le=599)]] = msgspec.field(
        default_factory=lambda: [500, 502, 503]
    )  # of a replica's own


class Auto(_Section, frozen=True, kw_only=True):
    """The estimates behind the model name `auto`."""

    bytes_per_token: Annotated[float, Meta(ge=1, le=16)] = 3.5  # of a prompt's JSON text; too small is safe
    image_tokens: Count = 1024
    answer_tokens: Count = 256  # where the request names no max_tokens


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


class Vector(_Section, frozen=True, kw_only=True):
    """Qdrant, which remembers texts by meaning and by words: citadel_llm/integration/vector."""

    enabled: bool = False
    url: str = "http://127.0.0.1:6333"
    protocol: Literal["rest", "grpc", "graphql"] = "rest"  # graphql only reads
    grpc_port: Port | None = None  # none: the url's own
    credentials_file: str = "/opt/citadel/config/secrets/vector.json"
    prefix: str = "citadel"  # of the collections' names
    timeout_s: Annotated[float, Meta(gt=0, le=60)] = 0.8  # for a read, its retries included
    write_timeout_s: Seconds = 30.0
    attempts: Annotated[int, Meta(ge=1, le=10)] = 3  # in all
    connections: Count = 16  # at once, by REST and GraphQL; gRPC has one
    batch: Annotated[int, Meta(ge=1, le=10_000)] = 256  # points in one write
    search_ef: Annotated[int, Meta(ge=1, le=10_000)] = 256  # candidates that a search by meaning weighs
    cache_entries: Annotated[int, Meta(ge=0, le=100_000)] = 512  # results kept; 0: none
    cache_ttl_s: Annotated[float, Meta(ge=0, le=3600)] = 2.0  # another instance's writes show after this
    breaker: Breaker = msgspec.field(
        default_factory=lambda: Breaker(window=10, min_requests=3, open_s=0.5, max_open_s=5.0, trials=1)
    )

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if parts.scheme not in ("http", "https") or not _HOST.fullmatch(parts.hostname or "") or parts.query:
            raise ValueError("Expected `http://HOST:PORT` or `https://HOST:PORT` as `url`")
        if parts.username is not None:
            raise ValueError("Expected no password in `url`: the API key is in `credentials_file`")


class Files(_Section, frozen=True, kw_only=True):
    """Files and vector stores; they need `vector`, `database` and a model of the kind `embedding`."""

    enabled: bool = False
    path: str = "/opt/citadel/data/files"  # the contents; where there are several LLM servers, the same for all
    tokenizer: str = ""  # the tokenizer.json of the model `embedder`
    embedder: str = ""  # whose vectors new stores have; none: the first model of that kind
    max_file_bytes: Annotated[int, Meta(ge=1024, le=1 << 33)] = 64 << 20
    user_files: Count = 10_000
    user_bytes: Annotated[int, Meta(ge=1024)] = 2 << 30
    total_bytes: Annotated[int, Meta(ge=1024)] = 50 << 30
    user_stores: Count = 1000
    store_files: Count = 10_000
    chunk_tokens: Annotated[int, Meta(ge=100, le=4096)] = 400  # where a caller leaves it to us
    overlap_tokens: Annotated[int, Meta(ge=0, le=2048)] = 100
    workers: Annotated[int, Meta(ge=0, le=64)] = 1  # files that one instance works on at once
    batch: Annotated[int, Meta(ge=1, le=1024)] = 32  # chunks that are embedded and written at once
    lease_s: Annotated[float, Meta(ge=2, le=3600)] = 60.0  # a file whose instance is gone is taken up after this
    poll_s: Seconds = 2.0  # what another instance was asked for is seen after this
    retry_s: Seconds = 5.0
    read_memory_bytes: Annotated[int, Meta(ge=1 << 28)] = 512 << 20  # of the process that reads one file
    read_cpu_s: Count = 60
    max_text_bytes: Annotated[int, Meta(ge=1024)] = 16 << 20  # of one file
    max_chunks: Count = 50_000

    def __post_init__(self) -> None:
        if 2 * self.overlap_tokens > self.chunk_tokens:
            raise ValueError("Expected `overlap_tokens` of at most half of `chunk_tokens`")
        if self.enabled and not self.tokenizer:
            raise ValueError("Expected `tokenizer`: the path of the embedding model's tokenizer.json")


class Tracing(_Section, frozen=True, kw_only=True):
    """Where spans are sent. Without an `endpoint` a caller's trace goes on to the engine, and that is all."""

    endpoint: str = ""  # of a collector that takes OTLP over HTTP, with its path: http://192.0.2.7:4318/v1/traces
    service_name: Annotated[str, Meta(min_length=1, max_length=128)] = "citadel-gateway"
    sample_share: Share = 1.0  # of requests that bring no trace; those that do decide for themselves
    queue: Annotated[int, Meta(ge=1, le=1 << 17)] = 4096  # spans that wait; more are given up
    delay_s: Seconds = 2.0
    timeout_s: Annotated[float, Meta(gt=0, le=60)] = 5.0

    def __post_init__(self) -> None:
        if self.endpoint and not self.endpoint.startswith(("http://", "https://")):
            raise ValueError(f"Expected `endpoint` to begin with http:// or https://, got {self.endpoint!r}")


class Semantic(_Section, frozen=True, kw_only=True):
    """Answers that are given again to questions of the same meaning: citadel_llm/api/routes/semantic.py.

    They need `vector` and a model of the kind `embedding`.
    """

    enabled: bool = False
    keys: list[str] = msgspec.field(default_factory=list)  # whose requests take part: USER/KEY, USER, or * for all
    embedder: str = ""  # the one whose vectors the collections of answers have; none: the first
    threshold: Annotated[float, Meta(ge=0.5, le=1)] = 0.92  # of the cosine; docs/files.md has what was measured
    ttl_s: Seconds = 86_400.0
    timeout_s: Annotated[float, Meta(gt=0, le=10)] = 0.5  # for a look, the question's vector included
    max_question_chars: Count = 1000
    max_answer_bytes: Annotated[int, Meta(ge=1024, le=4 << 20)] = 64 << 10


class Database(_Section, frozen=True, kw_only=True):
    """PostgreSQL, through Pgpool-II: users and keys, conversations, the audit log."""

    enabled: bool = False
    credentials_file: str = "/opt/citadel/config/secrets/database-gateway.json"
    connections: Annotated[int, Meta(ge=1, le=64)] = 4  # of one instance, at most
    timeout_s: Seconds = 2.0  # for a connection, and for a statement; who waits for it is told then
    retry_s: Seconds = 0.5  # while it is away, it is looked for so often


class Sessions(_Section, frozen=True, kw_only=True):
    """What is kept of responses and conversations, where there is a database."""

    store_default: bool = True  # whether a response is kept whose request does not say
    ttl_days: Annotated[float, Meta(gt=0, le=3650)] = 30.0  # since it was last used
    max_items: Annotated[int, Meta(ge=1, le=100_000)] = 1000  # of a conversation, and put before a request's input
    max_bytes: Annotated[int, Meta(ge=1024, le=64 << 20)] = 4 << 20  # the same in bytes
    max_item_bytes: Annotated[int, Meta(ge=1024, le=64 << 20)] = 1 << 20  # of one item

    @property
    def ttl_s(self) -> float:
        """The same in seconds."""
        return self.ttl_days * 86_400


class Audit(_Section, frozen=True, kw_only=True):
    """What was done, by whom: a journal on the disk first, then the database, where there is one."""

    enabled: bool = False
    directory: str = "/opt/citadel/var/spool/audit"  # each instance has a folder in it
    spool_bytes: Annotated[int, Meta(ge=1 << 14, le=1 << 40)] = 256 << 20  # of an instance's journal, at most
    segment_bytes: Annotated[int, Meta(ge=1 << 12, le=1 << 30)] = 4 << 20  # its files
    when_full: Literal["refuse", "drop"] = "refuse"  # new requests, or records
    content: Literal["none", "hash", "full"] = "none"  # of prompts and answers
    content_bytes: Annotated[int, Meta(ge=256, le=4 << 20)] = 64 << 10  # `full`: of a prompt, and of an answer
    redact: list[str] = msgspec.field(default_factory=list)  # `full`: patterns beyond those that are always redacted
    hash_key_file: str | None = None  # `hash`: what the digests are keyed with, 16 bytes or more

    def __post_init__(self) -> None:
        if self.segment_bytes * 4 > self.spool_bytes:
            raise ValueError("Expected `spool_bytes` to hold four segments of `segment_bytes` at least")
        for pattern in self.redact:
            try:
                re.compile(pattern)
            except re.error as error:
                raise ValueError(f"`redact`: `{pattern}` is no pattern: {error}") from error
        if self.content == "hash" and self.hash_key_file is None:
            raise ValueError("`content: hash`: expected a `hash_key_file`")


class Cost(_Section, frozen=True, kw_only=True):
    """What an LLM server costs, in one currency; what tokens cost follows from it (citadel_llm/utils/cost.py)."""

    currency: Annotated[str, Meta(pattern="^[A-Z]{3}$")] = "EUR"  # ISO 4217; told, never converted
    server_price: Money  # when it was bought
    lifetime_years: Annotated[float, Meta(gt=0, le=50)] = 5.0  # over which that is spread
    yearly: Money = 0.0  # rack, network, maintenance, people
    watts: Annotated[float, Meta(ge=0, le=1e6)]  # on average, at the plug
    price_per_kwh: Money
    energy_overhead: Annotated[float, Meta(ge=1, le=10)] = 1.0  # cooling and loss: energy drawn to energy used
    utilisation: Annotated[float, Meta(gt=0, le=1)] = 0.3  # the part of what models can do that is used


class Auth(_Section, frozen=True, kw_only=True):
    """Who may call: the keys of a file, by their SHA-256, and those of the database, where there is one."""

    keys_file: str | None = None
    public_model_list: bool = True
    pepper_file: str = "/opt/citadel/config/secrets/gateway-pepper"  # with it the database's keys are digested
    snapshot_file: str | None = "/opt/citadel/var/identity.json"  # for a start while the database is away
    refresh_s: Annotated[float, Meta(gt=0, le=1)] = 1.0  # a change is seen after so long where nobody tells of it
    basic: bool = True  # users may call with their passwords


class Tls(_Section, frozen=True, kw_only=True):
    """HTTPS: the listening socket of this port speaks TLS. Both files are read at the start and on each reload."""

    port: Port = 8443
    certificate_file: str  # PEM: the server's certificate, then what signed it
    key_file: str  # PEM, without a passphrase


class Server(_Section, frozen=True, kw_only=True):
    """The instance itself."""

    url: str = "http://127.0.0.1:8000"  # where `citadel status` asks
    keepalive_s: Seconds = 75.0  # an idle caller's connection
    drain_s: Annotated[float, Meta(ge=0, le=60)] = 1.0  # callers are told to reconnect elsewhere for so long
    shutdown_s: Seconds = 120.0  # then streams may finish for so long
    # What operators have taken out of service, for all instances of the host: a folder in memory; none: this one alone.
    drained_folder: str | None = None


class Upstream(_Section, frozen=True, kw_only=True):
    """One engine that serves a model."""

    url: str
    draining_marker: str | None = None  # while this file exists, nothing new is sent there

    def __post_init__(self) -> None:
        parts = urlsplit(self.url)
        if (
            parts.scheme != "http"
            or not _HOST.fullmatch(parts.hostname or "")
            or parts.path not in ("", "/")
            or parts.query
        ):
            raise ValueError(f"Expected `http://HOST:PORT`, got `{self.url}`")
        if parts.username is not None or parts.fragment:
            raise ValueError("Expected `http://HOST:PORT` and nothing more")  # which may hold a password
        try:
            port = parts.port
        except ValueError as error:
            raise ValueError(f"Expected a port of 1 to 65535 in `{self.url}`") from error
        if port == 0:
            raise ValueError(f"Expected a port of 1 to 65535 in `{self.url}`")
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
    kind: Literal["generate", "embedding"] = "generate"
    display_name: str = ""
    owned_by: str = "citadel"
    repository: str = ""  # where its weights come from, and which commit of it
    revision: str = ""
    max_tokens: Count | None = None  # the context, in tokens
    concurrency: Count | None = None  # requests at once from this instance
    policy: Policy = "least_outstanding"
    fallback: list[str] = msgspec.field(default_factory=list)  # models that answer where this one can't, in order
    size_gb: Annotated[float, Meta(gt=0, le=100_000)] | None = None  # of the weights; `auto` takes the smallest
    features: list[Feature] = msgspec.field(default_factory=list)  # beyond text, for `auto`
    version: str = ""  # what its answers depend on, beside its name; another one finds no cached answer
    latency_ms: Latency | None = None  # what its requests take at most in the mean, as was required
    latency_target_ms: Latency | None = None  # and what they should take
    # For what it costs: its part of a server, and what one engine does at most, all requests together.
    cost_share: Share | None = None
    prompt_tokens_per_s: Rate | None = None
    completion_tokens_per_s: Rate | None = None


class Console(_Section, frozen=True, kw_only=True):
    """What the page at `/console` shows beside the gateway's own: citadel_llm/console."""

    alertmanager: Upstream | None = None  # whose alerts are shown; none: no alerts
    availability: Annotated[float, Meta(gt=0, lt=1)] = 0.99  # the part of requests that is to be answered
    status_s: Seconds = 1.0  # what is counted over all instances is read anew after so long at the soonest
    alerts_s: Seconds = 10.0  # and Alertmanager is asked again
    timeout_s: Annotated[float, Meta(gt=0, le=30)] = 2.0  # for it to answer


class Config(_Section, frozen=True, kw_only=True):
    """The whole file."""

    auth: Auth
    models: Annotated[dict[str, Model], Meta(min_length=1)]
    server: Server = msgspec.field(default_factory=Server)
    tls: Tls | None = None
    limits: Limits = msgspec.field(default_factory=Limits)
    timeouts: Timeouts = msgspec.field(default_factory=Timeouts)
    probe: Probe = msgspec.field(default_factory=Probe)
    balance: Balance = msgspec.field(default_factory=Balance)
    breaker: Breaker = msgspec.field(default_factory=Breaker)
    ejection: Ejection = msgspec.field(default_factory=Ejection)
    retry: Retry = msgspec.field(default_factory=Retry)
    auto: Auto = msgspec.field(default_factory=Auto)
    aliases: dict[str, str] = msgspec.field(default_factory=dict)  # other names of models
    cache: Cache = msgspec.field(default_factory=Cache)
    vector: Vector = msgspec.field(default_factory=Vector)
    database: Database = msgspec.field(default_factory=Database)
    files: Files = msgspec.field(default_factory=Files)
    semantic: Semantic = msgspec.field(default_factory=Semantic)
    tracing: Tracing = msgspec.field(default_factory=Tracing)
    sessions: Sessions = msgspec.field(default_factory=Sessions)
    audit: Audit = msgspec.field(default_factory=Audit)
    console: Console = msgspec.field(default_factory=Console)
    cost: Cost | None = None  # none: nothing is said of costs
    created: int = 0  # Unix seconds; not of the file's text but its age, shown in /v1/models

    def __post_init__(self) -> None:
        for name in self.models:
            if not _MODEL_NAME.fullmatch(name):
                raise ValueError(f"Model name `{name}`: expected up to 128 letters, digits, `.`, `_`, `-` or `/`")
        if AUTO in self.models:
            raise ValueError(
                f"Model name `{AUTO}`: expected another; a caller leaves the choice to the gateway with it"
            )
        for name, model in self.models.items():
            self._check_fallback(name, model)
        self._check_aliases()
        if self.auth.keys_file is None and not self.database.enabled:
            raise ValueError("Expected `auth.keys_file`, or a `database`, that says who may call")
        self._check_files()
        self._check_cost()

    def _check_cost(self) -> None:
        if self.cost is None:
            return
        shares = sum(model.cost_share or 0 for model in self.models.values())
        if shares > 1.001:
            raise ValueError(f"`cost_share`: expected the models' to come to 1 at most, got {shares:g}")
        for name, model in self.models.items():
            wanted = [model.cost_share, model.prompt_tokens_per_s]
            if model.kind == "generate":
                wanted.append(model.completion_tokens_per_s)
            rates = wanted[1:]
            if any(rate is not None for rate in rates) and None in wanted:
                raise ValueError(
                    f"`models.{name}`: expected `cost_share`, `prompt_tokens_per_s` and, where it generates, "
                    "`completion_tokens_per_s` together"
                )

    def _check_fallback(self, name: str, model: Model) -> None:
        for other in model.fallback:
            if other == name or other not in self.models:
                raise ValueError(f"`models.{name}.fallback`: expected other models of this file, got `{other}`")
            if self.models[other].kind != model.kind:
                raise ValueError(f"`models.{name}.fallback`: expected models of its kind, got `{other}`")
        if len(set(model.fallback)) < len(model.fallback):
            raise ValueError(f"`models.{name}.fallback`: expected each model once")

    def _check_files(self) -> None:
        known = [name for name, model in self.models.items() if model.kind == "embedding"]
        sections = (("files", self.files), ("semantic", self.semantic))
        for name, embedder in [(name, section.embedder) for name, section in sections if section.enabled]:
            if not self.vector.enabled:
                raise ValueError(f"`{name}`: expected `vector` to be enabled too")
            if not known or embedder not in ("", *known):
                raise ValueError(f"`{name}.embedder`: expected a model of the kind `embedding`, got `{embedder}`")
        if self.files.enabled and not self.database.enabled:
            raise ValueError("`files`: expected `database` to be enabled too")

    def _check_aliases(self) -> None:
        for alias, name in self.aliases.items():
            if not _MODEL_NAME.fullmatch(alias):
                raise ValueError(f"Alias `{alias}`: expected up to 128 letters, digits, `.`, `_`, `-` or `/`")
            if alias in self.models or alias == AUTO:
                raise ValueError(f"Alias `{alias}`: expected a name that is not a model's own")
            if name not in self.models and name != AUTO:
                raise ValueError(f"Alias `{alias}`: expected the name of a model of this file, got `{name}`")
        if (AUTO in self.aliases.values()) and all(model.size_gb is None for model in self.models.values()):
            raise ValueError(f"An alias of `{AUTO}`: expected at least one model with `size_gb`")


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
