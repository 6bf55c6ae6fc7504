"""Questions to an LLM and its stored answers: each answer is saved before it is used, and never paid for twice."""

import hashlib
import json
import logging
import os
import secrets
from collections import abc
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import closing
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import IO, Any, Protocol

from tqdm import tqdm

from ...files import write_json
from ...formats import ANSWERS
from ..query_texts import Messages
from .reading import without_reasoning

logger = logging.getLogger(__name__)

_FORMAT_FILE = "format.json"


@dataclass(frozen=True)
class Question:
    """One chat, and the key of its stored answer.

    Args:
        key (`str`): Hexadecimal; made from model, parameters and messages.
        make_messages (`Callable`): Makes the messages; images are read only when the question is asked.
    """

    key: str
    make_messages: Callable[[], Messages]

    @property
    def messages(self) -> Messages:
        """The chat."""
        return self.make_messages()


@dataclass(frozen=True)
class Answer:
    """What the LLM wrote.

    Args:
        text (`str`): As it came.
        prompt_tokens (`int`): Counted by the endpoint; 0 if unknown.
        completion_tokens (`int`): Counted by the endpoint; 0 if unknown.
        is_cut (`bool`): Whether the answer ended at the maximum length.
    """

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    is_cut: bool = False


@dataclass(frozen=True)
class Failure:
    """Why a question got no answer in this run; the next run asks it again."""

    reason: str


class Generator(Protocol):
    """Anything that answers questions: an endpoint, a Batch API, or a model in this process.

    Attributes:
        name (`str`): The model's name; part of the questions' keys.
        parameters (`dict`): The model's parameters; part of the questions' keys.
        pool_size (`int`): How many questions are answered together; 1 if each is answered on its own.
    """

    name: str
    parameters: dict[str, Any]
    pool_size: int

    def __call__(self, questions: Iterable[Question]) -> Iterator[tuple[Question, Answer | Failure]]:
        """Answer each question once, in any order. Yield each answer at once: it is stored only then."""


def make_question(
    generator: Generator, messages: Messages, make_messages: Callable[[], Messages] | None = None
) -> Question:
    """Make the question that asks a generator these messages.

    Args:
        generator (`Generator`): Its name and parameters are part of the key.
        messages (`list[dict]`): The key is made from them.
        make_messages (`Callable`, *optional*): Makes the messages that are sent; by default `messages` are.
    """
    content = json.dumps([generator.name, generator.parameters, messages], sort_keys=True, ensure_ascii=False)
    key = hashlib.sha256(content.encode("utf-8", errors="backslashreplace")).hexdigest()[:32]
    return Question(key, make_messages or (lambda: messages))


class AnswerStore:
    """Answers by key, in append-only files: one answer per line, one file per process that ever wrote.

    Use it as a context manager to write: leaving it syncs and closes the file.

    Args:
        directory (`Path`): Created when the first answer is added; several processes may use it at once.

    Raises:
        ValueError: If a newer version of the package wrote it.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._answers: dict[str, Answer] = {}
        self._file: IO[bytes] | None = None
        if (directory / _FORMAT_FILE).is_file():
            ANSWERS.read(directory / _FORMAT_FILE)
        for path in sorted(directory.glob("answers-*.jsonl")):
            self._read(path)

    def __enter__(self) -> "AnswerStore":
        return self

    def __exit__(self, *_: object) -> None:
        self.close()

    def _read(self, path: Path) -> None:
        """Read a file; a line that a crash cut off is skipped."""
        damaged = 0
        with path.open("rb") as file:
            for line in file:
                try:
                    record = json.loads(line)
                    key = record.pop("key")
                    self._answers.setdefault(key, Answer(**record))
                except (ValueError, KeyError, TypeError, AttributeError):
                    damaged += 1
        if damaged:
            logger.warning("%s: %d lines hold no whole answer. Their questions are asked again.", path, damaged)

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> Answer:
        return self._answers[key]

    def __len__(self) -> int:
        return len(self._answers)

    def get(self, key: str) -> Answer | None:
        """The answer to a question, if there is one."""
        return self._answers.get(key)

    def add(self, key: str, answer: Answer) -> None:
        """Write an answer to disk; if there is one already, it stays."""
        if key in self._answers:
            return
        if self._file is None:
            if not (self.directory / _FORMAT_FILE).is_file():
                write_json(self.directory / _FORMAT_FILE, ANSWERS.header())
            self._file = (self.directory / f"answers-{secrets.token_hex(8)}.jsonl").open("ab")
        line = json.dumps({"key": key, **asdict(answer)}, ensure_ascii=False) + "\n"
        self._file.write(line.encode("utf-8", errors="backslashreplace"))
        self._file.flush()
        self._answers[key] = answer

    def close(self) -> None:
        """Sync and close this process's file."""
        if self._file is not None:
            os.fsync(self._file.fileno())
            self._file.close()
            self._file = None


def unanswered(questions: Iterable[Question], store: AnswerStore, pool_size: int = 1) -> Iterator[Question]:
    """Go through the distinct questions that the store has no answer to.

    Args:
        questions (`Iterable[Question]`): All questions, in a fixed order.
        store (`AnswerStore`): The stored answers.
        pool_size (`int`): How many questions are answered together. A pool with an unanswered question comes whole, so
            that a model in this process sees the same batches as in an uninterrupted run.
    """
    distinct = first_of_each(questions)
    while pool := list(islice(distinct, pool_size)):
        if any(question.key not in store for question in pool):
            yield from pool


def first_of_each(questions: Iterable[Question]) -> Iterator[Question]:
    """Go through the distinct questions, in the order in which each comes first."""
    seen: set[str] = set()
    for question in questions:
        if question.key not in seen:
            seen.add(question.key)
            yield question


def stored_outcomes(
    generator: Generator, questions: Iterable[Question], store: AnswerStore
) -> abc.Generator[tuple[Question, Answer | Failure], None, None]:
    """Answer questions and store each answer before it is given out; close it to store also those that came late."""
    outcomes = generator(questions)
    try:
        for question, outcome in outcomes:
            if not isinstance(outcome, Failure):
                store.add(question.key, outcome)
            yield question, outcome
    finally:
        if hasattr(outcomes, "close"):
            outcomes.close()
        for question, answer in getattr(generator, "unread", ()):
            store.add(question.key, answer)


def answer_prompts(generator: Generator, prompts: Sequence[str], directory: Path) -> list[str]:
    """Ask a generator each prompt as a chat of one message. Answers are stored, and no prompt is asked twice.

    Args:
        generator (`Generator`): An endpoint or a model in this process.
        prompts (`Sequence[str]`): Equal ones are asked once.
        directory (`Path`): Folder of the answers.

    Returns:
        `list[str]`: What the LLM wrote to each prompt, without its reasoning.

    Raises:
        ValueError: If a prompt got no answer; the answers that came are stored.
    """
    questions = [make_question(generator, [{"role": "user", "content": prompt}]) for prompt in prompts]
    reasons: list[str] = []
    with AnswerStore(directory) as store:
        open_questions = unanswered(questions, store, generator.pool_size)
        with closing(stored_outcomes(generator, open_questions, store)) as outcomes:
            for _, outcome in tqdm(outcomes, desc="Answers", unit=" calls"):
                if isinstance(outcome, Failure):
                    reasons.append(outcome.reason)
    if reasons:
        raise ValueError(
            f"{len(reasons)} prompts got no answer (the first: {reasons[0]}). The other answers are stored. Run the "
            "same command again."
        )
    return [without_reasoning(store[question.key].text) for question in questions]
