"""
Log-probabilities of tokens without keeping logits: V numbers a row, far more than anything else a model makes.

  token_log_prob(head, h, x)  ==  head(h).log_softmax(-1)[x]
  entropy(head, h)            ==  -(p * p.log()).sum(-1)  with  p = head(h).softmax(-1)
  text_loss                       plain language modelling, by the first
"""

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from lean.tensors import mean_by, shares

CHUNK_NUMBERS = {"cpu": 2**20, "cuda": 2**25}  # logits made at once: few enough for a cache, enough for a busy GPU


def rows_at_once(head, device, chunk_numbers=None):
    """How many rows of logits are made at once."""
    return max(1, (chunk_numbers or CHUNK_NUMBERS.get(device.type, 2**25)) // head.out_features)


def token_log_prob(head, hidden, tokens, temperature=1.0, known=None, chunk_numbers=None):
    """log softmax(head(hidden) / temperature)[tokens]: hidden (..., C), tokens (...) -> (...).

    known: the result, if it was computed when the tokens were sampled: only the gradient is left to do.
    """
    rows = rows_at_once(head, hidden.device, chunk_numbers)
    known = None if known is None else known.reshape(-1)
    h, t = hidden.reshape(-1, hidden.shape[-1]), tokens.reshape(-1)
    return TokenLogProb.apply(h, head.weight, t, temperature, known, rows).view(tokens.shape)


class TokenLogProb(torch.autograd.Function):
    """The above, of rows: hidden (n, C), weight (V, C), tokens (n,).

    Logits are made some rows at a time, and made again in the backward pass instead of being kept. There they are made
    only for rows whose gradient is not 0: with clamp_advantage, every thought below its baseline drops out. (On a GPU
    the search for such rows waits for all work before it. That is cheaper than the logits.)
    """

    @staticmethod
    def forward(ctx, hidden, weight, tokens, temperature, known, rows):
        device = hidden.device.type
        ctx.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        ctx.save_for_backward(hidden, weight, tokens)
        ctx.temperature, ctx.rows = temperature, rows
        if known is not None:
            return known.clone()
        weight, parts = weight.to(ctx.dtype), zip(hidden.split(rows), tokens.split(rows), strict=True)
        return torch.cat([log_prob_of(h.to(ctx.dtype) @ weight.T, t, temperature) for h, t in parts])

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        hidden, weight, tokens = ctx.saved_tensors
        wide = torch.promote_types(weight.dtype, torch.float32)  # chunks are not added up in bfloat16
        d_hidden, d_weight = torch.zeros_like(hidden), torch.zeros_like(weight, dtype=wide)
        stored, weight = weight.dtype, weight.to(ctx.dtype)
        for rows in gradient.nonzero()[:, 0].split(ctx.rows):
            h, t, slope = hidden[rows].to(ctx.dtype), tokens[rows], gradient[rows] / ctx.temperature
            # d log p(t) / d logits = (1 at t, else 0) - p
            d_logits = tempered(h @ weight.T, ctx.temperature).softmax(-1).mul_(-slope[:, None])
            d_logits[torch.arange(len(t), device=t.device), t] += slope
            d_logits = d_logits.to(ctx.dtype)
            d_hidden[rows] = (d_logits @ weight).to(hidden.dtype)
            if ctx.dtype == d_weight.dtype:
                d_weight.addmm_(d_logits.T, h)
            else:
                d_weight += d_logits.T @ h
        return d_hidden, d_weight.to(stored), None, None, None, None


def log_prob_of(logits, tokens, temperature=1.0):
    """log softmax(logits / temperature)[tokens]: (..., V), (...) -> (...)."""
    logits = tempered(logits, temperature).reshape(-1, logits.shape[-1])
    return -F.cross_entropy(logits, tokens.reshape(-1), reduction="none").view(tokens.shape)


def tempered(logits, temperature):
    """logits / temperature, in float32 at least."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits if temperature == 1 else logits / temperature


@torch.no_grad()
def entropy(head, hidden):
    """Entropy of softmax(head(hidden)) in nats: hidden (..., C) -> (...)."""
    parts = hidden.reshape(-1, hidden.shape[-1]).split(rows_at_once(head, hidden.device))
    log_p = (head(h).float().log_softmax(-1) for h in parts)
    return torch.cat([-(x.exp() * x).sum(-1) for x in log_p]).view(hidden.shape[:-1])


@torch.no_grad()
def likeliest(head, hidden):
    """head(hidden).argmax(-1): hidden (..., C) -> (...)."""
    parts = hidden.reshape(-1, hidden.shape[-1]).split(rows_at_once(head, hidden.device))
    return torch.cat([head(h).argmax(-1) for h in parts]).view(hidden.shape[:-1])


def text_loss(head, hidden, tokens, documents=None):
    """The loss of plain language modelling of tokens (B, L), read to hidden (B, L or L - 1, C); and log p of x_1 ..
    x_{L-1}, (B, L-1). documents: see QuietSTaR.forward."""
    valid = torch.ones_like(tokens[:, 1:], dtype=torch.bool)
    if documents is not None:
        valid = (documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] >= 0)
    log_p = token_log_prob(head, hidden[:, : tokens.shape[1] - 1], tokens[:, 1:])
    return mean_by(shares(valid), -log_p), log_p
