"""From the name in a request's body to the models that may answer it, in order; and the key for affinity."""

from __future__ import annotations

from time import monotonic

import msgspec

from citadel_llm.api.errors import ApiError
from citadel_llm.api.identity.guard import denied
from citadel_llm.api.middleware.exchange import Exchange
from citadel_llm.api.routing.auto import Candidate, Choice, Needs, choose, needs_of
from citadel_llm.api.routing.balance import affinity_key
from citadel_llm.api.state import GatewayState
from citadel_llm.api.upstream.model import ServedModel
from citadel_llm.utils.config import AUTO

__all__ = ["Resolver", "affinity_of", "unknown_model"]

type Chain = tuple[ServedModel, ...]


class Resolver:
    """The names that callers may use: the models', their aliases, and `auto` where any model has a size."""

    def __init__(self, state: GatewayState, *, interchangeable: bool) -> None:
        """`interchangeable`: whether another model's answer is one too, as for a chat, and unlike for embeddings."""
        self._state = state
        models = state.models
        self._chains: dict[str, Chain] = {
            name: (model, *(models[other] for other in model.config.fallback if interchangeable))
            for name, model in models.items()
        }
        self._sized = [
            model
            for model in models.values()
            if interchangeable and model.config.size_gb is not None and model.config.kind == "generate"
        ]
        names = dict(self._chains)
        if self._sized:
            names[AUTO] = ()
        aliases = state.config.aliases
        self._names = {**names, **{alias: names[name] for alias, name in aliases.items() if name in names}}

    def chain(self, name: str, exchange: Exchange, body: bytes) -> Chain:
        """The models to ask, one after the other. Raises ApiError."""
        chain = self._names.get(name)
        if chain is None:
            raise unknown_model(name, self._state)
        if not chain:
            chain = self._chains[self._choose(exchange, body)]
        return chain

    def _choose(self, exchange: Exchange, body: bytes) -> str:
        config = self._state.config
        remaining_s = exchange.last_call - monotonic() if exchange.deadline_ms else None
        try:
            needs = needs_of(body, config.auto, remaining_s)
        except (ValueError, RecursionError) as failure:
            raise ApiError(400, "invalid_request", f"The body is not a valid request: {failure}") from failure
        sized = self._sized
        principal = exchange.principal
        if principal is not None and not principal.unbounded:
            sized = [model for model in sized if principal.may("inference", model.name)]
            if not sized:
                raise denied("inference", AUTO)
        choice = choose(needs, [_candidate(model, needs, exchange.caller) for model in sized])
        if exchange.explanation is not None:
            passed = [f"not {name} ({reason})" for name, reason in choice.passed_over]
            exchange.explanation.add("auto", ", ".join([choice.name or "none", *passed]))
        if choice.name is None:
            raise self._nothing_fits(needs, choice)
        self._state.metrics.auto_chose(choice.name)
        return choice.name

    def _nothing_fits(self, needs: Needs, choice: Choice) -> ApiError:
        if choice.obstacle == "state":
            return ApiError(
                503,
                "model_unavailable",
                "No model that fits the request can be asked at the moment. Try again later.",
                retry_after_s=min(model.retry_after_s for model in self._sized),
            )
        if choice.obstacle == "length":
            tokens = needs.prompt_tokens + needs.answer_tokens
            message = f"No model takes so long a request: about {tokens} tokens with its answer."
            return ApiError(400, "context_length_exceeded", message, param="messages")
        features = ", ".join(sorted(needs.features))
        return ApiError(400, "unsupported_feature", f"No model here offers all of: {features}.", param="model")


def _candidate(model: ServedModel, needs: Needs, caller: str) -> Candidate:
    admission = model.admission
    state = "" if model.candidates else str(model.state) if model.state != "up" else "busy"
    return Candidate(
        name=model.name,
        size_gb=model.config.size_gb or 0.0,
        max_tokens=model.config.max_tokens,
        features=frozenset(model.config.features),
        state=state or ("busy" if admission.full else ""),
        wait_s=admission.expected_wait_s(caller),
        latency_s=model.latency.estimate_s(needs.answer_tokens),
    )


class _Prompt(msgspec.Struct):
    messages: msgspec.Raw = msgspec.Raw(b"")
    prompt: msgspec.Raw = msgspec.Raw(b"")
    input: msgspec.Raw = msgspec.Raw(b"")


class _User(msgspec.Struct):
    user: str | None = None


_prompt = msgspec.json.Decoder(_Prompt)
_user = msgspec.json.Decoder(_User)


def affinity_of(model: ServedModel, session: bytes | None, body: bytes, prefix_bytes: int) -> int | None:
    """What the model's policy binds a replica to; None where a request names nothing of the kind."""
    if model.by_session:
        if session is None:
            try:
                user = _user.decode(body).user
            except (ValueError, RecursionError):
                return None  # the engine's to refuse
            session = user.encode() if user else None
        return affinity_key(session) if session else None
    try:
        request = _prompt.decode(body)
    except (ValueError, RecursionError):
        return None
    text = memoryview(request.messages) or memoryview(request.prompt) or memoryview(request.input)
    return affinity_key(text[:prefix_bytes])


def unknown_model(name: str, state: GatewayState) -> ApiError:
    """The 404 for a model that is not served here; it says which are."""
    known = ", ".join(f"`{known}`" for known in (*state.models, *state.config.aliases))
    return ApiError(
        404,
        "model_not_found",
        f"The model `{name[:128]}` does not exist here. These do: {known}.",
        param="model",
    )
