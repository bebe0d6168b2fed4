"""sherpa-onnx in a process of its own, which it ends when it does not like a model.

FOLDER KIND WAVE.npy -> a line of JSON: the tokens of each row.
"""

from __future__ import annotations

import json
import sys
from pathlib import Path

import numpy


def main() -> None:
    import sherpa_onnx

    folder, kind, waves = Path(sys.argv[1]), sys.argv[2], numpy.load(sys.argv[3])
    tokens = str(folder / "tokens.txt")
    if kind == "ctc":
        recognizer = sherpa_onnx.OfflineRecognizer.from_nemo_ctc(str(folder / "model.onnx"), tokens=tokens)
    elif kind == "canary":
        recognizer = sherpa_onnx.OfflineRecognizer.from_nemo_canary(
            str(folder / "encoder.onnx"), str(folder / "decoder.onnx"), tokens=tokens
        )
    else:
        graphs = [str(folder / name) for name in ("encoder-model.onnx", "decoder.onnx", "joiner.onnx")]
        recognizer = sherpa_onnx.OfflineRecognizer.from_transducer(
            *graphs, tokens=tokens, model_type="nemo_transducer"
        )
    found = []
    for wave in waves:
        stream = recognizer.create_stream()
        stream.accept_waveform(16_000, wave)
        recognizer.decode_stream(stream)
        found.append(stream.result.tokens)
    print(json.dumps(found))


if __name__ == "__main__":
    main()
