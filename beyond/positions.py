"""
Where training thinks, if not everywhere: some of the positions (B, S), in ascending order. Training
there alone costs less nearly in proportion.

  hard     drawn in proportion to the entropy of the base prediction
  aloud    drawn in proportion to the probability that the model would say start_text
  start    where that probability is highest, and the text does not say it
  random   anywhere
"""

import math

from beyond.adaptive import log_p_of
from fast import entropy


def think_where(quiet, at, share, tokens, chance, start=None):
    """The `positions` of QuietSTaR.forward: a function of the text's hidden states (B, L, C), or
    None for all positions.

    at, share   one of the ways above (or "all"), and the share of positions that think
    tokens      (B, L) the text
    chance      (B, all that may think) uniform numbers that decide what is left to chance
    start       the id of start_text
    """
    if at == "all":
        return None

    def positions(hidden):
        h = hidden[:, : hidden.shape[1] - quiet.config.n_true]  # n_true tokens come after these
        if at == "random":
            score = chance
        elif at == "hard":
            score = drawn(entropy(quiet.model.output, h).clamp(min=1e-9).log(), chance)
        else:
            score = log_p_of(quiet, h, start)
            if at == "aloud":
                score = drawn(score, chance)
            else:  # where the text says it, a thought could only foresee that
                score = score.masked_fill(tokens[:, 1 : h.shape[1] + 1] == start, -math.inf)
        return score.topk(how_many(share, score.shape[1])).indices.sort().values

    return positions


def how_many(share, all_that_may):
    """How many positions of a text think."""
    return max(1, round(share * all_that_may))


def drawn(log_weight, noise):
    """Scores whose highest are a draw in proportion to the weights, each position at most once, by
    uniform noise (Gumbel top-k)."""
    return log_weight - (-noise.to(log_weight).clamp(min=1e-9).log()).log()


def one_token(tokenizer, text, setting):
    """The id of a text. ValueError, which names the setting, if it is not one token."""
    ids = tokenizer.encode(text)
    if len(ids) != 1:
        raise ValueError(f"{setting}={text!r} is {len(ids)} tokens, but one is wanted")
    return ids[0]
