"""
The embeddings of tokens that are sampled one step at a time, with one gradient of the embedding table in the end.

  embed = embedding_in_steps(table, tokens);  embed(s)  ==  F.embedding(tokens[..., s : s + 1], table)
"""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable


def embedding_in_steps(table, tokens):
    """A function embed(s) -> (..., 1, C) of tokens (..., m), which may be filled in step by step: token s must be there
    when embed(s) is called.

    Each plain look-up would send back a gradient as large as the table. So tokens are looked up without a gradient, and
    zeros are added to them: the backward pass of these zeros makes the table's gradient, once for all steps.
    """
    zeros = Zeros.apply(table, tokens).split(1, dim=-2)

    def embed(s):
        with torch.no_grad():
            vectors = F.embedding(tokens[..., s : s + 1], table)
        return vectors + zeros[s]

    return embed


class Zeros(torch.autograd.Function):
    """Zeros (..., m, C) in place of the embeddings of tokens (..., m)."""

    @staticmethod
    def forward(ctx, table, tokens):
        ctx.tokens, ctx.rows = (
            tokens,
            len(table),
        )  # saved tensors may not be filled in afterwards; these are
        return table.new_zeros(()).expand(*tokens.shape, table.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return torch.ops.aten.embedding_dense_backward(
            gradient, ctx.tokens, ctx.rows, -1, False
        ), None
