"""SynCir from images to a data set of triplets, stage by stage; a stage that was cut short goes on where it stopped.

Paper: Pseudo Triplet Generation. Everything that a later run can use is kept in OUTPUT/.work: features, pairs,
captions, answers, similarities. Nothing in the result depends on where a run was stopped.
"""

import base64
import hashlib
import io
import json
import logging
import secrets
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

import numpy as np
from filelock import FileLock, Timeout
from tqdm import tqdm

from ..images import FileSource, open_source
from .blocks import BlockStore, map_images
from .checks import Check
from .config import SynCirConfig
from .dataset import RECIPE, count_results, finish_move, read_recipe, write_dataset
from .filter import EQUAL_CAPTIONS, EmbedSentences, are_equal, split_triplets
from .llm.answers import AnswerStore, Failure, Generator, Question, first_of_each, make_question, unanswered
from .pairs import find_image_groups, pairs_of_groups
from .query_texts import Messages, parse_query_text
from .report import NO_ANSWER, NO_CAPTION, UNUSABLE, draw_histogram
from .scoring import TEXTS, Scoring

logger = logging.getLogger(__name__)

STAGES = ("features", "pairs", "captions", "query_texts")
"""Stages that a run can end after; the filter and the output follow."""

_SHARED_STAGES = ("features", "captions", "query_texts")
_PROSE = ("images_license", "note")  # settings that are no name or path
_METHOD = 1  # raise it where the same answers would give other triplets
_BATCHES_A_BLOCK = 8
_RUN_ONLY = ("concurrency", "timeout", "max_attempts", "num_workers")  # settings that cannot change the result
_URL_SIDE = 512  # pixels of a picture that is sent to a vision model
_CHARACTERS_A_TOKEN, _TOKENS_AN_ANSWER = 4, 15  # English, roughly
_VERSIONS = ("hycir_hf", "torch", "transformers", "sentence-transformers", "faiss-cpu")


@dataclass
class SynCirModels:
    """SynCir's models as plain callables; what is None is loaded by its name in the settings when it is needed.

    Args:
        embed_images: PIL pictures -> `(B, D)`.
        caption: PIL pictures -> one caption each.
        generate: Answers questions (see `Generator`).
        embed_sentences: Texts -> `(T, D)`.
        checks: Further checks of the triplets by their pictures; None loads those that the settings name.
    """

    embed_images: Callable[[list[Any]], np.ndarray] | None = None
    caption: Callable[[list[Any]], Sequence[str]] | None = None
    generate: Generator | None = None
    embed_sentences: EmbedSentences | None = None
    checks: Sequence[Check] | None = None


@dataclass(frozen=True)
class Estimate:
    """What the LLM stage will ask.

    Args:
        questions (`int`): Different questions.
        answered (`int`): Of those, answered already.
        prompt_tokens (`int`): Of the open ones, estimated at four characters a token; pictures are not counted.
        completion_tokens (`int`): Estimated at 15 an answer.
    """

    questions: int
    answered: int
    prompt_tokens: int
    completion_tokens: int

    def cost(self, price_in: float, price_out: float) -> float:
        """The price, from prices per million tokens."""
        return (self.prompt_tokens * price_in + self.completion_tokens * price_out) / 1e6


def build_triplets(
    images: str | Path | FileSource,
    output: str | Path,
    config: SynCirConfig | None = None,
    models: SynCirModels | None = None,
    *,
    until: str | None = None,
    num_shards: int = 1,
    shard_index: int = 0,
    device: str = "cpu",
    progress: bool = True,
) -> dict[str, Any] | None:
    """Make a data set of triplets from unlabeled images.

    Args:
        images (`str`, `Path` or `FileSource`): A folder of pictures, or a `datasets` path.
        output (`str` or `Path`): The data set's folder; the same call again goes on where one was cut short.
        config (`SynCirConfig`, *optional*): Settings; the paper's by default.
        models (`SynCirModels`, *optional*): Callables in place of the models that the settings name. Their names in the
            settings still tell stored results apart.
        until (`str`, *optional*): End after this one of `STAGES`.
        num_shards (`int`): Processes that share a stage, for job arrays; needs `until`.
        shard_index (`int`): Which of them this is, from 0.
        device (`str`): Where the named models run.
        progress (`bool`): Show progress bars.

    Returns:
        `dict`: The recipe with settings, thresholds and counts; None where the run ends early.

    Raises:
        ValueError: If there are no pairs, the endpoint refuses, a setting is wrong, or another shard is not done.
    """
    return SynCirRun(images, output, config, models, device, progress).run(until, num_shards, shard_index)


class SynCirRun:
    """One run; arguments as in `build_triplets`. N images, P pairs, T triplets with a query text."""

    def __init__(
        self,
        images: str | Path | FileSource,
        output: str | Path,
        config: SynCirConfig | None = None,
        models: SynCirModels | None = None,
        device: str = "cpu",
        progress: bool = True,
    ) -> None:
        self.source = open_source(str(images)) if isinstance(images, str | Path) else images
        self.output, self.work = Path(output), Path(output) / ".work"
        self.config, self.models = config or SynCirConfig(), models or SynCirModels()
        self.device, self.progress = device, progress
        for id_ in self.source.ids:
            if id_ != _storable(id_):
                raise ValueError(f"Expected ids in Unicode, but found {id_!r}. Rename that file.")
        self.failures: dict[str, str] = {}

    def run(self, until: str | None = None, num_shards: int = 1, shard_index: int = 0) -> dict[str, Any] | None:
        """Run the stages, one after the other."""
        _check_shards(until, num_shards, shard_index)
        self.work.mkdir(parents=True, exist_ok=True)
        finish_move(self.output)
        if until is None and (finished := self._finished()) is not None:
            return finished
        name = "whole" if num_shards == 1 else f"{until}-{shard_index}-of-{num_shards}"
        try:
            with FileLock(self.work / f"{name}.lock", timeout=0):
                return self._run(until, num_shards, shard_index)
        except Timeout as error:
            raise ValueError(
                f"Expected to be alone in {self.output}, but another process works there. Wait for it, or end it."
            ) from error

    def _run(self, until: str | None, num_shards: int, shard_index: int) -> dict[str, Any] | None:
        self._encode(num_shards, shard_index)
        if until == "features":
            return None
        self._find_pairs()
        if until == "pairs":
            return None
        self._write_captions(num_shards, shard_index)
        if until == "captions":
            return None
        self._ask(num_shards, shard_index)
        if until == "query_texts":
            return None
        return self._write()

    def estimate(self) -> Estimate:
        """Count the LLM stage's questions and tokens, before they are paid for; runs the stages before it."""
        self.work.mkdir(parents=True, exist_ok=True)
        self._encode(1, 0)
        self._find_pairs()
        self._write_captions(1, 0)
        answers = self._open_answers()
        seen: set[str] = set()
        answered = characters = 0
        for reference, target in self._pairs["pairs"].tolist():
            question = self._question(reference, target)
            if question is None or question.key in seen:
                continue
            seen.add(question.key)
            if question.key in answers:
                answered += 1
            else:
                characters += sum(map(len, _texts_of(self._messages(reference, target, urls=["", ""]))))
        left = len(seen) - answered
        return Estimate(len(seen), answered, -(-characters // _CHARACTERS_A_TOKEN), _TOKENS_AN_ANSWER * left)

    # --- image pair extraction ----------------------------------------------------------------------------------------

    @cached_property
    def _source_key(self) -> str:
        stamps = "\n".join(f"{id_} {self.source.stamp(row)}" for row, id_ in enumerate(self.source.ids))
        return hashlib.sha256(stamps.encode("utf-8", errors="surrogateescape")).hexdigest()

    @cached_property
    def _features(self) -> BlockStore:
        key = [self._source_key, _model_key(self.config.image_encoder), self.config.batch_size]
        return BlockStore(self.work / "features", key, len(self.source.ids), self._image_block)

    @property
    def _image_block(self) -> int:
        return _BATCHES_A_BLOCK * self.config.batch_size

    def _encode(self, num_shards: int, shard_index: int) -> None:
        if not self._features.pending(num_shards, shard_index):
            return
        if self.models.embed_images is None:
            from .models import load_image_embedder

            self.models.embed_images = load_image_embedder(self.config.image_encoder, self.device)
        embed = self.models.embed_images
        self._map_images(self._features, embed, "Features", num_shards, shard_index)

    def _map_images(self, store: BlockStore, apply: Any, label: str, num_shards: int = 1, shard_index: int = 0) -> None:
        map_images(
            store,
            self.source,
            apply,
            label,
            batch_size=self.config.batch_size,
            num_workers=self.config.num_workers,
            num_shards=num_shards,
            shard_index=shard_index,
            progress=self.progress,
        )

    @cached_property
    def _pairs_place(self) -> Path:
        config = self.config
        rule = [config.max_similarity, config.min_similarity_gap, config.group_size, config.max_pairs, config.seed]
        key = hashlib.sha256(json.dumps([str(self._features.directory.name), rule]).encode()).hexdigest()
        return self.work / "pairs" / f"{key[:16]}.npz"

    def _find_pairs(self) -> None:
        if self._pairs_place.exists():
            return
        _check_whole(self._features, "features")
        features, rows = self._features.vectors()
        norms = np.linalg.norm(features, axis=1) if len(rows) else np.zeros(0)
        usable = np.isfinite(norms) & (norms > 0)
        if not usable.all():
            logger.warning("%d images have no usable features and are in no pair.", int((~usable).sum()))
            features, rows = features[usable], rows[usable]
        if not len(rows):
            reason = next(iter(self._features.reasons().values()), "none")
            raise ValueError(
                f"Expected readable images, but none of {len(self.source.ids)} could be read (the first: {reason})."
            )
        config = self.config
        groups = find_image_groups(
            features,
            config.max_similarity,
            config.min_similarity_gap,
            config.group_size,
            config.seed,
            progress=self.progress,
        )
        pairs, group_ids = pairs_of_groups(groups)
        if not len(pairs):
            raise ValueError(
                f"Expected subgroups of {config.group_size} similar images, but {len(rows)} images give none. Take "
                "more images, or a smaller group_size, or a higher max_similarity."
            )
        num_pairs = len(pairs)
        if config.max_pairs is not None:
            chosen = np.sort(np.random.default_rng(config.seed).permutation(len(pairs))[: config.max_pairs])
            pairs, group_ids = pairs[chosen], group_ids[chosen]
        self._pairs_place.parent.mkdir(parents=True, exist_ok=True)
        aside = self._pairs_place.with_suffix(f".{secrets.token_hex(4)}.tmp.npz")
        np.savez(aside, pairs=rows[pairs], group_ids=group_ids, num_groups=len(groups), num_pairs=num_pairs)
        aside.replace(self._pairs_place)

    @cached_property
    def _pairs(self) -> dict[str, np.ndarray]:
        """`pairs` (P, 2) as rows of the source, `group_ids` (P,), `num_groups`, `num_pairs` (before max_pairs)."""
        if not self._pairs_place.exists():
            raise ValueError("Expected the pairs, but they are not there yet. Run the stage 'pairs' first.")
        with np.load(self._pairs_place) as stored:
            return {name: stored[name] for name in stored.files}

    # --- captions -----------------------------------------------------------------------------------------------------

    @cached_property
    def _caption_store(self) -> BlockStore:
        key = [self._source_key, _model_key(self.config.captioner), self.config.batch_size]
        return BlockStore(self.work / "captions", key, len(self.source.ids), self._image_block)

    def _write_captions(self, num_shards: int, shard_index: int) -> None:
        if self.config.caption_column is not None or not self._caption_store.pending(num_shards, shard_index):
            return
        if self.models.caption is None:
            from .models import load_captioner

            self.models.caption = load_captioner(self.config.captioner, self.device)
        write = self.models.caption
        storable = lambda images: [_storable(text) for text in write(images)]  # noqa: E731
        self._map_images(self._caption_store, storable, "Captions", num_shards, shard_index)

    @cached_property
    def _captions(self) -> list[str | None]:
        """A caption for each row of the source; None where the picture cannot be read."""
        if self.config.caption_column is None:
            _check_whole(self._caption_store, "captions")
            return self._caption_store.values()
        column = getattr(self.source, "column", None)
        if column is None:
            raise ValueError("Expected a data set for caption_column, but the images are a folder. Leave it out.")
        unreadable = self._features.reasons()
        return [
            None if row in unreadable else _storable(str(text or ""))
            for row, text in enumerate(column(self.config.caption_column))
        ]

    # --- query texts --------------------------------------------------------------------------------------------------

    @cached_property
    def _generator(self) -> Generator:
        if self.models.generate is not None:
            return self.models.generate
        config = self.config
        if config.api == "local":
            from .llm.local import LocalGenerator

            return LocalGenerator.from_pretrained(
                config.llm, self.device, batch_size=config.concurrency, max_new_tokens=config.max_tokens
            )
        from .llm.chat import BatchGenerator, ChatGenerator

        parameters = {"temperature": config.temperature, "max_tokens": config.max_tokens}
        if config.api == "batch":
            return BatchGenerator(config.llm, config.base_url, **parameters)
        return ChatGenerator(
            config.llm,
            config.base_url,
            concurrency=config.concurrency,
            timeout=config.timeout,
            max_attempts=config.max_attempts,
            **parameters,
        )

    def _open_answers(self) -> AnswerStore:
        return AnswerStore(self.work / "answers")

    def _question(self, reference: int, target: int) -> Question | None:
        """The question about a pair; None where the captions are equal or missing."""
        captions = self._captions[reference], self._captions[target]
        if not captions[0] or not captions[1] or are_equal(*captions):  # type: ignore[arg-type]
            return None
        if self.config.prompt != "vision":
            return make_question(self._generator, self._messages(reference, target))
        ids = [f"picture {self.source.ids[row]} {self.source.stamp(row)}" for row in (reference, target)]
        key = self._messages(reference, target, urls=ids)  # the pictures are read when the question is asked
        urls = lambda: [self._picture_url(row) for row in (reference, target)]  # noqa: E731
        return make_question(self._generator, key, lambda: self._messages(reference, target, urls()))

    def _messages(self, reference: int, target: int, urls: Sequence[str] = ()) -> Messages:
        shown = urls if self.config.prompt == "vision" else ()
        return self._prompt.messages(self._captions[reference] or "", self._captions[target] or "", shown)

    def _questions(self) -> Iterator[Question]:
        """The different questions, in the pairs' order."""
        all_questions = (self._question(reference, target) for reference, target in self._pairs["pairs"].tolist())
        return first_of_each(question for question in all_questions if question is not None)

    @cached_property
    def _prompt(self) -> Any:
        return self.config.build_prompt()

    @cached_property
    def _picture_url(self) -> Callable[[int], str]:
        return lru_cache(maxsize=1024)(lambda row: _as_url(self.source.load(row)))

    def _ask(self, num_shards: int, shard_index: int) -> None:
        answers = self._open_answers()
        pool_size = self._generator.pool_size
        of_shard = lambda number: (number // pool_size) % num_shards == shard_index  # noqa: E731 - pools stay whole
        different = [question.key for number, question in enumerate(self._questions()) if of_shard(number)]
        done = sum(key in answers for key in different)
        if done == len(different):
            return
        mine = (question for number, question in enumerate(self._questions()) if of_shard(number))
        waiting = unanswered(mine, answers, pool_size)
        failures = 0
        try:
            with tqdm(
                total=len(different), initial=done, desc="Query texts", unit=" calls", disable=not self.progress
            ) as bar:
                for question, outcome in self._generator(waiting):
                    if isinstance(outcome, Failure):
                        self.failures[question.key] = outcome.reason
                        failures += 1
                        bar.set_postfix(failed=failures)
                    elif question.key not in answers:
                        answers.add(question.key, outcome)
                        bar.update()
        finally:
            answers.close()
        if failures:
            logger.warning(
                "%d questions got no answer (the last: %s); the same command again asks them again.",
                failures,
                list(self.failures.values())[-1],
            )

    # --- filter and output --------------------------------------------------------------------------------------------

    def _rows(self) -> tuple[dict[str, list[Any]], list[str | None], dict[str, int]]:
        """All pairs as columns, why a pair has no query text, and the counts so far."""
        answers = self._open_answers()
        ids, captions = self.source.ids, self._captions
        # The user's own examples are of the images' domain: there an answer may rightly be one of theirs.
        example_texts = [text for *_, text in self._prompt.examples] if self.config.examples is None else []
        names = ("reference_id", "target_id", "query_text", "reference_caption", "target_caption", "answer")
        columns: dict[str, list[Any]] = {name: [] for name in names}
        reasons: list[str | None] = []
        asked: dict[str, None] = {}
        for reference, target in self._pairs["pairs"].tolist():
            question = self._question(reference, target)
            query_text, answer, reason = None, None, None
            if question is None:
                reason = EQUAL_CAPTIONS if captions[reference] and captions[target] else NO_CAPTION
            else:
                asked[question.key] = None
                if question.key in answers:
                    found = answers[question.key]
                    answer = found.text
                    query_text, why = parse_query_text(
                        answer,
                        captions[reference] or "",
                        captions[target] or "",
                        example_texts,
                        is_cut=found.is_cut,
                    )
                    reason = why and f"{UNUSABLE}: {why}"
                else:
                    reason = f"{NO_ANSWER}: {self.failures.get(question.key, 'not asked')}"
            row = (
                ids[reference],
                ids[target],
                query_text or "",
                captions[reference] or "",
                captions[target] or "",
                answer or "",
            )
            for name, value in zip(names, row, strict=True):
                columns[name].append(value)
            reasons.append(reason)
        used = [answers[key] for key in asked if key in answers]
        counts = {
            "questions": len(asked),
            "answered": len(used),
            "prompt_tokens": sum(answer.prompt_tokens for answer in used),
            "completion_tokens": sum(answer.completion_tokens for answer in used),
        }
        return columns, reasons, counts

    @property
    def _embed_sentences(self) -> EmbedSentences:
        if self.models.embed_sentences is None:
            from .models import load_sentence_embedder

            self.models.embed_sentences = load_sentence_embedder(
                self.config.sentence_encoder, self.device, self.config.batch_size
            )
        return self.models.embed_sentences

    @cached_property
    def _checks(self) -> Sequence[Check]:
        if self.models.checks is not None:
            return self.models.checks
        from .models import load_checks

        return load_checks(self.config, self.device)

    def _check_features(self, check: Check) -> BlockStore:
        """What a check's model says of every image."""
        key = [self._source_key, check.key]
        store = BlockStore(self.work / "check_features", key, len(self.source.ids), self._image_block)
        self._map_images(store, check.encode_images, f"{type(check).__name__} features")
        return store

    def _write(self) -> dict[str, Any]:
        """Filter the triplets and write the data set."""
        columns, reasons, asked = self._rows()
        rows = np.array([row for row, reason in enumerate(reasons) if reason is None], dtype=np.int64)
        scores: dict[str, list[Any]] = {"similarity": [None] * len(reasons)}
        thresholds = {"similarity": self.config.threshold}
        scoring = Scoring(self.work, {name: [columns[name][row] for row in rows] for name in TEXTS}, self.progress)
        found = []
        if len(rows):
            values = scoring.similarity(self._embed_sentences, self.config.sentence_encoder)
            found.append((["similarity"], values[:, None]))
        for check in self._checks:
            thresholds |= check.thresholds
            scores |= {name: [None] * len(reasons) for name in check.thresholds}
            if len(rows):
                images = self._check_features(check)
                values = scoring.check(check, images, self._pairs["pairs"][rows], self._source_key)
                found.append((list(check.thresholds), values))
        for names, values in found:
            for name, column in zip(names, values.T, strict=True):
                for row, value in zip(rows, column.tolist(), strict=True):
                    scores[name][row] = value
        total = len(reasons)
        generator = self._generator
        result = split_triplets(
            {
                **columns,
                **scores,
                "group_id": self._pairs["group_ids"].tolist(),
                "triplet_id": list(range(total)),
                "generator": [public_path(generator.name)] * total,
                "prompt": [self._prompt.name] * total,
            },
            reasons,
            thresholds,
        )
        config = self.config
        size = config.group_size
        counts: dict[str, Any] = {
            "images": len(self.source.ids),
            "unreadable_images": len(self._features.reasons()),
            "groups": int(self._pairs["num_groups"]),
            "pairs_with_repeats": int(self._pairs["num_groups"]) * (2 * size - 3),
            "pairs": int(self._pairs["num_pairs"]),
            **({} if config.max_pairs is None else {"pairs_drawn": total}),
            "equal_captions": reasons.count(EQUAL_CAPTIONS),
            **asked,
            "triplets": len(rows),
            **count_results(result),
        }
        recipe = {
            "settings": self._public_settings,
            "source": self._source_name,
            "source_record": self._source_record,
            "generator": public_path(generator.name),
            "captions_by": self._captions_by,
            "thresholds": thresholds,
            "counts": counts,
            "histogram": draw_histogram(result),
            "versions": {name: number for name in _VERSIONS if (number := _version_of(name))},
            "key": self._key,
        }
        write_dataset(self.output, self.source, self._captions, result, recipe)
        if self.failures:
            logger.warning("%d questions are listed as dropped: no answer.", len(self.failures))
        return recipe

    @property
    def _source_name(self) -> str:
        """The images as the card names them: no folder of this machine."""
        record = self._source_record
        name = record.get("path", "images")
        return ":".join(part for part in (name, record.get("config"), record.get("split")) if part)

    @property
    def _captions_by(self) -> str:
        column = self.config.caption_column
        return f"`{public_path(self.config.captioner)}`" if column is None else f"the column `{column}`"

    @property
    def _source_record(self) -> dict[str, Any]:
        """Where the images lie, as others may read it; with the way from the output where both are in one tree."""
        record = self.source.describe(self.output)
        public = public_path(str(record.get("path", "images")))
        is_outside = not Path(str(record.get("path", ""))).is_relative_to(Path.cwd())
        return {k: v for k, v in record.items() if k != "relative" or not is_outside} | {"path": public}

    @property
    def _public_settings(self) -> dict[str, Any]:
        """The settings without folders of this machine, without secrets, and without what cannot change the result."""
        settings = {name: value for name, value in self.config.to_dict().items() if name not in _RUN_ONLY}
        return {
            name: public_path(value) if isinstance(value, str) and name not in _PROSE else value
            for name, value in settings.items()
        }

    @property
    def _key(self) -> str:
        """What a finished data set must have been made from, to be left as it is."""
        return hashlib.sha256(json.dumps([_METHOD, self._source_key, self._public_settings]).encode()).hexdigest()[:32]

    def _finished(self) -> dict[str, Any] | None:
        """The recipe of a data set that these settings and images made before; None if questions are still open."""
        if not (self.output / RECIPE).is_file():
            return None
        recipe = read_recipe(self.output)
        is_same = recipe["key"] == self._key and recipe["counts"]["answered"] == recipe["counts"]["questions"]
        return recipe if is_same else None


def public_path(text: str) -> str:
    """A path or address as others may read it: relative to the working folder or its last part alone; no password."""
    if "://" in text:
        scheme, _, rest = text.partition("://")
        host, slash, place = rest.partition("/")
        return f"{scheme}://{host.rpartition('@')[2]}{slash}{place.partition('?')[0]}"
    path = Path(text)
    if not path.is_absolute():
        return text
    return str(path.relative_to(Path.cwd())) if path.is_relative_to(Path.cwd()) else path.name


def _check_shards(until: str | None, num_shards: int, shard_index: int) -> None:
    if until is not None and until not in STAGES:
        raise ValueError(f"Expected a stage of {STAGES}, but found {until!r}. Choose one of them.")
    if num_shards < 1 or not 0 <= shard_index < num_shards:
        raise ValueError(
            f"Expected a shard index from 0 to the number of shards less one, but found {shard_index} of {num_shards}."
        )
    if num_shards > 1 and until not in _SHARED_STAGES:
        raise ValueError(
            f"Expected a stage of {_SHARED_STAGES} to share among {num_shards} processes, but found {until!r}. Run "
            "the other stages in one process."
        )


def _model_key(path: str) -> str:
    """A model's name and, where it is a folder, its weights: trained anew in its place, it is another model."""
    if not Path(path).is_dir():
        return path
    digest = hashlib.sha256()
    for file in sorted(Path(path).iterdir()):
        if file.suffix in (".safetensors", ".bin"):
            with file.open("rb") as weights:
                while block := weights.read(2**20):
                    digest.update(block)
    return f"{path} {digest.hexdigest()}"


def _check_whole(store: BlockStore, stage: str) -> None:
    missing = store.pending()
    if missing:
        raise ValueError(
            f"Expected the stage {stage!r} to be whole, but {len(missing)} of {store.num_blocks} blocks are missing. "
            "Wait for the other shards, or run the stage in one process."
        )


def _texts_of(messages: Messages) -> Iterator[str]:
    for message in messages:
        content = message["content"]
        yield from [content] if isinstance(content, str) else (part["text"] for part in content if "text" in part)


def _as_url(picture: Any) -> str:
    """A picture as a `data:` URL, shrunk."""
    picture.thumbnail((_URL_SIDE, _URL_SIDE))
    buffer = io.BytesIO()
    picture.save(buffer, "JPEG", quality=90)
    return f"data:image/jpeg;base64,{base64.b64encode(buffer.getvalue()).decode('ascii')}"


def _storable(text: str) -> str:
    """Text without half surrogates, which no file can hold."""
    return text.encode("utf-8", errors="replace").decode()


def _version_of(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None
