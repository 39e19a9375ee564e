"""The built-in chat templates, for tokenizers that bring none: one .jinja file each.

| name    | a turn ends with             | written in the manner of                              |
|---------|------------------------------|-------------------------------------------------------|
| alpaca  | the tokenizer's end token    | Stanford Alpaca: ### Instruction, ### Response        |
| chatml  | ``<|im_end|>``               | ChatML, as Qwen: <|im_start|>role                     |
| gemma   | ``<end_of_turn>``            | Gemma: user and model; a system message joins the user|
| llama3  | ``<|eot_id|>``               | Llama 3: a header a turn                              |
| mistral | the tokenizer's end token    | Mistral: [INST] … [/INST]; system as Gemma's          |
| phi     | ``<|end|>``                  | Phi-3: <|user|> … <|end|>                             |
| plain   | the tokenizer's end token    | none: User:, Assistant:, each on its line             |

All mark what the assistant writes with ``{% generation %}``. Those that end a turn with the
tokenizer's own end token (alpaca, plain) need nothing else of it and work with every tokenizer.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

_FOLDER = Path(__file__).parent


@dataclass(frozen=True)
class BuiltIn:
    """A built-in template.

    tokens: what it writes as special tokens; a tokenizer needs each as a single token.
    end_of_turn: the one of them that ends an answer; None for the tokenizer's own end token.
    """

    name: str
    tokens: tuple[str, ...] = ()
    end_of_turn: str | None = None

    @property
    def text(self) -> str:
        """The template's text."""
        return (_FOLDER / f"{self.name}.jinja").read_text(encoding="utf-8")


BUILT_IN = {
    template.name: template
    for template in (
        BuiltIn("alpaca"),
        BuiltIn("chatml", ("<|im_start|>", "<|im_end|>"), "<|im_end|>"),
        BuiltIn("gemma", ("<start_of_turn>", "<end_of_turn>"), "<end_of_turn>"),
        BuiltIn("llama3", ("<|start_header_id|>", "<|end_header_id|>", "<|eot_id|>"), "<|eot_id|>"),
        BuiltIn("mistral", ("[INST]", "[/INST]")),
        BuiltIn("phi", ("<|system|>", "<|user|>", "<|assistant|>", "<|end|>"), "<|end|>"),
        BuiltIn("plain"),
    )
}
"""By name, in alphabetical order."""
