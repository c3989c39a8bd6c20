"""Corpora and runs that several tests start from."""

import numpy as np
import pytest
from tiny_runs import SHAPE, as_typed, go

from data.dataset import write_dataset
from lib.tokenizer import CharTokenizer


@pytest.fixture
def work(tmp_path):
    """A folder with a tiny corpus, `data`, and a tiny base model, `base`."""
    tokenizer, ids = CharTokenizer("abcde\n"), np.random.default_rng(0).integers(0, 6, 600)
    parts = {"train": ids, "val": ids[:100]}
    write_dataset(tmp_path / "data", parts, tokenizer, document_end=5)
    go(tmp_path, "--objective=lm", "--out=base", "--init_from=", "--max_steps=3", *SHAPE)
    return tmp_path


@pytest.fixture(scope="session")
def demo_runs(tmp_path_factory):
    """A tiny arithmetic corpus and the runs of a demo: base, lm_control, quiet_star."""
    folder, sizes = tmp_path_factory.mktemp("demo"), ["--train_documents=200", "--val_documents=60"]
    as_typed("data/arithmetic/prepare.py", f"--out={folder / 'data'}", *sizes)
    common = ["--span=32", "--batch_size=2", "--max_steps=2"]
    go(folder, *common, *SHAPE, "--objective=lm", "--init_from=", "--out=base")
    go(folder, *common, "--out=lm_control", "--objective=lm")
    go(folder, *common, "--out=quiet_star", "--thought_len=2")
    return folder
