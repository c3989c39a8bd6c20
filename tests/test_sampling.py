"""model.sample: a token drawn by a number."""

import itertools

import pytest
import torch

from model import sample


def test_sample_inverts_the_cumulative_distribution():
    """Catches a draw that is not a pure function of its noise, whatever the batch around it."""
    logits = torch.randn(5, 7, 9, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    noise = torch.rand(5, 7, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    drawn = sample(logits, 1.5, noise)
    for i, j in itertools.product(range(5), range(7)):
        p = (logits[i, j] / 1.5).exp()
        p, left, wanted = p / p.sum(), float(noise[i, j]), 0
        while left >= p[wanted]:
            left, wanted = left - float(p[wanted]), wanted + 1
        assert drawn[i, j] == wanted == sample(logits[i, j], 1.5, noise[i, j])


@pytest.mark.parametrize("temperature", [1.0, 2.0])
def test_sample_follows_the_softmax(temperature):
    """Catches a wrong or ignored temperature, and fresh noise that is not uniform."""
    logits = torch.tensor([0.3, -1.0, 2.0, 1.0, -3.0])
    generator, draws = torch.Generator().manual_seed(0), 40_000
    drawn = sample(logits.expand(draws, -1), temperature, generator=generator)
    share = torch.bincount(drawn, minlength=5) / draws
    wanted = (logits / temperature).exp() / (logits / temperature).exp().sum()
    assert (share - wanted).abs().max() < 4 * 0.5 / draws**0.5  # four standard errors at most


def test_temperature_zero_takes_the_likeliest():
    """Catches greedy drawing that still depends on noise, as the authors' release does."""
    logits = torch.randn(50, 11, generator=torch.Generator().manual_seed(0))
    wanted = torch.tensor([max(range(11), key=row.__getitem__) for row in logits.tolist()])
    assert torch.equal(sample(logits, 0), wanted)
    assert torch.equal(sample(logits, 0, noise=torch.rand(50)), wanted)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64, torch.bfloat16])
def test_extreme_noise_gives_an_id_that_can_happen(dtype):
    """Catches an id of probability 0, or beyond the vocabulary, by a noise of 0 or by rounding."""
    logits = torch.randn(400, 300, generator=torch.Generator().manual_seed(0)).to(dtype)
    logits[:, :3] = logits[:, -3:] = -torch.inf
    precision = torch.float64 if dtype == torch.float64 else torch.float32
    below_one = 1 - torch.finfo(precision).eps / 2  # the largest number below 1
    for noise, wanted in ((0.0, 3), (below_one, 296)):
        drawn = sample(logits, 1.0, torch.full((400,), noise, dtype=precision))
        assert (drawn == wanted).all()
