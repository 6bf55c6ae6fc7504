import asyncio
import json
import logging
import re
import time
from contextlib import closing

import pytest
from aiohttp import web
from fake_llm import FAULTS, FakeLLM, answer_to

from hycir_hf.settings import ParameterError
from hycir_hf.syncir import Answer, AnswerStore, BatchGenerator, ChatGenerator, Failure
from hycir_hf.syncir.llm import batch as batch_module
from hycir_hf.syncir.llm import chat as chat_module
from hycir_hf.syncir.llm import endpoint as endpoint_module
from hycir_hf.syncir.llm.answers import make_question, stored_outcomes, unanswered
from hycir_hf.syncir.llm.chat import _retry_after


@pytest.fixture(autouse=True)
def no_key(monkeypatch):
    monkeypatch.delenv("OPENAI_API_KEY", raising=False)
    monkeypatch.setattr(chat_module, "_FIRST_DELAY", 0.01)
    monkeypatch.setattr(endpoint_module, "SECOND_TRY_DELAY", 0.05)


def questions(generator, count):
    return [make_question(generator, [{"role": "user", "content": f"Target caption: thing {i}"}]) for i in range(count)]


def test_all_questions_are_answered_at_the_concurrency_asked_for():
    with FakeLLM(latency=0.02) as server:
        generator = ChatGenerator("m", server.url, concurrency=8, temperature=0.0)
        asked = questions(generator, 40)
        outcomes = {question.key: outcome for question, outcome in generator(question for question in asked)}
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


def refuse_some(server, refused, status=401, times=10**6):
    """Let the server refuse the questions with these numbers so many times; the others take longer."""
    left = dict.fromkeys(refused, times)

    def reply(body):
        number = int(body["messages"][-1]["content"].rsplit(" ", 1)[1])
        if left.get(number, 0) > 0:
            left[number] -= 1
            return status, {"error": {"message": "gateway says no\u202e"}}
        return None

    server.reply = reply


def read_all(generator, asked):
    """All outcomes, and the error that ended the run."""
    outcomes = {}
    try:
        for question, outcome in generator(iter(asked)):
            outcomes[question.key] = outcome
    except ValueError as error:
        return outcomes, error
    return outcomes, None


@pytest.mark.parametrize("status", [401, 402, 403, 404])
def test_one_refusal_does_not_end_a_run_that_has_worked(status):
    with FakeLLM(latency=0.02) as server:
        generator = ChatGenerator("m", server.url, concurrency=8)
        asked = questions(generator, 40)
        refuse_some(server, [20], status, times=1)
        outcomes, error = read_all(generator, asked)
    assert error is None and len(outcomes) == 40
    assert all(isinstance(outcome, Answer) for outcome in outcomes.values())
    assert set(server.answered.values()) == {1}


def test_several_refusals_at_once_are_all_asked_again():
    with FakeLLM(latency=0.02) as server:
        generator = ChatGenerator("m", server.url, concurrency=8)
        asked = questions(generator, 40)
        refuse_some(server, range(16, 24), times=1)
        outcomes, error = read_all(generator, asked)
    assert error is None and len(outcomes) == 40 and set(server.answered.values()) == {1}


def test_a_second_refusal_stops_the_run_and_no_answer_under_way_is_lost():
    with FakeLLM(latency=0.1) as server:
        generator = ChatGenerator("m", server.url, concurrency=8)
        asked = questions(generator, 60)
        refuse_some(server, [20])
        outcomes, error = read_all(generator, asked)
    assert re.search(r"gateway says no\\u202e", str(error)) and "\u202e" not in str(error)
    assert len(outcomes) == sum(server.answered.values()) < 60
    assert len(server.requests) == len(outcomes) + 2


def test_answers_that_came_with_a_refusal_at_the_start_are_kept():
    with FakeLLM(latency=0.05) as server:
        generator = ChatGenerator("m", server.url, concurrency=4)
        refuse_some(server, [0])
        outcomes, error = read_all(generator, questions(generator, 60))
    assert error is not None and len(outcomes) == sum(server.answered.values()) == 3


def test_a_question_that_is_flagged_fails_alone():
    with FakeLLM() as server:
        generator = ChatGenerator("m", server.url, max_attempts=1)
        server.reply = lambda body: (403, {"error": {"message": "your input was flagged"}})
        [(_, outcome)] = generator(iter(questions(generator, 1)))
    assert isinstance(outcome, Failure) and "flagged" in outcome.reason


def test_an_endpoint_that_dies_loses_no_answer_under_way():
    with FakeLLM(latency=0.3) as server:
        generator = ChatGenerator("m", server.url, max_attempts=1, concurrency=60)
        refuse_some(server, [*range(55), *range(60, 300)], 400)
        outcomes, error = read_all(generator, questions(generator, 300))
    assert "50" in str(error)
    assert sum(isinstance(outcome, Answer) for outcome in outcomes.values()) == 5 == sum(server.answered.values())


def test_answers_that_came_while_the_caller_stopped_are_stored(tmp_path):
    with FakeLLM() as server:
        generator = ChatGenerator("m", server.url, concurrency=20)
        asked = questions(generator, 60)
        with AnswerStore(tmp_path) as store, closing(stored_outcomes(generator, iter(asked), store)) as outcomes:
            next(outcomes)
            time.sleep(0.5)
        given = len(AnswerStore(tmp_path))
        assert given == 1 + len(generator.unread) > 1


@pytest.mark.parametrize(
    ("model", "sent"),
    [
        ("gpt-4o-mini", {"temperature": 0.0, "max_tokens": 60}),
        ("gpt-oss-20b", {"temperature": 0.0, "max_tokens": 60}),
        ("foo1", {"temperature": 0.0, "max_tokens": 60}),
        *((name, {"max_completion_tokens": 2060}) for name in ("o1", "o3-mini", "o4-mini-2025-04-16", "openai/o3")),
        *((name, {"max_completion_tokens": 2060}) for name in ("gpt-5", "gpt-5.1", "gpt-5-nano", "ft:gpt-5-mini:x")),
    ],
)
@pytest.mark.parametrize("make", [ChatGenerator, BatchGenerator])
def test_reasoning_models_get_the_parameters_that_they_take(make, model, sent):
    with FakeLLM() as server:
        generator = make(model, server.url, temperature=0.0, max_tokens=60)
        if make is BatchGenerator:
            generator.poll_seconds = 0.01
        list(generator(iter(questions(generator, 1))))
        bodies = server.requests or [json.loads(server.files["file-0"])["body"]]
    assert {name: value for name, value in bodies[0].items() if name not in ("model", "messages")} == sent


def test_parameters_are_left_out_and_added():
    extra = {"top_k": 1, "chat_template_kwargs": {"enable_thinking": False}}
    with FakeLLM() as server:
        generator = ChatGenerator(
            "m", server.url, temperature=None, max_tokens=None, reasoning_effort="low", unheard_of=[1], extra_body=extra
        )
        list(generator(iter(questions(generator, 1))))
        assert generator.parameters == {"reasoning_effort": "low", "unheard_of": [1], "extra_body": extra}
    assert set(server.requests[0]) == {"model", "messages", "reasoning_effort", "unheard_of", *extra}


@pytest.mark.parametrize(
    ("name", "status", "error"),
    [
        ("max_tokens", 400, {"error": {"message": "Unsupported parameter: 'max_tokens' is not supported. "
          "Use 'max_completion_tokens' instead.", "param": "max_tokens", "code": "unsupported_parameter"}}),
        ("temperature", 400, {"error": {"message": "Unsupported value: 'temperature' does not support 0. "
          "Only the default (1) value is supported.", "param": "temperature", "code": "unsupported_value"}}),
        ("top_k", 422, {"detail": [{"type": "extra_forbidden", "loc": ["body", "top_k"], "msg": "Extra inputs ..."}]}),
        ("reasoning_effort", 400, {"object": "error", "message": "[{'type': 'extra_forbidden', 'loc': "
          "('body', 'reasoning_effort'), 'msg': 'Extra inputs are not permitted'}]", "code": 400}),
        ("top_k", 400, [{"error": {"code": 400, "message": "Invalid payload. Unknown name \"top_k\": no field."}}]),
        ("reasoning_effort", 400, {"code": "400", "error": "Argument not supported on this model: reasoningEffort"}),
        ("temperature", 400, {"error": {"message": "temperature: range: 0..1 must be at most 1"}}),
        ("response_format", 400, {"error": {"message": "This model does not support response_format"}}),
        ("max_tokens", 200, {"error": {"message": "unknown field: parameter 'max_tokens'", "code": 400}}),
    ],
)  # fmt: skip
@pytest.mark.parametrize("make", [ChatGenerator, BatchGenerator])
def test_a_parameter_that_is_refused_stops_the_run_with_advice(make, name, status, error):
    parameters = {"max_tokens": 9, "temperature": 0.0, "reasoning_effort": "low", "response_format": {}, "top_k": 2}
    with FakeLLM() as server:
        generator = make("m", server.url, **parameters)
        server.reply = lambda body: (status, error)
        if make is BatchGenerator:
            generator.poll_seconds = 0.01
        with pytest.raises(ParameterError, match=name) as caught:
            list(generator(iter(questions(generator, 200))))
    setting = "structured_output" if name == "response_format" else f'llm_parameters to {{"{name}": null'
    assert setting in str(caught.value)
    assert len(server.requests) <= 32


def test_a_question_that_is_too_long_fails_alone():
    said = {
        "error": {"message": "maximum context length is 9 tokens, max_tokens 9 must be smaller", "param": "messages"}
    }
    with FakeLLM() as server:
        generator = ChatGenerator("m", server.url, max_tokens=9)
        server.reply = lambda body: (400, said)
        [(_, outcome)] = generator(iter(questions(generator, 1)))
    assert isinstance(outcome, Failure) and "context length" in outcome.reason


@pytest.mark.parametrize(
    ("body", "words", "attempts"),
    [
        ({"error": {"message": "Provider returned error", "code": 502}}, "Provider returned error", 2),
        ({"error": {"message": "slow down", "code": 429}}, "slow down", 2),
        ({"error": "model overloaded"}, "model overloaded", 2),
        ({"detail": "worker is gone"}, "worker is gone", 2),
        ({"object": "error", "message": "it broke"}, "it broke", 2),
        ({"choices": [], "error": {"message": "nobody home"}}, "nobody home", 2),
        (
            {"choices": [{"error": {"message": "cut the line", "code": 502}, "message": {"content": ""}}]},
            "cut the line",
            2,
        ),
        ({"error": {"message": "bad question", "code": 400}}, "bad question", 1),
    ],
)
def test_an_error_that_comes_with_status_200_is_told_in_the_endpoints_words(body, words, attempts):
    with FakeLLM() as server:
        server.reply = lambda asked: (200, body)
        generator = ChatGenerator("m", server.url, max_attempts=2)
        [(_, outcome)] = generator(iter(questions(generator, 1)))
    assert isinstance(outcome, Failure) and words in outcome.reason and len(server.requests) == attempts


@pytest.mark.parametrize("code", [401, "invalid_api_key"])
def test_a_refusal_that_comes_with_status_200_stops_the_run(code):
    with FakeLLM() as server:
        server.reply = lambda asked: (200, {"error": {"message": "who are you", "code": code}})
        with pytest.raises(ValueError, match="who are you"):
            list(ChatGenerator("m", server.url)(iter(questions(ChatGenerator("m"), 1))))


@pytest.mark.parametrize(
    "message",
    [{"content": None}, {}, {"content": None, "reasoning_content": "hm"}, {"content": [], "tool_calls": None},
     {"content": [{"type": "thinking", "thinking": "hm"}]}],
)  # fmt: skip
def test_no_content_is_no_answer_and_is_asked_again_by_the_next_run(message, tmp_path):
    with FakeLLM() as server:
        server.completion = lambda asked: {"choices": [{"message": message, "finish_reason": "stop"}]}
        generator = ChatGenerator("m", server.url)
        [question] = questions(generator, 1)
        for _ in range(2):
            with AnswerStore(tmp_path) as store:
                [(_, outcome)] = stored_outcomes(generator, unanswered([question], store), store)
            assert isinstance(outcome, Failure) and "content" in outcome.reason and "stop" in outcome.reason
    assert len(server.requests) == 2


def test_what_a_terminal_could_misread_is_escaped(monkeypatch):
    monkeypatch.setenv("OPENAI_API_KEY", "sk-secret")
    with FakeLLM() as server:
        server.reply = lambda body: (400, {"error": {"message": "a\u202eb\x1b[31m\n\u2066c\u200f sk-secret"}})
        generator = ChatGenerator("m", server.url)
        [(_, outcome)] = generator(iter(questions(generator, 1)))
    assert "a\\u202eb\\x1b[31m \\u2066c\\u200f ***" in outcome.reason


@pytest.mark.parametrize(
    ("body", "outcome"),
    [
        ({"message": {"role": "assistant", "content": None, "refusal": "I won't"}}, Answer("I won't")),
        ({"message": {"content": ""}}, Answer("")),
        ({"message": {"content": None, "reasoning_content": "hm"}, "finish_reason": "length"}, Answer("", is_cut=True)),
        ({"message": {"content": [{"type": "text", "text": "a "}, {"type": "text", "text": "b"}]}}, Answer("a b")),
        ({"message": {"content": [{"type": "thinking", "thinking": [{"type": "text", "text": "hm"}]}, {"text": "a"}]}},
         Answer("a")),
        ({"message": {"content": ["a", "b"]}}, Answer("ab")),
        ({"message": {"content": [{"type": "refusal", "refusal": "no"}]}}, Answer("no")),
        ({"message": {"content": "", "refusal": "no"}}, Answer("no")),
        ({"message": {"content": None, "tool_calls": [{"function": {"arguments": '{"instruction": "a"}'}}]}},
         Answer('{"instruction": "a"}')),
        ({"message": {"role": "assistant", "content": "half"}, "finish_reason": "length"}, Answer("half", is_cut=True)),
        ({"message": {"role": "assistant", "content": "\ud800"}}, Answer("?")),
    ],
)  # fmt: skip
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


def test_a_gateway_that_refuses_once_does_not_end_a_batch():
    server, asked = FakeLLM(), []
    look = server.get_batch

    async def refuse_once(request):
        asked.append(request.path)
        return web.json_response({"error": {"message": "no"}}, status=404) if len(asked) == 1 else await look(request)

    server.get_batch = refuse_once
    with server:
        generator = BatchGenerator("m", server.url, poll_seconds=0.01)
        assert len(list(generator(iter(questions(generator, 3))))) == 3
    assert len(server.batches) == 1 and len(asked) > 1


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
    monkeypatch.setattr(batch_module, "_BATCH_SIZE", 4)
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
