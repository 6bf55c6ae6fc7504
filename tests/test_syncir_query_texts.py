import hashlib
import json
from pathlib import Path

import pytest

from hycir_hf.syncir import (
    DETAILED_PROMPT,
    FEW_SHOT_PROMPT,
    PAPER_PROMPT,
    VISION_PROMPT,
    SynCirConfig,
    parse_query_text,
)
from hycir_hf.syncir.provenance import recipe_key
from hycir_hf.syncir.query_texts import FASHION_PROMPT, MAX_WORDS

REFERENCE, TARGET = "a black dog on a beach", "a white dog in the snow"


@pytest.mark.parametrize(
    ("answer", "query_text"),
    [
        ("Make the dog white.", "Make the dog white."),
        ('"Make the dog white."', "Make the dog white."),
        ("Instruction: Make the dog white.", "Make the dog white."),
        ("**Instruction:** “Make the dog white”", "Make the dog white"),
        ("Short edit instruction: make it white", "make it white"),
        ("Sure! Here is the instruction:\n\nMake the dog white.", "Make the dog white."),
        ("Sure, here's a short instruction: make it white", "make it white"),
        ("1. Make the dog white.\n2. Add snow.", "Make the dog white."),
        ("- make the dog white", "make the dog white"),
        ("Make the dog white.\n\nExplanation: the first dog is black.", "Make the dog white."),
        ("Make the dog white. (Note: the scene changes too)", "Make the dog white."),
        ("```\nmake it  white\n```", "make it white"),
        ("Change 2 dogs to 3 dogs", "Change 2 dogs to 3 dogs"),
        ("Remove the dog", "Remove the dog"),
        ("Make the dog bigger", "Make the dog bigger"),
        ("Put text: 'hello' on it", "Put text: 'hello' on it"),
        ("Change the answer key's colour", "Change the answer key's colour"),
        ("Change 2-door car into a 4-door car", "Change 2-door car into a 4-door car"),
        ("Change 10:30 to noon on the clock", "Change 10:30 to noon on the clock"),
        ("Text-free sign instead", "Text-free sign instead"),
        ("Here is the instruction: make it white", "make it white"),
        ("The instruction is: make it white", "make it white"),
        ("Query text (1): make it white", "make it white"),
        ("<think>\nhm\n</think>\nmake it white", "make it white"),
    ],
)
def test_what_is_said_is_taken_out(answer, query_text):
    assert parse_query_text(answer, REFERENCE, TARGET) == (query_text, None)


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        ("", "empty answer"),
        (" \n\"'\n...", "empty answer"),
        ("I'm sorry, but I cannot help with that.", "refusal"),
        ("As an AI language model I have no eyes.", "refusal"),
        ("A white dog in the snow.", "repeats a caption"),
        ("a BLACK dog on a beach", "repeats a caption"),
        ("Change the reference caption to the other", "speaks of the prompt"),
        ("Target caption: a white dog in the snow", "speaks of the prompt"),
        ("Change the source sentence to snow", "speaks of the prompt"),
        ("Source picture with a white dog instead", "speaks of the prompt"),
        ("Make it a black dog on the beach.", "says nothing new"),
        ("Turn it into a dog", "says nothing new"),
        ("word " * (MAX_WORDS + 1), f"longer than {MAX_WORDS} words"),
        ("Add a second bus!", "repeats an example"),
    ],
)
def test_what_cannot_be_used_has_a_reason(answer, reason):
    examples = [text for *_, text in FEW_SHOT_PROMPT.examples]
    assert parse_query_text(answer, REFERENCE, TARGET, examples) == (None, reason)


def test_an_answer_that_was_cut_off_is_no_query_text():
    said = "Make the dog white and put it in the"
    assert parse_query_text(said, REFERENCE, TARGET, is_cut=True) == (None, "cut off")
    assert parse_query_text(f"Make it white.\n{said}", REFERENCE, TARGET, is_cut=True) == ("Make it white.", None)


def test_the_papers_prompt_is_figure_3_word_for_word():
    (user,) = PAPER_PROMPT.messages("a {target}", "{0} in the snow")  # braces in captions stay
    assert user == {
        "role": "user",
        "content": "Source sentence: a {target} Target sentence: {0} in the snow If source sentence describes a source "
        "picture and target sentence describes a target picture, the source picture and an instruction are used to "
        "find the target picture. The instruction should indicate the difference between source and target. It should "
        "be as short as possible. Show the instruction.",
    }
    roles = [turn["role"] for turn in SynCirConfig(examples=[["a", "b", "c"]]).build_prompt().messages("x", "y")]
    assert roles == ["user", "assistant", "user"]


def test_the_papers_recipe_is_the_defaults_written_out():
    recipe = Path(__file__).parents[1] / "examples" / "paper" / "syncir_paper.yaml"
    assert SynCirConfig.from_yaml(recipe) == SynCirConfig(store_images="reference")


def test_the_recipe_for_fashion_images_speaks_of_clothes():
    recipe = Path(__file__).parents[1] / "examples" / "paper" / "syncir_fashion.yaml"
    turns = SynCirConfig.from_yaml(recipe).build_prompt().messages(REFERENCE, TARGET)
    assert "clothes" in turns[0]["content"] and turns[2]["content"] == "is red with dots and shorter"
    for reference, target, text in FASHION_PROMPT.examples:  # what the examples say would be used
        assert parse_query_text(text, reference, target) == (text, None)


def test_stored_answers_of_the_other_prompts_stay_valid():
    def digest(messages):
        return hashlib.sha256(json.dumps(messages).encode()).hexdigest()[:16]

    assert digest(DETAILED_PROMPT.messages("a", "b")) == "ff6f4d16b70d71e3"
    assert digest(FEW_SHOT_PROMPT.messages("a", "b")) == "fa612f186cc89257"
    assert digest(VISION_PROMPT.messages("a", "b", ["c", "d"])) == "5d484b4e0b6266e6"


def test_a_dataset_by_other_words_of_the_papers_prompt_is_not_finished(monkeypatch):
    now = [recipe_key("images", SynCirConfig(prompt=name)) for name in ("paper", "few_shot")]
    monkeypatch.setattr("hycir_hf.syncir.provenance.PAPER_PROMPT", DETAILED_PROMPT)
    before = [recipe_key("images", SynCirConfig(prompt=name)) for name in ("paper", "few_shot")]
    assert before[0] != now[0] and before[1] == now[1]


def test_captions_stand_in_the_prompt_and_examples_before_them():
    system, user = DETAILED_PROMPT.messages(REFERENCE, TARGET)
    assert system["role"] == "system"
    assert user["content"].index(REFERENCE) < user["content"].index(TARGET)
    turns = FEW_SHOT_PROMPT.messages(REFERENCE, TARGET)
    assert [turn["role"] for turn in turns] == ["system", *["user", "assistant"] * 3, "user"]
    assert REFERENCE in turns[-1]["content"]


def test_a_vision_model_sees_the_pictures_and_not_the_captions():
    *_, user = VISION_PROMPT.messages(REFERENCE, TARGET, ["data:a", "data:b"])
    assert [part["type"] for part in user["content"]] == ["image_url", "image_url", "text"]
    assert user["content"][0]["image_url"]["url"] == "data:a" and REFERENCE not in str(user)
