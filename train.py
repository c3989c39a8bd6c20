"""
Train a language model, or teach one to think (Quiet-STaR).

    python train.py                                          the miniature, its corpus and base model made where missing
    torchrun --nproc_per_node=8 train.py                     the same on eight GPUs (or CPU processes)
    python train.py --objective=lm --out=out/mine --data=data/mine --init_from=""          a base model from scratch
    python train.py --out=out/mine_thinks --data=data/mine --init_from=out/mine            teach it to think

The batch of a step is a function of seed and step alone, and so is the noise that thoughts are sampled with: any number
of processes, any micro_batch and any interruption give the same training. Run the same command again to go on.
"""

import dataclasses
import math
import runpy
import subprocess
import sys
import time
from contextlib import ExitStack, nullcontext, suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import Literal

import torch
import torch.distributed as dist
from torch.nn.utils import clip_grad_norm_
from tqdm import tqdm

from beyond.adaptive import attach_gain_head
from beyond.kinds import thinking_model
from beyond.lora import add_lora
from beyond.positions import start_token, think_where
from data.batches import batch_offsets, check_sizes, read_batch, thought_noise
from data.dataset import open_dataset
from lean.in_parts import go_back
from lean.log_prob import text_loss
from lib.config import from_cli, one_line_errors
from lib.files import lock, reason
from lib.parallel import (
    average_gradients,
    average_metrics,
    barrier,
    hold,
    release,
    shard,
    start_processes,
    whole,
)
from lib.runs import (
    load_model,
    log_line,
    open_run,
    save_run,
    start_thoughts,
    steps_done,
    stop_on_signals,
    what_is_kept,
)
from lib.tokenizer import from_json
from lib.watch import log_thoughts, most_memory, some_thoughts
from model import ModelConfig, Transformer
from quiet_star import QuietSTaR, QuietSTaRConfig

HERE = Path(__file__).resolve().parent


@dataclass
class TrainConfig:
    objective: Literal["quiet_star", "lm"] = (
        "quiet_star"  # "lm": plain language modelling, no thoughts
    )
    out: str = "out/arithmetic"  # folder of this run; a run that was interrupted there goes on
    data: str = "data/arithmetic"  # folder of a dataset; prepared first if it only has a prepare.py
    init_from: str = (
        "out/arithmetic_base"  # run folder whose model training starts from; empty: random weights
    )
    base_preset: str = (
        "config/arithmetic_base.toml"  # preset that makes init_from, if it is that preset's `out`
    )
    start_text: str = "—"  # start/end of thought begin as this text's mean embedding, where the tokenizer knows it
    end_text: str = ""  # the end as this one's, if it is to be another
    span: int = 64  # tokens of text a training example reads (the paper: 256)
    separate_documents: bool = False  # predict no token across the end of a document
    batch_size: int = 8  # texts per step, over all processes
    micro_batch: int = (
        0  # texts per forward and process; 0: all of the process's; less needs less memory
    )
    think_at: Literal[
        "all", "hard", "hardest", "wrong", "aloud", "start", "random", "each_document"
    ] = "hard"  # where
    think_share: float = 0.25  # share of a text's positions that think, where not all do
    think_at_once: int = (
        0  # positions of a text that think together, fewer: less memory; 0: as many as is good
    )
    lora_rank: int = 0  # freeze the model and learn additions of this rank to it (beyond/lora.py); 0: learn all of it
    gain_head: bool = True  # also learn what a thought would bring (beyond/adaptive.py); the model learns the same
    recompute: bool = (
        False  # sample thoughts, then read them again to learn, fewer at once: slower, less memory
    )
    max_steps: int = 300  # optimizer steps
    lr: float = 1e-4  # learning rate, after warm-up
    warmup_steps: int = 10  # steps in which the learning rate rises from 0
    min_lr_share: float = (
        0.05  # the learning rate falls along a cosine to this share of it; 1: it stays
    )
    mixing_head_lr: float = (
        20.0  # learning rate of the mixing head (and the gain head), as a multiple of lr
    )
    weight_decay: float = 0.001  # AdamW, on matrices only
    beta1: float = 0.9  # AdamW
    beta2: float = 0.999  # AdamW
    grad_clip: float = 1.0  # largest norm of the gradient
    eval_every: int = 100  # steps between looks at held-out text; 0: only at the end
    eval_texts: int = 64  # held-out spans looked at
    save_every: int = 50  # steps between checkpoints
    keep: int = (
        2  # checkpoints kept: the newest, and those before it for when it turns out to be damaged
    )
    seed: int = 1337  # of weights, batches and thoughts
    parallel: Literal["data", "fsdp", "none"] = (
        "data"  # data: processes share the texts; fsdp: the model too
    )
    gather: Literal["step", "weights", "layer"] = (
        "step"  # fsdp: what is kept whole within a step (lib/parallel.py)
    )
    device: Literal["auto", "cpu", "cuda"] = "auto"  # auto: cuda where there is one
    dtype: Literal["auto", "float32", "bfloat16"] = (
        "auto"  # bfloat16: autocast; auto: on cuda (CPU: docs/costs.md)
    )

    def __post_init__(self):
        for name, number in dict(
            span=1, batch_size=1, max_steps=1, eval_texts=1, save_every=1, keep=2
        ).items():
            if getattr(self, name) < number:
                raise ValueError(f"{name} must be at least {number}, not {getattr(self, name)}")
        if self.lora_rank and self.parallel == "fsdp":
            raise ValueError("lora_rank is for models that fit into each process: parallel=data")
        if not (
            0 < self.think_share <= 1 and self.grad_clip > 0 and max(self.beta1, self.beta2) < 1
        ):
            raise ValueError(
                "think_share must be above 0 and at most 1, grad_clip above 0, beta1 and beta2 below 1"
            )


# ----------------------------------------------------------------------------------------------------------------------
# model and optimizer


def build_model(train, model_config, quiet_config, given, tokenizer, bfloat16=False):
    """The model to train, on the CPU: new, or the one in init_from. Raises ValueError if that does not fit."""
    torch.manual_seed(train.seed)
    if not train.init_from:
        if given.get("vocab_size", tokenizer.vocab_size) != tokenizer.vocab_size:
            raise ValueError(
                f"--vocab_size={given['vocab_size']}, but {train.data} has {tokenizer.vocab_size}"
            )
        start = Transformer(dataclasses.replace(model_config, vocab_size=tokenizer.vocab_size))
    else:
        start, its_tokenizer, _, _ = load_model(train.init_from)
        if its_tokenizer.to_json() != tokenizer.to_json():
            raise ValueError(
                f"{train.data} was made with another tokenizer than the model in {train.init_from}"
            )
    transformer = start.model if isinstance(start, QuietSTaR) else start
    for name, value in dataclasses.asdict(transformer.config).items():
        if train.init_from and given.get(name, value) != value:
            raise ValueError(
                f"--{name}={given[name]}, but the model in {train.init_from} has {value}"
            )
    if train.lora_rank:
        add_lora(transformer, train.lora_rank, torch.bfloat16 if bfloat16 else None)
    if train.objective == "lm":
        return transformer  # of a thinking model, what speaks without a thought

    model = thinking_model(transformer, quiet_config)
    if train.gain_head:
        attach_gain_head(model)
    if start is transformer and train.start_text:
        with suppress(ValueError):  # characters that the miniature's alphabet lacks
            start_thoughts(model, tokenizer, train.start_text, train.end_text)
    else:
        model.mixing_head.load_state_dict(start.mixing_head.state_dict())
        model.thought_tokens.init_from(*start.thought_tokens())
        if train.gain_head and hasattr(start, "gain_head"):
            model.gain_head.load_state_dict(start.gain_head.state_dict())
    return model


def build_optimizer(model, train):
    """AdamW in float32: weight decay on matrices only, and a learning rate of its own for the two small heads."""
    groups = {}
    for name, p in ((name, p) for name, p in model.named_parameters() if p.requires_grad):
        decay = train.weight_decay if p.dim() == 2 else 0.0
        scale = train.mixing_head_lr if name.startswith(("mixing_head.", "gain_head.")) else 1.0
        groups.setdefault((decay, scale), []).append(p)
    groups = [
        {"params": ps, "weight_decay": decay, "lr_scale": scale}
        for (decay, scale), ps in groups.items()
    ]
    return torch.optim.AdamW(groups, lr=train.lr, betas=(train.beta1, train.beta2), fused=True)


def lr_at(step, train):
    """Linear warm-up, then a cosine from lr to min_lr_share * lr at max_steps."""
    if step < train.warmup_steps:
        return train.lr * (step + 1) / train.warmup_steps
    done = (step - train.warmup_steps) / max(1, train.max_steps - train.warmup_steps)
    low = train.lr * train.min_lr_share
    return low + (train.lr - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


# ----------------------------------------------------------------------------------------------------------------------
# the two kinds of steps: forward and backward pass of some texts, whose loss counts by `scale` in the step's


def lm_step(model, tokens, documents, scale, before_last):
    """Plain language modelling of tokens (B, L): metrics. before_last: called before the step's last backward pass."""
    loss, _ = text_loss(model.output, model(tokens[:, :-1]), tokens, documents)
    before_last()
    go_back(scale * loss)
    return {"loss": loss.detach(), "nll_base": loss.detach()}


def thinking_step(model, tokens, documents, scale, before_last, train, marks, noise, chance):
    """Quiet-STaR, likewise. noise (B, N, span, m): decides the thoughts; marks, chance (B, span): where to think, see
    beyond/positions.py."""
    where = think_where(model, train.think_at, train.think_share, tokens, chance, *marks)
    how = dict(
        scale=scale, at_once=train.think_at_once, recompute=train.recompute, before_last=before_last
    )
    return model.backward(tokens, documents=documents, noise=noise, where=where, **how)


@torch.no_grad()
def evaluate(train, job, step):
    """Metrics on the same held-out spans every time, each process its share; one greedy thought per position."""
    processes, model = job.processes, job.model
    offsets = batch_offsets(job.held_out, job.length, train.eval_texts, 0, 0)[
        processes.rank :: processes.world
    ]
    names = ["nll_base"]
    if train.objective == "quiet_star":
        model, names = (
            model.with_settings(n_thoughts=1, thought_temperature=0.0),
            ["nll_base", "nll_mixed", "gate"],
        )
    sums, at_once = (
        dict.fromkeys(names, 0.0),
        train.micro_batch or train.batch_size // processes.world,
    )
    for part in (offsets[i : i + at_once] for i in range(0, len(offsets), at_once)):
        tokens, documents = read_batch(
            job.held_out, part, job.length, train.separate_documents, processes.device
        )
        with job.autocast():
            if train.objective == "lm":
                metrics = {
                    "nll_base": text_loss(model.output, model(tokens[:, :-1]), tokens, documents)[0]
                }
            else:
                _, metrics = model(tokens, documents=documents)
        for name in names:
            sums[name] += float(metrics[name]) * len(part) * processes.world / train.eval_texts
    if train.objective == "quiet_star" and processes.first and train.parallel != "fsdp":
        with job.autocast():
            log_thoughts(train.out, step, some_thoughts(job.model, tokens[:1], job.tokenizer))
    return average_metrics({f"val_{name}": value for name, value in sums.items()}, processes)


# ----------------------------------------------------------------------------------------------------------------------
# training


def run(train, model_config, quiet_config, given):
    """Train as told, from wherever the run in train.out stands. Returns when max_steps are done."""
    with (
        one_line_errors("train.py"),
        ExitStack() as held,
    ):  # the claim on the folder, let go however it ends
        train_until_done(train, set_up(train, model_config, quiet_config, given, held), held)


def set_up(train, model_config, quiet_config, given, held):
    """All that a run works with. Finds what the user may have got wrong, before any work: ValueError, OSError."""
    processes = start_processes(train.device, train.parallel, train.gather)
    prepare_what_is_missing(train, processes)
    data, held_out = open_dataset(train.data, "train"), open_dataset(train.data, "val")
    length = train.span + (quiet_config.n_true if train.objective == "quiet_star" else 1)
    check_sizes(train, data, held_out, length, processes)

    tokenizer = from_json(data.meta["tokenizer"], train.data)
    bfloat16 = (
        train.dtype == "bfloat16" or train.dtype == "auto" and processes.device.type == "cuda"
    )
    model = build_model(train, model_config, quiet_config, given, tokenizer, bfloat16)
    transformer = model if train.objective == "lm" else model.model
    size = sum(p.numel() for p in model.parameters())
    if train.parallel == "fsdp":
        shard(model, transformer, processes, bfloat16)
    else:
        model.to(processes.device)
    optimizer = build_optimizer(model, train)
    settings = {
        "train": dataclasses.asdict(train),
        "model": dataclasses.asdict(transformer.config),
        "quiet_star": dataclasses.asdict(quiet_config),
        "tokenizer": data.meta["tokenizer"],
        "data": {
            "checksum of its text": data.checksum,
            "checksum of its held-out text": held_out.checksum,
        },
    }
    if processes.first:
        Path(train.out).mkdir(parents=True, exist_ok=True)
        held.enter_context(lock(train.out, "training"))
    defaults = vars(TrainConfig()) | vars(ModelConfig()) | vars(QuietSTaRConfig())
    step, seconds = open_run(train.out, settings, defaults, model, optimizer, tokenizer, processes)
    if processes.first and step < train.max_steps:
        where = f"on {processes.world} x {processes.device.type}" + (
            ", sharded" if train.parallel == "fsdp" else ""
        )
        tqdm.write(
            f"{train.out}: {train.objective}, {size:,} parameters, steps {step} to {train.max_steps}, {where}"
        )
    autocast = (
        partial(torch.autocast, processes.device.type, torch.bfloat16) if bfloat16 else nullcontext
    )
    start = train.think_at in ("aloud", "start") and start_token(tokenizer, train.start_text)
    job = dict(
        processes=processes,
        data=data,
        held_out=held_out,
        length=length,
        model=model,
        optimizer=optimizer,
    )
    job |= dict(tokenizer=tokenizer, marks=(start, data.meta["document_end"]), autocast=autocast)
    return SimpleNamespace(**job, step=step, seconds=seconds)


def one_step(train, job, step):
    """Gradients of a step, averaged over its texts, and its metrics. What each process does for itself."""
    processes, model = job.processes, job.model
    local = train.batch_size // processes.world
    micro, mine = (
        train.micro_batch or local,
        slice(processes.rank * local, (processes.rank + 1) * local),
    )
    offsets = batch_offsets(job.data, job.length, train.batch_size, train.seed, step)[mine]
    if train.objective == "quiet_star":
        noise = thought_noise(train.batch_size, train.span, model.config, train.seed, step)
    metrics = {}
    hold(model, False, processes)
    for i in range(0, local, micro):
        part = offsets[i : i + micro]
        tokens, documents = read_batch(
            job.data, part, job.length, train.separate_documents, processes.device
        )
        before_last = partial(
            hold, model, i + micro == local, processes
        )  # then this step's gradients are complete
        with job.autocast():
            if train.objective == "lm":
                new = lm_step(model, tokens, documents, micro / local, before_last)
            else:
                its = (x[mine][i : i + micro].to(processes.device) for x in noise)
                new = thinking_step(
                    model, tokens, documents, micro / local, before_last, train, job.marks, *its
                )
        metrics = {
            name: metrics.get(name, 0.0) + value * micro / local for name, value in new.items()
        }
    return metrics


def train_until_done(train, job, held):
    """The loop."""
    processes, model, optimizer, step, seconds = (
        job.processes,
        job.model,
        job.optimizer,
        job.step,
        job.seconds,
    )
    out, say = Path(train.out), tqdm.write if processes.first else lambda text: None
    if step >= train.max_steps:
        return say(f"{out}: all {train.max_steps} steps are done already")
    stop = held.enter_context(stop_on_signals())
    log = (
        held.enter_context(open(out / "log.jsonl", "ab", buffering=0)) if processes.first else None
    )
    bar = tqdm(
        total=train.max_steps,
        initial=step,
        disable=None if processes.first else True,
        dynamic_ncols=True,
    )
    # The gain head only looks on: however wrong it is, the model takes the same steps.
    named = list(model.named_parameters())
    clipped, looks_on = (
        [p for name, p in named if name.startswith("gain_head.") == on] for on in (False, True)
    )
    clipping = (clipped, train.grad_clip), (looks_on, math.inf)
    instead = f"try a lower --lr and another --out, from scratch or with --init_from={out}"

    while step < train.max_steps:
        start_time = time.perf_counter()

        # 1. schedule
        lr = lr_at(step, train)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]

        # 2. this process's texts, in micro-batches whose mean gradient is that of the whole
        metrics = one_step(train, job, step)

        # 3. average over processes; refuse to step on nonsense
        average_gradients(model, processes)
        metrics = average_metrics({**metrics, "stop": float(stop["asked"])}, processes)
        stopping = metrics.pop("stop") > 0
        norm, beside = (float(whole(clip_grad_norm_(some, most))) for some, most in clipping)
        for name, value in (("loss", metrics["loss"]), ("norm of the gradient", norm + beside)):
            if not math.isfinite(value):
                raise ValueError(
                    f"the {name} is {value} at step {step}; {what_is_kept(out)}; {instead}"
                )
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1

        # 4. look at held-out text
        if step == train.max_steps or (train.eval_every and step % train.eval_every == 0):
            metrics |= evaluate(train, job, step)
            release(model, processes)

        # 5. log and save
        took = time.perf_counter() - start_time
        seconds += took
        metrics |= {
            "grad_norm": norm,
            "lr": lr,
            "tokens_per_second": train.batch_size * train.span / took,
        }
        metrics |= {"peak_memory_gb": most_memory(processes.device.type) / 1e9, "seconds": seconds}
        try:
            if processes.first:
                log.write(log_line({"step": step, **metrics}))
            if stopping or step == train.max_steps or step % train.save_every == 0:
                save_run(out, model, optimizer, step, seconds, processes, train.keep)
        except (ValueError, OSError) as error:
            then = instead if isinstance(error, ValueError) else "make room and run it again"
            what = f"cannot save step {step} in {out}: {reason(error)}"
            raise ValueError(f"{what}; {what_is_kept(out)}; {then}") from None

        # 6. show (last: a terminal that is gone can end it here)
        if processes.first:
            shown = {k: f"{metrics[k]:.3f}" for k in ("loss", "gate", "reward") if k in metrics}
            bar.set_postfix({**shown, "tok/s": f"{metrics['tokens_per_second']:.0f}"})
            bar.update()
            if "val_nll_base" in metrics:
                values = "  ".join(
                    f"{k} {v:.4f}" for k, v in metrics.items() if k.startswith("val_")
                )
                say(f"step {step}: loss {metrics['loss']:.4f}  {values}  ({seconds:.0f} s)")
        if stopping and step < train.max_steps:
            bar.close()
            say(f"stopped after step {step}; saved in {out}: run the same command again to go on")
            barrier(processes)
            sys.exit(130)

    bar.close()
    barrier(processes)
    say(f"{out}: done, {train.max_steps} steps in {seconds:.0f} s of training")


def prepare_what_is_missing(train, processes):
    """Make the corpus by its prepare.py, and by base_preset a base model that passes its check.py, where missing."""
    folder = Path(train.data)
    ours = folder.resolve().parent == HERE / "data"  # nothing is run that came with somebody's data
    if ours and not (folder / "meta.json").exists() and (folder / "prepare.py").exists():
        if processes.first:
            print(f"preparing {folder} (once)", flush=True)
            subprocess.run(
                [sys.executable, str(folder / "prepare.py")], check=False
            )  # it says itself what is wrong
        barrier(processes)
    if train.init_from and train.base_preset:
        base = settings_from([f"--config={HERE / train.base_preset}", f"--device={train.device}"])
        if base[0].out == train.init_from and steps_done(train.init_from) < base[0].max_steps:
            if processes.first:
                print(
                    f"the base model {train.init_from} comes first (once): {train.base_preset}",
                    flush=True,
                )
            run(*base)
        check = HERE / base[0].data / "check.py"
        if (
            processes.first
            and base[0].out == train.init_from
            and check.exists()
            and not steps_done(train.out)
        ):
            runpy.run_path(str(check))["check"](
                train.init_from
            )  # ValueError, if it has not learned what it must know


def settings_from(argv=None):
    """Settings from flags and preset: (TrainConfig, ModelConfig, QuietSTaRConfig, what was given)."""
    return from_cli(__doc__, TrainConfig, ModelConfig, QuietSTaRConfig, argv=argv)


if __name__ == "__main__":
    run(*settings_from())
    if dist.is_initialized():
        dist.destroy_process_group()
