"""`jaxcolor.load`: which model, on which device."""

import jax
import numpy as np
import pytest

import jaxcolor
from jaxcolor.errors import UserError


def test_what_is_no_model_or_device_is_a_user_error(trained):
    for model in (5, b'ltbc-lite', 'a\0b'):
        with pytest.raises(UserError, match='a model is a name or a path, not|cannot be read'):
            jaxcolor.load(model)
    for name in ('cpu:99', 'abacus', 'cpu:x', 'cpu:-1', 'cpu:', 0):
        with pytest.raises(UserError, match=f'there is no device {name!r} here; there is cpu'):
            jaxcolor.load(trained, device=name)


@pytest.mark.slow
def test_devices(trained):
    last = jaxcolor.load(trained, device=f'cpu:{len(jax.devices()) - 1}')
    assert {array.device for array in jax.tree.leaves(last.network.state.weights())} == {jax.devices()[-1]}
    photo = np.arange(2240, dtype=np.uint8).reshape(40, 56)
    np.testing.assert_array_equal(last(photo), jaxcolor.load(trained)(photo))
