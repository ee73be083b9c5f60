"""python -m neonext_ms: list the commands."""

from __future__ import annotations

from neonext_ms.common.cli import Parser

COMMANDS = {
    "neonext-export": "write verified ONNX and MindIR files, or an OM file from a verified ONNX file",
    "neonext-convert": "convert a checkpoint between PyTorch, MindSpore and safetensors",
    "neonext-predict": "classify images with a model file",
    "neonext-validate": "measure the accuracy of a model on labelled images",
    "neonext-info": "describe a model or a file; list the models and the published figures",
    "neonext-compare": "compare checkpoints, exported files and device dumps, layer by layer",
    "neonext-ops": "build, install and check the NeoCell operator for Ascend, or simulate it",
    "neonext-train": "train a model from a configuration file, resume a run, or fine-tune",
    "neonext-plot": "draw the loss and accuracy of training runs",
    "neonext-mindrecord": "pack a folder of images into MindRecord files",
    "neonext-bench": "measure models side by side, or estimate their speed on a device",
    "neonext-board": "pack a kit that tests a network on an Atlas board, and read its report",
}


def main() -> None:
    """Print every command with one line about it."""
    Parser(prog="python -m neonext_ms", description="List the commands of this package.").parse_args()
    print("Commands of neonext_ms. COMMAND --help shows the options and examples.\n")
    for name, summary in COMMANDS.items():
        print(f"  {name:<20}{summary}")


if __name__ == "__main__":
    main()
