"""What an engine says how likely a text is: vLLM's `/tokenize`, and `/v1/completions` with `prompt_logprobs`.

The engine is asked itself and not the gateway, for it is the engine's weights that are looked at: no answer from a
cache, a replica or a fallback, nothing in anybody's usage. One request is under way at a time. It is begun when the
engine has nothing else to do; where that does not happen for some seconds, beside others, but never while some wait.
"""

from __future__ import annotations

import http.client
import json
import re
import time
import urllib.error
import urllib.request
from collections.abc import Callable, Sequence
from typing import Any, Literal

from citadel_llm.evaluation.questions import Question

__all__ = ["Engine", "EvaluationError", "Score", "choose"]

type Score = Literal["length", "sum"]

_TIMEOUT_S = 120.0
_LOOK_S = 0.25
_IDLE_S = 5.0  # so long it is waited for that the engine has nothing to do, before each request
_RUNNING, _WAITING = (
    re.compile(rb"^vllm:num_requests_%b(?:\{[^}\n]*\})? ([0-9.e+]+)" % kind, re.MULTILINE)
    for kind in (b"running", b"waiting")
)
_MAX_BODY = 8 << 20


class EvaluationError(Exception):
    """The engine could not be asked; the text says what it did."""


class Engine:
    """One engine that serves `model`."""

    def __init__(
        self,
        url: str,
        model: str,
        *,
        patience_s: float = 600.0,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """`patience_s`: how long to wait in all, over its life, for requests that wait inside the engine."""
        self._url = url.rstrip("/")
        self._model = model
        self._patience_s = patience_s
        self._clock, self._sleep = clock, sleep
        self._context: tuple[str, list[int]] = ("", [])  # the last one, with its tokens: a question's choices share it

    def give_way(self) -> None:
        """Let others go first. Raises EvaluationError where some wait inside the engine for too long."""
        idle_s = _IDLE_S
        while True:
            text = self._ask("/metrics", None)
            waiting = _sum(_WAITING, text)
            if not waiting and (idle_s <= 0 or not _sum(_RUNNING, text)):
                return
            if waiting and self._patience_s <= 0:
                raise EvaluationError("the engine is busy: others wait inside it all the time")
            began = self._clock()
            self._sleep(_LOOK_S)
            took_s = self._clock() - began
            idle_s -= took_s
            if waiting:
                self._patience_s -= took_s

    def tokens(self, text: str) -> list[int]:
        """The text's tokens, with those that the model's texts begin with."""
        found = self._json("/tokenize", {"model": self._model, "prompt": text, "add_special_tokens": True})
        tokens = found.get("tokens")
        if not isinstance(tokens, list) or not all(isinstance(token, int) for token in tokens):
            raise EvaluationError("/tokenize answered without `tokens`")
        return tokens

    def log_likelihood(self, context: str, continuation: str) -> float:
        """The natural logarithm of how likely the continuation is after the context: the sum over its tokens.

        Where a token spans both, it counts to the continuation. Raises EvaluationError.
        """
        if self._context[0] != context:
            self._context = context, self.tokens(context)
        before, whole = self._context[1], self.tokens(context + continuation)
        common = 0
        while common < min(len(before), len(whole)) and before[common] == whole[common]:
            common += 1
        common = max(1, min(common, len(whole) - 1))  # nothing goes before the first token, and something is to be told
        asked = {"model": self._model, "prompt": whole, "max_tokens": 1, "temperature": 0, "prompt_logprobs": 1}
        answer = self._json("/v1/completions", asked)
        return sum(_logprobs(answer, whole)[common:])

    def _json(self, path: str, body: dict[str, Any]) -> dict[str, Any]:
        text = self._ask(path, json.dumps(body).encode())
        try:
            found = json.loads(text)
        except ValueError:
            found = None
        if not isinstance(found, dict):
            raise EvaluationError(f"{path} answered no JSON object")
        return found

    def _ask(self, path: str, body: bytes | None) -> bytes:
        request = urllib.request.Request(self._url + path, body)  # noqa: S310 — `Upstream` takes http:// alone
        if body is not None:
            request.add_header("content-type", "application/json")
        try:
            with urllib.request.urlopen(request, timeout=_TIMEOUT_S) as answer:  # noqa: S310
                text: bytes = answer.read(_MAX_BODY)
                return text
        except urllib.error.HTTPError as error:
            said = " ".join(error.read(2000).decode("utf-8", "replace").split())[:300]
            raise EvaluationError(f"{path} answered {error.code}: {said}") from None
        except (OSError, http.client.HTTPException) as error:
            raise EvaluationError(f"no answer from {self._url}: {getattr(error, 'reason', error)}") from None


def _sum(metric: re.Pattern[bytes], text: bytes) -> float:
    """Of all of the engine's parts."""
    return sum(float(value) for value in metric.findall(text))


def _logprobs(answer: dict[str, Any], tokens: Sequence[int]) -> list[float]:
    """Each token's, the first one's 0. Raises EvaluationError where the engine gives none."""
    try:
        (choice,) = answer["choices"]
        _, *told = choice["prompt_logprobs"]
        found = [0.0]
        for token, entry in zip(tokens[1:], told, strict=True):
            found.append(float(entry[str(token)]["logprob"]))
    except (KeyError, TypeError, ValueError):
        raise EvaluationError(
            "/v1/completions gives no log probabilities of the prompt: is it a vLLM that takes `prompt_logprobs`?"
        ) from None
    return found


def choose(engine: Engine, question: Question, score: Score = "length") -> int:
    """The choice that the model finds likeliest, from 0: by its log-likelihood, or by that divided by its bytes."""
    context = f"Question: {question.question}\nAnswer:"
    scores = []
    for choice in question.choices:
        engine.give_way()
        found = engine.log_likelihood(context, f" {choice}")
        scores.append(found if score == "sum" else found / len(choice.encode()))
    return scores.index(max(scores))
