"""LoRA: merged it is a plain model, gradients follow the chain rule, and a run of it is like any
other."""

import pytest
import torch
from naive import CLOSE, ids, tiny, uniform
from tiny_runs import go, same
from torch.testing import assert_close

from beyond.lora import SCALE, add_lora, linear_maps, merge_lora
from lib.checkpoint import read_checkpoint
from lib.export import export
from lib.runs import load_model, load_run

SIZES = dict(thought_len=2, n_true=2, n_thoughts=2, gain_head=True)


def with_lora(rank=3):
    """A thinking model in float64 whose additions are not 0 any more."""
    quiet = tiny(**SIZES)
    add_lora(quiet.model, rank)
    for linear in linear_maps(quiet.model):
        torch.nn.init.normal_(linear.lora_b, std=0.1)
    return quiet.double()


def test_merged_it_is_a_plain_model_with_the_same_loss():
    """Catches a merge by another scale, and names that no plain model has."""
    quiet, tokens, noise = with_lora(), ids(2, 9), uniform(2, 2, 7, 2)
    loss, _ = quiet(tokens, noise=noise)
    merge_lora(quiet.model)
    assert set(quiet.state_dict()) == set(tiny(**SIZES).state_dict())
    assert all(type(linear) is torch.nn.Linear for linear in linear_maps(quiet.model))
    merged, _ = quiet.double()(tokens, noise=noise)
    assert_close(merged, loss, atol=1e-5, rtol=1e-5)  # merging is done in float32


def test_gradients_are_those_of_the_merged_weight_by_the_chain_rule_and_nothing_else_learns():
    """dA = 2 B' dW and dB = 2 dW A', for dW the gradient of a plain model with merged weights."""
    quiet, tokens, noise = with_lora(), ids(2, 9), uniform(2, 2, 7, 2)
    quiet(tokens, noise=noise)[0].backward()
    merged = with_lora()
    with torch.no_grad():
        for linear in linear_maps(merged.model):
            linear.weight += SCALE * linear.lora_b @ linear.lora_a
            linear.lora_b.zero_()
    merged.requires_grad_(True)
    merged(tokens, noise=noise)[0].backward()
    for one, other in zip(linear_maps(quiet.model), linear_maps(merged.model), strict=True):
        assert_close(one.lora_a.grad, SCALE * one.lora_b.T @ other.weight.grad, **CLOSE)
        assert_close(one.lora_b.grad, SCALE * other.weight.grad @ one.lora_a.T, **CLOSE)
    learns = {name for name, p in quiet.named_parameters() if p.grad is not None and p.grad.any()}
    assert all(".lora_" in name or not name.startswith("model.") for name in learns)
    assert {"mixing_head.last.weight", "thought_tokens.start", "gain_head.last.weight"} <= learns


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_run_goes_on_bit_for_bit_is_loaded_merged_exported_and_gone_on_from(work, dtype):
    """Catches frozen weights that move or are stored in another dtype, and a reader that forgets
    the additions."""
    how, stored = ["--lora_rank=2", f"--dtype={dtype}", "--lr=0.01"], getattr(torch, dtype)
    go(work, *how, "--out=alone", "--max_steps=1", "--mixing=none")
    go(work, *how, "--out=one", "--max_steps=4")
    go(work, *how, "--out=two", "--max_steps=2")
    go(work, *how, "--out=two", "--max_steps=4")
    weights = read_checkpoint(work / "one")["model"]
    assert same(weights, read_checkpoint(work / "two")["model"])
    assert weights["model.tok_embeddings.weight"].dtype == stored
    assert weights["mixing_head.last.weight"].dtype == torch.float32
    base, model = (load_run(work / name)[0] for name in ("base", "one"))
    before = base.layers[0].attention.wq.weight
    assert torch.equal(weights["model.layers.0.attention.wq.weight"], before.to(stored))
    assert not torch.equal(model.model.layers[0].attention.wq.weight, before)

    export(work / "one", work / "exported")
    other, *_ = load_model(work / "exported")
    tokens = torch.tensor([[1, 2, 3, 4]])
    assert_close(other.model(tokens), model.model(tokens))
    assert not any("lora" in name for name in other.state_dict())
    go(work, "--init_from=one", "--out=further", "--max_steps=1")
