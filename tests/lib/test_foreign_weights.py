"""Weights from elsewhere: what is loaded is what their makers meant, or it is refused in one line."""

import io
import json
import zipfile

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_weights import PARAMS, all_equal, official, reference
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

from lib.weights import hugging_face_config, load_mistral


def refused(folder, message, **how):
    with pytest.raises(ValueError, match=message) as error:
        load_mistral(folder, **how)
    assert "\n" not in str(error.value) and str(folder) in str(error.value)


def changed(path, change):
    """Change the tensors of a .safetensors, .pth or .bin file."""
    safe = path.suffix == ".safetensors"
    weights = load_file(path) if safe else torch.load(path, weights_only=True)
    change(weights)
    save_file(weights, path) if safe else torch.save(weights, path)


@pytest.mark.parametrize("name", ["model-99999-of-99999.safetensors", "model.safetensors"])
def test_the_index_decides_and_a_shard_that_it_does_not_name_is_not_read(tmp_path, name):
    theirs = reference(tmp_path, shard="8KB")
    save_file({"model.norm.weight": torch.full((24,), 9.0)}, tmp_path / name)
    all_equal(load_mistral(tmp_path), theirs)


def test_an_index_that_names_what_is_not_there_is_refused(tmp_path):
    reference(tmp_path, shard="8KB")
    path = tmp_path / "model.safetensors.index.json"
    index = json.loads(path.read_text())
    last = sorted(tmp_path.glob("model-*.safetensors"))[-1]
    last.rename(tmp_path / "gone")
    refused(tmp_path, f"names the file {last.name}, which is not in")
    (tmp_path / "gone").rename(last)
    for place in ("../" + last.name, str(last.absolute())):  # nor anything outside of the folder
        name = next(iter(index["weight_map"]))
        path.write_text(json.dumps({"weight_map": {**index["weight_map"], name: place}}))
        with pytest.raises(ValueError, match="not in"):
            load_mistral(tmp_path)
    path.write_text(json.dumps({"weight_map": {**index["weight_map"], "model.more": last.name}}))
    refused(tmp_path, "names model.more, which is not in")
    path.write_text(json.dumps({"weight_map": [1]}))
    refused(tmp_path, "weight_map")


@pytest.mark.parametrize("layout", ["safetensors", "bin", "pth", "consolidated"])
def test_without_an_index_a_tensor_found_twice_is_refused(tmp_path, layout):
    if layout in ("safetensors", "bin"):
        reference(tmp_path)
        weights = load_file(tmp_path / "model.safetensors")
        if layout == "bin":
            (tmp_path / "model.safetensors").unlink()
            torch.save(weights, tmp_path / "pytorch_model.bin")
            torch.save({"model.norm.weight": torch.ones(24)}, tmp_path / "pytorch_model-2.bin")
        else:
            save_file({"model.norm.weight": torch.ones(24)}, tmp_path / "model-2.safetensors")
    else:
        official(tmp_path, PARAMS, safetensors=layout == "consolidated")
        if layout == "pth":
            torch.save({"norm.weight": torch.ones(24)}, tmp_path / "consolidated.01.pth")
        else:
            save_file({"norm.weight": torch.ones(24)}, tmp_path / "consolidated-2.safetensors")
    refused(tmp_path, "norm.weight is in .* and in .*: which is right")


@pytest.mark.parametrize(
    "dtype", [torch.int8, torch.int64, torch.bool, torch.complex64, torch.float8_e4m3fn]
)
@pytest.mark.parametrize("layout", ["official", "hugging face"])
def test_weights_that_are_no_plain_numbers_are_refused(tmp_path, dtype, layout):
    if layout == "official":
        official(tmp_path, PARAMS)
        path, name = tmp_path / "consolidated.00.pth", "layers.0.attention.wo.weight"
    else:
        reference(tmp_path)
        path, name = tmp_path / "model.safetensors", "model.layers.0.self_attn.o_proj.weight"
    changed(path, lambda weights: weights.update({name: weights[name].to(dtype)}))
    refused(tmp_path, "is of torch.*, which is no weight")


@pytest.mark.parametrize("number", [float("nan"), float("inf"), -float("inf")])
def test_weights_that_are_not_finite_are_refused(tmp_path, number):
    official(tmp_path, PARAMS)
    path = tmp_path / "consolidated.00.pth"
    changed(path, lambda weights: weights["layers.1.ffn_norm.weight"].__setitem__(3, number))
    refused(tmp_path, "layers.1.ffn_norm.weight .*not finite")
    changed(path, lambda weights: weights["layers.1.ffn_norm.weight"].__setitem__(3, 1e6))
    load_mistral(tmp_path)
    refused(tmp_path, "not finite", dtype=torch.float16)  # where it becomes infinite


def test_a_zip_file_that_was_made_again_or_an_old_pickle_is_refused(tmp_path):
    official(tmp_path, PARAMS)
    path = tmp_path / "consolidated.00.pth"
    whole, out = path.read_bytes(), io.BytesIO()
    with zipfile.ZipFile(path) as old, zipfile.ZipFile(out, "w", zipfile.ZIP_DEFLATED) as new:
        for name in old.namelist():
            new.writestr(name, old.read(name))
    path.write_bytes(out.getvalue())
    refused(tmp_path, "compress")
    path.write_bytes(whole[:3000] + bytes([whole[3000] ^ 1]) + whole[3001:])
    refused(tmp_path, "wrong checksum|Bad magic|damaged")
    path.write_bytes(whole)
    torch.save(torch.load(path, weights_only=True), path, _use_new_zipfile_serialization=False)
    refused(tmp_path, "consolidated.00.pth")


def test_what_a_config_does_not_say_is_as_transformers_has_it(tmp_path):
    for kind, cls in (("mistral", MistralConfig), ("llama", LlamaConfig)):
        full = {
            "model_type": kind,
            "hidden_size": 64,
            "num_hidden_layers": 2,
            "intermediate_size": 96,
        }
        full |= {"num_attention_heads": 16, "rms_norm_eps": 1e-6, "vocab_size": 99}
        for more in (
            {},
            {"num_key_value_heads": 4},
            {"sliding_window": None},
            {"sliding_window": 7},
        ):
            (tmp_path / "config.json").write_text(json.dumps({**full, **more}))
            ours, theirs = hugging_face_config(tmp_path / "config.json"), cls(**{**full, **more})
            assert ours.n_kv_heads == theirs.num_key_value_heads, (kind, more)
            assert ours.sliding_window == (theirs.sliding_window if kind == "mistral" else None), (
                kind,
                more,
            )
            assert (
                ours.head_dim == theirs.head_dim
                and ours.tied_embeddings == theirs.tie_word_embeddings
            )
            assert ours.rope_theta == theirs.rope_parameters["rope_theta"]


def test_a_model_without_some_keys_gives_the_logits_of_transformers(tmp_path):
    """Twenty heads of which eight are keys', and a window: neither is said."""
    torch.manual_seed(0)
    shape = dict(
        vocab_size=97,
        hidden_size=32,
        intermediate_size=40,
        num_hidden_layers=2,
        num_attention_heads=16,
    )
    models = MistralForCausalLM(MistralConfig(**shape)), LlamaForCausalLM(LlamaConfig(**shape))
    for kind, model in zip(("mistral", "llama"), models, strict=True):
        folder = tmp_path / kind
        model.save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        for name in (
            "num_key_value_heads",
            "sliding_window",
            "head_dim",
            "tie_word_embeddings",
            "rope_parameters",
        ):
            if not (kind == "llama" and name == "num_key_value_heads"):
                config.pop(name, None)
        (folder / "config.json").write_text(json.dumps(config))
        all_equal(load_mistral(folder), type(model).from_pretrained(folder))


@pytest.mark.parametrize(
    "change, message",
    [
        ({"quantization_config": {"quant_method": "bitsandbytes"}}, "quantization_config"),
        ({"partial_rotary_factor": 0.5}, "partial_rotary_factor"),
        ({"num_hidden_layers": 2**63}, "reasonable size|huge|must be"),
        ({"num_hidden_layers": 900}, "too few for 900 layers"),
        ({"hidden_size": 2**40}, "does not fit|cannot be"),
        ({"rms_norm_eps": float("nan")}, "norm_eps"),
        ({"num_attention_heads": 0}, "config.json"),
        ({"vocab_size": "97"}, "vocab_size must be int"),
        ({"rope_parameters": "linear"}, "rope_scaling"),
    ],
)
def test_what_a_config_asks_for_and_cannot_be_had_is_refused(tmp_path, change, message):
    reference(tmp_path)
    path = tmp_path / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | change))
    refused(tmp_path, message)
