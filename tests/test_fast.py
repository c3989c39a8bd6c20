"""fast.py gives the numbers of quiet_star.py, loss and gradients, in float64."""

import itertools
from contextlib import nullcontext

import pytest
import torch
from naive import CLOSE, count_forwards, gradients, ids, log_softmax, tiny, uniform
from torch.testing import assert_close

from beyond.positions import how_many, think_where
from fast import entropy, likeliest, text_loss, token_log_prob

SIZES = dict(thought_len=2, n_thoughts=2, n_true=2)
DOCUMENTS = torch.tensor([[0] * 4 + [1] * 7 + [2], [0] * 9 + [-1] * 3])


def both(window=None, how=None, **sizes):
    """The same model in both forms."""
    return tiny(window, **sizes), tiny(window, fast=True, how=how, **sizes)


def assert_the_same_step(obvious, fast, tokens, scale=1.0, **given):
    """Loss, metrics and gradients of a step. The second gradient is made by loss.backward()."""
    wanted_loss, wanted = obvious(tokens, **given)
    loss, metrics = fast(tokens, **given)
    assert_close(loss, wanted_loss, **CLOSE)
    assert metrics.keys() == wanted.keys()
    for name in wanted:
        assert_close(metrics[name], wanted[name], **CLOSE, msg=name)
    wanted = gradients(scale * wanted_loss, obvious)
    (scale * loss).backward()
    for name, weight in fast.named_parameters():
        gradient = torch.zeros_like(weight) if weight.grad is None else weight.grad
        assert_close(gradient, wanted[name], **CLOSE, msg=name)
    assert wanted["thought_tokens.start"].abs().max() > 0 or fast.config.thought_len == 0


@pytest.mark.parametrize("at_once", [0, 3, 1])
@pytest.mark.parametrize(
    "window, m, N, a", [(None, 2, 2, 2), (3, 3, 2, 3), (4, 0, 3, 1), (3, 1, 1, 2)]
)
def test_a_fast_step_is_the_obvious_one(window, m, N, a, at_once):
    """Catches a key that a thought should not see, a start that is read for one thought alone, a
    mean over a part of the positions, and text gradients of one part alone."""
    sizes = dict(thought_len=m, n_thoughts=N, n_true=a, clamp_advantage=False)
    how = dict(at_once=at_once)
    tokens, noise = ids(2, 9 + a), uniform(2, N, 9, m)
    documents = DOCUMENTS[:, : tokens.shape[1]]
    models = both(window, how, **sizes)
    assert_the_same_step(*models, tokens, scale=0.5, documents=documents, noise=noise)


@pytest.mark.parametrize("reward_on", ["mixed", "thought"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_with_chosen_positions_and_given_thoughts_too(reward_on, temperature):
    """Catches code that takes the s-th position for position s, and a clamp whose rows drop out of
    the wrong gradient. The last positions have fewer true tokens than n_true."""
    models = both(
        how=dict(at_once=2), reward_on=reward_on, log_prob_temperature=temperature, **SIZES
    )
    positions = torch.tensor([[4, 0, 4, 8], [1, 7, 2, 3]])
    thoughts = ids(2, 3, 4, 2, seed=3)
    assert_the_same_step(*models, ids(2, 9), thoughts=thoughts, positions=positions)
    _, metrics = models[1](ids(2, 9), positions=lambda hidden: positions, noise=uniform(2, 2, 4, 2))
    _, wanted = models[0](ids(2, 9), positions=positions, noise=uniform(2, 2, 4, 2))
    assert_close(metrics["nll_mixed"], wanted["nll_mixed"], **CLOSE)


@pytest.mark.parametrize("at_once", [0, 2])
def test_predict_is_the_same_and_makes_no_graph(at_once):
    """Catches thoughts of another draw, and a prediction that holds on to memory."""
    obvious, fast = both(how=dict(at_once=at_once), **SIZES)
    tokens, noise = ids(2, 8), uniform(2, 2, 6, 2)
    one, two = obvious.predict(tokens, noise=noise), fast.predict(tokens, noise=noise)
    for name in one._fields:
        assert_close(getattr(two, name), getattr(one, name), **CLOSE, msg=name)
    assert one.h_base.shape == (2, 1, 6, 2, 16) and one.gate.shape == (2, 2, 6, 2)
    assert not two.h_mixed.requires_grad
    with torch.no_grad():
        assert_close(fast(tokens, noise=noise)[0], obvious(tokens, noise=noise)[0], **CLOSE)


@pytest.mark.parametrize("m, at_once, passes", [(3, 0, 5), (0, 0, 2), (3, 4, 9)])
def test_a_thought_takes_one_pass_more_than_it_has_tokens(m, at_once, passes):
    """Catches a pass for what is known already: one for the text, and m + 1 for each part."""
    _, fast = both(how=dict(at_once=at_once), thought_len=m, n_thoughts=2, n_true=3)
    calls = count_forwards(fast)
    fast(ids(2, 11))
    assert len(calls) == passes


def test_a_frozen_model_learns_start_end_and_gate_alone():
    """Catches parts that ask for the gradient of what needs none (LoRA freezes the model)."""
    models = both(how=dict(at_once=2), **SIZES)
    for quiet in models:
        quiet.model.requires_grad_(False)
    losses = [quiet(ids(2, 8), noise=uniform(2, 2, 6, 2))[0] for quiet in models]
    for loss in losses:
        loss.backward()
    for (name, one), (_, two) in zip(*(x.named_parameters() for x in models), strict=True):
        if name.startswith("model."):
            assert one.grad is None and two.grad is None
        else:
            assert_close(two.grad, one.grad, **CLOSE, msg=name)


def test_parts_under_autocast_give_the_gradient_of_the_whole():
    """Catches gradients that are summed in bfloat16."""
    models = [tiny(fast=True, how=dict(at_once=n), **SIZES).float() for n in (6, 2)]
    for quiet in models:
        with torch.autocast("cpu", torch.bfloat16):
            loss, _ = quiet(ids(2, 8), ids(2, 2, 6, 2, seed=3))
        loss.backward()
    for (name, one), (_, two) in zip(*(x.named_parameters() for x in models), strict=True):
        assert two.grad.dtype == torch.float32
        assert (two.grad - one.grad).norm() <= 0.05 * one.grad.norm() + 1e-6, name


def test_token_log_prob_in_blocks_is_the_same():
    """Catches a block that is dropped, doubled or put in the wrong place, also in the backward
    pass, where rows whose gradient is 0 drop out."""
    head, wanted = torch.nn.Linear(5, 7, bias=False).double(), []
    hidden, tokens = uniform(2, 3, 4, 5).requires_grad_(), ids(2, 3, 4, vocab=7)
    for index in itertools.product(range(2), range(3), range(4)):
        wanted.append(log_softmax(head.weight @ hidden[index] / 1.5)[tokens[index]])
    wanted, weights = torch.stack(wanted).view(2, 3, 4), uniform(2, 3, 4, seed=5)
    weights[0, 1] = 0
    inputs = hidden, head.weight
    gradients_wanted = torch.autograd.grad((wanted * weights).sum(), inputs)
    for chunk_numbers in (1, 35, 70, 10**6):
        got = token_log_prob(head, hidden, tokens, 1.5, chunk_numbers=chunk_numbers)
        assert_close(got, wanted, **CLOSE)
        got = torch.autograd.grad((got * weights).sum(), inputs)
        for one, two in zip(got, gradients_wanted, strict=True):
            assert_close(one, two, **CLOSE)


def test_token_log_prob_in_bfloat16_is_as_exact_as_plain_cross_entropy():
    """Catches sums of blocks in bfloat16, and a frozen head that costs a gradient."""
    torch.manual_seed(0)
    head, tokens = torch.nn.Linear(32, 50, bias=False), ids(40, vocab=50)
    hidden = torch.randn(40, 32, requires_grad=True)
    exact = token_log_prob(head.double(), hidden.double(), tokens)
    wanted = torch.autograd.grad(exact.sum(), hidden)[0]
    head.float().requires_grad_(False)
    with torch.autocast("cpu", torch.bfloat16):
        plain = -torch.nn.functional.cross_entropy(head(hidden).float(), tokens, reduction="none")
        got = token_log_prob(head, hidden, tokens, chunk_numbers=100)
    error = (plain - exact).abs().max()
    assert 0 < error < 0.05 and (got - exact).abs().max() < 1.5 * error
    assert_close(torch.autograd.grad(got.sum(), hidden)[0], wanted, atol=0.02, rtol=0.05)


def test_text_loss_entropy_and_likeliest_are_those_of_all_logits():
    """Catches a text loss over padding, and rows in another order."""
    quiet = tiny(**SIZES)
    tokens, head = ids(2, 12), quiet.model.output
    hidden = quiet.model(tokens)
    _, metrics = quiet(tokens, documents=DOCUMENTS)
    assert_close(text_loss(head, hidden, tokens, DOCUMENTS), metrics["nll_base"], **CLOSE)
    log_p = quiet.model.logits(hidden.detach()).log_softmax(-1)
    assert_close(
        entropy(head, hidden).double(), -(log_p.exp() * log_p).sum(-1), atol=1e-5, rtol=1e-5
    )
    assert torch.equal(likeliest(head, hidden), log_p.argmax(-1))


@pytest.mark.parametrize("kind", ["sampled", "any_length", "soft"])
@pytest.mark.parametrize("at", ["all", "hard", "random"])
def test_no_shape_or_branch_of_a_step_depends_on_values(kind, at, monkeypatch):
    """Catches .item(), nonzero and the like in forward and backward: a GPU would wait for each. On
    the device "meta" tensors have no values, so all of these are errors (and no autocast)."""
    monkeypatch.setattr(torch, "is_autocast_enabled", lambda device: False)
    monkeypatch.setattr(torch, "autocast", lambda *_, **__: nullcontext())
    how = dict(reinforce_weight=0.0, n_thoughts=1) if kind == "soft" else dict(n_thoughts=2)
    quiet = tiny(fast=True, thought_kind=kind, thought_len=2, how=dict(at_once=3), **how)
    quiet, tokens = quiet.to("meta"), ids(2, 9).to("meta")
    S = 8 if at == "all" else how_many(0.5, 8)
    positions = think_where(quiet, at, 0.5, tokens, uniform(2, 8).to("meta"))
    noise = uniform(2, how["n_thoughts"], S, 2).to("meta")
    documents = torch.zeros_like(tokens)
    loss, _ = quiet(tokens, positions=positions, documents=documents, noise=noise)
    loss.backward()
    assert quiet.mixing_head.last.weight.grad.shape == (1, 16)
