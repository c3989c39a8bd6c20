"""
Other thoughts, other credit: the ideas of the papers around Quiet-STaR, each a setting (docs/family.md has the table).

  thought_kind   sampled      the paper's: tokens, sampled
                 soft         no token is chosen: what is read next is the predicted mean of the embeddings (PonderLM)
                 latent       what is read next is the hidden state itself (Coconut)
                 any_length   beyond/any_length.py
  credit         advantage    the paper's: reward minus baseline
                 star         1 if the true tokens became the likeliest ones, else 0: what STaR keeps
                 posterior    N p(thought n | true tokens) - 1, by the N thoughts' likelihoods
  mixing         head         the paper's
                 none         the prediction after the thought stands alone (RLP)
"""

from functools import partial

import torch

from beyond.any_length import AnyLength
from lean.log_prob import likeliest
from quiet_star import QuietSTaR, thought_reward


def thinking_model(model, config):
    """A QuietSTaR of a model.Transformer, of the kind that a QuietSTaRConfig asks for. Raises ValueError."""
    kinds = {
        "sampled": QuietSTaR,
        "any_length": AnyLength,
        "soft": SoftThoughts,
        "latent": LatentThoughts,
    }
    quiet = kinds[config.thought_kind](model, config)
    if config.credit != "advantage":
        if config.thought_kind != "sampled":
            raise ValueError(
                f"credit={config.credit} is for sampled thoughts, not for {config.thought_kind} ones"
            )
        quiet.credit = partial(
            {"star": star_credit, "posterior": posterior_credit}[config.credit], quiet
        )
    if config.mixing == "none":
        quiet.talk = lambda h_base, h_thought: (h_thought, torch.ones_like(h_thought[..., 0]))
    return quiet


class WithoutTokens(QuietSTaR):
    """Thoughts of vectors. They are not drawn, so there is nothing to reinforce: all is learned by the gradient that
    flows through them. The tokens that are shown are the likeliest at each step; nobody reads them."""

    def __init__(self, model, config):
        if config.reinforce_weight or config.n_thoughts != 1:
            kind = f"thought_kind={config.thought_kind}"
            raise ValueError(
                f"{kind}: nothing is sampled, so use --reinforce_weight=0 --n_thoughts=1"
            )
        super().__init__(model, config)

    def think(self, tokens, thought_ids=None, *args, **kwargs):
        if thought_ids is not None:
            raise ValueError(
                f"{self.config.thought_kind} thoughts are no tokens: none can be given, nor recomputed"
            )
        return super().think(tokens, None, *args, **kwargs)


class SoftThoughts(WithoutTokens):
    def next_input(self, h, embedded):
        return self.model.logits(h).softmax(-1) @ self.model.tok_embeddings.weight


class LatentThoughts(WithoutTokens):
    def next_input(self, h, embedded):
        return h


def star_credit(quiet, log_p, h_mixed, targets):
    """STaR's filter (Zelikman et al. 2022) as a weight of log p(thought), in place of the advantage."""
    right = likeliest(quiet.model.output, h_mixed) == targets.tokens[:, None]  # (B, N, S, a)
    right = (right | ~targets.valid[:, None]).all(-1) & targets.valid.any(-1)[:, None]
    return thought_reward(log_p, targets.log_p_base, targets.valid), right.to(log_p.dtype)[
        ..., None
    ]


def posterior_credit(quiet, log_p, h_mixed, targets):
    """`posterior_weight` in place of the advantage."""
    reward = thought_reward(log_p, targets.log_p_base, targets.valid)
    return reward, posterior_weight(reward)[..., None]


def posterior_weight(reward):
    """N softmax_n(log p(true tokens | thought n)) - 1, of rewards (B, N, ..). For many thoughts that is the gradient of
    log E p(true tokens | thought) instead of E log p: one good thought is enough. Its mean over the thoughts is 0, as
    with a baseline."""
    return reward.shape[1] * reward.softmax(1) - 1
