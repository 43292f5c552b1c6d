"""How it looks and is used: a phone, dark and light, the keyboard alone, and what axe finds."""

import pytest
from axe_playwright_python.async_playwright import Axe
from console.pages import ADMIN_KEY, opened
from playwright.async_api import expect

from callers import ask

pytestmark = pytest.mark.asyncio(loop_scope="session")


async def filled(console):
    await console.ready()
    await console.chat("A question with a-very-long-word-" + "x" * 200)
    await expect(console.find("#chat-said")).to_contain_text("Complete")
    async with console.page.expect_response("**/admin/v1/status"):
        await console.page.clock.fast_forward(6_000)
    return console


@pytest.mark.parametrize("width", [320, 768, 1440])
@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_no_page_is_wider_than_its_screen(chromium, gateway, width, scheme):
    options = {"viewport": {"width": width, "height": 700}, "color_scheme": scheme}
    async with opened(chromium, gateway, **options) as console:
        script = "document.documentElement.scrollWidth <= document.documentElement.clientWidth"
        assert await console.page.evaluate(script)
        await filled(console)
        assert await console.page.evaluate(script)
        back = await console.page.evaluate("getComputedStyle(document.body).backgroundColor")
        brightness = sum(int(part) for part in back[4:-1].split(","))
        assert (brightness < 200) == (scheme == "dark"), back


@pytest.mark.parametrize("scheme", ["light", "dark"])
async def test_axe_finds_nothing(chromium, gateway, scheme):
    """Labels, roles, contrast: WCAG 2.2 AA, as far as a machine sees it. Axe itself runs beside the page's policy."""
    async with opened(chromium, gateway, color_scheme=scheme, bypass_csp=True) as console:
        for state in ("entry", "console", "dialog"):
            if state == "console":
                await filled(console)
            if state == "dialog":
                await console.page.get_by_role("button", name="Drain").first.click()
            tags = ["wcag2a", "wcag2aa", "wcag21a", "wcag21aa", "wcag22aa", "best-practice"]
            results = await Axe().run(console.page, options={"runOnly": tags})
            assert results.violations_count == 0, f"{state}: {results.generate_report()}"


async def test_the_keyboard_is_enough(console):
    page = console.page
    await expect(page.get_by_label("API key")).to_be_focused()
    await page.keyboard.type(ADMIN_KEY)
    await page.keyboard.press("Enter")
    await expect(console.find("#cards article").first).to_be_visible()

    async def tab_to(name):
        for _ in range(80):
            await page.keyboard.press("Tab")
            label = "document.activeElement.getAttribute('aria-label') ?? document.activeElement.textContent"
            if name in await page.evaluate(label):
                outline = await page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
                assert outline == "solid", f"where {name} is focused is not seen"
                return
        raise AssertionError(f"no way to {name}")

    await tab_to("Drain")
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("button", name="Cancel")).to_be_focused()
    await page.keyboard.press("Enter")
    await expect(page.get_by_role("dialog")).to_be_hidden()
    await page.get_by_label("Message").focus()
    await page.keyboard.type("Hello")
    await page.keyboard.press("Control+Enter")
    await expect(page.get_by_role("log")).to_contain_text("Hello.")
    await tab_to("Begin anew")
    await page.keyboard.press("Enter")
    await expect(console.find(".turn")).to_have_count(0)


async def test_a_reading_takes_the_focus_from_nothing(console):
    await console.ready()
    button = console.page.get_by_role("button", name="Drain").first
    await button.focus()
    async with console.page.expect_response("**/admin/v1/status"):
        await console.page.clock.fast_forward(6_000)
    await expect(button).to_be_focused()


async def test_every_file_of_the_page_is_under_its_policy(gateway):
    page = await ask(gateway.port, "GET", "/console", key=None)
    assert page.status == 200
    assert b"<script>" not in page.body
    assert b"style=" not in page.body
    for name in ("index.html", "app.js", "console.css", "icon.svg"):
        answer = await ask(gateway.port, "GET", f"/console/{name}", key=None)
        assert answer.status == 200
        policy = answer.headers["content-security-policy"]
        assert "default-src 'none'" in policy
        assert "unsafe" not in policy
        assert answer.headers["x-content-type-options"] == "nosniff"
        assert "set-cookie" not in answer.headers
        tag = [(b"if-none-match", answer.headers["etag"].encode())]
        again = await ask(gateway.port, "GET", f"/console/{name}", key=None, headers=tag)
        assert (again.status, again.body) == (304, b"")
    for name in ("..%2f__init__.py", "__init__.py", "nothing.js", "%00"):
        assert (await ask(gateway.port, "GET", f"/console/{name}", key=None)).status == 404
