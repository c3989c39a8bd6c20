"""model.py against a loop over single queries, and by counting (tests/lib/test_weights.py holds it
to the models of transformers)."""

import math

import pytest
import torch
from naive import ids
from torch.testing import assert_close

from model import KVCache, ModelConfig, Transformer, causal_mask


def tiny(seed=0, **changes):
    """A small random model in float64, with n_heads != n_kv_heads, and norm weights that are not all 1."""
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


@pytest.mark.parametrize(
    "window, wanted", [(None, "1000 1100 1110 1111"), (2, "1000 1100 0110 0011")]
)
def test_causal_mask_is_the_window_written_out(window, wanted):
    """Catches a window that counts one token too many or too few."""
    mask = causal_mask(torch.arange(4), torch.arange(4), window).int().tolist()
    assert " ".join("".join(map(str, row)) for row in mask) == wanted


def test_state_dict_has_mistrals_official_names_and_nothing_else():
    """Catches a renamed module or an extra buffer: official weights would not load any more."""
    inside = [f"attention.w{name}" for name in "qkvo"] + ["attention_norm", "ffn_norm"]
    inside += [f"feed_forward.w{n}" for n in (1, 2, 3)]
    wanted = {"tok_embeddings.weight", "norm.weight", "output.weight"}
    wanted |= {f"layers.{layer}.{name}.weight" for layer in range(2) for name in inside}
    state = tiny().state_dict()
    assert set(state) == wanted
    assert state["layers.0.attention.wk.weight"].shape == (2 * 4, 16)
    assert state["layers.0.feed_forward.w2.weight"].shape == (16, 24)


def test_default_rope_theta_is_that_of_mistral_v01():
    """Catches the 1,000,000 of later Mistrals, with which the text would be subtly wrong."""
    assert ModelConfig().rope_theta == 10000


BAD = dict(dim=0, n_layers=0, head_dim=0, hidden_dim=0, n_heads=0, n_kv_heads=0, vocab_size=0)
ODD = dict(head_dim=5, n_heads=3, n_kv_heads=3, sliding_window=0)


@pytest.mark.parametrize("field, value", [*BAD.items(), *ODD.items()])
def test_bad_configs_are_refused_by_name(field, value):
    """Catches a config that fails somewhere deep inside a reshape instead of by name."""
    with pytest.raises(ValueError, match=field):
        ModelConfig(**{"n_heads": 4, "n_kv_heads": 2, field: value})


def test_embeddings_as_input_equal_tokens_as_input():
    """Catches a scaling or a second lookup applied to only one of the two kinds of input."""
    model, tokens = tiny(), ids(2, 7)
    assert torch.equal(model(model.tok_embeddings.weight[tokens]), model(tokens))


def test_positions_without_a_mask_are_refused():
    """Catches a silent plain-causal mask over tokens whose positions say otherwise."""
    with pytest.raises(ValueError, match="mask"):
        tiny()(ids(1, 3), positions=torch.tensor([0, 0, 1]))


def test_positions_are_used_by_text_and_may_differ_between_texts():
    """Catches positions of shape (B, T) that are broadcast wrongly or ignored."""
    model, tokens = tiny(), ids(2, 5)
    mask = torch.ones(5, 5, dtype=torch.bool).tril()
    positions = torch.tensor([[0, 1, 2, 3, 4], [0, 2, 3, 7, 9]])
    both = model(tokens, positions, mask)
    assert_close(both[0], model(tokens[:1])[0])
    assert_close(both[1], model(tokens[1:], positions[1], mask)[0])
    assert (both[1] - model(tokens[1:])[0]).abs().max() > 1e-3


def test_only_distances_between_positions_matter():
    """Catches absolute positions leaking in, and keys that turn otherwise than queries."""
    model, tokens = tiny(), ids(1, 6)
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    far = model(tokens, torch.arange(6) + 1000, mask)
    assert_close(far, model(tokens), rtol=1e-8, atol=1e-8)


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
    """Catches positions that restart in a later chunk, and a mask off by one between chunks."""
    model, tokens = tiny(sliding_window=window), ids(2, 10)
    with torch.no_grad():
        cache = KVCache(model.config, 2, 10, dtype=torch.float64)
        parts = [model(part, cache=cache) for part in tokens.split(chunks, dim=1)]
        assert_close(torch.cat(parts, dim=1), model(tokens), rtol=1e-10, atol=1e-10)
    assert cache.length == 10


def test_a_full_cache_says_so():
    """Catches silent overwriting of keys once a cache is full."""
    model = tiny()
    cache = KVCache(model.config, 1, 4, dtype=torch.float64)
    with torch.no_grad():
        model(ids(1, 4), cache=cache)
        with pytest.raises(ValueError, match="4"):
            model(ids(1, 1), cache=cache)


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
