"""What to adapt, and with which rank and scale."""

from __future__ import annotations

from dataclasses import dataclass, field


@dataclass(frozen=True)
class LoraConfig:
    """A LoRA adapter (Hu et al. 2021, arXiv 2106.09685). Names are PEFT's."""

    r: int = 16
    """Rank of the update."""
    lora_alpha: float = 32.0
    """The update is scaled by lora_alpha / r (rsLoRA: lora_alpha / sqrt(r))."""
    lora_dropout: float = 0.0
    """Probability of dropping an element of the adapter's input while training."""
    use_rslora: bool = False
    """Scale by lora_alpha / sqrt(r) (Kalajdzievski 2023, arXiv 2312.03732)."""
    target_modules: str | list[str] = "all-linear"
    """all-linear, attention, mlp; names (q_proj); one part of a fused projection (c_attn[q]);
    or, as one string that is none of these, a regular expression on the full module name."""
    exclude_modules: list[str] = field(default_factory=list)
    """Names, or a regular expression, of modules left out."""
    layers: str | None = None
    """Only these layers, such as 0-3,7."""
    rank_pattern: dict[str, int] = field(default_factory=dict)
    """Another rank for modules whose name matches: {"mlp.*": 8}."""
    alpha_pattern: dict[str, float] = field(default_factory=dict)
    """Another lora_alpha for modules whose name matches."""
    modules_to_save: list[str] = field(default_factory=list)
    """Linear layers that the adapter holds whole, by the end of their name, or of the module's that
    they are in, besides a classifier's new head; for a classifier by default all of its head."""
