"""Draw the figures of a sweep of stage 05 from its files; used by the stage and by experiments.figures."""

from pathlib import Path

from utils.core import names, runs
from utils.figures import plots, pruning_plots
from utils.pruning import best, pruning_table
from utils.scores.summary import NO_DOUBT


def draw_sweep(folder: Path) -> None:
    """Draw the grid of kept and removed blocks, accuracy by depth, and Pareto fronts."""
    table = pruning_table.read_rows(folder)
    chosen = best.read_best(folder / best.NAME, "run 05_pruning.py again with --overwrite")
    splits = chosen["search_split"], chosen["report_split"]
    counts = {split: chosen.get("n_of_splits", {}).get(split, (None, None)) for split in splits}
    of_splits = dict(zip(pruning_plots.split_labels(splits), counts.values(), strict=True))
    data_dir = runs.read_record(folder)["arguments"]["data_dir"]
    title = plots.caption(names.of_folder(chosen["model_dir"]), data_dir, of_splits)
    is_doubtful = "latency_doubt" in table and (table["latency_doubt"].dropna() != NO_DOUBT).any()
    pruning_plots.kept_grids_figure(table, folder / "pruning", title, splits)
    pruning_plots.strategies_figure(table, folder / "strategies", chosen["margin"], title, splits)
    pruning_plots.pareto_figure(table, folder / "pareto", title, is_doubtful, splits)
