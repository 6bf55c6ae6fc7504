"""Asking an LLM behind an OpenAI-compatible API: many calls at once, or the Batch API.

The API key comes from the environment only. It is never written or logged.
"""

import asyncio
import email.utils
import hashlib
import importlib
import json
import logging
import os
import random
import time
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from typing import Any

from .answers import Answer, Failure, Question

logger = logging.getLogger(__name__)

KEY_VARIABLE = "OPENAI_API_KEY"
_FIRST_DELAY, _MAX_DELAY, _MAX_RETRY_AFTER = 0.5, 60.0, 600.0  # seconds
_MAX_FAILURES_IN_A_ROW = 50
_BATCH_SIZE, _BATCH_BYTES = 20_000, 100_000_000  # requests and bytes of a batch file; the API allows 50,000 and 200 MB
_BATCH_OVER = ("completed", "failed", "expired", "cancelled")


class _Api:
    """What both generators share: the model, its parameters and the endpoint."""

    pool_size = 1

    def __init__(self, model: str, base_url: str | None = None, **parameters: Any) -> None:
        self.name = model
        self.parameters = parameters
        self.base_url = base_url

    def _key(self) -> str:
        key = os.environ.get(KEY_VARIABLE)
        if not key and not self.base_url:
            raise ValueError(
                f"The environment variable {KEY_VARIABLE} is not set. Set it to your API key, or give base_url for an "
                "endpoint of your own."
            )
        return key or "none"

    def _client(self, kind: str, **options: Any) -> Any:
        return getattr(_openai(), kind)(base_url=self.base_url, api_key=self._key(), **options)

    def _hide_key(self, text: str) -> str:
        key = os.environ.get(KEY_VARIABLE)
        return text.replace(key, "***") if key else text

    def _stop(self, error: Exception) -> ValueError:
        place = self.base_url or "the OpenAI API"
        reason = self._hide_key(" ".join(str(error).split()))
        return ValueError(
            f"{place} refused the request for the model {self.name!r}: {reason}. Correct {KEY_VARIABLE}, llm or "
            "base_url and run the same command again. The answers that came are stored."
        )


class ChatGenerator(_Api):
    """Chat completions, many at once. Retries on 429, 5xx, time-outs and answers that cannot be read.

    Args:
        model (`str`): The API's name of the model.
        base_url (`str`, *optional*): Any OpenAI-compatible endpoint; OpenAI's own by default.
        concurrency (`int`): Number of calls at once.
        timeout (`float`): Seconds for one call.
        max_attempts (`int`): Number of calls for one question before this run gives it up.
        parameters: Sent with each call: `temperature`, `max_tokens` ...

    Raises:
        ValueError: While answering, if key, model or quota are refused, or the endpoint stops answering.
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

    def __call__(self, questions: Iterable[Question]) -> Iterator[tuple[Question, Answer | Failure]]:
        """Answer the questions; answers come in any order."""
        waiting = iter(questions)
        client = self._client("AsyncOpenAI", timeout=self.timeout, max_retries=0)
        calls: set[asyncio.Task] = set()
        loop = asyncio.new_event_loop()
        failures = 0

        async def next_answers() -> set[asyncio.Task]:
            calls.update(loop.create_task(self._ask(client, q)) for q in islice(waiting, self.concurrency - len(calls)))
            done = (await asyncio.wait(calls, return_when=asyncio.FIRST_COMPLETED))[0] if calls else set()
            calls.difference_update(done)
            return done

        # In a thread of its own: the caller may be a notebook, which has a running loop.
        with ThreadPoolExecutor(1, "hycir-chat") as thread:
            try:
                while done := thread.submit(loop.run_until_complete, next_answers()).result():
                    for question, outcome in _answers_first(done):
                        failures = failures + 1 if isinstance(outcome, Failure) else 0
                        yield question, outcome
                        if isinstance(outcome, Failure) and failures >= _MAX_FAILURES_IN_A_ROW:
                            raise ValueError(
                                f"{self.base_url or 'The OpenAI API'} answered none of the last {failures} questions "
                                f"({outcome.reason}). Run the same command again when it works."
                            )
            finally:
                loop.call_soon_threadsafe(loop.stop)  # at Ctrl-C the thread is still waiting
                thread.submit(_end, loop, calls, client).result()

    async def _ask(self, client: Any, question: Question) -> tuple[Question, Answer | Failure]:
        """Ask until there is an answer, or the attempts are used up."""
        openai = _openai()
        reason = ""
        for attempt in range(self.max_attempts):
            delay = 0.0
            try:
                messages = await asyncio.to_thread(question.make_messages)  # may read images
                call = client.chat.completions.create(model=self.name, messages=messages, **self.parameters)
                return question, _answer_of(await asyncio.wait_for(call, self.timeout))
            except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
                raise self._stop(error) from error
            except openai.APIStatusError as error:
                if error.code in ("insufficient_quota", "model_not_found", "invalid_api_key"):
                    raise self._stop(error) from error
                reason = f"HTTP {error.status_code}"
                if error.status_code < 500 and error.status_code not in (408, 409, 425, 429):
                    said = error.response.text or str(error)  # servers put the reason in different places
                    return question, Failure(self._hide_key(f"{reason}: {' '.join(said.split())[:200]}"))
                delay = _retry_after(error.response.headers)
            except (openai.APIError, TimeoutError, asyncio.TimeoutError) as error:
                reason = "time-out" if "Timeout" in type(error).__name__ else type(error).__name__
            except (ValueError, AttributeError, TypeError, LookupError) as error:  # a body that is no completion
                reason = f"unreadable answer ({type(error).__name__})"
            if attempt + 1 < self.max_attempts:
                backoff = min(_MAX_DELAY, _FIRST_DELAY * 2**attempt) * random.uniform(0.5, 1.0)
                await asyncio.sleep(max(delay, backoff))
        return question, Failure(f"{self.max_attempts} attempts, the last: {reason}")


def _end(loop: asyncio.AbstractEventLoop, calls: set[asyncio.Task], client: Any) -> None:
    """Cancel the calls that are running, and close the loop."""

    async def end() -> None:
        tasks = calls | asyncio.all_tasks() - {asyncio.current_task()}  # also those that ended but were not read
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)
        await client.close()

    with suppress(RuntimeError):  # the loop had already stopped
        loop.run_until_complete(asyncio.sleep(0))
    loop.run_until_complete(end())
    loop.close()


def _answers_first(calls: set[asyncio.Task]) -> Iterator[tuple[Question, Answer | Failure]]:
    """Give out the results of finished calls; a refused call raises only after the answers of the others."""
    for call in sorted(calls, key=lambda call: call.exception() is not None):
        yield call.result()


class BatchGenerator(_Api):
    """The Batch API: half the price, answers within a day.

    Each batch carries a tag of model and parameters in its metadata. A run first collects the answers of earlier
    batches with its tag and then submits the questions that are left. So an interrupted run pays for nothing twice.

    Args:
        model (`str`): The API's name of the model.
        base_url (`str`, *optional*): Any endpoint with a Batch API; OpenAI's own by default.
        poll_seconds (`float`): Seconds between two requests for a batch's state.
        parameters: Sent with each request: `temperature`, `max_tokens` ...
    """

    def __init__(
        self, model: str, base_url: str | None = None, *, poll_seconds: float = 30.0, **parameters: Any
    ) -> None:
        super().__init__(model, base_url, **parameters)
        self.poll_seconds = poll_seconds
        self._tag = hashlib.sha256(json.dumps([model, parameters], sort_keys=True).encode()).hexdigest()[:32]

    def __call__(self, questions: Iterable[Question]) -> Iterator[tuple[Question, Answer | Failure]]:
        """Answer the questions, batch by batch; all of them are held in memory."""
        openai = _openai()
        waiting = {question.key: question for question in questions}
        with self._client("OpenAI", max_retries=8) as client:
            try:
                for batch in client.batches.list(limit=100):
                    if waiting and (batch.metadata or {}).get("hycir") == self._tag:
                        yield from self._collect_earlier(client, batch, waiting)
                submitted = [(self._submit(client, lines), keys) for keys, lines in self._files(waiting)]
                for batch_id, keys in submitted:
                    outcomes = dict(self._collect(client, batch_id))
                    for key in keys:
                        yield waiting[key], outcomes.get(key, Failure("the batch ended without an answer"))
            except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
                raise self._stop(error) from error

    def _collect_earlier(
        self, client: Any, batch: Any, waiting: dict[str, Question]
    ) -> Iterator[tuple[Question, Answer | Failure]]:
        """Take the wanted answers from an earlier batch; a batch of other questions is not waited for."""
        if batch.status in ("failed", "cancelled") or not batch.input_file_id:
            return
        asked = {json.loads(line)["custom_id"] for line in _lines(client, batch.input_file_id)}
        if asked.isdisjoint(waiting):
            return
        for key, outcome in self._collect(client, batch.id):
            if key in waiting and isinstance(outcome, Answer):
                yield waiting.pop(key), outcome

    def _files(self, waiting: dict[str, Question]) -> Iterator[tuple[list[str], list[str]]]:
        """Split the questions into files: the keys and lines of each."""
        keys: list[str] = []
        lines: list[str] = []
        size = 0
        for question in waiting.values():
            body = {"model": self.name, "messages": question.messages, **self.parameters}
            request = {"custom_id": question.key, "method": "POST", "url": "/v1/chat/completions", "body": body}
            line = json.dumps(request) + "\n"
            if keys and (len(keys) == _BATCH_SIZE or size + len(line) > _BATCH_BYTES):
                yield keys, lines
                keys, lines, size = [], [], 0
            keys.append(question.key)
            lines.append(line)
            size += len(line)
        if keys:
            yield keys, lines

    def _submit(self, client: Any, lines: list[str]) -> str:
        content = "".join(lines).encode()
        file = client.files.create(file=("questions.jsonl", content), purpose="batch")
        once = client.with_options(max_retries=0)  # a retry could make, and bill, a second batch
        return once.batches.create(
            input_file_id=file.id,
            endpoint="/v1/chat/completions",
            completion_window="24h",
            metadata={"hycir": self._tag},
        ).id

    def _collect(self, client: Any, batch_id: str) -> Iterator[tuple[str, Answer | Failure]]:
        """Wait for a batch, then read its answers and errors by question key."""
        while (batch := client.batches.retrieve(batch_id)).status not in _BATCH_OVER:
            time.sleep(self.poll_seconds)
        if batch.status == "failed":
            errors = [error.message for error in (batch.errors.data if batch.errors else None) or []]
            raise self._stop(ValueError(f"batch {batch_id} failed: {'; '.join(map(str, errors)) or 'no reason given'}"))
        for file_id in (batch.output_file_id, batch.error_file_id):
            for line in _lines(client, file_id) if file_id else ():
                with suppress(ValueError, LookupError):
                    record = json.loads(line)
                    yield record["custom_id"], _batch_outcome(record)


def _lines(client: Any, file_id: str) -> list[str]:
    """A file's lines; `splitlines` would also split at the rarer line ends inside an answer."""
    return [line for line in client.files.content(file_id).text.split("\n") if line]


def _batch_outcome(record: dict[str, Any]) -> Answer | Failure:
    response = record.get("response") or {}
    if response.get("status_code") != 200:
        return Failure(f"HTTP {response.get('status_code')}: {json.dumps(record.get('error'))[:200]}")
    try:
        return _answer_of(_openai().types.chat.ChatCompletion.model_validate(response["body"]))
    except (ValueError, TypeError, LookupError, AttributeError) as error:
        return Failure(f"unreadable answer ({type(error).__name__})")


def _answer_of(completion: Any) -> Answer:
    """Read a chat completion; raises if it is none. A refusal counts as an answer: to ask again would cost again."""
    choice = completion.choices[0]
    said = choice.message.content or getattr(choice.message, "refusal", None) or ""
    if not isinstance(said, str):
        raise TypeError("the answer holds no text")
    counts = (getattr(completion.usage, f"{side}_tokens", 0) for side in ("prompt", "completion"))
    prompt_tokens, completion_tokens = (count if isinstance(count, int) else 0 for count in counts)
    text = said.encode("utf-8", errors="replace").decode()  # half a surrogate cannot be stored
    return Answer(text, prompt_tokens, completion_tokens, is_cut=choice.finish_reason == "length")


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


def _openai() -> Any:
    """The package `openai`, which is optional."""
    try:
        return importlib.import_module("openai")
    except ImportError as error:
        raise ImportError("Asking an LLM needs the package openai. Run pip install 'hycir_hf[syncir]'.") from error
