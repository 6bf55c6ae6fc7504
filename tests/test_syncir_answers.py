"""Answers of real models, by kind: each row is an answer and what is read from it."""

import json

import pytest

from hycir_hf.syncir import parse_query_text
from hycir_hf.syncir.query_texts import MAX_WORDS

REFERENCE, TARGET = "a black dog on a beach", "a white dog in the snow"
TEXT = "Make the dog white."

THOUGHTS = "Okay, the user wants an instruction.\nThe source has a black dog. Maybe: turn the dog brown.\n"

REASONING = [
    f"<think>{THOUGHTS}</think>\n{TEXT}",
    f"{THOUGHTS}</think>\n\n{TEXT}",  # the chat template wrote the opening tag
    f"<thinking>{THOUGHTS}</thinking>{TEXT}",
    f"<THINK>\n{THOUGHTS}\n</THINK>\n{TEXT}",
    f"<Thought>{THOUGHTS}</Thought>\n<Output>\n{TEXT}\n</Output>",
    f"<thoughts>{THOUGHTS}</thoughts>{TEXT}",
    f"<reasoning>{THOUGHTS}</reasoning>\n<answer>{TEXT}</answer>",
    f"<reflection>{THOUGHTS}</reflection>{TEXT}",
    f"<thinking>{THOUGHTS}<reflection>Wait, no.</reflection>{THOUGHTS}</thinking><output>{TEXT}</output>",
    f"<think>a</think>\nHmm, wait. Add a dog.\n<think>b</think>\n{TEXT}",
    f"<seed:think>{THOUGHTS}<seed:cot_budget_reflect>used 10</seed:cot_budget_reflect>{THOUGHTS}</seed:think>{TEXT}",
    f"[THINK]{THOUGHTS}[/THINK]{TEXT}",
    f"{THOUGHTS}[/THINK]{TEXT}</s>",
    f"◁think▷{THOUGHTS}◁/think▷{TEXT}",
    f"<|channel|>analysis<|message|>{THOUGHTS}<|end|><|start|>assistant<|channel|>final<|message|>{TEXT}<|return|>",
    f"<|start|>assistant<|channel|>commentary<|message|>Working.<|end|><|start|>assistant<|channel|>final<|message|>{TEXT}",
    f"analysis{THOUGHTS}assistantfinal{TEXT}",
    f"<|channel>thought\n{THOUGHTS}<channel|>{TEXT}<turn|>",
    f"<|START_THINKING|>{THOUGHTS}<|END_THINKING|><|START_RESPONSE|>{TEXT}<|END_RESPONSE|>",
    f"<|begin_of_thought|>{THOUGHTS}<|end_of_thought|>\n<|begin_of_solution|>\n{TEXT}\n<|end_of_solution|>",
    f"<think>{THOUGHTS}</think><answer><|begin_of_box|>{TEXT}<|end_of_box|></answer>",
    f"Here is my thought process:\n{THOUGHTS}\nHere is my response:\n{TEXT}",
    f"Thinking...\n{THOUGHTS}\n...done thinking.\n\n{TEXT}",
    f'<details type="reasoning" done="true"><summary>Thought for 3 s</summary>{THOUGHTS}</details>\n{TEXT}',
    f"&lt;think&gt;{THOUGHTS}&lt;/think&gt;{TEXT}",
    f"<think>\n\n</think>\n\n{TEXT}",
    f"<think/>{TEXT}",
    f"< think >{THOUGHTS}</ think >{TEXT}",
    f'<thinking signature="x">{THOUGHTS}</thinking>{TEXT}',
    *(f"<{name}>{THOUGHTS}</{name}>{TEXT}" for name in ("thought_process", "chain-of-thought", "antThinking", "COT")),
    *(f"<{name}>{THOUGHTS}</{name}>{TEXT}" for name in ("internal_reasoning", "self-reflection", "critique", "思考")),
    f"[REASONING]{THOUGHTS}[/REASONING]{TEXT}",
    f"<thinking_start>{THOUGHTS}<thinking_end>{TEXT}",
    f"<|inner_prefix|>{THOUGHTS}<|inner_suffix|>{TEXT}",
    f"```thinking\n{THOUGHTS}```\n{TEXT}",
    f"{TEXT}\n<explanation>The dog is black at first.</explanation>",
    f"<scratchpad>{THOUGHTS}</scratchpad>\n**Instruction:** {TEXT}",
    f"**Reasoning:** The dog changes its colour.\n\n**Instruction:** {TEXT}",
    f"### Analysis\nThe dog changes.\nIt is white.\n\n### Instruction\n{TEXT}",
    f"{THOUGHTS}So the answer follows.\n\nFinal answer: {TEXT}",
    f"Let me think about the two pictures.\n\n\\boxed{{\\text{{{TEXT}}}}}",
    f"Source sentence: a black dog\nTarget sentence: a white dog\nInstruction: {TEXT}",
]
WRAPPED = [
    f"```\n{TEXT}\n```",
    f"```text\n{TEXT}\n```",
    f"```markdown\n{TEXT}\n```\nLet me know if you want another.",
    f"~~~\n{TEXT}\n~~~",
    f"```{TEXT}```",
    f"`{TEXT}`",
    f"Sure! Here it is:\n\n```plaintext\n{TEXT}\n```",
    f'```json\n{{"instruction": "{TEXT}"}}\n```',
    f'```json {{"instruction": "{TEXT}"}} ```',
    f'```JSON\n{{\n  "instruction": "{TEXT}"\n}}\n```\n\nThis changes the colour.',
    f'```json\n{{"instruction": "{TEXT}"}}',
    f'{{"instruction": "{TEXT}"}}',
    f'json\n{{"query_text": "{TEXT}"}}',
    f'{{"reasoning": "The dog changes.", "instruction": "{TEXT}", "confidence": 0.9}}',
    f'{{"source": "a black dog", "target": "a white dog", "difference": "{TEXT}"}}',
    f'{{"result": {{"instruction": "{TEXT}"}}}}',
    f'{{"instructions": ["{TEXT}", "Add snow."]}}',
    f'["{TEXT}"]',
    f'[{{"instruction": "{TEXT}"}}]',
    f'"{TEXT}"',
    json.dumps(json.dumps({"instruction": TEXT})),
    f"{{'instruction': '{TEXT}'}}",
    f'{{"instruction": "{TEXT}",}}',
    f'{{instruction: "{TEXT}"}}',
    f"{{“instruction”: “{TEXT}”}}",
    f'Here is the JSON:\n{{"instruction": "{TEXT}"}}',
    f'{{"role": "assistant", "content": "{TEXT}"}}',
    f'{{"name": "write", "arguments": {{"instruction": "{TEXT}"}}}}',
    f"<instruction>{TEXT}</instruction>",
    f"<answer>\n{TEXT}\n</answer>",
    f"<edit_instruction>{TEXT}</edit_instruction><reason>It is white.</reason>",
    f"<p>{TEXT}</p>",
    f"<b>Instruction:</b> {TEXT}<br>",
    f"# Instruction\n\n{TEXT}",
    f"## {TEXT}",
    f"**{TEXT}**",
    "Make the dog **white**.",
    "*Make* the __dog__ `white`.",
    f"> {TEXT}",
    f"- {TEXT}",
    f"• {TEXT}",
    f"1) {TEXT}",
    f"| Instruction |\n|---|\n| {TEXT} |",
    f"“{TEXT}”",
    f"«{TEXT}»",
    f"'{TEXT}'",
    f'"{TEXT}',
    f"Instruction\n-----------\n{TEXT}",
    f"=== Instruction ===\n{TEXT}",
]
LABELS = [
    f"{label} {TEXT}"
    for label in (
        *("Instruction:", "**Instruction:**", "**Instruction**:", "__Instruction:__", "*Instruction:*", "INSTRUCTION:"),
        *(
            "Instruction -",
            "Instruction –",
            "**Instruction** -",
            "[Instruction]",
            "[Instruction]:",
            "### Instruction:\n",
        ),
        *("Edit instruction:", "Editing instruction:", "Modification instruction:", "Modification text:", "Query:"),
        *("Final answer:", "Answer:", "The answer is:", "Final instruction:", "Suggested instruction:", "Output:"),
        *("Short instruction:", "Possible instruction:", "The instruction would be:", "The instruction could be:"),
        *("Instruction to find the target picture:", "Instruction for the source image:", "Assistant:", "Response:"),
        *("Here's a short instruction:", "Here’s the instruction:", "So, the instruction is:", "Query text (1):"),
        *(
            "Instruction 1:",
            "1. Instruction:",
            "- **Instruction:**",
            "Here's the instruction.",
            "Here is a short instruction.",
            "(Instruction)",
            "Instruction :",
            "Search query:",
            "Retrieval query:",
            "Command:",
        ),
        *("Sure! Here's the instruction:", "Sure! Here's the instruction:\n\n", "Certainly! Here is one:\n"),
        *("Of course. Here is a concise instruction for you:", "Okay, here you go:", "Sure thing! ", "Absolutely! "),
        *("Based on the captions, the instruction is:", "Here is an instruction that shows the difference:\n"),
        *("To find the target picture from the source picture, use the following instruction:\n", "Got it. "),
        *("The following instruction can be used to find the target image:\n\n", "Instruction: Instruction:"),
        *(
            "Sure, I can help with that!\n\nInstruction:",
            "You can use this instruction:",
            "Instruction →",
            "Instruction：",
            "Task:",
            "Difference:",
        ),
    )
]
LEFTOVERS = [
    *(f"{TEXT}{token}" for token in ("<|im_end|>", "</s>", "<|endoftext|>", "<|eot_id|>", "<end_of_turn>", "<eos>")),
    *(
        f"{TEXT}{token}"
        for token in ("<|end|>", "<｜end▁of▁sentence｜>", "<|END_OF_TURN_TOKEN|>", "[EOS]", "<|return|>")
    ),
    *(
        f"{TEXT}\n{token}"
        for token in ("<end_of_utterance>", "[|endofturn|]", "<|end_of_text|>", "<pad><pad>", "<turn|>")
    ),
    f"<|im_start|>assistant\n{TEXT}<|im_end|>\n<|im_start|>user\nAdd a hat",
    f"<|start_header_id|>assistant<|end_header_id|>\n\n{TEXT}<|eot_id|>",
    f"<|start_of_role|>assistant<|end_of_role|>{TEXT}<|end_of_text|>",
    f"<|im_assistant|>assistant<|im_middle|>{TEXT}<|im_end|>",
    f"<start_of_turn>model\n{TEXT}<end_of_turn>",
    f"<s> {TEXT} </s>",
    f"[/INST] {TEXT}</s>",
    f"{TEXT}</s><s>[INST] And now?",
    f"<bos>{TEXT}<eos>",
    f"<|assistant|>\n{TEXT}",
    f"{TEXT}</instruction>",
    f"{TEXT}<end>",
    f"\ufeff{TEXT}",
    "Make\u200b the\u200b dog\u200b white.",
    "Ma\u00adke the dog whi\u200dte.",
    f"\u202a{TEXT}\u202c",
    f"\u2066{TEXT}\u2069\u200e",
    f"\u202e{TEXT}",
    f"{TEXT}\U000e0041\U000e0042",
    f"{TEXT}\x00\x07\x1b",
    f"{TEXT}\ufe0f",
    "Make\u2060 the\u180e dog\u3164 white.",
    "Make▁the▁dog▁white.",
    "Make\u00a0the\u2003dog\u3000white.",
    f"{TEXT}<0x0A><0x0A>",
    f"{TEXT}\r\n\r\nThis fits.",
    f"{TEXT} (4 words)",
    f"{TEXT} [END]",
    f"{TEXT} (Note: the scene changes too)",
    f"{TEXT} Note: the scene changes too.",
    f"{TEXT} Let me know if you need more!",
    f"{TEXT} This instruction shows the difference.",
    f"{TEXT}\n\nExplanation: the first dog is black.",
    f"{TEXT}\n\n**Explanation:** the first dog is black.",
]


@pytest.mark.parametrize("answer", [*REASONING, *WRAPPED, *LABELS, *LEFTOVERS])
def test_the_text_is_read_from_what_is_around_it(answer):
    assert parse_query_text(answer, REFERENCE, TARGET) == (TEXT, None)


@pytest.mark.parametrize(
    "text",
    [
        "Add a sticky note: it says hello.",
        "Remove the think bubble",
        "Make the answer sheet blank",
        "None of the people wear hats",
        "No people in it",
        "Nothing on the table",
        "Put the word <think> on the mug",
        "Add a [THINK] poster to the wall",
        'Change the sign to "<think>"',
        'Add a sign that says "I can\'t swim"',
        "Make the sign read “I’m sorry”",
        'Add a sign that says "SALE"',
        '"Stop" becomes "Go" on the sign',
        "Change the dogs' collars",
        "Make the dog's fur white",
        "Change the question to an answer",
        "Replace the query window by a map",
        "Add an instruction manual to the table",
        "Show the same dogs but at night",
        "Leave only one dog, unchanged in colour",
        "Make both dogs identical twins",
        "Same dog but white",
        "I want a white dog instead",
        "I'd like to see it in red",
        "Sorry-looking puppy instead of the wolf",
        "Okay hand sign instead of a fist",
        "Sure-footed goat on the cliff",
        "Great Dane instead of the poodle",
        "Replace the AI robot with a person",
        "Add a language model's logo",
        "Swap the reasoning chart for a photo of cats",
        "Let the dog run: it is happy now",
        "Make 2 dogs: one white, one brown",
        "Change 10:30 to noon on the clock",
        "Scale it by 5 * 3 and 2 * 4",
        'Make the tv 12"',
        "Replace C# with C++ on the slide",
        "Put 50% more snow & ice on it",
        "Make it a <3 shape",
        "Add a #1 sign",
        "Looking at the camera",
        "Add a 👨‍👩‍👧 and a ☀️ sticker",
        "می‌خواهم سگ سفید باشد",
        "犬を白くする",
        "Make the text bold: it must be read from afar",
        "The dog cannot be seen",
        "They are sorry",
        "Write {name} on the badge",
        "End of the pier instead of its start",
        "Note the time on the clock face and show noon",
        "Show the source of the river",
    ],
)
def test_an_instruction_that_only_resembles_such_habits_stays_whole(text):
    assert parse_query_text(text, REFERENCE, TARGET) == (text, None)


@pytest.mark.parametrize(
    ("answer", "text"),
    [
        ("Add a sign that says:\n'SALE'", "Add a sign that says: 'SALE'"),
        ("Make the dog white and\nput it in the snow.", "Make the dog white and put it in the snow."),
        ('{"instruction": "Add a sign: \\"SALE\\""}', 'Add a sign: "SALE"'),
        ('"Add a \\"SALE\\" sign"', 'Add a "SALE" sign'),
        ("Tom &amp; Jerry instead of the dog&#39;s toy", "Tom & Jerry instead of the dog's toy"),
        ("Make these changes:\n1. Make it white.\n2. Add snow.", "Make it white."),
        ("“Make it white”.", "Make it white."),
    ],
)
def test_what_belongs_together_is_kept_together(answer, text):
    assert parse_query_text(answer, REFERENCE, TARGET) == (text, None)


CUT_REASONING = [
    f"<think>{THOUGHTS}",
    f"<think>\n{THOUGHTS}\nInstruction: Make the dog white.\nBut wait",
    f"<THINKING>{THOUGHTS}",
    f"[THINK]{THOUGHTS}",
    f"◁think▷{THOUGHTS}",
    f"<seed:think>{THOUGHTS}",
    f"<reasoning>{THOUGHTS}",
    f"<|channel|>analysis<|message|>{THOUGHTS}",
    "<|channel|>analysis",
    f"analysis{THOUGHTS}",
    f"<|channel>thought\n{THOUGHTS}",
    f"<|START_THINKING|>{THOUGHTS}",
    f"<|begin_of_thought|>{THOUGHTS}",
    f"Here is my thought process:\n{THOUGHTS}",
    f"<think>a</think>\n<think>{THOUGHTS}",
    f"<scratchpad>{THOUGHTS}",
    f"Okay. <think>\n{THOUGHTS}",
]


@pytest.mark.parametrize("answer", CUT_REASONING)
def test_reasoning_without_an_end_is_cut_off_whatever_the_endpoint_says(answer):
    for is_cut in (True, False):
        assert parse_query_text(answer, REFERENCE, TARGET, is_cut=is_cut) == (None, "cut off")


@pytest.mark.parametrize(
    ("answer", "outcome"),
    [
        ("Make the dog wh", None),
        ("Instruction: Make the dog wh", None),
        ("Sure! Here is the instruction:\n\nMake the dog wh", None),
        (THOUGHTS, None),  # the opening tag stood in the prompt
        ("Alright, let's tackle this.\n\nFirst, the dog is black.\nThen", None),
        ("We need to produce an instruction.\nThe dog", None),
        ("The two captions differ in the dog's colour.\nSo maybe", None),
        ("long " * (MAX_WORDS + 1) + "\nand", None),
        ('{"instruction": "Make the dog wh', None),
        ('```json\n{\n  "instruction": "Make the dog wh', None),
        ("<think>x</think>\nMake the dog wh", None),
        ("<think>x</think>\n", None),
        ("", None),
        ("Make the dog white.\nThis is bec", "Make the dog white."),
        ('{"instruction": "Make the dog white.", "reason": "bec', None),
        ("<think>x</think>\nMake the dog white.\nThis is bec", "Make the dog white."),
    ],
)
def test_at_the_maximum_length_only_what_is_whole_is_used(answer, outcome):
    expected = (None, "cut off") if outcome is None else (outcome, None)
    assert parse_query_text(answer, REFERENCE, TARGET, is_cut=True) == expected


REFUSALS = [
    "I'm sorry, but I cannot help with that.",
    "I’m sorry, but I can’t assist with that request.",
    "I am sorry, I can not do this.",
    "Sorry, I can't do that.",
    "I cannot assist with this.",
    "I can’t create that instruction.",
    "I'm unable to see images.",
    "I am not able to write this.",
    "I apologize, but this is not possible.",
    "Unfortunately, I cannot write an instruction.",
    "As an AI language model, I have no eyes.",
    "As a large language model I cannot see.",
    "I won't help with that.",
    "I must decline.",
    "I don't see any captions in your message.",
    "I do not have enough information to do this.",
    "It seems you haven't provided the captions.",
    "Could you please provide the captions?",
    "Please provide the two captions.",
    "No captions were provided.",
    "Your request was blocked by our content policy.",
    "My apologies, but I can't.",
    "Hmm, I’m not comfortable with this one.",
    "Lo siento, no puedo ayudar con eso.",
    "抱歉，我无法帮助。",
    '{"instruction": "I’m sorry, I can’t help with that."}',
    "<think>Is this allowed?</think>I can’t help with that.",
    "**I'm sorry**, but I can't help.",
]
NON_ANSWERS = [
    *("None", "None.", "N/A", "n/a", "NA", "null", "Nothing", "No", "No change", "No changes needed.", "Unknown"),
    *("No change needed", "No change is needed.", "No changes are necessary.", "No changes required", "Not applicable"),
    *("No difference.", "There is no difference.", "There are no differences between the two images.", "Identical"),
    *("The images are identical.", "The captions are the same.", "No instruction needed.", "No modification needed"),
    *(
        "Nothing to change.",
        "None of the above.",
        "There's no difference.",
        "(none)",
        "Keep it the same.",
        "Keep it as is",
        "Unchanged",
        "Leave the image unchanged.",
        "None needed",
    ),
    *("No edit is required as the images are the same.", "**None**", '"None"', "Instruction: None", "Instruction: N/A"),
    *('{"instruction": "None"}', "[instruction]", "<your instruction here>", "Instruction:", "Done.", "Okay."),
    *(
        "[Insert instruction here]",
        "It is already the same.",
        "Sure!",
        "```\nNone\n```",
        "None – the images are the same.",
    ),
    *("TBD", "No answer", "NaN", "idk", "Do nothing."),
]


@pytest.mark.parametrize("answer", REFUSALS)
def test_a_refusal_is_no_query_text(answer):
    assert parse_query_text(answer, REFERENCE, TARGET) == (None, "refusal")


@pytest.mark.parametrize("answer", NON_ANSWERS)
def test_an_answer_that_says_nothing_is_no_query_text(answer):
    assert parse_query_text(answer, REFERENCE, TARGET) == (None, "no instruction")


@pytest.mark.parametrize(
    ("answer", "reason"),
    [
        (THOUGHTS, "thinks aloud"),
        ("The difference is the dog's colour and place.", "thinks aloud"),
        ('{"a": "Make it white.", "b": "Add snow."}', "unreadable JSON"),
        ("{}", "empty answer"),
        ("[]", "empty answer"),
        ('{"instruction": null}', "empty answer"),
        ('{"instruction": ""}', "empty answer"),
        ("```json\n```", "empty answer"),
        ("<think>x</think>", "empty answer"),
        ("<|im_end|>", "empty answer"),
        ("\u200b\ufeff", "empty answer"),
    ],
)
def test_other_answers_are_dropped_with_the_right_reason(answer, reason):
    assert parse_query_text(answer, REFERENCE, TARGET) == (None, reason)


@pytest.mark.parametrize(
    "piece",
    ["<think>", "</think>", "[", "{", '{"a":', "`", "***", '"', "(", "\\boxed{", "<answer>", "&", "\u200d", "a: "],
)
def test_no_answer_stops_the_reader(piece):
    query_text, reason = parse_query_text(piece * 20_000, REFERENCE, TARGET)
    assert (query_text is None) != (reason is None)
