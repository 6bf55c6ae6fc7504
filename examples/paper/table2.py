r"""The paper's Table 2: Pic2Word and HyCIR on CLIP and on BLIP, on CIRR test1 and CIRCO test.

    python examples/paper/table2.py --cirr cirr_dataset --circo CIRCO

1. Trains the four systems by their recipes in `examples/configs/`.
2. Writes each system's checked files for the two test servers into OUTPUT/SYSTEM.
3. Writes OUTPUT/table2.md: the paper's ten systems, and beside the four what the servers answered.

Send the files to the servers. Save an answer as OUTPUT/SYSTEM/cirr.txt (two answers: cirr_recall.txt and
cirr_subset.txt) or circo.txt, and run the same command again. What is done is not done again.
"""

import argparse
from collections.abc import Mapping
from pathlib import Path

from paper_figures import PaperFigures, read_figures
from servers import METRICS, SERVERS, read_server_answer

from hycir_hf.cli.main import main as hycir
from hycir_hf.evaluation import BENCHMARKS
from hycir_hf.evaluation.report import render_table
from hycir_hf.reports.pages import PageTable
from hycir_hf.training import HybridTrainer, HybridTrainingArguments

ROOT = Path(__file__).parents[2]
# Paper: does not say how many pseudo tokens its Pic2Word baselines have. Pic2Word itself has one.
SYSTEMS = {
    "Pic2Word-CLIP": "clip_vit_l14_pic2word",
    "Pic2Word-BLIP": "blip_vit_b16_pic2word",
    "Pic2Word-CLIP-HyCIR": "clip_vit_l14_paper",
    "Pic2Word-BLIP-HyCIR": "blip_vit_b16_paper",
}
SPLITS = {"cirr": "test1", "circo": "test"}


def train(config: Path, folder: Path, steps: int | None) -> Path:
    """Train a system, or find it trained: its model's folder. If interrupted, the same call resumes."""
    changes = {} if steps is None else {"steps": steps}
    HybridTrainer(HybridTrainingArguments.from_yaml(config, output_dir=str(folder), **changes)).train()
    return folder / "model"


def write_files(model: Path, benchmark: str, data: Path, output: Path, features: Path) -> list[Path]:
    """Write a system's files for a benchmark's test server, or find them.

    Raises:
        RuntimeError: If the evaluation failed. It printed why.
    """
    split = SPLITS[benchmark]
    files = [output / kind.name.format(split=split) for kind in BENCHMARKS[benchmark].submissions]
    if not all(path.is_file() for path in files):
        command = ["evaluate", "run", "--model", str(model), "--benchmark", benchmark, "--data", str(data)]
        command += ["--split", split, "--methods", "mapper", "--features", str(features), "--submission", str(output)]
        if hycir(command) != 0:
            raise RuntimeError(f"The files of {model} for {benchmark} {split} could not be written. See above.")
    return files


def read_answers(folder: Path) -> dict[str, float]:
    """Read those answers of the servers that are in a system's folder: metric -> percent."""
    found: dict[str, float] = {}
    for benchmark in SPLITS:
        if paths := sorted(folder.glob(f"{benchmark}*.txt")):
            answer = read_server_answer(paths, benchmark)
            found |= {metric: answer[metric] for metric in METRICS[benchmark]}
    return found


def render(paper: PaperFigures, answers: Mapping[str, Mapping[str, float]]) -> str:
    """Write Table 2 as Markdown: the paper's systems, and below each of the four what was reached here."""
    rows = []
    for system in paper.rows:
        rows.append([system, "the paper", *(_shown(paper.find(system, column)) for column in paper.columns)])
        if system in answers:
            found = answers[system]
            rows.append([system, "here", *(_shown(found.get(column), "no answer") for column in paper.columns)])
    caption = "CIRR test1 (R@K, R_subset@K) and CIRCO test (mAP@K): percent, from the test servers"
    table = render_table(PageTable(caption, ["system", "figures of", *paper.columns], rows))
    return f"# Table 2: CIRR test and CIRCO test\n\n{table}\n"


def _shown(value: float | None, otherwise: str = "–") -> str:
    return otherwise if value is None else f"{value:.2f}"


def main() -> None:
    """Train, write the servers' files, and write the table with the answers that are there."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--cirr", type=Path, required=True, help="CIRR's official folder")
    parser.add_argument("--circo", type=Path, required=True, help="CIRCO's official folder")
    parser.add_argument("--systems", nargs="+", default=list(SYSTEMS), choices=list(SYSTEMS), metavar="SYSTEM")
    parser.add_argument("--configs", type=Path, default=ROOT / "examples" / "configs", help="folder of the recipes")
    parser.add_argument("--steps", type=int, help="in place of the recipes'")
    parser.add_argument("--work", type=Path, default=ROOT / ".cache" / "table2", help="models and features")
    parser.add_argument("--output", type=Path, default=ROOT / "output" / "tables" / "table2")
    args = parser.parse_args()
    answers = {}
    for system in args.systems:
        model = train(args.configs / f"{SYSTEMS[system]}.yaml", args.work / system, args.steps)
        encoder = "clip" if "CLIP" in system else "blip"
        for benchmark, data in (("cirr", args.cirr), ("circo", args.circo)):
            features = args.work / "features" / f"{encoder}-{benchmark}"
            for path in write_files(model, benchmark, data, args.output / system, features):
                print(f"{path}  ->  {SERVERS[benchmark]}", flush=True)
        answers[system] = read_answers(args.output / system)
    path = args.output / "table2.md"
    path.write_text(render(read_figures("table2", "systems"), answers), encoding="utf-8")
    print(path)


if __name__ == "__main__":
    main()
