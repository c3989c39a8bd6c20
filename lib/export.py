"""
A run's model in Mistral's official layout, with its tokenizer.

    python -m lib.export --run=out/mine --out=weights/mine
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from lib.config import run_script
from lib.files import lock, write_json, write_whole
from lib.runs import load_run
from lib.weights import save_mistral
from quiet_star import QuietSTaR


def export(run, out):
    """Write a run's model as Mistral's official layout with its tokenizer, and what thinks, if it does, beside it:
    quiet_star.pt, the tensors of start, end, mixing head and gain head, and quiet_star.json, their settings."""
    model, tokenizer, _, _ = load_run(run)
    transformer = model.model if isinstance(model, QuietSTaR) else model
    Path(out).mkdir(parents=True, exist_ok=True)
    with lock(out):
        for name in ("params.json", "quiet_star.pt", "quiet_star.json"):  # params.json comes last: without it, a folder
            (Path(out) / name).unlink(missing_ok=True)  # holds no model
        if isinstance(model, QuietSTaR):
            weights = {name: x for name, x in model.state_dict().items() if not name.startswith("model.")}
            write_whole(Path(out) / "quiet_star.pt", lambda file: torch.save(weights, file))
            write_json(Path(out) / "quiet_star.json", vars(model.config))
        tokenizer.save(out)
        save_mistral(transformer, out)


@dataclass
class ExportConfig:
    run: str = ""  # folder of the run whose model is to be exported
    out: str = ""  # folder to write

    def __post_init__(self):
        if not self.run or not self.out:
            raise ValueError("--run and --out are both needed")


def main(config):
    export(config.run, config.out)
    print(f"{config.out}: {', '.join(sorted(path.name for path in Path(config.out).iterdir()))}")


if __name__ == "__main__":
    run_script("export.py", __doc__, main, ExportConfig)
