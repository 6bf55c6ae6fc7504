"""Evaluation results: kept as JSON, summed up with intervals, compared query by query."""

import os
import platform
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from importlib.metadata import PackageNotFoundError, version
from typing import Any

import numpy as np

from ..files import write_json
from ..formats import EVALUATION
from ..metrics.intervals import Interval
from .benchmarks import BENCHMARKS, BenchmarkData
from .benchmarks.checks import AVERAGE
from .scoring import PartScores, as_interval, mean_intervals, resampled_means


@dataclass(frozen=True)
class EvaluationResults:
    """What methods reached on a benchmark's split.

    Args:
        benchmark (`str`): The benchmark's name: a key of `BENCHMARKS`, or your own.
        split (`str`): The split.
        methods (`Mapping[str, Mapping[str, PartScores]]`): Method -> part -> each query's values.
        provenance (`Mapping`): Versions, model, data fingerprint, protocol, missing images.
        seed (`int`): Random seed of the bootstrap.
    """

    benchmark: str
    split: str
    methods: Mapping[str, Mapping[str, PartScores]]
    provenance: Mapping[str, Any] = field(default_factory=dict)
    seed: int = 0

    @property
    def title(self) -> str:
        """The benchmark's title."""
        return self._fact("title", self.benchmark)

    def _fact(self, name: str, default: Any) -> Any:
        """What the benchmark's specification says; files of earlier versions do not hold it."""
        known = getattr(BENCHMARKS.get(self.benchmark), name, default)
        return self.provenance.get("protocol", {}).get(name, known)

    def intervals(self) -> dict[str, dict[str, dict[str, Interval]]]:
        """Method -> part -> metric -> mean with its 95% interval; the parts' average where the benchmark has one."""
        found = {}
        for method, parts in self.methods.items():
            found[method] = {name: mean_intervals(scores, self.seed) for name, scores in parts.items()}
            if self._fact("averages_parts", False) and len(parts) > 1:
                found[method][AVERAGE] = self._average(parts)
        return found

    def _average(self, parts: Mapping[str, PartScores]) -> dict[str, Interval]:
        """Average over the parts: each part counts the same, and is resampled on its own."""
        resampled = [resampled_means(scores, self.seed + number) for number, scores in enumerate(parts.values())]
        return {
            metric: as_interval(
                np.array([scores.values[metric].mean() for scores in parts.values()]),
                np.mean([one[metric] for one in resampled], axis=0),
            )
            for metric in resampled[0]
        }

    def to_dict(self) -> dict[str, Any]:
        """Everything as JSON values: means with intervals, and each query's values."""
        summary = {
            method: {
                part: {metric: vars(interval) for metric, interval in metrics.items()}
                for part, metrics in parts.items()
            }
            for method, parts in self.intervals().items()
        }
        per_query = {
            method: {
                part: {
                    "query_ids": list(scores.query_ids),
                    "groups": list(scores.groups),
                    "values": {metric: _as_json(values) for metric, values in scores.values.items()},
                }
                for part, scores in parts.items()
            }
            for method, parts in self.methods.items()
        }
        return {
            **EVALUATION.header(),
            "benchmark": self.benchmark,
            "split": self.split,
            "seed": self.seed,
            **self.provenance,
            "results": summary,
            "per_query": per_query,
        }

    def save(self, path: str | os.PathLike) -> None:
        """Write the results as JSON."""
        write_json(path, self.to_dict(), indent=None)

    @classmethod
    def load(cls, path: str | os.PathLike) -> "EvaluationResults":
        """Read what `save` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is another file, damaged, or of a newer format.
        """
        loaded = EVALUATION.read(path)
        if "seed" not in loaded or not loaded.get("per_query"):
            raise ValueError(f"Expected a 'seed' and values of each query ('per_query') in {path}. {EVALUATION.remedy}")
        methods = {
            method: {
                part: PartScores(
                    one["query_ids"],
                    one["groups"],
                    {name: np.asarray(values, dtype=float) for name, values in one["values"].items()},
                )
                for part, one in parts.items()
            }
            for method, parts in loaded["per_query"].items()
        }
        known = {"format", "format_version", "benchmark", "split", "seed", "results", "per_query"}
        provenance = {name: value for name, value in loaded.items() if name not in known}
        return cls(loaded["benchmark"], loaded["split"], methods, provenance, loaded["seed"])


@dataclass(frozen=True)
class Difference:
    """A metric's paired difference, first minus second.

    Args:
        part (`str`): Part of the benchmark.
        metric (`str`): Its name.
        first (`float`): The first's mean.
        second (`float`): The second's mean.
        difference (`Interval`): Mean of the queries' differences and its 95% interval.
        wins (`int`): Queries with a higher value in the first.
        losses (`int`): Queries with a lower one.
    """

    part: str
    metric: str
    first: float
    second: float
    difference: Interval
    wins: int
    losses: int


def compare_results(
    first: EvaluationResults,
    second: EvaluationResults,
    first_method: str,
    second_method: str,
) -> list[Difference]:
    """Compare two methods query by query on the same benchmark: first minus second.

    Raises:
        ValueError: If they answer other queries or search other galleries, or a method is not in its results.
    """
    if (first.benchmark, first.split) != (second.benchmark, second.split):
        raise ValueError(
            f"The results are of different benchmarks: {first.benchmark} {first.split} and {second.benchmark} "
            f"{second.split}. Compare results of one benchmark and split."
        )
    sides = [_method(first, first_method), _method(second, second_method)]
    found: list[Difference] = []
    paired: dict[str, PartScores] = {}
    for part in (name for name in sides[0] if name in sides[1]):
        one, two = sides[0][part], sides[1][part]
        if sorted(one.query_ids) != sorted(two.query_ids):
            raise ValueError(
                f"The results answer different queries: {part!r} has {len(one.query_ids)} and {len(two.query_ids)}, "
                "and they are not the same. Evaluate both on the same data (were images missing?)."
            )
        sizes = [side.provenance.get("data", {}).get("gallery", {}).get(part) for side in (first, second)]
        if all(sizes) and sizes[0] != sizes[1]:
            raise ValueError(
                f"The results search different galleries: {part!r} has {sizes[0]:,} and {sizes[1]:,} images. Evaluate "
                "both on the same images (were some missing?)."
            )
        _check_same_question(first, second, part)
        place = {id_: row for row, id_ in enumerate(two.query_ids)}
        order = [place[id_] for id_ in one.query_ids]
        differences = {name: one.values[name] - two.values[name][order] for name in one.values if name in two.values}
        paired[part] = PartScores(one.query_ids, one.groups, differences)
        intervals = mean_intervals(paired[part], first.seed)
        for metric, values in differences.items():
            means = float(np.nanmean(one.values[metric])), float(np.nanmean(two.values[metric]))
            wins, losses = int((values > 0).sum()), int((values < 0).sum())
            found.append(Difference(part, metric, *means, intervals[metric], wins, losses))
    if not found:
        raise ValueError(
            f"The results have no part and metric in common: their parts are {list(sides[0])} and {list(sides[1])}."
        )
    return found + _average_differences(first, paired, found)


def _check_same_question(first: EvaluationResults, second: EvaluationResults, part: str) -> None:
    """Refuse queries of the same ids that ask other things, as far as the files say it."""
    facts = []
    for side in (first, second):
        fingerprints = side.provenance.get("data", {}).get("parts", {}).get(part, {})
        kept = side.provenance.get("protocol", {}).get("leaves_reference_out")
        facts.append(
            {
                "references, texts, targets or subsets": fingerprints.get("queries"),
                "images in the gallery": fingerprints.get("gallery"),
                "handling of the reference": None if kept is None else str(kept),
            }
        )
    for what, value in facts[0].items():
        if value and facts[1][what] and value != facts[1][what]:
            raise ValueError(
                f"The results ask different things: the queries of part {part!r} have the same ids, but other {what}. "
                "Evaluate both on the same data."
            )


def _average_differences(
    results: EvaluationResults, paired: Mapping[str, PartScores], found: Sequence[Difference]
) -> list[Difference]:
    """Compute the difference of the means over the parts, if the benchmark has such a mean."""
    averages = replace(results, methods={"": paired}).intervals()[""].get(AVERAGE, {})
    differences = []
    for metric, interval in averages.items():
        rows = [one for one in found if one.metric == metric]
        first, second = (float(np.mean([getattr(one, side) for one in rows])) for side in ("first", "second"))
        wins, losses = sum(one.wins for one in rows), sum(one.losses for one in rows)
        differences.append(Difference(AVERAGE, metric, first, second, interval, wins, losses))
    return differences


def describe_run(data: BenchmarkData, **further: Any) -> dict[str, Any]:
    """Collect what a run's figures depend on: versions, data fingerprint, protocol, missing images, and `further`."""
    return {
        "versions": {"python": platform.python_version()}
        | {name: _version(name) for name in ("hycir_hf", "torch", "transformers", "numpy", "datasets")},
        "data": {
            "fingerprint": data.fingerprint(),
            "parts": data.part_fingerprints(),
            "queries": {part.name: len(part.queries) for part in data.parts},
            "gallery": {part.name: len(part.gallery_ids) for part in data.parts},
            "missing_images": len(data.missing_ids),
            "dropped_queries": data.num_dropped_queries,
        },
        "protocol": {
            "title": data.benchmark.title,
            "averages_parts": data.benchmark.averages_parts,
            "leaves_reference_out": data.benchmark.leaves_reference_out,
            **data.benchmark.options,
        },
        **further,
    }


def _as_json(values: np.ndarray) -> list[float | None]:
    """Each query's value; null for a query that the metric leaves out."""
    return [None if value != value else value for value in np.round(values, 6).tolist()]


def _version(name: str) -> str | None:
    try:
        return version(name)
    except PackageNotFoundError:
        return None


def _method(results: EvaluationResults, name: str) -> Mapping[str, PartScores]:
    if name not in results.methods:
        raise ValueError(f"The results have no method {name!r}. Choose one of {list(results.methods)}.")
    return results.methods[name]


def main_method(methods: Sequence[str]) -> str:
    """Choose the method that stands for a model: the mapper, or else the last one."""
    return "mapper" if "mapper" in methods else methods[-1]
