"""
Train a language model, or teach one to think (Quiet-STaR).

    python train.py                                          the miniature, its corpus and base model made where missing
    torchrun --nproc_per_node=8 train.py                     the same on eight GPUs (or CPU processes)
    python train.py --objective=lm --out=out/mine --data=data/mine --init_from=""          a base model from scratch
    python train.py --out=out/mine_thinks --data=data/mine --init_from=out/mine            teach it to think

The batch of a step is a function of seed and step alone, and so is the noise that thoughts are sampled with: any number
of processes, any micro_batch and any interruption give the same training. Run the same command again to go on.
"""

import sys

if __name__ == "__main__" and {"-h", "--help"} & {*sys.argv}:  # at once, before torch is imported
    from config import print_help

    print_help(__doc__, train="TrainConfig", model="ModelConfig", quiet_star="QuietSTaRConfig")

import dataclasses
import json
import math
import signal
import subprocess
import time
from contextlib import ExitStack, nullcontext
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from tqdm import tqdm

from checkpoint import (
    has_checkpoint,
    is_sharded,
    load_checkpoint,
    load_model,
    load_sharded,
    load_weights,
    lock,
    read_config,
    read_log,
    save_checkpoint,
    save_sharded,
    write_config,
)
from config import from_cli
from data.dataset import document_numbers, open_dataset, replace_file
from data.tokenizer import from_json
from model import ModelConfig, Transformer
from parallel import (
    GATHER,
    PARALLEL,
    average_gradients,
    average_metrics,
    barrier,
    hold,
    release,
    shard,
    start_processes,
    whole,
)
from quiet_star import QuietSTaR, QuietSTaRConfig, share_of, text_mean, token_log_prob

HERE = Path(__file__).resolve().parent


@dataclass
class TrainConfig:
    objective: str = "quiet_star"  # "quiet_star", or "lm": plain language modelling, no thoughts
    out: str = "out/arithmetic"  # folder of this run; a run that was interrupted there goes on
    data: str = "data/arithmetic"  # folder of a dataset; prepared first if it only has a prepare.py
    init_from: str = "out/arithmetic_base"  # run folder whose model training starts from; empty: random weights
    base_preset: str = "config/arithmetic_base.toml"  # preset that makes init_from, if it is that preset's `out`
    start_text: str = "—"  # start/end of thought begin as this text's mean embedding, where the tokenizer knows it
    span: int = 64  # tokens of text a training example reads (the paper: 256)
    separate_documents: bool = False  # predict no token across the end of a document
    batch_size: int = 8  # texts per step, over all processes
    micro_batch: int = 0  # texts per forward and process; 0: all of the process's; less needs less memory
    think_at: str = "all"  # at which positions to think: all; hard ones (drawn by base entropy), the hardest, or random
    think_share: float = 0.25  # share of a text's positions that think, where not all do
    think_at_once: int = 0  # positions of a text that think together, fewer: less memory; 0: as many as is good
    recompute: bool = False  # sample thoughts, then read them again to learn, fewer at once: slower, less memory
    max_steps: int = 150  # optimizer steps
    lr: float = 1e-4  # learning rate, after warm-up
    warmup_steps: int = 10  # steps in which the learning rate rises from 0
    min_lr_share: float = 0.05  # the learning rate falls along a cosine to this share of it; 1: it stays
    mixing_head_lr: float = 20.0  # learning rate of the mixing head (and the gain head), as a multiple of lr
    weight_decay: float = 0.001  # AdamW, on matrices only
    beta1: float = 0.9  # AdamW
    beta2: float = 0.999  # AdamW
    grad_clip: float = 1.0  # largest norm of the gradient
    eval_every: int = 50  # steps between looks at held-out text; 0: only at the end
    eval_texts: int = 64  # held-out spans looked at
    save_every: int = 20  # steps between checkpoints
    keep: int = 2  # checkpoints kept: the newest, and those before it for when it turns out to be damaged
    seed: int = 1337  # of weights, batches and thoughts
    parallel: str = "data"  # "data": processes share the texts; "fsdp": weights and optimizer too; "none": one process
    gather: str = "step"  # fsdp: gather weights once a "step", or "layer" by layer at each call: slower, less memory
    device: str = "auto"  # "cpu", "cuda", or "auto": cuda where there is one
    dtype: str = "auto"  # "float32", "bfloat16" (autocast; the weights stay float32), or "auto": bfloat16 on cuda

    def __post_init__(self):
        for name, allowed in {
            "objective": ("quiet_star", "lm"),
            "think_at": ("all", "hard", "hardest", "random"),
            "parallel": PARALLEL,
            "gather": GATHER,
            "device": ("auto", "cpu", "cuda"),
            "dtype": ("auto", "float32", "bfloat16"),
        }.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"{name} must be one of {', '.join(allowed)}, not {getattr(self, name)!r}")
        for name in ("span", "batch_size", "max_steps", "eval_texts", "save_every"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, not {getattr(self, name)}")
        for name in ("micro_batch", "think_at_once", "eval_every", "warmup_steps", "lr", "weight_decay", "seed"):
            if getattr(self, name) < 0:
                raise ValueError(f"{name} must not be negative, as {getattr(self, name)} is")
        if self.keep < 2:
            raise ValueError(
                f"keep must be at least 2, not {self.keep}: while one checkpoint is written, one must be there"
            )
        if not 0 < self.think_share <= 1:
            raise ValueError(f"think_share must be above 0 and at most 1, not {self.think_share}")
        if self.grad_clip <= 0:
            raise ValueError(f"grad_clip must be above 0, not {self.grad_clip}")


# what may change when a run goes on; everything else would make it another run
MAY_CHANGE = {
    "max_steps",
    "micro_batch",
    "think_at_once",
    "recompute",
    "eval_every",
    "eval_texts",
    "save_every",
    "keep",
    "parallel",
    "gather",
    "device",
    "out",
    "base_preset",
}


# ----------------------------------------------------------------------------------------------------------------------
# data


def read_batch(dataset, offsets, length, separate_documents, device):
    """Spans of `length` tokens that start at offsets: tokens (B, length), and their documents' numbers or None."""
    tokens = np.stack([dataset.tokens[start : start + length] for start in offsets]).astype(np.int64)
    documents = document_numbers(tokens, dataset.meta["document_end"]) if separate_documents else None
    return [x if x is None else torch.from_numpy(x).to(device) for x in (tokens, documents)]


def batch_offsets(dataset, length, count, seed, step):
    """Where the texts of a step start: a pure function of seed and step."""
    return np.random.default_rng((seed, step)).integers(0, len(dataset.tokens) - length + 1, count)


def thought_noise(count, positions, config, seed, step):
    """The uniform numbers by which a step's thoughts are sampled, (count, N, S, m), and by which it is decided where to
    think, (count, S): likewise."""
    shape = count, config.n_thoughts, positions, config.thought_len
    numbers = [
        np.random.default_rng((seed, step, i)).random(wanted, dtype=np.float32)
        for i, wanted in ((1, shape), (2, shape[::2]))
    ]
    return [torch.from_numpy(x) for x in numbers]


def thinking_positions(model, train, noise):
    """Where texts think, as QuietSTaR.backward takes it. noise (B, span): the uniform numbers that decide."""
    if train.think_at == "random":
        return noise.topk(share_of(train.think_share, train.span)).indices.sort().values
    noise = noise if train.think_at == "hard" else None
    return None if train.think_at == "all" else partial(model.hard_positions, share=train.think_share, noise=noise)


# ----------------------------------------------------------------------------------------------------------------------
# model and optimizer


def build_model(train, model_config, quiet_config, given, tokenizer):
    """The model to train, on the CPU: new, or the one in init_from. Raises ValueError if that does not fit."""
    torch.manual_seed(train.seed)
    if not train.init_from:
        if given.get("vocab_size", tokenizer.vocab_size) != tokenizer.vocab_size:
            raise ValueError(f"--vocab_size={given['vocab_size']}, but {train.data} has {tokenizer.vocab_size}")
        start = Transformer(dataclasses.replace(model_config, vocab_size=tokenizer.vocab_size))
    else:
        start, its_tokenizer, _, _ = load_model(train.init_from)
        if its_tokenizer.to_json() != tokenizer.to_json():
            raise ValueError(f"{train.data} was made with another tokenizer than the model in {train.init_from}")
    transformer = start.model if isinstance(start, QuietSTaR) else start
    for name, value in dataclasses.asdict(transformer.config).items():
        if train.init_from and given.get(name, value) != value:
            raise ValueError(f"--{name}={given[name]}, but the model in {train.init_from} has {value}")
    if train.objective == "lm":
        return transformer  # of a thinking model, what speaks without a thought

    model = QuietSTaR(transformer, quiet_config)
    if start is transformer:
        start_thoughts(model, tokenizer, train.start_text)
    else:
        model.mixing_head.load_state_dict(start.mixing_head.state_dict())
        model.gain_head.load_state_dict(start.gain_head.state_dict())
        model.thought_tokens.init_from(*start.thought_tokens())
    return model


def start_thoughts(quiet, tokenizer, text):
    """Let start and end of thought begin as a text's mean embedding, if the tokenizer knows it."""
    try:
        ids = tokenizer.encode(text)
    except ValueError:
        ids = []
    if ids:
        quiet.thought_tokens.init_from(quiet.model.tok_embeddings.weight[ids].mean(0))


def build_optimizer(model, train):
    """AdamW in float32: weight decay on matrices only, and a learning rate of its own for the two small heads."""
    groups = {}
    for name, p in model.named_parameters():
        decay = train.weight_decay if p.dim() == 2 else 0.0
        scale = train.mixing_head_lr if name.startswith(("mixing_head.", "gain_head.")) else 1.0
        groups.setdefault((decay, scale), []).append(p)
    groups = [{"params": ps, "weight_decay": decay, "lr_scale": scale} for (decay, scale), ps in groups.items()]
    return torch.optim.AdamW(groups, lr=train.lr, betas=(train.beta1, train.beta2), fused=True)


def lr_at(step, train):
    """Linear warm-up, then a cosine from lr to min_lr_share * lr at max_steps."""
    if step < train.warmup_steps:
        return train.lr * (step + 1) / train.warmup_steps
    done = (step - train.warmup_steps) / max(1, train.max_steps - train.warmup_steps)
    low = train.lr * train.min_lr_share
    return low + (train.lr - low) * 0.5 * (1 + math.cos(math.pi * min(1.0, done)))


def lm_loss(model, tokens, documents):
    """Plain next-token loss of tokens (B, L), and its metrics."""
    valid = torch.ones_like(tokens[:, 1:], dtype=torch.bool)
    if documents is not None:
        valid = (documents[:, 1:] == documents[:, :-1]) & (documents[:, 1:] >= 0)
    nll = -token_log_prob(model.output, model(tokens[:, :-1]), tokens[:, 1:])
    loss = text_mean(nll, valid)
    return loss, {"loss": loss.detach(), "nll_base": loss.detach()}


@torch.no_grad()
def evaluate(model, dataset, train, length, processes, autocast):
    """Metrics on the same held-out spans every time, each process its share; one greedy thought per position."""
    offsets = batch_offsets(dataset, length, train.eval_texts, 0, 0)[processes.rank :: processes.world]
    if train.objective == "quiet_star":
        model = model.with_settings(n_thoughts=1, thought_temperature=0.0)
    sums, per_forward = {}, train.micro_batch or train.batch_size // processes.world
    for part in (offsets[i : i + per_forward] for i in range(0, len(offsets), per_forward)):
        tokens, documents = read_batch(dataset, part, length, train.separate_documents, processes.device)
        with autocast():
            loss, metrics = (
                lm_loss(model, tokens, documents) if train.objective == "lm" else model(tokens, None, None, documents)
            )
        for name, value in metrics.items():
            sums[name] = sums.get(name, 0.0) + float(value) * len(part) * processes.world / train.eval_texts
    keep = ("nll_base", "nll_mixed", "gate")
    names = [name for name in keep if name in ("nll_base",) or train.objective == "quiet_star"]
    return average_metrics({f"val_{name}": sums.get(name, 0.0) for name in names}, processes)


# ----------------------------------------------------------------------------------------------------------------------
# training


def run(train, model_config, quiet_config, given):
    """Train as told, from wherever the run in train.out stands. Returns when max_steps are done."""
    with ExitStack() as held:  # the claim on the folder, let go however it ends
        train_until_done(train, model_config, quiet_config, given, held)


def train_until_done(train, model_config, quiet_config, given, held):
    # Everything the user may have got wrong is found in here, before any work: one line, no traceback.
    try:
        processes = start_processes(train.device, train.parallel, train.gather)
        out = Path(train.out)
        prepare_what_is_missing(train, processes)
        data, held_out = open_dataset(train.data, "train"), open_dataset(train.data, "val")
        ahead = quiet_config.n_true if train.objective == "quiet_star" else 1
        length = train.span + ahead  # span positions that think, and what they are scored on
        for dataset in (data, held_out):
            if len(dataset.tokens) < length:
                raise ValueError(f"{dataset.path} has {len(dataset.tokens)} tokens, fewer than one span of {length}")
        if train.separate_documents and data.meta["document_end"] is None:
            raise ValueError(f"separate_documents: {train.data} names no token that ends a document")
        if train.batch_size % processes.world:
            raise ValueError(f"batch_size {train.batch_size} cannot be split among {processes.world} processes")
        local = train.batch_size // processes.world
        micro = train.micro_batch or local
        if local % micro:
            raise ValueError(f"micro_batch {micro} does not divide the {local} texts of each process")
        if train.parallel == "fsdp" and train.eval_texts % processes.world:  # all must make the same calls
            raise ValueError(f"fsdp: eval_texts {train.eval_texts} cannot be split among {processes.world} processes")

        tokenizer = from_json(data.meta["tokenizer"], train.data)
        model = build_model(train, model_config, quiet_config, given, tokenizer)
        size = sum(p.numel() for p in model.parameters())
        transformer = model if train.objective == "lm" else model.model
        bfloat16 = train.dtype == "bfloat16" or train.dtype == "auto" and processes.device.type == "cuda"
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
        }
        if processes.first:
            out.mkdir(parents=True, exist_ok=True)
            held.enter_context(lock(out))
        step, seconds = open_run(out, settings, model, optimizer, tokenizer, processes)
    except (ValueError, OSError) as error:
        sys.exit(f"train.py: error: {error}")
    say = tqdm.write if processes.first else lambda text: None
    if step >= train.max_steps:
        return say(f"{out}: all {train.max_steps} steps are done already")

    autocast = (lambda: torch.autocast(processes.device.type, torch.bfloat16)) if bfloat16 else nullcontext
    where = f"{processes.world} x {processes.device.type}" + (", sharded" if train.parallel == "fsdp" else "")
    say(f"{out}: {train.objective}, {size:,} parameters, steps {step} to {train.max_steps}, on {where}")
    stop, old_handlers = stop_on_signals()
    log = held.enter_context(open(out / "log.jsonl", "a", encoding="utf-8")) if processes.first else None
    bar = tqdm(total=train.max_steps, initial=step, disable=None if processes.first else True, dynamic_ncols=True)
    model.train()
    # The gain head only looks on: however wrong it is, the model takes the same steps.
    clipped = [p for name, p in model.named_parameters() if not name.startswith("gain_head.")]

    while step < train.max_steps:
        start_time = time.perf_counter()

        # 1. schedule
        lr = lr_at(step, train)
        for group in optimizer.param_groups:
            group["lr"] = lr * group["lr_scale"]

        # 2. this process's texts, in micro-batches whose mean gradient is that of the whole
        mine = slice(processes.rank * local, (processes.rank + 1) * local)
        offsets = batch_offsets(data, length, train.batch_size, train.seed, step)[mine]
        if train.objective == "quiet_star":
            noise = thought_noise(train.batch_size, train.span, quiet_config, train.seed, step)
        metrics = {}
        hold(model, False, processes)
        for i in range(0, local, micro):
            tokens, documents = read_batch(
                data, offsets[i : i + micro], length, train.separate_documents, processes.device
            )
            completes = partial(hold, model, i + micro == local, processes)  # this step's gradients
            with autocast():
                if train.objective == "lm":
                    loss, new = lm_loss(model, tokens, documents)
                else:
                    u, chance = (x[mine][i : i + micro].to(processes.device) for x in noise)
                    where = thinking_positions(model, train, chance)
                    how = micro / local, train.think_at_once, train.recompute, completes
                    new = model.backward(tokens, documents, u, where, *how)
            if train.objective == "lm":
                completes()
                (loss * micro / local).backward()
            metrics = {name: metrics.get(name, 0.0) + value * micro / local for name, value in new.items()}

        # 3. average over processes; refuse to step on nonsense
        average_gradients(model, processes)
        metrics = average_metrics({**metrics, "stop": float(stop["asked"])}, processes)
        if not math.isfinite(metrics["loss"]):
            kept = (
                f"the last good checkpoint is {out / 'checkpoint.pt'}" if has_checkpoint(out) else "no checkpoint yet"
            )
            sys.exit(f"train.py: error: the loss is {metrics['loss']} at step {step}; {kept}; try a lower --lr")
        stopping = metrics.pop("stop") > 0
        norm = torch.nn.utils.clip_grad_norm_(clipped, train.grad_clip)
        metrics["grad_norm"] = float(whole(norm))
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step += 1

        # 4. look at held-out text
        if step == train.max_steps or (train.eval_every and step % train.eval_every == 0):
            model.eval()
            metrics |= evaluate(model, held_out, train, length, processes, autocast)
            release(model, processes)
            model.train()

        # 5. log
        took = time.perf_counter() - start_time
        seconds += took
        metrics |= {"lr": lr, "tokens_per_second": train.batch_size * train.span / took, "seconds": seconds}
        if processes.first:
            log.write(json.dumps({"step": step, **{k: round(v, 6) for k, v in metrics.items()}}) + "\n")
            log.flush()
            shown = {k: f"{metrics[k]:.3f}" for k in ("loss", "gate", "reward") if k in metrics}
            bar.set_postfix({**shown, "tok/s": f"{metrics['tokens_per_second']:.0f}"})
            bar.update()
            if "val_nll_base" in metrics:
                values = "  ".join(f"{k} {v:.4f}" for k, v in metrics.items() if k.startswith("val_"))
                say(f"step {step}: loss {metrics['loss']:.4f}  {values}  ({seconds:.0f} s)")

        # 6. save
        if stopping or step == train.max_steps or step % train.save_every == 0:
            try:
                if train.parallel == "fsdp":
                    save_sharded(out, model, optimizer, step, seconds, processes, train.keep)
                elif processes.first:
                    state = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
                    save_checkpoint(out, {"step": step, "seconds": seconds, **state}, train.keep)
            except OSError as error:
                kept = "the last good checkpoint is kept" if has_checkpoint(out) else "there is no checkpoint yet"
                sys.exit(
                    f"train.py: error: cannot save step {step} in {out} ({error}); {kept}: make room and run it again"
                )
        if stopping and step < train.max_steps:
            bar.close()
            say(f"stopped after step {step}; saved in {out}: run the same command again to go on")
            barrier(processes)
            sys.exit(130)

    bar.close()
    for number, handler in old_handlers.items():
        signal.signal(number, handler)
    barrier(processes)
    say(f"{out}: done, {train.max_steps} steps in {seconds:.0f} s of training")


def prepare_what_is_missing(train, processes):
    """Make the corpus by its prepare.py, and the base model by base_preset, where they are not there yet."""
    folder = Path(train.data)
    if not (folder / "meta.json").exists() and (folder / "prepare.py").exists():
        if processes.first:
            print(f"preparing {folder} (once)", flush=True)
            subprocess.run([sys.executable, str(folder / "prepare.py")], check=False)  # it says itself what is wrong
        barrier(processes)
    if train.init_from and train.base_preset:
        base = settings_from([f"--config={HERE / train.base_preset}", f"--device={train.device}"])
        if base[0].out == train.init_from and steps_done(train.init_from) < base[0].max_steps:
            if processes.first:
                print(f"the base model {train.init_from} comes first (once): {train.base_preset}", flush=True)
            run(*base)


def steps_done(folder):
    return load_checkpoint(folder)["step"] if has_checkpoint(folder) else 0


def open_run(out, settings, model, optimizer, tokenizer, processes):
    """Go on with the run in `out`, or begin it: (steps done, seconds they took). Raises ValueError, OSError."""
    if (out / "config.json").exists():
        old = read_config(out)
        # a setting that is newer than the run was what it is by default
        default = {f.name: f.default for cls in (TrainConfig, QuietSTaRConfig) for f in dataclasses.fields(cls)}
        for part in ("train", "model", "quiet_star", "tokenizer"):
            if part == "quiet_star" and settings["train"]["objective"] == "lm":
                continue
            for name, value in settings[part].items():
                was = old[part].get(name, default.get(name))
                if name not in MAY_CHANGE and was != value:
                    raise ValueError(
                        f"{out} holds another run ({name} is {was!r} there, {value!r} here): choose another --out"
                    )
    step, seconds, sharded = 0, 0.0, settings["train"]["parallel"] == "fsdp"
    if has_checkpoint(out) and sharded != is_sharded(out):
        raise ValueError(
            f"{out} was trained {'with' if not sharded else 'without'} --parallel=fsdp, and goes on only so; or begin "
            f"a run with its weights: --init_from={out}"
        )
    if is_sharded(out):
        step, seconds = load_sharded(out, model, optimizer, processes)
    elif has_checkpoint(out):
        state = load_checkpoint(out)
        load_weights(model, state["model"], out / "checkpoint.pt")
        optimizer.load_state_dict(state["optimizer"])
        step, seconds = state["step"], state["seconds"]
    if processes.first:
        tokenizer.save(out)
        write_config(out, settings)
        kept = [line for line in read_log(out) if line["step"] <= step]  # steps after the checkpoint are done anew
        replace_file(out / "log.jsonl", "".join(json.dumps(line) + "\n" for line in kept).encode())
    barrier(processes)
    return step, seconds


def stop_on_signals():
    """From now on Ctrl-C and SIGTERM ask for a stop at the end of the step instead of breaking off within it."""
    stop = {"asked": False}
    handlers = {}
    for number in (signal.SIGINT, signal.SIGTERM):
        handlers[number] = signal.signal(number, lambda *_: stop.update(asked=True))
    return stop, handlers


def settings_from(argv=None):
    """Settings from flags and preset: (TrainConfig, ModelConfig, QuietSTaRConfig, what was given)."""
    return from_cli(__doc__, TrainConfig, ModelConfig, QuietSTaRConfig, argv=argv)


if __name__ == "__main__":
    run(*settings_from())
    if dist.is_initialized():
        dist.destroy_process_group()
