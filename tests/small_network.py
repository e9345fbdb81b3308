"""A network of random weights that can be computed in 8 bits, with outliers as trained ones have them."""

import pytest
import torch

from indexer.backbone import cpu_int8
from indexer.backbone.vit import Architecture, VisionTransformer

needs_vnni = pytest.mark.skipif(not cpu_int8._works(), reason="no 8-bit products on this machine")
SMALL = Architecture(embed_dim=128, depth=3, num_heads=2, image_size=70)


def network(architecture: Architecture = SMALL) -> VisionTransformer:
    torch.manual_seed(0)
    model = VisionTransformer(architecture)
    for name, parameter in model.named_parameters():
        if name.endswith(("gamma", "norm1.weight", "norm2.weight")):
            torch.nn.init.uniform_(parameter, 0.5, 1.5)
        elif parameter.ndim == 2:
            torch.nn.init.normal_(parameter, std=0.08)
        elif name.endswith("bias"):
            torch.nn.init.normal_(parameter, std=0.2)
    with torch.no_grad():  # outliers, as trained networks have them
        for block in model.blocks:
            block.get_parameter("mlp.fc1.weight" if architecture.ffn == "mlp" else "mlp.w12.weight")[:3] *= 6
    return model.eval().requires_grad_(False)
