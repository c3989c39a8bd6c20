"""
Tokenizer files: what each kind says, in the words of BPETokenizer (lib/tokenizer.py). What a file asks for and has no
such word is refused by name (ValueError).
"""

import base64
import math
import re
import string
import struct
import unicodedata
from dataclasses import dataclass, field
from functools import partial

import tiktoken

from lib.files import check


@dataclass
class Vocabulary:
    ranks: dict  # {bytes: rank}, a lower rank is merged first; all 256 single bytes are there
    pattern: str  # regular expression: merging never crosses its matches
    ids: list  # id by rank
    pieces: list  # bytes by id (b"" for special tokens): decoding
    bos_id: int | None
    eos_id: int | None
    ends: set  # ids of special tokens: none of them is ever text, and where a model writes one, its text has ended
    spelled: dict = field(
        default_factory=dict
    )  # {rank: [ids]} for ranks that stand for several ids
    ready: callable = str  # what is done to a text beforehand
    whole: dict = field(default_factory=dict)  # {text: id} of what is then cut out
    normal: callable = str  # what is done to each part between
    trim: callable = str  # what is done to a decoded text


def protobuf(content):
    """The fields of a protocol-buffer message: (number, int or bytes) each."""
    at = 0

    def varint():
        nonlocal at
        value = shift = 0
        while True:
            byte = content[at]
            at, value, shift = at + 1, value | (byte & 127) << shift, shift + 7
            if byte < 128:
                return value
            if shift > 63:
                raise ValueError("a number of more than 64 bits")

    while at < len(content):
        key = varint()
        number, wire = key >> 3, key & 7
        if wire == 0:
            yield number, varint()
            continue
        if wire not in (1, 2, 5):
            raise ValueError(f"a field of wire type {wire}")
        size = varint() if wire == 2 else {1: 8, 5: 4}[wire]
        if at + size > len(content):
            raise ValueError("cut short")
        yield number, content[at : at + size]
        at += size


NORMAL, UNKNOWN, CONTROL, USER_DEFINED, UNUSED, BYTE = range(1, 7)  # types of pieces


def read_sentencepiece(content):
    """tokenizer.model -> Vocabulary, with which BPETokenizer gives the ids of the sentencepiece library on every text.

    SentencePiece merges characters and falls back to bytes at the end; tiktoken merges bytes. To make it put
    characters together first, the beginnings of every multi-byte character get the lowest ranks after the bytes, then
    the characters, and then come all longer pieces by their score. A beginning that is left over is spelled in bytes.
    """
    pieces = []  # (text, score, type) by id
    settings = {
        2: {},
        3: {},
    }  # how it was trained, and how text is made ready for it: fields by their numbers
    for number, message in protobuf(content):
        if number == 1:
            piece = dict(protobuf(message))
            score = struct.unpack("<f", piece[2])[0] if 2 in piece else 0.0
            pieces.append((piece[1].decode("utf-8"), score, piece.get(3, NORMAL)))
        elif number in settings:
            settings[number] = dict(protobuf(message))
    trained, made_ready = settings[2], settings[3]
    refused = {
        "another model than BPE": trained.get(3, 1) != 2,
        "normalization": made_ready.get(2),
        "spaces that are not escaped": not made_ready.get(5, 1),
        "white space as a suffix": trained.get(24),
        "pieces of the user's with a space": any(
            k == USER_DEFINED and re.search("[ ▁]", text) for text, _, k in pieces
        ),
        "scores that are no numbers": not all(math.isfinite(score) for _, score, _ in pieces),
    }
    for what, asked in refused.items():
        if asked or not pieces:
            raise ValueError(
                f"only SentencePiece BPE is implemented, and not {what if pieces else 'without pieces'}"
            )
    byte_id = {int(text[1:-1], 16): i for i, (text, _, kind) in enumerate(pieces) if kind == BYTE}
    if len(byte_id) < 256:
        raise ValueError("a vocabulary with all 256 bytes is wanted (byte_fallback)")

    normal = [
        (text.replace("▁", " "), score, i)
        for i, (text, score, kind) in enumerate(pieces)
        if kind == NORMAL
    ]
    id_of = {text.encode("utf-8"): i for text, _, i in normal}
    characters = [text.encode("utf-8") for text, _, _ in normal if len(text) == 1]
    beginnings = dict.fromkeys(c[:n] for c in characters for n in range(2, len(c)))
    longer = [
        text.encode("utf-8")
        for text, score, i in sorted(normal, key=lambda x: (-x[1], x[2]))
        if len(text) > 1
    ]
    in_order = (
        [bytes([b]) for b in range(256)]
        + list(beginnings)
        + [c for c in characters if len(c) > 1]
        + longer
    )
    # No piece has a space after anything else, and few characters are in any longer piece at all (digits, say, are in
    # none): cutting there changes nothing, and short stretches are merged much faster.
    merging = re.escape(
        "".join(sorted({c for text, _, _ in normal if len(text) > 1 for c in text} - {" "}))
    )

    whole = {text: i for i, (text, _, kind) in enumerate(pieces) if kind == USER_DEFINED}
    content_of = {
        i: text.encode("utf-8") for text, i in [*((t, i) for t, _, i in normal), *whole.items()]
    }
    content_of |= {i: bytes([b]) for b, i in byte_id.items()}
    special = {text: i for i, (text, _, kind) in enumerate(pieces) if kind == CONTROL}
    begin, end = (trained.get(n, name).decode("utf-8") for n, name in ((46, b"<s>"), (47, b"</s>")))
    prefix, squeeze = (" " if made_ready.get(3, 1) else ""), made_ready.get(4, 1)

    def ready(text):
        text = re.sub(" +", " ", text).strip(" ") if squeeze else text
        text = (prefix if text else "") + text.replace("▁", " ")
        return text.rstrip(" ") if squeeze else text

    return Vocabulary(
        ranks={b: rank for rank, b in enumerate(in_order)},
        pattern=rf" +[{merging}]*|[{merging}]+|[^ ]",
        ids=[id_of.get(b, byte_id[b[0]]) for b in in_order],
        pieces=[content_of.get(i, b"") for i in range(len(pieces))],
        bos_id=special.get(begin),
        eos_id=special.get(end),
        ends={*special.values()},
        spelled={
            256 + n: [byte_id[b] for b in beginning] for n, beginning in enumerate(beginnings)
        },
        whole=whole,
        ready=ready,
        trim=lambda text: text.lstrip(" ") if squeeze else text.removeprefix(prefix),
    )


def read_tekken(file):
    """The content of a tekken.json -> Vocabulary. Special tokens come first: an id is a rank plus their number."""
    wanted = {"default_num_special_tokens": int, "default_vocab_size": int, "pattern": str}
    check(file, {"config": wanted, "vocab": [{"rank": int, "token_bytes": str}]})
    config = file["config"]
    n_special, size = config["default_num_special_tokens"], config["default_vocab_size"]
    if not 0 <= n_special <= size <= MOST_IDS:
        raise ValueError(f"{size} tokens, {n_special} of them special, are no vocabulary")
    words = sorted(file["vocab"], key=lambda word: word["rank"])[: size - n_special]
    in_order = [base64.b64decode(word["token_bytes"], validate=True) for word in words]
    if [word["rank"] for word in words] != list(range(len(words))):
        raise ValueError("ranks are not 0, 1, 2, ...")
    special = file.get("special_tokens") or []
    check(special, [{"token_str": str, "rank": int}], "special_tokens")
    names = {token["token_str"]: token["rank"] for token in special}
    return Vocabulary(
        ranks={b: rank for rank, b in enumerate(in_order)},
        pattern=config["pattern"],
        ids=range(n_special, n_special + len(in_order)),
        pieces=[b""] * n_special + in_order,
        bos_id=names.get("<s>", 1),
        eos_id=names.get("</s>", 2),
        ends={*range(n_special)},
    )


MOST_IDS = 2**22  # more than any vocabulary has

GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Digits are cut out one by one before GPT-2's pattern sees the text: so it finds the text's end before each of them.
GPT2_DIGITS = r"'(?:[sdmt]|ll|ve|re)|\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"
BEGIN, END = (
    ("<s>", "<|begin_of_text|>", "<|endoftext|>"),
    ("</s>", "<|end_of_text|>", "<|endoftext|>"),
)


def read_byte_bpe(file):
    """The content of a tokenizer.json of Hugging Face, byte-level BPE -> Vocabulary."""
    check(file, {"model": {"type": str}})
    model, added = file["model"], file.get("added_tokens") or []
    for name in ("byte_fallback", "dropout", "end_of_word_suffix", "continuing_subword_prefix"):
        if model.get(name):
            raise ValueError(f"{name} is not implemented")
    normalizers = flat(file.get("normalizer"), "normalizers")
    if model["type"] != "BPE" or any(kind != {"type": "NFC"} for kind in normalizers):
        raise ValueError("only byte-level BPE, without a normalizer but NFC, is implemented")
    check(model, {"vocab": dict, "merges": list}, "the model")
    check(added, [{"content": str, "id": int}], "added_tokens")
    names = {**model["vocab"], **{token["content"]: token["id"] for token in added}}
    as_text = {token["content"]: token["id"] for token in added if not token.get("special", True)}
    for token in added:
        for flag in ("lstrip", "rstrip", "single_word", *["normalized"] * bool(normalizers)):
            if token["content"] in as_text and token.get(flag):
                raise ValueError(
                    f"{flag} of the added token {token['content']!r} is not implemented"
                )
    size = 1 + max((i for i in names.values() if type(i) is int), default=-1)
    if len(set(names.values())) < len(names) or not all(
        type(i) is int and i >= 0 for i in names.values()
    ):
        raise ValueError("its ids are not whole numbers of which each is given once")
    if size > MOST_IDS:
        raise ValueError(f"the id {size - 1} is beyond any vocabulary")

    byte_of = {char: bytes([b]) for b, char in byte_characters().items()}
    special = {token["content"]: token["id"] for token in added if token["content"] not in as_text}
    content_of = {i: text.encode("utf-8") for text, i in as_text.items()}
    words = {i: text for text, i in names.items() if text not in special and text not in as_text}
    content_of |= {i: b"".join(byte_of[c] for c in text) for i, text in words.items()}
    id_of = {content_of[i]: i for i in words}
    merges = (pair.split(" ") if isinstance(pair, str) else pair for pair in model["merges"])
    merged = (b"".join(byte_of[c] for c in left + right) for left, right in merges)
    in_order = list(dict.fromkeys([*(bytes([b]) for b in range(256)), *merged]))
    lacking = {
        rank: [] for rank, b in enumerate(in_order[:256]) if b not in id_of
    }  # bytes that text has no use for
    if model.get("unk_token") and not lacking.keys() <= NO_UTF8:
        raise ValueError("unk_token, for bytes that are not in the vocabulary, is not implemented")
    if model.get("ignore_merges") and not id_of.keys() <= set(in_order):
        raise ValueError("ignore_merges, with words that no merge makes, is not implemented")
    return Vocabulary(
        ranks={b: rank for rank, b in enumerate(in_order)},
        pattern=split_pattern(file.get("pre_tokenizer")),
        ids=[0 if rank in lacking else id_of[b] for rank, b in enumerate(in_order)],
        pieces=[content_of.get(i, b"") for i in range(size)],
        bos_id=next((names[name] for name in BEGIN if name in names), None),
        eos_id=next((names[name] for name in END if name in names), None),
        ends={*special.values()},
        spelled=lacking,
        whole=as_text,
        normal=partial(unicodedata.normalize, "NFC") if normalizers else str,
    )


NO_UTF8 = {0xC0, 0xC1, *range(0xF5, 0x100)}  # bytes that are in no text


def flat(section, name):
    """The steps of a section of a tokenizer.json, which may be one, a Sequence of them, or none."""
    return section.get(name, [section]) if section else []


def split_pattern(pre_tokenizer):
    """The regular expression that does what a tokenizer.json's pre_tokenizer section says. Raises ValueError."""
    steps = flat(pre_tokenizer, "pretokenizers") or [{}]
    kinds = [step.get("type") for step in steps]
    last = steps[-1]
    if kinds[-1] == "ByteLevel" and not last.get("add_prefix_space"):
        if kinds == ["ByteLevel"] and last.get("use_regex", True):
            return GPT2
        if (
            kinds == ["Digits", "ByteLevel"]
            and steps[0].get("individual_digits")
            and last.get("use_regex", True)
        ):
            return GPT2_DIGITS
        split = steps[0]
        if (
            kinds == ["Split", "ByteLevel"]
            and not last.get("use_regex", True)
            and "Regex" in split["pattern"]
        ):
            if split.get("behavior") == "Isolated" and not split.get("invert"):
                return whole_pattern(split["pattern"]["Regex"])
    raise ValueError(
        f"its way of splitting text ({' then '.join(map(str, kinds))}) is not implemented"
    )


def whole_pattern(pattern):
    """A pattern of a Split: what lies between its matches is a piece, too."""
    return pattern if covers_all(pattern) else rf"(?:{pattern})|(?:(?!{pattern})[\s\S])+"


def covers_all(pattern):
    """Is each character of a text in some match? Raises ValueError if a match may be empty."""
    if matched(rf"x(?:{pattern})$", "x"):
        raise ValueError(
            f"its way of splitting text, {pattern[:60]!r}, matches nothing at all and so loses some"
        )
    return matched(pattern, PROBE) == PROBE


def matched(pattern, text):
    """What of a text is in matches."""
    bytes_alone = {bytes([b]): b for b in range(256)}
    encoding = tiktoken.Encoding(
        "probe", pat_str=pattern, mergeable_ranks=bytes_alone, special_tokens={}
    )
    return encoding.decode(encoding.encode_ordinary(text))


PROBE = string.printable + "\x00 é e\u0301 ß漢字 กำ\u00a0\u2003 ½²ⅷ٣ €„“—\u200b🙂👩\u200d👧 x\ufffd"


def byte_characters():
    """GPT-2's printable character for each byte: {byte: character}. Its own where it has a visible one, else one from
    U+0100 on, in order."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in visible]
    return {b: chr(b) for b in visible} | {b: chr(256 + n) for n, b in enumerate(hidden)}
