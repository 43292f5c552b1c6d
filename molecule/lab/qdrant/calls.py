"""What all gRPC methods have in common: the key, the thread, the time, and how a refusal is told."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import grpc

from qdrant.access import Access
from qdrant.errors import Refused


class Guard(grpc.aio.ServerInterceptor):
    """Nothing without the key but the health check."""

    def __init__(self, access: Access) -> None:
        self._access = access

    async def intercept_service(
        self, continuation: Callable[..., Awaitable[Any]], details: grpc.HandlerCallDetails
    ) -> Any:
        refusal = self._access.refusal(dict(details.invocation_metadata))
        if refusal is None or details.method.endswith("/HealthCheck"):
            return await continuation(details)

        async def refuse(request: Any, context: grpc.aio.ServicerContext) -> None:
            await context.abort(grpc.StatusCode.UNAUTHENTICATED, refusal)

        return grpc.unary_unary_rpc_method_handler(refuse)


def done(method: Callable[[Any, Any], Any]) -> Callable[..., Awaitable[Any]]:
    """A method's answer, with the time that it took; it runs on a thread, and its refusals are statuses."""

    async def call(self: Any, request: Any, context: grpc.aio.ServicerContext) -> Any:
        began = time.perf_counter()
        try:
            answer = await asyncio.to_thread(method, self, request)
        except Refused as error:
            await context.abort(error.code, str(error))
        except ValueError as error:  # a message that its own conversion finds incomplete
            await context.abort(grpc.StatusCode.INVALID_ARGUMENT, str(error))
        if "time" in answer.DESCRIPTOR.fields_by_name:
            answer.time = time.perf_counter() - began
        return answer

    return call


def given(message: Any, name: str, convert: Callable[[Any], Any] = lambda value: value) -> Any:
    """A field of a message, converted; None where it was not given."""
    return convert(getattr(message, name)) if message.HasField(name) else None
