"""
Log-probabilities of tokens without keeping logits: V numbers a row, far more than anything else a model makes.

  token_log_prob(head, h, x)  ==  head(h).log_softmax(-1)[x]
  entropy(head, h)            ==  -(p * p.log()).sum(-1)  with  p = head(h).softmax(-1)
  text_loss                       plain language modelling, by the first
"""

import math

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from lean.tensors import mean_by, shares

CHUNK_NUMBERS = {
    "cpu": 2**20,
    "cuda": 2**25,
}  # logits made at once: few enough for a cache, enough for a busy GPU


def rows_at_once(head, device):
    """How many whole rows of logits are made at once: at least so many that the table is not moved for a few."""
    return max(128, CHUNK_NUMBERS.get(device.type, 2**25) // head.out_features)


def token_log_prob(head, hidden, tokens, temperature=1.0, known=None, chunk_numbers=None):
    """log softmax(head(hidden) / temperature)[tokens]: hidden (..., C), tokens (...) -> (...).

    known: the result, if it was computed when the tokens were sampled: only the gradient is left to do.
    """
    chunk_numbers = chunk_numbers or CHUNK_NUMBERS.get(hidden.device.type, 2**25)
    known = None if known is None else known.reshape(-1)
    h, t = hidden.reshape(-1, hidden.shape[-1]), tokens.reshape(-1)
    return TokenLogProb.apply(h, head.weight, t, temperature, known, chunk_numbers).view(
        tokens.shape
    )


class TokenLogProb(torch.autograd.Function):
    """The above, of rows: hidden (n, C), weight (V, C), tokens (n,).

    Logits are made in blocks, some rows by some of the vocabulary, and made again in the backward pass instead of being
    kept: all that a block needs to know of the rest of its rows is their logsumexp. So the table and its gradient, the
    largest things here, go through memory once for many rows; blocks of whole rows would move them once for a few.
    In the backward pass blocks are made only for rows whose gradient is not 0: with clamp_advantage, every thought
    below its baseline drops out. (On a GPU the search for such rows waits for all work before it. That is cheaper than
    the logits.)
    """

    @staticmethod
    def forward(ctx, hidden, weight, tokens, temperature, known, chunk_numbers):
        device = hidden.device.type
        ctx.dtype = (
            torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        )
        ctx.temperature, ctx.chunk_numbers = temperature, chunk_numbers
        if known is not None:
            ctx.save_for_backward(hidden, weight, tokens, None, known)
            return known.clone()
        wide, log_p = torch.promote_types(ctx.dtype, torch.float32), []
        h_cast, w_cast, total = (
            hidden.to(ctx.dtype),
            weight.to(ctx.dtype),
            hidden.new_empty(len(hidden), dtype=wide),
        )
        for rows, parts in blocks(len(hidden), len(weight), chunk_numbers):
            h, t = h_cast[rows], tokens[rows]
            sums, at_token = [], torch.zeros(len(h), dtype=wide, device=h.device)
            for part in parts:
                logits = tempered(h @ w_cast[part].T, temperature)
                sums.append(logits.logsumexp(-1))
                here = (t - part.start)[:, None]
                inside = (here >= 0) & (here < logits.shape[1])
                at_token += logits.gather(1, here.clamp(0, logits.shape[1] - 1)).where(inside, 0)[
                    :, 0
                ]
            total[rows] = torch.stack(sums).logsumexp(0)
            log_p.append(at_token - total[rows])
        ctx.save_for_backward(hidden, weight, tokens, total, None)
        return torch.cat(log_p)

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        hidden, weight, tokens, total, known = ctx.saved_tensors
        of_hidden, of_weight = ctx.needs_input_grad[:2]
        wide = torch.promote_types(
            weight.dtype, torch.float32
        )  # blocks are not added up in bfloat16
        some = gradient.nonzero()[:, 0]
        h, t, slope = (
            hidden[some].to(ctx.dtype),
            tokens[some],
            gradient[some].to(wide) / ctx.temperature,
        )
        w_cast, w_of_token = weight.to(ctx.dtype), F.embedding(t, weight).to(ctx.dtype)
        if known is None:
            total = total[some]
        else:  # as it must have been: rounded as logits are
            total = (
                tempered((h.to(wide) * w_of_token).sum(-1).to(ctx.dtype), ctx.temperature)
                - known[some]
            )
        # d log p(t) / d logits = (1 at t, else 0) - p: first the 1, then p, block by block
        d_some, d_weight = slope[:, None] * w_of_token, None
        if of_weight:
            d_weight = torch.zeros_like(weight, dtype=wide).index_add_(0, t, slope[:, None] * h)
        for rows, parts in blocks(len(some), len(weight), ctx.chunk_numbers):
            for part in parts:
                p = (
                    tempered(h[rows] @ w_cast[part].T, ctx.temperature)
                    .sub_(total[rows, None])
                    .exp_()
                )
                d_logits = p.mul_(-slope[rows, None]).to(ctx.dtype)
                d_some[rows] += d_logits @ w_cast[part]
                if of_weight and ctx.dtype == wide:
                    d_weight[part].addmm_(d_logits.T, h[rows])
                elif of_weight:
                    d_weight[part] += d_logits.T @ h[rows]
        d_hidden = (
            torch.zeros_like(hidden).index_copy_(0, some, d_some.to(hidden.dtype))
            if of_hidden
            else None
        )
        return d_hidden, d_weight.to(weight.dtype) if of_weight else None, None, None, None, None


def blocks(n, V, numbers):
    """Slices of n rows, and for each the slices of a vocabulary of V that make blocks of about so many numbers: square,
    if there are rows enough, for then most is done with what is moved."""
    at_once = max(1, min(n, math.isqrt(numbers)))
    width = max(1, numbers // at_once)
    parts = [slice(start, min(start + width, V)) for start in range(0, V, width)]
    return [(slice(start, start + at_once), parts) for start in range(0, n, at_once)]


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
