"""Schemathesis over the gateway's own document: whatever a caller sends, the answer is one that the document knows.

The gateway is a process of its own, before an engine that answers each endpoint in its shape. Each operation gets
the document's examples, values at and beyond the bounds of each field, and a number of invented ones, valid and not:
the same every time, for nothing here is left to chance.
"""

import asyncio
import contextlib

import pytest
import requests
import schemathesis
from anyio.from_thread import start_blocking_portal
from hypothesis import HealthCheck, settings
from schemathesis.checks import not_a_server_error
from schemathesis.config import (
    CoveragePhaseConfig,
    PhasesConfig,
    ProjectConfig,
    ProjectsConfig,
    SchemathesisConfig,
)
from schemathesis.specs.openapi.checks import negative_data_rejection

from callers import KEY
from citadel_llm import __version__
from citadel_llm.api.gateway import build_fastapi
from citadel_llm.api.state import GatewayState
from citadel_llm.integration.metrics import Metrics
from citadel_llm.utils.config import parse_config
from citadel_llm.utils.keys import KeyRing
from citadel_llm.utils.logging import LogWriter
from engine_shapes import answers_in_shape
from gateways import spawned_gateway
from upstreams import Upstream

WITHOUT = {"no key": None, "an unknown key": "Bearer sk-unknown", "no text": "Bearer \xff"}
DEADLINE = "x-citadel-deadline-ms"
NOT_KEPT = 501  # these gateways have no database


def fixed(examples):
    """So many invented cases for an operation, the same ones every time."""
    ignored = list(HealthCheck)
    return settings(
        max_examples=examples, derandomize=True, database=None, deadline=None, suppress_health_check=ignored
    )


async def described():
    """The document, from the application itself: pytest must know the operations before any gateway runs."""
    config = parse_config(
        {"auth": {"keys_file": "none"}, "models": {"phi3": {"upstreams": [{"url": "http://[::1]:1"}]}}}
    )
    state = GatewayState(config, lambda: KeyRing([]), Metrics("1"), LogWriter(2), instance="1", version=__version__)
    document = build_fastapi(state).openapi()
    # What wants a database is tried where there is one: tests/integration/test_admin_api.py.
    document["paths"] = {path: found for path, found in document["paths"].items() if not path.startswith("/admin/")}
    return document


DOCUMENT = asyncio.run(described())


def schema(**phases):
    config = SchemathesisConfig(seed=1, projects=ProjectsConfig(default=ProjectConfig(phases=PhasesConfig(**phases))))
    made = schemathesis.openapi.from_dict(DOCUMENT, config=config)

    @made.hook
    def map_body(context, body):
        """Every other invented name of a model becomes one that is there, so that the engine is reached."""
        if isinstance(body, dict) and isinstance(body.get("model"), str) and len(body["model"]) % 2:
            body["model"] = "minilm" if context.operation.path == "/v1/embeddings" else "phi3"
        return body

    return made


whole = schema()
inventions = schema(coverage=CoveragePhaseConfig(enabled=False))


@contextlib.asynccontextmanager
async def before_an_engine(folder, answering):
    async with Upstream(answers_in_shape) as engine:
        if not answering:
            await engine.shut()
        models = {"phi3": [engine], "minilm": {"upstreams": [engine], "kind": "embedding"}}
        async with spawned_gateway(folder, models=models) as gateway:
            yield gateway


@contextlib.contextmanager
def running(folder, *, answering):
    """A gateway whose engine lives on a loop in a thread of its own: schemathesis calls without one."""
    before = before_an_engine(folder, answering)
    with start_blocking_portal() as portal, portal.wrap_async_context_manager(before) as gateway:
        yield gateway


@pytest.fixture(scope="module")
def gateway(tmp_path_factory):
    with running(tmp_path_factory.mktemp("gateway"), answering=True) as started:
        yield started


@pytest.fixture(scope="module")
def alone(tmp_path_factory):
    """A gateway whose engine does not answer."""
    with running(tmp_path_factory.mktemp("alone"), answering=False) as started:
        yield started


def test_the_document_is_the_one_that_is_served(gateway):
    served = requests.get(f"{gateway.url}/openapi.json", timeout=10).json()
    assert {path: found for path, found in served["paths"].items() if path in DOCUMENT["paths"]} == DOCUMENT["paths"]
    assert served["components"] == DOCUMENT["components"]


@pytest.mark.parametrize("key", [KEY], ids=["a key"])
@whole.parametrize()
@fixed(15)
def test_every_answer_is_one_that_the_document_knows(case, gateway, key):
    headers = {"authorization": f"Bearer {key}"}
    if case.headers.get(DEADLINE, "").isdecimal():
        case.headers[DEADLINE] = "60000"  # a shorter one is a 504, as it was asked for
    answer = case.call(gateway.url, headers=headers)
    # What a body means is the engine's to say: the gateway passes on what it does not know, and vLLM is lenient.
    checks = [negative_data_rejection]
    if answer.status_code == NOT_KEPT:
        checks.append(not_a_server_error)
    case.validate_response(answer, headers=headers, excluded_checks=checks)


@pytest.mark.parametrize("authorization", WITHOUT.values(), ids=WITHOUT)
@inventions.parametrize()
@fixed(3)
def test_without_a_known_key_the_answer_is_one_that_the_document_knows(case, gateway, authorization):
    headers = {} if authorization is None else {"authorization": authorization}
    answer = case.call(gateway.url, headers=headers)
    case.validate_response(answer, headers=headers)
    if case.operation.definition.raw.get("security", [{}])[-1]:
        assert answer.status_code == 401


@pytest.mark.parametrize("key", [KEY], ids=["a key"])
@inventions.parametrize()
@fixed(3)
def test_while_no_engine_answers_the_answer_is_one_that_the_document_knows(case, alone, key):
    headers = {"authorization": f"Bearer {key}"}
    answer = case.call(alone.url, headers=headers)
    case.validate_response(answer, headers=headers, excluded_checks=[not_a_server_error])
    assert answer.status_code < 500 or answer.status_code in (NOT_KEPT, 503)
