"""An OpenAI-compatible endpoint: what it is sent, and what its answers and errors mean.

The API key comes from the environment only. It is never written or logged.
"""

import importlib
import json
import os
import re
from collections.abc import Mapping
from contextlib import suppress
from typing import Any

from ...names import public_path, shown
from ...settings import ParameterError
from .answers import Answer, Failure

KEY_VARIABLE = "OPENAI_API_KEY"
SECOND_TRY_DELAY = 2.0  # seconds until a refused request is sent once more
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


class Endpoint:
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

    def client(self, kind: str, **options: Any) -> Any:
        """Make a client of the package openai; ValueError if the key is missing."""
        return getattr(openai_package(), kind)(base_url=self.base_url, api_key=self._key(), **options)

    @property
    def place(self) -> str:
        """The endpoint's address, without a password."""
        return public_path(self.base_url) if self.base_url else "The OpenAI API"

    def sent(self) -> dict[str, Any]:
        """What a request's body holds besides model and messages."""
        parameters = {name: value for name, value in self.parameters.items() if name != "extra_body"}
        return {**parameters, **self.parameters.get("extra_body", {})}

    def words(self, text: str) -> str:
        """The endpoint's words, as they may be shown: one line, without the key."""
        with suppress(ValueError, RecursionError):
            text = _message_in(json.loads(text)) or text
        key = os.environ.get(KEY_VARIABLE)
        return shown(" ".join((text.replace(key, "***") if key else text).split())[:300])

    def refusal(self, said: str) -> ValueError:
        """The error that ends a run."""
        return ValueError(
            f"{self.place} refused the request for the model {self.name!r}: {said}. Correct {KEY_VARIABLE}, llm or "
            "base_url and run the same command again. The answers that came are stored."
        )

    def verdict(self, status: int, text: str, place: str = "") -> "Failure | ValueError | str":
        """What an error means: the question failed, the run must stop, or (a reason) it may work later.

        Args:
            status (`int`): HTTP status, or the one that the body names.
            text (`str`): The error's body.
            place (`str`): Stands before the endpoint's words; by default the status.
        """
        said = self.words(text) or "no reason given"
        reason = f"{place or f'HTTP {status}'}: {said}"
        if status in (200, 400, 422) and (name := self._refused_parameter(text)) is not None:
            advice = _ADVICE.get(name, f'Set llm_parameters to {{"{name}": null}} to leave it out.')
            return ParameterError(
                f"{self.place} does not take the parameter {name} for the model {self.name!r}: {said}. {advice} Then "
                "run the same command again. The answers that came are stored.",
                "structured_output" if name == "response_format" else "llm_parameters",
            )
        if _STOP_CODES.search(text) or (status in _STOP_STATUSES and not _ABOUT_CONTENT.search(text)):
            return self.refusal(said)
        is_passing = status == 200 or status >= 500 or status in (408, 409, 425, 429)
        return reason if is_passing else Failure(reason)

    def _refused_parameter(self, text: str) -> str | None:
        """The parameter that an error's body complains about; None if it is about something else."""
        if _ABOUT_CONTENT.search(text) or not _COMPLAINT.search(text):
            return None
        places = {}
        for name in self.sent():
            spelling = "_?".join(map(re.escape, name.split("_")))  # also maxTokens
            if found := re.search(rf"(?<![a-z]){spelling}(?![a-z])", text, re.IGNORECASE):
                places[name] = found.start()
        return min(places, key=places.__getitem__, default=None)

    def outcome(self, body: Any) -> "Answer | Failure | ValueError | str":
        """Read a body that came with HTTP 200; raises if it is neither an answer nor an error."""
        choice: dict[str, Any] = next(iter(body.get("choices") or ()), {})
        has_answer = "choices" in body and (choice or not body.get("error"))
        error = choice.get("error") or (None if has_answer else body)
        if not error:
            return _answer_of(body)
        inner = error.get("error")
        code = str(error.get("code") or (inner.get("code") if isinstance(inner, dict) else ""))
        return self.verdict(int(code) if code.isdecimal() else 200, json.dumps(error), "HTTP 200 with an error")


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


def openai_package() -> Any:
    """The package `openai`, which is optional."""
    try:
        return importlib.import_module("openai")
    except ImportError as error:
        raise ImportError("Asking an LLM needs the package openai. Run pip install 'hycir_hf[syncir]'.") from error
