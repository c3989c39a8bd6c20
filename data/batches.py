"""
The texts of a training step, and the noise that it is drawn with: functions of seed and step alone.
"""

import numpy as np
import torch

from data.dataset import document_numbers


def check_sizes(train, data, held_out, length, processes):
    """Raise ValueError if texts and batches cannot be had as told."""
    for dataset in (data, held_out):
        if len(dataset.tokens) < length:
            raise ValueError(
                f"{dataset.path} has {len(dataset.tokens)} tokens, fewer than one span of {length}"
            )
    by_documents = "separate_documents"
    if (train.separate_documents) and data.meta["document_end"] is None:
        raise ValueError(f"{by_documents}: {train.data} names no token that ends a document")
    if train.batch_size % processes.world:
        raise ValueError(
            f"batch_size {train.batch_size} cannot be split among {processes.world} processes"
        )
    local = train.batch_size // processes.world
    if local % (train.micro_batch or local):
        raise ValueError(
            f"micro_batch {train.micro_batch} does not divide the {local} texts of each process"
        )
    if (
        train.parallel == "fsdp" and train.eval_texts % processes.world
    ):  # all must make the same calls
        raise ValueError(
            f"fsdp: eval_texts {train.eval_texts} cannot be split among {processes.world} processes"
        )


def read_batch(dataset, offsets, length, separate_documents, device):
    """Spans of `length` tokens that start at offsets: tokens (B, length), and their documents' numbers or None."""
    tokens = np.stack([dataset.tokens[start : start + length] for start in offsets]).astype(
        np.int64
    )
    documents = (
        document_numbers(tokens, dataset.meta["document_end"]) if separate_documents else None
    )
    return [x if x is None else torch.from_numpy(x).to(device) for x in (tokens, documents)]


def batch_offsets(dataset, length, count, seed, step):
    """Where the texts of a step start: a pure function of seed and step."""
    return np.random.default_rng((seed, step)).integers(0, len(dataset.tokens) - length + 1, count)


def thought_noise(count, positions, config, seed, step):
    """The uniform numbers by which a step's thoughts are sampled, (count, N, positions, m)."""
    shape = count, config.n_thoughts, positions, config.thought_len
    return torch.from_numpy(np.random.default_rng((seed, step, 1)).random(shape, dtype=np.float32))


def position_chance(count, positions, seed, step):
    """The uniform numbers that decide where a step's texts think, (count, positions)."""
    generator = np.random.default_rng((seed, step, 2))
    return torch.from_numpy(generator.random((count, positions), dtype=np.float32))
