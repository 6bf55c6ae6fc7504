"""CLIP4Cir's combiner: a supervised alternative to the mapper, trained on SynCir's triplets.

Source: Baldrati et al., "Effective conditioned and composed image retrieval combining CLIP-based features", CVPR 2022.
The paper notes that SynCir's triplets can train supervised models too.
"""

import torch
from huggingface_hub import PyTorchModelHubMixin
from torch import Tensor, nn
from torch.nn import functional as F


class CombinerHead(nn.Module, PyTorchModelHubMixin, library_name="hycir_hf", license="apache-2.0"):
    """Combine an image feature and a text feature into a composed feature.

    `save_pretrained` and `from_pretrained` are those of huggingface_hub. To search:
    `gallery.search(combiner(image_features, text_features), k=10)`.

    Args:
        feature_size (`int`): D, the encoder's joint width.
        projection_size (`int`, *optional*): Width of the two projections; by default 4 D, as in CLIP4Cir.
        hidden_size (`int`, *optional*): Width of the hidden layers; by default 8 D, as in CLIP4Cir.
        dropout (`float`): Dropout rate (CLIP4Cir: 0.5).
    """

    def __init__(
        self,
        feature_size: int,
        projection_size: int | None = None,
        hidden_size: int | None = None,
        dropout: float = 0.5,
    ) -> None:
        super().__init__()
        self.feature_size = feature_size
        projection_size, hidden_size = projection_size or 4 * feature_size, hidden_size or 8 * feature_size
        self.text_projection = _block(feature_size, projection_size, dropout)
        self.image_projection = _block(feature_size, projection_size, dropout)
        self.combination = nn.Sequential(
            _block(2 * projection_size, hidden_size, dropout), nn.Linear(hidden_size, feature_size)
        )
        self.text_share = nn.Sequential(
            _block(2 * projection_size, hidden_size, dropout), nn.Linear(hidden_size, 1), nn.Sigmoid()
        )

    def forward(self, image_features: Tensor, text_features: Tensor) -> Tensor:
        """Compose features.

        Args:
            image_features (`torch.FloatTensor` of shape `(B, D)`): Reference images, not normalised.
            text_features (`torch.FloatTensor` of shape `(B, D)`): Query texts alone, not normalised.

        Returns:
            `torch.FloatTensor` of shape `(B, D)`: Unit L2 norm.
        """
        both = torch.cat([self.text_projection(text_features), self.image_projection(image_features)], dim=-1)
        share = self.text_share(both)  # (B, 1)
        output = self.combination(both) + share * text_features + (1 - share) * image_features  # (B, D)
        return F.normalize(output, dim=-1)


def _block(width: int, next_width: int, dropout: float) -> nn.Sequential:
    return nn.Sequential(nn.Linear(width, next_width), nn.ReLU(), nn.Dropout(dropout))
