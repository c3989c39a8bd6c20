"""
A run's model for others to load, with its tokenizer.

    python -m lib.export --run=out/mine --out=weights/mine                Mistral's official layout
    python -m lib.export --run=out/mine --out=weights/mine --layout=hf    Hugging Face's: transformers loads it
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

import torch

from lib.config import run_script
from lib.files import lock, write_json, write_whole
from lib.runs import load_run
from lib.weights import save_hugging_face, save_mistral
from quiet_star import QuietSTaR

# transformers' class for a tokenizer file; it has none for alphabets, and for tekken.json it wants another package
CLASSES = {"bpe": "PreTrainedTokenizerFast", "sentencepiece": "LlamaTokenizer"}


def export(run, out, layout="official"):
    """Write a run's model in a layout with its tokenizer, and what thinks, if it does, beside it: quiet_star.pt, the
    tensors of start, end, mixing head and gain head, and quiet_star.json, their settings."""
    model, tokenizer, _, _ = load_run(run)
    transformer = model.model if isinstance(model, QuietSTaR) else model
    Path(out).mkdir(parents=True, exist_ok=True)
    with lock(out):
        # the file that tells the shape comes last: without it, a folder holds no model
        for name in ("params.json", "config.json", "quiet_star.pt", "quiet_star.json"):
            (Path(out) / name).unlink(missing_ok=True)
        if isinstance(model, QuietSTaR):
            weights = {
                name: x for name, x in model.state_dict().items() if not name.startswith("model.")
            }
            write_whole(Path(out) / "quiet_star.pt", lambda file: torch.save(weights, file))
            write_json(Path(out) / "quiet_star.json", vars(model.config))
        tokenizer.save(out)
        if layout == "official":
            return save_mistral(transformer, out)
        kind = tokenizer.to_json()["kind"]
        if kind in CLASSES:
            write_json(Path(out) / "tokenizer_config.json", {"tokenizer_class": CLASSES[kind]})
        else:
            print(f"{out}: transformers reads no tokenizer of kind {kind}; its weights it does")
        save_hugging_face(transformer, out, tokenizer)


@dataclass
class ExportConfig:
    run: str = ""  # folder of the run whose model is to be exported
    out: str = ""  # folder to write
    layout: Literal["official", "hf"] = (
        "official"  # official: Mistral's; hf: Hugging Face's, for transformers
    )

    def __post_init__(self):
        if not self.run or not self.out:
            raise ValueError("--run and --out are both needed")


def main(config):
    export(config.run, config.out, config.layout)
    print(f"{config.out}: {', '.join(sorted(path.name for path in Path(config.out).iterdir()))}")


if __name__ == "__main__":
    run_script("export.py", __doc__, main, ExportConfig)
