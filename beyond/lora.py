"""
LoRA (Hu et al. 2021, arXiv 2106.09685): the model's weights stay as they are, and each linear map
of its blocks learns a small addition instead,

    W x + 2 B A x        A (rank, in), random; B (out, rank), 0 at first

so that gradients and AdamW's moments are kept for A and B alone, and the frozen weights may be
bfloat16. Start, end, mixing head and gain head learn in full. Whoever reads such a run gets merged
weights, W + 2 B A, and need not know.
"""

import torch
import torch.nn as nn
import torch.nn.functional as F

SCALE = 2.0  # the paper's alpha / rank


class LoRALinear(nn.Linear):
    """A linear map of a model that became one that is added to (see add_lora)."""

    def forward(self, x):
        return super().forward(x) + SCALE * F.linear(F.linear(x, self.lora_a), self.lora_b)


def linear_maps(transformer):
    return [module for module in transformer.layers.modules() if isinstance(module, nn.Linear)]


def add_lora(transformer, rank, frozen=None):
    """Freeze a Transformer, and let its blocks' linear maps learn an addition of a rank, in place.
    frozen: the dtype of what does not learn; None: as it is."""
    transformer.requires_grad_(False)
    if frozen:
        transformer.to(frozen)
    for linear in linear_maps(transformer):
        rows, columns = linear.weight.shape
        linear.__class__ = LoRALinear
        device = linear.weight.device
        linear.lora_a = nn.Parameter(torch.randn(rank, columns, device=device) / columns**0.5)
        linear.lora_b = nn.Parameter(torch.zeros(rows, rank, device=device))


@torch.no_grad()
def merge_lora(transformer):
    """Add to the weights what was learned, in place: a plain Transformer again, float32."""
    transformer.float().requires_grad_(True)
    for linear in linear_maps(transformer):
        if isinstance(linear, LoRALinear):
            linear.weight += SCALE * linear.lora_b @ linear.lora_a
            linear.__class__ = nn.Linear
            del linear.lora_a, linear.lora_b
