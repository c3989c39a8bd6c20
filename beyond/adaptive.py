"""
Where to think. The paper leaves it open whether a model can tell beforehand where a thought will help.

  hard_positions      training: think only where the text alone leaves the model uncertain
  start_positions     training: think only where the text could have written its steps out, and does not
  GainHead            learns, beside the rest, what a thought would bring
  expects_more_than   generation: think only where the gain head expects more than so many nats

Attached from outside: attach_gain_head(quiet) adds to what a step learns (QuietSTaR.further_losses); the other two say
where to think (`where` of QuietSTaR.backward and generate_with_thoughts).
"""

import math

import torch
import torch.nn as nn

from lean.log_prob import entropy, token_log_prob
from lean.tensors import mean_by
from quiet_star import thought_reward


class GainHead(nn.Module):
    """What would a thought bring here? The expected gain in nats, from h_base alone: (..., C) -> (...).

    It learns, by least squares, from what training measures anyway: log p of the n_true tokens after a thought minus
    that without one, the mean over a position's thoughts. Of many gains at places that look alike to h_base, least
    squares learns the mean: high where thoughts mostly help, near 0 where nothing can be known, however surprised
    the model is (which is why the base model's entropy is no substitute). h_base is cut off from the graph: the
    model does not learn to be predictable.
    """

    def __init__(self, dim):
        super().__init__()
        self.inner = nn.Linear(dim, dim)
        self.last = nn.Linear(dim, 1)
        nn.init.zeros_(self.last.weight)  # nothing gains at step 0, when thoughts count for nothing
        nn.init.zeros_(self.last.bias)

    def forward(self, h_base):
        return self.last(self.inner(h_base.detach()).relu())[..., 0]

    def error(self, thoughts, targets, learned):
        """Mean squared error of the expected gains: one of QuietSTaR.further_losses."""
        gain = thought_reward(learned.log_p_mixed.detach(), targets.log_p_base, targets.valid).mean(1)  # (B, S)
        return mean_by(targets.position_share, (self(thoughts.h_base[:, 0, :, 0]) - gain) ** 2)


def attach_gain_head(quiet):
    """Give a QuietSTaR a gain head, in place: quiet.gain_head, learned by every step from now on."""
    quiet.gain_head = GainHead(quiet.model.config.dim)
    quiet.further_losses["gain_error"] = quiet.gain_head.error


def expects_more_than(quiet, nats):
    """`where` of generate_with_thoughts: rows where the gain head expects a thought to gain more than so many nats over
    the n_true tokens that it was trained on. Raises ValueError if there is no gain head."""
    if not hasattr(quiet, "gain_head"):
        raise ValueError("this model has no gain head to say where a thought pays: train it with --gain_head")
    return lambda h_base: quiet.gain_head(h_base) > nats


def hard_positions(quiet, h_text, share, noise=None):
    """A share of the positions that may think, (B, S) in ascending order: where the model is least certain after the
    text alone, h_text (B, L, C). Training there alone costs less nearly in proportion: the one way below a forward and
    backward pass for each token of each thought.

    noise: uniform numbers (B, all that may think), to draw positions in proportion to their entropy instead, each at
    most once (Gumbel top-k): what no thought can foresee is uncertain too, and crowds out the rest.
    """
    hardness = entropy(quiet.model.output, h_text[:, : h_text.shape[1] - quiet.config.n_true])
    if noise is not None:
        hardness = hardness.clamp(min=1e-9).log() - (-noise.to(hardness).clamp(min=1e-9).log()).log()
    return hardness.topk(share_of(share, hardness.shape[1])).indices.sort().values


def start_positions(quiet, tokens, h_text, share, token):
    """A share of the positions that may think, (B, S) in ascending order: where the model, after the text h_text
    (B, L, C), is likeliest to say `token`, and the text tokens (B, L) does not. A text that sometimes writes its steps,
    behind a mark such as "<<", shows where they could stand. Where it writes them, there is nothing to think: a thought
    would only have to foresee the mark."""
    h = h_text[:, : h_text.shape[1] - quiet.config.n_true].detach()
    log_p = log_p_of(quiet, h, token).masked_fill(tokens[:, 1 : h.shape[1] + 1] == token, -math.inf)
    return log_p.topk(share_of(share, log_p.shape[1])).indices.sort().values


def start_token(tokenizer, text):
    """The id for `start_positions`. Raises ValueError if the text is not one token."""
    ids = tokenizer.encode(text)
    if len(ids) != 1:
        raise ValueError(f"think_at=start wants a start_text of one token, and {text!r} is {len(ids)}")
    return ids[0]


def says_start(quiet, token, p):
    """`where` of generate_with_thoughts: rows where the model would say `token` with a probability of more than p."""
    return lambda h: log_p_of(quiet, h, token) > math.log(p)


def log_p_of(quiet, h, token):
    """log p of one and the same token after each hidden state: (..., C) -> (...)."""
    return token_log_prob(quiet.model.output, h, h.new_full(h.shape[:-1], token, dtype=torch.long))


def random_positions(share, noise):
    """A share of the positions that may think, (B, S) in ascending order, drawn by noise (B, all that may think)."""
    return noise.topk(share_of(share, noise.shape[1])).indices.sort().values


def share_of(share, count):
    """How many of count a share is: at least one."""
    return max(1, round(share * count))
