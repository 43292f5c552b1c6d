"""The page as the metrics server serves it: `citadel console`, in front of a gateway."""

import asyncio
import contextlib
import subprocess
import sys

import pytest
from console.pages import opened
from playwright.async_api import expect

pytestmark = pytest.mark.asyncio(loop_scope="session")


@contextlib.asynccontextmanager
async def served(gateway):
    process = await asyncio.create_subprocess_exec(
        *[sys.executable, "-m", "citadel_llm.cli", "console", "--listen", "127.0.0.1:0", "--gateway", gateway.url],
        stdout=subprocess.PIPE,
    )
    try:
        line = (await asyncio.wait_for(process.stdout.readline(), 20)).decode()
        yield line.split(" ")[-1].strip().removesuffix("/console")
    finally:
        process.terminate()
        await process.wait()


async def test_it_is_the_same_page_with_all_that_it_does(chromium, gateway):
    async with served(gateway) as origin, opened(chromium, gateway, origin=origin, path="/") as console:
        await console.ready()
        await expect(console.find("#usage-said")).to_contain_text("Not set up on this server")
        await console.chat("Hello")
        await expect(console.find("#chat-said")).to_contain_text("Complete")
        await console.page.get_by_role("button", name="Good answer").click()
        await expect(console.find(".below").last).to_contain_text("Not set up on this server")
        await console.page.get_by_role("button", name="Drain").first.click()
        await console.page.get_by_role("dialog").get_by_role("button", name="Drain").click()
        await console.page.get_by_role("button", name="Put back").click()
        await expect(console.find("#drain-said")).to_contain_text("is back in service")
