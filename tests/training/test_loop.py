"""The loop: what a step computes, what stops it, and what it leaves alone."""

from __future__ import annotations

import math
import os
import signal
import weakref
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch
from models import build
from torch import Tensor, nn

from rango.adapters.attach import Adapted, attach
from rango.base.load import Base, base_from_model
from rango.data.samples import Batch, Sample
from rango.errors import ConfigError, DataError, NonFiniteLossError
from rango.evaluation.loss import TokenLosses, token_losses
from rango.training.config import TrainingConfig
from rango.training.fit import train_model
from rango.training.recorder import Tensors

Make = Callable[..., list[Sample]]
CONFIG = TrainingConfig(
    max_steps=3, batch_size=6, learning_rate=1e-2, warmup_share=0.0, eval_every=100
)
FULL = replace(CONFIG, method="full", learning_rate=1e-3)


class Kept:
    """A recorder in memory."""

    def __init__(self, on_event: Callable[[str, int], None] = lambda event, step: None) -> None:
        self.events: list[dict[str, Any]] = []
        self.states: list[tuple[Any, dict[str, dict[str, Tensor]]]] = []
        self.on_event = on_event

    def event(self, event: str, step: int, **values: Any) -> None:
        self.events.append({"event": event, "step": step, **values})
        self.on_event(event, step)

    def checkpoint(self, state: Any, tensors: Tensors) -> None:
        copied = {
            kind: {name: tensor.detach().clone() for name, tensor in group.items()}
            for kind, group in tensors.items()
        }
        self.states.append((replace(state), copied))

    def of(self, kind: str, name: str) -> list[Any]:
        return [event[name] for event in self.events if event["event"] == kind]


def adapted(**options: Any) -> Adapted:
    return attach(base_from_model(build("llama")), **({"r": 4} | options))


def test_a_run_learns_and_reports(make_samples: Make) -> None:
    kept = Kept()
    model = adapted()
    config = replace(CONFIG, epochs=4, max_steps=None, eval_every=5)
    seen: list[tuple[str, float, float, str]] = []

    def progress(task: str, done: float, total: float, unit: str = "", note: str = "") -> None:
        seen.append((task, done, total, note))

    trained = train_model(
        model, make_samples(30), make_samples(6, seed=1), config, recorder=kept, progress=progress
    )
    assert trained.steps == 20
    assert trained.stop == "completed"
    assert trained.adapted["loss"] < trained.base["loss"]
    assert trained.gap == pytest.approx(trained.adapted["loss"] - trained.train_loss)
    assert trained.tokens == 4 * sum(len(sample) for sample in make_samples(30))
    assert trained.peak_memory > 1e7
    assert trained.tokens_per_second > 0
    assert kept.of("evaluation", "step") == [0, 5, 10, 15, 20]
    assert kept.of("step", "step") == list(range(1, 21))
    assert kept.of("stop", "reason") == ["completed"]
    assert [state.step for state, _ in kept.states] == list(range(2, 21, 2))
    steps = [entry for entry in seen if entry[0] == "train"]
    assert [entry[1:3] for entry in steps] == [(done, 20) for done in range(1, 21)]
    assert "loss" in steps[0][3]
    assert "tok/s" in steps[0][3]
    assert any(task == "evaluate" for task, *_ in seen)


@pytest.mark.parametrize("packed", [True, False])
@pytest.mark.parametrize("method", ["lora", "full"])
def test_micro_batches_change_nothing(make_samples: Make, method: str, packed: bool) -> None:
    found: list[tuple[list[float], list[float], Tensor]] = []
    for micro_tokens in (16, 10_000):
        model: Any = adapted() if method == "lora" else base_from_model(build("llama"))
        config = replace(CONFIG if method == "lora" else FULL, micro_tokens=micro_tokens)
        kept = Kept()
        train_model(model, make_samples(12), config=config, recorder=kept, packed=packed)
        weights = kept.states[-1][1]["weights"]
        flat = torch.cat([tensor.flatten() for tensor in weights.values()])
        found.append((kept.of("step", "loss"), kept.of("step", "grad_norm"), flat))
    small, large = found
    assert small[0] == pytest.approx(large[0], rel=1e-5)
    assert small[1] == pytest.approx(large[1], rel=1e-5)
    torch.testing.assert_close(small[2], large[2], rtol=1e-4, atol=2e-5)


def test_the_loss_is_the_mean_over_all_targets_of_a_step(make_samples: Make) -> None:
    samples = make_samples(6)
    model, kept = adapted(), Kept()
    train_model(model, samples, config=replace(CONFIG, max_steps=1), recorder=kept, packed=False)
    plain = build("llama")
    losses, targets = 0.0, 0
    for sample in samples:
        logits = plain(torch.tensor([sample.input_ids])).logits[0].log_softmax(-1)
        for place in range(1, len(sample)):
            if sample.supervised[place]:
                losses -= float(logits[place - 1, sample.input_ids[place]].detach())
                targets += 1
    assert kept.of("step", "loss")[0] == pytest.approx(losses / targets, rel=1e-5)
    assert kept.of("step", "supervised") == [targets]


@pytest.mark.parametrize("dropout", [0.0, 0.3])
def test_the_same_run_gives_the_same_bits(make_samples: Make, dropout: float) -> None:
    rows = []
    for seed in (0, 0, 1):
        model = adapted(lora_dropout=dropout)
        train_model(model, make_samples(20), config=replace(CONFIG, seed=seed))
        rows.append(model.bank.row(0).clone())
    assert torch.equal(rows[0], rows[1])
    assert not torch.equal(rows[0], rows[2])


def test_dropout_does_not_depend_on_how_samples_are_batched(make_samples: Make) -> None:
    losses = []
    for micro_tokens, packed in ((10_000, True), (20, True), (10_000, False)):
        kept = Kept()
        train_model(
            adapted(lora_dropout=0.5),
            make_samples(12),
            config=replace(CONFIG, micro_tokens=micro_tokens),
            recorder=kept,
            packed=packed,
        )
        losses.append(kept.of("step", "loss"))
    assert losses[1] == pytest.approx(losses[0], rel=1e-5)
    assert losses[2] == pytest.approx(losses[0], rel=1e-5)
    undropped = Kept()
    train_model(adapted(), make_samples(12), config=CONFIG, recorder=undropped)
    assert undropped.of("step", "loss")[1:] != pytest.approx(losses[0][1:], rel=1e-5)


def test_the_base_and_other_rows_stay_as_they_are(make_samples: Make) -> None:
    model = adapted(rows=3)
    before = {name: p.clone() for name, p in model.model.named_parameters() if "lora" not in name}
    rows = model.bank.parameters.clone()
    train_model(model, make_samples(12), config=replace(CONFIG, weight_decay=0.1), row=1)
    for name, parameter in model.model.named_parameters():
        if name in before:
            assert torch.equal(parameter, before[name])
            assert parameter.grad is None
    assert torch.equal(model.bank.parameters[[0, 2]], rows[[0, 2]])
    assert not torch.equal(model.bank.row(1), rows[1])
    model.bank.check_sharing()


def test_padding_of_a_smaller_rank_stays_exactly_zero(make_samples: Make) -> None:
    model = adapted(r=3, rank_pattern={"q_proj": 7}, rows=2)
    for target in (site for name, site in model.sites.items() if name.endswith("q_proj")):
        target.ranks[0] = 5
        target.A.data[0, 5:] = 0.0
        target.B.data[0, :, 5:] = 0.0
    train_model(model, make_samples(12), config=replace(CONFIG, weight_decay=0.1, adam_eps=1e-12))
    padded = [site for name, site in model.sites.items() if name.endswith("q_proj")]
    assert padded
    for site in padded:
        assert (site.A[0, 5:] == 0).all()
        assert (site.B[0, :, 5:] == 0).all()
        assert site.B[0, :, :5].abs().sum() > 0


def test_one_graph_at_a_time_is_held(make_samples: Make, monkeypatch: pytest.MonkeyPatch) -> None:
    before: list[weakref.ref[TokenLosses]] = []

    def watched(model: nn.Module, batch: Batch) -> TokenLosses:
        assert all(found() is None for found in before)
        found = token_losses(model, batch)
        before.append(weakref.ref(found))
        return found

    monkeypatch.setattr("rango.training.loop.token_losses", watched)
    config = TrainingConfig(epochs=2, batch_size=4, micro_tokens=16)  # several a step
    train_model(adapted(), make_samples(8), config=config)
    assert len(before) > 4


def test_no_graph_is_built_below_the_first_adapted_layer(make_samples: Make) -> None:
    model = adapted(layers="1")
    needed: dict[str, bool] = {}

    def watch(name: str) -> Callable[..., None]:
        def hook(module: Any, args: Any, output: Any) -> None:
            first = output[0] if isinstance(output, tuple) else output
            if torch.is_grad_enabled():
                needed[name] = first.requires_grad

        return hook

    inner = model.model.model
    inner.embed_tokens.register_forward_hook(watch("embeddings"))
    for number, layer in enumerate(inner.layers):
        layer.register_forward_hook(watch(f"layer {number}"))
    train_model(model, make_samples(6), config=replace(CONFIG, max_steps=1))
    assert needed == {"embeddings": False, "layer 0": False, "layer 1": True}


@pytest.mark.parametrize("method", ["lora", "full"])
def test_a_loss_that_is_not_finite_touches_no_weight(make_samples: Make, method: str) -> None:
    model: Any = adapted() if method == "lora" else base_from_model(build("llama"))
    config = CONFIG if method == "lora" else FULL
    inner = model.model
    calls = 0
    forward = inner.forward

    def spoilt(*args: Any, **kwargs: Any) -> Any:
        nonlocal calls
        output = forward(*args, **kwargs)
        calls += torch.is_grad_enabled()
        if calls == 3 and torch.is_grad_enabled():
            output.logits = output.logits * math.nan
        return output

    spoilt.__signature__ = __import__("inspect").signature(forward)  # type: ignore[attr-defined]
    inner.forward = spoilt
    kept = Kept()
    config = replace(config, max_steps=9, checkpoint_every=1)
    with pytest.raises(NonFiniteLossError, match=r"step 3 of 9: the loss is nan on made\.jsonl:\d"):
        train_model(model, make_samples(60), config=config, recorder=kept, packed=True)
    assert [state.step for state, _ in kept.states] == [1, 2, 2]
    before, after = kept.states[1][1], kept.states[2][1]
    for kind in ("weights", "optimizer"):
        for name, tensor in before[kind].items():
            assert torch.equal(tensor, after[kind][name])
            assert tensor.isfinite().all()
    assert kept.events[-1]["reason"] == "non-finite"


def test_a_gradient_that_is_not_finite_touches_no_weight(make_samples: Make) -> None:
    model, kept = adapted(), Kept()
    leaf = next(iter(model.bank.leaves.values()))
    leaf.register_hook(lambda gradient: gradient * math.inf)
    with pytest.raises(NonFiniteLossError, match="step 1 of 3: the gradient's norm is nan"):
        train_model(model, make_samples(12), config=CONFIG, recorder=kept)
    assert not model.bank.gradients.any()
    fresh = adapted()
    assert torch.equal(model.bank.parameters, fresh.bank.parameters)


def test_early_stopping_keeps_the_best_weights(make_samples: Make) -> None:
    model, kept = adapted(), Kept()
    config = replace(
        CONFIG, max_steps=None, epochs=200, learning_rate=5e-2, eval_every=2, patience=3
    )
    trained = train_model(model, make_samples(8), make_samples(8, seed=1), config, recorder=kept)
    losses = kept.of("evaluation", "loss")[1:]
    best = min(range(len(losses)), key=losses.__getitem__)
    assert trained.stop == "patience"
    assert trained.best_step == 2 * (best + 1)
    assert trained.steps == trained.best_step + 2 * 3
    assert trained.adapted["loss"] == losses[best]
    again = train_model(
        model, make_samples(8), make_samples(8, seed=1), replace(config, max_steps=1)
    )
    assert again.base["loss"] == pytest.approx(losses[best], rel=1e-6)
    assert "3 evaluations in a row" in trained.stopped(config)


@pytest.mark.parametrize("method", ["lora", "full"])
def test_forgetting_beyond_the_limit_stops(make_samples: Make, method: str) -> None:
    model: Any = adapted() if method == "lora" else base_from_model(build("llama"))
    config = replace(
        CONFIG if method == "lora" else FULL,
        max_steps=None,
        epochs=50,
        eval_every=1,
        max_forgetting=0.01,
        learning_rate=2e-2,
    )
    kept = Kept()
    trained = train_model(
        model,
        make_samples(12),
        make_samples(4, seed=1),
        config,
        general=make_samples(4, seed=2),
        recorder=kept,
    )
    moved = kept.of("evaluation", "kl")
    assert moved[0] == pytest.approx(0.0, abs=1e-7)
    assert all(kl <= 0.01 for kl in moved[:-1])
    assert moved[-1] > 0.01
    assert trained.stop == "forgetting"
    within = [step for step, kl in enumerate(moved) if step > 0 and kl <= 0.01]
    if within:
        assert trained.best_step in within
        assert trained.adapted["kl"] <= 0.01
    assert "KL divergence" in trained.stopped(config)


def test_stopping_on_forgetting_with_nothing_held_out_keeps_what_is_within(
    make_samples: Make,
) -> None:
    config = replace(
        CONFIG, max_steps=None, epochs=50, eval_every=1, max_forgetting=0.01, learning_rate=2e-3
    )
    kept = Kept()
    trained = train_model(
        adapted(),
        make_samples(12),
        (),
        config,
        general=make_samples(4, seed=2),
        recorder=kept,
    )
    moved = kept.of("evaluation", "kl")
    assert trained.stop == "forgetting"
    assert trained.best_step == len(moved) - 2 > 0
    assert trained.adapted["kl"] == moved[-2] <= 0.01 < moved[-1]
    assert "within the limit" in trained.stopped(config)


def test_a_signal_ends_the_run_after_its_step(make_samples: Make) -> None:
    def interrupt(event: str, step: int) -> None:
        if (event, step) == ("step", 2):
            os.kill(os.getpid(), signal.SIGTERM)

    kept = Kept(interrupt)
    before = signal.getsignal(signal.SIGTERM)
    with pytest.raises(KeyboardInterrupt, match="interrupted after step 2 of 3"):
        train_model(
            adapted(),
            make_samples(30),
            config=replace(CONFIG, checkpoint_every=100),
            recorder=kept,
        )
    assert [state.step for state, _ in kept.states] == [2]
    assert kept.of("stop", "reason") == ["interrupted"]
    assert signal.getsignal(signal.SIGTERM) is before


def test_full_training_freezes_the_base_again(make_samples: Make) -> None:
    base = base_from_model(build("qwen2"))
    before = {name: p.clone() for name, p in base.model.named_parameters()}
    trained = train_model(base, make_samples(12), config=FULL)
    parameters = dict(base.model.named_parameters())
    assert not any(p.requires_grad or p.grad is not None for p in parameters.values())
    assert all(not torch.equal(p, before[name]) for name, p in parameters.items())
    assert trained.share == 1.0
    assert base.model.lm_head.weight is base.model.model.embed_tokens.weight


def test_what_makes_no_sense_is_refused(make_samples: Make) -> None:
    samples = make_samples(4)
    with pytest.raises(DataError, match="no samples to train on"):
        train_model(adapted(), [], config=CONFIG)
    with pytest.raises(ConfigError, match=r"training\.patience .* no samples are held out"):
        train_model(adapted(), samples, config=replace(CONFIG, patience=1))
    with pytest.raises(ConfigError, match=r"training\.max_forgetting needs text"):
        train_model(adapted(), samples, config=replace(CONFIG, max_forgetting=0.1))
    with pytest.raises(ConfigError, match="method is full, and the model given has adapters"):
        train_model(adapted(), samples, config=FULL)
    with pytest.raises(ConfigError, match="method is lora, and the model given has a base without"):
        train_model(base_from_model(build("llama")), samples, config=CONFIG)
    with pytest.raises(ConfigError, match="an encoder"):
        train_model(attach(base_from_model(build("bert"))), samples, config=CONFIG)
    quantized: Base = replace(base_from_model(build("llama")), quantize="nf4")
    with pytest.raises(ConfigError, match="held quantized"):
        train_model(quantized, samples, config=FULL)
