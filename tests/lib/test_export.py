"""An exported folder is the model of the run that it was made from."""

import torch
from tiny_runs import go

from lib.export import export
from lib.runs import load_model, load_run
from lib.weights import load_mistral
from quiet_star import QuietSTaR


def test_a_thinking_model_loads_again_and_can_be_trained(work):
    """Catches a tensor, a setting or the tokenizer that is left behind, and a plain model that is
    exported over one that thinks and still thinks."""
    go(work, "--out=run", "--max_steps=1", "--thought_len=2")
    export(work / "run", work / "weights")
    quiet, tokenizer, _, _ = load_run(work / "run")
    again, tokenizer_again, config, step = load_model(work / "weights")
    assert isinstance(again, QuietSTaR) and again.config == quiet.config
    assert (config, step) == (None, 0) and tokenizer_again.to_json() == tokenizer.to_json()
    for name, tensor in quiet.state_dict().items():
        assert torch.equal(again.state_dict()[name], tensor), name
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(load_mistral(work / "weights")(tokens), quiet.model(tokens))

    go(work, "--init_from=weights", "--out=more", "--max_steps=1")
    export(work / "base", work / "weights")
    assert not isinstance(load_model(work / "weights")[0], QuietSTaR)
