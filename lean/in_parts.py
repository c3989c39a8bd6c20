"""
Algorithm 1 at a few positions at a time: the same gradient in less memory.

  backward_in_parts(quiet, tokens, ..., scale=c)  ==  loss, metrics = quiet(tokens, ...); (c * loss).backward()

Thoughts of different positions have nothing to do with one another, so they can think, and be learned from, some
positions at a time. What they share is the text, which is read once. Its embeddings, hidden states, keys and values
become leaves: each part's backward pass ends there and leaves its gradient on them. The text's own backward pass comes
last and takes these gradients on. Without recompute nothing is computed twice but logits.
"""

import math

import torch

from lean.log_prob import text_loss
from lean.tensors import check, mean_by


def backward_in_parts(
    quiet, tokens, documents=None, noise=None, where=None,
    scale=1.0, at_once=0, recompute=False, before_last=lambda: None,
):  # fmt: skip
    """Forward and backward pass of `scale` times the loss; returns the metrics. tokens, documents, noise: see
    QuietSTaR.forward. noise covers all positions that could think, even if only some of them do.

    where       function of the text's hidden states (B, L, C): the positions (B, S) that think; None: all that can
    at_once     positions of a text in each part; 0: see `good_part`
    recompute   sample the thoughts of each part without a graph, then read them again to learn from them: slower, but
                parts can be smaller before they are too small to be fast
    before_last called before the last of the backward passes, after which all gradients are complete
    """
    check(quiet.config, tokens, noise=noise)
    text = quiet.read_text(tokens)
    positions = quiet.default_positions(tokens)
    if where is not None:
        positions = where(text.hidden)
        if noise is not None:  # (B, N, all that could think, m): that of the positions that do
            index = positions[:, None, :, None].expand(-1, noise.shape[1], -1, noise.shape[3])
            noise = noise.gather(2, index)
    at_once = equal_parts(positions.shape[1], at_once or good_part(quiet, positions, recompute))

    leaf = text._replace(
        embedded=as_leaf(text.embedded),
        hidden=as_leaf(text.hidden),
        keys_values=[(as_leaf(k), as_leaf(v)) for k, v in text.keys_values],
    )
    nll_base, log_p_base = text_loss(quiet.model.output, leaf.hidden, tokens, documents)
    go_back(0.5 * scale * nll_base)
    metrics = {"loss": 0.5 * nll_base.detach(), "nll_base": nll_base.detach()}
    targets = quiet.targets(tokens, positions, documents, log_p_base)
    for start in range(0, positions.shape[1], at_once):
        part = slice(start, start + at_once)
        its_noise = None if noise is None else noise[:, :, part]
        thoughts = think(quiet, tokens, positions[:, part], its_noise, leaf, recompute)
        its_targets = targets._make(x[:, part] for x in targets)
        learned = quiet.learn(
            thoughts, *quiet.talk(thoughts.h_base, thoughts.h_thought), its_targets
        )
        loss, new = sum_up(quiet.further_losses, thoughts, its_targets, learned)
        go_back(scale * loss)
        metrics |= {name: metrics.get(name, 0.0) + value for name, value in new.items()}
        del thoughts, learned, loss  # or their graph would live on while the next part is made

    shared = [(text.embedded, leaf.embedded), (text.hidden, leaf.hidden)]
    for kept, its_leaf in zip(text.keys_values, leaf.keys_values, strict=True):
        shared += zip(kept, its_leaf, strict=True)
    shared = [
        (x, its_leaf.grad)
        for x, its_leaf in shared
        if x.requires_grad and its_leaf.grad is not None
    ]
    before_last()
    if shared:  # else the model is frozen
        tensors, gradients = zip(*shared, strict=True)
        go_back(tensors, gradients)
    return metrics


def think(quiet, tokens, positions, noise, text, recompute):
    """quiet.think, or the same thoughts sampled without a graph and then read as given ones."""
    if not recompute:
        return quiet.think(tokens, None, positions, noise, text)
    with torch.no_grad():
        sampled, log_prob, *_ = quiet.sample_thoughts(text, positions, noise)
    return quiet.think(tokens, sampled, positions, None, text)._replace(log_prob=log_prob)


def sum_up(further_losses, thoughts, targets, learned):
    """The loss of a part of the positions, with further losses (see beyond/), and what is logged of it: means that add
    up over parts. The arguments are those of QuietSTaR.learn and what it returned."""
    further = {name: loss(thoughts, targets, learned) for name, loss in further_losses.items()}
    of_tokens = {"nll_mixed": -learned.log_p_mixed, "gate": learned.gate}
    of_positions = {"reward": learned.reward, "advantage_abs": learned.advantage.abs().mean(-1)}
    of_positions["thought_nll"] = -learned.log_prob.sum(-1) / max(1, learned.log_prob.shape[-1])
    metrics = {"loss": learned.loss, **further}
    metrics |= {name: mean_by(targets.token_share, x) for name, x in of_tokens.items()}
    metrics |= {name: mean_by(targets.position_share, x) for name, x in of_positions.items()}
    return learned.loss + sum(further.values()), {name: x.detach() for name, x in metrics.items()}


def good_part(quiet, positions, recompute, device=None):
    """How many of positions (B, S) should think together. On a GPU all: it is faster with more work. On a CPU so many
    that the hidden states of one step are about 2**16 numbers: more is no faster, and smaller buffers are used again.
    With recompute a quarter of that, as it is there to save memory."""
    (B, S), parts = positions.shape, 1
    if (device or positions.device.type) == "cpu":
        parts = max(1, round(B * S * quiet.config.n_thoughts * quiet.model.config.dim / 2**16))
    return max(1, math.ceil(S / (4 * parts if recompute else parts)))


def equal_parts(S, most):
    """The size of parts of S positions, of at most so many, that are alike but for rounding: a last part of a few
    positions would take as many passes as a whole one."""
    return math.ceil(S / math.ceil(S / most)) if S else 1


def as_leaf(x):
    """x, cut off from how it was made: its gradient stays on it."""
    return x.detach().requires_grad_()


def go_back(tensors, gradients=None):
    """torch.autograd.backward, outside of any autocast that the forward pass may still be in."""
    device = (tensors if torch.is_tensor(tensors) else tensors[0]).device.type
    with torch.autocast(device, enabled=False):
        torch.autograd.backward(tensors, gradients)
