"""An exported folder is the model of the run that it was made from."""

import pytest
import torch
from tiny_runs import SHAPE, go, same

from lib.export import export
from lib.runs import load_model, load_run
from lib.weights import load_mistral
from quiet_star import QuietSTaR


def test_a_thinking_model_loads_again_and_can_be_trained(work):
    """Catches a tensor, a setting or the tokenizer that is left behind, or that nobody misses."""
    go(work, "--out=run", "--max_steps=2", "--thought_len=2", "--lr=0.01", "--gain_head")
    export(work / "run", work / "weights")
    quiet, tokenizer, _, _ = load_run(work / "run")
    again, tokenizer_again, config, step = load_model(work / "weights")
    assert isinstance(again, QuietSTaR) and again.config == quiet.config
    assert (config, step) == (None, 0) and tokenizer_again.to_json() == tokenizer.to_json()
    assert same(again.state_dict(), quiet.state_dict())
    tokens = torch.tensor([[1, 2, 3]])
    assert torch.equal(load_mistral(work / "weights")(tokens), quiet.model(tokens))
    half, _, _, step = load_model(work / "run", dtype=torch.bfloat16)
    assert step == 2 and {p.dtype for p in half.parameters()} == {torch.bfloat16}

    go(work, "--init_from=weights", "--out=more", "--max_steps=1")
    heads = torch.load(work / "weights" / "quiet_star.pt", weights_only=True)
    heads.popitem()
    torch.save(heads, work / "weights" / "quiet_star.pt")
    with pytest.raises(ValueError, match=str(work / "weights")):
        load_model(work / "weights")


def contents(folder):
    return {path.name: path.read_bytes() for path in folder.iterdir() if path.name != "lock"}


@pytest.mark.parametrize("kind", ["base", "run", "weights", "of fewer steps", "data"])
def test_what_a_folder_holds_is_never_exported_over(work, kind):
    """Catches a run whose config.json is deleted, a folder that is a run and weights, or that holds
    parts of two models, and a thinking model that is lost."""
    go(work, "--out=run", "--max_steps=1", "--thought_len=2")
    if kind in ("weights", "of fewer steps"):
        export(work / ("run" if kind == "weights" else "base"), work / kind)
    go(work, "--out=base", "--objective=lm", "--init_from=", "--max_steps=4", *SHAPE)
    before = contents(work / kind)
    with pytest.raises(ValueError, match=kind) as error:
        export(work / "base", work / kind)
    assert contents(work / kind) == before and "\n" not in str(error.value)


def test_an_export_goes_on_where_it_was_stopped(work):
    """Catches a second try that is refused, or that leaves a part of the first."""
    export(work / "base", work / "weights")
    whole = contents(work / "weights")
    (work / "weights" / "params.json").unlink()
    export(work / "base", work / "weights")
    export(work / "base", work / "weights")
    assert contents(work / "weights") == whole
