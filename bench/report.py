"""Makes the README's tables and plots of what was measured.

    python bench/peers.py --json bench/results.json
    python bench/peers.py --json bench/results.json --threads 1 --only "adamw/*/stream" "adamw/*/torch-fused"
    python bench/train_step.py --json bench/train_step.json
    python bench/train_step.py --centred --json bench/train_step_centred.json
    python bench/report.py

Replaces what stands between `<!-- speed -->` and `<!-- /speed -->` in README.md and the plots in bench/ (these
need `pip install ".[plot]"`).
"""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from cases import ADAMW_SIZES, WITH_ALL_PEERS
from peers import asked
from steepest.benchmarks import duration

HERE = Path(__file__).parent
README = HERE.parent / "README.md"
START, END = "<!-- speed -->\n", "<!-- /speed -->\n"
MARKS = {"yes": " ✓", "no": " ✗", "open": " ?", "": ""}
TRAINING_BARS = {"PyTorch": 2.4, "JAX lax.scan": 1.7, "scikit-learn": 4.5, "Keras": 10.0}

Results = Mapping[str, Mapping[str, Any]]


def table(head: Sequence[str], rows: Sequence[Sequence[str]]) -> str:
    lines = [head, ["---"] + ["---:"] * (len(head) - 1), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines) + "\n"


def figure(result: Mapping[str, Any] | None) -> str:
    """The figure with its interval, and whether it meets its bar."""
    if result is None or "figure" not in result:
        return "" if result is None else result.get("skipped", "failed")
    unit = {"%": " %", "us": " us", "x": "x"}.get(result["unit"], "")
    low, high = result["interval"]
    return f"{number(result['figure'])}{unit} ({number(low)} to {number(high)}){MARKS[result['met']]}"


def number(x: float) -> str:
    return f"{x:.0f}" if x >= 99.5 else f"{x:.3g}"


def ours(*results: Mapping[str, Any] | None) -> str:
    """The shortest time of ours: contests differ by what else happened meanwhile."""
    return duration(min((r["seconds"]["ours"] for r in results if r and "seconds" in r), default=None))


def adamw(results: Results) -> str:
    peers = {"torch-fused": "PyTorch fused", "torch-foreach": "PyTorch foreach", "optax-jit": "optax, jitted",
             "numpy": "NumPy as written", "out=": "NumPy, `out=`", "stream": "of the stream"}  # fmt: skip
    rows = []
    for size in WITH_ALL_PEERS:
        found = [results.get(f"adamw/{size}/{peer}") for peer in peers]
        rows.append([f"{ADAMW_SIZES[size]:,}", ours(*found), *map(figure, found)])
    return table(["AdamW, parameters", "steepest", *peers.values()], rows)


def streams(results: Results) -> str:
    columns = ("16Mi-float32", "64Mi-float32", "16Mi-float64")
    rules = dict.fromkeys(name.split("/")[1] for name in results if name.startswith("stream/"))
    rows = [[rule, *(figure(results.get(f"stream/{rule}/{column}")) for column in columns)] for rule in rules]
    return table(["share of the stream", "16 Mi, float32", "64 Mi, float32", "16 Mi, float64"], rows)


def others(results: Results) -> str:
    rows = []
    for name, result in results.items():
        group, *what = name.split("/")
        if group not in ("tensors", "rules", "clip", "softmax", "mse", "state", "overhead"):
            continue
        times = [duration(t) for t in result.get("seconds", {}).values()] or ["", ""]
        bar = "" if result.get("bar") is None else f"{result['bar']:.3g}"
        label = " ".join([group, *what[:-1]]) + f", against {what[-1]}" if len(what) > 1 else name
        rows.append([label.replace("-", " "), *times, figure(result), bar])
    return table(["contest", "steepest", "peer", "ratio", "bar"], rows)


def beside(results: Results) -> str:
    rows: dict[str, dict[str, str]] = {}
    for name, result in results.items():
        group, *what = name.split("/")
        if group == "beside":
            label = {"matmul": "NumPy's matmul", "torch": "PyTorch's forward and backward"}[what[0]]
            label += f", PyTorch {what[1].removeprefix('torch-')}" if what[1] != "torch-without" else ", no PyTorch"
            value = f"{result['figure']:.2f}{MARKS[result['met']]}" if "figure" in result else "failed"
            rows.setdefault(label, {})[f"{int(what[2]):,}"] = value
    sizes = list(next(iter(rows.values()), {}))
    return table(
        ["two threads' time over one's, beside", *sizes], [[label, *row.values()] for label, row in rows.items()]
    )


def training(found: Mapping[str, Any], inputs: str = "") -> str:
    rows = []
    for name, result in found["results"].items():
        bar = next((bar for start, bar in TRAINING_BARS.items() if name.startswith(start)), None)
        low, high = result["interval"]
        met = "" if bar is None else "yes" if low >= bar else "no" if high < bar else "open"
        ratio = "" if name.startswith("steepest T") else f"{result['ratio']:.2f}x ({low:.2f} to {high:.2f}){MARKS[met]}"
        rows.append([name, f"{1e6 * result['seconds']:.0f} us", ratio, f"{bar:g}" if bar else ""])
    rows += [[name, "not installed", "", ""] for name in found["missing"]]
    return table([f"training step, 784-128-10, batch 32, Adam{inputs}", "time", "over `Trainer.fit`'s", "bar"], rows)


SILENT = (
    "Inputs above 0 and steps that all go one way silence nine in ten hidden units of this network within an epoch,\n"
    "and `Trainer.fit` leaves out what is 0 of their gradients. Where inputs lie around 0 (`--centred`), half of the\n"
    "units are active, and nothing is left out:\n"
)


def introduction(machine: Mapping[str, Any], results: Results) -> str:
    packages = ", ".join(f"{name} {version}" for name, version in machine["packages"].items())
    dates = sorted({r["date"] for r in results.values()})
    verdicts = [r.get("met") for r in results.values()]
    return (
        f"{machine['cpu']} ({machine['cores']} cores, {machine['isa']}), {machine['memory_gib']} GiB, "
        f"{machine['system'].split('-with')[0]}, Python {machine['python']}, {packages}; {dates[0]}.\n"
        f"In brackets the 95 % interval of the ratio's median. Of the contests with a bar, "
        f"{verdicts.count('yes')} meet it (✓), "
        f"{verdicts.count('no')} miss it (✗), {verdicts.count('open')} have it inside the interval (?).\n"
    )


def plots(saved: Results) -> None:
    import matplotlib

    matplotlib.use("svg")
    matplotlib.rcParams |= {"svg.hashsalt": "steepest", "svg.fonttype": "none"}
    from matplotlib import pyplot

    lines = {"ours": "steepest", "torch-fused": "PyTorch fused", "optax-jit": "optax, jitted", "out=": "NumPy, out="}
    figure, (speed, share) = pyplot.subplots(1, 2, figsize=(11, 4), layout="constrained")
    for threads, style in ((1, "--"), (2, "-")):
        measured = {size: {peer: saved.get(f"adamw/{size}/{peer}@{threads}", {}).get("seconds") for peer in
                           (*lines, "stream")} for size in ADAMW_SIZES}  # fmt: skip
        for color, (peer, label) in enumerate(lines.items()):
            name = "stream" if peer == "ours" else peer
            points = [(n := ADAMW_SIZES[size], 1e9 * list(found[name].values())[peer != "ours"] / n)
                      for size, found in measured.items() if found[name]]  # fmt: skip
            if points:
                speed.plot(*zip(*points, strict=True), style, color=f"C{color}", marker=".",
                           label=label + f", {threads} thread{'s' * (threads > 1)}" * (peer != "out="))  # fmt: skip
        points = [(ADAMW_SIZES[size], 28 * ADAMW_SIZES[size] / t / 1e9) for size, found in measured.items()
                  if found["stream"] for t in [found["stream"]["ours"]]]  # fmt: skip
        stream = [(ADAMW_SIZES[size], 28 * ADAMW_SIZES[size] / t / 1e9) for size, found in measured.items()
                  if found["stream"] for t in [found["stream"]["stream"]]]  # fmt: skip
        for color, (label, line) in enumerate((("steepest", points), ("a loop that only adds", stream))):
            if line:
                share.plot(*zip(*line, strict=True), style, color=f"C{3 * color}", marker=".",
                           label=f"{label}, {threads} thread{'s' * (threads > 1)}")  # fmt: skip
    speed.set(xscale="log", yscale="log", xlabel="parameters", ylabel="ns per parameter", title="AdamW's step")
    share.set(xscale="log", xlabel="parameters", ylabel="GB/s (28 bytes per parameter)", ylim=0, title="and the stream")
    for axes in (speed, share):
        axes.grid(alpha=0.3)
        axes.legend(fontsize=8)
    figure.savefig(HERE / "speed.svg", metadata={"Date": None})


def main() -> None:
    asked(__doc__)
    saved = json.loads((HERE / "results.json").read_text())
    most = max(r["threads"] for r in saved["results"].values())
    results = {name.removesuffix(f"@{most}"): r for name, r in saved["results"].items() if name.endswith(f"@{most}")}
    parts = [introduction(saved["machine"], results), adamw(results)]
    parts += [
        "![AdamW: time per parameter and bandwidth against size](bench/speed.svg)\n",
        streams(results),
        others(results),
    ]
    if (file := HERE / "train_step.json").exists():
        parts.append(training(json.loads(file.read_text())))
    if (file := HERE / "train_step_centred.json").exists():
        parts += [SILENT, training(json.loads(file.read_text()), "; inputs around 0")]
    parts.append(beside(results))
    before, rest = README.read_text().split(START)
    README.write_text(before + START + "\n" + "\n".join(parts) + "\n" + END + rest.split(END)[1])
    plots(saved["results"])


if __name__ == "__main__":
    main()
