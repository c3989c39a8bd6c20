"""Learning at some positions at a time gives the gradient of the whole."""

import pytest
import torch
from naive import CLOSE, gradients, ids, tiny, uniform
from torch.testing import assert_close


@pytest.mark.parametrize("recompute", [False, True])
@pytest.mark.parametrize(
    "at_once, window, thought_len, n_true", [(0, None, 2, 2), (1, 3, 2, 3), (3, None, 3, 1), (4, 4, 0, 2)]
)
def test_thinking_in_parts_gives_the_gradient_of_the_whole(at_once, window, thought_len, n_true, recompute):
    """Catches a mean over a part, text gradients of one part alone, and keys whose gradient never reaches the text."""
    quiet = tiny(window, thought_len=thought_len, n_true=n_true, n_thoughts=2, clamp_advantage=False)
    tokens, noise = ids(2, 9 + n_true), uniform(2, 2, 9, thought_len)
    documents = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1, 1, 1, 2], [0, 0, 0, 0, 0, 0, 0, 0, 0, -1, -1, -1]])
    documents = documents[:, : tokens.shape[1]]
    loss, wanted = quiet(tokens, documents=documents, noise=noise)
    grads = gradients(0.5 * loss, quiet)
    found = quiet.backward(tokens, documents, noise, scale=0.5, at_once=at_once, recompute=recompute)
    for name, weight in quiet.named_parameters():
        grad = torch.zeros_like(weight) if weight.grad is None else weight.grad
        assert_close(grad, grads[name], **CLOSE, msg=lambda text, name=name: f"{name}: {text}")
    assert found.keys() == wanted.keys()
    for name in wanted:
        assert_close(found[name], wanted[name], **CLOSE)
    assert all(grad.abs().max() > 0 for name, grad in grads.items() if thought_len and "start" not in name)


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
    found = quiet.backward(tokens, None, noise, lambda h_text: where, at_once=at_once, recompute=recompute)
    for name in wanted:
        assert_close(found[name], wanted[name], **CLOSE)
    for name, weight in quiet.named_parameters():
        assert_close(weight.grad, grads[name], **CLOSE, msg=name)


def test_parts_under_autocast_give_the_gradient_of_the_whole():
    """bfloat16 products of float32 weights: each part's gradient reaches the weights in float32."""
    quiet = tiny(thought_len=2, n_true=2).float()
    tokens, noise = ids(2, 8), uniform(2, 2, 6, 2).float()
    with torch.autocast("cpu", torch.bfloat16):
        loss, _ = quiet(tokens, noise=noise)
    grads = gradients(loss, quiet)
    with torch.autocast("cpu", torch.bfloat16):
        quiet.backward(tokens, noise=noise, at_once=2)
    for name, weight in quiet.named_parameters():
        assert weight.grad.dtype == torch.float32
        assert (weight.grad - grads[name]).norm() <= 0.05 * grads[name].norm() + 1e-6, name
