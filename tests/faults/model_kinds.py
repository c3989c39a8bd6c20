"""Kinds of files that make up runs and weights: small samples, and how the project reads them. See mutants.py."""

import json
import shutil
from functools import partial
from pathlib import Path

import numpy as np
import torch
from byte_tokenizer import write_byte_tokenizer
from mutants import Kind
from safetensors.torch import save_file
from tiny_runs import COMMON, SHAPE

import train as trainer
from data.dataset import write_dataset
from eval import GainsConfig, text_to_measure
from lib.export import export
from lib.pictures import draw_curves
from lib.runs import load_model, read_checkpoint, read_config, read_log
from lib.tokenizer import CharTokenizer, from_json
from lib.weights import HUGGING_FACE_NAMES, save_mistral
from model import ModelConfig, Transformer
from quiet_star import QuietSTaR, generate_with_thoughts
from studies.tables import over_seeds, remembered

TINY = dict(dim=16, n_layers=1, head_dim=8, hidden_dim=24, n_heads=2, n_kv_heads=1)
IDS = torch.tensor([[0, 1, 2, 3, 4]])


def contents(folder):
    """What a model is and says, its tokenizer, and what its run says of itself."""
    model, tokenizer, config, step = load_model(folder)
    if isinstance(model, QuietSTaR):
        read, thoughts, gates = generate_with_thoughts(model, IDS, 3, temperature=0)
        says = model.model.logits(model.model(IDS)), read, thoughts, gates
    else:
        says = (model.logits(model(IDS)),)
    about = {
        "words": tokenizer.words(range(tokenizer.vocab_size)),
        "step": step,
        "train": used(config),
    }
    about["settings"] = vars(getattr(model, "model", model).config) | vars(model.config)
    return {"weights": dict(model.state_dict()), "says": [x.detach() for x in says], **about}


def used(config):
    """What commands look at in the configuration of a run, besides its model."""
    return config and {
        key: config["train"][key] for key in ("objective", "data", "init_from", "span", "seed")
    }


# ----------------------------------------------------------------------------------------------------------------------
# runs

TRAIN = [*COMMON, *SHAPE, "--data=my_data", "--parallel=none", "--n_true=2", "--save_every=1"]
THINK = ["--init_from=my_base", "--out=my_run", "--thought_len=2", "--lr=0.01", "--eval_every=0"]


def train(*flags):
    trainer.run(*trainer.settings_from([*TRAIN, *flags]))


def dataset():
    """A corpus whose texts end and answer something."""
    ids = np.random.default_rng(0).integers(0, 6, 600)
    answers = {"after": 2, "among": [0, 1, 3]}
    write_dataset("my_data", {"train": ids, "val": ids[:100]}, CharTokenizer("abcde\n"), 5, answers)


def run_with_one_before():
    dataset()
    train("--objective=lm", "--init_from=", "--out=my_base", "--max_steps=1")
    train(*THINK, "--max_steps=2")
    state = {
        "step": read_checkpoint("my_run")["step"],
        "texts": 4,
        "value": {"answer_nll": 1.5, "accuracy": 0.25},
    }
    Path("my_run", "scores.json").write_text(json.dumps(state))


def run():
    run_with_one_before()
    Path("my_run", "checkpoint_00000001.pt").unlink()


def go_on():
    """One more step."""
    train(*THINK, "--max_steps=3")
    state = read_checkpoint("my_run")
    return {**state, "seconds": 0.0, "log": [line["step"] for line in read_log("my_run")]}


def measured():
    """What eval.py does before it measures: a run, and its held-out text."""
    config = read_config("my_run")
    tokenizer = from_json(config["tokenizer"], "my_run")
    if config["train"]["data"] != "my_data":
        return "another text"
    spans, _, meta = text_to_measure(GainsConfig(run="my_run"), config, tokenizer)
    return {"spans": spans, "answers": meta.get("answers"), "train": used(config)}


def drawn():
    """A log, and what eval.py makes of it."""
    log = read_log("my_run")
    draw_curves(log, "curves.png")
    return log


def scores():
    """What a study remembers of a run, and does with it."""
    found = [
        remembered(Path("my_run"), "scores", lambda: {"answer_nll": 1.5, "accuracy": 0.25}, texts=4)
    ]
    return over_seeds([*found, {"answer_nll": 1.0, "accuracy": 0.0}])


# ----------------------------------------------------------------------------------------------------------------------
# weights from elsewhere


def transformer():
    torch.manual_seed(0)
    write_byte_tokenizer("my_weights")
    return Transformer(ModelConfig(vocab_size=258, **TINY))


def official():
    save_mistral(transformer(), "my_weights")
    params = json.loads(Path("my_weights", "params.json").read_text())
    Path("my_weights", "params.json").write_text(
        json.dumps(params | {"max_seq_len": 99, "sliding_window": 7})
    )


def official_safetensors():
    official()
    weights = torch.load("my_weights/consolidated.00.pth", weights_only=True)
    save_file(weights, "my_weights/consolidated.safetensors")
    Path("my_weights", "consolidated.00.pth").unlink()


def hugging_face(model_type="mistral"):
    """A model.safetensors and a config.json as transformers writes them."""

    def theirs(name):
        for new, old in HUGGING_FACE_NAMES.items():
            if old and old in name:
                name = name.replace(old, new)
        return name if name.startswith("lm_head") else f"model.{name}"

    save_file(
        {theirs(name): x for name, x in transformer().state_dict().items()},
        "my_weights/model.safetensors",
    )
    config = dict(
        architectures=["MistralForCausalLM"], attention_dropout=0.0, attention_bias=False, mlp_bias=False,
        bos_token_id=1, eos_token_id=2, head_dim=8, hidden_act="silu", hidden_size=16, initializer_range=0.02,
        intermediate_size=24, max_position_embeddings=32768, model_type=model_type, num_attention_heads=2,
        num_hidden_layers=1, num_key_value_heads=1, rms_norm_eps=1e-05, rope_theta=10000.0, rope_scaling=None,
        sliding_window=4096, tie_word_embeddings=False, dtype="float32", use_cache=True, vocab_size=258,
    )  # fmt: skip
    Path("my_weights", "config.json").write_text(json.dumps(config))


def llama():
    hugging_face("llama")
    config = json.loads(Path("my_weights", "config.json").read_text()) | {"pretraining_tp": 1}
    del config["rope_theta"], config["rope_scaling"], config["head_dim"]
    config["rope_parameters"] = {"rope_type": "default", "rope_theta": 500000.0}
    Path("my_weights", "config.json").write_text(json.dumps(config))


def split_weights():
    from safetensors.torch import load_file

    hugging_face()
    weights, index = (
        load_file("my_weights/model.safetensors"),
        {"metadata": {"total_size": 1}, "weight_map": {}},
    )
    for n, names in enumerate((sorted(weights)[:5], sorted(weights)[5:]), 1):
        file = f"model-0000{n}-of-00002.safetensors"
        save_file({name: weights[name] for name in names}, f"my_weights/{file}")
        index["weight_map"] |= dict.fromkeys(names, file)
    Path("my_weights", "model.safetensors").unlink()
    Path("my_weights", "model.safetensors.index.json").write_text(json.dumps(index))


def torch_bin():
    from safetensors.torch import load_file

    hugging_face()
    torch.save(load_file("my_weights/model.safetensors"), "my_weights/pytorch_model.bin")
    Path("my_weights", "model.safetensors").unlink()


def exported():
    run()
    export("my_run", "my_weights")
    shutil.rmtree("my_run")


A_RUN, WEIGHTS = partial(contents, "my_run"), partial(contents, "my_weights")

KINDS = [
    Kind("config.json of a run", run, "my_run/config.json", A_RUN, "json"),
    Kind("config.json of a run, evaluated", run, "my_run/config.json", measured, "json"),
    Kind("config.json of a run, gone on with", run, "my_run/config.json", go_on, "json"),
    Kind("log.jsonl", run, "my_run/log.jsonl", drawn, "jsonl", lenient=True),
    Kind("log.jsonl, gone on with", run, "my_run/log.jsonl", go_on, "jsonl", lenient=True),
    Kind("checkpoint.pt", run, "my_run/checkpoint_00000002.pt", A_RUN, "torch", True),
    Kind("checkpoint.pt, gone on with", run, "my_run/checkpoint_00000002.pt", go_on, "torch", True),
    Kind(
        "checkpoint.pt and one before",
        run_with_one_before,
        "my_run/checkpoint_00000002.pt",
        go_on,
        "bytes",
        True,
    ),
    Kind("scores.json of a study", run, "my_run/scores.json", scores, "json"),
    Kind("params.json", official, "my_weights/params.json", WEIGHTS, "json"),
    Kind("consolidated.00.pth", official, "my_weights/consolidated.00.pth", WEIGHTS, "torch", True),
    Kind(
        "consolidated.safetensors",
        official_safetensors,
        "my_weights/consolidated.safetensors",
        WEIGHTS,
    ),
    Kind("config.json of a Mistral", hugging_face, "my_weights/config.json", WEIGHTS, "json"),
    Kind("config.json of a Llama", llama, "my_weights/config.json", WEIGHTS, "json"),
    Kind("model.safetensors", hugging_face, "my_weights/model.safetensors", WEIGHTS),
    Kind(
        "index of two files",
        split_weights,
        "my_weights/model.safetensors.index.json",
        WEIGHTS,
        "json",
    ),
    Kind("one of two files", split_weights, "my_weights/model-00001-of-00002.safetensors", WEIGHTS),
    Kind("pytorch_model.bin", torch_bin, "my_weights/pytorch_model.bin", WEIGHTS, "torch", True),
    Kind("quiet_star.json", exported, "my_weights/quiet_star.json", WEIGHTS, "json"),
    Kind("quiet_star.pt", exported, "my_weights/quiet_star.pt", WEIGHTS, "torch", True),
]
