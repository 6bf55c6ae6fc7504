"""What hybrid training brings on the emoji world: L_ZS, L_triplet, hybrid, the training-free ways, and a ceiling.

    python examples/emoji/compare_training.py --jobs 2        # writes docs/results/tables/training.md and training.png

Three seeds of each training, val and test, every figure with its 95% interval over queries (wordings of one query are
drawn together). The ceiling is the same hybrid training on triplets that the benchmark's own rules make of the training
images. Models and evaluations are kept in `--work` and shared with `examples/paper/tables.py`. If interrupted, run
the same command again to resume.
"""

import argparse
import sys
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from rule_triplets import write_rule_triplets

HERE = Path(__file__).parent
ROOT = HERE.parents[1]
sys.path.insert(0, str(ROOT / "examples" / "paper"))

from ablation_runs import Place, Run, complete, evaluate, evaluate_training_free  # noqa: E402
from tables import Figure, figure_of, paired_difference, parts_of  # noqa: E402

from hycir_hf.evaluation import MAPPER, EvaluationResults  # noqa: E402
from hycir_hf.evaluation.report import render_table  # noqa: E402
from hycir_hf.reports.pages import PageTable  # noqa: E402

RANKS = ("R@1", "R@5", "R@10", "R@50")
CEILING = "ceiling (rules' triplets)"
RUNS = {
    "L_ZS": Run("zs", triplets="none"),
    "L_triplet": Run("triplet"),
    "hybrid": Run(),
    CEILING: Run(triplets="rules"),
}


def compare(results: Mapping[str, Sequence[EvaluationResults]], free: EvaluationResults, part: str) -> str:
    """One part as Markdown: the table, and what it says."""
    found = {name: ([free], name) for name in free.methods} | {name: (one, MAPPER) for name, one in results.items()}
    figures = {name: [figure_of(one, method, part, [rank]) for rank in RANKS] for name, (one, method) in found.items()}
    rows = []
    for name, row in figures.items():
        seeds = 100 * row[0].seeds
        spread = f"{seeds.min():.1f} – {seeds.max():.1f}" if len(seeds) > 1 else ""
        rows.append([name, *(_shown(one.mean, *one.interval()) for one in row), spread])
    queries = len(free.methods[next(iter(free.methods))][part].query_ids)
    title = f"{free.split}, {part.replace('_', ' ')}: {queries:,} queries, percent"
    lines = [render_table(PageTable(title, ["", *RANKS, "seeds, R@1"], rows)), ""]
    best = max(free.methods, key=lambda name: figures[name][0].mean)
    for rival in ("L_ZS", best, "L_triplet"):
        change = [paired_difference(a, b) for a, b in zip(figures["hybrid"], figures[rival], strict=True)]
        shown = ", ".join(
            f"{rank} {_shown(one.mean, one.low, one.high, '+')}" for rank, one in zip(RANKS, change, strict=True)
        )
        lines.append(f"- hybrid minus {rival}, paired: {shown}")
    share = figures["hybrid"][0].mean / figures[CEILING][0].mean
    lines.append(f"- hybrid reaches {share:.0%} of the ceiling's R@1")
    return "\n".join([*lines, ""])


def draw(panels: Mapping[str, Mapping[str, Figure]], path: Path) -> None:
    """Draw R@1 of every way in every part."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    figure, axes = plt.subplots(1, len(panels), figsize=(2.6 * len(panels), 3.6), sharey=True, layout="constrained")
    for axis, (title, figures) in zip(np.atleast_1d(axes), panels.items(), strict=True):
        for place, (name, one) in enumerate(figures.items()):
            low, high = one.interval()
            colour = "tab:orange" if name == "hybrid" else "tab:green" if name == CEILING else "tab:blue"
            axis.vlines(place, 100 * low, 100 * high, color=colour)
            axis.plot(place, 100 * one.mean, "o", color=colour)
        axis.set_xticks(range(len(figures)), [name.split(" (")[0] for name in figures], rotation=60, ha="right")
        axis.set_title(title, fontsize=10)
        axis.grid(axis="y", alpha=0.3)
    np.atleast_1d(axes)[0].set_ylabel("R@1, percent, with 95% over queries")
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _shown(mean: float, low: float, high: float, sign: str = "") -> str:
    return f"{100 * mean:{sign}.1f} [{100 * low:{sign}.1f}, {100 * high:{sign}.1f}]"


def main() -> None:
    """Complete the trainings and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--config", type=Path, default=ROOT / "examples" / "configs" / "emoji.yaml")
    parser.add_argument("--steps", type=int, help="in place of the config's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="trainings at once, one thread each (1)")
    parser.add_argument("--work", type=Path, default=ROOT / ".cache" / "tables", help="models and evaluations")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "tables")
    args = parser.parse_args()

    place = Place(
        args.config,
        args.work,
        "emoji",
        HERE / "data",
        args.steps,
        further_triplets={"rules": str(write_rule_triplets())},
    )
    complete(place, [replace(run, seed=seed) for run in RUNS.values() for seed in args.seeds], args.jobs)
    sections, panels = [], {}
    for split in ("val", "test"):
        results = {
            name: [evaluate(place, replace(run, seed=seed), split) for seed in args.seeds] for name, run in RUNS.items()
        }
        free = evaluate_training_free(place, replace(RUNS["hybrid"], seed=args.seeds[0]), split)
        for part in parts_of(results["hybrid"][0]):
            sections.append(compare(results, free, part))
            panels[f"{split}, {part.replace('_', ' ')}"] = {
                name: figure_of([free], name, part, ["R@1"]) for name in free.methods
            } | {name: figure_of(one, MAPPER, part, ["R@1"]) for name, one in results.items()}
    args.output.mkdir(parents=True, exist_ok=True)
    draw(panels, args.output / "training.png")
    head = [
        "# Training on the emoji world",
        "",
        f"`python examples/emoji/compare_training.py`: seeds {' '.join(map(str, args.seeds))}; a figure is the mean "
        "over seeds with the 95% interval over queries. val asks about concepts of training, test about held-out ones.",
        "",
        "![R@1 of every way](training.png)",
        "",
    ]
    path = args.output / "training.md"
    path.write_text("\n".join([*head, *sections]).rstrip() + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
