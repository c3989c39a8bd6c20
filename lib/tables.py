"""
Means with their errors, and tables of them.
"""

import numpy as np


def mean_and_error(x):
    """Mean of numbers, an array of any shape, and its standard error were they independent."""
    x = np.asarray(x, np.float64).flatten()
    return float(x.mean()), float(x.std(ddof=1) / len(x) ** 0.5) if len(x) > 1 else 0.0
