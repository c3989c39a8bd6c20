"""
Weights in Mistral's official layout, and in Hugging Face's of a Mistral, Llama or Qwen2.
"""

import dataclasses
from pathlib import Path

import torch
from torch.overrides import TorchFunctionMode

from lib.checkpoint import checked_weight, load_tensors
from lib.config import settings
from lib.files import check, lock, read_json, reading, refuse_another, write_json, write_whole
from model import ModelConfig, Transformer

HUGGING_FACE_NAMES = {  # parts of a tensor's name there: the same in the official layout
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
PATTERNS = "consolidated*.safetensors consolidated.*.pth model*.safetensors pytorch_model*.bin"
IMPLEMENTED = {  # values in a config.json; the first is the default
    "model_type": ("mistral", "llama", "qwen2"),
    "hidden_act": ("silu",),
    "rope_type": ("default", "llama3"),
    "use_sliding_window": (False,),
    "partial_rotary_factor": (1,),
}
NOT_SHAPE = {"max_seq_len", "max_position_embeddings", "max_batch_size", "model_type", "causal"}


def load_mistral(folder, dtype=None, rows=None, skip=()):
    """The Transformer of a folder of weights, on the CPU. They stay in their files, mapped into
    memory that processes share, until they are changed: only what `dtype` converts is copied, and
    Hugging Face's wq and wk. Raises ValueError, which names file and tensor, if they do not fit.

    dtype    of the weights; None: as they are stored
    rows     how many tokens of the vocabulary to load, from the first; None: all. Rows that the
             tokenizer does not know are padding: without them the model cannot say them
    skip     what the names of tensors begin with that belong to something else
    """
    folder = Path(folder)
    official = any(folder.glob("consolidated*"))
    path = folder / ("params.json" if official else "config.json")
    config = official_config(path) if official else hugging_face_config(path)
    if rows is not None:
        config = dataclasses.replace(config, vocab_size=min(rows, config.vocab_size))
    weights = {}
    for file, name, tensor in stored_tensors(folder):
        if name.startswith(skip) or name.endswith("rotary_emb.inv_freq"):  # inv_freq: a constant
            continue
        tensor = checked_weight(tensor, name, file)
        with reading(file, f"does not fit: {name}"):
            if not official:
                name, tensor = as_official(name, tensor, config)
            if name in ("tok_embeddings.weight", "output.weight"):
                tensor = tensor[:rows]
            if name in weights:
                raise ValueError("another file holds it, too")
            weights[name] = tensor.to(dtype)
    with reading(path, "does not fit the weights beside it"):
        return transformer_of(weights, config)


def transformer_of(weights, config):
    """The Transformer that these tensors, {name: tensor}, are the weights of: not their copies."""
    if config.tied_embeddings:
        table = weights["tok_embeddings.weight"]
        if not torch.equal(weights.setdefault("output.weight", table), table):
            raise ValueError("the head is tied to the embeddings, but is stored as another tensor")
    with torch.device("meta"), SkipInit():  # without memory
        model = Transformer(config)
    model.load_state_dict(weights, assign=True)
    model.tie()
    return model


class SkipInit(TorchFunctionMode):
    """In here, torch.nn.init does nothing: on "meta" tensors, which have no numbers, it imports a
    compiler, for a second or more."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if getattr(function, "__module__", None) != "torch.nn.init":
            return function(*args, **(kwargs or {}))


def stored_tensors(folder):
    """Yields (path, name, tensor) of a folder's files, those of the first of PATTERNS that it has.
    An index alone tells which of several files holds which tensor. A file is opened once, and
    its numbers are read from disk when they are used. Raises ValueError."""
    pattern = next((pattern for pattern in PATTERNS.split() if any(folder.glob(pattern))), None)
    if pattern is None:
        raise ValueError(f"{folder} holds none of {PATTERNS}")
    paths, file_of = sorted(folder.glob(pattern)), None
    index = folder / f"{pattern.replace('*', '')}.index.json"
    if index.exists() and not (folder / pattern.replace("*", "")).exists():
        file_of = read_json(index, {"weight_map": {str: str}})["weight_map"]
        paths = [folder / Path(file).name for file in sorted(set(file_of.values()))]
    for path in paths:
        tensors = read_safetensors(path) if path.suffix == ".safetensors" else load_tensors(path)
        with reading(path):
            check(tensors, {str: torch.Tensor})
        for name, tensor in tensors.items():
            if file_of is None or file_of.get(name) == path.name:
                yield path, name, tensor


def read_safetensors(path):
    """{name: tensor} of a .safetensors file. Raises ValueError."""
    with reading(path):
        from safetensors.torch import load_file  # a package that only such files need

        return load_file(path)


def as_official(name, tensor, config):
    """(name, tensor) of Hugging Face's layout -> the same in the official one.

    Rotary embedding turns pairs of numbers. Hugging Face's layout has one of a pair in each half of
    a head, (0, hd/2), (1, hd/2 + 1), ...; in Mistral's, they are neighbours: (0, 1), (2, 3), ...
    """
    for theirs, ours in HUGGING_FACE_NAMES.items():
        name = name.replace(theirs, ours)
    heads = {"wq": config.n_heads, "wk": config.n_kv_heads}.get(name.split(".")[-2])
    if heads is not None:
        tensor = tensor.unflatten(0, (heads, 2, -1)).transpose(1, 2).flatten(0, 2)
    return name, tensor


def official_config(path):
    """ModelConfig of a params.json. Raises ValueError if it asks for what is not implemented."""
    params = {name: x for name, x in read_json(path).items() if x and name not in NOT_SHAPE}
    with reading(path, "asks for what is not implemented"):
        return settings(ModelConfig, params)


def hugging_face_config(path):
    """ModelConfig of a config.json. Raises ValueError if it asks for what is not implemented."""
    c = read_json(path)
    with reading(path, "asks for what is not implemented, or lacks a key"):
        c |= c.get("rope_scaling") or c.get("rope_parameters") or {}
        c.setdefault("rope_type", c.get("type", "default"))  # `type` in older files
        for name, values in IMPLEMENTED.items():
            if c.get(name, values[0]) not in values:
                raise ValueError(f"{name}={c[name]}")
        window = c["sliding_window"] if c["model_type"] == "mistral" else None
        kinds = set(c.get("layer_types") or ())
        if kinds == {"full_attention"}:
            window = None
        elif kinds and (window is None or kinds != {"sliding_attention"}):
            raise ValueError(f"layer_types={c['layer_types']}")
        params = {
            "dim": c["hidden_size"],
            "n_layers": c["num_hidden_layers"],
            "hidden_dim": c["intermediate_size"],
            "n_heads": c["num_attention_heads"],
            "n_kv_heads": c.get("num_key_value_heads") or c["num_attention_heads"],
            "head_dim": c.get("head_dim") or c["hidden_size"] // c["num_attention_heads"],
            "norm_eps": c["rms_norm_eps"],
            "vocab_size": c["vocab_size"],
            "rope_theta": c.get("rope_theta", 10000.0),
            "sliding_window": window,
            "attention_bias": c["model_type"] == "qwen2",
            "tied_embeddings": c.get("tie_word_embeddings", False),
        }
        if c["rope_type"] == "llama3":
            params["rope_factor"] = c["factor"]
            params["rope_low"] = c["low_freq_factor"]
            params["rope_high"] = c["high_freq_factor"]
            params["rope_context"] = c["original_max_position_embeddings"]
        return settings(ModelConfig, params)


def claim_folder(folder, asked):
    """Make and lock a folder for weights made from what `asked` names, {name: value}: a file, which
    holds the lock until it is closed. Raises ValueError if the folder holds anything else."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    claim, about = lock(folder), folder / "export.json"
    refuse_another(about, asked)
    names = {path.name for path in folder.iterdir()} - {"lock", "export.json.tmp"}
    if names and about.name not in names:
        raise ValueError(f"{folder} holds other files ({min(names)}): choose another --out")
    write_json(about, {"asked": asked})
    return claim


def save_mistral(model, folder):
    """Write params.json and consolidated.00.pth of a Transformer. Raises OSError."""
    folder = Path(folder)
    folder.mkdir(parents=True, exist_ok=True)
    weights = {name: x.detach() for name, x in model.named_parameters()}  # a tied head only once
    write_whole(folder / "consolidated.00.pth", lambda file: torch.save(weights, file))
    write_json(folder / "params.json", vars(model.config))
