"""What a tokenizer file says is obeyed, with the ids of the library it comes from, or refused by name."""

import io
import json

import numpy as np
import pytest
import sentencepiece
import tokenizers
from test_tokenizer import POOLS, TEXT, strings, tekken, trained_bpe
from tokenizers import AddedToken, Regex, pre_tokenizers

from lib.tokenizer import CharTokenizer, before_end, load_tokenizer

BYTE_LEVEL = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)


def split(pattern):
    return pre_tokenizers.Sequence([pre_tokenizers.Split(Regex(pattern), "isolated"), BYTE_LEVEL])


def agree(ours, theirs, texts):
    expected = [encoding.ids for encoding in theirs.encode_batch(texts)]
    assert [ours.encode(text) for text in texts] == expected
    return expected


@pytest.mark.parametrize(
    "pattern", [r"\p{L}+", r"\d", r"[aeiou]", r"\p{L}+|\p{N}", "'s|'t", r"\s+"]
)
def test_what_lies_between_the_matches_of_a_split_is_a_piece_too(tmp_path, pattern):
    theirs = trained_bpe(tmp_path, split(pattern))
    ours = load_tokenizer(tmp_path)
    texts = ["Hello, world. Yes!", *strings(3000, seed=2)]
    expected = agree(ours, theirs, texts)
    assert [ours.decode(ids) for ids in expected] == texts


def test_a_pattern_that_would_lose_text_is_refused(tmp_path):
    trained_bpe(tmp_path, split(r"\p{L}*"))
    with pytest.raises(ValueError, match="loses some"):
        load_tokenizer(tmp_path)
    (tmp_path / "tekken.json").write_text(
        json.dumps(tekken([bytes([b]) for b in range(256)], pattern=r"\p{L}+"))
    )
    with pytest.raises(ValueError, match="loses some"):
        load_tokenizer(tmp_path / "tekken.json")
    (tmp_path / "tekken.json").write_text(json.dumps(tekken([bytes([b]) for b in range(255)])))
    with pytest.raises(ValueError, match="all 256 bytes"):
        load_tokenizer(tmp_path / "tekken.json")


def test_added_tokens_that_are_text_are_cut_out_whole_and_special_ones_are_never_text(tmp_path):
    theirs = trained_bpe(tmp_path, pre_tokenizers.ByteLevel(add_prefix_space=False))
    theirs.add_tokens(
        [
            AddedToken(text, special=False, normalized=False)
            for text in ("<tool>", "<tool>s", "é漢", "def ")
        ]
    )
    theirs.add_special_tokens(["<|im_end|>"])
    theirs.save(str(tmp_path / "tokenizer.json"))
    ours = load_tokenizer(tmp_path)
    texts = ["<tool>", "a <tool>s<tool> b", "xé漢é漢", "def def f", "<tool", *strings(3000, seed=3)]
    expected = agree(ours, theirs, texts)
    assert [ours.decode(ids) for ids in expected] == texts and "<tool>" in ours.words(
        ours.encode("a<tool>b")
    )
    end = theirs.token_to_id("<|im_end|>")
    assert (
        end in ours.ends
        and ours.encode("<tool>")[0] not in ours.ends
        and len(ours.encode("<|im_end|>")) > 1
    )
    assert before_end(ours, [5, 6, end, 7]) == [5, 6] and before_end(ours, [5, 6]) == [5, 6]


@pytest.mark.parametrize(
    "change, message",
    [
        ({"end_of_word_suffix": "</w>"}, "end_of_word_suffix"),
        ({"continuing_subword_prefix": "##"}, "continuing_subword_prefix"),
        ({"dropout": 0.1}, "dropout"),
        ({"ignore_merges": True, "vocab": "zebrazebra"}, "ignore_merges"),
        ({"unk_token": "<s>", "vocab": None}, "unk_token"),
        ({"vocab": 2**31}, "beyond any vocabulary"),
        ({"vocab": -1}, "each is given once"),
        ({"vocab": 7}, "each is given once"),
        ({"vocab": 5.5}, "each is given once"),
        ({"lstrip": True}, "lstrip"),
        ({"single_word": True}, "single_word"),
    ],
)
def test_fields_that_are_not_obeyed_are_refused_by_name(tmp_path, change, message):
    trained_bpe(tmp_path, pre_tokenizers.ByteLevel(add_prefix_space=False))
    file = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    word = change.pop("vocab", 0)
    if isinstance(word, str):
        file["model"]["vocab"][word] = 1500
    elif word is None:
        del file["model"]["vocab"]["\u0104"]  # byte 4
    elif word:
        file["model"]["vocab"]["a"] = word
    flags = {name: change.pop(name) for name in ("lstrip", "single_word") if name in change}
    if flags:
        file["added_tokens"].append({"id": 1500, "content": "<x>", "special": False, **flags})
    file["model"] |= change
    (tmp_path / "tokenizer.json").write_text(json.dumps(file), "utf-8")
    with pytest.raises(ValueError, match=message) as error:
        load_tokenizer(tmp_path)
    assert "\n" not in str(error.value) and str(tmp_path) in str(error.value)


def test_ignore_merges_with_words_that_merges_make_is_obeyed(tmp_path):
    theirs = trained_bpe(tmp_path, pre_tokenizers.ByteLevel(add_prefix_space=False))
    file = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    file["model"]["ignore_merges"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(file), "utf-8")
    theirs = tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json"))
    agree(load_tokenizer(tmp_path), theirs, [*strings(3000, seed=4)])


@pytest.mark.parametrize(
    "how",
    [
        dict(add_dummy_prefix=False, remove_extra_whitespaces=False),
        dict(remove_extra_whitespaces=True),
        dict(add_dummy_prefix=False, remove_extra_whitespaces=True),
        dict(
            remove_extra_whitespaces=False,
            bos_piece="<begin>",
            eos_piece="<end>",
            bos_id=2,
            eos_id=1,
        ),
        dict(remove_extra_whitespaces=False, bos_id=-1, eos_id=-1),
        dict(remove_extra_whitespaces=False, control_symbols=["<|im_end|>"]),
        dict(remove_extra_whitespaces=False, user_defined_symbols=["<x>", "<x>s", "é漢", "don"]),
    ],
    ids=lambda how: " ".join(f"{name}={value}" for name, value in how.items()),
)
def test_sentencepiece_fields_are_obeyed(tmp_path, how):
    model = io.BytesIO()
    more = dict(
        model_type="bpe", vocab_size=1200, byte_fallback=True, normalization_rule_name="identity"
    )
    more |= dict(split_digits=True, allow_whitespace_only_pieces=True, minloglevel=2)
    lines = TEXT.split("\n") + [POOLS[6]] * 5
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(lines), model_writer=model, **more, **how
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    theirs = sentencepiece.SentencePieceProcessor(model_proto=model.getvalue())
    ours = load_tokenizer(tmp_path)
    texts = ["", " ", "  a  b ", "▁", "▁▁", "a▁ ", " \n ", " " * 40, *strings(5000)]
    for text, ids in zip(texts, theirs.encode(texts), strict=True):
        assert ours.encode(text) == ids, text
        assert ours.decode(ids) == theirs.decode(ids), text
    for own, other in ((ours.bos_id, theirs.bos_id()), (ours.eos_id, theirs.eos_id())):
        assert other == (-1 if own is None else own)
    assert ours.ends == {i for i in range(theirs.vocab_size()) if theirs.is_control(i)}


@pytest.mark.parametrize(
    "how, message",
    [
        (dict(treat_whitespace_as_suffix=True, normalization_rule_name="identity"), "suffix"),
        (dict(normalization_rule_name="nmt_nfkc"), "normalization"),
        (
            dict(user_defined_symbols=["de f"], normalization_rule_name="identity"),
            "pieces of the user's with a space",
        ),
    ],
)
def test_sentencepiece_fields_that_are_not_obeyed_are_refused(tmp_path, how, message):
    model = io.BytesIO()
    more = dict(model_type="bpe", vocab_size=600, byte_fallback=True, minloglevel=2)
    lines = iter(TEXT.split("\n"))
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=lines, model_writer=model, **more, **how
    )
    (tmp_path / "tokenizer.model").write_bytes(model.getvalue())
    with pytest.raises(ValueError, match=message):
        load_tokenizer(tmp_path)


def test_white_space_that_goes_on_and_on_is_encoded(tmp_path):
    """tiktoken gives up on some 500,000 in a row; the library it comes from does not."""
    theirs = trained_bpe(tmp_path, pre_tokenizers.ByteLevel(add_prefix_space=False))
    ours = load_tokenizer(tmp_path)
    for text in (
        f"a{' ' * 1_000_000}b",
        f"{' ' * 200_001}5",
        "x" + "\n" * 700_000,
        f"a{' ' * 65_536}b",
        f"a{' ' * 65_537}b",
    ):
        assert ours.decode(ours.encode(text)) == text
    text = f"a b{' ' * 150_000}b c"
    assert ours.encode(text) == theirs.encode(text).ids


def test_any_ids_decode(tmp_path):
    """A model may have more ids than its tokenizer; -1 is where nothing was thought, and no id."""
    trained_bpe(tmp_path, pre_tokenizers.ByteLevel(add_prefix_space=False))
    rng = np.random.default_rng(0)
    for tokenizer in (load_tokenizer(tmp_path), CharTokenizer("abc")):
        n = tokenizer.vocab_size
        assert (
            tokenizer.decode([n, n + 7]) == "\ufffd\ufffd" == "".join(tokenizer.words([n, 2**40]))
        )
        for _ in range(200):
            ids = rng.integers(0, n + 5, rng.integers(0, 9)).tolist()
            assert isinstance(tokenizer.decode(ids), str) and len(tokenizer.words(ids)) == len(ids)
        for method in (tokenizer.decode, tokenizer.words):
            with pytest.raises(ValueError, match="-1 is no token id"):
                method([0, -1])


def test_the_alphabet_of_a_miniature_is_kept_in_a_file(tmp_path):
    CharTokenizer("ab—\n").save(tmp_path)
    again = load_tokenizer(tmp_path)
    assert again.to_json() == CharTokenizer("ab—\n").to_json() and again.ends == frozenset()
    (tmp_path / "alphabet.json").write_text('{"kind": "char", "alphabet": "aa"}')
    with pytest.raises(ValueError, match="each character once"):
        load_tokenizer(tmp_path)
