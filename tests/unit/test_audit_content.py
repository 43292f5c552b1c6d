"""What the audit log holds of prompts and answers, and what is taken out of them first."""

import hashlib
import hmac
import json

import pytest

from callers import BODY, STREAM_BODY
from citadel_llm.api.audit.content import Content, Kept
from citadel_llm.api.audit.redaction import Redaction
from citadel_llm.utils.config import Audit, ConfigError

EVENT = b'data: {"choices": [{"index": 0, "delta": {"content": "%b"}}]}\n\n'


class Call:
    headers, client, exchange, before_end = [], None, None, None

    def __init__(self):
        self.sent = []

    async def whole(self, status, headers, body):
        self.sent.append(body)

    async def start(self, status, headers):
        pass

    async def piece(self, data):
        self.sent.append(data)

    async def end(self, data=b""):
        self.sent.append(data)


async def kept(content, request, *pieces):
    call = Call()
    found = content.keep(call, request)
    await found.start(200, [])
    for piece in pieces:
        await found.piece(piece)
    await found.end()
    assert b"".join(call.sent) == b"".join(pieces), "the caller gets what the engine said"
    return content.of(found)


@pytest.mark.parametrize(
    ("text", "wanted"),
    [
        ("my key sk-abcdefghijklmnop1234 here", "my key [key] here"),
        ("ghp_0123456789abcdefghijABCDEFGHIJ", "[key]"),
        ("AKIAIOSFODNN7EXAMPLE", "[key]"),
        ("Authorization: Bearer abc.def-123456", "Authorization: [token]"),
        ("eyJhbGciOiJIUzI1NiJ9.eyJzdWIiOiIxIn0.c2lnbmF0dXJl", "[token]"),
        ("password: hunter2hunter2", "[key]"),
        ('"api_key": "0123456789"', '"[key]"'),
        ("-----BEGIN RSA PRIVATE KEY-----\nMIIE\nabc\n-----END RSA PRIVATE KEY-----", "[key]"),
        ("-----BEGIN PRIVATE KEY-----\nMIIE it ends here", "[key]"),
        ("write to Anna.B+x@mail.example.org.", "write to [email]."),
        ("card 4111 1111 1111 1111, please", "card [card], please"),
        ("card 4111-1111-1111-1112", "card 4111-1111-1111-1112"),  # no card: its check digit is wrong
        ("call +49 170 1234567 now", "call [phone] now"),
        ("call (030) 1234 5678 or 555-123-4567", "call [phone] or [phone]"),
        ("in 2026, 1234567 requests at 10.12.13.14, 3.14", "in 2026, 1234567 requests at 10.12.13.14, 3.14"),
        ("2026-01-31T08:00:00Z and 0.25 ms", "2026-01-31T08:00:00Z and 0.25 ms"),
    ],
)  # fmt: skip
def test_what_nobody_should_find_is_taken_out_and_the_rest_stays(text, wanted):
    assert Redaction().text(text) == wanted


def test_a_sites_own_patterns_are_taken_out_too():
    assert Redaction([r"PRJ-\d+"]).text("about PRJ-1234") == "about [redacted]"


def test_a_pattern_that_is_none_is_told(tmp_path):
    with pytest.raises(ValueError, match="is no pattern"):
        Audit(redact=["("])


async def test_a_prompt_and_a_whole_answer_are_kept_redacted_as_the_json_that_they_are():
    content = Content(Audit(content="full"))
    request = json.dumps({"model": "phi3", "messages": [{"role": "user", "content": "I am a\u0040b.example"}]}).encode()
    found = await kept(content, request, b'{"choices": [{"message": {"content": "Hello a@b.example"}}]}')
    assert found["request"]["messages"][0]["content"] == "I am [email]"
    assert found["answer"] == {"choices": [{"message": {"content": "Hello [email]"}}]}
    assert "truncated" not in found


async def test_a_key_that_a_stream_says_in_pieces_is_taken_out_as_one():
    content = Content(Audit(content="full"))
    pieces = (EVENT % b"take sk-abcdefgh", EVENT % b"ijklmnop1234 it", b"data: [DONE]\n\n")
    found = await kept(content, STREAM_BODY, *pieces)
    assert found["answer"] == "take [key] it"


@pytest.mark.parametrize(
    ("event", "wanted"),
    [
        ({"choices": [{"text": "Hel"}]}, "Hel"),
        ({"type": "response.output_text.delta", "delta": "Hel"}, "Hel"),
        ({"type": "content_block_delta", "delta": {"type": "text_delta", "text": "Hel"}}, "Hel"),
        ({"choices": [{"delta": {"tool_calls": [{"function": {"name": "f", "arguments": "{}"}}]}}]}, "f{}"),
        ({"error": {"message": "no"}}, '{"message":"no"}'),
        ({"choices": None, "delta": 1}, ""),
    ],
)
async def test_the_text_of_each_kind_of_stream_is_found(event, wanted):
    found = await kept(Content(Audit(content="full")), BODY, b"data: " + json.dumps(event).encode() + b"\n\n")
    assert found["answer"] == wanted


async def test_what_is_longer_than_the_bound_is_cut_after_it_was_redacted_and_says_so():
    content = Content(Audit(content="full", content_bytes=256))
    found = await kept(content, BODY, json.dumps({"text": "a@b.example " * 100}).encode())
    assert len(found["answer"]) <= 256
    assert "b.example" not in found["answer"]
    assert found["truncated"] is True


async def test_a_key_at_the_edge_of_what_is_looked_at_is_not_kept_in_part():
    for length in range(4300, 4360):
        content = Content(Audit(content="full", content_bytes=256))
        request = json.dumps({"text": "a@b.example " * 50 + "." * (length - 600) + "sk-abcdefghijklmnop" * 20})
        found = await kept(content, request.encode(), b"{}")
        assert "sk-" not in found["request"]
        assert found["truncated"] is True


async def test_a_long_prompt_costs_no_more_than_what_is_kept_of_it():
    content = Content(Audit(content="full", content_bytes=1024))
    looked_at = []
    redact = content._redaction.text
    content._redaction.text = lambda text: looked_at.append(len(text)) or redact(text)
    await kept(content, json.dumps({"messages": [{"content": "x" * 1000}] * 5000}).encode(), b"{}")
    assert sum(looked_at) < 8000


async def test_digests_are_keyed(tmp_path):
    key = tmp_path / "key"
    key.write_text("0123456789abcdef\n")
    content = Content(Audit(content="hash", hash_key_file=str(key)))
    found = await kept(content, BODY, b"one", b"two")
    assert found == {
        "request_hmac_sha256": hmac.new(b"0123456789abcdef", BODY, hashlib.sha256).hexdigest(),
        "answer_hmac_sha256": hmac.new(b"0123456789abcdef", b"onetwo", hashlib.sha256).hexdigest(),
    }


def test_a_key_that_cannot_be_read_or_is_short_is_told(tmp_path):
    path = tmp_path / "key"
    with pytest.raises(ConfigError, match="can't be read"):
        Content(Audit(content="hash", hash_key_file=str(path)))
    path.write_text("short")
    with pytest.raises(ConfigError, match="16 bytes"):
        Content(Audit(content="hash", hash_key_file=str(path)))
    with pytest.raises(ValueError, match="hash_key_file"):
        Audit(content="hash")


def test_a_kept_call_is_a_call():
    assert {"headers", "client", "exchange", "before_end"} <= set(vars(Kept(Call(), b"", None)))
