"""Two hundred callers who hang up: the engines stop working for them, and the gateway keeps nothing of them.

Run inside the lab: `bin/lab run pytest tests/integration/test_hangups.py`.
"""

import asyncio
import contextlib
import time

import openai
import pytest

pytestmark = pytest.mark.lab

WAVES = [20, 30, 40, 40, 40, 30]
ENGINE_BUSY = ("vllm:num_requests_running", "vllm:num_requests_waiting")
FREE_WITHIN_S = 2.0
# A caller reads so many events, then hangs up; one of 0 does so without having read any. More callers ask than an
# engine works for at once, so that some are still waiting there, or for a place, when they have had enough.
EVENTS = [0, 1, 3, 10, 30]
PATIENCE_S = 3.0
LONG = {"max_tokens": 900, "stream": True, "extra_body": {"ignore_eos": True}}


@pytest.fixture
def open_files(on_host):
    """How many files the gateway's instances have open, together."""
    script = (
        "for pid in $(systemctl show --property=MainPID --value 'citadel-gateway@*.service'); do"
        ' ls "/proc/$pid/fd"; done | wc -l'
    )
    return lambda: int(on_host("sh", "-c", script))


async def hang_up(client, model, events):
    """Ask for a long answer, read so many events at most, and be gone. How many came."""
    seen = 0
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(PATIENCE_S):
            stream = await client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": "Hello"}], **LONG
            )
            async with stream:  # its end closes the connection
                while seen < events:
                    await anext(stream)
                    seen += 1
    return seen


async def wave(credentials, models, size):
    async with openai.AsyncOpenAI(
        base_url=f"{credentials['gateway_url']}/v1", api_key=credentials["admin_key"], timeout=60, max_retries=0
    ) as client:
        callers = [
            hang_up(client, models[number % len(models)], EVENTS[number // len(models) % len(EVENTS)])
            for number in range(size)
        ]
        return await asyncio.gather(*callers)


def until(condition, within_s, what):
    end = time.monotonic() + within_s
    while True:
        began = time.monotonic()
        value = condition()
        if not value:
            return
        assert began < end, f"not within {within_s} s: {what} ({value})"
        time.sleep(0.05)


def test_two_hundred_callers_hang_up_and_nothing_goes_on_for_them(
    credentials, kinds, engine_metric, gateway_metric, open_files, capsys
):  # fmt: skip
    models = kinds["generate"]

    def busy():
        return {model: count for model in models if (count := engine_metric(model, *ENGINE_BUSY))}

    def held():
        names = ("citadel_gateway_in_flight", "citadel_gateway_queued")
        return {(name, model): count for name in names for model in models if (count := gateway_metric(name, model))}

    until(busy, 30, "the engines are idle before the test")
    until(held, 30, "the gateway is idle before the test")
    asyncio.run(wave(credentials, models, max(WAVES)))  # whatever is opened once and kept is opened now
    until(busy, FREE_WITHIN_S, "the engines are idle after the first callers")
    before = open_files()

    freed, cut_short = [], 0
    for size in WAVES:
        seen = asyncio.run(wave(credentials, models, size))
        hung_up = time.monotonic()
        until(busy, FREE_WITHIN_S, "the engines stop working for callers who have gone")
        freed.append(time.monotonic() - hung_up)
        cut_short += sum(count > 1 for count in seen)
        assert max(seen) <= max(EVENTS)
    assert sum(WAVES) == 200
    assert cut_short >= 20, "hardly a caller hung up amid a stream: the test shows nothing"

    until(held, 5, "the gateway counts nobody")
    until(lambda: max(0, open_files() - before), 30, f"the gateway has no more files open than before ({before})")
    with capsys.disabled():
        print(f"\nengines free after {', '.join(f'{seconds:.2f}' for seconds in freed)} s; {before} files open before")
        print(f"{cut_short} of {sum(WAVES)} callers hung up amid a stream")

    with openai.OpenAI(
        base_url=f"{credentials['gateway_url']}/v1", api_key=credentials["admin_key"], timeout=60, max_retries=0
    ) as client:
        for model in models:  # and everyone else is served as before
            answer = client.chat.completions.create(
                model=model, messages=[{"role": "user", "content": "Hello"}], max_tokens=4
            )
            assert answer.usage.completion_tokens
