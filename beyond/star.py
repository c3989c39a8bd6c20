"""
STaR, the predecessor of Quiet-STaR: a model teaches itself to reason aloud (Zelikman et al. 2022,
arXiv 2203.14465).

Algorithm 1, and the function that does each line. A *rationale* is reasoning that is written out
before the answer.

  M_0 <- the original model
  for n = 1 .. iterations
    for every question, with its true answer                               self_taught
      write a rationale and an answer, greedily, with M_{n-1}              write
      if the answer is wrong: again, with the true answer as a hint        write (rationalization)
    keep what ends in the true answer, and leave the hint out              right_ones
    M_n <- the original model, fine-tuned on what was kept                 fine_tune

What it needs, and Quiet-STaR does not: questions, their answers, something that finds the answer in
what was written, and one place to think. Greedy, because at higher temperatures more right answers
come by wrong reasoning; from the original model each time, against overfitting; 40 steps at first,
a fifth more in each iteration (section 3.1).
"""

import copy
from dataclasses import dataclass
from typing import NamedTuple

import torch

from fast import token_log_prob


class Question(NamedTuple):
    """A question as ids. What is written after them is a rationale and an answer, up to an id that
    ends it."""

    prompt: list  # the question, about to be reasoned about
    hinted: list  # the same, with the true answer given away
    answer: object  # the true answer, as StarConfig.read finds it
    opening: list = []  # what `hinted` says already of what is written: it is kept with it


@dataclass
class StarConfig:
    read: callable  # what was written, a list of ids -> the answer in it, or None
    end: int  # the id that ends it
    most_tokens: int = 16  # written after a prompt
    iterations: int = 5
    steps: int = 40  # of fine-tuning in the first iteration
    growth: float = 1.2  # times as many in each next one
    rationalize: bool = True  # ask again with a hint where the answer was wrong
    keep_all: bool = False  # a control: no filter
    go_on: bool = False  # a control: fine-tune the last model, not the original one
    batch_size: int = 32  # of fine-tuning
    lr: float = 3e-4
    seed: int = 1337

    def steps_in(self, n):
        """Steps of fine-tuning in iteration n = 0, 1, .."""
        return round(self.steps * self.growth**n)


class Kept(NamedTuple):
    """A training example: a question without a hint, and what was written after it, end
    included."""

    question: Question
    written: list
    hinted: bool  # was it written with the hint?


def self_taught(original, questions, config):
    """STaR on a model.Transformer: yields (model, what it was fine-tuned on, its steps) of each
    iteration."""
    model = original
    for n in range(config.iterations):
        written = write(model, [q.prompt for q in questions], config)
        kept = right_ones(questions, written, config, hinted=False)
        if config.rationalize:
            wrong = [
                q
                for q, text in zip(questions, written, strict=True)
                if config.read(text) != q.answer
            ]
            kept += right_ones(
                wrong, write(model, [q.hinted for q in wrong], config), config, hinted=True
            )
        steps = config.steps_in(n)
        start = model if config.go_on else original
        examples = [
            (k.question.prompt, k.written) for k in kept
        ]  # none, if not one answer is right: it stays as it is
        model = fine_tune(start, examples, steps, config, config.seed + n) if kept else start
        yield model, kept, steps


def right_ones(questions, written, config, hinted):
    """What ends in the true answer (with keep_all: everything), as training examples without
    hints."""
    pairs = [
        (q, (q.opening if hinted else []) + text)
        for q, text in zip(questions, written, strict=True)
    ]
    return [
        Kept(q, text, hinted)
        for q, text in pairs
        if config.keep_all or config.read(text) == q.answer
    ]


@torch.no_grad()
def write(model, prompts, config):
    """What a model writes greedily after each prompt, lists of ids, up to the end and with it.
    Prompts of the same length are continued together."""
    written = [[] for _ in prompts]
    for length in {len(prompt) for prompt in prompts}:
        rows = [i for i, prompt in enumerate(prompts) if len(prompt) == length]
        going_on = torch.ones(len(rows), dtype=torch.bool)
        tokens = torch.tensor([prompts[i] for i in rows])
        for new in model.stream(tokens, config.most_tokens, temperature=0.0):
            for i, token, goes_on in zip(rows, new.tolist(), going_on.tolist(), strict=True):
                if goes_on:
                    written[i].append(token)
            going_on &= new != config.end
            if not going_on.any():
                break
    return written


def fine_tune(model, examples, steps, config, seed):
    """A copy of the model after so many steps of AdamW on examples (prompt, what follows): the loss
    is the mean NLL of what follows. Every example comes once before any comes again."""
    model, generator = copy.deepcopy(model).train(), torch.Generator().manual_seed(seed)
    optimizer = torch.optim.AdamW(
        model.parameters(), lr=config.lr, betas=(0.9, 0.99), weight_decay=0.0
    )
    order = torch.empty(0, dtype=torch.long)
    for step in range(steps):
        while len(order) < config.batch_size:
            order = torch.cat((order, torch.randperm(len(examples), generator=generator)))
        chosen, order = (
            [examples[i] for i in order[: config.batch_size].tolist()],
            order[config.batch_size :],
        )
        for group in optimizer.param_groups:
            group["lr"] = config.lr * min(1.0, (step + 1) / 10)
        loss = loss_of(model, chosen)
        optimizer.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
    return model.eval()


def loss_of(model, examples):
    """Mean NLL (nats a token) of what follows the prompts of examples, all of whose tokens count
    alike."""
    rows = [torch.tensor(prompt + text) for prompt, text in examples]
    tokens = torch.nn.utils.rnn.pad_sequence(rows, batch_first=True)
    at = torch.arange(1, tokens.shape[1])
    first = torch.tensor([len(prompt) for prompt, _ in examples])[:, None]
    last = torch.tensor([len(row) for row in rows])[:, None]
    counts = (at >= first) & (at < last)  # attention is causal: nobody sees the padding
    h = model(tokens[:, :-1])[counts]
    return -token_log_prob(model.output, h, tokens[:, 1:][counts]).mean()
