"""Identical requests share one call: who comes late, who leaves early and who is slow get what they should."""

import asyncio

import pytest

from citadel_llm.integration.cache.single_flight import Aborted, Flights
from redis_server import until

PIECES = [b"one ", b"two ", b"three"]


class Call:
    """A call whose pieces come when the test says."""

    def __init__(self):
        self.began = 0
        self.cancelled = False
        self.gates = asyncio.Queue()

    async def __call__(self, flight):
        self.began += 1
        try:
            flight.start("head")
            while (piece := await self.gates.get()) is not None:
                if isinstance(piece, Exception):
                    raise piece
                await flight.put(piece)
        except asyncio.CancelledError:
            self.cancelled = True
            raise

    def give(self, *pieces):
        for piece in pieces:
            self.gates.put_nowait(piece)


async def read_all(reader):
    with reader:
        head, pieces = await reader.head(), []
        while piece := await reader.read():
            pieces.append(piece)
        return head, pieces


@pytest.fixture
def flights():
    return Flights(keep_bytes=1000)


@pytest.fixture
async def call():
    return Call()


async def test_everyone_gets_the_same_pieces_of_one_call_also_who_joins_in_the_middle(flights, call):
    flight = flights.begin("key", call)
    first = asyncio.create_task(read_all(flight.reader()))
    call.give(PIECES[0])
    await until(lambda: flight.pieces, "a piece")
    others = [asyncio.create_task(read_all(flights.get("key").reader())) for _ in range(5)]
    call.give(*PIECES[1:], None)
    assert await asyncio.gather(first, *others) == [("head", PIECES)] * 6
    assert call.began == 1
    assert flight.whole
    assert flight.pieces == PIECES


async def test_after_its_end_a_flight_is_joined_no_more(flights, call):
    flight = flights.begin("key", call)
    task = asyncio.create_task(read_all(flight.reader()))
    call.give(None)
    await task
    assert flights.get("key") is None
    assert len(flights) == 0


async def test_one_that_leaves_does_not_disturb_the_others_be_it_the_first(flights, call):
    flight = flights.begin("key", call)
    leader, follower = flight.reader(), flight.reader()
    call.give(PIECES[0])
    assert await leader.read() == PIECES[0]
    leader.close()
    task = asyncio.create_task(read_all(follower))
    call.give(*PIECES[1:], None)
    assert await task == ("head", PIECES)
    assert not call.cancelled


async def test_the_last_to_leave_ends_the_call(flights, call):
    flight = flights.begin("key", call)
    readers = [flight.reader(), flight.reader()]
    await readers[0].head()
    readers[0].close()
    assert not call.cancelled
    readers[1].close()
    assert flights.get("key") is None  # who comes now begins anew
    await until(lambda: call.cancelled, "the call is cancelled")


async def test_a_failure_comes_to_everyone_after_the_pieces_before_it(flights, call):
    flight = flights.begin("key", call)
    readers = [flight.reader(), flight.reader()]
    call.give(PIECES[0], ValueError("broke off"))
    for reader in readers:
        with reader:
            assert await reader.read() == PIECES[0]
            with pytest.raises(ValueError, match="broke off"):
                await reader.read()


async def test_a_call_that_ends_without_an_answer_is_a_failure(flights):
    async def nothing(flight):
        pass

    with flights.begin("key", nothing).reader() as reader, pytest.raises(Aborted):
        await reader.head()


async def test_a_call_that_is_cancelled_from_outside_does_not_cancel_its_readers(flights, call):
    flight = flights.begin("key", call)
    with flight.reader() as reader:
        await reader.head()
        flight._task.cancel()
        with pytest.raises(Aborted):
            await reader.read()


async def test_without_a_key_nobody_joins(flights, call):
    flight = flights.begin(None, call)
    assert len(flights) == 0
    task = asyncio.create_task(read_all(flight.reader()))
    call.give(*PIECES, None)
    assert await task == ("head", PIECES)


async def test_a_newer_flight_of_a_key_outlives_the_end_of_an_older_one(flights, call):
    older, newer = flights.begin("key", call), Call()
    reader = older.reader()
    flight = flights.begin("key", newer)
    with flight.reader():
        call.give(None)
        await read_all(reader)
        assert flights.get("key") is flight


async def test_memory_is_bounded_and_the_call_waits_for_the_slowest(flights, call):
    flight = flights.begin("key", call)
    fast, slow = flight.reader(), flight.reader()
    pieces = [bytes([n]) * 400 for n in range(6)]
    call.give(*pieces, None)
    for piece in pieces[:3]:
        assert await fast.read() == piece
    await asyncio.sleep(0)
    assert flight._held_bytes <= 1000 + 400
    assert flights.get("key") is None, "an answer too large to keep whole is joined by nobody"
    assert not flight.done

    waiting = asyncio.create_task(fast.read())
    assert [await slow.read() for _ in range(6)] == pieces
    assert await waiting == pieces[3]
    assert [await fast.read(), await fast.read(), await fast.read()] == [pieces[4], pieces[5], b""]
    assert not flight.whole


async def test_a_slow_one_that_leaves_lets_the_others_go_on(flights, call):
    flight = flights.begin("key", call)
    fast, slow = flight.reader(), flight.reader()
    pieces = [bytes([n]) * 400 for n in range(6)]
    call.give(*pieces, None)
    task = asyncio.create_task(read_all(fast))
    await until(lambda: not flight.whole, "more than is kept has come")
    assert not task.done()
    slow.close()
    assert await asyncio.wait_for(task, 5) == ("head", pieces)
