"""The reader of OM files, on the writer of the tests and on real files where NEONEXT_OM_SAMPLES points."""

from __future__ import annotations

import json
import os
import struct
from pathlib import Path

import pytest

import om_stand_in as om
from neonext_ms.commands import info
from neonext_ms.common import wire
from neonext_ms.common.errors import InputError
from neonext_ms.runtime.om_file import read_om

SAMPLES = Path(os.environ.get("NEONEXT_OM_SAMPLES") or "nowhere")
PARTS = [(om.INOUT, om.inout_info()), (om.MODEL_DEF, om.model_def()), (om.WEIGHTS, bytes(9))]


def read(tmp_path, content: bytes):
    (tmp_path / "m.om").write_bytes(content)
    return read_om(tmp_path / "m.om")


def test_header_partitions_and_tensors(tmp_path, capsys):
    images = ("input", "uint8", (1, 64, 48, 3))
    content = om.small_om("Ascend310B4", inputs=(images,), batches=(1, 8))
    found = read(tmp_path, content)
    assert (found.name, found.model_type, found.encrypted, found.dynamic) == ("net", "IR model", False, False)
    assert (found.soc, found.platform_version, found.atc_version) == ("Ascend310B4", "1.84.15.1", "8.0.RC3")
    assert [tensor.describe() for tensor in (*found.inputs, *found.outputs)] == ["uint8 1x64x48x3", "float32 1x2"]
    assert found.batches == (1, 8) and found.bytes == len(content)
    kinds = [part.kind for part in found.partitions]
    assert kinds == ["MODEL_INOUT_INFO", "MODEL_DEF", "WEIGHTS_DATA", "TASK_INFO", "TBE_KERNELS"]
    last = found.partitions[-1]
    assert content[last.offset :] == b"kernels" and last.size == 7
    assert info.main([str(tmp_path / "m.om"), "--json"]) == 0
    facts = json.loads(capsys.readouterr().out)
    assert facts["inputs"] == {"input": "uint8 1x64x48x3"} and facts["partitions"][2] == "WEIGHTS_DATA 64"
    assert info.main([str(tmp_path / "m.om")]) == 0 and "  input " in capsys.readouterr().out


def test_the_graph_alone_names_inputs_in_order_and_outputs(tmp_path):
    inputs = [("b_first", "float16", (-1, 3, 8, 8)), ("a_second", "int32", (1,))]
    outputs = [("stage_1", "float16", (1, 4)), ("stage_2", "float16", (1, 8))]
    found = read(tmp_path, om.om_bytes([[(om.MODEL_DEF, om.model_def("m", "", inputs, outputs))]]))
    assert [(t.name, t.describe()) for t in found.inputs] == [
        ("b_first", "float16 Nx3x8x8"),
        ("a_second", "int32 1"),
    ]
    assert [t.name for t in found.outputs] == ["output_0_stage_1_0", "output_1_stage_2_0"] and found.soc == ""


def test_several_models_older_tables_and_encrypted_files(tmp_path):
    several = read(tmp_path, om.om_bytes([PARTS, PARTS[1:], PARTS[2:]], dynamic=1))
    assert several.models == 3 and several.dynamic and [part.model for part in several.partitions] == [0, 0, 0, 1, 1, 2]
    older = read(tmp_path, om.om_bytes([PARTS], wide=False))
    assert older.partitions[1].size == len(om.model_def()) and older.inputs[0].name == "input"
    encrypted = read(tmp_path, om.om_bytes([PARTS], encrypted=1))
    assert encrypted.encrypted and encrypted.partitions == encrypted.inputs == ()


def patched(place: int, form: str, value: int) -> bytes:
    content = bytearray(om.om_bytes([PARTS]))
    struct.pack_into(form, content, place, value)
    return bytes(content)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b"", r"not an OM file \(it starts with b''"),
        (b"PK\x03\x04" + bytes(400), "may be OM2"),
        (om.om_bytes([PARTS])[:100], "not a complete OM file"),
        (om.om_bytes([PARTS])[:-1], r"bytes, .* by its header"),
        (om.om_bytes([PARTS]) + b"x", r"bytes, .* by its header"),
        (patched(4, "<I", 512), "a header of 512 bytes"),
        (patched(156, "<I", 2), "not a complete OM file"),
        (patched(256, "<I", 0), "model 0 of 1 has 0 partitions"),
        (patched(256, "<I", 1 << 31), "has 2,147,483,648 partitions"),
        (patched(264 + 16, "<Q", 1 << 63), "a partition of 9,223,372,036,854,775,808 bytes"),
        (patched(264 + 24 + 8, "<Q", 0), "a partition of"),
        (om.om_bytes([[(om.MODEL_DEF, b"\x3a\x7f\x00")]]), "a field of 127 bytes where 1 are left"),
        (om.om_bytes([[(om.MODEL_DEF, b"\x38\x01")]]), "a number where a message was expected"),
        (om.om_bytes([[(om.INOUT, struct.pack("<II", 0, 99))]]), "a block of 99 bytes where 0 are left"),
        (om.om_bytes([[(om.INOUT, struct.pack("<III", 0, 4, 1 << 30))]]), "1,073,741,824 inputs or outputs"),
    ],
)
def test_damaged_files(content, message, tmp_path):
    with pytest.raises(InputError, match=message):
        read(tmp_path, content)


def test_text_of_a_file_is_safe_for_a_terminal(tmp_path):
    content = om.om_bytes([[(om.MODEL_DEF, om.model_def("m", "\x1b[2J"))]], name="\x1b]0;x")
    found = read(tmp_path, content)
    assert found.name == "\\x1b]0;x" and found.soc == "\\x1b[2J"


def test_the_wire_format():
    message = memoryview(om.field(3, -1) + om.field(200, "text") + b"\x0d\1\2\3\4" + b"\x09" + bytes(8))
    values = [(number, value if isinstance(value, int) else bytes(value)) for number, value in wire.fields(message)]
    assert values == [(3, (1 << 64) - 1), (200, b"text"), (1, b"\1\2\3\4"), (1, bytes(8))]
    assert wire.signed(values[0][1]) == -1 and wire.integers(memoryview(b"\x03\xac\x02")) == [3, 300]
    for broken in (b"\x80" * 11, b"\xff" * 9 + b"\x7f", b"\x0b", b"\x00\x00", b"\x08", b"\x0d\1"):
        with pytest.raises(ValueError, match=r"\w"):
            list(wire.fields(memoryview(broken)))


@pytest.mark.skipif(not SAMPLES.is_dir(), reason="NEONEXT_OM_SAMPLES is not set")
def test_real_files():
    root = read_om(SAMPLES / "root_model.om")
    assert (root.name, root.model_type, root.models) == ("test_graph_cache", "IR model", 1)
    assert [(part.kind, part.size) for part in root.partitions] == [
        ("MODEL_INOUT_INFO", 140),
        ("MODEL_DEF", 1798),
        ("TASK_INFO", 16),
    ]
    assert root.inputs == (("_arg_0", "int32", (16,)),) and root.outputs == (("output_0_out_0", "int32", (-1,)),)
    flow = read_om(SAMPLES / "flow_model.om")
    assert flow.model_type == "flow" and [part.kind for part in flow.partitions[1:]] == [
        "FLOW_MODEL",
        "FLOW_SUBMODEL",
        "FLOW_SUBMODEL",
    ]
    several = read_om(SAMPLES / "dynamic_and_static_graph_without_unfold.om")
    assert several.models == 3 and several.dynamic and len(several.partitions) == 11
    assert [tensor.name for tensor in several.inputs] == ["data_1", "data_2"]
