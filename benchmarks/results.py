"""The table of all benchmarks, benchmarks/results.csv: a row a claim. Only this module writes and reads it.

    make bench                                   # every benchmark; each replaces its own rows
    python -m benchmarks.bench_width             # one benchmark: prints its rows
    python -m benchmarks.results                 # prints the table in Markdown, for docs/speed.md

A claim compares this project with another way to do the same work. Both run in turn in one command, round by round.
`ours` and `other` are medians over the rounds; `ratio` is the median of other / ours of each round, with its lowest and
highest value. Above 1, this project is faster or smaller. `busy_elsewhere` is the mean number of CPUs that other
processes kept busy meanwhile.
"""

import argparse
import datetime
import os
import platform
import statistics
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

import pandas as pd
import psutil

from utils.core import runs
from utils.core.files import write_text
from utils.core.text import counted

ROOT = Path(__file__).resolve().parent.parent
PATH = Path(__file__).with_name("results.csv")
ROUNDS = 5
KEY = ["benchmark", "claim", "other_way"]
VALUES = ["unit", "ours", "other", "ratio", "ratio_low", "ratio_high", "n_rounds", "goal"]
PLACE = ["n_threads", "busy_elsewhere", "machine", "date", "commit"]
COLUMNS = KEY + VALUES + PLACE
# What makes a processor fast at matrix products of few bits.
INSTRUCTIONS = ("avx2", "avx512f", "avx512_vnni", "avx512_bf16", "amx_tile", "amx_bf16", "amx_int8", "asimd")


def in_turn(
    ways: Mapping[str, Callable[[], object]], n_rounds: int, clock: Callable[[], float] = time.perf_counter
) -> dict[str, list[float]]:
    """Run all ways in turn, after a first round that does not count.

    Parameters
    ----------
    ways : mapping of str to callable
    n_rounds : int
    clock : callable
        Returns seconds: of the clock on the wall, or `time.process_time`, which other processes disturb little.

    Returns
    -------
    dict of str to list of float
        Seconds of each way in each round.
    """
    seconds: dict[str, list[float]] = {name: [] for name in ways}
    for number in range(n_rounds + 1):
        for name, way in ways.items():
            start = clock()
            way()
            if number:
                seconds[name].append(clock() - start)
    return seconds


class Table:
    """The rows of one benchmark, as a context: it measures the load, and prints and writes the rows at its end.

    Parameters
    ----------
    benchmark : str
        ``__spec__.name`` or the path of the benchmark.
    path : Path or None
        Table to write to; None only prints.
    """

    def __init__(self, benchmark: str, path: Path | None):
        self.benchmark, self.path, self.rows = Path(benchmark).stem, path, []

    def add(
        self,
        claim: str,
        other_way: str,
        ours: Sequence[float] | float,
        other: Sequence[float] | float,
        unit: str,
        goal: float | None = None,
    ) -> float:
        """Add a claim; return its ratio.

        Parameters
        ----------
        claim : str
            What was done, with its size.
        other_way : str
            What it is compared with.
        ours, other : sequence of float, or float
            Cost in each round: less is better. A float is a cost that does not vary, such as a number of operations.
        unit : str
            Of the costs.
        goal : float, optional
            Lowest ratio that was aimed at.
        """
        ours, other = ([each] if isinstance(each, int | float) else list(each) for each in (ours, other))
        ratios = [theirs / own for own, theirs in zip(ours, other, strict=True)]
        row = {"benchmark": self.benchmark, "claim": claim, "other_way": other_way, "unit": unit}
        row |= {"ours": statistics.median(ours), "other": statistics.median(other), "ratio": statistics.median(ratios)}
        row |= {"ratio_low": min(ratios), "ratio_high": max(ratios), "n_rounds": len(ratios), "goal": goal}
        self.rows.append(row)
        return row["ratio"]

    def __enter__(self) -> "Table":
        self._start = time.perf_counter(), _own_seconds(), _busy_seconds()
        return self

    def __exit__(self, kind: type | None, *_: object) -> None:
        if kind is not None or not self.rows:
            return
        now = time.perf_counter(), _own_seconds(), _busy_seconds()
        seconds, own, busy = (end - start for end, start in zip(now, self._start, strict=True))
        place = {
            "n_threads": _n_threads(),
            "busy_elsewhere": round(max(0.0, (busy - own) / seconds), 2),
            "machine": machine(),
            "date": datetime.datetime.now(datetime.UTC).date().isoformat(),
            "commit": _commit(),
        }
        table = pd.DataFrame([row | place for row in self.rows], columns=COLUMNS)
        print("\n" + told(table).to_string(index=False))
        print(f"{place['machine']}; busy with other work: {place['busy_elsewhere']} CPUs")
        if self.path is not None:
            write(self.path, table)


def add_arguments(parser: argparse.ArgumentParser, n_rounds: int = ROUNDS) -> None:
    """Add ``--rounds`` and ``--results`` to the command line of a benchmark."""
    parser.add_argument("--rounds", type=int, default=n_rounds, help=f"rounds (default: {n_rounds})")
    parser.add_argument("--results", type=Path, default=None, help="table to write the rows to (default: only print)")


def write(path: Path, table: pd.DataFrame) -> None:
    """Replace the rows of the benchmarks of `table` in a file, which is sorted by benchmark."""
    if path.exists():
        before = read(path)
        table = pd.concat([before[~before["benchmark"].isin(table["benchmark"])], table])
    table = table.sort_values("benchmark", kind="stable")
    write_text(path, table.to_csv(index=False, float_format="%.4g"))


def read(path: Path = PATH) -> pd.DataFrame:
    """Return all rows, with the columns `COLUMNS`."""
    return pd.read_csv(path, dtype={"commit": str, "date": str, "machine": str})[COLUMNS]


def told(table: pd.DataFrame) -> pd.DataFrame:
    """Return the table in words: two costs with their unit, and the ratio with its range and goal."""

    def cost(row: pd.Series, name: str) -> str:
        return f"{row[name]:,.4g} {row['unit']}" if row[name] < 1e4 else f"{row[name]:,.0f} {row['unit']}"

    def ratio(row: pd.Series) -> str:
        if row["n_rounds"] == 1:
            return f"{row['ratio']:.3g}"
        return f"{row['ratio']:.3g} ({row['ratio_low']:.3g} to {row['ratio_high']:.3g})"

    return pd.DataFrame(
        {
            "what": table["claim"],
            "ours": [cost(row, "ours") for _, row in table.iterrows()],
            "compared with": table["other_way"],
            "its": [cost(row, "other") for _, row in table.iterrows()],
            "ratio": [ratio(row) for _, row in table.iterrows()],
            "goal": ["" if pd.isna(goal) else f"{goal:g}" for goal in table["goal"]],
        }
    )


def markdown(table: pd.DataFrame) -> str:
    """Return a table in Markdown for each benchmark, with the place and the time of its run."""
    lines = []
    for benchmark, own in table.groupby("benchmark", sort=True):
        first = own.iloc[0]
        lines += [f"### {benchmark}", ""]
        words = told(own)
        lines.append("| " + " | ".join(words.columns) + " |")
        lines.append("|" + "---|" * len(words.columns))
        lines += ["| " + " | ".join(row) + " |" for row in words.itertuples(index=False)]
        lines += [
            "",
            f"{first['machine']}, {counted(first['n_threads'], 'thread')}, "
            f"{first['busy_elsewhere']:g} CPUs busy with other work, {counted(own['n_rounds'].max(), 'round')}, "
            f"{first['date']}, commit {first['commit']}.",
            "",
        ]
    return "\n".join(lines)


def machine() -> str:
    """Return the name of the processor, its CPUs, and the instructions that decide the speed of few bits."""
    try:
        flags = set(Path("/proc/cpuinfo").read_text().partition("flags")[2].partition("\n")[0].split())
    except OSError:
        flags = set()
    found = [name.upper() for name in INSTRUCTIONS if name in flags]
    return ", ".join([runs.device_name("cpu"), f"{psutil.cpu_count()} CPUs", " ".join(found) or platform.machine()])


def _n_threads() -> int:
    torch = sys.modules.get("torch")
    return torch.get_num_threads() if torch else int(os.environ.get("OMP_NUM_THREADS", psutil.cpu_count()))


def _own_seconds() -> float:
    times = psutil.Process().cpu_times()
    return times.user + times.system + times.children_user + times.children_system


def _busy_seconds() -> float:
    times = psutil.cpu_times()
    return sum(times) - times.idle - getattr(times, "iowait", 0.0) - getattr(times, "guest", 0.0)


def _commit() -> str:
    command = ["git", "-C", str(ROOT), "describe", "--always", "--dirty", "--exclude=*"]
    found = subprocess.run(command, capture_output=True, text=True, check=False)
    return found.stdout.strip() or "unknown"


def main() -> int:
    """Print the whole table in Markdown."""
    print(markdown(read()))
    return 0


if __name__ == "__main__":
    sys.exit(main())
