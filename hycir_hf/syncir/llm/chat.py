"""Asking an LLM behind an OpenAI-compatible API, many calls at once."""

import asyncio
import email.utils
import logging
import random
import time
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from typing import Any

from . import endpoint
from .answers import Answer, Failure, Question
from .endpoint import Endpoint, openai_package

logger = logging.getLogger(__name__)

_FIRST_DELAY, _MAX_DELAY, _MAX_RETRY_AFTER = 0.5, 60.0, 600.0  # seconds
_MAX_FAILURES_IN_A_ROW = 50

_Outcome = tuple[Question, Answer | Failure | ValueError | None]
"""A question and what came of it: ValueError if the run must stop, None if it is to be asked again."""


class ChatGenerator(Endpoint):
    """Chat completions, many at once. Retries on 429, 5xx, time-outs and answers that cannot be read.

    If the endpoint refuses a request (401, 404 ...), no further question is asked, and the answers under way are
    awaited. If there was an answer before, the refused question is asked once more; then the run stops.

    Args:
        model (`str`): The API's name of the model.
        base_url (`str`, *optional*): Any OpenAI-compatible endpoint; OpenAI's own by default.
        concurrency (`int`): Number of calls at once.
        timeout (`float`): Seconds for one call.
        max_attempts (`int`): Number of calls for one question before this run gives it up.
        parameters: Sent with each call: `temperature`, `max_tokens`, `extra_body` ... None leaves one out.

    Attributes:
        unread (`list`): Questions and answers that had come when the caller stopped reading.

    Raises:
        ValueError: While answering, if key, model, quota or a parameter are refused, or the endpoint stops answering.
    """

    def __init__(
        self,
        model: str,
        base_url: str | None = None,
        *,
        concurrency: int = 32,
        timeout: float = 60.0,
        max_attempts: int = 8,
        **parameters: Any,
    ) -> None:
        super().__init__(model, base_url, **parameters)
        self.concurrency, self.timeout, self.max_attempts = concurrency, timeout, max_attempts
        self.unread: list[tuple[Question, Answer]] = []

    def __call__(self, questions: Iterable[Question]) -> Iterator[tuple[Question, Answer | Failure]]:
        """Answer the questions; answers come in any order."""
        self.unread = []
        client = self.client("AsyncOpenAI", timeout=self.timeout, max_retries=0)
        calls = _Calls(client, self._ask, questions, self.concurrency)
        try:
            yield from calls.outcomes(self.place)
        finally:
            self.unread = calls.close()

    async def _ask(self, client: Any, question: Question, stopping: asyncio.Event) -> _Outcome:
        """Ask until there is an answer, or the attempts are used up; None if the run is stopping meanwhile."""
        reason = ""
        for attempt in range(self.max_attempts):
            outcome, delay = await self._try(client, question)
            if not isinstance(outcome, str):
                return question, outcome
            reason = outcome
            if attempt + 1 < self.max_attempts:
                backoff = min(_MAX_DELAY, _FIRST_DELAY * 2**attempt) * random.uniform(0.5, 1.0)
                with suppress(TimeoutError, asyncio.TimeoutError):
                    await asyncio.wait_for(stopping.wait(), max(delay, backoff))
                    return question, None
        return question, Failure(f"{self.max_attempts} attempts, the last: {reason}")

    async def _try(self, client: Any, question: Question) -> "tuple[Answer | Failure | ValueError | str, float]":
        """Ask once: the outcome, and how many seconds the server asks us to wait. A text says why to try again."""
        openai = openai_package()
        try:
            messages = await asyncio.to_thread(question.make_messages)  # may read images
            call = client.chat.completions.create(model=self.name, messages=messages, extra_body=self.sent())
            completion = await asyncio.wait_for(call, self.timeout)
            return self.outcome(completion.to_dict(warnings=False)), 0.0
        except openai.APIStatusError as error:
            text = error.response.text or str(error)
            return self.verdict(error.status_code, text), _retry_after(error.response.headers)
        except (openai.APIError, TimeoutError, asyncio.TimeoutError) as error:
            return "time-out" if "Timeout" in type(error).__name__ else type(error).__name__, 0.0
        except (ValueError, AttributeError, TypeError, LookupError) as error:  # a body that is no completion
            return f"unreadable answer ({type(error).__name__})", 0.0


class _Calls:
    """The calls of one run, in a thread of their own: the caller may be a notebook, which has a running loop."""

    def __init__(self, client: Any, ask: Callable[..., Any], questions: Iterable[Question], concurrency: int) -> None:
        self._client, self._ask, self._concurrency = client, ask, concurrency
        self._waiting, self._again = iter(questions), list[Question]()
        self._tasks: set[asyncio.Task] = set()
        self._arrived: list[_Outcome] = []
        self._refused: list[tuple[Question, ValueError]] = []
        self._loop = asyncio.new_event_loop()
        self._stopping = asyncio.Event()
        self._thread = ThreadPoolExecutor(1, "hycir-chat")

    def outcomes(self, place: str) -> Iterator[tuple[Question, Answer | Failure]]:
        """Give out answers and failures as they come; ValueError if the endpoint refuses or answers nothing more."""
        has_worked, failures = False, 0
        while self._step() or self._try_again(has_worked):
            while self._arrived:
                question, outcome = self._arrived.pop()
                if outcome is None:
                    self._again.append(question)
                elif isinstance(outcome, ValueError):
                    self._stop(question, outcome)
                else:
                    failures = failures + 1 if isinstance(outcome, Failure) else 0
                    has_worked |= failures == 0
                    yield question, outcome
                    if isinstance(outcome, Failure) and failures == _MAX_FAILURES_IN_A_ROW:
                        said = f"answered none of the last {failures} questions ({outcome.reason})"
                        self._stop(question, _SilentError(f"{place} {said}. Run the same command again when it works."))

    def _stop(self, question: Question, error: ValueError) -> None:
        """Ask no new question; those under way are awaited."""
        self._refused.append((question, error))
        self._loop.call_soon_threadsafe(self._stopping.set)

    def _step(self) -> bool:
        """Ask new questions up to the concurrency, and wait for an outcome; False if nothing is under way."""
        self._arrived += self._thread.submit(self._loop.run_until_complete, self._next()).result()
        return bool(self._arrived)

    async def _next(self) -> "list[_Outcome]":
        free = 0 if self._refused else self._concurrency - len(self._tasks)
        for question in self._take(free):
            self._tasks.add(self._loop.create_task(self._ask(self._client, question, self._stopping)))
        done = (await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED))[0] if self._tasks else set()
        self._tasks.difference_update(done)
        return [task.result() for task in done]

    def _take(self, count: int) -> list[Question]:
        """The next questions; those that were put off come first."""
        again, self._again = self._again[:count], self._again[count:]
        return again + list(islice(self._waiting, count - len(again)))

    def _try_again(self, has_worked: bool) -> bool:
        """Ask a refused question once more if the endpoint has worked in this run; else raise why it was refused."""
        if not self._refused:
            return False
        (question, error), *others = self._refused
        silent = next((reason for _, reason in self._refused if isinstance(reason, _SilentError)), None)
        if silent or not has_worked:
            raise silent or error
        logger.warning("%s The question is asked once more.", error)
        self._refused, self._again = [], [*self._again, *(other for other, _ in others)]
        self._stopping.clear()
        time.sleep(endpoint.SECOND_TRY_DELAY)
        ask = self._ask(self._client, question, self._stopping)
        _, outcome = self._thread.submit(self._loop.run_until_complete, ask).result()
        if isinstance(outcome, ValueError):
            raise outcome
        self._arrived.append((question, outcome))
        return True

    def close(self) -> "list[tuple[Question, Answer]]":
        """Cancel the calls that are running, and close the loop; return the answers that were not given out."""
        with self._thread as thread:
            self._loop.call_soon_threadsafe(self._loop.stop)  # at Ctrl-C the thread is still waiting
            thread.submit(self._end).result()
        ended = [task.result() for task in self._tasks if not task.cancelled() and task.exception() is None]
        return [(question, outcome) for question, outcome in self._arrived + ended if isinstance(outcome, Answer)]

    def _end(self) -> None:
        async def end() -> None:
            tasks = self._tasks | asyncio.all_tasks() - {asyncio.current_task()}
            for task in tasks:
                task.cancel()
            await asyncio.gather(*tasks, return_exceptions=True)
            await self._client.close()

        with suppress(RuntimeError):  # the loop had already stopped
            self._loop.run_until_complete(asyncio.sleep(0))
        self._loop.run_until_complete(end())
        self._loop.close()


class _SilentError(ValueError):
    """The endpoint answers no question any more."""


def _retry_after(headers: Any) -> float:
    """How many seconds the server asks us to wait; 0 if it does not say."""
    value = headers.get("retry-after", "0")
    try:
        seconds = float(value)
    except ValueError:
        try:
            seconds = email.utils.parsedate_to_datetime(value).timestamp() - time.time()
        except (TypeError, ValueError):
            return 0.0
    return min(max(0.0, seconds), _MAX_RETRY_AFTER)
