"""Constants that NeMo keeps in a speech model's state dict and Hugging Face computes when it loads.

Written again on the way to NeMo, in float32. The mel filters agree to the bit with what NeMo stores;
torch's float32 cosine and sine are not always correctly rounded, as these are, so windows and positions
may differ from torch's in the last bit.
"""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Any, Final

if TYPE_CHECKING:
    import numpy

_LINEAR_HZ: Final = 200 / 3  # per mel, below the break
_BREAK_HZ: Final = 1000.0


def hann_window(length: int) -> numpy.ndarray[Any, Any]:
    """The symmetric Hann window, [length]. Source: ``torch.hann_window(length, periodic=False)``."""
    import numpy

    if length == 1:
        return numpy.ones(1, numpy.float32)
    angle = numpy.arange(length, dtype=numpy.float32) * numpy.float32(2 * math.pi / (length - 1))
    cosine = numpy.cos(angle.astype(numpy.float64)).astype(numpy.float32)
    return numpy.float32(0.5) - numpy.float32(0.5) * cosine


def mel_filters(sample_rate: int, n_fft: int, n_mels: int) -> numpy.ndarray[Any, Any]:
    """Slaney's mel filters from 0 to sample_rate / 2, each of area 1: [n_mels, n_fft // 2 + 1].

    Below 1 kHz the scale is linear, above it 27 mels are a factor of 6.4. Source: ``librosa.filters.mel``,
    which NeMo calls (nemo/collections/asr/parts/preprocessing/features.py).
    """
    import numpy

    step = numpy.log(6.4) / 27.0
    break_mel = _BREAK_HZ / _LINEAR_HZ
    top = sample_rate / 2
    top_mel = break_mel + numpy.log(top / _BREAK_HZ) / step if top >= _BREAK_HZ else top / _LINEAR_HZ
    mels = numpy.linspace(0.0, top_mel, n_mels + 2)
    edges = _LINEAR_HZ * mels
    above = mels >= break_mel
    edges[above] = _BREAK_HZ * numpy.exp(step * (mels[above] - break_mel))
    distances = edges[:, None] - numpy.fft.rfftfreq(n_fft, 1.0 / sample_rate)[None, :]
    widths = numpy.diff(edges)[:, None]
    rising, falling = -distances[:-2] / widths[:-1], distances[2:] / widths[1:]
    triangles = numpy.maximum(0, numpy.minimum(rising, falling)).astype(numpy.float32)
    areas = (2.0 / (edges[2:] - edges[:-2]))[:, None]
    filters: numpy.ndarray[Any, Any] = (triangles * areas).astype(numpy.float32)
    return filters


def sinusoids(length: int, hidden_size: int) -> numpy.ndarray[Any, Any]:
    """Fixed positions over sqrt(hidden_size), sine and cosine of a frequency side by side:
    [length, hidden_size]. Source: ``FixedPositionalEncoding`` of
    nemo/collections/asr/modules/transformer/transformer_modules.py."""
    import numpy

    single = numpy.float32
    exponents = numpy.arange(0, hidden_size, 2, dtype=single) * single(-math.log(10000.0) / hidden_size)
    frequencies = numpy.exp(exponents.astype(numpy.float64)).astype(single)
    angles = (numpy.arange(length, dtype=single)[:, None] * frequencies[None, :]).astype(numpy.float64)
    table = numpy.empty((length, hidden_size), single)
    table[:, 0::2], table[:, 1::2] = numpy.sin(angles), numpy.cos(angles)
    table /= single(math.sqrt(hidden_size))
    return table
