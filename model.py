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

import dataclasses
import json
import math
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
import torch.nn as nn
import torch.nn.functional as F

from data.dataset import replace_file, write_whole


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
    sliding_window: int | None = None  # a token sees itself and the sliding_window - 1 before it; none: all
    tied_embeddings: bool = False  # the head that predicts a token is the table that embeds it

    def __post_init__(self):
        for name in ("dim", "n_layers", "head_dim", "hidden_dim", "n_heads", "n_kv_heads", "vocab_size"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.n_heads % self.n_kv_heads:
            raise ValueError(f"n_heads ({self.n_heads}) must be a multiple of n_kv_heads ({self.n_kv_heads})")
        if self.head_dim % 2:
            raise ValueError(f"head_dim must be even (rotary embedding turns pairs), not {self.head_dim}")
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


def rope_tables(positions, head_dim, theta, dtype):
    """Cosines and sines by which rotary embedding turns a head, for positions (B or 1, T): two of (B or 1, 1, T, hd).

    Angles are computed in float32 at least: a position of some thousands times a frequency has no digits to spare.
    """
    precise = torch.float64 if dtype == torch.float64 else torch.float32
    frequencies = theta ** -(torch.arange(0, head_dim, 2, device=positions.device, dtype=precise) / head_dim)  # (hd/2,)
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
            raise ValueError(f"the cache holds {self.k.shape[3]} tokens and was asked to hold {end}")
        self.k[layer, :, :, start:end] = k
        self.v[layer, :, :, start:end] = v
        self.seen[layer] = end
        return self.k[layer, :, :, :end], self.v[layer, :, :, :end]

    def keep(self, n, places):
        """Forget all but the first n tokens and those at places (a slice), which move up behind them."""
        moved = [x[:, :, :, places].clone() for x in (self.k, self.v)]
        end = n + moved[0].shape[3]
        self.k[:, :, :, n:end], self.v[:, :, :, n:end] = moved
        self.seen = [end] * len(self.seen)

    def of_rows(self, rows, room):
        """What was read in some rows (R,), ascending, as a cache of their own that can read `room` tokens on, and whose
        tokens this one never sees. Of all rows it is a view: they are written where this one will write next."""
        other, end = object.__new__(KVCache), self.length + room
        whole = len(rows) == self.k.shape[1]
        other.k, other.v = (x[:, :, :, :end] if whole else x[:, rows, :, :end] for x in (self.k, self.v))
        other.seen = [*self.seen]
        return other

    def attend(self, layer, q, k, v, mask):
        return attention(q, *self.append(layer, k, v), mask)


def attention(q, k, v, mask):
    """softmax(q k / sqrt(hd)) v for q (B, H, T, hd), k and v (B, K, S, hd), mask (T, S) or (B, 1, T, S), or None
    for plain causal attention over T = S tokens. Each of the K key heads serves H/K neighbouring query heads."""
    return F.scaled_dot_product_attention(
        q, k, v, attn_mask=mask, is_causal=mask is None and q.shape[2] > 1, enable_gqa=q.shape[1] != k.shape[1]
    )


class Attention(nn.Module):
    def __init__(self, config, layer):
        super().__init__()
        self.layer, self.head_dim = layer, config.head_dim
        self.wq = nn.Linear(config.dim, config.n_heads * config.head_dim, bias=False)
        self.wk = nn.Linear(config.dim, config.n_kv_heads * config.head_dim, bias=False)
        self.wv = nn.Linear(config.dim, config.n_kv_heads * config.head_dim, bias=False)
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
        self.layers = nn.ModuleList(TransformerBlock(config, layer) for layer in range(config.n_layers))
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
            raise ValueError("positions of your own need a mask of your own: what may each token see?")
        positions = positions if positions.dim() == 2 else positions[None]
        rope = rope_tables(positions, self.config.head_dim, self.config.rope_theta, x.dtype)
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
    def generate(self, tokens, max_new_tokens, temperature=1.0, generator=None, lengths=None, stop=None):
        """Continue tokens (B, T) by max_new_tokens sampled ones (temperature 0: the likeliest): (B, T + new).

        lengths   (B,) of prompts that are shorter than T: each row goes on from its own end, up to the same total.
                  Nothing is padded: all rows read as many tokens as the shortest prompt has, and a longer one then
                  takes its next token from itself instead of from the model
        stop      function of a row's new ids, a list: does it end here? Ends generation when all rows have ended
        """
        B, T = tokens.shape
        cache = KVCache(self.config, B, T + max_new_tokens, tokens.device, self.tok_embeddings.weight.dtype)
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
    return stop is not None and all(stop(row[n:]) for row, n in zip(tokens.tolist(), lengths.tolist(), strict=True))


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
    return drawn.clamp(max=logits.shape[-1] - 1)  # only nan goes beyond: let it reach the loss, which is looked at


# ----------------------------------------------------------------------------------------------------------------------
# weights from elsewhere, and for elsewhere

IGNORED = {"max_seq_len", "max_position_embeddings", "max_batch_size", "model_type", "causal"}  # no part of the shape


def load_mistral(folder, dtype=None):
    """A Transformer with the weights of a folder, on the CPU. Raises ValueError, in one line, if they do not fit.

    folder   Mistral's official layout: params.json and consolidated.00.pth or consolidated*.safetensors
             or Hugging Face's, of a Mistral or Llama: config.json and model*.safetensors or pytorch_model*.bin
    dtype    of the model's weights; None: as they are stored

    Each tensor is memory-mapped, copied to its place and let go, so that no more is in memory than the model and one
    tensor. A head that is tied to the embeddings stays tied.
    """
    folder = Path(folder)
    official = (folder / "params.json").exists() and any(folder.glob("consolidated*"))
    if not official and not (folder / "config.json").exists():
        raise ValueError(f"no weights in {folder}: params.json with consolidated.*, or config.json, is wanted")
    config = official_config(folder / "params.json") if official else hugging_face_config(folder / "config.json")
    files = first_files(folder, OFFICIAL_FILES if official else HUGGING_FACE_FILES)

    with torch.device("meta"):  # shapes alone; memory comes with the first tensor's dtype
        model = Transformer(config)
    names, missing = {name: p.shape for name, p in model.named_parameters()}, set(dict(model.named_parameters()))
    empty = True
    for name, tensor in tensors_of(files):
        name = name if official else from_hugging_face(name)
        if name is None or name == "output.weight" and config.tied_embeddings:
            continue
        if names.get(name) != tensor.shape:
            wanted = tuple(names[name]) if name in names else "nothing"
            raise ValueError(f"{folder} does not fit: it holds {tuple(tensor.shape)} for {name}, {wanted} is wanted")
        if empty:
            model, empty = model.to(dtype or tensor.dtype).to_empty(device="cpu"), False
            model.tie()
        copy_weight(name, tensor, model.get_parameter(name), config, halves=not official)
        missing.discard(name)
        del tensor
    for name in sorted(missing):
        raise ValueError(f"{folder} does not fit: it holds nothing for {name}, {tuple(names[name])} is wanted")
    return model


def save_mistral(model, folder):
    """Write a Transformer in Mistral's official layout, params.json and consolidated.00.pth; a file already there is
    replaced only by a whole new one."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    tied = {"output.weight"} if model.config.tied_embeddings else set()
    weights = {name: tensor for name, tensor in model.state_dict().items() if name not in tied}
    params = {name: value for name, value in asdict(model.config).items() if value is not None}
    write_whole(folder / "consolidated.00.pth", lambda file: torch.save(weights, file))
    replace_file(folder / "params.json", json.dumps(params, indent=1).encode())


OFFICIAL_FILES = ("consolidated*.safetensors", "consolidated.*.pth")
HUGGING_FACE_FILES = ("model*.safetensors", "pytorch_model*.bin")


def first_files(folder, patterns):
    for pattern in patterns:
        if files := sorted(folder.glob(pattern)):
            return files
    raise ValueError(f"no weights in {folder}: there is none of {', '.join(patterns)}")


def tensors_of(files):
    """(name, tensor) of checkpoint files, memory-mapped. A file is opened anew for each tensor: what has been read of a
    mapped file counts as this process's memory for as long as it is mapped. The largest come first, while the rest of
    the model is not in memory yet."""
    path, found = None, []
    try:
        for path in files:
            found += [(size, path, name) for name, size in sizes_in(path).items()]
        for _, path, name in sorted(found, reverse=True):
            if path.suffix == ".safetensors":
                with safe_open()(path, framework="pt") as file:
                    yield name, file.get_tensor(name)
            else:
                yield name, torch.load(path, mmap=True, weights_only=True)[name]
    except Exception as error:
        damaged = isinstance(error, (OSError, RuntimeError, EOFError))
        if not damaged and type(error).__name__ not in ("UnpicklingError", "SafetensorError"):
            raise
        reason = str(error).split("\n")[0]
        raise ValueError(f"{path} is damaged or cut short ({reason})") from None


def sizes_in(path):
    """{name: number of elements} of a checkpoint file."""
    if path.suffix != ".safetensors":
        return {name: tensor.numel() for name, tensor in torch.load(path, mmap=True, weights_only=True).items()}
    with safe_open()(path, framework="pt") as file:
        return {name: math.prod(file.get_slice(name).get_shape()) for name in file.keys()}


def safe_open():
    """The optional package's function that opens a .safetensors file."""
    try:
        from safetensors import safe_open
    except ImportError:
        raise ValueError("reading .safetensors needs a package: pip install safetensors") from None
    return safe_open


def copy_weight(name, source, target, config, halves):
    """Copy one tensor into its parameter. halves: the rows of wq and wk are in Hugging Face's order.

    Rotary embedding turns pairs of numbers. Mistral's checkpoints keep a pair together, (0,1), (2,3), ...; Hugging
    Face's keep all first numbers of a head's pairs and then all second ones: (0, hd/2), (1, hd/2 + 1), ...
    """
    heads = {"wq.weight": config.n_heads, "wk.weight": config.n_kv_heads}.get(name.split("attention.")[-1])
    with torch.no_grad():
        if halves and heads:
            source = source.unflatten(0, (heads, 2, -1)).transpose(1, 2)
            target = target.unflatten(0, (heads, -1, 2))
        target.copy_(source)


def from_hugging_face(name):
    """The official name of a tensor in Hugging Face's layout, None for tables that are made and not learned."""
    if name.endswith("rotary_emb.inv_freq"):
        return None
    for theirs, ours in HUGGING_FACE_NAMES.items():
        name = name.replace(theirs, ours)
    return name


HUGGING_FACE_NAMES = {
    "lm_head.": "output.",
    "model.": "",
    "embed_tokens.": "tok_embeddings.",
    "self_attn.": "attention.",
    "q_proj.": "wq.",
    "k_proj.": "wk.",
    "v_proj.": "wv.",
    "o_proj.": "wo.",
    "mlp.gate_proj.": "feed_forward.w1.",
    "mlp.down_proj.": "feed_forward.w2.",
    "mlp.up_proj.": "feed_forward.w3.",
    "post_attention_layernorm.": "ffn_norm.",
    "input_layernorm.": "attention_norm.",
}


def read_json(path):
    try:
        content = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ValueError(f"cannot read {path}: {error}") from None
    if not isinstance(content, dict):
        raise ValueError(f"{path} is not a model's description")
    return content


def official_config(path):
    """ModelConfig of a params.json. What it asks for and this model does not have is refused (ValueError)."""
    params = read_json(path)
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    for name, value in params.items():
        if name not in fields | IGNORED and value:
            raise ValueError(f"{path} asks for {name}={value!r}, which is not implemented")
    return checked_config(path, {name: params[name] for name in fields & params.keys()})


def hugging_face_config(path):
    """ModelConfig of a config.json, likewise."""
    c = read_json(path)
    rope = c.get("rope_parameters") or c.get("rope_scaling") or {}
    asks = {
        "model_type": c.get("model_type") not in ("mistral", "llama"),
        "hidden_act": c.get("hidden_act", "silu") != "silu",
        "attention_bias": c.get("attention_bias", False),
        "mlp_bias": c.get("mlp_bias", False),
        "rope_scaling": rope.get("rope_type", rope.get("type", "default")) != "default" and rope,
        "rope_interleaved": c.get("rope_interleaved", False),
    }
    for name, refused in asks.items():
        if refused:
            raise ValueError(f"{path} asks for {name}={c.get(name, rope)!r}, which is not implemented")
    names = {
        "dim": "hidden_size",
        "n_layers": "num_hidden_layers",
        "hidden_dim": "intermediate_size",
        "n_heads": "num_attention_heads",
        "norm_eps": "rms_norm_eps",
        "vocab_size": "vocab_size",
    }
    params = {ours: c[theirs] for ours, theirs in names.items() if theirs in c}
    if len(params) == len(names):
        params["n_kv_heads"] = c.get("num_key_value_heads") or params["n_heads"]
        params["head_dim"] = c.get("head_dim") or params["dim"] // params["n_heads"]
    params["rope_theta"] = rope.get("rope_theta") or c.get("rope_theta") or 10000.0
    # a Llama has no window, and in Mistral's own configurations null means none
    params["sliding_window"] = c.get("sliding_window") if c["model_type"] == "mistral" else None
    params["tied_embeddings"] = c.get("tie_word_embeddings", False)
    return checked_config(path, params)


def checked_config(path, params):
    """ModelConfig(**params), all of whose shape must be given. Raises ValueError."""
    kinds = {field.name: field.type for field in dataclasses.fields(ModelConfig)}
    for name in ("dim", "n_layers", "head_dim", "hidden_dim", "n_heads", "n_kv_heads", "norm_eps", "vocab_size"):
        if name not in params:
            raise ValueError(f"{path} does not say {name}")
    for name, value in params.items():
        if not isinstance(value, (int, float) if kinds[name] is float else kinds[name]):
            raise ValueError(f"{path}: {name} must be {getattr(kinds[name], '__name__', kinds[name])}, not {value!r}")
    try:
        return ModelConfig(**params)
    except ValueError as error:
        raise ValueError(f"{path}: {error}") from None
