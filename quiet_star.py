"""
Quiet-STaR: a language model that thinks before it speaks (Zelikman et al. 2024, arXiv 2403.09629).

Algorithm 1 of the paper, with the changes named below, and the function that does each line:

  for every text x_0 .. x_{L-1} of the batch
           h_base    <- read the text                                        QuietSTaR.read_text
    for every position i, in parallel (who may see what: thought_mask)
      for each of n_thoughts thoughts
  THINK    t_1 .. t_m ~ model( . | x_0 .. x_i, start)                        QuietSTaR.sample_thoughts
           h_thought <- read t_1 .. t_m, end, x_{i+1} .. x_{i+a-1}           QuietSTaR.think
  TALK     w         <- mixing head(h_base, h_thought)                       MixingHead
           p_mixed   <- softmax(head((1-w) h_base + w h_thought))            QuietSTaR.talk, learn
  LEARN    reward    =  sum_j log p_mixed(x_{i+j}) - log p_base(x_{i+j})     thought_reward
           advantage =  reward - baseline of the position's thoughts         thought_advantage
           loss      =  1/2 NLL_base + 1/2 NLL_mixed                         text_loss, QuietSTaR.learn
                        - reinforce_weight * advantage * log p(t_1 .. t_m)

Symbols
  B  texts                   L  tokens of a text                 C, V  width, vocabulary
  S  positions that think: all that have n_true tokens after them, unless chosen
  N  n_thoughts              thoughts sampled per position
  m  thought_len             sampled tokens of a thought, without start and end  (the paper's t)
  a  n_true                  true tokens predicted after the thought
  R  steps of a thought read in one forward pass

A thought of position i, which has read x_0 .. x_i and is about to predict x_{i+1}, is the sequence
  start, t_1 .. t_m, end, x_{i+1} .. x_{i+a-1}          steps s = 0 .. m + a, at position ids i + 1 + s.
Reading `end` predicts x_{i+1}, reading the true x_{i+1} predicts x_{i+2} ("teacher forcing"), and so on, up to x_{i+a}.

What is different from the paper and from the authors' release, and why:
  1. The gate w multiplies the thought, as in the release; the paper puts it on the other branch. It starts at exactly
     0, without a sigmoid: before training the model is the base model, and no thought has a reward until w moves.
  2. The baseline of a thought is the mean reward of the *other* thoughts of its position: unbiased. Both others take
     the mean of all. Negative advantages are dropped by default, as in both: a bias.
  3. Tokens that are known share a forward pass: m + 1 passes a thought. The release makes one for each token.
  4. log p(thought) is taken at temperature 1, at which thoughts are sampled. The release takes it at 3.
  5. Evaluation makes thoughts greedy (`with_settings`), as in the paper. The release's are samples even there.
  6. Weights are float32. The release trains bfloat16 weights, in which most updates are rounded away.
  7. REINFORCE sums log p over a thought's tokens, and its weight is 1. The release takes their mean, and the mean of
     all as the baseline: our weight 1 is its beta m N / (N - 1). Its beta is 1e6. Adam and clipping forget the size of
     a loss; but beside so large a term, NLL hardly counts.
What saves time and memory, and changes no number: lean/. What the paper leaves open, as where to think: beyond/.
"""

from dataclasses import dataclass, fields, replace
from functools import partial
from typing import Literal, NamedTuple, get_args

import torch
import torch.nn as nn
import torch.nn.functional as F

from lean.embedding import embedding_in_steps
from lean.in_parts import backward_in_parts, sum_up
from lean.log_prob import log_prob_of, text_loss, token_log_prob
from lean.tensors import check, join, mean_by, shares, take
from lean.thought_cache import TextCache, ThoughtCache
from model import KVCache, all_ended, own_token, sample


@dataclass
class QuietSTaRConfig:
    thought_len: int = 4  # sampled tokens in a thought, without start and end (m); 0: start and end alone ("pause")
    n_thoughts: int = (
        4  # thoughts sampled per position (N); 1: there are no others to compare it with
    )
    n_true: int = 1  # true tokens each thought is scored on (a); the paper: more, for real text
    reinforce_weight: float = 1.0  # weight of the REINFORCE term in the loss; 0: none
    reward_on: Literal["mixed", "thought"] = (
        "mixed"  # score thoughts by the mixed prediction (paper), or the thought's
    )
    baseline: Literal["others", "all", "none"] = (
        "others"  # whose mean reward a thought is compared with
    )
    clamp_advantage: bool = (
        True  # drop negative advantages, as the paper does: steadier, but biased
    )
    thought_temperature: float = 1.0  # thoughts are sampled at this temperature; 0: greedily
    log_prob_temperature: float = (
        1.0  # temperature of log p(thought) in the REINFORCE term (the release: 3)
    )
    embedding_scale: float = (
        20.0  # start/end are stored divided by this, so that Adam moves them that much faster
    )
    explicit_mask: bool = (
        False  # attend under all of thought_mask: slow; what the fast form must equal
    )
    thought_kind: Literal["sampled", "any_length", "soft", "latent"] = (
        "sampled"  # the others: beyond/kinds.py
    )
    credit: Literal["advantage", "star", "posterior"] = "advantage"  # what makes a thought likelier
    mixing: Literal["head", "none"] = (
        "head"  # none: what is predicted after the thought stands alone
    )

    def __post_init__(self):
        for name, least in (("thought_len", 0), ("n_thoughts", 1), ("n_true", 1)):
            if getattr(self, name) < least:
                raise ValueError(f"{name} must be at least {least}, not {getattr(self, name)}")
        for field in fields(self):
            if get_args(field.type) and getattr(self, field.name) not in get_args(field.type):
                choices = ", ".join(get_args(field.type))
                raise ValueError(
                    f"{field.name} must be one of {choices}, not {getattr(self, field.name)!r}"
                )
        if not (
            self.thought_temperature >= 0
            and self.log_prob_temperature > 0
            and self.embedding_scale > 0
        ):
            raise ValueError(
                "thought_temperature must be >= 0, log_prob_temperature and embedding_scale > 0"
            )


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


# ----------------------------------------------------------------------------------------------------------------------
# 2. The start and end of a thought (section 4.2), and the mixing head (section 4.3)


class ThoughtTokens(nn.Module):
    """<|startofthought|> and <|endofthought|>: two learned vectors outside of the vocabulary, so never sampled.

    They must learn faster than the model: they are stored divided by scale, so a step of lr moves them scale * lr.
    """

    def __init__(self, dim, scale):
        super().__init__()
        self.scale = scale
        self.start = nn.Parameter(torch.randn(dim) * 0.02 / scale)
        self.end = nn.Parameter(torch.randn(dim) * 0.02 / scale)

    @torch.no_grad()
    def init_from(self, start, end=None):
        """Begin with these vectors (C,), or both with the first: in the paper, the embedding of an em dash."""
        for parameter, vector in ((self.start, start), (self.end, start if end is None else end)):
            if vector.shape != parameter.shape:
                raise ValueError(
                    f"a vector of shape {tuple(parameter.shape)} is wanted, not {tuple(vector.shape)}"
                )
            parameter.copy_(vector / self.scale)

    def forward(self):
        return self.start * self.scale, self.end * self.scale  # (C,), (C,)


class MixingHead(nn.Module):
    """The gate w, any number: the weight of the prediction after the thought. (..., C), (..., C) -> (..., 1)."""

    def __init__(self, dim):
        super().__init__()
        # One Linear(2C, C) of [h_base ; h_thought], in two: N thoughts of a position share the product with h_base.
        self.base, self.thought = nn.Linear(dim, dim), nn.Linear(dim, dim, bias=False)
        self.inner = nn.Linear(dim, dim)
        self.last = nn.Linear(dim, 1, bias=False)
        nn.init.zeros_(self.last.weight)

    def forward(self, h_base, h_thought):
        return self.last(self.inner((self.base(h_base) + self.thought(h_thought)).relu()).relu())


# ----------------------------------------------------------------------------------------------------------------------
# 3. Reward, baseline and loss (section 4.4)


def thought_reward(log_p, log_p_base, valid):
    """r = sum over the a true tokens of log p(x) with the thought - log p(x) without it: (B, N, S, a) -> (B, N, S).

    log_p_base, valid (B, S, a): predictions of no true token (past the text's end, say) earn nothing.
    """
    return ((log_p - log_p_base[:, None]) * valid[:, None]).sum(-1)


def thought_advantage(reward, clamp, baseline="others"):
    """reward - baseline, (B, N, S): the baseline of a thought is the mean reward of the position's *other* thoughts.

    Leaving the thought itself out keeps the gradient unbiased; the mean over "all" N only scales it by (N-1)/N. It is
    not taken over other positions, whose difficulty would leak in. One thought has no others: its baseline is 0, as
    with "none". clamp drops negative advantages: no longer the gradient of the expected reward.
    """
    N = reward.shape[1]
    if baseline == "all":
        advantage = reward - reward.mean(1, keepdim=True)
    elif baseline == "others" and N > 1:
        advantage = reward - (reward.sum(1, keepdim=True) - reward) / (N - 1)
    else:
        advantage = reward
    return advantage.clamp(min=0) if clamp else advantage


# ----------------------------------------------------------------------------------------------------------------------
# 4. Think, talk, learn (Algorithm 1)


class Text(NamedTuple):
    """A text that was read, and what its thoughts look at."""

    embedded: torch.Tensor  # (B, L, C)
    hidden: torch.Tensor  # (B, L, C) what the head reads after each token, without thoughts
    keys_values: list  # by layer: keys and values (B, key heads, L, width of a head)


class Thoughts(NamedTuple):
    """What `think` returns: the thoughts, and the hidden states that talking and learning need."""

    tokens: torch.Tensor  # (B, N, S, m) t_1 .. t_m
    positions: torch.Tensor  # (B, S) i: where each was thought
    h_base: (
        torch.Tensor
    )  # (B, 1, S, a, C) at position i + j - 1, about to predict x_{i+j}, without the thought
    h_thought: torch.Tensor  # (B, N, S, a, C) the same, having read the thought
    h_policy: torch.Tensor  # (B, N, S, m, C) about to say t_1 .. t_m
    log_prob: (
        torch.Tensor | None
    )  # (B, N, S, m) of t_1 .. t_m: values, `learn` makes the gradient; None if given


class Targets(NamedTuple):
    """The true tokens x_{i+1} .. x_{i+a} that thoughts are scored on."""

    tokens: torch.Tensor  # (B, S, a)
    valid: torch.Tensor  # (B, S, a) is there such a token, and in the same document?
    log_p_base: torch.Tensor  # (B, S, a) of these tokens, without a thought and without a gradient
    token_share: torch.Tensor  # (B, S, a) weight in the batch's mean: they sum to 1; 0 if not valid
    position_share: torch.Tensor  # (B, S) likewise of positions; 0 if none of its tokens is valid


class Learned(NamedTuple):
    """What `learn` returns. Entries that are not `valid` mean nothing, and count for nothing in the loss."""

    loss: torch.Tensor  # () 1/2 NLL_mixed + reinforce_weight * reinforce
    reinforce: torch.Tensor  # () the REINFORCE term
    log_p_mixed: torch.Tensor  # (B, N, S, a) of the true tokens
    gate: torch.Tensor  # (B, N, S, a) w
    reward: torch.Tensor  # (B, N, S)
    advantage: torch.Tensor  # (B, N, S, 1) of the whole thought
    log_prob: torch.Tensor  # (B, N, S, m) of t_1 .. t_m


class QuietSTaR(nn.Module):
    """A language model (model.Transformer) that thinks. `forward` is Algorithm 1."""

    def __init__(self, model, config):
        super().__init__()
        self.model, self.config = model, config
        self.thought_tokens = ThoughtTokens(model.config.dim, config.embedding_scale)
        self.mixing_head = MixingHead(model.config.dim)
        self.further_losses = {}  # for beyond/: {name: function of (Thoughts, Targets, Learned) that gives a loss}

    def forward(self, tokens, thought_ids=None, positions=None, documents=None, noise=None):
        """tokens (B, L) -> the loss, and metrics: a dict of detached means over the batch (nats, per token or thought).

        thought_ids (B, N, S, m) to learn from instead of sampling
        positions   (B, S) where to think; None: at every position with n_true tokens after it, 0 .. L - n_true - 1
        documents   (B, L) number of the document each token belongs to, -1 for padding: no loss on a token predicted
                    from another document, nor on padding (attention still crosses documents); None: all one document
        noise       (B, N, S, m) uniform numbers that decide the sampling (see model.sample); None: fresh ones
        """
        check(self.config, tokens, thought_ids, positions, noise)
        text = self.read_text(tokens)
        nll_base, log_p_base = text_loss(self.model.output, text.hidden, tokens, documents)
        thoughts = self.think(tokens, thought_ids, positions, noise, text)  # THINK
        h_mixed, gate = self.talk(thoughts.h_base, thoughts.h_thought)  # TALK
        targets = self.targets(tokens, thoughts.positions, documents, log_p_base)
        learned = self.learn(thoughts, h_mixed, gate, targets)  # LEARN
        loss, metrics = sum_up(self.further_losses, thoughts, targets, learned)
        with_base = {
            "loss": metrics["loss"] + 0.5 * nll_base.detach(),
            "nll_base": nll_base.detach(),
        }
        return 0.5 * nll_base + loss, metrics | with_base

    def backward(self, tokens, *args, **kwargs):
        """What training calls: `forward` and loss.backward() in less memory (lean/in_parts.py). Returns metrics."""
        return backward_in_parts(self, tokens, *args, **kwargs)

    def read_text(self, tokens):
        """Read tokens (B, L) without thoughts."""
        cache, embedded = TextCache(), self.model.tok_embeddings(tokens)
        return Text(embedded, self.model(embedded, cache=cache), cache.keys_values)

    def thought_cache(self, text, positions):
        """What thoughts at positions (B, S) look at: the text, and then themselves."""
        see = partial(thought_mask, sliding_window=self.model.config.sliding_window)
        return ThoughtCache(see, text.keys_values, positions, self.config.explicit_mask)

    def think(self, tokens, thought_ids=None, positions=None, noise=None, text=None):
        """THINK at all chosen positions in parallel (section 4.2), and read on: returns Thoughts. See `forward`.
        text: tokens (B, L) that `read_text` has read already."""
        if text is None:
            check(self.config, tokens, thought_ids, positions, noise)
            text = self.read_text(tokens)
        positions = self.default_positions(tokens) if positions is None else positions
        (B, S), L, m, a = (
            positions.shape,
            tokens.shape[1],
            self.config.thought_len,
            self.config.n_true,
        )
        start, end = (x.expand(B, 1, S, 1, -1) for x in self.thought_tokens())
        # x_{i+1} .. x_{i+a-1}; past the text's end the last token stands in for what is not there: it is not `valid`
        inside = (positions[:, :, None] + torch.arange(1, a, device=tokens.device)).clamp(max=L - 1)
        known = self.read_out(end, take(text.embedded, inside)[:, None])  # (B, 1, S, a, C)
        if thought_ids is None:  # one step at a time; then all that is known, together
            thought_ids, log_prob, h_policy, unread, cache = self.sample_thoughts(
                text, positions, noise
            )
            h = self.read_steps(join(unread, known), cache)  # (B, N, S, R, C)
        else:  # everything is known
            embedded = F.embedding(thought_ids, self.model.tok_embeddings.weight)  # (B, N, S, m, C)
            h = self.read_steps(join(start, embedded, known), self.thought_cache(text, positions))
            h_policy, log_prob = h[:, :, :, :m], None
        h_base = take(
            text.hidden,
            (positions[:, :, None] + torch.arange(a, device=tokens.device)).clamp(max=L - 1),
        )
        h = h.expand(-1, thought_ids.shape[1], -1, -1, -1)  # if m = 0, it is the same for all N
        return Thoughts(
            thought_ids,
            positions,
            h_base[:, None],
            h[:, :, :, -known.shape[3] :],
            h_policy,
            log_prob,
        )

    def read_out(self, end, x_true):
        """What is read when a thought is over: end (B, 1, S, 1, C), and the true tokens but the last."""
        return join(end, x_true)

    def sample_thoughts(self, text, positions, noise=None):
        """t_1 .. t_m of N thoughts at positions (B, S), all thoughts together, one step after the other. Returns their
        tokens, log_prob and h_policy (see Thoughts); the embedding of t_m (of start, if m = 0), (B, N, S, 1, C), which
        nobody has read yet; and the cache of what was read."""
        config, (B, S) = self.config, positions.shape
        N, m = config.n_thoughts, config.thought_len
        thought_ids = positions.new_empty(B, N, S, m)
        # embed(s): the embedding of t_{s+1}, once that is sampled
        embed = embedding_in_steps(self.model.tok_embeddings.weight, thought_ids)
        cache = self.thought_cache(text, positions)
        unread = self.thought_tokens()[0].expand(
            B, 1, S, 1, -1
        )  # start: read once, and seen by all N
        h_policy = [unread.new_empty(B, N, S, 0, unread.shape[-1])]  # the empty ones: if m = 0
        log_prob = [unread.new_empty(B, N, S, 0)]
        for s in range(m):
            h = self.read_steps(unread, cache)  # (B, N or 1, S, 1, C)
            with torch.no_grad():  # one step's logits live at a time
                logits = self.model.logits(h[:, :, :, 0]).expand(B, N, S, -1)
                u = None if noise is None else noise[..., s]
                thought_ids[..., s] = sample(logits, config.thought_temperature, u)
                log_prob.append(
                    log_prob_of(logits, thought_ids[..., s], config.log_prob_temperature)[..., None]
                )
            h_policy.append(h.expand(B, N, S, 1, -1))
            unread = self.next_input(h, embed(s))
        return thought_ids, torch.cat(log_prob, dim=3), torch.cat(h_policy, dim=3), unread, cache

    def next_input(self, h, embedded):
        """What a thought reads after the hidden state h: the embedding of the token that it sampled there."""
        return embedded

    def read_steps(self, x, cache):
        """One forward pass: R more steps of every thought, x (B, N or 1, S, R, C), to their hidden states, likewise.
        The cache makes their position ids, and their mask."""
        shape = x.shape[1:4]
        return self.model(x.flatten(1, 3), cache.expect(*shape), cache=cache).unflatten(1, shape)

    def talk(self, h_base, h_thought):
        """TALK: mix the two branches by the gate (section 4.3), (..., C): h_mixed (..., C), w (...).

        The head that follows is linear, so mixing hidden states is mixing logits; and a softmax forgets constants, so
        it is the paper's mixing of log-probabilities too.
        """
        w = self.mixing_head(h_base, h_thought)  # (..., 1)
        return h_base + w * (h_thought - h_base), w[..., 0]

    def targets(self, tokens, positions, documents, log_p_base):
        """The true tokens after positions (B, S), and which of them count: Targets. log_p_base (B, L-1)."""
        L = tokens.shape[1]
        ahead = positions[:, :, None] + torch.arange(
            1, self.config.n_true + 1, device=tokens.device
        )  # (B, S, a)
        inside = ahead.clamp(max=L - 1)
        valid = ahead < L
        if documents is not None:
            here, there = take(documents, positions)[..., None], take(documents, inside)
            valid = valid & (here == there) & (there >= 0)
        log_p_base = take(log_p_base.detach(), inside - 1)
        return Targets(
            take(tokens, inside), valid, log_p_base, shares(valid), shares(valid.any(-1))
        )

    def learn(self, thoughts, h_mixed, gate, targets):
        """LEARN from thoughts, sampled or given (section 4.4): Learned. The loss on the text alone is `text_loss`."""
        config, head = self.config, self.model.output
        true = targets.tokens[:, None].expand(gate.shape)  # (B, N, S, a)
        log_p_mixed = token_log_prob(head, h_mixed, true)  # (B, N, S, a)
        with torch.no_grad():  # a reward is a fact, not something to differentiate
            scored = (
                log_p_mixed
                if config.reward_on == "mixed"
                else token_log_prob(head, thoughts.h_thought, true)
            )
            reward, advantage = self.credit(scored, h_mixed, targets)  # (B, N, S), (B, N, S, 1)
        policy = head, thoughts.h_policy, thoughts.tokens, config.log_prob_temperature
        log_prob = token_log_prob(
            *policy, known=thoughts.log_prob
        )  # (B, N, S, m); known: the values, not the gradient
        # Only its gradient means something: not clamped, it is on average minus that of the expected reward.
        reinforce = -mean_by(targets.position_share, (advantage * log_prob).sum(-1))
        nll_mixed = mean_by(targets.token_share, -log_p_mixed)
        loss = 0.5 * nll_mixed + config.reinforce_weight * reinforce
        return Learned(loss, reinforce, log_p_mixed, gate, reward, advantage, log_prob)

    def credit(self, log_p, h_mixed, targets):
        """The reward of each thought (B, N, S), by log p of the true tokens (B, N, S, a), and its advantage."""
        reward = thought_reward(log_p, targets.log_p_base, targets.valid)
        return reward, thought_advantage(reward, self.config.clamp_advantage, self.config.baseline)[
            ..., None
        ]

    def default_positions(self, tokens):
        """All positions with n_true tokens after them, (B, S)."""
        return torch.arange(
            max(0, tokens.shape[1] - self.config.n_true), device=tokens.device
        ).expand(len(tokens), -1)

    def with_settings(self, **changes):
        """The same model and weights with other settings (not embedding_scale): greedy thoughts for evaluation, say."""
        other = object.__new__(
            type(self)
        )  # not copy.copy: FSDP2 gives a sharded model a class that copies otherwise
        other.__dict__ |= {**self.__dict__, "config": replace(self.config, **changes)}
        return other


# ----------------------------------------------------------------------------------------------------------------------
# 5. Speaking with thoughts


@torch.no_grad()
def generate_with_thoughts(
    quiet, tokens, max_new_tokens, temperature=1.0, thought_temperature=0.0, generator=None,
    lengths=None, stop=None, begin=None, think=None,
):  # fmt: skip
    """Continue tokens (B, T), thinking before each new one: all tokens, the new ones' thoughts (B, new, m) and gates.

    Thoughts are greedy by default, as in the paper's evaluation. A thought lives only until its token is out: what
    stays, as text and in the cache, is the text alone.

    lengths, stop   see model.Transformer.generate; the first new token is the one after the shortest prompt
    begin           where to think first, if before the shortest prompt's end: prompts are read as they would be written
    think           what to do for each new token: read_and_think (None), or less than that (beyond/adaptive.py)
    """
    model, (B, T), m = quiet.model, tokens.shape, quiet.config.thought_len
    lengths = torch.full((B,), T, device=tokens.device) if lengths is None else lengths
    shortest, total = int(lengths.min()), T + max_new_tokens
    first = at = shortest if begin is None else begin
    if max_new_tokens < 1 or not 1 <= at <= shortest:
        raise ValueError(
            f"max_new_tokens must be at least 1, begin must be from 1 to the shortest prompt's {shortest}"
        )
    cache = KVCache(
        model.config, B, total + m + 2, tokens.device, model.tok_embeddings.weight.dtype
    )
    out, new = torch.cat((tokens, tokens.new_empty(B, max_new_tokens)), dim=1), tokens[:, :at]
    thoughts, gates = tokens.new_empty(B, total, m), cache.k.new_empty(B, total)

    while at < total and not all_ended(out[:, :at], lengths, stop):
        h, thoughts[:, at], gates[:, at] = (think or read_and_think)(
            quiet, new, cache, thought_temperature, generator
        )
        cache.forget_after(at)  # the thought is over
        token = sample(model.logits(h), temperature, generator=generator)
        new = out[:, at : at + 1].copy_(own_token(token, tokens, at, lengths)[:, None])  # (B, 1)
        at += 1
    return out[:, :at], thoughts[:, first:at], gates[:, first:at]


def read_and_think(quiet, new, cache, temperature, generator):
    """Read new tokens (B, R), think after them, and mix: h (B, C), thoughts (B, m) and gates (B,). A thought at the end
    of a text sees all before it: to a KVCache it is more text."""
    model, m, x = quiet.model, quiet.config.thought_len, quiet.model.tok_embeddings(new)
    start, end = (v.expand(len(x), 1, -1) for v in quiet.thought_tokens())  # (B, 1, C)
    hidden = model(
        torch.cat((x, start) if m else (x, start, end), dim=1), cache=cache
    )  # all that is known, together
    h_base, h = hidden[:, x.shape[1] - 1], hidden[:, -1]
    thoughts = new.new_empty(len(x), m)
    for s in range(m):
        thoughts[:, s] = sample(model.logits(h), temperature, generator=generator)
        x = quiet.next_input(h[:, None], model.tok_embeddings(thoughts[:, s : s + 1]))
        h = model(x if s < m - 1 else torch.cat((x, end), dim=1), cache=cache)[:, -1]
    h_mixed, gates = quiet.talk(h_base, h)
    return h_mixed, thoughts, gates
