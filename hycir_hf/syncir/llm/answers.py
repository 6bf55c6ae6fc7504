"""Questions to an LLM and the answers that came: each is on disk before it is used, and none is asked for twice."""

import hashlib
import json
import logging
import os
import secrets
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import asdict, dataclass
from itertools import islice
from pathlib import Path
from typing import Any, Protocol

from tqdm import tqdm

from ..query_texts import Messages

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Question:
    """One chat, and the key under which its answer is kept: model, messages and parameters.

    Args:
        key (`str`): Hexadecimal.
        make_messages (`Callable`): Makes the messages; pictures are read only when the question is asked.
    """

    key: str
    make_messages: Callable[[], Messages]

    @property
    def messages(self) -> Messages:
        """The chat."""
        return self.make_messages()


@dataclass(frozen=True)
class Answer:
    """What the LLM wrote, the tokens that were counted for it, and whether it was cut off at the longest length."""

    text: str
    prompt_tokens: int = 0
    completion_tokens: int = 0
    is_cut: bool = False


@dataclass(frozen=True)
class Failure:
    """Why a question got no answer in this run; the next run asks it again."""

    reason: str


class Generator(Protocol):
    """Whatever answers questions: an endpoint, a batch service, or a model in the process.

    `name` and `parameters` are part of the questions' keys, `pool_size` says how many questions are answered together
    (1 where each stands alone). Answers may come in any order; each is yielded as soon as it is there, since it is
    only then that it is kept.
    """

    name: str
    parameters: dict[str, Any]
    pool_size: int

    def __call__(self, questions: Iterable[Question]) -> Iterator[tuple[Question, Answer | Failure]]:
        """Answer the questions, each once."""


def make_question(
    generator: Generator, messages: Messages, make_messages: Callable[[], Messages] | None = None
) -> Question:
    """Make the question that asks a generator these messages.

    Args:
        generator (`Generator`): Its name and parameters are part of the key.
        messages (`list[dict]`): What the key stands for.
        make_messages (`Callable`, *optional*): Makes what is sent, where that is not what the key is made of.
    """
    content = json.dumps([generator.name, generator.parameters, messages], sort_keys=True, ensure_ascii=False)
    key = hashlib.sha256(content.encode("utf-8", errors="backslashreplace")).hexdigest()[:32]
    return Question(key, make_messages or (lambda: messages))


class AnswerStore:
    """Answers by key, in append-only files: one line each, one file for each process that ever wrote.

    Args:
        directory (`Path`): Made where it is missing; several processes may use it at once.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._answers: dict[str, Answer] = {}
        self._file: Any = None
        for path in sorted(directory.glob("answers-*.jsonl")):
            self._read(path)

    def _read(self, path: Path) -> None:
        """Read a file; a line that was cut off by a crash is left out."""
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
            logger.warning("%s: %d lines hold no whole answer; those will be asked again.", path, damaged)

    def __contains__(self, key: str) -> bool:
        return key in self._answers

    def __getitem__(self, key: str) -> Answer:
        return self._answers[key]

    def __len__(self) -> int:
        return len(self._answers)

    def add(self, key: str, answer: Answer) -> None:
        """Write an answer to disk, then keep it; the first answer to a question stays."""
        if key in self._answers:
            return
        if self._file is None:
            self.directory.mkdir(parents=True, exist_ok=True)
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
    """Go through the different questions that the store has no answer to.

    Args:
        questions (`Iterable[Question]`): All of them, in a fixed order.
        store (`AnswerStore`): What has been answered.
        pool_size (`int`): Questions that are answered together: a pool with an unanswered one comes whole, so that a
            model in the process sees the batches of an uninterrupted run.
    """
    different = first_of_each(questions)
    while pool := list(islice(different, pool_size)):
        if any(question.key not in store for question in pool):
            yield from pool


def first_of_each(questions: Iterable[Question]) -> Iterator[Question]:
    """Go through the different questions, in the order in which each comes first."""
    seen: set[str] = set()
    for question in questions:
        if question.key not in seen:
            seen.add(question.key)
            yield question


def answer_prompts(generator: Generator, prompts: Sequence[str], directory: Path) -> list[str]:
    """Ask a generator each prompt as a chat of one message; answers are kept, and none is asked for twice.

    Args:
        generator (`Generator`): An endpoint or a model in the process.
        prompts (`Sequence[str]`): Equal ones are asked once.
        directory (`Path`): Of the answers.

    Returns:
        `list[str]`: What the LLM wrote to each prompt.

    Raises:
        ValueError: If a prompt got no answer; those that came are kept.
    """
    questions = [make_question(generator, [{"role": "user", "content": prompt}]) for prompt in prompts]
    store = AnswerStore(directory)
    reasons: list[str] = []
    try:
        for question, outcome in tqdm(
            generator(unanswered(questions, store, generator.pool_size)), desc="Answers", unit=" calls"
        ):
            if isinstance(outcome, Failure):
                reasons.append(outcome.reason)
            else:
                store.add(question.key, outcome)
    finally:
        store.close()
    if reasons:
        raise ValueError(
            f"Expected an answer to each prompt, but {len(reasons)} got none ({reasons[0]}). Run the same command "
            "again: the answers that came are kept."
        )
    return [store[question.key].text for question in questions]
