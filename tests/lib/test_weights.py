"""Weights from elsewhere: Mistral's official layout and Hugging Face's, against HF transformers; what does not fit."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from test_tokenizer import SPLITS, TEXT, trained_bpe
from transformers import LlamaConfig, LlamaForCausalLM, MistralConfig, MistralForCausalLM

import train as trainer
from data.dataset import write_dataset
from lib.runs import load_model, load_run
from lib.tokenizer import load_tokenizer
from lib.weights import load_mistral, save_mistral
from model import ModelConfig, Transformer
from quiet_star import QuietSTaR, generate_with_thoughts

ROOT = Path(__file__).resolve().parents[2]


def reference(folder, kind="mistral", tied=False, dtype=torch.float32, shard="1GB", vocab_size=97):
    """A random tiny model of HF transformers, saved as Hugging Face does."""
    torch.manual_seed(0)
    shape = dict(
        vocab_size=vocab_size,
        hidden_size=24,
        intermediate_size=40,
        num_hidden_layers=3,
        num_attention_heads=4,
        num_key_value_heads=2,
        head_dim=8,
        tie_word_embeddings=tied,
        rope_parameters={"rope_theta": 500.0, "rope_type": "default"},
        initializer_range=0.3,
    )
    if kind == "mistral":
        model = MistralForCausalLM(MistralConfig(sliding_window=7, **shape))
    else:
        model = LlamaForCausalLM(LlamaConfig(**shape))
    model = model.to(dtype)
    model.save_pretrained(folder, max_shard_size=shard)
    return type(model).from_pretrained(
        folder, dtype=torch.float32
    )  # its rotary tables as they are made in float32


def all_equal(ours, theirs, T=20):
    """Logits, then greedy tokens."""
    tokens = torch.randint(
        theirs.config.vocab_size, (2, T), generator=torch.Generator().manual_seed(1)
    )
    with torch.no_grad():
        expected = theirs(tokens).logits
    torch.testing.assert_close(ours.float().logits(ours(tokens)), expected, atol=2e-5, rtol=1e-4)
    greedy = theirs.generate(
        tokens, max_new_tokens=12, do_sample=False, eos_token_id=None, pad_token_id=0
    )
    assert torch.equal(ours.generate(tokens, 12, temperature=0), greedy)


@pytest.mark.parametrize("kind", ["mistral", "llama"])
@pytest.mark.parametrize("tied", [False, True])
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("layout", ["one", "shards", "bin"])
def test_hugging_face_folders_give_the_model_of_transformers(tmp_path, kind, tied, dtype, layout):
    theirs = reference(tmp_path, kind, tied, dtype, shard="8KB" if layout == "shards" else "1GB")
    if layout == "shards":
        assert (
            len(list(tmp_path.glob("model-*.safetensors"))) > 2
            and (tmp_path / "model.safetensors.index.json").exists()
        )
    if layout == "bin":
        torch.save(load_file(tmp_path / "model.safetensors"), tmp_path / "pytorch_model.bin")
        (tmp_path / "model.safetensors").unlink()
    ours = load_mistral(tmp_path)
    assert (
        ours.config.sliding_window == (7 if kind == "mistral" else None)
        and ours.config.rope_theta == 500.0
    )
    assert {p.dtype for p in ours.parameters()} == {dtype} and (
        ours.output.weight is ours.tok_embeddings.weight
    ) == tied
    all_equal(ours, theirs)
    assert {p.dtype for p in load_mistral(tmp_path, torch.float64).parameters()} == {torch.float64}


def official(folder, config, dtype=torch.float32, safetensors=False):
    """Mistral's own layout, written down by hand; what HF transformers makes of the same weights."""
    torch.manual_seed(2)
    C, hd, F, H, K, V = (
        config["dim"],
        config["head_dim"],
        config["hidden_dim"],
        config["n_heads"],
        config["n_kv_heads"],
        97,
    )
    shapes = {"tok_embeddings.weight": (V, C), "norm.weight": (C,), "output.weight": (V, C)}
    for i in range(config["n_layers"]):
        block = {
            "attention.wq": (H * hd, C), "attention.wk": (K * hd, C), "attention.wv": (K * hd, C),
            "attention.wo": (C, H * hd), "feed_forward.w1": (F, C), "feed_forward.w2": (C, F),
            "feed_forward.w3": (F, C), "attention_norm": (C,), "ffn_norm": (C,),
        }  # fmt: skip
        shapes |= {f"layers.{i}.{name}.weight": shape for name, shape in block.items()}
    weights = {
        name: (torch.randn(shape) * 0.3 + (len(shape) == 1)).to(dtype)
        for name, shape in shapes.items()
    }
    (folder / "params.json").write_text(json.dumps(config))
    if safetensors:
        save_file(weights, folder / "consolidated.safetensors")
    else:
        torch.save(weights, folder / "consolidated.00.pth")

    theirs = MistralForCausalLM(
        MistralConfig(
            vocab_size=V, hidden_size=C, intermediate_size=F, num_hidden_layers=config["n_layers"],
            num_attention_heads=H, num_key_value_heads=K, head_dim=hd, rms_norm_eps=config["norm_eps"],
            sliding_window=config.get("sliding_window"),
            rope_parameters={"rope_theta": config.get("rope_theta", 10000.0), "rope_type": "default"},
        )
    ).eval()  # fmt: skip

    def halves(
        w, heads
    ):  # pairs (0,1), (2,3), ... to all first ones, then all second ones, one row at a time
        rows = [
            w[h * hd + 2 * i + second]
            for h in range(heads)
            for second in (0, 1)
            for i in range(hd // 2)
        ]
        return torch.stack(rows)

    state = {
        "model.embed_tokens.weight": "tok_embeddings",
        "model.norm.weight": "norm",
        "lm_head.weight": "output",
    }
    state = {theirs_name: weights[f"{name}.weight"] for theirs_name, name in state.items()}
    for i in range(config["n_layers"]):
        ours = {name: weights[f"layers.{i}.{name}.weight"] for name in block}
        here = f"model.layers.{i}."
        state[here + "self_attn.q_proj.weight"] = halves(ours["attention.wq"], H)
        state[here + "self_attn.k_proj.weight"] = halves(ours["attention.wk"], K)
        state[here + "self_attn.v_proj.weight"] = ours["attention.wv"]
        state[here + "self_attn.o_proj.weight"] = ours["attention.wo"]
        state[here + "mlp.gate_proj.weight"] = ours["feed_forward.w1"]
        state[here + "mlp.down_proj.weight"] = ours["feed_forward.w2"]
        state[here + "mlp.up_proj.weight"] = ours["feed_forward.w3"]
        state[here + "input_layernorm.weight"] = ours["attention_norm"]
        state[here + "post_attention_layernorm.weight"] = ours["ffn_norm"]
    theirs.load_state_dict({name: w.float() for name, w in state.items()}, strict=True)
    return theirs


PARAMS = dict(
    dim=24,
    n_layers=2,
    head_dim=8,
    hidden_dim=40,
    n_heads=4,
    n_kv_heads=2,
    norm_eps=1e-5,
    vocab_size=97,
)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("safetensors", [False, True])
def test_official_folders_load_without_a_map(tmp_path, dtype, safetensors):
    theirs = official(
        tmp_path, PARAMS | {"sliding_window": 6, "max_seq_len": 99}, dtype, safetensors
    )
    ours = load_mistral(tmp_path)
    assert ours.config.rope_theta == 10000.0, "the first params.json do not say it"
    all_equal(ours, theirs)


@pytest.mark.parametrize("tied", [False, True])
def test_what_is_saved_is_official_and_loads_again(tmp_path, tied):
    config = ModelConfig(**PARAMS, sliding_window=5, tied_embeddings=tied)
    model = Transformer(config)
    save_mistral(model, tmp_path)
    save_mistral(model, tmp_path)  # over what is there
    again = load_mistral(tmp_path)
    assert again.config == config and not list(tmp_path.glob("*.tmp"))
    stored = torch.load(tmp_path / "consolidated.00.pth", weights_only=True)
    assert ("output.weight" in stored) == (not tied)
    for (name, a), (_, b) in zip(
        model.state_dict().items(), again.state_dict().items(), strict=True
    ):
        assert torch.equal(a, b), name
    tokens = torch.randint(97, (1, 9))
    assert torch.equal(model(tokens), again(tokens))


def test_what_does_not_fit_is_named_with_both_shapes(tmp_path):
    official(tmp_path, PARAMS)
    path = tmp_path / "consolidated.00.pth"
    good = torch.load(path, weights_only=True)
    wk = "layers.1.attention.wk.weight"
    bad = [
        ({**good, wk: torch.zeros(8, 24)}, rf"\(8, 24\) for {wk}, \(16, 24\) is wanted"),
        ({**good, "extra.weight": torch.zeros(3)}, r"\(3,\) for extra.weight, nothing is wanted"),
        (
            {name: w for name, w in good.items() if name != wk},
            rf"holds nothing for {wk}, \(16, 24\) is wanted",
        ),
    ]
    for weights, message in bad:
        torch.save(weights, path)
        with pytest.raises(ValueError, match=message):
            load_mistral(tmp_path)
    torch.save(good, path)
    path.write_bytes(path.read_bytes()[:-300])
    with pytest.raises(ValueError, match="damaged or cut short") as error:
        load_mistral(tmp_path)
    assert "\n" not in str(error.value)
    save_file(good, tmp_path / "consolidated.safetensors")
    whole = (tmp_path / "consolidated.safetensors").read_bytes()
    (tmp_path / "consolidated.safetensors").write_bytes(whole[:-30])
    with pytest.raises(ValueError, match="damaged or cut short"):
        load_mistral(tmp_path)
    for change, message in [
        ({"moe": {"num_experts": 8}}, "asks for moe=.*not implemented"),
        ({"dim": None}, "dim must be int, not None"),
        ({"n_kv_heads": 3}, "must be a multiple"),
    ]:
        (tmp_path / "params.json").write_text(json.dumps(PARAMS | change))
        with pytest.raises(ValueError, match=message):
            load_mistral(tmp_path)
    (tmp_path / "params.json").write_text("{")
    with pytest.raises(ValueError, match="cannot be read"):
        load_mistral(tmp_path)
    with pytest.raises(ValueError, match="no weights in"):
        load_mistral(tmp_path / "nowhere")


def test_hugging_face_models_of_another_kind_are_refused(tmp_path):
    reference(tmp_path)
    path = tmp_path / "config.json"
    good = json.loads(path.read_text())
    for change, message in [
        ({"model_type": "gemma"}, "model_type='gemma'"),
        ({"hidden_act": "gelu"}, "hidden_act='gelu'"),
        ({"attention_bias": True}, "attention_bias=True"),
        ({"rope_parameters": {"rope_type": "llama3", "rope_theta": 1.0}}, "llama3"),
        ({"num_attention_heads": 3}, "must be a multiple"),
    ]:
        path.write_text(json.dumps(good | change))
        with pytest.raises(ValueError, match=message):
            load_mistral(tmp_path)
    path.write_text(
        json.dumps({name: value for name, value in good.items() if name != "hidden_size"})
    )
    with pytest.raises(ValueError, match="does not say dim"):
        load_mistral(tmp_path)


@pytest.mark.parametrize("tied", [False, True])
def test_weights_from_elsewhere_learn_to_think_and_go_back(tmp_path, tied):
    """The whole way: a Hugging Face folder with its tokenizer, training, thinking, export, and loading that."""
    theirs = trained_bpe(tmp_path, SPLITS["digits"])
    reference(tmp_path / "weights", tied=tied, vocab_size=1500)
    theirs.save(str(tmp_path / "weights" / "tokenizer.json"))
    tokenizer = load_tokenizer(tmp_path / "weights")
    ids = tokenizer.encode(TEXT[:9000])
    write_dataset(tmp_path / "data", {"train": ids, "val": ids[:200]}, tokenizer)
    flags = [
        f"--{k}={tmp_path / v}"
        for k, v in {"data": "data", "init_from": "weights", "out": "run"}.items()
    ]
    flags += "--span=12 --batch_size=2 --max_steps=2 --eval_texts=2 --device=cpu --base_preset= --n_true=2".split()
    trainer.run(*trainer.settings_from(flags))
    quiet, its_tokenizer, _, step = load_run(tmp_path / "run")
    assert (
        isinstance(quiet, QuietSTaR)
        and step == 2
        and its_tokenizer.to_json() == tokenizer.to_json()
    )
    start, _ = quiet.thought_tokens()
    assert not torch.equal(start, torch.zeros_like(start))

    command = [
        sys.executable,
        "-m",
        "lib.export",
        f"--run={tmp_path / 'run'}",
        f"--out={tmp_path / 'export'}",
    ]
    done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0 and "consolidated.00.pth" in done.stdout, done.stderr
    again, tokenizer_again, config, _ = load_model(tmp_path / "export")
    assert (
        isinstance(again, QuietSTaR)
        and config is None
        and again.model.config.tied_embeddings == tied
    )
    assert again.config == quiet.config
    for name, tensor in quiet.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    tokens = torch.tensor([tokenizer_again.encode("def forward(self")])
    plain = load_mistral(tmp_path / "export")
    assert torch.equal(plain(tokens), quiet.model(tokens)), (
        "and without what thinks, it is a plain model"
    )
    out, _, _ = generate_with_thoughts(quiet, tokens, 3, temperature=0)
    assert its_tokenizer.decode(out[0].tolist()).startswith("def forward(self")

    (tmp_path / "export" / "quiet_star.json").write_text("{")
    with pytest.raises(ValueError, match="quiet_star.json cannot be read"):
        load_model(tmp_path / "export")
