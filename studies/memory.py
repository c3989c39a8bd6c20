"""
What fits? The memory of a training step, without doing the step. Tensors that have shapes but no numbers go through the
code that trains, and the bytes of those that are alive are counted. (That is what the allocator gives out. A process on
a CPU may take half as much again, because malloc keeps what was freed.)

    python -m studies.memory --config=config/mistral7b.toml --gpus=8
"""

import weakref
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from beyond.adaptive import attach_gain_head
from beyond.lora import add_lora
from lean.in_parts import good_part
from lean.log_prob import CHUNK_NUMBERS
from lib.config import from_cli, one_line_errors, settings
from lib.files import reading
from lib.runs import read_config
from lib.weights import hugging_face_config, official_config
from model import ModelConfig, Transformer
from quiet_star import QuietSTaR, QuietSTaRConfig
from train import TrainConfig

GB = 1e9
FULL = 4  # bytes of a float32


@dataclass
class MemoryConfig:
    gpus: int = 8  # processes that share the work, one a GPU
    gpu_memory: float = 80.0  # GB of each
    thought_lens: str = "4,8,16"  # thought lengths to look at besides thought_len

    def __post_init__(self):
        if self.gpus < 1 or self.gpu_memory <= 0:
            raise ValueError("gpus must be at least 1, gpu_memory above 0")
        if not all(x.strip().isdigit() for x in self.thought_lens.split(",")):
            raise ValueError(f"thought_lens must be numbers with commas between them, not {self.thought_lens!r}")


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that were made in here and still live, and the most there ever were."""

    def __init__(self):
        super().__init__()
        self.now, self.most, self.known = 0, 0, set()

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if function is torch.ops.aten.nonzero.default:  # there are no numbers to look at: all of them, at most
            return torch.arange(len(args[0]))[:, None]
        out = function(*args, **(kwargs or {}))
        given = {x.untyped_storage()._cdata for x in tree_leaves((args, kwargs)) if isinstance(x, torch.Tensor)}
        for x in tree_leaves(out):  # an output that shares its memory with an input is none of its own
            if isinstance(x, torch.Tensor) and x.untyped_storage()._cdata not in self.known | given:
                self.watch(x.untyped_storage())
        self.most = max(self.most, self.now)
        return out

    def watch(self, storage):
        key, size = storage._cdata, storage.nbytes()
        self.known.add(key)
        self.now += size

        def gone():
            self.known.discard(key)
            self.now -= size

        weakref.finalize(storage, gone)


def thinking(model_config, quiet_config, train):
    quiet = QuietSTaR(Transformer(model_config), quiet_config)
    if train.lora_rank:
        add_lora(quiet.model, train.lora_rank)
    if train.gain_head:
        attach_gain_head(quiet)
    return quiet


def activations(train, model_config, quiet_config, texts, dtype=torch.float32, weights=torch.float32, gpu=True):
    """Bytes that forward and backward of so many texts need at most, above weights and gradients.

    dtype: of the arithmetic (autocast); weights: bfloat16 if they are gathered so (fsdp). All blocks are alike: what
    the last two of a few add is what each further one adds. gpu: think as many positions at once, and make as many
    logits at once, as there.
    """
    some = min(10, model_config.n_layers)  # with fewer, the moment of the peak is another one
    shapes = [replace(model_config, n_layers=n) for n in (max(1, some - 1), some)]
    fewer, more = (peak(train, shape, quiet_config, texts, dtype, weights, gpu) for shape in shapes)
    return more + (model_config.n_layers - some) * (more - fewer)


def peak(train, model_config, quiet_config, texts, dtype=torch.float32, weights=torch.float32, gpu=True):
    """The same with as many blocks as the model has. Parts of a text that think one after the other are alike, too: two
    of them do."""
    with FakeTensorMode():
        default, chunk = torch.get_default_dtype(), CHUNK_NUMBERS["cpu"]
        torch.set_default_dtype(weights)  # for tensors without numbers there is no .to(dtype)
        try:
            quiet = thinking(model_config, quiet_config, train)
            torch.set_default_dtype(default)
            CHUNK_NUMBERS["cpu"] = CHUNK_NUMBERS["cuda"] if gpu else chunk
            return peak_of(quiet, train, texts, dtype, gpu)
        finally:
            torch.set_default_dtype(default)
            CHUNK_NUMBERS["cpu"] = chunk


def peak_of(quiet, train, texts, dtype, gpu):
    for p in (p for p in quiet.parameters() if p.requires_grad):
        p.grad = torch.empty_like(p)
    tokens = torch.zeros(texts, train.span + quiet.config.n_true, dtype=torch.long)
    everywhere = quiet.default_positions(tokens)
    at_once = train.think_at_once or good_part(quiet, everywhere, train.recompute, "cuda" if gpu else "cpu")
    alive = Alive()
    with alive, torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        where = everywhere[:, : 2 * at_once]
        quiet.backward(tokens, where=lambda h_text: where, at_once=at_once, recompute=train.recompute)
    return alive.most


def state(model_config, quiet_config, gpus, dtype, train):
    """{mode: {what: bytes on each GPU}} of all but activations, by the modes of lib/parallel.py. dtype: of what is
    gathered."""
    with torch.device("meta"):
        quiet = thinking(model_config, quiet_config, train)
    learn = sum(p.numel() for p in quiet.parameters() if p.requires_grad)
    everything = sum(p.numel() for p in quiet.parameters())
    block = sum(p.numel() for p in quiet.model.layers[0].parameters())
    root, width = everything - block * model_config.n_layers, dtype.itemsize

    if train.lora_rank:  # what is frozen is kept in the dtype of the arithmetic
        frozen = dtype.itemsize * (everything - learn)
        memory = {"weights": frozen + FULL * learn, "gradients": FULL * learn, "optimizer": 2 * FULL * learn}
        return everything, {"data": memory | {"gathered": 0}}

    def kept(numbers):
        return {"weights": FULL * numbers, "gradients": FULL * numbers, "optimizer": 2 * FULL * numbers}

    # What is gathered: weights, and the gradients that are added up in float32 until they are sent. On the way of a
    # block: the next one's weights, its gradient in both forms, and the one being sent.
    passing = (width + width + 2 * FULL) * block
    return everything, {
        "data": kept(everything) | {"gathered": 0},
        "fsdp, gather=step": kept(everything / gpus) | {"gathered": (width + FULL) * everything + passing},
        "fsdp, gather=layer": kept(everything / gpus) | {"gathered": (width + FULL) * root + width * block + passing},
    }


def plan(memory, train, model_config, quiet_config):
    """What each GPU holds, by mode, thought length and recompute: a dict, bytes."""
    dtype = torch.float32 if train.dtype == "float32" else torch.bfloat16
    parameters, states = state(model_config, quiet_config, memory.gpus, dtype, train)
    texts = train.micro_batch or max(1, train.batch_size // memory.gpus)
    lengths = sorted({quiet_config.thought_len, *map(int, memory.thought_lens.split(","))})
    rows = []
    bar = tqdm(total=4 * len(lengths), desc="counting", leave=False, disable=None)
    for m, recompute in product(lengths, (False, True)):
        settings, needs = (replace(train, recompute=recompute), model_config, replace(quiet_config, thought_len=m)), {}
        for weights in dict.fromkeys((torch.float32, dtype)):
            needs[weights] = activations(*settings, texts, dtype, weights)
            bar.update()
        needs = {m: needs[torch.float32 if m == "data" and not train.lora_rank else dtype] for m in states}
        totals = {mode: sum(parts.values()) + needs[mode] for mode, parts in states.items()}
        rows.append({"thought_len": m, "recompute": recompute, "activations": needs, "total": totals})
    bar.close()
    return {"parameters": parameters, "texts": texts, "state": states, "rows": rows}


def report(memory, train, model_config, quiet_config):
    """Print the plan."""
    found = plan(memory, train, model_config, quiet_config)
    at_once, N, a = train.think_at_once or train.span, quiet_config.n_thoughts, quiet_config.n_true
    print(f"{found['parameters'] / 1e9:.3f} billion parameters, {memory.gpus} GPUs of {memory.gpu_memory:.0f} GB;")
    print(f"texts of {train.span} tokens, {found['texts']} at a time, {at_once} positions at once, {N=}, n_true={a}\n")
    modes = list(found["state"])
    print(f"{'GB on each GPU':40}" + "".join(f"{mode:>20}" for mode in modes))
    for what in found["state"]["data"]:
        print(f"{what:40}" + "".join(f"{found['state'][mode][what] / GB:>18.1f}  " for mode in modes))
    for kind in ("activations", "total"):
        print()
        for row in found["rows"]:
            title = f"{kind}, thought_len={row['thought_len']}" + (", --recompute" if row["recompute"] else "")
            cells = [(x, kind == "total" and x <= memory.gpu_memory * GB) for x in (row[kind][mode] for mode in modes)]
            print(f"{title:40}" + "".join(f"{x / GB:>18.1f}{' *' if fits else '  '}" for x, fits in cells))
    print("\n* fits. Leave some room: libraries want a GB or so, and memory in use is never without gaps.")


def shape_of(folder, model_config, given):
    """The model's shape: of the weights or run in `folder` if it is there, else as given. Raises ValueError."""
    folder = Path(folder)
    if (folder / "params.json").exists():
        return official_config(folder / "params.json")
    if any(folder.glob("*.safetensors")) or any(folder.glob("pytorch_model*.bin")):
        return hugging_face_config(folder / "config.json")
    if folder != Path() and (folder / "config.json").exists():
        with reading(folder / "config.json", "is not the configuration of a run"):
            return settings(ModelConfig, read_config(folder)["model"])
    if not {"dim", "n_layers", "hidden_dim", "n_heads", "n_kv_heads", "head_dim", "vocab_size"} <= given.keys():
        raise ValueError(f"there is no model in {folder}: give its shape instead (--dim, --n_layers, ...)")
    return model_config


def main(argv=None):
    classes = MemoryConfig, TrainConfig, ModelConfig, QuietSTaRConfig
    with one_line_errors("memory.py"):
        memory, train, model_config, quiet_config, given = from_cli(__doc__, *classes, argv=argv)
        report(memory, train, shape_of(train.init_from, model_config, given), quiet_config)


if __name__ == "__main__":
    main()
