"""
Quiet-STaR: a language model that thinks before it speaks (Zelikman et al. 2024, arXiv 2403.09629).

Algorithm 1 of the paper, and the function here that does each line:

  for every text x_0 .. x_{L-1} of the batch
    h_base    <- read the text                                        QuietSTaR.think    (first forward)
    for every position i, in parallel:                                thought_mask       (who may see what)
      for each of n_thoughts thoughts:                                THINK
        t_1 .. t_m ~ model( . | x_0 .. x_i, start)                    QuietSTaR.think
        h_thought <- read t_1 .. t_m, end, x_{i+1} .. x_{i+a-1}       QuietSTaR.think    (last forward)
                                                                      TALK
        w       <- mixing head(h_base, h_thought)                     MixingHead
        p_mixed <- softmax(head((1-w) h_base + w h_thought))          QuietSTaR.talk
                                                                      LEARN
        reward    = sum_j log p_mixed(x_{i+j}) - log p_base(x_{i+j})  thought_reward
        advantage = reward - baseline of the position's thoughts      thought_advantage
        loss      = 1/2 NLL_base + 1/2 NLL_mixed                      QuietSTaR.learn
                    - reinforce_weight * advantage * log p(t_1 .. t_m)

Beyond the paper, which leaves it open: a small head learns to tell beforehand what a thought would bring (GainHead), so
that `generate_with_thoughts` can think only where it pays.

Symbols
  B  texts                   L  tokens of a text (read or only predicted)    C, V  width, vocabulary
  S  positions that think (all that have n_true targets, unless chosen)
  N  n_thoughts              thoughts sampled per position
  m  thought_len             sampled tokens of a thought, without start and end  (the paper's t; the release's
                             n_ahead is m + 3)
  a  n_true                  true tokens predicted after the thought, teacher-forced  (the release's n_ahead_talk)
  R  steps of a thought read in one forward; D steps of a thought read so far

A thought of position i, which has read x_0 .. x_i and is about to predict x_{i+1}, is the sequence
  start, t_1 .. t_m, end, x_{i+1} .. x_{i+a-1}          steps s = 0 .. m + a, at position ids i + 1 + s.
Reading `end` predicts x_{i+1}, reading x_{i+1} predicts x_{i+2}, and so on: a predictions.
"""

from dataclasses import dataclass, replace
from typing import NamedTuple

import torch
import torch.nn as nn
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from model import KVCache, all_ended, attention, own_token, sample

REWARDS, BASELINES = ("mixed", "thought"), ("others", "all", "none")


@dataclass
class QuietSTaRConfig:
    thought_len: int = 4  # sampled tokens in a thought, without start and end (m); 0: start and end alone ("pause")
    n_thoughts: int = 2  # thoughts sampled per position (N); 1: the reward itself is the advantage
    n_true: int = 1  # true tokens each thought is scored on (a); the paper: more, for real text
    reinforce_weight: float = 1.0  # weight of the REINFORCE term in the loss; 0: none
    reward_on: str = "mixed"  # score thoughts by the "mixed" prediction (paper) or by the ungated "thought" branch
    baseline: str = "others"  # a thought's baseline: mean reward of its position's "others", of "all", or "none"
    clamp_advantage: bool = True  # drop negative advantages, as the paper does: steadier, but biased
    thought_temperature: float = 1.0  # thoughts are sampled at this temperature; 0: greedily
    log_prob_temperature: float = 1.0  # temperature of log p(thought) in the REINFORCE term (the release: 3)
    embedding_scale: float = 20.0  # start/end are stored divided by this, so that Adam moves them that much faster
    explicit_mask: bool = False  # attend through the whole boolean mask: slow; the definition of the fast form

    def __post_init__(self):
        for name, least in (("thought_len", 0), ("n_thoughts", 1), ("n_true", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        for name, allowed in (("reward_on", REWARDS), ("baseline", BASELINES)):
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        if not (self.thought_temperature >= 0 and self.log_prob_temperature > 0 and self.embedding_scale > 0):
            raise ValueError("thought_temperature must be >= 0, log_prob_temperature and embedding_scale > 0")

    @property
    def steps(self):
        """Tokens that a thought reads: start, t_1 .. t_m, end, x_{i+1} .. x_{i+a-1}."""
        return self.thought_len + 2 + self.n_true - 1


# ----------------------------------------------------------------------------------------------------------------------
# 1. Parallel thoughts: the mask (section 4.2, figure 3)


def thought_mask(query, key, sliding_window=None):
    """Who may see whom when every position of a text thinks at once. This boolean mask defines the method.

    A token is three integers: `position` i of the text, `thought` n (-1 for the text's own tokens) and `step` s of
    the thought (-1 for the text's own tokens). Its position id is i + 1 + s: for the text, i.

    query, key: triples (position, thought, step) of tensors (..., Q) and (..., K). Returns (..., Q, K): may it look?

    Three text tokens a b c, each with a thought of two steps (a' a", ...), laid out step by step:

              a  b  c    a' b' c'   a" b" c"
         a    x  .  .    .  .  .    .  .  .
         b    x  x  .    .  .  .    .  .  .      the text sees the text before it, and never a thought
         c    x  x  x    .  .  .    .  .  .
         a'   x  .  .    x  .  .    .  .  .
         b'   x  x  .    .  x  .    .  .  .      a thought sees the text up to its position ...
         c'   x  x  x    .  .  x    .  .  .
         a"   x  .  .    x  .  .    x  .  .
         b"   x  x  .    .  x  .    .  x  .      ... and itself, but no other thought: one causal block, then diagonals
         c"   x  x  x    .  .  x    .  .  x
    """
    (qi, qn, qs), (ki, kn, ks) = ([x[..., :, None] for x in query], [x[..., None, :] for x in key])
    see_text = (ks < 0) & (ki <= qi)
    see_self = (ks >= 0) & (ki == qi) & (kn == qn) & (ks <= qs)
    mask = see_text | see_self
    if sliding_window is not None:  # Mistral's window counts position ids, in thoughts as in text
        mask &= (qi + qs) - (ki + ks) < sliding_window
    return mask


def thought_layout(T, steps):
    """The triples (position, thought, step), each (T + steps * T,), of a text whose every position has one thought:
    T text tokens, then T tokens of step 0, T of step 1, ... (the order of the picture above)."""
    step = torch.arange(-1, steps).repeat_interleave(T)
    thought = step.clamp(max=0)  # -1 for the text; the one thought is number 0
    return torch.arange(T).repeat(steps + 1), thought, step


class ThoughtCache:
    """What thoughts look at: the keys and values of the text, shared by all its thoughts, and each thought's own.

    Takes the place of model.KVCache, but keeps the autograd graph: the forward that samples is the forward that learns.
    One call of the transformer reads T new tokens of text (or none) and then R more steps of every thought, its rows in
    the order (N, S, R).
    """

    def __init__(self, config, positions, explicit=False, text=None):
        self.positions = positions  # (B, S) the positions that think
        self.sliding_window, self.explicit = config.sliding_window, explicit
        self.text = [None] * config.n_layers if text is None else text.keys_values  # by layer: k and v (B, K, T, hd)
        self.own = [None] * config.n_layers  # by layer: k and v (B, K, N, S, D, hd)
        self.n_text = 0 if text is None else text.hidden.shape[1]  # text tokens read
        self.n_steps = 0  # steps of each thought read (D)

    def expect(self, T, N, R):
        """Call this before every call of the transformer: it will read T text tokens and R steps of N thoughts. Returns
        its position ids (B, T + N*S*R)."""
        B, S = self.positions.shape
        device = self.positions.device
        self.shape = N, S, R
        self.new_text = torch.arange(self.n_text, self.n_text + T, device=device)
        self.new_steps = torch.arange(self.n_steps, self.n_steps + R, device=device)
        self.n_text, self.n_steps = self.n_text + T, self.n_steps + R
        self.masks = None  # made when the first layer asks for them, and the same for all others
        ids = (self.positions[:, None, :, None] + 1 + self.new_steps).expand(B, N, S, R)
        return torch.cat((self.new_text.expand(B, T), ids.flatten(1)), dim=1)  # (B, T + N*S*R)

    def attend(self, layer, q, k, v, mask):
        """q (B, H, T + N*S*R, hd), k and v (B, K, ...) -> (B, H, T + N*S*R, hd): remember k and v, then look."""
        T, (N, S, R) = len(self.new_text), self.shape
        parts = T, N * S * R  # split and not sliced: the gradients of two slices are two full tensors, added
        (q_text, q_thought), *(k_parts, v_parts) = (x.split(parts, dim=2) for x in (q, k, v))
        if T:
            self.text[layer] = k_parts[0], v_parts[0]
        if not N * S * R:  # the text alone
            return self.attend_text(q_text, *self.text[layer])
        own = [x[1].unflatten(2, (N, S, R)) for x in (k_parts, v_parts)]  # (B, K, N, S, R, hd)
        if self.own[layer] is not None:  # the start is read once for all N thoughts: hence the expand
            past = [x.expand(-1, -1, N, -1, -1, -1) for x in self.own[layer]]
            own = [torch.cat(pair, dim=4) for pair in zip(past, own, strict=True)]
        self.own[layer] = own
        if self.explicit:
            return self.attend_explicit(q, *self.text[layer], *own)
        y_thought = self.attend_thoughts(q_thought, *self.text[layer], *own)
        return torch.cat((self.attend_text(q_text, *self.text[layer]), y_thought), dim=2) if T else y_thought

    def attend_explicit(self, q, k_text, v_text, k_own, v_own):
        """The definition: one softmax over all keys there are, under `thought_mask`."""
        keys, values = (torch.cat((a, b.flatten(2, 4)), dim=2) for a, b in ((k_text, k_own), (v_text, v_own)))
        steps, N = torch.arange(self.n_steps, device=q.device), k_own.shape[2]
        query = self.coordinates(self.new_text, self.shape[0], self.new_steps)
        key = self.coordinates(torch.arange(self.n_text, device=q.device), N, steps)
        return attention(q, keys, values, thought_mask(query, key, self.sliding_window)[:, None])

    def coordinates(self, text, N, steps):
        """(position, thought, step) of text tokens followed by thoughts in the order (N, S, steps): each (B, ...)."""
        B, S = self.positions.shape
        shape = B, N, S, len(steps)
        i = self.positions[:, None, :, None].expand(shape).flatten(1)
        n = torch.arange(N, device=text.device)[:, None, None].expand(shape).flatten(1)
        s = steps.expand(shape).flatten(1)
        none = torch.full((B, len(text)), -1, device=text.device)
        return tuple(torch.cat(pair, dim=1) for pair in ((text.expand(B, -1), i), (none, n), (none, s)))

    # The fast form of the same (appendix B). The mask is one causal block and then diagonals, so most of its L x L
    # scores need not exist: against the text they are one product with (T, hd) keys that all thoughts share, against
    # one's own thought a product with D keys. One softmax spans the two parts.

    def attend_text(self, q, k, v):
        if self.sliding_window is None or self.n_text <= self.sliding_window:
            return attention(q, k, v, None)  # plain causal
        none = torch.full_like(self.new_text, -1)
        text = self.new_text, none, none
        return attention(q, k, v, thought_mask(text, text, self.sliding_window))

    def attend_thoughts(self, q, k_text, v_text, k_own, v_own):
        B, K, N, S, D, hd = k_own.shape
        N, S, R = self.shape
        T, G = k_text.shape[2], q.shape[1] // K  # G query heads share a key head
        # (B, K, N, S, G, R, hd): each thought's G*R queries side by side, as its own keys want them
        q = q.view(B, K, G, N, S, R, hd).permute(0, 1, 3, 4, 2, 5, 6) * hd**-0.5
        text_scores = (q.reshape(B, K, -1, hd) @ k_text.transpose(2, 3)).view(B, K, N, S, G, R, T)
        own_scores = (q.reshape(B, K, N, S, G * R, hd) @ k_own.transpose(4, 5)).view(B, K, N, S, G, R, D)

        self.masks = self.masks or self.make_masks(T, D, text_scores.dtype)
        scores = torch.cat([x + mask for x, mask in zip((text_scores, own_scores), self.masks, strict=True)], dim=-1)
        p_text, p_own = scores.softmax(-1).split((T, D), dim=-1)
        y = (p_text.reshape(B, K, -1, T) @ v_text).view(B, K, N, S, G * R, hd)
        y = y + p_own.reshape(B, K, N, S, G * R, D) @ v_own
        return y.view(B, K, N, S, G, R, hd).permute(0, 1, 4, 2, 3, 5, 6).reshape(B, K * G, N * S * R, hd)

    def make_masks(self, T, D, dtype):
        """`thought_mask` of the new steps, in two parts to be added to scores: against the text (B, 1, 1, S, 1, 1 or R,
        T), against one's own thought (R, D). Adding 0 or -inf needs no work on the way back; filling would."""
        device = self.positions.device
        here, text = self.positions[:, None, None, :, None, None, None], torch.arange(T, device=device)
        step, past = self.new_steps[:, None], torch.arange(D, device=device)
        see_text, see_own = text <= here, past <= step
        if self.sliding_window is not None:
            see_text = see_text & (here + 1 + step - text < self.sliding_window)
            see_own = see_own & (step - past < self.sliding_window)
        return [torch.zeros_like(see, dtype=dtype).masked_fill_(~see, -torch.inf) for see in (see_text, see_own)]


# ----------------------------------------------------------------------------------------------------------------------
# 2. The start and end of a thought (section 4.2), and the mixing head (section 4.3)


class ThoughtTokens(nn.Module):
    """<|startofthought|> and <|endofthought|>: two learned vectors outside of the vocabulary, so never sampled.

    They must learn faster than the model. A larger gradient would change nothing under Adam, which divides by it; so
    the parameter is e / scale and the forward multiplies by scale: a step of size lr moves the vector by scale * lr.
    """

    def __init__(self, dim, scale):
        super().__init__()
        self.scale = scale
        self.start = nn.Parameter(torch.randn(dim) * 0.02 / scale)
        self.end = nn.Parameter(torch.randn(dim) * 0.02 / scale)

    @torch.no_grad()
    def init_from(self, start, end=None):
        """Begin with these vectors (C,), or both with the first. The paper takes the embedding of an em dash, which
        opens and closes an aside."""
        for parameter, vector in ((self.start, start), (self.end, start if end is None else end)):
            if vector.shape != parameter.shape:
                raise ValueError(f"a vector of shape {tuple(parameter.shape)} is wanted, not {tuple(vector.shape)}")
            parameter.copy_(vector / self.scale)

    def forward(self):
        return self.start * self.scale, self.end * self.scale  # (C,), (C,)


class MixingHead(nn.Module):
    """The gate w: how much of the prediction after the thought goes into the mix, (..., C), (..., C) -> (..., 1).

    w multiplies the THOUGHT branch (as in the release; Algorithm 1 puts it on the other). Its last layer starts at zero
    and no sigmoid follows, so that at step 0 the model is exactly the base model: a gate of a half would harm it from
    the first step on.
    """

    def __init__(self, dim):
        super().__init__()
        self.base = nn.Linear(dim, dim)  # these two are one Linear(2C, C) of [h_base ; h_thought], split so that the
        self.thought = nn.Linear(dim, dim, bias=False)  # N thoughts of a position share the product with h_base
        self.inner = nn.Linear(dim, dim)
        self.last = nn.Linear(dim, 1, bias=False)
        nn.init.zeros_(self.last.weight)

    def forward(self, h_base, h_thought):
        return self.last(self.inner((self.base(h_base) + self.thought(h_thought)).relu()).relu())


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


# ----------------------------------------------------------------------------------------------------------------------
# 3. Reward and baseline (section 4.4)


def thought_reward(log_p, log_p_base, valid):
    """r = sum over the a true tokens of log p(x) with the thought - log p(x) without it: (B, N, S, a) -> (B, N, S).

    log_p_base, valid (B, S, a): predictions of no true token (past the text's end, say) earn nothing.
    """
    return ((log_p - log_p_base[:, None]) * valid[:, None]).sum(-1)


def thought_advantage(reward, clamp, baseline="others"):
    """reward - baseline, (B, N, S): the baseline of a thought is the mean reward of the position's *other* thoughts.

    Leaving the thought itself out keeps the gradient unbiased; the mean over "all" N only shrinks it by (N-1)/N. It is
    never divided by a standard deviation (explodes when rewards agree) nor taken over other positions (whose difficulty
    would leak in). One thought has no others: its baseline is 0, as with "none", "with minus without the thought".
    clamp drops negative advantages, as the paper does: it no longer follows the gradient of the expected reward.
    """
    N = reward.shape[1]
    if baseline == "all":
        advantage = reward - reward.mean(1, keepdim=True)
    elif baseline == "others" and N > 1:
        advantage = reward - (reward.sum(1, keepdim=True) - reward) / (N - 1)
    else:
        advantage = reward
    return advantage.clamp(min=0) if clamp else advantage


def token_log_prob(head, hidden, tokens, temperature=1.0, known=None, chunk_numbers=None):
    """log softmax(head(hidden) / temperature)[tokens]: hidden (..., C), tokens (...) -> (...).

    known: the result, if it was computed already, when the tokens were sampled: only the gradient is left to do.
    """
    rows = max(1, (chunk_numbers or CHUNK_NUMBERS.get(hidden.device.type, 2**25)) // head.out_features)
    known = None if known is None else known.reshape(-1)
    h, t = hidden.reshape(-1, hidden.shape[-1]), tokens.reshape(-1)
    return TokenLogProb.apply(h, head.weight, t, temperature, known, rows).view(tokens.shape)


CHUNK_NUMBERS = {"cpu": 2**20, "cuda": 2**25}  # small enough for a cache, large enough to keep a GPU busy


class TokenLogProb(torch.autograd.Function):
    """The above, of rows: hidden (n, C), weight (V, C), tokens (n,).

    Logits are V numbers a row, far more than anything else here. They are made some rows at a time, and made again on
    the way back instead of being kept; and there only for rows whose gradient is not 0: with clamp_advantage, every
    thought below its baseline drops out. (On a GPU, to look for them waits for all work before: cheaper than logits.)
    """

    @staticmethod
    def forward(ctx, hidden, weight, tokens, temperature, known, rows):
        device = hidden.device.type
        ctx.dtype = torch.get_autocast_dtype(device) if torch.is_autocast_enabled(device) else weight.dtype
        ctx.save_for_backward(hidden, weight, tokens)
        ctx.temperature, ctx.rows = temperature, rows
        if known is not None:
            return known.clone()
        weight, parts = weight.to(ctx.dtype), zip(hidden.split(rows), tokens.split(rows), strict=True)
        return torch.cat([chosen(h.to(ctx.dtype) @ weight.T, t, temperature) for h, t in parts])

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        hidden, weight, tokens = ctx.saved_tensors
        wide = torch.promote_types(weight.dtype, torch.float32)  # chunks are not added up in bfloat16
        d_hidden, d_weight = torch.zeros_like(hidden), torch.zeros_like(weight, dtype=wide)
        kind, weight = weight.dtype, weight.to(ctx.dtype)
        for some in gradient.nonzero()[:, 0].split(ctx.rows):
            h, t, slope = hidden[some].to(ctx.dtype), tokens[some], gradient[some] / ctx.temperature
            # d log p(t) / d logits = (1 at t, else 0) - p
            d_logits = tempered(h @ weight.T, ctx.temperature).softmax(-1).mul_(-slope[:, None])
            d_logits[torch.arange(len(t), device=t.device), t] += slope
            d_logits = d_logits.to(ctx.dtype)
            d_hidden[some] = (d_logits @ weight).to(hidden.dtype)
            if ctx.dtype == d_weight.dtype:
                d_weight.addmm_(d_logits.T, h)
            else:
                d_weight += d_logits.T @ h
        return d_hidden, d_weight.to(kind), None, None, None, None


def chosen(logits, tokens, temperature=1.0):
    """log softmax(logits / temperature)[tokens]: (..., V), (...) -> (...)."""
    logits = tempered(logits, temperature).reshape(-1, logits.shape[-1])
    return -F.cross_entropy(logits, tokens.reshape(-1), reduction="none").view(tokens.shape)


def tempered(logits, temperature):
    """logits / temperature, in float32 at least."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits if temperature == 1 else logits / temperature


class LateEmbedding(torch.autograd.Function):
    """Zeros (..., C) for tokens (...) that are not known yet, to be added to their embeddings.

    Looking up each token when it is sampled would make one gradient as large as the table per step. So they are looked
    up without a gradient, and the backward pass of these zeros makes the table's gradient once, for all of them.
    """

    @staticmethod
    def forward(ctx, table, tokens):
        ctx.tokens, ctx.rows = tokens, len(table)  # saved tensors may not be filled in afterwards; these are
        return table.new_zeros(()).expand(*tokens.shape, table.shape[1])

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        return torch.ops.aten.embedding_dense_backward(gradient, ctx.tokens, ctx.rows, -1, False), None


@torch.no_grad()
def entropy(head, hidden):
    """Entropy of softmax(head(hidden)) in nats: hidden (..., C) -> (...). Chunk by chunk, as token_log_prob."""
    chunk_numbers = CHUNK_NUMBERS.get(hidden.device.type, 2**25)
    rows = hidden.reshape(-1, hidden.shape[-1]).split(max(1, chunk_numbers // head.out_features))
    log_p = (head(some).float().log_softmax(-1) for some in rows)
    return torch.cat([-(x.exp() * x).sum(-1) for x in log_p]).view(hidden.shape[:-1])


def text_mean(values, valid, of_all=None):
    """Mean over the valid entries of each text (B, ...), then over texts: a batch's loss is the mean of its parts'.

    of_all: if values are a part of all entries, which of all are valid. Their sum is divided by the number of those,
    so that the means of the parts add up to the mean of all.
    """
    copies = values.flatten(1).shape[1] // valid[0].numel()  # valid may be the same for all thoughts
    count = (valid if of_all is None else of_all).flatten(1).sum(1) * copies
    values = torch.where(valid, values, 0).flatten(1)  # where, not times: 0 * inf is nan
    return (values.sum(1) / count.clamp(min=1)).mean()


# ----------------------------------------------------------------------------------------------------------------------
# 4. Think, talk, learn (Algorithm 1)


class Thoughts(NamedTuple):
    """What `think` returns: the thoughts, and the hidden states that talking and learning need."""

    tokens: torch.Tensor  # (B, N, S, m) t_1 .. t_m
    positions: torch.Tensor  # (B, S) i: where each was thought
    h_text: torch.Tensor  # (B, L or L-1, C) after each text token, without thoughts
    h_base: torch.Tensor  # (B, 1, S, a, C) at position i + j - 1, about to predict x_{i+j}, without the thought
    h_thought: torch.Tensor  # (B, N, S, a, C) the same, having read the thought
    h_policy: torch.Tensor  # (B, N, S, m, C) about to say t_1 .. t_m
    log_prob: torch.Tensor | None  # (B, N, S, m) of t_1 .. t_m, without a gradient; None for thoughts that were given


class Text(NamedTuple):
    """A text that was read, and what its thoughts look at."""

    embedded: torch.Tensor  # (B, L, C)
    hidden: torch.Tensor  # (B, T, C)
    keys_values: list  # by layer: keys and values (B, K, T, hd)


class Learned(NamedTuple):
    """What `learn` returns. Entries that are not `valid` (no such token, another document) mean nothing, and count
    for nothing in the loss."""

    loss: torch.Tensor  # () 1/2 NLL_base + 1/2 NLL_mixed + reinforce_weight * reinforce
    reinforce: torch.Tensor  # () the REINFORCE term
    gain_error: torch.Tensor  # () mean squared error of the predicted gains, apart: only the gain head learns from it
    nll_base: torch.Tensor  # (B, L-1) of x_1 .. x_{L-1}, without thoughts
    nll_mixed: torch.Tensor  # (B, N, S, a) of x_{i+1} .. x_{i+a}
    gate: torch.Tensor  # (B, N, S, a) w
    reward: torch.Tensor  # (B, N, S)
    advantage: torch.Tensor  # (B, N, S)
    log_prob: torch.Tensor  # (B, N, S, m) of t_1 .. t_m
    valid: torch.Tensor  # (B, S, a) is there such a token, and in the same document?
    valid_base: torch.Tensor  # (B, L-1) likewise


class QuietSTaR(nn.Module):
    """A language model (model.Transformer) that thinks. `forward` is Algorithm 1."""

    def __init__(self, model, config):
        super().__init__()
        self.model, self.config = model, config
        self.thought_tokens = ThoughtTokens(model.config.dim, config.embedding_scale)
        self.mixing_head = MixingHead(model.config.dim)
        self.gain_head = GainHead(model.config.dim)

    def with_settings(self, **changes):
        """The same model, sharing all weights, with some settings changed: e.g. greedy thoughts for evaluation."""
        other = object.__new__(type(self))  # copy.copy would ask the class, and that of a sharded model makes another
        other.__dict__ |= {**self.__dict__, "config": replace(self.config, **changes)}
        return other

    def forward(self, tokens, thoughts=None, positions=None, documents=None, noise=None):
        """tokens (B, L) -> the loss (and the gain head's error, which it learns from), and metrics: a dict of detached
        means over the batch (nats, per token or thought; of the two parts apart).

        thoughts    (B, N, S, m) ids to learn from instead of sampling
        positions   (B, S) where to think; None: at every position with n_true tokens after it, 0 .. L - n_true - 1
        documents   (B, L) number of the document each token belongs to, -1 for padding: no loss on a token predicted
                    from another document, nor on padding (attention still crosses documents); None: all one document
        noise       (B, N, S, m) uniform numbers that decide the sampling (see model.sample); None: fresh ones
        """
        thoughts = self.think(tokens, thoughts, positions, noise)
        learned = self.learn(tokens, thoughts, documents)
        return learned.loss + learned.gain_error, self.metrics(learned)

    def read_text(self, tokens):
        """Read tokens (B, L) alone but for the last, which is only ever a target: Text."""
        T, model = tokens.shape[1] - 1, self.model
        cache = ThoughtCache(model.config, tokens[:, :0], self.config.explicit_mask)
        embedded = model.tok_embeddings(tokens)
        hidden = model(embedded[:, :T], cache.expect(T, 0, 0), cache=cache)
        return Text(embedded, hidden, cache.text)

    def think(self, tokens, thoughts=None, positions=None, noise=None, text=None, only_sample=False):
        """THINK at all chosen positions in parallel (section 4.2), and read on: returns Thoughts. See `forward`.

        Nothing is read twice and nothing known waits: [text, start] (or start, if the text was read) together, t_1 ..
        t_{m-1} one step at a time as they are sampled, then [t_m, end, x_{i+1} .. x_{i+a-1}]: m + 1 forwards. Thoughts
        that are given are known, and go in together: two.
        text: what `read_text` made of tokens, not to be read again.
        only_sample: return the thoughts' tokens and their log-probabilities alone.
        """
        config, table = self.config, self.model.tok_embeddings.weight
        m, a = config.thought_len, config.n_true
        if text is None:  # else `backward` has looked: on a GPU each look waits for all work before it
            self.check(tokens, thoughts, positions, noise)
        positions = self.default_positions(tokens) if positions is None else positions
        N = config.n_thoughts if thoughts is None else thoughts.shape[1]
        (B, L), S = tokens.shape, positions.shape[1]
        cache = ThoughtCache(self.model.config, positions, config.explicit_mask, text=text)

        embedded = F.embedding(tokens, table) if text is None else text.embedded  # (B, L, C)
        start, end = (x.expand(B, 1, S, 1, -1) for x in self.thought_tokens())
        ahead = positions[:, :, None] + torch.arange(1, a + 1, device=tokens.device)  # (B, S, a) of x_{i+j}
        # Past the text's end the last token stands in for what is not there; `valid` keeps it out of every loss.
        true = take(embedded, ahead[..., :-1].clamp(max=L - 1))[:, None]  # (B, 1, S, a-1, C)

        # The last token is only ever a target, unless some position thinks right after it.
        unread, known = None, start  # known and not yet read
        if text is None:
            unread = embedded if positions.max() == L - 1 else embedded[:, :-1]
        h_text, h_policy, log_prob = None if text is None else text.hidden, [], None
        sampled = tokens.new_empty(B, N, S, m) if thoughts is None else thoughts
        if m and thoughts is None:
            log_prob, late = [], LateEmbedding.apply(table, sampled).split(1, dim=3)
        for s in range(m):
            h_new, h = self.read(cache, unread, known)  # (B, T, C), (B, 1 or N, S, 1, C)
            h_text, unread = h_new if h_text is None else h_text, None
            h_policy.append(h.expand(B, N, S, 1, -1))
            if thoughts is not None:  # given: no need to go step by step
                known = F.embedding(thoughts, table)
                break
            with torch.no_grad():  # one step's logits live at a time
                logits = self.model.logits(h[:, :, :, 0]).expand(B, N, S, -1)
                u = None if noise is None else noise[..., s]
                sampled[..., s] = sample(logits, config.thought_temperature, u)
                log_prob.append(chosen(logits, sampled[..., s], config.log_prob_temperature))  # (B, N, S)
                known = F.embedding(sampled[..., s : s + 1], table)
            known = known + late[s]  # (B, N, S, 1, C)
        log_prob = torch.stack(log_prob, dim=3) if log_prob else None
        if only_sample:
            return sampled, log_prob

        width = known.shape[1]  # N, or 1 if there is nothing in which thoughts could differ (m = 0)
        known = torch.cat((known, end.expand(B, width, S, 1, -1), true.expand(B, width, S, a - 1, -1)), dim=3)
        h_new, h = self.read(cache, unread, known)  # h (B, N, S, R, C), R = ..., end, x_{i+1} .. x_{i+a-1}
        h_text = h_new if h_text is None else h_text
        if thoughts is not None and m > 1:
            h_policy.append(h[:, :, :, : m - 1])

        return Thoughts(
            tokens=sampled,
            positions=positions,
            h_text=h_text,
            h_base=take(h_text, (ahead - 1).clamp(max=h_text.shape[1] - 1))[:, None],
            h_thought=h[:, :, :, -a:].expand(B, N, S, a, -1),
            h_policy=torch.cat(h_policy, dim=3) if m else h.new_empty(B, N, S, 0, h.shape[-1]),
            log_prob=log_prob,
        )

    def read(self, cache, text, thought):
        """One forward: text embeddings (B, T, C) or None, and R new steps of every thought (B, N, S, R, C), both seen
        through `cache`. Returns their hidden states, in the same shapes."""
        _, N, S, R, _ = thought.shape
        T = 0 if text is None else text.shape[1]
        x = thought.flatten(1, 3) if text is None else torch.cat((text, thought.flatten(1, 3)), dim=1)
        hidden = self.model(x, cache.expect(T, N, R), cache=cache)  # (B, T + N*S*R, C)
        return hidden[:, :T], hidden[:, T:].unflatten(1, (N, S, R))

    def talk(self, thoughts):
        """TALK: mix the two branches by the gate (section 4.3): h_mixed (B, N, S, a, C), w (B, N, S, a).

        The head that follows is linear, so mixing hidden states is mixing logits; and a softmax forgets constants, so
        it is the paper's mixing of log-probabilities too.
        """
        return self.mix(thoughts.h_base, thoughts.h_thought)

    def mix(self, h_base, h_thought):
        """The same, of any two that fit together (..., C): h_mixed (..., C), w (...)."""
        w = self.mixing_head(h_base, h_thought)  # (..., 1)
        return h_base + w * (h_thought - h_base), w[..., 0]

    def learn(self, tokens, thoughts, documents=None):
        """LEARN from thoughts, sampled or given (section 4.4): returns Learned. See `forward`.

        For thoughts of your own: learn(tokens, think(tokens, my_thoughts)).
        """
        log_p_base, nll_base, valid_base = self.learn_text(tokens, thoughts.h_text, documents)
        learned = self.learn_thoughts(tokens, thoughts, log_p_base, documents)
        return learned._replace(loss=learned.loss + 0.5 * nll_base, nll_base=-log_p_base, valid_base=valid_base)

    def learn_text(self, tokens, h_text, documents):
        """Without thoughts: log_p_base (B, L-1), its mean NLL, and which of it counts."""
        L = tokens.shape[1]
        valid = torch.ones_like(tokens[:, 1:], dtype=torch.bool)
        if documents is not None:
            valid = (documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] >= 0)
        log_p = token_log_prob(self.model.output, h_text[:, : L - 1], tokens[:, 1:])
        return log_p, text_mean(-log_p, valid), valid

    def learn_thoughts(self, tokens, thoughts, log_p_base, documents, positions=None):
        """What thoughts add to the loss: Learned, without the text's part. positions (B, S'): all that think, where
        these thoughts are a part of them (means are over all)."""
        config, head, L = self.config, self.model.output, tokens.shape[1]
        valid, target = self.targets(tokens, thoughts.positions, documents)
        of_all = valid if positions is None else self.targets(tokens, positions, documents)[0]
        h_mixed, gate = self.talk(thoughts)
        log_p_mixed = token_log_prob(head, h_mixed, target[:, None].expand(gate.shape))  # (B, N, S, a)
        log_prob = token_log_prob(  # (B, N, S, m)
            head, thoughts.h_policy, thoughts.tokens, config.log_prob_temperature, thoughts.log_prob
        )

        with torch.no_grad():  # a reward is a fact, not something to differentiate
            log_p_base_ahead = take(log_p_base, (target_index(thoughts.positions, config.n_true) - 1).clamp(max=L - 2))
            gain = reward = thought_reward(log_p_mixed, log_p_base_ahead, valid)  # (B, N, S)
            if config.reward_on == "thought":
                log_p_thought = token_log_prob(head, thoughts.h_thought, target[:, None].expand(gate.shape))
                reward = thought_reward(log_p_thought, log_p_base_ahead, valid)
            advantage = thought_advantage(reward, config.clamp_advantage, config.baseline)

        # "Loss" only in that its gradient, in expectation over thoughts, is minus that of the expected reward.
        some, of_all_some = valid.any(-1), of_all.any(-1)
        reinforce = -text_mean(advantage * log_prob.sum(-1), some[:, None], of_all_some[:, None])
        gain_error = text_mean((self.gain_head(thoughts.h_base[:, 0, :, 0]) - gain.mean(1)) ** 2, some, of_all_some)
        nll_mixed = text_mean(-log_p_mixed, valid[:, None], of_all[:, None])
        loss = 0.5 * nll_mixed + config.reinforce_weight * reinforce
        return Learned(loss, reinforce, gain_error, None, -log_p_mixed, gate, reward, advantage, log_prob, valid, None)

    def backward(
        self,
        tokens,
        documents=None,
        noise=None,
        positions=None,
        scale=1.0,
        at_once=0,
        recompute=False,
        before_last=lambda: None,
    ):
        """What forward() and (scale * loss).backward() do, in less memory. Returns the metrics.

        Thoughts of different positions have nothing to do with one another, so they can be had, and learned from, a
        few positions at a time (at_once; 0: see `good_part`). What they share is the text, which is read once: its
        embeddings, hidden states, keys and values are leaves of the parts' graphs, where each part leaves its gradient,
        and the text's own backward pass comes last. Without recompute nothing is computed twice but logits.
        positions: (B, S) where to think, or a function that chooses them when the text is read, from h_text (B, L-1, C)
        (`hard_positions`, say). noise covers all default_positions, even if only some of them think.
        recompute: sample the thoughts of each part without a graph, then learn from them as given, in two forwards:
        what was sampled is read twice, but parts can be smaller before they are too small to be fast.
        before_last: called before the last of the backward passes, after which all gradients are complete.
        """
        self.check(tokens, None, None, noise)
        config, text = self.config, self.read_text(tokens)
        if torch.is_tensor(positions):
            self.check(tokens, None, positions, None)
        chosen = positions(text.hidden) if callable(positions) else positions
        positions = self.default_positions(tokens) if chosen is None else chosen
        at_once = at_once or self.good_part(positions, recompute)
        if chosen is not None and noise is not None:
            noise = take(noise.transpose(1, 2), positions).transpose(1, 2).contiguous()
        leaf = Text(*map(as_leaf, text[:2]), [(as_leaf(k), as_leaf(v)) for k, v in text.keys_values])
        log_p_base, nll_base, valid_base = self.learn_text(tokens, leaf.hidden, documents)
        go_back(0.5 * scale * nll_base)
        log_p_base, parts = log_p_base.detach(), []
        noises = [None] * len(positions.split(at_once, dim=1)) if noise is None else noise.split(at_once, dim=2)
        for some, u in zip(positions.split(at_once, dim=1), noises, strict=True):
            if recompute and config.thought_len:
                with torch.no_grad():
                    sampled, log_prob = self.think(tokens, positions=some, noise=u, text=leaf, only_sample=True)
                thoughts = self.think(tokens, sampled, some, text=leaf)._replace(log_prob=log_prob)
            else:
                thoughts = self.think(tokens, positions=some, noise=u, text=leaf)
            learned = self.learn_thoughts(tokens, thoughts, log_p_base, documents, positions)
            go_back(scale * (learned.loss + learned.gain_error))
            parts.append(learned._make(x if x is None else x.detach() for x in learned))
            del thoughts, learned  # or they would live through the next part
        shared = [(x.embedded, x.hidden, *(y for layer in x.keys_values for y in layer)) for x in (text, leaf)]
        shared = [(x, y.grad) for x, y in zip(*shared, strict=True) if x.requires_grad and y.grad is not None]
        before_last()
        if shared:  # else the model is frozen
            go_back(*zip(*shared, strict=True))

        places = dict(nll_mixed=2, gate=2, reward=2, advantage=2, log_prob=2, valid=1)  # where S is
        joined = {name: torch.cat([getattr(x, name) for x in parts], dim) for name, dim in places.items()}
        loss = sum(x.loss for x in parts) + 0.5 * nll_base.detach()
        sums = [sum(getattr(x, name) for x in parts) for name in ("reinforce", "gain_error")]
        return self.metrics(Learned(loss, *sums, nll_base=-log_p_base, valid_base=valid_base, **joined))

    def good_part(self, positions, recompute, device=None):
        """How many of positions (B, S) should think together. On a GPU all: it is faster with more work. On a CPU so
        many that the hidden states of one step are about 2**16 numbers: more is no faster, and smaller buffers are used
        again. With recompute a quarter of that, as it is there to save memory."""
        (B, S), config = positions.shape, self.config
        if (device or positions.device.type) == "cpu":
            S = min(S, max(1, 2**16 // (B * config.n_thoughts * self.model.config.dim)))
        return max(1, S // 4) if recompute else S

    def targets(self, tokens, positions, documents):
        """The true tokens ahead, and which of them count: valid and targets, (B, S, a)."""
        L = tokens.shape[1]
        index = target_index(positions, self.config.n_true)  # (B, S, a) of x_{i+j}
        inside = index.clamp(max=L - 1)
        valid = index < L
        if documents is not None:
            here, there = take(documents, positions)[..., None], take(documents, inside)
            valid = valid & (here == there) & (there >= 0)
        return valid, take(tokens, inside)

    @torch.no_grad()
    def metrics(self, learned):
        """Means of what was learned, over valid entries: a dict of scalars (0-dim tensors)."""
        some = learned.valid.any(-1)[:, None]  # (B, 1, S)
        policy = learned.log_prob.mean(-1) if learned.log_prob.shape[-1] else torch.zeros_like(learned.reward)
        return {
            "loss": learned.loss.detach(),
            "nll_base": text_mean(learned.nll_base, learned.valid_base),
            "nll_mixed": text_mean(learned.nll_mixed, learned.valid[:, None]),
            "gate": text_mean(learned.gate, learned.valid[:, None]),
            "reward": text_mean(learned.reward, some),
            "advantage_abs": text_mean(learned.advantage.abs(), some),
            "thought_nll": text_mean(-policy, some),
            "gain_error": learned.gain_error.detach(),
        }

    def hard_positions(self, h_text, share, noise=None):
        """A share of the positions that may think, (B, S) in ascending order: where the text alone leaves the model
        least certain. Training there alone costs less nearly in proportion: the one way below a forward and backward
        pass for each token of each thought.

        noise: uniform numbers (B, all that may think), to draw positions in proportion to their entropy instead,
        without putting any back (Gumbel top-k): what no thought can foresee is uncertain too, and crowds out the rest.
        """
        hardness = entropy(self.model.output, h_text[:, : h_text.shape[1] + 1 - self.config.n_true])
        if noise is not None:
            hardness = hardness.clamp(min=1e-9).log() - (-noise.to(hardness).clamp(min=1e-9).log()).log()
        return hardness.topk(share_of(share, hardness.shape[1])).indices.sort().values

    def default_positions(self, tokens):
        """All positions with n_true tokens after them, (B, S)."""
        B, L = tokens.shape
        return torch.arange(max(0, L - self.config.n_true), device=tokens.device).expand(B, -1)

    def check(self, tokens, thoughts, positions, noise):
        """Refuse what cannot be right, in one line (ValueError)."""
        N, m, (B, L) = self.config.n_thoughts, self.config.thought_len, tokens.shape
        S = L - self.config.n_true if positions is None else positions.shape[-1]
        if S < 1:
            raise ValueError(f"{L} tokens are too few: thinking needs at least n_true + 1 = {self.config.n_true + 1}")
        for name, x, wanted in (("positions", positions, (B, S)), ("noise", noise, (B, N, S, m))):
            if x is not None and tuple(x.shape) != wanted:
                raise ValueError(f"{name} of shape {wanted} are wanted, not {tuple(x.shape)}")
        if positions is not None and (positions.min() < 0 or positions.max() >= L):
            raise ValueError(f"positions must lie in the text, 0 to {L - 1}")
        if thoughts is not None and (thoughts.dim() != 4 or thoughts.shape[::2] != (B, S) or thoughts.shape[3] != m):
            raise ValueError(f"thoughts of shape ({B}, any, {S}, {m}) are wanted, not {tuple(thoughts.shape)}")


def share_of(share, count):
    """How many of count a share is: at least one."""
    return max(1, round(share * count))


def target_index(positions, n_true):
    """Index in the text of the tokens ahead, x_{i+1} .. x_{i+a}: (B, S) -> (B, S, a)."""
    return positions[:, :, None] + torch.arange(1, n_true + 1, device=positions.device)


def as_leaf(x):
    """x, cut off from how it came to be: its gradient stays on it."""
    return x.detach().requires_grad_()


def go_back(tensors, gradients=None):
    """torch.autograd.backward, outside of any autocast that the forward pass may still be in."""
    device = (tensors if torch.is_tensor(tensors) else tensors[0]).device.type
    with torch.autocast(device, enabled=False):
        torch.autograd.backward(tensors, gradients)


def take(x, index):
    """Entries of x (B, T, ...) at index (B, ...): (B, index's shape, x's remaining shape)."""
    rows = torch.arange(len(x), device=x.device).view(-1, *[1] * (index.dim() - 1))
    return x[rows, index]


# ----------------------------------------------------------------------------------------------------------------------
# 5. Speaking with thoughts


@torch.no_grad()
def generate_with_thoughts(
    quiet,
    tokens,
    max_new_tokens,
    temperature=1.0,
    thought_temperature=0.0,
    generator=None,
    lengths=None,
    stop=None,
    think_above=None,
    begin=None,
):
    """Continue tokens (B, T), thinking before each new one: tokens (B, T + new), thoughts (B, new, m), gates (B, new).

    Thoughts are greedy by default, as in the paper's evaluation. They live only until their token is out: what is
    kept, as text and in the cache, is the text alone. Start and end are outside of the vocabulary, hence never
    emitted. lengths (B,) of unequal prompts, and stop: see model.Transformer.generate; the first new token is the one
    after the shortest prompt, then.
    think_above: think only where the gain head expects more than so many nats of it (over the n_true tokens that it
    was trained on). Elsewhere the token is the base prediction's, its thought all -1, its gate 0.
    begin: the place to think before first, where it isn't the shortest prompt's end: prompts keep their tokens, so that
    a given text can be read just as it would be written.

    A token costs m + 1 forwards: [x, start], t_1 .. t_{m-1}, [t_m, end]. But a forward that reads four tokens is nearly
    as fast as one that reads two, and mostly the thought does not change the next token. So the last forward reads on,
    as if the token were what it would be without the thought (with the same draw): [t_m, end, guess, start]. If it
    is the token, in every row of the batch, m forwards were enough; if not, the guess is forgotten, for all rows. The
    text is the same either way, up to rounding.
    """
    if max_new_tokens < 1:
        raise ValueError(f"max_new_tokens must be at least 1, not {max_new_tokens}")
    model, (B, T), m = quiet.model, tokens.shape, quiet.config.thought_len
    embed, total, device = model.tok_embeddings, T + max_new_tokens, tokens.device
    lengths = torch.full((B,), T, device=device) if lengths is None else lengths
    shortest = int(lengths.min())
    at = shortest if begin is None else begin
    if not 1 <= at <= shortest:
        raise ValueError(f"begin must be from 1 to the shortest prompt's length {shortest}, not {begin}")
    # One thought at the end of the text sees all before it: to the cache it is text, until its token is out.
    cache = KVCache(model.config, B, total + m + 3, device, embed.weight.dtype)
    start, end = (x.expand(B, 1, -1) for x in quiet.thought_tokens())  # (B, 1, C)
    out = torch.cat((tokens, tokens.new_empty(B, max_new_tokens)), dim=1)
    new, guessed, said, gates = out[:, :at], False, [], []

    while at < total and not all_ended(out[:, :at], lengths, stop):
        draw = torch.rand(B, generator=generator, device=device)  # decides the token
        if think_above is not None:
            h_mixed, thought, w = think_if_it_pays(quiet, new, cache, think_above, thought_temperature, generator)
            new = own_token(sample(model.logits(h_mixed), temperature, draw), tokens, at, lengths)  # (B,)
        else:
            if not guessed:
                hidden = model(torch.cat((embed(new), start) if m else (embed(new), start, end), dim=1), cache=cache)
                h_base, h = hidden[:, -2 if m else -3], hidden[:, -1]  # (B, C): after x, after start (or end)
            thought = tokens.new_empty(B, m)
            for s in range(m):
                if s > 0:
                    h = model(thought[:, s - 1 : s], cache=cache)[:, 0]
                thought[:, s] = sample(model.logits(h), thought_temperature, generator=generator)
            if m:
                guess = own_token(sample(model.logits(h_base), temperature, draw), tokens, at, lengths)  # (B,)
                known = torch.cat((embed(thought[:, -1:]), end, embed(guess[:, None]), start), dim=1)  # (B, 4, C)
                keys = guess_layout(at, m, device)
                query = keys[:, -4:]
                mask = thought_mask(query, keys, model.config.sliding_window)
                hidden = model(known, query[0] + 1 + query[2], mask, cache)  # (B, 4, C)
                h = hidden[:, 1]
            h_mixed, w = quiet.mix(h_base, h)  # (B, C), (B,)
            new = own_token(sample(model.logits(h_mixed), temperature, draw), tokens, at, lengths)  # (B,)
            guessed = m > 0 and torch.equal(new, guess)
            cache.keep(at, slice(at + m + 2, at + m + 4) if guessed else slice(0))
            h_base, h = hidden[:, -2], hidden[:, -1]
        new = out[:, at : at + 1].copy_(new[:, None])  # (B, 1)
        said.append(thought)
        gates.append(w)
        at += 1
    return out[:, :at], torch.stack(said, dim=1), torch.stack(gates, dim=1)


def think_if_it_pays(quiet, new, cache, think_above, thought_temperature, generator):
    """Read new tokens (B, R), and think in those rows where it is expected to gain more than think_above: h_mixed
    (B, C), thoughts (B, m), gates (B,). The cache is left with the text alone."""
    model, m, embed = quiet.model, quiet.config.thought_len, quiet.model.tok_embeddings
    h_mixed = model(embed(new), cache=cache)[:, -1].clone()  # (B, C): without a thought
    thoughts, gates = new.new_full((len(new), m), -1), h_mixed.new_zeros(len(new))
    rows = (quiet.gain_head(h_mixed) > think_above).nonzero()[:, 0]  # (R,)
    if not len(rows):
        return h_mixed, thoughts, gates
    aside, thought = cache.of_rows(rows, room=m + 2), new.new_empty(len(rows), m)  # read by no one else
    start, end = (x.expand(len(rows), 1, -1) for x in quiet.thought_tokens())  # (R, 1, C)
    known = start
    for s in range(m):
        h = model(known, cache=aside)[:, -1]
        thought[:, s] = sample(model.logits(h), thought_temperature, generator=generator)
        known = embed(thought[:, s : s + 1])
    h = model(torch.cat((known, end), dim=1), cache=aside)[:, -1]
    h_mixed[rows], w = quiet.mix(h_mixed[rows], h)
    gates[rows], thoughts[rows] = w.to(gates.dtype), thought
    return h_mixed, thoughts, gates


def guess_layout(at, m, device):
    """The triples (position, thought, step), (3, at + m + 4), of a text of `at` tokens, the whole thought of its last
    position, a guess of the next token, and the start of that one's thought."""
    place = torch.arange(at + m + 4, device=device)
    layout = torch.stack((place.clamp(max=at - 1), -(place < at).long(), (place - at).clamp(min=-1)))
    layout[:, -2:] = torch.tensor(((at, at), (-1, 0), (-1, 0)), device=device)
    return layout
