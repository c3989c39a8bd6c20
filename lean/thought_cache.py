"""
Attention of parallel thoughts, under a mask that it is given (`thought_mask` in quiet_star.py).

  one softmax over the keys of the text and of all thoughts, under the whole mask     ThoughtCache.attend_whole
  the same numbers, without scores between different thoughts                         ThoughtCache.attend_in_two_parts

Both caches take the place of model.KVCache, but they keep the autograd graph: the forward that samples is the forward
that learns.

Dimension key: as in model.py, and  N thoughts of each position, S positions, R new steps, D steps read so far.
"""

import torch

from model import attention


class TextCache:
    """Plain attention over a text, whose keys and values are kept: by layer, (B, K, T, hd) each."""

    length = 0  # nothing was read before

    def __init__(self):
        self.keys_values = []

    def attend(self, layer, q, k, v, mask):
        self.keys_values.append((k, v))
        return attention(q, k, v, mask)


class ThoughtCache:
    """What thoughts look at: the keys and values of the text, shared by all of them, and each thought's own.

    see         function of query and key, triples (position, thought, step): may it look? (`thought_mask`)
    text        by layer: k and v (B, K, T, hd)
    positions   (B, S) where each position's N thoughts are
    explicit    make the whole mask
    depth       function of steps: how far behind start is each? Its position id is i + 1 + depth. As steps are counted
    """

    def __init__(self, see, text, positions, explicit=False, depth=lambda step: step):
        self.see, self.text, self.positions, self.explicit, self.depth = (
            see,
            text,
            positions,
            explicit,
            depth,
        )
        self.own = [None] * len(text)  # by layer: k and v (B, K, N, S, D, hd)
        self.n_steps = 0  # steps of each thought read (D)

    def expect(self, N, S, R):
        """The next call of the transformer reads R more steps of every thought, its rows in the order (N, S, R): make
        their mask, and return their position ids (B, N*S*R)."""
        steps = torch.arange(self.n_steps + R, device=self.positions.device)
        new = steps[self.n_steps :]
        self.shape, self.n_steps, self.addend = (N, S, R), self.n_steps + R, None
        query, own = self.triples(N, new), self.triples(N, steps)
        text = torch.arange(self.text[0][0].shape[2], device=steps.device)
        text = text, torch.full_like(text, -1), torch.full_like(text, -1)
        if self.explicit:  # all keys there are: (B, N*S*R, T + N*S*D)
            query, own = ([x.flatten(1) for x in triple] for triple in (query, own))
        else:  # those that a thought may see at all: (B, S, R, T + D), alike for all thoughts of a position
            query, own = ([x[:, 0] for x in triple] for triple in (query, own))
        key = [
            torch.cat((x.expand(*y.shape[:-1], -1), y), dim=-1)
            for x, y in zip(text, own, strict=True)
        ]
        self.mask = self.see(query, key)
        ids = self.positions[:, None, :, None] + 1 + self.depth(new)
        return ids.expand(-1, N, -1, -1).flatten(1)

    def triples(self, N, steps):
        """(position, thought, step) of some steps of all thoughts: each (B, N, S, steps)."""
        B, S = self.positions.shape
        number = torch.arange(N, device=steps.device)[:, None, None]
        return [
            x.expand(B, N, S, len(steps)) for x in (self.positions[:, None, :, None], number, steps)
        ]

    def attend(self, layer, q, k, v, mask):
        """q (B, H, N*S*R, hd), k and v (B, K, N*S*R, hd) -> (B, H, N*S*R, hd): remember k and v, then look."""
        own = [x.unflatten(2, self.shape) for x in (k, v)]  # (B, K, N, S, R, hd)
        if self.own[layer] is not None:  # start is read once for all N thoughts: hence the expand
            past = [x.expand(-1, -1, self.shape[0], -1, -1, -1) for x in self.own[layer]]
            own = [torch.cat(pair, dim=4) for pair in zip(past, own, strict=True)]
        self.own[layer] = own
        way = self.attend_whole if self.explicit else self.attend_in_two_parts
        return way(q, *self.text[layer], *own)

    def attend_whole(self, q, k_text, v_text, k_own, v_own):
        """The definition: one softmax over all keys there are."""
        keys, values = (
            torch.cat((a, b.flatten(2, 4)), dim=2) for a, b in ((k_text, k_own), (v_text, v_own))
        )
        return attention(q, keys, values, self.mask[:, None])

    def attend_in_two_parts(self, q, k_text, v_text, k_own, v_own):
        """The fast form (appendix B). The mask is one causal block and then diagonals, so most of its L x L scores need
        not exist. Against the text all thoughts share one product, against themselves each makes one with its D keys,
        and one softmax spans the two parts.

        Letters: b text, h key head, g query head of it, n thought, s position, r new step, t text key, u own key.
        """
        K, T, D = k_text.shape[1], k_text.shape[2], k_own.shape[4]
        q = q.unflatten(1, (K, -1)).unflatten(3, self.shape)  # (B, K, G, N, S, R, hd)
        q = (
            q.movedim(2, 4).contiguous() * q.shape[-1] ** -0.5
        )  # (B, K, N, S, G, R, hd): as the own keys want it
        text_scores = torch.einsum("bhnsgrd,bhtd->bhnsgrt", q, k_text)
        own_scores = torch.einsum("bhnsgrd,bhnsud->bhnsgru", q, k_own)
        if (
            self.addend is None
        ):  # the same for all layers. Adding 0 or -inf needs no work in the backward pass
            addend = torch.zeros_like(self.mask, dtype=text_scores.dtype).masked_fill_(
                ~self.mask, -torch.inf
            )
            self.addend = addend[:, None, None, :, None].split(
                (T, D), dim=-1
            )  # (B, 1, 1, S, 1, R, T or D)
        scores = torch.cat((text_scores + self.addend[0], own_scores + self.addend[1]), dim=-1)
        p_text, p_own = scores.softmax(-1).split((T, D), dim=-1)
        y = torch.einsum("bhnsgrt,bhtd->bhnsgrd", p_text, v_text)
        y = y + torch.einsum("bhnsgru,bhnsud->bhnsgrd", p_own, v_own)
        return y.movedim(4, 2).flatten(3, 5).flatten(1, 2)  # (B, H, N*S*R, hd)
