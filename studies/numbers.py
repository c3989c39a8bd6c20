"""
Predicting the numbers of data/gsm8k_steps whose calculations are left out, after a thought and without: what
studies/gsm8k_steps.py measures of each model.

A thought is thought once, before the number, and all tokens of the number are read after it. The model thinks only
where it would itself begin a calculation: where its probability of "<<" is above THINK_ABOVE. That the text might write
the calculation there is left out of all predictions: at the first token of a number, "<<" is no choice.
"""

import ast
import math
import operator
import re
from dataclasses import dataclass

import numpy as np
import torch
from lean.log_prob import token_log_prob
from lean.tensors import take
from tqdm import tqdm

from beyond.adaptive import says_start
from eval import held_out_spans
from quiet_star import QuietSTaR

THINK_ABOVE = 0.1  # the model thinks where it would say "<<" with a higher probability


def half_precision(device):
    """Models read in bfloat16, as they were trained; what they predict is computed in float32."""
    return torch.autocast(device.type, torch.bfloat16)


@dataclass
class Text:
    """One solution: ids (n,), and its numbers, (where it begins, how many tokens) each."""

    ids: np.ndarray
    numbers: list


def texts_of(dataset):
    """The documents of a split whose numbers are marked."""
    ends = np.flatnonzero(dataset.tokens == dataset.meta["document_end"]) + 1
    texts = []
    for start, end in zip([0, *ends[:-1]], ends, strict=True):
        edges = np.flatnonzero(np.diff(np.pad(dataset.answers[start:end], 1).astype(np.int8)))
        pairs = edges.reshape(-1, 2)
        texts.append(
            Text(
                dataset.tokens[start:end].astype(np.int64), [(a, b - a) for a, b in pairs.tolist()]
            )
        )
    return texts


@torch.no_grad()
def read_numbers(
    model, texts, among, mark, thoughts=None, n_thoughts=1, temperature=0.0, tau=1.0, batch=16
):
    """Predict every number of texts: dict of arrays by number, in their order: nll (nats), exact, and of a model that
    thinks gate (n,), thinks (n,) and thoughts (n, N, m).

    among, mark   ids that a number can hold, the id of "<<"
    thoughts      to read instead of sampling, (n, N, m);  n_thoughts: how many to average the prediction over
    temperature   of thoughts;  tau: of the prediction
    """
    device, plain = (
        next(model.parameters()).device,
        model.model if isinstance(model, QuietSTaR) else model,
    )
    dtype = next(model.parameters()).dtype
    a = 1 + max(
        n for text in texts for _, n in text.numbers
    )  # the number, and what stands behind it
    number_of = np.cumsum([0, *(len(text.numbers) for text in texts)])
    longest_first = sorted(
        (i for i, text in enumerate(texts) if text.numbers), key=lambda i: -len(texts[i].ids)
    )
    among, generator = torch.as_tensor(among, device=device), torch.Generator(device).manual_seed(0)
    found = {}
    for start in tqdm(
        range(0, len(longest_first), batch), desc="numbers", leave=False, disable=None
    ):
        some = longest_first[start : start + batch]
        B, S = len(some), max(len(texts[i].numbers) for i in some)
        tokens = np.zeros((B, len(texts[some[0]].ids) + a), np.int64)
        index, first, size = (
            np.full((B, S), -1),
            np.ones((B, S), np.int64),
            np.ones((B, S), np.int64),
        )
        for row, i in enumerate(some):
            count = len(texts[i].numbers)
            tokens[row, : len(texts[i].ids)] = texts[i].ids
            index[row, :count] = np.arange(number_of[i], number_of[i + 1])
            first[row, :count], size[row, :count] = np.array(texts[i].numbers).T
        real = torch.from_numpy(index >= 0).to(device)
        tokens, positions, size = (
            torch.from_numpy(x).to(device) for x in (tokens, first - 1, size)
        )
        size = size[real]  # (R,) by number
        ahead = positions[:, :, None] + torch.arange(1, a + 1, device=device)  # (B, S, a)
        target = take(tokens, ahead)[real]  # (R, a)
        new = {}
        if plain is not model:
            quiet = model.with_settings(
                n_thoughts=n_thoughts, n_true=a, thought_temperature=temperature
            )
            noise = torch.rand(
                B, n_thoughts, S, quiet.config.thought_len, device=device, generator=generator
            )
            given = (
                None
                if thoughts is None
                else torch.from_numpy(thoughts[index]).transpose(1, 2).to(device)
            )
            with half_precision(device):
                thought = quiet.think(
                    tokens, given, positions, None if thoughts is not None else noise
                )
            h_base, h_thought = thought.h_base.to(dtype), thought.h_thought.to(dtype)
            h, gate = quiet.talk(h_base, h_thought)  # (B, N, S, a, C), (B, N, S, a)
            thinks = says_start(quiet, mark, THINK_ABOVE)(h_base[:, 0, :, 0]) >= 0
            h = torch.where(thinks[:, None, :, None, None], h, h_base)
            new = {
                "gate": gate[..., 0].mean(1),
                "thoughts": thought.tokens.transpose(1, 2),
                "thinks": thinks,
            }
            new = {name: x[real] for name, x in new.items()}
        else:
            with half_precision(device):
                h = take(plain(tokens), ahead - 1)[:, None].to(dtype)
        log_p = []
        for states in h.transpose(1, 2)[real].split(32):  # (R, N, a, C)
            logits = plain.logits(states).float() / tau
            logits[:, :, 0, mark] = -math.inf
            log_p.append(
                logits.log_softmax(-1).logsumexp(1) - math.log(logits.shape[1])
            )  # (R, a, V)
        log_p = torch.cat(log_p)
        inside = torch.arange(a, device=device) < size[:, None]
        new["nll"] = -log_p.gather(-1, target[..., None])[..., 0].where(inside, 0).sum(-1)
        said = among[log_p[..., among].argmax(-1)] == target
        behind = torch.isin(
            log_p.argmax(-1).gather(1, size[:, None])[:, 0], among
        )  # the number would go on
        new["exact"] = (said | ~inside).all(-1) & ~behind
        for name, value in new.items():
            found.setdefault(name, []).append(value.cpu().numpy())
        found.setdefault("index", []).append(index[index >= 0])
    order = np.argsort(np.concatenate(found.pop("index")))
    return {name: np.concatenate(values)[order] for name, values in found.items()}


@torch.no_grad()
def other_tokens(model, dataset, mark, count, span=256, batch=8):
    """Mean NLL of the tokens in no marked number, on `count` spans: thinking where the model would say "<<"."""
    (spans, answers), sums = held_out_spans(dataset, span, count), []
    quiet = (
        model.with_settings(n_thoughts=1, n_true=1, thought_temperature=0.0)
        if isinstance(model, QuietSTaR)
        else None
    )
    plain, device = quiet.model if quiet else model, next(model.parameters()).device
    for i in tqdm(range(0, len(spans), batch), desc="other tokens", leave=False, disable=None):
        tokens = torch.from_numpy(spans[i : i + batch]).to(device)
        with half_precision(device):
            h = plain(tokens[:, :-1]).float()
        if quiet:
            thinks = says_start(quiet, mark, THINK_ABOVE)(h) >= 0
            positions = (
                thinks.float().topk(max(1, int(thinks.sum(1).max()))).indices
            )  # some too many, in some texts
            with half_precision(device):
                thought = quiet.think(tokens, positions=positions)
            mixed = quiet.talk(thought.h_base.float(), thought.h_thought.float())[0][:, 0, :, 0]
            h = torch.where(
                thinks[..., None], h.scatter(1, positions[..., None].expand_as(mixed), mixed), h
            )
        nll = -token_log_prob(plain.output, h, tokens[:, 1:]).cpu().numpy()
        sums.append(nll[~answers[i : i + batch]])
    return float(np.concatenate(sums).mean())


# ----------------------------------------------------------------------------------------------------------------------
# what a thought says, and whether one model is better than another


def arithmetic(thought, calculation, number):
    """Of a thought's text: does it calculate, is that right, are the operands the text's, is the result? Four bools.
    calculation: "48/2=24", as the text's author has it; number: "24", as it is in the text."""
    said = re.match(r"([\d.+\-*/()]+)=(-?[\d.]+)", thought.replace(",", ""))
    if not said:
        return False, False, False, False
    asked = calculation.replace(",", "").split("=")[0]
    operands = [sorted(re.findall(r"[\d.]+", x)) for x in (said[1], asked)]
    result = number_of(said[2])
    return (
        True,
        close(value_of(said[1]), result),
        operands[0] == operands[1],
        close(result, number_of(number)),
    )


def number_of(text):
    try:
        return float(text.replace(",", ""))
    except ValueError:
        return math.nan


def close(x, y):
    return abs(x - y) < 0.006 * max(1.0, abs(y) ** 0.5)  # authors round, to cents say


def value_of(expression):
    """The value of digits, + - * / and parentheses; nan if it has none."""
    try:
        return float(calculate(ast.parse(expression, mode="eval").body))
    except (SyntaxError, ValueError, ArithmeticError, RecursionError, TypeError):
        return math.nan


OPERATIONS = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.Div: operator.truediv,
}


def calculate(node):
    if isinstance(node, ast.BinOp) and type(node.op) in OPERATIONS:
        return OPERATIONS[type(node.op)](calculate(node.left), calculate(node.right))
    if isinstance(node, ast.UnaryOp) and isinstance(node.op, ast.USub):
        return -calculate(node.operand)
    if isinstance(node, ast.Constant) and type(node.value) in (int, float):
        return node.value
    raise ValueError("no arithmetic")


def compare(a, b, documents):
    """The mean of b - a over numbers, its 95 % interval, and p (two-sided) against no difference. Numbers of one
    document go together: the standard error is that of independent documents."""
    difference = np.asarray(b, float) - np.asarray(a, float)
    mean = difference.mean()
    by_document = np.bincount(documents, difference - mean)
    error = float((by_document**2).sum() ** 0.5 / len(difference))
    p = math.erfc(abs(mean) / error / 2**0.5) if error else 1.0
    return {
        "mean": float(mean),
        "low": float(mean - 1.96 * error),
        "high": float(mean + 1.96 * error),
        "p": p,
    }
