"""
STaR, the predecessor of Quiet-STaR: a model teaches itself to reason aloud (Zelikman et al. 2022,
arXiv 2203.14465).

Algorithm 1, and the function that does each line. A *rationale* is reasoning that is written out
before the answer.

  M_0 <- the original model
  for n = 1 .. iterations
    for every question, with its true answer                               self_taught
      write a rationale and an answer, greedily, with M_{n-1}              write
      if the answer is wrong: again, with the true answer as a hint        write
    keep what ends in the true answer, and leave the hint out              self_taught
    M_n <- the original model, fine-tuned on what was kept                 fine_tune

What it needs, and Quiet-STaR does not: questions, their answers, something that finds the answer in
what was written, and one place to think. Greedy, because at higher temperatures more right answers
come by wrong reasoning; from the original model each time, against overfitting; 40 steps at first,
a fifth more in each iteration (section 3.1).
"""

import copy
import math
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch.nn.utils.rnn import pad_sequence

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
    temperature: float = 0.0  # of what is written; 0: greedily, as in the paper
    iterations: int = 5
    steps: int = 40  # of fine-tuning in the first iteration
    growth: float = 1.2  # times as many in each next one
    rationalize: bool = True  # ask again with a hint where the answer was wrong
    keep_all: bool = False  # a control: no filter
    batch_size: int = 32  # of fine-tuning
    lr: float = 3e-4
    seed: int = 1337


def self_taught(original, questions, config):
    """STaR on a model.Transformer: yields (model, what it was fine-tuned on) of each iteration: the
    questions with what was written after them, [(Question, ids)]."""
    model, generator = original, torch.Generator().manual_seed(config.seed)
    for n in range(config.iterations):
        written = write(model, [q.prompt for q in questions], config, generator)
        tried = list(zip(questions, written, strict=True))
        if config.rationalize:
            wrong = [q for q, text in tried if config.read(text) != q.answer]
            written = write(model, [q.hinted for q in wrong], config, generator)
            tried += [(q, q.opening + text) for q, text in zip(wrong, written, strict=True)]
        kept = [(q, x) for q, x in tried if config.keep_all or config.read(x) == q.answer]
        examples = [(q.prompt, text) for q, text in kept]
        steps = round(config.steps * config.growth**n)
        # the original stays as it is, if not one answer is right
        model = fine_tune(original, examples, steps, config, config.seed + n) if kept else original
        yield model, kept


def write(model, prompts, config, generator=None):
    """What a model writes after each prompt, lists of ids, up to the end and with it."""
    texts = [None] * len(prompts)
    for length in sorted({len(prompt) for prompt in prompts}):  # no padding
        group = [i for i, prompt in enumerate(prompts) if len(prompt) == length]
        how = config.most_tokens, config.temperature, generator
        ids = torch.tensor([prompts[i] for i in group], device=model.output.weight.device)
        tokens = model.generate(ids, *how)
        for i, row in zip(group, tokens[:, length:].tolist(), strict=True):
            texts[i] = row[: row.index(config.end) + 1] if config.end in row else row
    return texts


def fine_tune(model, examples, steps, config, seed):
    """A copy of the model after so many steps of AdamW on examples (prompt, what follows). Every
    example comes once before any comes again."""
    model, generator = copy.deepcopy(model).train(), torch.Generator().manual_seed(seed)
    weights, how = list(model.parameters()), {"betas": (0.9, 0.99), "weight_decay": 0.0}
    optimizer = torch.optim.AdamW(weights, config.lr, **how)
    warmup = torch.optim.lr_scheduler.LinearLR(optimizer, start_factor=0.1, total_iters=9)
    rounds = math.ceil(steps * config.batch_size / len(examples))
    order = [torch.randperm(len(examples), generator=generator) for _ in range(rounds)]
    for chosen in torch.cat(order).split(config.batch_size)[:steps]:
        optimizer.zero_grad()
        loss_of(model, [examples[i] for i in chosen.tolist()]).backward()
        torch.nn.utils.clip_grad_norm_(weights, 1.0)
        optimizer.step()
        torch.clear_autocast_cache()  # or what comes next would go on with the old weights
        warmup.step()
    return model.eval()


def loss_of(model, examples):
    """Mean NLL (nats a token) of what follows the prompts of examples, all of whose tokens count
    alike. Attention is causal: nobody sees the padding."""
    tokens = [torch.tensor(prompt + text) for prompt, text in examples]
    wanted = [torch.tensor([-1] * len(prompt) + text) for prompt, text in examples]  # -1: none
    device = model.output.weight.device
    hidden = model(pad_sequence(tokens, batch_first=True)[:, :-1].to(device))
    wanted = pad_sequence(wanted, batch_first=True, padding_value=-1)[:, 1:].to(device)
    there = wanted >= 0
    return -token_log_prob(model.output, hidden[there], wanted[there]).mean()
