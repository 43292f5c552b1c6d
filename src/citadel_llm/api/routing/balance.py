"""Which replica takes the next request. Each function gets the replicas that may be used, at least one.

A replica's load is what this instance has in flight there plus what the engine last said is waiting
inside it; its weight is below 1 while it starts slowly after an absence.

`least_outstanding` is the power of two choices: of two replicas drawn at random the less loaded one.
That keeps several gateway instances, each with its own view, from rushing to the same replica.
`bounded` and `sticky` are rendezvous hashing: for a key the replicas have an order that changes for
no key but those of a replica that came or went.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from hashlib import blake2b
from random import Random
from typing import Protocol

__all__ = ["Replica", "affinity_key", "bounded", "least_outstanding", "load_bound", "replica_seed", "sticky"]

_MASK = (1 << 64) - 1


class Replica(Protocol):
    """What the choice depends on."""

    in_flight: int
    waiting: int
    weight: float
    seed: int


def affinity_key(data: bytes | memoryview) -> int:
    """A number of 64 bits for a prompt's prefix or a session's name; the same in every process."""
    return int.from_bytes(blake2b(data, digest_size=8).digest(), "little")


def replica_seed(name: str) -> int:
    """A number of 64 bits for a replica's address."""
    return affinity_key(name.encode())


def least_outstanding[R: Replica](replicas: Sequence[R], rng: Random) -> R:
    """The less loaded of two at random; where both are alike, either."""
    count = len(replicas)
    if count == 1:
        return replicas[0]
    first = int(rng.random() * count)
    second = int(rng.random() * (count - 1))
    if second >= first:
        second += 1
    a, b = replicas[first], replicas[second]
    # (load + 1) / weight, without the division
    if (b.in_flight + b.waiting + 1) * a.weight < (a.in_flight + a.waiting + 1) * b.weight:
        return b
    return a


def sticky[R: Replica](replicas: Sequence[R], key: int) -> R:
    """The key's own replica, whatever its load."""
    best, most = replicas[0], -1
    for replica in replicas:
        score = _score(key, replica.seed)
        if score > most:
            best, most = replica, score
    return best


def bounded[R: Replica](replicas: Sequence[R], key: int, load_factor: float) -> R:
    """The first replica in the key's order whose load, with this request, stays within its bound."""
    total = weights = 0.0
    for replica in replicas:
        total += replica.in_flight + replica.waiting
        weights += replica.weight
    best, most = None, -1
    for replica in replicas:
        score = _score(key, replica.seed)
        if score > most and replica.in_flight + replica.waiting < load_bound(
            total, replica.weight / weights, load_factor
        ):
            best, most = replica, score
    # The bounds add up to more than all load, so one has room; this guards against rounding alone.
    return replicas[0] if best is None else best


def load_bound(total: float, share: float, load_factor: float) -> int:
    """How much load a replica with a `share` of all weight may have, one more request included."""
    return math.ceil(load_factor * (total + 1) * share)


def _score(key: int, seed: int) -> int:
    # Two rounds of multiply and shift: enough to spread 64 bits, and cheap in Python.
    mixed = ((key ^ seed) * 0x9E3779B97F4A7C15) & _MASK
    mixed = ((mixed ^ (mixed >> 32)) * 0xD6E8FEB86659FD93) & _MASK
    return mixed ^ (mixed >> 32)
