"""torchvision's operators, declared without their compiled code, so that its Python files can be imported.

LAVIS imports torchvision's transforms and download helpers alone; no operator is called.
"""

import torch

for schema in (
    "nms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
    "qnms(Tensor dets, Tensor scores, float iou_threshold) -> Tensor",
):
    torch.library.define(f"torchvision::{schema.partition('(')[0]}", "(" + schema.partition("(")[2])
