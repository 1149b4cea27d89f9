"""Makes the sample clips in tests/data: needs the programs flite and espeak-ng.

    python -m tests.standins.make_clips

The clips are synthetic speech in the rates, layouts and formats that users bring. They are
committed, and made anew only when one is added: codecs change from release to release.
"""

import subprocess
import tempfile
from pathlib import Path

import numpy as np
import soundfile
import soxr

HERE = Path(__file__).parents[1] / "data"
ENGLISH = "The quality of synthetic speech is judged by people, and people are expensive."
GERMAN = "Am Abend legte sich der Wind, und über dem Hafen wurde es still."
FRENCH = "Le petit train traverse la plaine avant le lever du soleil."

# file, program, voice, text, rate, channels, subtype
CLIPS = [
    ("flite_slt_16k_mono.wav", "flite", "slt", ENGLISH, 16_000, 1, "PCM_16"),
    ("flite_rms_48k_stereo.flac", "flite", "rms", ENGLISH, 48_000, 2, "PCM_16"),
    ("flite_awb_22k_mono.ogg", "flite", "awb", ENGLISH, 22_050, 1, "VORBIS"),
    ("flite_kal_8k_mono.wav", "flite", "kal", ENGLISH, 8_000, 1, "PCM_16"),
    ("espeak_en_22k_mono.flac", "espeak-ng", "en-gb", ENGLISH, 22_050, 1, "PCM_16"),
    ("espeak_de_48k_mono.mp3", "espeak-ng", "de", GERMAN, 48_000, 1, "MPEG_LAYER_III"),
    ("espeak_fr_16k_stereo.ogg", "espeak-ng", "fr", FRENCH, 16_000, 2, "VORBIS"),
]


def speak(program: str, voice: str, text: str) -> tuple[np.ndarray, int]:
    with tempfile.TemporaryDirectory() as directory:
        wav = str(Path(directory, "speech.wav"))
        arguments = {
            "flite": ["flite", "-voice", voice, "-t", text, "-o", wav],
            "espeak-ng": ["espeak-ng", "-v", voice, "-s", "150", "-w", wav, text],
        }
        subprocess.run(arguments[program], check=True)
        speech, rate_hz = soundfile.read(wav)
        return speech, rate_hz


def main() -> None:
    for name, program, voice, text, rate_hz, channels, subtype in CLIPS:
        speech, spoken_hz = speak(program, voice, text)
        speech = soxr.resample(speech, spoken_hz, rate_hz, "HQ")
        speech *= 0.6 / np.abs(speech).max()
        if channels == 2:
            # The second channel hears the voice later and softer, as a second microphone would.
            delayed = np.concatenate([np.zeros(rate_hz // 1000), speech])[: len(speech)]
            speech = np.stack([speech, 0.7 * delayed], axis=1)
        soundfile.write(HERE / name, speech, rate_hz, subtype=subtype)


if __name__ == "__main__":
    main()
