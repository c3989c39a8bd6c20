"""
All studies, one after the other (`make paper`), or one alone. Logs, runs, a table (results.json) and a picture of
each come into out/paper.

    python -m studies              all of them
    python -m studies.controls     is it the thought, or the computation, or the further training?
    python -m studies.chatter      does REINFORCE choose the useful thoughts, where most are idle at first?
    python -m studies.thought_len  how long must a thought be, in training and afterwards?
    python -m studies.who          which tokens gain; do answers follow what the thoughts say?
    python -m studies.cups         the same on a second kind of text
    python -m studies.adaptive     thinking only where it is expected to pay
    python -m studies.length       and only as long as it pays
    python -m studies.astray       breaking thoughts off that went astray
    python -m studies.star         STaR, the predecessor: does a model climb by its own right answers?
    python -m studies.family       the papers around this one, each a few flags away
    python -m studies.credit       what each way to credit a thought has of bias and noise
"""

from studies.adaptive import adaptive
from studies.astray import astray
from studies.chatter import chatter
from studies.controls import controls
from studies.credit import credit
from studies.cups import cups
from studies.family import family
from studies.length import length
from studies.runs import run_studies
from studies.star import star
from studies.thought_len import thought_len
from studies.who import who

STUDIES = {
    f.__name__: f
    for f in (
        controls,
        chatter,
        thought_len,
        who,
        cups,
        adaptive,
        length,
        astray,
        star,
        family,
        credit,
    )
}


if __name__ == "__main__":
    run_studies(__doc__, *STUDIES.values())
