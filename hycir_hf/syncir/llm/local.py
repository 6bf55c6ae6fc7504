"""Answering questions with a `transformers` model in this process; no endpoint is needed."""

import copy
from collections.abc import Iterable, Iterator
from dataclasses import replace
from itertools import islice
from typing import Any

import torch
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from .answers import Answer, Failure, Question
from .reading import is_known_token, opened_reasoning

_SORTED_AT_ONCE = 8  # batches whose questions are sorted by length together


class LocalGenerator:
    """Greedy answers of a causal language model with a chat template, in batches of similar length.

    Args:
        model (`PreTrainedModel`): In eval mode, on its device.
        tokenizer (`PreTrainedTokenizerBase`): With a chat template.
        name (`str`): The model's name; part of the questions' keys.
        batch_size (`int`): Questions answered at once.
        max_new_tokens (`int`): Most tokens of an answer.
        parameters: Further arguments of `generate`. `chat_template_kwargs` are for the chat template, such as
            {"enable_thinking": False}.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        tokenizer: PreTrainedTokenizerBase,
        name: str,
        *,
        batch_size: int = 16,
        max_new_tokens: int = 40,
        **parameters: Any,
    ) -> None:
        if tokenizer.chat_template is None:
            raise ValueError(f"The tokenizer of {name} has no chat template. Choose an instruction-tuned model.")
        self.model, self.tokenizer, self.name, self.batch_size = model, tokenizer, name, batch_size
        given = {"max_new_tokens": max_new_tokens, **parameters}
        self.parameters = {name: value for name, value in given.items() if value is not None}
        self._options = {name: value for name, value in self.parameters.items() if name != "chat_template_kwargs"}
        self.pool_size = batch_size * _SORTED_AT_ONCE
        self._cached: tuple[tuple[int, ...], Any] | None = None
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token

    @classmethod
    def from_pretrained(
        cls, path: str, device: str | None = None, *, name: str | None = None, **options: Any
    ) -> "LocalGenerator":
        """Load model and tokenizer from a folder or the Hub; `name` is the path by default."""
        model = AutoModelForCausalLM.from_pretrained(path).eval()
        return cls(model.to(device or "cpu"), AutoTokenizer.from_pretrained(path), name or path, **options)

    def __call__(self, questions: Iterable[Question]) -> Iterator[tuple[Question, Answer | Failure]]:
        """Answer the questions, pool by pool; within a pool the longest come first."""
        waiting = iter(questions)
        while pool := list(islice(waiting, self.pool_size)):
            texts = [self._text(question) for question in pool]
            prompts = [self.tokenizer(text, add_special_tokens=False)["input_ids"] for text in texts]
            prefix = _common_prefix(prompts)
            order = sorted(range(len(pool)), key=lambda i: -len(prompts[i]))
            for start in range(0, len(order), self.batch_size):
                rows = order[start : start + self.batch_size]
                answers = self._answer([prompts[row] for row in rows], prefix)
                for row, answer in zip(rows, answers, strict=True):
                    yield pool[row], replace(answer, text=opened_reasoning(texts[row]) + answer.text)

    def _text(self, question: Question) -> str:
        options = self.parameters.get("chat_template_kwargs", {})
        return self.tokenizer.apply_chat_template(
            question.messages, tokenize=False, add_generation_prompt=True, **options
        )

    def _decode(self, ids: list[int]) -> str:
        """Decode an answer; the tokens that tell reasoning from answer stay, also where they are special."""
        text = self.tokenizer.decode(ids)
        for token in self.tokenizer.all_special_tokens:
            text = text if is_known_token(token) else text.replace(token, "")
        return text.strip()

    def _answer(self, prompts: list[list[int]], prefix: list[int]) -> list[Answer]:
        """Answer a batch; the shared beginning of the pool's prompts is run through the model once."""
        pad = self.tokenizer.pad_token_id
        longest = max(map(len, prompts))
        rows, mask = [], []
        for prompt in prompts:  # the padding goes between the shared beginning and the rest
            gap = longest - len(prompt)
            rows.append([*prefix, *[pad] * gap, *prompt[len(prefix) :]])
            mask.append([*[1] * len(prefix), *[0] * gap, *[1] * (len(prompt) - len(prefix))])
        device = self.model.device
        with torch.inference_mode():
            generated = self.model.generate(
                input_ids=torch.tensor(rows, device=device),  # (B, L)
                attention_mask=torch.tensor(mask, device=device),
                past_key_values=self._prefix_cache(tuple(prefix), len(prompts)),
                do_sample=False,
                pad_token_id=pad,
                **self._options,
            )  # (B, L + new)
        new = generated[:, longest:].tolist()
        ends = set(_as_list(self.model.generation_config.eos_token_id)) | {self.tokenizer.eos_token_id}
        answers = []
        for prompt, ids in zip(prompts, new, strict=True):
            length = next((i for i, id_ in enumerate(ids) if id_ in ends), None)
            written = ids if length is None else ids[:length]
            answers.append(Answer(self._decode(written), len(prompt), len(written), is_cut=length is None))
        return answers

    def _prefix_cache(self, prefix: tuple[int, ...], batch_size: int) -> Any:
        """Keys and values of a shared beginning, repeated for a batch; None if it is empty."""
        if not prefix:
            return None
        if self._cached is None or self._cached[0] != prefix:
            with torch.inference_mode():
                output = self.model(torch.tensor([prefix], device=self.model.device), use_cache=True)
            self._cached = prefix, output.past_key_values
        cache = copy.deepcopy(self._cached[1])
        cache.batch_repeat_interleave(batch_size)
        return cache


def _common_prefix(prompts: list[list[int]]) -> list[int]:
    """The shared beginning of all prompts; at least one token of each prompt is left over."""
    first, last = min(prompts), max(prompts)
    shared = next((i for i, (a, b) in enumerate(zip(first, last, strict=False)) if a != b), min(len(first), len(last)))
    return first[: min(shared, min(map(len, prompts)) - 1)]


def _as_list(ids: Any) -> list[int]:
    return ids if isinstance(ids, list) else [] if ids is None else [ids]
