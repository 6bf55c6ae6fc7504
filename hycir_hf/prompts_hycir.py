"""Prompts as token ids: K placeholders for each reference image, words around them, all within the encoder's length."""

import logging
import re
import sys
from typing import Any, TypedDict

from transformers.feature_extraction_utils import BatchFeature
from transformers.processing_utils import ProcessorMixin

from .configuration_hycir import RESERVED_PLACEHOLDER_ID, PrivateByDefault

logger = logging.getLogger(__name__)


class HyCIRTextKwargs(TypedDict, total=False):
    """The library's text arguments that prompts have."""

    compose: bool | None
    padding: bool | str | None
    truncation: bool | str | None
    max_length: int | None
    padding_side: str | None
    pad_to_multiple_of: int | None
    return_attention_mask: bool | None
    return_tensors: str | None


class PromptBuilder(PrivateByDefault, ProcessorMixin):
    """The part of `HyCIRProcessor` that builds, cuts and pads prompts."""

    num_pseudo_tokens: int
    placeholder_token_id: int
    max_length: int
    pad_to_max_length: bool
    text_kwargs: Any = {  # noqa: RUF012 - the library reads a call's defaults from this attribute
        "compose": True,
        "padding": True,
        "truncation": True,
        "padding_side": "right",
        "return_tensors": "pt",
    }
    _has_warned_of_cut = False

    def build_prompts(self, pieces: list[list[str]], return_tensors: str | None = "pt") -> BatchFeature:
        """Make prompts of any form: K placeholders between each two pieces of text.

        Args:
            pieces (`list[list[str]]`): Each row's texts around its placeholders. `["a photo of", "on a bench"]` has one
                block of placeholders, a row of one piece has none. Pieces may be empty.
            return_tensors (`str`, *optional*): As in `__call__`.

        Returns:
            `BatchFeature`: `input_ids` and `attention_mask` of shape `(B, L)`. A prompt that is too long for the
            encoder loses its end.
        """
        counts = [len(row) for row in pieces]
        tokenized = iter(self._tokenize([piece.rstrip() for row in pieces for piece in row]))
        before, after = self._special_ids()
        block = [self.placeholder_token_id] * self.num_pseudo_tokens
        rows = []
        for row, count in zip(pieces, counts, strict=True):
            ids: list[int] = []
            for number in range(count):
                words = next(tokenized)
                self._check_free_of_placeholders(words, row[number])
                ids += (block if number else []) + words
            rows.append(before + self._cut_at_block(ids, self.max_length - len(before) - len(after)) + after)
        return BatchFeature(self._pad(rows, self.text_kwargs), tensor_type=return_tensors)

    def _cut_at_block(self, ids: list[int], room: int) -> list[int]:
        """Cut a prompt to the encoder's length, never within a block of placeholders."""
        kept = ids[:room]
        if len(ids) > room:
            num_partial = kept.count(self.placeholder_token_id) % self.num_pseudo_tokens
            kept = kept[: len(kept) - num_partial]
        return kept

    def _ids_of(self, texts: list[str], counts: list[int], prompt: str, words: Any) -> list[list[int]]:
        """Build composed prompts; a text without images stays as it is.

        Pieces are tokenized apart, so no query text can make or break a placeholder.
        """
        pairs = [_fill(prompt, text) if count else (text, "") for text, count in zip(texts, counts, strict=True)]
        befores = self._tokenize([before for before, _ in pairs])
        afters = self._tokenize([after for _, after in pairs])
        between = self._tokenize([" and"])[0]
        first, last = self._special_ids()
        is_cut = words["truncation"] not in (False, "do_not_truncate")
        limit = (words.get("max_length") or self.max_length) if is_cut else sys.maxsize
        rows = []
        for text, before, after, count in zip(texts, befores, afters, counts, strict=True):
            image = [self.placeholder_token_id] * self.num_pseudo_tokens
            # Paper: one reference image; several are joined with "and", as in "a photo of [...] and [...], text".
            block = image + (between + image) * (count - 1) if count else []
            num_others = len(first) + len(block) + len(last)
            if not count or prompt.index("{text}") < prompt.index("{image}"):
                before = self._cut(before, limit, num_others + len(after), text)
            else:
                after = self._cut(after, limit, num_others + len(before), text)
            if count:
                self._check_free_of_placeholders(before + after, text)
            rows.append(first + before + block + after + last)
        return rows

    def _tokenize(self, texts: list[str]) -> list[list[int]]:
        """Tokenize without special tokens and without cutting."""
        return self.tokenizer(texts, add_special_tokens=False, truncation=False, verbose=False)["input_ids"]

    def _special_ids(self) -> tuple[list[int], list[int]]:
        """Find the special tokens that the tokenizer puts before and after every text."""
        probe = self._tokenize(["a"])[0]
        wrapped = self.tokenizer("a")["input_ids"]
        for start in range(len(wrapped) - len(probe) + 1):
            if wrapped[start : start + len(probe)] == probe:
                return wrapped[:start], wrapped[start + len(probe) :]
        raise ValueError(
            f"The tokenizer does not put its special tokens around the text: it turns 'a' into {wrapped} with and into "
            f"{probe} without them. Use the encoder's own tokenizer."
        )

    def _cut(self, ids: list[int], limit: int, num_others: int, text: str) -> list[int]:
        """Cut a text's ids so that the prompt's `num_others` other tokens still fit into `limit`."""
        room = limit - num_others
        if room < 0:
            raise ValueError(
                f"A prompt may have {limit} tokens, but its placeholders and fixed words alone have {-room} "
                "more. Give fewer reference images a row, or use fewer pseudo tokens."
            )
        if len(ids) > room and not self._has_warned_of_cut:
            self._has_warned_of_cut = True
            logger.warning(
                "A text was cut to fit the encoder's %d tokens: %r. Further cuts are not reported.", limit, text[:100]
            )
        return ids[:room]

    def _check_free_of_placeholders(self, ids: list[int], text: str) -> None:
        """Refuse words that read as placeholders. This can only happen if the placeholder is an ordinary token."""
        if self.placeholder_token_id in ids:
            raise ValueError(
                f"The query text {text!r} or the prompt contains the placeholder (id {self.placeholder_token_id}). "
                f"Reword it, or use placeholder_token_id={RESERVED_PLACEHOLDER_ID}, which no text can contain."
            )

    def _pad(self, rows: list[list[int]], words: Any) -> dict[str, list[list[int]]]:
        """Pad rows as a call's text arguments say (SigLIP: always to the full length) and make the mask."""
        length = max(map(len, rows), default=0)
        if self.pad_to_max_length or words["padding"] == "max_length":
            length = words.get("max_length") or self.max_length
        length += -length % (words.get("pad_to_multiple_of") or 1)
        is_padded = words["padding"] not in (False, None, "do_not_pad")
        pad_id = next((i for i in (self.tokenizer.pad_token_id, self.tokenizer.eos_token_id) if i is not None), 0)
        padded: dict[str, list[list[int]]] = {"input_ids": [], "attention_mask": []}
        for row in rows:
            num_padding = length - len(row) if is_padded else 0
            for name, values, filler in (("input_ids", row, pad_id), ("attention_mask", [1] * len(row), 0)):
                padding = [filler] * num_padding
                padded[name].append(padding + values if words["padding_side"] == "left" else values + padding)
        has_mask = words.get("return_attention_mask")
        if not (has_mask if has_mask is not None else not self.pad_to_max_length):
            del padded["attention_mask"]
        return padded


def as_texts(text: Any) -> list[str]:
    """Bring texts to a list of strings."""
    texts = [text] if isinstance(text, str) else list(text)
    if not texts:
        raise ValueError("text is an empty list. Leave out empty batches.")
    for i, item in enumerate(texts):
        if not isinstance(item, str):
            raise TypeError(f"Texts must be strings, but text {i} is {item!r}. Give '' for the image alone.")
    return texts


def _fill(prompt: str, text: str) -> tuple[str, str]:
    """Put a query text into the template and split it at `{image}`. An empty text also removes its punctuation."""
    text = text.strip()
    if not text:
        prompt = re.sub(r"^\{text\}[\s,;:.]*|[\s,;:]*\{text\}", "", prompt)
    before, after = prompt.split("{image}")
    return before.replace("{text}", text).rstrip(), after.replace("{text}", text).rstrip()
