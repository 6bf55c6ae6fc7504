import asyncio
import json
import logging
import re
import time

import pytest
from fake_llm import FAULTS, FakeLLM, answer_to

from hycir_hf.syncir import Answer, AnswerStore, BatchGenerator, ChatGenerator, Failure
from hycir_hf.syncir.llm import chat as chat_module
from hycir_hf.syncir.llm.answers import make_question, unanswered
from hycir_hf.syncir.llm.chat import _answers_first, _retry_after


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(chat_module, "_FIRST_DELAY", 0.01)


def questions(generator, count):
    return [make_question(generator, [{"role": "user", "content": f"Target caption: thing {i}"}]) for i in range(count)]


def test_all_questions_are_answered_at_the_concurrency_asked_for():
    with FakeLLM(latency=0.02) as server:
        generator = ChatGenerator("m", server.url, concurrency=8, temperature=0.0)
        asked = questions(generator, 40)
        outcomes = {question.key: outcome for question, outcome in generator(iter(asked))}
    assert len(outcomes) == 40
    assert {outcome.text for outcome in outcomes.values()} == {answer_to(q.messages) for q in asked}
    assert server.most_active == 8 and server.requests[0]["temperature"] == 0.0


def test_a_misbehaving_endpoint_loses_nothing():
    with FakeLLM(fault_share=0.3, faults=FAULTS, seed=1) as server:
        generator = ChatGenerator("m", server.url, concurrency=32, timeout=0.5, max_attempts=12)
        asked = questions(generator, 150)
        outcomes = list(generator(iter(asked)))
    assert sorted(question.key for question, _ in outcomes) == sorted(question.key for question in asked)
    answered = {question.key: outcome.text for question, outcome in outcomes if isinstance(outcome, Answer)}
    assert answered == {q.key: answer_to(q.messages) for q in asked if q.key in answered} and len(answered) >= 148


@pytest.mark.parametrize("fault", FAULTS)
def test_every_fault_ends_as_a_failure_with_its_reason(fault):
    with FakeLLM(fault_share=1.0, faults=[fault]) as server:
        generator = ChatGenerator("m", server.url, timeout=0.2, max_attempts=2)
        [(_, outcome)] = list(generator(iter(questions(generator, 1))))
    assert isinstance(outcome, Failure) and "2 attempts" in outcome.reason
    assert len(server.requests) == 2


def test_an_endpoint_that_answers_nothing_any_more_stops_the_run():
    with FakeLLM(fault_share=1.0, faults=["500"]) as server:
        generator = ChatGenerator("m", server.url, max_attempts=1)
        with pytest.raises(ValueError, match=r"50 .*HTTP 500"):
            list(generator(iter(questions(generator, 500))))
    assert len(server.requests) < 120


@pytest.mark.parametrize("make", [ChatGenerator, BatchGenerator])
def test_a_wrong_key_stops_at_once_and_is_never_shown(make, monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with FakeLLM(key="right") as server:
        generator = make("m", server.url)
        with pytest.raises(ValueError, match=r"the model 'm'.*OPENAI_API_KEY") as caught:
            list(generator(iter(questions(generator, 200))))
    assert "sk-secret" not in str(caught.value) and "***" in str(caught.value)
    assert len(server.requests) <= 32


def test_a_wrong_model_stops_at_once():
    with FakeLLM(model="right") as server:
        generator = ChatGenerator("wrong", server.url)
        with pytest.raises(ValueError, match="does not exist"):
            list(generator(iter(questions(generator, 200))))


def test_without_key_and_endpoint_the_message_names_the_variable():
    with pytest.raises(ValueError, match="OPENAI_API_KEY"):
        list(ChatGenerator("m")(iter([])))


def test_retry_after_is_honoured():
    with FakeLLM(fault_share=1.0, faults=["429"], retry_after="0.4") as server:
        generator = ChatGenerator("m", server.url, max_attempts=2)
        start = time.monotonic()
        list(generator(iter(questions(generator, 1))))
        assert time.monotonic() - start >= 0.4


def test_retry_after_reads_seconds_and_dates():
    assert _retry_after({"retry-after": "3"}) == 3.0
    assert _retry_after({"retry-after": "Wed, 21 Oct 2015 07:28:00 GMT"}) == 0.0
    assert _retry_after({"retry-after": "soon"}) == 0.0 == _retry_after({})


def test_answers_that_came_with_a_refusal_are_kept():
    async def finish(outcome):
        if outcome is None:
            raise ValueError("refused")
        return None, outcome

    async def tasks():
        made = [asyncio.ensure_future(finish(outcome)) for outcome in (None, Answer("a"), None, Answer("b"))]
        await asyncio.wait(made)
        return set(made)

    kept = []
    with pytest.raises(ValueError, match="refused"):
        for _, outcome in _answers_first(asyncio.run(tasks())):
            kept.append(outcome.text)
    assert sorted(kept) == ["a", "b"]


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ({"message": {"role": "assistant", "content": None, "refusal": "I won't"}}, Answer("I won't")),
        ({"message": {"role": "assistant", "content": None}, "finish_reason": "content_filter"}, Answer("")),
        ({"message": {"role": "assistant", "content": "half"}, "finish_reason": "length"}, Answer("half", is_cut=True)),
        ({"message": {"role": "assistant", "content": "\ud800"}}, Answer("?")),
    ],
)
def test_what_was_paid_for_is_an_answer_whatever_it_says(body, outcome):
    with FakeLLM() as server:
        server.completion = lambda asked: {"id": "x", "choices": [{"index": 0, "finish_reason": "stop", **body}]}
        generator = ChatGenerator("m", server.url)
        assert [found for _, found in generator(iter(questions(generator, 1)))] == [outcome]
    assert len(server.requests) == 1


@pytest.mark.parametrize(
    "spoil", [{"choices": {}}, {"choices": [{}]}, {"choices": [{"message": {"content": 3}}]}, {"choices": None}]
)
def test_bodies_that_are_no_completion_are_failures(spoil):
    with FakeLLM() as server:
        server.completion = lambda asked: spoil
        generator = ChatGenerator("m", server.url, max_attempts=1)
        [(_, outcome)] = list(generator(iter(questions(generator, 1))))
    assert isinstance(outcome, Failure) and "unreadable answer" in outcome.reason


def test_odd_token_counts_do_no_harm():
    with FakeLLM() as server:
        usage = {"prompt_tokens": "many", "completion_tokens": {"a": 1}}
        complete = server.completion
        server.completion = lambda asked: {**complete(asked), "usage": usage}
        generator = ChatGenerator("m", server.url)
        [(_, outcome)] = list(generator(iter(questions(generator, 1))))
    assert (outcome.prompt_tokens, outcome.completion_tokens) == (0, 0)


def test_it_runs_where_another_loop_runs():
    async def in_a_notebook(generator):
        return list(generator(iter(questions(generator, 3))))

    with FakeLLM() as server:
        assert len(asyncio.run(in_a_notebook(ChatGenerator("m", server.url)))) == 3


def test_a_failed_batch_stops_with_its_reason():
    with FakeLLM() as server:
        server.batch_error = "The model is unknown"
        generator = BatchGenerator("m", server.url, poll_seconds=0.01)
        with pytest.raises(ValueError, match="The model is unknown"):
            list(generator(iter(questions(generator, 3))))


def test_rare_line_ends_in_a_batch_answer_lose_nothing():
    with FakeLLM() as server:
        complete = server.completion
        said = {"index": 0, "message": {"role": "assistant", "content": "a\u2028b"}, "finish_reason": "stop"}
        server.completion = lambda asked: {**complete(asked), "choices": [said]}
        generator = BatchGenerator("m", server.url, poll_seconds=0.01)
        assert [found.text for _, found in generator(iter(questions(generator, 2)))] == ["a\u2028b"] * 2


def test_batches_are_answered_and_what_they_leave_out_is_a_failure():
    with FakeLLM(fault_share=1.0) as server:
        generator = BatchGenerator("m", server.url, poll_seconds=0.01, max_tokens=9)
        asked = questions(generator, 7)
        outcomes = {question.key: outcome for question, outcome in generator(iter(asked))}
    assert sum(isinstance(outcome, Failure) for outcome in outcomes.values()) == 1
    assert outcomes[asked[3].key] == Answer(answer_to(asked[3].messages), 50, 7)


def test_a_batch_that_was_submitted_before_is_not_paid_for_again(monkeypatch):
    monkeypatch.setattr(chat_module, "_BATCH_SIZE", 4)
    with FakeLLM() as server:
        generator = BatchGenerator("m", server.url, poll_seconds=0.01)
        asked = questions(generator, 10)
        running = iter(generator(iter(asked)))
        first = [next(running)[0].key for _ in range(3)]  # the run is cut short while it reads the first batch
        running.close()
        left = [question for question in asked if question.key not in first]
        outcomes = {question.key: outcome for question, outcome in generator(iter(left))}
        assert len(server.batches) == 3 and set(server.answered.values()) == {1}
        assert len(outcomes) == 7
        other = BatchGenerator("m", server.url, poll_seconds=0.01, temperature=1.0)
        list(other(iter(questions(other, 1))))
        assert len(server.batches) == 4


# --- answers on disk --------------------------------------------------------------------------------------------------


def test_answers_are_on_disk_before_the_next_is_asked_for(tmp_path):
    store = AnswerStore(tmp_path)
    store.add("a", Answer("one", 1, 2))
    assert AnswerStore(tmp_path)["a"] == Answer("one", 1, 2)  # nothing was closed
    store.add("a", Answer("another"))
    assert store["a"].text == "one" and len(AnswerStore(tmp_path)) == 1


def test_a_line_that_was_cut_off_is_asked_again_and_harms_no_other(tmp_path, caplog):
    store = AnswerStore(tmp_path)
    for key in "abc":
        store.add(key, Answer(f"é {key}"))
    [path] = tmp_path.glob("*.jsonl")
    path.write_bytes(path.read_bytes()[:-5])
    with caplog.at_level(logging.WARNING):
        again = AnswerStore(tmp_path)
    assert "a" in again and "b" in again and "c" not in again
    assert f"{path}: 1 " in caplog.text
    again.add("c", Answer("new"))
    assert len(AnswerStore(tmp_path)) == 3  # the new answer went to a file of its own


def test_a_key_stands_for_model_parameters_and_messages():
    messages = [{"role": "user", "content": "hello"}]
    base = make_question(ChatGenerator("m", temperature=0.0), messages).key
    assert make_question(ChatGenerator("m", "http://elsewhere", temperature=0.0), messages).key == base
    others = [ChatGenerator("n", temperature=0.0), ChatGenerator("m", temperature=0.1)]
    assert base not in {make_question(generator, messages).key for generator in others}
    assert make_question(ChatGenerator("m", temperature=0.0), [{"role": "user", "content": "Hello"}]).key != base


def test_only_what_is_open_is_asked_each_once_and_pools_stay_whole(tmp_path):
    generator = ChatGenerator("m", "http://nowhere")
    asked = questions(generator, 10)
    store = AnswerStore(tmp_path)
    for question in (*asked[:4], asked[5]):
        store.add(question.key, Answer("x"))
    assert list(unanswered([*asked, *asked], store)) == [asked[4], *asked[6:]]
    assert list(unanswered([*asked, *asked], store, pool_size=4)) == asked[4:]


def test_text_that_is_no_unicode_is_kept(tmp_path):
    AnswerStore(tmp_path).add("a", Answer("\ud800 half a surrogate"))
    assert "half a surrogate" in AnswerStore(tmp_path)["a"].text
    assert json.loads(next(tmp_path.glob("*.jsonl")).read_text(errors="replace").splitlines()[0])["key"] == "a"


def test_answers_of_the_first_edition_are_read_and_those_of_a_newer_one_are_refused(tmp_path):
    with AnswerStore(tmp_path) as store:
        store.add("a", Answer("one"))
    header = tmp_path / "format.json"
    record = json.loads(header.read_text())
    assert record["format_version"] == 1
    header.write_text(json.dumps({**record, "format_version": 2}))
    with pytest.raises(ValueError, match=re.escape(str(header))):
        AnswerStore(tmp_path)
    header.unlink()  # the first edition wrote none
    assert AnswerStore(tmp_path)["a"].text == "one"
