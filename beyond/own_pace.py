"""
Thinking in a batch, each row at its own pace.

Where few rows think, the others would wait for them: a thought of m tokens takes m + 2 forward passes, and a pass over
three rows costs nearly as much as one over thirty. Here nobody waits. Each pass reads one token of every row, of its
text or of its thought. A row that thinks falls behind, and has more to read when others are done.

  generate_at_own_pace(quiet, tokens, new, how_long, ..)
    ==  generate_with_thoughts(quiet, tokens, new, .., think=some_think(how_long))              (beyond/adaptive.py)
"""

from dataclasses import dataclass, field

import torch

from model import KVCache, attention, causal_mask, sample

TEXT = -1  # the step of a row that reads its text; those of a thought: 0 start, 1 .. length its tokens, and its end


class OwnPaceCache(KVCache):
    """A KVCache whose rows each write where they stand: token i of a text at i, and step s of a thought behind it at
    i + 1 + s, where the text's next tokens will be written over it. So places are position ids."""

    at = None  # (B,) the place of each row; None: all read on together, as in a KVCache

    def __init__(self, *args):
        super().__init__(*args)
        for x in (
            self.k,
            self.v,
        ):  # what a row has not reached others may have: 0 * nan would be nan
            x.zero_()

    def read(self, model, x, at):
        """One forward pass over a token of each row, x (B, C) at places [B]: h (B, C)."""
        self.at, self.rows = (
            torch.tensor(at, device=x.device),
            torch.arange(len(at), device=x.device),
        )
        places = torch.arange(max(at) + 1, device=x.device)
        mask = causal_mask(self.at[:, None], places, model.config.sliding_window)[
            :, None
        ]  # (B, 1, 1, places)
        return model(x[:, None], self.at[:, None], mask, self)[:, 0]

    def attend(self, layer, q, k, v, mask):
        if self.at is None:
            return super().attend(layer, q, k, v, mask)
        self.k[layer, self.rows, :, self.at] = k[:, :, 0]
        self.v[layer, self.rows, :, self.at] = v[:, :, 0]
        return attention(q, *(x[layer, :, :, : mask.shape[-1]] for x in (self.k, self.v)), mask)

    def keep(self, rows):
        """Forget all rows but these."""
        self.k, self.v = self.k[:, rows], self.v[:, rows]


@dataclass
class Row:
    """Where a row of the batch stands."""

    number: int
    text: list  # its tokens so far
    prompt: int  # how many of them were given
    at: int  # place of the last one that it has read
    step: int = TEXT  # of its thought
    length: int = -1  # of its thought
    h_base: torch.Tensor | None = None  # (C,) before its thought
    thoughts: list = field(
        default_factory=list
    )  # before each token, as generate_with_thoughts returns them


@torch.no_grad()
def generate_at_own_pace(
    quiet, tokens, max_new_tokens, how_long, temperature=1.0, thought_temperature=0.0, generator=None,
    lengths=None, stop=None, begin=None,
):  # fmt: skip
    """As quiet_star.generate_with_thoughts, where rows think so long as how_long says (see beyond/adaptive.py). A row
    that has ended, by `stop`, is not read on: behind its end its last token is repeated."""
    model, (B, T), m = quiet.model, tokens.shape, quiet.config.thought_len
    prompts = [T] * B if lengths is None else lengths.tolist()
    total, first = T + max_new_tokens, min(prompts) if begin is None else begin
    if max_new_tokens < 1 or not 1 <= first <= min(prompts):
        raise ValueError(
            f"max_new_tokens must be at least 1, begin from 1 to the shortest prompt's {min(prompts)}"
        )
    cache = OwnPaceCache(
        model.config, B, total + m + 2, tokens.device, model.tok_embeddings.weight.dtype
    )
    marks, gates = (
        [x.to(cache.k.dtype) for x in quiet.thought_tokens()],
        cache.k.new_zeros(B, total),
    )

    def say(which, temperature):
        """What some of the rows say next: [id]."""
        return (
            sample(model.logits(some(h, which)), temperature, generator=generator).tolist()
            if which
            else []
        )

    everyone = [
        Row(b, row[:n], n, first - 1)
        for b, (row, n) in enumerate(zip(tokens.tolist(), prompts, strict=True))
    ]
    rows, h = (
        everyone,
        model(tokens[:, :first], cache=cache)[:, -1],
    )  # h (rows, C): after what each has read last
    while rows:
        choose_lengths(rows, h, how_long, m)
        over = [
            i
            for i, row in enumerate(rows)
            if (row.length < 0 if row.step == TEXT else row.step > row.length)
        ]
        mix(
            quiet, rows, h, [i for i in over if rows[i].step != TEXT], gates
        )  # those that have read their end
        speaks = [i for i in over if rows[i].at + 1 == len(rows[i].text)]  # else its prompt does
        for i, token in zip(speaks, say(speaks, temperature), strict=True):
            rows[i].text.append(token)
        thinks = [i for i, row in enumerate(rows) if 0 <= row.step < row.length]
        for i, token in zip(thinks, say(thinks, thought_temperature), strict=True):
            rows[i].thoughts[-1][rows[i].step] = token
        x = next_inputs(quiet, rows, h, over, thinks, marks)

        done = {
            i
            for i in speaks
            if len(rows[i].text) == total or stop and stop(rows[i].text[rows[i].prompt :])
        }
        if done:
            go_on = [i for i in range(len(rows)) if i not in done]
            rows, x = [rows[i] for i in go_on], x[go_on]
            cache.keep(go_on)
        if rows:
            h = cache.read(model, x, [row.at + 1 + row.step for row in rows])
    most = max(len(row.text) for row in everyone)
    texts = [row.text + row.text[-1:] * (most - len(row.text)) for row in everyone]
    thoughts = [row.thoughts + [[-1] * m] * (most - first - len(row.thoughts)) for row in everyone]
    as_tensor = dict(dtype=torch.long, device=tokens.device)
    return (
        torch.tensor(texts, **as_tensor),
        torch.tensor(thoughts, **as_tensor),
        gates[:, first:most],
    )


def some(h, which):
    """Of h (rows, C) some rows: h itself, if that is all."""
    return h if len(which) == len(h) else h[which]


def choose_lengths(rows, h, how_long, m):
    """Rows that have just read a token of their text choose how long to think."""
    reading = [i for i, row in enumerate(rows) if row.step == TEXT]
    if reading:
        for i, n in zip(reading, how_long(some(h, reading)).tolist(), strict=True):
            rows[i].length, rows[i].h_base = n, h[i]
            rows[i].thoughts.append([-1 if n < 0 else -2] * m)


def mix(quiet, rows, h, which, gates):
    """Some rows have read the end of their thought: their h becomes h_mixed, in place; their gates are noted."""
    if which:
        h[which], gate = quiet.talk(torch.stack([rows[i].h_base for i in which]), h[which])
        gates[[rows[i].number for i in which], [rows[i].at + 1 for i in which]] = gate


def next_inputs(quiet, rows, h, over, thinks, marks):
    """What each row reads next, (rows, C): the next token of its text (`over`: no thought goes on), start, the token of
    its thought that it has just said (`thinks`), or end; marks: start and end. Moves the rows to there."""
    ids = [0] * len(rows)
    for row in rows:
        row.step += 1
    for i in thinks:
        ids[i] = rows[i].thoughts[-1][rows[i].step - 1]
    for i in over:
        rows[i].at, rows[i].step = rows[i].at + 1, TEXT
        ids[i] = rows[i].text[rows[i].at]
    x = quiet.model.tok_embeddings(torch.tensor(ids, device=h.device))
    if thinks:
        x[thinks] = quiet.next_input(h[thinks, None], x[thinks, None])[:, 0]
    starts = [i for i, row in enumerate(rows) if row.step == 0]
    ends = [i for i, row in enumerate(rows) if row.step == row.length + 1 > 0]
    for vector, which in zip(marks, (starts, ends), strict=True):
        if which:
            x[which] = vector
    return x
