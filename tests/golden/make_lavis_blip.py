"""Golden outputs of LAVIS' own BLIP retrieval model; README.md beside this file says in which environment it runs.

    python tests/golden/make_lavis_blip.py

Writes a small random checkpoint as LAVIS saves one, and its image and text features in the contrastive (ITC) space.
"""

from pathlib import Path

import torch
from safetensors.torch import save_file
from torch.nn import functional as F

HERE = Path(__file__).parent
VOCAB, LENGTH = 60, 35


def declare_torchvision_operators():
    """Let torchvision's Python files be imported without its compiled code: LAVIS calls none of its operators."""
    for name in ("nms", "qnms"):
        torch.library.define(f"torchvision::{name}", "(Tensor dets, Tensor scores, float iou_threshold) -> Tensor")


def build():
    declare_torchvision_operators()
    import lavis
    from lavis.models.blip_models.blip_retrieval import BlipRetrieval
    from lavis.models.med import BertConfig, XBertEncoder
    from lavis.models.vit import VisionTransformerEncoder

    BlipRetrieval.init_tokenizer = classmethod(lambda cls: None)  # the texts below are token ids
    torch.manual_seed(0)
    vision = VisionTransformerEncoder(
        img_size=32, patch_size=16, embed_dim=16, depth=2, num_heads=2, norm_layer=None, drop_path_rate=0
    )
    vision.vision_width = 16  # as its own from_config sets it
    config = BertConfig.from_json_file(Path(lavis.__file__).parent / "configs/models/med_config.json")
    config.update({"hidden_size": 16, "encoder_width": 16, "intermediate_size": 64, "num_hidden_layers": 2})
    config.update({"num_attention_heads": 2, "vocab_size": VOCAB, "max_position_embeddings": LENGTH})
    model = BlipRetrieval(vision, XBertEncoder(config, add_pooling_layer=False), queue_size=4, embed_dim=12)
    with torch.no_grad():
        for name, parameter in model.named_parameters():
            if name != "temp":
                parameter.normal_(std=0.3).add_(1 if "norm" in name.lower() and name.endswith("weight") else 0)
        model.temp.fill_(0.02)
    return model.eval()


def features(model, image, text):
    """As `lavis.models.albef_models.compute_sim_matrix` computes them."""
    image_feat = model.visual_encoder.forward_features(image)
    image_embed = F.normalize(model.vision_proj(image_feat[:, 0, :]), dim=-1)
    text_output = model.text_encoder.forward_text(text)
    text_embed = F.normalize(model.text_proj(text_output.last_hidden_state[:, 0, :]))
    return image_embed, text_embed


class Text(dict):
    __getattr__ = dict.__getitem__


if __name__ == "__main__":
    model = build()
    # A faint picture too: there the epsilon of the layer norms shows.
    image = torch.randn(3, 3, 32, 32) * torch.tensor([1.0, 0.3, 0.01])[:, None, None, None]
    lengths = torch.tensor([LENGTH, 12, 4])
    mask = (torch.arange(LENGTH) < lengths[:, None]).long()
    text = Text(input_ids=torch.randint(1, VOCAB, (3, LENGTH)) * mask, attention_mask=mask)
    with torch.no_grad():
        image_features, text_features = features(model, image, text)
    torch.save({"model": model.state_dict(), "epoch": 5}, HERE / "lavis_blip_retrieval.pth")
    found = {"pixel_values": image, **text, "image_features": image_features, "text_features": text_features}
    save_file({name: value.contiguous() for name, value in found.items()}, HERE / "lavis_blip_features.safetensors")
