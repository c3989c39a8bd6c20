"""model.py against a loop over single queries, and a draw by counting. (tests/lib/test_weights.py
holds it to the models of transformers.)"""

import itertools
import math

import pytest
import torch
from naive import ids
from torch.testing import assert_close

from model import KVCache, ModelConfig, Transformer, sample


def tiny(seed=0, **changes):
    """A small random model in float64, with n_heads != n_kv_heads and norms that differ."""
    shape = dict(dim=16, n_layers=2, head_dim=4, hidden_dim=24, n_heads=4, n_kv_heads=2)
    torch.manual_seed(seed)
    model = Transformer(ModelConfig(**{**shape, "vocab_size": 13, **changes})).double()
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, mean=1.0 if "norm" in name else 0.0, std=0.4)
    return model


def naive_hidden(model, tokens):
    """Mistral for one text (T,), one query, head and key at a time."""
    c, w = model.config, model.state_dict()

    def norm(x, weight):
        return x / torch.sqrt((x * x).mean() + c.norm_eps) * weight

    def turn(vector, position):
        """The pair (2k, 2k + 1) is a complex number that turns by position * theta^(-2k / hd)."""
        pairs = torch.view_as_complex(vector.view(-1, 2))
        speed = c.rope_theta ** (-torch.arange(0, c.head_dim, 2).double() / c.head_dim)
        return torch.view_as_real(pairs * torch.exp(1j * position * speed)).flatten()

    xs = [w["tok_embeddings.weight"][t] for t in tokens]
    for layer in range(c.n_layers):
        p = f"layers.{layer}."
        normed = [norm(x, w[p + "attention_norm.weight"]) for x in xs]
        q, k, v = (
            [(w[p + f"attention.w{name}.weight"] @ x).view(-1, c.head_dim) for x in normed]
            for name in ("q", "k", "v")
        )
        for i in range(len(xs)):
            first = 0 if c.sliding_window is None else max(0, i - c.sliding_window + 1)
            heads = []
            for h in range(c.n_heads):
                kv = h // (c.n_heads // c.n_kv_heads)
                query, seen = turn(q[i][h], i) / math.sqrt(c.head_dim), range(first, i + 1)
                scores = [query @ turn(k[j][kv], j) for j in seen]
                total = sum(s.exp() for s in scores)
                heads.append(sum(s.exp() / total * v[first + j][kv] for j, s in enumerate(scores)))
            xs[i] = xs[i] + w[p + "attention.wo.weight"] @ torch.cat(heads)
        for i in range(len(xs)):
            x = norm(xs[i], w[p + "ffn_norm.weight"])
            gate = w[p + "feed_forward.w1.weight"] @ x
            inner = gate / (1 + (-gate).exp()) * (w[p + "feed_forward.w3.weight"] @ x)
            xs[i] = xs[i] + w[p + "feed_forward.w2.weight"] @ inner
    return torch.stack([norm(x, w["norm.weight"]) for x in xs])


@pytest.mark.parametrize("window", [None, 1, 4])
def test_equals_a_loop_over_single_queries(window):
    """Catches a wrong mask, scale, rotation, norm or head grouping."""
    model = tiny(sliding_window=window, n_heads=6, n_kv_heads=2, rope_theta=100.0)
    tokens = ids(2, 9)
    with torch.no_grad():
        wanted = torch.stack([naive_hidden(model, text) for text in tokens])
        assert_close(model(tokens), wanted, rtol=1e-10, atol=1e-10)


def test_state_dict_has_mistrals_official_names_and_nothing_else():
    """Catches a renamed module or an extra buffer: official weights would not load any more. And
    the rope_theta of later Mistrals, with which the text would be subtly wrong."""
    inside = [f"attention.w{name}" for name in "qkvo"] + ["attention_norm", "ffn_norm"]
    inside += [f"feed_forward.w{n}" for n in (1, 2, 3)]
    wanted = {"tok_embeddings.weight", "norm.weight", "output.weight"}
    wanted |= {f"layers.{layer}.{name}.weight" for layer in range(2) for name in inside}
    state = tiny().state_dict()
    assert set(state) == wanted and ModelConfig().rope_theta == 10000
    assert state["layers.0.attention.wk.weight"].shape == (2 * 4, 16)
    assert state["layers.0.feed_forward.w2.weight"].shape == (16, 24)


BAD = dict(dim=0, n_layers=0, head_dim=0, hidden_dim=0, n_heads=0, n_kv_heads=0, vocab_size=0)
ODD = dict(head_dim=5, n_heads=3, n_kv_heads=3, sliding_window=0)


@pytest.mark.parametrize("field, value", [*BAD.items(), *ODD.items()])
def test_bad_configs_are_refused_by_name(field, value):
    """Catches a config that fails somewhere deep inside a reshape instead of by name."""
    with pytest.raises(ValueError, match=field):
        ModelConfig(**{"n_heads": 4, "n_kv_heads": 2, field: value})


def test_positions_without_a_mask_are_refused():
    """Catches a silent plain-causal mask over tokens whose positions say otherwise."""
    with pytest.raises(ValueError, match="mask"):
        tiny()(ids(1, 3), positions=torch.tensor([0, 0, 1]))


@pytest.mark.parametrize("window", [None, 2])
def test_a_mask_of_ones_own_is_obeyed_with_and_without_a_cache(window):
    """Catches a given mask that the default one replaces once a cache outgrows the window."""
    model, tokens = tiny(sliding_window=window), ids(2, 6)
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    mask[5, 1:4] = False  # the last token sees 0, 4 and itself: no window says so
    with torch.no_grad():
        wanted = model(tokens, mask=mask)
        assert (wanted - model(tokens))[:, 5].abs().max() > 1e-3
        cache = KVCache(model.config, 2, 6, dtype=torch.float64)
        first = model(tokens[:, :4], mask=mask[:4, :4], cache=cache)
        rest = model(tokens[:, 4:], mask=mask[4:], cache=cache)
        assert_close(torch.cat((first, rest), dim=1), wanted)


@pytest.mark.parametrize("window", [None, 1, 3, 20])
@pytest.mark.parametrize("chunks", [[1] * 10, [10], [4, 1, 1, 4], [1, 9], [3, 3, 4], [2, 1, 5, 2]])
def test_cached_equals_uncached(chunks, window):
    """Catches positions that restart in a later chunk, a mask off by one between chunks, and keys
    that are overwritten once a cache is full."""
    model, tokens = tiny(sliding_window=window), ids(2, 10)
    with torch.no_grad():
        cache = KVCache(model.config, 2, 10, dtype=torch.float64)
        parts = [model(part, cache=cache) for part in tokens.split(chunks, dim=1)]
        assert_close(torch.cat(parts, dim=1), model(tokens), rtol=1e-10, atol=1e-10)
        assert cache.length == 10
        with pytest.raises(ValueError, match="10"):
            model(ids(2, 1), cache=cache)


@pytest.mark.parametrize("window", [None, 3])
def test_greedy_generation_is_the_argmax_of_repeated_uncached_forwards(window):
    """Catches generation that reads a token twice, skips one, or takes logits elsewhere."""
    model, tokens = tiny(seed=3, sliding_window=window), ids(3, 4)
    with torch.no_grad():
        read = tokens
        for _ in range(8):
            read = torch.cat((read, model.logits(model(read))[:, -1].argmax(-1)[:, None]), dim=1)
    assert torch.equal(model.generate(tokens, 8, temperature=0), read)
    assert len(read[:, 4:].unique()) > 2, "not one token over and over: the test says something"


def test_generation_is_reproducible_from_its_generator_and_follows_temperature():
    """Catches a generator or a temperature that is accepted and then not used."""
    model, tokens = tiny(), ids(2, 3)

    def draw(seed, temperature):
        generator = torch.Generator().manual_seed(seed)
        return model.generate(tokens, 12, temperature=temperature, generator=generator)

    assert torch.equal(draw(0, 1.0), draw(0, 1.0))
    assert not torch.equal(draw(0, 3.0), draw(1, 3.0))
    assert torch.equal(draw(0, 1e-6), model.generate(tokens, 12, temperature=0))


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


@pytest.mark.parametrize("temperature", [0, 1e-29, 1e-38, 1e-320])
def test_at_next_to_no_temperature_the_likeliest_is_drawn(temperature):
    """Catches logits that overflow when they are divided: the last id was drawn, always. And greedy
    drawing that still depends on noise, as the authors' release does."""
    logits = 30 * torch.randn(50, 11, generator=torch.Generator().manual_seed(0))
    wanted = torch.tensor([max(range(11), key=row.__getitem__) for row in logits.tolist()])
    assert torch.equal(sample(logits, temperature), wanted)
    assert torch.equal(sample(logits, temperature, noise=torch.rand(50)), wanted)


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
