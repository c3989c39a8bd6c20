"""
What `eval.py` found of runs at each step it looked at: scores against seconds of training.

    python -m studies.curve --runs=out/one,out/other
"""

from dataclasses import dataclass
from pathlib import Path

from lib.config import run_script
from lib.files import read_json, write_json
from lib.pictures import draw_lines
from lib.runs import read_log


@dataclass
class CurveConfig:
    runs: str = ""  # folders of runs, with commas between them, each measured by gains at some steps
    out: str = ""  # folder to write; empty: the one that holds the first run

    def __post_init__(self):
        if not self.runs:
            raise ValueError("--runs is needed: folders of runs, with commas between them")


def curve(config):
    """Accuracy at answers (or else nats saved per token) against seconds of training, from what gains left in runs."""
    rows = {}
    for run in map(Path, config.runs.split(",")):
        seconds = {line["step"]: line["seconds"] for line in read_log(run)}
        shape = {"quiet_star": dict, "gain": dict, "answers": int}
        found = [read_json(path, shape) for path in sorted(run.glob("eval_step*/results.json"))]
        if not found:
            raise ValueError(f"{run} was not measured yet: python eval.py gains --run={run}, at several steps")
        part, name = ("quiet_star", "answer_accuracy") if found[0]["answers"] else ("gain", "nats_per_token")
        rows[run.name] = [(x["step"], seconds[x["step"]], x[part][name]) for x in found]
    print(f"{'':12}{'step':>6}{'seconds':>10}{name:>18}")
    for run, points in rows.items():
        for step, took, value in points:
            print(f"{run:12}{step:>6}{took:>10.1f}{value:>18.4f}")
    out = Path(config.out or Path(config.runs.split(",")[0]).parent)
    out.mkdir(parents=True, exist_ok=True)
    write_json(out / "curve.json", {"columns": ["step", "seconds", name], **rows})
    lines = {run: {seconds: value for _, seconds, value in points} for run, points in rows.items()}
    draw_lines(lines, ("seconds of training", name.replace("_", " ")), out / "curve.png", top=None)
    print(f"table: {out / 'curve.json'}   picture: {out / 'curve.png'}")


def main():
    run_script("curve.py", __doc__, curve, CurveConfig)


if __name__ == "__main__":
    main()
