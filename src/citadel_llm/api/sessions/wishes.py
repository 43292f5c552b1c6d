"""What a request to /v1/responses wants of the gateway's memory, and whether it may have it."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

import msgspec

from citadel_llm.api.errors import ApiError
from citadel_llm.api.identity.guard import denied
from citadel_llm.api.identity.principal import Principal
from citadel_llm.api.sessions.items import Members, new_id
from citadel_llm.api.sessions.owner import nothing_kept, unavailable
from citadel_llm.integration.database.sessions import Item

if TYPE_CHECKING:
    from citadel_llm.api.state import GatewayState

__all__ = ["Plan", "plan_of"]


@dataclass(slots=True)
class Plan:
    """What is to be done for one request."""

    user_id: str
    store: bool  # whether the answer is to be kept
    required: bool  # whether it is an error where it can't be
    previous: str | None = None
    conversation: str | None = None
    id: str = field(default_factory=lambda: new_id("resp"))  # the answer's
    items: list[Item] = field(default_factory=list)  # what this request adds
    refresh: list[str] = field(default_factory=list)  # the answers before it
    kept: bool = False

    @property
    def remembers(self) -> bool:
        """Whether the database is asked for what was before."""
        return self.previous is not None or self.conversation is not None


class _Conversation(msgspec.Struct):
    id: str


class _Wishes(msgspec.Struct):
    store: bool | None = None
    previous_response_id: str | None = None
    conversation: str | _Conversation | None = None


def plan_of(members: Members, principal: Principal | None, state: GatewayState) -> Plan | None:
    """The plan; None where the request is passed on as it came. Raises ApiError."""
    wishes = _wishes(members)
    named = wishes.conversation
    conversation = named.id if isinstance(named, _Conversation) else named
    previous = wishes.previous_response_id
    remembers = previous is not None or conversation is not None
    if wishes.store is False and not remembers:
        return None
    explicit = remembers or wishes.store is True
    if state.database is None or principal is None or not principal.user_id:
        if explicit:
            raise nothing_kept(state)
        return None if state.database is None else Plan("", store=False, required=False)
    if previous is not None and conversation is not None:
        raise ApiError(
            400,
            "invalid_request",
            "Give `previous_response_id` or `conversation`, not both.",
            param="conversation",
        )
    if not principal.may("conversations"):
        if explicit:
            raise denied("conversations")
        return Plan("", store=False, required=False)
    store = state.config.sessions.store_default if wishes.store is None else wishes.store
    if not store and not remembers:
        return None
    if not state.database.up:
        if explicit:
            raise unavailable(state)
        store = False
    return Plan(principal.user_id, store, explicit, previous, conversation)


def _wishes(members: Members) -> _Wishes:
    found: dict[str, Any] = {}
    for name in ("store", "previous_response_id", "conversation"):
        if name in members:
            found[name] = msgspec.json.decode(members[name])
    try:
        return msgspec.convert(found, _Wishes)
    except msgspec.ValidationError as failure:
        param = next((name for name in found if f"$.{name}" in str(failure)), None)
        raise ApiError(400, "invalid_request", f"The body is not a valid request: {failure}", param=param) from None
