"""SynCir's settings: one dataclass, whose fields are YAML keys and flags of `hycir syncir run`.

This module is light (no torch), so that `hycir syncir run --help` is quick.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any, ClassVar, Literal

from ..settings import Settings, setting
from .filter import THRESHOLD
from .query_texts import PROMPTS, Prompt


@dataclass
class SynCirConfig(Settings):
    """Settings of a SynCir run. The defaults are the paper's where it names them.

    `hycir syncir run --help` shows each field's meaning.

    Raises:
        ParameterError: With every complaint about the values at once.
    """

    title: ClassVar[str] = "SynCir settings"

    image_encoder: str = setting(
        "microsoft/resnet-152", "Vision model that finds similar images (paper: ResNet-152).", group="Image pairs"
    )
    max_similarity: float = setting(
        0.94, "Images with this cosine similarity or more count as near-identical.", at_least=-1, at_most=1
    )
    min_similarity_gap: float = setting(
        0.002, "Smallest step in similarity between two neighbours of a group.", at_least=0
    )
    group_size: int = setting(6, "Images in a group of similar images (paper: 6).", at_least=3)
    max_pairs: int | None = setting(
        None, "Largest number of image pairs, drawn at random. By default all are used.", at_least=1
    )

    captioner: str = setting(
        "Salesforce/blip-image-captioning-base", "Captioning model (paper: BLIP).", group="Captions"
    )
    captions: str | None = setting(
        None,
        "File with captions: CSV, TSV, JSON lines or Parquet, with a column image_id or file_name and a column caption "
        "or text. By default metadata.csv or .jsonl beside the images, if there is one; 'model' asks the captioner.",
    )
    caption_column: str | None = setting(None, "Column that holds the captions: of the dataset, or of that file.")

    api: Literal["chat", "batch", "local"] = setting(
        "chat",
        "How the LLM is asked: chat (many calls at once), batch (OpenAI's Batch API) or local (in this process).",
        group="Query texts",
    )
    llm: str = setting("gpt-3.5-turbo", "LLM that writes the query texts (paper: GPT-3.5); local: folder or Hub id.")
    base_url: str | None = setting(None, "OpenAI-compatible endpoint. By default OpenAI's own.")
    prompt: Literal["paper", "detailed", "few_shot", "fashion", "vision"] = setting(
        "paper",
        "Prompt: paper (Figure 3), detailed (with more rules), few_shot (for small LLMs), fashion (clothes) or vision "
        "(the LLM sees the images).",
    )
    examples: list[list[str]] | None = setting(
        None, "Examples for the prompt: a list of [reference caption, target caption, query text], as JSON."
    )
    temperature: float | None = setting(0.0, "Temperature of the LLM; 0 repeats best. null sends none.", at_least=0)
    max_tokens: int | None = setting(60, "Longest answer, in tokens. null sends none.", at_least=1)
    llm_parameters: dict[str, Any] | None = setting(
        None,
        'Further parameters of each call, as JSON, such as {"reasoning_effort": "low"}; null leaves one out.',
    )
    structured_output: bool = setting(False, "Ask for JSON by a schema (response_format), where the endpoint can.")
    concurrency: int = setting(32, "Calls at the same time (chat), or questions in a batch (local).", at_least=1)
    timeout: float = setting(60.0, "Seconds until a call is given up.")
    max_attempts: int = setting(8, "Calls for one question before it counts as failed.", at_least=1)

    sentence_encoder: str = setting(
        "google-bert/bert-base-uncased", "Sentence embeddings for the filter (paper: BERT).", group="Filter"
    )
    threshold: float = setting(
        THRESHOLD,
        "Lowest similarity that is kept (paper: 0.7, with BERT). Choose another one for another sentence encoder.",
        at_least=-1,
        at_most=1,
    )
    composed_model: str | None = setting(None, "Trained HyCIR model that also scores each triplet.")
    composed_threshold: float = setting(
        0.0, "Lowest similarity of the composed query with the target image.", at_least=-1, at_most=1
    )
    image_text_model: str | None = setting(
        None, "Image-text encoder that checks captions and query texts against the images."
    )
    caption_threshold: float = setting(
        0.0, "Lowest similarity of a caption with its own image.", at_least=-1, at_most=1
    )
    query_threshold: float = setting(
        0.0,
        "Lowest gain of the query text's similarity from the reference image to the target image.",
        at_least=-1,
        at_most=1,
    )

    store_images: Literal["embed", "reference"] = setting(
        "embed", "embed: the dataset contains the image files; reference: it contains only their ids.", group="Run"
    )
    batch_size: int = setting(64, "Images, or texts, that a model gets at once.", at_least=1)
    num_workers: int = setting(2, "Processes that decode images.", at_least=0)
    images_license: str | None = setting(
        None, "Licences of the images, in words, for the card. By default: those of their source."
    )
    note: str | None = setting(None, "What a reader of the triplets found, for the card and the report.")
    seed: int = setting(0, "Random seed for the approximate neighbour index, max_pairs and the examples shown.")

    def complaints(self) -> Iterator[str]:
        """Yield which settings do not go together."""
        if (self.prompt, self.api) == ("vision", "local"):
            yield "prompt 'vision' does not work with api 'local': an LLM in this process sees no images"
        if self.api == "local" and self.max_tokens is None:
            yield "max_tokens must be a number with api 'local'"
        if self.structured_output and self.api == "local":
            yield "structured_output does not work with api 'local'"
        if wrong := _wrong_parameters(self.llm_parameters or {}):
            yield f"llm_parameters {wrong}"
        if not self.timeout > 0:
            yield f"timeout must be above 0, but it is {self.timeout}"
        if not all(map(_is_example, self.examples or ())):
            yield "examples must be a list of [reference caption, target caption, query text]"

    def build_prompt(self) -> Prompt:
        """Return the prompt with its examples."""
        prompt = PROMPTS[self.prompt]
        if self.examples is None:
            return prompt
        examples = tuple((reference, target, text) for reference, target, text in self.examples)
        return replace(prompt, examples=examples)


def _wrong_parameters(parameters: dict[str, Any]) -> str | None:
    """What is wrong with further parameters of a call, or None."""
    own = sorted({"model", "messages", "stream"} & {*parameters, *(parameters.get("extra_body") or ())})
    if own:
        return f"cannot set {', '.join(own)}"
    try:
        json.dumps(parameters, allow_nan=False)
    except (TypeError, ValueError) as error:
        return f"must be JSON ({error})"
    if not all(isinstance(name, str) for name in parameters):
        return "must have texts as names"
    return None if isinstance(parameters.get("extra_body", {}), dict) else "must hold a mapping as extra_body"


def _is_example(one: Any) -> bool:
    return isinstance(one, list | tuple) and len(one) == 3 and all(isinstance(text, str) for text in one)
