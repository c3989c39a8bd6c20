"""
A run's model for others to load, with its tokenizer, in Mistral's official layout.

    python -m lib.export --run=out/mine --out=weights/mine
"""

from dataclasses import dataclass
from pathlib import Path

import torch

from lib.config import run_script
from lib.files import write_json, write_whole
from lib.runs import load_run
from lib.weights import claim_folder, save_mistral
from quiet_star import QuietSTaR


@dataclass
class ExportConfig:
    run: str = ""  # folder of the run whose model is to be exported
    out: str = ""  # folder to write


def export(run, out):
    """Write a run's model and tokenizer into a folder of their own, and with a QuietSTaR
    quiet_star.pt, its other tensors, and quiet_star.json, its settings. params.json comes last:
    without it, the folder holds no model. Raises ValueError and OSError."""
    model, tokenizer, _, step = load_run(run)
    out = Path(out)
    with claim_folder(out, {"run": str(run), "step": step}):
        tokenizer.save(out)
        if isinstance(model, QuietSTaR):
            parts = model.state_dict().items()
            weights = {name: x for name, x in parts if not name.startswith("model.")}
            write_whole(out / "quiet_star.pt", lambda file: torch.save(weights, file))
            write_json(out / "quiet_star.json", vars(model.config))
            model = model.model
        save_mistral(model, out)
    print(f"{out}: {', '.join(sorted(path.name for path in out.iterdir()))}")


if __name__ == "__main__":
    run_script("export.py", __doc__, lambda config: export(config.run, config.out), ExportConfig)
