"""
gains.html: a text on one page, each token coloured by what its thought saved. Pointing at a token, tabbing or tapping
onto it, shows the thought that came before it, the gate, its probability without and with the thought, and which token
would have been predicted.

page.html is its frame. What comes out is one file that asks for nothing from elsewhere. All text is escaped: what a
model or a file says stays text.
"""

import html
import json
from pathlib import Path
from string import Template

import numpy as np

from lib.files import finite, replace_file

GOES_ON = '<span class="end" title="the text goes on">…</span>'
PAGE = Path(__file__).with_name("page.html")


def write_page(path, caption, spans, measured, shown, tokenizer):
    """Write the page of spans (W, T+1), measured as eval.py does it: of those whose numbers are in `shown`."""
    shown, gain = list(shown), (measured.nll_base - measured.nll_mixed)[list(shown)]
    limit = max(0.1, float(np.quantile(np.abs(gain), 0.98)))
    sections, data = [], []
    for row, n in enumerate(shown):
        words = tokenizer.words(spans[n].tolist())
        body = [GOES_ON, html.escape(words[0])]
        for i, word in enumerate(words[1:]):
            kind, strength = (
                "s" if gain[row, i] >= 0 else "c",
                min(1.0, abs(float(gain[row, i])) / limit),
            )
            kind = "" if strength < 0.02 else "c u" if kind == "c" and strength >= 0.1 else kind
            seen = (
                html.escape(word).replace("\n", '<span class="end">↵</span>\n')
                or '<span class="end">·</span>'
            )
            body.append(
                f'<span class="t {kind}" tabindex="0" style="--a:{strength:.2f}">{seen}</span>'
            )
            said = [
                tokenizer.words([x[n, i]])[0]
                for x in (measured.likeliest_base, measured.likeliest_mixed)
            ]
            numbers = (
                float(x[n, i]) for x in (measured.gate, measured.nll_base, measured.nll_mixed)
            )
            thought = tokenizer.decode(measured.thoughts[n, i].tolist())
            data.append([word, thought, *(round(x, 4) for x in numbers), *said])
        sections.append(f"<section>{''.join(body)}{GOES_ON}</section>")
    page = Template(PAGE.read_text("utf-8")).substitute(
        caption=html.escape(caption),
        limit=f"{limit:.2f}",
        body="\n".join(sections),
        data=json.dumps(finite(data), ensure_ascii=False).replace("<", "\\u003c"),
    )
    replace_file(path, page.encode())
