"""
All studies (`make paper`), or one. Each leaves its runs, a table and a picture in out/paper.

    python -m studies              all of them
    python -m studies.controls     is it the thought, the computation, or the further training?
    python -m studies.chatter      does REINFORCE choose the useful thoughts, where most are idle?
    python -m studies.adaptive     thinking only where it is expected to pay
    python -m studies.length       and only as long as it pays
    python -m studies.star         STaR, the predecessor: does a model learn by its right answers?
    python -m studies.family       the papers around this one, each a few flags away
"""

from studies.adaptive import adaptive
from studies.chatter import chatter
from studies.controls import controls
from studies.family import family
from studies.length import length
from studies.runs import run_studies
from studies.star import star

STUDIES = {f.__name__: f for f in (controls, chatter, adaptive, length, star, family)}

if __name__ == "__main__":
    run_studies(__doc__, *STUDIES.values())
