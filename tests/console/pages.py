"""A page of the console, as the tests see it."""

import contextlib
import re
import shutil
from dataclasses import dataclass, field
from typing import Any

from playwright.async_api import async_playwright, expect

from citadel_llm.api.identity.permissions import BUILT_IN
from gateways import KEYS

ADMIN_KEY = KEYS["alice"]
ROLE_KEYS = {role: f"sk-test-of-{role}-0123456789" for role in BUILT_IN}
HOSTILE = '<img src=x onerror="document.title=1">'

expect.set_options(timeout=10_000)


@contextlib.asynccontextmanager
async def browser():
    """The Chromium of the distribution; nothing is downloaded."""
    path = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome-stable"))), None)
    assert path, "these tests need Chromium: bin/setup installs it on Debian; else install `chromium` yourself"
    async with async_playwright() as playwright:
        running = await playwright.chromium.launch(executable_path=path)
        yield running
        await running.close()


@dataclass
class Seen:
    """A page, and what happened in it."""

    page: Any
    gateway: Any
    problems: list = field(default_factory=list)
    asked: list = field(default_factory=list)  # (method, path) of requests

    def find(self, selector, **options):
        return self.page.locator(selector, **options)

    async def enter(self, key):
        await self.page.get_by_label("API key").fill(key)
        await self.page.get_by_role("button", name="Sign in").click()
        return self

    async def ready(self, key=ADMIN_KEY):
        """Signed in, with a first reading."""
        await self.enter(key)
        await expect(self.find("#cards article").first).to_be_visible()
        return self

    async def chat(self, text, model="phi3"):
        await self.page.get_by_label("Model", exact=True).select_option(model)
        await self.page.get_by_label("Message").fill(text)
        await self.page.get_by_role("button", name="Send").click()

    def times(self, path):
        return sum(path == one for _, one in self.asked)


@contextlib.asynccontextmanager
async def opened(chromium, gateway, *, path="/console", origin=None, **options):
    """A page of a browser profile of its own; nothing of it may be against the page's policy, or fail."""
    context = await chromium.new_context(**options)
    page = await context.new_page()
    seen = Seen(page, gateway)
    origin = origin or gateway.url

    def heard(message):
        # What the API refuses is written there too, in these words.
        if message.type in ("error", "warning") and not message.text.startswith("Failed to load resource"):
            seen.problems.append(message.text)

    def went(request):
        if not request.url.startswith(origin + "/"):
            seen.problems.append(f"asked elsewhere: {request.url}")
        seen.asked.append((request.method, re.sub(r"\?.*", "", request.url[len(origin) :])))

    page.on("console", heard)
    page.on("pageerror", lambda error: seen.problems.append(str(error)))
    page.on("request", went)
    page.on("dialog", lambda dialog: seen.problems.append(f"a dialog: {dialog.message}"))
    await page.clock.install()
    await page.goto(origin + path)
    try:
        yield seen
        assert await page.title() == "Citadel console"
        assert await context.cookies() == []
        assert seen.problems == []
    finally:
        await context.close()
