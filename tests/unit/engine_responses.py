"""An engine that answers /v1/responses as vLLM does: it keeps nothing, and takes the whole conversation as input.

    engine.script = Talks()

What it says tells how many items it was given, and what the last one said. Its input is held to the same types as vLLM
holds it to, which are those of OpenAI's client.
"""

import json
import os

from openai.types.responses import ResponseInputItemParam, ResponseOutputItem
from pydantic import TypeAdapter, ValidationError

from upstreams import STREAM_HEAD, answers, chunk

INPUT = TypeAdapter(str | list[ResponseInputItemParam | ResponseOutputItem])


class Talks:
    """The script. `asked` are the requests' bodies, as JSON; `pause` is awaited before an answer's end."""

    def __init__(self, *, status="completed", pause=None, item=None):
        self.asked = []
        self.status = status
        self.pause = pause
        self.item = item  # in the place of a message

    async def __call__(self, call):
        request = json.loads(call.body)
        self.asked.append(request)
        # `store` false is what its caller said: the engine may know that too.
        wrong = {name for name in ("store", "previous_response_id", "conversation") if request.get(name)}
        if wrong:
            await answers({"error": {"message": f"not to be seen: {wrong}", "type": "x", "code": 400}}, 400)(call)
            return
        try:
            # vLLM's own way: anything that has the shape of an item; iterators are read so that they are checked.
            given = INPUT.validate_python(request["input"])
            for item in given if isinstance(given, list) else ():
                list(item.get("content") or ()) if isinstance(item, dict) else item
        except (ValidationError, KeyError) as error:
            await answers({"error": {"message": str(error)[:1000], "type": "BadRequestError", "code": 400}}, 400)(call)
            return
        response = self._response(request)
        if request.get("stream"):
            await self._stream(call, response)
        else:
            if self.pause is not None:
                await self.pause()
            await answers(response)(call)

    def _response(self, request):
        said = said_in(request)
        message = {
            "id": f"msg_{os.urandom(16).hex()}", "type": "message", "role": "assistant", "status": "completed",
            "content": [
                {"type": "output_text", "text": f"{len(said)}: {said[-1]}", "annotations": [], "logprobs": None}
            ],
        }  # fmt: skip
        return {
            "id": f"resp_{os.urandom(16).hex()}", "created_at": 1700000000, "incomplete_details": None,
            "instructions": request.get("instructions"), "metadata": None, "model": request["model"],
            "object": "response", "output": [self.item or message], "parallel_tool_calls": True, "temperature": 0.7,
            "tool_choice": "auto", "tools": [], "top_p": 1.0, "background": False, "max_output_tokens": 64,
            "previous_response_id": None, "service_tier": "auto", "status": self.status, "truncation": "disabled",
            "usage": {
                "input_tokens": 7, "output_tokens": 3, "total_tokens": 10,
                "input_tokens_details": {"cached_tokens": 0}, "output_tokens_details": {"reasoning_tokens": 0},
            },
        }  # fmt: skip

    async def _stream(self, call, response):
        begun = {**response, "status": "in_progress", "output": [], "usage": None}
        item = response["output"][0]
        text = item["content"][0]["text"] if "content" in item else ""
        place = {"item_id": item["id"], "output_index": 0, "content_index": 0}
        events = [
            {"type": "response.created", "response": begun},
            {"type": "response.in_progress", "response": begun},
            *({"type": "response.output_text.delta", "delta": letter, "logprobs": [], **place} for letter in text),
            {"type": "response.output_item.done", "item": item, "output_index": 0},
            {"type": "response.completed", "response": response},
        ]
        await call.send(STREAM_HEAD)
        for number, event in enumerate(events):
            if event is events[-1] and self.pause is not None:
                await self.pause()
            data = json.dumps({**event, "sequence_number": number})
            await call.send(chunk(f"event: {event['type']}\ndata: {data}\n\n".encode()))
        await call.send(b"0\r\n\r\n")


def said_in(request):
    """The texts of a request's input, item by item."""
    given = request["input"]
    if isinstance(given, str):
        return [given]
    return [_text(item) for item in given]


def _text(item):
    content = item.get("content", item.get("output", item.get("arguments", "")))
    return content if isinstance(content, str) else "".join(part.get("text", "") for part in content)
