"""Draw the figures of an output folder of stage 04 from its tables; used by the stage and by experiments.figures."""

import json
from pathlib import Path

import numpy as np
import pandas as pd

from utils.core import names, runs
from utils.figures import analysis_plots, plots
from utils.layers import analysis

CONVEXITIES = {"graph_convexity": "graph convexity", "euclidean_convexity": "Euclidean convexity"}


def draw_analysis(folder: Path, metrics: dict | None = None) -> None:
    """Draw every table of the folder; for one model also an overview on one page.

    Parameters
    ----------
    folder : Path
    metrics : dict or None
        Numbers of clips and groups of the run. None reads them from ``run.json``, which has them once the run is
        complete.
    """
    record = runs.read_record(folder)
    asked, recorded = record["arguments"], record.get("metrics", {}) if metrics is None else metrics
    counts = recorded.get("n_clips"), recorded.get("n_groups")
    model, other = (name and names.of_folder(name) for name in (asked["model_dir"], asked["compare_to"]))
    models = (plots.model_label(model), plots.model_label(other)) if other else None
    title = plots.caption(" and ".join(models or [model]), asked["data_dir"], {asked["split"]: counts})
    found = {}
    for name, words in CONVEXITIES.items():
        if (table := _table(folder, name)) is not None:
            found["convexity" if name == "graph_convexity" else name] = table
            analysis_plots.convexity_figure(table, folder / name, words, title)
            if asked["per_class"]:
                classes = _table(folder, f"{name}_per_class")
                analysis_plots.class_convexity_figure(classes, folder / f"{name}_per_class", words, title)
    if (table := _table(folder, "probe")) is not None:
        found["probe"] = table
        analysis_plots.probe_figure(table, folder / "probe", title)
    maps = _similarities(folder)
    lowest = analysis_plots.lowest_similarity(maps) if maps else None
    for name, one in maps.items():
        analysis_plots.similarity_figure({analysis.SIMILARITIES[name].title: one}, folder / name, models, lowest, title)
    if (table := _table(folder, "block_influence")) is not None:
        found["influence"] = table
        analysis_plots.influence_figure(table, folder / "block_influence", title)
    if (table := _table(folder, "angular_distance")) is not None:
        found["angular_distance"] = by_length(table, "angular_distance")
        analysis_plots.angular_distance_figure(found["angular_distance"], folder / "angular_distance", title)
    if (table := _table(folder, "linear_residual")) is not None:
        null = table["linear_residual_null"].to_numpy(dtype=float)
        found["linear_residual"] = analysis_plots.Runs(by_length(table, "linear_residual"), null)
        analysis_plots.linear_residual_figure(found["linear_residual"], folder / "linear_residual", title)
    if not other:
        similarity = {analysis.SIMILARITIES[name].title: one for name, one in maps.items()}
        analysis_plots.overview_figure(folder / "overview", similarity=similarity, title=title, **found)


def _table(folder: Path, name: str) -> pd.DataFrame | None:
    path = folder / f"{name}.csv"
    return pd.read_csv(path, dtype={"label": str}, keep_default_na=False, na_values=[""]) if path.is_file() else None


def _similarities(folder: Path) -> dict[str, analysis_plots.Similarity]:
    """Return the similarity matrices with the range of their nulls.

    A matrix has a boundary only if its contrast exceeds that of distance alone.
    """
    table = _table(folder, "null_levels")
    if table is None:
        return {}
    nulls = table.set_index("metric")
    if "null_low" not in nulls:  # written by an earlier version
        nulls = nulls.assign(null_low=nulls["null"], null_high=nulls["null"])
    recommendation = folder / "recommendation.json"
    recorded = json.loads(recommendation.read_text(encoding="utf-8")) if recommendation.is_file() else {}
    maps = {}
    for name, row in nulls.iterrows():
        matrix = pd.read_csv(folder / f"{name}.csv", index_col=0)
        blocks = recorded.get("two_block_boundary", {}).get(name)
        shown = blocks is not None and blocks["contrast"] > blocks["contrast_of_distance_alone"]
        levels = row[["null_low", "null_high"]].to_numpy(dtype=float)
        maps[name] = analysis_plots.Similarity(matrix, levels, blocks["boundary"] if shown else None)
    return maps


def by_length(table: pd.DataFrame, column: str) -> np.ndarray:
    """Return a column of a table of runs (`analysis.table_of_runs`) in the shape that the figure reads.

    Returns
    -------
    ndarray of float, shape (n_blocks, n_blocks)
        Entry [l, n - 1] is that of the n blocks from hidden layer l, NaN where l + n > n_blocks.
    """
    if table.empty:
        return np.empty((0, 0))
    n_blocks = int(table["n_layers"].max())
    distances = np.full((n_blocks, n_blocks), np.nan)
    distances[table["first_layer"], table["n_layers"] - 1] = table[column]
    return distances
