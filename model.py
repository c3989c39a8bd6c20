"""
Mistral's transformer from scratch, in one file. Nothing here knows about thoughts.

Field and module names are those of Mistral's official checkpoints (params.json, consolidated.*), so that official
weights load strictly and without a map.

References
  Mistral 7B                   Jiang et al. 2023, arXiv 2310.06825   (the architecture; sliding window: section 2)
  RMSNorm                      Zhang & Sennrich 2019, arXiv 1910.07467
  rotary position embedding    Su et al. 2021, arXiv 2104.09864
  grouped-query attention      Ainslie et al. 2023, arXiv 2305.13245
  SwiGLU                       Shazeer 2020, arXiv 2002.05202

Dimension key
  B sequences   T tokens read in this call   S tokens read so far (T included)   C model width (`dim`)
  H query heads   K key/value heads   hd width of a head   V vocabulary
"""

import math
from dataclasses import dataclass

import torch
import torch.nn as nn
import torch.nn.functional as F


@dataclass
class ModelConfig:
    dim: int = 128  # width of the residual stream (C)
    n_layers: int = 3  # number of transformer blocks
    head_dim: int = 16  # width of one attention head (hd)
    hidden_dim: int = 256  # inner width of the feed-forward network
    n_heads: int = 8  # query heads (H)
    n_kv_heads: int = 4  # key/value heads (K); each serves n_heads / n_kv_heads query heads
    norm_eps: float = 1e-5  # epsilon inside RMSNorm
    vocab_size: int = 32000  # number of token ids (V)
    rope_theta: float = 10000.0  # base of the rotary frequencies (Mistral-7B v0.1: 10000)
    rope_factor: float = (
        1.0  # Llama 3.1 and later: low frequencies are divided by this (see rope_tables)
    )
    rope_low: float = 1.0  # low: less than so many turns in rope_context positions
    rope_high: float = 4.0  # high, and left as they are: more turns than so many
    rope_context: int = 8192  # positions that the model was first trained on
    sliding_window: int | None = (
        None  # a token sees itself and the sliding_window - 1 before it; none: all
    )
    attention_bias: bool = False  # wq, wk and wv add a bias, as Qwen2's do
    tied_embeddings: bool = False  # the head that predicts a token is the table that embeds it

    def __post_init__(self):
        for name in (
            "dim",
            "n_layers",
            "head_dim",
            "hidden_dim",
            "n_heads",
            "n_kv_heads",
            "vocab_size",
            "rope_theta",
        ):
            if not 1 <= getattr(self, name) <= (1000 if name == "n_layers" else 2**40):
                raise ValueError(
                    f"{name} must be at least 1 and of a reasonable size, not {getattr(self, name)}"
                )
        if self.n_heads % self.n_kv_heads:
            raise ValueError(
                f"n_heads ({self.n_heads}) must be a multiple of n_kv_heads ({self.n_kv_heads})"
            )
        if self.head_dim % 2:
            raise ValueError(
                f"head_dim must be even (rotary embedding turns pairs), not {self.head_dim}"
            )
        if min(self.rope_factor, self.rope_context) < 1 or self.rope_low >= self.rope_high:
            raise ValueError(
                "rope_factor and rope_context must be at least 1, rope_low below rope_high"
            )
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ValueError(f"sliding_window must be at least 1, not {self.sliding_window}")


class RMSNorm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


# ----------------------------------------------------------------------------------------------------------------------
# positions and masks


def rope_tables(positions, head_dim, theta, dtype, factor=1.0, low=1.0, high=4.0, context=8192):
    """Cosines and sines by which rotary embedding turns a head, for positions (B or 1, T): two of (B or 1, 1, T, hd).

    Angles are computed in float32 at least: a position of some thousands times a frequency has no digits to spare.
    """
    precise = torch.float64 if dtype == torch.float64 else torch.float32
    frequencies = theta ** -(
        torch.arange(0, head_dim, 2, device=positions.device, dtype=precise) / head_dim
    )  # (hd/2,)
    if (
        factor != 1
    ):  # Llama 3.1: slow turns slower still, so that far positions look like those of training
        turns = frequencies * context / (2 * math.pi)
        keep = ((turns - low) / (high - low)).clamp(0, 1)
        frequencies = frequencies * (keep + (1 - keep) / factor)
    angles = positions[:, None, :, None].to(precise) * frequencies  # (B, 1, T, hd/2)
    # Mistral's checkpoints turn neighbouring pairs (0,1), (2,3), ...: each angle serves two neighbours. The sign of
    # the sine is stored here once, so that turning a head is two products and a swap.
    cos = angles.cos().repeat_interleave(2, dim=-1)
    sin = torch.stack((-angles.sin(), angles.sin()), dim=-1).flatten(-2)
    return cos.to(dtype), sin.to(dtype)  # (B, 1, T, hd)


def apply_rope(x, cos, sin):
    """Turn each neighbouring pair (a, b) of x (B, H, T, hd) into (a cos - b sin, b cos + a sin)."""
    swapped = x.unflatten(-1, (-1, 2)).flip(-1).flatten(-2)  # (a, b) -> (b, a)
    return x * cos + swapped * sin


def causal_mask(query_positions, key_positions, sliding_window=None):
    """True where a query may look: (..., T) and (..., S) positions -> (..., T, S).

    With a window W a token sees itself and the W - 1 tokens before it, so distances 0 .. W-1.
    """
    distance = query_positions[..., :, None] - key_positions[..., None, :]
    mask = distance >= 0
    return mask if sliding_window is None else mask & (distance < sliding_window)


# ----------------------------------------------------------------------------------------------------------------------
# the transformer


class KVCache:
    """Keys and values of everything read so far, in buffers allocated once: appending copies only what is new.

    For generation (no gradient flows through its in-place writes). `Attention` asks of a cache just one method,
    attend(layer, q, k, v, mask), so another way of attending can be put in its place.
    """

    def __init__(self, config, batch, length, device=None, dtype=torch.float32):
        shape = (config.n_layers, batch, config.n_kv_heads, length, config.head_dim)
        self.k = torch.empty(shape, device=device, dtype=dtype)
        self.v = torch.empty(shape, device=device, dtype=dtype)
        self.seen = [0] * config.n_layers  # tokens held, by layer

    @property
    def length(self):
        """Tokens read so far by the whole model."""
        return self.seen[-1]

    def append(self, layer, k, v):
        """Add k, v (B, K, T, hd) of one layer and return views of all of its keys and values (B, K, S, hd)."""
        start, end = self.seen[layer], self.seen[layer] + k.shape[2]
        if end > self.k.shape[3]:
            raise ValueError(
                f"the cache holds {self.k.shape[3]} tokens and was asked to hold {end}"
            )
        self.k[layer, :, :, start:end] = k
        self.v[layer, :, :, start:end] = v
        self.seen[layer] = end
        return self.k[layer, :, :, :end], self.v[layer, :, :, :end]

    def forget_after(self, n):
        """Forget all but the first n tokens."""
        self.seen = [n] * len(self.seen)

    def of_rows(self, rows, room):
        """What was read in some rows (R,), ascending, as a cache of their own that can read `room` tokens on, and whose
        tokens this one never sees. Of all rows it is a view: they are written where this one will write next."""
        other, end = object.__new__(KVCache), self.length + room
        whole = len(rows) == self.k.shape[1]
        other.k, other.v = (
            x[:, :, :, :end] if whole else x[:, rows, :, :end] for x in (self.k, self.v)
        )
        other.seen = [*self.seen]
        return other

    def attend(self, layer, q, k, v, mask):
        return attention(q, *self.append(layer, k, v), mask)


def attention(q, k, v, mask):
    """softmax(q k / sqrt(hd)) v for q (B, H, T, hd), k and v (B, K, S, hd), mask (T, S) or (B, 1, T, S), or None
    for plain causal attention over T = S tokens. Each of the K key heads serves H/K neighbouring query heads."""
    if (
        q.shape[2] == 1
    ):  # one token: query heads with the same keys are queries of one head, which reads its keys once
        y = F.scaled_dot_product_attention(
            q.unflatten(1, (k.shape[1], -1))[:, :, :, 0], k, v, mask
        )  # (B, K, H/K, hd)
        return y.flatten(1, 2)[:, :, None]
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None, enable_gqa=q.shape[1] != k.shape[1]
    )


class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.wq = nn.Linear(
            config.dim, config.n_heads * config.head_dim, bias=config.attention_bias
        )
        self.wk = nn.Linear(
            config.dim, config.n_kv_heads * config.head_dim, bias=config.attention_bias
        )
        self.wv = nn.Linear(
            config.dim, config.n_kv_heads * config.head_dim, bias=config.attention_bias
        )
        self.wo = nn.Linear(config.n_heads * config.head_dim, config.dim, bias=False)

    def forward(self, x, rope, mask, cache):
        q, k, v = (
            linear(x).unflatten(-1, (-1, self.head_dim)).transpose(1, 2)  # (B, H or K, T, hd)
            for linear in (self.wq, self.wk, self.wv)
        )
        q, k = apply_rope(q, *rope), apply_rope(k, *rope)
        y = attention(q, k, v, mask) if cache is None else cache.attend(self.layer, q, k, v, mask)
        return self.wo(y.transpose(1, 2).flatten(2))  # (B, T, C)


class FeedForward(nn.Module):
    def __init__(self, config):
        super().__init__()
        self.w1 = nn.Linear(config.dim, config.hidden_dim, bias=False)
        self.w2 = nn.Linear(config.hidden_dim, config.dim, bias=False)
        self.w3 = nn.Linear(config.dim, config.hidden_dim, bias=False)

    def forward(self, x):
        return self.w2(F.silu(self.w1(x)) * self.w3(x))


class TransformerBlock(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.attention = Attention(config, layer)
        self.feed_forward = FeedForward(config)
        self.attention_norm = RMSNorm(config.dim, config.norm_eps)
        self.ffn_norm = RMSNorm(config.dim, config.norm_eps)

    def forward(self, x, rope, mask, cache):
        x = x + self.attention(self.attention_norm(x), rope, mask, cache)
        return x + self.feed_forward(self.ffn_norm(x))


class Transformer(nn.Module):
    """tokens -> hidden states; the language-model head is a call of its own, `logits`.

    Apart, because whoever needs hidden states (a mixing head), or the logits of a few positions only, should not pay
    for (B, T, V) numbers.
    """

    def __init__(self, config):
        super().__init__()
        self.config = config
        self.tok_embeddings = nn.Embedding(config.vocab_size, config.dim)
        self.layers = nn.ModuleList(
            TransformerBlock(config, layer) for layer in range(config.n_layers)
        )
        self.norm = RMSNorm(config.dim, config.norm_eps)
        self.output = nn.Linear(config.dim, config.vocab_size, bias=False)
        self.tie()
        self.init_weights()

    def tie(self):
        """Make the head and the embeddings one parameter, if the configuration says so."""
        if self.config.tied_embeddings:
            self.output.weight = self.tok_embeddings.weight

    def init_weights(self):
        """Normal, such that each linear map keeps the size of its input (std 1 / sqrt(fan-in)); less where a layer
        writes into the residual stream, whose variance would otherwise grow with the number of layers. A fixed 0.02,
        as GPT-2 has it, suits its width of 768; narrow models learn the miniature half again as fast from this."""
        for name, weight in self.named_parameters():
            if weight.dim() == 2:
                std = 0.1 if weight is self.tok_embeddings.weight else weight.shape[1] ** -0.5
                if name.endswith(("wo.weight", "w2.weight")):
                    std /= (2 * self.config.n_layers) ** 0.5
                elif weight is self.output.weight:
                    std *= 0.3  # near-uniform first predictions
                nn.init.normal_(weight, std=std)
            elif name.endswith("bias"):
                nn.init.zeros_(weight)

    def forward(self, tokens, positions=None, mask=None, cache=None):
        """Read tokens and return the last hidden states, after the final norm, (B, T, C).

        tokens      (B, T) ids, or embeddings (B, T, C) where a vector stands for no token of the vocabulary
        positions   (T,) or (B, T) position ids; None: the tokens follow what the cache holds (0, 1, ... without one)
        mask        (T, S) or (B, 1, T, S) bool, True where a token may look; None: causal, within the sliding window.
                    Wanted where positions are given, unless the cache has a mask of its own
        cache       None, or a KVCache: the tokens see what it holds, and are added to it
        """
        x = tokens if tokens.is_floating_point() else self.tok_embeddings(tokens)  # (B, T, C)
        T = x.shape[1]
        if positions is None:
            seen = 0 if cache is None else cache.length
            positions = torch.arange(seen, seen + T, device=x.device)
            if mask is None and not self.sees_all(seen, T):
                everything = torch.arange(seen + T, device=x.device)
                mask = causal_mask(positions, everything, self.config.sliding_window)  # (T, S)
        elif mask is None and cache is None:
            raise ValueError(
                "positions of your own need a mask of your own: what may each token see?"
            )
        positions = positions if positions.dim() == 2 else positions[None]
        c = self.config
        scaling = c.rope_factor, c.rope_low, c.rope_high, c.rope_context
        rope = rope_tables(positions, c.head_dim, c.rope_theta, x.dtype, *scaling)
        for layer in self.layers:
            x = layer(x, rope, mask, cache)
        return self.norm(x)

    def sees_all(self, seen, T):
        """Is plain causal attention over T new tokens, or one token looking back at all `seen`, already right?"""
        window = self.config.sliding_window
        return (T == 1 or not seen) and (window is None or seen + T <= window)

    def logits(self, hidden):
        """Next-token logits (..., V) of hidden states (..., C)."""
        return self.output(hidden)

    @torch.no_grad()
    def generate(
        self, tokens, max_new_tokens, temperature=1.0, generator=None, lengths=None, stop=None
    ):
        """Continue tokens (B, T) by max_new_tokens sampled ones (temperature 0: the likeliest): (B, T + new).

        lengths   (B,) of prompts that are shorter than T: each row goes on from its own end, up to the same total.
                  Nothing is padded: all rows read as many tokens as the shortest prompt has, and a longer one then
                  takes its next token from itself instead of from the model
        stop      function of a row's new ids, a list: does it end here? Ends generation when all rows have ended
        """
        B, T = tokens.shape
        cache = KVCache(
            self.config, B, T + max_new_tokens, tokens.device, self.tok_embeddings.weight.dtype
        )
        lengths = torch.full((B,), T, device=tokens.device) if lengths is None else lengths
        out = torch.cat((tokens, tokens.new_empty(B, max_new_tokens)), dim=1)
        at, total = int(lengths.min()), T + max_new_tokens
        new = out[:, :at]
        while at < total and not all_ended(out[:, :at], lengths, stop):
            hidden = self(new, cache=cache)[:, -1]  # (B, C)
            new = sample(self.logits(hidden), temperature, generator=generator)
            new = out[:, at : at + 1].copy_(own_token(new, tokens, at, lengths)[:, None])  # (B, 1)
            at += 1
        return out[:, :at]


def own_token(sampled, tokens, at, lengths):
    """The tokens (B,) to stand at place `at`: those of prompts (B, T) that reach so far, the sampled ones elsewhere."""
    return sampled if at >= tokens.shape[1] else torch.where(lengths > at, tokens[:, at], sampled)


def all_ended(tokens, lengths, stop):
    """Has every row of tokens (B, T) gone beyond its prompt's length, and ended by stop's judgement?"""
    return stop is not None and all(
        stop(row[n:]) for row, n in zip(tokens.tolist(), lengths.tolist(), strict=True)
    )


def sample(logits, temperature=1.0, noise=None, generator=None):
    """Draw one id from softmax(logits / temperature), (..., V) -> (...); temperature 0 takes the likeliest.

    noise: uniform numbers in [0, 1) of shape (...). The draw is a pure function of them (the id whose stretch of the
    cumulative distribution they hit), so whoever fixes the noise fixes the draw, on any device and in any batch.
    """
    if temperature == 0:
        return logits.argmax(-1)
    if noise is None:
        noise = torch.rand(logits.shape[:-1], generator=generator, device=logits.device)
    if logits.dtype != torch.float64:
        logits = logits.float()
    cumulative = (logits / temperature).softmax(-1).cumsum(-1)  # (..., V)
    # Scaled to what the sum came to and kept below it, so that rounding can push no draw past the last likely id; and
    # right=True, so that a noise of 0 cannot hit a leading id of probability 0.
    noise = noise[..., None].to(cumulative.dtype).clamp(max=1 - torch.finfo(cumulative.dtype).eps)
    drawn = torch.searchsorted(cumulative, noise * cumulative[..., -1:], right=True)[..., 0]
    return drawn.clamp(
        max=logits.shape[-1] - 1
    )  # only nan goes beyond: let it reach the loss, which is looked at
