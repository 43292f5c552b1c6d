"""A set of multiple-choice questions: a JSON file, checked when it is read.

{"questions": [{"subject": "logic", "question": "…", "choices": ["…", "…", "…", "…"], "answer": "B"}, …]}
"""

from __future__ import annotations

import hashlib
from collections import Counter
from pathlib import Path
from typing import Annotated, Literal

import msgspec
from msgspec import Meta

__all__ = ["LETTERS", "Question", "QuestionError", "Questions", "load_questions"]

LETTERS = "ABCD"
type _Text = Annotated[str, Meta(min_length=1, max_length=1000)]


class QuestionError(Exception):
    """The file holds no usable set; the text names the file, and what was expected where."""


class Question(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """One of them; `answer` is the letter of the right choice."""

    subject: Annotated[str, Meta(pattern="^[a-z][a-z_]{0,31}$")]
    question: _Text
    choices: Annotated[list[_Text], Meta(min_length=4, max_length=4)]
    answer: Literal["A", "B", "C", "D"]

    @property
    def right(self) -> int:
        """The right choice's place, from 0."""
        return LETTERS.index(self.answer)


class _File(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    questions: Annotated[list[Question], Meta(min_length=1, max_length=10_000)]


class Questions(msgspec.Struct, frozen=True):
    """The set; `digest` tells it from another one, whose results are not to be compared with this one's."""

    every: list[Question]
    digest: str


def load_questions(path: Path) -> Questions:
    """Read the set. Raises QuestionError."""
    try:
        data = path.read_bytes()
        found = msgspec.json.decode(data, type=_File).questions
    except OSError as error:
        raise QuestionError(f"{path}: can't be read: {error.strerror}") from error
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise QuestionError(f"{path}: {error}") from error
    for number, one in enumerate(found):
        if len(set(one.choices)) < len(one.choices):
            raise QuestionError(f"{path}: `$.questions[{number}].choices`: expected four different ones")
    text, times = Counter(one.question for one in found).most_common(1)[0]
    if times > 1:
        raise QuestionError(f"{path}: expected each question once, and this one comes again: {text}")
    return Questions(found, hashlib.sha256(data).hexdigest()[:12])
