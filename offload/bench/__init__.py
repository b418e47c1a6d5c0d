"""Measurements of the engine: a model file, or a model's shape without any file.

    bench_model(path, ...)           prompt and decode tokens per second at stated depths
    bench_shape(ShapeOptions(...))   milliseconds per layer by part, extrapolated to all layers
    tables(result)                   either result for people;  write_plot: the roofline picture

Either measures sequences that are decoded together, too (`parallel`), against one alone.
Both run the engine's own code on the engine's own objects, and measure the machine's read bandwidth
in the same run. Results are plain dictionaries, ready for JSON.
"""

from offload.bench.model_bench import bench_model
from offload.bench.options import DEPTHS, ModelOptions, ShapeOptions
from offload.bench.plot import check_matplotlib, write_plot
from offload.bench.report import tables
from offload.bench.shape_bench import bench_shape

__all__ = [
    "DEPTHS",
    "ModelOptions",
    "ShapeOptions",
    "bench_model",
    "bench_shape",
    "check_matplotlib",
    "tables",
    "write_plot",
]
