"""Measurements of the engine: a model file, or a model's shape without any file.

    bench_model(path, ...)           prompt and decode tokens per second at stated depths
    bench_shape(ShapeOptions(...))   milliseconds per layer by part, extrapolated to all layers
    bench_budget(BudgetOptions(...)) a file under memory budgets, against plain mmap and llama.cpp
    tables(result)                   any result for people;  write_plot: the roofline picture

The first two measure sequences that are decoded together, too (`parallel`), against one alone.
All run the engine's own code on the engine's own objects, and measure the machine's read bandwidth
in the same run. Results are plain dictionaries, ready for JSON.

Names are imported when they are first used; parts of it work where little is installed.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from offload.lazy_names import lazy_names

if TYPE_CHECKING:
    from offload.bench.budget import bench_budget
    from offload.bench.budget_options import Budget, BudgetOptions
    from offload.bench.model_bench import bench_model
    from offload.bench.options import DEPTHS, ModelOptions, ShapeOptions
    from offload.bench.pairs import prediction_lines
    from offload.bench.plot import check_matplotlib, write_plot
    from offload.bench.report import tables
    from offload.bench.shape_bench import bench_shape

_HOMES = {
    "Budget": ("offload.bench.budget_options", "Budget"),
    "BudgetOptions": ("offload.bench.budget_options", "BudgetOptions"),
    "DEPTHS": ("offload.bench.options", "DEPTHS"),
    "ModelOptions": ("offload.bench.options", "ModelOptions"),
    "ShapeOptions": ("offload.bench.options", "ShapeOptions"),
    "bench_budget": ("offload.bench.budget", "bench_budget"),
    "bench_model": ("offload.bench.model_bench", "bench_model"),
    "bench_shape": ("offload.bench.shape_bench", "bench_shape"),
    "check_matplotlib": ("offload.bench.plot", "check_matplotlib"),
    "prediction_lines": ("offload.bench.pairs", "prediction_lines"),
    "tables": ("offload.bench.report", "tables"),
    "write_plot": ("offload.bench.plot", "write_plot"),
}

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


if not TYPE_CHECKING:  # for type checkers, unknown names are errors
    __getattr__ = lazy_names(__name__, _HOMES)
