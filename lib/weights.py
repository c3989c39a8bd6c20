"""
Weights from elsewhere, and for elsewhere: Mistral's official layout, and Hugging Face's of a Mistral, Llama or Qwen2.
"""

import dataclasses
import importlib
import math
from dataclasses import asdict
from pathlib import Path

import torch

from lib.checkpoint import checked_weight, load_tensors
from lib.config import settings
from lib.files import brief, read_json, reading, write_json, write_whole
from model import ModelConfig, Transformer

IGNORED = {
    "max_seq_len",
    "max_position_embeddings",
    "max_batch_size",
    "model_type",
    "causal",
}  # no part of the shape


def load_mistral(folder, dtype=None, rows=None, but=()):
    """A Transformer with the weights of a folder, on the CPU. Raises ValueError, in one line, if they do not fit.

    folder   Mistral's official layout: params.json and consolidated.00.pth or consolidated*.safetensors
             or Hugging Face's, of a Mistral, Llama or Qwen2: config.json and model*.safetensors or pytorch_model*.bin
    dtype    of the model's weights; None: as they are stored
    rows     of the vocabulary to take, from the first; None: all. What is cut off (padding, tokens that the tokenizer
             does not know) can be neither read nor said
    but      how the names begin of tensors that belong to something else

    Each tensor is memory-mapped, copied to its place and let go, so that no more is in memory than the model and one
    tensor. A head that is tied to the embeddings stays tied.
    """
    folder = Path(folder)
    official = (folder / "params.json").exists() and any(folder.glob("consolidated*"))
    if not official and not (folder / "config.json").exists():
        raise ValueError(
            f"no weights in {folder}: params.json with consolidated.*, or config.json, is wanted"
        )
    config = (
        official_config(folder / "params.json")
        if official
        else hugging_face_config(folder / "config.json")
    )
    found = find_tensors(folder, OFFICIAL_FILES if official else HUGGING_FACE_FILES)
    if config.n_layers > len(found):
        raise ValueError(
            f"{folder} does not fit: it holds {len(found)} tensors, too few for {config.n_layers} layers"
        )

    if rows is not None and rows < config.vocab_size:
        config = dataclasses.replace(config, vocab_size=rows)
    with (
        reading(folder, "asks for a model that cannot be"),
        torch.device("meta"),
    ):  # shapes alone; memory comes with
        model = Transformer(config)  # the first tensor's dtype
    names, missing = (
        {name: p.shape for name, p in model.named_parameters()},
        set(dict(model.named_parameters())),
    )
    empty = True
    for path, name, tensor in tensors_of(found):
        if name.startswith(but):
            continue
        name = name if official else from_hugging_face(name)
        if rows is not None and name in ("tok_embeddings.weight", "output.weight"):
            tensor = tensor[:rows]
        if name is None or name == "output.weight" and config.tied_embeddings:
            continue
        if names.get(name) != tensor.shape:
            wanted = tuple(names[name]) if name in names else "nothing"
            raise ValueError(
                f"{folder} does not fit: it holds {tuple(tensor.shape)} for {name}, {wanted} is wanted"
            )
        if empty:
            model, empty = model.to(dtype or tensor.dtype).to_empty(device="cpu"), False
            model.tie()
        copy_weight(
            name,
            checked_weight(tensor, name, path),
            model.get_parameter(name),
            config,
            halves=not official,
        )
        if dtype not in (None, tensor.dtype):
            checked_weight(
                model.get_parameter(name), name, path
            )  # 1e6, say, is infinite in float16
        missing.discard(name)
        del tensor
    for name in sorted(missing):
        raise ValueError(
            f"{folder} does not fit: it holds nothing for {name}, {tuple(names[name])} is wanted"
        )
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
    write_json(folder / "params.json", params)


def save_hugging_face(model, folder, tokenizer):
    """Write a Transformer as a folder that transformers loads: config.json and model.safetensors. Raises ValueError."""
    folder, c = Path(folder), model.config
    save_file = safetensors_function("torch", "save_file")
    if c.attention_bias and c.sliding_window:
        raise ValueError(
            "transformers has no model with both attention_bias and a sliding window, as this one has"
        )
    kind = "qwen2" if c.attention_bias else "mistral" if c.sliding_window else "llama"
    rope = {"rope_type": "default", "rope_theta": c.rope_theta}
    if c.rope_factor != 1:
        rope |= {
            "rope_type": "llama3",
            **{theirs: getattr(c, ours) for ours, theirs in LLAMA3.items()},
        }
    names = {
        ours: getattr(c, ours)
        for ours in ("head_dim", "rope_theta", "sliding_window", "vocab_size")
    }
    names |= {theirs: getattr(c, ours) for ours, theirs in SHAPE.items()}
    config = {
        "architectures": [
            {"qwen2": "Qwen2", "mistral": "Mistral", "llama": "Llama"}[kind] + "ForCausalLM"
        ],
        "model_type": kind,
        **names,
        "num_key_value_heads": c.n_kv_heads,
        "rope_parameters": rope,
        "rope_scaling": rope
        if c.rope_factor != 1
        else None,  # where older transformers look for it
        "hidden_act": "silu",
        "max_position_embeddings": 32768,
        "tie_word_embeddings": c.tied_embeddings,
        "bos_token_id": tokenizer.bos_id,
        "eos_token_id": tokenizer.eos_id,
    }
    weights = {}
    for name, tensor in model.state_dict().items():
        heads = heads_of(name, c)
        if heads:
            tensor = tensor.unflatten(0, (heads, -1, 2)).transpose(1, 2).flatten(0, 2)
        if name != "output.weight" or not c.tied_embeddings:
            weights[to_hugging_face(name)] = tensor.contiguous()
    folder.mkdir(parents=True, exist_ok=True)
    temporary = folder / "model.safetensors.tmp"
    save_file(weights, temporary, metadata={"format": "pt"})
    temporary.replace(folder / "model.safetensors")
    write_json(folder / "config.json", config)


OFFICIAL_FILES = ("consolidated*.safetensors", "consolidated.*.pth")

HUGGING_FACE_FILES = ("model*.safetensors", "pytorch_model*.bin")


def find_tensors(folder, patterns):
    """[(number of elements, path, name)] of all tensors in a folder's files, of the first pattern that has any. The
    index that tells which file holds which tensor, if there is one, decides. Raises ValueError."""
    for pattern in patterns:
        files, index, names = (
            sorted(folder.glob(pattern)),
            folder / f"{pattern.replace('*', '')}.index.json",
            None,
        )
        if files or index.exists():
            break
    else:
        raise ValueError(f"no weights in {folder}: there is none of {', '.join(patterns)}")
    if index.exists():
        names = read_json(index, {"weight_map": {str: str}})["weight_map"]
        files = sorted({folder / file for file in names.values()})
        for path in files:
            if path.parent != folder or not path.exists():
                raise ValueError(
                    f"{index} names the file {brief(path.name)}, which is not in {folder}"
                )
    found = {}
    for path in files:
        for name, size in sizes_in(path).items():
            if names and names.get(name) != path.name:
                continue
            if name in found:
                raise ValueError(
                    f"{name} is in {found[name][1]} and in {path}: which is right? Remove one of the files"
                )
            found[name] = size, path, name
    for name in sorted(names.keys() - found.keys() if names else ()):
        raise ValueError(f"{index} names {brief(name)}, which is not in {folder / names[name]}")
    return list(found.values())


def tensors_of(found):
    """(path, name, tensor) of what find_tensors found, memory-mapped. A file is opened anew for each tensor: what has
    been read of a mapped file counts as this process's memory for as long as it is mapped. The largest come first,
    while the rest of the model is not in memory yet."""
    for _, path, name in sorted(found, reverse=True):
        with reading(path):
            if path.suffix == ".safetensors":
                with safetensors_function("", "safe_open")(path, framework="pt") as file:
                    tensor = file.get_tensor(name)
            else:
                tensor = torch.load(path, mmap=True, weights_only=True)[name]
        yield path, name, tensor


def sizes_in(path):
    """{name: number of elements} of a checkpoint file. Raises ValueError."""
    if path.suffix != ".safetensors":
        tensors = load_tensors(path)
        with reading(path):
            return {str(name): x.numel() for name, x in tensors.items()}
    open_file = safetensors_function("", "safe_open")
    with reading(path), open_file(path, framework="pt") as file:
        return {name: math.prod(file.get_slice(name).get_shape()) for name in file.keys()}


def safetensors_function(module, name):
    """A function of the optional package."""
    try:
        return getattr(
            importlib.import_module(f"safetensors.{module}" if module else "safetensors"), name
        )
    except ImportError:
        raise ValueError(
            "reading and writing .safetensors needs a package: pip install safetensors"
        ) from None


def copy_weight(name, source, target, config, halves):
    """Copy one tensor into its parameter. halves: the rows of wq and wk are in Hugging Face's order.

    Rotary embedding turns pairs of numbers. Mistral's checkpoints keep a pair together, (0,1), (2,3), ...; Hugging
    Face's keep all first numbers of a head's pairs and then all second ones: (0, hd/2), (1, hd/2 + 1), ...
    """
    heads = heads_of(name, config)
    with torch.no_grad():
        if halves and heads:
            source = source.unflatten(0, (heads, 2, -1)).transpose(1, 2)
            target = target.unflatten(0, (heads, -1, 2))
        target.copy_(source)


def heads_of(name, config):
    """How many heads a tensor has, if it is one whose rows rotary embedding turns."""
    return {"wq": config.n_heads, "wk": config.n_kv_heads}.get(name.split(".")[-2])


def to_hugging_face(name):
    for theirs, ours in HUGGING_FACE_NAMES.items():
        name = name.replace(ours, theirs) if ours else name
    return name if name.startswith("lm_head.") else f"model.{name}"


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


SHAPE = dict(dim="hidden_size", n_layers="num_hidden_layers", hidden_dim="intermediate_size")
SHAPE |= dict(n_heads="num_attention_heads", norm_eps="rms_norm_eps")
LLAMA3 = dict(rope_factor="factor", rope_low="low_freq_factor", rope_high="high_freq_factor")
LLAMA3 |= dict(rope_context="original_max_position_embeddings")


def official_config(path):
    """ModelConfig of a params.json. What it asks for and this model does not have is refused (ValueError)."""
    params = read_json(path)
    fields = {field.name for field in dataclasses.fields(ModelConfig)}
    for name, value in params.items():
        if name not in fields | IGNORED and value:
            raise ValueError(
                f"{path} asks for {brief(name)}={brief(repr(value))}, which is not implemented"
            )
    return checked_config(path, {name: params[name] for name in fields & params.keys()})


def hugging_face_config(path):
    """ModelConfig of a config.json, likewise. What it does not say is as transformers has it for this type of model."""
    c = read_json(path)
    kind, rope = c.get("model_type"), c.get("rope_parameters") or c.get("rope_scaling") or {}
    rope, mistral = rope if isinstance(rope, dict) else {"rope_type": rope}, kind == "mistral"
    scaled = rope.get("rope_type", rope.get("type", "default"))
    asks = {
        "model_type": kind not in ("mistral", "llama", "qwen2"),
        "use_sliding_window": kind == "qwen2" and c.get("use_sliding_window", False),
        "hidden_act": c.get("hidden_act", "silu") != "silu",
        "attention_bias": c.get("attention_bias", False),
        "mlp_bias": c.get("mlp_bias", False),
        "rope_scaling": scaled not in ("default", "llama3") and rope,
        "rope_interleaved": c.get("rope_interleaved", False),
        "partial_rotary_factor": c.get(
            "partial_rotary_factor", rope.get("partial_rotary_factor", 1)
        )
        != 1,
        "quantization_config": c.get("quantization_config", False),
    }
    for name, refused in asks.items():
        if refused:
            raise ValueError(
                f"{path} asks for {name}={brief(repr(c.get(name, rope)))}, which is not implemented"
            )
    names = {**SHAPE, "vocab_size": "vocab_size"}
    params = {ours: c[theirs] for ours, theirs in names.items() if theirs in c}
    if len(params) == len(names):
        with reading(path, "does not say what shape the model has"):
            params["n_kv_heads"] = (
                c.get("num_key_value_heads", 8 if mistral else None) or params["n_heads"]
            )
            params["head_dim"] = c.get("head_dim") or params["dim"] // params["n_heads"]
    params["rope_theta"] = next(
        x for x in (rope.get("rope_theta"), c.get("rope_theta"), 10000.0) if x is not None
    )
    # a Llama has no window, and in Mistral's own configurations null means none
    params["sliding_window"] = c.get("sliding_window", 4096) if mistral else None
    params["attention_bias"] = kind == "qwen2"
    if scaled == "llama3":
        if missing := [name for name in LLAMA3.values() if name not in rope]:
            raise ValueError(f"{path} asks for rope_scaling llama3 without {missing[0]}")
        params |= {ours: rope[theirs] for ours, theirs in LLAMA3.items()}
    params["tied_embeddings"] = c.get("tie_word_embeddings", False)
    return checked_config(path, params)


def checked_config(path, params):
    """ModelConfig(**params), all of whose shape must be given. Raises ValueError."""
    for name in (
        "dim",
        "n_layers",
        "head_dim",
        "hidden_dim",
        "n_heads",
        "n_kv_heads",
        "norm_eps",
        "vocab_size",
    ):
        if name not in params:
            raise ValueError(f"{path} does not say {name}")
    with reading(path, "is not the shape of a model"):
        return settings(ModelConfig, params)
