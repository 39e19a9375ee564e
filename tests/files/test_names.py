from __future__ import annotations

import pytest

from rango.errors import AdapterError
from rango.files.names import adapter_name


@pytest.mark.parametrize("name", ["acme", "a", "0.5-b_c", "x" * 64])
def test_safe_names_pass(name: str) -> None:
    assert adapter_name(name) == name


@pytest.mark.parametrize(
    "name", ["", ".", "..", "a..b", "/etc", "a/b", "-a", "x" * 65, "é", "a\n", "a b", "\0"]
)
def test_unsafe_names_are_refused(name: str) -> None:
    with pytest.raises(AdapterError):
        adapter_name(name)
