"""
The part of `make demo` after its base model: trains Quiet-STaR and two controls, then compares all four.

    python -m studies.demo --out=out/demo --seed=1337
"""

import os
import subprocess
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from data.dataset import open_dataset
from eval import held_out_spans, measure, predicted, print_table, summarize
from lib.config import run_script
from lib.files import write_json
from lib.parallel import pick_device
from lib.runs import load_run, read_config, read_log
from quiet_star import QuietSTaR
from studies.runs import HERE, script

CONTROLS = {"lm_control": ["--objective=lm"], "without_reinforce": ["--reinforce_weight=0"]}
ROWS = "base", *CONTROLS, "quiet_star"


@dataclass
class DemoConfig:
    out: str = (
        "out/demo"  # folder of the four runs that are compared; its subfolder base must exist
    )
    seed: int = 1337  # of the three runs that start from the base model
    texts: int = 512  # held-out spans to measure on
    batch_size: int = 16  # spans per forward
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is one

    def __post_init__(self):
        if self.texts < 1 or self.batch_size < 1:
            raise ValueError("texts and batch_size must be at least 1")


def train(config, data):
    """Train Quiet-STaR, with its progress shown, and the controls beside it: each on one thread."""
    out = Path(config.out)
    flags = [
        f"--init_from={out / 'base'}",
        f"--data={data}",
        f"--seed={config.seed}",
        f"--device={config.device}",
    ]

    def controls():
        for name, more in CONTROLS.items():
            script("train.py", f"--out={out / name}", *flags, *more, log=out / f"{name}.log")

    with ThreadPoolExecutor(1) as beside:
        waiting = beside.submit(controls)
        print(
            f"beside it, two controls: {', '.join(str(out / name) for name in CONTROLS)} (.log)",
            flush=True,
        )
        command = [sys.executable, str(HERE / "train.py"), f"--out={out / 'quiet_star'}", *flags]
        process = subprocess.Popen(command, env={**os.environ, "OMP_NUM_THREADS": "1"})
        try:
            failed = process.wait()
        except KeyboardInterrupt:  # it was asked to stop as well, and saves its step
            process.wait()
            raise
        if failed:
            print("a control is still being trained; that ends first", flush=True)
            sys.exit(failed)
        waiting.result()


def demo(config):
    """One table of the four runs, thoughts greedy and sampled; results.json, with the seconds of each run."""
    out, device = Path(config.out), pick_device(config.device)
    base = read_config(out / "base")["train"]
    train(config, base["data"])
    start = time.perf_counter()
    dataset = open_dataset(base["data"], "val")
    spans, answers = held_out_spans(dataset, base["span"], config.texts)
    rows, sampled, seconds = {}, {}, {}
    for name in ROWS:
        model = load_run(out / name, device)[0]
        seconds[name] = read_log(out / name)[-1]["seconds"]
        found = measure(model, spans, dataset.meta, device, config.batch_size, name)
        rows[name] = summarize(*predicted(found), answers)
        if isinstance(model, QuietSTaR):
            found = measure(
                model,
                spans,
                dataset.meta,
                device,
                config.batch_size,
                f"{name}, sampled",
                temperature=1.0,
            )
            sampled[name] = summarize(*predicted(found), answers)
    seconds["evaluation"] = time.perf_counter() - start
    results = {
        **rows,
        "sampled_thoughts": sampled,
        "seconds": seconds,
        "seed": config.seed,
        "answers": int(answers.sum()),
        "tokens": int(answers.size),
    }
    write_json(out / "results.json", results)
    title = f"{answers.sum():,} answers of sums whose steps are left out, among {answers.size:,} held-out tokens"
    print(f"\n{title}; mean ± standard error; NLL in nats")
    print_table(rows | {f"{name}, thoughts sampled": row for name, row in sampled.items()})
    print(f"table: {out / 'results.json'}")
    sample = f"{os.path.relpath(sys.executable)} sample.py --prompt=$'\\n3849=' --show_thoughts --max_new_tokens=1"
    print(f"see it think: {sample} --run={out / 'quiet_star'}")


if __name__ == "__main__":
    run_script("demo.py", __doc__, demo, DemoConfig)
