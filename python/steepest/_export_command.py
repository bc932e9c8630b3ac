"""`steepest export`."""

from __future__ import annotations

import argparse
from pathlib import Path

import numpy as np

from steepest import compress
from steepest._encoding import Encoding
from steepest._train_command import check_writable, describe, line, open_model


def add_options(parser: argparse.ArgumentParser) -> None:
    """The arguments of `steepest export`."""
    parser.add_argument("model", help="what steepest train --out, or compress --out, wrote", metavar="MODEL")
    parser.add_argument("out", help="where to", metavar="NAME.onnx")


def export(args: argparse.Namespace) -> int:
    """Write a trained model as ONNX: from raw samples to labels or values."""
    from steepest.onnx import export_onnx

    if not args.out.endswith(".onnx"):
        raise ValueError(f"{args.out}: expected a name that ends in .onnx")
    check_writable("NAME", args.out, {"MODEL": args.model})
    saved = open_model(args.model, compress.load)
    encoding = Encoding.of_document(saved.extra["encoding"])
    notes = {"target": encoding.target, "trained_by": f"steepest {saved.version}"}
    if encoding.columns:
        notes["features"] = "\n".join(encoding.columns.names)
    export_onnx(
        saved.model,
        args.out,
        input_shape=encoding.shape,
        scaling=None
        if np.ndim(encoding.mean) == 0 and encoding.deviation == 1
        else (encoding.mean, encoding.deviation),
        labels=None if encoding.classes is None else list(encoding.classes),
        unscaling=None if encoding.labelled else (encoding.center, encoding.spread),
        metadata=notes,
    )
    line("model", f"{args.model}: {describe(saved.model)}")
    outputs = "label, probabilities, logits" if encoding.labelled else "value, logits"
    shape = " x ".join(map(str, ("batch", *encoding.shape)))
    dtype = "float64" if np.ndim(encoding.mean) else "float32"  # as `export_onnx` has it
    line("exported", f"{args.out}, {Path(args.out).stat().st_size:,} bytes: x ({dtype}, {shape}) -> {outputs}")
    return 0
