"""A thousand requests of every kind over all models, through the gateway, with real engines: nobody is left without.

Run inside the lab: `bin/lab run pytest tests/integration/test_load.py`.
"""

import collections
import concurrent.futures
import json
import statistics
import time

import httpx2
import openai
import pytest

pytestmark = pytest.mark.lab

REQUESTS = 1000
CALLERS = 16
DEADLINE_S = 120.0  # for each request
ALL_WITHIN_S = 900.0
HELLO = [{"role": "user", "content": "Hello"}]
TOKENS = 8


class Asker:
    """Asks for one thing in each way that callers have; each way raises where the answer is not whole."""

    def __init__(self, credentials):
        url, key = credentials["gateway_url"], credentials["admin_key"]
        self._client = openai.OpenAI(base_url=f"{url}/v1", api_key=key, timeout=DEADLINE_S, max_retries=0)
        self._raw = httpx2.Client(base_url=url, headers={"x-api-key": key}, timeout=DEADLINE_S)

    def close(self):
        self._client.close()
        self._raw.close()

    def chat(self, model):
        answer = self._client.chat.completions.create(model=model, messages=HELLO, max_tokens=TOKENS)
        assert answer.choices[0].finish_reason, answer

    def chat_stream(self, model):
        with self._client.chat.completions.create(
            model=model, messages=HELLO, max_tokens=TOKENS, stream=True, stream_options={"include_usage": True}
        ) as stream:
            pieces = list(stream)
        assert [piece for piece in pieces if piece.choices and piece.choices[0].finish_reason], "cut off"
        assert pieces[-1].usage.completion_tokens > 0

    def completion(self, model):
        answer = self._client.completions.create(model=model, prompt="Once", max_tokens=TOKENS)
        assert answer.choices[0].finish_reason, answer

    def completion_stream(self, model):
        with self._client.completions.create(model=model, prompt="Once", max_tokens=TOKENS, stream=True) as stream:
            pieces = list(stream)
        assert [piece for piece in pieces if piece.choices and piece.choices[0].finish_reason], "cut off"

    def response(self, model):
        answer = self._client.responses.create(model=model, input="Once", max_output_tokens=TOKENS)
        assert answer.status in ("completed", "incomplete"), answer

    def response_stream(self, model):
        with self._client.responses.create(
            model=model, input="Once", max_output_tokens=TOKENS, stream=True
        ) as stream:  # fmt: skip
            last = list(stream)[-1]
        assert last.type in ("response.completed", "response.incomplete"), last

    def message(self, model):
        answer = self._raw.post("/v1/messages", json=self._message(model))
        assert (answer.status_code, answer.json()["type"]) == (200, "message"), answer.text

    def message_stream(self, model):
        answer = self._raw.post("/v1/messages", json={**self._message(model), "stream": True})
        names = [line.removeprefix("event: ") for line in answer.text.splitlines() if line.startswith("event: ")]
        assert (answer.status_code, names[-1:]) == (200, ["message_stop"]), answer.text

    def embedding(self, model):
        answer = self._client.embeddings.create(model=model, input=["A man is eating food.", "Somebody has lunch."])
        assert [entry.index for entry in answer.data] == [0, 1]

    @staticmethod
    def _message(model):
        return {"model": model, "max_tokens": TOKENS, "messages": HELLO}


WRITING = ["chat", "chat_stream", "completion", "completion_stream", "response", "response_stream", "message",
           "message_stream"]  # fmt: skip


@pytest.fixture
def asker(credentials):
    made = Asker(credentials)
    yield made
    made.close()


def test_a_thousand_mixed_requests_are_all_answered_and_more_than_99_of_100_well(
    asker, kinds, gateway_metric, capsys
):  # fmt: skip
    pairs = [(way, model) for way in WRITING for model in kinds["generate"]]
    pairs += [("embedding", model) for model in kinds["embedding"]]
    work = [pairs[number % len(pairs)] for number in range(REQUESTS)]

    def ask(one):
        way, model = one
        began = time.monotonic()
        failure = None
        try:
            getattr(asker, way)(model)
        except (openai.OpenAIError, httpx2.HTTPError, AssertionError, LookupError, json.JSONDecodeError) as error:
            failure = f"{way} of {model}: {error!r}"[:300]
        return way, time.monotonic() - began, failure

    began = time.monotonic()
    with concurrent.futures.ThreadPoolExecutor(CALLERS) as pool:
        futures = [pool.submit(ask, one) for one in work]
        done, hanging = concurrent.futures.wait(futures, timeout=ALL_WITHIN_S)
        for future in hanging:
            future.cancel()
        assert not hanging, f"{len(hanging)} of {REQUESTS} were not answered within {ALL_WITHIN_S} s"
    took_s = time.monotonic() - began

    outcomes = [future.result() for future in done]
    failures = [failure for _, _, failure in outcomes if failure]
    by_way = collections.defaultdict(list)
    for way, seconds, _ in outcomes:
        by_way[way].append(seconds)
    with capsys.disabled():
        print(f"\n{REQUESTS} requests in {took_s:.1f} s ({REQUESTS / took_s:.1f}/s), {len(failures)} failed")
        for way, times in by_way.items():
            p99 = statistics.quantiles(times, n=100, method="inclusive")[98]
            print(f"  {way:18} {len(times):4}  p50 {statistics.median(times):6.3f} s  p99 {p99:6.3f} s")
    assert len(outcomes) == REQUESTS
    assert max(seconds for _, seconds, _ in outcomes) < DEADLINE_S
    assert len(failures) < REQUESTS / 100, failures
    for model in [*kinds["generate"], *kinds["embedding"]]:
        settled = time.monotonic() + 5  # the gauge is set once a second
        while gateway_metric("citadel_gateway_in_flight", model):
            assert time.monotonic() < settled, f"the gateway counts requests at {model} that nobody waits for"
            time.sleep(0.1)
