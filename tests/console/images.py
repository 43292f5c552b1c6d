"""Makes the pictures of docs/console.md: a gateway of its own with traffic, at the lab's database and Alertmanager.

bin/lab run .venv/bin/python -m tests.console.images     # needs the SQL and the metrics host

Engines and alerts in them are made up; everything else is what a site has.
"""

import asyncio
import json
import os
import random
import sys
import tempfile
import time
import urllib.request
from pathlib import Path

import yaml

REPO = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(REPO / "src"), str(REPO / "tests/unit"), str(REPO / "tests/integration"), str(REPO / "tests")]

from console.pages import browser, opened  # noqa: E402
from running_lab import known_credentials  # noqa: E402
from sites import migrated_database  # noqa: E402

from callers import BODY  # noqa: E402
from upstreams import CHAT, STREAM_HEAD, Upstream, answers, chunk  # noqa: E402

FOLDER = REPO / "docs/images"
SAID = (
    "A gateway sits between callers and models. It knows who calls, what they may ask for and how much, and sends each "
    "request to a replica that has room. Where one fails, another answers."
)


def engine_of(mean_s, rng):
    """A script: answers about so late, whole or in pieces."""

    async def script(call):
        await asyncio.sleep(mean_s * rng.uniform(0.6, 1.5))
        if b'"stream":true' not in call.body:
            await answers({**CHAT, "usage": {"prompt_tokens": 41, "completion_tokens": 97, "total_tokens": 138}})(call)
            return
        await call.send(STREAM_HEAD)
        for word in SAID.split(" "):
            event = {"choices": [{"index": 0, "delta": {"content": word + " "}}]}
            await call.send(chunk(b"data: " + json.dumps(event).encode() + b"\n\n"))
        usage = {"choices": [], "usage": {"prompt_tokens": 19, "completion_tokens": 46, "total_tokens": 65}}
        await call.send(chunk(b"data: " + json.dumps(usage).encode() + b"\n\ndata: [DONE]\n\n") + b"0\r\n\r\n")

    return script


def alert(url, model):
    one = {
        "labels": {
            "alertname": "CitadelModelSlowerThanTarget", "product": "citadel", "severity": "ticket", "kind": "symptom",
            "model": model, "server": "hx-llm-server-01",
        },
        "annotations": {"summary": f"{model} has been slower than its target for an hour."},
        "startsAt": time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime(time.time() - 900)),
    }  # fmt: skip
    data = json.dumps([one]).encode()
    urllib.request.urlopen(urllib.request.Request(f"{url}/api/v2/alerts", data, {"content-type": "application/json"}))


async def traffic(gateway, key, models, rng):
    """Requests until it is cancelled."""
    running = set()
    while True:
        body = BODY.replace(b"phi3", rng.choice(models).encode())
        task = asyncio.create_task(gateway.ask("POST", "/v1/chat/completions", body, key=key))
        running.add(task)
        task.add_done_callback(running.discard)
        await asyncio.sleep(rng.expovariate(8))


async def main():
    """All pictures."""
    credentials = known_credentials()
    plan = yaml.safe_load((REPO / "group_vars/llm_servers/models.yml").read_text())["citadel_models"]
    rng = random.Random(7)
    FOLDER.mkdir(exist_ok=True)
    with migrated_database(credentials) as site, tempfile.TemporaryDirectory() as made:
        folder = Path(made)
        site.brought(folder, {"name": "operations", "key": site.admin_key})
        models, engines = {}, []
        for name, entry in plan.items():
            mean_s = entry.get("latency_target_ms", 40) / 1000 * (1.15 if name == "openchat" else 0.6)
            engines.append(await Upstream(engine_of(mean_s, rng)).__aenter__())
            models[name] = {
                "upstreams": [engines[-1]], "display_name": entry["display_name"],
                "kind": entry.get("kind", "generate"),
                **{what: entry[what] for what in ("latency_ms", "latency_target_ms") if what in entry},
            }  # fmt: skip
        alert(credentials["alertmanager_url"], "openchat")
        sections = {
            "console": {"alertmanager": {"url": credentials["alertmanager_url"]}},
            "audit": {"enabled": True, "directory": str(folder / "audit")},
        }
        async with site.gateway(folder, models, **sections) as gateway, browser() as chromium:
            named = [name for name, entry in models.items() if entry["kind"] == "generate"]
            asking = asyncio.create_task(traffic(gateway, site.admin_key, named, rng))
            await pictures(chromium, gateway, site)
            asking.cancel()
        for engine in engines:
            await engine.__aexit__()


async def pictures(chromium, gateway, site):
    """Three pages read for a while at the same time, then taken."""
    wide = {"viewport": {"width": 1280, "height": 900}}
    phone = {"viewport": {"width": 360, "height": 740}, "device_scale_factor": 2}
    async with (
        opened(chromium, gateway, color_scheme="dark", **wide) as dark,
        opened(chromium, gateway, color_scheme="light", **wide) as light,
        opened(chromium, gateway, color_scheme="light", **phone) as small,
    ):
        for page in (dark, light, small):
            await page.ready(site.admin_key)
        await asyncio.sleep(float(os.environ.get("IMAGES_S", "90")))
        await light.chat("What does a gateway do?", model="phi3")
        await light.page.get_by_role("button", name="Good answer").click()
        await light.page.get_by_label("Sums by").select_option("hour")
        await light.page.get_by_role("button", name="Refresh the audit log").click()
        await asyncio.sleep(2)
        await dark.page.screenshot(path=FOLDER / "console-dark.png")
        await small.page.screenshot(path=FOLDER / "console-phone.png")
        await light.find("#alerts").scroll_into_view_if_needed()
        await light.page.evaluate("document.getElementById('alerts').scrollIntoView()")
        await light.page.screenshot(path=FOLDER / "console-light.png")
        if os.environ.get("IMAGES_ALL"):
            await light.page.screenshot(path="/tmp/cons-light-full.png", full_page=True)
            await small.page.screenshot(path="/tmp/cons-phone-full.png", full_page=True)


if __name__ == "__main__":
    asyncio.run(main())
