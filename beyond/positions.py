"""
Where training thinks, if not everywhere: some of the positions (B, S), in ascending order. Training there alone costs
less nearly in proportion: the one way below a forward and backward pass for each token of each thought.

  hard            drawn in proportion to the entropy of the base prediction
  hardest         where that entropy is largest
  wrong           where the base prediction's likeliest token is not the true one (which training can see)
  aloud           drawn in proportion to the probability that the model would begin to think aloud (say start_text)
  start           where that probability is highest, and the text does not: its steps are left out
  random          anywhere
  each_document   anywhere, but first one in each document, then a second one
"""

import math

from beyond.adaptive import log_p_of
from lean.log_prob import entropy, likeliest


def think_where(quiet, at, share, tokens, chance, start=None, document_end=None):
    """The `where` of QuietSTaR.backward: a function of the text's hidden states (B, L, C), or None for all positions.

    at, share      one of the ways above (or "all"), and the share of the positions that think
    tokens         (B, L) the text
    chance         (B, all that may think) uniform numbers that decide what is left to chance
    start          the id that begins thinking aloud;  document_end: the id that ends a document
    """
    return {
        "all": None,
        "hard": lambda h: hard_positions(quiet, h, share, chance),
        "hardest": lambda h: hard_positions(quiet, h, share),
        "wrong": lambda h: wrong_positions(quiet, tokens, h, share, chance),
        "aloud": lambda h: aloud_positions(quiet, h, share, start, chance),
        "start": lambda h: start_positions(quiet, tokens, h, share, start),
        "random": lambda h: highest(chance, share),
        "each_document": lambda h: highest(
            chance - rank_in_document(tokens, chance, document_end), share
        ),
    }[at]


def highest(score, share):
    """A share of the positions, (B, S) in ascending order: those with the highest score (B, all that may think)."""
    return score.topk(max(1, round(share * score.shape[1]))).indices.sort().values


def hard_positions(quiet, h_text, share, noise=None):
    """Where the model is least certain after the text alone, h_text (B, L, C).

    noise: uniform numbers (B, all that may think), to draw positions in proportion to their entropy instead, each at
    most once (Gumbel top-k): what no thought can foresee is uncertain too, and crowds out the rest.
    """
    hardness = entropy(quiet.model.output, before_true(quiet, h_text))
    return highest(
        hardness if noise is None else drawn(hardness.clamp(min=1e-9).log(), noise), share
    )


def drawn(log_weight, noise):
    """Scores whose highest are a draw in proportion to the weights, each position at most once, by uniform noise."""
    return log_weight - (-noise.to(log_weight).clamp(min=1e-9).log()).log()


def wrong_positions(quiet, tokens, h_text, share, chance):
    """Where the likeliest next token is not the true one: such positions by chance, and others if they are too few
    ("Think-at-Hard")."""
    h = before_true(quiet, h_text)
    wrong = likeliest(quiet.model.output, h) != tokens[:, 1 : h.shape[1] + 1]
    return highest(wrong + chance, share)


def aloud_positions(quiet, h_text, share, token, noise):
    """Where the model would say `token`, drawn in proportion to its probability: most at places like those where the
    text itself spells its steps out, whether or not it does there, and some elsewhere."""
    return highest(drawn(log_p_of(quiet, before_true(quiet, h_text), token), noise), share)


def start_positions(quiet, tokens, h_text, share, token):
    """Where the model is likeliest to say `token`, and the text tokens (B, L) does not. A text that sometimes writes
    its steps, behind a mark such as "<<", shows where they could stand. Where it writes them, there is nothing to
    think: a thought would only have to foresee the mark."""
    h = before_true(quiet, h_text)
    log_p = log_p_of(quiet, h, token).masked_fill(tokens[:, 1 : h.shape[1] + 1] == token, -math.inf)
    return highest(log_p, share)


def start_token(tokenizer, text):
    """The id for `start_positions`. Raises ValueError if the text is not one token."""
    ids = tokenizer.encode(text)
    if len(ids) != 1:
        raise ValueError(
            f"think_at=start (or aloud) wants a start_text of one token, and {text!r} is {len(ids)}"
        )
    return ids[0]


def rank_in_document(tokens, chance, document_end):
    """Of each position, how many of its document have a higher chance (B, S): 0 is the document's first choice. Raises
    ValueError if the text has no documents."""
    if document_end is None:
        raise ValueError(
            "think_at=each_document wants a dataset that names the token that ends a document"
        )
    ends = (tokens[:, : chance.shape[1]] == document_end).long()
    document = ends.cumsum(-1) - ends
    same = document[:, :, None] == document[:, None, :]
    return (same & (chance[:, None, :] > chance[:, :, None])).sum(-1)


def before_true(quiet, h_text):
    """The hidden states after which n_true tokens follow, cut off from the graph."""
    return h_text[:, : h_text.shape[1] - quiet.config.n_true].detach()
