"""Asking an LLM through the Batch API."""

import hashlib
import json
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import suppress
from typing import Any

from . import endpoint
from .answers import Answer, Failure, Question
from .endpoint import Endpoint, openai_package

_BATCH_SIZE, _BATCH_BYTES = 20_000, 100_000_000  # requests and bytes of a batch file; the API allows 50,000 and 200 MB
_BATCH_OVER = ("completed", "failed", "expired", "cancelled")


class BatchGenerator(Endpoint):
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
        openai = openai_package()
        waiting = {question.key: question for question in questions}
        with self.client("OpenAI", max_retries=8) as client:
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
                raise self.refusal(self.words(str(error))) from error
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
            body = {"model": self.name, "messages": question.messages, **self.sent()}
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
            said = self.words("; ".join(map(str, errors))) or "no reason given"
            raise self.refusal(f"batch {batch_id} failed: {said}")
        for file_id in (batch.output_file_id, batch.error_file_id):
            for line in _lines(client, file_id) if file_id else ():
                with suppress(ValueError, LookupError):
                    record = json.loads(line)
                    yield record["custom_id"], self._batch_outcome(record)

    def _batch_outcome(self, record: dict[str, Any]) -> "Answer | Failure | ValueError":
        response = record.get("response") or {}
        try:
            if response.get("status_code") == 200:
                outcome = self.outcome(response["body"])
            else:
                said = json.dumps(record.get("error") or response.get("body"))
                outcome = self.verdict(response.get("status_code") or 500, said)
        except (ValueError, TypeError, LookupError, AttributeError) as error:
            outcome = f"unreadable answer ({type(error).__name__})"
        return Failure(outcome) if isinstance(outcome, str) else outcome


def _twice(call: Callable[[], Any]) -> Any:
    """Call once more if a gateway refuses: the batch is paid for and goes on."""
    openai = openai_package()
    try:
        return call()
    except (openai.AuthenticationError, openai.PermissionDeniedError, openai.NotFoundError):
        time.sleep(endpoint.SECOND_TRY_DELAY)
        return call()


def _lines(client: Any, file_id: str) -> list[str]:
    """A file's lines; `splitlines` would also split at the rarer line ends inside an answer."""
    return [line for line in _twice(lambda: client.files.content(file_id)).text.split("\n") if line]
