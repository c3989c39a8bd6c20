"""The method of quiet_star.py in loops: one text, one position, one thought at a time, in float64.

The first part is a tutorial, to be read from top to bottom: Algorithm 1 by plain forward passes.
quiet_star.py does the same in parallel, and the tests hold it to these loops. The second part,
below the line, only helps the tests. `model.Transformer` is trusted here (tests/test_model.py
checks it); nothing else is.
"""

import itertools
from types import SimpleNamespace

import torch
from torch.testing import assert_close

from beyond.kinds import ThinkingConfig, thinking_model
from model import ModelConfig, Transformer
from quiet_star import QuietSTaR, generate_with_thoughts, mean_weights, weighted_mean


def log_softmax(logits):
    return logits - logits.exp().sum().log()


def mean(numbers):
    return sum(numbers) / len(numbers) if numbers else 0.0


def start_and_end(quiet):
    """The vectors (C,) that the transformer reads where a thought starts and where it ends."""
    scale = quiet.config.embedding_scale
    return quiet.thought_tokens.start * scale, quiet.thought_tokens.end * scale


def naive_policy(quiet, text, thought):
    """The hidden state (C,) that predicts the next token of a thought at the end of a text: the
    transformer has read the text, start, and the thought so far."""
    embed, (start, _) = quiet.model.tok_embeddings.weight, start_and_end(quiet)
    read = torch.cat((embed[text], start[None], embed[thought]))
    return quiet.model(read[None])[0, -1]


def naive_thought(quiet, text, i, thought):
    """What a thought (m,) at position i of a text (L,) predicts. The transformer reads

        x_0 .. x_i, start, t_1 .. t_m, end, x_{i+1} .. x_{i+a-1}

    and the hidden states are h_policy (m, C), each about to say a token of the thought, and
    h_thought (a, C), each about to say a true token after it; fewer where the text ends before."""
    embed, (start, end) = quiet.model.tok_embeddings.weight, start_and_end(quiet)
    true = text[i + 1 : i + quiet.config.n_true]
    read = (embed[text[: i + 1]], start[None], embed[thought], end[None], embed[true])
    hidden = quiet.model(torch.cat(read)[None])[0]
    at_start = i + 1
    at_end = at_start + len(thought) + 1
    return hidden[at_start : at_end - 1], hidden[at_end:]


def naive_gate(quiet, h_base, h_thought):
    """The gate w, by the mixing head: a three-layer perceptron on [h_base ; h_thought]."""
    head = quiet.mixing_head
    first = torch.cat((head.base.weight, head.thought.weight), dim=1)
    x = first @ torch.cat((h_base, h_thought)) + head.base.bias
    x = head.inner.weight @ x.relu() + head.inner.bias
    return head.last.weight[0] @ x.relu()


def naive_learn(quiet, tokens, thoughts, positions, documents=None):
    """Algorithm 1 on thoughts (B, N, S, m) at positions (B, S) of texts, tokens (B, L). A token is
    predicted from its own document alone; documents (B, L) has its number, -1: padding.

    Returns the loss, the REINFORCE term in it, and the numbers that they are made of: a dict of
    dicts, numbers["reward"][b, n, s] for instance, with no entry for what does not count."""
    c, output = quiet.config, quiet.model.output.weight
    names = "nll_base nll_mixed gate reward advantage log_prob"
    numbers = {name: {} for name in names.split()}
    losses, reinforces = [], []  # of each text
    for b, text in enumerate(tokens):
        document = torch.zeros_like(text) if documents is None else documents[b]

        def counts(i, k):  # is x_k predicted from position i?
            return k < len(text) and document[i] == document[k] and document[k] >= 0

        # read the text without thoughts
        hidden = quiet.model(text[None])[0]
        nll_base, nll_mixed, policy_losses = [], [], []
        for k in range(1, len(text)):
            if counts(k - 1, k):
                numbers["nll_base"][b, k - 1] = -log_softmax(output @ hidden[k - 1])[text[k]]
                nll_base.append(numbers["nll_base"][b, k - 1])

        for s, i in enumerate(positions[b].tolist()):
            depths = [j for j in range(1, c.n_true + 1) if counts(i, i + j)]
            log_p_thoughts, rewards = [], []
            for n, thought in enumerate(thoughts[b, :, s]):
                # THINK: log p of the thought's tokens
                h_policy, h_thought = naive_thought(quiet, text, i, thought)
                log_p_thought = 0.0
                for t, token in enumerate(thought):
                    log_p = log_softmax(output @ h_policy[t] / c.log_prob_temperature)
                    numbers["log_prob"][b, n, s, t] = log_p[token]
                    log_p_thought += log_p[token]
                # TALK: mix the predictions without and with the thought, of each true token
                reward = 0.0
                for j in depths:
                    h_base, h_after = hidden[i + j - 1], h_thought[j - 1]
                    w = naive_gate(quiet, h_base, h_after)
                    base, after = log_softmax(output @ h_base), log_softmax(output @ h_after)
                    mixed = log_softmax((1 - w) * base + w * after)
                    # LEARN: how much likelier did the thought make it? A number, no gradient
                    rewarded, true = mixed if c.reward_on == "mixed" else after, text[i + j]
                    reward += (rewarded[true] - base[true]).item()
                    nll_mixed.append(-mixed[true])
                    numbers["gate"][b, n, s, j - 1] = w
                    numbers["nll_mixed"][b, n, s, j - 1] = -mixed[true]
                log_p_thoughts.append(log_p_thought)
                rewards.append(reward)

            # reinforce each thought by how much it beats the others of its position
            for n, (reward, log_p_thought) in enumerate(zip(rewards, log_p_thoughts, strict=True)):
                advantage = reward - mean(rewards[:n] + rewards[n + 1 :])
                if c.clamp_advantage:
                    advantage = max(0.0, advantage)
                numbers["reward"][b, n, s], numbers["advantage"][b, n, s] = reward, advantage
                if depths:
                    policy_losses.append(-advantage * log_p_thought)

        reinforces.append(mean(policy_losses))
        prediction = 0.5 * mean(nll_base) + 0.5 * mean(nll_mixed)
        losses.append(prediction + c.reinforce_weight * reinforces[-1])
    return mean(losses), mean(reinforces), numbers


# ---- The end of the tutorial. What follows only helps the tests

VOCAB = 11
CLOSE = dict(rtol=1e-9, atol=1e-9)
DOCUMENTS = torch.tensor([[0, 0, 0, 0, 1, 1, 1, 1, 1], [0, 0, 0, 2, 2, 2, -1, -1, -1], [5] * 9])
POSITIONS = torch.tensor([[0, 2, 3, 6, 7], [1, 3, 5, 6, 7], [7, 4, 5, 8, 6]])


def tiny(window=None, vocab=VOCAB, n_layers=2, seed=0, fast=False, how=None, **config):
    """A small random QuietSTaR in float64, with n_heads != n_kv_heads and a gate far from 0, in the
    form of quiet_star.py, or of fast.py."""
    torch.manual_seed(seed)
    shape = dict(dim=16, n_layers=n_layers, head_dim=4, hidden_dim=24, n_heads=4, n_kv_heads=2)
    model = Transformer(ModelConfig(**shape, vocab_size=vocab, sliding_window=window))
    quiet = thinking_model(model, ThinkingConfig(**config), fast, **(how or {})).double()
    for name, weight in quiet.named_parameters():
        torch.nn.init.normal_(weight, mean=1.0 if "norm" in name else 0.0, std=0.3)
    for weight in quiet.thought_tokens.parameters():
        weight.data /= quiet.config.embedding_scale
    return quiet


def ids(*shape, seed=1, vocab=VOCAB):
    return torch.randint(vocab, shape, generator=torch.Generator().manual_seed(seed))


def uniform(*shape, seed=2):
    return torch.rand(shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def gradients(loss, quiet):
    """The gradient of a loss by the parameter's name; 0 where there is none."""
    names, weights = zip(*quiet.named_parameters(), strict=True)
    more = dict(retain_graph=True, materialize_grads=True)
    return dict(zip(names, torch.autograd.grad(loss, weights, **more), strict=True))


def assert_same_gradients(quiet, one, other, rtol=1e-9, atol=1e-9):
    """Two losses of one model have one gradient."""
    one, other = gradients(one, quiet), gradients(other, quiet)
    for name in other:
        assert_close(one[name], other[name], rtol=rtol, atol=atol, msg=name)


def likeliest_thought(quiet, text, length):
    """The greedy thought of so many tokens at the end of a text."""
    thought = text.new_empty(0)
    for _ in range(length):
        token = (quiet.model.output.weight @ naive_policy(quiet, text, thought)).argmax()
        thought = torch.cat((thought, token[None]))
    return thought


def assert_speech_is_naive(quiet, tokens, new, thought_of, **how):
    """What is spoken from texts, tokens (B, T), at temperature 0 is what each whole text leads to,
    read anew for each token. thought_of(text, h_base): the thought there, None: none. Returns what
    was spoken, as generate_with_thoughts does."""
    read, thoughts, gates = generate_with_thoughts(quiet, tokens, new, temperature=0, **how)
    T, m = tokens.shape[1], quiet.config.thought_len
    assert read.shape == (len(tokens), T + new) and torch.equal(read[:, :T], tokens)
    assert thoughts.shape == (len(tokens), new, m) and gates.shape == (len(tokens), new)
    with torch.no_grad():
        for b, k in itertools.product(range(len(tokens)), range(new)):
            text = read[b, : T + k]
            h, gate = quiet.model(text[None])[0, -1], torch.zeros((), dtype=torch.float64)
            thought, shown = thought_of(text, h), [-1] * m
            if thought is not None:
                after = naive_thought(quiet, text, len(text) - 1, thought)[1][0]
                gate = naive_gate(quiet, h, after)
                h = h + gate * (after - h)
                shown = thought.tolist() + [-2] * (m - len(thought))
            assert thoughts[b, k].tolist() == shown
            assert_close(gates[b, k], gate, **CLOSE)
            assert read[b, T + k] == (quiet.model.output.weight @ h).argmax()
    return read, thoughts, gates


def naive_gain_error(quiet, tokens, positions, numbers):
    """The error of the gain head, whose perceptron expects the mean gain of a position's thoughts
    in log p of the true tokens, from `numbers` of naive_learn."""
    gains = {}
    for (b, _, s, j), nll in numbers["nll_mixed"].items():
        nll_base = numbers["nll_base"][b, positions[b, s].item() + j]
        gains.setdefault((b, s), []).append((nll_base - nll).item())
    n_thoughts = 1 + max(n for _, n, _ in numbers["reward"])
    errors = [[] for _ in tokens]
    for (b, s), parts in gains.items():
        h = quiet.model(tokens[b : b + 1])[0, positions[b, s]].detach()
        expected = quiet.gain_head.last(quiet.gain_head.inner(h).relu())[0]
        errors[b].append((expected - sum(parts) / n_thoughts) ** 2)
    return mean([mean(of_text) for of_text in errors])


def think(quiet, tokens, thoughts=None, positions=None, noise=None):
    """Thoughts about texts, tokens (B, L), with their positions and the text that they saw."""
    text = quiet.read(tokens)
    positions = quiet.choose(positions, text)
    thinking = quiet.think(text, positions, thoughts, noise)
    hidden = {name: x for name, x in thinking._asdict().items() if name != "thoughts"}
    about = dict(positions=positions, text=text, tokens=thinking.thoughts, thinking=thinking)
    return SimpleNamespace(**hidden, **about)


def learn(quiet, tokens, thinking, documents=None):
    """What forward makes of thoughts (see `think`), with every number that is summed up in it.
    nll_base (B, L-1), valid_base likewise: what counts in the text's own loss."""
    config = quiet.config
    documents = torch.zeros_like(tokens) if documents is None else documents
    log_p_text = quiet.log_prob(thinking.text.hidden[:, :-1], tokens[:, 1:])
    valid_base = (documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] >= 0)
    targets = quiet.targets(tokens, thinking.positions, documents, log_p_text.detach())
    h_mixed, gate = quiet.talk(thinking.h_base, thinking.h_thought)
    log_p = log_p_mixed = quiet.log_prob(h_mixed, targets.tokens[:, None])
    arguments = thinking.thinking, h_mixed, gate, log_p_mixed, targets
    loss, error = quiet.learn(*arguments)[0], torch.zeros((), dtype=torch.float64)
    if config.gain_head:
        error = loss - QuietSTaR.learn(quiet, *arguments)[0]
    if config.reward_on == "thought":
        log_p = quiet.log_prob(thinking.h_thought, targets.tokens[:, None])
    temperature = config.log_prob_temperature
    log_prob = quiet.log_prob(thinking.h_policy, thinking.tokens, temperature)
    reward, advantage = quiet.credit(thinking.thinking, log_p.detach(), h_mixed, targets)
    numbers = dict(log_prob=log_prob, advantage=advantage[..., 0], reward=reward, gate=gate)
    numbers |= dict(nll_base=-log_p_text, nll_mixed=-log_p_mixed, gain_error=error)
    numbers |= dict(valid=targets.valid, valid_base=valid_base)
    numbers["loss"] = loss - error - 0.5 * weighted_mean(mean_weights(valid_base), log_p_text)
    nll_mixed = weighted_mean(targets.token_weights, -log_p_mixed)
    numbers["reinforce"] = (loss - 0.5 * nll_mixed - error) / config.reinforce_weight
    return SimpleNamespace(**numbers)


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
