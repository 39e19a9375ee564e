"""Keys that open something, known by how their issuers write them."""

from __future__ import annotations

import re
from collections.abc import Iterator

_HINTS = (
    *("AKIA", "ASIA", "ghp_", "gho_", "ghu_", "ghs_", "ghr_", "github_pat_", "glpat-", "sk-"),
    *("k_live_", "AIza", "xox", "hf_", "npm_", "eyJ", "-----BEGIN "),
)
"""One of these stands in every key; to look for them costs next to nothing."""
_SECRET = re.compile(
    r"""
    (?<![0-9A-Za-z_-])(?:
      (?:AKIA|ASIA)[0-9A-Z]{16}                              # Amazon
    | gh[pousr]_[0-9A-Za-z]{36,255}                          # GitHub
    | github_pat_[0-9A-Za-z_]{40,255}
    | glpat-[0-9A-Za-z_-]{20,255}                            # GitLab
    | sk-(?=[A-Za-z_-]{0,60}[0-9])[0-9A-Za-z_-]{20,255}      # OpenAI, Anthropic and others
    | [rs]k_live_[0-9A-Za-z]{16,255}                         # Stripe
    | AIza[0-9A-Za-z_-]{35}                                  # Google
    | xox[abeoprs]-[0-9A-Za-z-]{10,255}                      # Slack
    | hf_[A-Za-z]{30,60}                                     # Hugging Face
    | npm_[0-9A-Za-z]{36}
    | eyJ[0-9A-Za-z_-]{10,2048}\.eyJ[0-9A-Za-z_-]{10,8192}\.[0-9A-Za-z_-]{10,2048}  # JSON Web Token
    )(?![0-9A-Za-z_])
    | -----BEGIN\ [A-Z ]{0,40}PRIVATE\ KEY(?:\ BLOCK)?-----
      [\s\S]{0,20000}?(?:-----END\ [A-Z ]{0,40}PRIVATE\ KEY(?:\ BLOCK)?-----|\Z)
    """,
    re.VERBOSE,
)


def secrets(text: str) -> Iterator[tuple[int, int]]:
    """(Begin, end) of each key in a text."""
    if any(map(text.__contains__, _HINTS)):
        for found in _SECRET.finditer(text):
            yield found.span()
