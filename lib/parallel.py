"""
One process among many: torchrun starts the same program several times, and what those say to each
other is here.

  --parallel=data   every process holds the model and reads its share of the texts; gradients are
                    averaged
  --parallel=fsdp   weights, gradients and optimizer are spread over the processes as well (FSDP2,
                    Zhao et al. 2023, arXiv 2304.11277): for models that fit no other way
"""

import os
import sys
from contextlib import suppress
from dataclasses import dataclass
from datetime import timedelta

import torch
import torch.distributed as dist


@dataclass
class Processes:
    """This process among its siblings, as torchrun's environment tells; alone without it."""

    rank: int
    world: int
    device: torch.device
    parallel: str

    @property
    def first(self):
        return self.rank == 0


def pick_device(name):
    """ "cpu" or "cuda" as named, or for "auto" cuda where there is one. Raises ValueError."""
    if name == "cuda" and not torch.cuda.is_available():
        raise ValueError("there is no CUDA device here: --device=cpu")
    return name if name != "auto" else "cuda" if torch.cuda.is_available() else "cpu"


def environment(name, least):
    """A number that torchrun has set in the environment; `least` if not. Raises ValueError."""
    text = os.environ.get(name, str(least))
    if not text.isdecimal() or int(text) < least:
        raise ValueError(f"{name}={text} in the environment: it must be a number from {least}")
    return int(text)


def start_processes(device, parallel):
    """Join the siblings. device: "cpu", "cuda", or "auto": cuda where there is one. Raises
    ValueError."""
    rank, local = environment("RANK", 0), environment("LOCAL_RANK", 0)
    world, backend = environment("WORLD_SIZE", 1), "gloo"
    if rank >= world:
        raise ValueError(f"RANK={rank} in the environment: WORLD_SIZE={world} has no such process")
    if pick_device(device) == "cpu":
        device = torch.device("cpu")
    elif local < torch.cuda.device_count():
        device, backend = torch.device("cuda", local), "cpu:gloo,cuda:nccl"
        torch.cuda.set_device(device)
    else:
        raise ValueError(f"process {local} finds no GPU: start fewer processes, or --device=cpu")
    if (world > 1 or parallel == "fsdp") and not dist.is_initialized():
        store = dist.HashStore() if world == 1 else next(dist.rendezvous("env://"))[0]
        if os.environ.get("GROUP_WORLD_SIZE") == "1":  # torchrun on one machine
            # a restart must not find the addresses of processes that died
            store = dist.PrefixStore(os.environ.get("TORCHELASTIC_RESTART_COUNT", "0"), store)
        how = {"store": store, "rank": rank, "world_size": world}
        how["timeout"] = timedelta(days=99)  # of those that wait while the first prepares the text
        dist.init_process_group(backend, **how)
    return Processes(rank, world, device, parallel)


def barrier(processes):
    if processes.world > 1:
        dist.barrier()


def average_metrics(metrics, processes):
    """The mean over processes of a dict of scalars: a dict of floats."""
    values = torch.stack(
        [torch.as_tensor(x, dtype=torch.float64, device=processes.device) for x in metrics.values()]
    )
    if processes.world > 1:
        dist.all_reduce(values)
        values /= processes.world
    return dict(zip(metrics, values.tolist(), strict=True))


def average_gradients(module, processes):
    """Every gradient becomes its mean over processes, in place. What is sharded was averaged as it
    was scattered."""
    if processes.world == 1 or processes.parallel == "fsdp":
        return
    gradients = [p.grad for p in module.parameters() if p.grad is not None]
    sent = [dist.all_reduce(gradient, async_op=True) for gradient in gradients]
    for gradient, work in zip(gradients, sent, strict=True):
        work.wait()
        gradient /= processes.world


def shard(model, transformer, processes, bfloat16):
    """Spread a model, which is `transformer` or holds it, over all processes, in place (FSDP2).

    Each process keeps its slice of every float32 weight. A block's weights are gathered, in
    bfloat16 if asked to, when it is first called in a step; embeddings, head and the rest are one
    more group. A step calls a block many times, so weights stay gathered until `release`, and a
    block's gradient is sent once, when the last of these calls has added to it.
    """
    from torch.distributed.device_mesh import init_device_mesh
    from torch.distributed.fsdp import MixedPrecisionPolicy, fully_shard

    mesh = init_device_mesh(processes.device.type, (processes.world,))
    types = (torch.bfloat16, torch.float32) if bfloat16 else ()
    policy = MixedPrecisionPolicy(*types)
    for layer in transformer.layers:
        fully_shard(layer, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    # what goes into the model itself stays float32: the noise that draws thoughts must
    policy = MixedPrecisionPolicy(*types, cast_forward_inputs=False)
    fully_shard(model, mesh=mesh, mp_policy=policy, reshard_after_forward=False)
    model.set_reshard_after_backward(False)


def release(model, processes):
    """Let a sharded model go back to its slices: before an optimizer step, and after evaluation."""
    if processes.parallel == "fsdp":
        for module in model.modules():
            if hasattr(module, "reshard"):
                module.reshard()


def peak_memory(device):
    """The most bytes that this process ever had in use, on a "cuda" device or in main memory. 0
    where the system does not tell (Windows)."""
    if device == "cuda":
        return torch.cuda.max_memory_allocated()
    with suppress(ImportError):
        import resource

        unit = 1 if sys.platform == "darwin" else 1024
        return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * unit
    return 0
