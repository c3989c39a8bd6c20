"""The bench prints what it promises."""

import json

import pytest
import torch

from lib.runs import load_run
from studies import bench

SHAPE = "--dim=16 --n_layers=1 --head_dim=8 --hidden_dim=24 --n_heads=2 --n_kv_heads=1".split()


def test_reading_is_timed_thinking_everywhere_nowhere_and_where_it_pays(demo_runs):
    quiet, text = load_run(demo_runs / "quiet_star")[0], torch.randint(0, 10, (1, 12))
    for above, share in ((-1e9, 1.0), (1e9, 0.0)):
        found = bench.seconds_per_token(quiet, text, above, repeats=1)
        assert found["share_thinking"] == share and min(found["everywhere"], found["nowhere"]) > 0


def test_bench_prints_the_keys_it_promises(monkeypatch, capsys):
    small = "--texts=16 --span=32 --repeats=1 --new_tokens=2 --rows=1,3 --vocab_size=11".split()
    small += ["--threads=1", "--device=cpu", "--json"]
    threads = torch.get_num_threads()
    monkeypatch.setattr("sys.argv", ["bench.py", *small, *SHAPE])
    bench.main()
    torch.set_num_threads(threads)
    results = json.loads(capsys.readouterr().out)
    ratios = "recompute_time_ratio recompute_memory_ratio growth_when_T_doubles".split()
    generation = [
        f"{x}_over_plain, {n} texts"
        for x in ("generate", "where_it_pays", "waiting")
        for n in (1, 3)
    ]
    for key in ("train_step_over_floor", "train_peak_memory_over_floor", *generation, *ratios):
        assert results[key] > 0, key
    forwards = results["shape"]["thought_len"] + 1
    assert results["generate_over_plain_times"] * forwards == pytest.approx(
        results["generate_over_plain, 1 texts"]
    )
    assert (
        results["threads"] == 1
        and results["device"].startswith("cpu")
        and results["shape"]["span"] == 32
    )
