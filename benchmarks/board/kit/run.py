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
import os
import platform
import re
import shutil
import signal
import subprocess
import sys
import time
import traceback
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
SHARES = (("p50", 0.5), ("p90", 0.9), ("p99", 0.99))


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


def private(text):
    """Return text without the folders, users, addresses and name of this machine."""
    text = str(text).replace(str(HERE), "KIT")
    home = os.path.expanduser("~")
    text = re.sub(r"/(?:home|root|Users)/[^/\s:'\"]+", "~", text.replace(home, "~") if len(home) > 1 else text)
    text = re.sub(r"\b\d{1,3}(?:\.\d{1,3}){3}\b", "ADDRESS", text)
    host = platform.node()
    return re.sub(r"\b%s\b" % re.escape(host), "HOST", text) if len(host) > 2 else text


def finite(value):
    """Return a number for JSON, which has no infinity."""
    return float("%.4g" % value) if math.isfinite(value) else None


# --- Other programs ---------------------------------------------------------------------------------------------------
def run_program(command, log, seconds, cwd=None, env=None):
    """Run a program with its output in a file and a time limit; return its exit code, None after the limit.

    No process of it is left behind, and none outlives this one.
    """
    log.parent.mkdir(parents=True, exist_ok=True)
    command = [str(part) for part in command]
    with open(log, "w", encoding="utf-8", errors="replace") as output:
        output.write("$ %s\n" % " ".join(command))
        output.flush()
        options = {"stdin": subprocess.DEVNULL, "stdout": output, "stderr": subprocess.STDOUT, "cwd": cwd, "env": env}
        try:
            process = subprocess.Popen(command, start_new_session=True, preexec_fn=die_with_parent, **options)
        except OSError as error:
            raise Missing("%s cannot be started (%s)" % (command[0], error.strerror))
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
    if code is None or code >= 0:
        return "it did not finish within its time limit" if code is None else "exit code %d" % code
    with contextlib.suppress(ValueError):
        return "killed by %s" % signal.Signals(-code).name
    return "killed by signal %d" % -code


def log_lines(log):
    with open(log, encoding="utf-8", errors="replace") as lines:
        return [line.strip()[:2000] for line in lines if line.strip() and not line.startswith("$ ")]


def last_line(log):
    """Return the last error in a log, or else its last line."""
    lines = log_lines(log)
    errors = [line for line in lines if re.search(r"\berror\b", line, re.I)]
    return private((errors or lines or ["it printed nothing"])[-1])[:300]


def explain(kit, log):
    """Return the first known error in a log of CANN's tools, in the words of neonext-export."""
    table, text, code = kit["errors"], None, None
    for line in log_lines(log):
        match = re.search(r"(?<![\w./=-])(E[0-9A-Z]\d{4})(?=[:)\]\s]|$)", line)
        if match and code is None:
            advice = table["codes"].get(match.group(1), table["unknown"])
            code = [line[match.start() :], *advice, match.group(1) in table["internal"]]
        for pattern, meaning, remedy in table["texts"] if text is None else ():
            if re.search(pattern, line):
                text = [line, meaning, remedy]
                break
    # An internal error says nothing by itself.
    found = text if text and (code is None or code[3]) else code
    if found is None:
        return "its last line: " + last_line(log)
    return "%s: %s; %s" % (private(found[0])[:300].rstrip(".: "), found[1], found[2])


def cann_home():
    """Return the folder of CANN's toolkit, or None."""
    places = [os.environ.get(name) for name in ("ASCEND_TOOLKIT_HOME", "ASCEND_HOME_PATH")]
    places += ["/usr/local/Ascend/ascend-toolkit/latest", "/usr/local/Ascend/cann"]
    return next((Path(place) for place in places if place and os.path.isdir(place)), None)


def operator_environment():
    """Return the environment in which ATC and ACL find the operator package of this kit."""
    environ = dict(os.environ)
    if VENDOR.is_dir():
        old = environ.get("ASCEND_CUSTOM_OPP_PATH")
        environ["ASCEND_CUSTOM_OPP_PATH"] = str(VENDOR) + (":" + old if old else "")
    return environ


# --- The device, through pyACL, which comes with CANN -----------------------------------------------------------------


class Device:
    """The device of this process. `config` is a file for acl.init, such as one that asks for a dump."""

    def __init__(self, kit, number, config=None):
        try:
            import acl
        except ImportError:
            raise Missing("the Python module acl is not here. Install CANN and source its set_env.sh.")
        self.acl, self.number, self.known = acl, number, kit["acl"]
        self.check("init", acl.init(str(config)) if config else acl.init())
        self.check("rt.set_device", acl.rt.set_device(number))
        self.context = self.value("rt.create_context", acl.rt.create_context(number))

    def check(self, name, code):
        if code:
            meaning = self.known["codes"].get(str(code), "see CANN's aclError")
            raise Problem("acl.%s failed with %s (%s)" % (name, code, meaning))

    def value(self, name, result):
        self.check(name, result[-1])
        return result[0]

    def free_memory(self):
        """Return the free bytes of the device, or None if it does not tell."""
        for kind in (1, 0):
            with contextlib.suppress(Exception):
                free, total, code = self.acl.rt.get_mem_info(kind)
                if not code and total:
                    return free
        return None

    def close(self):
        self.acl.rt.destroy_context(self.context)
        self.acl.rt.reset_device(self.number)
        self.acl.finalize()


class Model:
    """An OM file on the device, for one batch size."""

    def __init__(self, device, path, batch):
        acl, self.device = device.acl, device
        before = device.free_memory()
        self.model = device.value("mdl.load_from_file", acl.mdl.load_from_file(str(path)))
        self.desc = acl.mdl.create_desc()
        device.check("mdl.get_desc", acl.mdl.get_desc(self.desc, self.model))
        (self.inputs, buffers), (self.outputs, self.out) = self.dataset("input"), self.dataset("output")
        self.input, self.buffers = buffers[0], [*buffers, *self.out]
        if len(buffers) > 1:
            # The name that ATC gives to the extra input of a file with several batch sizes.
            index = acl.mdl.get_input_index_by_name(self.desc, "ascend_mbatch_shape_data")
            index = device.value("mdl.get_input_index_by_name", index)
            code = acl.mdl.set_dynamic_batch_size(self.model, self.inputs, index, batch)
            device.check("mdl.set_dynamic_batch_size", code)
        self.fixed = len(buffers) == 1
        after = device.free_memory()
        self.memory = None if before is None or after is None else before - after
        dims = device.value("mdl.get_output_dims", acl.mdl.get_output_dims(self.desc, 0))["dims"]
        code = str(acl.mdl.get_output_data_type(self.desc, 0))
        if code not in device.known["dtypes"]:
            raise Problem("the output has the data type %s of acl, which this program does not know" % code)
        self.output = np.empty([batch, *dims[1:]], device.known["dtypes"][code])

    def dataset(self, side):
        """Return a dataset with device memory for every input or output, and its buffers."""
        acl, buffers = self.device.acl, []
        dataset = acl.mdl.create_dataset()
        for index in range(getattr(acl.mdl, "get_num_%ss" % side)(self.desc)):
            size = getattr(acl.mdl, "get_%s_size_by_index" % side)(self.desc, index)
            address = self.device.value("rt.malloc", acl.rt.malloc(size, 0))
            buffer = acl.create_data_buffer(address, size)
            acl.mdl.add_dataset_buffer(dataset, buffer)
            buffers.append((address, size, buffer))
        return dataset, buffers

    def copy_in(self, array):
        (address, size, _), data = self.input, array.ctypes.data
        if self.fixed and array.nbytes != size:
            raise Problem("the file takes %d bytes, the input has %d" % (size, array.nbytes))
        self.device.check("rt.memcpy", self.device.acl.rt.memcpy(address, size, data, array.nbytes, 1))

    def execute(self):
        self.device.check("mdl.execute", self.device.acl.mdl.execute(self.model, self.inputs, self.outputs))

    def copy_out(self):
        out, address = self.output, self.out[0][0]
        self.device.check("rt.memcpy", self.device.acl.rt.memcpy(out.ctypes.data, out.nbytes, address, out.nbytes, 2))
        return out

    def run(self, array):
        self.copy_in(array)
        self.execute()
        return self.copy_out().copy()

    def close(self):
        acl = self.device.acl
        for address, _, buffer in self.buffers:
            acl.destroy_data_buffer(buffer)
            acl.rt.free(address)
        for dataset in (self.inputs, self.outputs):
            acl.mdl.destroy_dataset(dataset)
        acl.mdl.destroy_desc(self.desc)
        acl.mdl.unload(self.model)


# --- Inputs and comparisons -------------------------------------------------------------------------------------------
def inputs_of(build):
    """Return the inputs of an OM file: bytes for one that normalizes on the device, else float32 (N, 3, H, W)."""
    return np.load(str(INPUTS / (build["feed"] + ".npy")))


def chunks(array, size):
    """Yield parts of a batch size, the last filled up with zeros, and the number of images in each."""
    for start in range(0, len(array), size):
        part = array[start : start + size]
        filled = np.zeros((size, *array.shape[1:]), array.dtype)
        filled[: len(part)] = part
        yield filled, len(part)


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


def aligned(value, shape):
    """Return a dumped value of the first image in the shape (C, H, W) of the reference; None if that cannot be."""
    value = value[0] if value.ndim == len(shape) + 1 else value
    if list(value.shape) == shape:
        return value
    if len(shape) == 3 and list(value.shape[1:]) == shape[1:]:
        return value[: shape[0]]
    if len(shape) == 3 and list(value.shape) == [*shape[1:], shape[0]]:
        return value.transpose(2, 0, 1)
    size = int(np.prod(shape))
    return value.ravel()[:size].reshape(shape) if value.size and value.size % size == 0 else None


# CANN's ONNX parser replaces some nodes by several, named PartitionedCall_<node>_<part>_<number>.
PART = re.compile(r"PartitionedCall_((?:(?!PartitionedCall_).)+)_(add|LayerNorm|MatMulV2|ReduceMean|Transpose)_\d+$")


def layer_of(op, known):
    """Return the number of the layer that an operator of a dump computes, or None."""
    match = PART.search(op)
    if op in known or (match and match.group(1) in known):
        return known[op if op in known else match.group(1)]
    # The name of a fused operator consists of those of its parts; its value is that of the last.
    ends = {0: None}
    for end in range(1, len(op) + 1):
        for start in list(ends):
            for name in (op[start:end], op[start + 1 : end] if start and op[start] == "_" else None):
                if name in known:
                    ends[end] = name
    return known.get(ends.get(len(op)))


def compare_layers(rows, reference, values, tolerance):
    """Compare dumped values, by number of a layer, with the reference; return all, and the first that diverges."""
    relative, reads, after = {}, {}, {}
    for number, row in enumerate(rows):
        value = aligned(values[number], row["shape"]) if number in values else None
        # A layer that was not dumped stands for those that it reads.
        sources = {n for source in row["sources"] for n in ([source] if source in relative else reads[source])}
        reads[number] = sources
        if value is None:
            continue
        flat = value.ravel()[:: row["step"]]
        relative[number] = deviation(reference[row["start"] : row["start"] + flat.size], flat)
        for source in sources:
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


def quantile(values, share):
    return sorted(values)[min(len(values) - 1, int(share * len(values)))]


# --- Steps. Each runs in a process of its own and returns plain values. -----------------------------------------------
def om_path(build):
    """Return the OM file of a build; ATC may have added the name of the system to its own."""
    plain = OM / (build["output"] + ".om")
    others = sorted(OM.glob(build["output"] + "_linux_*.om"))
    return others[0] if others and not plain.is_file() else plain


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
    from importlib.util import find_spec

    home, versions = cann_home(), ("version.cfg", "compiler/version.info", "version.info", "runtime/version.info")
    facts = {"python": platform.python_version(), "numpy": np.__version__, "machine": platform.machine()}
    facts["processors"], facts["chips"], facts["soc"] = os.cpu_count(), npu_smi(), None
    facts["memory_gb"] = round(os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE") / 1e9, 1)
    facts["cann"], facts["kernels"] = version_in(home, versions), kernels(home, kit["family"])
    facts["driver"] = version_in(Path("/usr/local/Ascend/driver"), ("version.info",))
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


def version_in(folder, names):
    """Return the version in the first of several files of an installation, or None."""
    for name in names if folder else ():
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


def kernels(home, family):
    """Return whether CANN's kernels for the family are installed; None if that is not known."""
    for place in (os.environ.get("ASCEND_OPP_PATH"), home and home / "opp"):
        if place and os.path.isdir(place):
            return any(Path(place).glob("built-in/op_impl/ai_core/tbe/kernel/%s*" % family))
    return None


def step_unpack(kit, args, _):
    """Put the ONNX files and the inputs together, which are stored in parts."""
    log = LOGS / "unpack.log"
    code = run_program([sys.executable, HERE / "unpack.py"], log, 0.9 * args.limit)
    if code != 0:
        raise Problem("unpack.py failed (%s): %s" % (how_it_ended(code), last_line(log)))
    return {"inputs": kit["images"]["all"]}


def step_operator(kit, args, _):
    """Build the AscendC operator package and install it into work/opp."""
    home, output, place = cann_home(), WORK / "ops_out", WORK / "opp"
    if home is None:
        raise Missing("no CANN toolkit. Install it and source its set_env.sh.")
    for folder in (WORK / "ops", output, place):
        shutil.rmtree(str(folder), ignore_errors=True)
    environ = {key: value for key, value in os.environ.items() if key != "ASCEND_CUSTOM_OPP_PATH"}
    command = ["bash", HERE / "ops" / "build.sh", "--soc", kit["family"], "--cann", home]
    log = LOGS / "operator.log"
    code = run_program([*command, "--work", WORK / "ops", "--output", output], log, 0.9 * args.limit, env=environ)
    packages = sorted(output.glob("custom_opp_*.run"))
    if code != 0 or not packages:
        raise (Missing if code == 3 else Problem)("the build failed (%s): %s" % (how_it_ended(code), last_line(log)))
    place.mkdir(parents=True)
    log = LOGS / "operator_install.log"
    code = run_program(["bash", packages[0], "--install-path=%s" % place], log, 300, env=environ)
    if code != 0 or not VENDOR.is_dir():
        raise Problem("the installation failed (%s): %s" % (how_it_ended(code), last_line(log)))
    return {"package": packages[0].name}


def step_compile(kit, args, build):
    """Compile one OM file with ATC, in a folder of its own."""
    atc = shutil.which("atc")
    if atc is None:
        raise Missing("atc was not found. Install the CANN toolkit, source its set_env.sh, and start again.")
    folder, log = WORK / "compile" / build["name"], LOGS / (build["name"] + ".atc.log")
    shutil.rmtree(str(folder), ignore_errors=True)
    folder.mkdir(parents=True)
    for plain, name in build["inputs"].items():
        os.symlink(str(HERE / name), str(folder / plain))
    for plain, text in build["configs"].items():
        (folder / plain).write_text(text, encoding="utf-8")
    start = time.monotonic()
    code = run_program([atc, *build["command"][1:]], log, 0.9 * args.limit, folder, operator_environment())
    seconds = time.monotonic() - start
    name = re.escape(build["output"]) + r"(_linux_\w+)?\.om"
    made = [path for path in folder.glob("*.om") if re.match(name + "$", path.name)]
    starts = {line[:15] for line in log_lines(log)}
    problem = None
    if code != 0:
        problem = "atc failed (%s)" % how_it_ended(code)
    elif "ATC run success" not in starts or any(line.startswith("ATC run failed") for line in starts):
        problem = "atc ended with exit code 0, but without success"
    elif len(made) != 1 or not whole_om(made[0]):
        problem = "atc reported success, but " + ("the file that it wrote is broken" if made else "wrote no file")
    if problem:
        raise Problem("%s. %s" % (problem, explain(kit, log)))
    OM.mkdir(parents=True, exist_ok=True)
    target = OM / made[0].name
    os.replace(str(made[0]), str(target))
    shutil.rmtree(str(folder), ignore_errors=True)
    return {"file": target.name, "bytes": target.stat().st_size, "compile_seconds": round(seconds, 1)}


def whole_om(path):
    """Return whether a file starts as an OM file and has the length that its header says."""
    with open(path, "rb") as file:
        head = file.read(256)
    length = int.from_bytes(head[184:192], "little") or int.from_bytes(head[76:80], "little")
    return head[:4] == b"IMOD" and path.stat().st_size == length + 256


def step_parity(kit, args, build):
    """Run the inputs of the kit and compare the logits with the original network's."""
    array, expected, results = inputs_of(build), np.load(str(HERE / "data" / "logits.npy")), {}
    device = Device(kit, args.device)
    for batch in build["batches"]:
        model = Model(device, om_path(build), batch)
        rows = [model.run(part)[:count] for part, count in chunks(array, batch)]
        logits = np.concatenate(rows).astype(np.float32)
        results[str(batch)] = compare_logits(kit, build, expected[build["first"] :], logits[build["first"] :])
        model.close()
    device.close()
    return results


def step_layers(kit, args, build):
    """Dump the values of all layers for one input, and find the first that diverges."""
    import dumps

    folder = WORK / "dump" / build["name"]
    shutil.rmtree(str(folder), ignore_errors=True)
    batch = build["batches"][0]
    dump = {"dump_path": str(folder), "dump_mode": "output", "dump_list": [{"model_name": build["output"]}]}
    write_json(folder / "acl.json", {"dump": dump})
    device = Device(kit, args.device, folder / "acl.json")
    model = Model(device, om_path(build), batch)
    model.run(next(chunks(inputs_of(build), batch))[0])
    model.close()
    device.close()
    network = kit["models"][build["model"]]
    known = {node: number for number, row in enumerate(network["layers"]) for node in row["nodes"]}
    values, unknown = {}, 0
    for path in sorted(path for path in folder.rglob("*") if path.is_file() and path.name != "acl.json"):
        name, value = dumps.read_dump(path)
        number = layer_of(name, known)
        unknown += number is None or value is None
        if number is not None and value is not None:
            values[number] = value
    reference = np.load(str(HERE / network["values"]))
    layers, diverged = compare_layers(network["layers"], reference, values, build["layer_tolerance"])
    shutil.rmtree(str(folder), ignore_errors=True)
    if not layers:
        raise Problem("none of %d dumped values belongs to a layer of the kit" % unknown)
    return {"diverged_at": diverged, "layers": layers, "unmatched": unknown}


def step_latency(kit, args, batch):
    """Measure all forms that are right for one batch size, in turns, so that all meet the same conditions."""
    steps, device, models = read_json(REPORT)["steps"], Device(kit, args.device), {}
    for build in kit["builds"]:
        if batch in build["batches"] and is_right(steps, build, batch):
            model = Model(device, om_path(build), batch)
            models[build["name"]] = model, next(chunks(inputs_of(build), batch))[0]
    times = {name: [] for name in models}
    for model, array in models.values():
        warm_up(model, array, min(5.0, args.seconds / 4))
    end = time.monotonic() + args.seconds
    while time.monotonic() < end or min(map(len, times.values())) < 10:
        for name, (model, array) in models.items():
            for _ in range(5):
                start = time.perf_counter()
                model.copy_in(array)
                copied = time.perf_counter()
                model.execute()
                done = time.perf_counter()
                model.copy_out()
                times[name].append((1e3 * (done - copied), 1e3 * (time.perf_counter() - start)))
    result = {}
    for name, samples in times.items():
        compute, total = ({key: quantile(part, share) for key, share in SHARES} for part in zip(*samples))
        result[name] = {"runs": len(samples), "compute_ms": compute, "with_copies_ms": total}
        result[name]["images_per_second"] = 1e3 * batch / compute["p50"]
        result[name]["images_per_second_with_copies"] = 1e3 * batch / total["p50"]
        result[name]["device_memory_bytes"] = models[name][0].memory
    for model, _ in models.values():
        model.close()
    device.close()
    return result


def warm_up(model, array, seconds):
    """Run a model until the medians of two rounds agree within 3 %."""
    end, before = time.monotonic() + seconds, math.inf
    while time.monotonic() < end:
        times = []
        for _ in range(10):
            start = time.perf_counter()
            model.run(array)
            times.append(time.perf_counter() - start)
        now = quantile(times, 0.5)
        if abs(now - before) < 0.03 * before:
            return
        before = now


def step_profile(kit, args, build):
    """Let CANN's profiler watch one form, and add up the times of its tasks by type of operator."""
    folder, log = WORK / "profile" / build["name"], LOGS / (build["name"] + ".msprof.log")
    shutil.rmtree(str(folder), ignore_errors=True)
    application = "%s %s --step parity/%s --device %d" % (sys.executable, HERE / "run.py", build["name"], args.device)
    command = ["msprof", "--application=" + application, "--output=%s" % folder]
    code = run_program(command, log, 0.9 * args.limit, HERE, operator_environment())
    tables = sorted(folder.rglob("op_summary*.csv"))
    if code != 0 or not tables:
        raise Problem("msprof failed (%s): %s" % (how_it_ended(code), last_line(log)))
    # It watches the comparison of the logits, which runs the model once for each part of the inputs.
    runs, types, tasks = sum(-(-kit["images"]["all"] // batch) for batch in build["batches"]), {}, 0
    with open(tables[0], encoding="utf-8", errors="replace", newline="") as file:
        for row in csv.DictReader(file):
            with contextlib.suppress(ValueError, TypeError):
                micros = float(row.get("Task Duration(us)"))
                kind = row.get("OP Type") or "other"
                types[kind], tasks = types.get(kind, 0.0) + micros / runs, tasks + 1
    shutil.rmtree(str(folder), ignore_errors=True)
    return {"tasks": tasks // runs, "us_by_type": dict(sorted(types.items(), key=lambda item: -item[1]))}


def step_ais_bench(kit, args, batch):
    """Measure the fastest form again with ais_bench, Ascend's own program, which does not know of this one."""
    build, log = fastest(kit, read_json(REPORT)["steps"], batch), LOGS / ("ais_bench_%d.log" % batch)
    command = [sys.executable, "-m", "ais_bench", "--model", om_path(build), "--device", args.device]
    command += ["--loop", 100, "--warmup_count", 10, *(["--dymBatch", batch] if len(build["batches"]) > 1 else [])]
    code = run_program(command, log, 0.9 * args.limit, WORK)
    summary = " ".join(line for line in log_lines(log) if "NPU_compute_time (ms)" in line)
    times = [re.search(re.escape(name) + r" = ([\d.eE+-]+)", summary) for name in ("median", "percentile(99%)")]
    if code != 0 or None in times:
        raise Problem("ais_bench failed (%s): %s" % (how_it_ended(code), last_line(log)))
    return {"file": build["name"], "p50_ms": float(times[0].group(1)), "p99_ms": float(times[1].group(1))}


def step_mindspore(kit, args, _):
    """Check the operator as training uses it: output and gradients in MindSpore against float64."""
    log, environ = LOGS / "mindspore.log", operator_environment()
    environ["PYTHONPATH"] = os.pathsep.join([str(HERE / "python"), environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "neonext_ms.ops.device_check"]
    code = run_program(command, log, 0.9 * args.limit, WORK, environ)
    rows = [json.loads(line) for line in log_lines(log) if line.startswith('{"case"')]
    if code != 0 or not rows:
        raise (Missing if code == 3 else Problem)("the check ended with %s: %s" % (how_it_ended(code), last_line(log)))
    wrong = ["%(of)s of %(case)s in %(dtype)s" % row for row in rows if not row["difference"] <= row["tolerance"]]
    if wrong:
        raise Problem("these differ from float64: %s" % ", ".join(wrong[:5]), {"rows": rows})
    return {"compared": len(rows), "rows": rows}


STEPS = {name[5:]: function for name, function in list(globals().items()) if name.startswith("step_")}


# --- The run: which steps there are, and what each needs of the others ------------------------------------------------
def is_done(results, name):
    return results.get(name, {}).get("status") == "done"


def is_right(results, build, batch):
    name = "parity/" + build["name"]
    return is_done(results, name) and bool(results[name]["result"].get(str(batch), {}).get("right"))


def fastest(kit, results, batch):
    """Return the fastest right form of a batch size."""
    times = results["latency/%d" % batch]["result"]
    name = min(times, key=lambda name: times[name]["compute_ms"]["p50"])
    return next(build for build in kit["builds"] if build["name"] == name)


def plan(kit, args, results):
    """Yield the steps in order: name, argument, and why the step cannot run (or None).

    What a step needs is looked up when its turn comes, so results have to arrive meanwhile.
    """
    builds = [build for build in kit["builds"] if not args.forms or build["form"] in args.forms]
    yield "files", None, None
    lacks = None if is_done(results, "files") else "the kit is damaged"
    yield "machine", None, lacks
    machine = results["machine"].get("result", {})
    if results["machine"]["status"] == "failed":
        lacks = lacks or "this kit is for another device"
    yield "unpack", None, lacks
    lacks = lacks or (None if is_done(results, "unpack") else "the kit could not be unpacked")
    if args.only != "run":
        if any(build["operator"] for build in builds):
            yield "operator", None, lacks
        for build in builds:
            unbuilt = build["operator"] and not is_done(results, "operator")
            yield "compile/" + build["name"], build, lacks or ("the operator was not built" if unbuilt else None)
    if args.only == "compile":
        return
    for build in builds:
        name = "parity/" + build["name"]
        yield name, build, lacks or (None if om_path(build).is_file() else "not compiled")
        if is_done(results, name) and not all(is_right(results, build, batch) for batch in build["batches"]):
            yield "layers/" + build["name"], build, None
    for batch in kit["batches"]:
        right = [build for build in builds if batch in build["batches"] and is_right(results, build, batch)]
        yield "latency/%d" % batch, batch, None if right else "no form is right at this batch size"
        if is_done(results, "latency/%d" % batch):
            if machine.get("ais_bench"):
                yield "ais_bench/%d" % batch, batch, None
            if machine.get("msprof"):
                build = fastest(kit, results, batch)
                yield "profile/" + build["name"], build, None
    if machine.get("mindspore") and any(build["operator"] for build in builds):
        yield "mindspore", None, None if VENDOR.is_dir() else "the operator was not built"


def run_step(kit, args, name):
    """Run one step in a process of its own; return its entry of the report."""
    kind, stem = name.split("/")[0], name.replace("/", "_")
    result, log = WORK / "steps" / (stem + ".json"), LOGS / (stem + ".step.log")
    with contextlib.suppress(OSError):
        result.unlink()
    limit = args.timeout or LIMITS.get(kind, 600 + 4 * args.seconds)
    command = [sys.executable, HERE / "run.py", "--step", name, "--limit", limit, "--device", args.device]
    command += ["--seconds", args.seconds, *(["--only", args.only] if args.only else [])]
    start = time.monotonic()
    code = run_program(command, log, limit, HERE, operator_environment())
    entry = {}
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
        traceback.print_exc()
        entry = {"status": "failed", "problem": private("%s: %s" % (type(problem).__name__, problem))[:300]}
    write_json(WORK / "steps" / (args.step.replace("/", "_") + ".json"), entry)
    sys.stdout.flush()
    # CANN's libraries may hang or crash when a process ends that met an error.
    os._exit(0)


def write_report(kit, results, finished):
    """Write the report of what is known so far, and return it."""
    facts = ("name", "soc", "level", "neonext_ms", "batches", "classes", "image_size", "digest")
    columns = ("name", "form", "summary", "batches", "predicted", "export")
    report = {"board_report": 1, "kit": {key: kit[key] for key in facts}, "finished": finished, "steps": results}
    report["builds"] = [{key: build[key] for key in columns} for build in kit["builds"]]
    write_json(REPORT, report)
    return report


def earlier_steps(kit):
    """Return what an earlier run of this kit has done."""
    with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
        report = read_json(REPORT)
        if report["kit"]["digest"] == kit["digest"]:
            return {name: entry for name, entry in report["steps"].items() if entry["status"] == "done"}
    return {}


def holds(kit, name, argument, entry, results):
    """Return whether what an earlier run did is there, and all that is wanted now."""
    if name == "unpack":
        # The last file that it writes.
        return (INPUTS / ("float32_%03d.bin" % (kit["images"]["all"] - 1))).is_file()
    if name.startswith("latency/"):
        right = [b["name"] for b in kit["builds"] if argument in b["batches"] and is_right(results, b, argument)]
        return set(right) <= set(entry["result"])
    return not name.startswith("compile/") or om_path(argument).is_file()


def run_all(kit, args):
    """Run all steps that have not been done; return the exit code."""
    WORK.mkdir(exist_ok=True)
    lock = open(WORK / "lock", "w")
    try:
        fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        sys.exit("error: another run of this kit is under way. Wait for it.")
    kept, results = {} if args.again else earlier_steps(kit), {}
    for name, argument, lacks in plan(kit, args, results):
        entry = kept.get(name)
        if lacks:
            entry = {"status": "skipped", "problem": lacks}
        elif entry is None or not holds(kit, name, argument, entry, results):
            print("%-22s ...\r" % name if sys.stdout.isatty() else "", end="", flush=True)
            entry = run_step(kit, args, name)
        results[name] = entry
        print("%-22s %-8s %s" % (name, entry["status"], told(name, entry)), flush=True)
        # A run that is stopped here must not lose what an earlier one has done.
        write_report(kit, dict(kept, **results), False)
    report = write_report(kit, dict(kept, **results) if args.only or args.forms else results, True)
    template = (HERE / "page.html").read_text(encoding="utf-8")
    # `</` inside a script would end it.
    write_text(PAGE, template.replace("{REPORT}", json.dumps(report, ensure_ascii=False).replace("</", "<\\/")))
    print("\nwrote %s, to read, and %s, to send back" % (PAGE.name, REPORT.name))
    return 0 if all(entry["status"] in ("done", "skipped") for entry in results.values()) else 1


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
    keys = [
        key
        for key in ("soc", "cann", "files", "inputs", "file", "p50_ms", "tasks", "package", "compared")
        if result.get(key)
    ]
    return ", ".join("%s %s" % (key, result[key]) for key in keys)


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
