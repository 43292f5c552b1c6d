"""The gateway as one ASGI application, for tests that call it without a server.

The product's server gives the hot path its requests directly; here they are made of ASGI's messages.
"""

import asyncio

from citadel_llm.api.call import CallerGone, TooLarge
from citadel_llm.api.gateway import Gateway


class Call:
    """One request of the hot path."""

    def __init__(self, scope, receive, send):
        client = scope.get("client")
        self.headers = scope["headers"]
        self.client = client[0] if client else None
        self.exchange = None
        self.watcher = None
        self._receive, self._send = receive, send

    async def body(self, limit):
        body, more = b"", True
        while more:
            message = await self._receive()
            if message["type"] == "http.disconnect":
                raise CallerGone("the caller hung up before its request was complete")
            body += message.get("body", b"")
            more = message.get("more_body", False)
            if len(body) > limit:
                raise TooLarge
        self.watcher = asyncio.create_task(self._watch())
        return body

    async def _watch(self):
        while (await self._receive())["type"] != "http.disconnect":
            pass
        self.exchange.interrupt(CallerGone("the caller hung up"))

    async def whole(self, status, headers, body):
        if b"content-length" not in dict(headers):
            headers = [*headers, (b"content-length", b"%d" % len(body))]
        await self.start(status, headers)
        await self.end(body)

    async def start(self, status, headers):
        if self.exchange is not None:
            lines = self.exchange.lines.split(b"\r\n")[:-1]
            headers = [*headers, *(tuple(line.split(b": ", 1)) for line in lines)]
        await self._send({"type": "http.response.start", "status": status, "headers": headers})

    async def piece(self, data):
        await self._send({"type": "http.response.body", "body": data, "more_body": True})

    async def end(self, data=b""):
        await self._send({"type": "http.response.body", "body": data, "more_body": False})


def application(state):
    """The whole application of a state."""
    gateway = Gateway(state)

    async def app(scope, receive, send):
        handler = gateway.hot.get(scope["path"])
        if handler is None or scope["method"] != "POST":
            await gateway(scope, receive, send)
            return
        call = Call(scope, receive, send)
        try:
            await handler(call)
        finally:
            if call.watcher is not None:
                call.watcher.cancel()

    return app
