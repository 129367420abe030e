"""Selection tables of Raven, and of BirdNET-Analyzer in Raven's format. Read and written here.

Raven quotes nothing: a quotation mark is a character of the label. A selection has one row for each view (waveform,
spectrogram) and channel; the views of one channel count once. In a table over a sequence of files, Begin Time runs on
from file to file; only Begin File (or Begin Path) and File Offset tell the file, and the time in it.
"""

from collections import defaultdict
from collections.abc import Mapping, Sequence
from pathlib import Path

from utils.core.errors import InputError
from utils.core.files import write_text
from utils.data.timed_labels import (
    Annotation,
    Table,
    cell,
    channel_of,
    file_name,
    file_named,
    file_of_table,
    first_line,
    label_column_in,
    lines_of,
    number_of,
    optional_number,
    optional_seconds,
    ordered,
    plain,
    seconds,
    text_of,
    unquoted_rows,
)

SUFFIX = ".selections.txt"
HOLDS_SEVERAL_FILES = True
LIST_SUFFIX = ".list.txt"  # beside a table over several files: the files, in order, as Raven opens them
LABEL_COLUMNS = ("Annotation", "Label", "Species", "Common Name", "Species Code", "Tag", "Call Type")
SCORE_COLUMNS = ("score", "confidence")
COLUMNS = (
    *("Selection", "View", "Channel", "Begin Time (s)", "End Time (s)", "Low Freq (Hz)", "High Freq (Hz)"),
    *("Begin File", "Begin Path", "File Offset (s)", "Annotation", "Score"),
)
NO_CALL = "nocall"  # BirdNET-Analyzer writes it as Common Name and Species Code where it detects nothing
FREQUENCIES = ("low_freq_hz", "high_freq_hz")
SAME_TIME_S = 0.001


def recognises(name: str, text: str) -> bool:
    """Return whether the first line has Begin Time and End Time, separated by tabs."""
    return {"begin_time_s", "end_time_s"} <= {plain(title) for title in first_line(text).split("\t")}


def read(path: Path, text: str, name: str, label_column: str | None = None) -> Table:
    """Read a selection table.

    Parameters
    ----------
    path : Path
    text : str
    name : str
        Path of the table within the folder of the tables. It names the sound file of a table without Begin File.
    label_column : str, optional
        Column that holds the label; by default the first one of `LABEL_COLUMNS`.

    Raises
    ------
    InputError
        If there are rows and no column for the label, or rows of several files without their File Offset.
    """
    rows = unquoted_rows(text, "\t")
    header = [plain(title) for title in next(rows)[1]]
    cells_of = [(number, {title: c.strip() for title, c in zip(header, cells, strict=False)}) for number, cells in rows]
    label = label_column_in(path, header, label_column, LABEL_COLUMNS) if cells_of else None
    _refuse_unknown_offsets(path, header, cells_of)
    table = Table("raven")
    own_file = file_of_table(name)
    views = defaultdict(list)  # of one selection
    for number, cells in cells_of:
        place = f"{name}, row {number}"
        named = _named(cells)
        file = named or own_file
        table.cover(file)
        if cells.get("common_name", "").lower() == cells.get("species_code", "").lower() == NO_CALL:
            continue
        try:
            start_s, end_s = _times(cells, named is None)
        except ValueError as error:
            table.problems.append(f"{place}: {error}")
            continue
        key = (cells.get("selection", number), cells.get("channel"), file, start_s, end_s)
        views[key].append((place, cells.get("view", "").lower(), cells.get(label, ""), cells))
    for (_, channel, file, start_s, end_s), own in views.items():
        own.sort(key=lambda row: not row[1].startswith("spectrogram"))  # its frequencies are those of the selection
        for text_of_label in dict.fromkeys(row[2] for row in own if row[2]) or [""]:
            place, _, _, cells = next(row for row in own if row[2] == text_of_label)
            score = next((cells[title] for title in SCORE_COLUMNS if title in cells), "")
            numbers = [optional_number(value) for value in (score, *map(cells.get, FREQUENCIES, ("", "")))]
            table.add(place, Annotation(file, start_s, end_s, text_of_label, *numbers, channel_of(channel or "")))
    list_path = path.with_name(path.stem + LIST_SUFFIX)
    if list_path.is_file():
        for _, line in lines_of(text_of(list_path.read_bytes())):
            table.cover(file_named(line))
    elif not cells_of:
        table.cover(own_file)
    return table


def _named(cells: Mapping[str, str]) -> str | None:
    """Return the sound file that a row names."""
    return file_named(cells.get("begin_path") or cells.get("begin_file") or "") or None


def _refuse_unknown_offsets(path: Path, header: Sequence[str], rows: Sequence[tuple[int, Mapping[str, str]]]) -> None:
    files = {_named(cells) for _, cells in rows}
    if len(files) > 1 and "file_offset_s" not in header:
        raise InputError(
            f"{path} has selections of {len(files)} files and no column File Offset (s). Its Begin Time runs on from "
            "file to file, so that it does not tell the time in a file: add the measurement File Offset in Raven, and "
            "save the table again"
        )


def _times(cells: Mapping[str, str], is_file_of_table: bool) -> tuple[float, float]:
    """Return start and end in seconds of the file."""
    begin, end = cells.get("begin_time_s", ""), cells.get("end_time_s", "")
    try:
        begin_s, end_s = number_of(begin), number_of(end)
        if "file_offset_s" not in cells:
            return begin_s, end_s
        offset_s = number_of(cells["file_offset_s"])
    except ValueError as error:
        raise ValueError(
            f"Begin Time {begin!r}, End Time {end!r} and File Offset {cells.get('file_offset_s', 'none')!r} are not "
            "all numbers of seconds"
        ) from error
    if is_file_of_table and abs(offset_s - begin_s) > SAME_TIME_S:
        raise ValueError(
            f"File Offset {offset_s} s is not Begin Time {begin_s} s, so that the table is of several files; it has "
            "no column Begin File that names them"
        )
    return offset_s, round(offset_s + (end_s - begin_s), 9)


def write(
    path: Path, detections: Sequence[Annotation], durations_s: Mapping[str, float], raw_dir: Path, top_hz: float
) -> None:
    """Write a selection table, and for several files their list, ``NAME.list.txt``, which Raven opens with it.

    Parameters
    ----------
    path : Path
    detections : sequence of Annotation
    durations_s : mapping of str to float
        All files of the table, in order, with their length in seconds. Begin Time runs on over them.
    raw_dir : Path
        Folder of the files, as it shall stand in Begin Path.
    top_hz : float
        Upper end of a detection without frequencies; the lower one is 0 Hz.
    """
    begins_s, total_s = {}, 0.0
    for file, duration_s in durations_s.items():
        begins_s[file] = total_s
        total_s += duration_s
    lines = ["\t".join(COLUMNS)]
    for i, a in enumerate(ordered(detections, list(durations_s)), start=1):
        times = [seconds(begins_s[a.file] + a.start_s), seconds(begins_s[a.file] + a.end_s)]
        low_hz, high_hz = (0.0 if a.low_hz is None else a.low_hz), (top_hz if a.high_hz is None else a.high_hz)
        path_of_file = (Path(raw_dir) / a.file).as_posix()
        cells = [str(i), "Spectrogram 1", str(a.channel or 1), *times, seconds(low_hz), seconds(high_hz)]
        cells += [cell(file_name(a.file)), cell(path_of_file), seconds(a.start_s), cell(a.label)]
        lines.append("\t".join([*cells, optional_seconds(a.score)]))
    if len(durations_s) > 1:
        files = ((Path(raw_dir) / file).as_posix() for file in durations_s)
        write_text(path.with_name(path.stem + LIST_SUFFIX), "".join(f"{cell(file)}\n" for file in files))
    write_text(path, "".join(f"{line}\n" for line in lines))
