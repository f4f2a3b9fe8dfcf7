"""Position embedding against its formula written out one value at a time."""

import math

import numpy as np
import pytest

from mae.model.pos_embed import sincos_2d


def value(dim, row, column, channel):
    """First half from the column, second from the row; in each, sin then cos of position / 10000^(k / (D/4))."""
    quarter = dim // 4
    position = column if channel < 2 * quarter else row
    part, k = divmod(channel % (2 * quarter), quarter)
    angle = position / 10000 ** (k / quarter)
    return math.cos(angle) if part else math.sin(angle)


@pytest.mark.parametrize(("dim", "rows", "columns"), [(8, 3, 3), (96, 7, 7), (768, 14, 14), (16, 2, 5)])
def test_every_value(dim, rows, columns):
    found = sincos_2d(dim, (rows, columns))
    assert found.shape == (1, 1 + rows * columns, dim)
    assert found.dtype == np.float32
    assert not found[0, 0].any()  # cls row
    expected = [[value(dim, p // columns, p % columns, c) for c in range(dim)] for p in range(rows * columns)]
    np.testing.assert_allclose(found[0, 1:], expected, atol=1e-6)
