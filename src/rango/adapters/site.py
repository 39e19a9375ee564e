"""A site: where rows of the bank contribute."""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor, nn

from rango.adapters.bank import Bank
from rango.adapters.config import LoraConfig
from rango.adapters.dropout import keep_mask
from rango.adapters.layout import Key
from rango.adapters.routing import Segment
from rango.adapters.switch import Switch
from rango.adapters.update import Columns, EmbeddingUpdate, LinearUpdate, Part
from rango.errors import AdapterError
from rango.numerics.lowrank import scaling


class Site(nn.Module):
    """Where rows of the bank contribute: a module, or one part of a fused projection.

    lora_A (rows, r, in) and lora_B (rows, out, r) are leaves of the bank; for an embedding
    lora_embedding_A (rows, r, vocabulary) and lora_embedding_B (rows, dim, r).
    """

    def __init__(
        self,
        name: str,
        module_name: str,
        bank: Bank,
        switch: Switch,
        columns: Columns = None,
        part: str | None = None,
        embedding: bool = False,
    ) -> None:
        super().__init__()
        self.name, self.module_name, self.part = name, module_name, part
        self.bank, self.switch = bank, switch
        self.columns = columns
        self.embedding = embedding
        prefix = "lora_embedding_" if embedding else "lora_"
        self.keys: tuple[Key, Key] = ((name, f"{prefix}A"), (name, f"{prefix}B"))
        for key in self.keys:
            self.register_parameter(key[1], bank.leaves[key])
        self.output_scale = 1.0
        """What the base's module multiplies its output by (Gemma's embeddings), and so B·A's."""
        self.ranks: list[int] = [0] * bank.rows
        """Rank of each row here; 0 where the row leaves this site alone."""
        self.alphas: list[float] = [0.0] * bank.rows
        """lora_alpha of each row here."""
        self.scalings: list[float] = [0.0] * bank.rows
        """alpha / r (or alpha / √r) of each row here."""
        self.dropouts: list[float] = [0.0] * bank.rows

    @property
    def A(self) -> nn.Parameter:  # noqa: N802
        """(rows, r, in)."""
        return self.bank.leaves[self.keys[0]]

    @property
    def B(self) -> nn.Parameter:  # noqa: N802
        """(rows, out, r)."""
        return self.bank.leaves[self.keys[1]]

    def take(self, row: int, r: int, lora_alpha: float, config: LoraConfig) -> None:
        """Let a row act here, at its own rank and scale."""
        self.ranks[row], self.alphas[row] = r, lora_alpha
        self.scalings[row] = scaling(lora_alpha, r, config.use_rslora)
        self.dropouts[row] = config.lora_dropout

    def leave(self, row: int) -> None:
        """Let a row leave this site alone."""
        self.ranks[row], self.alphas[row] = 0, 0.0
        self.scalings[row], self.dropouts[row] = 0.0, 0.0

    def factors(self, row: int) -> tuple[Tensor, Tensor]:
        """A (r, in) and B (out, r) of one row at its own rank, without the padding; views."""
        r = self.ranks[row]
        return self.A.detach()[row, :r], self.B.detach()[row, :, :r]

    def add_to(self, y: Tensor, x: Tensor) -> Tensor:
        """y (..., out) plus the rows' contributions for x (..., in), or ids (...)."""
        parts = self.parts(x.shape if self.embedding else x.shape[:-1], x.device)
        if not parts:
            return y
        leaves = (self.A, self.B, self.bank, self.keys, parts)
        # what is not this module's own to change, or autograd forbids to (views made inside a
        # custom function), is copied first
        if y._is_view() or not y.is_contiguous() or (y.is_leaf and y.requires_grad):
            y = y.clone(memory_format=torch.contiguous_format)
        if self.embedding:
            return EmbeddingUpdate.apply(y, x, *leaves)
        return LinearUpdate.apply(y, x, *leaves, self.columns)

    def parts(self, leading: torch.Size, device: torch.device) -> list[Part]:
        """The segments of the batch that act here, for inputs (*leading, in), or ids (*leading).

        Raises AdapterError where the routing names a row that the bank does not have.
        """
        plan = self.switch.routing.plan(tuple(leading), device)
        for segment in plan:
            if segment.row >= self.bank.rows:
                raise AdapterError(
                    f"routing names row {segment.row}; the bank has rows 0 to {self.bank.rows - 1}"
                )
        return [
            self._part(segment, leading.numel(), device)
            for segment in plan
            if self.ranks[segment.row]
        ]

    def _part(self, segment: Segment, tokens: int, device: torch.device) -> Part:
        row = segment.row
        factor = self.switch.factors.get(row, 1.0) * self.output_scale
        part = Part.of(segment, self.scalings[row] * factor)
        p = self.dropouts[row]
        if not self.training or p == 0.0 or self.embedding:
            return part
        count = tokens if segment.tokens is None else len(segment.tokens)
        key = self.switch.dropout_key(self.bank.rows).seen_by(tokens)
        shape = (count, self.A.shape[2])
        keep = keep_mask(key, row, self.name, segment.tokens, shape, p, device=device)
        return replace(part, keep=keep, drop=p)

    def extra_repr(self) -> str:
        """Shown by print(model)."""
        a, b = self.A.shape, self.B.shape
        part = f", part={self.part}" if self.part else ""
        return f"rows={a[0]}, in={a[2]}, r={a[1]}, out={b[1]}{part}"
