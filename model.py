"""
Mistral's transformer from scratch, in one file. Nothing here knows about thoughts.

Field and module names are those of Mistral's official checkpoints (params.json, consolidated.*), so
that official weights load strictly and without a map.

References
  Mistral 7B                   Jiang et al. 2023, arXiv 2310.06825   (sliding window: section 2)
  RMSNorm                      Zhang & Sennrich 2019, arXiv 1910.07467
  rotary position embedding    Su et al. 2021, arXiv 2104.09864
  grouped-query attention      Ainslie et al. 2023, arXiv 2305.13245
  SwiGLU                       Shazeer 2020, arXiv 2002.05202

Dimension key
  B sequences     T tokens read in this call     S tokens read so far (T included)
  C model width   H query heads   K key/value heads   hd width of a head   V vocabulary
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
    rope_factor: float = 1.0  # Llama 3.1: low frequencies are divided by this, see rope_tables
    rope_low: float = 1.0  # low: less than so many turns in rope_context positions
    rope_high: float = 4.0  # high, and left as they are: more turns than so many
    rope_context: int = 8192  # positions that the model was first trained on
    sliding_window: int | None = None  # a token sees itself and this many - 1 before it; none: all
    attention_bias: bool = False  # wq, wk and wv add a bias, as Qwen2's do
    tied_embeddings: bool = False  # the head that predicts a token is the table that embeds it

    def __post_init__(self):
        sizes = "dim n_layers head_dim hidden_dim n_heads n_kv_heads vocab_size rope_theta"
        for name in sizes.split():
            if not 1 <= getattr(self, name) <= (1000 if name == "n_layers" else 2**40):
                raise ValueError(f"{name}={getattr(self, name)} is no reasonable size")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads must be a multiple of n_kv_heads, {self.n_kv_heads}")
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even, not {self.head_dim}: rotary turns pairs")
        if min(self.rope_factor, self.rope_context) < 1 or self.rope_low >= self.rope_high:
            raise ValueError("rope_factor, rope_context must be at least 1, rope_low < rope_high")
        if self.sliding_window is not None and self.sliding_window < 1:
            raise ValueError(f"sliding_window must be at least 1, not {self.sliding_window}")


class RMSNorm(nn.Module):
    def __init__(self, dim, eps):
        super().__init__()
        self.eps = eps
        self.weight = nn.Parameter(torch.ones(dim))

    def forward(self, x):
        return F.rms_norm(x, self.weight.shape, self.weight.to(x.dtype), self.eps)


# --------------------------------------------------------------------------------------------------
# positions and masks


def rope_tables(positions, head_dim, theta, dtype, factor=1.0, low=1.0, high=4.0, context=8192):
    """Cosines and sines by which rotary embedding turns a head, (B or 1, 1, T, hd) each, for
    positions (B or 1, T). Angles are made in float32 at least: a position of some thousands times a
    frequency has no digits to spare."""
    precise = torch.float64 if dtype == torch.float64 else torch.float32
    pairs = torch.arange(0, head_dim, 2, device=positions.device, dtype=precise)
    frequencies = theta ** -(pairs / head_dim)  # (hd/2,)
    if factor != 1:  # Llama 3.1: slow turns slower still, so that far positions look like near ones
        turns = frequencies * context / (2 * math.pi)
        keep = ((turns - low) / (high - low)).clamp(0, 1)
        frequencies = frequencies * (keep + (1 - keep) / factor)
    angles = positions[:, None, :, None].to(precise) * frequencies  # (B, 1, T, hd/2)
    # Mistral's checkpoints turn neighbouring pairs (0,1), (2,3), ...: each angle serves two
    # neighbours. The sign of the sine is stored here once, so that turning a head is two products
    # and a swap.
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


# --------------------------------------------------------------------------------------------------
# the transformer


class KVCache:
    """Keys and values of everything read so far, in buffers allocated once: only new ones are
    copied.

    It is for generation: no gradient flows through writes in place. `Attention` asks of a cache
    just one method, attend(layer, q, k, v, mask), so another way of attending can take its place.
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
        """Add k, v (B, K, T, hd) of a layer; returns views of all its keys and values (B, K, S,
        hd)."""
        start, end = self.seen[layer], self.seen[layer] + k.shape[2]
        if end > self.k.shape[3]:
            raise ValueError(f"a cache of {self.k.shape[3]} tokens was asked to hold {end}")
        self.k[layer, :, :, start:end] = k
        self.v[layer, :, :, start:end] = v
        self.seen[layer] = end
        return self.k[layer, :, :, :end], self.v[layer, :, :, :end]

    def forget_after(self, n):
        """Forget all but the first n tokens."""
        self.seen = [n] * len(self.seen)

    def attend(self, layer, q, k, v, mask):
        return attention(q, *self.append(layer, k, v), mask)


def attention(q, k, v, mask):
    """softmax(q k / sqrt(hd)) v: q (B, H, T, hd), k and v (B, K, S, hd), mask (T, S) or (B, 1, T,
    S); None: plain causal attention over T = S tokens. Each key head serves H/K neighbouring query
    heads."""
    if q.shape[2] == 1:  # one token: query heads with the same keys become queries of one head
        q = q.unflatten(1, (k.shape[1], -1))[:, :, :, 0]  # (B, K, H/K, hd)
        return F.scaled_dot_product_attention(q, k, v, mask).flatten(1, 2)[:, :, None]
    gqa = q.shape[1] != k.shape[1]
    return F.scaled_dot_product_attention(q, k, v, mask, is_causal=mask is None, enable_gqa=gqa)


class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        width, key_width = config.n_heads * config.head_dim, config.n_kv_heads * config.head_dim
        self.wq = nn.Linear(config.dim, width, bias=config.attention_bias)
        self.wk = nn.Linear(config.dim, key_width, bias=config.attention_bias)
        self.wv = nn.Linear(config.dim, key_width, bias=config.attention_bias)
        self.wo = nn.Linear(width, config.dim, bias=False)

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

    They are apart because whoever needs hidden states only, or the logits of a few positions,
    should not pay for (B, T, V) numbers.
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
        """Normal, such that each linear map keeps the size of its input (std 1 / sqrt(fan-in));
        less where a layer writes into the residual stream, whose variance would grow with the
        layers. A fixed 0.02, as in GPT-2, suits its width of 768; narrow models learn half again as
        fast."""
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

        tokens      (B, T) ids, or embeddings (B, T, C), where a vector stands for no token
        positions   (T,) or (B, T) position ids; None: the tokens follow what the cache holds
        mask        (T, S) or (B, 1, T, S) bool, True where a token may look; None: causal, within
                    the sliding window. Positions want a mask, unless the cache has its own
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
            raise ValueError("positions want a mask: what may each token see?")
        positions = positions if positions.dim() == 2 else positions[None]
        c = self.config
        scaling = c.rope_factor, c.rope_low, c.rope_high, c.rope_context
        rope = rope_tables(positions, c.head_dim, c.rope_theta, x.dtype, *scaling)
        for layer in self.layers:
            x = layer(x, rope, mask, cache)
        return self.norm(x)

    def sees_all(self, seen, T):
        """Does attention over T new tokens behind `seen` need no mask?"""
        window = self.config.sliding_window
        return (T == 1 or not seen) and (window is None or seen + T <= window)

    def logits(self, hidden):
        """Next-token logits (..., V) of hidden states (..., C)."""
        return self.output(hidden)

    @torch.no_grad()
    def stream(self, tokens, max_new_tokens, temperature=1.0, generator=None):
        """Continue texts, tokens (B, T): yields max_new_tokens times the next ids (B,), sampled, or
        the likeliest ones at temperature 0."""
        length, dtype = tokens.shape[1] + max_new_tokens, self.tok_embeddings.weight.dtype
        cache = KVCache(self.config, len(tokens), length, tokens.device, dtype)
        for _ in range(max_new_tokens):
            hidden = self(tokens, cache=cache)[:, -1]  # (B, C)
            new = sample(self.logits(hidden), temperature, generator=generator)
            yield new
            tokens = new[:, None]

    def generate(self, tokens, *args, **kwargs):
        """All of `stream` at once: (B, T + new)."""
        new = list(self.stream(tokens, *args, **kwargs))
        return torch.cat((tokens, torch.stack(new, dim=1)), dim=1)


def sample(logits, temperature=1.0, noise=None, generator=None):
    """Draw an id from softmax(logits / temperature), (..., V) -> (...); temperature 0: the
    likeliest.

    noise: uniform numbers (...) in [0, 1). The draw is a pure function of them: the id whose
    stretch of the cumulative distribution they hit. Whoever fixes the noise fixes the draw, on any
    device.
    """
    if temperature < 1e-30:  # 0, or so little that logits / temperature would overflow
        return logits.argmax(-1)
    if noise is None:
        noise = torch.rand(logits.shape[:-1], generator=generator, device=logits.device)
    if logits.dtype != torch.float64:
        logits = logits.float()
    cumulative = (logits / temperature).softmax(-1).cumsum(-1)  # (..., V)
    # Scaled to what the sum came to and kept below it: rounding pushes no draw past the last likely
    # id. right=True: a noise of 0 cannot hit a leading id of probability 0.
    noise = noise[..., None].to(cumulative.dtype).clamp(max=1 - torch.finfo(cumulative.dtype).eps)
    drawn = torch.searchsorted(cumulative, noise * cumulative[..., -1:], right=True)[..., 0]
    return drawn.clamp(max=logits.shape[-1] - 1)  # only nan goes beyond: it will reach the loss
