import librosa
import numpy as np
import pytest

from mosrt.mel.power import mel_filterbank


@pytest.mark.filterwarnings("ignore:Empty filters detected:UserWarning")
@pytest.mark.parametrize(
    ("rate_hz", "n_fft", "n_mels", "f_min_hz", "f_max_hz"),
    [
        (16_000, 4096, 512, 0.0, 8000.0),
        (16_000, 512, 80, 0.0, 8000.0),
        (16_000, 321, 120, 20.0, 7600.0),
        (48_000, 2048, 128, 900.0, 1100.0),
    ],
)
def test_equals_librosa(
    rate_hz: int, n_fft: int, n_mels: int, f_min_hz: float, f_max_hz: float
) -> None:
    ours = mel_filterbank(
        sample_rate_hz=rate_hz, n_fft=n_fft, n_mels=n_mels, f_min_hz=f_min_hz, f_max_hz=f_max_hz
    )
    theirs = librosa.filters.mel(  # type: ignore[attr-defined]  # lazily loaded
        sr=rate_hz, n_fft=n_fft, n_mels=n_mels, fmin=f_min_hz, fmax=f_max_hz, dtype=np.float64
    )
    # Both in double precision; a filter's slope divides by small differences of frequencies.
    np.testing.assert_allclose(ours, theirs, rtol=1e-9, atol=1e-12)
