"""STaR: one question and one example at a time; and a model so simple that one sees what it
learns."""

import torch
from naive import CLOSE, ids, log_softmax, tiny
from tiny_runs import same
from torch.testing import assert_close

from beyond.star import Question, StarConfig, fine_tune, loss_of, self_taught, write

END = 0


def answer(text):
    return text[-2] if len(text) > 1 and text[-1] == END else None


def config(**more):
    return StarConfig(read=answer, end=END, **more)


def test_what_is_written_is_what_each_prompt_alone_leads_to():
    """Catches a text that hangs on the others, and text after the end."""
    model, wanted = tiny(seed=2).model, []
    prompts = [*ids(3, 3, seed=3).tolist(), *ids(3, 2, seed=3).tolist()]
    for prompt in prompts:
        text = list(prompt)
        while len(text) < len(prompt) + 6 and (len(text) == len(prompt) or text[-1] != END):
            text.append(int(model.logits(model(torch.tensor([text])))[0, -1].argmax()))
        wanted.append(text[len(prompt) :])
    assert write(model, prompts, config(most_tokens=6)) == wanted
    assert len({len(text) for text in wanted}) > 1, "some end early"
    assert write(model, [], config()) == []
    how = config(most_tokens=6, temperature=1.0)
    drawn = [write(model, prompts, how, torch.Generator().manual_seed(n)) for n in (1, 1, 2)]
    assert drawn[0] == drawn[1] != drawn[2] and wanted not in drawn


def test_the_loss_is_the_mean_over_all_tokens_that_follow_a_prompt():
    """Catches a loss on prompts or padding, and a mean of means."""
    model = tiny(seed=3).model
    examples = [([1, 2, 3], [4, 0]), ([5], [6, 7, 8, 0]), ([2, 2], [0])]
    nlls = []
    for prompt, text in examples:
        row = prompt + text
        for at in range(len(prompt), len(row)):
            h = model(torch.tensor([row[:at]]))[0, -1]
            nlls.append(-log_softmax(model.output.weight @ h)[row[at]])
    assert_close(loss_of(model, examples), sum(nlls) / 7, **CLOSE)


def test_fine_tuning_learns_leaves_the_original_alone_and_repeats_exactly():
    """Catches a copy that shares weights, and examples that are drawn anew each time."""
    model = tiny(seed=3).model
    before = {name: x.clone() for name, x in model.state_dict().items()}
    examples = [([1], [2, END]), ([3], [4, END])]
    how = config(lr=3e-3, batch_size=2)
    tuned, again = (fine_tune(model, examples, 60, how, seed=1) for _ in range(2))
    assert same(model.state_dict(), before) and same(tuned.state_dict(), again.state_dict())
    assert loss_of(tuned, examples) < 0.2 < loss_of(model, examples)
    assert write(tuned, [[1], [3]], config()) == [[2, END], [4, END]]


def test_fine_tuning_in_bfloat16_sees_the_weights_that_it_changes():
    """Catches casts of the first step's weights, which autocast keeps: learning would run away."""
    model, examples = tiny(seed=3).model.float(), [([1], [2, END]), ([3], [4, END])]
    with torch.autocast("cpu", torch.bfloat16):
        tuned = fine_tune(model, examples, 60, config(lr=3e-3, batch_size=2), seed=1)
        inside = loss_of(tuned, examples)
    assert inside < 0.2 and abs(inside - loss_of(tuned, examples)) < 0.05


def test_iterations_grow_and_start_from_the_original(monkeypatch):
    """The first question is right from the start, the second only with its hint, the third never,
    the fourth is cut short. Catches a model that is tuned from the wrong one, or on hints, and half
    of a rationale in what is learned."""
    model, started = tiny(seed=3).model, []
    texts = {(1,): [7, 3, END], (2,): [7, 8, END], (3,): [7, 8, END], (4,): [7, 6]}
    texts |= {(2, 9): [4, END], (3, 9): [8, 8, END], (4, 9): [7, 6]}
    monkeypatch.setattr("beyond.star.write", lambda _, prompts, *__: [texts[*p] for p in prompts])

    def tuned(start, examples, steps, config, seed):
        started.append((start, examples, steps, seed))
        return f"model {len(started)}"

    monkeypatch.setattr("beyond.star.fine_tune", tuned)
    questions = [Question([n], [n, 9], n + 2, [7]) for n in (1, 2, 3, 4)]
    models, kept = zip(*self_taught(model, questions, config(iterations=3)), strict=True)
    assert models == ("model 1", "model 2", "model 3")
    assert [x[2] for x in started] == [40, 48, 58] and len({x[3] for x in started}) == 3
    assert [[q.answer for q, _ in x] for x in kept] == [[3, 4]] * 3
    assert started[1][1] == [([1], [7, 3, END]), ([2], [7, 4, END])], "without the hint"
    assert [x[0] for x in started] == [model] * 3
    for keep_all, count in ((False, 1), (True, 4)):
        how = config(iterations=1, rationalize=False, keep_all=keep_all)
        assert len(next(self_taught(model, questions, how))[1]) == count
    nothing_right = list(self_taught(model, questions[2:], config(iterations=1)))
    assert nothing_right == [(model, [])], "nothing to learn from"
