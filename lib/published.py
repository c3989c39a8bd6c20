"""
The authors' published model, `ezelikman/quietstar-8-ahead`: a Hugging Face folder of a Mistral with
a vocabulary of 32,002. Its start and end of thought and its mixing head are among its tensors:

  start_embedding, end_embedding (2, C)   row 0, times 100 (our embedding_scale); row 1 is not used
  talk_head.0.0 (C, 2C), .2, .4           MixingHead.base and .thought; .inner; .last
  rows 32000 and 32001 of the vocabulary  tokens in place of start and end: never read or said
  max_thoughts, n_ahead_talk              of config.json: n_ahead + n_true + 1, and n_true
  n_ahead                                 tokens of a thought, start, end, and the first true token
"""

import sys

from lib.checkpoint import checked_weight
from lib.files import check, read_json, reading
from lib.weights import stored_tensors

THINKS = ("talk_head.", "start_embedding", "end_embedding")  # how the names of these tensors begin
VOCABULARY = 32000


def read_published(folder, dtype):
    """The tensors of a QuietSTaR that are not its Transformer's, {name: tensor}, and the settings
    of its QuietSTaRConfig; None if the authors' code did not train these weights. Raises ValueError
    if a tensor is missing."""
    if (folder / "params.json").exists():  # the official layout
        return None
    theirs = {
        name: checked_weight(tensor, name, path).to(dtype)
        for path, name, tensor in stored_tensors(folder)
        if name.startswith(THINKS)
    }
    if not theirs:
        return None
    with reading(folder, "lacks a tensor of the authors' release"):
        weights = {
            "mixing_head.base.weight": theirs["talk_head.0.0.weight"].chunk(2, dim=1)[0],
            "mixing_head.base.bias": theirs["talk_head.0.0.bias"],
            "mixing_head.thought.weight": theirs["talk_head.0.0.weight"].chunk(2, dim=1)[1],
            "mixing_head.inner.weight": theirs["talk_head.0.2.weight"],
            "mixing_head.inner.bias": theirs["talk_head.0.2.bias"],
            "mixing_head.last.weight": theirs["talk_head.0.4.weight"],
            "thought_tokens.start": theirs["start_embedding"][0],
            "thought_tokens.end": theirs["end_embedding"][0],
        }
    path = folder / "config.json"
    config = {"n_ahead_talk": 4, "max_thoughts": 13} | read_json(path)
    with reading(path, "cannot be used"):
        check(config, {"n_ahead_talk": int, "max_thoughts": int})
    n_true, most = config["n_ahead_talk"], config["max_thoughts"]
    length = most - n_true - 4
    print(f"{path}: max_thoughts={most}: thoughts of {length} tokens", file=sys.stderr)
    settings = {"n_true": n_true, "thought_len": length, "embedding_scale": 100.0}
    return weights, {**settings, "log_prob_temperature": 3.0}
