"""The stage of the query texts: which questions an LLM is asked, and what becomes of its answers."""

import base64
import io
import logging
from collections.abc import Iterator, Sequence
from contextlib import closing
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

from PIL.Image import Image
from tqdm import tqdm

from .filter import EQUAL_CAPTIONS, NO_ANSWER, NO_CAPTION, UNUSABLE_ANSWER, Reason, are_equal
from .llm.answers import (
    Answer,
    AnswerStore,
    Failure,
    Question,
    first_of_each,
    make_question,
    stored_outcomes,
    unanswered,
)
from .query_texts import Messages, Prompt, parse_query_text
from .stages import CaptionStage, PairStage, Workplace

logger = logging.getLogger(__name__)

_URL_SIDE = 512  # pixels of the longer side of an image that is sent to a vision model
_CHARACTERS_A_TOKEN, _TOKENS_AN_ANSWER = 4, 15  # rough averages of English


@dataclass(frozen=True)
class Estimate:
    """What the LLM will be asked.

    Args:
        questions (`int`): Number of distinct questions.
        answered (`int`): Number of those that have a stored answer.
        prompt_tokens (`int`): Of the open questions, estimated at four characters per token; images are not counted.
        completion_tokens (`int`): Estimated at 15 per answer.
    """

    questions: int
    answered: int
    prompt_tokens: int
    completion_tokens: int

    def cost(self, price_in: float, price_out: float) -> float:
        """Compute the price, from prices per million tokens."""
        return (self.prompt_tokens * price_in + self.completion_tokens * price_out) / 1e6


@dataclass
class QueryTexts:
    """What became of each of the P pairs.

    Args:
        columns (`dict[str, list]`): Ids, captions, `query_text` and `answer` of each pair.
        reasons (`list[Reason | None]`): Why a pair has no query text.
        counts (`dict[str, int]`): Questions, answers and tokens.
    """

    columns: dict[str, list[Any]]
    reasons: list[Reason | None]
    counts: dict[str, int]


class QueryTextStage:
    """Ask an LLM for the query text of each pair; equal questions are asked once.

    *Input*: pairs and captions. *Output*: `QueryTexts`.
    """

    name = "query_texts"

    def __init__(self, work: Workplace, pairs: PairStage, captions: CaptionStage) -> None:
        self.work, self._pairs, self._captions = work, pairs, captions
        self.prompt: Prompt = work.config.build_prompt()
        self.failures: dict[str, str] = {}
        self.answers_directory = work.directory / "answers"
        self._image_url = lru_cache(maxsize=1024)(lambda row: _as_url(work.source.load(row)))

    def run(self, num_shards: int = 1, shard_index: int = 0) -> None:
        """Ask this shard's open questions. Each answer is stored before the next step uses it."""
        answers, generate = self._open_answers(), self.work.models.generate
        is_mine = lambda number: number // generate.pool_size % num_shards == shard_index  # noqa: E731 - whole pools
        keys = [question.key for number, question in enumerate(self._distinct()) if is_mine(number)]
        done = sum(key in answers for key in keys)
        if done == len(keys):
            return
        mine = (question for number, question in enumerate(self._distinct()) if is_mine(number))
        failures = 0
        bar = tqdm(total=len(keys), initial=done, desc="Query texts", unit=" calls", disable=not self.work.progress)
        open_questions = unanswered(mine, answers, generate.pool_size)
        with answers, bar, closing(stored_outcomes(generate, open_questions, answers)) as outcomes:
            known = len(answers)
            for question, outcome in outcomes:
                if isinstance(outcome, Failure):
                    self.failures[question.key] = outcome.reason
                    failures += 1
                    bar.set_postfix(failed=failures)
                bar.update(len(answers) - known)
                known = len(answers)
        if failures:
            logger.warning(
                "%d questions got no answer (the last: %s). Run the same command again to ask them again.",
                failures,
                list(self.failures.values())[-1],
            )

    def estimate(self) -> Estimate:
        """Count the distinct questions, and the tokens of those that have no answer yet."""
        answers = self._open_answers()
        seen: set[str] = set()
        characters = 0
        for reference, target in self._pairs.pairs.rows.tolist():
            question = self._question(reference, target)
            if question is None or question.key in seen:
                continue
            seen.add(question.key)
            if question.key not in answers:
                characters += sum(map(len, _texts_of(self._messages(reference, target, urls=["", ""]))))
        answered = sum(key in answers for key in seen)
        num_tokens = -(-characters // _CHARACTERS_A_TOKEN)
        return Estimate(len(seen), answered, num_tokens, _TOKENS_AN_ANSWER * (len(seen) - answered))

    def read(self) -> QueryTexts:
        """Read the query texts from the stored answers."""
        answers, captions, ids = self._open_answers(), self._captions.captions, self.work.source.ids
        names = ("reference_id", "target_id", "query_text", "reference_caption", "target_caption", "answer")
        columns: dict[str, list[Any]] = {name: [] for name in names}
        reasons: list[Reason | None] = []
        used: dict[str, Answer | None] = {}
        for reference, target in self._pairs.pairs.rows.tolist():
            sides = captions[reference] or "", captions[target] or ""
            question = self._question(reference, target)
            answer, query_text, reason = None, None, None
            if question is None:
                reason = Reason(EQUAL_CAPTIONS if all(sides) else NO_CAPTION)
            else:
                answer = used[question.key] = answers.get(question.key)
                query_text, reason = self._query_text(question, answer, *sides)
            row = (ids[reference], ids[target], query_text or "", *sides, answer.text if answer else "")
            for name, value in zip(names, row, strict=True):
                columns[name].append(value)
            reasons.append(reason)
        found = [answer for answer in used.values() if answer is not None]
        counts = {
            "questions": len(used),
            "answered": len(found),
            "prompt_tokens": sum(answer.prompt_tokens for answer in found),
            "completion_tokens": sum(answer.completion_tokens for answer in found),
        }
        return QueryTexts(columns, reasons, counts)

    def _query_text(
        self, question: Question, answer: Answer | None, reference_caption: str, target_caption: str
    ) -> tuple[str | None, Reason | None]:
        """The query text in an answer, or the reason why there is none."""
        if answer is None:
            return None, Reason(NO_ANSWER, self.failures.get(question.key, "not asked"))
        # The user's own examples are from the domain of the images: there an answer may rightly equal one of them.
        examples = [text for *_, text in self.prompt.examples] if self.work.config.examples is None else []
        text, complaint = parse_query_text(
            answer.text, reference_caption, target_caption, examples, is_cut=answer.is_cut
        )
        return text, None if complaint is None else Reason(UNUSABLE_ANSWER, complaint)

    def _distinct(self) -> Iterator[Question]:
        """The distinct questions, in the order of the pairs."""
        questions = (self._question(reference, target) for reference, target in self._pairs.pairs.rows.tolist())
        return first_of_each(question for question in questions if question is not None)

    def _question(self, reference: int, target: int) -> Question | None:
        """The question about a pair; None where the captions are equal or missing."""
        first, second = self._captions.captions[reference], self._captions.captions[target]
        if not first or not second or are_equal(first, second):
            return None
        generate, source = self.work.models.generate, self.work.source
        if self.work.config.prompt != "vision":
            return make_question(generate, self._messages(reference, target))
        # The images are read only when the question is asked. Stored answers belong to these very words.
        names = [f"picture {source.ids[row]} {source.stamp(row)}" for row in (reference, target)]
        urls = lambda: [self._image_url(row) for row in (reference, target)]  # noqa: E731
        make_messages = lambda: self._messages(reference, target, urls())  # noqa: E731
        return make_question(generate, self._messages(reference, target, names), make_messages)

    def _messages(self, reference: int, target: int, urls: Sequence[str] = ()) -> Messages:
        captions = self._captions.captions
        shown = urls if self.work.config.prompt == "vision" else ()
        return self.prompt.messages(captions[reference] or "", captions[target] or "", shown)

    def _open_answers(self) -> AnswerStore:
        return AnswerStore(self.answers_directory)


def _texts_of(messages: Messages) -> Iterator[str]:
    for message in messages:
        content = message["content"]
        yield from [content] if isinstance(content, str) else (part["text"] for part in content if "text" in part)


def _as_url(image: Image) -> str:
    """An image as a `data:` URL, shrunk."""
    image.thumbnail((_URL_SIDE, _URL_SIDE))
    buffer = io.BytesIO()
    image.save(buffer, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"
