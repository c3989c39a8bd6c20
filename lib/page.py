"""
gains.html: a text on one page, each token coloured by what its thought saved. Pointing at a token,
or going to it with Tab, shows its thought, and what was predicted without and with the thought.
The page (its frame is page.html) has no script and asks for nothing from elsewhere.
"""

import html
from math import exp
from pathlib import Path
from string import Template

from lib.files import replace_file
from lib.pictures import COST, FULL, SAVED


def write_page(path, caption, spans, measured, tokenizer):
    """Write a page of spans (W, T+1): the first of those that eval.py has measured (Measured)."""
    predictions = {
        "without a thought": (measured.nll_base, measured.likeliest_base),
        "with this thought": (measured.nll_mixed, measured.likeliest_mixed),
    }
    sections = []
    for n, span in enumerate(spans):
        first, *words = tokenizer.words(span.tolist())
        tokens = [html.escape(first)]
        for i, word in enumerate(words):
            gain = measured.nll_base[n, i] - measured.nll_mixed[n, i]
            thought = tokenizer.decode([x for x in measured.thoughts[n, i].tolist() if x >= 0])
            about = f"token {word!r}, thought {thought!r}\n"
            about += f"gate {measured.gate[n, i]:.3f}, saved {gain:+.3f} nats"
            for name, (nll, likeliest) in predictions.items():
                predicted = tokenizer.words([int(likeliest[n, i])])[0]
                about += f"\n{name}: probability {exp(-nll[n, i]):.2%}, predicted {predicted!r}"
            kind = "saved" if gain > 0 else "cost"
            style = f"--share:{min(1, abs(gain) / FULL):.0%}"
            text = html.escape(word).replace("\n", "↵\n") or "·"
            tag = f'<span tabindex="0" class="{kind}" style="{style}"'
            tokens.append(f'{tag} data-about="{html.escape(about)}">{text}</span>')
        sections.append(f"<section>…{''.join(tokens)}…</section>")
    frame = Template(Path(__file__).with_name("page.html").read_text("utf-8"))
    fields = dict(caption=html.escape(caption), saved=SAVED, cost=COST, full=FULL)
    replace_file(path, frame.substitute(fields, body="\n".join(sections)).encode())
