"""quiet_star.py against the method done one thought at a time: plain causal forwards, loops and full enumeration.

`model.Transformer` is trusted here (test_model.py checks it); nothing else is.
"""

import itertools

import pytest
import torch
from torch.testing import assert_close

from model import ModelConfig, Transformer, sample
from quiet_star import (
    QuietSTaR,
    QuietSTaRConfig,
    ThoughtTokens,
    generate_with_thoughts,
    thought_advantage,
    thought_layout,
    thought_mask,
    token_log_prob,
)

VOCAB = 11
CLOSE = dict(rtol=1e-9, atol=1e-9)


def tiny(window=None, vocab=VOCAB, n_layers=2, seed=0, zero_gate=False, **config):
    """A small random QuietSTaR in float64, with n_heads != n_kv_heads and (unless zero_gate) a gate far from 0."""
    torch.manual_seed(seed)
    shape = dict(dim=16, n_layers=n_layers, head_dim=4, hidden_dim=24, n_heads=4, n_kv_heads=2, vocab_size=vocab)
    quiet = QuietSTaR(Transformer(ModelConfig(**shape, sliding_window=window)), QuietSTaRConfig(**config)).double()
    for name, weight in quiet.named_parameters():
        if not (zero_gate and name == "mixing_head.last.weight"):
            torch.nn.init.normal_(weight, mean=1.0 if "norm" in name else 0.0, std=0.3)
    for weight in quiet.thought_tokens.parameters():
        weight.data /= quiet.config.embedding_scale
    return quiet


def ids(*shape, seed=1, vocab=VOCAB):
    return torch.randint(vocab, shape, generator=torch.Generator().manual_seed(seed))


def uniform(*shape, seed=2):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(loss, quiet):
    found = torch.autograd.grad(loss, list(quiet.parameters()), allow_unused=True, retain_graph=True)
    return {
        name: torch.zeros_like(weight) if grad is None else grad
        for (name, weight), grad in zip(quiet.named_parameters(), found, strict=True)
    }


def start_and_end(quiet):
    scale = quiet.config.embedding_scale
    return quiet.thought_tokens.start * scale, quiet.thought_tokens.end * scale


def naive_policy(quiet, text, thought):
    """Hidden state that is about to say what follows: plain causal forward on [text, start, thought so far]."""
    embed = quiet.model.tok_embeddings.weight
    return quiet.model(torch.cat((embed[text], start_and_end(quiet)[0][None], embed[thought]))[None])[0, -1]  # (C,)


def naive_thought(quiet, text, i, thought):
    """One thought of one position of one text (L,): h_policy (m, C) and h_thought (a or fewer, C), by a plain causal
    forward on [x_0 .. x_i, start, t_1 .. t_m, end, x_{i+1} .. x_{i+a-1}]; fewer where the text ends before."""
    embed, (start, end) = quiet.model.tok_embeddings.weight, start_and_end(quiet)
    m, true = len(thought), text[i + 1 : i + quiet.config.n_true]
    h = quiet.model(torch.cat((embed[text[: i + 1]], start[None], embed[thought], end[None], embed[true]))[None])[0]
    return h[i + 1 : i + 1 + m], h[i + 1 + m + 1 :]


def naive_gate(quiet, h_base, h_thought):
    """The mixing head of the paper: a three-layer perceptron on [h_base ; h_thought]."""
    head = quiet.mixing_head
    first = torch.cat((head.base.weight, head.thought.weight), dim=1) @ torch.cat((h_base, h_thought)) + head.base.bias
    return head.last.weight[0] @ (head.inner.weight @ first.relu() + head.inner.bias).relu()


def log_softmax(x):
    return x - x.exp().sum().log()


def assert_thoughts_are_the_naive_ones(quiet, tokens, got):
    """h_text, h_base, h_policy, h_thought of every text, thought, position and depth, one at a time."""
    a, (B, L) = quiet.config.n_true, tokens.shape
    for b in range(B):
        h_text = quiet.model(tokens[b : b + 1])[0]
        assert_close(got.h_text[b], h_text[: got.h_text.shape[1]], **CLOSE)
        for s, i in enumerate(got.positions[b].tolist()):
            depths = min(a, L - i)  # the rest would read beyond the text
            read = min(depths, got.h_text.shape[1] - i)
            assert_close(got.h_base[b, 0, s, :read], h_text[i : i + read], **CLOSE)
            for n in range(got.tokens.shape[1]):
                h_policy, h_thought = naive_thought(quiet, tokens[b], i, got.tokens[b, n, s])
                assert len(h_thought) == depths
                assert_close(got.h_policy[b, n, s], h_policy, **CLOSE)
                assert_close(got.h_thought[b, n, s, :depths], h_thought, **CLOSE)


# ----------------------------------------------------------------------------------------------------------------------
# the mask


#          a  b  c  a' b' c' a" b" c"
PICTURE = [
    [1, 0, 0, 0, 0, 0, 0, 0, 0],  # a
    [1, 1, 0, 0, 0, 0, 0, 0, 0],  # b
    [1, 1, 1, 0, 0, 0, 0, 0, 0],  # c
    [1, 0, 0, 1, 0, 0, 0, 0, 0],  # a'
    [1, 1, 0, 0, 1, 0, 0, 0, 0],  # b'
    [1, 1, 1, 0, 0, 1, 0, 0, 0],  # c'
    [1, 0, 0, 1, 0, 0, 1, 0, 0],  # a"
    [1, 1, 0, 0, 1, 0, 0, 1, 0],  # b"
    [1, 1, 1, 0, 0, 1, 0, 0, 1],  # c"
]

#  with a window of 2 by position ids: a 0, b 1, c 2, a' 1, b' 2, c' 3, a" 2, b" 3, c" 4
WINDOW_OF_TWO = [
    [1, 0, 0, 0, 0, 0, 0, 0, 0],
    [1, 1, 0, 0, 0, 0, 0, 0, 0],
    [0, 1, 1, 0, 0, 0, 0, 0, 0],
    [1, 0, 0, 1, 0, 0, 0, 0, 0],
    [0, 1, 0, 0, 1, 0, 0, 0, 0],
    [0, 0, 1, 0, 0, 1, 0, 0, 0],
    [0, 0, 0, 1, 0, 0, 1, 0, 0],
    [0, 0, 0, 0, 1, 0, 0, 1, 0],
    [0, 0, 0, 0, 0, 1, 0, 0, 1],
]


@pytest.mark.parametrize("window, wanted", [(None, PICTURE), (2, WINDOW_OF_TWO)])
def test_thought_mask_is_the_picture(window, wanted):
    """Catches a thought that sees a neighbour's, text that sees thoughts, and a window that counts the wrong ids."""
    layout = thought_layout(3, 2)
    assert [x.tolist() for x in layout] == [[0, 1, 2] * 3, [-1] * 3 + [0] * 6, [-1] * 3 + [0] * 3 + [1] * 3]
    assert thought_mask(layout, layout, window).int().tolist() == wanted


def test_thought_mask_keeps_the_thoughts_of_one_position_apart():
    """Catches a mask that compares positions only: two thoughts of one position would read each other."""
    layout = torch.tensor([0, 0, 0, 0, 0]), torch.tensor([-1, 0, 1, 0, 1]), torch.tensor([-1, 0, 0, 1, 1])
    wanted = [[1, 0, 0, 0, 0], [1, 1, 0, 0, 0], [1, 0, 1, 0, 0], [1, 1, 0, 1, 0], [1, 0, 1, 0, 1]]
    assert thought_mask(layout, layout).int().tolist() == wanted


@pytest.mark.parametrize("window", [None, 4])
def test_one_packed_forward_under_the_mask_is_think(window):
    """Catches a mask that is drawn right but does not define what `think` computes (position ids, order, window)."""
    quiet = tiny(window, thought_len=3, n_thoughts=1, n_true=2)
    tokens, T, m, a = ids(2, 8), 6, 3, 2
    thoughts = ids(2, 1, T, m, seed=3)
    got = quiet.think(tokens, thoughts)
    embed, (start, end) = quiet.model.tok_embeddings, start_and_end(quiet)
    steps = [start.expand(2, T, -1), *(embed(thoughts[:, 0, :, s]) for s in range(m)), end.expand(2, T, -1)]
    packed = torch.cat((embed(tokens[:, :T]), *steps, embed(tokens[:, 1 : T + 1])), dim=1)
    position, thought, step = thought_layout(T, m + 2 + a - 1)
    mask = thought_mask((position, thought, step), (position, thought, step), window)
    h = quiet.model(packed, position + 1 + step, mask).unflatten(1, (-1, T))  # (B, 1 + steps, T, C)
    assert_close(got.h_text[:, :T], h[:, 0], **CLOSE)
    assert_close(got.h_policy[:, 0], h[:, 1 : 1 + m].transpose(1, 2), **CLOSE)
    assert_close(got.h_thought[:, 0], h[:, -a:].transpose(1, 2), **CLOSE)


# ----------------------------------------------------------------------------------------------------------------------
# think


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("n_thoughts", [1, 3])
@pytest.mark.parametrize("n_true", [1, 3])
@pytest.mark.parametrize("thought_len", [0, 1, 2, 4])
def test_parallel_thoughts_equal_one_at_a_time(thought_len, n_true, n_thoughts, window):
    """Catches leaks between thoughts, restarting position ids, look-ahead off by one, mixed-up axes: nearly all."""
    quiet = tiny(window, thought_len=thought_len, n_true=n_true, n_thoughts=n_thoughts)
    tokens, S = ids(2, 7), 7 - n_true
    with torch.no_grad():
        sampled = quiet.think(tokens, noise=uniform(2, n_thoughts, S, thought_len))
        given = quiet.think(tokens, ids(2, n_thoughts, S, thought_len, seed=3))
        for got in (sampled, given):
            assert got.positions.tolist() == [list(range(S))] * 2
            assert got.h_policy.shape == (2, n_thoughts, S, thought_len, 16)
            assert got.h_thought.shape == (2, n_thoughts, S, n_true, 16)
            assert_thoughts_are_the_naive_ones(quiet, tokens, got)
        assert torch.equal(given.tokens, ids(2, n_thoughts, S, thought_len, seed=3))


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("thought_len", [0, 2])
def test_chosen_positions_equal_one_at_a_time(thought_len, window):
    """Catches code that takes the s-th position for position s, or one text's positions for all texts'."""
    quiet = tiny(window, thought_len=thought_len, n_true=3, n_thoughts=2)
    tokens = ids(3, 8)
    for positions in ([[0, 3, 6], [5, 1, 2], [4, 4, 0]], [[7, 0], [2, 6], [3, 7]]):  # any order, up to the last token
        positions = torch.tensor(positions)
        shape = 3, 2, positions.shape[1], thought_len
        with torch.no_grad():
            for got in (
                quiet.think(tokens, positions=positions, noise=uniform(*shape)),
                quiet.think(tokens, ids(*shape, seed=3), positions=positions),
            ):
                assert torch.equal(got.positions, positions)
                assert_thoughts_are_the_naive_ones(quiet, tokens, got)


@pytest.mark.parametrize("temperature", [1.0, 1.7, 0.0])
def test_sampled_tokens_are_those_that_the_noise_dictates(temperature):
    """Catches noise of another thought or step, an ignored temperature, and "greedy" thoughts that are samples."""
    quiet = tiny(thought_len=3, n_thoughts=2, n_true=1, thought_temperature=temperature)
    tokens, noise = ids(2, 6), uniform(2, 2, 5, 3)
    with torch.no_grad():
        got = quiet.think(tokens, noise=noise).tokens
        for b, n, i in itertools.product(range(2), range(2), range(5)):
            thought = tokens.new_empty(0)
            for s in range(3):
                logits = quiet.model.output.weight @ naive_policy(quiet, tokens[b, : i + 1], thought)
                new = logits.argmax() if temperature == 0 else sample(logits, temperature, noise[b, n, i, s])
                thought = torch.cat((thought, new[None]))
            assert got[b, n, i].tolist() == thought.tolist()
    assert (got[:, 0] == got[:, 1]).all() == (temperature == 0)
    assert len(got.unique()) > 3


def test_without_noise_the_thoughts_of_a_position_differ():
    """Catches one draw shared by all N thoughts: no difference, no advantage, nothing learned."""
    torch.manual_seed(0)
    got = tiny(thought_len=3, n_thoughts=2).think(ids(2, 8)).tokens
    assert (got[:, 0] != got[:, 1]).any(-1).float().mean() > 0.5


def test_later_text_changes_nothing_before_it():
    """Catches a thought that peeks at the text it is to predict."""
    quiet = tiny(thought_len=2, n_thoughts=2, n_true=3)
    tokens, noise, k = ids(1, 9), uniform(1, 2, 6, 2), 3
    changed = tokens.clone()
    changed[:, k + 1 :] = (changed[:, k + 1 :] + 1) % VOCAB  # every token after x_k
    with torch.no_grad():
        one, two = quiet.think(tokens, noise=noise), quiet.think(changed, noise=noise)
    assert torch.equal(one.tokens[:, :, : k + 1], two.tokens[:, :, : k + 1])
    assert_close(one.h_text[:, : k + 1], two.h_text[:, : k + 1], **CLOSE)
    assert_close(one.h_policy[:, :, : k + 1], two.h_policy[:, :, : k + 1], **CLOSE)
    for i, j in itertools.product(range(6), range(3)):  # depth j has read x_0 .. x_{i+j}
        difference = (one.h_thought[0, :, i, j] - two.h_thought[0, :, i, j]).abs().max()
        assert difference < 1e-9 if i + j <= k else difference > 1e-3


def test_a_thought_changes_nothing_but_itself():
    """Catches thoughts that leak into the text, into a neighbour, or into another thought of the same position."""
    quiet = tiny(thought_len=3, n_thoughts=3, n_true=2)
    tokens, thoughts = ids(2, 8), ids(2, 3, 6, 3, seed=3)
    changed = thoughts.clone()
    changed[0, 1, 2] = (changed[0, 1, 2] + 1) % VOCAB
    with torch.no_grad():
        one, two = quiet.think(tokens, thoughts), quiet.think(tokens, changed)
    assert_close(one.h_text, two.h_text, **CLOSE)
    assert_close(one.h_base, two.h_base, **CLOSE)
    other = torch.ones(2, 3, 6, dtype=torch.bool)
    other[0, 1, 2] = False
    assert_close(one.h_thought[other], two.h_thought[other], **CLOSE)
    assert_close(one.h_policy[other], two.h_policy[other], **CLOSE)
    assert (one.h_thought - two.h_thought)[0, 1, 2].abs().amax(-1).min() > 1e-3
    assert_close(one.h_policy[0, 1, 2, 0], two.h_policy[0, 1, 2, 0], **CLOSE)  # about to say t_1: has not read it
    assert (one.h_policy - two.h_policy)[0, 1, 2, 1:].abs().amax(-1).min() > 1e-3


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("thought_len, n_true, n_thoughts", [(3, 2, 2), (1, 1, 3), (0, 3, 2)])
def test_the_fast_form_equals_the_explicit_mask(thought_len, n_true, n_thoughts, window):
    """Catches any difference between the fast attention and the mask that defines it, backward pass included."""
    config = dict(thought_len=thought_len, n_true=n_true, n_thoughts=n_thoughts, reward_on="thought")
    quiet, tokens = tiny(window, **config), ids(2, 8)
    noise = uniform(2, n_thoughts, 8 - n_true, thought_len)
    losses = [quiet.with_settings(explicit_mask=explicit)(tokens, noise=noise)[0] for explicit in (False, True)]
    assert_close(*losses, **CLOSE)
    fast, explicit = (gradients(loss, quiet) for loss in losses)
    for name in fast:
        assert_close(fast[name], explicit[name], **CLOSE, msg=name)
        assert fast[name].abs().max() > 0, name


# ----------------------------------------------------------------------------------------------------------------------
# talk


def test_mixing_hidden_states_is_mixing_logits_and_log_probabilities():
    """Catches the gate on the wrong branch, and a mix that is not the paper's."""
    quiet = tiny(thought_len=2, n_thoughts=2, n_true=2)
    with torch.no_grad():
        got = quiet.think(ids(2, 7))
        h_mixed, gate = quiet.talk(got)
        assert gate.std() > 0.05
        for b, n, i, j in itertools.product(range(2), range(2), range(5), range(2)):
            h_base, h_thought = got.h_base[b, 0, i, j], got.h_thought[b, n, i, j]
            w = naive_gate(quiet, h_base, h_thought)
            assert_close(gate[b, n, i, j], w, **CLOSE)
            base, thought, mixed = (quiet.model.output.weight @ h for h in (h_base, h_thought, h_mixed[b, n, i, j]))
            assert_close(mixed, (1 - w) * base + w * thought, **CLOSE)
            renormalised = log_softmax((1 - w) * log_softmax(base) + w * log_softmax(thought))
            assert_close(log_softmax(mixed), renormalised, **CLOSE)


def test_a_new_mixing_head_changes_nothing_and_can_learn():
    """Catches a gate that harms the model at step 0, or that is dead (no gradient out of its zeros)."""
    quiet = tiny(zero_gate=True, thought_len=2, n_thoughts=2, n_true=2)
    tokens = ids(2, 8)
    got = quiet.think(tokens)
    h_mixed, gate = quiet.talk(got)
    assert torch.equal(gate, torch.zeros(2, 2, 6, 2, dtype=torch.float64))
    assert torch.equal(h_mixed, got.h_base.expand_as(h_mixed))
    learned = quiet.learn(tokens, got)
    for i, j in itertools.product(range(6), (1, 2)):
        base = learned.nll_base[:, None, i + j - 1].expand(2, 2)
        assert_close(learned.nll_mixed[:, :, i, j - 1], base, rtol=0, atol=1e-13)
    grads = gradients(learned.loss, quiet)
    assert grads["mixing_head.last.weight"].abs().max() > 1e-3
    assert QuietSTaR(quiet.model, QuietSTaRConfig()).mixing_head.last.weight.count_nonzero() == 0


# ----------------------------------------------------------------------------------------------------------------------
# learn

DOCUMENTS = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 2, 2, 2, -1, -1, -1], [5] * 9])
POSITIONS = torch.tensor([[0, 2, 3, 6, 7], [1, 3, 5, 6, 7], [7, 4, 5, 8, 6]])


def naive_learn(quiet, tokens, thoughts, positions, documents):
    """Algorithm 1 in loops: (fields of Learned, each a dict from index to number where valid; loss; REINFORCE term;
    error of the predicted gains)."""
    c, head, (B, L) = quiet.config, quiet.model.output.weight, tokens.shape
    N, m = thoughts.shape[1], thoughts.shape[3]
    fields = {name: {} for name in ("nll_base", "nll_mixed", "gate", "reward", "advantage", "log_prob")}
    losses, reinforces, gain_errors = [], [], []

    def belongs(b, i, k):  # may x_k be predicted from x_i?
        return k < L and (documents is None or documents[b, i] == documents[b, k] and documents[b, k] >= 0)

    def mean(numbers):
        return sum(numbers) / len(numbers) if numbers else 0.0

    for b in range(B):
        h_text = quiet.model(tokens[b : b + 1])[0]
        log_p_base = [log_softmax(head @ h_text[k - 1])[tokens[b, k]] for k in range(1, L)]  # of x_1, x_2, ...
        base = {(b, k - 1): -log_p_base[k - 1] for k in range(1, L) if belongs(b, k - 1, k)}
        mixed, policy_losses, errors = [], [], []
        for s, i in enumerate(positions[b].tolist()):
            depths = [j for j in range(1, c.n_true + 1) if belongs(b, i, i + j)]
            rewards, gains = [], []
            for n in range(N):
                h_policy, h_thought = naive_thought(quiet, tokens[b], i, thoughts[b, n, s])
                for t in range(m):
                    scores = log_softmax(head @ h_policy[t] / c.log_prob_temperature)
                    fields["log_prob"][b, n, s, t] = scores[thoughts[b, n, s, t]]
                reward, gain = 0.0, 0.0
                for j in depths:
                    h_b, h_t, target = h_text[i + j - 1], h_thought[j - 1], tokens[b, i + j]
                    w = naive_gate(quiet, h_b, h_t)
                    after = log_softmax((1 - w) * log_softmax(head @ h_b) + w * log_softmax(head @ h_t))[target]
                    fields["gate"][b, n, s, j - 1], fields["nll_mixed"][b, n, s, j - 1] = w, -after
                    mixed.append(-after)
                    scored = after if c.reward_on == "mixed" else log_softmax(head @ h_t)[target]
                    reward += (scored - log_p_base[i + j - 1]).item()
                    gain += (after - log_p_base[i + j - 1]).item()
                rewards.append(reward)
                gains.append(gain)
            if depths:
                errors.append((naive_gain(quiet, h_text[i]) - mean(gains)) ** 2)
            for n in range(N):
                others = rewards[:n] + rewards[n + 1 :]
                advantage = rewards[n] - mean(others)
                advantage = max(0.0, advantage) if c.clamp_advantage else advantage
                fields["reward"][b, n, s], fields["advantage"][b, n, s] = rewards[n], advantage
                if depths:
                    policy_losses.append(-advantage * sum(fields["log_prob"][b, n, s, t] for t in range(m)))
        fields["nll_base"] |= base
        reinforces.append(mean(policy_losses))
        gain_errors.append(mean(errors))
        losses.append(0.5 * mean(list(base.values())) + 0.5 * mean(mixed) + c.reinforce_weight * reinforces[-1])
    return fields, mean(losses), mean(reinforces), mean(gain_errors)


def naive_gain(quiet, h_base):
    head = quiet.gain_head
    return head.last(torch.relu(head.inner(h_base.detach())))[0]


def assert_learned_is_naive(quiet, tokens, thoughts, positions, documents):
    wanted, loss, reinforce, gain_error = naive_learn(quiet, tokens, thoughts, positions, documents)
    got = quiet.learn(tokens, quiet.think(tokens, thoughts, positions), documents)
    for name, entries in wanted.items():
        assert entries, name
        for index, number in entries.items():
            number = torch.as_tensor(number, dtype=torch.float64)
            assert_close(getattr(got, name)[index], number, **CLOSE, msg=f"{name} {index}")
    counted = {(b, s, j) for b, _, s, j in wanted["nll_mixed"]}
    assert {tuple(index) for index in got.valid.nonzero().tolist()} == counted
    assert {tuple(index) for index in got.valid_base.nonzero().tolist()} == set(wanted["nll_base"])
    assert_close(got.loss, loss, **CLOSE)
    assert_close(got.reinforce, reinforce, **CLOSE)
    assert_close(got.gain_error, gain_error, **CLOSE)
    ours, naive = gradients(got.loss + got.gain_error, quiet), gradients(loss + gain_error, quiet)
    for name in naive:
        assert_close(ours[name], naive[name], **CLOSE, msg=name)
    return got


def test_the_gain_head_looks_on_and_changes_nothing():
    """Catches a model that learns to be predictable, and a head that learns from anything but the measured gains."""
    quiet = tiny(thought_len=2, n_thoughts=2, n_true=2)
    tokens = ids(2, 8)
    learned = quiet.learn(tokens, quiet.think(tokens))
    model, head = gradients(learned.loss, quiet), gradients(learned.gain_error, quiet)
    for name in model:
        assert (model if name.startswith("gain_head.") else head)[name].count_nonzero() == 0, name
    assert head["gain_head.inner.weight"].abs().max() > 1e-3 and model["model.output.weight"].abs().max() > 1e-3
    new = QuietSTaR(quiet.model, QuietSTaRConfig()).gain_head
    assert new(learned.nll_base.new_ones(3, 16).float()).tolist() == [0, 0, 0], "nothing is expected at step 0"


@pytest.mark.parametrize("clamp", [True, False])
@pytest.mark.parametrize("reward_on", ["mixed", "thought"])
@pytest.mark.parametrize("temperature", [1.0, 3.0])
def test_learn_equals_loops_with_documents_and_padding(reward_on, clamp, temperature):
    """Catches a wrong target, baseline, clamp, branch, temperature or mask, and a reward that is differentiated."""
    quiet = tiny(
        thought_len=2, n_thoughts=3, n_true=3, reinforce_weight=0.7,
        reward_on=reward_on, clamp_advantage=clamp, log_prob_temperature=temperature,
    )  # fmt: skip
    thoughts = ids(3, 3, 5, 2, seed=3)
    got = assert_learned_is_naive(quiet, ids(3, 9), thoughts, POSITIONS, DOCUMENTS)
    assert (got.advantage < 0).any() != clamp


@pytest.mark.parametrize("n_true, n_thoughts, thought_len", [(1, 2, 2), (3, 1, 1), (2, 2, 4)])
def test_learn_equals_loops_on_one_document_at_all_positions(n_true, n_thoughts, thought_len):
    """Catches what shows only without documents: the default positions, one thought alone, one true token."""
    quiet = tiny(window=4, thought_len=thought_len, n_thoughts=n_thoughts, n_true=n_true)
    tokens, positions = ids(2, 8), torch.arange(8 - n_true).expand(2, -1)
    thoughts = ids(2, n_thoughts, 8 - n_true, thought_len, seed=3)
    got = assert_learned_is_naive(quiet, tokens, thoughts, positions, None)
    loss, metrics = quiet(tokens, thoughts)  # at the default positions
    assert_close(loss, got.loss + got.gain_error, **CLOSE)
    assert_close(metrics["loss"], got.loss, **CLOSE)
    assert_close(metrics["gain_error"], got.gain_error, **CLOSE)
    assert_close(metrics["nll_mixed"], got.nll_mixed.mean(), **CLOSE)
    assert_close(metrics["reward"], got.reward.mean(), **CLOSE)
    assert_close(metrics["thought_nll"], -got.log_prob.mean(), **CLOSE)
    assert not any(value.requires_grad for value in metrics.values())


def test_sampling_and_learning_is_learning_from_the_same_thoughts_given():
    """Catches a graph that is cut where sampling went step by step: gradients would miss a part."""
    quiet = tiny(thought_len=3, n_thoughts=2, n_true=2, clamp_advantage=False)
    tokens, noise = ids(2, 8), uniform(2, 2, 6, 3)
    sampled, _ = quiet(tokens, noise=noise)
    given, _ = quiet(tokens, quiet.think(tokens, noise=noise).tokens)
    assert_close(sampled, given, **CLOSE)
    one, two = gradients(sampled, quiet), gradients(given, quiet)
    for name in one:
        assert_close(one[name], two[name], **CLOSE, msg=name)


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
    """And language modelling on the rest. Positions may be given, or chosen when the text is read."""
    quiet = tiny(thought_len=2, n_true=2, n_thoughts=2, clamp_advantage=False)
    tokens, noise = ids(2, 10), uniform(2, 2, 8, 2)
    where = torch.tensor([[0, 3, 7], [2, 3, 4]])
    its_noise = torch.stack([noise[b][:, where[b]] for b in range(2)])
    loss, wanted = quiet(tokens, positions=where, noise=its_noise)
    grads = gradients(loss, quiet)
    for positions in (where, lambda h_text: where):
        quiet.zero_grad()
        found = quiet.backward(tokens, None, noise, positions, at_once=at_once, recompute=recompute)
        for name in wanted:
            assert_close(found[name], wanted[name], **CLOSE)
        for name, weight in quiet.named_parameters():
            assert_close(weight.grad, grads[name], **CLOSE, msg=name)


@pytest.mark.parametrize("n_true, share, count", [(1, 0.25, 2), (3, 0.5, 4), (2, 0.01, 1), (2, 1.0, 9)])
def test_hard_positions_are_those_of_largest_entropy(n_true, share, count):
    """One position at a time: entropy by its definition; where n_true tokens follow; and in the text's order."""
    quiet = tiny(n_true=n_true)
    tokens = ids(2, 9 + n_true, seed=5)
    found = quiet.hard_positions(quiet.read_text(tokens).hidden, share)
    assert found.shape == (2, count) and (found.diff() > 0).all()
    for b in range(2):
        entropies = {}
        for i in range(9):
            p = quiet.model.logits(quiet.model(tokens[b : b + 1, : i + 1]))[0, -1].detach().softmax(-1)
            entropies[i] = -sum(float(x * x.log()) for x in p)
        assert sorted(sorted(entropies, key=entropies.get)[-count:]) == found[b].tolist()


def test_hard_positions_can_be_drawn_in_proportion_to_their_entropy():
    """One of each text: how often each position comes, of 20,000 draws."""
    quiet = tiny(n_true=1)
    with torch.no_grad():
        quiet.model.output.weight[:4] *= 8  # some predictions are sure
    h_text = quiet.read_text(ids(1, 7, seed=5)).hidden
    p = quiet.model.logits(h_text[0]).detach().softmax(-1)
    wanted = -(p * p.log()).sum(-1)
    found = quiet.hard_positions(h_text.expand(20000, -1, -1), 1 / 6, uniform(20000, 6))
    share = found.flatten().bincount(minlength=6) / 20000
    assert wanted.max() > 1.5 * wanted.min()
    assert_close(share.double(), wanted / wanted.sum(), atol=0.015, rtol=0)


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


def test_thoughts_of_length_zero_give_no_policy_loss():
    """Catches a "pause" (start, end alone) that still pays or costs something for thought tokens it does not have."""
    quiet = tiny(thought_len=0, n_thoughts=2, n_true=2)
    tokens = ids(2, 7)
    learned = quiet.learn(tokens, quiet.think(tokens))
    assert learned.reinforce == 0 and learned.log_prob.shape == (2, 2, 5, 0)
    assert_close(learned.loss, 0.5 * learned.nll_base.mean() + 0.5 * learned.nll_mixed.mean(), **CLOSE)
    assert (learned.nll_mixed[:, 0] - learned.nll_base[:, :5, None]).abs().max() > 1e-3


def test_a_batchs_loss_is_the_mean_of_its_parts():
    """Catches means over all tokens of a batch: gradient accumulation would depend on how a batch is split."""
    quiet = tiny(thought_len=2, n_thoughts=2, n_true=2, clamp_advantage=False)
    tokens, thoughts = ids(3, 9), ids(3, 2, 5, 2, seed=3)
    whole, _ = quiet(tokens, thoughts, POSITIONS, DOCUMENTS)
    parts = [quiet(*(x[b : b + 1] for x in (tokens, thoughts, POSITIONS, DOCUMENTS)))[0] for b in range(3)]
    assert max(parts) - min(parts) > 1e-2
    assert_close(whole, sum(parts) / 3, **CLOSE)
    one, two = gradients(whole, quiet), gradients(sum(parts) / 3, quiet)
    for name in one:
        assert_close(one[name], two[name], **CLOSE, msg=name)


def test_a_text_of_padding_alone_costs_nothing():
    """Catches a division by zero valid tokens: nan in the loss or in any gradient."""
    quiet = tiny(thought_len=2, n_thoughts=2, n_true=2)
    loss, metrics = quiet(ids(1, 6), documents=torch.full((1, 6), -1))
    assert loss == 0 and all(value == 0 for value in metrics.values())
    assert all((grad == 0).all() for grad in gradients(loss, quiet).values())


def test_token_log_prob_in_chunks_is_the_same():
    """Catches a chunk that is dropped, doubled or put in the wrong place, also in the recomputed backward pass."""
    head, wanted = torch.nn.Linear(5, 7, bias=False).double(), []
    hidden, tokens = uniform(2, 3, 4, 5).requires_grad_(), ids(2, 3, 4, vocab=7)
    for index in itertools.product(range(2), range(3), range(4)):
        wanted.append(log_softmax(head.weight @ hidden[index] / 1.5)[tokens[index]])
    wanted, weights = torch.stack(wanted).view(2, 3, 4), uniform(2, 3, 4, seed=5)
    for chunk_numbers in (1, 35, 70, 10**6):
        got = token_log_prob(head, hidden, tokens, 1.5, chunk_numbers=chunk_numbers)
        assert_close(got, wanted, **CLOSE)
        for one, two in zip(
            torch.autograd.grad((got * weights).sum(), (hidden, head.weight)),
            torch.autograd.grad((wanted * weights).sum(), (hidden, head.weight), retain_graph=True),
            strict=True,
        ):
            assert_close(one, two, **CLOSE)


# ----------------------------------------------------------------------------------------------------------------------
# REINFORCE, by enumerating every thought there is


def enumerated(quiet, tokens, i, m):
    """For every thought of m tokens at position i: the thoughts (V^m, m), log p through the naive forward (V^m,), and
    the reward of each as a fixed number."""
    thoughts = torch.tensor(list(itertools.product(range(quiet.model.config.vocab_size), repeat=m)))
    positions = torch.tensor([[i]])
    log_p, rewards = [], []
    for thought in thoughts:
        fields, *_ = naive_learn(quiet, tokens, thought.view(1, 1, 1, m), positions, None)
        log_p.append(sum(fields["log_prob"].values()))
        rewards.append(fields["reward"][0, 0, 0])
    return thoughts, torch.stack(log_p), torch.tensor(rewards, dtype=torch.float64)


def expected_reinforce(quiet, tokens, i, thoughts, log_p, N):
    """The exact expectation of Learned.reinforce over N independent thoughts; its weights are not differentiated."""
    p, total = log_p.detach().exp(), 0.0
    for chosen in itertools.product(range(len(thoughts)), repeat=N):
        chosen = list(chosen)
        given = quiet.think(tokens, thoughts[chosen].view(1, N, 1, -1), torch.tensor([[i]]))
        total = total + p[chosen].prod() * quiet.learn(tokens, given).reinforce
    return total


@pytest.mark.parametrize("N, m, reward_on", [(2, 2, "mixed"), (2, 1, "thought"), (3, 1, "mixed"), (1, 2, "mixed")])
def test_reinforce_is_in_expectation_the_gradient_of_the_expected_reward(N, m, reward_on):
    """Catches every bias: a baseline that includes the thought itself, a wrong sign, a log p of the wrong tokens."""
    config = dict(n_thoughts=N, thought_len=m, n_true=1, clamp_advantage=False, reward_on=reward_on)
    quiet = tiny(vocab=4, n_layers=1, **config)
    tokens, i = ids(1, 4, vocab=4), 1
    thoughts, log_p, rewards = enumerated(quiet, tokens, i, m)
    assert_close(log_p.exp().sum(), torch.tensor(1.0, dtype=torch.float64), **CLOSE)
    assert rewards.std() > 0.01
    ours = gradients(expected_reinforce(quiet, tokens, i, thoughts, log_p, N), quiet)
    exact = gradients((log_p.exp() * rewards).sum(), quiet)
    for name in exact:
        assert_close(ours[name], -exact[name], rtol=1e-8, atol=1e-11, msg=name)
    assert exact["model.layers.0.attention.wq.weight"].abs().max() > 1e-5
    assert exact["thought_tokens.start"].abs().max() > 1e-5


def test_clamped_reinforce_is_its_own_formula_and_another_direction():
    """Catches a clamp that keeps the wrong side, or that is silently off."""
    quiet = tiny(vocab=4, n_layers=1, n_thoughts=2, thought_len=2, n_true=1, clamp_advantage=True)
    tokens, i = ids(1, 4, vocab=4), 1
    thoughts, log_p, rewards = enumerated(quiet, tokens, i, 2)
    ours = gradients(expected_reinforce(quiet, tokens, i, thoughts, log_p, 2), quiet)
    p, formula = log_p.detach().exp(), 0.0
    for t, u in itertools.product(range(16), repeat=2):  # thought t earns by how much it beats an independent u
        formula = formula - p[t] * p[u] * max(0.0, float(rewards[t] - rewards[u])) * log_p[t]
    formula, exact = gradients(formula, quiet), gradients(-(log_p.exp() * rewards).sum(), quiet)
    for name in formula:
        assert_close(ours[name], formula[name], rtol=1e-8, atol=1e-11, msg=name)
    a, b = (torch.cat([grad.flatten() for grad in grads.values()]) for grads in (ours, exact))
    assert torch.cosine_similarity(a, b, dim=0) < 0.999


def test_equal_rewards_give_exactly_no_policy_gradient():
    """Catches a baseline over other positions (whose difficulty would leak in) or none at all."""
    quiet = tiny(thought_len=2, n_thoughts=2, n_true=2, clamp_advantage=False)
    tokens = ids(2, 8)
    thoughts = ids(2, 1, 6, 2, seed=3).expand(-1, 2, -1, -1)  # both thoughts of a position say the same
    learned = quiet.learn(tokens, quiet.think(tokens, thoughts))
    assert learned.reward.std() > 0.01
    assert (learned.advantage == 0).all() and learned.reinforce == 0
    assert all((grad == 0).all() for grad in gradients(learned.reinforce, quiet).values())


def test_advantage_by_hand():
    """Catches a baseline over the wrong axis, one that includes the thought itself, and a clamp of the wrong sign."""
    reward = torch.tensor([[[1.0, 10.0], [4.0, 10.0], [7.0, 40.0]]])  # (1, N = 3, S = 2)
    assert thought_advantage(reward, False).tolist() == [[[-4.5, -15.0], [0.0, -15.0], [4.5, 30.0]]]
    assert thought_advantage(reward, True).tolist() == [[[0.0, 0.0], [0.0, 0.0], [4.5, 30.0]]]
    assert thought_advantage(reward[:, :1], False).tolist() == [[[1.0, 10.0]]]
    assert thought_advantage(reward, False, "all").tolist() == [[[-3.0, -10.0], [0.0, -10.0], [3.0, 20.0]]]
    assert thought_advantage(reward, True, "none").tolist() == reward.tolist()


@pytest.mark.parametrize("reward_on", ["mixed", "thought"])
def test_reinforce_does_not_reach_the_mixing_head(reward_on):
    """Catches a reward that is differentiated: the gate would be pushed to make thoughts look good."""
    quiet = tiny(thought_len=2, n_thoughts=2, n_true=2, clamp_advantage=False, reward_on=reward_on)
    tokens = ids(2, 8)
    learned = quiet.learn(tokens, quiet.think(tokens, ids(2, 2, 6, 2, seed=3)))
    assert not learned.reward.requires_grad and not learned.advantage.requires_grad
    grads = gradients(learned.reinforce, quiet)
    assert all((grad == 0).all() for name, grad in grads.items() if name.startswith("mixing_head"))
    assert grads["thought_tokens.end"].count_nonzero() == 0  # no thought token is sampled after reading `end`
    assert grads["thought_tokens.start"].abs().max() > 0


# ----------------------------------------------------------------------------------------------------------------------
# speaking


def count_forwards(quiet):
    """A list that grows by one with each call of the transformer."""
    calls = []
    quiet.model.register_forward_hook(lambda *_: calls.append(1))
    return calls


@pytest.mark.parametrize("window", [None, 3])
@pytest.mark.parametrize("thought_len, opened, forwards", [(0, 1, 5), (1, 1, 10), (3, 1, 20), (3, 0.05, 16), (1, 0, 6)])
def test_generating_from_the_cache_equals_thinking_on_the_whole_text_each_time(thought_len, opened, forwards, window):
    """Catches a cache off by one, thoughts that stay in it, and the gate or token of another step; also a guess of the
    next token that is kept when it was wrong. With a gate that is nearly shut guesses are right: m forwards a token."""
    quiet, new = tiny(window, thought_len=thought_len, seed=11), 5
    with torch.no_grad():
        quiet.mixing_head.last.weight *= opened
    tokens, calls = ids(2, 4), count_forwards(quiet)
    read, thoughts, gates = generate_with_thoughts(quiet, tokens, new, temperature=0)
    assert thought_len == 0 or (thought_len * new < len(calls) <= (thought_len + 1) * new)
    assert len(calls) <= forwards
    assert read.shape == (2, 4 + new) and thoughts.shape == (2, new, thought_len) and gates.shape == (2, new)
    with torch.no_grad():
        for b in range(2):
            text = tokens[b]
            for k in range(new):
                thought = text.new_empty(0)
                for _ in range(thought_len):
                    new_token = (quiet.model.output.weight @ naive_policy(quiet, text, thought)).argmax()
                    thought = torch.cat((thought, new_token[None]))
                h_base = quiet.model(text[None])[0, -1]
                h_thought = naive_thought(quiet, text, len(text) - 1, thought)[1][0]
                w = naive_gate(quiet, h_base, h_thought)
                word = (quiet.model.output.weight @ ((1 - w) * h_base + w * h_thought)).argmax()
                assert thoughts[b, k].tolist() == thought.tolist()
                assert_close(gates[b, k], w, **CLOSE)
                assert read[b, len(text)] == word
                text = torch.cat((text, word[None]))
    assert len(read[:, 4:].unique()) > 2 and (gates.std() > 0.01 or opened < 1)


def test_sampling_with_thoughts_is_the_same_whether_the_next_token_was_guessed_or_not():
    """At temperature 1, of three rows whose guesses are sometimes right: against drawing from each whole text anew."""
    quiet, tokens, new = tiny(thought_len=2, seed=11), ids(3, 4), 12
    with torch.no_grad():
        quiet.mixing_head.last.weight *= 0.1
    calls = count_forwards(quiet)
    read, _, _ = generate_with_thoughts(quiet, tokens, new, generator=torch.Generator().manual_seed(5))
    assert 2 * new + 2 < len(calls) < 3 * new - 1, "both kinds of guesses"
    generator, quiet = torch.Generator().manual_seed(5), quiet.with_settings(thought_temperature=0.0, n_thoughts=1)
    for at in range(4, 4 + new):
        here = torch.full((3, 1), at - 1)
        h_mixed, _ = quiet.talk(quiet.think(read[:, :at], positions=here))
        drawn = sample(quiet.model.logits(h_mixed[:, 0, 0, 0]), noise=torch.rand(3, generator=generator))
        assert drawn.tolist() == read[:, at].tolist()


def test_prompts_of_unequal_length_are_continued_as_each_alone():
    quiet, lengths, tokens = tiny(thought_len=2, seed=11), torch.tensor([5, 2, 3]), ids(3, 5)
    read, thoughts, gates = generate_with_thoughts(quiet, tokens, 4, temperature=0, lengths=lengths)
    for b, n in enumerate(lengths.tolist()):
        alone = generate_with_thoughts(quiet, tokens[b : b + 1, :n], 9 - n, temperature=0)
        assert torch.equal(read[b], alone[0][0])
        assert torch.equal(thoughts[b, n - 2 :], alone[1][0])
        assert_close(gates[b, n - 2 :], alone[2][0], **CLOSE)


@pytest.mark.parametrize("thought_len, window", [(0, None), (2, None), (3, 3)])
def test_thinking_where_it_pays_is_thinking_where_the_gain_head_expects_more(thought_len, window):
    """Against the whole text read anew for each token of each row alone; rows think at different times. Counts the
    tokens read: of the thoughts, only those of rows that think."""
    quiet, tokens, new, read_tokens = tiny(window, thought_len=thought_len, seed=11), ids(3, 4), 8, []
    quiet.model.register_forward_hook(lambda _, inputs, output: read_tokens.append(output[..., 0].numel()))
    lengths = torch.tensor([4, 2, 3])
    read, thoughts, gates = generate_with_thoughts(quiet, tokens, new, 0, lengths=lengths, think_above=0.1)
    counted, thinking = sum(read_tokens), 0
    greedy = quiet.with_settings(thought_temperature=0.0, n_thoughts=1, n_true=1)
    with torch.no_grad():
        for b, at in itertools.product(range(3), range(2, 4 + new)):
            h = quiet.model(read[b : b + 1, :at])[0, -1]
            thought, gate = [-1] * thought_len, h.new_zeros(())
            if naive_gain(quiet, h) > 0.1:
                thinking += 1
                found = greedy.think(read[b : b + 1, :at], positions=torch.tensor([[at - 1]]))
                thought = found.tokens.flatten().tolist()
                h, gate = (x.flatten(0, 3)[0] for x in greedy.talk(found))
            assert thoughts[b, at - 2].tolist() == thought
            assert_close(gates[b, at - 2], gate, **CLOSE)
            word = tokens[b, at] if at < lengths[b] else (quiet.model.output.weight @ h).argmax()
            assert read[b, at] == word
    assert 3 < thinking < 3 * (new + 2) - 3
    assert counted == 3 * (2 + new + 1) + thinking * (thought_len + 2)


def test_thinking_above_the_least_gain_is_thinking_everywhere_and_above_the_most_nowhere():
    quiet, tokens = tiny(thought_len=2, seed=11), ids(2, 4)
    everywhere = generate_with_thoughts(quiet, tokens, 6, generator=torch.Generator().manual_seed(3))
    above = generate_with_thoughts(
        quiet, tokens, 6, generator=torch.Generator().manual_seed(3), think_above=float("-inf")
    )
    for ours, wanted in zip(above, everywhere, strict=True):
        assert_close(ours, wanted, **CLOSE)
    calls = count_forwards(quiet)
    read, thoughts, gates = generate_with_thoughts(quiet, tokens, 6, 0, think_above=float("inf"))
    assert len(calls) == 6 and (thoughts == -1).all() and (gates == 0).all()
    assert torch.equal(read, quiet.model.generate(tokens, 6, 0))


@pytest.mark.parametrize("think_above", [None, 0.1])
def test_a_given_text_is_read_as_it_would_be_written(think_above):
    """From `begin` on, against thinking at all its positions in parallel; the text stays as it is."""
    quiet, tokens, begin = tiny(thought_len=2, seed=11), ids(2, 12), 3
    read, thoughts, gates = generate_with_thoughts(quiet, tokens, 1, 0, think_above=think_above, begin=begin)
    assert torch.equal(read[:, :12], tokens) and thoughts.shape == (2, 10, 2)
    greedy = quiet.with_settings(thought_temperature=0.0, n_thoughts=1, n_true=1)
    with torch.no_grad():
        found = greedy.think(read, positions=torch.arange(begin - 1, 12).expand(2, -1))
        _, gate = greedy.talk(found)
        think = quiet.gain_head(found.h_base[:, 0, :, 0]) > (-torch.inf if think_above is None else think_above)
    assert think.any() and think.all() == (think_above is None)
    assert torch.equal(thoughts, found.tokens[:, 0].masked_fill(~think[..., None], -1))
    assert_close(gates, gate[:, 0, :, 0] * think, **CLOSE)
    for wrong, lengths in ((0, None), (13, None), (9, torch.tensor([12, 8]))):
        with pytest.raises(ValueError, match="begin must be"):
            generate_with_thoughts(quiet, tokens, 1, begin=wrong, lengths=lengths)


def test_thinking_where_it_pays_stops_when_all_rows_have_ended():
    quiet, tokens = tiny(thought_len=2, seed=11), ids(2, 4)
    read, thoughts, gates = generate_with_thoughts(quiet, tokens, 8, 0, think_above=0.1, stop=lambda new: len(new) > 2)
    assert read.shape == (2, 7) and thoughts.shape == (2, 3, 2) and gates.shape == (2, 3)
    whole = generate_with_thoughts(quiet, tokens, 8, 0, think_above=0.1)[0]
    assert torch.equal(read, whole[:, :7])


def test_generating_leaves_the_models_settings_alone_and_follows_its_generator():
    """Catches evaluation that turns training greedy, and a generator that is accepted and not used."""
    quiet = tiny(thought_len=2, n_thoughts=3, n_true=2)

    def draw(seed):
        return generate_with_thoughts(quiet, ids(2, 3), 10, generator=torch.Generator().manual_seed(seed))[0]

    assert torch.equal(draw(0), draw(0)) and not torch.equal(draw(0), draw(1))
    assert quiet.config == QuietSTaRConfig(thought_len=2, n_thoughts=3, n_true=2)


# ----------------------------------------------------------------------------------------------------------------------
# settings and refusals


@pytest.mark.parametrize(
    "field, value",
    [("thought_len", -1), ("n_thoughts", 0), ("n_true", 0), ("reward_on", "x"), ("baseline", "x"),
     ("thought_temperature", -1.0), ("log_prob_temperature", 0.0), ("embedding_scale", 0.0)],
)  # fmt: skip
def test_bad_settings_are_refused_by_name(field, value):
    """Catches a typo in a config that trains for hours as something else."""
    with pytest.raises(ValueError, match=field):
        QuietSTaRConfig(**{field: value})


@pytest.mark.parametrize("shape", [(2, 2, 6, 3), (2, 2, 5, 2), (3, 2, 6, 2), (2, 6, 2)])
def test_thoughts_of_a_wrong_shape_are_refused(shape):
    """Catches thoughts that broadcast silently over the wrong axis; (2, 2, 6, 2) is right here."""
    quiet = tiny(thought_len=2, n_true=2)
    quiet.think(ids(2, 8), ids(2, 2, 6, 2))
    with pytest.raises(ValueError, match="thoughts"):
        quiet.think(ids(2, 8), ids(*shape))


@pytest.mark.parametrize("position", [-1, 8])
def test_positions_out_of_the_text_are_refused(position):
    """Catches -1 taken for the last token by indexing."""
    with pytest.raises(ValueError, match="positions"):
        tiny().think(ids(1, 8), positions=torch.tensor([[0, position]]))


@pytest.mark.parametrize("length", [2, 3])
def test_a_text_without_room_for_a_thought_is_refused(length):
    """Catches a mean over nothing (n_true = 3 wants 4 tokens at least)."""
    quiet = tiny(n_true=3)
    quiet.think(ids(1, 4))
    with pytest.raises(ValueError, match="few"):
        quiet.think(ids(1, length))


def test_start_and_end_begin_as_the_embedding_given():
    """Catches a start embedding that becomes a scalar, and a scale applied once instead of undone."""
    tokens, embedding = ThoughtTokens(6, scale=50.0).double(), uniform(6)
    tokens.init_from(embedding)
    assert_close(tokens.start * 50, embedding)
    for vector in tokens():
        assert_close(vector, embedding)
    with pytest.raises(ValueError, match="shape"):
        tokens.init_from(embedding.mean())


def test_start_and_end_move_faster_by_the_scale():
    """Catches a speed-up by scaled gradients, which Adam undoes."""
    tokens = ThoughtTokens(6, scale=50.0).double()
    before = tokens()[0].detach().clone()
    (tokens()[0].sum() + tokens()[1].sum()).backward()
    torch.optim.Adam(tokens.parameters(), lr=1e-3).step()
    assert_close(before - tokens()[0], torch.full((6,), 50 * 1e-3, dtype=torch.float64), rtol=1e-4, atol=0)


def test_with_settings_shares_weights_and_leaves_the_original_alone():
    """Catches a copy of the weights (stale after the next step) and settings that leak back into training."""
    quiet = tiny(thought_len=2, n_true=2)
    other = quiet.with_settings(thought_temperature=0.0, n_thoughts=1)
    assert (quiet.config.thought_temperature, quiet.config.n_thoughts) == (1.0, 2)
    assert (other.config.thought_temperature, other.config.n_thoughts, other.config.n_true) == (0.0, 1, 2)
    for (name, one), (_, two) in zip(quiet.named_parameters(), other.named_parameters(), strict=True):
        assert one is two, name
    with pytest.raises(ValueError, match="n_true"):
        quiet.with_settings(n_true=0)
