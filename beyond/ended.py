"""
Thoughts that end where they say so (thought_kind="ended"). In the paper all are equally long.

thought_len tokens are sampled, and what stands behind the first end_id does not count: neither
`end` nor a true token sees it, its log p is not reinforced, and `end` has the position right behind
end_id. A thought without end_id is cut at thought_len. A thought of up to four tokens that ends
after two:

                 start  t_1  t_2  t_3  t_4   end
     t_2 = end_id  x     x    x    .    .     .
     end           x     x    x    .    .     x      position id i + 1 + 3, as t_3
"""

import torch

from beyond.adaptive import think_some
from fast import FastQuietSTaR
from quiet_star import thought_mask


class Ended(FastQuietSTaR):
    def __init__(self, model, config, **how):
        if config.end_id is None:
            raise ValueError("thought_kind=ended wants the token that ends a thought: --end_text")
        super().__init__(model, config, **how)

    def counts(self, thoughts):
        """Which tokens of thoughts (..., m) do not stand behind the first end_id, bool."""
        ends = (thoughts == self.config.end_id).int()
        return ends.cumsum(-1) - ends == 0

    def after_thought(self, end, true, thoughts, cache):
        m, length = thoughts.shape[-1], self.counts(thoughts).sum(-1, keepdim=True)  # (B, N, S, 1)

        def depth(step):
            """Steps (R,) -> how far behind start they stand (B, N, S, R)."""
            return torch.where(step > m, step - m + length, step)

        def may_see(query, key):
            """As thought_mask, of each thought: (B, N, S, R, L + D)."""
            (position, thought, step), (key_position, key_thought, key_step) = query, key
            query = position[:, None], thought[:, None], depth(step)
            key = key_position[:, None], key_thought, depth(key_step)
            mask = thought_mask(query, key, self.model.config.sliding_window)
            behind = (key_step > length) & (key_step <= m)  # (B, N, S, L + D)
            return mask & ~((step > m)[:, None] & behind[..., None, :])

        if m:  # without tokens nothing can end, and all N thoughts are read as one
            cache.depth, cache.may_see = depth, may_see  # from here on
        return super().after_thought(end, true, thoughts, cache)

    def credit(self, thinking, log_p, h_mixed, targets):
        reward, advantage = super().credit(thinking, log_p, h_mixed, targets)
        return reward, advantage * self.counts(thinking.thoughts)  # (B, N, S, m)

    def speak(self, *args, think=None, **kwargs):
        m = self.config.thought_len
        everywhere = think_some(lambda h: torch.full(h.shape[:-1], m, device=h.device))
        return super().speak(*args, think=think or everywhere, **kwargs)
