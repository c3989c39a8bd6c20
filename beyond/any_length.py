"""
Thoughts that can end after any of their tokens (thought_kind="any_length"). The paper has one
length.

A thought is read out after every prefix. Its last forward pass reads

  t_m, end_0, end_1, .. end_m       where end_s sees the text, start, t_1 .. t_s and itself

so m + 1 predictions of x_{i+1} come out of one thought, each with a gate of its own, for m more
tokens and no further pass. It learns at all lengths at once. With the gain after s tokens,
g_s = log p_s(x_{i+1}) - log p_base(x_{i+1}),

  loss = 1/2 NLL_base + 1/2 mean_s NLL_s  and  REINFORCE with the reward  mean_s g_s.

A token t_k can only have changed the gains of prefixes that contain it. So its log p is weighed by
these alone: the others are on average 0 and would only add noise,

  sum_k  (G_k - baseline) log p(t_k)     with  G_k = 1/(m+1) sum_{s >= k} g_s.
"""

import torch

from beyond.adaptive import WithGainHead
from fast import FastQuietSTaR
from quiet_star import thought_advantage, thought_mask


def prefix_mask(query, key, thought_len, sliding_window=None):
    """`thought_mask` for thoughts with an end after each prefix. Their steps are 0 .. m: start,
    t_1 .. t_m; then m + 1 .. 2m + 1: end_0 .. end_m. A thought of two tokens, its own part of the
    mask:

                     start  t_1  t_2   end_0 end_1 end_2
         start         x     .    .      .     .     .
         t_1           x     x    .      .     .     .      tokens see tokens before them, no end
         t_2           x     x    x      .     .     .
         end_0         x     .    .      x     .     .      end_s sees s tokens, and no other end
         end_1         x     x    .      .     x     .
         end_2         x     x    x      .     .     x
    """
    *where, step = query
    *key_where, key_step = key
    at, key_at = depth(step, thought_len), depth(key_step, thought_len)
    mask = thought_mask((*where, at), (*key_where, key_at), sliding_window)
    step, at, key_step = step[..., :, None], at[..., :, None], key_step[..., None, :]
    # only end_s sees end_s, which does not see t_{s+1}, though they stand at the same place
    sees_token = (step <= thought_len) | (key_step != at)
    return mask & torch.where(key_step > thought_len, key_step == step, sees_token)


def depth(step, thought_len):
    """How far behind start a step stands: t_k at k, end_s at s + 1, as t_{s+1} does."""
    return torch.where(step > thought_len, step - thought_len, step)


class AnyLength(FastQuietSTaR):
    """A QuietSTaR that reads out after every prefix. Where QuietSTaR predicts a true tokens,
    (B, N, S, a), this one predicts the same one m + 1 times."""

    SETTINGS = FastQuietSTaR.SETTINGS - {"n_true"}

    def __init__(self, model, config, **how):
        if config.n_true != 1:
            raise ValueError("thought_kind=any_length predicts one true token: n_true=1")
        super().__init__(model, config, **how)

    def may_see(self, query, key):
        window = self.model.config.sliding_window
        return prefix_mask(query, key, self.config.thought_len, window)

    def depth(self, step):
        return depth(step, self.config.thought_len)

    def after_thought(self, end, true, thoughts, cache):
        """end_0 .. end_m."""
        return end.expand(-1, -1, -1, self.config.thought_len + 1, -1)

    def targets(self, tokens, positions, documents, log_p_text):
        """x_{i+1}, once for each length."""
        targets = super().targets(tokens, positions, documents, log_p_text)
        shape = *positions.shape, self.config.thought_len + 1
        names = "tokens", "valid", "log_p_base", "token_weights"
        wide = {name: getattr(targets, name).expand(shape) for name in names}
        wide["token_weights"] = wide["token_weights"] / shape[-1]
        return targets._replace(**wide)

    def credit(self, thinking, log_p, h_mixed, targets):
        """The mean gain of a thought's prefixes (B, N, S), and the advantage of each of its tokens
        (B, N, S, m)."""
        gain = (log_p - targets.log_p_base[:, None]) * targets.valid[:, None]  # (B, N, S, m + 1)
        to_come = gain.flip(-1).cumsum(-1).flip(-1)[..., 1:] / gain.shape[-1]  # (B, N, S, m)
        config = self.config
        advantage = thought_advantage(to_come, config.clamp_advantage, config.baseline)
        return gain.mean(-1), advantage


class AnyLengthWithGainHead(WithGainHead, AnyLength):
    pass
