"""Where the non-zero weights of a layer are."""

import math
from dataclasses import InitVar, dataclass, field

import torch
from torch import Tensor

_INT32 = 2**31 - 1


@dataclass(frozen=True, eq=False, repr=False)
class SparseStructure:
    """The positions of the weights that a sparse layer has, by rows and by columns.

    The weight of shape ``shape`` is a matrix with a row for every output and, flattened, a column for everything else.
    Its values are in row-major order, ``weight[mask]``. Build it by :meth:`from_mask`.

    Args:
        shape: Of the dense weight, ``(out_features, in_features)`` or
            ``(out_channels, in_channels / groups, kernel_height, kernel_width)``.
        row_first: ``(rows + 1,)``, int32: the values of row r are those from ``row_first[r]`` to ``row_first[r + 1]``.
        column: ``(nnz,)``, int32, of every value; ascending in each row.
        column_first: ``(columns + 1,)``, int32, likewise for columns.
        row: ``(nnz,)``, int32, of every value in the order of columns; ascending in each column.
        origin: ``(nnz,)``, int32, the place of that value in the order of rows.
        trusted: Whether this package made the indices. Others are checked: a kernel would follow them anywhere.

    Raises:
        TypeError: Indices that are not int32.
        ValueError: Indices that are no structure of a weight of that shape.
    """

    shape: tuple[int, ...]
    row_first: Tensor
    column: Tensor
    column_first: Tensor
    row: Tensor
    origin: Tensor
    trusted: InitVar[bool] = field(default=False, kw_only=True)
    # Holds the flat index once it has been asked for; a compiler sees the list and no lock.
    _flat_index: list[Tensor] = field(default_factory=list, init=False)

    def __post_init__(self, trusted: bool) -> None:
        if not trusted:
            _check(self)

    def __repr__(self) -> str:
        return f"SparseStructure(shape={self.shape}, nnz={self.nnz})"

    @classmethod
    def from_mask(cls, mask: Tensor) -> "SparseStructure":
        """The structure of the weights where ``mask`` is True.

        Args:
            mask: Bool, the shape of the weight: two or four dimensions.

        Raises:
            TypeError: The mask is not bool.
            ValueError: It has another number of dimensions, or more entries than 32-bit indices can count.
        """
        if mask.dtype is not torch.bool:
            raise TypeError(f"mask of type {mask.dtype}: give a bool mask, for example weight != 0")
        if mask.dim() not in (2, 4):
            raise ValueError(
                f"mask of shape {tuple(mask.shape)}: sparse weights are (out_features, in_features) or "
                "(out_channels, in_channels / groups, kernel_height, kernel_width)"
            )
        if not mask.numel():
            raise ValueError(f"mask of shape {tuple(mask.shape)} has no entries: a weight has at least one")
        if mask.numel() > _INT32:
            raise ValueError(f"mask of shape {tuple(mask.shape)} has more entries than 32-bit indices can count")
        matrix = mask.reshape(mask.shape[0], -1)
        row, column = matrix.nonzero(as_tuple=True)
        origin = torch.argsort(column, stable=True)
        return cls(
            tuple(mask.shape),
            _firsts(matrix.sum(1)),
            column.to(torch.int32),
            _firsts(matrix.sum(0)),
            row[origin].to(torch.int32),
            origin.to(torch.int32),
            trusted=True,
        )

    @property
    def nnz(self) -> int:
        """Number of weights."""
        return self.column.numel()

    @property
    def is_full(self) -> bool:
        """Whether no weight is absent."""
        return self.nnz == math.prod(self.shape)

    @property
    def density(self) -> float:
        """Fraction of the dense weight that is there."""
        return self.nnz / max(1, math.prod(self.shape))

    @property
    def flat_index(self) -> Tensor:
        """``(nnz,)``, int64: the place of every value in the flattened weight."""
        if self._flat_index:
            return self._flat_index[0]
        counts = self.row_first.diff()
        rows = torch.arange(self.shape[0], device=counts.device)
        rows = torch.repeat_interleave(rows, counts, output_size=self.nnz)
        index = rows * math.prod(self.shape[1:]) + self.column
        if not torch.compiler.is_compiling():
            self._flat_index.append(index)
        return index

    def mask(self) -> Tensor:
        """The bool mask, of the shape of the weight."""
        ones = torch.ones(self.nnz, dtype=torch.bool, device=self.column.device)
        return self.to_dense(ones)

    def to_dense(self, values: Tensor) -> Tensor:
        """The dense weight with ``values`` ``(nnz,)`` where the mask is True, and zeros elsewhere."""
        if self.is_full:
            return values.reshape(self.shape)
        dense = values.new_zeros(math.prod(self.shape))
        return dense.index_put((self.flat_index,), values).reshape(self.shape)

    def from_dense(self, weight: Tensor) -> Tensor:
        """The values ``(nnz,)`` of a dense weight, those where the mask is True."""
        return weight.flatten() if self.is_full else weight.flatten()[self.flat_index]

    def to(self, device: torch.device) -> "SparseStructure":
        """The same structure on a device."""
        if self.column.device == device:
            return self
        return SparseStructure(self.shape, *(index.to(device) for index in self.tensors()), trusted=True)

    def tensors(self) -> tuple[Tensor, Tensor, Tensor, Tensor, Tensor]:
        """The five index tensors, in the order of the fields."""
        return self.row_first, self.column, self.column_first, self.row, self.origin


def _check(structure: SparseStructure) -> None:
    rows, columns = structure.shape[0], math.prod(structure.shape[1:])
    for index in structure.tensors():
        if index.dtype is not torch.int32:
            raise TypeError(f"indices of type {index.dtype}: those of a structure are int32")
    row_first, column, column_first, row, origin = (index.long() for index in structure.tensors())
    by_rows = _places(row_first, column, rows, columns)
    by_columns = _places(column_first, row, columns, rows)
    if by_rows is None or by_columns is None or origin.shape != column.shape or not _are_below(origin, len(column)):
        fits = False
    else:
        fits = torch.equal(by_columns % rows * columns + by_columns // rows, by_rows[origin])
    if not fits:
        raise ValueError(
            f"indices of {structure.nnz} weights are no structure of a weight of shape {structure.shape}: build it by "
            "SparseStructure.from_mask(mask)"
        )


def _places(first: Tensor, second: Tensor, lines: int, length: int) -> Tensor | None:
    """The places of weights line by line; None if they do not ascend, or not all are inside."""
    if first.shape != (lines + 1,) or second.dim() != 1 or not _are_below(second, length):
        return None
    counts = first.diff()
    if first[0] != 0 or first[-1] != len(second) or bool((counts < 0).any()):
        return None
    places = torch.arange(lines, device=second.device).repeat_interleave(counts) * length + second
    return places if bool((places.diff() > 0).all()) else None


def _are_below(index: Tensor, end: int) -> bool:
    return bool(((index >= 0) & (index < end)).all())


def _firsts(counts: Tensor) -> Tensor:
    return torch.cat([counts.new_zeros(1), counts.cumsum(0)]).to(torch.int32)
