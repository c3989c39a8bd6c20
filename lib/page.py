"""
gains.html: a text on one page, each token coloured by what its thought saved. Pointing at a token, tabbing or tapping
onto it, shows the thought that came before it, the gate, and its probability without and with the thought.

The page is one file that asks for nothing from elsewhere. All text is escaped: what a model or a file says stays text.
"""

import html
import json
from string import Template

import numpy as np

from lib.files import replace_file

PAGE = Template("""<!doctype html>
<html lang="en">
<head>
<meta charset="utf-8">
<meta name="viewport" content="width=device-width, initial-scale=1">
<meta name="color-scheme" content="light dark">
<meta http-equiv="Content-Security-Policy"
  content="default-src 'none'; style-src 'unsafe-inline'; script-src 'unsafe-inline'">
<title>What each token gained from its thought</title>
<style>
:root { --ink: #1c1e21; --paper: #fdfdfb; --panel: #fff; --line: #c9ccd1; --quiet: #5b6068;
        --save: 24 134 64; --cost: 207 34 46; }
@media (prefers-color-scheme: dark) {
  :root { --ink: #e4e6ea; --paper: #15171a; --panel: #1f2227; --line: #434850; --quiet: #a0a6b0;
          --save: 46 170 90; --cost: 248 81 73; }
}
* { box-sizing: border-box; }
body { margin: 0; color: var(--ink); background: var(--paper); font: 1rem/1.75 Georgia, "Times New Roman", serif; }
header, main { max-width: 46rem; margin: 0 auto; padding: 0 1rem; }
main { padding-bottom: 17rem; }
h1 { font-size: 1.35rem; line-height: 1.3; margin: 1.2rem 0 .3rem; }
header p, aside { font: .9rem/1.45 system-ui, sans-serif; }
header p { color: var(--quiet); margin: .3rem 0; }
.key { padding: .1em .4em; border-radius: .2em; color: var(--ink); }
section { white-space: pre-wrap; overflow-wrap: anywhere; margin-top: .8rem; padding: .8rem 0;
          border-top: 1px solid var(--line); }
.t { border-radius: .15em; padding: .12em 0; cursor: pointer; }
.s, .c { background: rgb(var(--c) / calc(var(--a) * 70%)); }
.s { --c: var(--save); }
.c { --c: var(--cost); text-decoration: underline dotted rgb(var(--cost)); text-underline-offset: .25em; }
.t:hover { outline: 1px solid var(--quiet); }
.t:focus { outline: 2px solid var(--ink); outline-offset: 1px; }
.end { color: var(--quiet); }
aside { position: fixed; inset: auto 0 0 0; max-height: 16rem; overflow: auto; background: var(--panel);
        border-top: 1px solid var(--line); box-shadow: 0 -2px 12px rgb(0 0 0 / 15%); padding: .7rem 1rem; }
dl { max-width: 44rem; margin: 0 auto; display: grid; grid-template-columns: max-content 1fr; gap: .25rem .9rem; }
dt { color: var(--quiet); }
dd { margin: 0; white-space: pre-wrap; overflow-wrap: anywhere; font-variant-numeric: tabular-nums; }
code { font: .95em ui-monospace, Menlo, Consolas, monospace; }
</style>
</head>
<body>
<header>
<h1>What each token gained from its thought</h1>
<p>$caption</p>
<p><span class="key s" style="--a:.8">saved</span> <span class="key c" style="--a:.8">cost</span> full colour: $limit
nats or more. Point at a token, tap it, or go on with Tab or the arrow keys.</p>
</header>
<main>
$body
</main>
<aside aria-live="polite"><dl>
<dt>token</dt><dd id="token"></dd>
<dt>thought</dt><dd id="thought"></dd>
<dt>gate</dt><dd id="gate"></dd>
<dt>probability</dt><dd id="probability"></dd>
<dt>saved</dt><dd id="saved"></dd>
</dl></aside>
<script type="application/json" id="data">$data</script>
<script>
// a row of data for each token: its text, the thought before it, gate, NLL without and with the thought
const data = JSON.parse(document.getElementById("data").textContent);
const tokens = [...document.querySelectorAll("main .t")];
const put = (id, text, code) => {
  const place = document.getElementById(id);
  place.replaceChildren(code ? Object.assign(document.createElement("code"), { textContent: text }) : text);
};
const percent = nll => { const p = 100 * Math.exp(-nll); return p.toFixed(p < 1 ? 3 : 1) + " %"; };
function show(token) {
  const [text, thought, gate, before, after] = data[tokens.indexOf(token)];
  put("token", JSON.stringify(text), true);
  put("thought", thought === "" ? "(no token)" : JSON.stringify(thought), true);
  put("gate", gate.toFixed(3));
  put("probability", percent(before) + " without the thought, " + percent(after) + " with it");
  put("saved", (before - after >= 0 ? "+" : "\\u2212") + Math.abs(before - after).toFixed(3) + " nats");
}
const main = document.querySelector("main");
main.addEventListener("pointerover", event => { if (event.target.matches(".t")) show(event.target); });
main.addEventListener("focusin", event => { if (event.target.matches(".t")) show(event.target); });
main.addEventListener("keydown", event => {
  const step = { ArrowRight: 1, ArrowLeft: -1 }[event.key];
  const next = step && tokens[tokens.indexOf(event.target) + step];
  if (next) { event.preventDefault(); next.focus(); }
});
show(tokens[0]);
</script>
</body>
</html>
""")


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
    page = PAGE.substitute(
        caption=html.escape(caption),
        limit=f"{limit:.2f}",
        body="\n".join(sections),
        data=json.dumps(data, ensure_ascii=False).replace("<", "\\u003c"),
    )
    replace_file(path, page.encode())
