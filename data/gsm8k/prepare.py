"""
GSM8K (Cobbe et al. 2021, arXiv 2110.14168; MIT licence): 1,319 grade-school word problems, the test
set. It becomes questions.jsonl, lines like {"question": "Janet’s ducks lay ...", "answer": "18"}.

    python data/gsm8k/prepare.py                                 downloads it
    python data/gsm8k/prepare.py --source=FILE.jsonl --any_hash  takes a file of yours: lines
        {"question": ..., "answer": ...}, whose answers end in "#### 18"
"""

import re
import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.download import prepare_questions  # noqa: E402

URL = "https://raw.githubusercontent.com/openai/grade-school-math/master/grade_school_math/data/"
NUMBER = r"-?(?:\d{1,3}(?:,\d{3})+|\d+|(?=\.\d))(?:\.\d+)?"  # 18, 1,450,000, -0.5, .5
SHA256 = "3730d312f6e3440559ace48831e51066acaca737f6eabec99bccb9e4b3c39d14"


def question(line):
    """One line of the source -> one of questions.jsonl. Raises ValueError."""
    final = re.search(rf"####\s*({NUMBER})\s*$", line["answer"])
    if not final or not line["question"].strip():
        raise ValueError("an answer that ends in '#### number' is wanted")
    return {"question": line["question"], "answer": final[1]}


if __name__ == "__main__":
    prepare_questions(__doc__, Path(__file__).parent, f"{URL}test.jsonl", SHA256, question)
