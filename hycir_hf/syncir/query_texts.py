"""Query texts: what an LLM is asked, and which part of its answer is used.

Paper: Pseudo Triplet Generation, second step: the LLM sees the two captions and writes a short instruction that leads
from the reference caption to the target caption.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from .llm.reading import read_answer
from .llm.statements import Statement, statements, straightened

Messages = list[dict[str, Any]]
"""A chat as the OpenAI-compatible APIs take it."""

QUERY_TEXT_FORMAT: dict[str, Any] = {
    "type": "json_schema",
    "json_schema": {
        "name": "query_text",
        "strict": True,
        "schema": {
            "type": "object",
            "properties": {"instruction": {"type": "string"}},
            "required": ["instruction"],
            "additionalProperties": False,
        },
    },
}
"""Structured output: `response_format` of an answer with one text."""

MAX_WORDS = 40  # longer answers explain something or tell a story
_ALOUD_COMPLAINT, _PROMPT_COMPLAINT, _CUT = "thinks aloud", "speaks of the prompt", "cut off"


@dataclass(frozen=True)
class Prompt:
    """How an LLM is asked for a query text.

    Args:
        name (`str`): Stored with each triplet.
        instruction (`str`): What to do; the system message. If it is empty, there is no system message.
        examples (`Sequence[tuple[str, str, str]]`): Worked examples: reference caption, target caption, query text.
        question (`str`): Template with {reference} and {target}, the captions; the user message.
    """

    name: str
    instruction: str
    examples: Sequence[tuple[str, str, str]] = ()
    question: str = "Reference caption: {reference}\nTarget caption: {target}\nInstruction:"

    def messages(self, reference_caption: str, target_caption: str, image_urls: Sequence[str] = ()) -> Messages:
        """Write the chat that asks for one query text.

        Args:
            reference_caption (`str`): Caption of the reference image.
            target_caption (`str`): Caption of the target image.
            image_urls (`Sequence[str]`): Reference and target image (`data:` or other URLs) for a vision model, which
                sees the images instead of the captions.
        """
        turns: Messages = [{"role": "system", "content": self.instruction}] if self.instruction else []
        for reference, target, query_text in self.examples:
            turns.append({"role": "user", "content": self.question.format(reference=reference, target=target)})
            turns.append({"role": "assistant", "content": query_text})
        if image_urls:
            images = [{"type": "image_url", "image_url": {"url": url}} for url in image_urls]
            text = {"type": "text", "text": "The first picture is the reference, the second the target.\nInstruction:"}
            turns.append({"role": "user", "content": [*images, text]})
        else:
            question = self.question.format(reference=reference_caption, target=target_caption)
            turns.append({"role": "user", "content": question})
        return turns


# Stored answers belong to the exact words of a prompt: a changed word asks, and pays for, every question again.
# Paper: Figure 3, word for word. That it is one user message without a system message is a reading.
PAPER_PROMPT = Prompt(
    "paper",
    instruction="",
    question=(
        "Source sentence: {reference} Target sentence: {target} If source sentence describes a source picture and "
        "target sentence describes a target picture, the source picture and an instruction are used to find the "
        "target picture. The instruction should indicate the difference between source and target. It should be as "
        "short as possible. Show the instruction."
    ),
)

DETAILED_PROMPT = Prompt(
    "detailed",
    "You are given the captions of two pictures, a reference and a target. Write one short instruction that says how "
    "to change the reference picture so that it becomes the target picture. Name only what changes, do not describe "
    "what stays the same, and do not mention the captions. Answer with the instruction alone, in at most 20 words.",
)

FEW_SHOT_PROMPT = Prompt(
    "few_shot",
    "Write one short instruction that turns the reference picture into the target picture.",
    (
        ("a black dog running on a beach", "a black dog running in the snow", "Put the dog in the snow."),
        ("a red bus parked on a street", "two red buses parked on a street", "Add a second bus."),
        ("a woman holding an umbrella", "a man holding a book", "Make it a man and replace the umbrella with a book."),
    ),
)

# Paper: Discussion, future work: synthetic labels for fashion images. The words are ours, in the manner of FashionIQ.
FASHION_PROMPT = Prompt(
    "fashion",
    "You are given the captions of two pictures of clothes, a reference and a target. Write what a shopper would say "
    "to get from the reference to the target: colour, pattern, fabric, length, sleeves, neckline, fit or print. Speak "
    "of the garment alone, not of the person, the pose or the background. Answer with at most 12 words.",
    (
        (
            "a woman wearing a long black dress",
            "a woman in a short red dress with dots",
            "is red with dots and shorter",
        ),
        (
            "a man in a white shirt with long sleeves",
            "a blue shirt with short sleeves",
            "is blue and has short sleeves",
        ),
        ("a gray t shirt with a logo", "a gray t shirt", "has no logo"),
    ),
)

VISION_PROMPT = Prompt(
    "vision",
    "You see two pictures, a reference and a target. Write one short instruction that says how to change the reference "
    "so that it becomes the target. Name only what changes. Answer with the instruction alone, in at most 20 words.",
)

PROMPTS = {
    prompt.name: prompt for prompt in (PAPER_PROMPT, DETAILED_PROMPT, FEW_SHOT_PROMPT, FASHION_PROMPT, VISION_PROMPT)
}

_SELF = r"(?:i|we)(?:'m| am| are)?"
_REFUSAL = re.compile(
    rf"(?:^|[.!?\n]\s*|\b(?:unfortunately|sorry|but|however|hmm),?\s+)(?:as an? (?:\w+ )?(?:ai|assistant|"
    rf"language model)\b|"
    rf"i'm (?:just )?an ai|{_SELF} (?:(?:very |really |so |truly )?sorry|afraid|unable|not able|not comfortable|"
    rf"unsure)\b|"
    rf"{_SELF} (?:cannot|can't|can not|won't|will not|must decline|have to decline|decline|apologi[sz]e|"
    rf"do not|don't|"
    r"couldn't|could not|didn't|did not|need more|would need|am not sure|can only)\b|(?:my )?apologies\b|sorry\b(?!-)|"
    r"(?:it is|it's) not possible|(?:unable|not possible|impossible) to\b|cannot (?:help|assist|comply|generate|"
    r"provide|"
    r"determine|answer)|no (?:images?|captions?|pictures?|sentences?) (?:was|were|is|are|has|have) |it (?:seems|"
    r"appears|looks) "
    r"(?:that |like )?(?:you|the (?:images?|captions?|sentences?)|there)|(?:could|can|"
    r"would) you (?:please )?(?:provide|share|"
    r"clarify|upload)|please (?:provide|share|upload|clarify|give me)|(?:the|your|this) (?:request|prompt|content|"
    r"response) "
    r"(?:was|is|has been|violates|cannot)|lo siento|je suis désolé|désolé|es tut mir leid|mi dispiace|desculpe|lamento)"
    r"|^(?:抱歉|对不起|很抱歉|對不起|申し訳|すみません|죄송|извините|к сожалению)",
    re.IGNORECASE,
)
_PROMPT_WORDS = re.compile(
    r"\b(?:source|reference|target|first|second) (?:caption|picture|image|sentence)s?\b|\b(?:caption|sentence)s?\s*:",
    re.IGNORECASE,
)
_ALOUD = re.compile(
    rf"^\W*(?:(?:okay|ok|alright|hmm+|wait|well|so|now|right|first(?:ly| of all)?|let me think)\b\W*)*"
    rf"(?:$|the (?:user|two (?:captions|sentences))\b|{_SELF} (?:need to|have to|should|must|will|want to|think|notice|"
    r"going|guess|given|asked|looking|can (?:see|say|use)|know)\b|(?:i|we)'ll\b|let me\b|let's (?:see|think|analy[sz]e|"
    r"compare|look|break|start|consider|figure|parse|examine|go|find|try|identify|tackle|focus|work)\b|"
    r"the (?:task|question|goal) (?:is|asks|was)\b|the (?:main|key|only|biggest)? ?differences?\b|"
    r"the (?:source|target|reference|instruction) (?:sentence|caption|picture|image|describes|shows|should|must|"
    r"needs)\b|"
    r"looking at the (?:source|target|captions?|sentences?|two|differences?)\b|(?:compar|analy[sz])ing the\b|"
    r"both (?:captions|"
    r"sentences)\b|to (?:determine|figure|identify|create|generate|write|come up|produce|craft|formulate)\b|"
    r"thinking about (?:the|this|how)\b|given (?:that|the (?:source|captions?|sentences?|two))\b)",
    re.IGNORECASE,
)
# An answer of these words alone says that there is nothing to say.
_NOTHING = set("no none not nothing unchanged same identical na null nil unknown undefined empty tbd idk nan".split())
_NOTHING_MORE = set(
    """
    a about above all already and answer any applicable applied apply are aren't as at available be because been
    between both can caption captions change changed changes could description descriptions detected determined
    difference differences different do does doesn't done don't edit edits either else exactly exist exists for found
    given has have here i image images in instruction instructions is isn't it its keep known leave made mentioned
    modification modifications necessary need needed needs no of on or other pair photo photos picture pictures
    possible provided query reference remain remains required same scene second see seem seems sentence sentences
    should significant since so source stay stays target text that the them there therefore there's these they this to
    transformation two unchanged visible was were with would
    """.replace("'", "").split()
)
_FILLER = set(
    """
    absolutely alright answer certainly course done edit exactly finished hmm here hi hello insert instruction
    instructions is modification need of ok okay placeholder query short sure text thanks thank the understood yes
    you your
    """.split()
)
# An instruction that holds only these words and those of the reference caption changes nothing.
_FRAME_WORDS = set(
    """
    a an and as at be become becomes by change convert for from have in into is it its let make of on please put s so
    that the them there they this to transform turn with
    """.split()
)


def parse_query_text(
    answer: str,
    reference_caption: str,
    target_caption: str,
    example_texts: Sequence[str] = (),
    *,
    is_cut: bool = False,
) -> tuple[str | None, str | None]:
    """Take the query text out of an LLM's answer.

    Args:
        answer (`str`): As it came.
        reference_caption (`str`): An answer that repeats it is not used.
        target_caption (`str`): An answer that repeats it is not used.
        example_texts (`Sequence[str]`): The prompt's worked answers, which small models tend to repeat.
        is_cut (`bool`): Whether the answer ended at the maximum length.

    Returns:
        `tuple[str | None, str | None]`: The query text and None, or None and what is wrong with the answer.
    """
    # Paper: does not say how answers were cleaned. These rules are ours.
    said = read_answer(answer)
    if said is None:
        return None, _CUT
    found = statements(said)
    known = {_plain(reference_caption), _plain(target_caption)}, {_plain(example) for example in example_texts}
    complaints = [_complaint(one, reference_caption, *known, is_cut) for one in found]
    if not found:
        return None, _why_nothing(said, is_cut)
    chosen = 0
    if complaints[0] in (_ALOUD_COMPLAINT, _PROMPT_COMPLAINT, _CUT):  # thoughts, then "Instruction: ..."
        chosen = next((i for i, one in enumerate(found) if one.is_labelled and not complaints[i]), 0)
    text = found[chosen].text
    return (text, None) if complaints[chosen] is None else (None, complaints[chosen])


def _complaint(
    one: "Statement", reference_caption: str, captions: set[str], examples: set[str], is_cut: bool
) -> str | None:
    """What is wrong with a statement, or None."""
    text, plain = one.text, _plain(one.text)
    words, is_aloud = plain.split(), _ALOUD.match(straightened(one.text)) is not None
    rules = (
        (is_cut and (one.is_last or is_aloud or len(words) > MAX_WORDS), _CUT),
        (_is_refusal(text), "refusal"),
        (_says_nothing(words), "no instruction"),
        (text[:2] in ('{"', "{'", "{\n", '["', "[{"), "unreadable JSON"),
        (plain in captions, "repeats a caption"),
        (plain in examples, "repeats an example"),
        (is_aloud, _ALOUD_COMPLAINT),
        (_PROMPT_WORDS.search(text) is not None, _PROMPT_COMPLAINT),
        (set(words) - _FRAME_WORDS <= set(_plain(reference_caption).split()), "says nothing new"),
        (len(words) > MAX_WORDS, f"longer than {MAX_WORDS} words"),
    )
    return next((complaint for applies, complaint in rules if applies), None)


def _why_nothing(said: str, is_cut: bool) -> str:
    """What is wrong with an answer without a statement."""
    if not re.search(r"\w", said) or is_cut:
        return _CUT if is_cut else "empty answer"
    return _PROMPT_COMPLAINT if _PROMPT_WORDS.search(said) else "no instruction"


def _is_refusal(text: str) -> bool:
    """Whether the LLM speaks of itself or of its limits; what stands in quotation marks is not looked at."""
    unquoted = re.sub(r"\"[^\"]*\"|“[^”]*”|(?<!\w)'[^']*'(?!\w)", "", straightened(text))
    return _REFUSAL.search(unquoted) is not None


def _says_nothing(words: Sequence[str]) -> bool:
    """Whether an answer is "None", "N/A", "No change is needed" and the like, or a placeholder."""
    found = set(words)
    if found <= _FILLER or "".join(words) in ("na", "donothing", "tobedetermined"):
        return True
    return bool(found & _NOTHING or "as is" in " ".join(words)) and found <= _NOTHING | _NOTHING_MORE


def _plain(text: str) -> str:
    """Words in lower case, without punctuation."""
    return " ".join(re.findall(r"\w+", re.sub(r"(?<=\w)['’](?=\w)", "", text.lower())))
