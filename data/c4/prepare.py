"""
C4 (Raffel et al. 2019, arXiv 1910.10683), English: 365 million pages of the web, cleaned. The
paper's other text. Licence: ODC-By 1.0 (and Common Crawl's terms).

    pip install datasets
    python data/c4/prepare.py --tokenizer=weights/mistral-7b

It is streamed, as data/openwebmath is.
"""

import sys
from pathlib import Path

sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

from data.openwebmath.prepare import prepare_hub  # noqa: E402

if __name__ == "__main__":
    prepare_hub(__doc__, Path(__file__).parent, "allenai/c4", "en")
