"""A metric's mean with its 95% interval, and the result files that hold them."""

import os
from collections.abc import Mapping
from dataclasses import dataclass

from ..formats import EVALUATION

CONFIDENCE_LEVEL = 0.95
MAPPER = "mapper"
"""The method that is a HyCIR model itself; results name others beside it."""


@dataclass(frozen=True)
class Interval:
    """A mean and its 95% bootstrap interval, as fractions."""

    mean: float
    low: float
    high: float


@dataclass(frozen=True)
class ResultsSummary:
    """The figures of a result file: what methods reached on a benchmark's split.

    Args:
        benchmark (`str`): For example "cirr".
        split (`str`): For example "val".
        methods (`Mapping[str, Mapping[str, Mapping[str, Interval]]]`): Method -> benchmark part -> metric -> figure.
    """

    benchmark: str
    split: str
    methods: Mapping[str, Mapping[str, Mapping[str, Interval]]]

    @classmethod
    def load(cls, path: str | os.PathLike) -> "ResultsSummary":
        """Read the figures of a file that `hycir evaluate run --output` wrote.

        Raises:
            FileNotFoundError: If there is no such file.
            ValueError: If it is damaged, another file, or of a newer format.
        """
        content = EVALUATION.read(path)
        methods = {
            method: {
                part: {metric: Interval(**figure) for metric, figure in metrics.items()}
                for part, metrics in parts.items()
            }
            for method, parts in content["results"].items()
        }
        return cls(content["benchmark"], content["split"], methods)

    @property
    def has_parts(self) -> bool:
        """Whether the benchmark has more than one part."""
        return len(next(iter(self.methods.values()))) > 1

    def title(self, part: str) -> str:
        """Benchmark and part in words."""
        return f"{self.benchmark}, {part.replace('_', ' ')}" if self.has_parts else self.benchmark

    def methods_of(self, part: str) -> dict[str, Mapping[str, Interval]]:
        """Method -> metric -> figure, for the methods that a part has."""
        return {method: parts[part] for method, parts in self.methods.items() if part in parts}
