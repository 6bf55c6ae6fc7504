"""How fast are exported graphs on the CPU? torch, onnxruntime in float32 and int8, and the bare encoder as the floor.

    python examples/speed/benchmark_export.py                                  # the emoji model
    python examples/speed/benchmark_export.py --model OWNER/MODEL --threads 4

Rows: images to features, and composed queries from image features and texts of 1 to 12 words. Preprocessing is not
timed. The floor is torch's encoder alone: its image side, and its text side on the same tokens without mapper and
pseudo tokens. A ratio above 1 is faster than torch.
"""

import argparse
import json
import os
import tempfile
import time
from pathlib import Path

WORDS = "the same but red larger at night with a hat in snow".split()


def best_seconds(run, repeats: int) -> float:
    """Time a call: the least of several."""
    run()
    seconds = []
    for _ in range(repeats):
        start = time.perf_counter()
        run()
        seconds.append(time.perf_counter() - start)
    return min(seconds)


def main() -> None:
    """Export, time and print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default=str(Path(__file__).parents[1] / "emoji" / "hycir"))
    parser.add_argument("--batch", type=int, default=32, help="rows of a batch")
    parser.add_argument("--repeats", type=int, default=5)
    parser.add_argument("--threads", type=int, default=1, help="threads of torch, and cores of onnxruntime")
    args = parser.parse_args()
    if hasattr(os, "sched_setaffinity"):  # onnxruntime takes a thread for each core it may use
        os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[: args.threads])

    import torch

    from hycir_hf.integrations.export import export_model
    from hycir_hf.retriever import HyCIREncoder, OnnxEncoder

    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    with tempfile.TemporaryDirectory() as folder, torch.inference_mode():
        original = HyCIREncoder.from_pretrained(args.model, "cpu")
        models = {"torch": original.model}
        for name, int8 in (("onnxruntime", False), ("onnxruntime int8", True)):
            export_model(args.model, Path(folder) / name, int8)
            models[name] = OnnxEncoder.from_pretrained(str(Path(folder) / name), "cpu").model
        texts = [" ".join(WORDS[: 1 + row % len(WORDS)]) for row in range(args.batch)]
        images = original.processor(images=[torch.rand(3, 64, 64)] * args.batch)
        prompts = original.processor(text=texts)
        features = original.model.get_image_features(**images, normalize=False)  # (B, D)
        plain = {**prompts, "input_ids": prompts["input_ids"].clamp(min=3)}  # any words in the placeholders' places
        encoder, adapter = original.model.encoder, original.model._adapter
        seconds = {
            "floor": (
                best_seconds(lambda: adapter.image_features(encoder, **images), args.repeats),
                best_seconds(
                    lambda: adapter.text_features(encoder, plain["input_ids"], plain.get("attention_mask")),
                    args.repeats,
                ),
            )
        }
        for name, model in models.items():
            seconds[name] = (
                best_seconds(lambda model=model: model.get_image_features(**images), args.repeats),
                best_seconds(
                    lambda model=model: model.get_composed_features(**prompts, image_features=features), args.repeats
                ),
            )
    print(f"{args.batch} rows, {args.threads} thread(s), milliseconds; in brackets torch's time / this time")
    print(f"{'':18}{'images':>18}{'queries':>18}")
    for name, times in seconds.items():
        cells = (f"{1e3 * one:.1f} ({base / one:.2f}x)" for one, base in zip(times, seconds["torch"], strict=True))
        print(f"{name:18}" + "".join(f"{cell:>18}" for cell in cells))
    print(json.dumps(seconds))


if __name__ == "__main__":
    main()
