"""What was used before the table began to count: asked for until the table has it."""

import contextlib
from time import monotonic_ns, time

import pytest

from citadel_llm.api.identity.principal import Principal
from citadel_llm.api.limits import budget, catchup
from citadel_llm.api.limits import table as tables
from citadel_llm.api.limits.bounds import Bounds
from citadel_llm.api.limits.plan import make_plan
from citadel_llm.api.limits.table import BUDGET, Table, digest_of
from citadel_llm.integration.database.pool import Database, Options
from citadel_llm.integration.database.target import Target
from citadel_llm.utils.config import Limits
from waiting import until

ALICE = digest_of("key", "alice")


@contextlib.contextmanager
def locked(table):
    assert table.lock()
    yield
    table.unlock()


@contextlib.contextmanager
def full(table):
    """The one record that could be alice's is another's, whose minute is not over."""
    table.record((1, ALICE[1]), monotonic_ns(), time())
    index = table.entry_of(table.find((1, ALICE[1])))
    yield
    table.words[index] = 0


@pytest.mark.parametrize("trouble", [locked, full])
async def test_what_could_not_be_written_into_the_table_is_not_caught_up_and_is_tried_again(
    tmp_path, monkeypatch, trouble
):
    monkeypatch.setattr(tables, "_PROBES", 1)
    monkeypatch.setattr(catchup, "_LOCK_TRIES", 3)
    monkeypatch.setattr(catchup, "_AGAIN_S", 0.01)
    bounds = {("key", "alice"): Bounds(requests_per_day=10)}
    plan = make_plan(Principal("alice", "alice"), "phi3", bounds, Limits())
    # Nothing is summed up for a key of the file: it is caught up with without asking.
    database = Database(Target("127.0.0.1", 1, "d", "u", "p"), Options(), on_change=lambda *_: None)
    table, other = Table(str(tmp_path / "limits")), Table(str(tmp_path / "limits"))
    catch_up = catchup.CatchUp(database)
    with trouble(other):
        await catch_up.ensure(table, plan)

    async def caught_up():
        await catch_up.ensure(table, plan)
        at = table.find(ALICE)
        return at and not budget.behind(table.words, at + BUDGET, budget.Calendar().at(time()))

    await until(caught_up, 5, what="the table has what was used")
    assert table.holds(plan.entries[0].at, ALICE)
    for one in (table, other):
        one.close()
