"""
Thinking in a batch, each row at its own pace.

Where few rows think, the others would wait for them: a thought of m tokens takes m + 2 forward passes, and a pass over
three rows costs nearly as much as one over thirty. Here nobody waits. Each pass reads one token of every row, of its
text or of its thought. A row that thinks falls behind, and has more to read when others are done.

  generate_at_own_pace(quiet, tokens, new, how_long, ..)
    ==  generate_with_thoughts(quiet, tokens, new, .., think=some_think(how_long))              (beyond/adaptive.py)
"""

import torch

from model import KVCache, attention, causal_mask, sample

TEXT = -1  # the step of a row that reads its text; those of a thought: 0 start, 1 .. length its tokens, and its end


class OwnPaceCache(KVCache):
    """A KVCache whose rows each write where they stand: token i of a text at i, and step s of a thought behind it at
    i + 1 + s, where the text's next tokens will be written over it. So places are position ids."""

    at = None  # (B,) the place of each row; None: all read on together, as in a KVCache

    def __init__(self, *args):
        super().__init__(*args)
        for x in (self.k, self.v):  # what a row has not reached others may have: 0 * nan would be nan
            x.zero_()

    def read(self, model, x, at):
        """One forward pass over a token of each row, x (B, C) at places (B,): h (B, C)."""
        self.at, self.rows = at, torch.arange(len(at), device=at.device)
        places = torch.arange(int(at.max()) + 1, device=at.device)
        mask = causal_mask(at[:, None], places, model.config.sliding_window)[:, None]  # (B, 1, 1, places)
        return model(x[:, None], at[:, None], mask, self)[:, 0]

    def attend(self, layer, q, k, v, mask):
        if self.at is None:
            return super().attend(layer, q, k, v, mask)
        self.k[layer, self.rows, :, self.at] = k[:, :, 0]
        self.v[layer, self.rows, :, self.at] = v[:, :, 0]
        return attention(q, *(x[layer, :, :, : mask.shape[-1]] for x in (self.k, self.v)), mask)

    def keep(self, rows):
        """Forget all rows but these."""
        self.k, self.v = self.k[:, rows], self.v[:, rows]


@torch.no_grad()
def generate_at_own_pace(
    quiet, tokens, max_new_tokens, how_long, temperature=1.0, thought_temperature=0.0, generator=None,
    lengths=None, stop=None, begin=None,
):  # fmt: skip
    """As quiet_star.generate_with_thoughts, where rows think so long as how_long says (see beyond/adaptive.py). A row
    that has ended, by `stop`, is not read on: behind its end its last token is repeated."""
    model, (B, T), m, embed = quiet.model, tokens.shape, quiet.config.thought_len, quiet.model.tok_embeddings
    lengths = torch.full((B,), T, device=tokens.device) if lengths is None else lengths
    total, first = T + max_new_tokens, int(lengths.min()) if begin is None else begin
    if max_new_tokens < 1 or not 1 <= first <= int(lengths.min()):
        raise ValueError(
            f"max_new_tokens must be at least 1, begin from 1 to the shortest prompt's {int(lengths.min())}"
        )
    cache = OwnPaceCache(model.config, B, total + m + 2, tokens.device, embed.weight.dtype)
    out = torch.cat((tokens, tokens.new_zeros(B, max_new_tokens)), dim=1)
    thoughts, gates = tokens.new_full((B, total, m + 1), -1), cache.k.new_zeros(B, total)  # column m: no one's
    start, end = quiet.thought_tokens()

    h = model(tokens[:, :first], cache=cache)[:, -1]  # (rows, C) after what each row has read last:
    row = torch.arange(B, device=tokens.device)  # .. of which row
    at = torch.full_like(row, first - 1)  # .. its last token of text
    step, length, h_base = torch.full_like(row, TEXT), torch.zeros_like(row), h
    ends = torch.full_like(row, total)  # where each row's text is over
    while True:
        reads = step == TEXT
        h_base, length = torch.where(reads[:, None], h, h_base), torch.where(reads, how_long(h), length)
        over = torch.where(reads, length < 0, step > length)  # no thought is to come, or its end is read
        x = torch.where((step == length)[:, None], end, start).to(h.dtype)  # what each row reads next
        said = (~over & (step >= 0) & (step < length)).nonzero()[:, 0]
        if len(said):
            token = sample(model.logits(h[said]), thought_temperature, generator=generator)
            thoughts[row[said], at[said] + 1, step[said]] = token
            x[said] = quiet.next_input(h[said, None], embed(token[:, None]))[:, 0]
        begins = (~over & reads).nonzero()[:, 0]
        thoughts[row[begins], at[begins] + 1] = -2
        step = torch.where(over, TEXT, step + 1)

        speaks = over.nonzero()[:, 0]
        if len(speaks):
            h_mixed, place = h_base[speaks], at[speaks] + 1
            thought = (~reads[speaks]).nonzero()[:, 0]
            if len(thought):
                among = speaks[thought]
                h_mixed[thought], gates[row[among], place[thought]] = quiet.talk(h_base[among], h[among])
            free = (place >= lengths[row[speaks]]).nonzero()[:, 0]  # not given by its prompt
            if len(free):
                token = sample(model.logits(h_mixed[free]), temperature, generator=generator)
                out[row[speaks[free]], place[free]] = token
            x[speaks], at[speaks] = embed(out[row[speaks], place]), place
            done = place + 1 >= total
            if stop is not None:
                done |= ended(out, row[speaks], place + 1, lengths, stop)
            if done.any():
                ends[row[speaks[done]]] = place[done] + 1
                go_on = torch.ones_like(over).index_fill_(0, speaks[done], False).nonzero()[:, 0]
                row, at, step, length, h_base, x = (y[go_on] for y in (row, at, step, length, h_base, x))
                cache.keep(go_on)
        if not len(row):
            break
        h = cache.read(model, x, torch.where(step == TEXT, at, at + 1 + step))
    most = int(ends.max())
    inside = torch.minimum(torch.arange(most, device=tokens.device), ends[:, None] - 1)
    return out.gather(1, inside), thoughts[:, first:most, :m], gates[:, first:most]


def ended(out, rows, ends, lengths, stop):
    """Which of some rows of out (B, total), whose text goes to `ends`, end there by stop's judgement."""
    texts = zip(out[rows].tolist(), lengths[rows].tolist(), ends.tolist(), strict=True)
    return torch.tensor([end > n and bool(stop(text[n:end])) for text, n, end in texts], device=out.device)
