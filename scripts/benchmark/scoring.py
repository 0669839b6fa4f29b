"""Inference in process, on one thread: one raw row and many, with the artifact and with other formats of its model.

python scripts/benchmark/scoring.py --run outputs/RUN [--rows 1024] [--calls 1000] [--formats ...] [--json FILE]
"""

import argparse
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from statistics import median, quantiles
from typing import Any

import polars as pl
import torch
from torch import Tensor, nn

sys.path.insert(0, str(Path(__file__).parents[2]))

from datamodules.tabular import TableDataModule
from inference.artifact import Artifact
from scripts.benchmark.page import markdown, publish
from trainer.config.instantiate import instantiate
from trainer.config.renamed import load_config

COMMAND = "python scripts/benchmark/scoring.py --run outputs/RUN"
TURN, WARM = 50, 5
Score = Callable[[], Any]


class Model:
    """The model of a run. Each format returns a function that computes predictions for a number of validation rows,
    from raw cells, or from encoded rows with only the network.
    """

    def __init__(self, run: Path) -> None:
        config = load_config(run / "config.yaml")
        self.path = run / "model.pt"
        self.datamodule: TableDataModule = instantiate(config.data)
        self.datamodule.setup()
        self.artifact = Artifact.load(self.path)
        inputs, outputs = self.datamodule.inputs, self.datamodule.target.outputs
        self.network: nn.Module = instantiate(config.model, spec=inputs, outputs=outputs).eval()
        # TorchScript also saves buffers that the constructor computes from the settings.
        self.network.load_state_dict(self.artifact.module.network.state_dict(), strict=False)

    def batch(self, rows: int) -> dict[str, Tensor]:
        batch: dict[str, Tensor] = self.artifact.module.features(*self.datamodule.raw("val", rows))
        return batch

    def checked(self, rows: int) -> Score:
        """Everything that inference needs: parsing of cells, rejected rows, flags, a frame of predictions."""
        frame = self.datamodule.frame("val").head(rows).drop(self.datamodule.target.name).cast(pl.String)
        return lambda: self.artifact.score(frame)

    def scripted(self, rows: int, module: Any = None) -> Score:
        raw = self.datamodule.raw("val", rows)
        called = self.artifact.module if module is None else module
        return lambda: called(*raw)

    def frozen(self, rows: int) -> Score:
        return self.scripted(rows, torch.jit.freeze(self.artifact.module))

    def optimized(self, rows: int) -> Score:
        return self.scripted(rows, torch.jit.optimize_for_inference(torch.jit.freeze(self.artifact.module)))

    def features(self, rows: int) -> Score:
        raw = self.datamodule.raw("val", rows)
        return lambda: self.artifact.module.features(*raw)

    def eager(self, rows: int) -> Score:
        batch = self.batch(rows)
        return lambda: self.network(batch)

    def exported(self, rows: int) -> torch.export.ExportedProgram:
        """Only the network, for any number of rows."""
        batch = self.batch(max(rows, 2))
        any_rows = {name: {0: torch.export.Dim.DYNAMIC} for name in batch}
        with torch.no_grad():
            return torch.export.export(self.network, (batch,), dynamic_shapes=(any_rows,))

    def compiled(self, rows: int) -> Score:
        with tempfile.TemporaryDirectory() as folder, torch.no_grad():
            path = f"{folder}/network.pt2"
            package = torch._inductor.aoti_compile_and_package(self.exported(rows), package_path=path)
            network = torch._inductor.aoti_load_package(package)
        batch = self.batch(rows)
        return lambda: network(batch)

    def onnx(self, rows: int) -> Score:
        import onnxruntime

        program = torch.onnx.export(self.exported(rows), dynamo=True, verbose=False)
        assert program is not None
        options = onnxruntime.SessionOptions()
        options.intra_op_num_threads = 1
        network = onnxruntime.InferenceSession(program.model_proto.SerializeToString(), options)
        values = [values.numpy() for values in self.batch(rows).values()]
        cells = dict(zip((each.name for each in network.get_inputs()), values, strict=True))
        return lambda: network.run(None, cells)


FORMATS: Mapping[str, tuple[str, Callable[[Model, int], Score]]] = {
    "checked": ("`Artifact.score`: from raw frame to frame, with rejected rows and flags", Model.checked),
    "scripted": ("model.pt as exported, including strings", Model.scripted),
    "frozen": ("the same, `torch.jit.freeze`", Model.frozen),
    "optimized": ("the same, `optimize_for_inference`", Model.optimized),
    "features": ("only the features of model.pt", Model.features),
    "eager": ("only the network, eager", Model.eager),
    "compiled": ("only the network, torch.export and AOTInductor", Model.compiled),
    "onnx": ("only the network, ONNX Runtime", Model.onnx),
}


def seconds(scores: Mapping[str, Score], calls: int) -> dict[str, list[float]]:
    """Seconds of each call. The formats alternate after some calls each; the first calls of a turn are not counted,
    because TorchScript compiles in them and the caches are cold.
    """
    times: dict[str, list[float]] = {name: [] for name in scores}
    with torch.inference_mode():
        for turn in range(0, calls, TURN):
            for name, score in scores.items():
                for call in range(-WARM, min(TURN, calls - turn)):
                    started = time.perf_counter()
                    score()
                    if call >= 0:
                        times[name].append(time.perf_counter() - started)
    return times


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--run", type=Path, required=True, help="a finished run of a table")
    parser.add_argument("--rows", type=int, default=1024)
    parser.add_argument("--calls", type=int, default=1000, help="calls with one row; a tenth as many with all rows")
    parser.add_argument("--formats", nargs="+", choices=FORMATS, default=list(FORMATS))
    parser.add_argument("--json", type=Path)
    given = parser.parse_args()
    torch.set_num_threads(1)
    model = Model(given.run)
    loads = []
    for _ in range(7):
        started = time.perf_counter()
        Artifact.load(model.path)
        loads.append(time.perf_counter() - started)
    rows: list[list[str]] = []
    figures: dict[str, Any] = {"loading": loads}
    ones = seconds({name: FORMATS[name][1](model, 1) for name in given.formats}, given.calls)
    many = seconds({name: FORMATS[name][1](model, given.rows) for name in given.formats}, max(given.calls // 10, 1))
    for name, one in ones.items():
        figures[name] = {"one": one, "many": many[name]}
        p99 = quantiles(one, n=100, method="inclusive")[98]
        rate = given.rows / median(many[name])
        rows.append([FORMATS[name][0], f"{median(one) * 1e3:.3f}", f"{p99 * 1e3:.3f}", f"{rate:,.0f}"])
    headings = ["format", "one row, p50 ms", "p99 ms", f"{given.rows:,} rows, rows/s"]
    body = (
        f"{markdown(headings, rows)}\n\nThe model of `{model.datamodule.settings.target}`,"
        f" {sum(weights.numel() for weights in model.network.parameters()):,} weights, one thread; {given.calls:,}"
        f" calls with one row. Loading model.pt takes {median(loads):.2f} s after the import of torch."
    )
    publish("Scoring in process", COMMAND, body, figures, given.json)


if __name__ == "__main__":
    main()
