#!/usr/bin/env python3
from __future__ import annotations

# Also the text of --help, which must not vanish under python -OO as docstrings do.
ABOUT = """Test a NeoNeXt network on this board, and write what was found into board_report.json and board_report.html.

    source /usr/local/Ascend/ascend-toolkit/set_env.sh        (wherever CANN is)
    python3 run.py

Every step runs in a process of its own with a time limit. A run that was stopped goes on where it was, and steps that
failed are tried again. It writes into this folder alone, uses no network, installs nothing on the system, and leaves
names of machines, users and folders out of its reports. README.txt says more.
"""

import argparse
import contextlib
import csv
import ctypes
import fcntl
import hashlib
import json
import math
import operator
import os
import re
import shutil
import signal
import subprocess
import sys
import time
import zlib
from importlib.util import find_spec
from pathlib import Path

try:
    import numpy as np
except ImportError:
    sys.exit("error: NumPy is missing. Install it: python3 -m pip install numpy")

HERE = Path(__file__).resolve().parent
WORK = HERE / "work"
LOGS, OM, INPUTS = WORK / "logs", WORK / "om", WORK / "inputs"
REPORT, PAGE = HERE / "board_report.json", HERE / "board_report.html"
VENDOR = WORK / "opp" / "vendors" / "neonext"
# Two values of a layer diverge there if its deviation is this many times that of the layers that it reads.
JUMP = 4.0
# Seconds that a step may take; others may take ten minutes and four times --seconds.
LIMITS = {"operator": 1800, "compile": 1800, "layers": 900}


class Problem(Exception):
    """Something that a person has to know: the message, and what was found until then."""


class Missing(Problem):
    """A tool or a device that is not here."""


# --- Files and text ---------------------------------------------------------------------------------------------------
def write_text(path, text):
    """Write a file so that it is whole at any moment, even if the power fails."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    with open(part, "w", encoding="utf-8", errors="backslashreplace") as file:
        file.write(text)
        file.flush()
        os.fsync(file.fileno())
    os.replace(part, path)


def write_json(path, value):
    write_text(path, json.dumps(value, indent=1, ensure_ascii=False, allow_nan=False) + "\n")


def read_json(path):
    return json.loads(path.read_text(encoding="utf-8"))


def sha256(path):
    return hashlib.sha256(path.read_bytes()).hexdigest()


def fresh(folder):
    """Return a folder that is new and empty."""
    shutil.rmtree(folder, ignore_errors=True)
    folder.mkdir(parents=True)
    return folder


def private(text):
    """Return text without the folders, users, addresses and name of this machine."""
    text = str(text).replace(str(HERE), "KIT")
    home = os.path.expanduser("~")
    text = re.sub(r"/(?:home|root|Users)/[^/\s:'\"]+", "~", text.replace(home, "~") if len(home) > 1 else text)
    text = re.sub(r"\b\d{1,3}(?:\.\d{1,3}){3}\b", "ADDRESS", text)
    host = os.uname().nodename
    return re.sub(r"\b%s\b" % re.escape(host), "HOST", text) if len(host) > 2 else text


def finite(value):
    """Return a number for JSON, which has no infinity."""
    return float("%.4g" % value) if math.isfinite(value) else None


def say(text, end="\n"):
    """Print for whoever still reads; a run goes on when the terminal has gone, or the disk behind it is full."""
    try:
        print(text.encode("ascii", "backslashreplace").decode(), end=end, flush=True)
    except OSError:
        sys.stdout = open(os.devnull, "w")


# --- Other programs ---------------------------------------------------------------------------------------------------
def run_program(command, log, seconds, cwd=None, env=None):
    """Run a program and all that it starts with output in a file; return its exit code, None after the time limit."""
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [str(part) for part in command]
    with open(log, "w", encoding="utf-8", errors="replace") as output:
        output.write("$ %s\n" % " ".join(command))
        output.flush()
        options = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT, "cwd": cwd, "env": env}
        process = subprocess.Popen(command, start_new_session=True, preexec_fn=die_with_parent, **options)
        try:
            return process.wait(seconds)
        except subprocess.TimeoutExpired:
            return None
        finally:
            for sent in (signal.SIGTERM, signal.SIGKILL):
                with contextlib.suppress(ProcessLookupError, PermissionError, subprocess.TimeoutExpired):
                    os.killpg(process.pid, sent)
                    process.wait(2)
            process.wait()


def die_with_parent():
    """Let this process be killed when the one that started it dies, even of SIGKILL."""
    with contextlib.suppress(Exception):
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)


def how_it_ended(code):
    killed = {-sent: "killed by %s" % sent.name for sent in signal.Signals}
    return {None: "it did not finish within its time limit", **killed}.get(code, "exit code %s" % code)


def run_tool(what, command, args, made):
    """Run a program in work/; return what `made` finds, given the lines that it printed, or raise a Problem."""
    log = LOGS / ("%s.%s.log" % (args.step.replace("/", "_"), what))
    code = run_program(command, log, 0.9 * args.limit, WORK)
    found = made(log_lines(log)) if code == 0 else None
    if not found:
        # Exit code 3 of our own programs says that something is missing.
        raise (Missing if code == 3 else Problem)("%s failed (%s): %s" % (what, how_it_ended(code), last_line(log)))
    return found


def log_lines(log):
    with open(log, encoding="utf-8", errors="replace") as lines:
        return [line.strip()[:2000] for line in lines if line.strip() and not line.startswith("$ ")]


def last_line(log):
    """Return the last error in a log, or else its last line."""
    lines = log_lines(log)
    errors = [line for line in lines if re.search(r"\berror\b", line, re.I)]
    return private((errors or lines or ["it printed nothing"])[-1])[:300]


def explain(kit, log):
    """Return the first known error in a log of CANN's tools, in the words of neonext-export; what says most, first."""
    for group in kit["errors"]:
        for line in log_lines(log):
            for pattern, meaning, remedy in group:
                match = re.search(pattern, line)
                if match:
                    return "%s: %s; %s" % (private(line[match.start() :])[:300].rstrip(".: "), meaning, remedy)
    return "its last line: " + last_line(log)


def operator_environment():
    """Return the environment of a step, in which ATC and ACL find the operator package of this kit."""
    environ = dict(os.environ)
    if VENDOR.is_dir():
        old = environ.get("ASCEND_CUSTOM_OPP_PATH")
        environ["ASCEND_CUSTOM_OPP_PATH"] = str(VENDOR) + (":" + old if old else "")
    return environ


# --- The device, through pyACL, which comes with CANN -----------------------------------------------------------------
class Device(contextlib.ExitStack):
    """The device of this process. `config` is a file for acl.init, such as one that asks for a dump."""

    def __init__(self, kit, number, config=None):
        super().__init__()
        try:
            import acl
        except ImportError:
            raise Missing("the Python module acl is not here. Install CANN and source its set_env.sh.")
        self.acl, self.known = acl, kit["acl"]
        self.call("init", *([str(config)] if config else []))
        self.callback(acl.finalize)
        self.call("rt.set_device", number)
        self.callback(acl.rt.reset_device, number)
        self.callback(acl.rt.destroy_context, self.call("rt.create_context", number))

    def call(self, name, *arguments):
        """Call a function of pyACL that returns an error code, or a value and an error code; return the value."""
        result = operator.attrgetter(name)(self.acl)(*arguments)
        value, code = result if isinstance(result, tuple) else (None, result)
        if code:
            meaning = self.known["codes"].get(str(code), "see CANN's aclError")
            raise Problem("acl.%s failed with %s (%s)" % (name, code, meaning))
        return value

    def free_memory(self):
        """Return the free bytes of the device, or None if it does not tell."""
        told = [self.acl.rt.get_mem_info(kind) for kind in (1, 0)]
        return next((free for free, total, code in told if total and not code), None)


class Model(contextlib.ExitStack):
    """An OM file on the device, for one batch size. Closing it releases what it holds there, the last first."""

    def __init__(self, device, path, batch):
        super().__init__()
        self.device, acl, call, before = device, device.acl, device.call, device.free_memory()
        self.model = call("mdl.load_from_file", str(path))
        self.callback(acl.mdl.unload, self.model)
        self.desc = acl.mdl.create_desc()
        self.callback(acl.mdl.destroy_desc, self.desc)
        call("mdl.get_desc", self.desc, self.model)
        (self.inputs, buffers), (self.outputs, (self.out, *_)) = self.dataset("input"), self.dataset("output")
        self.input, self.fixed = buffers[0], len(buffers) == 1
        if not self.fixed:
            # The name that ATC gives to the extra input of a file with several batch sizes.
            index = call("mdl.get_input_index_by_name", self.desc, "ascend_mbatch_shape_data")
            call("mdl.set_dynamic_batch_size", self.model, self.inputs, index, batch)
        after = device.free_memory()
        self.memory = None if before is None or after is None else before - after
        dims = call("mdl.get_output_dims", self.desc, 0)["dims"]
        code = str(acl.mdl.get_output_data_type(self.desc, 0))
        if code not in device.known["dtypes"]:
            raise Problem("the output has the data type %s of acl, which this program does not know" % code)
        self.output = np.empty([batch, *dims[1:]], device.known["dtypes"][code])
        device.callback(self.close)

    def dataset(self, side):
        """Return a dataset with device memory for every input or output, and the addresses and sizes of these."""
        acl, places = self.device.acl, []
        dataset = acl.mdl.create_dataset()
        self.callback(acl.mdl.destroy_dataset, dataset)
        for index in range(getattr(acl.mdl, "get_num_%ss" % side)(self.desc)):
            size = getattr(acl.mdl, "get_%s_size_by_index" % side)(self.desc, index)
            address = self.device.call("rt.malloc", size, 0)
            self.callback(acl.rt.free, address)
            buffer = acl.create_data_buffer(address, size)
            self.callback(acl.destroy_data_buffer, buffer)
            acl.mdl.add_dataset_buffer(dataset, buffer)
            places.append((address, size))
        return dataset, places

    def run(self, array):
        """Return the output for an array, the milliseconds of the run, and those with the copies of both."""
        call, (address, size), out = self.device.call, self.input, self.output
        if self.fixed and array.nbytes != size:
            raise Problem("the file takes %d bytes, the input has %d" % (size, array.nbytes))
        start = time.perf_counter()
        call("rt.memcpy", address, size, array.ctypes.data, array.nbytes, 1)
        copied = time.perf_counter()
        call("mdl.execute", self.model, self.inputs, self.outputs)
        done = time.perf_counter()
        call("rt.memcpy", out.ctypes.data, out.nbytes, self.out[0], out.nbytes, 2)
        end = time.perf_counter()
        return out.copy(), 1e3 * (done - copied), 1e3 * (end - start)


# --- What the kit stores in parts: weights and images. The packer, too, puts them together with these functions. ------
def inflated(path, most):
    stream = zlib.decompressobj()
    values = np.frombuffer(stream.decompress(path.read_bytes(), most + 1), np.uint8)
    if not stream.eof or len(values) > most:
        raise Problem("%s: damaged, or larger inside than kit.json says" % path.name)
    return values


def read_pool(folder, models):
    """Return the weights of all forms, the values of sparse matrices other than zero, and which places those have."""
    rows = [row for model in models.values() for row in model["segments"] or ()]
    ends = [max([r[i] + r[i + 1] for r in rows if len(r) == n] or [0]) for i, n in ((1, 3), (1, 6), (3, 6))]
    files = ("dense_low", ends[0]), ("dense_high", ends[0]), ("sparse_low", ends[1]), ("sparse_high", ends[1])
    parts = [inflated(folder / "data" / (name + ".z"), count) for name, count in files]
    dense, sparse = (np.stack(pair, 1).view("<f2").ravel().astype("<f4") for pair in (parts[:2], parts[2:]))
    return dense, sparse, np.unpackbits(inflated(folder / "data" / "places.z", ends[2] // 8 + 1)).astype(bool)


def onnx_parts(folder, model, pool):
    """Yield the parts of an ONNX file: pieces of what is its own, each followed by a tensor of the pool."""
    (dense, sparse, places), start = pool, 0
    own = inflated(folder / model["parts"], sum(row[0] for row in model["segments"])).tobytes()
    for length, first, count, *spread in model["segments"]:
        yield own[start : start + length]
        start += length
        tensor = dense[first : first + count]
        if spread:
            place, size, columns = spread
            tensor = np.zeros(size, "<f4")
            tensor[places[place : place + size]] = sparse[first : first + count]
            tensor = tensor.reshape(-1, columns).T
        yield tensor.tobytes()


def noise_frames(images):
    """Return the frames of noise, uint8 (N, height, width, 3), the same on every machine."""
    shape = [images["noise"], *images["shape"][1:]]
    return np.frombuffer(hashlib.shake_256(b"noise").digest(int(np.prod(shape))), np.uint8).reshape(shape)


def read_frames(folder, images):
    """Return all frames, uint8 (N, height, width, 3). Those of images are stored as differences along each axis."""
    frames = inflated(folder / "data" / "frames.z", int(np.prod(images["shape"]))).reshape(-1, *images["shape"][1:])
    for axis in (1, 2, 3):
        frames = np.add.accumulate(frames, axis, np.uint8)
    return np.concatenate([noise_frames(images), frames])


def normalized(frames, images):
    """Return the inputs of the network, float32 (N, 3, H, W): the centres of the frames, normalized."""
    top, left, height, width = images["crop"]
    pixels = frames[:, top : top + height, left : left + width].astype(np.float32)
    mean, std = (255 * np.asarray(images[name], np.float32) for name in ("mean", "std"))
    return np.ascontiguousarray(((pixels - mean) / std).transpose(0, 3, 1, 2))


# --- Inputs and comparisons -------------------------------------------------------------------------------------------
def inputs_of(build, batch):
    """Return the inputs that an OM file takes, frames or float32, in batches, the last filled up with zeros."""
    array = np.load(INPUTS / (build["feed"] + ".npy"))
    padding = np.zeros((-len(array) % batch, *array.shape[1:]), array.dtype)
    return np.concatenate([array, padding]).reshape(-1, batch, *array.shape[1:])


def deviation(expected, value):
    """Return the norm of the difference over the norm of what is expected."""
    expected, value = expected.astype(np.float64).ravel(), value.astype(np.float64).ravel()
    if not np.isfinite(value).all():
        return math.inf
    norm, error = np.linalg.norm(expected), np.linalg.norm(value - expected)
    return float(error / norm if norm else error)


def compare_logits(kit, build, expected, value):
    """Compare logits; the best class of each image has to be the same, or to tie within the tolerance."""
    images, tolerance, noise = kit["images"], build["tolerance"], kit["images"]["noise"] - build["first"]
    relative = deviation(expected, value)
    margin = expected.max(1) - expected[np.arange(len(expected)), value.argmax(1)]
    agree = int((margin <= 2 * tolerance * np.abs(expected).max()).sum()) if math.isfinite(relative) else 0
    result = {"right": relative <= tolerance and agree == len(expected), "relative_l2": finite(relative)}
    result.update(tolerance=tolerance, not_finite=int(value.size - np.isfinite(value).sum()))
    result.update(top1_agree=agree, samples=len(expected))
    if images["expected"]:
        wanted = np.asarray(images["expected"], int)
        result["images"] = len(wanted)
        for name, logits in (("correct", value), ("correct_in_float32", expected)):
            result[name] = int((logits[noise:].argmax(1) == wanted).sum())
    return result


# --- Dumps: files in which CANN writes the values of an operator ------------------------------------------------------
# Such a file holds the length of a header (8 bytes), the header, the inputs that were dumped, and the outputs. The
# header is a protobuf message DumpData, see src/aicpu_sched/aicpu_schedule/proto/dump_data.proto in hicann/runtime.
OUTPUT, INPUT, OP_NAME = 3, 4, 6
DTYPE, FORMAT, SHAPE, INPUT_SIZE, OUTPUT_SIZE, ORIGINAL_SHAPE = 1, 2, 3, 5, 6, 7
DUMP_DTYPES = {1: "<f4", 2: "<f2", 3: "<i1", 4: "<u1", 7: "<i4"}
NC1HWC0, FRACTAL_NZ = 3, 29
# A whole number: seven bits a byte, and the eighth in all but the last.
NUMBER = re.compile(rb"[\x80-\xff]{0,9}[\x00-\x7f]")


def number_in(match):
    return sum((byte & 127) << 7 * place for place, byte in enumerate(match.group()))


def read_message(data):
    """Return the fields of a message of protobuf: number -> values, whole numbers or bytes."""
    fields, place = {}, 0
    while place < len(data):
        key = NUMBER.match(data, place)
        match = NUMBER.match(data, key.end())
        kind, value, place = number_in(key), number_in(match), match.end()
        if kind & 7 == 2:
            value, place = data[place : place + value], place + value
        elif kind & 7:
            raise ValueError("not a dump")
        fields.setdefault(kind >> 3, []).append(value)
    return fields


def read_shape(output, field):
    return [number_in(n) for n in NUMBER.finditer(read_message(output.get(field, [b""])[0]).get(1, [b""])[0])]


def read_dump(path):
    """Return the name of an operator and its first output in a plain layout; None for what this does not read."""
    data, name = path.read_bytes(), path.name.split(".")[:2][-1]
    start = 8 + int.from_bytes(data[:8], "little")
    try:
        header = read_message(data[8:start])
        output = read_message(header[OUTPUT][0])
        start += sum(read_message(part).get(INPUT_SIZE, [0])[0] for part in header.get(INPUT, ()))
        end, shape = start + output[OUTPUT_SIZE][0], read_shape(output, SHAPE)
        value = np.frombuffer(data[start:end], DUMP_DTYPES[output[DTYPE][0]]).reshape(shape)
    except (ValueError, LookupError, AttributeError):
        return name, None
    kind, original = output.get(FORMAT, [0])[0], read_shape(output, ORIGINAL_SHAPE)
    if kind == NC1HWC0:
        value = value.transpose(0, 1, 4, 2, 3).reshape(shape[0], -1, *shape[2:4])
    if kind == FRACTAL_NZ:
        value = np.moveaxis(value, -4, -2).reshape(*shape[:-4], shape[-3] * shape[-2], -1)
    if kind in (NC1HWC0, FRACTAL_NZ) and value.ndim == len(original):
        value = value[tuple(slice(size) for size in original)]  # Without the padding of its layout.
    name = header.get(OP_NAME, [name.encode()])[0].decode("utf-8", "replace")
    return re.sub(r"[./\\\s]", "_", name), value


# --- Layers: the first that a form computes wrongly -------------------------------------------------------------------
def aligned(value, shape):
    """Return a dumped value of the first image in the shape (C, H, W) of the reference; None if that cannot be."""
    value, size = value[0] if value.ndim == len(shape) + 1 else value, int(np.prod(shape))
    if len(shape) == 3 and list(value.shape) == [*shape[1:], shape[0]] != shape:
        value = value.transpose(2, 0, 1)
    # Other dimensions with the same values, or channels behind those of the layer, as padding.
    if value.size >= size and (value.size % size == 0 or list(value.shape[1:]) == shape[1:]):
        return value.ravel()[:size].reshape(shape)
    return None


# CANN's ONNX parser replaces some nodes by several, named PartitionedCall_<node>_<part>_<number>.
PART = re.compile(r"PartitionedCall_((?:(?!PartitionedCall_).)+)_(add|LayerNorm|MatMulV2|ReduceMean|Transpose)_\d+$")


def layer_of(op, known):
    """Return the number of the layer that an operator of a dump computes, or None."""
    part = PART.search(op)
    if part and part.group(1) in known:
        return known[part.group(1)]
    # The name of a fused operator consists of those of its parts; its value is that of the last.
    ends = {0: None}
    for end in range(1, len(op) + 1):
        for start in list(ends):
            for name in (op[start:end], op[start + 1 : end] if start and op[start] == "_" else None):
                if name in known:
                    ends[end] = name
    return known.get(op, known.get(ends.get(len(op))))


def compare_layers(rows, reference, values, tolerance):
    """Compare dumped values, by number of a layer, with the reference; return all, and the first that diverges."""
    relative, reads, after = {}, {}, {}
    for number, row in enumerate(rows):
        value = aligned(values[number], row["shape"]) if number in values else None
        # A layer that was not dumped stands for those that it reads.
        reads[number] = {n for source in row["sources"] for n in ([source] if source in relative else reads[source])}
        if value is None:
            continue
        flat = value.ravel()[:: row["step"]]
        relative[number] = deviation(reference[row["start"] : row["start"] + flat.size], flat)
        for source in reads[number]:
            after[source] = max(after.get(source, 0.0), relative[number])

    def jumps(number):
        before = max((relative[source] for source in reads[number]), default=0.0)
        return relative[number] > max(tolerance, JUMP * before)

    # A deviation that no later layer shows is none by itself: the mean inside a LayerNorm is close to 0.
    beyond = [n for n in relative if min(relative[n], after.get(n, math.inf)) > tolerance]
    first = beyond[0] if beyond else None
    if beyond and not jumps(first):
        behind, todo = set(), [first]
        while todo:
            todo += [source for source in reads[todo.pop()] if source not in behind and not behind.add(source)]
        first = min([n for n in behind if jumps(n)] or [next((n for n in beyond if jumps(n)), first)])
    layers = [{"name": rows[n]["name"], "op": rows[n]["op"], "relative_l2": finite(relative[n])} for n in relative]
    return layers, None if first is None else rows[first]["name"]


# --- Steps. Each runs in a process of its own and returns plain values. -----------------------------------------------
def om_path(build):
    return OM / (build["output"] + ".om")


def step_files(kit, args, _):
    """Check every file of the kit by its checksum."""
    rows = [line.split("  ", 1) for line in (HERE / "SHA256SUMS").read_text(encoding="utf-8").splitlines()]
    missing = ["%s is missing" % name for _, name in rows if not (HERE / name).is_file()]
    wrong = missing or ["%s is damaged" % name for digest, name in rows if sha256(HERE / name) != digest]
    if wrong:
        raise Problem("%s. Copy the kit again." % "; ".join(wrong[:5]))
    return {"files": len(rows)}


def step_machine(kit, args, _):
    """Find out what is here: device, driver, CANN, memory, Python."""
    places = [os.environ.get("ASCEND_TOOLKIT_HOME"), os.environ.get("ASCEND_HOME_PATH")]
    places += ["/usr/local/Ascend/ascend-toolkit/latest", "/usr/local/Ascend/cann"]
    home = next((Path(place) for place in places if place and os.path.isdir(place)), HERE / "no-cann")
    facts = {"python": sys.version.split()[0], "numpy": np.__version__, "machine": os.uname().machine}
    facts["processors"], facts["chips"], facts["soc"] = os.cpu_count(), npu_smi(), None
    facts["memory_gb"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)
    operators = os.environ.get("ASCEND_OPP_PATH") or home / "opp"
    facts["kernels"] = any(Path(operators).glob("built-in/op_impl/ai_core/tbe/kernel/%s*" % kit["family"]))
    facts["cann"], facts["driver"] = version_in(home), version_in(Path("/usr/local/Ascend/driver"))
    facts.update({name: shutil.which(name) is not None for name in ("atc", "msprof")})
    facts.update({name: find_spec(name) is not None for name in ("ais_bench", "mindspore")})
    if args.only != "compile":
        with contextlib.suppress(Exception):
            import acl

            facts["soc"], facts["stand_in"] = acl.get_soc_name(), bool(getattr(acl, "STAND_IN", False))
    if facts["soc"] and facts["soc"] != kit["soc"]:
        facts["note"] = "this kit is for %s, and the device is %s" % (kit["soc"], facts["soc"])
        if kit["socs"].get(facts["soc"]) != kit["family"]:
            raise Problem("%s. Pack one for it: neonext-board pack --soc %s" % (facts["note"], facts["soc"]), facts)
    return facts


def version_in(folder):
    """Return the version of an installation, from the first of the files that may hold it, or None."""
    for name in ("version.cfg", "compiler/version.info", "version.info", "runtime/version.info"):
        with contextlib.suppress(OSError, AttributeError):
            text = (folder / name).read_text(encoding="utf-8", errors="replace")
            return re.search(r"^\s*\w*version\w*\s*=\s*\[?(?:[^:\]\n]*:)?([\w.]+)", text, re.I | re.M).group(1)
    return None


def npu_smi():
    """Return the chips that npu-smi lists, by type alone; None without it."""
    log = LOGS / "npu-smi.log"
    if not shutil.which("npu-smi") or run_program(["npu-smi", "info"], log, 60):
        return None
    return [chip for line in log_lines(log) for chip in re.findall(r"^\|\s*\d+\s+(\d{3}\w+)\s*\|", line)]


def step_unpack(kit, args, _):
    """Put the ONNX files and the inputs together: the inputs as arrays, and each as a file of raw bytes."""
    fresh(INPUTS)
    fresh(WORK / "onnx")
    pool = read_pool(HERE, kit["models"])
    for model in kit["models"].values():
        if model["segments"]:
            with open(HERE / model["onnx"], "wb") as file:
                file.writelines(onnx_parts(HERE, model, pool))
    frames = read_frames(HERE, kit["images"])
    for name, array in (("frames", frames), ("float32", normalized(frames, kit["images"]))):
        np.save(INPUTS / (name + ".npy"), array)
        for number, part in enumerate(array):
            (INPUTS / ("%s_%03d.bin" % (name, number))).write_bytes(part.tobytes())
    return {"inputs": len(frames)}


def step_operator(kit, args, _):
    """Build the AscendC operator package and install it into work/opp."""
    output, place = fresh(WORK / "ops_out"), fresh(WORK / "opp")
    os.environ.pop("ASCEND_CUSTOM_OPP_PATH", None)
    build = ["bash", HERE / "ops/build.sh", "--soc", kit["family"], "--work", fresh(WORK / "ops"), "--output", output]
    package = run_tool("build", build, args, lambda lines: [*output.glob("custom_opp_*.run")])[0]
    run_tool("install", ["bash", package, "--install-path=%s" % place], args, lambda lines: VENDOR.is_dir())
    return {"package": package.name}


def step_compile(kit, args, build):
    """Compile one OM file with ATC, in a folder of its own."""
    atc = shutil.which("atc")
    if atc is None:
        raise Missing("atc was not found. Install the CANN toolkit, source its set_env.sh, and start again.")
    folder, log = fresh(WORK / "compile" / build["name"]), LOGS / (build["name"] + ".atc.log")
    for plain, name in build["inputs"].items():
        os.symlink(HERE / name, folder / plain)
    for plain, text in build["configs"].items():
        (folder / plain).write_text(text, encoding="utf-8")
    code = run_program([atc, *build["command"][1:]], log, 0.9 * args.limit, folder)
    if code != 0 or not any(line.startswith("ATC run success") for line in log_lines(log)):
        raise Problem("atc failed (%s). %s" % (how_it_ended(code), explain(kit, log)))
    # ATC may have added the name of the system to the file's.
    made = list(folder.glob("*.om"))
    if len(made) != 1 or not whole_om(made[0]):
        raise Problem("atc reported success, but the file that it wrote is broken or missing. %s" % explain(kit, log))
    OM.mkdir(exist_ok=True)
    os.replace(made[0], om_path(build))
    shutil.rmtree(folder, ignore_errors=True)
    return {"file": made[0].name, "bytes": om_path(build).stat().st_size}


def whole_om(path):
    """Return whether a file starts as an OM file and has the length that its header says."""
    data = path.read_bytes()
    length = int.from_bytes(data[184:192], "little") or int.from_bytes(data[76:80], "little")
    return data[:4] == b"IMOD" and len(data) == length + 256


def step_parity(kit, args, build):
    """Run the inputs of the kit and compare the logits with the original network's."""
    expected, device, results = np.load(HERE / "data" / "logits.npy"), Device(kit, args.device), {}
    for batch in build["batches"]:
        model = Model(device, om_path(build), batch)
        logits = np.concatenate([model.run(part)[0] for part in inputs_of(build, batch)]).astype(np.float32)
        images = slice(build["first"], len(expected))
        results[str(batch)] = compare_logits(kit, build, expected[images], logits[images])
        model.close()
    device.close()
    return results


def step_layers(kit, args, build):
    """Dump the values of all layers for one input, and find the first that diverges."""
    folder, config, batch = fresh(WORK / "dump" / build["name"]), WORK / "dump" / "acl.json", build["batches"][0]
    dump = {"dump_path": str(folder), "dump_mode": "output", "dump_list": [{"model_name": build["output"]}]}
    write_json(config, {"dump": dump})
    device = Device(kit, args.device, config)
    model = Model(device, om_path(build), batch)
    model.run(inputs_of(build, batch)[0])
    device.close()
    network = kit["models"][build["model"]]
    known = {node: number for number, row in enumerate(network["layers"]) for node in row["nodes"]}
    values, unknown = {}, 0
    for path in sorted(path for path in folder.rglob("*") if path.is_file()):
        name, value = read_dump(path)
        number = layer_of(name, known)
        unknown += number is None or value is None
        if number is not None and value is not None:
            values[number] = value
    reference = np.load(HERE / network["values"])
    layers, diverged = compare_layers(network["layers"], reference, values, build["layer_tolerance"])
    shutil.rmtree(folder, ignore_errors=True)
    if not layers:
        raise Problem("none of %d dumped values belongs to a layer of the kit" % unknown)
    return {"diverged_at": diverged, "layers": layers, "unmatched": unknown}


def step_latency(kit, args, batch):
    """Measure all forms that are right for one batch size, in turns, so that all meet the same conditions."""
    device, models = Device(kit, args.device), {}
    for build in right_builds(kit, read_json(REPORT)["steps"], batch):
        models[build["name"]] = Model(device, om_path(build), batch), inputs_of(build, batch)[0]
    times = {name: [] for name in models}
    for model, array in models.values():
        warm_up(model, array, min(5.0, args.seconds / 4))
    end = time.monotonic() + args.seconds
    while time.monotonic() < end or min(map(len, times.values())) < 10:
        for name, (model, array) in models.items():
            times[name] += [model.run(array)[1:] for _ in range(5)]
    result = {}
    for name, samples in times.items():
        compute, total = (np.percentile(part, (50, 90, 99)) for part in zip(*samples))
        compute, total = (dict(zip(("p50", "p90", "p99"), part.tolist())) for part in (compute, total))
        result[name] = {"runs": len(samples), "compute_ms": compute, "with_copies_ms": total}
        result[name].update(images_per_second=1e3 * batch / compute["p50"], device_memory_bytes=models[name][0].memory)
        result[name]["images_per_second_with_copies"] = 1e3 * batch / total["p50"]
    device.close()
    return result


def warm_up(model, array, seconds):
    """Run a model until the medians of two rounds agree within 3 %."""
    end, now = time.monotonic() + seconds, math.inf
    while time.monotonic() < end:
        before, now = now, np.median([model.run(array)[2] for _ in range(10)])
        if abs(now - before) < 0.03 * before:
            return


def step_profile(kit, args, build):
    """Let CANN's profiler watch one form, and add up the times of its tasks by type of operator."""
    folder = fresh(WORK / "profile" / build["name"])
    # msprof takes the command apart at blanks, of which a folder may have some; it is started in work/.
    program = Path("..", "run.py") if " " in str(HERE) else HERE / "run.py"
    application = "%s %s --step parity/%s --device %d" % (sys.executable, program, build["name"], args.device)
    command = ["msprof", "--application=" + application, "--output=%s" % folder]
    tables = run_tool("msprof", command, args, lambda lines: [*folder.rglob("op_summary*.csv")])
    # It watches the comparison of the logits, which runs the model once for each part of the inputs.
    runs, types, tasks = sum(-(-kit["images"]["all"] // batch) for batch in build["batches"]), {}, 0
    with open(tables[0], encoding="utf-8", errors="replace", newline="") as file:
        for row in csv.DictReader(file):
            with contextlib.suppress(ValueError, TypeError):
                micros, kind = float(row.get("Task Duration(us)")), row.get("OP Type") or "other"
                types[kind], tasks = types.get(kind, 0.0) + micros / runs, tasks + 1
    shutil.rmtree(folder, ignore_errors=True)
    return {"tasks": tasks // runs, "us_by_type": dict(sorted(types.items(), key=lambda item: -item[1]))}


def step_ais_bench(kit, args, batch):
    """Measure the fastest form again with ais_bench, Ascend's own program, which does not know of this one."""
    build = fastest(kit, read_json(REPORT)["steps"], batch)
    command = [sys.executable, "-m", "ais_bench", "--model", om_path(build), "--device", args.device]
    command += ["--loop", 100, "--warmup_count", 10, *(["--dymBatch", batch] if len(build["batches"]) > 1 else [])]
    times = re.compile(r"NPU_compute_time \(ms\).* median = ([\d.eE+-]+).* percentile\(99%\) = ([\d.eE+-]+)")
    p50, p99 = run_tool("ais_bench", command, args, lambda lines: times.search("\n".join(lines))).groups()
    return {"file": build["name"], "p50_ms": float(p50), "p99_ms": float(p99)}


def step_mindspore(kit, args, _):
    """Check the operator as training uses it: output and gradients in MindSpore against float64."""
    os.environ["PYTHONPATH"] = os.pathsep.join([str(HERE / "python"), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "neonext_ms.ops.device_check"]
    rows = run_tool("check", command, args, lambda lines: [json.loads(row) for row in lines if row[:7] == '{"case"'])
    return {"compared": len(rows), "rows": rows}


STEPS = {name[5:]: function for name, function in list(globals().items()) if name.startswith("step_")}


# --- The run: which steps there are, and what each needs of the others ------------------------------------------------
def right_builds(kit, steps, batch):
    """Return the OM files that are right at a batch size."""
    parity = {name[7:]: entry["result"] for name, entry in steps.items() if name[:7] == "parity/" and "result" in entry}
    return [build for build in kit["builds"] if parity.get(build["name"], {}).get(str(batch), {}).get("right")]


def fastest(kit, steps, batch):
    """Return the fastest right form of a batch size."""
    times = steps["latency/%d" % batch]["result"]
    name = min(times, key=lambda name: times[name]["compute_ms"]["p50"])
    return next(build for build in kit["builds"] if build["name"] == name)


class Run:
    """Results of this run and of earlier ones."""

    def __init__(self, kit, args):
        self.kit, self.args, self.results, self.earlier = kit, args, {}, {}
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            report = read_json(REPORT)
            if report["kit"]["digest"] == kit["digest"] and INPUTS.is_dir() and not args.again:
                self.earlier = {name: entry for name, entry in report["steps"].items() if entry["status"] == "done"}

    def step(self, name, argument=None, lacks=None):
        """Take a step, unless it lacks something or an earlier run took it; return whether it is done."""
        kind, entry = name.split("/")[0], self.earlier.get(name)
        if lacks:
            entry = {"status": "skipped", "problem": lacks}
        elif entry is None or kind == "machine" or (kind == "compile" and not om_path(argument).is_file()):
            say("%-22s ...\r" % name if sys.stdout and sys.stdout.isatty() else "", "")
            entry = run_step(self.args, name)
            if kind in ("compile", "parity") and entry["status"] == "done":
                # A new file, or a form that was not compared before, voids what comes after.
                void = list(STEPS)[list(STEPS).index(kind) + 1 :]
                self.earlier = {key: old for key, old in self.earlier.items() if key.split("/")[0] not in void}
        self.results[name] = entry
        say("%-22s %-8s %s" % (name, entry["status"], told(name, entry)))
        # A run that is stopped here must not lose what an earlier one has done.
        write_report(self.kit, dict(self.earlier, **self.results), False)
        return entry["status"] == "done"

    def take_all(self, only, builds):
        """Take all steps in order."""
        lacks = None if self.step("files") else "the kit is damaged"
        self.step("machine", None, lacks)
        if self.results["machine"]["status"] == "failed":
            lacks = lacks or "this kit is for another device"
        if not self.step("unpack", None, lacks):
            lacks = lacks or "the kit could not be unpacked"
        if only != "run":
            operator = any(build["operator"] for build in builds) and self.step("operator", None, lacks)
            for build in builds:
                unbuilt = "the operator was not built" if build["operator"] and not operator else None
                self.step("compile/" + build["name"], build, lacks or unbuilt)
        if only == "compile":
            return
        for build in builds:
            name = "parity/" + build["name"]
            compared = self.step(name, build, lacks or (None if om_path(build).is_file() else "not compiled"))
            if compared and not all(row["right"] for row in self.results[name]["result"].values()):
                self.step("layers/" + build["name"], build)
        machine = self.results["machine"].get("result", {})
        for batch in self.kit["batches"]:
            right = right_builds(self.kit, self.results, batch)
            if self.step("latency/%d" % batch, batch, None if right else "no form is right at this batch size"):
                if machine.get("ais_bench"):
                    self.step("ais_bench/%d" % batch, batch)
                if machine.get("msprof"):
                    build = fastest(self.kit, self.results, batch)
                    self.step("profile/" + build["name"], build)
        if machine.get("mindspore") and any(build["operator"] for build in builds):
            self.step("mindspore", None, None if VENDOR.is_dir() else "the operator was not built")


def run_step(args, name):
    """Run one step in a process of its own; return its entry of the report."""
    stem = name.replace("/", "_")
    result, log = WORK / "steps" / (stem + ".json"), LOGS / (stem + ".step.log")
    with contextlib.suppress(OSError):
        result.unlink()
    limit = args.timeout or LIMITS.get(name.split("/")[0], 600 + 4 * args.seconds)
    command = [sys.executable, HERE / "run.py", *sys.argv[1:], "--step", name, "--limit", limit]
    start, entry = time.monotonic(), {}
    code = run_program(command, log, limit, HERE, operator_environment())
    with contextlib.suppress(OSError, ValueError):
        entry = read_json(result)
    if code is None:
        entry = {"status": "timeout", "problem": "it did not finish within %g s" % limit}
    elif code != 0 or not entry:
        entry = {"status": "crashed", "problem": "%s; %s" % (how_it_ended(code), last_line(log))}
    return dict(entry, seconds=round(time.monotonic() - start, 1))


def step_main(kit, args):
    """Run one step in this process, and write its result."""
    kind, _, rest = args.step.partition("/")
    argument = int(rest) if rest.isdigit() else next((b for b in kit["builds"] if b["name"] == rest), None)
    try:
        entry = {"status": "done", "result": STEPS[kind](kit, args, argument)}
    except Problem as problem:
        entry = {"status": "missing" if isinstance(problem, Missing) else "failed", "problem": private(problem.args[0])}
        entry.update({"result": problem.args[1]} if len(problem.args) > 1 else {})
    except Exception as problem:
        sys.excepthook(*sys.exc_info())
        entry = {"status": "failed", "problem": private("%s: %s" % (type(problem).__name__, problem))[:300]}
    write_json(WORK / "steps" / (args.step.replace("/", "_") + ".json"), entry)
    sys.stdout.flush()
    # CANN's libraries may hang or crash when a process ends that met an error.
    os._exit(0)


def write_report(kit, results, finished):
    """Write the report of what is known so far, and return it."""
    facts = ("name", "soc", "level", "neonext_ms", "batches", "classes", "activation", "image_size", "digest")
    columns = ("name", "form", "summary", "batches", "predicted", "export")
    report = {"board_report": 1, "kit": {key: kit[key] for key in facts}, "finished": finished, "steps": results}
    report["builds"] = [{key: build[key] for key in columns} for build in kit["builds"]]
    write_json(REPORT, report)
    return report


def run_all(kit, args):
    """Take all steps that have not been taken; return the exit code."""
    WORK.mkdir(exist_ok=True)
    lock = open(WORK / "lock", "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit("error: another run of this kit is under way. Wait for it.")
    run = Run(kit, args)
    run.take_all(args.only, [build for build in kit["builds"] if not args.forms or build["form"] in args.forms])
    steps = dict(run.earlier, **run.results) if args.only or args.forms else run.results
    report = write_report(kit, steps, True)
    template = (HERE / "page.html").read_text(encoding="utf-8")
    # `</` inside a script would end it.
    write_text(PAGE, template.replace("{REPORT}", json.dumps(report, ensure_ascii=False).replace("</", "<\\/")))
    say("\nwrote %s, to read, and %s, to send back" % (PAGE.name, REPORT.name))
    return 0 if all(entry["status"] in ("done", "skipped") for entry in run.results.values()) else 1


def told(name, entry):
    """Return one line about a step for the terminal."""
    kind, result = name.split("/")[0], entry.get("result") or {}
    if entry["status"] != "done":
        return entry.get("problem", "")
    if kind == "parity":
        text = "batch %s: %s, relative L2 %s, top-1 %d/%d"
        rows = [(batch, "right" if row["right"] else "WRONG", row) for batch, row in result.items()]
        return "; ".join(text % (*head, row["relative_l2"], row["top1_agree"], row["samples"]) for *head, row in rows)
    if kind == "layers":
        return "the first layer that diverges is %s" % result["diverged_at"]
    if kind == "latency":
        return ", ".join("%s %.2f ms" % (name, row["compute_ms"]["p50"]) for name, row in result.items())
    keys = ("soc", "cann", "files", "inputs", "file", "p50_ms", "tasks", "package", "compared")
    return ", ".join("%s %s" % (key, result[key]) for key in keys if result.get(key))


def main():
    parser = argparse.ArgumentParser(description=ABOUT, formatter_class=argparse.RawDescriptionHelpFormatter)
    option = parser.add_argument
    option("--only", choices=("compile", "run"), help="compile on a host without a device, then run on the board")
    option("--forms", type=lambda text: text.split(","), help="these forms only, such as matmul,aipp; see kit.json")
    option("--device", type=int, default=0, help="number of the device (0)")
    option("--seconds", type=float, default=15.0, help="time to measure each batch size (15)")
    option("--timeout", type=float, help="seconds that a step may take, instead of its own limit")
    option("--again", action="store_true", help="repeat what was done")
    option("--step", help=argparse.SUPPRESS)
    option("--limit", type=float, default=600.0, help=argparse.SUPPRESS)
    args = parser.parse_args()
    try:
        kit = read_json(HERE / "kit.json")
        kit["digest"] = sha256(HERE / "SHA256SUMS")[:16]
        forms = {build["form"] for build in kit["builds"]}
    except (OSError, ValueError, KeyError) as error:
        sys.exit("error: this is not a complete kit (%s). Copy it again." % private(error))
    if args.step:
        step_main(kit, args)
    if args.forms and set(args.forms) - forms:
        parser.error("--forms: expected some of %s" % ", ".join(sorted(forms)))
    if not 0.1 <= args.seconds <= 3600 or args.device < 0 or (args.timeout is not None and not args.timeout > 0):
        parser.error("expected --seconds from 0.1 to 3600, --device from 0, --timeout above 0")
    try:
        return run_all(kit, args)
    except OSError as error:
        sys.exit("error: %s: %s" % (error.filename, error.strerror))


if __name__ == "__main__":
    sys.exit(main())
