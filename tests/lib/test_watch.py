"""What one watches in training: thoughts with their rewards and gates, and memory."""

import json

import numpy as np
import pytest
import torch
from naive import ids, naive_gate, naive_thought, tiny
from tiny_runs import go

from lib.checkpoint import read_checkpoint
from lib.runs import read_log
from lib.tokenizer import CharTokenizer
from lib.watch import log_thoughts, most_memory, some_thoughts


@torch.no_grad()
def test_the_thoughts_that_are_shown_have_their_own_reward_and_gate():
    quiet, tokens, tokenizer = (
        tiny(thought_len=2, n_true=2, n_thoughts=3),
        ids(1, 12),
        CharTokenizer("abcdefghijk"),
    )
    found, text = (
        some_thoughts(quiet, tokens, tokenizer, count=3),
        tokenizer.decode(tokens[0].tolist()),
    )
    assert len(found) == 3 and found == some_thoughts(quiet, tokens, tokenizer, count=3)
    for one in found:
        i = len(one["text"]) - 1
        assert one["text"] == text[: i + 1] and one["next"] == text[i + 1]
        thought = torch.tensor(tokenizer.encode(one["thought"]))
        h_text, h_thought = quiet.model(tokens)[0], naive_thought(quiet, tokens[0], i, thought)[1]
        reward = 0.0
        for j in range(2):
            h = h_text[i + j]
            w = naive_gate(quiet, h, h_thought[j])
            one["gate"] = (
                one["gate"] if j else pytest.approx(one["gate"]) == float(w) and one["gate"]
            )
            mixed, base = (
                quiet.model.logits(x).log_softmax(-1) for x in (h + w * (h_thought[j] - h), h)
            )
            reward += float((mixed - base)[tokens[0, i + j + 1]])
        assert one["reward"] == pytest.approx(reward) and one["gate"]


def test_a_run_leaves_them_beside_its_log_and_learns_the_same(work):
    go(work, "--out=looks", "--max_steps=4", "--eval_every=2")
    go(work, "--out=does_not", "--max_steps=4", "--eval_every=0")
    one, other = (read_checkpoint(work / name)["model"] for name in ("looks", "does_not"))
    assert all(torch.equal(one[name], other[name]) for name in one)
    lines = [
        json.loads(line) for line in (work / "looks" / "thoughts.jsonl").read_text().splitlines()
    ]
    assert [line["step"] for line in lines] == [2] * 4 + [4] * 4
    log_thoughts(
        work / "looks", 4, [{"text": "again"}]
    )  # gone on with from a checkpoint before step 4
    again = [
        json.loads(line) for line in (work / "looks" / "thoughts.jsonl").read_text().splitlines()
    ]
    assert again == [*lines[:4], {"step": 4, "text": "again"}]
    assert lines[0].keys() == {"step", "text", "thought", "next", "reward", "gate"}
    assert all(0.01 < line["peak_memory_gb"] < 100 for line in read_log(work / "looks"))


def test_the_most_memory_is_that_of_the_largest_moment():
    before = most_memory("cpu", forget=True)
    np.ones(30_000_000)
    assert 2e8 < most_memory("cpu") - before < 4e8
