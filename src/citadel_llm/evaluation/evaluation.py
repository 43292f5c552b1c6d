"""One model's evaluation."""

from __future__ import annotations

from collections.abc import Callable
from time import monotonic, time

import msgspec

from citadel_llm.evaluation.engine import Engine, EvaluationError, Score, choose
from citadel_llm.evaluation.questions import Question, Questions
from citadel_llm.evaluation.results import Result

__all__ = ["evaluate"]


def evaluate(
    url: str,
    model: str,
    questions: Questions,
    before: Result | None = None,
    *,
    score: Score = "length",
    patience_s: float = 600.0,
    now: Callable[[], float] = time,
) -> Result:
    """Ask the engine at `url` every question. Where one is not answered, the result from before, with the error."""
    known = before or Result()
    engine = Engine(url, model, patience_s=patience_s)
    began = monotonic()
    subjects: dict[str, tuple[int, int]] = {}
    try:
        for question in questions.every:
            right, every = subjects.get(question.subject, (0, 0))
            answered = _patiently(engine, question, score)
            subjects[question.subject] = (right + int(answered == question.right), every + 1)
    except EvaluationError as error:
        return msgspec.structs.replace(known, failures=known.failures + 1, error=str(error))
    return Result(
        at=now(),
        correct=sum(right for right, _ in subjects.values()),
        questions=len(questions.every),
        subjects=subjects,
        seconds=monotonic() - began,
        digest=questions.digest,
        failures=known.failures,
    )


def _patiently(engine: Engine, question: Question, score: Score) -> int:
    """The chosen answer, asked for once more where the engine stumbled over it."""
    try:
        return choose(engine, question, score)
    except EvaluationError:
        return choose(engine, question, score)
