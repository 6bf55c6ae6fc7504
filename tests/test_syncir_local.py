import pytest
import torch
from conftest import BOS, EOS, PAD, VOCAB_SIZE, build_tokenizer
from transformers import LlamaConfig, LlamaForCausalLM

from hycir_hf.syncir import FEW_SHOT_PROMPT, LocalGenerator, parse_query_text
from hycir_hf.syncir.llm import local as local_module
from hycir_hf.syncir.llm.answers import make_question

TEMPLATE = "{% for m in messages %}{{ m['role'] + ' ' + m['content'] + ' . ' }}{% endfor %}"
WORDS = ("night", "day", "red", "blue", "hat", "dog", "cat", "snow")


def build_language_model(seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=32,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=512,
        bos_token_id=BOS,
        eos_token_id=EOS,
        pad_token_id=PAD,
        initializer_range=0.3,
    )
    return LlamaForCausalLM(config).eval()


def build_generator(**options):
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TEMPLATE
    return LocalGenerator(
        build_language_model(), tokenizer, "tiny", **{"batch_size": 4, "max_new_tokens": 6, **options}
    )


def questions(generator, count=40):
    captions = [" ".join(WORDS[(i + j) % 8] for j in range(1 + i % 5)) for i in range(count)]
    return [make_question(generator, FEW_SHOT_PROMPT.messages(c, f"a {c}")) for c in captions]


def answers(generator, asked):
    return {question.key: answer for question, answer in generator(iter(asked))}


def test_a_shared_beginning_run_once_changes_no_answer(monkeypatch):
    generator = build_generator()
    asked = questions(generator)
    found = answers(generator, asked)
    assert len({answer.text for answer in found.values()}) > 5  # the questions do matter
    monkeypatch.setattr(local_module, "_common_prefix", lambda prompts: [])
    assert answers(build_generator(batch_size=1), asked) == found


def test_answers_come_in_pools_and_tell_whether_they_were_cut_off():
    generator = build_generator(max_new_tokens=3)
    assert generator.pool_size == 4 * 8
    found = answers(generator, questions(generator))
    assert all(answer.is_cut == (answer.completion_tokens == 3) for answer in found.values())
    assert all(answer.prompt_tokens > 20 for answer in found.values())


def test_one_question_alone_is_answered():
    generator = build_generator()
    [question] = questions(generator, 1)
    assert answers(generator, [question])[question.key] == answers(generator, questions(generator))[question.key]


def test_a_model_without_a_chat_template_is_refused():
    with pytest.raises(ValueError, match="chat template"):
        LocalGenerator(build_language_model(), build_tokenizer(), "tiny")


def test_it_loads_from_a_folder(tmp_path):
    generator = build_generator()
    generator.model.save_pretrained(tmp_path)
    generator.tokenizer.save_pretrained(tmp_path)
    loaded = LocalGenerator.from_pretrained(str(tmp_path), name="tiny", batch_size=4, max_new_tokens=6)
    asked = questions(generator, 5)
    assert answers(loaded, asked) == answers(generator, asked)


def say(generator, monkeypatch, text):
    """Let the model write a text; the answer that comes of it."""
    ids = [*generator.tokenizer(text, add_special_tokens=False)["input_ids"], EOS]
    write = lambda input_ids, **_: torch.cat([input_ids, torch.tensor([ids] * len(input_ids))], 1)  # noqa: E731
    monkeypatch.setattr(generator.model, "generate", write)
    [answer] = answers(generator, questions(generator, 1)).values()
    return answer.text


def test_reasoning_between_special_tokens_is_told_from_the_answer(monkeypatch):
    generator = build_generator()
    generator.tokenizer.add_tokens(["[THINK]", "[/THINK]"], special_tokens=True)
    said = say(generator, monkeypatch, "[THINK] night [/THINK] red hat")
    assert parse_query_text(said, "a", "b") == ("red hat", None)


def test_reasoning_that_the_template_opens_is_cut_off_without_an_end(monkeypatch):
    generator = build_generator()
    generator.tokenizer.chat_template = f"{TEMPLATE}<think>"
    assert parse_query_text(say(generator, monkeypatch, "red hat"), "a", "b") == (None, "cut off")


def test_parameters_reach_the_template_and_the_model():
    tokenizer = build_tokenizer()
    tokenizer.chat_template = TEMPLATE + "{% if loud %}red{% endif %}"
    options = {"chat_template_kwargs": {"loud": True}, "repetition_penalty": 5.0, "top_k": None}
    generator = LocalGenerator(build_language_model(), tokenizer, "tiny", max_new_tokens=6, **options)
    plain = build_generator()
    [question] = questions(plain, 1)
    loud, quiet = (next(iter(each([question])))[1] for each in (generator, plain))
    assert loud.prompt_tokens == quiet.prompt_tokens + 1
    assert generator.parameters == {
        "max_new_tokens": 6,
        "repetition_penalty": 5.0,
        "chat_template_kwargs": {"loud": True},
    }
