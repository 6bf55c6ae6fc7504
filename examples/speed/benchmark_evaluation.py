"""How long it takes from features to metrics, against the field's usual way and against the matrix product alone.

    python examples/speed/benchmark_evaluation.py                  # CIRR's val and CIRCO's test size, about two minutes
    python examples/speed/benchmark_evaluation.py --size 800 10000 # another size: queries, images

R@K with the reference left out. The usual way sorts the whole similarity matrix, turns the order into names, and finds
reference and target by comparing names. Random features of width 768; product and package run `--repeats` times in turn
and the fastest run counts, in wall-clock time and in processor time (the fairer one on a machine that others use too).
"""

import argparse
import json
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from hycir_hf.metrics import find_hits, recall_per_query
from hycir_hf.retrieval import rank_gallery

RANKS = (1, 5, 10, 50)
SIZES = ((4181, 2297), (800, 123_403))  # CIRR val; CIRCO test
DIM = 768


@dataclass(frozen=True)
class Problem:
    """Queries with one reference and one target each, in a gallery with names."""

    queries: np.ndarray  # (Q, D)
    gallery: np.ndarray  # (N, D)
    references: np.ndarray  # (Q,) rows
    targets: np.ndarray  # (Q,) rows
    names: np.ndarray  # (N,)


def make_problem(num_queries: int, num_images: int) -> Problem:
    """Make random unit features, each target moved towards its query, so that recalls lie between 0 and 1."""
    random = np.random.default_rng(0)
    queries, gallery = (random.standard_normal((n, DIM), dtype=np.float32) for n in (num_queries, num_images))
    targets = random.integers(num_images, size=num_queries)
    references = (targets + 1 + random.integers(num_images - 1, size=num_queries)) % num_images
    gallery[targets] += 0.15 * queries
    for features in (queries, gallery):
        features /= np.linalg.norm(features, axis=1, keepdims=True)
    return Problem(
        queries, gallery, references, targets, np.array([f"dev-{n:04d}-img{n % 4}" for n in range(num_images)])
    )


def usual_way(problem: "Problem") -> list[float]:
    """Compute R@K as evaluation scripts of the field do: full argsort, then comparisons of names.

    In slices of queries, since the names of the whole order would fill the memory (8 GB for CIRCO's).
    """
    names, found = problem.names, []
    step = max(1, 2**24 // len(names))
    for start in range(0, len(problem.queries), step):
        block = slice(start, start + step)
        distances = 1 - torch.from_numpy(problem.queries[block]) @ torch.from_numpy(problem.gallery).T
        ordered = names[torch.argsort(distances, dim=-1).numpy()]  # (B, N)
        kept = ordered != names[problem.references[block], None]
        ordered = ordered[kept].reshape(len(ordered), -1)  # (B, N - 1): without the reference
        found.append(ordered == names[problem.targets[block], None])
    labels = np.concatenate(found)
    return [float(labels[:, :k].any(axis=1).mean()) for k in RANKS]


def our_way(problem: "Problem") -> list[float]:
    """Compute R@K by a blocked product and a partial top-k."""
    rows, _ = rank_gallery(problem.queries, problem.gallery, max(RANKS), problem.references[:, None].tolist())
    hits = find_hits(rows, problem.targets[:, None].tolist(), max(RANKS))
    return [float(recall_per_query(hits, k).mean()) for k in RANKS]


def fastest(runs: dict[str, Callable[[], Any]], repeats: int) -> tuple[dict[str, list[float]], dict[str, Any]]:
    """Run all in turn; name -> fastest [wall-clock, processor] seconds, and name -> result."""
    seconds = {name: [np.inf, np.inf] for name in runs}
    results = {}
    for _ in range(repeats):
        for name, run in runs.items():
            before = time.perf_counter(), time.process_time()
            results[name] = run()
            after = time.perf_counter(), time.process_time()
            seconds[name] = [min(old, b - a) for old, a, b in zip(seconds[name], before, after, strict=True)]
    return seconds, results


def measure(num_queries: int, num_images: int, repeats: int) -> dict[str, Any]:
    """Measure one size."""
    problem = make_problem(num_queries, num_images)
    runs = {
        "product alone": lambda: float((problem.queries @ problem.gallery.T)[0, 0]),
        "hycir_hf": lambda: our_way(problem),
    }
    seconds, results = fastest(runs, repeats)
    usual, expected = fastest({"usual way": lambda: usual_way(problem)}, 1)
    if not np.allclose(results["hycir_hf"], expected["usual way"], atol=2 / num_queries):  # a tie may fall either way
        raise RuntimeError(f"Expected equal recalls, but found {results['hycir_hf']} and {expected['usual way']}.")
    return {"queries": num_queries, "images": num_images, "seconds": seconds | usual, "recalls": results["hycir_hf"]}


def main() -> None:
    """Measure and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--size", type=int, nargs=2, action="append", metavar=("QUERIES", "IMAGES"))
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--json", type=Path)
    args = parser.parse_args()
    measured = [measure(*size, args.repeats) for size in args.size or SIZES]
    print("| queries x pictures | | product alone | hycir_hf | usual way | of the product | faster than usual |")
    print("|---|---|---|---|---|---|---|")
    for one in measured:
        for place, clock in enumerate(("wall clock", "processor")):
            product, ours, usual = (seconds[place] for seconds in one["seconds"].values())
            size = f"{one['queries']:,} x {one['images']:,}"
            cells = [size, clock, *(f"{value:.2f} s" for value in (product, ours, usual))]
            print(f"| {' | '.join(cells)} | {ours / product:.2f}x | {usual / ours:.0f}x |")
    if args.json:
        args.json.write_text(json.dumps(measured, indent=2) + "\n")


if __name__ == "__main__":
    main()
