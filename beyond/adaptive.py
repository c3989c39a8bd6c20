"""
Whether to think, and how long. The paper leaves it open whether a model can tell beforehand what a thought will bring.

  GainHead          learns, beside the rest, what a thought would bring
  worth_its_price   how long a thought pays here, at a price in nats a token
  says_start        a whole thought where the model itself would be likely to begin one
  some_think        generation that thinks so long

Attached from outside: attach_gain_head(quiet) adds to what a step learns (QuietSTaR.further_losses), some_think is the
`think` of generate_with_thoughts.
"""

import math
from functools import partial

import torch
import torch.nn as nn

from lean.log_prob import token_log_prob
from lean.tensors import mean_by
from model import sample
from quiet_star import read_and_think


class GainHead(nn.Module):
    """What would a thought bring here? The expected gain in nats, from h_base alone: (..., C) -> (...). Of thoughts
    that can end anywhere (beyond/any_length.py), what would one of 0, 1, .. m tokens bring: (..., C) -> (..., m + 1).

    It learns, by least squares, from what training measures anyway: log p of the n_true tokens after a thought minus
    that without one, the mean over a position's thoughts. Of many gains at places that look alike to h_base, least
    squares learns the mean: high where thoughts mostly help, near 0 where nothing can be known, however surprised
    the model is (which is why the base model's entropy is no substitute). h_base is cut off from the graph: the
    model does not learn to be predictable.
    """

    def __init__(self, dim, lengths=1):
        super().__init__()
        self.inner = nn.Linear(dim, dim)
        self.last = nn.Linear(dim, lengths)
        nn.init.zeros_(self.last.weight)  # nothing gains at step 0, when thoughts count for nothing
        nn.init.zeros_(self.last.bias)

    def forward(self, h_base):
        gain = self.last(self.inner(h_base.detach()).relu())
        return gain[..., 0] if self.last.out_features == 1 else gain

    def error(self, thoughts, targets, learned):
        """Mean squared error of the expected gains: one of QuietSTaR.further_losses."""
        gain = (learned.log_p_mixed.detach() - targets.log_p_base[:, None]) * targets.valid[
            :, None
        ]  # (B, N, S, a)
        gain = (
            gain.mean(1) if self.last.out_features > 1 else gain.mean(1).sum(-1, keepdim=True)
        )  # (B, S, lengths)
        expected = self(thoughts.h_base[:, 0, :, 0]).view(gain.shape)
        return mean_by(targets.position_share, ((expected - gain) ** 2).mean(-1))


def attach_gain_head(quiet):
    """Give a QuietSTaR a gain head, in place: quiet.gain_head, learned by every step from now on."""
    lengths = quiet.config.thought_len + 1 if quiet.config.thought_kind == "any_length" else 1
    quiet.gain_head = GainHead(quiet.model.config.dim, lengths)
    quiet.further_losses["gain_error"] = quiet.gain_head.error


def worth_its_price(quiet, price):
    """A function of h_base (..., C): how many tokens of a thought pay there, (...), and -1 where none does.

    A thought of s tokens, with start and end, pays if the gain head expects it to gain more nats than (s + 2) * price,
    over the n_true tokens that it was trained on. The length that gains most beyond its price is chosen. Raises
    ValueError if there is no gain head.
    """
    if not hasattr(quiet, "gain_head"):
        raise ValueError(
            "this model has no gain head to say where a thought pays: train it with --gain_head"
        )
    m, any_length = quiet.config.thought_len, quiet.config.thought_kind == "any_length"

    def length(h_base):
        gain = quiet.gain_head(h_base)
        gain = gain[..., : m + 1] if any_length else gain[..., None]  # (..., lengths)
        lengths = torch.arange(m + 1, device=gain.device)[0 if any_length else m :]
        best, at = (gain - price * (lengths + 2)).max(-1)
        return torch.where(best > 0, lengths[at], -1)

    return length


def says_start(quiet, token, p):
    """As `worth_its_price`: a whole thought where the model would say `token` with a probability of more than p."""
    return lambda h: torch.where(
        log_p_of(quiet, h, token) > math.log(p), quiet.config.thought_len, -1
    )


def log_p_of(quiet, h, token):
    """log p of one and the same token after each hidden state: (..., C) -> (...)."""
    return token_log_prob(quiet.model.output, h, h.new_full(h.shape[:-1], token, dtype=torch.long))


def some_think(how_long):
    """The `think` of generate_with_thoughts where rows think so long as how_long says, a function of h_base (B, C): how
    many tokens, (B,), -1: not at all; None: all as long as they can. A row that does not think takes the base
    prediction, its gate is 0. In thoughts (B, m), -1 stands for a thought that was not thought, -2 for what is behind
    its end."""
    return read_and_think if how_long is None else partial(read_and_think_some, how_long=how_long)


@torch.no_grad()
def read_and_think_some(quiet, new, cache, temperature, generator, how_long):
    """As quiet_star.read_and_think. Each forward pass reads one token of each thought that goes on, and nothing else;
    the last token and the end go together where all thoughts end at once."""
    model, m, (start, end) = quiet.model, quiet.config.thought_len, quiet.thought_tokens()
    h_base = model(model.tok_embeddings(new), cache=cache)[:, -1]
    length, h_last = how_long(h_base), h_base.clone()
    thoughts = new.new_full((len(new), m + 1), -1)  # the last column is written by nobody
    thinks = rows = (length >= 0).nonzero()[:, 0]
    thoughts[rows] = -2
    cache = cache.of_rows(rows, room=m + 2)  # nobody else sees what is read from now on
    x, step = start.expand(len(rows), 1, -1), 0
    while len(rows):
        left = (
            length[rows] - step
        )  # tokens of the thought, after the one that is read now; -1: that is its end
        x = torch.cat((x, end.expand(len(rows), 1, -1)), dim=1) if (left == 0).all() else x
        h = model(x, cache=cache)[:, -1]
        over = left < x.shape[1] - 1
        h_last[rows[over]] = h[over]
        if over.any():
            go_on = (~over).nonzero()[:, 0]
            rows, left, h, cache = (
                rows[go_on],
                left[go_on],
                h[go_on],
                cache.of_rows(go_on, room=m + 2),
            )
        if len(rows):
            token = sample(model.logits(h), temperature, generator=generator)
            said = left > 0
            thoughts[rows[said], step] = token[said]
            x = quiet.next_input(h[:, None], model.tok_embeddings(token[:, None]))
            x = torch.where(said[:, None, None], x, end)
        step += 1
    h_mixed, gates = h_base.clone(), h_base.new_zeros(len(new))
    h_mixed[thinks], gates[thinks] = quiet.talk(h_base[thinks], h_last[thinks])
    return h_mixed, thoughts[:, :m], gates
