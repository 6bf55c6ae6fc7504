"""How fast is a training step? Pic2Word's way, this package's way, and the floor that neither can go below.

    python examples/speed/benchmark_training.py                    # ViT-B/32 with random weights, on the CPU
    python examples/speed/benchmark_training.py --prompts 96       # an eighth of the prompts, for a first look
    python examples/speed/benchmark_training.py --device cuda --size large   # ViT-L/14 on a GPU

One step of hybrid training: two thirds of the prompts are L_ZS's, one third triplets' with texts of 3 to 12 words.

- *Pic2Word's way*: all images are encoded in the step (one an L_ZS prompt, two a triplet), prompts are padded to 77
  tokens, and the encoder's weights get gradients that nobody uses.
- *Ours*: features from a cache, prompts cut to their length and sorted by it, frozen weights without gradients, and the
  beginning that all prompts share computed once.
- *Floor*: the text encoder alone, forward and backward, on each stream's prompts cut to the longest.

Weights are random, so only the times mean something. The baseline runs in chunks that fit a few GB; its cost is linear
in the rows.
"""

import argparse
import gc
import json
import time
from collections.abc import Callable

import torch
from torch.nn import functional as F
from transformers import CLIPConfig, CLIPModel

from hycir_hf import HyCIRModel
from hycir_hf.losses import contrastive_loss
from hycir_hf.training.prompts import PromptEncoder

CLOCK = time.perf_counter
K, BOS, EOS, FULL_LENGTH = 4, 49406, 49407, 77
SIZES = {
    "base": {  # ViT-B/32
        "text": {"hidden_size": 512, "intermediate_size": 2048, "num_attention_heads": 8, "num_hidden_layers": 12},
        "vision": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12},
        "patch_size": 32,
        "projection_dim": 512,
    },
    "large": {  # ViT-L/14
        "text": {"hidden_size": 768, "intermediate_size": 3072, "num_attention_heads": 12, "num_hidden_layers": 12},
        "vision": {"hidden_size": 1024, "intermediate_size": 4096, "num_attention_heads": 16, "num_hidden_layers": 24},
        "patch_size": 14,
        "projection_dim": 768,
    },
}


def build_model(size: str, device: str) -> HyCIRModel:
    """Build a CLIP of the size with random weights, and a mapper."""
    sizes = SIZES[size]
    config = CLIPConfig(
        text_config={**sizes["text"], "projection_dim": sizes["projection_dim"], "eos_token_id": EOS},
        vision_config={**sizes["vision"], "patch_size": sizes["patch_size"], "projection_dim": sizes["projection_dim"]},
        projection_dim=sizes["projection_dim"],
    )
    torch.manual_seed(0)
    return HyCIRModel.from_encoder(CLIPModel(config), K).to(device).train()


def build_prompts(num_prompts: int, placeholder: int) -> list[dict[str, torch.Tensor]]:
    """Make the two streams' prompts, right padded to their longest: L_ZS's, then triplets'."""
    generator = torch.Generator().manual_seed(0)
    head = [BOS, 320, 1125, 539, *[placeholder] * K]  # a photo of [$ $ $ $]
    num_triplets = num_prompts // 3
    words = torch.randint(3, 13, (num_triplets,), generator=generator).tolist()
    triplets = [[*head, 267, *torch.randint(1000, 40000, (n,), generator=generator).tolist(), EOS] for n in words]
    return [padded([[*head, EOS]] * (num_prompts - num_triplets)), padded(triplets)]


def padded(rows: list[list[int]]) -> dict[str, torch.Tensor]:
    """Pad prompts to the longest."""
    length = max(map(len, rows))
    ids = torch.tensor([row + [EOS] * (length - len(row)) for row in rows])
    mask = torch.tensor([[1] * len(row) + [0] * (length - len(row)) for row in rows])
    return {"input_ids": ids, "attention_mask": mask}


def pic2word_step(model: HyCIRModel, streams: list[dict[str, torch.Tensor]], chunk: int) -> dict[str, float]:
    """Encode the images, map, run prompts of 77 tokens forward and backward, with gradients for all weights."""
    encoder, device = model.encoder, model.device
    encoder.text_model.requires_grad_(True)
    encoder.text_projection.requires_grad_(True)
    num_pixels, seconds = encoder.config.vision_config.image_size, {"images": 0.0, "text": 0.0}
    for prompts, images_a_row in zip(streams, (1, 2), strict=True):
        for ids in prompts["input_ids"].split(chunk):
            images = torch.randn(len(ids) * images_a_row, 3, num_pixels, num_pixels, device=device)
            with torch.no_grad():
                features, seconds["images"] = timed(
                    lambda images=images: model.get_image_features(images, normalize=False), seconds["images"]
                )
            ids = F.pad(ids, (0, FULL_LENGTH - ids.shape[1]), value=EOS).to(device)
            seconds["text"] = timed(
                lambda ids=ids, features=features: text_step(model, ids, features[: len(ids)]), seconds["text"]
            )[1]
    encoder.requires_grad_(False)
    encoder.zero_grad()
    return seconds


def text_step(model: HyCIRModel, ids: torch.Tensor, features: torch.Tensor) -> None:
    """Run mapper and text encoder forward and backward."""
    composed = model.get_composed_features(ids, image_features=features)
    contrastive_loss(composed, F.normalize(features, dim=-1), 100.0).backward()


def our_step(model: HyCIRModel, streams: list[dict[str, torch.Tensor]]) -> dict[str, float]:
    """Take a step from cached features."""
    encoder, device = PromptEncoder(model), model.device
    width = model.config.feature_size
    features = [torch.randn(len(prompts["input_ids"]), width, device=device) for prompts in streams]

    def step() -> None:
        tokens = model.mapper(torch.cat(features)).split([len(part) for part in features])
        losses = []
        for prompts, part, feature in zip(streams, tokens, features, strict=True):
            groups = encoder.groups(prompts)
            composed = torch.cat([encoder.encode(prompts, part, rows, normalize=True) for rows in groups])
            composed = composed[torch.argsort(torch.cat(groups)).to(device)]
            losses.append(contrastive_loss(composed, F.normalize(feature, dim=-1), 100.0))
        torch.stack(losses).sum().backward()

    return {"step": timed(step)[1]}


def mapper_step(model: HyCIRModel, num_prompts: int) -> dict[str, float]:
    """Run mapper and losses alone, forward and backward."""
    features = torch.randn(num_prompts, model.config.feature_size, device=model.device)

    def step() -> None:
        tokens = model.mapper(features)
        fake = F.normalize(tokens[:, 0, : features.shape[1]], dim=-1)
        contrastive_loss(fake, F.normalize(features, dim=-1), 100.0).backward()

    return {"mapper and loss": timed(step)[1]}


def floor_step(model: HyCIRModel, streams: list[dict[str, torch.Tensor]]) -> dict[str, float]:
    """Run the text encoder alone forward and backward, at each stream's longest prompt."""
    seconds = 0.0
    for prompts in streams:
        ids = prompts["input_ids"].to(model.device)
        shape = (len(ids), K, model.config.text_hidden_size)
        tokens = torch.randn(shape, device=model.device, requires_grad=True)

        def run(ids: torch.Tensor = ids, tokens: torch.Tensor = tokens) -> None:
            composed = model.get_composed_features(ids, pseudo_tokens=tokens, normalize=False)
            composed.backward(torch.ones_like(composed))

        seconds = timed(run, seconds)[1]
    return {"text encoder": seconds}


def timed(run: Callable, before: float = 0.0) -> tuple:
    """Run a function; its result, and the seconds since `before`."""
    started = read_clock()
    result = run()
    return result, before + read_clock() - started


def read_clock() -> float:
    """Read the clock when all work asked for so far is done."""
    if torch.cuda.is_available():
        torch.cuda.synchronize()
    return CLOCK()


def best_of(repeats: int, run: Callable[[], dict[str, float]]) -> dict[str, float]:
    """Take the run with the smallest sum: other work on the machine only ever adds time."""
    found = []
    for _ in range(repeats):
        gc.collect()
        found.append(run())
    return min(found, key=lambda seconds: sum(seconds.values()))


def main() -> None:
    """Measure and print a table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--prompts", type=int, default=768, help="prompts a step (768: 512 + 256)")
    parser.add_argument("--size", choices=SIZES, default="base")
    parser.add_argument("--device", default="cpu")
    parser.add_argument("--repeats", type=int, default=3, help="runs of ours and of the floor; the fastest counts")
    parser.add_argument("--chunk", type=int, default=64, help="the baseline's rows at once")
    parser.add_argument("--cpu-seconds", action="store_true", help="count the processor's seconds: on a busy machine")
    parser.add_argument("--json", action="store_true")
    args = parser.parse_args()
    global CLOCK
    CLOCK = time.process_time if args.cpu_seconds else time.perf_counter
    if args.prompts < 6:
        parser.error("expected at least 6 prompts")

    model = build_model(args.size, args.device)
    streams = build_prompts(args.prompts, model.config.placeholder_token_id)
    small = build_prompts(12, model.config.placeholder_token_id)
    for warm_up in (our_step, floor_step):
        warm_up(model, small)
    mapper = best_of(args.repeats, lambda: mapper_step(model, args.prompts))
    floor = best_of(args.repeats, lambda: floor_step(model, streams))
    ours = best_of(args.repeats, lambda: our_step(model, streams))
    baseline = best_of(1, lambda: pic2word_step(model, streams, args.chunk))
    seconds = {"Pic2Word": sum(baseline.values()), "ours": ours["step"], "floor": floor["text encoder"]}
    faster, of_the_floor = seconds["Pic2Word"] / seconds["ours"], seconds["ours"] / seconds["floor"]
    ratios = {"times faster": faster, "of the floor": of_the_floor}
    if args.json:
        print(json.dumps({"seconds": seconds, "baseline": baseline, **mapper, "ratios": ratios}, indent=2))
        return
    lengths = [prompts["input_ids"].shape[1] for prompts in streams]
    threads = torch.get_num_threads()
    print(f"{args.prompts} prompts of up to {lengths} tokens, CLIP {args.size}, {args.device}, {threads} threads")
    print(f"  Pic2Word's way   {seconds['Pic2Word']:8.2f} s a step")
    print(f"    images         {baseline['images']:8.2f}")
    print(f"    text, 77 long  {baseline['text']:8.2f}")
    print(f"  ours             {seconds['ours']:8.2f}   {faster:.1f} times faster")
    print(f"    mapper, loss   {mapper['mapper and loss']:8.2f}")
    print(f"  floor            {seconds['floor']:8.2f}   ours is {of_the_floor:.2f} of it")


if __name__ == "__main__":
    main()
