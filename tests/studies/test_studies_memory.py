"""The memory that the formula says is the memory that a step keeps."""

from dataclasses import replace

import pytest
import torch

from beyond.kinds import ThinkingConfig, thinking_model
from beyond.lora import add_lora
from lib.runs import load_run
from model import ModelConfig, Transformer
from studies.memory import MemoryConfig, activations, memory, plan
from train import TrainConfig

SHAPE = ModelConfig(
    dim=128, n_layers=3, head_dim=16, n_heads=8, n_kv_heads=2, hidden_dim=352, vocab_size=50
)
KINDS = [{"thought_len": 0}, {"thought_len": 3, "n_true": 2}]
KINDS += [{"thought_len": 3, "thought_kind": "any_length"}]


def bytes_kept(quiet, tokens, dtype):
    """What autograd keeps of a forward pass, weights apart, each storage counted once."""
    weights = {p.untyped_storage().data_ptr() for p in quiet.parameters()}
    kept = {}

    def pack(x):
        storage = x.untyped_storage()
        if storage.data_ptr() not in weights:
            kept[storage.data_ptr()] = storage  # held, so that no other gets its place
        return x

    half = torch.autocast("cpu", dtype, enabled=dtype != torch.float32)
    with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x), half:
        quiet(tokens)
    return sum(storage.nbytes() for storage in kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("config", KINDS)
def test_what_a_step_keeps_is_what_the_formula_says(config, dtype):
    """Catches a part of the step that the formula forgets: to within 15 %, as promised."""
    config = ThinkingConfig(**config, n_thoughts=2)
    quiet = thinking_model(Transformer(SHAPE), config, at_once=100)
    tokens = torch.randint(50, (2, 32 + config.n_true))
    counted = bytes_kept(quiet, tokens, dtype)
    if dtype == torch.bfloat16:  # the weights, cast, which the plan has in a row of its own
        counted -= 2 * sum(p.numel() for p in quiet.model.layers.parameters())
    said = activations(SHAPE, config, *tokens.shape, 32, dtype.itemsize)
    assert sum(said) == pytest.approx(counted, rel=0.15)


def test_what_every_gpu_holds_of_weights_gradients_and_moments():
    """Catches a state that is not sliced by fsdp, and moments of frozen weights with LoRA."""
    config, train = ThinkingConfig(), TrainConfig(dtype="float32")
    numbers = sum(p.numel() for p in thinking_model(Transformer(SHAPE), config).parameters())
    ways = plan(4, train, SHAPE, config)
    assert ways["data"]["weights"] == ways["data"]["gradients"] == 4 * numbers
    assert ways["fsdp"]["moments of AdamW"] == 8 * numbers / 4
    quiet = thinking_model(Transformer(SHAPE), config)
    add_lora(quiet.model, 2)
    learned = sum(p.numel() for p in quiet.parameters() if p.requires_grad)
    (way,) = plan(1, replace(train, lora_rank=2, dtype="bfloat16"), SHAPE, config).values()
    frozen = sum(p.numel() for p in quiet.parameters()) - learned
    assert (way["weights"], way["moments of AdamW"]) == (4 * learned + 2 * frozen, 8 * learned)


def test_the_plan_is_of_the_model_that_the_run_starts_from(demo_runs, capsys):
    """Catches a plan of the default shape, which is far too small, and ended thoughts refused."""
    train, shape = TrainConfig(init_from=str(demo_runs / "base")), ModelConfig()
    memory(MemoryConfig(gpus=1), train, shape, ThinkingConfig(thought_kind="ended"))
    memory(MemoryConfig(gpus=1), replace(train, init_from="nowhere"), shape, ThinkingConfig())
    tiny = load_run(demo_runs / "base")[0].config
    own, other = (f"{x.n_layers} layers of width {x.dim}" for x in (tiny, shape))
    first, _, second = capsys.readouterr().out.partition("total")
    assert own in first and other in second
