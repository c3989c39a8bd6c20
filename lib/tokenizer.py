"""
Text to token ids and back.

  CharTokenizer            one id for each character: the miniature's
  BPETokenizer             tekken.json of Mistral, tokenizer.json of Hugging Face; with tiktoken
  SentencePieceTokenizer   tokenizer.model of Mistral and Llama; needs the package sentencepiece

Two tokenizers are the same if their to_json() are equal. Text that looks like a special token is
encoded as text.
"""

import codecs
import hashlib
import json
from pathlib import Path

import numpy as np
import tiktoken

from lib.files import parse_json, read_json, reading, replace_file, write_json
from lib.tokenizer_files import read_byte_bpe, read_tekken

FILES = ("tokenizer.model", "tekken.json", "tokenizer.json", "alphabet.json")
NO_TEXT = "\ufffd".encode()  # of an id that a tokenizer does not have: a model may have more ids


class Tokenizer:
    """What all kinds have in common.

    file            the name of its file, and `content`, the bytes in it
    pieces          {id: bytes}; ids below vocab_size that are not in it have no text
    bos_id, eos_id  ids that begin and end a text, or None
    ends            ids of all special tokens: no text has one, and a model that says one has ended
    names           {"bos_token": name or None, "eos_token": ...}, if the file does not say them
    begins          does a prompt begin with bos_id? Some only have one
    """

    def __init__(
        self, file, content, pieces, vocab_size, bos_id=None, eos_id=None, special=(), names=None,
        begins=True,
    ):  # fmt: skip
        self.file, self.content, self.pieces, self.vocab_size = file, content, pieces, vocab_size
        self.names, self.begins = names, begins
        self.bos_id, self.eos_id, self.ends = bos_id, eos_id, {*special, eos_id} - {None}

    def encode(self, text, bos=False):
        """The ids of a text, a list; bos: after the id that begins a prompt, if one does. Raises
        ValueError if the tokenizer cannot encode it."""
        first = [self.bos_id] if bos and self.begins and self.bos_id is not None else []
        return first + self.encode_array(text).tolist()

    def decode(self, ids):
        """The text of ids. Bytes that are no UTF-8 become U+FFFD; special tokens have no text."""
        return b"".join(self.piece(i) for i in ids).decode("utf-8", "replace")

    def words(self, ids):
        """The text that each id adds, a list. A character of several ids comes with the last."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        return [decoder.decode(self.piece(i)) for i in ids]

    def piece(self, i):
        """The bytes of an id."""
        return self.pieces.get(int(i), b"" if 0 <= i < self.vocab_size else NO_TEXT)

    def to_json(self):
        """A description of the tokenizer, for from_json."""
        sha256 = hashlib.sha256(self.content).hexdigest()
        return {"file": self.file, "sha256": sha256, "begin_end": [self.bos_id, self.eos_id]}

    def save(self, folder):
        """Write the tokenizer's file into a folder. Raises OSError."""
        folder = Path(folder)
        folder.mkdir(parents=True, exist_ok=True)
        if self.names:
            write_json(folder / "tokenizer_config.json", self.names)
        replace_file(folder / self.file, self.content)


class CharTokenizer(Tokenizer):
    """One id for each character of an alphabet, in its order."""

    def __init__(self, alphabet):
        self.alphabet, self.id = alphabet, {char: i for i, char in enumerate(alphabet)}
        content = json.dumps(self.to_json()).encode()
        pieces = {i: char.encode() for i, char in enumerate(alphabet)}
        super().__init__("alphabet.json", content, pieces, len(alphabet))

    def encode_array(self, text):
        """encode(text) as an int64 array, here and below."""
        try:
            return np.array([self.id[char] for char in text], np.int64)
        except KeyError as error:
            problem = f"the character {error} is not in this model's alphabet {self.alphabet!r}"
            raise ValueError(problem) from None

    def to_json(self):
        return {"kind": "char", "alphabet": self.alphabet}


class BPETokenizer(Tokenizer):
    """Byte-pair encoding, done by tiktoken.

    ranks      {bytes: id} of what is merged, the lowest id first
    pattern    regular expression: merging never crosses the borders of its matches, the words
    lacks      bytes without an id: they are dropped from words
    added      {text: id} of tokens that are cut out of a text before that
    normalize  applied to a text first
    """

    def __init__(self, file, content, ranks, pattern, lacks=b"", added=(), normalize=str, **common):
        if b"" in ranks or any(bytes([b]) not in ranks for b in range(256) if b not in lacks):
            raise ValueError("its vocabulary lacks a byte, or has a token of no bytes")
        super().__init__(file, content, **common)
        self.pattern, self.lacks, self.added = pattern, lacks, dict(added)
        self.normalize = normalize
        self.encoding = tiktoken.Encoding(
            file, pat_str=pattern, mergeable_ranks=ranks, special_tokens=self.added
        )
        self.encode("a b")  # tiktoken panics at a useless pattern: better now than later

    def encode_array(self, text):
        text = self.normalize(text)
        if self.lacks and not set(self.lacks).isdisjoint(text.encode("utf-8", "replace")):
            return np.array(list(self.encode_words(text)), np.int64)
        return self.encoding.encode_to_numpy(text, allowed_special="all").astype(np.int64)

    def encode_words(self, text):
        """Yields the ids of a text word by word: tiktoken itself cannot drop a byte from a word."""
        import regex  # a package that tiktoken needs, too

        names = "|".join(map(regex.escape, self.added)) or "(?!)"
        for part in regex.split(f"({names})", text):
            if part in self.added:
                yield self.added[part]
                continue
            for word in regex.finditer(self.pattern, part):
                word = word[0].encode("utf-8", "replace").translate(None, self.lacks)
                yield from self.encoding._encode_single_piece(word) if word else ()


class SentencePieceTokenizer(Tokenizer):
    """Byte-pair encoding or another model, done by sentencepiece."""

    def __init__(self, file, content):
        from sentencepiece import SentencePieceProcessor  # a package that only such files need

        self.library = library = SentencePieceProcessor()
        library.LoadFromSerializedProto(content)
        special = [i for i in range(library.vocab_size()) if library.is_control(i)]
        pieces = {i: library.id_to_piece(i) for i in range(library.vocab_size())}
        if len(set(pieces.values())) < len(pieces):
            raise ValueError("a piece is given twice")
        for i, piece in pieces.items():
            if library.is_byte(i):  # its name is like <0x0A>
                pieces[i] = bytes([int(piece[1:-1], 16)])
            else:
                pieces[i] = b"" if i in special else piece.replace("▁", " ").encode()
        begin_end = (i if i >= 0 else None for i in (library.bos_id(), library.eos_id()))
        super().__init__(file, content, pieces, len(pieces), *begin_end, special)

    def encode_array(self, text):
        return np.array(self.library.encode(text), np.int64)

    def decode(self, ids):
        return self.library.decode([int(i) for i in ids if 0 <= i < self.vocab_size])


def load_tokenizer(path):
    """The tokenizer of a file, or of the first of FILES that a folder holds. Raises ValueError,
    which names the file."""
    path = Path(path)
    if path.is_dir():
        path = next((path / name for name in FILES if (path / name).exists()), path / FILES[0])
    with reading(path, f"cannot be used as one of {', '.join(FILES)}"):
        content = path.read_bytes()
        if content.lstrip()[:1] != b"{":
            tokenizer = SentencePieceTokenizer("tokenizer.model", content)
            about = path.with_name("tokenizer_config.json")
            end = read_json(about).get("eos_token") if about.exists() else None
            end = end["content"] if isinstance(end, dict) else end
            if end and tokenizer.library.piece_to_id(end) != tokenizer.eos_id:
                raise ValueError(f"its text ends in {end}, a token that was added to it")
            return tokenizer
        file = parse_json(content)
        if "alphabet" in file:
            return from_json(file)
        if "model" in file:
            return BPETokenizer("tokenizer.json", content, **read_byte_bpe(file, path.parent))
        return BPETokenizer("tekken.json", content, **read_tekken(file))


def from_json(description, folder=None):
    """The tokenizer whose to_json() is `description`; its file, if it has one, is in `folder`.
    Raises ValueError."""
    with reading(folder or "a tokenizer", "names no tokenizer that is known here"):
        if description.get("kind") == "char":
            return CharTokenizer(description["alphabet"])
        path = Path(folder) / description["file"]
    tokenizer = load_tokenizer(path)
    if not description.items() <= tokenizer.to_json().items():
        raise ValueError(f"{path} is another tokenizer than the one that was used before")
    return tokenizer
