"""The structure of a sparse weight against scipy's matrices."""

import numpy as np
import pytest
import scipy.sparse
import torch

from lightning_nobp.functional.sparse import SparseStructure


@pytest.mark.parametrize("density", [0.0, 0.1, 0.6, 1.0])
@pytest.mark.parametrize("shape", [(1, 1), (5, 8), (40, 3), (4, 3, 3, 2), (1, 6, 1, 1)])
def test_structures_are_those_of_scipy(shape, density):
    mask = torch.rand(shape) < density
    structure = SparseStructure.from_mask(mask)
    matrix = mask.reshape(shape[0], -1).numpy()
    rows, columns = scipy.sparse.csr_matrix(matrix), scipy.sparse.csc_matrix(matrix)
    # A matrix that holds the places of its values in the order of rows tells where columns have them from.
    numbered = scipy.sparse.csr_matrix((np.arange(rows.nnz), rows.indices, rows.indptr), rows.shape).tocsc()
    expected = rows.indptr, rows.indices, columns.indptr, columns.indices, numbered.data
    for actual, wanted in zip(structure.tensors(), expected, strict=True):
        assert actual.dtype is torch.int32
        assert np.array_equal(actual.numpy(), wanted)
    assert structure.nnz == mask.sum()
    assert structure.density == mask.double().mean()
    assert structure.is_full == mask.all()
    assert torch.equal(structure.flat_index, mask.flatten().nonzero()[:, 0])


@pytest.mark.parametrize("density", [0.0, 0.3, 1.0])
@pytest.mark.parametrize("shape", [(5, 8), (4, 3, 3, 2)])
def test_masks_and_dense_weights_come_back(shape, density):
    weight, mask = torch.randn(shape), torch.rand(shape) < density
    structure = SparseStructure.from_mask(mask)
    assert torch.equal(structure.mask(), mask)
    assert torch.equal(structure.from_dense(weight), weight[mask])
    assert torch.equal(structure.to_dense(weight[mask]), weight * mask)
    transposed = SparseStructure.from_mask(mask.transpose(0, 1))
    assert torch.equal(transposed.mask(), mask.transpose(0, 1))


@pytest.mark.parametrize(
    ("mask", "error", "message"),
    [
        (torch.ones(2, 3), TypeError, "mask of type torch.float32: give a bool mask"),
        (torch.ones(2, 3, 4, dtype=torch.bool), ValueError, r"mask of shape \(2, 3, 4\): sparse weights are"),
        (torch.zeros(1, 1, dtype=torch.bool).expand(2**16, 2**15), ValueError, "more entries than 32-bit indices"),
    ],
)
def test_a_wrong_mask_is_named(mask, error, message):
    with pytest.raises(error, match=message):
        SparseStructure.from_mask(mask)


def test_indices_of_ones_own_are_taken_if_they_are_a_structure():
    structure = SparseStructure.from_mask(torch.rand(5, 8) < 0.5)
    assert torch.equal(SparseStructure(structure.shape, *structure.tensors()).mask(), structure.mask())


@pytest.mark.parametrize(
    ("which", "place", "value"),
    [(0, 1, 9), (0, 0, 1), (1, 0, 8), (1, 0, -1), (1, 1, 0), (2, -1, 11), (3, 0, 5), (4, 0, 2**31 - 1), (4, 0, 1)],
)
def test_indices_that_a_kernel_would_follow_elsewhere_are_refused(which, place, value):
    """Out of range, twice, not ascending, or of rows that are not those of the columns."""
    structure = SparseStructure.from_mask(torch.ones(5, 2, dtype=torch.bool))
    indices = [index.clone() for index in structure.tensors()]
    indices[which][place] = value
    with pytest.raises(
        ValueError, match=r"indices of 10 weights are no structure of a weight of shape \(5, 2\): build"
    ):
        SparseStructure(structure.shape, *indices)


def test_indices_of_another_type_or_number_are_refused():
    shape, *indices = (5, 2), *SparseStructure.from_mask(torch.ones(5, 2, dtype=torch.bool)).tensors()
    with pytest.raises(TypeError, match=r"indices of type torch.int64"):
        SparseStructure(shape, *(index.long() for index in indices))
    with pytest.raises(ValueError, match="are no structure"):
        SparseStructure((2, 5), *indices)
    with pytest.raises(ValueError, match="are no structure"):
        SparseStructure(shape, *indices[:4], indices[4][:-1])
