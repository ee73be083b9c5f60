from __future__ import annotations

import json

import numpy as np
import pytest
from simulator import needs_simulator

from neonext_ms.benchmarks.latency import block_tables, blocks_command
from neonext_ms.benchmarks.latency.block_model import (
    FUSIONS,
    block_buffers,
    block_steps,
    block_times,
    task_time,
    weights_held,
)
from neonext_ms.benchmarks.latency.kernel_model import (
    block_diagonal_matmuls,
    depthwise,
    kernel_counts,
    kernel_time,
    memory_bound,
)
from neonext_ms.benchmarks.latency.unit_costs import GELU, Costs
from neonext_ms.common.errors import InputError, NeoNextError, UsageError
from neonext_ms.models.registry import model_config
from neonext_ms.ops.soc import soc
from neonext_ms.ops.spec import NeoCellSpec, first_input

P3, B3 = soc("Ascend310P3"), soc("Ascend910B3")
T = model_config("neonext_t.released_224").architecture


def _counts(*cores, by_instruction=None):
    return {
        "cores": [{"core": i, "pipes": pipes} for i, pipes in enumerate(cores)],
        "totals": {},
        "by_instruction": by_instruction or {},
    }


def test_a_kernel_takes_as_long_as_the_longest_pipe_of_its_slowest_core():
    counts = _counts(
        {"V": {"instructions": 10, "repeats": 1000}, "MTE2": {"instructions": 1, "bursts": 1, "bytes": 1140}},
        {"V": {"instructions": 5, "repeats": 10}, "MTE2": {"instructions": 1, "bursts": 1, "bytes": 228000}},
        by_instruction={"Mul": {"repeats": 505}, "MulAddDst": {"repeats": 505}},
    )
    made = kernel_time(counts, P3, Costs(launch_us=1.0))
    # 310P3: 1060 MHz, 114 bytes a cycle from the level-2 cache; half the repeats take one cycle, half two.
    assert made.predicted_pipes_us["V"] == pytest.approx((10 * 22 + 1000 * 1.5) / 1060)
    assert made.predicted_pipes_us["MTE2"] == pytest.approx((20 + 1 + 228000 / 114) / 1060)
    assert made.predicted_bound == "MTE2" and "memory" not in made.predicted_pipes_us
    assert made.predicted_us == pytest.approx(1.0 + made.predicted_pipes_us["MTE2"])
    assert kernel_time(counts, P3, Costs(launch_us=30.0)).predicted_bound == "launch"
    far = kernel_time(counts, P3, Costs(launch_us=0.0, l2_share=0.0))
    # Of the core that moves most, both directions together.
    assert far.predicted_pipes_us["memory"] == pytest.approx(228000 / 17 / 1060)
    assert far.predicted_us == pytest.approx((20 + 1 + 228000 / 17) / 1060)


def test_what_does_not_fit_the_level_2_cache_comes_from_memory():
    counts = _counts({"V": {"instructions": 1, "repeats": 1}, "MTE3": {"instructions": 1, "bytes": 9 << 20}})
    assert "memory" not in kernel_time(counts, P3).predicted_pipes_us
    assert "memory" in kernel_time(counts, P3, costs=Costs(l2_share=0.5)).predicted_pipes_us


def test_the_costs_order_as_their_names_say():
    counts = _counts({"V": {"instructions": 100, "repeats": 1000}}, by_instruction={"MulAddDst": {"repeats": 1000}})
    counts["by_instruction"]["Div"] = {"repeats": 10}
    costs = Costs()
    times = [kernel_time(counts, P3, each).predicted_us for each in (costs, costs.overlapping(), costs.hopeful())]
    assert times == sorted(times, reverse=True) and len(set(times)) == 3
    assert costs.hopeful().elementwise_cycles(*GELU) == 6 + 2 * 4
    assert costs.elementwise_cycles(1) == pytest.approx(1 + 22 / 128)


def test_counts_without_a_core_are_rejected():
    with pytest.raises(InputError, match="no core in them"):
        kernel_time({"cores": []}, P3)


def _lane_multiply_adds(spec, height, width):
    """The least that full lanes can do: the 16 channels of an instruction read the union of their taps."""

    def taps(kind, side, size_in, size_out):
        shifts = np.array([[shift] for *matrix, shift in kinds if (side, *matrix) == kind])
        first = first_input(np.arange(size_out), *kind[1:], shifts)
        return np.minimum(first.max(0) + kind[1], size_in).sum() - np.maximum(first.min(0), 0).sum()

    total = 0
    out_height, out_width = spec.output_size(height, width)
    for side, size_in, size_out, other in (("a", height, out_height, width), ("b", width, out_width, out_height)):
        axes = [getattr(group, f"axis_{side}") for group in spec.groups]
        channels = [(axis.k_in, axis.k_out, shift) for axis in axes for shift in axis.shifts.tolist()]
        for start in range(0, len(channels), 16):
            kinds = channels[start : start + 16]
            sizes = {(side, *matrix) for *matrix, _ in kinds}
            total += 16 * other * sum(taps(kind, side, size_in, size_out) for kind in sizes)
    return total


@needs_simulator
@pytest.mark.parametrize("device", [P3, B3], ids=lambda d: d.name)
def test_the_kernel_does_the_multiply_adds_of_full_lanes(device):
    """No fewer than those and, where the map fills its repeats, hardly more."""
    spec = NeoCellSpec([{"kernel": 4, "channels": 20, "shift": 1}, {"kernel": 4, "channels": 12, "shift": 0}])
    counts = kernel_counts(spec, 64, 64, 5, device)
    assert len(counts["cores"]) == device.vector_units + device.vector_cores_beside
    repeats = {name: each["repeats"] for name, each in counts["by_instruction"].items()}
    least = 5 * _lane_multiply_adds(spec, 64, 64)
    assert least <= 128 * (repeats["Mul"] + repeats["MulAddDst"]) <= 1.25 * least


@needs_simulator
@pytest.mark.parametrize("batch", [1, 8])
def test_repeats_of_released_t_stay_near_the_ideal(batch):
    """At most 1.5 times those with all lanes used for 2 k multiply-adds an element, over all NeoCells."""
    repeats = ideal = 0.0
    for stage, (height, width) in enumerate(T.maps((224, 224))):
        spec, blocks = T.stage_spec(stage), T.per_stage_layers[stage]
        repeats += blocks * kernel_counts(spec, height, width, batch, P3)["totals"]["V"]["repeats"]
        taps = sum(group.channels * (group.h_in + group.w_in) for group in spec.groups)
        ideal += blocks * batch * taps * height * width / 128
    assert repeats <= 1.5 * ideal


def test_the_memory_bound_counts_everything_once():
    spec = NeoCellSpec({"kernel": 7, "channels": 16})
    numbers = 2 * 16 * 14 * 14 * 3 + 2 * 49 * 16
    assert memory_bound(spec, 14, 14, 3, P3) == pytest.approx(numbers * 2 / (8 * 17 * 1060))


def test_alternatives_by_hand():
    spec = NeoCellSpec({"kernel": 7, "channels": 32})
    made = block_diagonal_matmuls(spec, 20, 20, 4, P3)
    # Two products of 32 x 32 x 32 for each of 128 maps: 8 tiles and a start each, on 8 cores.
    assert made.predicted_pipes_us["cube"] == pytest.approx(2 * 128 * (8 + 14) / 8 / 1060)
    assert made.launches == 2
    assert block_diagonal_matmuls(spec, 20, 20, 4, P3, transposed=True).launches == 4
    cube = depthwise(spec, 20, 20, 4, P3, "cube")
    assert cube.predicted_pipes_us["cube"] == pytest.approx(4 * 2 * 25 * 49 / 8 / 1060)
    vector = depthwise(spec, 20, 20, 4, P3, "V")
    assert vector.predicted_pipes_us["V"] == pytest.approx(4 * 2 * 50 * (1 + 48 * 2) / 8 / 1060)


def test_weights_stay_in_a_large_cache():
    assert not weights_held(T, P3, Costs()) and weights_held(T, B3, Costs())


@needs_simulator
@pytest.mark.parametrize("device", [P3, B3], ids=lambda d: d.name)
@pytest.mark.parametrize("batch", [1, 8])
def test_blocks(device, batch):
    for units, predicted in block_times(T, (224, 224), batch, device):
        assert list(predicted) == list(FUSIONS)
        assert predicted["unfused"].launches == 5
        # No fusion is faster than the busiest unit, and the fewest tasks never lose to the most.
        for made in predicted.values():
            assert made.predicted_us >= units["cube"]
        assert predicted["whole block"].predicted_us < predicted["unfused"].predicted_us
        assert predicted["GELU in fc_1"].predicted_us < predicted["unfused"].predicted_us


@needs_simulator
def test_a_fused_tensor_stays_on_the_core():
    steps = block_steps(T, 0, (56, 56), 8, P3, Costs())
    hidden = steps["fc_1"].writes["hidden"]
    assert hidden == 8 * 56 * 56 * 384 * 2 > P3.l2_bytes
    apart = task_time([steps["fc_1"]], P3, Costs()).predicted_pipes_us["memory"]
    pair = task_time([steps["fc_1"], steps["gelu"], steps["fc_2"]], P3, Costs()).predicted_pipes_us["memory"]
    weights = steps["fc_1"].weights / P3.memory_bytes_per_second * 1e6
    assert apart == pytest.approx(weights + hidden / P3.memory_bytes_per_second * 1e6)
    assert pair == pytest.approx(2 * weights)
    # Cube and vector on cores of their own: through the level-2 cache.
    split = task_time([steps["fc_1"], steps["gelu"], steps["fc_2"]], B3, Costs(), True).predicted_pipes_us["L2"]
    assert split > 2 * hidden / B3.l2_read_bytes_per_second * 1e6


@pytest.mark.parametrize("size", ["t", "s", "b", "l"])
@pytest.mark.parametrize("device", [P3, B3], ids=lambda d: d.name)
def test_a_whole_block_fits_its_buffers(size, device):
    architecture = model_config(f"neonext_{size}.released_224").architecture
    for stage, at in enumerate(architecture.maps((224, 224))):
        tiles = block_buffers(architecture, stage, at, device)
        assert all(tiles[name] <= getattr(device, f"{name}_bytes") for name in ("l0a", "l0b", "l0c"))
        assert tiles["ub_neocell"] + tiles["ub_gelu"] <= device.ub_bytes
        assert tiles["l1_tiles"] <= device.l1_bytes


def test_a_block_that_is_too_wide_for_its_buffers():
    with pytest.raises(InputError, match="Ascend910B3: 2048 channels do not fit into its L0C"):
        block_buffers(model_config("neonext_xl.released_224").architecture, 3, (7, 7), B3)


# Fields of a JSON row that say what it is about; all other numbers are predicted.
ABOUT = {"soc", "model", "image_size", "batch", "stage", "blocks", "buffer_bytes"}


def test_the_command_offers_every_table():
    assert tuple(block_tables.TABLES) == blocks_command.TABLES


@needs_simulator
@pytest.mark.parametrize("table", block_tables.TABLES)
def test_every_figure_is_called_predicted(table):
    rows_of, text_of = block_tables.TABLES[table]
    rows = rows_of(block_tables.BlockCases((P3,), ("t",), (224,), (1,)))
    assert rows and all(key in ABOUT or key.startswith("predicted") for row in rows for key in row)
    lines = text_of(rows).splitlines()
    titles = [line for line in lines if line and not line.startswith("|")]
    assert titles and sum(line.startswith("| ---") for line in lines) == len(titles)
    assert all("predicted" in line.lower() for line in titles)


@needs_simulator
def test_totals():
    rows = json.loads(blocks_command.printed(["neocell", "--models", "t", "--image-size", "224", "--totals", "--json"]))
    assert [(row["soc"], row["batch"], row["stage"]) for row in rows] == [
        (name, batch, "all") for name in ("Ascend310P3", "Ascend910B3") for batch in (1, 8)
    ]


def test_without_a_compiler(monkeypatch, capsys):
    monkeypatch.setenv("CXX", "no-such-compiler")
    assert blocks_command.main(["--batch", "3", "--models", "xl", "--image-size", "384"]) == 3
    assert "no-such-compiler" in capsys.readouterr().err
    assert blocks_command.main(["buffers", "--models", "t"]) == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--soc", "Ascend310P9"], "unknown device"),
        (["--models", "t,q"], "model 'q'"),
        (["--image-size", "256"], "image size '256'"),
        (["--batch", "1,0"], "batch '0'"),
        (["--batch", "x"], "batch 'x'"),
        (["--batch", "65"], "from 1 to 64"),
        (["--image-size", "0"], "image size '0'"),
        (["--models", "t,"], "model ''"),
        (["buffers", "--soc", "Ascend910B3", "--models", "xl"], "do not fit into its L0C"),
    ],
)
def test_bad_arguments(arguments, message):
    with pytest.raises(NeoNextError, match=message):
        blocks_command.printed(arguments)


def test_options_that_contradict_each_other():
    with pytest.raises(UsageError, match="the table buffers has no sums"):
        blocks_command.printed(["buffers", "--totals"])
    with pytest.raises(SystemExit) as stopped:
        blocks_command.printed(["neocell", "fusions"])
    assert stopped.value.code == 2
