"""Models and their replicas: what is shown is what the gateway says, and operators drain."""

import asyncio

import pytest
from console.pages import HOSTILE, opened
from console.plan import MODELS, rendered
from playwright.async_api import expect

from callers import BODY, STREAM_BODY
from gateways import spawned_gateway
from upstreams import answers
from waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="session")


def card(console, name):
    return console.find("#cards article", has=console.page.get_by_role("heading", name=name, exact=True))


async def until_state(gateway, address, state):
    async def so():
        said = await gateway.health()
        return any(one["address"] == address and one["state"] == state for one in said["engines"])

    await until(so, what=f"{address} is {state}")


async def next_reading(console):
    async with console.page.expect_response("**/admin/v1/status"):
        await console.page.clock.fast_forward(6_000)


async def test_each_model_shows_its_state_its_replicas_and_what_is_required(console, engines):
    await console.ready()
    phi3 = card(console, "Phi-3 Mini")
    await expect(phi3.get_by_role("list", name="Replicas").get_by_role("listitem")).to_have_count(2)
    for engine in (engines.first, engines.second):
        await expect(phi3).to_contain_text(engine.address)
    latency = phi3.get_by_role("img", name="Latency")
    assert "required 500 ms; target 300 ms" in await latency.get_attribute("aria-label")
    assert await console.find("#overall").inner_text() == "all is well"


async def test_answers_become_traffic_and_latency(console, gateway, engines):
    await gateway.ask("POST", "/v1/chat/completions", STREAM_BODY)
    await console.ready()
    engines.script(answers())
    for _ in range(5):
        assert (await gateway.ask("POST", "/v1/chat/completions", BODY)).status == 200
    engines.script(answers({"error": {"message": "no"}}, 500))
    assert (await gateway.ask("POST", "/v1/chat/completions", BODY)).status == 500
    await next_reading(console)
    phi3 = card(console, "Phi-3 Mini")
    await expect(phi3.get_by_text("below 99.0%")).to_be_visible()
    await expect(phi3).to_contain_text("83.33% over")
    await expect(phi3.get_by_text("within the target")).to_be_visible()
    await expect(phi3.get_by_role("img", name="Latency: median")).to_have_count(1)
    await expect(phi3.get_by_role("img", name="Traffic: answers")).to_have_count(1)
    said = await phi3.get_by_role("img", name="Traffic").get_attribute("aria-label")
    assert "/s" in said, said
    assert "none" not in said


async def test_a_model_that_is_gone_is_seen(console, engines):
    await console.ready()
    await engines.second.shut()
    try:
        await until_state(console.gateway, engines.second.address, "down")
        await next_reading(console)
        replica = card(console, "Phi-3 Mini").get_by_role("listitem").filter(has_text=engines.second.address)
        await expect(replica).to_contain_text("down")
    finally:
        await engines.second.open()
        await until_state(console.gateway, engines.second.address, "up")


async def test_a_replica_is_drained_and_put_back(console, engines):
    await console.ready()
    address = engines.first.address
    name = f"{address} of Phi-3 Mini"
    await console.page.get_by_role("button", name=f"Drain {name}").click()
    dialog = console.page.get_by_role("dialog")
    await expect(dialog).to_contain_text("Its other replicas take its requests.")
    await dialog.get_by_role("button", name="Cancel").click()
    await expect(dialog).to_be_hidden()
    assert not (await console.gateway.health())["engines"][0]["drained"]

    await console.page.get_by_role("button", name=f"Drain {name}").click()
    await dialog.get_by_role("button", name="Drain").click()
    await expect(console.find("#drain-said")).to_contain_text(f"Phi-3 Mini at {address} drains.")
    back = console.page.get_by_role("button", name=f"Put back {name}")
    await expect(back).to_be_focused()
    health = await console.gateway.health()
    assert [one["drained"] for one in health["engines"]] == [True, False]

    asked = len(engines.first.calls)
    engines.script(answers())
    for _ in range(4):
        assert (await console.gateway.ask("POST", "/v1/chat/completions", BODY)).status == 200
    assert len(engines.first.calls) == asked

    await back.click()
    await expect(console.find("#drain-said")).to_contain_text("is back in service")
    assert [one["drained"] for one in (await console.gateway.health())["engines"]] == [False, False]


async def test_the_last_replica_is_drained_only_with_a_warning(console):
    await console.ready()
    await console.find("button[aria-label^='Drain'][aria-label*='<img']").click()
    await expect(console.page.get_by_role("dialog")).to_contain_text("its callers get 503")
    await console.page.keyboard.press("Escape")
    await expect(console.page.get_by_role("dialog")).to_be_hidden()
    assert not (await console.gateway.health("lab/hostile"))["engines"][0]["drained"]


async def test_names_that_are_markup_are_text(console):
    await console.ready()
    await expect(console.page.get_by_role("heading", name=HOSTILE)).to_be_visible()
    assert await console.find("main img").count() == 0


async def test_another_entry_of_the_plan_is_there_and_no_other_file_was_touched(chromium, engines, tmp_path):
    fifth = {**MODELS["phi3"], "port": 11409, "profile": "phi3", "display_name": "Another", "latency_ms": 700}
    plan = await asyncio.to_thread(rendered, {**MODELS, "another": fifth})
    models = {name: {**entry, "upstreams": [engines.first]} for name, entry in plan["models"].items()}
    async with spawned_gateway(tmp_path, models=models) as gateway, opened(chromium, gateway) as console:
        await console.ready()
        await expect(console.find("#cards article")).to_have_count(len(MODELS) + 1)
        latency = card(console, "Another").get_by_role("img", name="Latency")
        assert "required 700 ms; target 300 ms" in await latency.get_attribute("aria-label")
        for entry in MODELS.values():
            await expect(card(console, entry["display_name"])).to_be_visible()
        await console.chat("Hello", model="another")
        await expect(console.find("#turns")).to_contain_text("Hello.")


@pytest.mark.parametrize(
    ("bounds", "counts", "q", "expected"),
    [
        ([0.1, 0.5, 1.0], [0, 0, 0, 0], 0.5, None),
        ([0.1, 0.5, 1.0], [10, 10, 10, 10], 0.5, 50),
        ([0.1, 0.5, 1.0], [0, 10, 10, 10], 0.95, 480),
        ([0.1, 0.5, 1.0], [0, 0, 0, 4], 0.5, 1000),
    ],
)
async def test_quantiles_are_prometheus_own(console, bounds, counts, q, expected):
    script = "async a => (await import('/console/history.js')).quantile(...a)"
    found = await console.page.evaluate(script, [bounds, counts, q])
    assert found == (None if expected is None else pytest.approx(expected))


async def test_counts_that_begin_anew_are_no_negative_traffic(console):
    def at(second, answered):
        duration = {"bounds_s": [1], "counts": [answered, answered], "sum_s": answered / 10}
        return [second, {"statuses": {"200": answered}, "duration": duration}]

    script = """async readings => {
        const { History } = await import('/console/history.js');
        const kept = new History();
        for (const reading of readings) kept.add(...reading);
        return kept.points;
    }"""
    found = await console.page.evaluate(script, [at(0, 100), at(5, 110), at(10, 3), at(15, 8)])
    assert [(point["at"], point["rate"]) for point in found] == [(5, 2), (15, 1)]
