"""
The authors' published model, `ezelikman/quietstar-8-ahead`: a Hugging Face folder of a Mistral with a vocabulary of
32,002, its start and end of thought and its mixing head ("talk head") among its tensors.

What its tensors mean, read from the authors' code:
  start_embedding, end_embedding (2, C)   row 0, times 100 (our embedding_scale); row 1 is not used
  talk_head.0.0.weight (C, 2C)            of [h_base ; h_thought]: our MixingHead.base and .thought side by side
  talk_head.0.0.bias, .2, .4              MixingHead.base's bias, .inner, .last; w weighs the thought, as ours does
  rows 32000 and 32001 of the vocabulary  tokens that stand for start and end: never read, never to be said, cut off
How many tokens a thought has is in no file: n_ahead - 3 (start, end and the first true token are counted in).
"""

from lib.checkpoint import checked_weight
from lib.files import read_json
from lib.weights import HUGGING_FACE_FILES, find_tensors, tensors_of

THINKS = ("talk_head.", "start_embedding", "end_embedding")  # how the names of these tensors begin
VOCABULARY = 32000
PARTS = {"talk_head.0.0.bias": "base.bias", "talk_head.0.4.weight": "last.weight"}
PARTS |= {f"talk_head.0.2.{x}": f"inner.{x}" for x in ("weight", "bias")}


def is_published(folder):
    """Are these weights of a model that the authors' code trained?"""
    if not (folder / "config.json").exists() or (folder / "params.json").exists():
        return False
    return any(name.startswith(THINKS) for _, _, name in find_tensors(folder, HUGGING_FACE_FILES))


def read_published(folder, dtype):
    """What thinks in such a folder: the tensors of a QuietSTaR but its model's, and the settings of QuietSTaRConfig.
    Raises ValueError if one of them is not there."""
    found = [
        tensor
        for tensor in find_tensors(folder, HUGGING_FACE_FILES)
        if tensor[2].startswith(THINKS)
    ]
    theirs = {
        name: checked_weight(tensor.to(dtype), name, path)
        for path, name, tensor in tensors_of(found)
    }
    for name in ("talk_head.0.0.weight", *PARTS, "start_embedding", "end_embedding"):
        if name not in theirs:
            raise ValueError(
                f"{folder} thinks as the authors' release does, but it holds nothing for {name}"
            )
    first = theirs["talk_head.0.0.weight"]
    weights = {f"mixing_head.{ours}": theirs[name] for name, ours in PARTS.items()}
    weights |= {
        f"mixing_head.{side}.weight": x
        for side, x in zip(("base", "thought"), first.chunk(2, 1), strict=True)
    }
    weights |= {f"thought_tokens.{end}": theirs[f"{end}_embedding"][0] for end in ("start", "end")}
    config = read_json(folder / "config.json")
    ahead, talk = config.get("max_thoughts", 13), config.get("n_ahead_talk", 4)
    thought_len = ahead - talk - 1 - 3 if type(ahead) is type(talk) is int else -1
    if not 0 <= thought_len < 1000:
        raise ValueError(
            f"{folder / 'config.json'}: max_thoughts={ahead!r} and n_ahead_talk={talk!r} make no thought"
        )
    return weights, {
        "thought_len": thought_len,
        "n_true": talk,
        "embedding_scale": 100.0,
        "log_prob_temperature": 3.0,
    }
