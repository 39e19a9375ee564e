"""Pretrain the demo base model on two CPU cores.

    torchrun --nproc-per-node 2 pretrain.py --build BUILD [--docs DIR] [--minutes 65]
    python pretrain.py --build BUILD --export OUT

BUILD takes the tokenizer, the token files and a checkpoint every few minutes;
a run that was stopped goes on from it. The learning rate is warm-up, stable,
decay by the clock: when the time is nearly up (or FILE appears) it falls to
zero, so the weights are good whenever the run is told to end.

Each core is a process of its own and they only meet to add up gradients: threads
that share every small operation wait for each other whenever the machine is busy.
Without torchrun it is one process.
"""

from __future__ import annotations

import argparse
import json
import math
import os
import shutil
import time
from pathlib import Path

import numpy as np
import torch
import torch.distributed as dist
from corpus import general_texts, pretraining_texts
from tokenizer import VOCAB_SIZE, train_tokenizer
from torch.nn.functional import cross_entropy
from transformers import (
    AutoTokenizer,
    LlamaConfig,
    LlamaForCausalLM,
    PreTrainedTokenizerBase,
)

BATCH_TOKENS = 2048
CONTEXT, LONG_CONTEXT = 256, 512  # the decay phase alternates them: 512 runs at half speed
PEAK_LR, WEIGHT_DECAY, WARMUP_STEPS = 2e-3, 0.1, 300
DECAY_SHARE = 0.2
CHECKPOINT_SECONDS, LOG_STEPS = 300, 100


def model_config(tokenizer: PreTrainedTokenizerBase) -> LlamaConfig:
    """Wide and shallow: on a CPU the same weights run faster in fewer layers."""
    return LlamaConfig(
        vocab_size=VOCAB_SIZE,
        hidden_size=256,
        intermediate_size=640,
        num_hidden_layers=4,
        num_attention_heads=4,
        num_key_value_heads=2,
        max_position_embeddings=1024,
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def prepare(build: Path, docs: Path | None) -> PreTrainedTokenizerBase:
    """Make the tokenizer and the token files, unless BUILD already has them."""
    if not (build / "general.json").exists():
        texts = pretraining_texts(docs)
        tokenizer = train_tokenizer(texts)
        tokenizer.save_pretrained(build / "tokenizer")
        ids = [np.array(tokenizer(t, verbose=False).input_ids, dtype=np.uint16) for t in texts]
        np.save(build / "train.npy", np.concatenate(ids))
        (build / "general.json").write_text(json.dumps(general_texts(docs)))
    return AutoTokenizer.from_pretrained(build / "tokenizer")


def batch(
    tokens: np.ndarray, step: int, context: int, rank: int = 0, world: int = 1
) -> tuple[torch.Tensor, torch.Tensor]:
    """Random windows; the step is the seed, so a resumed run goes on in the same data.
    A process takes its share of them."""
    rng = np.random.default_rng(step)
    starts = rng.integers(len(tokens) - context - 1, size=BATCH_TOKENS // context)[rank::world]
    windows = np.stack([tokens[s : s + context + 1] for s in starts]).astype(np.int64)
    windows_t = torch.from_numpy(windows)
    return windows_t[:, :-1], windows_t[:, 1:]


def loss_of(model: LlamaForCausalLM, x: torch.Tensor, y: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", torch.bfloat16):
        logits = model(input_ids=x, use_cache=False).logits
    return cross_entropy(logits.float().flatten(0, 1), y.flatten())


def mean_gradients(model: LlamaForCausalLM, world: int) -> None:
    """One message holds all gradients; a message each would cost more than the sum."""
    gradients = [p.grad for p in model.parameters() if p.grad is not None]
    flat = torch.cat([g.flatten() for g in gradients])
    dist.all_reduce(flat)
    for gradient, mean in zip(
        gradients, (flat / world).split([g.numel() for g in gradients]), strict=True
    ):
        gradient.copy_(mean.view_as(gradient))


@torch.no_grad()
def held_out_loss(
    model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerBase, texts: list[str]
) -> tuple[float, float]:
    """Nats per token and bits per byte of the general texts."""
    total, count = 0.0, 0
    for text in texts:
        ids = torch.tensor([tokenizer.eos_token_id, *tokenizer(text, verbose=False).input_ids])
        for start in range(0, len(ids) - 1, LONG_CONTEXT):
            part = ids[start : start + LONG_CONTEXT + 1]
            logits = model(input_ids=part[None, :-1]).logits[0].float()
            total += cross_entropy(logits, part[1:], reduction="sum").item()
            count += len(part) - 1
    return total / count, total / math.log(2) / sum(len(t.encode()) for t in texts)


def save_checkpoint(
    build: Path, model: LlamaForCausalLM, optimizer: torch.optim.Optimizer, state: dict[str, float]
) -> None:
    """Whole or not at all: a reader never meets a half-written file."""
    temporary = build / "checkpoint.tmp"
    weights = {"model": model.state_dict(), "optimizer": optimizer.state_dict()}
    torch.save({**weights, **state}, temporary)
    os.replace(temporary, build / "checkpoint.pt")


def train(
    build: Path, tokenizer: PreTrainedTokenizerBase, minutes: float, finish: Path | None
) -> None:
    rank, world = (dist.get_rank(), dist.get_world_size()) if dist.is_initialized() else (0, 1)
    tokens = np.load(build / "train.npy")
    texts = json.loads((build / "general.json").read_text())
    torch.manual_seed(0)
    model = LlamaForCausalLM(model_config(tokenizer))
    decayed = [p for p in model.parameters() if p.dim() > 1]
    plain = [p for p in model.parameters() if p.dim() == 1]
    optimizer = torch.optim.AdamW(
        [{"params": decayed, "weight_decay": WEIGHT_DECAY}, {"params": plain, "weight_decay": 0.0}],
        betas=(0.9, 0.95),
        fused=True,
    )
    step, seen, used = 0, 0, 0.0
    if (build / "checkpoint.pt").exists():
        state = torch.load(build / "checkpoint.pt", weights_only=True)
        model.load_state_dict(state["model"])
        optimizer.load_state_dict(state["optimizer"])
        step, seen, used = state["step"], state["seen"], state["used"]
    n = sum(p.numel() for p in model.parameters())
    print(f"{n:,} parameters, {len(tokens):,} tokens", flush=True)

    compiled_loss = torch.compile(loss_of, dynamic=False)
    started = time.monotonic() - used
    end = minutes * 60
    decay_from = (1 - DECAY_SHARE) * end
    saved_at, running = time.monotonic(), 0.0
    while True:
        clock = torch.tensor([time.monotonic() - started, finish is not None and finish.exists()])
        if world > 1:
            dist.broadcast(clock, 0)  # all stop, and decay, by the first one's clock
        used = clock[0].item()
        if used >= end:
            break
        if clock[1] and used < decay_from:
            decay_from, end = used, used / (1 - DECAY_SHARE)
        scale = min(1.0, (step + 1) / WARMUP_STEPS, (end - used) / (end - decay_from))
        for group in optimizer.param_groups:
            group["lr"] = PEAK_LR * scale
        context = LONG_CONTEXT if used > decay_from and step % 2 else CONTEXT
        loss = compiled_loss(model, *batch(tokens, step, context, rank, world))
        loss.backward()
        if world > 1:
            mean_gradients(model, world)
        torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
        step, seen = step + 1, seen + BATCH_TOKENS
        running += loss.item() / LOG_STEPS
        if rank > 0:
            continue
        if step % LOG_STEPS == 0:
            at = f"{used / 60:.1f} min {seen / 1e6:.2f}M tokens"
            print(f"step {step} {at} loss {running:.3f}", flush=True)
            running = 0.0
        if time.monotonic() - saved_at > CHECKPOINT_SECONDS:
            saved_at = time.monotonic()
            save_checkpoint(build, model, optimizer, {"step": step, "seen": seen, "used": used})
            nats, bits = held_out_loss(model, tokenizer, texts)
            print(f"held out: {nats:.3f} nats per token, {bits:.3f} bits per byte", flush=True)
    if rank == 0:
        save_checkpoint(build, model, optimizer, {"step": step, "seen": seen, "used": used})
        print(f"done: {step} steps, {seen:,} tokens, {used / 60:.1f} minutes", flush=True)


def export(build: Path, out: Path) -> None:
    """Write the checkpoint as bf16 with all that transformers needs to load it."""
    tokenizer = AutoTokenizer.from_pretrained(build / "tokenizer")
    state = torch.load(build / "checkpoint.pt", weights_only=True)
    model = LlamaForCausalLM(model_config(tokenizer))
    model.load_state_dict(state["model"])
    model.to(torch.bfloat16)
    model.generation_config.eos_token_id = tokenizer.eos_token_id
    model.generation_config.pad_token_id = tokenizer.pad_token_id
    staging = out.with_name(out.name + ".tmp")
    model.save_pretrained(staging)
    tokenizer.save_pretrained(staging)
    out.mkdir(parents=True, exist_ok=True)
    for file in sorted(staging.iterdir()):
        file.chmod(0o644)
        os.replace(file, out / file.name)
    shutil.rmtree(staging)
    texts = json.loads((build / "general.json").read_text())
    nats, bits = held_out_loss(model.float(), tokenizer, texts)
    print(
        f"{state['step']} steps, {state['seen']:,} tokens, {state['used'] / 60:.0f} minutes; "
        f"held out: {nats:.3f} nats per token, {bits:.3f} bits per byte"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    parser.add_argument("--build", type=Path, required=True)
    parser.add_argument("--docs", type=Path, help="the documentation's .rst sources")
    parser.add_argument("--minutes", type=float, default=65)
    parser.add_argument("--finish-when", type=Path)
    parser.add_argument("--export", type=Path, metavar="OUT")
    args = parser.parse_args()
    args.build.mkdir(parents=True, exist_ok=True)
    if args.export:
        export(args.build, args.export)
        return
    if "WORLD_SIZE" in os.environ:
        torch.set_num_threads(1)
        dist.init_process_group("gloo")
    if not dist.is_initialized() or dist.get_rank() == 0:
        prepare(args.build, args.docs)
    if dist.is_initialized():
        dist.barrier()
    train(args.build, prepare(args.build, args.docs), args.minutes, args.finish_when)


if __name__ == "__main__":
    main()
