"""Headers that mean one thing to one reader and another to the next: here each has one meaning, or is refused."""

import pytest

from callers import BODY, CHAT_PATH, KEY
from gateways import KEYS

BOB = KEYS["bob"]


def bearer(key):
    return (b"authorization", b"Bearer " + key.encode())


def api_key(key):
    return (b"x-api-key", key.encode())


# On the hot path and through FastAPI.
PLACES = [("POST", CHAT_PATH, BODY), ("GET", "/v1/models", None), ("GET", "/admin/v1/users", None)]


async def status(gateway, place, *headers):
    method, path, body = place
    return (await gateway.ask(method, path, body, key=None, headers=headers)).status


@pytest.mark.parametrize("place", PLACES, ids=lambda place: place[1])
@pytest.mark.parametrize(
    "headers",
    [
        [bearer(KEY), bearer(KEY)],
        [bearer(KEY), bearer("sk-unknown")],
        [bearer("sk-unknown"), bearer(KEY)],
        [api_key(KEY), api_key(KEY)],
        [api_key("sk-unknown"), api_key(KEY)],
        [bearer(f"{KEY}, Bearer {KEY}")],
        [bearer("sk-unknown"), api_key(KEY)],
        [api_key(KEY), bearer("sk-unknown")],
    ],
)
async def test_of_two_keys_none_opens(gateway, place, headers):
    assert await status(gateway, place, *headers) == 401


@pytest.mark.parametrize("headers", [[bearer(KEY), api_key("sk-x")], [api_key("sk-x"), bearer(KEY)]])
async def test_authorization_decides_whatever_the_order(gateway, headers):
    assert await status(gateway, PLACES[0], *headers) == 200
    assert await status(gateway, PLACES[1], *headers) == 200


@pytest.mark.parametrize("place", PLACES[:2], ids=lambda place: place[1])
@pytest.mark.parametrize(
    ("name", "value"),
    [
        (b"authorization", b"Bearer " + KEY.encode() + b"x"), (b"authorization", b"Bearer" + KEY.encode()),
        (b"authorization", b"Basic " + KEY.encode()), (b"authorization", KEY.encode()), (b"authorization", b""),
        (b"authorization", b"Bearer " + KEY.encode() + b"," + KEY.encode()), (b"authorization", b"Bearer \xff\xfe"),
        (b"authorization", b"Bearer " + b"k" * 513), (b"authorization", b"Digest " + KEY.encode()),
        (b"x-api-key", b"Bearer " + KEY.encode()), (b"x-api-key", b""),
    ],
)  # fmt: skip
async def test_what_is_nearly_a_key_is_none(gateway, place, name, value):
    assert await status(gateway, place, (name, value)) == 401


@pytest.mark.parametrize(
    "lines",
    [
        b"authorization: Bearer sk-unknown\r\n authorization: Bearer " + KEY.encode(),  # obs-fold
        b"authorization: Bearer\r\n\t" + KEY.encode(),
        b"authorization : Bearer " + KEY.encode(),
        b"x-a: b\rauthorization: Bearer " + KEY.encode(),
        b"x-a: b\x00\r\nauthorization: Bearer " + KEY.encode(),
        b"authorization: Bearer " + KEY.encode()[:4] + b"\x00" + KEY.encode()[4:],
        b"authorization: Bearer " + b"k" * 100_000,
    ],
)
async def test_lines_that_two_readers_would_read_differently_open_nothing(gateway, lines):
    async with gateway.caller() as caller:
        await caller.send(b"GET /v1/models/phi3 HTTP/1.1\r\nhost: g\r\n" + lines + b"\r\n\r\n")
        answer = await caller.answer()
        assert answer.status in {400, 401, 431}, answer


async def test_a_second_request_inside_a_header_is_not_one(gateway):
    inner = b"GET /admin/v1/users HTTP/1.1\r\nauthorization: Bearer " + KEY.encode()
    escaped = inner.replace(b"\r\n", b"%0d%0a")
    answer = await gateway.get("/v1/models", headers=[(b"x-request-id", escaped)])
    assert answer.status == 200
    assert "%0d" not in answer.headers["x-request-id"]
    assert len(gateway.lines("access")) <= 1
