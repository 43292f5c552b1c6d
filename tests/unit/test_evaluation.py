"""Multiple-choice questions to models: how a choice is scored, what is told and kept, and every way to fail."""

import argparse
import asyncio
import contextlib
import io
import json
from collections import Counter
from pathlib import Path

import pytest

from citadel_llm.cli import evaluate as cli_evaluate
from citadel_llm.cli import main
from citadel_llm.evaluation.engine import Engine, EvaluationError, choose
from citadel_llm.evaluation.evaluation import evaluate
from citadel_llm.evaluation.questions import Question, QuestionError, load_questions
from citadel_llm.evaluation.results import Result, alone, load_results, store_results
from engine_likelihood import Likelihood
from gateways import write_config
from upstreams import Upstream, answers, refused_port
from waiting import in_time

REPO = Path(__file__).resolve().parents[2]
OWN = REPO / "files/evals/knowledge.json"
SUM = {"subject": "arithmetic", "question": "2 + 2?", "choices": ["3", "4", "5", "22"], "answer": "B"}
SKY = {
    "subject": "science",
    "question": "Why is the sky dark?",
    "choices": ["day", "rain", "fog", "night"],
    "answer": "D",
}


@pytest.fixture
def questions(tmp_path):
    path = tmp_path / "questions.json"
    path.write_text(json.dumps({"questions": [SUM, SKY]}))
    return path


async def thread(function, *arguments, **options):
    """The function, while this loop, on which the engine is, goes on."""
    return await in_time(asyncio.to_thread(function, *arguments, **options))


# -- the set ----------------------------------------------------------------------------------------------------


def test_the_own_set_has_ten_questions_a_subject_and_its_letters_come_as_often():
    every = load_questions(OWN).every
    assert len(every) == 60
    assert set(Counter(one.subject for one in every).values()) == {10}
    assert Counter(one.answer for one in every) == dict.fromkeys("ABCD", 15)
    # Whoever always takes the longest or the shortest choice does not do well.
    for extreme in (max, min):
        assert sum(extreme(one.choices, key=len) == one.choices[one.right] for one in every) < 30


@pytest.mark.parametrize(
    ("wrong", "said"),
    [
        ({**SUM, "choices": ["1", "2", "3"]}, "choices"), ({**SUM, "answer": "E"}, "answer"),
        ({**SUM, "choices": ["1", "1", "2", "3"]}, r"questions\[1\]"), ({**SUM, "subject": "A b"}, "subject"),
        ({**SUM, "hint": "4"}, "hint"), (SKY, "comes again"),
    ],
)  # fmt: skip
def test_a_set_that_is_wrong_is_refused_with_its_place(tmp_path, wrong, said):
    path = tmp_path / "q.json"
    path.write_text(json.dumps({"questions": [SKY, wrong]}))
    with pytest.raises(QuestionError, match=said) as refused:
        load_questions(path)
    assert str(path) in str(refused.value)


def test_a_file_that_is_missing_or_no_json_is_named(tmp_path):
    for path in (tmp_path / "none", tmp_path):
        with pytest.raises(QuestionError, match="can't be read"):
            load_questions(path)
    (tmp_path / "q").write_text("{")
    with pytest.raises(QuestionError):
        load_questions(tmp_path / "q")


# -- scoring ----------------------------------------------------------------------------------------------------


async def test_the_likeliest_choice_is_taken_and_only_its_own_tokens_count(upstream):
    upstream.script = Likelihood(likely=["4"])
    engine = Engine(upstream.url, "phi3")
    assert await thread(engine.log_likelihood, "Question: 2 + 2?\nAnswer:", " 4") == pytest.approx(-0.2)
    assert await thread(engine.log_likelihood, "Question: 2 + 2?\nAnswer:", " 22") == pytest.approx(-6)
    question = Question(**SUM)
    assert await thread(choose, engine, question) == 1 == question.right
    assert upstream.script.asked[-1] == "Question: 2 + 2?\nAnswer: 22"
    assert upstream.script.most_at_once == 1


async def test_length_decides_only_where_the_sum_is_asked_for(upstream):
    # Equal for each byte: the sum takes the shortest; by length the blank before a choice weighs least at the longest.
    upstream.script = Likelihood(likely=["bb", "dddddddd"])
    question = Question("logic", "Which?", ["aaa", "bb", "cccc", "dddddddd"], "D")
    engine = Engine(upstream.url, "phi3")
    assert await thread(choose, engine, question, "sum") == 1
    assert await thread(choose, engine, question, "length") == 3


async def looks(upstream, load, **options):
    """How often an engine of that load was looked at, in steps of a second, until a request may begin."""
    upstream.script = Likelihood(load=load)
    slept = []
    engine = Engine(upstream.url, "phi3", sleep=slept.append, clock=lambda: float(len(slept)), **options)
    await thread(engine.give_way)
    return 1 + len(slept)


@pytest.mark.parametrize(
    ("load", "times"),
    [
        ([], 1),  # nothing to do
        ([(2, 0), (1, 0)], 3),  # until the others have ended
        ([(1, 0)] * 20, 6),  # beside them, after five seconds
        ([(1, 3)] * 8 + [(1, 0)] * 20, 9),  # and not before nobody waits
        ([(0, 1)], 2),
    ],
)
async def test_it_lets_others_go_first(upstream, load, times):
    assert await looks(upstream, load) == times


async def test_it_gives_up_where_others_wait_all_the_time(upstream):
    with pytest.raises(EvaluationError, match="busy"):
        await looks(upstream, [(4, 1)] * 60, patience_s=45)
    assert 10 <= len(upstream.script.load) <= 15


async def test_an_engine_that_tells_no_load_is_asked_at_once(upstream):
    upstream.script = answers(b"# nothing", content_type="text/plain")
    await thread(Engine(upstream.url, "phi3").give_way)


def without_logprobs(answer):
    del answer["choices"][0]["prompt_logprobs"]
    return answer


def other_tokens(answer):
    answer["choices"][0]["prompt_logprobs"][-1] = {"7": {"logprob": -1}}
    return answer


def too_few(answer):
    answer["choices"][0]["prompt_logprobs"].pop()
    return answer


@pytest.mark.parametrize(
    ("broken", "said"),
    [
        (without_logprobs, "no log probabilities"), (other_tokens, "no log probabilities"),
        (too_few, "no log probabilities"), (lambda _: {"choices": []}, "no log probabilities"),
        (lambda _: [], "no JSON object"), (lambda _: (b"<html>", 200), "no JSON object"),
        (lambda _: (b'{"error": "no\nroom"}', 503), "answered 503: .*no room"),
    ],
)  # fmt: skip
async def test_an_engine_that_tells_no_likelihood_is_an_error_that_says_so(upstream, broken, said):
    upstream.script = Likelihood(broken=broken)
    with pytest.raises(EvaluationError, match=said):
        await thread(Engine(upstream.url, "phi3").log_likelihood, "a", "b")


async def test_an_engine_without_tokens_and_one_that_is_away_are_errors(upstream):
    upstream.script = answers({"count": 1})
    with pytest.raises(EvaluationError, match="without `tokens`"):
        await thread(Engine(upstream.url, "phi3").tokens, "a")
    url = f"http://127.0.0.1:{refused_port()}"
    with pytest.raises(EvaluationError, match=f"no answer from {url}"):
        await thread(Engine(url, "phi3").give_way)


# -- a model's evaluation ---------------------------------------------------------------------------------------


async def test_a_model_is_evaluated_by_subject(upstream, questions):
    upstream.script = Likelihood(likely=["4", "fog"])
    found = await thread(evaluate, upstream.url, "phi3", load_questions(questions), now=lambda: 1e9)
    assert (found.at, found.correct, found.questions, found.accuracy, found.error) == (1e9, 1, 2, 0.5, None)
    assert found.subjects == {"arithmetic": (1, 1), "science": (0, 1)}


async def test_one_stumble_is_forgiven(upstream, questions):
    stumbles = iter([True])
    script = Likelihood(likely=["4", "night"], broken=lambda a: (b"", 500) if next(stumbles, False) else a)
    upstream.script = script
    found = await thread(evaluate, upstream.url, "phi3", load_questions(questions))
    assert (found.correct, found.failures) == (2, 0)


async def test_a_model_that_fails_keeps_its_result_with_the_error_and_its_age(upstream, questions):
    before = Result(at=5.0, correct=1, questions=2, subjects={"arithmetic": (1, 1)}, failures=2)
    upstream.script = Likelihood(broken=without_logprobs)
    found = await thread(evaluate, upstream.url, "phi3", load_questions(questions), before)
    assert (found.at, found.accuracy, found.failures) == (5.0, 0.5, 3)
    assert "log probabilities" in found.error


# -- what is kept -----------------------------------------------------------------------------------------------


def test_results_are_kept_and_read_by_node_exporter(tmp_path):
    results = {
        "phi3": Result(at=1e9, correct=3, questions=4, subjects={"logic": (1, 2)}, seconds=2.5),
        "hermes": Result(failures=1, error="away"),
    }
    store_results(tmp_path, results)
    assert load_results(tmp_path) == results
    text = (tmp_path / "evaluation.prom").read_text()
    for line in (
        'citadel_evaluation_accuracy_ratio{model="phi3"} 0.75',
        'citadel_evaluation_timestamp_seconds{model="phi3"} 1e+09',
        'citadel_evaluation_subject_accuracy_ratio{model="phi3",subject="logic"} 0.5',
        'citadel_evaluation_questions{model="phi3"} 4.0', 'citadel_evaluation_failures_total{model="hermes"} 1.0',
        'citadel_evaluation_failed{model="hermes"} 1.0', 'citadel_evaluation_failed{model="phi3"} 0.0',
    ):  # fmt: skip
        assert line in text.splitlines()
    assert 'accuracy_ratio{model="hermes"}' not in text
    for path in tmp_path.iterdir():
        assert path.stat().st_mode & 0o777 == 0o644
    (tmp_path / "evaluation.json").write_text("{half")
    assert load_results(tmp_path) == {}


def test_a_file_that_cannot_be_replaced_leaves_nothing_half_written(tmp_path):
    (tmp_path / "evaluation.json").mkdir()
    with pytest.raises(OSError, match="directory"):
        store_results(tmp_path, {})
    assert [path.name for path in tmp_path.iterdir()] == ["evaluation.json"]


# -- the verb ---------------------------------------------------------------------------------------------------


async def citadel(*arguments):
    """The verb; exit status, output, errors."""

    def run():
        out, err = io.StringIO(), io.StringIO()
        with contextlib.redirect_stdout(out), contextlib.redirect_stderr(err):
            status = main(["evaluate", *(str(argument) for argument in arguments)])
        return status, out.getvalue(), err.getvalue()

    return await thread(run)


@pytest.fixture
async def site(tmp_path, questions):
    """The options that name a configuration of two models that generate and one that does not."""
    async with Upstream(Likelihood(likely=["4", "night"])) as phi3, Upstream(Likelihood(likely=["4", "fog"])) as hermes:
        path = write_config(
            tmp_path,
            {
                "phi3": ["http://192.0.2.1:9", {"url": phi3.url, "draining_marker": str(tmp_path / "drains")}],
                "hermes": [hermes],
                "minilm": {"upstreams": ["http://127.0.0.1:9"], "kind": "embedding"},
            },
        )
        (tmp_path / "kept").mkdir()
        options = ("--config", path, "--questions", questions)
        yield {"phi3": phi3, "hermes": hermes, "options": options, "kept": tmp_path / "kept"}


async def test_every_model_that_generates_is_evaluated_at_its_engine_on_this_host(site):
    status, out, err = await citadel(*site["options"])
    assert (status, err) == (0, "")
    lines = {line.split()[0]: line.split() for line in out.splitlines()[1:]}
    assert lines["phi3"][1:3] == ["100.0%", "2/2"]
    assert lines["hermes"][1:3] == ["50.0%", "1/2"]
    status, out, _ = await citadel(*site["options"], "hermes", "--json")
    found = json.loads(out)
    assert (status, list(found)) == (0, ["hermes"])
    assert (found["hermes"]["accuracy"], found["hermes"]["subjects"]["science"]) == (
        0.5,
        {"correct": 0, "questions": 1},
    )


async def test_results_are_kept_and_a_model_that_is_away_keeps_its_own(site):
    assert (await citadel(*site["options"], "--to", site["kept"]))[0] == 0
    first = load_results(site["kept"])
    await site["phi3"].shut()
    status, out, err = await citadel(*site["options"], "--to", site["kept"])
    assert status == 1
    assert "phi3: no answer from" in err
    assert "100.0%" in out
    again = load_results(site["kept"])
    assert (again["phi3"].at, again["phi3"].accuracy, again["phi3"].failures) == (first["phi3"].at, 1.0, 1)
    assert again["hermes"].at > first["hermes"].at
    assert 'citadel_evaluation_failed{model="phi3"} 1.0' in (site["kept"] / "evaluation.prom").read_text()


async def test_what_the_site_serves_no_more_is_forgotten(site):
    store_results(site["kept"], {"gone": Result(at=1.0, correct=1, questions=1)})
    await citadel(*site["options"], "hermes", "--to", site["kept"])
    assert set(load_results(site["kept"])) == {"hermes"}


async def test_an_engine_that_drains_is_left_alone(site, tmp_path):
    (tmp_path / "drains").touch()
    status, out, err = await citadel(*site["options"], "--to", site["kept"])
    assert status == 0
    assert "phi3: its engine drains" in err
    assert "phi3" not in out
    assert site["phi3"].calls == []


async def test_a_reader_that_goes_away_is_no_trouble_of_the_evaluation(site, monkeypatch):
    def gone(*_):
        raise BrokenPipeError

    monkeypatch.setattr("citadel_llm.cli.evaluate._table", gone)
    parser = argparse.ArgumentParser()
    cli_evaluate.add_arguments(parser)
    arguments = parser.parse_args([str(option) for option in (*site["options"], "hermes")])
    with pytest.raises(BrokenPipeError):  # as it is: `main` ends quietly on it
        await thread(arguments.run, arguments)


async def test_two_at_once_are_one_too_many(site):
    with alone(site["kept"]):
        status, _, err = await citadel(*site["options"], "--to", site["kept"])
    assert status == 1
    assert "under way" in err
    assert site["phi3"].calls == []


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (["minilm"], "there are: phi3, hermes"), (["nobody"], "there are: phi3, hermes"),
        (["--to", "/nowhere"], "/nowhere: No such file"), (["--questions", "/nowhere"], "/nowhere: can't be read"),
        (["--config", "/nowhere"], "/nowhere: can't be read"),
    ],
)  # fmt: skip
async def test_what_cannot_be_done_is_said(site, arguments, said):
    status, _, err = await citadel(*site["options"], *arguments)
    assert status == 1
    assert said in err
