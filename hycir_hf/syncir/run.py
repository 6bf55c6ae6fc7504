"""SynCir from images to a dataset of triplets: the stages in order, shared, locked and resumable.

Paper: Pseudo Triplet Generation. OUTPUT/.work keeps everything that a later run can use: features, pairs, captions,
answers and scores. The result does not depend on where a run was interrupted.
"""

import contextlib
import logging
from functools import cached_property
from pathlib import Path
from typing import Any

from ..files import read_json, single_writer
from ..formats import TRIPLETS
from ..images import FileSource, open_source
from ..names import public_path
from .captions import read_captions
from .config import SynCirConfig
from .dataset import RECIPE, finish_move, write_dataset
from .filter import EQUAL_CAPTIONS, split_triplets
from .models import LoadedModels, SynCirModels
from .provenance import build_recipe, recipe_key
from .questions import Estimate, QueryTextStage
from .report import draw_histogram
from .scoring import ScoreStage
from .stages import CaptionStage, FeatureStage, PairStage, Workplace, storable

logger = logging.getLogger(__name__)

STAGES = ("features", "pairs", "captions", "query_texts")
"""Stages that a run can end after; the scores, the filter and the dataset follow."""

_SHARED_STAGES = ("features", "captions", "query_texts")


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
    """Make a dataset of triplets from unlabeled images. If interrupted, the same call resumes.

    Args:
        images (`str`, `Path` or `FileSource`): A folder of images, or a `datasets` path.
        output (`str` or `Path`): The dataset's folder.
        config (`SynCirConfig`, *optional*): Settings; the paper's by default.
        models (`SynCirModels`, *optional*): Callables to use instead of the models that the settings name. Stored
            results still belong to the names in the settings.
        until (`str`, *optional*): End after this one of `STAGES`.
        num_shards (`int`): Number of processes that share a stage, for job arrays; needs `until`.
        shard_index (`int`): Which of them this is, from 0.
        device (`str`): Where the named models run.
        progress (`bool`): Whether to show progress bars.

    Returns:
        `dict`: The recipe with settings, thresholds and counts; None if `until` ends the run early.

    Raises:
        ValueError: If there are no pairs, a given caption is missing, the endpoint refuses, a setting is wrong, or
            another shard is not done.
    """
    return SynCirRun(images, output, config, models, device, progress).run(until, num_shards, shard_index)


class SynCirRun:
    """One run; arguments as in `build_triplets`."""

    def __init__(
        self,
        images: str | Path | FileSource,
        output: str | Path,
        config: SynCirConfig | None = None,
        models: SynCirModels | None = None,
        device: str = "cpu",
        progress: bool = True,
    ) -> None:
        source = open_source(str(images)) if isinstance(images, str | Path) else images
        not_storable = next((id_ for id_ in source.ids if id_ != storable(id_)), None)
        if not_storable is not None:
            raise ValueError(f"The image id {not_storable!r} is not valid Unicode. Rename that file.")
        self.source, self.output, self.device = source, Path(output), device
        self.config = config or SynCirConfig()
        loaded = LoadedModels(models or SynCirModels(), self.config, device)
        given = read_captions(source, self.config.captions, self.config.caption_column)
        self._work = Workplace(source, self.output / ".work", self.config, loaded, progress, given)
        self._features = FeatureStage(self._work)
        self._pairs = PairStage(self._work, self._features)
        self._captions = CaptionStage(self._work, self._features)
        self._texts = QueryTextStage(self._work, self._pairs, self._captions)

    def run(self, until: str | None = None, num_shards: int = 1, shard_index: int = 0) -> dict[str, Any] | None:
        """Run the stages, one after the other; arguments and result as in `build_triplets`."""
        _check_shards(until, num_shards, shard_index)
        finish_move(self.output)
        if until is None and (finished := self._finished()) is not None:
            return finished
        name = "whole" if num_shards == 1 else f"{until}-{shard_index}-of-{num_shards}"
        with single_writer(self._work.directory / f"{name}.lock", self.output):
            for stage in (self._features, self._pairs, self._captions, self._texts):
                stage.run(num_shards, shard_index)
                if until == stage.name:
                    return None
            return self._write()

    def estimate(self) -> Estimate:
        """Count the questions to the LLM and their tokens before they are paid for; runs the stages before it."""
        for stage in (self._features, self._pairs, self._captions):
            stage.run()
        return self._texts.estimate()

    def _write(self) -> dict[str, Any]:
        """Score and filter the triplets, and write the dataset."""
        texts, pairs = self._texts.read(), self._pairs.pairs
        scoring = ScoreStage(self._work)
        total, generator = len(texts.reasons), self._work.models.generate.name
        columns = {
            **texts.columns,
            **scoring.run(texts, pairs.rows),
            "group_id": pairs.group_ids.tolist(),
            "triplet_id": list(range(total)),
            "generator": [public_path(generator)] * total,
            "prompt": [self._texts.prompt.name] * total,
        }
        result = split_triplets(columns, texts.reasons, scoring.thresholds)
        counts: dict[str, Any] = {
            "images": len(self.source.ids),
            "unreadable_images": len(self._features.values.unreadable),
            "groups": pairs.num_groups,
            "pairs_with_repeats": pairs.num_groups * (2 * self.config.group_size - 3),
            "pairs": pairs.num_pairs,
            **({} if self.config.max_pairs is None else {"pairs_drawn": total}),
            "equal_captions": sum(reason is not None and reason.kind == EQUAL_CAPTIONS for reason in texts.reasons),
            **texts.counts,
            "triplets": texts.reasons.count(None),
            **result.counts(),
        }
        recipe = build_recipe(
            self.source,
            self.output,
            self.config,
            key=self._key,
            captions_by=self._work.given.origin if self._work.given else f"`{public_path(self.config.captioner)}`",
            generator=generator,
            thresholds=scoring.thresholds,
            counts=counts,
            histogram=draw_histogram(result),
        )
        write_dataset(self.output, self.source, self._captions.captions, result, recipe)
        nothing_kept = result.why_nothing_is_kept(scoring.thresholds)
        if nothing_kept is not None:
            logger.warning("%s Look into `dropped`, or lower the threshold with refilter.", nothing_kept)
        if self._texts.failures:
            logger.warning("%d questions have no answer. Their pairs are in `dropped`.", len(self._texts.failures))
        return recipe

    @cached_property
    def _key(self) -> str:
        given = f" {self._work.given.key}" if self._work.given else ""
        return recipe_key(self._work.source_key + given, self.config)

    def _finished(self) -> dict[str, Any] | None:
        """The recipe of a dataset that these settings and images made before; None if questions are still open."""
        recipe: dict[str, Any] = {}
        with contextlib.suppress(FileNotFoundError):
            recipe = read_json(self.output / RECIPE, remedy=TRIPLETS.remedy)
        if not {**TRIPLETS.header(), "key": self._key}.items() <= recipe.items():
            return None
        return recipe if recipe["counts"]["answered"] == recipe["counts"]["questions"] else None


def _check_shards(until: str | None, num_shards: int, shard_index: int) -> None:
    if until is not None and until not in STAGES:
        raise ValueError(f"until must be one of {STAGES}, but it is {until!r}.")
    if num_shards < 1 or not 0 <= shard_index < num_shards:
        raise ValueError(f"shard_index must be from 0 to num_shards - 1, but it is {shard_index} of {num_shards}.")
    if num_shards > 1 and until not in _SHARED_STAGES:
        raise ValueError(
            f"Several shards can run only the stages {_SHARED_STAGES}, but until is {until!r} with num_shards "
            f"{num_shards}. Run the other stages in one process."
        )
