r"""The paper's ablations: Table 3 (training data), 4 (number of pseudo tokens), 5 (loss) and 6 (FashionIQ).

    python examples/paper/tables.py table5                          # the emoji world, from the clone's own folder
    python examples/paper/tables.py table4 --seeds 0 --steps 100 --jobs 2
    python examples/paper/tables.py table3 --config examples/configs/blip_vit_b16_paper.yaml \
        --benchmark cirr --data DIR --lasco lasco_train.json --lasco-images coco
    python examples/paper/tables.py table6 --config examples/configs/clip_vit_l14_paper.yaml \
        --benchmark fashioniq --data DIR

Writes OUTPUT/TABLE.md and OUTPUT/TABLE.png. Every model and every evaluation is kept in `--work`: if interrupted, run
the same command again to resume. Tables share runs. A figure is the mean over the seeds; "seeds" is the lowest and the
highest seed's figure, "queries" the 95% interval over resampled queries (the seeds are kept).
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
from ablation_runs import LASCO, UNFILTERED, Place, Run, complete, encoder_family, evaluate, evaluate_training_free
from paper_figures import AVERAGE, PaperFigures, read_figures

from hycir_hf.evaluation import BENCHMARKS, MAPPER, Benchmark, EvaluationResults, PartScores, mean_intervals
from hycir_hf.evaluation.report import render_table
from hycir_hf.evaluation.results import AVERAGE as PARTS_AVERAGE
from hycir_hf.evaluation.scoring import Interval
from hycir_hf.reports.pages import PageTable

ROOT = Path(__file__).parents[2]
MAX_LISTED = 6  # pairs of settings that are named one by one


@dataclass(frozen=True)
class Setting:
    """A row of a table: its name, as in `figures.yaml`, and its run (the seed is set later)."""

    name: str
    run: Run


@dataclass(frozen=True)
class Ablation:
    """One of the paper's tables."""

    title: str
    column: str
    settings: Sequence[Setting]


_ZS = Run("zs", triplets="none")
ABLATIONS = {
    "table3": Ablation(
        "Table 3: training data (K = 1)",
        "triplets",
        [
            Setting("LaSCo", Run(num_pseudo_tokens=1, triplets=LASCO)),
            Setting("SynCir, unfiltered", Run(num_pseudo_tokens=1, triplets=UNFILTERED)),
            Setting("SynCir, filtered", Run(num_pseudo_tokens=1)),
        ],
    ),
    "table4": Ablation(
        "Table 4: number of pseudo tokens", "K", [Setting(str(k), Run(num_pseudo_tokens=k)) for k in range(1, 9)]
    ),
    "table5": Ablation(
        "Table 5: loss",
        "loss",
        [Setting("L_ZS", _ZS), Setting("L_triplet", Run("triplet")), Setting("hybrid", Run())],
    ),
    "table6": Ablation("Table 6: FashionIQ", "method", [Setting("L_ZS", _ZS), Setting("hybrid", Run())]),
}


@dataclass(frozen=True)
class Figure:
    """One setting on one part of the benchmark: a value for each seed, and one for each query (the seeds' mean)."""

    seeds: np.ndarray  # (S,)
    scores: PartScores  # of one metric, "value"

    @property
    def mean(self) -> float:
        """The mean over the seeds."""
        return float(self.seeds.mean())

    def interval(self) -> tuple[float, float]:
        """The 95% interval of the mean over queries."""
        found = mean_intervals(self.scores)["value"]
        return found.low, found.high

    def cells(self) -> list[str]:
        """Mean, seeds, queries; in percent."""
        low, high = self.interval()
        spread = f"{100 * self.seeds.min():.2f} – {100 * self.seeds.max():.2f}"
        return [f"{100 * self.mean:.2f}", spread, f"{100 * low:.2f} – {100 * high:.2f}"]


def figure_of(results: Sequence[EvaluationResults], method: str, part: str, metrics: Sequence[str]) -> Figure:
    """Sum up a method's results of several seeds: the mean over metrics."""
    parts = [result.methods[method][part] for result in results]
    values = np.stack([np.mean([one.values[metric] for metric in metrics], axis=0) for one in parts])  # (S, Q)
    return Figure(values.mean(axis=1), replace(parts[0], values={"value": values.mean(axis=0)}))


def paired_difference(first: Figure, second: Figure) -> Interval:
    """First minus second, query by query, each the mean of its seeds."""
    values = first.scores.values["value"] - second.scores.values["value"]
    return mean_intervals(replace(first.scores, values={"value": values}))["value"]


def difference_of(first: Figure, second: Figure) -> tuple[float, bool]:
    """First minus second, and whether that is clear: the interval excludes 0, and every seed has its sign."""
    interval = paired_difference(first, second)
    signs = np.sign(first.seeds - second.seeds)
    agree = bool(np.all(signs == np.sign(interval.mean)))
    return interval.mean, agree and not interval.low <= 0 <= interval.high


def metrics_of(benchmark: Benchmark) -> list[str]:
    """The metrics whose mean a table shows."""
    return [f"{benchmark.metric}@{k}" for k in benchmark.ranks] or [f"R_subset@{k}" for k in benchmark.subset_ranks]


def parts_of(results: EvaluationResults) -> list[str]:
    """The benchmark's parts with one reference image a query."""
    return [part for part in results.methods[MAPPER] if not part.endswith("_two_references")]


def compare_orders(paper: Mapping[str, float], figures: Mapping[str, Figure], world: str) -> str:
    """Say in plain words where a part orders the settings as the paper does, and where not.

    Args:
        paper (`Mapping[str, float]`): Setting -> the paper's figure.
        figures (`Mapping[str, Figure]`): Setting -> the figure here.
        world (`str`): What the figures here are of.
    """
    known = [name for name in paper if name in figures]
    if not known:
        return "The paper has no figures of these settings with this encoder."
    groups: dict[str, list[str]] = {"as the paper does": [], "the other way round": [], "too close to call": []}
    for number, better in enumerate(known):
        for worse in known[number + 1 :]:
            if paper[better] == paper[worse]:
                continue
            first, second = (better, worse) if paper[better] > paper[worse] else (worse, better)
            difference, is_clear = difference_of(figures[first], figures[second])
            group = (
                "too close to call"
                if not is_clear
                else "as the paper does"
                if difference > 0
                else "the other way round"
            )
            groups[group].append(f"{first} over {second} ({100 * difference:+.2f})")
    total = sum(map(len, groups.values()))
    best, paper_best = max(known, key=lambda name: figures[name].mean), max(known, key=lambda name: paper[name])
    counts = ", ".join(f"{len(pairs)} {group}" for group, pairs in groups.items())
    sentence = f"Of {total} pair{'s' * (total != 1)} of settings that the paper ranks, {world} ranks: {counts}. "
    sentence += f"Best here: {best}; in the paper: {paper_best}."
    if total <= MAX_LISTED:
        sentence += "".join(f" {group.capitalize()}: {'; '.join(pairs)}." for group, pairs in groups.items() if pairs)
    return sentence


def render_ablation(
    ablation: Ablation,
    place: Place,
    results: Mapping[str, Sequence[EvaluationResults]],
    seeds: Sequence[int],
    plot: Path,
    paper: PaperFigures,
) -> str:
    """Write an ablation as Markdown, one table a part, with the paper's rows beside its own, and draw it."""
    benchmark = BENCHMARKS[place.benchmark]
    metrics = metrics_of(benchmark)
    first = next(iter(results.values()))[0]
    world = "the emoji world" if benchmark.name == "emoji" else benchmark.title
    averages = {name: paper.find(name, AVERAGE) or 0.0 for name in paper.rows}
    header = [ablation.column, "figures of", *metrics, "mean", "seeds", "queries"]
    lines, drawn = [], {}
    for part in parts_of(first):
        figures = {name: figure_of(one, MAPPER, part, metrics) for name, one in results.items()}
        drawn[part] = figures
        rows = []
        for one in ablation.settings:
            printed = [_shown(paper.find(one.name, column)) for column in [*metrics, AVERAGE]]
            if one.name in paper.rows:
                rows.append([one.name, f"the paper ({paper.encoder.upper()}, CIRR val)", *printed, "", ""])
            rows.append([one.name, "here", *setting_cells(results.get(one.name), part, metrics)])
        number = len(first.methods[MAPPER][part].query_ids)
        name = "" if part == "all" else f", {part.replace('_', ' ')}"
        caption = f"{benchmark.title} val{name}: percent; {number:,} queries"
        lines += [
            render_table(PageTable(caption, header, rows)),
            "",
            compare_orders(averages, figures, world),
            "",
        ]
    draw_ablation(ablation, drawn, plot, paper)
    return "\n".join(lines)


def setting_cells(results: Sequence[EvaluationResults] | None, part: str, metrics: Sequence[str]) -> list[str]:
    """Return a setting's mean over the seeds of each metric, then that of their mean, with its spreads; percent."""
    if results is None:
        return ["not run", *[""] * (len(metrics) + 2)]
    singles = [figure_of(results, MAPPER, part, [metric]).cells()[0] for metric in metrics]
    return [*singles, *figure_of(results, MAPPER, part, metrics).cells()]


def render_methods(
    ablation: Ablation,
    place: Place,
    results: Mapping[str, Sequence[EvaluationResults]],
    seeds: Sequence[int],
    plot: Path,
    paper: PaperFigures,
) -> str:
    """Write Table 6: every method and the paper's rows, each rank apart, and the mean over FashionIQ's categories."""
    benchmark = BENCHMARKS[place.benchmark]
    metrics = [name for name in metrics_of(benchmark) if name in ("R@10", "R@50")] or metrics_of(benchmark)
    first = next(iter(results.values()))[0]
    free = evaluate_training_free(place, replace(ablation.settings[-1].run, seed=seeds[0]))
    rows_of = {name: ([free], name) for name in free.methods}
    rows_of |= {name: (list(one), MAPPER) for name, one in results.items()}
    lines, drawn = [], {}
    for part in parts_of(first):
        header, rows = ["method"], []
        for metric in metrics:
            header += [metric, "seeds", "queries"]
        for name, (found, method) in rows_of.items():
            rows.append([name])
            for metric in metrics:
                cells = figure_of(found, method, part, [metric]).cells()
                rows[-1] += [cells[0], cells[1] if method == MAPPER else "", cells[2]]
        for name in paper.rows:
            found_there = [paper.find(name, f"{part} {metric}") for metric in metrics]
            if any(found_there):
                cells = [cell for value in found_there for cell in (_shown(value), "", "")]
                rows.append([f"{name}, the paper ({paper.encoder.upper()})", *cells])
        caption = f"{benchmark.title} val, {part.replace('_', ' ')}: percent"
        lines += [render_table(PageTable(caption, header, rows)), ""]
        drawn[part] = {name: figure_of(found, method, part, metrics) for name, (found, method) in rows_of.items()}
        difference, is_clear = difference_of(drawn[part]["hybrid"], drawn[part]["L_ZS"])
        lines += [
            f"Hybrid minus L_ZS, mean of {' and '.join(metrics)}: {100 * difference:+.2f}, "
            f"{'a clear difference' if is_clear else 'too close to call'}.",
            "",
        ]
    if benchmark.averages_parts:
        rows = []
        for name, (found, method) in rows_of.items():
            means = [[one.intervals()[method][PARTS_AVERAGE][metric].mean for metric in metrics] for one in found]
            rows.append([name, *(f"{100 * value:.2f}" for value in np.mean(means, axis=0))])
        lines += [render_table(PageTable("Mean over the parts: percent", ["method", *metrics], rows)), ""]
    draw_ablation(Ablation(ablation.title, "", [Setting(name, Run()) for name in rows_of]), drawn, plot, None)
    return "\n".join(lines)


def draw_ablation(
    ablation: Ablation, drawn: Mapping[str, Mapping[str, Figure]], path: Path, paper: PaperFigures | None
) -> None:
    """Draw the paper's figures and those of each part side by side: same settings, own scales."""
    import matplotlib

    matplotlib.use("Agg")
    from matplotlib import pyplot as plt

    names = [one.name for one in ablation.settings]
    panels = len(drawn) + (paper is not None)
    figure, axes = plt.subplots(1, panels, figsize=(3.6 * panels, 3.4), squeeze=False, layout="constrained")
    places = np.arange(len(names))
    columns = list(axes[0])
    if paper is not None:
        axis = columns.pop(0)
        axis.plot(places, [paper.find(name, AVERAGE) for name in names], "o", color="0.35")
        axis.set_title(f"paper: CIRR val, {paper.encoder.upper()}", fontsize=10)
        axis.set_ylabel("mean of recalls, percent")
    for axis, (part, figures) in zip(columns, drawn.items(), strict=True):
        for place, name in zip(places, names, strict=True):
            if name not in figures:
                axis.text(place, 0.5, "not run", rotation=90, ha="center", va="center", color="0.5",
                          transform=axis.get_xaxis_transform())  # fmt: skip
                continue
            one = figures[name]
            low, high = one.interval()
            axis.vlines(place, 100 * low, 100 * high, color="tab:blue", linewidth=1)
            axis.vlines(place, 100 * one.seeds.min(), 100 * one.seeds.max(), color="tab:blue", linewidth=5, alpha=0.5)
            axis.plot(place, 100 * one.mean, "o", color="tab:blue")
        axis.set_title("here" if part == "all" else f"here: {part.replace('_', ' ')}", fontsize=10)
    for axis in axes[0]:
        is_long = max(map(len, names)) > 3
        axis.set_xticks(places, names, rotation=30 if is_long else 0, ha="right" if is_long else "center")
        axis.set_xlim(-0.6, len(names) - 0.4)
        axis.set_xlabel(ablation.column)
        axis.grid(axis="y", alpha=0.3)
    figure.suptitle(f"{ablation.title}. Thin: 95% over queries; thick: lowest to highest seed", fontsize=10)
    figure.savefig(path, dpi=120)
    plt.close(figure)


def _shown(value: float | None) -> str:
    return "" if value is None else f"{value:.2f}"


def write_table(name: str, place: Place, seeds: Sequence[int], jobs: int, output: Path, options: str = "") -> Path:
    """Complete a table's runs and write it, with the command's options that decide what is in it."""
    ablation = ABLATIONS[name]
    known = [one for one in ablation.settings if one.run.triplets != LASCO or place.lasco is not None]
    complete(place, [replace(one.run, seed=seed) for one in known for seed in seeds], jobs)
    results = {one.name: [evaluate(place, replace(one.run, seed=seed)) for seed in seeds] for one in known}
    output.mkdir(parents=True, exist_ok=True)
    render = render_methods if name == "table6" else render_ablation
    paper = read_figures(name, encoder_family(place, replace(known[-1].run, seed=seeds[0])))
    text = render(ablation, place, results, seeds, output / f"{name}.png", paper)
    lines = [
        f"# {ablation.title}",
        "",
        f"Command: `python examples/paper/tables.py {name}{options}`. Runs: {place.title}, seeds "
        f"{' '.join(map(str, seeds))}. Each figure is the mean over the seeds. “Seeds” is the lowest and the highest "
        "seed's figure. “Queries” is the 95% interval over resampled queries, with the seeds kept. A difference of "
        "two settings is clear if its interval excludes 0 and every seed has its sign.",
        "",
        f"![{ablation.title}]({name}.png)",
        "",
        text,
    ]
    path = output / f"{name}.md"
    path.write_text("\n".join(lines).rstrip() + "\n", encoding="utf-8")
    return path


def main() -> None:
    """Read the arguments and write the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("tables", nargs="+", choices=list(ABLATIONS), metavar="TABLE", help="table3 to table6")
    parser.add_argument("--config", type=Path, default=ROOT / "examples" / "configs" / "emoji.yaml")
    parser.add_argument("--encoder", help="in place of the config's: folder or Hub id")
    parser.add_argument("--benchmark", default="emoji", choices=list(BENCHMARKS))
    parser.add_argument(
        "--data", type=Path, default=ROOT / "examples" / "emoji" / "data", help="the benchmark's folder"
    )
    parser.add_argument("--lasco", help="LaSCo's JSON file, for table3; without it that row is left empty")
    parser.add_argument("--lasco-images", help="LaSCo's pictures, where they do not lie with it")
    parser.add_argument("--steps", type=int, help="in place of the config's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument(
        "--jobs", type=int, default=1, help="runs at once, each on a GPU of its own, or on one thread (1)"
    )
    parser.add_argument("--work", type=Path, default=ROOT / ".cache" / "tables", help="models and evaluations")
    parser.add_argument(
        "--output", type=Path, help="docs/results/tables; for other benchmarks than emoji: output/tables/NAME"
    )
    args = parser.parse_args()
    deciding = ("config", "encoder", "benchmark", "data", "lasco", "steps")
    chosen = [name for name in deciding if getattr(args, name) != parser.get_default(name)]
    options = "".join(f" --{name} {getattr(args, name)}" for name in chosen)
    default = "docs/results/tables" if args.benchmark == "emoji" else f"output/tables/{args.benchmark}"
    output = args.output or ROOT / default
    place = Place(
        args.config, args.work, args.benchmark, args.data, args.steps, args.encoder, args.lasco, args.lasco_images
    )
    for name in args.tables:
        print(write_table(name, place, args.seeds, args.jobs, output, options), flush=True)


if __name__ == "__main__":
    main()
