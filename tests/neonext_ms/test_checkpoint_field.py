"""Checkpoints as people have them: keys, prefixes, counters, and what training scripts leave beside the weights."""

from __future__ import annotations

import argparse
import collections
import datetime
import decimal
import enum
import functools
import pathlib
import types
import uuid
import zipfile

import numpy as np
import pytest

from neonext_ms.checkpoint import pytorch, safetensors_file
from neonext_ms.checkpoint.budget import Budget
from neonext_ms.checkpoint.checkpoint import format_of, load_checkpoint
from neonext_ms.checkpoint.state_dict import select_state_dict
from neonext_ms.commands.convert import main as convert
from neonext_ms.commands.info import main as info
from neonext_ms.common.errors import InputError, UsageError
from neonext_ms.models.architecture import make_architecture
from neonext_ms.runtime.base import model_suffix
from neonext_ms.runtime.open import default_runtime
from pickles import Opcodes, tensor, text, write_archive

TINY = make_architecture(3, (0, 1, 0, 0), (2, 2, 2, 2), kernel_spec="2", shifts=None)
COUNTERS = [
    name.replace("running_var", "num_batches_tracked") for name in TINY.tensors() if name.endswith("running_var")
]


class Mode(enum.Enum):
    TRAIN = "train"


class Outer:
    class Level(enum.IntEnum):
        LOW = 1


class Config(dict):
    """As yacs and easydict make them."""


def weights(seed: int = 0) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)
    return {name: rng.uniform(0.1, 1, shape).astype(np.float32) for name, shape in TINY.tensors().items()}


def counted(value: np.ndarray) -> dict[str, np.ndarray]:
    return {**weights(), **dict.fromkeys(COUNTERS, value)}


def prefixed(prefix: str, arrays: dict) -> dict:
    return {prefix + name: array for name, array in arrays.items()}


def is_seed(checkpoint, seed: int) -> bool:
    expected = weights(seed)
    return list(checkpoint.arrays) == list(expected) and all(
        np.array_equal(array, expected[name]) for name, array in checkpoint.arrays.items()
    )


def message(path, **options) -> str:
    with pytest.raises(InputError) as caught:
        load_checkpoint(path, **options)
    assert str(path) in str(caught.value)
    return str(caught.value)


PREFIXES = [
    "module.", "net.", "network.", "backbone.", "model.", "encoder.", "_orig_mod.", "student.", "model.backbone.",
    "module.encoder.net.", "_orig_mod.module.", "_fsdp_wrapped_module.model.", "anything_else.",
]  # fmt: skip


@pytest.mark.parametrize("prefix", PREFIXES)
def test_any_common_prefix_is_found(tmp_path, prefix):
    path = write_archive(tmp_path / "x.pt", prefixed(prefix, weights()))
    assert is_seed(load_checkpoint(path), 0)
    safetensors_file.write(tmp_path / "x.bin", prefixed(prefix, weights()), {})
    assert is_seed(load_checkpoint(tmp_path / "x.bin"), 0)


def test_wrappers_inside_of_names_are_removed(tmp_path):
    names = {name.replace(".ops.", "._checkpoint_wrapped_module.ops."): a for name, a in weights().items()}
    names = {name.replace("stage_2.", "stage_2._orig_mod."): a for name, a in names.items()}
    assert is_seed(load_checkpoint(write_archive(tmp_path / "x.pt", names)), 0)


KEYS = [
    "model", "state_dict", "module", "params", "weights", "model_state_dict", "net", "best_model", "generator",
    "model_without_ddp",
]  # fmt: skip


@pytest.mark.parametrize("key", KEYS)
def test_any_key_is_found_and_what_is_beside_it_is_said(tmp_path, key):
    tree = {"epoch": 3, key: prefixed("module.", weights()), "optimizer": {"state": {0: {"exp_avg": np.ones(3)}}}}
    checkpoint = load_checkpoint(write_archive(tmp_path / "x.pt", tree))
    assert is_seed(checkpoint, 0)
    assert checkpoint.notes[-1] == "ignored entries that are not weights: epoch, optimizer"
    assert key == "module" or checkpoint.notes[0] == f"read {key!r}"


@pytest.mark.parametrize(
    "key",
    ["ema", "model_ema", "state_dict_ema", "ema_state_dict", "params_ema", "ema_model", "swa_model", "shadow_params"],
)
def test_the_moving_average_below_any_of_its_names(tmp_path, key):
    averaged = {"n_averaged": np.array(2), **prefixed("module.", weights(2))}
    path = write_archive(tmp_path / "x.pt", {"model": weights(1), key: averaged, "epoch": 1})
    checkpoint = load_checkpoint(path)
    assert is_seed(checkpoint, 1) and f"the file also holds {key!r} (use ema=True / --ema)" in checkpoint.notes[0]
    checkpoint = load_checkpoint(path, ema=True)
    assert is_seed(checkpoint, 2) and checkpoint.notes[0] == f"read {key!r}" and "n_averaged" in checkpoint.notes[1]
    assert is_seed(load_checkpoint(path, key=key), 2)
    only = load_checkpoint(write_archive(tmp_path / "y.pt", {key: averaged}))
    assert is_seed(only, 2) and "the moving average" in only.notes[0]


def test_an_averaged_model_saved_alone(tmp_path):
    tree = {"n_averaged": np.array(7), **prefixed("module.", weights())}
    checkpoint = load_checkpoint(write_archive(tmp_path / "x.pth", tree))
    assert is_seed(checkpoint, 0) and checkpoint.notes == ["ignored entries that are not weights: n_averaged"]


def test_several_models_need_a_key(tmp_path):
    tree = {"student": weights(1), "teacher": prefixed("module.", weights(2)), "epoch": 1}
    path = write_archive(tmp_path / "x.pt", tree)
    text = message(path)
    assert "several sets of weights fit" in text and "--key" in text and "  student\n  teacher" in text
    assert is_seed(load_checkpoint(path, key="student"), 1) and is_seed(load_checkpoint(path, key="teacher"), 2)
    text = message(path, key="tutor")
    assert "no weights below 'tutor'" in text and "  student\n  teacher" in text
    assert "no moving average" in message(path, key="student", ema=True)
    flat = write_archive(tmp_path / "y.pt", {**prefixed("a.net.", weights(1)), **prefixed("b.net.", weights(2))})
    assert "a.net" in message(flat)
    for key in ("b", "b.net", "b/net", "module.b"):
        assert is_seed(load_checkpoint(flat, key=key), 2)
    two = write_archive(tmp_path / "z.pt", {"model": weights(1), "state_dict": weights(2)})
    assert "several" in message(two) and is_seed(load_checkpoint(two, key="state_dict"), 2)
    bare = write_archive(tmp_path / "w.pt", {**weights(1), "best": weights(2)})
    checkpoint = load_checkpoint(bare)
    assert is_seed(checkpoint, 1) and "'best' (use key=NAME / --key NAME)" in checkpoint.notes[0]
    assert is_seed(load_checkpoint(bare, key="best"), 2) and is_seed(load_checkpoint(bare, key="."), 1)


def test_one_model_below_two_keys_is_one(tmp_path):
    tree, _ = pytorch.read(write_archive(tmp_path / "x.pt", {"model": weights()}))
    tensors, notes = select_state_dict({**tree, "state_dict": tree["model"]}, Budget("file", 1))
    assert len(tensors) == len(TINY.tensors()) and notes[0].startswith("read 'model'")


def test_lists_of_state_dicts(tmp_path):
    path = write_archive(tmp_path / "x.pt", (weights(1), {"lr": 0.1}))
    assert is_seed(load_checkpoint(path), 1)
    assert "not a dictionary of tensors by name (got a tuple of 2 values)" in message(
        write_archive(tmp_path / "y.pt", (1, 2))
    )
    nested = {"stem": {"conv": {"weight": weights()["stem.conv.weight"]}}}
    rest = {name: array for name, array in weights().items() if name != "stem.conv.weight"}
    assert is_seed(load_checkpoint(write_archive(tmp_path / "z.pt", {**rest, **nested})), 0)


@pytest.mark.parametrize("dtype", [np.float16, np.float32, np.float64, np.int32, np.uint8])
def test_counters_of_any_dtype(tmp_path, dtype):
    checkpoint = load_checkpoint(write_archive(tmp_path / "x.pt", counted(np.array(5, dtype))))
    assert checkpoint.counters == dict.fromkeys(COUNTERS, 5) and not checkpoint.notes
    assert load_checkpoint(write_archive(tmp_path / "y.pt", counted(np.array([7], dtype)))).counters[COUNTERS[0]] == 7


def test_counters_that_overflowed_are_said_and_wrong_ones_rejected(tmp_path):
    checkpoint = load_checkpoint(write_archive(tmp_path / "x.pt", counted(np.array(np.inf, np.float16))))
    assert not checkpoint.counters and f"ignored {len(COUNTERS)} counters num_batches_tracked" in checkpoint.notes[0]
    for wrong in (np.array(0.5), np.array(-1.0, np.float16), np.zeros(2, np.float32), np.array(True)):
        assert "num_batches_tracked must be one whole number" in message(
            write_archive(tmp_path / "y.pt", counted(wrong))
        )


def test_counts_of_thop_are_said(tmp_path):
    modules = ("", "stem.", "stem.conv.", "stage_2.0.ops.")
    counts = {f"{module}{what}": np.zeros(1) for module in modules for what in ("total_ops", "total_params")}
    checkpoint = load_checkpoint(write_archive(tmp_path / "x.pt", {**weights(), **counts}))
    assert is_seed(checkpoint, 0)
    assert checkpoint.notes == [
        "ignored entries that are not weights: total_ops, total_params, *.total_ops, *.total_params"
    ]


def test_tensors_beside_weights_below_a_prefix_are_said_and_others_rejected(tmp_path):
    tree = {"state_dict": {**prefixed("model.", weights()), "criterion.weight": np.ones(3)}, "rng": np.ones(5)}
    checkpoint = load_checkpoint(write_archive(tmp_path / "x.pt", tree))
    assert is_seed(checkpoint, 0)
    assert checkpoint.notes == [
        "read 'state_dict.model'",
        "ignored entries that are not weights: rng, criterion.weight",
    ]
    tree["state_dict"]["model.temperature"] = np.ones(1)
    assert "1 unexpected:\n  temperature (1,)" in message(write_archive(tmp_path / "y.pt", tree))
    assert "temperature" in message(write_archive(tmp_path / "z.pt", {**weights(), "temperature": np.array(1.0)}))


HARMLESS = {
    "set": {"a", "b"},
    "frozenset": frozenset("a"),
    "bytes": b"\x00\xff",
    "bytearray": bytearray(b"abc"),
    "counter": collections.Counter("aab"),
    "defaultdict": collections.defaultdict(dict, {"state": {}}),
    "ordered": collections.OrderedDict(a=1),
    "deque": collections.deque([1, 2]),
    "keys": {(0, 1): 3, ((1, 2), 3): 2, None: 1, 1.5: 2, True: 0, 7: 1, b"x": 2},
    "namespace": argparse.Namespace(lr=0.1, mode="x"),
    "simple": types.SimpleNamespace(a=1),
    "path": pathlib.Path("/data"),
    "windows": pathlib.PureWindowsPath("c:/data"),
    "enum": Mode.TRAIN,
    "inner": Outer.Level.LOW,
    "config": Config(a=1, b=Config(c=2)),
    "scalar": np.float64(91.2),
    "int64": np.int64(3),
    "array": np.arange(3).astype(object),
    "random": np.random.RandomState(0).get_state(),
    "date": datetime.datetime(2026, 11, 28),
    "delta": datetime.timedelta(1),
    "decimal": decimal.Decimal("1.5"),
    "uuid": uuid.UUID(int=1),
    "complex": 1 + 2j,
    "slice": slice(1, 2),
    "range": range(3),
    "class": argparse.Namespace,
    "partial": functools.partial(int, "3"),
    "surrogate": "\ud800",
    "device": Opcodes(b"ctorch\ndevice\n" + text("cuda") + b"K\x00\x86R"),
    "dtype": Opcodes(b"ctorch\nfloat32\n"),
    "other dtype": Opcodes(b"ctorch\nfloat8_e4m3fn\n"),
    "layout": Opcodes(b"ctorch.serialization\n_get_layout\n" + text("torch.strided") + b"\x85R"),
    "complex tensor": Opcodes(tensor(kind="ComplexFloatStorage")),
    "tensor as key": Opcodes(b"}" + tensor(count=1, shape=(1,)) + b"Ns"),
    "Python 2 set": Opcodes(b"c__builtin__\nset\n](" + text("a") + b"e\x85R"),
}


@pytest.mark.parametrize("protocol", [2, 4])
@pytest.mark.parametrize("name", HARMLESS)
def test_harmless_values_beside_the_weights(tmp_path, name, protocol):
    tree = {"model": weights(), "extra": HARMLESS[name], "epoch": 1}
    path = write_archive(tmp_path / "x.pt", tree, protocol)
    checkpoint = load_checkpoint(path)
    assert is_seed(checkpoint, 0)
    assert checkpoint.notes[1].startswith("ignored entries that are not weights: extra")
    assert checkpoint.notes[1].endswith(", epoch")
    inside = write_archive(tmp_path / "y.pt", {**weights(), "extra": HARMLESS[name]}, protocol)
    assert is_seed(load_checkpoint(inside), 0)


def test_an_object_is_only_a_name(tmp_path):
    tree, _ = pytorch.read(write_archive(tmp_path / "x.pt", {"a": argparse.Namespace(lr=1), "m": Mode.TRAIN}))
    assert repr(tree["a"]) == "<argparse.Namespace>" and not tree["a"] and not hasattr(tree["a"], "lr")
    checkpoint = load_checkpoint(write_archive(tmp_path / "y.pt", {**weights(), "args": argparse.Namespace(lr=1)}))
    assert checkpoint.notes == ["ignored entries that are not weights: args (argparse.Namespace)"]
    whole = write_archive(tmp_path / "z.pt", {"model": Mode.TRAIN, "epoch": 1})
    assert "model (object of" in message(whole) and "Mode)" in message(whole)
    other = {**weights(), "stem.conv.weight": Opcodes(tensor(kind="ComplexFloatStorage"))}
    assert "stem.conv.weight: object of torch.ComplexFloatStorage" in message(write_archive(tmp_path / "c.pt", other))
    weight = write_archive(
        tmp_path / "w.pt", {**weights(), "stem.conv.weight": np.arange(3).astype(object)[:0].tolist()}
    )
    assert "stem.conv.weight: list of 0 values" in message(weight)


def test_dictionaries_of_other_classes_hold_weights(tmp_path):
    config = Opcodes(b"c__main__\nAttributeDict\n)\x81(" + text("stem.norm.num_batches_tracked") + b"K\x05u")
    tree = {**weights(), "more": config}
    assert is_seed(load_checkpoint(write_archive(tmp_path / "x.pt", tree)), 0)
    state = Opcodes(b"ccollections\ndefaultdict\n(c__builtin__\ndict\ntR(" + text("k") + b"K\x01u")
    assert pytorch.read(write_archive(tmp_path / "y.pt", {"a": state}))[0] == {"a": {"k": 1}}


def test_parameters_with_a_state(tmp_path):
    arrays = weights()
    wrapped = {}
    for i, (name, array) in enumerate(arrays.items()):
        strides = [step // array.itemsize for step in array.strides]
        body = tensor(str(i), array.size, 0, array.shape, strides)
        if i % 2:
            body = b"ctorch._utils\n_rebuild_parameter_with_state\n(" + body
            body += b"\x88ccollections\nOrderedDict\n)R}K\x01\x88stR"
        wrapped[name] = Opcodes(body)
    path = write_archive(tmp_path / "x.pt", wrapped)
    with zipfile.ZipFile(path, "a") as archive:
        for i, array in enumerate(arrays.values()):
            archive.writestr(f"archive/data/{i}", array.tobytes())
    assert is_seed(load_checkpoint(path), 0)


REFUSED = ["os\nsystem", "posix\nsystem", "builtins\neval", "__builtin__\nexec", "subprocess\nPopen", "nt\nsystem",
           "importlib\nimport_module", "runpy\n_run_code", "torch.storage\n_load_from_bytes", "torch.hub\nload",
           "builtins\n__import__", "pickle\nloads", "functools2.os\nsystem", "operator\nattrgetter",
           "sys\nexit"]  # fmt: skip


@pytest.mark.parametrize("name", REFUSED)
def test_what_executes_is_rejected_beside_the_weights_too(tmp_path, monkeypatch, name):
    monkeypatch.chdir(tmp_path)
    call = Opcodes(b"c" + name.encode() + b"\n(" + text("touch canary") + b"tR")
    path = write_archive(tmp_path / "x.pt", {"model": weights(), "extra": call})
    if name.startswith("functools2"):
        # Not a known name, so that it is only a placeholder; nothing runs in any case.
        assert "extra (functools2.os.system)" in load_checkpoint(path).notes[1]
    else:
        text_ = message(path)
        module = name.split("\n")[0].replace("__builtin__", "builtins")
        assert module in text_ and "nothing of it was executed" in text_
    assert not (tmp_path / "canary").exists()


NAMES = ["model_best.pth.tar", "pytorch_model.bin", "checkpoint", "weights.model", "x.PTH", "epoch=3-step=9"]


@pytest.mark.parametrize("name", NAMES)
def test_the_content_decides_in_every_command(tmp_path, capsys, name):
    path = str(write_archive(tmp_path / name, {"student": weights(1), "teacher": weights(2)}))
    assert format_of(path) == "PyTorch" and default_runtime(path) == "mindspore"
    assert model_suffix(path) in (".pt", ".pth")
    assert info([path, "--key", "teacher", "--shifts", "0,1,0,0"]) == 0
    assert "read 'teacher'" in capsys.readouterr().out
    assert convert([path, str(tmp_path / "out.pt"), "--key", "student"]) == 0
    assert is_seed(load_checkpoint(tmp_path / "out.pt"), 1)
    assert convert([path, str(tmp_path / "out.pt")]) == 1
    assert "--key" in capsys.readouterr().err


def test_files_that_are_no_checkpoint_keep_their_error(tmp_path):
    (tmp_path / "x.bin").write_bytes(bytes(64))
    with pytest.raises(UsageError, match=r"unknown kind of model '\.bin'"):
        default_runtime(tmp_path / "x.bin")
    assert model_suffix(tmp_path / "missing.bin") == ".bin" and model_suffix("model.onnx") == ".onnx"
