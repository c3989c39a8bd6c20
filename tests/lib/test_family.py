"""Mistral's relatives: Qwen2, Llama 3, their tokenizers; and the way back, to what transformers loads."""

import importlib.util
import json
import random

import pytest
import sentencepiece
import tokenizers
import torch
from test_tokenizer import SPLITS, mistral_file, strings, trained_bpe
from test_tokenizer_fields import agree, split
from tokenizers import AddedToken, normalizers
from transformers import (
    AutoModelForCausalLM,
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from lib.export import CLASSES
from lib.tokenizer import load_tokenizer
from lib.weights import load_mistral, save_hugging_face, save_mistral
from model import KVCache

LLAMA3 = {
    "rope_type": "llama3",
    "rope_theta": 5000.0,
    "factor": 8.0,
    "low_freq_factor": 1.0,
    "high_freq_factor": 4.0,
}
LLAMA3["original_max_position_embeddings"] = 32
SHAPE = dict(
    vocab_size=97, hidden_size=32, intermediate_size=40, num_hidden_layers=3, num_attention_heads=4
)
SHAPE |= dict(num_key_value_heads=2, initializer_range=0.3)


def relative(kind, tied):
    torch.manual_seed(0)
    if kind == "qwen2":
        model = Qwen2ForCausalLM(
            Qwen2Config(**SHAPE, tie_word_embeddings=tied, rope_parameters=default(1e6))
        )
    elif kind == "llama3":
        model = LlamaForCausalLM(
            LlamaConfig(**SHAPE, tie_word_embeddings=tied, rope_parameters=LLAMA3, head_dim=16)
        )
    else:
        window = 7 if kind == "mistral" else None
        model = MistralForCausalLM(
            MistralConfig(
                **SHAPE,
                tie_word_embeddings=tied,
                sliding_window=window,
                rope_parameters=default(500.0),
            )
        )
    for name, weight in model.named_parameters():
        if name.endswith("bias"):
            torch.nn.init.normal_(weight)
    return model.eval()


def default(theta):
    return {"rope_type": "default", "rope_theta": theta}


KINDS = pytest.mark.parametrize(
    "kind, tied",
    [("qwen2", False), ("qwen2", True), ("llama3", False), ("mistral", False), ("no window", True)],
)


@KINDS
@torch.no_grad()
def test_logits_are_those_of_transformers_and_so_are_those_of_what_is_written_back(
    tmp_path, kind, tied
):
    """100 positions, three times as many as Llama was first trained on here; read at once, and with a cache."""
    theirs = relative(kind, tied)
    theirs.save_pretrained(tmp_path / "theirs")
    theirs = type(theirs).from_pretrained(tmp_path / "theirs")  # its tables are made in float32 now
    ours = load_mistral(tmp_path / "theirs")
    assert any(name.endswith("wq.bias") for name, _ in ours.named_parameters()) == (kind == "qwen2")
    tokens = torch.randint(97, (2, 100), generator=torch.Generator().manual_seed(1))
    expected = theirs(tokens).logits
    torch.testing.assert_close(ours.logits(ours(tokens)), expected, atol=1e-4, rtol=1e-4)
    cache = KVCache(ours.config, 2, 100)
    parts = torch.cat([ours(part, cache=cache) for part in tokens.split([60, 1, 39], dim=1)], dim=1)
    torch.testing.assert_close(ours.logits(parts), expected, atol=1e-4, rtol=1e-4)

    save_mistral(ours, tmp_path / "official")
    again = load_mistral(tmp_path / "official")
    assert again.config == ours.config and torch.equal(again(tokens), ours(tokens))
    save_hugging_face(ours, tmp_path / "back", load_tokenizer(mistral_file()))
    back, told = AutoModelForCausalLM.from_pretrained(tmp_path / "back", output_loading_info=True)
    assert not any(told.values()), told
    torch.testing.assert_close(back(tokens).logits, expected, atol=1e-4, rtol=1e-4)
    assert load_mistral(tmp_path / "back").config == ours.config


def test_biases_learn(tmp_path):
    relative("qwen2", False).save_pretrained(tmp_path)
    model = load_mistral(tmp_path)
    model(torch.tensor([[1, 2, 3]])).square().sum().backward()
    assert all(
        p.grad.abs().max() > 0
        for name, p in model.named_parameters()
        if name.endswith(("wq.bias", "wv.bias"))
    )


QWEN = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"


@pytest.mark.parametrize(
    "pattern, nfc", [(QWEN, True), (QWEN.replace(r"\p{N}|", r"\p{N}{1,3}|"), False)]
)
def test_tokenizers_like_qwen2s_and_llama_3s_give_the_ids_of_the_library(tmp_path, pattern, nfc):
    theirs = trained_bpe(tmp_path, split(pattern))
    if nfc:
        theirs.normalizer = normalizers.NFC()
    theirs.add_tokens(
        [AddedToken(x, special=False, normalized=False) for x in ("<tool_call>", "</tool_call>")]
    )
    theirs.add_special_tokens(["<|im_start|>", "<|im_end|>"])
    theirs.save(str(tmp_path / "tokenizer.json"))
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    odd = [
        "e\u0301",
        "<tool_call>\u0338x",
        "A\u030a<tool_call>e\u0301 </tool_call>",
        "\u1100\u1161",
        "\u212b ﬁ",
    ]
    agree(load_tokenizer(tmp_path), theirs, [*odd, *strings(3000, seed=6)])


def test_nfc_with_added_tokens_that_are_normalized_is_refused(tmp_path):
    theirs = trained_bpe(tmp_path, SPLITS["gpt2"])
    theirs.normalizer = normalizers.Sequence([normalizers.NFC()])
    theirs.add_tokens([AddedToken("<tool>", special=False, normalized=True)])
    theirs.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="normalized of the added token '<tool>'"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize(
    "name",
    ["mistral_instruct_tokenizer_240323.model.v3", "mistral_instruct_tokenizer_241114.model.v7"],
)
def test_pieces_of_the_users_are_cut_out_as_sentencepiece_does(name):
    """Mistral's v3 and v7: whole pieces, parts of them, one next to another, and control tokens spelled out."""
    path = mistral_file().with_name(name)
    theirs, ours = sentencepiece.SentencePieceProcessor(model_file=str(path)), load_tokenizer(path)
    control = [theirs.id_to_piece(i) for i in range(theirs.vocab_size()) if theirs.is_control(i)][
        :20
    ]
    rng, words = random.Random(0), [*strings(300)]
    parts = [
        *ours.whole,
        *control,
        *(x[:-1] for x in ours.whole),
        *(x[1:] for x in ours.whole),
        " ",
        "  ",
        "\n",
        "▁",
    ]
    texts = [
        "".join(rng.choice(rng.choice((parts, words))) for _ in range(rng.randrange(1, 8)))
        for _ in range(5000)
    ]
    assert len(ours.whole) >= 20
    for text, ids in zip(texts, theirs.encode(texts), strict=True):
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == theirs.decode(ids), text


def test_transformers_reads_the_tokenizers_that_are_exported(tmp_path):
    trained_bpe(tmp_path, SPLITS["gpt2"])
    files = {"bpe": tmp_path / "tokenizer.json"}
    if importlib.util.find_spec(
        "google"
    ):  # transformers reads sentencepiece's files with the package protobuf
        files["sentencepiece"] = mistral_file()
    for kind, path in files.items():
        folder = tmp_path / kind
        load_tokenizer(path).save(folder)
        (folder / "tokenizer_config.json").write_text(
            json.dumps({"tokenizer_class": CLASSES[kind]})
        )
        theirs, ours = AutoTokenizer.from_pretrained(folder), load_tokenizer(folder)
        # (in runs of spaces transformers differs from sentencepiece)
        for text in ("Hello world", "two spaces, é 漢字\n", *["  more  spaces"] * (kind == "bpe")):
            assert theirs.encode(text, add_special_tokens=False) == ours.encode(text), (kind, text)
