"""Does the time in which a wrong key is refused tell anything of a right one? `python tests/performance/key_timing.py`

Welch's t between the times of two classes of wrong keys, interleaved at random: those that share all but their
last eight characters with a real key, and those that share nothing with it; none comes twice, for what was looked up
before is found in the processor's cache. |t| stays below 4.5 where the two cannot be told
apart (as dudect has it: https://eprint.iacr.org/2016/1123). Exit status 1 where it does not. Not a test: a machine's
noise may cross the line once; repeat it then.
"""

from __future__ import annotations

import argparse
import asyncio
import math
import random
import statistics
import string
import sys
from time import perf_counter_ns
from types import SimpleNamespace

from citadel_llm.api.errors import ApiError
from citadel_llm.api.identity.directory import assemble
from citadel_llm.api.middleware.auth import Authenticator
from citadel_llm.integration.database.identity import Identities, KeyRow, UserRow
from citadel_llm.utils.keys import digest_of, new_key, pepper_of

_KEYS = 10_000
_LETTERS = string.ascii_letters + string.digits + "-_"


def measured(samples: int, rng: random.Random) -> float:
    """Welch's t of the two classes, without the slowest tenth of each."""
    pepper = pepper_of(new_key())
    keys = [new_key() for _ in range(_KEYS)]
    rows = [KeyRow(digest_of(key.encode(), pepper), str(n), "u", "k", None, None, None) for n, key in enumerate(keys)]
    held = Identities(1, 0.0, [UserRow("u", "u", None, ["developer"])], [], rows, [], [])
    directory = asyncio.run(assemble(held))
    callers = Authenticator(keeper=SimpleNamespace(directory=directory), pepper=pepper)
    real = keys[0]
    # All are made beforehand, and in the same way, so that the two differ in nothing but what they are.
    given: list[tuple[str, bytes]] = []
    for _ in range(samples):
        near = real[:-8] + "".join(rng.choices(_LETTERS, k=8))
        far = "sk-" + "".join(rng.choices(_LETTERS, k=len(real) - 3))
        kind, key = rng.choice((("near", near), ("far", far)))
        given.append((kind, b"Bearer " + key.encode()))
    times: dict[str, list[int]] = {"near": [], "far": []}
    for kind, header in given:
        began = perf_counter_ns()
        try:
            callers.identify(header)
        except ApiError:
            took = perf_counter_ns() - began
        else:
            raise AssertionError("a wrong key was taken")
        times[kind].append(took)
    near_times, far_times = (sorted(found)[: len(found) * 9 // 10] for found in (times["near"], times["far"]))
    print(
        f"refused in {statistics.mean(near_times) / 1e3:.3f} µs near a key, {statistics.mean(far_times) / 1e3:.3f} µs "
        f"far from any ({len(near_times)} and {len(far_times)} samples, {_KEYS} keys)"
    )
    spread = statistics.variance(near_times) / len(near_times) + statistics.variance(far_times) / len(far_times)
    return (statistics.mean(near_times) - statistics.mean(far_times)) / math.sqrt(spread)


def main() -> int:
    """Measure and tell."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--samples", type=int, default=200_000)
    parser.add_argument("--limit", type=float, default=4.5, help="of |t|")
    arguments = parser.parse_args()
    t = measured(arguments.samples, random.Random(7))
    print(f"t = {t:+.2f}, limit {arguments.limit:g}")
    return int(abs(t) > arguments.limit)


if __name__ == "__main__":
    sys.exit(main())
