"""
Reading the bytes of a protocol-buffer message, which is what a SentencePiece tokenizer.model is.
"""


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
