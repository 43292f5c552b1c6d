"""Four times as many callers as a model can take on, with its real engine: who is let in, and how do they fare?

A model has `concurrency` places in each of the gateway's instances, and a queue of those who can expect a place
within `queue_s`; whoever is beyond that is refused at once and told when to come again. An engine's pace falls with
the number that it works for, so the measure is not an idle engine but one with all places taken and nobody else:

- Once begun, an answer comes as fast as there, times two.
- From the request to the end it takes at most the wait that the configuration allows, and twice what it takes there.
- The engine gets as much done.

Run inside the lab: `bin/lab run pytest tests/integration/test_overload.py`.
"""

import asyncio
import collections
import statistics
import time
from dataclasses import dataclass, field

import openai
import pytest
import yaml

from citadel_llm.utils.config import parse_config

pytestmark = pytest.mark.lab

ROUNDS = 3  # of each caller, where there are as many as places
OVERLOAD = 4
OVERLOAD_S = 45.0  # for so long refused callers come again
ARRIVALS_S = 5.0  # over which callers come first, so that what is measured is not how fast this test can ask
PAUSE_S = 3.0  # before they do, which is sooner than they were told
MOST_CALLERS = 800
HELLO = [{"role": "user", "content": "Hello"}]


@dataclass
class Load:
    """What callers met with; times in seconds."""

    took: list[float] = field(default_factory=list)  # from the request to the last token
    begun: list[float] = field(default_factory=list)  # from the first token to the last
    refused: list[float] = field(default_factory=list)  # until the refusal
    retry_after: list[int] = field(default_factory=list)
    codes: collections.Counter = field(default_factory=collections.Counter)
    failed: list[str] = field(default_factory=list)
    seconds: float = 0.0

    def __str__(self):
        return (
            f"{len(self.took)} answered in {self.seconds:.0f} s, p50 {statistics.median(self.took):.1f} "
            f"p99 {p99(self.took):.1f} s, once begun p50 {statistics.median(self.begun):.1f} "
            f"p99 {p99(self.begun):.1f} s; refused {dict(self.codes)}"
        )


def p99(times):
    return statistics.quantiles(times, n=100, method="inclusive")[98]


@pytest.fixture
def config(on_host):
    """The gateway's own configuration, as it runs."""
    return parse_config(yaml.safe_load(on_host("cat", "/opt/citadel/config/citadel.yaml")))


@pytest.fixture
def instances(on_host):
    units = on_host("systemctl", "list-units", "--plain", "--no-legend", "--state=active", "citadel-gateway@*.service")
    return len(units.split("\n")) - 1


async def ask(client, model, tokens, load):
    """One answer, or why there was none. Whether it came."""
    began = time.monotonic()
    first = 0.0
    try:
        async with await client.chat.completions.create(
            model=model, messages=HELLO, max_tokens=tokens, stream=True, extra_body={"ignore_eos": True}
        ) as stream:
            finish = None
            async for piece in stream:
                first = first or time.monotonic()
                finish = (piece.choices and piece.choices[0].finish_reason) or finish
        ended = time.monotonic()
        if finish != "length":
            load.failed.append(f"a stream that ended with {finish}")
            return False
    except openai.APIStatusError as refusal:
        if refusal.status_code not in (429, 503):
            load.failed.append(repr(refusal))
            return False
        load.refused.append(time.monotonic() - began)
        load.retry_after.append(int(refusal.response.headers.get("retry-after", 0)))
        load.codes[f"{refusal.status_code} {refusal.code}"] += 1
        return False
    except openai.OpenAIError as failure:
        load.failed.append(repr(failure))
        return False
    load.took.append(ended - began)
    load.begun.append(ended - first)
    return True


async def run(credentials, callers, caller, over_s=0.0):
    """So many callers at once, each `caller(client)`; the last one begins `over_s` after the first."""

    async def begin(number, client):
        await asyncio.sleep(over_s * number / callers)
        await caller(client)

    async with openai.AsyncOpenAI(
        base_url=f"{credentials['gateway_url']}/v1", api_key=credentials["admin_key"], timeout=300, max_retries=0
    ) as client:
        await asyncio.gather(*(begin(number, client) for number in range(callers)))


def test_at_four_times_its_capacity_a_model_serves_whom_it_lets_in_as_when_it_is_just_full(
    credentials, kinds, config, instances, capsys
):  # fmt: skip
    model = kinds["generate"][-1]
    entry = config.models[model]
    places = (entry.concurrency or config.limits.concurrency) * instances
    tokens = min(400, entry.max_tokens // 2)

    full = Load()

    async def comes_again_at_once(client):
        for _ in range(ROUNDS):
            await ask(client, model, tokens, full)

    began = time.monotonic()
    asyncio.run(run(credentials, places, comes_again_at_once))
    full.seconds = time.monotonic() - began
    assert not full.failed, full.failed
    assert len(full.took) == places * ROUNDS, full

    # What fits: who has a place, and who waits for one, as far as that is a matter of queue_s. One key gets at most
    # the queue's bound.
    served_per_s = len(full.took) / full.seconds
    waiting = min(config.limits.queue * instances, served_per_s * config.timeouts.queue_s)
    callers = min(MOST_CALLERS, round(OVERLOAD * (places + waiting)))
    over = Load()
    began = time.monotonic()

    async def does_not_give_up(client):
        while time.monotonic() - began < OVERLOAD_S:
            if not await ask(client, model, tokens, over):
                await asyncio.sleep(PAUSE_S)

    asyncio.run(run(credentials, callers, does_not_give_up, ARRIVALS_S))
    over.seconds = time.monotonic() - began

    with capsys.disabled():
        print(f"\n{model}, {tokens} tokens an answer, {places} places in {instances} instances")
        print(f"  {places:4} callers: {full}")
        print(f"  {callers:4} callers: {over}")
        print(f"  refusals after p50 {statistics.median(over.refused or [0.0]) * 1e3:.0f} ms")
    assert not over.failed, over.failed[:10]
    assert len(over.refused) > callers / 4, "four times the capacity, and hardly anyone is refused"
    assert min(over.retry_after) >= 1
    assert statistics.median(over.refused) < 1
    assert p99(over.begun) <= 2 * p99(full.begun), "once begun, answers come slower than at a full model"
    assert p99(over.took) <= config.timeouts.queue_s + 2 * p99(full.took)
    assert len(over.took) / over.seconds >= served_per_s / 2, "the engine gets less done"
