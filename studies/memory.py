"""
What fits, and what is it bound by? The memory of a training step, its operations and what GPUs send each other, without
doing the step. Tensors that have shapes but no numbers go through the code that trains, and the bytes of those that are
alive are counted. (That is what the allocator gives out. A process on a CPU may take half as much again, because malloc
keeps what was freed.)

    python -m studies.memory --config=config/mistral7b.toml --gpus=8
"""

import math
import weakref
from contextlib import nullcontext
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path

import torch
from lean.in_parts import equal_parts, good_part
from lean.log_prob import CHUNK_NUMBERS
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.overrides import TorchFunctionMode
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from tqdm import tqdm

from beyond.adaptive import attach_gain_head
from beyond.kinds import thinking_model
from beyond.lora import add_lora
from lib.config import from_cli, one_line_errors, settings
from lib.files import reading
from lib.runs import read_config
from lib.weights import hugging_face_config, official_config
from model import ModelConfig, Transformer
from quiet_star import QuietSTaRConfig
from studies.bench import read_per_token
from train import TrainConfig

GB = 1e9
FULL = 4  # bytes of a float32


@dataclass
class MemoryConfig:
    gpus: int = 8  # processes that share the work, one a GPU
    gpu_memory: float = 80.0  # GB of each
    thought_lens: str = "4,8,16"  # thought lengths to look at besides thought_len
    bandwidth: float = 400.0  # GB a second that a GPU sends to the others
    speed: float = 400.0  # arithmetic of a GPU, 10^12 operations a second

    def __post_init__(self):
        if self.gpus < 1 or min(self.gpu_memory, self.bandwidth, self.speed) <= 0:
            raise ValueError("gpus must be at least 1; gpu_memory, bandwidth and speed above 0")
        if not all(x.strip().isdigit() for x in self.thought_lens.split(",")):
            raise ValueError(
                f"thought_lens must be numbers with commas between them, not {self.thought_lens!r}"
            )


class Alive(TorchDispatchMode):
    """Counts the bytes of the tensors that were made in here and still live, and the most there ever were; and the
    operations that write numbers, each of which is a kernel to launch."""

    def __init__(self):
        super().__init__()
        self.now, self.most, self.known, self.operations = 0, 0, set(), 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        if (
            function is torch.ops.aten.nonzero.default
        ):  # there are no numbers to look at: all of them, at most
            return torch.arange(len(args[0]))[:, None]
        out = function(*args, **(kwargs or {}))
        given = {
            x.untyped_storage()._cdata
            for x in tree_leaves((args, kwargs))
            if isinstance(x, torch.Tensor)
        }
        self.operations += function.namespace == "aten" and not function.is_view
        for x in tree_leaves(
            out
        ):  # an output that shares its memory with an input is none of its own
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


class AsOnCuda(TorchFunctionMode):
    """Softmax and norms as autocast on CUDA has them: in float32, and of a norm only its input is kept."""

    def __torch_function__(self, function, types, args=(), kwargs=None):
        if function is torch.Tensor.softmax:
            args = args[0].float(), *args[1:]
        if function is torch.nn.functional.rms_norm:
            return FusedNorm.apply(args[0].float(), kwargs["weight"].float())
        return function(*args, **(kwargs or {}))


class FusedNorm(torch.autograd.Function):
    """The shapes of a norm that is one kernel. There are no numbers."""

    @staticmethod
    def forward(ctx, x, weight):
        ctx.save_for_backward(x, weight, torch.empty_like(x[..., :1]))
        return torch.empty_like(x)

    @staticmethod
    def backward(ctx, gradient):
        return tuple(torch.empty_like(x) for x in ctx.saved_tensors[:2])


def thinking(model_config, quiet_config, train):
    quiet = thinking_model(Transformer(model_config), quiet_config)
    if train.lora_rank:
        add_lora(quiet.model, train.lora_rank)
    if train.gain_head:
        attach_gain_head(quiet)
    return quiet


def of_texts(
    train, model_config, quiet_config, texts, dtype=torch.float32, weights=torch.float32, gpu=True
):
    """Bytes that forward and backward of so many texts need at most, above weights and gradients; and their operations.

    dtype: of the arithmetic (autocast); weights: bfloat16 if they are gathered so (fsdp). All blocks are alike: what
    the last two of a few add is what each further one adds. gpu: think as many positions at once, make as many
    logits at once, and keep what is kept there.
    """
    some = min(10, model_config.n_layers)  # with fewer, the moment of the peak is another one
    shapes = [replace(model_config, n_layers=n) for n in (max(1, some - 1), some)]
    found = [of_blocks(train, shape, quiet_config, texts, dtype, weights, gpu) for shape in shapes]
    return [
        more + (model_config.n_layers - some) * (more - fewer)
        for fewer, more in zip(*found, strict=True)
    ]


def of_blocks(
    train, model_config, quiet_config, texts, dtype=torch.float32, weights=torch.float32, gpu=True
):
    """The same with as many blocks as the model has."""
    with FakeTensorMode():
        default, chunk = torch.get_default_dtype(), CHUNK_NUMBERS["cpu"]
        torch.set_default_dtype(weights)  # for tensors without numbers there is no .to(dtype)
        try:
            quiet = thinking(model_config, quiet_config, train)
            torch.set_default_dtype(default)
            CHUNK_NUMBERS["cpu"] = CHUNK_NUMBERS["cuda"] if gpu else chunk
            with AsOnCuda() if gpu and dtype != torch.float32 else nullcontext():
                return of_model(quiet, train, texts, dtype, gpu)
        finally:
            torch.set_default_dtype(default)
            CHUNK_NUMBERS["cpu"] = chunk


def of_model(quiet, train, texts, dtype, gpu):
    """The same of a model. Parts of a text that think one after the other are alike: two of them do."""
    for p in (p for p in quiet.parameters() if p.requires_grad):
        p.grad = torch.empty_like(p)
    tokens = torch.zeros(texts, train.span + quiet.config.n_true, dtype=torch.long)
    everywhere, alive, marks = quiet.default_positions(tokens), Alive(), []
    device = "cuda" if gpu else "cpu"
    at_once = equal_parts(
        train.span, train.think_at_once or good_part(quiet, everywhere, train.recompute, device)
    )

    def mark(h_text=None):  # when thinking begins, and when it is over
        marks.append(alive.operations)
        return everywhere[:, : 2 * at_once]

    with alive, torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
        quiet.backward(
            tokens, where=mark, at_once=at_once, recompute=train.recompute, before_last=mark
        )
    of_part = (marks[1] - marks[0]) / min(2, math.ceil(train.span / at_once))
    return alive.most, alive.operations - (marks[1] - marks[0]) + of_part * math.ceil(
        train.span / at_once
    )


def messages(train, thought_len, gpus, gather):
    """How often a GPU gathers a block's weights in a step, and how often it sends a block's gradient."""
    texts, everywhere = max(1, train.batch_size // gpus), torch.empty(1, train.span, device="meta")
    calls = math.ceil(texts / (train.micro_batch or texts))
    parts = math.ceil(
        train.span / (train.think_at_once or good_part(None, everywhere, train.recompute, "cuda"))
    )
    passes = (
        thought_len + 1 + (1 if train.recompute else thought_len + 1)
    )  # of a part, forward and backward
    gathers = (
        calls * (2 + parts * passes) if gather == "layer" else 1
    )  # a text is read once, forward and backward
    return gathers, 1 if gather == "step" else calls * (parts + 1)


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
        memory = {
            "weights": frozen + FULL * learn,
            "gradients": FULL * learn,
            "optimizer": 2 * FULL * learn,
        }
        return everything, {"data": memory | {"gathered": 0}}

    def kept(numbers):
        return {
            "weights": FULL * numbers,
            "gradients": FULL * numbers,
            "optimizer": 2 * FULL * numbers,
        }

    # What is gathered: weights, and the gradients that are added up in float32 until they are sent. On the way of a
    # block: the next one's weights, its gradient in both forms, and the one being sent.
    passing = (width + width + 2 * FULL) * block
    return everything, {
        "data": kept(everything) | {"gathered": 0},
        "fsdp, gather=step": kept(everything / gpus)
        | {"gathered": (width + FULL) * everything + passing},
        "fsdp, gather=weights": kept(everything / gpus)
        | {"gathered": width * everything + FULL * root + passing},
        "fsdp, gather=layer": kept(everything / gpus)
        | {"gathered": (width + FULL) * root + width * block + passing},
    }


def sent(train, model_config, quiet_config, gpus, dtype):
    """What each GPU sends in a step, by the same modes: {mode: bytes}."""
    with torch.device("meta"):
        quiet = thinking(model_config, quiet_config, train)
    learn = sum(p.numel() for p in quiet.parameters() if p.requires_grad)
    block = sum(p.numel() for p in quiet.model.layers[0].parameters())
    root = learn - block * model_config.n_layers
    found = {"data": 2 * FULL * learn}  # each gradient, to be added up and to be handed out
    for gather in ("step", "weights", "layer") if not train.lora_rank else ():
        gathers, sends = messages(train, quiet_config.thought_len, gpus, gather)
        each = model_config.n_layers * block * (gathers * dtype.itemsize + sends * FULL)
        found[f"fsdp, gather={gather}"] = each + root * (dtype.itemsize + FULL)
    return {mode: x * (gpus - 1) / gpus for mode, x in found.items()}


def plan(memory, train, model_config, quiet_config):
    """What each GPU holds and sends (bytes), by mode, thought length and recompute; its seconds of arithmetic, and how
    many operations it starts: a dict."""
    dtype = torch.float32 if train.dtype == "float32" else torch.bfloat16
    parameters, states = state(model_config, quiet_config, memory.gpus, dtype, train)
    of_gpu = max(1, train.batch_size // memory.gpus)
    texts = train.micro_batch or of_gpu
    lengths = sorted({quiet_config.thought_len, *map(int, memory.thought_lens.split(","))})
    rows = []
    bar = tqdm(total=4 * len(lengths), desc="counting", leave=False, disable=None)
    for m, recompute in product(lengths, (False, True)):
        settings, needs = (
            (
                replace(train, recompute=recompute),
                model_config,
                replace(quiet_config, thought_len=m),
            ),
            {},
        )
        for weights in dict.fromkeys((torch.float32, dtype)):
            needs[weights], operations = of_texts(*settings, texts, dtype, weights)
            bar.update()
        needs = {
            m: needs[torch.float32 if m == "data" and not train.lora_rank else dtype]
            for m in states
        }
        totals = {mode: sum(parts.values()) + needs[mode] for mode, parts in states.items()}
        # 2 operations a weight and token read in each of three passes, forward and the two backward; or in four
        arithmetic = (
            of_gpu * train.span * read_per_token(settings[2]) * (8 if recompute else 6) * parameters
        )
        row = {"thought_len": m, "recompute": recompute, "activations": needs, "total": totals}
        row |= {"sent": sent(*settings, memory.gpus, dtype), "arithmetic": arithmetic}
        rows.append(row | {"operations": operations * math.ceil(of_gpu / texts)})
    bar.close()
    return {"parameters": parameters, "texts": texts, "state": states, "rows": rows}


def report(memory, train, model_config, quiet_config):
    """Print the plan."""
    found = plan(memory, train, model_config, quiet_config)
    at_once, N, a = train.think_at_once or train.span, quiet_config.n_thoughts, quiet_config.n_true
    print(
        f"{found['parameters'] / 1e9:.3f} billion parameters, {memory.gpus} GPUs of {memory.gpu_memory:.0f} GB;"
    )
    print(
        f"texts of {train.span} tokens, {found['texts']} at a time, {at_once} positions at once, {N=}, n_true={a}\n"
    )
    modes, columns = list(found["state"]), ("activations", "total", "sent")
    print(f"{'GB on each GPU':40}" + "".join(f"{mode:>22}" for mode in modes))
    for what in found["state"]["data"]:
        print(
            f"{what:40}" + "".join(f"{found['state'][mode][what] / GB:>20.1f}  " for mode in modes)
        )
    for kind, row in product(columns, found["rows"]):
        cells = [
            (x / GB, kind == "total" and x <= memory.gpu_memory * GB)
            for x in (row[kind][mode] for mode in modes)
        ]
        print(
            f"{f'{kind}, {title(row)}':40}"
            + "".join(f"{x:>20.1f}{' *' if fits else '  '}" for x, fits in cells)
        )
    print(
        "* fits. Leave some room: libraries want a GB or so, and memory in use is never without gaps.\n"
    )
    print(f"{f'seconds of sending, at {memory.bandwidth:.0f} GB/s':40}")
    for row in found["rows"]:
        seconds = [row["sent"][mode] / GB / memory.bandwidth for mode in modes]
        print(f"{title(row):40}" + "".join(f"{x:>20.2f}  " for x in seconds))
    print(
        f"\nseconds of arithmetic, at {memory.speed:.0f} x 10^12 operations a second; kernels to launch"
    )
    for row in found["rows"]:
        print(
            f"{title(row):40}{row['arithmetic'] / memory.speed / 1e12:>20.2f}{row['operations']:>20,.0f}"
        )


def title(row):
    return f"thought_len={row['thought_len']}" + (", --recompute" if row["recompute"] else "")


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
    if (
        not {"dim", "n_layers", "hidden_dim", "n_heads", "n_kv_heads", "head_dim", "vocab_size"}
        <= given.keys()
    ):
        raise ValueError(
            f"there is no model in {folder}: give its shape instead (--dim, --n_layers, ...)"
        )
    return model_config


def main(argv=None):
    classes = MemoryConfig, TrainConfig, ModelConfig, QuietSTaRConfig
    with one_line_errors("memory.py"):
        memory, train, model_config, quiet_config, given = from_cli(__doc__, *classes, argv=argv)
        report(memory, train, shape_of(train.init_from, model_config, given), quiet_config)


if __name__ == "__main__":
    main()
