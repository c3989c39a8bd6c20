"""Text to token ids and back. A tokenizer has encode, decode, vocab_size and to_json; from_json makes it again."""


class CharTokenizer:
    """One id for each character of a fixed alphabet, in its order."""

    def __init__(self, alphabet):
        if not alphabet or len(set(alphabet)) != len(alphabet):
            raise ValueError(f"an alphabet has each character once, unlike {alphabet!r}")
        self.alphabet = alphabet
        self.id = {char: i for i, char in enumerate(alphabet)}
        self.vocab_size = len(alphabet)

    def encode(self, text):
        """Ids of a text, a list. Raises ValueError on a character outside of the alphabet."""
        try:
            return [self.id[char] for char in text]
        except KeyError as error:
            raise ValueError(f"the character {error} is not in this model's alphabet: {self.alphabet!r}") from None

    def decode(self, ids):
        return "".join(self.alphabet[i] for i in ids)

    def to_json(self):
        return {"kind": "char", "alphabet": self.alphabet}


def from_json(description):
    """The tokenizer that to_json described. Raises ValueError."""
    if not isinstance(description, dict) or description.get("kind") != "char":
        raise ValueError(f"unknown tokenizer: {description!r}")
    return CharTokenizer(description["alphabet"])
