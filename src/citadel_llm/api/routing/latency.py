"""What a model's answers have taken of late: moving averages with exponentially falling weights."""

from __future__ import annotations

__all__ = ["Ewma", "Latency"]


class Ewma:
    """A moving average; each value has the weight `alpha`. None before the first."""

    __slots__ = ("_alpha", "value")

    def __init__(self, alpha: float) -> None:
        self._alpha = alpha
        self.value: float | None = None

    def add(self, value: float) -> None:
        """Take a value in."""
        mean = self.value
        self.value = value if mean is None else mean + (value - mean) * self._alpha


class Latency:
    """A model's time to first token and time per further token, in seconds."""

    __slots__ = ("_per_token", "_ttft")

    def __init__(self, alpha: float = 0.1) -> None:
        self._ttft = Ewma(alpha)
        self._per_token = Ewma(alpha)

    @property
    def ttft_s(self) -> float | None:
        """From sending the request to the first piece of a stream; None before one was seen."""
        return self._ttft.value

    @property
    def per_token_s(self) -> float | None:
        """Between tokens; where no stream was seen, an answer's whole time over its tokens."""
        return self._per_token.value

    def streamed(self, ttft_s: float, rest_s: float, tokens: int) -> None:
        """A stream ended: its first piece after `ttft_s`, then `tokens` in all until `rest_s` later."""
        self._ttft.add(ttft_s)
        if tokens > 1:
            self._per_token.add(rest_s / (tokens - 1))

    def answered(self, total_s: float, tokens: int) -> None:
        """A plain answer came, of `tokens`."""
        if tokens > 0:
            first = self._ttft.value or 0.0
            self._per_token.add(max(total_s - first, 0.0) / tokens)

    def estimate_s(self, tokens: int) -> float | None:
        """How long an answer of `tokens` takes; None where nothing is known."""
        if self._ttft.value is None and self._per_token.value is None:
            return None
        return (self._ttft.value or 0.0) + tokens * (self._per_token.value or 0.0)
