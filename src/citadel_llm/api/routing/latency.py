"""What a model's answers have taken of late: moving averages with exponentially falling weights."""

from __future__ import annotations

__all__ = ["Latency", "moved"]


def moved(mean: float | None, value: float, alpha: float) -> float:
    """The moving average after another value, of the weight `alpha`; None before the first."""
    return value if mean is None else mean + (value - mean) * alpha


class Latency:
    """A model's time to first token and time per further token, in seconds."""

    __slots__ = ("_alpha", "per_token_s", "ttft_s")

    def __init__(self, alpha: float = 0.1) -> None:
        self._alpha = alpha
        # From sending the request to the first piece of a stream; None before one was seen.
        self.ttft_s: float | None = None
        # Between tokens; where no stream was seen, an answer's whole time over its tokens.
        self.per_token_s: float | None = None

    def streamed(self, ttft_s: float, rest_s: float, tokens: int) -> None:
        """A stream ended: its first piece after `ttft_s`, then `tokens` in all until `rest_s` later."""
        self.ttft_s = moved(self.ttft_s, ttft_s, self._alpha)
        if tokens > 1:
            self.per_token_s = moved(self.per_token_s, rest_s / (tokens - 1), self._alpha)

    def answered(self, total_s: float, tokens: int) -> None:
        """A plain answer came, of `tokens`."""
        if tokens > 0:
            rest_s = total_s - (self.ttft_s or 0.0)
            self.per_token_s = moved(self.per_token_s, rest_s / tokens if rest_s > 0 else 0.0, self._alpha)

    def estimate_s(self, tokens: int) -> float | None:
        """How long an answer of `tokens` takes; None where nothing is known."""
        if self.ttft_s is None and self.per_token_s is None:
            return None
        return (self.ttft_s or 0.0) + tokens * (self.per_token_s or 0.0)
