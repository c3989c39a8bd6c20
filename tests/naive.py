"""The method done one thought at a time, in float64: plain causal forwards and loops. What is fast
is held to this.

`model.Transformer` is trusted here (tests/test_model.py checks it); nothing else is.
"""

from types import SimpleNamespace

import torch
from torch.testing import assert_close

from beyond.kinds import ThinkingConfig, thinking_model
from model import ModelConfig, Transformer
from quiet_star import mean_weights, weighted_mean

VOCAB = 11
CLOSE = dict(rtol=1e-9, atol=1e-9)


def tiny(
    window=None, vocab=VOCAB, n_layers=2, seed=0, zero_gate=False, fast=False, how=None, **config
):
    """A small random QuietSTaR in float64, with n_heads != n_kv_heads and (unless zero_gate) a gate
    far from 0, in the form of quiet_star.py, or of fast.py."""
    torch.manual_seed(seed)
    shape = dict(dim=16, n_layers=n_layers, head_dim=4, hidden_dim=24, n_heads=4, n_kv_heads=2)
    model = Transformer(ModelConfig(**shape, vocab_size=vocab, sliding_window=window))
    quiet = thinking_model(model, ThinkingConfig(**config), fast, **(how or {})).double()
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
    found = torch.autograd.grad(
        loss, list(quiet.parameters()), allow_unused=True, retain_graph=True
    )
    return {
        name: torch.zeros_like(weight) if grad is None else grad
        for (name, weight), grad in zip(quiet.named_parameters(), found, strict=True)
    }


def start_and_end(quiet):
    scale = quiet.config.embedding_scale
    return quiet.thought_tokens.start * scale, quiet.thought_tokens.end * scale


def naive_policy(quiet, text, thought):
    """Hidden state that is about to say what follows: plain causal forward on [text, start, thought
    so far]."""
    embed = quiet.model.tok_embeddings.weight
    return quiet.model(
        torch.cat((embed[text], start_and_end(quiet)[0][None], embed[thought]))[None]
    )[0, -1]  # (C,)


def naive_thought(quiet, text, i, thought):
    """One thought of one position of one text (L,): h_policy (m, C) and h_thought (a or fewer, C),
    by a plain causal forward on [x_0 .. x_i, start, t_1 .. t_m, end, x_{i+1} .. x_{i+a-1}]; fewer
    where the text ends before."""
    embed, (start, end) = quiet.model.tok_embeddings.weight, start_and_end(quiet)
    m, true = len(thought), text[i + 1 : i + quiet.config.n_true]
    h = quiet.model(
        torch.cat((embed[text[: i + 1]], start[None], embed[thought], end[None], embed[true]))[None]
    )[0]
    return h[i + 1 : i + 1 + m], h[i + 1 + m + 1 :]


def naive_gate(quiet, h_base, h_thought):
    """The mixing head of the paper: a three-layer perceptron on [h_base ; h_thought]."""
    head = quiet.mixing_head
    first = (
        torch.cat((head.base.weight, head.thought.weight), dim=1) @ torch.cat((h_base, h_thought))
        + head.base.bias
    )
    return head.last.weight[0] @ (head.inner.weight @ first.relu() + head.inner.bias).relu()


def log_softmax(x):
    return x - x.exp().sum().log()


def assert_thoughts_are_the_naive_ones(quiet, tokens, got):
    """h_text, h_base, h_policy, h_thought of every text, thought, position and depth, one at a
    time."""
    a, (B, L) = quiet.config.n_true, tokens.shape
    for b in range(B):
        h_text = quiet.model(tokens[b : b + 1])[0]
        assert_close(quiet.read(tokens).hidden[b], h_text, **CLOSE)
        for s, i in enumerate(got.positions[b].tolist()):
            depths = min(a, L - i)  # the rest would read beyond the text
            assert_close(got.h_base[b, 0, s, :depths], h_text[i : i + depths], **CLOSE)
            for n in range(got.tokens.shape[1]):
                h_policy, h_thought = naive_thought(quiet, tokens[b], i, got.tokens[b, n, s])
                assert len(h_thought) == depths
                assert_close(got.h_policy[b, n, s], h_policy, **CLOSE)
                assert_close(got.h_thought[b, n, s, :depths], h_thought, **CLOSE)


DOCUMENTS = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 2, 2, 2, -1, -1, -1], [5] * 9])
POSITIONS = torch.tensor([[0, 2, 3, 6, 7], [1, 3, 5, 6, 7], [7, 4, 5, 8, 6]])


def naive_learn(quiet, tokens, thoughts, positions, documents):
    """Algorithm 1 in loops: (fields of Learned, each a dict from index to number where valid; loss;
    REINFORCE term; error of the predicted gains)."""
    c, head, (B, L) = quiet.config, quiet.model.output.weight, tokens.shape
    N, m = thoughts.shape[1], thoughts.shape[3]
    fields = {
        name: {} for name in ("nll_base", "nll_mixed", "gate", "reward", "advantage", "log_prob")
    }
    losses, reinforces, gain_errors = [], [], []  # of each text

    def belongs(b, i, k):  # may x_k be predicted from x_i?
        return k < L and (
            documents is None or documents[b, i] == documents[b, k] and documents[b, k] >= 0
        )

    def mean(numbers):
        return sum(numbers) / len(numbers) if numbers else 0.0

    for b in range(B):
        h_text = quiet.model(tokens[b : b + 1])[0]
        log_p_base = [
            log_softmax(head @ h_text[k - 1])[tokens[b, k]] for k in range(1, L)
        ]  # of x_1, x_2, ...
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
                    after = log_softmax(
                        (1 - w) * log_softmax(head @ h_b) + w * log_softmax(head @ h_t)
                    )[target]
                    fields["gate"][b, n, s, j - 1], fields["nll_mixed"][b, n, s, j - 1] = w, -after
                    mixed.append(-after)
                    scored = after if c.reward_on == "mixed" else log_softmax(head @ h_t)[target]
                    reward += (scored - log_p_base[i + j - 1]).item()
                    gain += (after - log_p_base[i + j - 1]).item()
                rewards.append(reward)
                gains.append(gain)
            if depths and c.gain_head:
                errors.append((naive_gain(quiet, h_text[i]) - mean(gains)) ** 2)
            for n in range(N):
                others = rewards[:n] + rewards[n + 1 :]
                advantage = rewards[n] - mean(others)
                advantage = max(0.0, advantage) if c.clamp_advantage else advantage
                fields["reward"][b, n, s], fields["advantage"][b, n, s] = rewards[n], advantage
                if depths:
                    policy_losses.append(
                        -advantage * sum(fields["log_prob"][b, n, s, t] for t in range(m))
                    )
        fields["nll_base"] |= base
        reinforces.append(mean(policy_losses))
        gain_errors.append(mean(errors))
        losses.append(
            0.5 * mean(list(base.values()))
            + 0.5 * mean(mixed)
            + c.reinforce_weight * reinforces[-1]
        )
    return fields, mean(losses), mean(reinforces), mean(gain_errors)


def naive_gain(quiet, h_base):
    head = quiet.gain_head
    return head.last(torch.relu(head.inner(h_base.detach())))[0]


def think(quiet, tokens, thoughts=None, positions=None, noise=None):
    """Thoughts about texts, tokens (B, L), with their positions and the text that they looked
    at."""
    text = quiet.read(tokens)
    positions = quiet.choose(positions, text)
    found = quiet.think(text, positions, thoughts, noise)
    return SimpleNamespace(**found._asdict(), positions=positions, text=text, found=found)


def learn(quiet, tokens, thoughts, documents=None):
    """What forward makes of thoughts (see `think`), with every number that is summed up in it.
    nll_base (B, L-1), valid_base likewise: what counts in the text's own loss."""
    documents = torch.zeros_like(tokens) if documents is None else documents
    log_p_text = quiet.log_prob(thoughts.text.hidden[:, :-1], tokens[:, 1:])
    valid_base = (documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] >= 0)
    targets = quiet.targets(tokens, thoughts.positions, documents, log_p_text.detach())
    h_mixed, gate = quiet.talk(thoughts.h_base, thoughts.h_thought)
    loss, values = quiet.learn(thoughts.found, h_mixed, gate, targets)
    nll_mixed = weighted_mean(targets.token_weights, values["nll_mixed"])
    error = weighted_mean(targets.position_weights, values.get("gain_error", 0 * gate.sum((1, 3))))
    config = quiet.config
    log_p = -values["nll_mixed"]
    if config.reward_on == "thought":
        log_p = quiet.log_prob(thoughts.h_thought, targets.tokens[:, None].expand(gate.shape))
    temperature = config.log_prob_temperature
    return SimpleNamespace(
        loss=loss - error - 0.5 * weighted_mean(mean_weights(valid_base), log_p_text),
        reinforce=(loss - 0.5 * nll_mixed - error) / config.reinforce_weight,
        reward=values["reward"],
        advantage=quiet.credit(log_p.detach(), h_mixed, targets)[1][..., 0],
        log_prob=quiet.log_prob(thoughts.h_policy, thoughts.tokens, temperature),
        gate=gate,
        gain_error=error,
        nll_base=-log_p_text,
        nll_mixed=values["nll_mixed"],
        valid=targets.valid,
        valid_base=valid_base,
    )


def count_forwards(quiet):
    """A list that grows by one with each call of the transformer."""
    calls = []
    quiet.model.register_forward_hook(lambda *_: calls.append(1))
    return calls


def thought_layout(T, steps):
    """The triples (position, thought, step), each (T + steps * T,), of a text whose every position
    has one thought: T text tokens, then T tokens of step 0, T of step 1, ... (the order of the
    picture in thought_mask)."""
    step = torch.arange(-1, steps).repeat_interleave(T)
    thought = step.clamp(max=0)  # -1 for the text; the one thought is number 0
    return torch.arange(T).repeat(steps + 1), thought, step
