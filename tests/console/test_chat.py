"""The playground: answers come piece by piece, can be stopped and rated, and are text whatever is in them."""

import asyncio
import json

import pytest
from console.pages import HOSTILE, ROLE_KEYS
from playwright.async_api import expect

from upstreams import STREAM_HEAD, answers, chunk, says_and_resets, streams
from waiting import until

pytestmark = pytest.mark.asyncio(loop_scope="session")


def event(text):
    return b"data: " + json.dumps({"choices": [{"index": 0, "delta": {"content": text}}]}).encode() + b"\n\n"


def held(*pieces):
    """A script that sends these, then waits until it is let go on or hung up on; and the event that lets it."""
    go_on = asyncio.Event()

    async def script(call):
        await call.send(STREAM_HEAD)
        for piece in pieces:
            await call.send(chunk(piece))
        hung_up = asyncio.ensure_future(call.hang_up())
        waited = asyncio.ensure_future(go_on.wait())
        await asyncio.wait({hung_up, waited}, return_when=asyncio.FIRST_COMPLETED)
        for task in (hung_up, waited):
            task.cancel()
        if go_on.is_set():
            call.ended = False
            await call.send(chunk(event(" two")) + chunk(b"data: [DONE]\n\n") + b"0\r\n\r\n")

    return script, go_on


async def test_an_answer_is_seen_while_it_comes_and_is_read_out_when_it_is_whole(console, engines):
    script, go_on = held(event("one"))
    engines.script(script)
    await console.ready()
    await console.chat("Count")
    log = console.page.get_by_role("log")
    await expect(log).to_contain_text("one")
    await expect(log).to_have_attribute("aria-busy", "true")
    assert await console.page.get_by_role("button", name="Send").is_disabled()
    go_on.set()
    await expect(log).to_contain_text("one two")
    await expect(log).to_have_attribute("aria-busy", "false")
    await expect(console.find("#chat-said")).to_contain_text("Complete after")


async def test_an_answer_is_stopped_and_the_engine_too(console, engines):
    hung_up = engines.first.hang_ups + engines.second.hang_ups
    script, _ = held(event("one"))
    engines.script(script)
    await console.ready()
    await console.chat("Count")
    await expect(console.page.get_by_role("log")).to_contain_text("one")
    await console.page.get_by_role("button", name="Stop").click()
    await expect(console.find("#chat-said")).to_have_text("Stopped.")
    await until(lambda: engines.first.hang_ups + engines.second.hang_ups > hung_up, what="the engine is hung up on")
    await expect(console.page.get_by_role("button", name="Send")).to_be_enabled()


async def test_a_conversation_goes_on_and_begins_anew(console, engines):
    await console.ready()
    await console.chat("First")
    await expect(console.find("#chat-said")).to_contain_text("7 tokens in, 3 out")
    await console.chat("Second")
    await expect(console.page.get_by_role("log").get_by_text("Hello.")).to_have_count(2)
    await expect(console.find("#chat-said")).to_contain_text("Complete")
    sent = max((engines.first.calls + engines.second.calls), key=lambda call: len(call.body))
    assert [turn["content"] for turn in json.loads(sent.body)["messages"]] == ["First", "Hello.", "Second"]
    await console.page.get_by_role("button", name="Begin anew").click()
    await expect(console.page.get_by_role("log").locator(".turn")).to_have_count(0)


async def test_markup_from_a_model_and_from_a_user_is_text(console, engines):
    hostile = [HOSTILE, "<script>document.title=2</script>", "[x](javascript:alert(1))", "<svg onload=alert(1)>"]
    engines.script(streams(*map(event, hostile), b"data: [DONE]\n\n"))
    await console.ready()
    await console.chat(HOSTILE, model="lab/hostile")
    await expect(console.find("#chat-said")).to_contain_text("Complete")
    log = console.page.get_by_role("log")
    assert await log.locator(".words").all_inner_texts() == [HOSTILE, "".join(hostile)]
    assert await log.locator(".words *").count() == 0


async def test_pieces_may_be_cut_anywhere(console, engines):
    whole = event("Grüße, 世界 👋") + b"data: [DONE]\n\n"
    engines.script(streams(*(whole[at : at + 3] for at in range(0, len(whole), 3))))
    await console.ready()
    await console.chat("Hello")
    await expect(console.page.get_by_role("log")).to_contain_text("Grüße, 世界 👋")


async def test_a_refusal_and_a_break_are_told_in_words(console, engines):
    await console.ready()
    engines.script(answers({"error": {"message": f"no {HOSTILE}", "type": "x", "code": None}}, 400))
    await console.chat("Hello")
    await expect(console.find("#chat-said")).to_contain_text(f"no {HOSTILE}")
    engines.script(says_and_resets(STREAM_HEAD, chunk(event("half"))))
    await console.chat("Hello again")
    await expect(console.page.get_by_role("log")).to_contain_text("half")
    await expect(console.find("#chat-said")).not_to_contain_text("Complete")
    await expect(console.page.get_by_role("button", name="Send")).to_be_enabled()


async def test_what_is_added_to_a_long_talk_is_in_sight(console):
    await console.ready()
    log = "document.getElementById('turns')"
    hidden = f"{log}.scrollHeight - {log}.scrollTop - {log}.clientHeight"
    for turn in range(6):
        await console.chat(f"Question {turn} " + "word " * 60)
        await expect(console.page.get_by_role("button", name="Bad answer")).to_have_count(turn + 1)
        assert abs(await console.page.evaluate(hidden)) <= 1


async def test_a_thumb_says_where_ratings_are_not_kept(console):
    await console.ready()
    await console.chat("Hello")
    thumb = console.page.get_by_role("button", name="Good answer")
    await thumb.click()
    await expect(console.find(".below")).to_contain_text(["", "Not set up on this server"])
    await expect(thumb).to_have_attribute("aria-pressed", "false")


async def test_a_thumb_says_while_the_database_is_away(roled_console):
    await roled_console.ready(ROLE_KEYS["developer"])
    await roled_console.chat("Hello")
    await roled_console.page.get_by_role("button", name="Bad answer").click()
    await expect(roled_console.find(".below")).to_contain_text(["", "Not available at the moment"])
