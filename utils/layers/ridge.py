"""Ridge regressions of many outputs on the same inputs, from sums that are added up batch by batch."""

from __future__ import annotations

from collections.abc import Hashable, Mapping

import torch

from utils.models import onednn

BLOCK = 256  # columns of the products of inputs that are computed at once


class Ridge:
    """Sums over rows, and the regressions that follow from them.

    Products of a batch are computed in float32 and added up in float64. Memory does not grow with the rows. The inputs
    are taken from the mean of the first batch: where all rows are nearly the same, rounding would else hide how they
    vary.

    Parameters
    ----------
    n_inputs : int
    device : device
    """

    def __init__(self, n_inputs: int, device: torch.device | str):
        # The last row is of the intercept. Entries above the diagonal have no meaning.
        self._gram = torch.zeros(n_inputs + 1, n_inputs + 1, dtype=torch.float64, device=device)
        self._cross: dict[Hashable, torch.Tensor] = {}
        self._middle: torch.Tensor | None = None

    def add(
        self, inputs: torch.Tensor, outputs: Mapping[Hashable, torch.Tensor], scale: torch.Tensor | None = None
    ) -> None:
        """Add rows.

        Parameters
        ----------
        inputs : Tensor of float32, shape (n_rows, n_inputs)
        outputs : mapping of Tensor of float32, shape (n_rows, n_outputs)
            Of each regression; the same names in every call.
        scale : Tensor, shape (n_rows, 1), optional
            The error of a row counts in units of its scale. Default: 1.
        """
        scale = inputs.new_ones(len(inputs), 1) if scale is None else scale
        self._middle = inputs.mean(dim=0) if self._middle is None else self._middle
        columns = torch.cat([(inputs - self._middle) / scale, 1 / scale], dim=1).T.contiguous()
        for start in range(0, len(columns), BLOCK):
            block = slice(start, start + BLOCK)
            self._gram[start:, block] += onednn.linear(columns[start:], columns[block]).double()
        for name, output in outputs.items():
            sums = onednn.linear(columns, (output / scale).T.contiguous()).double()
            self._cross[name] = self._cross[name] + sums if name in self._cross else sums

    def solve(self, penalty: float, toward: torch.Tensor | None = None) -> dict[Hashable, torch.Tensor]:
        """Return the weights of each regression.

        Parameters
        ----------
        penalty : float
            On the square of the change of a weight, relative to the mean variance of an input.
        toward : Tensor, shape (n_inputs, n_outputs), optional
            The weights that are the answer of an infinite penalty. Default: 0.

        Returns
        -------
        dict of Tensor of float64, shape (n_inputs + 1, n_outputs)
            Weights, and in the last row the intercept, which is not penalised.
        """
        n_rows, total = self._gram[-1, -1], self._gram[-1, :-1]
        mean = total / n_rows
        centred = self._gram[:-1, :-1] - torch.outer(total, mean)
        diagonal = centred.diagonal()
        weight = penalty * diagonal.mean().clamp(min=torch.finfo(torch.float64).tiny)
        diagonal += weight
        factor = torch.linalg.cholesky(centred)  # reads the lower triangle
        solved = {}
        for name, sums in self._cross.items():
            wanted = sums[:-1] - torch.outer(mean, sums[-1])
            if toward is not None:
                wanted += weight * toward.double()
            slope = torch.cholesky_solve(wanted, factor)
            solved[name] = torch.cat([slope, (sums[-1] / n_rows - (self._middle + mean) @ slope)[None]])
        return solved
