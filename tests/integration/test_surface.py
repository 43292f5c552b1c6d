"""Every endpoint through the running gateway, with the official client, against real engines.

Run inside the lab, after the site was played: `bin/lab run pytest tests/integration/test_surface.py`.
"""

import json
import math
import urllib.request
from pathlib import Path

import openai
import psycopg
import pytest
from integration.metrics import wait_for

from citadel_llm.evaluation.engine import Engine, choose
from citadel_llm.evaluation.questions import load_questions

pytestmark = pytest.mark.lab
REPO = Path(__file__).resolve().parents[2]

TALK = [{"role": "user", "content": "What is a citadel?"}]


@pytest.fixture(scope="module")
def model(kinds):
    return kinds["generate"][-1]


@pytest.fixture(scope="module")
def post(credentials):
    """`post(path, body)`: status and JSON of an endpoint that the official client has not."""

    def posted(path, body, header="authorization"):
        key = credentials["admin_key"]
        headers = {"content-type": "application/json", header: key if header == "x-api-key" else f"Bearer {key}"}
        request = urllib.request.Request(credentials["gateway_url"] + path, json.dumps(body).encode(), headers)
        try:
            with urllib.request.urlopen(request, timeout=60) as answer:
                return answer.status, answer.read()
        except urllib.error.HTTPError as refused:
            return refused.code, refused.read()

    return posted


def test_a_response_comes_whole(client, model):
    response = client.responses.create(model=model, input="Once", max_output_tokens=8)
    assert response.object == "response"
    assert response.output_text
    assert (response.usage.output_tokens, response.status) == (8, "incomplete")


def test_a_response_comes_as_a_stream_whose_pieces_are_its_text(client, model):
    events = list(client.responses.create(model=model, input="Once", max_output_tokens=8, stream=True))
    assert events[0].type == "response.created"
    assert events[-1].type == "response.completed"
    said = "".join(event.delta for event in events if event.type == "response.output_text.delta")
    assert said == events[-1].response.output_text


def test_a_response_is_not_to_be_found_later(client):
    with pytest.raises(openai.NotFoundError) as refused:
        client.responses.retrieve("resp_1")
    assert refused.value.code == "response_not_found"
    with pytest.raises(openai.NotFoundError):
        client.responses.cancel("resp_1")


def test_a_response_follows_another_and_a_conversation_goes_on(client):
    """The real engine takes what it said before as input: plain, streamed, from a response and from a conversation."""
    talk = client.conversations.create(items=[{"type": "message", "role": "user", "content": "Once"}])
    try:
        first = client.responses.create(model="phi3", input="One", max_output_tokens=8)
        assert first.store is True
        second = client.responses.create(model="phi3", input="Two", max_output_tokens=8, previous_response_id=first.id)
        assert second.previous_response_id == first.id
        assert second.usage.input_tokens > first.usage.input_tokens
        assert client.responses.retrieve(second.id).output_text == second.output_text
        for stream in (False, True):
            answer = client.responses.create(
                model="phi3", input="Three", max_output_tokens=8, conversation=talk.id, stream=stream
            )
            whole = list(answer)[-1].response if stream else answer
            assert (whole.store, whole.conversation.id) == (True, talk.id)
        roles = [item.role for item in client.conversations.items.list(talk.id, order="asc")]
        assert roles == ["user", "user", "assistant", "user", "assistant"]
        for kept in (second.id, first.id):
            client.responses.delete(kept)
    finally:
        client.conversations.delete(talk.id)


def test_embeddings_tell_related_texts_from_unrelated_ones(client, kinds):
    texts = ["A man is eating food.", "A man is eating a piece of bread.", "A cheetah is running behind its prey."]
    assert kinds["embedding"], "the site serves no embedding model"
    for name in kinds["embedding"]:
        answer = client.embeddings.create(model=name, input=texts)
        first, second, third = (entry.embedding for entry in answer.data)
        assert math.sumprod(first, second) > math.sumprod(first, third) + 0.3
        assert answer.usage.prompt_tokens > 10


def test_an_embedding_model_refuses_to_chat_and_names_the_models_that_do(client, kinds):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=kinds["embedding"][0], messages=TALK)
    assert (refused.value.code, refused.value.param) == ("unsupported_model", "model")
    assert all(f"`{name}`" in refused.value.message for name in kinds["generate"])


def test_a_limit_beyond_the_context_is_refused_by_the_gateway(client, model):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=model, messages=TALK, max_tokens=10**6)
    assert (refused.value.code, refused.value.param) == ("context_length_exceeded", "max_tokens")


def test_a_prompt_beyond_the_context_is_refused_with_the_same_code(client, model):
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=model, messages=[{"role": "user", "content": "word " * 40_000}])
    assert refused.value.code == "context_length_exceeded"


def test_a_request_without_a_temperature_is_answered_with_the_models_own(client, model):
    def said(**given):
        options = {"model": model, "prompt": "Once", "max_tokens": 32, "seed": 7, **given}
        return client.completions.create(**options).choices[0].text

    assert said() == said(temperature=0.7)
    assert said() != said(temperature=0)


@pytest.mark.parametrize("header", ["authorization", "x-api-key"])
def test_a_message_is_answered_in_anthropics_shape(post, model, header):
    status, body = post("/v1/messages", {"model": model, "max_tokens": 8, "messages": TALK}, header)
    answer = json.loads(body)
    assert (status, answer["type"], answer["role"]) == (200, "message", "assistant")
    assert answer["usage"]["output_tokens"] == 8


def test_a_message_comes_as_a_stream(post, model):
    status, body = post("/v1/messages", {"model": model, "max_tokens": 8, "messages": TALK, "stream": True})
    names = [line.removeprefix(b"event: ") for line in body.splitlines() if line.startswith(b"event: ")]
    assert (status, names[0], names[-1]) == (200, b"message_start", b"message_stop")


def test_a_messages_tokens_are_counted(post, model):
    status, body = post("/v1/messages/count_tokens", {"model": model, "messages": TALK})
    assert status == 200
    assert json.loads(body)["input_tokens"] > 3


def test_tokens_lead_back_to_their_text(post, kinds):
    for name in [*kinds["generate"], *kinds["embedding"]]:
        status, body = post("/tokenize", {"model": name, "prompt": "hello world", "add_special_tokens": False})
        assert status == 200, body
        status, text = post("/detokenize", {"model": name, "tokens": json.loads(body)["tokens"]})
        assert json.loads(text)["prompt"].strip() == "hello world"


@pytest.mark.parametrize(
    "path", ["/v1/chat/completions", "/v1/completions", "/v1/responses", "/v1/messages", "/v1/embeddings", "/tokenize"]
)
@pytest.mark.parametrize(
    "wrong",
    [
        {"max_tokens": "8"},
        {"stream": "yes"},
        {"messages": 5, "prompt": {"a": 1}, "input": {"a": 1}},
        {"messages": [[]], "prompt": [[["a"]]], "input": [[["a"]]]},
        {"messages": [{"role": "nobody", "content": {}}], "prompt": [-1], "input": [-1]},
        {"temperature": "hot", "add_special_tokens": "perhaps", "messages": TALK, "prompt": "a", "input": 1},
    ],
)
def test_a_wrong_request_is_the_callers_error_at_every_endpoint(post, kinds, path, wrong):
    name = kinds["embedding" if path == "/v1/embeddings" else "generate"][0]
    status, body = post(path, {"model": name, **wrong})
    assert 400 <= status < 500, (status, body)
    assert json.loads(body)["error"]["message"]


# -- what the gateway does not know and the engine does ------------------------------------------------------------

WEATHER = {
    "type": "object",
    "properties": {"unit": {"enum": ["celsius", "fahrenheit"]}, "indoors": {"type": "boolean"}},
    "required": ["unit", "indoors"],
    "additionalProperties": False,
}
# The lab's models say anything that a grammar lets them, spaces between the tokens of JSON without end included: so
# several are asked, and what counts is each answer that came to its end.
SEEDS = range(8)
LENGTH = {"max_tokens": 600, "temperature": 1.0}
FRESH = {"cache-control": "no-store"}  # from the engine, where the gateway keeps answers


def is_weather(text):
    said = json.loads(text)
    return (
        set(said) == {"unit", "indoors"}
        and said["unit"] in ("celsius", "fahrenheit")
        and isinstance(said["indoors"], bool)
    )


def test_a_named_tool_is_called(client, model):
    """Its arguments are JSON; that they fit its schema, a tool has to ask for by `strict`."""
    tool = {"type": "function", "function": {"name": "weather", "description": "Tells it", "parameters": WEATHER}}
    ended = 0
    for seed in SEEDS:
        answer = client.chat.completions.create(
            model=model, messages=TALK, tools=[tool], seed=seed, extra_headers=FRESH, **LENGTH,
            tool_choice={"type": "function", "function": {"name": "weather"}},
        )  # fmt: skip
        (call,) = answer.choices[0].message.tool_calls
        assert (call.type, call.function.name) == ("function", "weather")
        assert call.id
        if answer.choices[0].finish_reason != "length":
            json.loads(call.function.arguments)
            ended += 1
    assert ended, "no call came to its end"


def test_a_named_tools_call_comes_as_a_stream_too(client, model):
    tool = {"type": "function", "function": {"name": "weather", "parameters": WEATHER}}
    ended = 0
    for seed in SEEDS:
        pieces = list(client.chat.completions.create(
            model=model, messages=TALK, tools=[tool], seed=seed, stream=True, extra_headers=FRESH, **LENGTH,
            tool_choice={"type": "function", "function": {"name": "weather"}},
        ))  # fmt: skip
        choices = [piece.choices[0] for piece in pieces if piece.choices]
        calls = [call for choice in choices for call in choice.delta.tool_calls or ()]
        assert {call.function.name for call in calls if call.function.name} == {"weather"}
        if choices[-1].finish_reason != "length":
            json.loads("".join(call.function.arguments or "" for call in calls))
            ended += 1
    assert ended, "no call came to its end"


def test_a_strict_tool_is_called_as_its_schema_wants(client, model):
    function = {"name": "weather", "parameters": WEATHER, "strict": True}
    for seed in SEEDS:
        choice = client.chat.completions.create(
            model=model, messages=TALK, tools=[{"type": "function", "function": function}], tool_choice="required",
            seed=seed, extra_headers=FRESH, **LENGTH,
        ).choices[0]  # fmt: skip
        if choice.message.tool_calls:
            assert all(is_weather(call.function.arguments) for call in choice.message.tool_calls)
        else:  # cut off amid the call: the grammar allows as much white space as the tiny model likes
            assert choice.finish_reason == "length"
            assert choice.message.content.replace(" ", "").startswith('<tool_call>{"name":"weather"')


def test_a_schema_for_the_answer_is_kept_to(client, model):
    wanted = {"type": "json_schema", "json_schema": {"name": "weather", "schema": WEATHER, "strict": True}}
    ended = 0
    for seed in SEEDS:
        answer = client.chat.completions.create(
            model=model, messages=TALK, response_format=wanted, seed=seed, extra_headers=FRESH, **LENGTH
        )
        if answer.choices[0].finish_reason == "stop":
            assert is_weather(answer.choices[0].message.content), answer
            ended += 1
    assert ended, "no answer came to its end"


def test_a_schema_that_is_none_is_the_callers_error(client, model):
    wanted = {"type": "json_schema", "json_schema": {"name": "weather", "schema": {"type": "nothing"}}}
    with pytest.raises(openai.BadRequestError) as refused:
        client.chat.completions.create(model=model, messages=TALK, response_format=wanted, max_tokens=4)
    assert refused.value.request_id


def test_log_probabilities_come_with_each_token(client, model):
    chat = client.chat.completions.create(
        model=model, messages=TALK, max_tokens=4, logprobs=True, top_logprobs=3, extra_body={"ignore_eos": True}
    )
    tokens = chat.choices[0].logprobs.content
    assert len(tokens) == 4
    for token in tokens:
        assert len(token.top_logprobs) == 3
        assert token.logprob <= max(one.logprob for one in token.top_logprobs) <= 0
    text = client.completions.create(
        model=model, prompt="Once", max_tokens=4, logprobs=2, extra_body={"ignore_eos": True}
    ).choices[0].logprobs  # fmt: skip
    assert len(text.tokens) == len(text.token_logprobs) == len(text.top_logprobs) == len(text.text_offset) == 4
    assert all(logprob <= 0 for logprob in text.token_logprobs)


@pytest.fixture(scope="module")
def engine_urls(credentials):
    """{model: its engine's address, as it is reached from here}"""
    with urllib.request.urlopen(f"{credentials['gateway_url']}/health", timeout=10) as answer:
        models = json.loads(answer.read())["models"]
    host = credentials["gateway_url"].split("/")[2].split(":")[0]
    return {
        name: f"http://{model['engines'][0]['address'].replace('127.0.0.1', host)}" for name, model in models.items()
    }


@pytest.fixture(scope="module")
def engine_of(engine_urls):
    """`engine_of(model)`: the model's engine, as its evaluation asks it."""
    return lambda model: Engine(engine_urls[model], model)


@pytest.mark.parametrize("continuation", [" Rome", " a walled place above a town, 2 miles long", "\n\u00fc\u6f22", ""])
def test_how_likely_a_text_is_comes_from_the_engine_token_by_token(client, kinds, engine_of, continuation):
    """By `prompt_logprobs`, as evaluations ask for it, and by `echo` with `logprobs` it is the same."""
    context = "Question: What is a citadel?\nAnswer:"
    for name in kinds["generate"]:
        engine = engine_of(name)
        found = engine.log_likelihood(context, continuation)
        whole, before = engine.tokens(context + continuation), engine.tokens(context)
        common = next((n for n, pair in enumerate(zip(whole, before, strict=False)) if pair[0] != pair[1]), len(before))
        echoed = client.completions.create(
            model=name, prompt=context + continuation, max_tokens=1, temperature=0, echo=True, logprobs=1
        )
        logprobs = echoed.choices[0].logprobs.token_logprobs[: len(whole)]
        assert found == pytest.approx(sum(logprobs[min(common, len(whole) - 1) :]), abs=0.05)
        assert math.isfinite(found)
        assert found < 0


def test_a_model_is_evaluated_on_the_host_by_its_likelihoods(on_host, model, engine_of):
    """Two questions of the site's own; what the command takes for the answer is what the likelihoods say."""
    every = load_questions(REPO / "files/evals/knowledge.json").every[:2]
    few = json.dumps({"questions": [{name: getattr(one, name) for name in one.__struct_fields__} for one in every]})
    script = (
        'f=$(mktemp) && printf %s "$1" >$f && chmod 644 $f && '
        'runuser -u citadel -- /opt/citadel/bin/citadel evaluate "$2" --questions $f --json; s=$?; rm $f; exit $s'
    )
    found = json.loads(on_host("sh", "-c", script, "sh", few, model))[model]
    right = sum(choose(engine_of(model), one) == one.right for one in every)
    assert (found["questions"], found["correct"], found["error"]) == (2, right, None)


def test_the_database_knows_what_serves_each_model(credentials, engine_urls, on_host):
    wanted = []
    for name, url in sorted(engine_urls.items()):
        with urllib.request.urlopen(f"{url}/version", timeout=10) as answer:
            version = json.loads(answer.read())["version"]
        weights = on_host("readlink", "-f", f"/opt/citadel/models/{name}/current").strip().rsplit("/", 1)[-1]
        wanted.append((name, "hx-llm-server-01", weights, version))
    with psycopg.connect(credentials["database_gateway_url"]) as connection:
        rows = connection.execute(
            "select m.name, d.host, d.weights_version, d.engine_version from llm.models m "
            "join llm.deployments d on d.model = m.name and d.retired_at is null where m.retired_at is null order by 1"
        ).fetchall()
    assert rows == wanted


def test_what_an_answer_cost_is_in_the_audit_log_and_in_the_usage(client, credentials, model):
    """A real answer's tokens, at this site's prices."""
    raw = client.completions.with_raw_response.create(model=model, prompt="Once", max_tokens=8, extra_headers=FRESH)

    def told(path):
        request = urllib.request.Request(credentials["gateway_url"] + path)
        request.add_header("authorization", f"Bearer {credentials['admin_key']}")
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read())

    (row,) = wait_for(
        "the audit log's row", lambda: told(f"/admin/v1/audit?request_id={raw.headers['x-request-id']}")["data"], 30
    )
    assert row["cost"] > 0
    usage = told(f"/admin/v1/usage?period=day&model={model}")
    assert usage["currency"] == "EUR"
    assert usage["data"][0]["cost"] >= row["cost"]


def test_n_answers_come_at_once_plain_and_streamed(client, model):
    request = {"model": model, "messages": TALK, "n": 3, "max_tokens": 4, "extra_body": {"ignore_eos": True}}
    plain = client.chat.completions.create(**request)
    assert sorted(choice.index for choice in plain.choices) == [0, 1, 2]
    assert plain.usage.completion_tokens == 3 * 4
    pieces = list(client.chat.completions.create(**request, stream=True))
    ended = [piece.choices[0].index for piece in pieces if piece.choices and piece.choices[0].finish_reason]
    assert sorted(ended) == [0, 1, 2]


def test_an_answer_stops_before_what_it_is_to_stop_at(client, model):
    request = {"model": model, "prompt": "Once", "max_tokens": 48, "temperature": 0, "extra_headers": FRESH}
    whole = client.completions.create(**request).choices[0].text
    stop = next(letter for letter in whole[1:] if letter.isascii() and letter.isprintable())
    for given in (stop, ["\x00\x01", stop]):
        answer = client.completions.create(**request, stop=given).choices[0]
        assert (answer.text, answer.finish_reason) == (whole[: whole.index(stop)], "stop")


def test_a_seed_determines_the_engines_answer(client, model):
    def said(seed):
        answer = client.chat.completions.with_raw_response.create(
            model=model, messages=TALK, max_tokens=32, temperature=1, seed=seed, extra_headers=FRESH,
            extra_body={"ignore_eos": True},
        )  # fmt: skip
        assert answer.headers["x-citadel-cache"] == "bypass", "the engine was not asked"
        return answer.parse().choices[0].message.content

    first = said(7)
    assert said(7) == first
    assert said(8) != first


@pytest.mark.parametrize("wanted", [True, False])
def test_a_stream_ends_with_its_usage_where_that_is_wanted(client, model, wanted):
    options = {"model": model, "max_tokens": 6, "stream": True, "extra_body": {"ignore_eos": True}}
    if wanted:
        options["stream_options"] = {"include_usage": True}
    for pieces in (
        list(client.chat.completions.create(messages=TALK, **options)),
        list(client.completions.create(prompt="Once", **options)),
    ):
        if wanted:
            assert pieces[-1].choices == []
            assert pieces[-1].usage.completion_tokens == 6
            assert pieces[-1].usage.total_tokens == pieces[-1].usage.prompt_tokens + 6
        else:
            assert not [piece for piece in pieces if piece.usage]
