"""Whether two questions that mean nearly the same may have one answer: what an embedding overlooks has to be equal.

    alike("How high is K2 in metres?", "What is the height of K2, in meters?")      # False: high, height
    alike("How do I sort a list?", "How can I sort a list, please?")                # True

An embedding finds annual and monthly, ascending and descending, 22.04 and 24.04, from Canada and to Canada close to
each other. So numbers, negations, and all words that carry meaning, names first of all, must be the same on both
sides, whatever their order, and whatever stands around them; and what follows `from`, `to`, `into`, `with`, `than`,
`before`, `after` must be the same too. That lets fewer pairs through than mean the same, and next to none that do not.
"""

from __future__ import annotations

import re
from collections import Counter

__all__ = ["alike"]


def _words(text: str) -> frozenset[str]:
    return frozenset(text.split())


_VALUES = ("zero", "one once", "two twice", "three", "four", "five", "six", "seven", "eight", "nine", "ten", "eleven")
_NUMBERS = {word: str(value) for value, words in enumerate(_VALUES) for word in words.split()}
_NEGATIONS = _words("no not never none nobody nothing neither nor without cannot unable except excluding unless hardly")
# What surrounds a question and changes nothing in its answer.
_FILLERS = _words(
    "a an the this that these those it its of in on at by for as and or so is are was were be been being am do does "
    "did done doing have has had having can could may might should would will shall must i me my we us our you your "
    "they them their he she there here what which how please tell explain describe give show let know want need "
    "like way steps question answer about just some any also then if possible able using "
    "from to into with than before after"
)
_ROLES = frozenset(("from", "to", "into", "with", "than", "before", "after"))
_WORD = re.compile(r"[^\W_]+(?:[._/:@+#&-]+[^\W_]+)*[+#%]*")
_NUMBER = re.compile(r"\d+(?:[.,:]\d+)*")
_SHORT = {
    "what's": "what is",
    "who's": "who is",
    "how's": "how is",
    "it's": "it is",
    "i'm": "i am",
    "that's": "that is",
}
_SPELLED = (
    (re.compile(r"is(e|ing|ed|es|ation)$"), r"iz\1"),
    (re.compile(r"([tb])re(s?)$"), r"\1er\2"),
    (re.compile(r"our(s?)$"), r"or\1"),
)
_ENDINGS = ("ing", "es", "ed", "s", "e")


def alike(one: str, other: str) -> bool:
    """Whether all of that is equal."""
    return _essence(one) == _essence(other)


type _Essence = tuple[Counter[str], bool, frozenset[str], frozenset[tuple[str, str]]]


def _essence(text: str) -> _Essence:
    """Numbers, whether it is negated, words that carry meaning, and what stands in a role."""
    lowered = text.lower().replace("\u2019", "'")
    for short, whole in _SHORT.items():
        lowered = re.sub(rf"\b{short}\b", whole, lowered)
    negated = len(re.findall(r"n't\b", lowered))
    lowered = re.sub(r"n't\b|'s\b", " ", lowered)
    words = _WORD.findall(lowered)
    numbers = Counter(_plain(number) for number in _NUMBER.findall(lowered))
    numbers.update(_NUMBERS[word] for word in words if word in _NUMBERS)
    negated += sum(word in _NEGATIONS for word in words)
    kept: list[str] = []
    roles: set[tuple[str, str]] = set()
    role = ""
    for before, word in zip(["", *words], words, strict=False):
        if word in _ROLES:
            # In `how to`, `a way to` and the like it is no direction.
            role = "" if word == "to" and (not before or before in _FILLERS) else word
        elif word not in _FILLERS and word not in _NEGATIONS and word not in _NUMBERS and not _NUMBER.fullmatch(word):
            stem = _stem(word)
            kept.append(stem)
            if role:
                roles.add((role, stem))
                role = ""
    return numbers, negated % 2 == 1, frozenset(kept), frozenset(roles)


def _stem(word: str) -> str:
    for pattern, replacement in _SPELLED:
        word = pattern.sub(replacement, word)
    if word.endswith("ies") and len(word) > 4:
        return f"{word[:-3]}y"
    for ending in _ENDINGS:
        if word.endswith(ending) and len(word) - len(ending) >= 3:
            return word.removesuffix(ending)
    return word


def _plain(number: str) -> str:
    if re.search(r"[.,:]", number):
        return re.sub(r"[,:]", ".", number)
    return number.lstrip("0") or "0"
