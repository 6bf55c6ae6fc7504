"""Query texts: what an LLM is asked, and which part of its answer is used.

Paper: Pseudo Triplet Generation, second step: the LLM sees the two captions and writes a short instruction that leads
from the reference caption to the target caption.
"""

import re
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

Messages = list[dict[str, Any]]
"""A chat as the OpenAI-compatible APIs take it."""

MAX_WORDS = 40  # longer answers explain something or tell a story


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

_LABEL = re.compile(
    r"^\W*(?:here(?:'s| is)\s+)?(?:(?:a|an|my|the|short|brief|simple|edit(?:ing)?|final)\s+)*"
    r"(?:instructions?|query(?: text)?|modification(?: text)?|answer|edit|change|output|text)"
    r"(?:\s*\(\d+\))?(?:\s+is)?\W{0,2}(?::\**|\s[-–—]\s)\s*",
    re.IGNORECASE,
)
_BULLET = re.compile(r"^(?:[-*•]|\(?\d{1,2}[.)])\s+")
_PREFACE = re.compile(
    r"^(?:sure|certainly|of course|okay|ok|here(?:'s| is| are)|the instruction)\b.*:\s*$", re.IGNORECASE
)
_INLINE_PREFACE = re.compile(
    r"^(?:sure|certainly|of course|okay|ok)[!,.]\s*(?:here(?:'s| is| are)[^:]*:\s*)?", re.IGNORECASE
)
_EXPLANATION = re.compile(
    r"\s*[(\[]?\b(?:explanation|note|reason|reasoning|rationale)\s*:.*$", re.IGNORECASE | re.DOTALL
)
_REFUSAL = re.compile(
    r"\b(?:as an ai|language model|i(?:'m| am) (?:sorry|unable|not able)|i (?:cannot|can't|can not|apologi[sz]e)|"
    r"unable to (?:help|assist|comply)|no instruction (?:is )?(?:needed|necessary))\b",
    re.IGNORECASE,
)
_PROMPT_WORDS = re.compile(
    r"\b(?:source|reference|target|first|second) (?:caption|picture|image|sentence)s?\b|\b(?:caption|sentence)s?\s*:",
    re.IGNORECASE,
)
_THOUGHTS = re.compile(r"<think>.*?(?:</think>|$)", re.DOTALL)
# An instruction that holds only these words and those of the reference caption changes nothing.
_FRAME_WORDS = set(
    """
    a an and as at be become becomes by change convert for from have in into is it its let make of on please put s so
    that the them there they this to transform turn with
    """.split()
)
_QUOTES = "\"'`“”‘’«»*_ \t"


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
    answer = _THOUGHTS.sub("", answer)
    text = _first_statement(answer)
    plain = _plain(text)
    if not plain:
        return None, "empty answer"
    if is_cut and "\n" not in answer.strip():
        return None, "cut off"
    if _REFUSAL.search(text):
        return None, "refusal"
    if plain in (_plain(reference_caption), _plain(target_caption)):
        return None, "repeats a caption"
    if plain in {_plain(example) for example in example_texts}:
        return None, "repeats an example"
    if _PROMPT_WORDS.search(text):
        return None, "speaks of the prompt"
    if set(plain.split()) - _FRAME_WORDS <= set(_plain(reference_caption).split()):
        return None, "says nothing new"
    if len(plain.split()) > MAX_WORDS:
        return None, f"longer than {MAX_WORDS} words"
    return text, None


def _first_statement(answer: str) -> str:
    """The first line that says something, without label, bullet, quotes and explanation."""
    lines = [line.strip() for line in answer.replace("```", "\n").splitlines()]
    for line in lines:
        if _PREFACE.match(line):
            continue
        line = _BULLET.sub("", line)
        line = _LABEL.sub("", _INLINE_PREFACE.sub("", line))
        line = _BULLET.sub("", _EXPLANATION.sub("", line)).strip(_QUOTES)
        if line:
            return " ".join(line.split())
    return ""


def _plain(text: str) -> str:
    """Words in lower case, without punctuation."""
    return " ".join(re.findall(r"\w+", text.lower()))
