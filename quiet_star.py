"""
Quiet-STaR: a language model that thinks before it speaks (Zelikman et al. 2024, arXiv 2403.09629).

After every token of a text the model samples short hidden thoughts. A mixing head weighs the
prediction after a thought against the one without it, and thoughts that made the true next tokens
more likely are reinforced. Algorithm 1 of the paper, and the function that does each line:

  for every text x_0 .. x_{L-1} of the batch
           h_base    <- hidden states of the text                         QuietSTaR.read
    for every position i that thinks, each n_thoughts times, all at once  thought_mask
  THINK    t_1 .. t_m ~ model( . | x_0 .. x_i, start)                     QuietSTaR.think
           h_thought <- hidden states as it reads on: end, x_{i+1} .. x_{i+a-1}
  TALK     w         <- mixing head(h_base, h_thought)                    QuietSTaR.talk
           p_mixed   <- softmax(output((1-w) h_base + w h_thought))
  LEARN    reward    =  sum_j log p_mixed(x_{i+j}) - log p_base(x_{i+j})  QuietSTaR.credit
           advantage =  max(0, reward - mean of the position's others)    thought_advantage
           loss      =  1/2 NLL_base                                      QuietSTaR.forward
                        + 1/2 NLL_mixed - reinforce_weight * advantage * log p(t_1 .. t_m)   learn

A thought of position i has read x_0 .. x_i and is about to predict x_{i+1}. It is the sequence

  start, t_1 .. t_m, end, x_{i+1} .. x_{i+a-1}      steps s = 0 .. m + a, position ids i + 1 + s

Reading `end` predicts x_{i+1}, reading the true x_{i+1} predicts x_{i+2} (teacher forcing), etc. In
loops: tests/naive.py; in less time and memory: fast.py. What differs from the paper: at the end.

  B  texts    L  tokens of a text    S  positions that think    N  thoughts of a position
  m  sampled tokens of a thought     a  true tokens after it    C  width    V  vocabulary
"""

from collections import namedtuple
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
import torch.nn as nn

from model import attention, sample


@dataclass
class QuietSTaRConfig:
    thought_len: int = 4  # sampled tokens of a thought (m); 0: only start and end, a pause
    n_thoughts: int = 4  # thoughts sampled at each position (N)
    n_true: int = 1  # true tokens that a thought is scored on (a); more for real text
    reinforce_weight: float = 1.0  # weight of the REINFORCE term in the loss; 0: no REINFORCE
    reward_on: Literal["mixed", "thought"] = "mixed"  # thought: reward as if the gate w were 1
    baseline: Literal["others", "all", "none"] = "others"  # whose mean reward is subtracted
    clamp_advantage: bool = True  # drop negative advantages, as the paper: steadier, but biased
    thought_temperature: float = 1.0  # thoughts are sampled at this temperature; 0: greedily
    log_prob_temperature: float = 1.0  # temperature of log p(thought) in REINFORCE (release: 3)
    embedding_scale: float = 20.0  # start and end are stored divided by it: they learn faster


# ---- 1. Parallel thoughts: the mask (section 4.2, figure 3)
def thought_mask(query, key, sliding_window=None):
    """Which token may see which, when all positions of a text think at once: bool (..., Q, K).

    query and key are triples (position, thought, step) of integers, each (..., Q) or (..., K). A
    token of a thought is step s of thought n of position i (n tells apart thoughts of a position).
    A token of the text has its position, and n = s = -1. A token's position id is i + 1 + s.

    Three text tokens a b c, each with a thought of two steps (a' a", ...), laid out step by step:

              a  b  c    a' b' c'   a" b" c"
         a    x  .  .    .  .  .    .  .  .
         b    x  x  .    .  .  .    .  .  .      text sees the text before it, and never a thought
         c    x  x  x    .  .  .    .  .  .
         a'   x  .  .    x  .  .    .  .  .
         b'   x  x  .    .  x  .    .  .  .      a thought sees the text up to its position ...
         c'   x  x  x    .  .  x    .  .  .
         a"   x  .  .    x  .  .    x  .  .
         b"   x  x  .    .  x  .    .  x  .      ... and its own steps, but no other thought
         c"   x  x  x    .  .  x    .  .  x
    """
    query_position, query_thought, query_step = (x[..., :, None] for x in query)
    key_position, key_thought, key_step = (x[..., None, :] for x in key)
    sees_text = (key_step < 0) & (key_position <= query_position)
    same_thought = (key_position == query_position) & (key_thought == query_thought)
    sees_itself = (key_step >= 0) & same_thought & (key_step <= query_step)
    mask = sees_text | sees_itself
    if sliding_window is not None:  # Mistral's window counts position ids, in thoughts as in text
        distance = (query_position + query_step) - (key_position + key_step)
        mask = mask & (distance < sliding_window)
    return mask


class ThoughtCache:
    """Keys and values of a text and its thoughts. Unlike model.KVCache it keeps the autograd graph:
    the forward passes that sample a thought are those that learn from it."""

    def __init__(self, may_see, tokens=None, keys_values=()):
        self.may_see = may_see  # function of query and key, as thought_mask
        self.tokens = tokens  # (position, thought, step) of all tokens so far, (3, B, tokens)
        self.keys_values = dict(keys_values)  # by layer: k and v (B, key heads, tokens, head_dim)

    def copy(self):
        """Another cache that begins with the same tokens. What one adds, the other has not."""
        return ThoughtCache(self.may_see, self.tokens, self.keys_values)

    def expect(self, position, thought, step):
        """Announce the tokens of the next forward pass: position and thought (B, new), one step.
        Returns their position ids (B, new) and their mask (B, 1, new, all tokens so far)."""
        new = torch.stack((position, thought, torch.full_like(position, step)))
        self.tokens = new if self.tokens is None else torch.cat((self.tokens, new), dim=2)
        return position + 1 + step, self.may_see(new, self.tokens)[:, None]

    def attend(self, layer, q, k, v, mask):
        """Add keys and values of the new tokens; then their queries look at all they may see."""
        if layer in self.keys_values:
            past_k, past_v = self.keys_values[layer]
            k, v = torch.cat((past_k, k), dim=2), torch.cat((past_v, v), dim=2)
        self.keys_values[layer] = k, v
        return attention(q, k, v, mask)


# ---- 2. The start and end of a thought (section 4.2), and the mixing head (section 4.3)
class ThoughtTokens(nn.Module):
    """<|startofthought|> and <|endofthought|>: two learned vectors outside of the vocabulary,
    stored divided by `scale`, so that Adam moves them faster. train.py begins with an em dash."""

    def __init__(self, dim, scale):
        super().__init__()
        self.scale = scale
        self.start = nn.Parameter(torch.randn(dim) * 0.02 / scale)
        self.end = nn.Parameter(torch.randn(dim) * 0.02 / scale)

    def forward(self):
        return self.start * self.scale, self.end * self.scale  # (C,), (C,)


class MixingHead(nn.Module):
    """The gate w, the weight of the prediction after a thought: (..., C), (..., C) -> (..., 1)."""

    def __init__(self, dim):
        super().__init__()
        self.base = nn.Linear(dim, dim)  # with `thought`, one Linear of [h_base ; h_thought], so
        self.thought = nn.Linear(dim, dim, bias=False)  # that N thoughts share the part of h_base
        self.inner = nn.Linear(dim, dim)
        self.last = nn.Linear(dim, 1, bias=False)
        nn.init.zeros_(self.last.weight)  # before training w = 0: the model is the base model

    def forward(self, h_base, h_thought):
        first = (self.base(h_base) + self.thought(h_thought)).relu()
        return self.last(self.inner(first).relu())


# ---- 3. Advantages (section 4.4), and means
def thought_advantage(reward, clamp, baseline="others"):
    """reward - baseline, (B, N, ...): the baseline is the mean reward of the position's "others" (0
    for a single thought), or that of "all" N, which leaves (N - 1) / N of the gradient."""
    of_others = (reward.sum(1, keepdim=True) - reward) / max(1, reward.shape[1] - 1)
    baselines = {"others": of_others, "all": reward.mean(1, keepdim=True), "none": 0.0}
    advantage = reward - baselines[baseline]
    return advantage.clamp(min=0) if clamp else advantage


def mean_weights(valid):
    """The weight of each entry of valid (B, ...), bool, in a mean over the valid entries of a text,
    and then over texts. Together they are 1, if every text has a valid entry."""
    count = valid.sum(tuple(range(1, valid.dim())), keepdim=True).clamp(min=1)
    return valid / (count.double() * len(valid))


def weighted_mean(weights, values):
    """sum(weights (B, ...) * values (B, ...)); values (B, N, ...) are first averaged over N."""
    values = values.mean(1) if values.dim() > weights.dim() else values
    return torch.where(weights > 0, values * weights.to(values.dtype), 0).sum()  # 0 * inf is nan


# ---- 4. Think, talk, learn (Algorithm 1)
# A text that was read without thoughts: embedded and hidden (B, L, C), and its cache.
Text = namedtuple("Text", "embedded hidden cache")
# The true tokens x_{i+1} .. x_{i+a} of each position, (B, S, a). valid: is there such a token, in
# the same document? token_weights (B, S, a), position_weights (B, S): see mean_weights.
Targets = namedtuple("Targets", "tokens valid log_p_base token_weights position_weights")
# thoughts (B, N, S, m) t_1 .. t_m, and hidden states: h_policy (B, N, S, m, C) predict t_1 .. t_m;
# h_base (B, 1, S, a, C) predict true tokens without the thought, h_thought (B, N, S, a, C) with it.
Thinking = namedtuple("Thinking", "thoughts h_policy h_base h_thought")
Prediction = namedtuple("Prediction", "h_base h_mixed gate thoughts")


class QuietSTaR(nn.Module):
    """A language model (model.Transformer) that thinks. `forward` is Algorithm 1."""

    SETTINGS = {field.name for field in fields(QuietSTaRConfig)} - {"embedding_scale"}

    def __init__(self, model, config):
        super().__init__()
        self.model, self.config = model, config
        self.thought_tokens = ThoughtTokens(model.config.dim, config.embedding_scale)
        self.mixing_head = MixingHead(model.config.dim)

    def forward(self, tokens, thoughts=None, positions=None, documents=None, noise=None):
        """The loss of texts, tokens (B, L), and metrics: a dict of means over the batch, in nats.

        thoughts    (B, N, S, m) learn from these instead of sampling
        positions   (B, S) that think, or a function that chooses them by the text's hidden states
                    (B, L, C); None: all that have n_true tokens after them
        documents   (B, L) number of each token's document, -1: padding. There is no loss on a token
                    predicted from another document (attention crosses documents); None: all one
        noise       (B, N, S, m) uniform numbers that decide the sampling, see model.sample
        """
        text = self.read(tokens)
        documents = torch.zeros_like(tokens) if documents is None else documents
        log_p_text = self.log_prob(text.hidden[:, :-1], tokens[:, 1:])  # (B, L - 1)
        counts = (documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] >= 0)
        nll_base = -weighted_mean(mean_weights(counts), log_p_text)

        positions = self.choose(positions, text)
        targets = self.targets(tokens, positions, documents, log_p_text.detach())
        loss, metrics = self.think_talk_learn(text, positions, thoughts, noise, targets)
        loss = 0.5 * nll_base + loss
        return loss, {"loss": loss.detach(), "nll_base": nll_base.detach(), **metrics}

    def think_talk_learn(self, text, positions, thoughts, noise, targets):
        """The body of Algorithm 1: the loss of thoughts at positions (B, S), and metrics."""
        thinking = self.think(text, positions, thoughts, noise)
        h_mixed, gate = self.talk(thinking.h_base, thinking.h_thought)
        log_p_mixed = self.log_prob(h_mixed, targets.tokens[:, None])  # (B, N, S, a)
        return self.learn(thinking, h_mixed, gate, log_p_mixed, targets)

    def read(self, tokens):
        """Read texts, tokens (B, L), without thoughts."""
        cache, embedded = ThoughtCache(self.may_see), self.model.tok_embeddings(tokens)
        position = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
        ids, mask = cache.expect(position, torch.full_like(position, -1), -1)
        return Text(embedded, self.model(embedded, ids, mask, cache), cache)

    def may_see(self, query, key):
        """thought_mask, within the model's sliding window."""
        return thought_mask(query, key, self.model.config.sliding_window)

    def shape_of(self, positions, thoughts):
        """(B, N, S, m) of thoughts at positions (B, S). ValueError if those given are not so."""
        N = self.config.n_thoughts if thoughts is None else thoughts.shape[1]
        shape = len(positions), N, positions.shape[1], self.config.thought_len
        if thoughts is not None and thoughts.shape != shape:
            raise ValueError(f"thoughts must be {shape}, not {tuple(thoughts.shape)}")
        return shape

    def think(self, text, positions, thoughts=None, noise=None):
        """THINK at positions (B, S), all in parallel (section 4.2), and read on: Thinking."""
        B, N, S, m = shape = self.shape_of(positions, thoughts)
        a, L = self.config.n_true, text.hidden.shape[1]
        row = torch.arange(B, device=positions.device)[:, None, None]
        reads = positions[:, :, None] + torch.arange(a, device=positions.device)  # i .. i + a - 1
        reads = reads.clamp(max=L - 1)  # past the text's end any token will do: it is not valid
        true = text.embedded[row, reads][:, None].expand(B, N, S, a, -1)
        start, end = (vector.expand(B, N, S, -1) for vector in self.thought_tokens())
        tokens = positions.new_empty(shape) if thoughts is None else thoughts

        # Each forward pass reads one more vector of every thought, x (B, N, S, C).
        cache = text.cache.copy()
        position = positions[:, None].expand(B, N, S).flatten(1)
        thought = torch.arange(N * S, device=positions.device).expand(B, N * S)
        after = [end, *true.unbind(3)[1:]]  # x_i is not read again
        x, hidden = start, []
        for s in range(m + a + 1):
            ids, mask = cache.expect(position, thought, s)
            h = self.model(x.flatten(1, 2), ids, mask, cache).unflatten(1, (N, S))
            hidden.append(h)
            if s < m:  # h predicts t_{s+1}, which is sampled and read next
                if thoughts is None:
                    u = None if noise is None else noise[..., s]
                    logits = self.model.logits(h.detach())  # `learn` makes log p, with a gradient
                    tokens[..., s] = sample(logits, self.config.thought_temperature, u)
                x = self.next_input(h, self.model.tok_embeddings(tokens[..., s].clone()))
            elif s < m + a:  # `end`, and true tokens whatever h predicts (teacher forcing)
                x = after[s - m]
        h = torch.stack(hidden, dim=3)  # (B, N, S, 1 + m + a, C)
        h_base = text.hidden[row, reads][:, None]
        return Thinking(tokens, h[:, :, :, :m], h_base, h[:, :, :, m + 1 :])

    def next_input(self, h, embedded):
        """What a thought reads after h: the embedding of the token sampled there, not h itself."""
        return embedded

    def talk(self, h_base, h_thought):
        """TALK: mix hidden states (..., C) by the gate (section 4.3): h_mixed (..., C), w (...).

        The output layer is linear, so this mixes logits. Softmax does not see what is added to all
        logits alike, so it is the paper's mixing of log-probabilities as well, normalized."""
        w = self.mixing_head(h_base, h_thought)  # (..., 1)
        return h_base + w * (h_thought - h_base), w[..., 0]

    def targets(self, tokens, positions, documents, log_p_text):
        """The true tokens after positions (B, S), and which of them count: Targets."""
        row = torch.arange(len(tokens), device=tokens.device)[:, None, None]
        here = positions[:, :, None]
        ahead = here + torch.arange(1, self.config.n_true + 1, device=tokens.device)  # (B, S, a)
        there = ahead.clamp(max=tokens.shape[1] - 1)
        document = documents[row, there]
        valid = (ahead == there) & (document == documents[row, here]) & (document >= 0)
        weights = mean_weights(valid), mean_weights(valid.any(-1))
        return Targets(tokens[row, there], valid, log_p_text[row, there - 1], *weights)

    def learn(self, thinking, h_mixed, gate, log_p_mixed, targets):
        """LEARN to predict after a thought, and to think (section 4.4): the loss, and metrics."""
        nll_mixed = -weighted_mean(targets.token_weights, log_p_mixed)

        with torch.no_grad():  # a reward is a fact, not something to differentiate
            log_p = log_p_mixed
            if self.config.reward_on == "thought":
                log_p = self.log_prob(thinking.h_thought, targets.tokens[:, None])
            reward, advantage = self.credit(thinking, log_p, h_mixed, targets)

        # REINFORCE: the value of this term means nothing. On average its gradient is minus that of
        # the expected reward by way of sampling (baseline "others", no clamp, equal temperatures).
        temperature = self.config.log_prob_temperature
        log_prob = self.log_prob(thinking.h_policy, thinking.thoughts, temperature)  # (B, N, S, m)
        reinforce = -weighted_mean(targets.position_weights, (advantage * log_prob).sum(-1))
        loss = 0.5 * nll_mixed + self.config.reinforce_weight * reinforce

        of_thoughts = {
            "reward": reward,
            "advantage_abs": advantage.abs().sum(-1) / max(1, advantage.shape[-1]),
            "thought_nll": -log_prob.sum(-1) / max(1, log_prob.shape[-1]),
        }
        metrics = {k: weighted_mean(targets.position_weights, x) for k, x in of_thoughts.items()}
        metrics |= {"gate": weighted_mean(targets.token_weights, gate), "nll_mixed": nll_mixed}
        return loss, {name: value.detach() for name, value in metrics.items()}

    def credit(self, thinking, log_p, h_mixed, targets):
        """The reward of each thought (B, N, S): how much likelier it made its true tokens, in nats.
        And its advantage (B, N, S, 1), one weight for the log p of all its tokens."""
        clamp, baseline = self.config.clamp_advantage, self.config.baseline
        reward = ((log_p - targets.log_p_base[:, None]) * targets.valid[:, None]).sum(-1)
        return reward, thought_advantage(reward, clamp, baseline)[..., None]

    def log_prob(self, hidden, tokens, temperature=1.0):
        """log p of tokens (...), each predicted by a hidden state (..., C)."""
        log_p = (self.model.logits(hidden) / temperature).log_softmax(-1)
        return log_p.gather(-1, tokens.expand(log_p.shape[:-1])[..., None])[..., 0]

    @torch.no_grad()
    def predict(self, tokens, positions=None, thoughts=None, noise=None):
        """Think, and predict the true tokens: h_base (B, 1, S, a, C), h_mixed (B, N, S, a, C),
        gate (B, N, S, a), thoughts (B, N, S, m). The arguments are those of `forward`."""
        text = self.read(tokens)
        thinking = self.think(text, self.choose(positions, text), thoughts, noise)
        h_mixed, gate = self.talk(thinking.h_base, thinking.h_thought)
        return Prediction(thinking.h_base, h_mixed, gate, thinking.thoughts)

    def choose(self, positions, text):
        """The positions (B, S) that `forward` was told."""
        B, L, _ = text.hidden.shape
        if callable(positions):
            return positions(text.hidden.detach())
        if positions is None and L > self.config.n_true:
            return torch.arange(L - self.config.n_true, device=text.hidden.device).expand(B, -1)
        none = positions is None or not positions.numel()
        if none or positions.min() < 0 or positions.max() >= L:
            raise ValueError(f"positions must be at least one, from 0 to {L - 1}")
        return positions

    def with_settings(self, **changes):
        """The same model and weights with other settings: greedy thoughts, say."""
        for name, value in changes.items():
            if name not in self.SETTINGS and value != getattr(self.config, name, None):
                raise ValueError(f"{name} cannot be changed after a model was made")
        other = object.__new__(type(self))  # not copy.copy, which FSDP2 forbids
        other.__dict__ = {**self.__dict__, "config": replace(self.config, **changes)}
        return other

    @torch.no_grad()
    def speak(
        self, tokens, max_new_tokens, temperature=1.0, thought_temperature=0.0, generator=None
    ):
        """Continue texts, tokens (B, T), thinking before each new token. For each it yields the
        token (B,), its thought (B, m) and its gate (B,). Thoughts are greedy, as in the paper."""
        quiet = self.with_settings(n_thoughts=1, n_true=1, thought_temperature=thought_temperature)
        B, device = len(tokens), tokens.device
        for _ in range(max_new_tokens):  # each reads all of the text anew; fast.py has a cache
            last = tokens.new_full((B, 1), tokens.shape[1] - 1)
            noise = torch.rand(B, 1, 1, self.config.thought_len, generator=generator, device=device)
            predicted = quiet.predict(tokens, last, noise=noise)
            logits = self.model.logits(predicted.h_mixed[:, 0, 0, -1])
            token = sample(logits, temperature, generator=generator)
            yield token, predicted.thoughts[:, 0, 0], predicted.gate[:, 0, 0, -1]
            tokens = torch.cat((tokens, token[:, None]), dim=1)


def generate_with_thoughts(quiet, tokens, *args, **kwargs):
    """All that `speak` yields: tokens (B, T + new), thoughts (B, new, m), gates (B, new)."""
    new, thoughts, gates = zip(*quiet.speak(tokens, *args, **kwargs), strict=True)
    tokens = torch.cat((tokens, torch.stack(new, 1)), dim=1)
    return tokens, torch.stack(thoughts, 1), torch.stack(gates, 1)


# ---- How this differs from the paper and from the authors' release, and why
# 1. The gate w multiplies the prediction after the thought, as in the release; in the paper, the
#    other one. It has no sigmoid and starts at 0: mixed rewards are 0 until w moves.
# 2. The baseline is the mean reward of the other N - 1 thoughts; in paper and release, of all N.
# 3. Half of the loss is NLL_base, as in the release; the paper has NLL_mixed alone.
# 4. log p(thought) is a sum over m tokens, at the temperature of sampling; in the release a mean,
#    at 3. Else weight 1 equals its beta = m N / (N - 1): 18 for m = 9, N = 2. It uses 1e6.
# 5. Thoughts are greedy in evaluation, as in the paper; the release samples. Its weights are
#    bfloat16, ours float32. train.py thinks at a quarter of the positions by default.
