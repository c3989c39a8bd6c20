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

import base64
import codecs
import hashlib
import json
import re
import struct
from pathlib import Path

import numpy as np
import tiktoken

from lib.files import replace_file
from lib.protobuf import protobuf


class CharTokenizer:
    """One id for each character of a fixed alphabet, in its order."""

    bos_id = eos_id = None

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
            raise ValueError(f"the character {error} is not in this model's alphabet: {self.alphabet!r}") from None

    def decode(self, ids):
        return "".join(self.alphabet[i] for i in ids)

    def words(self, ids):
        """The text of each id, a list."""
        return [self.alphabet[i] for i in ids]

    def to_json(self):
        return {"kind": "char", "alphabet": self.alphabet}

    def save(self, folder):
        """Nothing to save: to_json holds the whole alphabet."""


class BPETokenizer:
    """Byte-pair encoding from a tokenizer file. The merging is tiktoken's; what differs between kinds of files is which
    bytes have which rank (the order of merging), which id stands for a rank, and where text is split beforehand."""

    def __init__(self, kind, content, ranks, pattern, ids, pieces, bos_id=None, eos_id=None, spelled=None):
        """
        kind, content   of the file; its bytes
        ranks           {bytes: rank}, a lower rank is merged first; all 256 single bytes are there
        pattern         regular expression: merging never crosses its matches
        ids             id by rank
        pieces          bytes by id (b"" for special tokens): decoding
        spelled         {rank: [ids]} for ranks that stand for several ids
        """
        self.kind, self.content, self.pieces = kind, content, pieces
        self.bos_id, self.eos_id, self.vocab_size = bos_id, eos_id, len(pieces)
        self.encoding = tiktoken.Encoding(kind, pat_str=pattern, mergeable_ranks=ranks, special_tokens={})
        self.ids, self.spelled = np.asarray(ids, np.int64), spelled or {}
        self.some_spelled = np.zeros(len(ids), bool)
        self.some_spelled[list(self.spelled)] = True

    def encode(self, text, bos=False):
        """Ids of a text, a list; bos: after the token that begins a text, where there is one."""
        first = [self.bos_id] if bos and self.bos_id is not None else []
        return first + self.encode_array(text).tolist() if text else first

    def encode_array(self, text):
        """The same, without bos, as an int64 array: less work on a long text."""
        if not text:
            return np.zeros(0, np.int64)
        if self.kind == "sentencepiece":
            text = " " + text.replace("▁", " ")  # its own sign for a space
        ranks = np.asarray(self.encoding.encode_ordinary(text))
        if not self.some_spelled[ranks].any():
            return self.ids[ranks]
        spelled = (
            self.spelled.get(rank, [i]) for rank, i in zip(ranks.tolist(), self.ids[ranks].tolist(), strict=True)
        )
        return np.asarray([i for ids in spelled for i in ids], np.int64)

    def decode(self, ids):
        """Text of ids. Bytes that are no UTF-8 become U+FFFD, special tokens nothing."""
        content = b"".join(self.pieces[i] for i in ids)
        text = content.decode("utf-8", "replace")
        return text.removeprefix(" ") if self.kind == "sentencepiece" else text

    def words(self, ids):
        """The text that each id adds to those before it, a list. A character of several ids comes with its last one."""
        decoder = codecs.getincrementaldecoder("utf-8")("replace")
        return [decoder.decode(self.pieces[i]) for i in ids]

    def to_json(self):
        return {"kind": self.kind, "file": FILES[self.kind], "sha256": hashlib.sha256(self.content).hexdigest()}

    def save(self, folder):
        """Put a copy of the tokenizer file into a folder."""
        Path(folder).mkdir(parents=True, exist_ok=True)
        replace_file(Path(folder) / FILES[self.kind], self.content)


NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of pieces


def read_sentencepiece(content):
    """tokenizer.model -> BPETokenizer, with the ids of the sentencepiece library on every text.

    SentencePiece merges characters and falls back to bytes at the end; tiktoken merges bytes. To make it put
    characters together first, the beginnings of every multi-byte character get the lowest ranks after the bytes, then
    the characters, and then come all longer pieces by their score. A beginning that is left over is spelled in bytes.
    """
    pieces = []  # (text, score, type) by id
    settings = {}
    for number, field in protobuf(content):
        if number == 1:
            piece = dict(protobuf(field))
            score = struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0
            pieces.append((piece[1].decode("utf-8"), score, piece.get(3, NORMAL)))
        elif number in (2, 3):  # how it was trained, and how text is made ready for it
            settings[number] = dict(protobuf(field))
    bpe, normalisation = settings.get(2, {}).get(3, 1) == 2, settings.get(3, {}).get(2)
    if not pieces or not bpe or normalisation or any(kind == USER_DEFINED for _, _, kind in pieces):
        raise ValueError("only SentencePiece BPE without normalisation or pieces of the user's is implemented")
    byte_id = {int(text[1:-1], 16): i for i, (text, _, kind) in enumerate(pieces) if kind == BYTE}
    if len(byte_id) < 256:
        raise ValueError("a vocabulary with all 256 bytes is wanted (byte_fallback)")

    normal = [(text.replace("▁", " "), score, i) for i, (text, score, kind) in enumerate(pieces) if kind == NORMAL]
    id_of = {text.encode("utf-8"): i for text, _, i in normal}
    characters = [text.encode("utf-8") for text, _, _ in normal if len(text) == 1]
    beginnings = dict.fromkeys(c[:n] for c in characters for n in range(2, len(c)))
    longer = [text.encode("utf-8") for text, score, i in sorted(normal, key=lambda x: (-x[1], x[2])) if len(text) > 1]
    in_order = [bytes([b]) for b in range(256)] + list(beginnings) + [c for c in characters if len(c) > 1] + longer
    ids = [id_of.get(b, byte_id[b[0]]) for b in in_order]
    spelled = {256 + n: [byte_id[b] for b in beginning] for n, beginning in enumerate(beginnings)}
    # No piece has a space after anything else, and few characters are in any longer piece at all (digits, say, are in
    # none): cutting there changes nothing, and short stretches are merged much faster.
    merging = re.escape("".join(sorted({c for text, _, _ in normal if len(text) > 1 for c in text} - {" "})))

    content_of = {i: text.encode("utf-8") for text, _, i in normal} | {i: bytes([b]) for b, i in byte_id.items()}
    special = {text: i for i, (text, _, kind) in enumerate(pieces) if kind == CONTROL}
    return BPETokenizer(
        "sentencepiece",
        content,
        {b: rank for rank, b in enumerate(in_order)},
        rf" +[{merging}]*|[{merging}]+|[^ ]",
        ids,
        [content_of.get(i, b"") for i in range(len(pieces))],
        special.get("<s>"),
        special.get("</s>"),
        spelled,
    )


def read_tekken(content):
    """tekken.json -> BPETokenizer. Special tokens come first: a token's id is its rank plus their number."""
    file = json.loads(content)
    config = file["config"]
    n_special, size = config["default_num_special_tokens"], config["default_vocab_size"]
    words = sorted(file["vocab"], key=lambda word: word["rank"])[: size - n_special]
    in_order = [base64.b64decode(word["token_bytes"], validate=True) for word in words]
    if [word["rank"] for word in words] != list(range(len(words))):
        raise ValueError("ranks are not 0, 1, 2, ...")
    names = {token["token_str"]: token["rank"] for token in file.get("special_tokens") or []}
    return BPETokenizer(
        "tekken",
        content,
        {b: rank for rank, b in enumerate(in_order)},
        config["pattern"],
        range(n_special, n_special + len(in_order)),
        [b""] * n_special + in_order,
        names.get("<s>", 1),
        names.get("</s>", 2),
    )


GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Digits are cut out one by one before GPT-2's pattern sees the text: so it finds the text's end before each of them.
GPT2_DIGITS = r"'(?:[sdmt]|ll|ve|re)|\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"
BEGIN, END = ("<s>", "<|begin_of_text|>", "<|endoftext|>"), ("</s>", "<|end_of_text|>", "<|endoftext|>")


def read_byte_bpe(content):
    """tokenizer.json of Hugging Face, byte-level BPE -> BPETokenizer."""
    file = json.loads(content)
    model, added = file["model"], {token["content"]: token["id"] for token in file.get("added_tokens") or []}
    if model.get("type") != "BPE" or file.get("normalizer") or model.get("byte_fallback"):
        raise ValueError("only byte-level BPE without a normalizer is implemented")
    byte_of = {char: bytes([b]) for b, char in byte_characters().items()}
    content_of = {i: b"".join(byte_of[c] for c in text) for text, i in model["vocab"].items() if text not in added}
    id_of = {b: i for i, b in content_of.items()}

    merges = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
    merged = (b"".join(byte_of[c] for c in left + right) for left, right in merges)
    in_order = list(dict.fromkeys([*(bytes([b]) for b in range(256)), *merged]))
    size = 1 + max([*model["vocab"].values(), *added.values()])
    lacking = {rank: [] for rank, b in enumerate(in_order[:256]) if b not in id_of}  # bytes that text has no use for
    names = {**model["vocab"], **added}
    return BPETokenizer(
        "bpe",
        content,
        {b: rank for rank, b in enumerate(in_order)},
        split_pattern(file.get("pre_tokenizer")),
        [0 if rank in lacking else id_of[b] for rank, b in enumerate(in_order)],
        [content_of.get(i, b"") for i in range(size)],
        next((names[name] for name in BEGIN if name in names), None),
        next((names[name] for name in END if name in names), None),
        lacking,
    )


def split_pattern(pre_tokenizer):
    """The regular expression that does what a tokenizer.json's pre_tokenizer section says. Raises ValueError."""
    steps = (pre_tokenizer or {}).get("pretokenizers") or [pre_tokenizer or {}]
    kinds = [step.get("type") for step in steps]
    last = steps[-1]
    if kinds[-1] == "ByteLevel" and not last.get("add_prefix_space"):
        if kinds == ["ByteLevel"] and last.get("use_regex", True):
            return GPT2
        if kinds == ["Digits", "ByteLevel"] and steps[0].get("individual_digits") and last.get("use_regex", True):
            return GPT2_DIGITS
        split = steps[0]
        if kinds == ["Split", "ByteLevel"] and not last.get("use_regex", True) and "Regex" in split["pattern"]:
            if split.get("behavior") == "Isolated" and not split.get("invert"):
                return split["pattern"]["Regex"]
    raise ValueError(f"its way of splitting text ({' then '.join(map(str, kinds))}) is not implemented")


def byte_characters():
    """GPT-2's printable character for each byte: {byte: character}. Its own where it has a visible one, else one from
    U+0100 on, in order."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in visible]
    return {b: chr(b) for b in visible} | {b: chr(256 + n) for n, b in enumerate(hidden)}


FILES = {"sentencepiece": "tokenizer.model", "tekken": "tekken.json", "bpe": "tokenizer.json"}
READERS = {"sentencepiece": read_sentencepiece, "tekken": read_tekken, "bpe": read_byte_bpe}


def load_tokenizer(path):
    """The tokenizer of a file, or of a folder that holds one of tokenizer.model, tekken.json, tokenizer.json (looked
    for in this order). Raises ValueError, in one line, if there is none or if it is malformed."""
    path = Path(path)
    if path.is_dir():
        found = [path / name for name in FILES.values() if (path / name).exists()]
        if not found:
            raise ValueError(f"no tokenizer in {path}: {', '.join(FILES.values())} are known")
        path = found[0]
    try:
        content = path.read_bytes()
    except OSError as error:
        raise ValueError(f"cannot read the tokenizer {path}: {error.strerror}") from None
    kind = "sentencepiece"
    try:
        if content.lstrip()[:1] == b"{":
            kind = "bpe" if "model" in json.loads(content) else "tekken"
        return READERS[kind](content)
    except (ValueError, KeyError, TypeError, IndexError, AttributeError, struct.error) as error:
        reason = str(error) if type(error) is ValueError else repr(error)
        raise ValueError(f"{path} is no {FILES[kind]} that can be used here: {reason}") from None


def from_json(description, folder=None):
    """The tokenizer that to_json described, its file (if it has one) in `folder`. Raises ValueError."""
    kind = description.get("kind") if isinstance(description, dict) else None
    if kind == "char":
        return CharTokenizer(description["alphabet"])
    if kind not in FILES or folder is None:
        raise ValueError(f"unknown tokenizer: {description!r}")
    tokenizer = load_tokenizer(Path(folder) / FILES[kind])
    if tokenizer.to_json() != description:
        raise ValueError(f"{Path(folder) / FILES[kind]} is another tokenizer than the one used here before")
    return tokenizer
