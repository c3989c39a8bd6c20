"""The study of data/gsm8k_steps, whole, on a model of a few weights."""

import json

import pytest
from byte_tokenizer import write_byte_tokenizer
from naive import tiny
from tiny_runs import ROOT, as_typed

from lib.weights import save_mistral
from studies import gsm8k_steps


def test_it_trains_measures_and_compares_all_rows(tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    save_mistral(tiny(vocab=258).float().model, tmp_path / "weights" / "smollm2")
    write_byte_tokenizer(tmp_path / "weights" / "smollm2")
    answer = "He sold 48/2 = <<48/2=24>>24 clips.\nShe got 24*3 = $<<24*3=72>>72.\n#### 72"
    lines = "\n".join(json.dumps({"question": f"Number {n}?", "answer": answer}) for n in range(40))
    (tmp_path / "lines.jsonl").write_text(lines)
    for script, flags in (
        (
            "gsm8k_steps",
            [
                "--train=lines.jsonl",
                "--test=lines.jsonl",
                "--dev_documents=5",
                "--out=data/gsm8k_steps",
            ],
        ),
        ("gsm8k", ["--source=lines.jsonl", "--out=data/gsm8k"]),
    ):
        monkeypatch.setattr("sys.argv", ["prepare.py", "--any_hash", *flags])
        as_typed(f"data/{script}/prepare.py")
    monkeypatch.setattr(gsm8k_steps, "HERE", tmp_path)
    (tmp_path / "config").mkdir()
    for name in ("gsm8k_steps_base", "gsm8k_steps"):
        preset = (ROOT / "config" / f"{name}.toml").read_text()
        for setting, value in (
            ("start_text", '"<"'),
            ("end_text", '">"'),
            ("span", 48),
            ("batch_size", 2),
            ("micro_batch", 2),
        ):
            preset = "\n".join(
                f"{setting} = {value}" if x.startswith(f"{setting} =") else x
                for x in preset.split("\n")
            )
        (tmp_path / "config" / f"{name}.toml").write_text(preset)
    flags = [
        "--steps=1",
        "--seeds=1337",
        "--rows=quiet_star,lm",
        "--documents=3",
        "--texts=2",
        "--questions=2",
    ]
    gsm8k_steps.main([*flags, "--jobs=2", "--device=cpu", "--out=out"])
    printed, results = (
        capsys.readouterr().out,
        json.loads((tmp_path / "out/1_steps/results.json").read_text()),
    )
    rows = ["base", "tempered", "quiet_star", "quiet_star, left out", "lm"]
    assert all(row in printed for row in rows) and set(rows) <= results["numbers"].keys()
    assert results["numbers"]["quiet_star"].keys() >= {
        "nll",
        "exact",
        "other_nll",
        "soft",
        "greedy",
        "gate",
        "right",
    }
    assert results["quiet_star_minus"]["lm"]["nll"].keys() == {"mean", "low", "high", "p"}
    assert (tmp_path / "out/1_steps/gsm8k_steps.png").read_bytes()[:4] == b"\x89PNG"


def test_a_row_that_there_is_not_is_refused():
    with pytest.raises(ValueError, match="there is no row 'nix'"):
        gsm8k_steps.StepsConfig(rows="lm,nix")
