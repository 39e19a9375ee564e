"""Attach adapters to any torch.nn.Module, and what can be done with them while attached."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from rango.adapters.bank import Bank
from rango.adapters.config import LoraConfig
from rango.adapters.dropout import DropoutKey
from rango.adapters.fused.install import Fusion
from rango.adapters.layout import RowLayout
from rango.adapters.merge import Merged, merge_row
from rango.adapters.methods import lora
from rango.adapters.modules import AdaptedModule
from rango.adapters.routing import Routing
from rango.adapters.saved import SavedLinear, dense_tensors
from rango.adapters.saving import check_apart, find_saved, saved_layers
from rango.adapters.site import Site
from rango.adapters.switch import Switch
from rango.adapters.targets import Target, find_targets
from rango.base.classifier import spread_of
from rango.base.roles import Uncovered, uncovered_weights
from rango.errors import AdapterError, ConfigError, nearest

if TYPE_CHECKING:
    from rango.base.load import Base


class Adapted:
    """A model with a bank of adapters attached.

    `model` is the object that was given, its targeted modules replaced in place; until told
    otherwise every token uses row 0. The base's parameters do not require gradients while
    adapters are attached.
    """

    def __init__(
        self,
        model: nn.Module,
        bank: Bank,
        switch: Switch,
        sites: dict[str, Site],
        replaced: dict[str, AdaptedModule],
        configs: list[LoraConfig | None],
        uncovered: list[Uncovered],
        base: Base | None,
        saved: Mapping[str, SavedLinear] | None = None,
    ) -> None:
        self.model = model
        self.bank = bank
        self.switch = switch
        self.sites = sites
        """By name: a module's, with the part where it is one: ``h.0.attn.c_attn[q]``."""
        self.modules = replaced
        """The stand-ins, by module name."""
        self.saved: dict[str, SavedLinear] = dict(saved or {})
        """Those of the layers that rows hold whole, by module name."""
        self.configs = configs
        """The config of each row; None for a row that holds no adapter."""
        self.uncovered = uncovered
        """Every weight matrix that is not adapted, with the reason."""
        self.base = base
        self.fusion: Fusion | None = None
        """What of the model the kernels have taken over."""
        self._merged: Merged | None = None
        self._required = {name for name, p in model.named_parameters() if p.requires_grad}

    @property
    def config(self) -> LoraConfig:
        """The config of row 0."""
        return self.config_of(0)

    def config_of(self, row: int) -> LoraConfig:
        """The config of a row; AdapterError if it holds no adapter."""
        self._check_row(row)
        config = self.configs[row]
        if config is None:
            raise AdapterError(f"row {row} holds no adapter")
        return config

    def parameters(self) -> list[nn.Parameter]:
        """The trainable leaves, for an optimizer of one's own."""
        return list(self.bank.leaves.values())

    def trainable_parameters(self, row: int = 0) -> int:
        """Number of parameters of one adapter, padding left out."""
        return sum(
            site.ranks[row] * (site.A.shape[2] + site.B.shape[1]) for site in self.sites.values()
        ) + sum(layer.size for layer in self.saved.values() if layer.saves[row])

    def configure(
        self, row: int, config: LoraConfig, targets: list[Target], saved: Sequence[str] = ()
    ) -> None:
        """Give a row its ranks and scalings, and zero it. Targets must be sites of this bank, and
        the layers that it holds whole be laid out in it."""
        self._check_row(row)
        self._check_unmerged()
        for target in targets:
            if target.name not in self.sites:
                raise AdapterError(f"{target.name}: this bank was not laid out for it")
            laid_out = self.sites[target.name].A.shape[1]
            if target.r > laid_out:
                raise AdapterError(
                    f"{target.name}: rank {target.r} exceeds the {laid_out} that this bank was "
                    "laid out for; attach with the larger rank"
                )
        for name in saved:
            if name not in self.saved:
                raise AdapterError(f"{name}: this bank was not laid out to hold it whole")
        for site in self.sites.values():
            site.leave(row)
        for name, layer in self.saved.items():
            layer.saves[row] = name in saved
        for target in targets:
            self.sites[target.name].take(row, target.r, target.lora_alpha, config)
        # nothing of the row's former adapter stays
        self.bank.row(row).zero_()
        if self.bank.gradients is not None:
            self.bank.gradients[row].zero_()
        self.switch.factors = {r: f for r, f in self.switch.factors.items() if r != row}
        self.configs[row] = config

    @torch.no_grad()
    def reset(self, row: int = 0, seed: int = 0) -> None:
        """Start a row anew: B·A = 0, A (at embeddings B) drawn from the seed; of a layer held whole
        the update is 0, or drawn where the base has none but zeros."""
        self._check_row(row)
        self.bank.row(row).zero_()
        for site in self.sites.values():
            if site.ranks[row]:
                lora.initialise(
                    *site.factors(row), embedding=site.embedding, seed=seed, site=site.name
                )
        for layer in self.saved.values():
            if layer.saves[row]:
                layer.start(row, seed, spread_of(self.model))

    @contextmanager
    def route(self, routing: Routing) -> Iterator[None]:
        """Within the block, batches are routed so."""
        self._check_unmerged()
        before, self.switch.routing = self.switch.routing, routing
        try:
            yield
        finally:
            self.switch.routing = before

    @contextmanager
    def disabled(self) -> Iterator[None]:
        """Within the block the model is the base, bit for bit as its adapters see it: computed by
        the same kernels, which differ from the model before attach() in the order of sums."""
        self._check_unmerged()
        before, self.switch.enabled = self.switch.enabled, False
        try:
            yield
        finally:
            self.switch.enabled = before

    def enable(self) -> None:
        """Let the adapters act."""
        self.switch.enabled = True

    def disable(self) -> None:
        """Let the base answer alone."""
        self._check_unmerged()
        self.switch.enabled = False

    def scale(self, row: int, factor: float) -> None:
        """Multiply a row's contribution by `factor`, on top of its own scaling."""
        self._check_row(row)
        self._check_unmerged()
        self.switch.factors = self.switch.factors | {row: factor}

    def dropout_key(
        self,
        step: int | Sequence[int],
        *,
        job: int | Sequence[int] = 0,
        token_ids: Tensor | None = None,
    ) -> None:
        """Fix what dropout draws in the next passes: a function of job, step, module and token.

        step, job: one for all rows, or one a row. token_ids: int64, one a token of the batch, the
        same for a token wherever it is batched.
        """
        rows = self.bank.rows
        jobs, steps = (
            (value,) * rows if isinstance(value, int) else tuple(value) for value in (job, step)
        )
        self.switch.dropout = DropoutKey(jobs, steps, token_ids)

    def train(self, mode: bool = True) -> None:
        """Switch the adapters' dropout on or off; the base's own modules stay as they are."""
        for module in self.modules.values():
            for site in module.sites:
                site.training = mode

    def merge(self, row: int = 0) -> None:
        """Add a row's ΔW into the weights (fp32 sum, one cast); the kept ones come back with
        unmerge()."""
        self._check_row(row)
        if self._merged is not None:
            raise AdapterError("an adapter is merged already; unmerge() first")
        factor = self.switch.factors.get(row, 1.0)
        self._merged = merge_row(self.modules, self.saved, row, factor, self._computes_in())
        self.switch.merged = True

    def unmerge(self) -> None:
        """Put the base's own weights back, bit for bit."""
        if self._merged is None:
            raise AdapterError("no adapter is merged")
        self._merged.restore()
        self._merged = None
        self.switch.merged = False

    def detach(self) -> nn.Module:
        """Take the adapters off; returns the model, as it was before attach()."""
        if self._merged is not None:
            self.unmerge()
        if self.fusion is not None:
            self.fusion.undo()
        for name, stand_in in self.modules.items():
            _replace(self.model, name, stand_in.base_layer)
        for name, layer in self.saved.items():
            _replace(self.model, name, layer.base_layer)
        for name, parameter in self.model.named_parameters():
            parameter.requires_grad_(name in self._required)
        self.modules, self.sites, self.saved = {}, {}, {}
        self.configs = [None] * self.bank.rows
        return self.model

    def _computes_in(self) -> torch.dtype | None:
        """The type of the base's own weights that are not quantized."""
        leaves = {id(leaf) for leaf in self.bank.leaves.values()}
        kept = (p for p in self.model.parameters() if id(p) not in leaves)
        return next((p.dtype for p in kept if p.is_floating_point()), None)

    def _check_unmerged(self) -> None:
        if self.switch.merged:
            raise AdapterError("the adapter is merged into the weights; unmerge() first")

    def _check_row(self, row: int) -> None:
        if not 0 <= row < self.bank.rows:
            raise AdapterError(f"row {row}: the bank has rows 0 to {self.bank.rows - 1}")


def attach(
    model: nn.Module | Base,
    config: LoraConfig | None = None,
    *,
    rows: int = 1,
    seed: int = 0,
    trainable: bool = True,
    **fields: Any,
) -> Adapted:
    """Attach a bank of `rows` adapters to a model or a loaded base, in place.

    The first row is configured and started (B·A = 0: the model computes what it computed); so are
    the others, alike, from seed + row. `fields` are those of LoraConfig, in place of `config`. Over
    a classifier the rows also hold its head, whole; one that the base has not is drawn.

    Raises TargetError where a target matches nothing, ConfigError for values that make no sense.
    """
    if config is not None and fields:
        raise ConfigError(f"attach: give a LoraConfig or its fields, not both: {sorted(fields)}")
    config = config or _config_from(fields)
    base = None if isinstance(model, nn.Module) else model
    module = model if isinstance(model, nn.Module) else model.model
    targets, saved = find_targets(module, config), find_saved(module, config)
    check_apart([target.module for target in targets], saved_layers(module, config.modules_to_save))
    # a head is saved whole, whatever ending of a name the targets share with it
    targets = [target for target in targets if target.module not in saved]
    adapted = attach_targets(
        module, targets, saved=saved, rows=rows, trainable=trainable, base=base
    )
    for row in range(rows):
        adapted.configure(row, config, targets, saved)
        adapted.reset(row, seed + row)
    return adapted


def attach_targets(
    model: nn.Module,
    targets: list[Target],
    *,
    saved: Sequence[str] = (),
    rows: int = 1,
    trainable: bool = True,
    base: Base | None = None,
) -> Adapted:
    """Lay out a bank for the targets, and for layers to hold whole, and put the stand-ins in; the
    rows are empty."""
    if any(isinstance(module, AdaptedModule | SavedLinear) for module in model.modules()):
        raise AdapterError("this model has adapters attached already; detach() them first")
    if rows < 1:
        raise ConfigError(f"rows {rows}: expected at least 1")
    covered = {target.module for target in targets} | set(saved)
    uncovered = uncovered_weights(model, covered)
    low_rank = (
        ((target.name, tensor), shape)
        for target in targets
        for tensor, shape in lora.tensors(target, target.r).items()
    )
    dense = (
        ((name, tensor), shape)
        for name in saved
        for tensor, shape in dense_tensors(model.get_submodule(name)).items()
    )
    layout = RowLayout(itertools.chain(low_rank, dense))
    device = next(itertools.chain(model.parameters(), model.buffers())).device
    bank = Bank(layout, rows, device=device, trainable=trainable)
    switch = Switch()
    sites = {
        target.name: Site(
            target.name,
            target.module,
            bank,
            switch,
            columns=target.columns,
            part=target.part,
            embedding=target.embedding,
        )
        for target in targets
    }
    replaced: dict[str, AdaptedModule] = {}
    whole = {name: SavedLinear(name, model.get_submodule(name), bank, switch) for name in saved}
    adapted = Adapted(model, bank, switch, sites, replaced, [None] * rows, uncovered, base, whole)
    for parameter in model.parameters():
        parameter.requires_grad_(False)
    for name in dict.fromkeys(target.module for target in targets):
        at_module = [site for site in sites.values() if site.module_name == name]
        replaced[name] = AdaptedModule(model.get_submodule(name), at_module, switch)
        if isinstance(model.get_submodule(name.rpartition(".")[0]), nn.TransformerEncoderLayer):
            # its fast path reads weights instead of calling modules; a hook turns it off
            replaced[name].register_forward_pre_hook(lambda *_: None)
        _replace(model, name, replaced[name])
    for name, layer in whole.items():
        _replace(model, name, layer)
    try:
        adapted.fusion = Fusion(model)
    except BaseException:
        adapted.detach()
        raise
    return adapted


def _config_from(fields: dict[str, Any]) -> LoraConfig:
    known = {field.name for field in dataclasses.fields(LoraConfig)}
    unknown = sorted(set(fields) - known)
    if unknown:
        raise ConfigError(
            f"attach: unknown {', '.join(unknown)}{nearest(unknown[0], known)}; "
            f"known: {', '.join(sorted(known))}"
        )
    return LoraConfig(**fields)


def _replace(model: nn.Module, name: str, module: nn.Module) -> None:
    parent, _, leaf = name.rpartition(".")
    setattr(model.get_submodule(parent) if parent else model, leaf, module)
