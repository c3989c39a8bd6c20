"""Tokenizers: the same ids as the libraries they come from, on many strange strings; clear words about bad files."""

import base64
import importlib.util
import io
import json
import random
import time
from pathlib import Path

import pytest
import sentencepiece
import tokenizers
from byte_tokenizer import write_byte_tokenizer
from tokenizers import Regex, decoders, models, pre_tokenizers, trainers

from lib.tokenizer import CharTokenizer, from_json, load_tokenizer

ROOT = Path(__file__).resolve().parents[2]
TEXT = "\n".join(
    path.read_text("utf-8")
    for folder in (ROOT, ROOT / "studies")
    for path in sorted(folder.glob("*.py"))
)
POOLS = [
    "abcdefghijklmnopqrstuvwxyz",
    "ABCXYZ'’-_.,;:!?()[]{}<>|/\\\"#$%&*+=~^`@",
    "0123456789",
    "   \t\n\r\x0b\x0c\u00a0\u2003\u3000\u200b▁",
    "\x00\x01\x1b\x7f\x85\ufeff\ufffd\u2028",
    "éüßñçøåÅœđłžñ\u0301\u0308½²№",
    "漢字仮名交じり文한국어ไทยעבריתعربيहिन्दीΩмирქართული",
    "🙂👩‍👩‍👧🏽🇩🇪🧠𝔘𠜎\U0010ffff",
]
WORDS = TEXT.split() + [
    "don't",
    "We'll",
    "I'M",
    "naïve",
    "x'='",
    "don’t",
    "...",
    "--",
    "3.14159",
    "1,000",
    "http://a.b/c?d=e",
]


def strings(count, seed=0):
    """Words, runs of one kind of character, and mixtures of all kinds."""
    rng = random.Random(seed)
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(1, 6)):
            kind = rng.random()
            if kind < 0.5:
                parts.append(rng.choice(WORDS))
            elif kind < 0.8:
                pool = rng.choice(POOLS)
                parts.append("".join(rng.choice(pool) for _ in range(rng.randint(1, 8))))
            else:
                parts.append(
                    "".join(rng.choice(rng.choice(POOLS)) for _ in range(rng.randint(1, 8)))
                )
        yield rng.choice(["", " ", " ", "  ", "\n"]).join(parts)


def mistral_file():
    """Mistral-7B-v0.1's own tokenizer.model, which the package mistral-common ships (it need not be importable)."""
    spec = importlib.util.find_spec("mistral_common")
    return Path(spec.submodule_search_locations[0]) / "data" / "tokenizer.model.v1"


def trained_sentencepiece(folder):
    """A small SentencePiece BPE made like Mistral's, from this project's own code."""
    model = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.split("\n") + [POOLS[6]] * 5),
        model_writer=model,
        model_type="bpe",
        vocab_size=1200,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        split_digits=True,
        allow_whitespace_only_pieces=True,
        minloglevel=2,
    )
    (folder / "tokenizer.model").write_bytes(model.getvalue())
    return folder / "tokenizer.model"


@pytest.mark.parametrize("which", ["mistral", "trained"])
def test_sentencepiece_ids_are_those_of_the_library(which, tmp_path):
    path = mistral_file() if which == "mistral" else trained_sentencepiece(tmp_path)
    ours, theirs = load_tokenizer(path), sentencepiece.SentencePieceProcessor(model_file=str(path))
    assert (ours.vocab_size, ours.bos_id, ours.eos_id) == (theirs.vocab_size(), 1, 2)
    texts = [*strings(20_000), "", " ", "\n", "a" * 300, " " * 40, TEXT[:20_000]]
    expected = theirs.encode(texts)
    wrong = [t for t, ids in zip(texts, expected, strict=True) if ours.encode(t) != ids]
    assert not wrong, f"{len(wrong)} differ, the first: {wrong[0]!r}"
    assert all(
        ours.decode(ids) == t.replace("▁", " ") for t, ids in zip(texts, expected, strict=True)
    )
    assert ours.encode("a", bos=True) == [1, *ours.encode("a")] and ours.encode("", bos=True) == [1]
    assert (
        ours.decode([1, *ours.encode("a b"), 2])
        == theirs.decode([1, *theirs.encode("a b"), 2])
        == "a b"
    )


def test_mistral_ids_of_its_own_paper_trail():
    ours = load_tokenizer(mistral_file())
    assert ours.encode("Hello world") == [22557, 1526]
    assert ours.encode("é 漢字 🙂") == [1233, 28705, 233, 191, 165, 29031, 28705, 29340]
    assert ours.encode("line one\n\nline two\ttab") == [1407, 624, 13, 13, 1081, 989, 12, 4252]


SPLITS = {
    "gpt2": pre_tokenizers.ByteLevel(add_prefix_space=False),
    "digits": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False),
        ]
    ),
    "own": pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(r"\p{N}{1,3}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+"), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    ),
}


def trained_bpe(folder, split):
    theirs = tokenizers.Tokenizer(models.BPE())
    theirs.pre_tokenizer, theirs.decoder = split, decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=1500,
        special_tokens=["<|endoftext|>", "<s>"],
        initial_alphabet=alphabet,
        show_progress=False,
    )
    theirs.train_from_iterator(TEXT.split("\n") + [POOLS[6]] * 5, trainer)
    theirs.save(str(folder / "tokenizer.json"))
    return theirs


@pytest.mark.parametrize("split", SPLITS)
def test_byte_level_bpe_ids_are_those_of_the_library(split, tmp_path):
    theirs = trained_bpe(tmp_path, SPLITS[split])
    ours = load_tokenizer(tmp_path)
    assert (ours.vocab_size, ours.bos_id, ours.eos_id) == (1500, 1, 0)
    texts = [*strings(20_000, seed=1), "", TEXT[:20_000]]
    expected = [encoding.ids for encoding in theirs.encode_batch(texts)]
    wrong = [t for t, ids in zip(texts, expected, strict=True) if ours.encode(t) != ids]
    assert not wrong, f"{len(wrong)} differ, the first: {wrong[0]!r}"
    assert all(ours.decode(ids) == t for t, ids in zip(texts, expected, strict=True))
    assert len(ours.encode("<s>")) > 1, "text is only text"


def test_bytes_that_a_byte_level_vocabulary_lacks_vanish_as_in_the_library(tmp_path):
    trained_bpe(tmp_path, SPLITS["gpt2"])
    file = json.loads((tmp_path / "tokenizer.json").read_text("utf-8"))
    control = "\u0104"  # byte 4
    del file["model"]["vocab"][control]
    (tmp_path / "tokenizer.json").write_text(json.dumps(file), "utf-8")
    theirs, ours = (
        tokenizers.Tokenizer.from_file(str(tmp_path / "tokenizer.json")),
        load_tokenizer(tmp_path),
    )
    for text in ("\x04", "the \x04 cat", "no such byte"):
        assert ours.encode(text) == theirs.encode(text).ids


def tekken(words, special=3, **config):
    vocab = [{"rank": i, "token_bytes": base64.b64encode(w).decode()} for i, w in enumerate(words)]
    settings = {"pattern": r"\s?\w+|\W", "default_vocab_size": len(words) + special}
    return {"config": settings | {"default_num_special_tokens": special} | config, "vocab": vocab}


def test_tekken_merges_by_rank_behind_the_special_tokens(tmp_path):
    words = [bytes([b]) for b in range(256)] + [b"ab", b"abc", b" a", b"bc", "é".encode()]
    (tmp_path / "tekken.json").write_text(json.dumps(tekken(words)))
    ours = load_tokenizer(tmp_path)

    def slowly(stretch):  # merge the neighbours of lowest rank until none are left
        parts = [bytes([b]) for b in stretch]
        while True:
            pairs = [(a + b, i) for i, (a, b) in enumerate(zip(parts, parts[1:], strict=False))]
            pairs = [(words.index(both), i) for both, i in pairs if both in words]
            if not pairs:
                return [words.index(p) + 3 for p in parts]
            _, i = min(pairs)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]

    for stretches in (["abc"], [" abcab"], ["bcabc", "-", "é"], ["é", "!", " abab"]):
        assert ours.encode("".join(stretches)) == [i for s in stretches for i in slowly(s.encode())]
        assert ours.decode(ours.encode("".join(stretches))) == "".join(stretches)
    assert (ours.vocab_size, ours.bos_id, ours.eos_id) == (264, 1, 2)
    (tmp_path / "tekken.json").write_text(json.dumps(tekken(words, default_vocab_size=262)))
    assert load_tokenizer(tmp_path).vocab_size == 262, "words beyond the vocabulary are not in it"


def test_a_tokenizer_is_made_again_from_what_it_left(tmp_path):
    trained_bpe(tmp_path, SPLITS["digits"])
    ours = load_tokenizer(tmp_path / "tokenizer.json")
    ours.save(tmp_path / "run")
    again = from_json(json.loads(json.dumps(ours.to_json())), tmp_path / "run")
    assert again.encode(TEXT[:999]) == ours.encode(TEXT[:999]) and again.to_json() == ours.to_json()
    description = ours.to_json() | {"sha256": "0" * 64}
    with pytest.raises(ValueError, match="another tokenizer"):
        from_json(description, tmp_path / "run")
    chars = CharTokenizer("ab")
    assert from_json(chars.to_json()).encode("ba", bos=True) == [1, 0]
    with pytest.raises(ValueError, match="unknown tokenizer"):
        from_json({"kind": "words"}, tmp_path)


def test_bad_files_are_refused_in_one_line(tmp_path):
    trained_bpe(tmp_path, SPLITS["gpt2"])
    good = json.loads((tmp_path / "tokenizer.json").read_text())
    piece = mistral_file().read_bytes()
    words = [bytes([b]) for b in range(256)]
    unigram = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(TEXT.split("\n")),
        model_writer=unigram,
        vocab_size=300,
        minloglevel=2,
    )
    bad = {
        "empty": (b"", "pieces"),
        "garbage": (b"\xff\xfe\x00garbage", "tokenizer.model"),
        "cut": (piece[: len(piece) // 2], "cut short"),
        "unigram": (unigram.getvalue(), "only SentencePiece BPE"),
        "json": (b'{"model": ', "tokenizer"),
        "keys": (b'{"model": {"type": "BPE"}}', "tokenizer.json"),
        "wordpiece": (b'{"model": {"type": "WordPiece"}}', "only byte-level BPE"),
        "normalizer": (json.dumps(good | {"normalizer": {"type": "NFKC"}}), "without a normalizer"),
        "split": (json.dumps(good | {"pre_tokenizer": {"type": "Whitespace"}}), "Whitespace"),
        "prefix": (
            json.dumps(good | {"pre_tokenizer": {"type": "ByteLevel", "add_prefix_space": True}}),
            "ByteLevel",
        ),
        "merge": (
            json.dumps(good | {"model": good["model"] | {"merges": [["zz", "qq"]]}}),
            "tokenizer.json",
        ),
        "tekken": (json.dumps(tekken(words) | {"config": {}}), "tekken.json"),
        "tekken_rank": (
            json.dumps(tekken(words) | {"vocab": [{"rank": 5, "token_bytes": "YQ=="}]}),
            "ranks are not",
        ),
        "tekken_pattern": (json.dumps(tekken(words, pattern="(")), "tekken.json"),
    }
    for name, (content, expected) in bad.items():
        path = tmp_path / name
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        with pytest.raises(ValueError) as error:
            load_tokenizer(path)
        message = str(error.value)
        assert expected in message and str(path) in message and "\n" not in message, (name, message)
    for path in (tmp_path / "nowhere", tmp_path / "emptier"):
        (tmp_path / "emptier").mkdir(exist_ok=True)
        with pytest.raises(ValueError, match="tokenizer"):
            load_tokenizer(path)


@pytest.mark.slow
def test_mistral_is_encoded_faster_than_by_sentencepiece():
    text = (TEXT * (400_000 // len(TEXT) + 1))[:400_000]
    ours = load_tokenizer(mistral_file())
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(mistral_file()))
    seconds = []
    for encode in (ours.encode, theirs.encode):
        times = []
        for _ in range(5):
            start = time.perf_counter()
            ids = encode(text)
            times.append(time.perf_counter() - start)
        seconds.append(min(times))
    assert ours.encode(text) == ids
    print(
        f"{len(text)} characters: {seconds[0]:.3f} s, sentencepiece {seconds[1]:.3f} s, {seconds[1] / seconds[0]:.2f}x"
    )
    assert seconds[0] < seconds[1]


def test_words_of_ids_make_up_the_text(tmp_path):
    """A character of several tokens comes with its last; the space before a word stays with it."""
    text = "I don't  é漢字 🙂👩‍👩‍👧 1,000\n\nx"
    for tokenizer in (
        load_tokenizer(mistral_file()),
        load_tokenizer(write_byte_tokenizer(tmp_path)),
    ):
        ids = tokenizer.encode(text)
        words = tokenizer.words(ids)
        assert len(words) == len(ids) and "".join(words).removeprefix(" ") == text
        assert "\ufffd" not in "".join(words)
    assert load_tokenizer(mistral_file()).words([22557, 1526]) == [" Hello", " world"]
    assert CharTokenizer("ab").words([1, 0]) == ["b", "a"]
