"""A few triplets with all that led to them, before the LLM is asked about the others."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from ..images import FileSource, open_source
from .config import SynCirConfig
from .filter import Reason, split_triplets
from .models import SynCirModels
from .run import SynCirRun
from .scoring import ScoreStage
from .stages import CaptionStage

MAX_IMAGES = 500  # among which the pairs are looked for


def preview_triplets(
    images: str | Path | FileSource,
    config: SynCirConfig | None = None,
    models: SynCirModels | None = None,
    *,
    n: int = 20,
    max_images: int = MAX_IMAGES,
    output: str | Path | None = None,
    device: str = "cpu",
    progress: bool = True,
) -> list[dict[str, Any]]:
    """Make the triplets of a few pairs: captions, the LLM's raw answers, what is read from them, and what is dropped.

    Only the images of these pairs are captioned, and only their questions are asked.

    Args:
        images (`str`, `Path` or `FileSource`): As in `build_triplets`.
        config (`SynCirConfig`, *optional*): As in `build_triplets`.
        models (`SynCirModels`, *optional*): As in `build_triplets`.
        n (`int`): Number of pairs, drawn at random.
        max_images (`int`): The pairs are looked for among the first so many images.
        output (`str` or `Path`, *optional*): Folder of a later `build_triplets`, which does not ask these questions
            again. By default nothing is kept.
        device (`str`): Where the named models run.
        progress (`bool`): Whether to show progress bars.

    Returns:
        `list[dict]`: For each pair `reference_id`, `target_id`, `reference_caption`, `target_caption`, `answer`,
        `query_text`, the scores, and `dropped` (the reason in words, or None).

    Raises:
        ValueError: As in `build_triplets`.
    """
    source = open_source(str(images)) if isinstance(images, str | Path) else images
    few = _SomeImages(source, range(min(max_images, len(source.ids))))
    settings = replace(config or SynCirConfig(), max_pairs=n)
    with TemporaryDirectory(prefix="hycir-preview-") as temporary:
        place = Path(output) / ".work" / "preview" if output else Path(temporary)
        run = SynCirRun(few, place, settings, models, device, progress)
        if output:
            run._texts.answers_directory = Path(output) / ".work" / "answers"
        return _rows_of(run)


def _rows_of(run: SynCirRun) -> list[dict[str, Any]]:
    for stage in (run._features, run._pairs):
        stage.run()
    pairs = run._pairs.pairs
    if run.config.caption_column is None:
        run._captions.captions = _captions_of(run, sorted(set(pairs.rows.ravel().tolist())))
    run._texts.run()
    texts, scoring = run._texts.read(), ScoreStage(run._work)
    columns = {**texts.columns, **scoring.run(texts, pairs.rows), "row": list(range(len(texts.reasons)))}
    result = split_triplets(columns, texts.reasons, scoring.thresholds)
    rows = []
    for part in (result.kept, result.dropped):
        for values in zip(*part.values(), strict=True):
            row = dict(zip(part, values, strict=True))
            reason = Reason(row.pop("reason"), row.pop("detail")) if "reason" in row else None
            rows.append({**row, "dropped": reason and str(reason)})
    rows.sort(key=lambda row: row["row"])
    return [{name: value for name, value in row.items() if name != "row"} for row in rows]


def _captions_of(run: SynCirRun, rows: Sequence[int]) -> list[str | None]:
    """Captions of some images; None for the others."""
    stage = CaptionStage(replace(run._work, source=_SomeImages(run.source, rows)), run._features)
    stage.run()
    captions = dict(zip(rows, stage.captions, strict=True))
    return [captions.get(row) for row in range(len(run.source.ids))]


class _SomeImages:
    """Some rows of a source, as a source."""

    def __init__(self, source: FileSource, rows: Sequence[int]) -> None:
        self._source, self._rows = source, rows
        self.ids = [source.ids[row] for row in rows]

    def stamp(self, row: int) -> str:
        return self._source.stamp(self._rows[row])

    def load(self, row: int) -> Any:
        return self._source.load(self._rows[row])

    def read_bytes(self, row: int) -> bytes:
        return self._source.read_bytes(self._rows[row])

    def describe(self, gallery_directory: Path | None = None) -> dict[str, Any]:
        return self._source.describe(gallery_directory)

    @property
    def column(self) -> Callable[[str], list[Any]] | None:
        """A column's values; None where the source has no columns."""
        column = getattr(self._source, "column", None)
        return column and (lambda name: [values[row] for values in (column(name),) for row in self._rows])
