"""
gains.html: a text on one page, each token coloured by what its thought saved. Pointing at a token, tabbing or tapping
onto it, shows the thought that came before it, the gate, and its probability without and with the thought.

page.html is its frame. What comes out is one file that asks for nothing from elsewhere. All text is escaped: what a
model or a file says stays text.
"""

import html
import json
from pathlib import Path
from string import Template

import numpy as np

from lib.files import replace_file

PAGE = Path(__file__).with_name("page.html")


def write_page(path, caption, spans, measured, shown, tokenizer):
    """Write the page of spans (W, T+1), which are those of `measured` (see eval.py) that `shown`, a slice, picks."""
    gain = (measured.nll_base - measured.nll_mixed)[shown]
    limit = max(0.1, float(np.quantile(np.abs(gain), 0.98)))
    sections, data = [], []
    columns = zip(spans, gain, *(x[shown] for x in (measured.thoughts, measured.gate)), strict=True)
    nlls = zip(measured.nll_base[shown], measured.nll_mixed[shown], strict=True)
    for (ids, gains, thoughts, gates), (before, after) in zip(columns, nlls, strict=True):
        words = tokenizer.words(ids.tolist())
        body = [html.escape(words[0])]
        for i, word in enumerate(words[1:]):
            kind, strength = "s" if gains[i] >= 0 else "c", min(1.0, abs(float(gains[i])) / limit)
            kind = kind if strength >= 0.02 else ""
            seen = html.escape(word).replace("\n", '<span class="end">↵</span>\n') or '<span class="end">·</span>'
            body.append(f'<span class="t {kind}" tabindex="0" style="--a:{strength:.2f}">{seen}</span>')
            thought = tokenizer.decode(thoughts[i].tolist())
            data.append([word, thought, *(round(float(x), 4) for x in (gates[i], before[i], after[i]))])
        sections.append(f"<section>{''.join(body)}</section>")
    page = Template(PAGE.read_text("utf-8")).substitute(
        caption=html.escape(caption),
        limit=f"{limit:.2f}",
        body="\n".join(sections),
        data=json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"),
    )
    replace_file(path, page.encode())
