"""
Small things done to tensors, and means that can be made part by part.
"""

import torch


def take(x, index):
    """Entries of x (B, T, ...) at index (B, ...): (B, index's shape, x's remaining shape)."""
    rows = torch.arange(len(x), device=x.device).view(-1, *[1] * (index.dim() - 1))
    return x[rows, index]


def join(*parts):
    """Steps of thoughts, each (B, N or 1, S, its steps, C), one after the other: (B, N, S, all steps, C)."""
    N = max(x.shape[1] for x in parts)
    return torch.cat([x.expand(-1, N, -1, -1, -1) for x in parts], dim=3)


def padded(rows, device="cpu"):
    """Rows of ids, lists of unequal length, filled up behind them -> tokens (B, T), lengths (B,)."""
    lengths = torch.tensor([len(row) for row in rows])
    tokens = torch.nn.utils.rnn.pad_sequence([torch.tensor(row) for row in rows], batch_first=True)
    return tokens.to(device), lengths.to(device)


def shares(valid):
    """What each entry of valid (B, ...), bool, counts in a mean: of a text's valid entries, then of all texts. So the
    means of parts add up to the mean of all. Entries that are not valid count 0; float64."""
    count = valid.flatten(1).sum(1).clamp(min=1).view(-1, *[1] * (valid.dim() - 1))
    return valid / (count.double() * len(valid))


def mean_by(share, values):
    """The sum of share * values. Values of N thoughts, (B, N, ...) for a share (B, ...), are averaged first."""
    values = values.mean(1) if values.dim() > share.dim() else values
    return torch.where(share > 0, values * share.to(values.dtype), 0).sum()  # where: 0 * inf is nan


def check(config, tokens, thoughts=None, positions=None, noise=None):
    """Refuse what QuietSTaR.forward cannot take, in one line (ValueError)."""
    N, m, (B, L) = config.n_thoughts, config.thought_len, tokens.shape
    S = L - config.n_true if positions is None else positions.shape[-1]
    if S < 1:
        raise ValueError(
            f"{L} tokens are too few: thinking needs at least n_true + 1 = {config.n_true + 1}"
        )
    for name, x, wanted in (("positions", positions, (B, S)), ("noise", noise, (B, N, S, m))):
        if x is not None and tuple(x.shape) != wanted:
            raise ValueError(f"{name} of shape {wanted} are wanted, not {tuple(x.shape)}")
    if positions is not None and (positions.min() < 0 or positions.max() >= L):
        raise ValueError(f"positions must lie in the text, 0 to {L - 1}")
    if thoughts is not None and (
        thoughts.dim() != 4 or thoughts.shape[::2] != (B, S) or thoughts.shape[3] != m
    ):
        raise ValueError(
            f"thoughts of shape ({B}, any, {S}, {m}) are wanted, not {tuple(thoughts.shape)}"
        )
