"""Learning at some positions at a time gives the gradient of the whole."""

from types import SimpleNamespace

import pytest
import torch
from naive import CLOSE, gradients, ids, tiny, uniform
from torch.testing import assert_close

from lean.in_parts import equal_parts, good_part


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    "at_once, window, thought_len, n_true",
    [(0, None, 2, 2), (1, 3, 2, 3), (3, None, 3, 1), (4, 4, 0, 2)],
)
def test_thinking_in_parts_gives_the_gradient_of_the_whole(
    at_once, window, thought_len, n_true, recompute
):
    """Catches a mean over a part, text gradients of one part alone, and keys whose gradient never reaches the text."""
    quiet = tiny(
        window, thought_len=thought_len, n_true=n_true, n_thoughts=2, clamp_advantage=False
    )
    tokens, noise = ids(2, 9 + n_true), uniform(2, 2, 9, thought_len)
    documents = torch.tensor(
        [[0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 2], [0, 0, 0, 0, 0, 0, 0, 0, 0, -1, -1, -1]]
    )
    documents = documents[:, : tokens.shape[1]]
    loss, wanted = quiet(tokens, documents=documents, noise=noise)
    grads = gradients(0.5 * loss, quiet)
    found = quiet.backward(
        tokens, documents, noise, scale=0.5, at_once=at_once, recompute=recompute
    )
    for name, weight in quiet.named_parameters():
        grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
        assert_close(grad, grads[name], **CLOSE, msg=lambda text, name=name: f"{name}: {text}")
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert_close(found[name], wanted[name], **CLOSE)
    assert all(
        grad.abs().max() > 0 for name, grad in grads.items() if thought_len and "start" not in name
    )


@pytest.mark.parametrize("frozen", ["model.tok_embeddings", "model.output", "model"])
def test_thinking_in_parts_with_frozen_weights(frozen):
    """The mixing head and the thought tokens alone may learn; what is frozen gets no gradient."""
    quiet = tiny(thought_len=2, n_true=2, n_thoughts=2)
    quiet.get_submodule(frozen).requires_grad_(False)
    tokens, noise = ids(2, 8), uniform(2, 2, 6, 2)
    loss, _ = quiet(tokens, noise=noise)
    loss.backward()
    wanted = {name: weight.grad for name, weight in quiet.named_parameters()}
    quiet.zero_grad()
    quiet.backward(tokens, noise=noise, at_once=4)
    assert wanted["mixing_head.last.weight"].abs().max() > 0
    for name, weight in quiet.named_parameters():
        assert (weight.grad is None) == (wanted[name] is None), name
        if weight.grad is not None:
            assert_close(weight.grad, wanted[name], **CLOSE, msg=name)


@pytest.mark.parametrize("at_once, recompute", [(0, False), (2, True)])
def test_thinking_at_chosen_positions_is_thinking_there_with_their_noise(at_once, recompute):
    """And language modelling on the rest."""
    quiet = tiny(thought_len=2, n_true=2, n_thoughts=2, clamp_advantage=False)
    tokens, noise = ids(2, 10), uniform(2, 2, 8, 2)
    where = torch.tensor([[0, 3, 7], [2, 3, 4]])
    its_noise = torch.stack([noise[b][:, where[b]] for b in range(2)])
    loss, wanted = quiet(tokens, positions=where, noise=its_noise)
    grads = gradients(loss, quiet)
    quiet.zero_grad()
    found = quiet.backward(
        tokens, None, noise, lambda h_text: where, at_once=at_once, recompute=recompute
    )
    for name in wanted:
        assert_close(found[name], wanted[name], **CLOSE)
    for name, weight in quiet.named_parameters():
        assert_close(weight.grad, grads[name], **CLOSE, msg=name)


def test_parts_under_autocast_give_the_gradient_of_the_whole():
    """bfloat16 products of float32 weights: each part's gradient reaches the weights in float32."""
    quiet = tiny(thought_len=2, n_true=2, n_thoughts=2).float()
    tokens, noise = ids(2, 8), uniform(2, 2, 6, 2).float()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = quiet(tokens, noise=noise)
    grads = gradients(loss, quiet)
    with torch.autocast("cpu", torch.bfloat16):
        quiet.backward(tokens, noise=noise, at_once=2)
    for name, weight in quiet.named_parameters():
        assert weight.grad.dtype == torch.float32
        assert (weight.grad - grads[name]).norm() <= 0.05 * grads[name].norm() + 1e-6, name


@pytest.mark.parametrize(
    "S, most, sizes",
    [(64, 56, [32, 32]), (66, 32, [22, 22, 22]), (10, 4, [4, 4, 2]), (3, 8, [3]), (0, 5, [])],
)
def test_parts_are_of_one_size(S, most, sizes):
    """The fewest parts that are small enough; the last lacks less than one position for each of the others."""
    size = equal_parts(S, most)
    found = [min(size, S - start) for start in range(0, S, size)]
    assert found == sizes and len(found) == -(-S // most) and max(found, default=0) <= most


@pytest.mark.parametrize("B, S, dim, part", [(1, 64, 576, 64), (16, 64, 128, 16)])
def test_a_part_on_a_cpu_is_the_fair_share_that_comes_nearest_to_two_to_the_16_numbers(
    B, S, dim, part
):
    """64 positions of width 576 are one part, although 56 are what fits; a part more would be slower."""
    quiet = SimpleNamespace(
        config=SimpleNamespace(n_thoughts=2), model=SimpleNamespace(config=SimpleNamespace(dim=dim))
    )
    positions = torch.zeros(B, S)
    assert good_part(quiet, positions, False) == part
    assert (
        good_part(quiet, positions, True) == part // 4
        and good_part(quiet, positions, False, "cuda") == S
    )
