"""Norms of weights are folded; layers ahead of a pixel shuffle are reordered."""

import numpy as np
import pytest

from jaxcolor.errors import UserError
from jaxcolor.weights.published.layers import drop_pixel_axes, fold_norms, order_by_pixel, without_prefix


def test_spectral_norm_divides_by_the_stored_estimate_of_the_largest_singular_value():
    weight = np.random.default_rng(0).normal(size=(4, 3, 2, 2))
    u, values, v = np.linalg.svd(weight.reshape(4, 12))
    arrays = {'a.weight_orig': weight, 'a.weight_u': u[:, 0], 'a.weight_v': v[0], 'a.bias': np.ones(4), 'b': np.zeros(2)}
    folded = fold_norms(arrays, 'error')
    assert set(folded) == {'a.weight', 'a.bias', 'b'}
    np.testing.assert_allclose(folded['a.weight'], weight / values[0], rtol=1e-12)
    np.testing.assert_allclose(np.linalg.svd(folded['a.weight'].reshape(4, 12))[1][0], 1, rtol=1e-12)


def test_weight_norm_gives_each_kernel_the_stored_length():
    direction = np.random.default_rng(0).normal(size=(4, 3, 1, 1))
    lengths = np.array([1, 2, 3, 4.0]).reshape(4, 1, 1, 1)
    folded = fold_norms({'a.weight_v': direction, 'a.weight_g': lengths}, 'error')
    assert set(folded) == {'a.weight'}
    np.testing.assert_allclose(np.linalg.norm(folded['a.weight'][..., 0, 0], axis=1), [1, 2, 3, 4], rtol=1e-12)
    np.testing.assert_allclose(folded['a.weight'][0] * np.linalg.norm(direction[0]), direction[0], rtol=1e-12)


@pytest.mark.parametrize(
    ('arrays', 'words'),
    [
        ({'a.weight_orig': np.ones((2, 3)), 'a.weight_u': np.ones(2)}, 'a.weight_v is missing'),
        ({'a.weight_orig': np.ones((2, 3)), 'a.weight_v': np.ones(3)}, 'a.weight_u is missing'),
        (
            {'a.weight_orig': np.ones((2, 3)), 'a.weight_u': np.ones(3), 'a.weight_v': np.ones(3)},
            r'a.weight_u is of shape \(3,\), not of shape \(2,\)',
        ),
        ({'a.weight_v': np.ones((2, 3))}, 'a.weight_g is missing'),
    ],
)
def test_an_incomplete_norm_is_refused(arrays, words):
    with pytest.raises(UserError, match=f'it does not fit: {words}'):
        fold_norms(arrays, 'it does not fit')


def test_outputs_are_reordered_from_channel_row_column_to_row_column_channel():
    names = [f'{C} {row} {column}' for C in range(3) for row in range(2) for column in range(2)]
    arrays = {'shuf.weight': np.array(names).reshape(12, 1), 'other': np.arange(4)}
    order_by_pixel(arrays, 'shuf.', 2)
    expected = [f'{C} {row} {column}' for row in range(2) for column in range(2) for C in range(3)]
    assert arrays['shuf.weight'].shape == (12, 1)
    assert arrays['shuf.weight'].ravel().tolist() == expected
    assert arrays['other'].tolist() == [0, 1, 2, 3]


def test_kernels_of_one_pixel_become_dense_and_wrappers_prefixes_are_removed():
    arrays = without_prefix({'module.a': np.ones((2, 3, 1, 1)), 'module.b': np.ones((2, 3, 3, 3))}, 'b')
    drop_pixel_axes(arrays, ['a', 'b', 'c'])
    assert {name: array.shape for name, array in arrays.items()} == {'a': (2, 3), 'b': (2, 3, 3, 3)}
