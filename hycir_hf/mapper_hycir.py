"""HyCIR's mapper: the part of the model that is trained (paper: Model architecture).

Shapes: I reference images, K pseudo tokens, D joint width, H text hidden width.
"""

from typing import Any

from torch import Tensor, nn

from .configuration_hycir import HyCIRConfig


class PseudoTokenMapper(nn.Module):
    """The mapper M: an image feature to K pseudo-word tokens, `(I, D)` to `(I, K, H)`.

    Paper: names no architecture for it. This is Pic2Word's: blocks of Linear-Dropout-ReLU, then an output layer, here
    K x H wide. Its input is the encoder's projected image feature before normalisation, as in Pic2Word.
    `mapper_activation="gelu"` gives the phi of SEARLE and LinCIR, Linear-GELU-Dropout. One order serves both, since
    dropout and ReLU commute.

    Attributes:
        is_fresh (`bool`): Whether `HyCIRModel.from_encoder` made it and it was neither trained nor loaded since.
    """

    def __init__(self, config: HyCIRConfig) -> None:
        super().__init__()
        self.num_pseudo_tokens = config.num_pseudo_tokens
        activation = {"relu": nn.ReLU, "gelu": nn.GELU}[config.mapper_activation]
        layers: list[nn.Module] = []
        width = config.feature_size
        for _ in range(config.mapper_num_layers):
            layers += [nn.Linear(width, config.mapper_hidden_size), activation(), nn.Dropout(config.mapper_dropout)]
            width = config.mapper_hidden_size
        self.blocks = nn.Sequential(*layers)
        self.output = nn.Linear(width, config.num_pseudo_tokens * config.text_hidden_size)
        self.is_fresh = False

    def forward(self, image_features: Tensor) -> Tensor:
        """Map image features `(I, D)`, in any precision and on any device, to pseudo tokens `(I, K, H)`."""
        # A quantized weight is no float, or no parameter at all. An offloaded one is on meta.
        floats = [p for p in self.parameters() if p.is_floating_point() and p.dtype.itemsize > 1]
        if floats:
            is_here = floats[0].device.type != "meta"
            image_features = image_features.to(floats[0].device if is_here else image_features.device, floats[0].dtype)
        tokens = self.output(self.blocks(image_features))  # (I, K * H)
        return tokens.unflatten(-1, (self.num_pseudo_tokens, -1))  # (I, K, H)

    def train(self, mode: bool = True) -> "PseudoTokenMapper":
        """Switch between training and evaluation. A mapper that was in training is no longer fresh."""
        self.is_fresh = self.is_fresh and not mode
        return super().train(mode)

    def _load_from_state_dict(self, *args: Any, **kwargs: Any) -> None:
        """Load, as torch does for this module or one around it. A loaded mapper is no longer fresh."""
        super()._load_from_state_dict(*args, **kwargs)
        self.is_fresh = False
