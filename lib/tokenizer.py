"""
Text to token ids and back, on tiktoken alone.

  load_tokenizer(path)    Mistral's tokenizer.model (SentencePiece) and tekken.json, and Hugging Face's tokenizer.json
                          for byte-level BPE (SmolLM2, GPT-2, ...): a file, or a folder that holds one
  CharTokenizer           the characters of the miniature

All have  encode(text, bos=False) -> ids,  decode(ids) -> text,  words(ids) -> a list of texts,  vocab_size,  bos_id and
eos_id (or None),  to_json(),  save(folder);  from_json makes one again from what the last two left. Two models have the
same tokenizer if their to_json() are equal. Text is only text: what looks like a special token in it is encoded as the
characters it is.
"""

import codecs
import hashlib
import re
from pathlib import Path

import numpy as np
import tiktoken

from lib.files import absent, check, parse_json, reading, replace_file, write_json
from lib.tokenizer_files import covers_all, read_byte_bpe, read_sentencepiece, read_tekken

NO_TEXT = "\ufffd"


def pick(texts, i, beyond):
    """The text of an id; a model may have more ids than its tokenizer, and those are `beyond`. Raises ValueError."""
    if i < 0:
        raise ValueError(f"{i} is no token id")
    return texts[i] if i < len(texts) else beyond


def before_end(tokenizer, ids):
    """What a model wrote before it first ended its text."""
    return ids[: next((n for n, i in enumerate(ids) if i in tokenizer.ends), len(ids))]


def has_ended(tokenizer, ids):
    return not tokenizer.ends.isdisjoint(ids)


LONG = 2**16


def stretches(text):
    """A text in pieces, cut only within white space that goes on for very long: there, tiktoken gives up. (For the ids
    of it all, the length of a piece should be a multiple of any merged white space's.)"""
    runs = re.finditer(r"\s+", text) if len(text) > LONG else ()
    cuts = [n for run in runs for n in range(run.start() + LONG, run.end(), LONG)]
    return [text[a:b] for a, b in zip([0, *cuts], [*cuts, None], strict=True)]


class CharTokenizer:
    """One id for each character of a fixed alphabet, in its order."""

    bos_id = eos_id = None
    ends = frozenset()

    def __init__(self, alphabet):
        if not alphabet or len(set(alphabet)) != len(alphabet):
            raise ValueError(f"an alphabet has each character once, unlike {alphabet!r}")
        self.alphabet = alphabet
        self.id = {char: i for i, char in enumerate(alphabet)}
        self.vocab_size = len(alphabet)

    def encode(self, text, bos=False):
        """Ids of a text, a list. Raises ValueError on a character outside of the alphabet."""
        try:
            return [self.id[char] for char in text]
        except KeyError as error:
            raise ValueError(
                f"the character {error} is not in this model's alphabet: {self.alphabet!r}"
            ) from None

    def decode(self, ids):
        return "".join(self.words(ids))

    def words(self, ids):
        """The text of each id, a list."""
        return [pick(self.alphabet, i, NO_TEXT) for i in ids]

    def to_json(self):
        return {"kind": "char", "alphabet": self.alphabet}

    def save(self, folder):
        Path(folder).mkdir(parents=True, exist_ok=True)
        write_json(Path(folder) / FILES["char"], self.to_json())


class BPETokenizer:
    """Byte-pair encoding from a tokenizer file. The merging is tiktoken's; what differs between kinds of files is which
    bytes have which rank (the order of merging), which id stands for a rank, and where text is split beforehand."""

    def __init__(self, kind, content, words):
        """kind, content: of the file; its bytes. words: its Vocabulary. Raises ValueError."""
        if not all(bytes([b]) in words.ranks for b in range(256)):
            raise ValueError("a vocabulary with all 256 bytes is wanted")
        if not covers_all(words.pattern):
            raise ValueError(f"its way of splitting text, {words.pattern[:60]!r}, loses some")
        self.kind, self.content, self.pieces, self.whole = kind, content, words.pieces, words.whole
        self.ready, self.normal, self.trim = words.ready, words.normal, words.trim
        self.bos_id, self.eos_id, self.vocab_size = words.bos_id, words.eos_id, len(words.pieces)
        self.ends = {*words.ends, words.eos_id} - {None}
        ranks = dict(pat_str=words.pattern, mergeable_ranks=words.ranks, special_tokens={})
        self.encoding = tiktoken.Encoding(kind, **ranks)
        self.ids, self.spelled = np.asarray(words.ids, np.int64), words.spelled
        self.some_spelled = np.zeros(len(self.ids), bool)
        self.some_spelled[list(self.spelled)] = True
        longest_first = "|".join(
            re.escape(text) for text in sorted(self.whole, key=len, reverse=True)
        )
        self.cut = re.compile(f"({longest_first})").split if self.whole else lambda text: [text]

    def encode(self, text, bos=False):
        """Ids of a text, a list; bos: after the token that begins a text, where there is one."""
        first = [self.bos_id] if bos and self.bos_id is not None else []
        return first + self.encode_array(text).tolist() if text else first

    def encode_array(self, text):
        """The same, without bos, as an int64 array: less work on a long text."""
        ids = [np.zeros(0, np.int64)]
        for part in self.cut(self.ready(text)):
            ids += (
                [[self.whole[part]]]
                if part in self.whole
                else [self.merge(x) for x in stretches(self.normal(part))]
            )
        return np.concatenate(ids)

    def merge(self, text):
        """The same of a text that is ready."""
        try:
            ranks = np.asarray(self.encoding.encode_ordinary(text), np.int64)
        except BaseException as error:  # Rust's PanicException is no Exception
            if type(error).__name__ != "PanicException":
                raise
            raise ValueError(
                "this tokenizer's way of splitting text gives up: one stretch of it is too long"
            ) from None
        if not self.some_spelled[ranks].any():
            return self.ids[ranks]
        spelled = (
            self.spelled.get(rank, [i])
            for rank, i in zip(ranks.tolist(), self.ids[ranks].tolist(), strict=True)
        )
        return np.asarray([i for ids in spelled for i in ids], np.int64)

    def decode(self, ids):
        """Text of ids. What is no UTF-8, or beyond the vocabulary, becomes U+FFFD, special tokens nothing."""
        text = b"".join(pick(self.pieces, i, NO_TEXT.encode()) for i in ids).decode(
            "utf-8", "replace"
        )
        return self.trim(text)

    def words(self, ids):
        """The text that each id adds to those before it, a list. A character of several ids comes with its last one."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        return [decoder.decode(pick(self.pieces, i, NO_TEXT.encode())) for i in ids]

    def to_json(self):
        return {
            "kind": self.kind,
            "file": FILES[self.kind],
            "sha256": hashlib.sha256(self.content).hexdigest(),
        }

    def save(self, folder):
        """Put a copy of the tokenizer file into a folder."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        replace_file(Path(folder) / FILES[self.kind], self.content)


FILES = {
    "sentencepiece": "tokenizer.model",
    "tekken": "tekken.json",
    "bpe": "tokenizer.json",
    "char": "alphabet.json",
}


def load_tokenizer(path):
    """The tokenizer of a file, or of a folder that holds one of tokenizer.model, tekken.json, tokenizer.json (looked
    for in this order), or of alphabet.json. Raises ValueError, in one line, if there is none or if it is malformed."""
    path = Path(path)
    if not path.exists():
        raise ValueError(absent(path, "a tokenizer file, or a folder that has one, is wanted"))
    if path.is_dir():
        found = [path / name for name in FILES.values() if (path / name).exists()]
        if not found:
            raise ValueError(f"no tokenizer in {path}: {', '.join(FILES.values())} are known")
        path = found[0]
    with reading(
        path, "is no tokenizer.model, tekken.json or tokenizer.json that can be used here"
    ):
        content = path.read_bytes()
        if content.lstrip()[:1] != b"{":
            return BPETokenizer("sentencepiece", content, read_sentencepiece(content))
        file = parse_json(content)
        if "alphabet" in file:
            return from_json(file)
        kind, read = ("bpe", read_byte_bpe) if "model" in file else ("tekken", read_tekken)
        return BPETokenizer(kind, content, read(file))


def from_json(description, folder=None):
    """The tokenizer that to_json described, its file (if it has one) in `folder`. Raises ValueError."""
    with reading(folder or "the tokenizer", "says of its tokenizer what cannot be used"):
        check(description, {"kind": str}, "the tokenizer")
        kind = description["kind"]
        if kind == "char":
            check(description, {"alphabet": str}, "the tokenizer")
            return CharTokenizer(description["alphabet"])
        if kind not in FILES or folder is None:
            raise ValueError(f"unknown tokenizer: {description!r}")
        tokenizer = load_tokenizer(Path(folder) / FILES[kind])
        if tokenizer.to_json() != description:
            raise ValueError(f"{FILES[kind]} is another tokenizer than the one used here before")
    return tokenizer
