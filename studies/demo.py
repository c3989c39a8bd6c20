"""
The table of `make demo`: base model, language modelling for as many steps, Quiet-STaR, and other thought lengths.

    python -m studies.demo --out=out/demo
"""

import os
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.dataset import open_dataset
from eval import held_out_spans, measure, predicted, print_table, summarize
from lib.checkpoint import checkpoints
from lib.config import run_script
from lib.files import write_json
from lib.parallel import pick_device
from lib.pictures import draw_lines
from lib.runs import load_run, read_config, read_log


@dataclass
class DemoConfig:
    out: str = "out/demo"  # folder whose runs base, lm_control, quiet_star, thought_len_* are compared
    texts: int = 512  # held-out spans to measure on
    batch_size: int = 32  # spans per forward
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is one

    def __post_init__(self):
        if self.texts < 1 or self.batch_size < 1:
            raise ValueError("texts and batch_size must be at least 1")


def demo(config):
    """One table of base, LM control, Quiet-STaR and thought lengths; results.json with seconds by phase."""
    out, start, device = Path(config.out), time.perf_counter(), pick_device(config.device)
    train = read_config(out / "base")["train"]
    dataset = open_dataset(train["data"], "val")
    spans, answers = held_out_spans(dataset, train["span"], config.texts)
    names, rows, seconds, sweep = ["base", "lm_control", "quiet_star"], {}, {}, {}
    lengths = [path.name for path in out.glob("thought_len_*") if checkpoints(path)]
    for name in names + sorted(lengths, key=lambda name: int(name.rsplit("_", 1)[1])):
        model, _, settings, _ = load_run(out / name, device)
        found = measure(model, spans, dataset.meta, device, config.batch_size, name)
        rows[name] = summarize(*predicted(found), answers)
        if name == "quiet_star":
            rows["quiet_star, not thinking"] = summarize(found.nll_base, found.right_base, answers)
        if name in lengths or name == "quiet_star":
            sweep.setdefault(settings["quiet_star"]["thought_len"], rows[name]["answer_accuracy"])
        seconds[name] = read_log(out / name)[-1]["seconds"]
    sweep, level = dict(sorted(sweep.items())), ("base", rows["base"]["answer_accuracy"])
    labels = "thought_len", "answers that are right"
    draw_lines({"Quiet-STaR": sweep}, labels, out / "thought_len_sweep.png", "How long must a thought be?", level)
    seconds["evaluation"] = time.perf_counter() - start
    seconds["total"] = sum(seconds.values())
    results = {
        **{name: rows[name] for name in names},
        "quiet_star_not_thinking": rows["quiet_star, not thinking"],
        "thought_len_sweep": sweep,
        "seconds": seconds,
        "seed": read_config(out / "quiet_star")["train"]["seed"],
        "answers": int(answers.sum()),
        "tokens": int(answers.size),
    }
    write_json(out / "results.json", results)
    title = f"{answers.sum():,} answers of sums whose steps are left out, among {answers.size:,} held-out tokens"
    print(f"\n{title}; mean ± standard error; NLL in nats")
    print_table(rows)
    print(f"table: {out / 'results.json'}   picture: {out / 'thought_len_sweep.png'}   {seconds['total']:.0f} s in all")
    python, run = os.path.relpath(sys.executable), out / "quiet_star"
    print(f"see it think: {python} sample.py --run={run} --prompt=$'\\n9*2-2+9=' --show_thoughts --max_new_tokens=1")
    for page in run.glob("eval_step*/gains.html"):
        print(f"token by token, in a browser: {page}")


if __name__ == "__main__":
    run_script("demo.py", __doc__, demo, DemoConfig)
