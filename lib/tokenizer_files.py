"""
Tokenizer files of byte-level BPE, read into the arguments of a BPETokenizer (lib/tokenizer.py), so
that it gives the ids of the library they were made for. What is not implemented is refused.
"""

import base64
import json
import unicodedata

from lib.files import check, read_json

GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"
# Digits are cut out one by one before GPT-2's pattern is applied, so that it finds the end of a
# text in front of each.
GPT2_DIGITS = r"'(?:[sdmt]|ll|ve|re)|\p{N}| ?\p{L}+| ?[^\s\p{L}\p{N}]+|\s+(?=\p{N})|\s+(?!\S)|\s+"
KNOWN = {  # names of the tokens that begin and end a text, where nothing else says them
    "bos_token": ("<s>", "<|begin_of_text|>", "<|endoftext|>"),
    "eos_token": ("</s>", "<|end_of_text|>", "<|endoftext|>"),
}


def read_tekken(file):
    """The content of a tekken.json, of Mistral -> arguments of a BPETokenizer, a dict. An id is a
    rank plus the number of special tokens, which have the first ids. Raises ValueError."""
    sizes = {"default_num_special_tokens": int, "default_vocab_size": int, "pattern": str}
    check(file, {"config": sizes, "vocab": [{"rank": int, "token_bytes": str}]})
    special = range(file["config"]["default_num_special_tokens"])
    ids = range(len(special), file["config"]["default_vocab_size"])
    word_of = {entry["rank"]: base64.b64decode(entry["token_bytes"]) for entry in file["vocab"]}
    words = [word_of[i - len(special)] for i in ids]
    return {
        "ranks": dict(zip(words, ids, strict=True)),
        "pattern": file["config"]["pattern"],
        "pieces": dict(zip(ids, words, strict=True)),
        "vocab_size": file["config"]["default_vocab_size"],
        "bos_id": 1,
        "eos_id": 2,
        "special": special,
    }


def read_byte_bpe(file, folder):
    """The content of a tokenizer.json of Hugging Face (GPT-2, SmolLM2, Llama 3, Qwen2) in a folder
    -> arguments of a BPETokenizer, a dict. Raises ValueError."""
    added = [{"content": str, "id": int}]
    check(file, {"model": {"vocab": {str: int}, "merges": list}, "added_tokens": added})
    vocab, normalizer = file["model"]["vocab"], file["normalizer"]
    if normalizer not in (None, {"type": "NFC"}):
        raise ValueError(f"the normalizer {normalizer} is not implemented")
    added = {token["content"]: token for token in file["added_tokens"]}
    names = vocab | {name: token["id"] for name, token in added.items()}
    special = {name: names[name] for name in added if added[name].get("special", True)}
    begin_end = begin_and_end(folder, names, special)
    bos = begin_end["bos_token"]
    special |= {name: names[name] for name in begin_end.values() if name is not None}
    text = {name: names[name] for name in added if name not in special}
    for name in text:
        odd = any(added[name].get(how) for how in ("single_word", "lstrip", "rstrip"))
        if odd or any(x.startswith(name) for x in text.keys() - {name}):
            raise ValueError(f"how the added token {name!r} is cut out is not implemented")
    byte_of = {char: bytes([b]) for b, char in byte_characters().items()}
    words = {word: i for word, i in vocab.items() if word not in special | text}
    pieces = {i: b"".join(byte_of[char] for char in word) for word, i in words.items()}
    pieces |= {i: word.encode("utf-8") for word, i in text.items()}
    ranks = {byte: words[char] for char, byte in byte_of.items() if char in words}
    # A merge is ["a", "b"], or "a b" in older files: no word has a space, whose character is Ġ.
    merges = ["".join(pair).replace(" ", "") for pair in file["model"]["merges"]]
    merged = list(dict.fromkeys(words[word] for word in merges))
    if merged != sorted(merged):
        raise ValueError("merges in another order than that of their ids are not implemented")
    return {
        "ranks": ranks | {pieces[i]: i for i in merged},
        "pattern": split_pattern(file["pre_tokenizer"]),
        "pieces": pieces,
        "lacks": b"".join(byte for byte in byte_of.values() if byte not in ranks),
        "vocab_size": 1 + max(names.values()),
        "bos_id": names.get(bos),
        "begins": json.dumps(bos) in json.dumps(file.get("post_processor")),
        "eos_id": names.get(begin_end["eos_token"]),
        "special": special.values(),
        "names": begin_end,
        "added": text,
        "normalize": (lambda text: unicodedata.normalize("NFC", text)) if normalizer else str,
    }


def begin_and_end(folder, names, special):
    """{"bos_token": the name of the token that begins a text, or None, "eos_token": that ends it}.
    tokenizer_config.json says the names, or else config.json the ids, if these are special; where
    neither does, names that are known are looked for. names, special: {name: id}."""
    named, numbered = (
        read_json(folder / file) if (folder / file).exists() else {}
        for file in ("tokenizer_config.json", "config.json")
    )
    name_of, found = {i: name for name, i in special.items()}, {}
    for kind, known in KNOWN.items():
        i = numbered.get(f"{kind}_id")
        name = name_of.get(i[0] if isinstance(i, list) else i)  # several may end a text
        name = name or next((name for name in known if name in names), None)
        name = named.get(kind, name)
        found[kind] = name["content"] if isinstance(name, dict) else name
    return found


def split_pattern(section):
    """The regular expression that does what the pre_tokenizer section of a tokenizer.json says.
    Raises ValueError."""
    steps = section.get("pretokenizers", [section])
    kinds, first = [step.get("type") for step in steps], steps[0]
    if kinds[-1] == "ByteLevel" and not steps[-1].get("add_prefix_space"):
        gpt2 = steps[-1].get("use_regex", True)
        if kinds == ["ByteLevel"] and gpt2:
            return GPT2
        if kinds == ["Digits", "ByteLevel"] and gpt2 and first["individual_digits"]:
            return GPT2_DIGITS
        if kinds == ["Split", "ByteLevel"] and not gpt2 and first["behavior"] == "Isolated":
            pattern = first["pattern"]["Regex"]
            return rf"(?:{pattern})|(?:(?!{pattern})[\s\S])+"  # the text between matches, too
    raise ValueError(f"the pre_tokenizer {kinds} is not implemented with these settings")


def byte_characters():
    """GPT-2's printable character for each byte, {byte: character}: the byte's own where that is
    visible, else one from U+0100 on, in order."""
    visible = [*range(33, 127), *range(161, 173), *range(174, 256)]
    hidden = [b for b in range(256) if b not in visible]
    return {b: chr(b) for b in visible} | {b: chr(256 + n) for n, b in enumerate(hidden)}
