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
import re
import time
from collections.abc import Callable, Iterable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from itertools import islice
from typing import Any

from ...names import public_path, shown
from ...settings import ParameterError
from .answers import Answer, Failure, Question

logger = logging.getLogger(__name__)

KEY_VARIABLE = "OPENAI_API_KEY"
_FIRST_DELAY, _MAX_DELAY, _MAX_RETRY_AFTER = 0.5, 60.0, 600.0  # seconds
_MAX_FAILURES_IN_A_ROW = 50
_BATCH_SIZE, _BATCH_BYTES = 20_000, 100_000_000  # requests and bytes of a batch file; the API allows 50,000 and 200 MB
_BATCH_OVER = ("completed", "failed", "expired", "cancelled")

REASONING_TOKENS = 2000  # room for the reasoning of a model that counts it as part of its answer
_REASONING_MODEL = re.compile(r"(?:^|[/:])(?:o\d(?![a-z0-9])|gpt-(?:[5-9]|[1-9]\d)(?![a-z0-9]))", re.IGNORECASE)
_STOP_STATUSES = (401, 402, 403, 404)
_STOP_CODES = re.compile(r"\b(?:insufficient_quota|model_not_found|invalid_api_key|billing_hard_limit_reached)\b")
_ABOUT_CONTENT = re.compile(
    r"context.length|context.window|content.?(?:filter|policy|management)|flagged|moderation|safety", re.IGNORECASE
)
_COMPLAINT = re.compile(
    r"support|unknown|unrecogni[sz]ed|unexpected|permitted|forbidden|allowed|invalid|must be|should be|default|extra|"
    r"deprecated|accept|valid|out of range|too (?:large|high|low|small)|at most|at least|does not exist|incompatible|"
    r"extraneous|cannot|can't|instead|greater|less",
    re.IGNORECASE,
)
_ADVICE = {
    "max_tokens": f'Set llm_parameters to {{"max_tokens": null, "max_completion_tokens": {REASONING_TOKENS}}}.',
    "response_format": "Leave structured_output out.",
}
_Outcome = tuple[Question, Answer | Failure | ValueError | None]
"""A question and what came of it: ValueError if the run must stop, None if it is to be asked again."""


class _Api:
    """What both generators share: the model, its parameters and the endpoint."""

    pool_size = 1

    def __init__(self, model: str, base_url: str | None = None, **parameters: Any) -> None:
        self.name = model
        self.parameters = accepted_parameters(model, parameters)
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

    @property
    def _place(self) -> str:
        return public_path(self.base_url) if self.base_url else "The OpenAI API"

    def _sent(self) -> dict[str, Any]:
        """What a request's body holds besides model and messages."""
        return {**self.parameters, **self.parameters.get("extra_body", {})} | {"extra_body": None}

    def _words(self, text: str) -> str:
        """The endpoint's words, as they may be shown: one line, without the key."""
        with suppress(ValueError, RecursionError):
            text = _message_in(json.loads(text)) or text
        key = os.environ.get(KEY_VARIABLE)
        return shown(" ".join((text.replace(key, "***") if key else text).split())[:300])

    def _stop(self, said: str) -> ValueError:
        return ValueError(
            f"{self._place} refused the request for the model {self.name!r}: {said}. Correct {KEY_VARIABLE}, llm or "
            "base_url and run the same command again. The answers that came are stored."
        )

    def _verdict(self, status: int, text: str, place: str = "") -> "Failure | ValueError | str":
        """What an error means: the question failed, the run must stop, or (a reason) it may work later.

        Args:
            status (`int`): HTTP status, or the one that the body names.
            text (`str`): The error's body.
            place (`str`): Stands before the endpoint's words; by default the status.
        """
        said = self._words(text) or "no reason given"
        reason = f"{place or f'HTTP {status}'}: {said}"
        if status in (200, 400, 422) and (name := self._refused_parameter(text)) is not None:
            advice = _ADVICE.get(name, f'Set llm_parameters to {{"{name}": null}} to leave it out.')
            return ParameterError(
                f"{self._place} does not take the parameter {name} for the model {self.name!r}: {said}. {advice} Then "
                "run the same command again. The answers that came are stored.",
                "structured_output" if name == "response_format" else "llm_parameters",
            )
        if _STOP_CODES.search(text) or (status in _STOP_STATUSES and not _ABOUT_CONTENT.search(text)):
            return self._stop(said)
        is_passing = status == 200 or status >= 500 or status in (408, 409, 425, 429)
        return reason if is_passing else Failure(reason)

    def _refused_parameter(self, text: str) -> str | None:
        """The parameter that an error's body complains about; None if it is about something else."""
        if _ABOUT_CONTENT.search(text) or not _COMPLAINT.search(text):
            return None
        places = {}
        for name in self._sent():
            spelling = "_?".join(map(re.escape, name.split("_")))  # also maxTokens
            if found := re.search(rf"(?<![a-z]){spelling}(?![a-z])", text, re.IGNORECASE):
                places[name] = found.start()
        return min(places, key=places.__getitem__, default=None)

    def _outcome(self, body: Any) -> "Answer | Failure | ValueError | str":
        """Read a body that came with HTTP 200; raises if it is neither an answer nor an error."""
        choice: dict[str, Any] = next(iter(body.get("choices") or ()), {})
        has_answer = "choices" in body and (choice or not body.get("error"))
        error = choice.get("error") or (None if has_answer else body)
        if not error:
            return _answer_of(body)
        inner = error.get("error")
        code = str(error.get("code") or (inner.get("code") if isinstance(inner, dict) else ""))
        return self._verdict(int(code) if code.isdecimal() else 200, json.dumps(error), "HTTP 200 with an error")


def accepted_parameters(model: str, parameters: Mapping[str, Any]) -> dict[str, Any]:
    """The parameters that a model takes: without those that are None.

    OpenAI's reasoning models (o1 to o9, gpt-5 and later) refuse `temperature` and `max_tokens`. For them the first is
    left out, and the second becomes `max_completion_tokens`, with room for the reasoning.
    """
    kept = {name: value for name, value in parameters.items() if value is not None}
    if _REASONING_MODEL.search(model):
        kept.pop("temperature", None)
        if (longest := kept.pop("max_tokens", None)) is not None:
            kept.setdefault("max_completion_tokens", longest + REASONING_TOKENS)
    return kept


class ChatGenerator(_Api):
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
        client = self._client("AsyncOpenAI", timeout=self.timeout, max_retries=0)
        calls = _Calls(client, self._ask, questions, self.concurrency)
        try:
            yield from calls.outcomes(self._place)
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
        openai = _openai()
        try:
            messages = await asyncio.to_thread(question.make_messages)  # may read images
            sent = {name: value for name, value in self._sent().items() if value is not None}
            call = client.chat.completions.create(model=self.name, messages=messages, extra_body=sent)
            completion = await asyncio.wait_for(call, self.timeout)
            return self._outcome(completion.to_dict(warnings=False)), 0.0
        except openai.APIStatusError as error:
            text = error.response.text or str(error)
            return self._verdict(error.status_code, text), _retry_after(error.response.headers)
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
        for question in islice(self._open_questions(), free):
            self._tasks.add(self._loop.create_task(self._ask(self._client, question, self._stopping)))
        done = (await asyncio.wait(self._tasks, return_when=asyncio.FIRST_COMPLETED))[0] if self._tasks else set()
        self._tasks.difference_update(done)
        return [task.result() for task in done]

    def _open_questions(self) -> Iterator[Question]:
        while self._again:
            yield self._again.pop()
        yield from self._waiting

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
        time.sleep(4 * _FIRST_DELAY)
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
            refused: ValueError | None = None
            try:
                for batch in client.batches.list(limit=100):
                    if waiting and (batch.metadata or {}).get("hycir") == self._tag:
                        yield from self._collect_earlier(client, batch, waiting)
                submitted = [(self._submit(client, lines), keys) for keys, lines in self._files(waiting)]
                for batch_id, keys in submitted:
                    outcomes = dict(self._collect(client, batch_id))
                    for key in keys:
                        outcome = outcomes.get(key, Failure("the batch ended without an answer"))
                        if isinstance(outcome, ValueError):
                            refused = outcome
                        else:
                            yield waiting[key], outcome
            except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError) as error:
                raise self._stop(self._words(str(error))) from error
            if refused:
                raise refused

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
            sent = {name: value for name, value in self._sent().items() if value is not None}
            body = {"model": self.name, "messages": question.messages, **sent}
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

    def _collect(self, client: Any, batch_id: str) -> "Iterator[tuple[str, Answer | Failure | ValueError]]":
        """Wait for a batch, then read its answers and errors by question key."""
        while (batch := _twice(lambda: client.batches.retrieve(batch_id))).status not in _BATCH_OVER:
            time.sleep(self.poll_seconds)
        if batch.status == "failed":
            errors = [error.message for error in (batch.errors.data if batch.errors else None) or []]
            said = self._words("; ".join(map(str, errors))) or "no reason given"
            raise self._stop(f"batch {batch_id} failed: {said}")
        for file_id in (batch.output_file_id, batch.error_file_id):
            for line in _lines(client, file_id) if file_id else ():
                with suppress(ValueError, LookupError):
                    record = json.loads(line)
                    yield record["custom_id"], self._batch_outcome(record)

    def _batch_outcome(self, record: dict[str, Any]) -> "Answer | Failure | ValueError":
        response = record.get("response") or {}
        try:
            if response.get("status_code") == 200:
                outcome = self._outcome(response["body"])
            else:
                said = json.dumps(record.get("error") or response.get("body"))
                outcome = self._verdict(response.get("status_code") or 500, said)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            outcome = f"unreadable answer ({type(error).__name__})"
        return Failure(outcome) if isinstance(outcome, str) else outcome


def _twice(call: Callable[[], Any]) -> Any:
    """Call once more if a gateway refuses: the batch is paid for and goes on."""
    openai = _openai()
    try:
        return call()
    except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError):
        time.sleep(4 * _FIRST_DELAY)
        return call()


def _lines(client: Any, file_id: str) -> list[str]:
    """A file's lines; `splitlines` would also split at the rarer line ends inside an answer."""
    return [line for line in _twice(lambda: client.files.content(file_id)).text.split("\n") if line]


def _message_in(body: Any) -> str:
    """The endpoint's words in an error's body: servers put them in different places."""
    if isinstance(body, list):
        return "; ".join(filter(None, map(_message_in, body[:3])))
    if not isinstance(body, dict):
        return "" if body is None else str(body)
    names = ("error", "message", "detail", "errors", "msg", "description", "title")
    return next((said for name in names if (said := _message_in(body.get(name)))), "")


def _answer_of(body: Mapping[str, Any]) -> Answer | Failure:
    """Read a chat completion; raises if it is none. A refusal counts as an answer: to ask again would cost again."""
    choice = body["choices"][0]
    said, reason = _said(choice["message"]), choice.get("finish_reason")
    is_cut = reason in ("length", "max_tokens")
    if said is None and not is_cut:
        return Failure(f"the answer has no content (finish_reason {reason!r})")
    usage = body.get("usage") if isinstance(body.get("usage"), dict) else {}
    counts = ((usage or {}).get(f"{side}_tokens", 0) for side in ("prompt", "completion"))
    prompt_tokens, completion_tokens = (count if isinstance(count, int) else 0 for count in counts)
    text = (said or "").encode("utf-8", errors="replace").decode()  # half a surrogate cannot be stored
    return Answer(text, prompt_tokens, completion_tokens, is_cut=is_cut)


def _said(message: Mapping[str, Any]) -> str | None:
    """A message's text: its content or the parts of it that are no thoughts, a refusal, or a tool call's arguments."""
    content = message.get("content")
    if isinstance(content, list):
        parts = [part if isinstance(part, str) else part.get("text") or part.get("refusal") for part in content]
        content = "".join(part for part in parts if isinstance(part, str)) or None
    if not isinstance(content, str | None):
        raise TypeError("the answer holds no text")
    calls = message.get("tool_calls") or [{}]
    return content or message.get("refusal") or (calls[0].get("function") or {}).get("arguments") or content


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
