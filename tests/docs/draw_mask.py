"""Draws README's picture of the attention mask: python tests/docs/draw_mask.py"""

import sys
from pathlib import Path

ROOT = Path(__file__).resolve().parents[2]
sys.path[:0] = [str(ROOT), str(ROOT / "tests")]

from naive import thought_layout  # noqa: E402

from lib.pictures import picture  # noqa: E402
from quiet_star import thought_mask  # noqa: E402

T, STEPS = 5, 3  # tokens of the text, and of each thought

layout = thought_layout(T, STEPS)
kinds = ["x", "start of x", *(f"t{step} of x" for step in range(1, STEPS))]
names = [f"{kind}{i}" for kind in kinds for i in range(T)]
with picture(ROOT / "assets" / "mask.png", 6, 6) as axes:
    axes.imshow(thought_mask(layout, layout).numpy(), cmap="Greens", vmin=0, vmax=1.4)
    axes.set_xticks(range(len(names)), names, rotation=90, size=7)
    axes.set_yticks(range(len(names)), names, size=7)
    for edge in range(1, STEPS + 1):
        axes.axhline(edge * T - 0.5, color="black", lw=0.6)
        axes.axvline(edge * T - 0.5, color="black", lw=0.6)
    axes.set(title="Who (row) may see whom (column)")
