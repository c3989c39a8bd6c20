"""
Thoughts at the answers of sums whose steps are left out, such as 3849=4: do they say the steps, and is the answer right
after them?
"""

import numpy as np
import torch

from data.arithmetic.prepare import running_sums
from data.dataset import open_dataset
from lib.tokenizer import from_json


def held_out_questions(data):
    """A corpus's tokenizer, and the `quiet_questions` of its held-out text."""
    dataset = open_dataset(data, "val")
    tokenizer = from_json(dataset.meta["tokenizer"], data)
    return tokenizer, *quiet_questions(dataset, tokenizer)


def quiet_questions(dataset, tokenizer, count=500, context=40):
    """The first lines of a text whose steps are left out, each with what stands before it: ids (count, context + 1)
    that end with "=" and the answer, and their questions, strings such as "3849"."""
    rows, questions, at = [], [], 0
    for line in tokenizer.decode(dataset.tokens.tolist()).split("\n")[:-1]:
        question, _, rest = line.partition("=")
        answer = at + len(question) + 1  # where it stands
        if len(rest) == 1 and answer >= context:
            rows.append(dataset.tokens[answer - context : answer + 1])
            questions.append(question)
        at += len(line) + 1
        if len(rows) == count:
            break
    return torch.from_numpy(np.stack(rows).astype(np.int64)), questions


@torch.no_grad()
def think_at_answers(model, tokenizer, rows, thoughts=None, n_thoughts=4, temperature=1.0):
    """Think right after "=", or read thoughts that are given there, a list of lists of strings: the thoughts, likewise;
    the likeliest digit after each (rows, n_thoughts); the gates, likewise."""
    model = model.with_settings(n_thoughts=n_thoughts, n_true=1, thought_temperature=temperature)
    noise, positions = None, torch.full((len(rows), 1), rows.shape[1] - 2)
    if thoughts is None:
        shape = len(rows), n_thoughts, 1, model.config.thought_len
        noise = torch.rand(shape, generator=torch.Generator().manual_seed(0))
    else:
        thoughts = torch.tensor(
            [[tokenizer.encode(thought) for thought in row] for row in thoughts]
        )[:, :, None]
    found = model.think(rows, thoughts, positions=positions, noise=noise)
    h_mixed, gate = model.talk(found.h_base, found.h_thought)
    digits = torch.tensor(tokenizer.encode("0123456789"))
    likeliest = model.model.logits(h_mixed)[:, :, 0, 0, digits].argmax(-1)  # (rows, n_thoughts)
    said = [[tokenizer.decode(thought[0].tolist()) for thought in row] for row in found.tokens]
    return said, likeliest.numpy(), gate[:, :, 0, 0].numpy()


def is_useful(thought, question):
    """Does it begin with just the steps that lead to the answer?"""
    return thought.startswith(running_sums(question)[: len(thought)])


def judge_thoughts(model, tokenizer, rows, questions, n_thoughts=4, temperature=1.0):
    """Is a thought useful, is the answer right after it (the likeliest digit), the gate: (rows, n_thoughts) each."""
    said, digits, gate = think_at_answers(
        model, tokenizer, rows, n_thoughts=n_thoughts, temperature=temperature
    )
    pairs = zip(said, questions, strict=True)
    useful = np.array(
        [[is_useful(thought, question) for thought in row] for row, question in pairs]
    )
    return (
        useful,
        digits == np.array([[int(running_sums(question)[-1])] for question in questions]),
        gate,
    )


def useful_thoughts(model, tokenizer, rows, questions, n_thoughts=4):
    """Of thoughts sampled at temperature 1: the share that is useful; the share with a right answer; the mean gate."""
    judged = judge_thoughts(model, tokenizer, rows, questions, n_thoughts)
    return {
        name: float(x.mean())
        for name, x in zip(("useful_share", "answer_accuracy", "gate"), judged, strict=True)
    }
