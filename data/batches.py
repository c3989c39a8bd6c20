"""The texts and the random numbers of a training step: functions of seed and step alone."""

import zlib

import numpy as np
import torch

from data.dataset import AGAIN, document_numbers


def check_sizes(datasets, length, separate_documents, batch_size, micro_batch, eval_texts, world):
    """Raise ValueError if texts and batches cannot be had as told, by `world` processes, or if a
    file is no longer as it was prepared: each is read once, at a GB or more a second."""
    for dataset in datasets:
        if len(dataset.tokens) < length:
            few = f"{dataset.path} has {len(dataset.tokens)} tokens, fewer than a span's {length}"
            raise ValueError(f"{few}: prepare it with another --separator or --val_share")
        if zlib.crc32(dataset.tokens) != dataset.checksum:
            raise ValueError(f"{dataset.path} {AGAIN} (its checksum differs)")
        if separate_documents and dataset.meta["document_end"] is None:
            raise ValueError(f"separate_documents: {dataset.path} has no id that ends a document")
    if batch_size % world or eval_texts % world:
        raise ValueError(f"batch_size and eval_texts must be multiples of the {world} processes")
    if micro_batch and batch_size // world % micro_batch:
        texts = f"the {batch_size // world} texts of a process"
        raise ValueError(f"micro_batch {micro_batch} does not divide {texts}")


def read_batch(dataset, offsets, length, separate_documents, device):
    """Texts that start at offsets: tokens (B, length), and their documents' numbers or None."""
    spans = [dataset.tokens[start : start + length] for start in offsets]
    tokens = np.stack(spans).astype(np.int64)
    if tokens.max() >= dataset.meta["vocab_size"]:
        raise ValueError(f"{dataset.path} has an id beyond its vocabulary: prepare it again")
    documents = None
    if separate_documents:
        numbers = document_numbers(tokens, dataset.meta["document_end"])
        documents = torch.from_numpy(numbers).to(device)
    return torch.from_numpy(tokens).to(device), documents


def batch_offsets(dataset, length, count, seed, step):
    """Where the texts of a step start."""
    return np.random.default_rng((seed, step)).integers(0, len(dataset.tokens) - length + 1, count)


def thought_noise(count, positions, config, seed, step):
    """The uniform numbers by which a step's thoughts are sampled, (count, N, positions, m)."""
    shape = count, config.n_thoughts, positions, config.thought_len
    return torch.from_numpy(np.random.default_rng((seed, step, 1)).random(shape, dtype=np.float32))


def position_chance(count, positions, seed, step):
    """The uniform numbers that decide where a step's texts think, (count, positions)."""
    generator = np.random.default_rng((seed, step, 2))
    return torch.from_numpy(generator.random((count, positions), dtype=np.float32))
