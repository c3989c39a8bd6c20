"""model.py against what does not come from model.py: transformers' Mistral, a loop over single queries, counting."""

import math

import pytest
import torch

from model import KVCache, ModelConfig, Transformer, causal_mask


def tiny(seed=0, dtype=torch.float64, **changes):
    """A small random model with n_heads != n_kv_heads, and norm weights that are not all 1."""
    settings = dict(
        dim=16, n_layers=2, head_dim=4, hidden_dim=24, n_heads=4, n_kv_heads=2, vocab_size=13
    )
    torch.manual_seed(seed)
    model = Transformer(ModelConfig(**{**settings, **changes})).to(dtype)
    for name, weight in model.named_parameters():
        torch.nn.init.normal_(weight, mean=1.0 if "norm" in name else 0.0, std=0.4)
    return model


def ids(*shape, vocab=13, seed=1):
    return torch.randint(vocab, shape, generator=torch.Generator().manual_seed(seed))


def naive_hidden(model, tokens):
    """Mistral for one text (T,), written as plainly as possible: one query, one head, one key at a time."""
    c, w = model.config, model.state_dict()

    def norm(x, weight):
        return x / torch.sqrt((x * x).mean() + c.norm_eps) * weight

    def turn(
        vector, position
    ):  # complex numbers: the pair (2k, 2k+1) turns by position * theta^(-2k/hd)
        turned = vector.clone()
        for k in range(c.head_dim // 2):
            angle = position * c.rope_theta ** (-2 * k / c.head_dim)
            z = complex(vector[2 * k], vector[2 * k + 1]) * complex(
                math.cos(angle), math.sin(angle)
            )
            turned[2 * k], turned[2 * k + 1] = z.real, z.imag
        return turned

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
                query = turn(q[i][h], i)
                scores = [
                    query @ turn(k[j][kv], j) / math.sqrt(c.head_dim) for j in range(first, i + 1)
                ]
                total = sum(s.exp() for s in scores)
                heads.append(sum(s.exp() / total * v[first + j][kv] for j, s in enumerate(scores)))
            xs[i] = xs[i] + w[p + "attention.wo.weight"] @ torch.cat(heads)
        for i in range(len(xs)):
            x = norm(xs[i], w[p + "ffn_norm.weight"])
            gate = w[p + "feed_forward.w1.weight"] @ x
            inner = gate / (1 + (-gate).exp()) * (w[p + "feed_forward.w3.weight"] @ x)
            xs[i] = xs[i] + w[p + "feed_forward.w2.weight"] @ inner
    return torch.stack([norm(x, w["norm.weight"]) for x in xs])


# ----------------------------------------------------------------------------------------------------------------------
# the architecture


@pytest.mark.parametrize("window", [None, 5])
def test_equals_transformers_mistral(window):
    """Catches any departure from the published architecture: rotary order, head grouping, norms, window off by one."""
    transformers = pytest.importorskip("transformers")
    model = tiny(dtype=torch.float32, sliding_window=window)
    c, T = model.config, 18
    theirs = transformers.MistralForCausalLM(
        transformers.MistralConfig(
            vocab_size=c.vocab_size, hidden_size=c.dim, intermediate_size=c.hidden_dim, num_hidden_layers=c.n_layers,
            num_attention_heads=c.n_heads, num_key_value_heads=c.n_kv_heads, head_dim=c.head_dim,
            rms_norm_eps=c.norm_eps, rope_theta=c.rope_theta, sliding_window=window, max_position_embeddings=64,
            tie_word_embeddings=False, attn_implementation="eager", bos_token_id=None, eos_token_id=None,
        )
    ).eval()  # fmt: skip

    def half_split(
        weight, heads
    ):  # rows of a head: pairs (0,1), (2,3), ... -> all the firsts, then all the seconds
        return weight.view(heads, c.head_dim // 2, 2, c.dim).transpose(1, 2).reshape(weight.shape)

    renamed = {"tok_embeddings": "model.embed_tokens", "norm": "model.norm", "output": "lm_head"}
    inside = {
        "attention.wq": "self_attn.q_proj", "attention.wk": "self_attn.k_proj", "attention.wv": "self_attn.v_proj",
        "attention.wo": "self_attn.o_proj", "feed_forward.w1": "mlp.gate_proj", "feed_forward.w2": "mlp.down_proj",
        "feed_forward.w3": "mlp.up_proj", "attention_norm": "input_layernorm", "ffn_norm": "post_attention_layernorm",
    }  # fmt: skip
    weights = {}
    for name, weight in model.state_dict().items():
        name = name.removesuffix(".weight")
        if name.endswith("wq") or name.endswith("wk"):
            weight = half_split(weight, c.n_heads if name.endswith("wq") else c.n_kv_heads)
        if name.startswith("layers."):
            _, layer, part = name.split(".", 2)
            name = f"model.layers.{layer}.{inside[part]}"
        weights[renamed.get(name, name) + ".weight"] = weight
    theirs.load_state_dict(weights, strict=True)

    tokens = ids(2, T)
    with torch.no_grad():
        torch.testing.assert_close(
            model.logits(model(tokens)), theirs(tokens).logits, rtol=1e-5, atol=1e-5
        )
        read = tokens
        for _ in range(6):
            read = torch.cat((read, theirs(read).logits[:, -1:].argmax(-1)), dim=1)
    assert torch.equal(model.generate(tokens, 6, temperature=0), read)


@pytest.mark.parametrize("window", [None, 1, 4])
def test_equals_a_loop_over_single_queries(window):
    """Catches a wrong mask, scale, rotation or head grouping, exactly (float64) and without any library's Mistral."""
    model = tiny(sliding_window=window, n_heads=6, n_kv_heads=2, rope_theta=100.0)
    tokens = ids(2, 9)
    with torch.no_grad():
        ours = model(tokens)
        for b in range(2):
            torch.testing.assert_close(
                ours[b], naive_hidden(model, tokens[b]), rtol=1e-10, atol=1e-10
            )


def test_causal_mask_is_the_window_written_out():
    """Catches a window that counts one token too many or too few."""
    positions = torch.arange(4)
    assert causal_mask(positions, positions).int().tolist() == [
        [1, 0, 0, 0],
        [1, 1, 0, 0],
        [1, 1, 1, 0],
        [1, 1, 1, 1],
    ]
    windowed = [[1, 0, 0, 0], [1, 1, 0, 0], [0, 1, 1, 0], [0, 0, 1, 1]]
    assert causal_mask(positions, positions, 2).int().tolist() == windowed


def test_state_dict_has_mistrals_official_names_and_nothing_else():
    """Catches a renamed module or an extra buffer: official weights would not load strictly any more."""
    inside = "attention.wq attention.wk attention.wv attention.wo feed_forward.w1 feed_forward.w2 feed_forward.w3"
    inside = (inside + " attention_norm ffn_norm").split()
    wanted = {"tok_embeddings.weight", "norm.weight", "output.weight"}
    wanted |= {f"layers.{layer}.{name}.weight" for layer in range(2) for name in inside}
    state = tiny().state_dict()
    assert set(state) == wanted
    assert state["layers.0.attention.wk.weight"].shape == (2 * 4, 16)
    assert state["layers.0.feed_forward.w2.weight"].shape == (16, 24)


def test_default_rope_theta_is_that_of_mistral_v01():
    """Catches the 1,000,000 of later Mistrals: weights would load and the text would be subtly wrong."""
    assert ModelConfig().rope_theta == 10000


@pytest.mark.parametrize(
    "field, value",
    [("dim", 0), ("n_layers", 0), ("head_dim", 0), ("head_dim", 5), ("hidden_dim", 0), ("n_heads", 0), ("n_heads", 3),
     ("n_kv_heads", 0), ("n_kv_heads", 3), ("vocab_size", 0), ("sliding_window", 0)],
)  # fmt: skip
def test_bad_configs_are_refused_by_name(field, value):
    """Catches a config that fails somewhere deep inside a reshape instead of by name."""
    with pytest.raises(ValueError, match=field):
        ModelConfig(**{"n_heads": 4, "n_kv_heads": 2, field: value})


# ----------------------------------------------------------------------------------------------------------------------
# inputs


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
    torch.testing.assert_close(both[0], model(tokens[:1])[0])
    torch.testing.assert_close(both[1], model(tokens[1:], positions[1], mask)[0])
    assert (both[1] - model(tokens[1:])[0]).abs().max() > 1e-3


def test_only_distances_between_positions_matter():
    """Catches absolute positions leaking in (and rotating keys but not queries, or by another angle)."""
    model, tokens = tiny(), ids(1, 6)
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    torch.testing.assert_close(
        model(tokens, torch.arange(6) + 1000, mask), model(tokens), rtol=1e-8, atol=1e-8
    )


@pytest.mark.parametrize("window", [None, 2])
def test_a_mask_of_ones_own_is_obeyed_with_and_without_a_cache(window):
    """Catches a given mask that is replaced by the default one once a cache is longer than the sliding window."""
    model, tokens = tiny(sliding_window=window), ids(2, 6)
    mask = torch.ones(6, 6, dtype=torch.bool).tril()
    mask[5, 1:4] = False  # the last token sees 0, 4 and itself: no window says so
    with torch.no_grad():
        wanted = model(tokens, mask=mask)
        assert (wanted - model(tokens))[:, 5].abs().max() > 1e-3
        cache = KVCache(model.config, 2, 6, dtype=torch.float64)
        read = [
            model(tokens[:, :4], mask=mask[:4, :4], cache=cache),
            model(tokens[:, 4:], mask=mask[4:], cache=cache),
        ]
        torch.testing.assert_close(torch.cat(read, dim=1), wanted)


# ----------------------------------------------------------------------------------------------------------------------
# cache and generation


@pytest.mark.parametrize("window", [None, 1, 3, 20])
@pytest.mark.parametrize("chunks", [[1] * 10, [10], [4, 1, 1, 4], [1, 9], [3, 3, 4], [2, 1, 5, 2]])
def test_cached_equals_uncached(chunks, window):
    """Catches positions that restart in a later chunk and masks off by one between what is held and what is new."""
    model, tokens = tiny(sliding_window=window), ids(2, 10)
    with torch.no_grad():
        cache = KVCache(model.config, 2, 10, dtype=torch.float64)
        cached = torch.cat(
            [model(part, cache=cache) for part in tokens.split(chunks, dim=1)], dim=1
        )
        torch.testing.assert_close(cached, model(tokens), rtol=1e-10, atol=1e-10)
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
    """Catches generation that reads a token twice, skips one, or takes the logits of the wrong position."""
    model, tokens = tiny(seed=3, sliding_window=window), ids(3, 4)
    with torch.no_grad():
        read = tokens
        for _ in range(8):
            read = torch.cat((read, model.logits(model(read))[:, -1].argmax(-1)[:, None]), dim=1)
    assert torch.equal(model.generate(tokens, 8, temperature=0), read)
    assert (
        len(set(read[:, 4:].flatten().tolist())) > 2
    )  # not one token over and over: the test says something


def test_generation_is_reproducible_from_its_generator_and_follows_temperature():
    """Catches a generator or a temperature that is accepted and then not used."""
    model, tokens = tiny(), ids(2, 3)

    def draw(seed, temperature):
        generator = torch.Generator().manual_seed(seed)
        return model.generate(tokens, 12, temperature=temperature, generator=generator)

    assert torch.equal(draw(0, 1.0), draw(0, 1.0))
    assert not torch.equal(draw(0, 3.0), draw(1, 3.0))
    assert torch.equal(draw(0, 1e-6), model.generate(tokens, 12, temperature=0))


# ----------------------------------------------------------------------------------------------------------------------
# sampling
