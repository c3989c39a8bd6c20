"""
Other thoughts, other credit: ideas of the papers around Quiet-STaR, each a setting
(docs/family.md).

  thought_kind   sampled      the paper's: tokens, sampled
                 soft         no token is chosen: the mean of embeddings is read next (PonderLM)
                 latent       the hidden state itself is read next (Coconut)
                 any_length   beyond/any_length.py
                 ended        beyond/ended.py
  credit         advantage    the paper's: reward minus baseline
                 star         1 if the true tokens became the likeliest ones, else 0 (STaR's filter)
                 posterior    N p(thought n | true tokens) - 1, by the likelihoods of N thoughts
  mixing         head         the paper's
                 none         the prediction after the thought stands alone (RLP)
  gain_head      learn what a thought would bring, too (beyond/adaptive.py)
"""

from dataclasses import dataclass, field, fields
from typing import Literal, get_args

import torch

from beyond.adaptive import WithGainHead
from beyond.any_length import AnyLength, AnyLengthWithGainHead
from beyond.ended import Ended
from fast import FastQuietSTaR, likeliest
from quiet_star import QuietSTaR, QuietSTaRConfig


@dataclass
class ThinkingConfig(QuietSTaRConfig):
    thought_kind: Literal["sampled", "any_length", "ended", "soft", "latent"] = "sampled"  # beyond/
    end_id: int | None = field(default=None, metadata={"flag": False})  # ended: that of end_text
    credit: Literal["advantage", "star", "posterior"] = "advantage"  # what makes a thought likelier
    mixing: Literal["head", "none"] = "head"  # none: the prediction after the thought stands alone
    gain_head: bool = False  # also learn what a thought would bring (for sample.py --price)

    def __post_init__(self):
        least = {"thought_len": 0, "n_thoughts": 1, "n_true": 1, "thought_temperature": 0}
        for setting in fields(self):
            name, value, choices = setting.name, getattr(self, setting.name), get_args(setting.type)
            if name in least and value < least[name]:
                raise ValueError(f"{name} must be at least {least[name]}, not {value}")
            if name in ("log_prob_temperature", "embedding_scale") and value <= 0:
                raise ValueError(f"{name} must be above 0, not {value}")
            if str in map(type, choices) and value not in choices:
                raise ValueError(f"{name} must be one of {', '.join(choices)}, not {value!r}")


def thinking_model(model, config, fast=True, **how):
    """A QuietSTaR of a model.Transformer, as a ThinkingConfig asks for it. how: see FastQuietSTaR.
    Without `fast` it has the form of quiet_star.py, which only the paper's own settings have.
    Raises ValueError."""
    other_credit = config.credit != "advantage" or config.mixing != "head"
    if other_credit and (config.thought_kind != "sampled" or config.gain_head):
        raise ValueError("credit and mixing are for sampled thoughts, without gain_head")
    if config.gain_head and config.thought_kind in ("ended", "soft", "latent"):
        raise ValueError(f"gain_head is not for thought_kind={config.thought_kind}")
    kinds = {
        "sampled": WithGainHead if config.gain_head else FastQuietSTaR,
        "any_length": AnyLengthWithGainHead if config.gain_head else AnyLength,
        "ended": Ended,
        "soft": WithoutTokens,
        "latent": WithoutTokens,
    }
    kind = OtherCredit if other_credit else kinds[config.thought_kind]
    if kind is FastQuietSTaR and not fast:
        return QuietSTaR(model, config)
    quiet = kind(model, config, **how)
    if config.mixing == "head":
        return quiet
    quiet.mixing_head.requires_grad_(False)  # nobody reads it
    return with_gate(quiet, 1.0)


def with_gate(quiet, gate):
    """The same model, but its gate is this number, and not what the mixing head says."""

    def talk(h_base, h):
        return torch.lerp(h_base.to(h), h, gate), torch.full_like(h[..., 0], gate)

    other = quiet.with_settings()
    other.talk = talk
    return other


class WithoutTokens(FastQuietSTaR):
    """Thoughts of vectors. They are not drawn, so there is nothing to reinforce: all is learned by
    the gradient that flows through them. The tokens shown are the likeliest ones; nobody reads
    them."""

    SETTINGS = FastQuietSTaR.SETTINGS - {"reinforce_weight", "n_thoughts"}

    def __init__(self, model, config, **how):
        if config.reinforce_weight or config.n_thoughts != 1:
            raise ValueError("soft and latent thoughts: --reinforce_weight=0 --n_thoughts=1")
        super().__init__(model, config, **how)

    def think(self, text, positions, thoughts=None, noise=None):
        if thoughts is not None:
            raise ValueError("soft and latent thoughts are no tokens: none can be given")
        return super().think(text, positions, None, noise)

    def next_input(self, h, embedded):
        if self.config.thought_kind == "latent":
            return h
        return self.model.logits(h).softmax(-1) @ self.model.tok_embeddings.weight


class OtherCredit(FastQuietSTaR):
    SETTINGS = FastQuietSTaR.SETTINGS | {"credit"}

    def credit(self, thinking, log_p, h_mixed, targets):
        reward, advantage = super().credit(thinking, log_p, h_mixed, targets)
        if self.config.credit == "posterior":
            # N p(thought n | true tokens) - 1. For many thoughts this is the gradient of log E p
            # (true tokens | thought) instead of E log p: one good thought is enough. Its mean over
            # the thoughts is 0, as with a baseline.
            advantage = (reward.shape[1] * reward.softmax(1) - 1)[..., None]
        elif self.config.credit == "star":  # a weight of log p(thought), in place of the advantage
            right = likeliest(self.model.output, h_mixed) == targets.tokens[:, None]  # (B, N, S, a)
            right = (right | ~targets.valid[:, None]).all(-1) & targets.valid.any(-1)[:, None]
            advantage = right.to(log_p.dtype)[..., None]
        return reward, advantage
