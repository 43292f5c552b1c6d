"""Which replica takes a request."""

from __future__ import annotations

from dataclasses import dataclass
from random import Random

from hypothesis import given
from hypothesis import strategies as st

from citadel_llm.api.routing.balance import affinity_key, bounded, least_outstanding, load_bound, replica_seed, sticky


@dataclass(eq=False)
class Fake:
    name: str
    in_flight: int = 0
    waiting: int = 0
    weight: float = 1.0

    @property
    def seed(self) -> int:
        return replica_seed(self.name)

    @property
    def load(self) -> int:
        return self.in_flight + self.waiting


replicas = st.lists(
    st.builds(
        Fake,
        name=st.uuids().map(str),
        in_flight=st.integers(0, 300),
        waiting=st.integers(0, 300),
        weight=st.floats(0.1, 1.0),
    ),
    min_size=1,
    max_size=12,
)
keys = st.integers(0, 2**64 - 1)


@given(replicas, st.integers())
def test_the_less_loaded_of_two_is_taken_so_never_the_worst(found: list[Fake], seed: int) -> None:
    chosen = least_outstanding(found, Random(seed))
    assert chosen in found
    if len(found) > 1:
        worse = [r for r in found if r is not chosen and (r.load + 1) / r.weight >= (chosen.load + 1) / chosen.weight]
        assert worse, "the one chosen is strictly worse than every other"


def test_given_replicas_alike_then_each_gets_its_share() -> None:
    found, rng = [Fake("a"), Fake("b"), Fake("c")], Random(1)
    for _ in range(3000):
        least_outstanding(found, rng).waiting += 1
    assert max(r.load for r in found) - min(r.load for r in found) <= 20


def test_given_a_replica_that_starts_slowly_then_it_gets_about_its_weight() -> None:
    slow, fast = Fake("a", weight=0.25), Fake("b")
    rng = Random(2)
    for _ in range(1000):
        least_outstanding([slow, fast], rng).in_flight += 1
    assert 150 <= slow.in_flight <= 250


@given(replicas, keys, st.floats(1.0, 3.0))
def test_with_a_bound_no_replica_is_sent_more_than_its_bound(found: list[Fake], key: int, factor: float) -> None:
    total, weights = sum(r.load for r in found), sum(r.weight for r in found)
    chosen = bounded(found, key, factor)
    assert chosen.load + 1 <= load_bound(total, chosen.weight / weights, factor)


@given(replicas, keys)
def test_without_load_the_bounded_choice_is_the_keys_own_replica(found: list[Fake], key: int) -> None:
    for replica in found:
        replica.in_flight = replica.waiting = 0
    assert bounded(found, key, 1.25) is sticky(found, key)


@given(replicas, keys, st.data())
def test_a_replica_that_goes_moves_no_key_but_its_own(found: list[Fake], key: int, data: st.DataObject) -> None:
    own = sticky(found, key)
    gone = data.draw(st.sampled_from(found))
    left = [replica for replica in found if replica is not gone]
    if left and gone is not own:
        assert sticky(left, key) is own


def test_keys_spread_evenly() -> None:
    found = [Fake(f"10.0.0.{n}:11403") for n in range(5)]
    counts = dict.fromkeys((replica.name for replica in found), 0)
    for n in range(5000):
        counts[sticky(found, affinity_key(b"session-%d" % n)).name] += 1
    assert min(counts.values()) > 850
    assert max(counts.values()) < 1150
