"""
The table of `make demo`: base model, language modelling for as many steps, Quiet-STaR, and other thought lengths.

    python -m studies.demo --out=out/demo
"""

import time
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.dataset import open_dataset
from eval import answer_places, measure, predicted, print_table, spread_spans, summarize, write_results
from lib.config import run_script
from lib.parallel import pick_device
from lib.pictures import draw_lines
from lib.runs import load_run, read_log


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
    names = ["base", "lm_control", "quiet_star"]
    lengths = {
        int(p.name.rsplit("_", 1)[1]): p.name for p in out.glob("thought_len_*") if (p / "checkpoint.pt").exists()
    }
    measured, seconds, settings = {}, {}, {}
    dataset = answers = spans = None
    for name in names + [lengths[m] for m in sorted(lengths)]:
        model, _, settings[name], _ = load_run(out / name, device)
        if dataset is None:
            dataset = open_dataset(settings[name]["train"]["data"], "val")
            spans = spread_spans(dataset.tokens, settings[name]["train"]["span"], config.texts)
            answers = answer_places(spans, dataset.meta)
        measured[name] = measure(model, spans, dataset.meta, device, config.batch_size, name)
        seconds[name] = read_log(out / name)[-1]["seconds"]

    rows = {}
    for name, x in measured.items():
        rows[name] = summarize(*predicted(x), answers)
        if name == "quiet_star":
            rows["quiet_star, not thinking"] = summarize(x.nll_base, x.right_base, answers)
    main_length = settings["quiet_star"]["quiet_star"]["thought_len"]
    sweep = {m: rows[name]["answer_accuracy"] for m, name in lengths.items()}
    sweep[main_length] = rows["quiet_star"]["answer_accuracy"]
    level = "base", rows["base"]["answer_accuracy"]
    lines = {"Quiet-STaR": dict(sorted(sweep.items()))}
    draw_lines(lines, ("thought_len", "answers that are right"), out / "thought_len_sweep.png", level)
    seconds["evaluation"] = time.perf_counter() - start
    seconds["total"] = sum(seconds.values())
    results = {
        **{name: rows[name] for name in names},
        "quiet_star_not_thinking": rows["quiet_star, not thinking"],
        "thought_len_sweep": {str(m): sweep[m] for m in sorted(sweep)},
        "seconds": seconds,
        "seed": settings["quiet_star"]["train"]["seed"],
        "answers": int(answers.sum()),
        "tokens": int(answers.size),
    }
    write_results(out / "results.json", results)
    title = f"{answers.sum():,} answers of sums whose steps are left out, among {answers.size:,} held-out tokens"
    print(f"\n{title}; mean ± standard error; NLL in nats")
    print_table(rows)
    print(f"table: {out / 'results.json'}   picture: {out / 'thought_len_sweep.png'}   {seconds['total']:.0f} s in all")


def main():
    run_script("demo.py", __doc__, demo, DemoConfig)


if __name__ == "__main__":
    main()
