"""The receptive field from the geometry against the outputs that a changed pixel really changes."""

from __future__ import annotations

import json

import numpy as np
import pytest

from neonext_ms.commands import info
from neonext_ms.export.evaluate import evaluate
from neonext_ms.export.graph import original_graph
from neonext_ms.models.architecture import make_architecture
from neonext_ms.models.initialization import initial_arrays
from neonext_ms.models.receptive_field import describe_fields, receptive_fields


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({"per_stage_layers": (1, 1, 1, 0), "kernel_spec": "3+2", "shifts": (1, 0, 1, 0)}, (72, 60)),
        ({"per_stage_layers": (2, 1, 0, 1), "kernel_spec": "4,2+5,3,2", "shifts": (2, 1, 0, 1), "downsample": "paper"},
         (56, 88)),
    ],
)  # fmt: skip
def test_exactly_the_pixels_of_the_field_change_an_output(options, size):
    architecture = make_architecture(num_classes=2, dims=(8, 12, 10, 10), **options)
    rng = np.random.RandomState(0)
    arrays = initial_arrays(architecture, rng=rng)
    graph = original_graph(architecture, arrays, size, True)
    images = np.repeat(rng.standard_normal((1, 3, *size)), 7, axis=0)
    patches = [tuple(rng.randint(side // 4) for side in size) for _ in range(6)]
    for image, (row, column) in zip(images[1:], patches, strict=True):
        image[:, 4 * row, 4 * column + 3] += 1
    values = evaluate(graph, images)
    for stage, name in enumerate(graph.outputs):
        fields = receptive_fields(architecture, size, stage)
        changed = np.abs(values[name][1:] - values[name][:1]).max(1) > 0
        for moved, (row, column) in zip(changed, patches, strict=True):
            np.testing.assert_array_equal(moved, fields[:, :, row, column])


def test_fields_of_one_block_are_the_blocks():
    options = {"per_stage_layers": (1, 0, 0, 0), "kernel_spec": "4", "shifts": (0,) * 4}
    first = describe_fields(make_architecture(**options), (64, 96))[0]
    assert first["map"] == [16, 24] and first["share"] == 256 / (64 * 96)
    assert first["pixels"] == {"smallest": 256, "median": 256, "largest": 256} and first["height"]["largest"] == 16
    options = {"per_stage_layers": (1, 0, 0, 0), "kernel_spec": "4", "shifts": (1,) * 4}
    shifted = describe_fields(make_architecture(**options), (64, 96))
    # Four blocks of 4x4, each moved by (1, 1): 16 + 3 * 7 patches where all lie on a diagonal, and up to 40 where the
    # grids of rows and columns are out of step and one of them lies beside it.
    assert shifted[0]["height"]["largest"] == 28 and shifted[0]["pixels"]["largest"] == 16 * 40
    fields = receptive_fields(make_architecture(**options), (64, 96), 0)
    assert fields[8, 8].sum() == 37 and fields[8, 9].sum() == 40


def test_the_command_compares_with_and_without_shifts(capsys):
    assert info.main(["neonext_t", "--image-size", "64", "--receptive-field", "--json"]) == 0
    fields = json.loads(capsys.readouterr().out)["receptive_field"]
    assert fields["shifts"] == [1, 1, 1, 0] and fields["with_shifts"][3]["share"] == 1
    assert fields["without_shifts"][0]["pixels"]["median"] < fields["with_shifts"][0]["pixels"]["median"]
    assert info.main(["neonext_t", "--image-size", "64", "--receptive-field"]) == 0
    assert "stage 1  16x16" in capsys.readouterr().out
    assert info.main(["--list", "--receptive-field"]) == 2
