"""Tokenizers: what a text becomes, and what ids become, for each kind of file that is loaded."""

import importlib.util
import json
import random
from pathlib import Path

import numpy as np
import pytest
import sentencepiece
import torch
from byte_tokenizer import write_byte_tokenizer

from lib.tokenizer import CharTokenizer, from_json, load_tokenizer

ROOT = Path(__file__).resolve().parents[2]
CODE = "\n".join(path.read_text("utf-8") for path in sorted(ROOT.glob("*.py")))
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
WORDS = CODE.split() + ["don't", "We'll", "naïve", "don’t", "...", "3.14159", "1,000", "a.b/c?d=e"]


def strings(count, seed=0):
    """Words, runs of one kind of character, and mixtures of all kinds."""
    rng = random.Random(seed)
    for _ in range(count):
        parts = []
        for _ in range(rng.randint(1, 6)):
            pools = [rng.choice(POOLS)] if rng.random() < 0.6 else POOLS
            mixture = "".join(rng.choice(rng.choice(pools)) for _ in range(rng.randint(1, 8)))
            parts.append(rng.choice((rng.choice(WORDS), mixture)))
        yield rng.choice(["", " ", " ", "  ", "\n"]).join(parts)


def mistral_file(version):
    """A tokenizer of Mistral's in the package mistral-common, which need not be importable."""
    spec = importlib.util.find_spec("mistral_common")
    return next(Path(spec.submodule_search_locations[0], "data").glob(f"*.{version}"))


@pytest.mark.parametrize("version", ["v1", "v3", "v7"])
def test_mistrals_sentencepiece_files(version):
    """Catches pieces that are not the bytes of their ids: the space before a word, bytes, symbols
    of the user's, and special tokens."""
    path = mistral_file(f"model.{version}")
    ours = load_tokenizer(path)
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(path))
    for text in (*strings(300), "", " ", "[INST] a<s></s>[/INST]"):
        ids = theirs.encode(text)
        assert ours.encode(text) == ids and ours.encode(text, bos=True) == [1, *ids]
        assert ours.decode(ids) == "".join(ours.words(ids)).removeprefix(" ") == theirs.decode(ids)
    assert (ours.vocab_size, ours.bos_id, ours.eos_id) == (theirs.vocab_size(), 1, 2)
    assert {1, 2} <= ours.ends and ours.ends.isdisjoint(ours.encode("</s> [INST] <unk>"))
    assert ours.decode(torch.tensor(ours.encode("a b"))) == "a b"
    assert ours.words([1, 2]) == ["", ""] and ours.decode([1, *ours.encode("a b"), 2]) == "a b"


def test_an_end_that_was_added_to_sentencepiece_is_refused(tmp_path):
    """Catches a ChatML model that can never say its end."""
    (tmp_path / "tokenizer.model").write_bytes(mistral_file("model.v1").read_bytes())
    for end in ("</s>", {"content": "</s>"}, None, "<|im_end|>"):
        (tmp_path / "tokenizer_config.json").write_text(json.dumps({"eos_token": end}))
        if end != "<|im_end|>":
            assert load_tokenizer(tmp_path).eos_id == 2
    with pytest.raises(ValueError, match="im_end"):
        load_tokenizer(tmp_path)


@pytest.mark.parametrize("kind", ["characters", "bytes"])
def test_any_ids_have_a_text(tmp_path, kind):
    """Catches an id beyond the tokenizer, which a model may have, or -1, no thought, that raises;
    and a character of several bytes that comes in parts."""
    text = "don't  é漢字 🙂👩‍👩‍👧 1,000\n\nx"
    tokenizer = CharTokenizer("".join(sorted(set(text))))
    if kind == "bytes":
        tokenizer = load_tokenizer(write_byte_tokenizer(tmp_path))
    n = tokenizer.vocab_size
    assert "".join(tokenizer.words(tokenizer.encode(text))) == text
    assert tokenizer.decode([n, -1]) == "\ufffd\ufffd" == "".join(tokenizer.words([n, 2**40]))
    rng = np.random.default_rng(0)
    for _ in range(200):
        ids = rng.integers(-1, n + 5, rng.integers(0, 9)).tolist()
        assert isinstance(tokenizer.decode(ids), str) and len(tokenizer.words(ids)) == len(ids)
        assert tokenizer.decode(torch.tensor(ids)) == tokenizer.decode(ids)


def test_a_tokenizer_is_made_again_from_what_it_left(tmp_path):
    """Catches a run that goes on with another tokenizer than its own."""
    path = write_byte_tokenizer(tmp_path)
    for ours in (load_tokenizer(path), CharTokenizer("ab—\n")):
        folder = tmp_path / type(ours).__name__
        ours.save(folder)
        again = from_json(json.loads(json.dumps(ours.to_json())), folder)
        assert again.to_json() == ours.to_json() == load_tokenizer(folder).to_json()
        assert again.encode("ab—\n") == ours.encode("ab—\n")
    description = load_tokenizer(path).to_json()
    path.write_text(path.read_text("utf-8") + " ", "utf-8")
    with pytest.raises(ValueError, match="tokenizer.json"):
        from_json(description, tmp_path)


def test_sentencepiece_files_with_a_piece_given_twice_are_refused(tmp_path):
    """Catches a download that was resumed at the wrong place: twice the ids, for the same text."""
    content = mistral_file("model.v1").read_bytes()
    path = tmp_path / "tokenizer.model"
    for wrong in (content * 2, content + content[:2000]):
        path.write_bytes(wrong)
        with pytest.raises(ValueError, match=str(path)):
            load_tokenizer(path)


@pytest.mark.parametrize("content", [None, b"", b"\xff\x00", b'{"model": ', b"{}", b"[]"])
def test_a_damaged_file_is_one_line_that_names_it(tmp_path, content):
    """Catches a traceback, also for a wrong path, or a tokenizer without tokens."""
    path = tmp_path / "tokenizer.model"
    if content is not None:
        path.write_bytes(content)
    with pytest.raises(ValueError) as error:
        load_tokenizer(path)
    assert "\n" not in str(error.value) and str(path) in str(error.value)
