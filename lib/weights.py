"""
Weights from elsewhere, and for elsewhere: Mistral's official layout, and Hugging Face's of a Mistral or a Llama.
"""

import dataclasses
import json
import math
from dataclasses import asdict
from pathlib import Path

import torch

from lib.files import read_json, replace_file, write_whole
from model import ModelConfig, Transformer

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
    names = dict(dim="hidden_size", n_layers="num_hidden_layers", hidden_dim="intermediate_size")
    names |= dict(n_heads="num_attention_heads", norm_eps="rms_norm_eps", vocab_size="vocab_size")
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
