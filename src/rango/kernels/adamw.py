"""AdamW over the rows of tables: the fast twin of numerics/adamw.py, one pass over memory.

Results do not depend on the number of threads.
"""

from __future__ import annotations

import torch
from torch import Tensor

from rango.kernels.dispatch import written
from rango.kernels.rows import address_rows, native_rows
from rango.numerics import adamw as reference


def adamw_(
    parameters: Tensor,
    gradients: Tensor,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
    steps: Tensor,
    rates: Tensor,
    *,
    beta1: float,
    beta2: float,
    eps: float,
    weight_decay: float,
) -> None:
    """One step, in place, of tables (n, P); gradients are only read. Rows may lie apart.

    steps: (n,), each row's count t, of which this is the step (so at least 1).
    rates: lr, broadcast to (n, P): one for all, (n, 1) one a row, (1, P) or (n, P) one an element.
    With ε = 0 an element that never had a gradient is only decayed.
    """
    tables = (parameters, gradients, exp_avg, exp_avg_sq)
    rows, size = parameters.shape
    module = native_rows(*tables)
    if (
        module is None
        or any(table.shape != parameters.shape for table in tables)
        or steps.shape != (rows,)
        or not (steps.is_cpu and rates.is_cpu)
        or torch.broadcast_shapes(rates.shape, (rows, size)) != (rows, size)
    ):
        reference.adamw_(
            *tables,
            steps,
            rates,
            beta1=beta1,
            beta2=beta2,
            eps=eps,
            weight_decay=weight_decay,
        )
        return
    rates = torch.atleast_2d(rates.to(torch.float64)).contiguous()
    bias1, bias2 = reference.bias_corrections(steps, beta1, beta2)
    module.adamw(
        *(address_rows(module, table) for table in tables),
        rows,
        size,
        bias1.data_ptr(),
        bias2.data_ptr(),
        rates.data_ptr(),
        rates.shape[1] if rates.shape[0] > 1 else 0,
        int(rates.shape[1] > 1),
        beta1,
        beta2,
        eps,
        weight_decay,
        torch.get_num_threads(),
    )
    written(parameters, exp_avg, exp_avg_sq)


def row_norms(table: Tensor) -> Tensor:
    """The Euclidean norm of each row of a table: (n, P) -> (n,)."""
    module = native_rows(table)
    if module is None:
        return reference.row_norms(table)
    norms = table.new_empty(len(table))
    module.row_norms(
        norms.data_ptr(),
        address_rows(module, table),
        *table.shape,
        torch.get_num_threads(),
    )
    return norms
