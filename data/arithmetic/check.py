"""
Has a model learned to add up? In held-out worked lines each running sum is predicted from those
before it ("teacher forcing"), and must be right 99 times in 100. A model that gets these steps
wrong has nothing useful to think.

    python data/arithmetic/check.py --run=out/arithmetic_base
"""

import re
import sys
from dataclasses import dataclass
from pathlib import Path

import torch

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.arithmetic.prepare import ALPHABET, DIGITS  # noqa: E402
from data.dataset import open_dataset  # noqa: E402
from lib.config import run_script  # noqa: E402
from lib.runs import load_run  # noqa: E402
from lib.tokenizer import CharTokenizer  # noqa: E402

CONTEXT = 40  # characters that the model reads before a step; a line is shorter
LEAST = 0.99  # share of each step that must be right


@dataclass
class CheckConfig:
    run: str = "out/arithmetic_base"  # folder of a run on this text


@torch.no_grad()
def steps_right(run):
    """{number of digits: [share of the first step that is right, of the second, ...]} in held-out
    worked lines.

    The model's step is its likeliest digit. (The likeliest first token may well be an idle word's.)
    """
    model, tokenizer, settings, _ = load_run(run)
    if tokenizer.to_json() != CharTokenizer(ALPHABET).to_json():
        folder = settings["train"]["data"]
        raise ValueError(f"{run} learned another text: delete meta.json in {folder}, begin anew")
    model = getattr(model, "model", model)  # what speaks without a thought
    tokens = torch.from_numpy(open_dataset(settings["train"]["data"], "val").tokens.astype("int64"))
    digits = torch.tensor(tokenizer.encode(DIGITS))
    rows = {}
    for match in re.finditer(r"=—(\d+)—", tokenizer.decode(tokens.tolist())):
        if match.end(1) >= CONTEXT:
            rows.setdefault(len(match[1]), []).append(tokens[match.end(1) - CONTEXT : match.end(1)])
    shares = {}
    for n, lines in sorted(rows.items()):
        lines = torch.stack(lines)  # (lines, CONTEXT), each ends with its last step
        logits = model.logits(model(lines[:, :-1])[:, -n:])[..., digits]
        shares[n] = (digits[logits.argmax(-1)] == lines[:, -n:]).float().mean(0).tolist()
    return shares


def check(run):
    """Print how often each step is right. Raises ValueError if one is so less often than LEAST."""
    shares = steps_right(run)
    words = [f"of {n} digits " + ", ".join(f"{x:.3f}" for x in row) for n, row in shares.items()]
    print(f"{run}: share of each step that is right in held-out worked lines: {'; '.join(words)}")
    if not shares or min(map(min, shares.values())) < LEAST:
        advice = "more --max_steps may help, or another --seed in another folder"
        raise ValueError(f"{run} has not learned its steps ({LEAST} are wanted): {advice}")


if __name__ == "__main__":
    run_script("check.py", __doc__, lambda config: check(config.run), CheckConfig)
