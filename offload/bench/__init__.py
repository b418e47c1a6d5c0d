"""Measurements of the engine: a model file, or a model's shape without any file.

    bench_model(path, ...)           prompt and decode tokens per second at stated depths
    bench_shape(ShapeOptions(...))   milliseconds per layer by part, extrapolated to all layers
    bench_budget(BudgetOptions(...)) a file under memory budgets, against plain mmap and llama.cpp
    tables(result)                   any result for people;  write_plot: the roofline picture

The first two measure sequences that are decoded together, too (`parallel`), against one alone.
All run the engine's own code on the engine's own objects, and measure the machine's read bandwidth
in the same run. Results are plain dictionaries, ready for JSON.
"""

from offload.bench.budget import bench_budget
from offload.bench.budget_options import Budget, BudgetOptions
from offload.bench.model_bench import bench_model
from offload.bench.options import DEPTHS, ModelOptions, ShapeOptions
from offload.bench.pairs import prediction_lines
from offload.bench.plot import check_matplotlib, write_plot
from offload.bench.report import tables
from offload.bench.shape_bench import bench_shape

__all__ = [
    "Budget",
    "BudgetOptions",
    "DEPTHS",
    "ModelOptions",
    "ShapeOptions",
    "bench_budget",
    "bench_model",
    "bench_shape",
    "check_matplotlib",
    "prediction_lines",
    "tables",
    "write_plot",
]
