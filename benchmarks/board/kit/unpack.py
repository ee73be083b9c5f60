#!/usr/bin/env python3
"""Put the files of a kit together that are stored in parts: the ONNX files, and the inputs. run.py starts it.

The weights are there once for all ONNX files, in float16, to which ATC rounds them anyway. Their low bytes and their
high bytes are compressed apart. Of matrices that are mostly zeros the other values are stored, and a bit for each
place.
"""

import json
import sys
import zlib
from pathlib import Path

import numpy as np

POOL = ("weights_low.z", "weights_high.z", "weights_sparse.z", "weights_places.z")


def inflated(path):
    return zlib.decompress(path.read_bytes())


def read_pool(folder):
    """Return the weights, the values of sparse matrices, and their places."""
    low, high, sparse, places = (np.frombuffer(inflated(folder / "data" / name), np.uint8) for name in POOL)
    dense = np.stack([low, high], 1).view("<f2").ravel()
    return dense.astype("<f4"), sparse.view("<f2").astype("<f4"), np.unpackbits(places).astype(bool)


def onnx_parts(folder, model, pool):
    """Yield the parts of an ONNX file: pieces of what is its own, each followed by a tensor of the pool."""
    (dense, sparse, places), own, place = pool, inflated(folder / model["parts"]), 0
    for length, start, count, *spread in model["segments"]:
        yield own[place : place + length]
        place += length
        tensor = dense[start : start + count]
        if spread:
            first, size, columns = spread
            tensor = np.zeros(size, "<f4")
            tensor[places[first : first + size]] = sparse[start : start + count]
            tensor = tensor.reshape(-1, columns).T
        yield tensor.tobytes()


def read_frames(folder, images):
    """Return the frames, uint8 (N, height, width, 3): they are stored as the differences along their rows."""
    steps = np.frombuffer(inflated(folder / "data" / "frames.z"), np.uint8).reshape(images["shape"])
    return np.add.accumulate(steps, 2, np.uint8)


def normalized(frames, images):
    """Return the inputs of the network, float32 (N, 3, H, W): the centres of the frames, normalized."""
    top, left, height, width = images["crop"]
    pixels = frames[:, top : top + height, left : left + width].astype(np.float32)
    mean, std = (255 * np.asarray(images[name], np.float32) for name in ("mean", "std"))
    return np.ascontiguousarray(((pixels - mean) / std).transpose(0, 3, 1, 2))


def main(folder):
    """Write the ONNX files, and the inputs as arrays and as files of raw bytes, into work/."""
    kit = json.loads((folder / "kit.json").read_text(encoding="utf-8"))
    pool, inputs = read_pool(folder), folder / "work" / "inputs"
    for place in (inputs, folder / "work" / "onnx"):
        place.mkdir(parents=True, exist_ok=True)
    for model in kit["models"].values():
        if model["segments"]:
            with open(str(folder / model["onnx"]), "wb") as file:
                file.writelines(onnx_parts(folder, model, pool))
    frames = read_frames(folder, kit["images"])
    for name, array in (("frames", frames), ("float32", normalized(frames, kit["images"]))):
        np.save(str(inputs / (name + ".npy")), array)
        for number, part in enumerate(array):
            part.tofile(str(inputs / ("%s_%03d.bin" % (name, number))))


if __name__ == "__main__":
    try:
        main(Path(__file__).resolve().parent)
    except (OSError, ValueError, KeyError, zlib.error) as error:
        sys.exit("error: the kit cannot be unpacked (%s)" % error)
