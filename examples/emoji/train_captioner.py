"""Train the small BLIP captioner of the emoji world: an image in, its Unicode name out.

    python examples/emoji/train_captioner.py          # after train_encoder.py; resumes where it was stopped
    python examples/emoji/evaluate_captioner.py       # the figures of the README

The vision tower starts from the emoji CLIP's. BLIP has no layer norm before its first layer, so CLIP's is folded into
the patch, class and position embeddings. The text decoder starts from nothing and learns the lower-cased names of the
training split's images, by plain cross entropy. A second phase trains the decoder alone, on features of a few
views of each image, where a concept's many skin tones and genders no longer crowd out the others.

Every step draws its batch from a generator seeded by the step, so a resumed run equals an uninterrupted one.
"""

import argparse
import string
from collections import Counter
from pathlib import Path

import torch
import torch.nn.functional as F
from resumable import ResumableTraining, training_parser
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from tqdm import tqdm
from train_encoder import (
    FULL_PICTURES_FROM,
    IMAGE_MEAN,
    IMAGE_STD,
    KEPT_PATCHES,
    WIDTH,
    augment,
    choose_patches,
    read_split,
)
from transformers import (
    BlipConfig,
    BlipForConditionalGeneration,
    BlipImageProcessorPil,
    BlipProcessor,
    CLIPModel,
    PreTrainedTokenizerFast,
)

HERE = Path(__file__).parent
VOCABULARY = 2500
PICTURES_PER_STEP = 192
MEASURED_PICTURES = 1024  # for the fold of CLIP's first layer norm
DECODER_VIEWS = 3  # of each image, augmented once each
SPECIAL_TOKENS = {
    "pad_token": "[PAD]",
    "unk_token": "[UNK]",
    "cls_token": "[CLS]",
    "sep_token": "[SEP]",
    "mask_token": "[MASK]",
    "bos_token": "[DEC]",
}


# --- tokenizer ------------------------------------------------------------------------------------------------------


def train_tokenizer(texts: list[str]) -> PreTrainedTokenizerFast:
    """Train BERT's WordPiece on the texts.

    Words end at spaces only, unlike BERT's, so that decoding gives "medium-light" and "kiss:" back as they were. For
    the same reason accents stay. `BertTokenizer` would put its own rules in place of these whenever it loads.
    """
    printable = set(string.printable) - set(string.whitespace) - set(string.ascii_uppercase)
    letters = sorted(printable | set("".join(texts)) - {" "})
    wordpiece = Tokenizer(models.WordPiece(unk_token="[UNK]"))
    wordpiece.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    # Named beforehand, every letter can begin and continue a word, and the trainer's order is the same in every run.
    fixed = [*SPECIAL_TOKENS.values(), *letters, *(f"##{letter}" for letter in letters)]
    trainer = trainers.WordPieceTrainer(vocab_size=VOCABULARY, special_tokens=fixed, show_progress=False)
    wordpiece.train_from_iterator(texts, trainer)

    tokenizer = Tokenizer(models.WordPiece(wordpiece.get_vocab(), unk_token="[UNK]"))  # the letters special no longer
    tokenizer.normalizer = normalizers.BertNormalizer(strip_accents=False)
    tokenizer.pre_tokenizer = pre_tokenizers.WhitespaceSplit()
    tokenizer.decoder = decoders.WordPiece(cleanup=False)
    ends = [(token, tokenizer.token_to_id(token)) for token in ("[CLS]", "[SEP]")]
    tokenizer.post_processor = processors.TemplateProcessing(single="[CLS] $A [SEP]", special_tokens=ends)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, model_max_length=64, **SPECIAL_TOKENS)


# --- captioner ------------------------------------------------------------------------------------------------------


def build_captioner(tokenizer: PreTrainedTokenizerFast) -> BlipForConditionalGeneration:
    """Make the BLIP: about 7 million parameters; the vision tower has the emoji CLIP's shape."""
    text = {
        "vocab_size": len(tokenizer),
        "hidden_size": WIDTH,
        "intermediate_size": 2 * WIDTH,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "max_position_embeddings": 64,
        "bos_token_id": tokenizer.bos_token_id,
        "eos_token_id": tokenizer.sep_token_id,
        "sep_token_id": tokenizer.sep_token_id,  # where `generate` ends
        "pad_token_id": tokenizer.pad_token_id,
    }
    vision = {
        "hidden_size": WIDTH,
        "intermediate_size": 4 * WIDTH,
        "num_hidden_layers": 6,
        "num_attention_heads": 4,
        "image_size": 64,
        "patch_size": 8,
        "hidden_act": "quick_gelu",  # CLIP's
    }
    config = BlipConfig(text_config=text, vision_config=vision)
    return BlipForConditionalGeneration._from_config(config, attn_implementation="eager")


@torch.no_grad()
def start_from_clip(captioner: BlipForConditionalGeneration, clip: CLIPModel, pictures: torch.Tensor) -> None:
    """Copy CLIP's vision tower into the captioner's.

    CLIP's first layer norm, gamma (x - mean) / sigma + beta, is linear but for sigma. The class token's sigma is known;
    the patches' is the one number that serves these images best.

    Args:
        captioner: Changed in place.
        clip: Of the same width, depth and patches.
        pictures: `(N, 3, 64, 64)`, normalised, to measure sigma on.
    """
    source, target = clip.vision_model, captioner.vision_model
    norm = source.pre_layrnorm
    patches = source.embeddings(pictures)[:, 1:]  # (N, 64, WIDTH)
    variance = patches.var(-1, correction=0) + norm.eps  # (N, 64)
    patch_sigma = variance.sum() / variance.sqrt().sum()  # least squares: sum |x - mean|^2 (1/sigma_i - 1/sigma)^2
    positions = source.embeddings.position_embedding.weight  # (1 + 64, WIDTH)
    class_embedding = source.embeddings.class_embedding  # (WIDTH,)
    class_sigma = ((class_embedding + positions[0]).var(correction=0) + norm.eps).sqrt()

    sigma = torch.cat([class_sigma.view(1), patch_sigma.repeat(len(positions) - 1)]).unsqueeze(1)  # (1 + 64, 1)
    kernel = source.embeddings.patch_embedding.weight  # (WIDTH, 3, 8, 8)
    embeddings = target.embeddings
    embeddings.patch_embedding.weight.copy_(
        norm.weight.view(-1, 1, 1, 1) * (kernel - kernel.mean(0, keepdim=True)) / patch_sigma
    )
    embeddings.patch_embedding.bias.zero_()
    embeddings.class_embedding.copy_(norm.weight * (class_embedding - class_embedding.mean()) / class_sigma)
    centred = positions - positions.mean(1, keepdim=True)
    embeddings.position_embedding.copy_(norm.weight * centred / sigma + norm.bias)

    for ours, theirs in zip(target.encoder.layers, source.encoder.layers, strict=True):
        ours.layer_norm1.load_state_dict(theirs.layer_norm1.state_dict())
        ours.layer_norm2.load_state_dict(theirs.layer_norm2.state_dict())
        ours.mlp.load_state_dict(theirs.mlp.state_dict())
        attention = theirs.self_attn
        parts = (attention.q_proj, attention.k_proj, attention.v_proj)
        ours.self_attn.qkv.weight.copy_(torch.cat([part.weight for part in parts]))
        ours.self_attn.qkv.bias.copy_(torch.cat([part.bias for part in parts]))
        ours.self_attn.projection.load_state_dict(attention.out_proj.state_dict())
    target.post_layernorm.load_state_dict(source.post_layernorm.state_dict())


def encode_patches(
    captioner: BlipForConditionalGeneration, pictures: torch.Tensor, kept: int | None, generator: torch.Generator
) -> torch.Tensor:
    """Run the vision tower: `(B, 1 + 64, WIDTH)`; with `kept`, on that many patches."""
    vision = captioner.vision_model
    hidden = choose_patches(vision.embeddings(pictures), pictures, kept, generator)
    return vision.post_layernorm(vision.encoder(inputs_embeds=hidden).last_hidden_state)


# --- training -------------------------------------------------------------------------------------------------------


class CaptionerTraining(ResumableTraining):
    """The captioner, and everything that a step draws from."""

    label = "captioner"

    def __init__(self, args: argparse.Namespace) -> None:
        args.work.mkdir(parents=True, exist_ok=True)
        self.bf16 = args.bf16
        train = read_split(args.data, "train")
        self.pictures, self.concepts = train["pictures"], train["concept"]
        names = [name.lower() for name in train["name"]]
        keywords = {word.lower() for words in train["keywords"] for word in words}
        self.tokenizer = train_tokenizer(sorted(keywords | set(names)))
        self.captions = self.tokenizer(names, padding=True, return_tensors="pt")["input_ids"]  # (N, L)
        self.captions[:, 0] = self.tokenizer.bos_token_id  # as `generate` begins

        torch.manual_seed(args.seed)
        self.model = build_captioner(self.tokenizer)
        chosen = torch.randperm(len(self.pictures))[:MEASURED_PICTURES]
        clip = CLIPModel.from_pretrained(args.encoder, dtype=torch.float32)
        start_from_clip(self.model, clip, (self.pictures[chosen].float() / 255 - 0.5) / 0.5)
        modules = {"model": self.model}
        super().__init__(args.work, modules, args.steps, args.learning_rate, warm_up=60, seed=args.seed)

    def loss_terms(self, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """One step's cross entropy: every token after those before it."""
        rows = torch.randperm(len(self.pictures), generator=generator)[:PICTURES_PER_STEP]
        kept = KEPT_PATCHES if self.step < FULL_PICTURES_FROM * self.steps else None
        pictures = augment(self.pictures[rows], generator)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16):
            hidden = encode_patches(self.model, pictures, kept, generator)
        return {"loss": self.caption_loss(hidden, self.captions[rows])}

    def caption_loss(self, hidden: torch.Tensor, captions: torch.Tensor) -> torch.Tensor:
        """Cross entropy of captions `(B, L)`, padded, given the tower's features `(B, 1 + P, WIDTH)`."""
        is_text = captions != self.tokenizer.pad_token_id
        captions = captions[:, : int(is_text.sum(1).max())]  # (B, L)
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16):
            # Padding stands on the right, so the causal mask alone keeps it from the words.
            logits = self.model.text_decoder(input_ids=captions[:, :-1], encoder_hidden_states=hidden).logits
        logits = logits.float().transpose(1, 2)  # (B, vocabulary, L - 1)
        return F.cross_entropy(logits, captions[:, 1:], ignore_index=self.tokenizer.pad_token_id)


class DecoderTraining(ResumableTraining):
    """The text decoder alone, on the trained tower's features; concepts drawn by the root of their number of images.

    Args:
        args: The command line.
        first: The finished first phase.
    """

    label = "decoder"

    def __init__(self, args: argparse.Namespace, first: CaptionerTraining) -> None:
        work = args.work / "decoder"
        work.mkdir(exist_ok=True)
        self.first, self.bf16 = first, args.bf16
        pictures_of = Counter(first.concepts)
        self.weights = torch.tensor([pictures_of[concept] ** -0.5 for concept in first.concepts])  # (N,)
        self.views = torch.stack([self._encode_view(args.seed + view) for view in range(DECODER_VIEWS)])
        modules = {"decoder": first.model.text_decoder}
        super().__init__(work, modules, args.decoder_steps, args.decoder_rate, warm_up=60, seed=args.seed)

    @torch.no_grad()
    def _encode_view(self, seed: int) -> torch.Tensor:
        """One augmented view of every image through the tower: `(N, 1 + 64, WIDTH)`."""
        generator, first, encoded = torch.Generator().manual_seed(seed), self.first, []
        first.model.eval()
        with torch.autocast("cpu", dtype=torch.bfloat16, enabled=self.bf16):
            for block in tqdm(first.pictures.split(PICTURES_PER_STEP), desc="view", unit=" batches"):
                encoded.append(encode_patches(first.model, augment(block, generator), None, generator).bfloat16())
        return torch.cat(encoded)

    def loss_terms(self, generator: torch.Generator) -> dict[str, torch.Tensor]:
        """One step's cross entropy."""
        rows = torch.multinomial(self.weights, PICTURES_PER_STEP, generator=generator)
        views = torch.randint(DECODER_VIEWS, (PICTURES_PER_STEP,), generator=generator)
        return {"loss": self.first.caption_loss(self.views[views, rows].float(), self.first.captions[rows])}


def main() -> None:
    """Train, then write the captioner in half precision."""
    parser = training_parser(__doc__, name="captioner", steps=900, learning_rate=5e-4)
    parser.add_argument("--encoder", type=Path, default=HERE / "encoder", help="the emoji CLIP")
    parser.add_argument("--decoder-steps", type=int, default=2000, help="of the second phase")
    parser.add_argument("--decoder-rate", type=float, default=7e-4, help="its highest learning rate")
    args = parser.parse_args()

    training = CaptionerTraining(args)
    training.run()
    DecoderTraining(args, training).run()
    training.model.eval().half().save_pretrained(args.output)
    images = BlipImageProcessorPil(size={"height": 64, "width": 64}, image_mean=IMAGE_MEAN, image_std=IMAGE_STD)
    BlipProcessor(images, training.tokenizer).save_pretrained(args.output)


if __name__ == "__main__":
    main()
