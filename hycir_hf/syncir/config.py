"""SynCir's settings."""

from dataclasses import asdict, dataclass, fields
from pathlib import Path
from typing import Any

from .filter import THRESHOLD
from .query_texts import PROMPTS, Prompt

APIS = ("chat", "batch", "local")


@dataclass
class SynCirConfig:
    """All settings of a SynCir run; the defaults are the paper's where it names them.

    Args:
        image_encoder (`str`): Vision model of the pair extraction (paper: ResNet-152).
        max_similarity (`float`): See `find_image_pairs`.
        min_similarity_gap (`float`): See `find_image_pairs`.
        group_size (`int`): See `find_image_pairs`.
        max_pairs (`int`, *optional*): At most so many pairs, drawn at random; all by default.
        captioner (`str`): Captioning model (paper: BLIP).
        caption_column (`str`, *optional*): Column of the images' data set that holds captions already.
        api (`str`): "chat" (completions, many at once), "batch" (Batch API) or "local" (a `transformers` model here).
        llm (`str`): Model that writes the query texts (paper: GPT-3.5); for "local" a folder or Hub id.
        base_url (`str`, *optional*): An OpenAI-compatible endpoint other than OpenAI's.
        prompt (`str`): "paper", "few_shot" (small models) or "vision" (it sees the pictures, not the captions).
        examples (`list`, *optional*): [reference caption, target caption, query text] each, for the prompt's own.
        temperature (`float`): Of the LLM; 0 is the most repeatable.
        max_tokens (`int`): Longest answer in tokens.
        concurrency (`int`): Calls under way at once ("chat"), or questions in a batch ("local").
        timeout (`float`): Seconds for one call.
        max_attempts (`int`): Calls for one question before it counts as failed.
        sentence_encoder (`str`): Sentence embeddings of the filter (paper: BERT).
        threshold (`float`): Lowest similarity kept (paper: 0.7, with BERT). It belongs to the sentence encoder.
        composed_model (`str`, *optional*): A trained HyCIR model that also scores each triplet.
        composed_threshold (`float`): Lowest similarity of the composed query with the target image.
        image_text_model (`str`, *optional*): A dual encoder that checks captions and query text against the pictures.
        caption_threshold (`float`): Lowest similarity of a caption with its own picture.
        query_threshold (`float`): Lowest gain of the query text's similarity, from the reference to the target picture.
        store_images (`str`): "embed" (each picture's file once) or "reference" (ids only; they stay where they are).
        batch_size (`int`): Images, or texts, at once.
        num_workers (`int`): Processes that decode images.
        images_license (`str`, *optional*): Licences of the pictures, in words; by default the card says that they keep
            those of their source.
        note (`str`, *optional*): What a reader of the triplets found, shown on card and report.
        seed (`int`): Of the approximate neighbour index and of the examples shown.
    """

    image_encoder: str = "microsoft/resnet-152"
    max_similarity: float = 0.94
    min_similarity_gap: float = 0.002
    group_size: int = 6
    max_pairs: int | None = None
    captioner: str = "Salesforce/blip-image-captioning-base"
    caption_column: str | None = None
    api: str = "chat"
    llm: str = "gpt-3.5-turbo"
    base_url: str | None = None
    prompt: str = "paper"
    examples: list[list[str]] | None = None
    temperature: float = 0.0
    max_tokens: int = 60
    concurrency: int = 32
    timeout: float = 60.0
    max_attempts: int = 8
    sentence_encoder: str = "google-bert/bert-base-uncased"
    threshold: float = THRESHOLD
    composed_model: str | None = None
    composed_threshold: float = 0.0
    image_text_model: str | None = None
    caption_threshold: float = 0.0
    query_threshold: float = 0.0
    store_images: str = "embed"
    batch_size: int = 64
    num_workers: int = 2
    images_license: str | None = None
    note: str | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        rules = (
            ("api", f"one of {APIS}", self.api in APIS),
            ("prompt", f"one of {tuple(PROMPTS)}", self.prompt in PROMPTS),
            ("prompt", "not 'vision' where api is 'local'", (self.prompt, self.api) != ("vision", "local")),
            ("examples", "a list of [reference caption, target caption, query text]", _are_examples(self.examples)),
            ("store_images", "'embed' or 'reference'", self.store_images in ("embed", "reference")),
            *(
                (name, "in [-1, 1]", -1 <= getattr(self, name) <= 1)
                for name in (
                    "max_similarity",
                    "threshold",
                    "composed_threshold",
                    "caption_threshold",
                    "query_threshold",
                )
            ),
            ("min_similarity_gap", "at least 0", self.min_similarity_gap >= 0),
            ("group_size", "at least 3", self.group_size >= 3),
            ("max_pairs", "a whole number of at least 1", _is_count_or_none(self.max_pairs)),
            ("temperature", "at least 0", self.temperature >= 0),
            ("timeout", "above 0", self.timeout > 0),
            ("num_workers", "at least 0", self.num_workers >= 0),
            *(
                (name, "at least 1", getattr(self, name) >= 1)
                for name in ("max_tokens", "concurrency", "max_attempts", "batch_size")
            ),
        )
        complaints = [f"{name} must be {rule}, but it is {getattr(self, name)!r}" for name, rule, ok in rules if not ok]
        if complaints:
            raise ValueError(f"SynCir's settings: {'; '.join(complaints)}. Correct them.")

    @classmethod
    def from_yaml(cls, path: str | Path | None, **overrides: Any) -> "SynCirConfig":
        """Read a YAML file of settings; `overrides` win over it. None reads no file.

        Raises:
            ValueError: If the file is no mapping, names an unknown setting, or a value is of the wrong type or range.
        """
        settings: Any = {}
        if path is not None:
            import yaml

            try:
                settings = yaml.safe_load(Path(path).read_text(encoding="utf-8")) or {}
            except yaml.YAMLError as error:
                raise ValueError(f"Expected YAML in {path}, but {' '.join(str(error).split())}. Correct it.") from error
            if not isinstance(settings, dict):
                raise ValueError(f"Expected a mapping of settings in {path}, but found {type(settings).__name__}.")
        known = {field.name: field.type for field in fields(cls)}
        unknown = [name for name in {**settings, **overrides} if name not in known]
        if unknown:
            raise ValueError(f"Expected settings of {list(known)}, but found {unknown}. Correct their names.")
        return cls(**{name: _typed(name, value, cls) for name, value in {**settings, **overrides}.items()})

    def to_dict(self) -> dict[str, Any]:
        """The settings as plain values."""
        return asdict(self)

    def build_prompt(self) -> Prompt:
        """The prompt with its examples."""
        prompt = PROMPTS[self.prompt]
        if self.examples is None:
            return prompt
        examples = tuple((reference, target, text) for reference, target, text in self.examples)
        return Prompt(prompt.name, prompt.instruction, examples)


def _typed(name: str, value: Any, cls: type) -> Any:
    """A value as its setting's type; YAML reads 1e-3 as a text and 1 as an int."""
    default = cls.__dataclass_fields__[name].default  # type: ignore[attr-defined]
    wanted = type(default)
    if default is None or isinstance(value, wanted):
        return value
    if isinstance(value, bool) or not isinstance(value, str | int | float) or wanted is str:
        raise ValueError(f"Expected {name} as {wanted.__name__}, but found {value!r}. Correct it.")
    try:
        converted = wanted(value)
    except ValueError as error:
        raise ValueError(f"Expected {name} as {wanted.__name__}, but found {value!r}. Correct it.") from error
    if converted != float(value):
        raise ValueError(f"Expected {name} as {wanted.__name__}, but found {value!r}. Correct it.")
    return converted


def _is_count_or_none(value: Any) -> bool:
    return value is None or (isinstance(value, int) and value >= 1)


def _are_examples(examples: Any) -> bool:
    return examples is None or (
        isinstance(examples, list | tuple)
        and all(isinstance(e, list | tuple) and len(e) == 3 and all(isinstance(t, str) for t in e) for e in examples)
    )
