"""Passive ejection."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from citadel_llm.api.routing.outlier import Outlier, may_eject
from citadel_llm.utils.config import Ejection

CONFIG = Ejection(failures=3, base_s=5.0, max_s=30.0, max_share=0.5)


class Clock:
    now = 100.0

    def __call__(self) -> float:
        return self.now


def test_given_failures_in_a_row_then_it_asks_to_be_ejected_and_a_good_answer_begins_anew() -> None:
    outlier = Outlier(CONFIG, Clock())
    assert [outlier.failed(), outlier.failed()] == [False, False]
    outlier.streak = 0
    assert [outlier.failed(), outlier.failed(), outlier.failed()] == [False, False, True]


def test_given_ejections_one_after_the_other_then_each_lasts_longer_up_to_the_longest() -> None:
    clock = Clock()
    outlier = Outlier(CONFIG, clock)
    pauses = []
    for _ in range(5):
        pauses.append(outlier.eject())
        clock.now = outlier.until
        assert outlier.tick()
        assert not outlier.until
    assert pauses == [5.0, 10.0, 20.0, 30.0, 30.0]


def test_given_a_long_good_time_then_the_next_ejection_is_short_again() -> None:
    clock = Clock()
    outlier = Outlier(CONFIG, clock)
    outlier.eject()
    clock.now += 5.0 + CONFIG.max_s + 0.1
    outlier.tick()
    assert outlier.eject() == CONFIG.base_s


@given(st.integers(1, 50), st.data())
def test_however_many_replicas_the_last_one_and_the_share_are_kept(replicas: int, data: st.DataObject) -> None:
    ejected = 0
    while may_eject(CONFIG, replicas, ejected, replicas - ejected - 1):
        ejected += 1
    assert ejected < replicas
    assert ejected <= max(1, replicas // 2)
    assert not may_eject(CONFIG, replicas, data.draw(st.integers(0, replicas)), others=0)
