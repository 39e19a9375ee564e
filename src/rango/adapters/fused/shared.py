"""Memory that the halves of all layers pass through, one after the other.

What no backward pass needs lies here, or the heap would be torn by it: large pieces that come and
go between those that stay.
"""

from __future__ import annotations

from rango.base.workspace import Workspace

narrow = Workspace()
"""What goes into the products: normed hidden states."""
inner = Workspace()
"""What comes from a half's inside, as its last product takes it."""
other = Workspace()
"""Its gradient."""
