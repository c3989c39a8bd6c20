"""
Train a language model, or teach one to think (Quiet-STaR).

    python train.py                                     the miniature; its text and base model first
    torchrun --nproc_per_node=8 train.py                the same on eight GPUs (or CPU processes)
    python train.py --objective=lm --out=out/mine --data=data/mine --init_from=""     a base model
    python train.py --out=out/mine_thinks --data=data/mine --init_from=out/mine       let it think

The batch of a step is a function of seed and step alone, and so is the noise that thoughts are
sampled with: any number of processes, any micro_batch and any interruption give the same training.
Run the same command again to go on.
"""

import dataclasses
import math
import runpy
import subprocess
import sys
import time
from contextlib import ExitStack, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Literal

import torch
import torch.distributed as dist
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from beyond.kinds import ThinkingConfig, thinking_model
from beyond.lora import add_lora
from beyond.positions import how_many, one_token, think_where
from data.batches import batch_offsets, check_sizes, position_chance, read_batch, thought_noise
from data.dataset import open_dataset
from fast import text_loss
from lib import parallel, runs
from lib.checkpoint import checkpoints
from lib.config import from_cli, one_line_errors
from lib.files import folder_kind, lock, open_to_append, reason
from lib.tokenizer import from_json
from model import ModelConfig, Transformer
from quiet_star import QuietSTaR

HERE = Path(__file__).resolve().parent
HEADS = "mixing_head.", "gain_head."  # how their parameters' names begin


@dataclass
class TrainConfig:
    objective: Literal["quiet_star", "lm"] = "quiet_star"  # lm: plain language modelling
    out: str = "out/arithmetic"  # folder of this run; a run that was interrupted there goes on
    data: str = "data/arithmetic"  # folder of a dataset; prepared first if it has only a prepare.py
    init_from: str = "out/arithmetic_base"  # run or weights to start from; empty: random weights
    base_preset: str = "config/arithmetic_base.toml"  # preset that makes init_from if missing
    start_text: str = "—"  # where start and end are new, they begin as its mean embedding
    end_text: str = ""  # the end begins as this one's instead
    span: int = 64  # tokens of text that a training example reads (the paper: 256)
    separate_documents: bool = False  # predict no token across the end of a document
    batch_size: int = 8  # texts of a step, over all processes
    micro_batch: int = 0  # texts of one forward pass of a process; fewer: less memory; 0: all
    think_at: Literal["all", "hard", "aloud", "start", "random"] = "hard"  # positions that think
    think_share: float = 0.25  # share of a text's positions that think, where not all do
    think_at_once: int = 0  # positions of a text that think together (fast); 0: as many as is good
    fast: bool = False  # the form of fast.py: the same in less time and memory on larger models
    lora_rank: int = 0  # learn additions of this rank to a frozen model (LoRA); 0: learn all of it
    max_steps: int = 300  # optimizer steps
    lr: float = 1e-4  # learning rate, after warm-up; 0: the model is held fixed, its heads learn
    warmup_steps: int = 10  # steps in which the learning rate rises from 0
    min_lr_share: float = 0.05  # the learning rate falls along a cosine to this share of it
    mixing_head_lr: float = 2e-3  # learning rate of the mixing head (and of the gain head)
    weight_decay: float = 0.001  # of AdamW, on matrices only
    beta2: float = 0.999  # of AdamW
    grad_clip: float = 1.0  # largest norm of the gradient
    eval_every: int = 100  # steps between looks at held-out text; 0: only at the end
    eval_texts: int = 64  # held-out spans looked at
    save_every: int = 50  # steps between checkpoints
    seed: int = 1337  # of weights, batches and thoughts
    parallel: Literal["data", "fsdp"] = "data"  # data: processes share texts; fsdp: the model too
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is one
    dtype: Literal["auto", "float32", "bfloat16"] = "auto"  # bfloat16: autocast; auto: on cuda

    def __post_init__(self):
        for name in ("span", "batch_size", "max_steps", "eval_texts", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        if self.think_at_once and not self.fast:
            raise ValueError("think_at_once is for the fast form: add --fast")
        if self.lora_rank and self.parallel == "fsdp":
            raise ValueError("lora_rank is for models that fit into each process: parallel=data")
        if not (0 < self.think_share <= 1 and self.grad_clip > 0 and self.beta2 < 1):
            raise ValueError("think_share must be in (0, 1], grad_clip above 0, beta2 below 1")


# --------------------------------------------------------------------------------------------------
# model and optimizer


def build_model(train, model_config, thinking_config, given, tokenizer, bfloat16=False):
    """The model to train, on the CPU: new, or the one in init_from, whose weights stay in its files
    and have their dtype. ValueError if that does not fit."""
    torch.manual_seed(train.seed)
    if train.init_from:
        start, its_tokenizer, _, _ = runs.load_model(train.init_from, dtype=None)
        if its_tokenizer.to_json() != tokenizer.to_json():
            raise ValueError(f"{train.data} and {train.init_from} have different tokenizers")
    else:
        start = Transformer(dataclasses.replace(model_config, vocab_size=tokenizer.vocab_size))
    transformer = start.model if isinstance(start, QuietSTaR) else start
    for name, value in dataclasses.asdict(transformer.config).items():
        if given.get(name, value) != value:
            source = train.init_from or train.data
            raise ValueError(f"{name}={given[name]}, but {source} has {value}")
    if train.lora_rank:
        add_lora(transformer, train.lora_rank, torch.bfloat16 if bfloat16 else torch.float32)
    if train.objective == "lm":
        return transformer  # of a thinking model, what speaks without a thought

    model = thinking_model(transformer, thinking_config, train.fast, at_once=train.think_at_once)
    if start is not transformer:  # it thinks already
        model.mixing_head.load_state_dict(start.mixing_head.state_dict())
        runs.set_start_and_end(model, *start.thought_tokens())
        heads = [getattr(x, "gain_head", None) for x in (model, start)]
        if all(heads) and heads[0].last.out_features == heads[1].last.out_features:
            heads[0].load_state_dict(heads[1].state_dict())
    elif train.start_text:
        with suppress(ValueError):  # characters that the miniature's alphabet lacks
            end_text = train.end_text or train.start_text
            runs.start_thoughts(model, tokenizer, train.start_text, end_text)
    if not train.lr:  # no backward pass through the model
        if thinking_config.mixing == "none":
            raise ValueError("with lr=0 and mixing=none nothing would learn")
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(name.startswith(HEADS))
    return model


def build_optimizer(model, train):
    """AdamW in float32: weight decay on matrices only, and a learning rate of its own for the
    heads."""
    groups = {}
    for name, parameter in model.named_parameters():
        if parameter.requires_grad:
            decay = train.weight_decay if parameter.dim() == 2 else 0.0
            peak = train.mixing_head_lr if name.startswith(HEADS) else train.lr
            groups.setdefault((decay, peak), []).append(parameter)
    groups = [{"params": p, "weight_decay": d, "peak_lr": lr} for (d, lr), p in groups.items()]
    return torch.optim.AdamW(groups, lr=train.lr, betas=(0.9, train.beta2), fused=True)


def lr_share(step, train):
    """The learning rate of a step, as a share of its peak: a linear warm-up, then a cosine from 1
    to min_lr_share at max_steps."""
    if step < train.warmup_steps:
        return (step + 1) / train.warmup_steps
    done = (step - train.warmup_steps) / max(1, train.max_steps - train.warmup_steps)
    cosine = 0.5 * (1 + math.cos(math.pi * min(1.0, done)))
    return train.min_lr_share + (1 - train.min_lr_share) * cosine


# --------------------------------------------------------------------------------------------------
# a step, and a look at held-out text


@dataclass
class Job:
    """What a run works with."""

    processes: object
    data: object
    held_out: object
    length: int  # tokens of an example: span, and those that are predicted last
    model: torch.nn.Module
    optimizer: torch.optim.Optimizer
    start_id: int | None  # of start_text, for think_at=aloud and start
    autocast: object


def loss_of(train, job, model, tokens, documents, **how):
    """The loss of texts, and metrics. how: see QuietSTaR.forward."""
    with job.autocast():
        if train.objective == "quiet_star":
            return model(tokens, documents=documents, **how)
        loss = text_loss(model.output, model(tokens[:, :-1]), tokens, documents)
        return loss, {"loss": loss.detach(), "nll_base": loss.detach()}


def one_step(train, job, step):
    """Add the gradients of this process's texts in a step to .grad. Returns metrics: the means over
    these texts."""
    processes, model = job.processes, job.model
    texts = train.batch_size // processes.world
    micro_batch = train.micro_batch or texts
    first = processes.rank * texts
    offsets = batch_offsets(job.data, job.length, train.batch_size, train.seed, step)
    if train.objective == "quiet_star":
        S = train.span if train.think_at == "all" else how_many(train.think_share, train.span)
        noise = thought_noise(train.batch_size, S, model.config, train.seed, step)
        chance = position_chance(train.batch_size, train.span, train.seed, step)
    metrics, how = {}, {}
    for start in range(first, first + texts, micro_batch):
        part = slice(start, start + micro_batch)
        tokens, documents = read_batch(
            job.data, offsets[part], job.length, train.separate_documents, processes.device
        )
        if train.objective == "quiet_star":
            uniform = chance[part].to(processes.device)
            places = train.think_at, train.think_share, tokens, uniform, job.start_id
            how["positions"] = think_where(model, *places)
            how["noise"] = noise[part].to(processes.device)
        loss, new = loss_of(train, job, model, tokens, documents, **how)
        share = micro_batch / texts
        (share * loss).backward()
        for name, value in new.items():
            metrics[name] = metrics.get(name, 0.0) + share * value
    return metrics


def look_is_due(train, step):
    """Is held-out text looked at after this step?"""
    return step == train.max_steps or bool(train.eval_every and step % train.eval_every == 0)


@torch.no_grad()
def evaluate(train, job):
    """Metrics on the same held-out spans each time, each process its share. All positions think
    (in training it may be some), and thoughts are greedy."""
    processes, model, names = job.processes, job.model, ["nll_base"]
    offsets = batch_offsets(job.held_out, job.length, train.eval_texts, 0, 0)
    offsets = offsets[processes.rank :: processes.world]
    if train.objective == "quiet_star":
        model = model.with_settings(n_thoughts=1, thought_temperature=0.0)
        names = ["nll_base", "nll_mixed", "gate"]
    sums = dict.fromkeys(names, 0.0)
    texts = train.micro_batch or train.batch_size // processes.world
    for start in range(0, len(offsets), texts):
        part = offsets[start : start + texts]
        tokens, documents = read_batch(
            job.held_out, part, job.length, train.separate_documents, processes.device
        )
        _, metrics = loss_of(train, job, model, tokens, documents)
        for name in names:
            sums[name] += float(metrics[name]) * len(part) * processes.world / train.eval_texts
    parallel.release(job.model, processes)
    sums = {f"val_{name}": value for name, value in sums.items()}
    return parallel.average_metrics(sums, processes)


# --------------------------------------------------------------------------------------------------
# training


def run(train, model_config, thinking_config, given):
    """Train as told, from wherever the run in train.out stands. Returns when max_steps are done."""
    with one_line_errors("train.py"), ExitStack() as held:
        job, *progress = set_up(train, model_config, thinking_config, given, held)
        try:
            train_until_done(train, job, *progress, held)
        except (ValueError, OSError) as error:
            kept = next(iter(checkpoints(train.out)), "none yet")
            raise ValueError(f"{reason(error)}; the last checkpoint: {kept}") from None


def set_up(train, model_config, thinking_config, given, held):
    """All that a run works with, and its progress (see open_run). It finds what the user may have
    got wrong, before any work: ValueError, OSError. held: the claim on the folder."""
    processes = parallel.start_processes(train.device, train.parallel)
    if folder_kind(train.out):
        runs.read_config(train.out)  # refuses what is no run
    prepare_what_is_missing(train, processes)
    data, held_out = open_dataset(train.data, "train"), open_dataset(train.data, "val")
    length = train.span + (thinking_config.n_true if train.objective == "quiet_star" else 1)
    eval_texts = train.eval_texts if train.parallel == "fsdp" else 0  # all make the same calls
    sizes = train.batch_size, train.micro_batch, eval_texts, processes.world
    check_sizes((data, held_out), length, train.separate_documents, *sizes)

    tokenizer = from_json(data.meta["tokenizer"], train.data)
    if thinking_config.thought_kind == "ended":
        end_id = one_token(tokenizer, train.end_text, "end_text")
        thinking_config = dataclasses.replace(thinking_config, end_id=end_id)
    start_id = None
    if train.think_at in ("aloud", "start"):
        start_id = one_token(tokenizer, train.start_text, "start_text")
    cuda = processes.device.type == "cuda"
    bfloat16 = train.dtype == "bfloat16" or (train.dtype == "auto" and cuda)
    model = build_model(train, model_config, thinking_config, given, tokenizer, bfloat16)
    transformer = model if train.objective == "lm" else model.model
    size = sum(p.numel() for p in model.parameters())
    if train.parallel == "fsdp":
        parallel.shard(model, transformer, processes, bfloat16)
    else:
        model.to(processes.device)
    if not train.lora_rank:  # learned weights are float32; now that no process holds all of them
        model.float()
    optimizer = build_optimizer(model, train)
    settings = {
        "train": dataclasses.asdict(train),
        "model": dataclasses.asdict(transformer.config),
        "quiet_star": dataclasses.asdict(thinking_config),
        "tokenizer": data.meta["tokenizer"],
        "data": {
            "checksum of its text": data.checksum,
            "checksum of its held-out text": held_out.checksum,
        },
    }
    if processes.first:
        Path(train.out).mkdir(parents=True, exist_ok=True)
        held.enter_context(lock(train.out, "training"))
    progress = runs.open_run(train.out, settings, model, optimizer, tokenizer, processes)
    if processes.first and progress[0] < train.max_steps:
        steps = f"steps {progress[0]} to {train.max_steps}"
        steps += f" on {processes.world} x {processes.device.type}"
        tqdm.write(f"{train.out}: {train.objective}, {size:,} parameters, {steps}")
    autocast = partial(torch.autocast, processes.device.type, torch.bfloat16, enabled=bfloat16)
    job = Job(processes, data, held_out, length, model, optimizer, start_id, autocast)
    return job, *progress


def train_until_done(train, job, step, seconds, unlogged, held):
    """The loop over steps. A step is saved before held-out text is looked at, and logged last: a
    run that dies in between goes on with the look. unlogged: metrics of a step that was saved, but
    not logged."""
    processes, model, optimizer = job.processes, job.model, job.optimizer
    out = Path(train.out)
    if step >= train.max_steps and not unlogged:
        return say(job, f"{out}: all {train.max_steps} steps are done already")
    stop = held.enter_context(runs.stop_on_signals())
    log = None
    if processes.first:
        log = held.enter_context(open_to_append(out / "log.jsonl"))
    hidden = not processes.first or None  # None: where nobody looks at a terminal
    bar = tqdm(total=train.max_steps, initial=step, disable=hidden, dynamic_ncols=True)
    if unlogged:
        look_and_log(train, job, unlogged, log, bar)
    stopping = False

    while step < train.max_steps and not stopping:
        start_time = time.perf_counter()

        # 1. schedule
        share = lr_share(step, train)
        for group in optimizer.param_groups:
            group["lr"] = share * group["peak_lr"]

        # 2. this process's texts, in micro-batches whose mean gradient is that of all of them
        metrics = one_step(train, job, step)
        parallel.release(model, processes)

        # 3. average over processes, and take the step
        parallel.average_gradients(model, processes)
        metrics = parallel.average_metrics({**metrics, "stop": float(stop["asked"])}, processes)
        stopping = metrics.pop("stop") > 0
        metrics["grad_norm"] = clip_gradients(train, model)
        if not math.isfinite(metrics["loss"] + metrics["grad_norm"]):
            what = f"loss {metrics['loss']}, norm of the gradient {metrics['grad_norm']}"
            raise ValueError(f"step {step + 1}: {what}: try a lower --lr, and another --out")
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1
        took = time.perf_counter() - start_time
        seconds += took
        metrics |= {"step": step, "lr": share * train.lr, "seconds": seconds}
        metrics["tokens_per_second"] = train.batch_size * train.span / took
        if peak := parallel.peak_memory(processes.device.type):
            metrics["peak_memory_gb"] = peak / 1e9

        # 4. save, look at held-out text, and log
        if stopping or step % train.save_every == 0 or look_is_due(train, step):
            runs.save_run(out, model, optimizer, metrics, processes)
        look_and_log(train, job, metrics, log, bar)

    bar.close()
    parallel.barrier(processes)
    if step < train.max_steps:
        say(job, f"stopped after step {step}, saved in {out}: the same command goes on from there")
        sys.exit(130)
    say(job, f"{out}: done, {train.max_steps} steps in {seconds:.0f} s of training")


def say(job, text):
    """Print a line, once for all processes."""
    if job.processes.first:
        tqdm.write(text)


def clip_gradients(train, model):
    """Clip the gradients to a norm of grad_clip, and return what it was. The gain head is left out:
    however wrong it is, the model takes the same steps."""
    named = model.named_parameters()
    of_model = [p for name, p in named if not name.startswith("gain_head.")]
    norm = clip_grad_norm_(of_model, train.grad_clip)
    return float(norm.full_tensor() if hasattr(norm, "full_tensor") else norm)  # of all slices


def look_and_log(train, job, metrics, log, bar):
    """Look at held-out text if it is due after this step, and log and show the step."""
    if look_is_due(train, metrics["step"]):
        metrics |= evaluate(train, job)
    if not job.processes.first:
        return
    log.write(runs.log_line(metrics))
    shown = {k: f"{metrics[k]:.3f}" for k in ("loss", "gate", "reward") if k in metrics}
    bar.set_postfix({**shown, "tok/s": f"{metrics['tokens_per_second']:.0f}"})
    bar.update(metrics["step"] - bar.n)
    if "val_nll_base" in metrics:
        values = [f"{k} {v:.4f}" for k, v in metrics.items() if k.startswith("val_") or k == "loss"]
        say(job, f"step {metrics['step']}: {'  '.join(values)}  ({metrics['seconds']:.0f} s)")


def prepare_what_is_missing(train, processes):
    """Make the text by its prepare.py, and by base_preset a base model that passes its check.py,
    where they are missing."""
    folder = Path(train.data)
    ours = folder.resolve().parent == HERE / "data"  # nothing is run that came with others' data
    if ours and not (folder / "meta.json").exists() and (folder / "prepare.py").exists():
        if processes.first:
            print(f"preparing {folder} (once)", flush=True)
            subprocess.run([sys.executable, str(folder / "prepare.py")], check=False)
        parallel.barrier(processes)
    if not (train.init_from and train.base_preset):
        return
    base = settings_from([f"--config={HERE / train.base_preset}", f"--device={train.device}"])
    if base[0].out != train.init_from:
        return
    if runs.steps_done(train.init_from) < base[0].max_steps:
        if processes.first:
            print(f"{train.init_from} comes first (once): {train.base_preset}", flush=True)
        run(*base)
    check = HERE / base[0].data / "check.py"
    if processes.first and check.exists() and not runs.steps_done(train.out):
        runpy.run_path(str(check))["check"](train.init_from)  # ValueError, if it has not learned


def settings_from(argv=None):
    """Settings from flags and preset: TrainConfig, ModelConfig, ThinkingConfig, what was given."""
    classes = TrainConfig, ModelConfig, ThinkingConfig  # the shape of a new model is a preset's
    return from_cli(__doc__, *classes, preset_only=[ModelConfig], argv=argv)


if __name__ == "__main__":
    run(*settings_from())
    if dist.is_initialized():
        dist.destroy_process_group()
