"""Evaluate a model on a benchmark: the mapper beside the training-free ways, with 95% intervals.

    python examples/evaluate_model.py

`hycir evaluate run --benchmark cirr --data DIR` does the same for CIRR, CIRCO and FashionIQ, and writes the test
servers' files. What is saved here is what a model card is made from (see push.py).
"""

from pathlib import Path

from hycir_hf import HyCIRModel, HyCIRProcessor
from hycir_hf.evaluation import compare_results, evaluate_benchmark, read_benchmark

EMOJI = Path(__file__).parent / "emoji"

model, processor = HyCIRModel.from_pretrained(EMOJI / "hycir"), HyCIRProcessor.from_pretrained(EMOJI / "hycir")
data = read_benchmark("emoji", EMOJI / "data", split="val", part_names=["heldout_vendor"])
results = evaluate_benchmark(model.eval(), processor, data).results
results.save("demo/results.json")

for method, parts in results.intervals().items():
    figures = (f"{name} {100 * found.mean:.2f}" for name, found in parts["heldout_vendor"].items() if "R@" in name)
    print(f"{method}: {', '.join(figures)}")
for found in compare_results(results, results, "mapper", "image + text"):
    if found.metric == "R@10":
        low, high = 100 * found.difference.low, 100 * found.difference.high
        print(f"mapper - (image + text), R@10: {100 * found.difference.mean:.2f} ({low:.2f} to {high:.2f})")
