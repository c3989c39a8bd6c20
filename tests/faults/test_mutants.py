"""
Every kind of file that this project reads, made wrong in every way: what comes out is what was in it, or one line that
names the file.

    python -m pytest tests/faults/test_mutants.py                a few mutants of each kind
    python -m pytest tests/faults/test_mutants.py -m slow        10,000 in all

A mutant that fails is made again by what its line begins with:

    PYTHONPATH=.:tests:tests/faults python -c "from test_mutants import again; again('meta.json', 'flip', 109)"
"""

from collections import Counter

import model_kinds
import pytest
import text_kinds
import torch
from mutants import MUTATIONS
from outcomes import FAILURES, Samples, outcome_of

KINDS = {kind.name: kind for kind in [*model_kinds.KINDS, *text_kinds.KINDS]}
FEW, MANY = 12, 1 + 10_000 // len(KINDS)
totals = Counter()


@pytest.fixture(scope="module")
def samples():
    threads = torch.get_num_threads()
    torch.set_num_threads(1)  # all is so small that more only wait for each other
    yield Samples()
    torch.set_num_threads(threads)


def mutants(kind, count):
    """(mutation, seed) of so many mutants, in turn of each mutation."""
    names = list(MUTATIONS[kind.form])
    first = sum(map(ord, kind.name))  # of a few mutants, other kinds get others
    return [(names[(first + n) % len(names)], n) for n in range(count)]


def try_all(kind, count, samples):
    found = [outcome_of(kind, mutation, seed, samples) for mutation, seed in mutants(kind, count)]
    found = [outcome for outcome in found if outcome.did is not None]
    totals.update(outcome.word for outcome in found)
    failed = [str(outcome) for outcome in found if outcome.word in FAILURES]
    counts = dict(Counter(outcome.word for outcome in found))
    assert not failed, f"{kind.name}: {counts}\n" + "\n".join(failed)


@pytest.mark.parametrize("name", KINDS)
def test_a_few_mutants(name, samples):
    try_all(KINDS[name], FEW, samples)


@pytest.mark.slow
@pytest.mark.parametrize("name", KINDS)
def test_many_mutants(name, samples):
    try_all(KINDS[name], MANY, samples)


@pytest.fixture(scope="module", autouse=True)
def say_totals(pytestconfig):
    yield
    with pytestconfig.pluginmanager.get_plugin("capturemanager").global_and_fixture_disabled():
        print(f"\n{sum(totals.values()):,} mutants: {dict(totals)}")


def again(name, mutation, seed):
    print(outcome_of(KINDS[name], mutation, seed, Samples()))
