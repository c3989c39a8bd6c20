"""lib/page.py and lib/pictures.py: what is drawn is what was measured, whatever the text is."""

import re

import numpy as np

from eval import Measured
from lib.page import write_page
from lib.pictures import draw_text
from lib.tokenizer import CharTokenizer


def test_the_page_escapes_all_text_and_tells_of_each_token(tmp_path):
    """Catches text that is read as markup, a number beside another token, and NaN in a style."""
    tokenizer = CharTokenizer("<\"b>&'\n")
    spans = np.array([[0, 1, 2, 3, 4, 5, 6]])
    nll, ids = np.log([[2, 4, np.nan, 5, 8, 10]]), spans[:, 1:]
    fields = dict(nll_mixed=nll / 2, likeliest_mixed=ids, gate=nll)
    fields["thoughts"] = np.stack((ids, 0 * ids - 1), -1)  # of one token each
    write_page(tmp_path / "x.html", "$a & <b>", spans, Measured(nll, ids, ids, **fields), tokenizer)
    page = (tmp_path / "x.html").read_text("utf-8")
    assert "<b>" not in page and "$a &amp; &lt;b&gt;" in page and "<script" not in page
    tokens = re.findall(r'--share:(\d+)%" data-about="([^"]*)">(.*?)</span>', page, re.DOTALL)
    assert "".join(text for _, _, text in tokens) == "&quot;b&gt;&amp;&#x27;↵\n"
    share, about, _ = tokens[1]
    assert share == "69" and "thought &#x27;b&#x27;" in about and "+0.693 nats" in about
    assert "25.00%, predicted &#x27;b&#x27;" in about and "50.00%" in about


def test_the_picture_takes_any_text(tmp_path):
    """Catches text that stops the drawing, or that is read as a formula."""
    words = ["漢🙂", "long" * 60, "", "$\\frac$", "\n\n", "\x00"]
    draw_text(words, [1.0, -2.0, np.nan, 0.1, 0.0, 3.0], tmp_path / "$x$.png")
    assert (tmp_path / "$x$.png").read_bytes()[:4] == b"\x89PNG"
