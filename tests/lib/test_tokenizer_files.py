"""Tokenizer files give the ids of the libraries that they were made for, or they are refused."""

import json

import pytest
import tiktoken
import tokenizers
from test_tokenizer import CODE, POOLS, mistral_file, strings
from tokenizers import AddedToken, Regex, decoders, models, normalizers, pre_tokenizers, trainers

from lib.tokenizer import from_json, load_tokenizer


def split(pattern):
    isolated = pre_tokenizers.Split(Regex(pattern), "isolated")
    byte_level = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    return pre_tokenizers.Sequence([isolated, byte_level])


BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False)
QWEN2 = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*"
    r"|\s*[\r\n]+|\s+(?!\S)|\s+"
)
SPLITS = {
    "GPT-2": BYTE_LEVEL,
    "SmolLM2": pre_tokenizers.Sequence([pre_tokenizers.Digits(True), BYTE_LEVEL]),
    "Qwen2": split(QWEN2),
    "Llama 3": split(QWEN2.replace(r"\p{N}|", r"\p{N}{1,3}|")),
    "with text between the matches": split(r"\p{L}+|'s"),
}


def trained_bpe(folder, pre_tokenizer, nfc=False):
    """A tokenizer.json of 1,500 tokens, made from this project's code by the library, which is
    returned. Four tokens were added to it afterwards."""
    theirs = tokenizers.Tokenizer(models.BPE())
    theirs.pre_tokenizer, theirs.decoder = pre_tokenizer, decoders.ByteLevel()
    how = dict(vocab_size=1496, special_tokens=["<|endoftext|>", "<s>"], show_progress=False)
    trainer = trainers.BpeTrainer(**how, initial_alphabet=pre_tokenizers.ByteLevel.alphabet())
    theirs.train_from_iterator(CODE.split("\n") + [POOLS[6]] * 5, trainer)
    if nfc:
        theirs.normalizer = normalizers.NFC()
    text = ("<tool_call>", "</tool_call>", "é漢")
    theirs.add_tokens([AddedToken(x, special=False, normalized=False) for x in text])
    theirs.add_special_tokens(["<|im_end|>"])
    theirs.save(str(folder / "tokenizer.json"))
    return theirs


@pytest.mark.parametrize("name", SPLITS)
def test_ids_of_byte_level_bpe_are_those_of_the_library(tmp_path, name):
    """Catches text that is split, merged, normalized or cut at added tokens in another way, and
    special tokens that text becomes."""
    theirs = trained_bpe(tmp_path, SPLITS[name], nfc=name == "Qwen2")
    ours = load_tokenizer(tmp_path)
    assert (ours.vocab_size, ours.bos_id, ours.eos_id) == (1500, 1, 0)
    odd = ["", "a<tool_call></tool_call> b", "xé漢é漢", "<tool", "\u212b ﬁ", "e\u0301"]
    texts = [*odd, *strings(3000, seed=1), CODE[:20_000]]
    expected = [encoding.ids for encoding in theirs.encode_batch(texts)]
    wrong = [x for x, ids in zip(texts, expected, strict=True) if ours.encode(x) != ids]
    assert not wrong, f"{len(wrong)} differ, the first: {wrong[0]!r}"
    if name != "Qwen2":  # NFC changes the text
        assert all(ours.decode(ids) == x for x, ids in zip(texts, expected, strict=True))
    assert "<tool_call>" in ours.words(ours.encode("a<tool_call>b"))
    for special in ("<|im_end|>", "<s>"):
        assert theirs.token_to_id(special) in ours.ends and len(ours.encode(special)) > 1


def test_a_prompt_begins_as_in_the_library(tmp_path):
    """Catches SmolLM2's questions behind an end of text, and Llama's without their beginning."""
    theirs = trained_bpe(tmp_path, BYTE_LEVEL)
    assert load_tokenizer(tmp_path).encode("a b", bos=True) == theirs.encode("a b").ids
    template = tokenizers.processors.TemplateProcessing
    theirs.post_processor = template("<s> $A", special_tokens=[("<s>", 1)])
    theirs.save(str(tmp_path / "tokenizer.json"))
    assert load_tokenizer(tmp_path).encode("a b", bos=True) == theirs.encode("a b").ids


@pytest.mark.parametrize("added", ["<tool", AddedToken("zzq", rstrip=True)], ids=str)
def test_added_tokens_that_are_cut_out_otherwise_are_refused(tmp_path, added):
    """Catches <tool_call> that becomes <tool and _call>, and a space that should be gone."""
    theirs = trained_bpe(tmp_path, BYTE_LEVEL)
    theirs.add_tokens([added])
    theirs.save(str(tmp_path / "tokenizer.json"))
    with pytest.raises(ValueError, match="cut out"):
        load_tokenizer(tmp_path)


def test_bytes_that_a_vocabulary_lacks_vanish_as_in_the_library(tmp_path):
    """Catches a SmolLM2, which lacks some, that cannot be loaded or that says unknown ids."""
    trained_bpe(tmp_path, BYTE_LEVEL)
    path = tmp_path / "tokenizer.json"
    file = json.loads(path.read_text("utf-8"))
    vocab = file["model"]["vocab"]
    vocab["\u0104\u0104"] = vocab.pop("\u0104")  # of byte 4: there is no token of one
    path.write_text(json.dumps(file), "utf-8")
    theirs, ours = tokenizers.Tokenizer.from_file(str(path)), load_tokenizer(path)
    texts = ["\x04", "the \x04 cat", "*\x04*", "  \x04  ==\x04=", "a<tool_call>\x04<tool_call>"]
    for text in (*texts, *(x.replace("*", "\x04") for x in strings(500)), "no such byte"):
        assert ours.encode(text) == theirs.encode(text).ids, repr(text)


BEGIN_END = {"bos_token": "<|im_end|>", "eos_token": {"content": "<s>", "special": True}}


@pytest.mark.parametrize(
    "beside, ids",
    [
        ({}, [1, 0]),
        ({"tokenizer_config.json": BEGIN_END, "config.json": {"eos_token_id": 0}}, [1499, 1]),
        ({"tokenizer_config.json": {"bos_token": None, "eos_token": "</tool_call>"}}, [None, 1497]),
        ({"config.json": {"bos_token_id": 1499, "eos_token_id": [1499, 0]}}, [1499, 1499]),
        ({"config.json": {"bos_token_id": 5, "eos_token_id": None}}, [1, 0]),
        ({"tokenizer_config.json": {}, "config.json": {"eos_token_id": 1}}, [1, 1]),
    ],
)
def test_begin_and_end_are_those_that_the_files_beside_it_say(tmp_path, beside, ids):
    """Catches DeepSeek's, Gemma's and BERT's names that are not known, Yi's and Qwen2's that are
    taken for others, an end that text becomes, and a run that forgets them or takes others."""
    trained_bpe(tmp_path, BYTE_LEVEL)
    for file, content in beside.items():
        (tmp_path / file).write_text(json.dumps(content))
    ours = load_tokenizer(tmp_path)
    assert [ours.bos_id, ours.eos_id] == ids
    assert ours.eos_id in ours.ends.difference(ours.encode("<s></tool_call><|im_end|>"))
    ours.save(tmp_path / "run")
    again = from_json(ours.to_json(), tmp_path / "run")
    assert again.to_json() == ours.to_json() == load_tokenizer(tmp_path / "run").to_json()
    assert [again.bos_id, again.eos_id] == ids
    for wrong in ('{"eos_token": "</tool_call>"}', '{"bos_token": "<start>"}', "{"):
        (tmp_path / "run" / "tokenizer_config.json").write_text(wrong)
        with pytest.raises(ValueError, match="tokenizer.json"):
            from_json(ours.to_json(), tmp_path / "run")


def test_tekken_is_tiktoken_behind_the_special_tokens():
    """Catches special tokens that are not counted in, and words beyond the vocabulary."""
    path = mistral_file("json")
    ours = load_tokenizer(path)
    assert (ours.vocab_size, ours.bos_id, ours.eos_id) == (131072, 1, 2)
    assert ours.ends == set(range(1000))
    ids = ours.encode("Hello </s> wörld 漢字 🙂\n\n")
    assert ids[0] == 22177 and min(ids) >= 1000 and ours.words([22177]) == ["Hello"]
    ranks = {ours.pieces[i]: i - 1000 for i in range(1000, 131072)}
    pattern = json.loads(path.read_text("utf-8"))["config"]["pattern"]
    theirs = tiktoken.Encoding("t", pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
    for text in strings(1000, seed=2):
        assert ours.encode(text) == [1000 + rank for rank in theirs.encode_ordinary(text)]
        assert ours.decode(ours.encode(text)) == text


@pytest.mark.parametrize(
    "change, name",
    [
        ({"normalizer": {"type": "NFKC"}}, "NFKC"),
        ({"pre_tokenizer": {"type": "Whitespace"}}, "Whitespace"),
        ({"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}, "ByteLevel"),
        ({"model": {"vocab": {"a": 0}}}, "merges"),
        ({"model": {"vocab": {"a": 0}, "merges": ["a b"]}}, "ab"),
        ({"model": {"vocab": {"ab": 1, "cd": 0}, "merges": ["a b", "c d"]}}, "order"),
    ],
)
def test_what_is_not_implemented_is_refused_by_name(tmp_path, change, name):
    """Catches a tokenizer that gives other ids than its library without a word."""
    trained_bpe(tmp_path, BYTE_LEVEL)
    path = tmp_path / "tokenizer.json"
    path.write_text(json.dumps(json.loads(path.read_text("utf-8")) | change), "utf-8")
    with pytest.raises(ValueError, match=name) as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
