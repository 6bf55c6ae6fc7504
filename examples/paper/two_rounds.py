r"""The paper's Discussion: a well-trained CIR model judges the synthetic triplets. Train, filter, train again.

    python examples/paper/two_rounds.py                          # the emoji world, from the clone's own folder
    python examples/paper/two_rounds.py --config examples/configs/blip_vit_b16_paper.yaml --benchmark cirr --data DIR

1. Round one trains on SynCir's triplets.
2. The model of the first seed scores each triplet: the similarity of its composed query with its target image.
3. Round two trains anew on the share `--keep` of the triplets with the highest scores. A control trains on as many
   triplets drawn at random.

Writes OUTPUT/two_rounds.md. Models and evaluations are kept in `--work`, and round one is shared with `tables.py`. If
interrupted, run the same command again to resume.
"""

import argparse
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np
from ablation_runs import Place, Run, arguments_of, complete, evaluate
from datasets import Dataset
from tables import ROOT, difference_of, figure_of, metrics_of, parts_of, setting_cells

from hycir_hf import HyCIRModel, HyCIRProcessor
from hycir_hf.evaluation import BENCHMARKS, MAPPER, EvaluationResults
from hycir_hf.evaluation.report import render_table
from hycir_hf.reports.pages import PageTable
from hycir_hf.syncir import ComposedCheck
from hycir_hf.training.data import Share, TripletSource
from hycir_hf.training.setup import load_model, open_streams

ROUND_1, ROUND_2, CONTROL = "round one: all triplets", "round two: the best", "control: drawn at random"
_ROWS_AT_ONCE = 256


def score_triplets(place: Place, run: Run) -> tuple[TripletSource, np.ndarray]:
    """Score a run's triplets with its own model: the triplets, and `(T,)` similarities in [-1, 1]."""
    folder = place.runs / run.name / "model"
    model, processor = HyCIRModel.from_pretrained(folder).eval(), HyCIRProcessor.from_pretrained(folder)
    arguments = arguments_of(place, run)
    streams = open_streams(["triplets"], arguments, *load_model(arguments), Share(), lambda: None)
    source: TripletSource = streams["triplets"].sources[0]  # type: ignore[attr-defined]
    check, texts = ComposedCheck(model, processor, threshold=-1), source.triplets.query_texts
    parts = []
    for start in range(0, len(texts), _ROWS_AT_ONCE):
        rows = list(range(start, min(start + _ROWS_AT_ONCE, len(texts))))
        sides = [source.read_features(rows, column).numpy() for column in (0, 1)]
        parts.append(check.score(*sides, {"query_text": [texts[row] for row in rows]})[:, 0])
    return source, np.concatenate(parts)


def write_rows(source: TripletSource, rows: np.ndarray, output: Path) -> str:
    """Write some of the triplets as a Parquet file."""
    triplets = source.triplets
    columns = {"reference_id": triplets.reference_ids, "target_id": triplets.target_ids}
    columns["query_text"] = triplets.query_texts
    Dataset.from_dict({name: [values[row] for row in rows] for name, values in columns.items()}).to_parquet(output)
    return str(output)


def second_round(place: Place, keep: float, seed: int) -> tuple[Place, dict[str, Run], float]:
    """Filter by the first round's model: the place with both new sources, all runs by name, and the threshold."""
    source, scores = score_triplets(place, Run(seed=seed))
    number = round(keep * len(scores))
    best = np.sort(np.argsort(-scores, kind="stable")[:number])
    drawn = np.sort(np.random.default_rng(seed).choice(len(scores), number, replace=False))
    names = {ROUND_2: f"round2-{keep:g}", CONTROL: f"random-{keep:g}"}
    paths = {
        names[name]: write_rows(source, rows, place.runs / f"{names[name]}.parquet")
        for name, rows in ((ROUND_2, best), (CONTROL, drawn))
    }
    runs = {ROUND_1: Run()} | {name: Run(triplets=triplets) for name, triplets in names.items()}
    return replace(place, further_triplets=paths), runs, float(scores[best].min())


def render(place: Place, results: Mapping[str, Sequence[EvaluationResults]], keep: float, threshold: float) -> str:
    """Write what each round reached on each part, and the paired differences."""
    metrics = metrics_of(BENCHMARKS[place.benchmark])
    lines = [
        "# A filter by a trained CIR model, in two rounds",
        "",
        f"Command: `python examples/paper/two_rounds.py --keep {keep:g}`. Runs: {place.title}. Round two keeps the "
        f"{keep:.0%} of the triplets whose composed query is most similar to the target image, by round one's model: "
        f"{threshold:.3f} or more. Each figure is the mean over the seeds. “Seeds” is the lowest and the highest "
        "seed's figure, “queries” the 95% interval over resampled queries. A difference is clear if its interval "
        "excludes 0 and every seed has its sign.",
        "",
    ]
    for part in parts_of(results[ROUND_1][0]):
        rows = [[name, *setting_cells(found, part, metrics)] for name, found in results.items()]
        caption = f"{BENCHMARKS[place.benchmark].title} val, {part.replace('_', ' ')}: percent"
        figures = {name: figure_of(found, MAPPER, part, metrics) for name, found in results.items()}
        lines += [render_table(PageTable(caption, ["triplets", *metrics, "mean", "seeds", "queries"], rows)), ""]
        for rival in (ROUND_1, CONTROL):
            difference, is_clear = difference_of(figures[ROUND_2], figures[rival])
            verdict = "clear" if is_clear else "too close to call"
            lines.append(f"- round two minus {rival.partition(':')[0]}: {100 * difference:+.2f}, {verdict}")
        lines.append("")
    return "\n".join(lines)


def main() -> None:
    """Train, filter, train again, and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--keep", type=float, default=0.8, help="share of the triplets that round two keeps (0.8)")
    parser.add_argument("--config", type=Path, default=ROOT / "examples" / "configs" / "emoji.yaml")
    parser.add_argument("--benchmark", default="emoji", choices=list(BENCHMARKS))
    parser.add_argument("--data", type=Path, default=ROOT / "examples" / "emoji" / "data")
    parser.add_argument("--steps", type=int, help="in place of the config's")
    parser.add_argument("--seeds", type=int, nargs="+", default=[0, 1, 2])
    parser.add_argument("--jobs", type=int, default=1, help="runs at once, one thread each (1)")
    parser.add_argument("--work", type=Path, default=ROOT / ".cache" / "tables")
    parser.add_argument("--output", type=Path, default=ROOT / "docs" / "results" / "tables")
    args = parser.parse_args()
    place = Place(args.config, args.work, args.benchmark, args.data, args.steps)
    complete(place, [Run(seed=seed) for seed in args.seeds], args.jobs)
    place, runs, threshold = second_round(place, args.keep, args.seeds[0])
    complete(place, [replace(run, seed=seed) for run in runs.values() for seed in args.seeds], args.jobs)
    results = {name: [evaluate(place, replace(run, seed=seed)) for seed in args.seeds] for name, run in runs.items()}
    args.output.mkdir(parents=True, exist_ok=True)
    path = args.output / "two_rounds.md"
    path.write_text(render(place, results, args.keep, threshold).rstrip() + "\n", encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
