"""The adapter for lm-evaluation-harness: its three questions, answered one at a time. The harness itself is not
wanted (a stand-in for its base class, and its way of cutting windows written down)."""

import subprocess
import sys
from types import SimpleNamespace

import pytest
import torch
from byte_tokenizer import write_byte_tokenizer
from naive import tiny
from tiny_runs import ROOT

from lib.weights import save_mistral
from studies.harness import adapter


def windows(ids, first, length):
    """Each token once, after as many before it as fit: (context, part)."""
    ids = [first, *ids]
    return [(ids[max(0, n - length) : n], ids[n : n + length]) for n in range(1, len(ids), length)]


@pytest.fixture
def model(tmp_path):
    save_mistral(tiny(vocab=258).float().model, tmp_path)
    write_byte_tokenizer(tmp_path)
    return adapter(object, windows)(
        run=str(tmp_path), thinking=False, batch_size=2, device="cpu", max_length=4
    )


def asked(*args):
    return SimpleNamespace(args=args)


@torch.no_grad()
def test_likelihoods_are_sums_of_one_token_at_a_time(model):
    plain, encode = tiny(vocab=258).float().model, model.tokenizer.encode

    def log_p(ids, first):
        scores = plain.logits(plain(torch.tensor([ids])))[0].log_softmax(-1)
        return sum(float(scores[k - 1, ids[k]]) for k in range(first, len(ids)))

    pairs = [("ab", "cd"), ("", "x"), ("longer than", " that")]
    found = model.loglikelihood([asked(*pair) for pair in pairs])
    for (context, text), (got, _) in zip(pairs, found, strict=True):
        assert got == pytest.approx(
            log_p(encode((context or "\n") + text), len(context) or 1), abs=1e-4
        )
    (rolling,) = model.loglikelihood_rolling([asked("abcdefghij")])
    parts = windows(encode("abcdefghij"), 256, 4)
    assert sum(len(part) for _, part in parts) == 10
    assert rolling == pytest.approx(sum(log_p([*c, *p], len(c)) for c, p in parts), abs=1e-4)


def test_each_request_is_written_as_it_asks(model):
    free = {"until": [], "max_gen_toks": 6}
    (whole,) = model.generate_until([asked("ab", free)])
    many = [
        asked("ab", free),
        asked("abc", {"until": "\n\n", "max_gen_toks": 3}),
        asked("ab", {"until": [whole[3:5]], "max_gen_toks": 6}),
    ]
    assert model.generate_until(many)[::2] == [
        whole,
        whole[: whole.index(whole[3:5], len(whole) - len(whole.lstrip()))],
    ]


def test_without_the_package_it_says_what_to_install():
    code = "import sys; sys.modules['lm_eval'] = None; from studies.harness import main; main()"
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True)
    assert (
        done.returncode == 1
        and done.stderr.strip() == "harness.py: error: this needs a package: pip install lm_eval"
    )
