"""Weights of published models give the logits of transformers, or are refused with their names."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from tiny_runs import ROOT
from transformers import AutoConfig, AutoModelForCausalLM

from lib import weights
from lib.weights import load_mistral, save_mistral
from model import KVCache, ModelConfig, Transformer

SHAPE = dict(vocab_size=97, hidden_size=24, intermediate_size=40, num_hidden_layers=3)
SHAPE |= dict(num_attention_heads=4, num_key_value_heads=2, initializer_range=0.3)
ROPE = {"rope_type": "default", "rope_theta": 500.0}
LLAMA3 = {"rope_type": "llama3", "rope_theta": 5000.0, "factor": 8.0, "low_freq_factor": 1.0}
LLAMA3 |= {"high_freq_factor": 4.0, "original_max_position_embeddings": 32}
KINDS = {
    "mistral": dict(sliding_window=7, head_dim=8),
    "mistral without a window": dict(sliding_window=None),
    "mistral with a window on no layer": dict(sliding_window=7, layer_types=["full_attention"] * 3),
    "llama": dict(tie_word_embeddings=True),
    "llama 3.1": dict(rope_parameters=LLAMA3, head_dim=16),
    "qwen2": dict(tie_word_embeddings=True),
}


def reference(folder, kind="mistral", dtype=torch.float32, shard="1GB"):
    """A random small model of transformers, saved in Hugging Face's layout and loaded again."""
    torch.manual_seed(0)
    settings = {"rope_parameters": ROPE, **SHAPE, **KINDS[kind]}
    config = AutoConfig.for_model(kind.split()[0], **settings)
    model = AutoModelForCausalLM.from_config(config).to(dtype)
    for name, weight in model.named_parameters():
        if name.endswith(("bias", "norm.weight")):
            torch.nn.init.normal_(weight)
    model.save_pretrained(folder, max_shard_size=shard)
    return AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32).eval()


@torch.no_grad()
def same_logits(ours, theirs):
    """Of 100 positions, read at once and in parts with a cache."""
    tokens = torch.randint(90, (2, 100), generator=torch.Generator().manual_seed(1))
    expected = theirs(tokens).logits[..., : ours.config.vocab_size]
    cache = KVCache(ours.config, 2, 100)
    parts = [ours(part, cache=cache) for part in tokens.split([60, 1, 39], dim=1)]
    for hidden in (ours(tokens), torch.cat(parts, dim=1)):
        torch.testing.assert_close(ours.logits(hidden), expected, atol=1e-4, rtol=1e-4)


@pytest.mark.parametrize("layout", ["one file", "shards", "bin"])
@pytest.mark.parametrize("kind", KINDS)
def test_hugging_face_folders_give_the_model_of_transformers(tmp_path, kind, layout, monkeypatch):
    """Catches rows of the heads in the wrong order, a lost bias, window or rotary scaling, a head
    that is no longer tied, a file that the index does not name, and a file that is opened anew for
    each of its tensors."""
    theirs = reference(tmp_path, kind, torch.bfloat16, "8KB" if layout == "shards" else "1GB")
    if layout == "shards":
        save_file({"model.norm.weight": torch.full((24,), 9.0)}, tmp_path / "model-9.safetensors")
    if layout == "bin":
        torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    opened, open_pth = [], weights.load_tensors
    monkeypatch.setattr(weights, "load_tensors", lambda x: opened.append(x) or open_pth(x))
    ours = load_mistral(tmp_path)
    assert len(opened) == (layout == "bin")
    assert {p.dtype for p in ours.parameters()} == {torch.bfloat16}
    assert (ours.output.weight is ours.tok_embeddings.weight) == theirs.config.tie_word_embeddings
    same_logits(load_mistral(tmp_path, torch.float32), theirs)
    same_logits(load_mistral(tmp_path, torch.float32, rows=90), theirs)


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_official_folders_load_again(tmp_path, kind, suffix):
    """Catches what is written and not read, a tied head that is stored twice, weights that each
    process copies, and training that reaches their file."""
    theirs = reference(tmp_path / "theirs", kind)
    ours, path = load_mistral(tmp_path / "theirs"), tmp_path / "consolidated.00.pth"
    save_mistral(ours, tmp_path)
    save_mistral(ours, tmp_path)  # over what is there
    stored = torch.load(path, weights_only=True)
    assert ("output.weight" in stored) != ours.config.tied_embeddings
    if suffix == "safetensors":
        path.unlink()
        path = tmp_path / "consolidated.safetensors"
        save_file(stored, path)
    content, again = path.read_bytes(), load_mistral(tmp_path)
    if (maps := Path("/proc/self/maps")).exists():
        assert str(path) in maps.read_text()
    assert again.config == ours.config and not list(tmp_path.glob("*.tmp"))
    same_logits(again, theirs)
    for weight in again.parameters():
        weight.data.add_(1)
    assert path.read_bytes() == content


NORM = "model.layers.1.input_layernorm.weight"


@pytest.mark.parametrize(
    "change, name",
    [
        (lambda x: x.pop(NORM), "layers.1.attention_norm.weight"),
        (lambda x: x.update(extra=torch.ones(3)), "extra"),
        (lambda x: x.update({NORM: torch.ones(23)}), "layers.1.attention_norm.weight"),
        (lambda x: x.update({NORM: torch.ones(24, dtype=torch.int8)}), NORM),
        (lambda x: x.update({NORM: torch.full((24,), torch.nan)}), NORM),
        (lambda x: save_file({NORM: x[NORM]}, "model-2.safetensors"), NORM),
    ],
    ids=["missing", "extra", "wrong shape", "integers", "not finite", "twice"],
)
def test_tensors_that_do_not_fit_are_named(tmp_path, monkeypatch, change, name):
    """Catches a model that is loaded in part, with random or quantized numbers, or a traceback."""
    monkeypatch.chdir(tmp_path)
    reference(tmp_path)
    tensors = load_file("model.safetensors")
    change(tensors)
    save_file(tensors, "model.safetensors")
    with pytest.raises(ValueError, match=name) as error:
        load_mistral(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_what_a_folder_holds_twice_must_be_the_same(tmp_path):
    """Catches a trained head that gives way to the table it is no longer tied to, and one whole
    file that gives way to shards of another model."""
    reference(tmp_path, "qwen2", shard="8KB")
    whole = {}
    for path in tmp_path.glob("*.safetensors"):
        whole |= load_file(path)
    save_file(whole, tmp_path / "model.safetensors")
    with pytest.raises(ValueError, match="another file"):
        load_mistral(tmp_path)
    for path in tmp_path.glob("model-*"):
        path.unlink()
    for factor in (1, 2):
        whole["lm_head.weight"] = whole["model.embed_tokens.weight"] * factor
        save_file(whole, tmp_path / "model.safetensors")
        if factor == 1:
            assert load_mistral(tmp_path).config.tied_embeddings
    with pytest.raises(ValueError, match="tied"):
        load_mistral(tmp_path)


@pytest.mark.parametrize(
    "change, name",
    [
        ({"model_type": "gemma"}, "gemma"),
        ({"hidden_act": "gelu"}, "gelu"),
        ({"rope_parameters": {"rope_type": "yarn"}}, "yarn"),
        ({"rope_parameters": {"rope_type": "llama3"}}, "factor"),
        ({"rope_scaling": {"type": "linear", "factor": 4.0}}, "linear"),
        ({"use_sliding_window": True}, "use_sliding_window"),
        ({"vocab_size": "97"}, "vocab_size"),
        ({"num_attention_heads": 3}, "config.json"),
        ({"rms_norm_eps": None}, "rms_norm_eps"),
        ({"hidden_size": None}, "hidden_size"),
        ({"layer_types": ["sliding_attention", "full_attention"]}, "layer_types"),
        ({"model_type": "llama", "layer_types": ["sliding_attention"] * 3}, "layer_types"),
        ({"layer_types": ["chunked_attention"] * 3}, "layer_types"),
        ({"head_dim": 2**31}, "config.json"),
    ],
)
def test_another_kind_of_model_is_refused_by_name(tmp_path, change, name):
    """Catches a model that computes something else than its config.json says; None: no such key."""
    reference(tmp_path)
    path = tmp_path / "config.json"
    config = json.loads(path.read_text()) | change
    path.write_text(json.dumps({key: x for key, x in config.items() if x is not None}))
    with pytest.raises(ValueError, match=name) as error:
        load_mistral(tmp_path)
    assert str(path) in str(error.value) and "\n" not in str(error.value)


@pytest.mark.parametrize("kind", ["to_sparse", "char", "tolist"])
def test_a_tensor_of_another_kind_in_a_second_file_is_one_line(tmp_path, kind):
    """Catches the traceback of an operation that only ordinary tensors have."""
    reference(tmp_path)
    save_mistral(load_mistral(tmp_path), tmp_path)
    path, second = tmp_path / "consolidated.00.pth", tmp_path / "consolidated.01.pth"
    weights, name = torch.load(path), "layers.1.attention.wq.weight"
    torch.save({name: getattr(weights.pop(name), kind)()}, second)
    torch.save(weights, path)
    with pytest.raises(ValueError, match=f"{second.name}.*{name}") as error:
        load_mistral(tmp_path)
    assert "\n" not in str(error.value)


def test_loading_imports_no_compiler(tmp_path):
    """Catches a model that is initialized before it is loaded, which takes seconds."""
    save_mistral(Transformer(ModelConfig(vocab_size=9)), tmp_path)
    code = "import sys; from lib.weights import load_mistral; load_mistral(sys.argv[1]); "
    code += "assert 'torch._dynamo' not in sys.modules"
    subprocess.run([sys.executable, "-c", code, tmp_path], check=True, cwd=ROOT)


@pytest.mark.parametrize("suffix", ["pth", "safetensors"])
def test_damaged_files_are_named_and_nothing_in_them_is_run(tmp_path, suffix):
    """Catches a traceback for half a download, and a pickle that is executed."""
    reference(tmp_path / "theirs")
    save_mistral(load_mistral(tmp_path / "theirs"), tmp_path)
    path = tmp_path / f"consolidated.00.{suffix}"
    if suffix == "safetensors":
        save_file(torch.load(tmp_path / "consolidated.00.pth"), path)
    else:
        torch.save({"output.weight": sys.exit}, path)
        with pytest.raises(ValueError, match=path.name) as error:
            load_mistral(tmp_path)
        assert "weights_only" not in str(error.value) and "is damaged" not in str(error.value)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match=path.name):
        load_mistral(tmp_path)
    (tmp_path / "params.json").write_text('{"moe": {"num_experts": 8}}')
    with pytest.raises(ValueError, match="params.json.*moe"):
        load_mistral(tmp_path)


@pytest.mark.parametrize("name", ["head_dim", "n_heads"])
def test_a_huge_size_is_one_line(tmp_path, name):
    """Catches the traceback of torch's allocator."""
    config = ModelConfig(vocab_size=9)
    save_mistral(Transformer(config), tmp_path)
    (tmp_path / "params.json").write_text(json.dumps(vars(config) | {name: 2**31}))
    with pytest.raises(ValueError, match="params.json") as error:
        load_mistral(tmp_path)
    assert "\n" not in str(error.value)
