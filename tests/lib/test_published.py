"""The authors' published model, against their formulas on an independent float64 model."""

import json
import shutil

import pytest
import torch
from safetensors.torch import save_file
from test_tokenizer import mistral_file
from torch import nn
from transformers import MistralConfig, MistralForCausalLM

from lib.questions import DIGITS, Respondent, single_ids, soft_and_greedy
from lib.runs import LoadConfig, load_model, load_to_think
from quiet_star import generate_with_thoughts

C = 16


class Release(nn.Module):
    """What the authors' code does when it evaluates, one position at a time: it reads the text, a
    start, the likeliest thought tokens among the first 32,000, and an end; w from the talk head
    mixes the logits."""

    def __init__(self):
        super().__init__()
        torch.manual_seed(0)
        shape = dict(vocab_size=32002, hidden_size=C, intermediate_size=24, num_hidden_layers=2)
        heads = dict(num_attention_heads=4, num_key_value_heads=2)
        config = MistralConfig(**shape, **heads, sliding_window=8, initializer_range=0.3)
        self.lm = MistralForCausalLM(config)
        first, inner = nn.Linear(2 * C, C), nn.Linear(C, C)
        layers = first, nn.ReLU(), inner, nn.ReLU(), nn.Linear(C, 1, bias=False)
        self.talk_head = nn.ModuleList([nn.Sequential(*layers)])
        self.start_embedding = nn.Parameter(torch.randn(2, C) * 0.003)
        self.end_embedding = nn.Parameter(torch.randn(2, C) * 0.003)

    def hidden(self, embeddings):
        return self.lm.model(inputs_embeds=embeddings[None]).last_hidden_state[0, -1]

    def logits(self, ids, thought_len, start=None):
        """The mixed logits (V,) of the token after ids (T,)."""
        read = self.lm.model.embed_tokens(ids)
        h_base, end = self.hidden(read), start
        if start is None:
            start, end = 100 * self.start_embedding[0], 100 * self.end_embedding[0]
        read = torch.cat((read, start[None]))
        for _ in range(thought_len):
            token = self.lm.lm_head(self.hidden(read))[:32000].argmax()
            read = torch.cat((read, self.lm.model.embed_tokens(token)[None]))
        h = self.hidden(torch.cat((read, end[None])))
        w = self.talk_head[0](torch.cat((h_base, h)))
        return (1 - w) * self.lm.lm_head(h_base) + w * self.lm.lm_head(h)


@pytest.fixture(scope="module")
def published(tmp_path_factory):
    """(a folder as the authors published it, the model in float64)"""
    folder, release = tmp_path_factory.mktemp("published"), Release()
    release.lm.save_pretrained(folder, max_shard_size="1MB")
    thinks = {name: x.detach() for name, x in release.named_parameters() if name[:3] != "lm."}
    save_file(thinks, folder / "model-99999-of-99999.safetensors")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    index["weight_map"] |= dict.fromkeys(thinks, "model-99999-of-99999.safetensors")
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    shutil.copy(mistral_file("v1"), folder / "tokenizer.model")
    return folder, release.double()


@pytest.mark.parametrize("thought_len, start_text", [(None, ""), (2, ""), (3, "---")])
@torch.no_grad()
def test_soft_scores_are_those_of_the_release(published, thought_len, start_text):
    """Catches halves of the talk head swapped, a wrong embedding scale, and thoughts of another
    length than the release's default, five tokens."""
    folder, release = published
    load = LoadConfig(thought_len=thought_len, start_text=start_text)
    model, tokenizer, _, _ = load_to_think(folder, "cpu", load)
    assert model.config.thought_len == (5 if thought_len is None else thought_len)
    model, start, among = model.double(), None, single_ids(tokenizer, DIGITS)
    if start_text:
        start = release.lm.model.embed_tokens(torch.tensor(tokenizer.encode(start_text))).mean(0)
    for prompt, answer in [("Q: 2 plus 3?\nA:", " 5\n"), ("Q: Ten times 12?\nA:", " 120\n")]:
        ids = tokenizer.encode(prompt + answer, True)
        n, wanted = len(ids) - len(tokenizer.encode(prompt, True)), 1.0
        for k in range(len(ids) - n, len(ids)):
            logits = release.logits(torch.tensor(ids[:k]), model.config.thought_len, start)
            if ids[k] in among:
                wanted *= float(logits[among].softmax(-1)[among.index(ids[k])])
        read = Respondent(model, tokenizer, True).read([prompt], [answer])
        soft, _ = soft_and_greedy(*read, among)
        assert float(soft) == pytest.approx(wanted, abs=1e-6) and wanted > 1e-6


def test_tokens_that_stand_for_start_and_end_are_neither_read_nor_said(published):
    """Catches the two rows beyond the tokenizer's vocabulary left in, and a second copy of the
    weights in float32."""
    model, tokenizer, _, _ = load_model(published[0], dtype=torch.bfloat16)
    assert model.model.config.vocab_size == tokenizer.vocab_size == 32000
    assert model.model.output.weight.shape == model.model.tok_embeddings.weight.shape == (32000, C)
    assert {p.dtype for p in model.parameters()} == {torch.bfloat16}
    tokens, thoughts, _ = generate_with_thoughts(model, torch.tensor([[1, 5]]), 4)
    assert max(tokens.max(), thoughts.max()) < 32000


@pytest.mark.parametrize(
    "says, length",
    [({}, 5), ({"max_thoughts": 10}, 2), ({"n_ahead_talk": 2, "max_thoughts": 9}, 3)],
)
def test_the_length_of_thoughts_is_said(published, tmp_path, capsys, says, length):
    """Catches a config.json that silently gives other thoughts than the paper's."""
    folder = shutil.copytree(published[0], tmp_path / "published")
    config = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(config | says))
    assert load_model(folder)[0].config.thought_len == length
    assert f"thoughts of {length} tokens" in capsys.readouterr().err
    for wrong in ("10", 5):
        (folder / "config.json").write_text(json.dumps(config | {"max_thoughts": wrong}))
        with pytest.raises(ValueError, match=str(folder)) as error:
            load_model(folder)
        assert "\n" not in str(error.value)


def test_a_missing_tensor_is_named(published, tmp_path):
    """Catches a model that thinks with a layer of random numbers."""
    folder = shutil.copytree(published[0], tmp_path / "cut")
    index = json.loads((folder / "model.safetensors.index.json").read_text())
    del index["weight_map"]["talk_head.0.2.bias"]
    (folder / "model.safetensors.index.json").write_text(json.dumps(index))
    with pytest.raises(ValueError, match="talk_head.0.2.bias") as error:
        load_model(folder)
    assert str(folder) in str(error.value) and "\n" not in str(error.value)
