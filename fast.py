"""
The numbers of quiet_star.py in less time and memory.

  FastQuietSTaR(model, config)(tokens, ...)  ==  QuietSTaR(model, config)(tokens, ...)

in loss, metrics and gradients, by the same noise. Five pieces, each with what it replaces there;
tests/test_fast.py holds it to that.

  1. two-part attention     no scores between different thoughts, which may not see each other
  2. fewer forward passes   all that is known is read in one pass, and start once for all N thoughts
  3. log p by blocks        logits, V numbers a token, are made in blocks and made again, never kept
  4. positions in parts     some positions at a time: forward and backward pass, then the next ones
  5. speaking from a cache  a text that is continued is read once
"""

import math

import torch
import torch.nn.functional as F
from torch.autograd.function import once_differentiable

from model import KVCache, attention, sample
from quiet_star import QuietSTaR, Targets, Text, Thinking, mean_weights, weighted_mean

# --------------------------------------------------------------------------------------------------
# 1. Two-part attention (appendix B of the paper)
#
#    replaces ThoughtCache, and QuietSTaR.read, which makes one
#
# The mask is one causal block and then diagonals, so most of its scores need not be made. Against
# the text all thoughts share one product; each thought makes one with its own D keys. One softmax
# spans both. More letters: K key heads, G query heads of each, hd the width of a head, R new
# steps of each thought, D steps of it so far.


class TextCache:
    """Plain attention over a text. It keeps the keys and values (B, K, L, hd) of each layer."""

    length = 0  # model.Transformer asks a cache how many tokens it has read

    def __init__(self):
        self.keys_values = []

    def attend(self, layer, q, k, v, mask):
        self.keys_values.append((k, v))
        return attention(q, k, v, mask)


class FastThoughtCache:
    """What thoughts at positions (B, S) look at: the text's keys and values, which all share, and
    each thought's own.

    text        by layer: k and v (B, K, L, hd)
    may_see     function of query and key, as thought_mask
    depth       function of steps: how far behind start they are. Position ids are i + 1 + depth
    """

    def __init__(self, text, positions, may_see, depth):
        self.text, self.positions, self.may_see, self.depth = text, positions, may_see, depth
        self.own = [None] * len(text)  # by layer: k and v (B, K, N, S, D, hd)
        self.steps = 0  # D

    def expect(self, N, S, R):
        """Announce R more steps of every thought, in the order (N, S, R). Returns their position
        ids (B, N*S*R). The mask stays here: it is alike for all thoughts of a position."""
        B, L = len(self.positions), self.text[0][0].shape[2]
        steps = torch.arange(self.steps + R, device=self.positions.device)
        new, self.steps, self.shape = steps[self.steps :], self.steps + R, (N, S, R)
        text = torch.arange(L, device=steps.device)
        no_step = torch.full_like(text, -1)
        position = self.positions[:, :, None]  # (B, S, 1)
        places = text.expand(B, S, L), position.expand(B, S, len(steps))
        thought, step = torch.cat((no_step, torch.zeros_like(steps))), torch.cat((no_step, steps))
        key = torch.cat(places, dim=-1), thought, step  # (B, S, L + D), and twice (L + D)
        mask = self.may_see((position, torch.zeros_like(position), new), key)
        self.mask = mask if mask.dim() == 5 else mask[:, None]  # (B, 1 or N, S, R, L + D)
        self.addend = None  # made of the mask when it is first wanted
        ids = self.positions[:, None, :, None] + 1 + self.depth(new)
        return ids.expand(B, N, S, R).flatten(1)

    def attend(self, layer, q, k, v, mask):
        """q (B, K*G, N*S*R, hd), k and v (B, K, N*S*R, hd) -> (B, K*G, N*S*R, hd)."""
        own = [x.unflatten(2, self.shape) for x in (k, v)]  # (B, K, N, S, R, hd)
        if self.own[layer] is not None:  # start was read once for all N thoughts: hence the expand
            past = [x.expand(-1, -1, self.shape[0], -1, -1, -1) for x in self.own[layer]]
            own = [torch.cat(pair, dim=4) for pair in zip(past, own, strict=True)]
        self.own[layer] = own
        (k_text, v_text), (k_own, v_own) = self.text[layer], own

        q = q.unflatten(1, (k_text.shape[1], -1)).unflatten(3, self.shape)  # (B, K, G, N, S, R, hd)
        q = q.movedim(2, 4).contiguous() * q.shape[-1] ** -0.5  # (B, K, N, S, G, R, hd)
        text_scores = torch.einsum("bhnsgrd,bhtd->bhnsgrt", q, k_text)
        own_scores = torch.einsum("bhnsgrd,bhnsud->bhnsgru", q, k_own)
        sizes = text_scores.shape[-1], own_scores.shape[-1]
        if self.addend is None:  # 0 or -inf, alike for all layers; adding it needs no backward work
            addend = torch.zeros_like(self.mask, dtype=q.dtype).masked_fill_(~self.mask, -torch.inf)
            addend = addend[:, None, :, :, None]  # (B, 1, 1 or N, S, 1, R, L + D)
            self.addend = addend.split(sizes, dim=-1)
        scores = torch.cat((text_scores + self.addend[0], own_scores + self.addend[1]), dim=-1)
        p_text, p_own = scores.softmax(-1).split(sizes, dim=-1)
        y = torch.einsum("bhnsgrt,bhtd->bhnsgrd", p_text, v_text)
        y = y + torch.einsum("bhnsgru,bhnsud->bhnsgrd", p_own, v_own)
        return y.movedim(4, 2).flatten(3, 5).flatten(1, 2)


# --------------------------------------------------------------------------------------------------
# 2. Fewer forward passes: FastQuietSTaR.think, below, has another loop than QuietSTaR.think
# --------------------------------------------------------------------------------------------------
# 3. log p by blocks
#
#    replaces QuietSTaR.log_prob:    (self.model.logits(hidden) / temperature).log_softmax(-1)


CHUNK_NUMBERS = {"cpu": 2**20, "cuda": 2**25}  # logits made at once: a cache full, or a busy GPU


def token_log_prob(head, hidden, tokens, temperature=1.0, chunk_numbers=None):
    """log softmax(head(hidden) / temperature)[tokens]: hidden (..., C), tokens (...) -> (...)."""
    chunk_numbers = chunk_numbers or CHUNK_NUMBERS.get(hidden.device.type, 2**25)
    h, t = hidden.reshape(-1, hidden.shape[-1]), tokens.reshape(-1)
    return TokenLogProb.apply(h, head.weight, t, temperature, chunk_numbers).view(tokens.shape)


class TokenLogProb(torch.autograd.Function):
    """The above, of rows: hidden (n, C), weight (V, C), tokens (n,).

    Logits are made in blocks, some rows by some of the vocabulary, and made again in the backward
    pass. All that a block needs to know of the rest of its rows is their logsumexp. So the table
    and its gradient, the largest things here, go through memory once for many rows. On a CPU the
    backward pass leaves out rows whose gradient is 0: thoughts below their baseline, if clamped.
    """

    @staticmethod
    def forward(ctx, hidden, weight, tokens, temperature, chunk_numbers):
        device = hidden.device.type
        autocast = torch.is_autocast_enabled(device)
        ctx.dtype = torch.get_autocast_dtype(device) if autocast else weight.dtype
        ctx.temperature, ctx.chunk_numbers = temperature, chunk_numbers
        wide = torch.promote_types(ctx.dtype, torch.float32)
        h_cast, w_cast = hidden.to(ctx.dtype), weight.to(ctx.dtype)
        total = hidden.new_empty(len(hidden), dtype=wide)
        log_p = torch.zeros_like(total)
        for rows, parts in blocks(len(hidden), len(weight), chunk_numbers):
            sums = []
            for part in parts:
                logits = tempered(h_cast[rows] @ w_cast[part].T, temperature)
                sums.append(logits.logsumexp(-1))
                column = (tokens[rows] - part.start)[:, None]
                inside = (column >= 0) & (column < logits.shape[1])
                at_token = logits.gather(1, column.clamp(0, logits.shape[1] - 1))
                log_p[rows] += at_token.where(inside, 0)[:, 0]
            total[rows] = torch.stack(sums).logsumexp(0)
        ctx.save_for_backward(hidden, weight, tokens, total)
        return log_p - total

    @staticmethod
    @once_differentiable
    def backward(ctx, gradient):
        hidden, weight, tokens, total = ctx.saved_tensors
        of_weight = ctx.needs_input_grad[1]
        wide = torch.promote_types(weight.dtype, torch.float32)  # no sums of blocks in bfloat16
        some = torch.arange(len(gradient), device=gradient.device)
        if gradient.device.type == "cpu":  # a GPU would have to stop, only to know how many
            some = gradient.nonzero()[:, 0]
        h, t, total = hidden[some].to(ctx.dtype), tokens[some], total[some]
        slope = gradient[some].to(wide) / ctx.temperature
        w_cast = weight.to(ctx.dtype)
        # d log p(t) / d logits = (1 at t, else 0) - p: first the 1, then p, block by block
        d_some = slope[:, None] * F.embedding(t, weight).to(ctx.dtype)
        d_weight = None
        if of_weight:
            d_weight = torch.zeros_like(weight, dtype=wide).index_add_(0, t, slope[:, None] * h)
        for rows, parts in blocks(len(some), len(weight), ctx.chunk_numbers):
            for part in parts:
                logits = tempered(h[rows] @ w_cast[part].T, ctx.temperature)
                p = logits.sub_(total[rows, None]).exp_()
                d_logits = p.mul_(-slope[rows, None]).to(ctx.dtype)
                d_some[rows] += d_logits @ w_cast[part]
                if of_weight and ctx.dtype == wide:
                    d_weight[part].addmm_(d_logits.T, h[rows])
                elif of_weight:
                    d_weight[part] += d_logits.T @ h[rows]
        d_hidden = torch.zeros_like(hidden).index_copy_(0, some, d_some.to(hidden.dtype))
        return d_hidden, d_weight.to(weight.dtype) if of_weight else None, None, None, None


def blocks(n, V, numbers):
    """Slices of n rows, and for each the slices of a vocabulary of V that make blocks of so many
    numbers: square if there are rows enough, for then most is done with what is moved."""
    height = max(1, min(n, math.isqrt(numbers)))
    width = max(1, numbers // height)
    parts = [slice(start, min(start + width, V)) for start in range(0, V, width)]
    return [(slice(start, start + height), parts) for start in range(0, n, height)]


def tempered(logits, temperature):
    """logits / temperature, in float32 at least."""
    logits = logits if logits.dtype == torch.float64 else logits.float()
    return logits if temperature == 1 else logits / temperature


# ---- What else is asked of logits, here and there
def text_loss(head, hidden, tokens, documents=None):
    """Plain language modelling: the mean NLL of x_1, x_2, ... of texts, tokens (B, L), whose hidden
    states are (B, L or L - 1, C). documents: as in QuietSTaR.forward."""
    documents = torch.zeros_like(tokens) if documents is None else documents
    log_p = token_log_prob(head, hidden[:, : tokens.shape[1] - 1], tokens[:, 1:])
    counts = (documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] >= 0)
    return -weighted_mean(mean_weights(counts), log_p)


@torch.no_grad()
def entropy(head, hidden):
    """Entropy of softmax(head(hidden)) in nats: hidden (..., C) -> (...)."""
    log_p = (head(h).float().log_softmax(-1) for h in some_rows(head, hidden))
    return torch.cat([-(x.exp() * x).sum(-1) for x in log_p]).view(hidden.shape[:-1])


@torch.no_grad()
def likeliest(head, hidden):
    """head(hidden).argmax(-1): hidden (..., C) -> (...)."""
    rows = [head(h).argmax(-1) for h in some_rows(head, hidden)]
    return torch.cat(rows).view(hidden.shape[:-1])


def some_rows(head, hidden):
    """The rows of hidden (..., C), so many at a time that few logits live at once."""
    numbers = CHUNK_NUMBERS.get(hidden.device.type, 2**25)
    return hidden.reshape(-1, hidden.shape[-1]).split(max(128, numbers // head.out_features))


# --------------------------------------------------------------------------------------------------
# 4. Positions in parts
#
#    wraps QuietSTaR.think_talk_learn: the same, for some positions at a time
#
# Thoughts of different positions have nothing to do with one another. What they share is the text.


class LossInParts(torch.autograd.Function):
    """The sum of the losses of parts, whose graphs never live together.

    A loss is one number. So its gradient can be made together with its value, before anybody asks
    for it, and be multiplied by the gradient that comes back. part_loss(part, *inputs) is the loss
    of a part; the inputs are the tensors that the parts share.
    """

    @staticmethod
    def forward(ctx, part_loss, parts, *inputs):
        # whatever was computed before becomes a leaf, where the backward pass of a part ends
        leaves = [x if x.is_leaf else x.detach().requires_grad_() for x in inputs]
        wanted = [x for x in leaves if x.requires_grad]
        total, sums = 0.0, [None] * len(wanted)
        for number, part in enumerate(parts):
            with torch.enable_grad():
                loss = part_loss(part, *leaves)
            with torch.autocast(loss.device.type, enabled=False):
                gradients = torch.autograd.grad(loss, wanted, allow_unused=True)
            sums = [add(x, new, number) for x, new in zip(sums, gradients, strict=True)]
            total = total + loss.detach()
            del loss, gradients  # or this graph would live on while the next one is made
        ctx.sums = sums
        return total

    @staticmethod
    @once_differentiable
    def backward(ctx, slope):
        sums = iter(ctx.sums)
        del ctx.sums
        gradients = [next(sums) if wanted else None for wanted in ctx.needs_input_grad[2:]]
        return None, None, *(None if x is None else x.mul_(slope) for x in gradients)


def add(total, new, number):
    """total + new, of which either may be None. What autograd returns first may be shared with
    others, so it is added to in place only from the third part on."""
    if total is None or new is None:
        return new if total is None else total
    return total + new if number == 1 else total.add_(new)


# --------------------------------------------------------------------------------------------------
# 5. Speaking from a cache
#
#    replaces, in QuietSTaR.speak:    predicted = quiet.predict(tokens, last, noise=noise)
#
# A thought at the end of a text sees all that is before it. So for model.KVCache it is more text,
# and needs no mask.


def think_next(quiet, tokens, cache, temperature=0.0, generator=None):
    """Read new tokens (B, R), think, and mix: h_mixed (B, C), thought (B, m), gate (B,). It takes
    m + 1 forward passes."""
    model, m = quiet.model, quiet.config.thought_len
    start, end = (vector.expand(len(tokens), 1, -1) for vector in quiet.thought_tokens())
    x = model.tok_embeddings(tokens)
    hidden = model(torch.cat((x, start) if m else (x, start, end), dim=1), cache=cache)
    h_base, h = hidden[:, x.shape[1] - 1], hidden[:, -1]
    thought = tokens.new_empty(len(tokens), m)
    noise = torch.rand(thought.shape, generator=generator, device=tokens.device)
    for s in range(m):
        thought[:, s] = sample(model.logits(h), temperature, noise[:, s])
        x = quiet.next_input(h[:, None], model.tok_embeddings(thought[:, s : s + 1]))
        x = torch.cat((x, end), dim=1) if s == m - 1 else x  # t_m and end share a pass
        h = model(x, cache=cache)[:, -1]
    h_mixed, gate = quiet.talk(h_base, h)
    return h_mixed, thought, gate


# --------------------------------------------------------------------------------------------------


class FastQuietSTaR(QuietSTaR):
    """A QuietSTaR in less time and memory.

    at_once     positions of a text that think together; 0: as many as is good. Fewer: less memory
    """

    def __init__(self, model, config, at_once=0):
        super().__init__(model, config)
        self.at_once = at_once

    # 1. two-part attention: other caches

    def read(self, tokens):
        cache, embedded = TextCache(), self.model.tok_embeddings(tokens)
        return Text(embedded, self.model(embedded, cache=cache), cache)

    def depth(self, step):
        """How far behind start each step stands: as far as it is counted, but see AnyLength."""
        return step

    # 2. fewer forward passes, m + 1 for a thought that is sampled, 1 for one that is given

    def think(self, text, positions, thoughts=None, noise=None):
        B, N, S, m = self.shape_of(positions, thoughts)
        a, L = self.config.n_true, text.hidden.shape[1]
        cache = FastThoughtCache(text.cache.keys_values, positions, self.may_see, self.depth)

        def read_steps(x):
            """R more vectors for every thought, x (B, N or 1, S, R, C): hidden states likewise."""
            shape = x.shape[1:4]
            ids = cache.expect(*shape)
            return self.model(x.flatten(1, 3), ids, cache=cache).unflatten(1, shape)

        start, end = (vector.expand(B, 1, S, 1, -1) for vector in self.thought_tokens())
        row = torch.arange(B, device=positions.device)[:, None, None]
        reads = positions[:, :, None] + torch.arange(a, device=positions.device)
        reads = reads.clamp(max=L - 1)
        true = text.embedded[row, reads[:, :, 1:]][:, None]  # (B, 1, S, a - 1, C)
        if thoughts is None:  # one step at a time; then t_m and all that is known in one pass
            x, tokens, h_policy = start, [], []
            for s in range(m):
                h = read_steps(x)  # the first is start's, (B, 1, S, 1, C): alike for all thoughts
                logits = self.model.logits(h[:, :, :, 0].detach()).expand(B, N, S, -1)
                u = None if noise is None else noise[..., s]
                tokens.append(sample(logits, self.config.thought_temperature, u)[..., None])
                h_policy.append(h.expand(B, N, S, 1, -1))
                x = self.next_input(h_policy[s], self.model.tok_embeddings(tokens[s]))
            tokens = torch.cat(tokens, 3) if m else positions.new_empty(B, N, S, 0)
            known = self.after_thought(end, true, tokens, cache)
            h = read_steps(join(x, known))
            h_policy = torch.cat(h_policy, 3) if m else h[:, :, :, :0].expand(B, N, S, 0, -1)
        else:  # everything is known
            tokens, known = thoughts, self.after_thought(end, true, thoughts, cache)
            h = read_steps(join(start, self.model.tok_embeddings(tokens), known))
            h_policy = h[:, :, :, :m]
        h_thought = h[:, :, :, -known.shape[3] :].expand(B, N, S, -1, -1)
        return Thinking(tokens, h_policy, text.hidden[row, reads][:, None], h_thought)

    def after_thought(self, end, true, thoughts, cache):
        """What is read after t_m: end (B, 1, S, 1, C), and the true tokens but the last."""
        return join(end, true)

    # 3. log p by blocks

    def log_prob(self, hidden, tokens, temperature=1.0):
        tokens = tokens.expand(hidden.shape[:-1])
        return token_log_prob(self.model.output, hidden, tokens, temperature)

    # 4. positions in parts

    def think_talk_learn(self, text, positions, thoughts, noise, targets):
        body, S = super().think_talk_learn, positions.shape[1]
        n_parts = math.ceil(S / self.at_once) if self.at_once else self.good_parts(positions)
        if n_parts == 1:
            return body(text, positions, thoughts, noise, targets)
        size = math.ceil(S / n_parts)  # parts that are alike: a small one takes as many passes
        parts = [slice(start, start + size) for start in range(0, S, size)]
        metrics = {}

        def part_loss(part, embedded, hidden, *others):
            """others: keys and values of each layer, and all that the model learns."""
            cache = TextCache()
            cache.keys_values = list(zip(others[:n_keys:2], others[1:n_keys:2], strict=True))
            of_part = [None if x is None else x[:, :, part] for x in (thoughts, noise)]
            targets_of_part = Targets(*(x[:, part] for x in targets))
            text = Text(embedded, hidden, cache)
            loss, new = body(text, positions[:, part], *of_part, targets_of_part)
            for name, value in new.items():
                metrics[name] = metrics.get(name, 0.0) + value
            return loss

        keys = [x for layer in text.cache.keys_values for x in layer]
        n_keys = len(keys)
        inputs = [text.embedded, text.hidden, *keys]
        if not torch.is_grad_enabled():
            return sum(part_loss(part, *inputs) for part in parts), metrics
        learned = [p for p in self.parameters() if p.requires_grad]
        return LossInParts.apply(part_loss, parts, *inputs, *learned), metrics

    def good_parts(self, positions):
        """In how many parts positions (B, S) should think. On a GPU in one: more work is faster
        there. On a CPU in so many that the hidden states of one step of a part are about 2**16
        numbers: more is no faster, and smaller buffers stay in its caches."""
        numbers = positions.numel() * self.config.n_thoughts * self.model.config.dim
        return max(1, round(numbers / 2**16)) if positions.device.type == "cpu" else 1

    # 5. speaking from a cache

    @torch.no_grad()
    def speak(
        self, tokens, max_new_tokens, temperature=1.0, thought_temperature=0.0, generator=None,
        *, think=None,
    ):  # fmt: skip
        """As QuietSTaR.speak. think: think_next if None, or beyond.adaptive.think_some."""
        T, think = tokens.shape[1], think or think_next
        room = T + max_new_tokens + self.config.thought_len + 2
        dtype = self.model.tok_embeddings.weight.dtype
        cache = KVCache(self.model.config, len(tokens), room, tokens.device, dtype)
        for length in range(T, T + max_new_tokens):
            h, thought, gate = think(self, tokens, cache, thought_temperature, generator)
            cache.forget_after(length)  # the thought is over: what stays is the text
            token = sample(self.model.logits(h), temperature, generator=generator)
            yield token, thought, gate
            tokens = token[:, None]


def join(*parts):
    """Steps of thoughts, each (B, N or 1, S, R, C), one after the other: (B, N, S, sum of R, C)."""
    N = max(x.shape[1] for x in parts)
    return torch.cat([x.expand(-1, N, -1, -1, -1) for x in parts], dim=3)
