"""
Whom the commands of eval.py measure, and where they write what they find.
"""

from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

from lib.files import lock, refuse_another
from lib.parallel import pick_device
from lib.runs import LoadConfig, last_run, load_to_think


@dataclass
class SubjectConfig:
    run: str = ""  # folder of the run, or of weights; empty: the last thinking one in out/
    base: str = ""  # folder of the base model; empty: the one that the run started from
    out: str = ""  # folder to write; empty: one in the run's
    batch_size: int = 16  # texts that are read together
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is one


class Subject:
    """The model of a run, or of a folder of weights, and the folder of its base model: "" if it has
    none. settings are those of the run, None for weights. Raises ValueError."""

    def __init__(self, config, load):
        self.config, self.load = config, load or LoadConfig()
        self.device, self.run = pick_device(config.device), str(config.run or last_run())
        self.model, self.tokenizer, self.settings, self.step = self.read(self.run)
        self.base = config.base or (self.settings["train"]["init_from"] if self.settings else "")
        if self.base and not Path(self.base).is_dir():
            raise ValueError(f"there is no base model in {self.base}: see --base")

    def read(self, folder):
        return load_to_think(folder, self.device, self.load)

    def claim(self, name, **about):
        """The folder to write to, claimed as long as the subject lives, and what results.json shall
        say that it was `asked`. Raises ValueError if the folder has results of something else."""
        out = Path(self.config.out or f"{self.run}/eval_step{self.step:06d}/{name}")
        asked = asdict(self.config) | asdict(self.load) | about
        asked |= {"run": self.run, "base": self.base, "step": self.step}
        for setting in ("out", "device", "batch_size"):
            del asked[setting]
        refuse_another(out / "results.json", asked)
        out.mkdir(parents=True, exist_ok=True)
        self.lock = lock(out, "measuring")
        return out, asked
