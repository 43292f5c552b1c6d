"""Who sees what: keys, roles, and what the page says where something is not to be had."""

import pytest
from console.pages import ADMIN_KEY, ROLE_KEYS
from playwright.async_api import expect

pytestmark = pytest.mark.asyncio(loop_scope="session")

PARTS = ["models", "alerts", "chat", "usage", "keys", "audit"]


async def parts_seen(console):
    return [part for part in PARTS if await console.find(f"#{part}").is_visible()]


async def test_nothing_is_asked_for_before_somebody_signs_in(console):
    await expect(console.page.get_by_label("API key")).to_be_focused()
    assert await parts_seen(console) == []
    assert not [path for _, path in console.asked if not path.startswith("/console")]


async def test_a_wrong_key_is_refused_in_words_and_may_be_tried_again(console):
    await console.enter("sk-nobody-knows-this-one")
    await expect(console.find("#enter-said")).to_contain_text("This key is not accepted here")
    assert await parts_seen(console) == []
    await console.ready()
    assert "alice" in await console.find("#who").inner_text()


async def test_what_is_no_key_is_not_sent(console):
    await console.enter("two words")
    await expect(console.find("#enter-said")).to_contain_text("That is no key")
    assert not console.times("/admin/v1/status")


async def test_a_key_is_in_memory_alone_unless_it_is_to_be_kept(console):
    await console.ready()
    assert await console.page.evaluate("Object.keys(sessionStorage).length + Object.keys(localStorage).length") == 0
    await console.page.reload()
    await expect(console.page.get_by_label("API key")).to_be_visible()

    await console.page.get_by_label("Keep it until this tab is closed").check()
    await console.ready()
    await console.page.reload()
    await expect(console.find("#cards article").first).to_be_visible()

    await console.page.get_by_role("button", name="Sign out").click()
    await expect(console.page.get_by_label("API key")).to_be_visible()
    assert await console.page.evaluate("Object.keys(sessionStorage).length") == 0
    assert ADMIN_KEY not in await console.page.content()
    await console.page.reload()
    await expect(console.page.get_by_label("API key")).to_be_visible()


@pytest.mark.parametrize(
    ("role", "parts"),
    [
        ("admin", PARTS),
        ("operator", PARTS),
        ("developer", ["models", "chat", "usage", "keys"]),
        ("viewer", ["models", "alerts", "usage"]),
    ],
)
async def test_each_role_sees_its_own_parts_and_asks_for_nothing_else(roled_console, role, parts):
    await roled_console.ready(ROLE_KEYS[role])
    assert await parts_seen(roled_console) == parts
    drains = roled_console.page.get_by_role("button", name="Drain")
    assert (await drains.count() > 0) == (role in ("admin", "operator"))
    for part, path in (("audit", "/admin/v1/audit"), ("keys", "/admin/v1/keys"), ("alerts", "/admin/v1/alerts")):
        assert bool(roled_console.times(path)) == (part in parts)
    if role == "developer":
        assert roled_console.times("/admin/v1/usage/me")
        assert not roled_console.times("/admin/v1/usage")


async def test_without_a_database_each_part_says_so(console):
    await console.ready()
    for part in ("usage", "audit"):
        await expect(console.find(f"#{part}-said")).to_contain_text("Not set up on this server")
    await expect(console.find("#keys-said")).to_contain_text("This needs the database, and it is not configured")
    await expect(console.find("#alerts-said")).to_contain_text("was told of no Alertmanager")


async def test_while_the_database_is_away_each_part_says_so(roled_console):
    await roled_console.ready(ROLE_KEYS["admin"])
    for part in ("usage", "keys", "audit"):
        await expect(roled_console.find(f"#{part}-said")).to_contain_text("Not available at the moment, try again in")
    await expect(roled_console.find("#peers")).to_contain_text("database down")


async def test_a_key_that_is_revoked_meanwhile_ends_the_session(console):
    await console.ready()
    await console.page.route(
        "**/admin/v1/status", lambda route: route.continue_(headers={"authorization": "Bearer sk-gone"})
    )
    await console.page.clock.fast_forward(6_000)
    await expect(console.find("#enter-said")).to_contain_text("This key is not accepted here")
    assert await parts_seen(console) == []
    assert await console.find("#cards article").count() == 0


async def test_a_gateway_that_is_gone_is_told_and_what_is_shown_stays(console):
    await console.ready()
    await console.page.route("**/admin/v1/status", lambda route: route.abort())
    await console.page.clock.fast_forward(6_000)
    await expect(console.page.get_by_role("alert")).to_contain_text("No answer from the gateway")
    assert await console.find("#cards article").count() == 2
    await console.page.unroute("**/admin/v1/status")
    await console.page.clock.fast_forward(6_000)
    await expect(console.page.get_by_role("alert")).to_be_hidden()


async def test_it_asks_no_sooner_than_in_five_seconds_and_not_at_all_while_it_is_not_seen(console):
    await console.ready()
    asked = console.times("/admin/v1/status")
    await console.page.clock.fast_forward(4_000)
    await console.find("body").click()  # something the page answers, so that what was to come has come
    assert console.times("/admin/v1/status") == asked
    async with console.page.expect_request("**/admin/v1/status"):
        await console.page.clock.fast_forward(2_000)

    async def seen(visible):
        script = "hidden => { Object.defineProperty(document, 'hidden', {value: hidden, configurable: true});"
        await console.page.evaluate(script + "document.dispatchEvent(new Event('visibilitychange')); }", not visible)

    await expect(console.find("#read-at")).not_to_be_empty()
    await seen(False)
    asked = console.times("/admin/v1/status")
    for _ in range(4):
        await console.page.clock.fast_forward(60_000)
    assert console.times("/admin/v1/status") <= asked
    async with console.page.expect_request("**/admin/v1/status"):
        await seen(True)
