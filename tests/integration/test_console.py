"""The console with everything behind it: the lab's PostgreSQL and Alertmanager, a gateway process, a real Chromium.

Run inside the lab: `bin/lab run pytest tests/integration/test_console.py`; it needs the SQL and the metrics host.
"""

import json
import time
import urllib.request

import pytest
import pytest_asyncio
from console.pages import HOSTILE, browser, opened
from playwright.async_api import expect
from sites import within

from upstreams import Upstream, streams

pytestmark = [pytest.mark.lab, pytest.mark.asyncio(loop_scope="module")]


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def chromium():
    async with browser() as running:
        yield running


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def gateway(site, credentials, tmp_path_factory):
    folder = tmp_path_factory.mktemp("gateway")
    console = {"alertmanager": {"url": credentials["alertmanager_url"]}, "alerts_s": 0.1}
    audit = {"enabled": True, "directory": str(folder / "audit")}
    async with (
        Upstream(streams()) as engine,
        site.gateway(folder, {"phi3": [engine]}, console=console, audit=audit) as running,
    ):
        yield running


@pytest_asyncio.fixture(loop_scope="module")
async def console(chromium, gateway, site):
    async with opened(chromium, gateway) as seen:
        yield await seen.ready(site.admin_key)


def alert(credentials, ends_s, **labels):
    """Tell Alertmanager of an alert of the product's, as Prometheus would."""

    def stamp(seconds):
        return time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() + seconds))

    one = {
        "labels": {"product": "citadel", "severity": "page", "kind": "cause", **labels},
        "annotations": {"summary": HOSTILE},
        "startsAt": stamp(-60),
        "endsAt": stamp(ends_s),
    }
    url, kind = credentials["alertmanager_url"] + "/api/v2/alerts", {"content-type": "application/json"}
    request = urllib.request.Request(url, json.dumps([one]).encode(), kind)
    with urllib.request.urlopen(request, timeout=10) as answer:
        assert answer.status == 200


async def test_an_alert_is_shown_while_it_fires_and_others_are_not(console, credentials):
    name = f"CitadelTest{time.time_ns()}"
    alert(credentials, 300, alertname=name, model="phi3", server="s1")
    alert(credentials, 300, alertname=name + "Foreign", product="another")
    try:
        row = console.find("#alert-rows li").filter(has_text=name)

        async def shown():  # Alertmanager, too, takes a moment until it tells of it
            await console.page.clock.fast_forward(16_000)
            return await row.count() == 1

        await within(20, shown, "the alert is shown")
        await expect(row).to_contain_text(HOSTILE)
        await expect(row).to_contain_text("page")
    finally:
        alert(credentials, -1, alertname=name, model="phi3", server="s1")
        alert(credentials, -1, alertname=name + "Foreign", product="another")

    async def gone():  # the gateway keeps what it heard for a moment
        await console.page.clock.fast_forward(16_000)
        return await row.count() == 0

    await within(20, gone, "the alert is shown no longer")


async def test_a_thumb_reaches_the_database_and_is_taken_back(console, site):
    await console.chat("Hello")
    await console.page.get_by_role("button", name="Good answer").click()
    await expect(console.find(".below").last).to_contain_text("Thank you.")
    assert [row[0] for row in site.sql("select rating from llm.feedback")] == [1]
    await console.page.get_by_role("button", name="Bad answer").click()
    await expect(console.page.get_by_role("button", name="Bad answer")).to_have_attribute("aria-pressed", "true")
    assert [row[0] for row in site.sql("select rating from llm.feedback")] == [-1]
    await console.page.get_by_role("button", name="Bad answer").click()
    await expect(console.find(".below").last).to_contain_text("Taken back.")
    assert site.sql("select rating from llm.feedback") == []


async def test_keys_usage_and_the_audit_log_are_the_databases(console, site, gateway):
    made = await site.admin(gateway, "POST", "/keys", {"name": HOSTILE})
    assert made.status in (200, 201), made
    await console.page.get_by_role("button", name="Refresh the keys").click()
    await expect(console.find("#keys-rows td").get_by_text(HOSTILE)).to_have_count(1)
    assert made.json["key"] not in await console.page.content()

    await console.chat("Hello")
    await expect(console.find("#chat-said")).to_contain_text("Complete")

    async def shipped():
        return bool(site.sql("select 1 from llm.usage_rollups where model = 'phi3'"))

    await within(20, shipped, "usage is summed up")
    await console.page.get_by_label("Sums by").select_option("hour")
    await expect(console.find("#usage-rows tbody tr").filter(has_text="phi3")).not_to_have_count(0)
    await console.page.get_by_role("button", name="Refresh the audit log").click()
    await expect(console.find("#audit-rows tbody")).to_contain_text("keys.create")
    await expect(console.find("#audit-rows tbody")).to_contain_text("chat.completions")
    assert await console.find("main img").count() == 0


async def test_a_drain_is_in_the_audit_log_and_looking_is_not(console, site, gateway):
    await console.page.get_by_role("button", name="Drain").first.click()
    await console.page.get_by_role("dialog").get_by_role("button", name="Drain").click()
    await console.page.get_by_role("button", name="Put back").click()
    await expect(console.find("#drain-said")).to_contain_text("is back in service")

    async def shipped():
        actions = [row[0] for row in site.sql("select action from llm.audit_log")]
        return {"models.drain", "models.undrain"} <= set(actions) and "status.read" not in actions

    await within(20, shipped, "both are written down")
