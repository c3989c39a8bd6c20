"""
Whether to think, and how long. The paper leaves open whether a model can tell beforehand what a
thought will bring.

  WithGainHead      a QuietSTaR that learns, beside the rest, what a thought would bring
  worth_its_price   how long a thought pays here, at a price in nats a token
  says_start        a full thought where the model itself would be likely to begin one
  think_some        the `think` of FastQuietSTaR.speak that thinks so long
"""

import torch
import torch.nn as nn

from fast import FastQuietSTaR, token_log_prob
from model import sample
from quiet_star import weighted_mean


class GainHead(nn.Module):
    """The gain in nats that a thought would bring, expected from h_base alone: (..., C) -> (...).
    Of thoughts that can end anywhere, those of 0, 1, .. m tokens: (..., C) -> (..., m + 1).

    It learns by least squares from what training measures anyway: log p of the true tokens after a
    thought minus that without one. Of places that look alike to h_base that is the mean gain: near
    0 where nothing can be known, however surprised the model is. h_base is cut off from the graph,
    so the model does not learn to be predictable.
    """

    def __init__(self, dim, lengths=1):
        super().__init__()
        self.inner = nn.Linear(dim, dim)
        self.last = nn.Linear(dim, lengths)
        nn.init.zeros_(self.last.weight)  # at first thoughts count for nothing, and bring nothing
        nn.init.zeros_(self.last.bias)

    def forward(self, h_base):
        gain = self.last(self.inner(h_base.detach()).relu())
        return gain[..., 0] if self.last.out_features == 1 else gain


class WithGainHead(FastQuietSTaR):
    def __init__(self, model, config, **how):
        super().__init__(model, config, **how)
        several = config.thought_kind == "any_length"
        self.gain_head = GainHead(model.config.dim, config.thought_len + 1 if several else 1)

    def learn(self, thinking, h_mixed, gate, log_p_mixed, targets):
        """The loss of the gain head comes on top: its mean squared error. log_p_mixed is
        (B, N, S, a), or (B, N, S, lengths)."""
        loss, metrics = super().learn(thinking, h_mixed, gate, log_p_mixed, targets)
        gain = (log_p_mixed.detach() - targets.log_p_base[:, None]) * targets.valid[:, None]
        gain = gain.mean(1)
        if self.gain_head.last.out_features == 1:
            gain = gain.sum(-1, keepdim=True)  # (B, S, lengths)
        expected = self.gain_head(thinking.h_base[:, 0, :, 0]).view(gain.shape)
        error = weighted_mean(targets.position_weights, ((expected - gain) ** 2).mean(-1))
        return loss + error, {**metrics, "gain_error": error.detach()}


def worth_its_price(quiet, price):
    """A function of h_base (..., C): how many tokens of a thought pay there (...), -1 where none
    does.

    A thought of s tokens, with start and end, pays if the gain head expects it to gain more nats
    than (s + 2) * price. The length that gains most beyond its price is chosen. Raises ValueError.
    """
    if not hasattr(quiet, "gain_head"):
        raise ValueError("this model has no gain head: train it with --gain_head, or leave --price")
    m, known = quiet.config.thought_len, quiet.gain_head.last.out_features
    lengths = torch.arange(m + 1) if known > 1 else torch.tensor([m])
    if len(lengths) > known:
        raise ValueError(f"thought_len={m}, but the gain head knows at most {known - 1} tokens")

    def length(h_base):
        gain = quiet.gain_head(h_base).view(*h_base.shape[:-1], known)[..., : len(lengths)]
        tokens = lengths.to(gain.device)
        best, at = (gain - price * (tokens + 2)).max(-1)
        return torch.where(best > 0, tokens[at], -1)

    return length


def says_start(quiet, token, p):
    """As `worth_its_price`: a full thought where the model would say `token` more likely than p."""
    m = quiet.config.thought_len
    return lambda h: torch.where(log_p_of(quiet, h, token).exp() > p, m, -1)


def log_p_of(quiet, h, token):
    """log p of one and the same token after each hidden state: (..., C) -> (...)."""
    tokens = h.new_full(h.shape[:-1], token, dtype=torch.long)
    return token_log_prob(quiet.model.output, h, tokens)


def think_some(how_long):
    """The `think` of FastQuietSTaR.speak where thoughts are as long as how_long says: a function of
    h_base (B, C): how many tokens (B,), -1: no thought. A row without a thought takes the base
    prediction, its gate is 0. In thoughts (B, m), -1 stands for a thought that was not thought, -2
    for what is behind its end."""

    def think(quiet, tokens, cache, temperature=0.0, generator=None):
        """As fast.think_next. Rows read on together until the longest thought is over."""
        model, m = quiet.model, quiet.config.thought_len
        end_id = getattr(quiet.config, "end_id", None)  # see beyond/ended.py
        start, end = (vector.expand(len(tokens), 1, -1) for vector in quiet.thought_tokens())
        h_base = model(tokens, cache=cache)[:, -1]
        length = how_long(h_base)
        thinks = length >= 0
        thought = torch.where(thinks, -2, -1)[:, None].repeat(1, m)
        h_thought, x = h_base, start
        for step in range(int(length.max()) + 2 if thinks.any() else 0):
            h = model(x, cache=cache)[:, -1]
            h_thought = torch.where((step == length + 1)[:, None], h, h_thought)
            goes_on, x = step < length, end
            if goes_on.any():
                token = sample(model.logits(h), temperature, generator=generator)
                thought[goes_on, step] = token[goes_on]
                if end_id is not None:
                    length = torch.where(goes_on & (token == end_id), step + 1, length)
                embedded = quiet.next_input(h[:, None], model.tok_embeddings(token[:, None]))
                x = torch.where(goes_on[:, None, None], embedded, end)
        h_mixed, gate = quiet.talk(h_base, h_thought)
        h_mixed = torch.where(thinks[:, None], h_mixed, h_base)
        return h_mixed, thought, torch.where(thinks, gate, 0.0)

    return think
