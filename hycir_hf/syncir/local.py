"""Answering questions by a `transformers` model in this process, for machines without an endpoint."""

from collections.abc import Iterable, Iterator
from itertools import islice
from typing import Any

from .answers import Answer, Failure, Question

_SORTED_AT_ONCE = 8  # batches whose questions are sorted by length together


class LocalGenerator:
    """Greedy answers by a causal language model with a chat template, in batches of like length.

    Args:
        model (`PreTrainedModel`): In eval mode, on its device.
        tokenizer (`PreTrainedTokenizerBase`): With a chat template.
        name (`str`): The model's name, part of the questions' keys.
        batch_size (`int`): Questions at once.
        max_new_tokens (`int`): Longest answer.
    """

    def __init__(
        self, model: Any, tokenizer: Any, name: str, *, batch_size: int = 16, max_new_tokens: int = 40
    ) -> None:
        if tokenizer.chat_template is None:
            raise ValueError(
                f"Expected a tokenizer with a chat template, but {name} has none. Take an instruction-tuned model."
            )
        self.model, self.tokenizer, self.name, self.batch_size = model, tokenizer, name, batch_size
        self.parameters = {"max_new_tokens": max_new_tokens}
        self.pool_size = batch_size * _SORTED_AT_ONCE
        tokenizer.padding_side = "left"
        if tokenizer.pad_token_id is None:
            tokenizer.pad_token = tokenizer.eos_token

    @classmethod
    def from_pretrained(
        cls, path: str, device: str | None = None, *, name: str | None = None, **options: Any
    ) -> "LocalGenerator":
        """Load model and tokenizer from a folder or the Hub; `name` is the path by default."""
        from transformers import AutoModelForCausalLM, AutoTokenizer

        model = AutoModelForCausalLM.from_pretrained(path).eval()
        return cls(model.to(device or "cpu"), AutoTokenizer.from_pretrained(path), name or path, **options)

    def __call__(self, questions: Iterable[Question]) -> Iterator[tuple[Question, Answer | Failure]]:
        """Answer the questions, pool by pool; within one the longest come first."""
        waiting = iter(questions)
        while pool := list(islice(waiting, self.pool_size)):
            prompts = [
                self.tokenizer.apply_chat_template(question.messages, tokenize=False, add_generation_prompt=True)
                for question in pool
            ]
            order = sorted(range(len(pool)), key=lambda i: -len(prompts[i]))
            for start in range(0, len(order), self.batch_size):
                rows = order[start : start + self.batch_size]
                answers = self._answer([prompts[row] for row in rows])
                yield from zip([pool[row] for row in rows], answers, strict=True)

    def _answer(self, prompts: list[str]) -> list[Answer]:
        import torch

        inputs = self.tokenizer(prompts, padding=True, add_special_tokens=False, return_tensors="pt")
        inputs = inputs.to(self.model.device)
        with torch.inference_mode():
            generated = self.model.generate(
                **inputs, do_sample=False, pad_token_id=self.tokenizer.pad_token_id, **self.parameters
            )  # (B, L + new)
        new = generated[:, inputs["input_ids"].shape[1] :]
        texts = self.tokenizer.batch_decode(new, skip_special_tokens=True)
        prompt_lengths = inputs["attention_mask"].sum(1).tolist()
        lengths = (new != self.tokenizer.pad_token_id).sum(1).tolist()
        return [Answer(text, *counts) for text, *counts in zip(texts, prompt_lengths, lengths, strict=True)]
