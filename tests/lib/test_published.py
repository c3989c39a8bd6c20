"""The authors' published model, against their formulas on an independent float64 model."""

import importlib.util
import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import nn
from transformers import MistralConfig, MistralForCausalLM

from lib.questions import DIGITS, Respondent, single_ids, soft_and_greedy
from lib.runs import LoadConfig, load_model, load_to_think
from lib.tokenizer import load_tokenizer
from model import Transformer
from quiet_star import QuietSTaR, generate_with_thoughts
from sample import SampleConfig, say

C = 16
SHAPE = dict(
    vocab_size=32002,
    hidden_size=C,
    intermediate_size=24,
    num_hidden_layers=2,
    num_attention_heads=4,
)


class Release(nn.Module):
    """What the authors' code does when it evaluates, one position at a time: the text, a start, thought tokens that are
    the likeliest among the first 32,000, an end; w from the talk head mixes the logits."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        config = MistralConfig(
            num_key_value_heads=2, sliding_window=8, initializer_range=0.3, **SHAPE
        )
        self.lm = MistralForCausalLM(config)
        layers = (
            nn.Linear(2 * C, C),
            nn.ReLU(),
            nn.Linear(C, C),
            nn.ReLU(),
            nn.Linear(C, 1, bias=False),
        )
        self.talk_head = nn.ModuleList([nn.Sequential(*layers)])
        self.start_embedding, self.end_embedding = (
            nn.Parameter(torch.randn(2, C) * 0.003) for _ in range(2)
        )

    def hidden(self, embeddings):
        return self.lm.model(inputs_embeds=embeddings[None]).last_hidden_state[0, -1]

    def logits(self, ids, thought_len, start=None):
        """Of the token after ids (T,): without a thought, and mixed."""
        read = self.lm.model.embed_tokens(ids)
        h_base = self.hidden(read)
        start, end = (
            (start, start)
            if start is not None
            else (100 * self.start_embedding[0], 100 * self.end_embedding[0])
        )
        read = torch.cat((read, start[None]))
        for _ in range(thought_len):
            token = self.lm.lm_head(self.hidden(read))[:32000].argmax()
            read = torch.cat((read, self.lm.model.embed_tokens(token)[None]))
        h = self.hidden(torch.cat((read, end[None])))
        w = self.talk_head[0](torch.cat((h_base, h)))
        return (1 - w) * self.lm.lm_head(h_base) + w * self.lm.lm_head(h)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """(the folder, the model in float64)"""
    folder, release = tmp_path_factory.mktemp("published"), Release()
    release.lm.save_pretrained(folder, max_shard_size="1MB")
    more = {
        name: x.detach().clone()
        for name, x in release.named_parameters()
        if not name.startswith("lm.")
    }
    save_file(more, folder / "model-99999-of-99999.safetensors")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] |= dict.fromkeys(more, "model-99999-of-99999.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    v1 = (
        Path(importlib.util.find_spec("mistral_common").submodule_search_locations[0])
        / "data"
        / "tokenizer.model.v1"
    )
    shutil.copy(v1, folder / "tokenizer.model")
    return folder, release.double()


QUESTIONS = [("Q: What is 2 plus 3?\nA:", " 5\n"), ("Q: How many are ten times 12?\nA:", " 120\n")]


@pytest.mark.parametrize("thought_len, start_text", [(None, ""), (2, ""), (3, "---")])
@torch.no_grad()
def test_soft_scores_are_those_of_the_release(published, thought_len, start_text):
    folder, release = published
    load = LoadConfig(thought_len=thought_len, start_text=start_text)
    model, tokenizer, _, _ = load_to_think(folder, "cpu", load)
    assert model.config.thought_len == (5 if thought_len is None else thought_len)
    model, start = model.double(), None
    if start_text:
        start = release.lm.model.embed_tokens(torch.tensor(tokenizer.encode(start_text))).mean(0)
    among = single_ids(tokenizer, DIGITS)
    for prompt, answer in QUESTIONS:
        ids = tokenizer.encode(prompt + answer, True)
        n, wanted = len(ids) - len(tokenizer.encode(prompt, True)), 1.0
        for k in range(len(ids) - n, len(ids)):
            logits = release.logits(torch.tensor(ids[:k]), model.config.thought_len, start)
            if ids[k] in among:
                wanted *= float(logits[among].softmax(-1)[among.index(ids[k])])
        read = Respondent(model, tokenizer, True).read([prompt], [answer])
        soft, _ = soft_and_greedy(*read, among)
        assert float(soft) == pytest.approx(wanted, abs=1e-6) and wanted > 1e-6


def test_tokens_that_stand_for_start_and_end_can_be_neither_read_nor_said(published):
    model, tokenizer, _, _ = load_model(published[0])
    assert (
        isinstance(model, QuietSTaR)
        and model.model.config.vocab_size == tokenizer.vocab_size == 32000
    )
    assert model.model.output.weight.shape == model.model.tok_embeddings.weight.shape == (32000, C)
    assert torch.equal(model.thought_tokens()[0], published[1].start_embedding[0].float() * 100)
    tokens, thoughts, _ = generate_with_thoughts(model, torch.tensor([[1, 5]]), 4)
    assert max(tokens.max(), thoughts.max()) < 32000
    assert not hasattr(model, "gain_head")


def test_it_is_read_in_bfloat16_without_a_copy_in_float32(published):
    model, *_ = load_model(published[0], dtype=torch.bfloat16)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    generate_with_thoughts(model, torch.tensor([[1, 5]]), 2)


def test_it_speaks_and_says_why_it_cannot_tell_where_a_thought_pays(published, capsys):
    say(
        SampleConfig(
            run=str(published[0]), prompt="Two", max_new_tokens=2, show_thoughts=True, device="cpu"
        )
    )
    assert "thought before it" in capsys.readouterr().out
    with pytest.raises(ValueError, match="no gain head"):
        say(SampleConfig(run=str(published[0]), prompt="Two", price=0.1, device="cpu"))


def test_sampled_thoughts_are_the_same_each_time_and_not_the_greedy_ones(published):
    model, tokenizer, _, _ = load_model(published[0])
    found = []
    for temperature in (1.0, 1.0, 0.0):
        torch.manual_seed(0)
        found.append(Respondent(model, tokenizer, True, temperature).read(["A:"], [" 12\n"])[1])
    assert torch.equal(found[0], found[1]) and not torch.allclose(found[0], found[2])


def test_a_tensor_that_is_missing_is_named(published, tmp_path):
    folder = tmp_path / "cut"
    shutil.copytree(published[0], folder)
    path = folder / "model-99999-of-99999.safetensors"
    weights = load_file(path)
    del weights["talk_head.0.2.bias"]
    save_file(weights, path)
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    del index["weight_map"]["talk_head.0.2.bias"]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match=r"holds nothing for talk_head.0.2.bias") as error:
        load_model(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)


def test_rows_beyond_the_tokenizer_are_cut_off_of_any_model(tmp_path):
    """A vocabulary that was padded: nothing there is ever said."""
    theirs = MistralForCausalLM(MistralConfig(num_key_value_heads=2, **SHAPE))
    theirs.save_pretrained(tmp_path)
    v1 = (
        Path(importlib.util.find_spec("mistral_common").submodule_search_locations[0])
        / "data"
        / "tokenizer.model.v1"
    )
    shutil.copy(v1, tmp_path / "tokenizer.model")
    model, *_ = load_model(tmp_path)
    assert isinstance(model, Transformer) and model.config.vocab_size == 32000
    tokens = torch.tensor([[1, 5, 9]])
    torch.testing.assert_close(
        model.logits(model(tokens)), theirs(tokens).logits[..., :32000], atol=1e-4, rtol=1e-4
    )


def test_what_a_folder_is_is_told_by_what_is_in_it(tmp_path, monkeypatch):
    """A name on a hub says how to get it; an empty folder, what is wanted."""
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ValueError, match="hf download some/model-1B --local-dir=weights/model-1B"):
        load_model("some/model-1B")
    with pytest.raises(ValueError, match="hf download some/model-1B"):
        load_tokenizer("some/model-1B")
    with pytest.raises(ValueError, match="there is no nowhere: a run, or weights"):
        load_model("nowhere")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ValueError, match="empty holds neither a run .* nor weights"):
        load_model("empty")
