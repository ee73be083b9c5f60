"""The checkpoint that was trained on CIFAR-10: what it records, and its accuracy through the whole path.

NEONEXT_PICTURES names a folder with `cifar10_jpeg.tar.xz`: class folders `train/` and `test/` of JPEG images.
"""

from __future__ import annotations

import os
import tarfile
from collections import defaultdict
from pathlib import Path

import numpy as np
import pytest

from neonext_ms import Preprocessing, export_checkpoint, load_checkpoint, load_images, open_runtime
from neonext_ms.export.tolerances import tolerance

PICTURES = os.environ.get("NEONEXT_PICTURES")
PER_CLASS = 20


@pytest.fixture
def checkpoint(data) -> Path:
    return data / "cifar10_64.safetensors"


def test_the_checkpoint_needs_no_options(checkpoint):
    loaded = load_checkpoint(checkpoint)
    assert loaded.dtypes == ["float16"] and checkpoint.stat().st_size <= 3e6 and loaded.notes == []
    assert loaded.metadata["labels"][:2] == ["airplane", "automobile"] and len(loaded.metadata["labels"]) == 10
    assert loaded.architecture.shifts == (1, 1, 0, 0) and loaded.metadata["image_size"] == [64, 64]


@pytest.mark.parametrize("gelu", ["tanh", "fast"])
def test_approximations_of_gelu_pass_on_a_deep_network(checkpoint, tmp_path, gelu):
    deviation = export_checkpoint(checkpoint, output=tmp_path, gelu=gelu).parity["onnx"]
    assert 1e-4 < deviation.relative_l2 < deviation.tolerance == tolerance("float32", gelu)


@pytest.fixture(scope="module")
def pictures(tmp_path_factory) -> dict[str, list[str]]:
    """The first test images of each class, by class."""
    if not PICTURES:
        pytest.skip("NEONEXT_PICTURES is not set")
    folder, found = tmp_path_factory.mktemp("cifar10"), defaultdict(list)
    with tarfile.open(Path(PICTURES) / "cifar10_jpeg.tar.xz") as archive:
        for member in archive:
            part, label, name = Path(member.name).parts[-3:] if member.isfile() else ("", "", "")
            if part == "test" and len(found[label]) < PER_CLASS:
                path = folder / f"{label}-{name}"
                path.write_bytes(archive.extractfile(member).read())
                found[label].append(str(path))
    return found


def test_every_file_gives_the_same_classes(pictures, checkpoint, tmp_path):
    report = export_checkpoint(checkpoint, targets=["onnx", "mindir"], output=tmp_path)
    chosen = []
    for path in (checkpoint, report.files["onnx"], report.files["mindir"]):
        with open_runtime(path) as model:
            files = [name for label in model.metadata["labels"] for name in pictures[label]]
            preprocessing = Preprocessing.from_dict(model.metadata["preprocessing"])
            images = load_images(files, preprocessing, model.input_size)
            chosen.append(model.run(images).argmax(axis=1))
    expected = np.repeat(np.arange(10), PER_CLASS)
    assert (chosen[0] == expected).mean() >= 0.8
    np.testing.assert_array_equal(chosen[1], chosen[0])
    np.testing.assert_array_equal(chosen[2], chosen[0])
