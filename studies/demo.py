"""
The part of `make demo` after its base model: trains Quiet-STaR and two controls, then compares all.

    python -m studies.demo --out=out/demo --seed=1337
"""

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.dataset import open_dataset
from eval import held_out_spans, measure, predicted, summarize
from lib.checkpoint import read_checkpoint
from lib.config import run_script
from lib.files import write_json
from lib.parallel import pick_device
from lib.pictures import print_rows
from lib.runs import load_run, read_config
from quiet_star import QuietSTaR
from studies.runs import train_all

ROWS = {
    "lm_control": ["--objective=lm"],
    "without_reinforce": ["--reinforce_weight=0"],
    "quiet_star": [],
}


@dataclass
class DemoConfig:
    out: str = "out/demo"  # folder of the four runs; its subfolder base must exist
    seed: int = 1337  # of the three runs that start from the base model
    texts: int = 512  # held-out spans to measure on
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is one


def demo(config):
    """One table of the four runs, thoughts greedy and sampled; results.json, with their seconds."""
    out, device = Path(config.out), pick_device(config.device)
    base = read_config(out / "base")["train"]
    dataset = open_dataset(base["data"], "val")
    spans, answers = held_out_spans(dataset, base["span"], config.texts)
    if not answers.any():
        raise ValueError(f"{base['data']} has no answers in its held-out text: nothing to compare")
    flags = [f"--init_from={out / 'base'}", f"--data={base['data']}", f"--device={device}"]
    flags.append(f"--seed={config.seed}")
    print(f"see them learn: tail -f {out}/*.log", flush=True)
    train_all({out / name: [*flags, *more] for name, more in ROWS.items()}, jobs=2)
    rows, seconds = {}, {}
    for name in ("base", *ROWS):
        model = load_run(out / name, device)[0]
        seconds[name] = read_checkpoint(out / name)["metrics"]["seconds"]
        for way, temperature in {"": 0.0, ", thoughts sampled": 1.0}.items():
            if not way or isinstance(model, QuietSTaR):
                found = measure(model, spans, dataset.meta, temperature=temperature)
                rows[name + way] = summarize(*predicted(found), answers)
    write_json(out / "results.json", {**rows, "seconds": seconds, "seed": config.seed})
    title = f"{answers.sum():,} answers among {answers.size:,} held-out tokens; NLL in nats"
    print_rows(title, rows, digits=4)
    sample = "python sample.py --prompt=$'\\n3849=' --show_thoughts --max_new_tokens=1"
    print(f"table: {out}/results.json; see it think: {sample} --run={out}/quiet_star")


if __name__ == "__main__":
    run_script("demo.py", __doc__, demo, DemoConfig)
