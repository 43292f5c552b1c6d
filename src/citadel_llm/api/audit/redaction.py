"""Takes out of a text what nobody should find in a log: keys, tokens, addresses, numbers of cards and telephones."""

from __future__ import annotations

import re
from collections.abc import Iterable
from typing import Any

__all__ = ["Redaction"]

_PATTERNS = (
    ("key", r"-----BEGIN [A-Z ]*PRIVATE KEY-----.*?(?:-----END [A-Z ]*PRIVATE KEY-----|\Z)"),
    ("token", r"(?i)\b(?:bearer|basic)\s+[A-Za-z0-9._~+/=-]{8,}"),
    ("token", r"\beyJ[A-Za-z0-9_-]{8,}\.[A-Za-z0-9_-]{4,}(?:\.[A-Za-z0-9_-]*)?"),
    ("key", r"\b(?:sk|pk|rk|ck|hf|gh[pousr]|github_pat|glpat|xox[abprs]|npm|pypi)[-_][A-Za-z0-9_-]{12,}"),
    ("key", r"\bA(?:KIA|SIA)[A-Z0-9]{16}\b"),
    (
        "key",
        r"(?i)\b(?:api[-_ ]?key|secret|password|passwd|access[-_ ]?token)\b[\"']?\s*(?:[:=]|\bis\b)\s*[\"']?"
        r"[^\s\"',;]{6,}",
    ),
    ("email", r"[A-Za-z0-9._%+-]{1,64}@[A-Za-z0-9-]{1,63}(?:\.[A-Za-z0-9-]{1,63})*\.[A-Za-z]{2,24}\b"),
    ("phone", r"(?<![\w.+-])\+\d{1,3}(?:[ ()./-]{0,2}\d){6,13}\b"),
    ("phone", r"(?<![\w.+-])(?:\(0?\d{2,5}\)|0\d{2,4})[ ./-]\d{2,4}(?:[ ./-]?\d{2,5}){1,3}\b"),
    ("phone", r"(?<![\w.+-])\(?\d{3}\)?[ .-]\d{3}[ .-]\d{4}\b"),
)
_CARD = re.compile(r"(?<![\w.-])\d(?:[ -]?\d){12,18}(?![\w-])")


class Redaction:
    """The patterns that are always looked for, and a site's own."""

    def __init__(self, extra: Iterable[str] = ()) -> None:
        """`extra` are regular expressions."""
        self._patterns = [(f"[{name}]", re.compile(text, re.DOTALL)) for name, text in _PATTERNS]
        self._patterns += [("[redacted]", re.compile(text)) for text in extra]

    def text(self, text: str) -> str:
        """The text without them; what was there is said in brackets."""
        text = _CARD.sub(_card, text)
        for mark, pattern in self._patterns:
            text = pattern.sub(mark, text)
        return text

    def value(self, value: Any) -> Any:
        """The same in every text of a JSON value, names of members among them."""
        match value:
            case str():
                return self.text(value)
            case dict():
                return {self.text(str(name)): self.value(entry) for name, entry in value.items()}
            case list():
                return [self.value(entry) for entry in value]
            case _:
                return value


def _card(found: re.Match[str]) -> str:
    """Only what has a card's check digit (Luhn, ISO/IEC 7812-1) is taken for one."""
    digits = [int(digit) for digit in found[0] if digit.isdigit()]
    doubled = (2 * digit - 9 * (digit > 4) for digit in digits[-2::-2])
    return "[card]" if (sum(doubled) + sum(digits[::-2])) % 10 == 0 else found[0]
