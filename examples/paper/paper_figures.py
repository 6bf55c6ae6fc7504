"""The figures that the paper prints in its Tables 2 to 6, read from `figures.yaml`."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import yaml

AVERAGE = "avg"


@dataclass(frozen=True)
class PaperFigures:
    """One encoder's rows of one of the paper's tables.

    Args:
        encoder (`str`): "clip" (ViT-L/14) or "blip" (ViT-B/16); "systems" for Table 2, whose rows name theirs.
        columns (`list[str]`): For example "R@1" or "dress R@10".
        rows (`Mapping[str, list[float | None]]`): Setting -> one figure per column, in percent; None: not printed.
    """

    encoder: str
    columns: list[str]
    rows: Mapping[str, list[float | None]]

    def find(self, setting: str, column: str) -> float | None:
        """Return a figure in percent, or None if the paper does not print it."""
        figures = dict(zip(self.columns, self.rows.get(setting, []), strict=False))
        return figures.get(column)


def read_figures(table: str, encoder: str) -> PaperFigures:
    """Read a table's figures for an encoder, "clip" or "blip".

    A table with only one encoder gives that one's. A table with several has no rows for an encoder that is not theirs.
    """
    content = yaml.safe_load((Path(__file__).parent / "figures.yaml").read_text(encoding="utf-8"))[table]
    columns = content.pop("columns")
    name = next(iter(content)) if len(content) == 1 else encoder
    return PaperFigures(name, columns, content.get(name, {}))
