"""
Quiet-STaR: a language model that thinks before it speaks (Zelikman et al. 2024, arXiv 2403.09629).

After every token of a text the model samples short hidden thoughts. A mixing head weighs the
prediction after a thought against the one without it, and thoughts that made the true next tokens
more likely are reinforced. Algorithm 1 of the paper, and the function that does each line:

  for every text x_0 .. x_{L-1} of the batch
           h_base    <- hidden states of the text                         QuietSTaR.read
    for every position i that thinks, all in parallel                     thought_mask
      for each of n_thoughts thoughts
  THINK    t_1 .. t_m ~ model( . | x_0 .. x_i, start)                     QuietSTaR.think
           h_thought <- model reads t_1 .. t_m, end, x_{i+1} .. x_{i+a-1}
  TALK     w         <- mixing head(h_base, h_thought)                    QuietSTaR.talk
           p_mixed   <- softmax(output((1-w) h_base + w h_thought))
  LEARN    reward    =  sum_j log p_mixed(x_{i+j}) - log p_base(x_{i+j})  thought_reward
           advantage =  max(0, reward - mean of the position's others)    thought_advantage
           loss      =  1/2 NLL_base                                      QuietSTaR.forward
                        + 1/2 NLL_mixed - reinforce_weight * advantage * log p(t_1 .. t_m)   learn

A thought of position i has read x_0 .. x_i and is about to predict x_{i+1}. It is the sequence

  start, t_1 .. t_m, end, x_{i+1} .. x_{i+a-1}      steps s = 0 .. m + a, position ids i + 1 + s

Reading `end` predicts x_{i+1}, reading the true x_{i+1} predicts x_{i+2} (teacher forcing), and so
on. The same in loops: tests/naive.py. The same in less time and memory: fast.py, which trains with
--fast. The end says how this differs from the paper. Letters in the comments on shapes:

  B  texts    L  tokens of a text    S  positions that think    N  thoughts of a position
  m  sampled tokens of a thought     a  true tokens after it    C  width    V  vocabulary
"""

from collections import namedtuple
from dataclasses import dataclass, fields, replace
from typing import Literal

import torch
import torch.nn as nn

from model import KVCache, attention, sample


@dataclass
class QuietSTaRConfig:
    thought_len: int = 4  # sampled tokens of a thought, without start and end (m); 0: a pause
    n_thoughts: int = 4  # thoughts sampled at each position (N)
    n_true: int = 1  # true tokens that a thought is scored on (a); more for real text
    reinforce_weight: float = 1.0  # weight of the REINFORCE term in the loss; 0: no REINFORCE
    reward_on: Literal["mixed", "thought"] = "mixed"  # what is rewarded; thought: as if w were 1
    baseline: Literal["others", "all", "none"] = "others"  # whose mean reward is subtracted
    clamp_advantage: bool = True  # drop negative advantages, as the paper: steadier, but biased
    thought_temperature: float = 1.0  # thoughts are sampled at this temperature; 0: greedily
    log_prob_temperature: float = 1.0  # temperature of log p(thought) in REINFORCE (release: 3)
    embedding_scale: float = 20.0  # start and end are stored divided by it: they learn faster


# ---- 1. Parallel thoughts: the mask (section 4.2, figure 3)
def thought_mask(query, key, sliding_window=None):
    """Which token may see which, when all positions of a text think at once: bool (..., Q, K).

    query and key are triples (position, thought, step) of integers, each (..., Q) or (..., K). A
    token of a thought is step s of thought n of position i; n differs within a text. A token of the
    text has its position, and n = s = -1. The position id of any token is i + 1 + s.

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

    def __init__(self, mask, tokens=None, keys_values=()):
        self.mask = mask  # function of query and key, as thought_mask
        self.tokens = tokens  # (position, thought, step) of all tokens so far, each (B, tokens)
        self.keys_values = dict(keys_values)  # by layer: k and v (B, key heads, tokens, head_dim)

    def expect(self, *new):
        """Announce the tokens of the next forward pass: (position, thought, step), each (B, new).
        Returns their position ids (B, new) and their mask (B, 1, new, all tokens so far)."""
        pairs = zip(self.tokens or new, new, strict=True)
        self.tokens = [torch.cat(pair, 1) for pair in pairs] if self.tokens else new
        position, _, step = new
        return position + 1 + step, self.mask(new, self.tokens)[:, None]

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
        # `base` and `thought` together are one Linear(2C, C) of [h_base ; h_thought]. They are two,
        # so that the product with h_base, which N thoughts share, is made once.
        self.base = nn.Linear(dim, dim)
        self.thought = nn.Linear(dim, dim, bias=False)
        self.inner = nn.Linear(dim, dim)
        self.last = nn.Linear(dim, 1, bias=False)
        nn.init.zeros_(self.last.weight)  # before training w = 0: the model is the base model

    def forward(self, h_base, h_thought):
        first = (self.base(h_base) + self.thought(h_thought)).relu()
        return self.last(self.inner(first).relu())


# ---- 3. Reward and baseline (section 4.4)
def thought_reward(log_p, log_p_base, valid):
    """How much likelier a thought made its true tokens, in nats: (B, N, S, a) -> (B, N, S).
    log_p_base, valid (B, S, a): a token that is not valid (it is past the text's end) counts 0."""
    return ((log_p - log_p_base[:, None]) * valid[:, None]).sum(-1)


def thought_advantage(reward, clamp, baseline="others"):
    """reward - baseline, (B, N, ...): the baseline is the mean reward of the position's others.

    Without the thought itself it leaves the gradient unbiased; the mean of "all" N scales it by
    (N - 1) / N. A single thought has no others: its baseline is 0, as with "none"."""
    of_others = (reward.sum(1, keepdim=True) - reward) / max(1, reward.shape[1] - 1)
    baselines = {"others": of_others, "all": reward.mean(1, keepdim=True), "none": 0.0}
    advantage = reward - baselines[baseline]
    return advantage.clamp(min=0) if clamp else advantage  # clamped, the gradient is biased


def mean_weights(valid):
    """The weight of each entry of valid (B, ...), bool, in a mean over the valid entries of a text,
    and then over texts. Together they are 1, if every text has a valid entry."""
    count = valid.flatten(1).sum(1).clamp(min=1).view(-1, *[1] * (valid.dim() - 1))
    return valid / (count.double() * len(valid))


def weighted_mean(weights, values):
    """sum(weights (B, ...) * values), where values (B, N, ...) of thoughts are averaged over N."""
    values = values.mean(1) if values.dim() > weights.dim() else values
    return torch.where(weights > 0, values * weights.to(values.dtype), 0).sum()  # 0 * inf is nan


def text_nll(log_p, documents):
    """The mean NLL of x_1, x_2, .. of texts, by their log p (B, L - 1). documents (B, L): no token
    counts that is predicted from another one, nor padding (-1)."""
    same_document = (documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] >= 0)
    return -weighted_mean(mean_weights(same_document), log_p)


def take(x, index):
    """Entries of x (B, L, ...) at index (B, ...)."""
    rows = torch.arange(len(x), device=x.device).view(-1, *[1] * (index.dim() - 1))
    return x[rows, index]


# ---- 4. Think, talk, learn (Algorithm 1)

# A text that was read without thoughts: embedded and hidden (B, L, C), and its cache.
Text = namedtuple("Text", "embedded hidden cache")
# tokens (B, N, S, m) t_1 .. t_m, and hidden states: h_policy (B, N, S, m, C) predict t_1 .. t_m;
# h_base (B, 1, S, a, C) and h_thought (B, N, S, a, C) predict true tokens without and after them.
Thoughts = namedtuple("Thoughts", "tokens h_policy h_base h_thought")
# The true tokens x_{i+1} .. x_{i+a} of each position, (B, S, a). valid: is there such a token, in
# the same document? token_weights (B, S, a), position_weights (B, S): see mean_weights.
Targets = namedtuple("Targets", "tokens valid log_p_base token_weights position_weights")
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
        nll_base = text_nll(log_p_text, documents)

        positions = self.choose(positions, text)
        targets = self.targets(tokens, positions, documents, log_p_text.detach())
        loss, metrics = self.think_talk_learn(text, positions, thoughts, noise, targets)
        loss = 0.5 * nll_base + loss
        return loss, {"loss": loss.detach(), "nll_base": nll_base.detach(), **metrics}

    def think_talk_learn(self, text, positions, thoughts, noise, targets):
        """The body of Algorithm 1: the loss of thoughts at positions (B, S), and metrics."""
        thoughts = self.think(text, positions, thoughts, noise)
        h_mixed, gate = self.talk(thoughts.h_base, thoughts.h_thought)
        loss, values = self.learn(thoughts, h_mixed, gate, targets)
        metrics = {}
        for name, value in values.items():
            of_tokens = value.dim() == 4  # (B, N, S, a), else (B, N, S)
            weights = targets.token_weights if of_tokens else targets.position_weights
            metrics[name] = weighted_mean(weights, value).detach()
        return loss, metrics

    def read(self, tokens):
        """Read texts, tokens (B, L), without thoughts."""
        cache, embedded = ThoughtCache(self.may_see), self.model.tok_embeddings(tokens)
        position = torch.arange(tokens.shape[1], device=tokens.device).expand(tokens.shape)
        no_thought = torch.full_like(position, -1)
        ids, mask = cache.expect(position, no_thought, no_thought)
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
        """THINK at positions (B, S), all in parallel (section 4.2), and read on: Thoughts."""
        B, N, S, m = self.shape_of(positions, thoughts)
        a, L = self.config.n_true, text.hidden.shape[1]
        position = positions[:, None].expand(B, N, S).flatten(1)
        thought = torch.arange(N * S, device=positions.device).expand(B, N * S)
        cache = ThoughtCache(text.cache.mask, text.cache.tokens, text.cache.keys_values)

        def read_step(x, step):
            """Every thought reads one more vector, x (B, N, S, C): hidden states likewise."""
            ids, mask = cache.expect(position, thought, torch.full_like(position, step))
            return self.model(x.flatten(1, 2), ids, mask, cache).unflatten(1, (N, S))

        # sample t_1 .. t_m, one token of every thought at a time
        start, end = (vector.expand(B, N, S, -1) for vector in self.thought_tokens())
        x, tokens, h_policy = start, [], []
        for s in range(m):
            h = read_step(x, s)
            if thoughts is None:
                u = None if noise is None else noise[..., s]
                token = sample(self.model.logits(h.detach()), self.config.thought_temperature, u)
            else:
                token = thoughts[..., s]
            x = self.next_input(h, self.model.tok_embeddings(token))
            tokens.append(token)
            h_policy.append(h)
        read_step(x, m)  # t_m was sampled, but not read yet (start, if m = 0)

        # read end and then the true tokens but the last: each predicts the true token after it
        ahead = positions[:, :, None] + torch.arange(a, device=positions.device)
        inside = ahead.clamp(max=L - 1)  # past the text's end any token will do: it is not valid
        h_thought = [read_step(end, m + 1)]
        for j in range(1, a):
            true = take(text.embedded, inside[:, :, j])
            h_thought.append(read_step(true[:, None].expand(B, N, S, -1), m + 1 + j))
        tokens = torch.stack(tokens, 3) if m else positions.new_empty(B, N, S, 0)
        h_policy = torch.stack(h_policy, 3) if m else x.new_empty(B, N, S, 0, x.shape[-1])
        h_base = take(text.hidden, inside)[:, None]
        return Thoughts(tokens, h_policy, h_base, torch.stack(h_thought, 3))

    def next_input(self, h, embedded):
        """What a thought reads after h: the embedding of the token that it sampled there."""
        return embedded

    def talk(self, h_base, h_thought):
        """TALK: mix hidden states (..., C) by the gate (section 4.3): h_mixed (..., C), w (...).

        The output layer is linear, so this mixes logits. Softmax does not see what is added to all
        logits alike, so it is the paper's mixing of log-probabilities as well."""
        w = self.mixing_head(h_base, h_thought)  # (..., 1)
        return h_base + w * (h_thought - h_base), w[..., 0]

    def targets(self, tokens, positions, documents, log_p_text):
        """The true tokens after positions (B, S), and which of them count: Targets."""
        steps = torch.arange(1, self.config.n_true + 1, device=tokens.device)
        ahead = positions[:, :, None] + steps  # (B, S, a)
        inside = ahead.clamp(max=tokens.shape[1] - 1)
        here, there = take(documents, positions)[:, :, None], take(documents, inside)
        valid = (ahead == inside) & (here == there) & (there >= 0)
        weights = mean_weights(valid), mean_weights(valid.any(-1))
        return Targets(take(tokens, inside), valid, take(log_p_text, inside - 1), *weights)

    def learn(self, thoughts, h_mixed, gate, targets):
        """LEARN to predict after a thought, and to think (section 4.4): the loss, and what is worth
        logging of true tokens (B, N, S, a) and of thoughts (B, N, S)."""
        true = targets.tokens[:, None].expand(gate.shape)
        log_p_mixed = self.log_prob(h_mixed, true)
        nll_mixed = -weighted_mean(targets.token_weights, log_p_mixed)

        with torch.no_grad():  # a reward is a fact, not something to differentiate
            on_thought = self.config.reward_on == "thought"
            log_p = self.log_prob(thoughts.h_thought, true) if on_thought else log_p_mixed
            reward, advantage = self.credit(log_p, h_mixed, targets)

        # REINFORCE: the value of this term means nothing. Its gradient is, in expectation (without
        # the clamp, at equal temperatures), minus that of the expected reward by way of sampling.
        temperature = self.config.log_prob_temperature
        log_prob = self.log_prob(thoughts.h_policy, thoughts.tokens, temperature)  # (B, N, S, m)
        reinforce = -weighted_mean(targets.position_weights, (advantage * log_prob).sum(-1))
        loss = 0.5 * nll_mixed + self.config.reinforce_weight * reinforce

        nll_thought = -log_prob.sum(-1) / max(1, log_prob.shape[-1])
        values = {"nll_mixed": -log_p_mixed, "gate": gate, "reward": reward}
        return loss, {
            **values,
            "advantage_abs": advantage.abs().mean(-1),
            "thought_nll": nll_thought,
        }

    def credit(self, log_p, h_mixed, targets):
        """The reward of each thought (B, N, S), by log p of the true tokens (B, N, S, a), and its
        advantage (B, N, S, 1): one weight for the log p of all its tokens."""
        reward = thought_reward(log_p, targets.log_p_base, targets.valid)
        config = self.config
        return reward, thought_advantage(reward, config.clamp_advantage, config.baseline)[..., None]

    def log_prob(self, hidden, tokens, temperature=1.0):
        """log p of tokens (...), each predicted by a hidden state (..., C)."""
        log_p = (self.model.logits(hidden) / temperature).log_softmax(-1)
        return log_p.gather(-1, tokens[..., None])[..., 0]

    @torch.no_grad()
    def predict(self, tokens, positions=None, thoughts=None, noise=None):
        """Think, and predict the true tokens: h_base (B, 1, S, a, C), h_mixed (B, N, S, a, C),
        gate (B, N, S, a), thoughts (B, N, S, m). The arguments are those of `forward`."""
        text = self.read(tokens)
        thoughts = self.think(text, self.choose(positions, text), thoughts, noise)
        mixed = self.talk(thoughts.h_base, thoughts.h_thought)
        return Prediction(thoughts.h_base, *mixed, thoughts.tokens)

    def choose(self, positions, text):
        """The positions (B, S) that `forward` was told."""
        B, L, _ = text.hidden.shape
        if callable(positions):
            return positions(text.hidden.detach())
        if positions is None:
            S = max(0, L - self.config.n_true)
            positions, wrong = torch.arange(S, device=text.hidden.device).expand(B, S), S == 0
        else:
            wrong = not positions.numel() or positions.min() < 0 or positions.max() >= L
        if wrong:
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


# ---- 5. Speaking with thoughts
def think_next(quiet, tokens, cache, temperature=0.0, generator=None):
    """Read new tokens (B, R), think, and mix: h_mixed (B, C), thought (B, m), gate (B,). A thought
    at the end of a text sees all that is before it: a KVCache needs no mask for it."""
    model, m = quiet.model, quiet.config.thought_len
    start, end = (vector.expand(len(tokens), 1, -1) for vector in quiet.thought_tokens())
    x = model.tok_embeddings(tokens)
    hidden = model(torch.cat((x, start) if m else (x, start, end), dim=1), cache=cache)
    h_base, h = hidden[:, x.shape[1] - 1], hidden[:, -1]
    thought = tokens.new_empty(len(tokens), m)
    for s in range(m):
        thought[:, s] = sample(model.logits(h), temperature, generator=generator)
        x = quiet.next_input(h[:, None], model.tok_embeddings(thought[:, s : s + 1]))
        x = torch.cat((x, end), dim=1) if s == m - 1 else x  # t_m and end share a pass
        h = model(x, cache=cache)[:, -1]
    h_mixed, gate = quiet.talk(h_base, h)
    return h_mixed, thought, gate


@torch.no_grad()
def speak(
    quiet, tokens, max_new_tokens, temperature=1.0, thought_temperature=0.0, generator=None,
    think=think_next,
):  # fmt: skip
    """Continue texts, tokens (B, T), thinking before each new token. For each it yields the token
    (B,), its thought (B, m) and its gate (B,). Thoughts are greedy, as in the paper."""
    model, T = quiet.model, tokens.shape[1]
    room = T + max_new_tokens + quiet.config.thought_len + 2
    dtype = model.tok_embeddings.weight.dtype
    cache = KVCache(model.config, len(tokens), room, tokens.device, dtype)
    for length in range(T, T + max_new_tokens):
        h, thought, gate = think(quiet, tokens, cache, thought_temperature, generator)
        cache.forget_after(length)  # the thought is over: what stays is the text
        token = sample(model.logits(h), temperature, generator=generator)
        yield token, thought, gate
        tokens = token[:, None]


def generate_with_thoughts(quiet, tokens, *args, **kwargs):
    """All of `speak`: tokens (B, T + new), thoughts (B, new, m), gates (B, new)."""
    new, thoughts, gates = zip(*speak(quiet, tokens, *args, **kwargs), strict=True)
    tokens = torch.cat((tokens, torch.stack(new, 1)), dim=1)
    return tokens, torch.stack(thoughts, 1), torch.stack(gates, 1)


# ---- How this differs from the paper and from the authors' release, and why
#
# 1. The gate w multiplies the prediction after the thought, as in the release; in the paper, the
#    other one. It has no sigmoid and starts at 0: no thought has a reward until w moves.
# 2. The baseline is the mean reward of the other N - 1 thoughts. Paper and release take the mean of
#    all N. Like both, we drop negative advantages by default; that does bias the gradient.
# 3. log p(thought) is taken at the temperature of sampling, 1. The release takes it at 3.
# 4. Thoughts are greedy in evaluation, as in the paper. The release samples even there.
# 5. Weights are float32. The release's are bfloat16, which rounds most updates away.
# 6. We sum log p over the m tokens of a thought; the release averages. With its baseline, our
#    reinforce_weight 1 is its beta = m N / (N - 1), which is 18 for m = 9 and N = 2. Its beta is
#    1e6: almost all of the gradient is REINFORCE's. Adam and clipping keep the step small.
