"""AdamW over tables against torch's own."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from rango.adapters.bank import Bank
from rango.adapters.layout import RowLayout
from rango.errors import AdapterError
from rango.kernels.adamw import adamw_
from rango.training.optimizer import AdamWSettings, BankAdamW, ModelAdamW


def make_bank(rows: int = 3, size: int = 40) -> Bank:
    bank = Bank(
        RowLayout([(("site", "lora_A"), (4, size // 8)), (("site", "lora_B"), (5, 4))]), rows
    )
    bank.parameters.copy_(torch.randn(bank.parameters.shape, generator=torch.manual_seed(0)))
    return bank


def set_gradients(bank: Bank, step: int) -> None:
    assert bank.gradients is not None
    generator = torch.Generator().manual_seed(step)
    bank.gradients.copy_(torch.randn(bank.gradients.shape, generator=generator))


def torch_adamw(start: Tensor, gradients: list[Tensor], rates: list[float], decay: float) -> Tensor:
    parameter = nn.Parameter(start.clone())
    adamw = torch.optim.AdamW([parameter], weight_decay=decay)
    for gradient, rate in zip(gradients, rates, strict=True):
        adamw.param_groups[0]["lr"] = rate
        parameter.grad = gradient.clone()
        adamw.step()
    return parameter.detach()


@pytest.mark.parametrize("decay", [0.0, 0.1])
def test_equals_torch_adamw(decay: float) -> None:
    bank = make_bank(rows=1)
    start, gradients = bank.parameters.clone(), []
    optimizer = BankAdamW(bank, AdamWSettings(weight_decay=decay))
    rates = [1e-2 / (step + 1) for step in range(30)]
    for step, rate in enumerate(rates):
        set_gradients(bank, step)
        gradients.append(bank.gradients.clone())
        optimizer.step(rate)
    expected = torch_adamw(start, gradients, rates, decay)
    torch.testing.assert_close(bank.parameters, expected, rtol=1e-7, atol=1e-7)
    bank.check_sharing()


def test_each_row_has_its_own_settings_and_limit() -> None:
    settings = [
        AdamWSettings(beta1=0.5, weight_decay=0.2),
        AdamWSettings(beta2=0.9),
        AdamWSettings(eps=1e-3),
    ]
    limits, rates = torch.tensor([0.5, 0.0, 2.0]), torch.tensor([1e-2, 2e-2, 3e-2])
    bank = make_bank()
    together = BankAdamW(bank)
    together.settings = list(settings)
    alone = []
    for row in range(3):
        single = make_bank(rows=1)
        single.parameters.copy_(make_bank().parameters[row : row + 1])
        alone.append((single, BankAdamW(single, settings[row])))
    for step in range(5):
        set_gradients(bank, step)
        given = bank.gradients.clone()
        norms = together.clip(limits)
        together.step(rates)
        for row, (single, optimizer) in enumerate(alone):
            single.gradients.copy_(given[row : row + 1])
            torch.testing.assert_close(optimizer.clip(float(limits[row]))[0], norms[row])
            optimizer.step(float(rates[row]))
            assert torch.equal(single.parameters[0], bank.parameters[row])


def test_a_row_that_starts_anew_forgets() -> None:
    bank, fresh = make_bank(), make_bank()
    optimizer = BankAdamW(bank)
    set_gradients(bank, 0)
    optimizer.step(1e-2)
    optimizer.renew(1, AdamWSettings(weight_decay=0.3))
    bank.parameters.copy_(fresh.parameters)
    other = BankAdamW(fresh, AdamWSettings(weight_decay=0.3))
    for each in (bank, fresh):
        set_gradients(each, 1)
    optimizer.step(1e-2)
    other.step(1e-2)
    assert torch.equal(bank.parameters[1], fresh.parameters[1])
    assert optimizer.steps.tolist() == [2, 1, 2]


@pytest.mark.parametrize("active", [[0], [1, 2], [0, 2]])
def test_each_row_counts_its_own_steps_and_idle_rows_rest(active: list[int]) -> None:
    bank = make_bank()
    start = bank.parameters.clone()
    optimizer = BankAdamW(bank, AdamWSettings(weight_decay=0.1), active=active)
    history: list[tuple[Tensor, list[int]]] = []
    for step in range(6):
        if step == 3:
            optimizer.active[:] = True
        set_gradients(bank, step)
        history.append((bank.gradients.clone(), optimizer.active.nonzero()[:, 0].tolist()))
        optimizer.step(1e-2)
        idle = [row for row in range(3) if row not in active]
        if step < 3:
            assert torch.equal(bank.parameters[idle], start[idle])
    for row in range(3):
        taken = [gradients[row] for gradients, rows in history if row in rows]
        expected = torch_adamw(start[row], taken, [1e-2] * len(taken), 0.1)
        torch.testing.assert_close(bank.row(row), expected, rtol=1e-7, atol=1e-7)
        assert optimizer.steps[row] == len(taken)


@pytest.mark.parametrize("active", [[0, 1, 2], [0, 2]])
def test_a_learning_rate_for_each_row(active: list[int]) -> None:
    bank, alone = make_bank(), make_bank()
    rates = torch.tensor([1e-2, 3e-3, 1e-3])
    together = BankAdamW(bank, active=active)
    for step in range(3):
        set_gradients(bank, step)
        together.step(rates)
    for row in active:
        single = BankAdamW(alone, active=[row])
        for step in range(3):
            set_gradients(alone, step)
            single.step(float(rates[row]))
        assert torch.equal(bank.row(row), alone.row(row))


def test_loraplus_gives_lora_b_another_rate_and_each_row_its_own_ratio() -> None:
    bank = make_bank()  # lora_A are the first 20 elements of a row, lora_B the others
    tables = [bank.parameters.clone(), bank.gradients, *torch.zeros(2, 3, 40)]
    optimizer = BankAdamW(bank)
    ratios, rates = [16.0, 1.0, 0.5], torch.tensor([1e-3, 2e-3, 3e-3], dtype=torch.float64)
    optimizer.settings = [
        AdamWSettings(weight_decay=0.1, loraplus_lr_ratio=ratio) for ratio in ratios
    ]
    factors = torch.ones(3, 40, dtype=torch.float64)
    factors[:, 20:] *= torch.tensor(ratios)[:, None]
    for step in range(1, 6):
        set_gradients(bank, step)
        optimizer.step(rates)
        options = {"beta1": 0.9, "beta2": 0.999, "eps": 1e-8, "weight_decay": 0.1}
        adamw_(*tables, torch.full((3,), step), rates[:, None] * factors, **options)
    assert torch.equal(bank.parameters, tables[0])


@pytest.mark.parametrize(
    ("key", "shape", "faster"),
    [
        (("q", "lora_A"), (2, 3), False),
        (("q", "lora_B"), (3, 2), True),
        (("embed", "lora_embedding_A"), (2, 3), False),
        (("embed", "lora_embedding_B"), (3, 2), False),
        (("head", "weight"), (3, 2), False),
        (("head", "bias"), (6,), True),
    ],
)
def test_what_learns_faster_under_loraplus(
    key: tuple[str, str], shape: tuple[int, ...], faster: bool
) -> None:
    """As PEFT's create_loraplus_optimizer groups them."""
    layout = RowLayout([(("first", "lora_A"), (2, 2)), (key, shape), (("last", "lora_A"), (1, 2))])
    bank = Bank(layout, 1)
    optimizer = BankAdamW(bank, AdamWSettings(loraplus_lr_ratio=4.0))
    assert bank.gradients is not None
    bank.gradients.fill_(1.0)
    optimizer.step(0.5)
    expected = torch.full((1, 12), -0.5)
    expected[:, 4:10] *= 4.0 if faster else 1.0
    torch.testing.assert_close(bank.parameters, expected)


def test_elements_without_gradient_stay_exactly_as_they_are_even_without_epsilon() -> None:
    bank = make_bank()
    bank.parameters[:, ::2] = 0.0
    optimizer = BankAdamW(bank, AdamWSettings(eps=0.0, weight_decay=0.1))
    for step in range(3):
        set_gradients(bank, step)
        bank.gradients[:, ::2] = 0.0
        optimizer.step(1e-2)
    assert (bank.parameters[:, ::2] == 0).all()
    assert bank.parameters.isfinite().all()


def test_each_row_is_clipped_by_its_own_norm() -> None:
    bank = make_bank()
    optimizer = BankAdamW(bank)
    set_gradients(bank, 0)
    bank.gradients[1] *= 1e-3
    before = bank.gradients.clone()
    norms = optimizer.clip(1.0)
    torch.testing.assert_close(norms, before.norm(dim=1))
    for row in range(3):
        leaf = nn.Parameter(before[row].clone())
        leaf.grad = before[row].clone()
        nn.utils.clip_grad_norm_([leaf], 1.0)
        torch.testing.assert_close(bank.gradients[row], leaf.grad)
    assert torch.equal(bank.gradients[1], before[1])
    clipped = bank.gradients.clone()
    optimizer.clip(0.0)
    assert torch.equal(bank.gradients, clipped)
    optimizer.zero_grad()
    assert not bank.gradients.any()


def test_a_bank_without_gradients_is_refused() -> None:
    bank = Bank(RowLayout([(("site", "lora_A"), (2, 2))]), 1, trainable=False)
    with pytest.raises(AdapterError, match="trainable=True"):
        BankAdamW(bank).step(1e-3)


def make_model() -> nn.Module:
    torch.manual_seed(0)
    return nn.Sequential(nn.Linear(4, 6), nn.Linear(6, 4))


def test_model_adamw_clips_as_one_part_and_equals_torch() -> None:
    ours, theirs = make_model(), make_model()
    optimizer = ModelAdamW(dict(ours.named_parameters()), AdamWSettings(weight_decay=0.1))
    reference = torch.optim.AdamW(theirs.parameters(), lr=1e-2, weight_decay=0.1)
    for step in range(5):
        x = torch.randn(8, 4, generator=torch.Generator().manual_seed(step))
        for model in (ours, theirs):
            (10 * model(x).pow(2).sum()).backward()
        norms = optimizer.clip(1.0)
        expected = nn.utils.clip_grad_norm_(theirs.parameters(), 1.0)
        assert norms.shape == (1,)
        torch.testing.assert_close(norms[0], expected)
        optimizer.step(1e-2)
        reference.step()
        optimizer.zero_grad()
        reference.zero_grad()
    for mine, other in zip(ours.parameters(), theirs.parameters(), strict=True):
        assert mine.grad is None
        torch.testing.assert_close(mine, other, rtol=1e-6, atol=1e-7)


@pytest.mark.parametrize("kind", ["bank", "model"])
def test_state_restored_continues_bit_for_bit(kind: str) -> None:
    def start() -> tuple[BankAdamW | ModelAdamW, list[Tensor]]:
        if kind == "bank":
            bank = make_bank()
            return BankAdamW(bank), [bank.parameters, bank.gradients]
        model = make_model()
        for parameter in model.parameters():
            parameter.grad = torch.zeros_like(parameter)
        tensors = [*model.parameters(), *(parameter.grad for parameter in model.parameters())]
        return ModelAdamW(dict(model.named_parameters())), [t.detach() for t in tensors]

    def take(optimizer: BankAdamW | ModelAdamW, tensors: list[Tensor], step: int) -> None:
        generator = torch.Generator().manual_seed(step)
        for gradient in tensors[len(tensors) // 2 :]:
            gradient.copy_(torch.randn(gradient.shape, generator=generator))
        optimizer.step(1e-2)

    whole, tensors = start()
    for step in range(3):
        take(whole, tensors, step)
    saved = copy.deepcopy((whole.state(), [tensor.clone() for tensor in tensors]))
    for step in range(3, 6):
        take(whole, tensors, step)
    resumed, again = start()
    resumed.load_state(saved[0])
    for tensor, kept in zip(again, saved[1], strict=True):
        tensor.copy_(kept)
    for step in range(3, 6):
        take(resumed, again, step)
    for tensor, expected in zip(again, tensors, strict=True):
        assert torch.equal(tensor, expected)


def test_a_state_of_another_shape_is_refused_naming_all_that_differs() -> None:
    state = BankAdamW(make_bank(rows=2)).state()
    state.pop("steps")
    state["extra"] = torch.zeros(1)
    with pytest.raises(AdapterError, match=r"exp_avg: expected \(3, 40\), found \(2, 40\)") as info:
        BankAdamW(make_bank()).load_state(state)
    assert "steps: expected (3,), found nothing" in str(info.value)
    assert "extra: expected nothing, found (1,)" in str(info.value)
