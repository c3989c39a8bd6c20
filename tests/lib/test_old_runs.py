"""Runs and exports of an earlier version (commit 488b548) load, and predict and say what they did there.

tests/fixtures/488b548 was made there: a run and an export of a model of 3,000 parameters. expected.json
holds what that version computed from each.
"""

import json
import shutil

import pytest
import torch
from tiny_runs import ROOT

from beyond.adaptive import worth_its_price
from lib.checkpoint import read_checkpoint
from lib.runs import load_model, load_weights, read_log
from model import Transformer
from quiet_star import QuietSTaR, QuietSTaRConfig, generate_with_thoughts

OLD = ROOT / "tests" / "fixtures" / "488b548"
EXPECTED = json.loads((OLD / "expected.json").read_text())


@pytest.mark.parametrize("name", ["run", "exported"])
def test_it_loads_and_thinks_as_it_did(name):
    quiet, tokenizer, _, step = load_model(OLD / name)
    wanted, tokens = EXPECTED[name], torch.tensor([[0, 1, 2, 3, 4, 5, 0, 1, 2]])
    assert step == wanted["step"] and tokenizer.decode([0, 5]) == "a\n"
    read, thoughts, gates = generate_with_thoughts(quiet, tokens, 5, temperature=0)
    assert read.tolist() == wanted["read"] and thoughts.tolist() == wanted["thoughts"]
    assert gates[0].tolist() == pytest.approx(wanted["gates"][0], abs=1e-6)
    _, metrics = quiet.with_settings(n_thoughts=1, thought_temperature=0.0)(tokens)
    assert metrics.keys() == wanted["metrics"].keys()
    for key, value in wanted["metrics"].items():
        assert float(metrics[key]) == pytest.approx(value, abs=1e-5), key
    assert quiet.gain_head(quiet.model(tokens))[0].tolist() == pytest.approx(
        wanted["gains"][0], abs=1e-5
    )


def test_a_run_without_a_gain_head_loads_and_says_that_it_has_none(tmp_path):
    """As those from before there was one, and those of --no-gain_head."""
    shutil.copytree(OLD / "run", tmp_path / "run")
    state = read_checkpoint(tmp_path / "run")
    state["model"] = {
        name: x for name, x in state["model"].items() if not name.startswith("gain_head.")
    }
    torch.save(state, tmp_path / "run" / "checkpoint.pt")
    quiet, _, _, _ = load_model(tmp_path / "run")
    tokens = torch.tensor([[0, 1, 2, 3, 4, 5, 0, 1, 2]])
    read, _, _ = generate_with_thoughts(quiet, tokens, 5, temperature=0)
    assert read.tolist() == EXPECTED["run"]["read"]
    with pytest.raises(ValueError, match="no gain head"):
        worth_its_price(quiet, 0.1)


def test_weights_that_are_nobodys_are_refused():
    quiet = load_model(OLD / "run")[0]
    weights = {**quiet.state_dict(), "gain_tail.weight": torch.zeros(1)}
    other = QuietSTaR(Transformer(quiet.model.config), QuietSTaRConfig())
    with pytest.raises(ValueError, match="gain_head.*nothing is wanted"):
        load_weights(other, weights, "checkpoint.pt")


def test_it_goes_on_training(tmp_path, monkeypatch):
    """With the settings that its config.json holds, in one process and in one that shares the model (with nobody)."""
    import numpy as np

    import train as trainer
    from data.dataset import write_dataset
    from lib.tokenizer import CharTokenizer

    monkeypatch.chdir(tmp_path)
    numbers = np.random.default_rng(0).integers(0, 6, 600)
    write_dataset(
        "data", {"train": numbers, "val": numbers[:100]}, CharTokenizer("abcde\n"), document_end=5
    )
    for name, parallel in (("alone", "data"), ("sharded", "fsdp")):
        shutil.copytree(OLD / "run", name)
        settings = json.loads((OLD / "run" / "config.json").read_text())
        flags = [f"--init_from={OLD / 'run'}", "--max_steps=4"]
        for part in ("train", "quiet_star"):
            for key, value in settings[part].items():
                if key not in ("init_from", "max_steps", "parallel", "out"):
                    flags.append(f"--{'' if value or not isinstance(value, bool) else 'no-'}{key}")
                    flags[-1] += "" if isinstance(value, bool) else f"={value}"
        config = json.loads((tmp_path / name / "config.json").read_text())
        config["train"]["init_from"] = str(OLD / "run")
        (tmp_path / name / "config.json").write_text(json.dumps(config))
        trainer.run(*trainer.settings_from([*flags, f"--parallel={parallel}", f"--out={name}"]))
        assert read_checkpoint(name)["step"] == 4
        assert [line["step"] for line in read_log(name)] == [1, 2, 3, 4]
    torch.distributed.destroy_process_group()
