"""
Asking a model: how likely is this end of a text, and what would it write?

  who = candidate(model, thinking=True)                          or False: the same model without its thoughts
  score(who, tokenizer, [("2+2=", "4"), ...])                    [(log p, is it what it would say?), ...]
  complete(who, tokenizer, ["2+2=", ...], stop=["\\n"])          [(text, thought before its first token), ...]
  for said in think_aloud(model, tokenizer, "2+2="): ...         one text, token by token: text, thought, gate
"""

from dataclasses import dataclass
from typing import NamedTuple

import torch
from beyond.own_pace import generate_at_own_pace
from lean.tensors import padded, take
from tqdm import tqdm

from beyond.adaptive import some_think
from beyond.any_length import at_length
from lib.tokenizer import before_end, has_ended
from model import KVCache, sample
from quiet_star import QuietSTaR, generate_with_thoughts


@dataclass
class Candidate:
    """A model that is asked: two functions, so that anything can be in its place."""

    predict: callable  # tokens (B, T), positions (B, S) -> logits (B, S, V) of the token after each position
    generate: callable  # tokens (B, T), lengths (B,), new, temperature, generator, stop -> tokens, thoughts (or None)
    device: torch.device | str = "cpu"  # where its tokens are wanted


def candidate(model, thinking, how_long=None, temperature=0.0, seed=1337):
    """A Transformer, or a QuietSTaR with or without its thoughts: one per position (section 5).

    how_long      for how many tokens, see beyond/adaptive.py: a function of hidden states (..., C); None: as it can
    temperature   of the thoughts: 0, as the paper evaluates, takes the likeliest; else they are drawn by the seed
    """
    noise = torch.Generator().manual_seed(seed)
    plain = model.model if isinstance(model, QuietSTaR) else model

    @torch.no_grad()
    def predict(tokens, positions):
        if (
            thinking
        ):  # only where an answer is read off: no other position's thought can matter to it
            quiet = model.with_settings(n_thoughts=1, n_true=1, thought_temperature=temperature)
            drawn = torch.rand(
                len(tokens), 1, positions.shape[1], quiet.config.thought_len, generator=noise
            )
            thoughts = quiet.think(tokens, positions=positions, noise=drawn.to(tokens.device))
            hidden, h_base = (
                quiet.talk(thoughts.h_base, thoughts.h_thought)[0][:, 0],
                thoughts.h_base[:, 0, :, 0],
            )
            hidden = (
                hidden[:, :, -1]
                if how_long is None
                else at_length(hidden, h_base, how_long(h_base))
            )
        else:
            hidden = take(plain(tokens), positions)
        return plain.logits(hidden)

    def generate(tokens, lengths, new, of_text, generator, stop):
        more = dict(temperature=of_text, generator=generator, lengths=lengths, stop=stop)
        if not thinking:
            return plain.generate(tokens, new, **more), None
        more |= dict(thought_temperature=temperature)
        if how_long is None:
            return generate_with_thoughts(model, tokens, new, **more)[:2]
        return generate_at_own_pace(model, tokens, new, how_long, **more)[:2]

    return Candidate(predict, generate, next(model.parameters()).device)


def likelihood(logits, true):
    """(log p of the true ids (n,), is each of them the likeliest?) by logits (n, V)."""
    log_p = logits.log_softmax(-1).gather(-1, true[:, None])
    return float(log_p.sum()), bool((logits.argmax(-1) == true).all())


def score(who, tokenizer, pairs, judge=likelihood, bos=False, batch_size=32, title="scoring"):
    """[judge(logits, ids of the continuation)] of pairs (context, continuation) of texts, in their order. bos: begin
    with the token that begins a text. Raises ValueError if a token would span context and continuation."""
    rows = [continuation(tokenizer, context, text, bos) for context, text in pairs]
    return predict_ends(who, rows, judge, batch_size, who.device, title)


def complete(
    who,
    tokenizer,
    prompts,
    stop=(),
    new=16,
    temperature=0.0,
    seed=1337,
    bos=False,
    batch_size=32,
    title="writing",
):
    """What a model writes after each prompt, in their order: [(text, the thought before its first token or None)].

    stop   texts of which the first ends it (it is not part of what is returned), or a function of the text so far:
           does it end here? White space at the beginning does not count
    new    tokens at most;  temperature: 0 takes the likeliest
    """

    def ends_at(text):
        return min(
            (at for s in stop if (at := text.find(s, len(text) - len(text.lstrip()))) >= 0),
            default=None,
        )

    ended = stop if callable(stop) else lambda text: ends_at(text) is not None
    rows = [tokenizer.encode(prompt, bos) for prompt in prompts]
    options = (
        new,
        temperature,
        seed,
        lambda ids: ended(tokenizer.decode(ids)),
        batch_size,
        who.device,
        title,
    )
    written = write_answers(who, rows, tokenizer, *options)
    return (
        written
        if callable(stop)
        else [(text[: ends_at(text)], thought) for text, thought in written]
    )


class Said(NamedTuple):
    """A token that a model said."""

    text: str
    thought: str | None  # before it; None: it did not think
    gate: float  # how much the thought counted
    id: int


@torch.no_grad()
def think_aloud(
    model, tokenizer, prompt, max_new_tokens=20, temperature=0.0, thought_temperature=0.0, seed=1337, how_long=None,
    thinking=True,
):  # fmt: skip
    """Continue a prompt until the model ends the text, token by token as it speaks: yields Said. See
    quiet_star.generate_with_thoughts, which says the same for the same seed. Raises ValueError."""
    thinking, plain = (
        thinking and isinstance(model, QuietSTaR),
        model.model if isinstance(model, QuietSTaR) else model,
    )
    device = plain.tok_embeddings.weight.device
    new = torch.tensor([tokenizer.encode(prompt)], dtype=torch.long, device=device)
    if not new.numel():
        raise ValueError(f"to this model's tokenizer, the prompt {prompt!r} is nothing")
    total = new.shape[1] + max_new_tokens
    room = total + (model.config.thought_len + 2 if thinking else 0)
    cache = KVCache(plain.config, 1, room, device, plain.tok_embeddings.weight.dtype)
    generator, ids = torch.Generator(device).manual_seed(seed), []
    for length in range(new.shape[1], total):
        thought, gate = None, 0.0
        if thinking:
            h, thoughts, gates = some_think(how_long)(
                model, new, cache, thought_temperature, generator
            )
            cache.forget_after(length)  # the thought is over
            thoughts, gate = thoughts[0].tolist(), float(gates[0])
            thought = (
                None
                if -1 in thoughts
                else "".join(tokenizer.words([x for x in thoughts if x >= 0]))
            )
        else:
            h = plain(new, cache=cache)[:, -1]
        new = sample(plain.logits(h), temperature, generator=generator)[:, None]
        ids.append(int(new))
        if has_ended(tokenizer, ids[-1:]):
            return
        yield Said(tokenizer.words(ids)[-1], thought, gate, ids[-1])


def batches(lengths, size, spread=0.9):
    """Indices of rows to be read together: of like length (none below `spread` of the longest, for what is shorter
    would be padded), the longest first, so that what does not fit in memory is known at once."""
    order, start = sorted(range(len(lengths)), key=lambda i: -lengths[i]), 0
    while start < len(order):
        least = lengths[order[start]] * spread
        end = next((i for i in range(start, len(order)) if lengths[order[i]] < least), len(order))
        yield order[start : min(end, start + size)]
        start = min(end, start + size)


def continuation(tokenizer, prompt, text, bos):
    """Ids of prompt + text, and how many of them are the text's. Raises ValueError if a token spans the two."""
    before, ids = tokenizer.encode(prompt, bos), tokenizer.encode(prompt + text, bos)
    if ids[: len(before)] != before:
        raise ValueError(
            f"this tokenizer joins {prompt[-8:]!r} and {text[:8]!r} into one token: no score is defined"
        )
    return ids, len(ids) - len(before)


def predict_ends(who, rows, judge, batch_size, device, title):
    """rows: (ids, n), whose last n ids are to be predicted. [judge(logits (n, V), the true ids (n,))] by row.

    What is read behind a shorter row of a batch is seen by no token of it: attention is causal.
    """
    found = [None] * len(rows)
    with tqdm(total=len(rows), desc=title, leave=False, disable=None) as bar:
        for batch in batches([len(ids) for ids, _ in rows], batch_size):
            tokens, lengths = padded([rows[i][0] for i in batch], device)
            ends = torch.tensor([rows[i][1] for i in batch], device=device)
            n = torch.arange(int(ends.max()), device=device)
            first = lengths - ends - 1  # the position that predicts the first of them
            positions = first[:, None] + torch.minimum(
                n, ends[:, None] - 1
            )  # (B, S), the last one repeated
            logits = who.predict(tokens, positions)
            for row, i in enumerate(batch):
                ids, count = rows[i]
                found[i] = judge(
                    logits[row, :count].float(), torch.tensor(ids[-count:], device=device)
                )
            bar.update(len(batch))
    return found


def write_answers(who, rows, tokenizer, new, temperature, seed, stop, batch_size, device, title):
    """Let a model go on after each row of ids, until it ends the text or stop(its ids) says so: [(what it wrote, the
    thought before its first token or None)]."""
    found = [None] * len(rows)

    def ended(ids):
        return has_ended(tokenizer, ids) or stop(ids)

    generator = torch.Generator(device).manual_seed(seed)
    with tqdm(total=len(rows), desc=title, leave=False, disable=None) as bar:
        for batch in batches([len(row) for row in rows], batch_size):
            tokens, lengths = padded([rows[i] for i in batch], device)
            out, thoughts = who.generate(tokens, lengths, new, temperature, generator, ended)
            shortest = int(lengths.min())
            for row, i in enumerate(batch):
                n = len(rows[i])
                text = tokenizer.decode(before_end(tokenizer, out[row, n : n + new].tolist()))
                thought = [-1] if thoughts is None else thoughts[row, n - shortest].tolist()
                said = [
                    x for x in thought if x >= 0
                ]  # -1: it did not think; -2: the thought was over
                found[i] = text, None if -1 in thought else tokenizer.decode(said)
            bar.update(len(batch))
    return found
