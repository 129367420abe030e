"""Which files are which recording: label, recording id and recordist, from a folder tree or a metadata CSV."""

import logging
import os
import posixpath
import re
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import pandas as pd
import soundfile

from utils.errors import InputError

log = logging.getLogger(__name__)

# RAW is left out: it has no header, so it cannot be read without being told the format. The rest are
# the usual spellings of formats that libsndfile lists under another name.
AUDIO_SUFFIXES = frozenset(
    {f".{name.lower()}" for name in soundfile.available_formats() if name != "RAW"}
    | {".aif", ".aifc", ".bwf", ".mp2", ".mpga", ".oga", ".opus", ".snd"}
)
# Sound all the same, so it is reported, not ignored.
UNREADABLE_SUFFIXES = frozenset({".aac", ".ac3", ".amr", ".ape", ".m4a", ".mka", ".mp4", ".webm", ".wma", ".wv"})

UNKNOWN_RECORDISTS = frozenset(
    {"", "-", "?", "anonymous", "n/a", "na", "nan", "none", "not specified", "null", "unk", "unknown"}
)

# Accepted columns; the first that the table has counts, and those of a tuple are joined by a space. The
# column `file` of xeno-canto holds an address, so its `file-name` goes first.
COLUMNS = {
    "file": [("file-name",), ("file_name",), ("file",), ("filename",)],
    "label": [
        ("label",),
        ("primary_label",),
        ("ebird_code",),
        ("gen", "sp"),
        ("scientific_name",),
        ("en",),
        ("common_name",),
    ],
    "recording_id": [("recording_id",), ("xc_id",), ("id",)],
    "recordist": [("recordist",), ("rec",), ("author",)],
}
OPTIONAL_FIELDS = ("recording_id", "recordist")
XENO_CANTO_ID_COLUMNS = ("xc_id", "id")  # hold bare numbers, which xeno-canto itself shows as XC123
BIRDCLEF_FOLDER = "train_audio"  # BirdCLEF's paths are relative to this folder of the data set

XENO_CANTO_ID = re.compile(r"(?<![a-z0-9])xc\d+(?![a-z0-9])", re.IGNORECASE | re.ASCII)
SEGMENT_SUFFIX = re.compile(r"(?<=.)[ _-](segment|seg|part|chunk|clip)[ _-]?\d+$", re.IGNORECASE | re.ASCII)
FOLDER_SUFFIX = re.compile(r"(?<=.)[ _-]+(sounds?|audio|recordings?)$", re.IGNORECASE)


@dataclass(frozen=True)
class SourceFile:
    """A file of audio that belongs to a labelled recording.

    Attributes
    ----------
    path : str
        POSIX path, relative to the folder of recordings.
    label : str
    recording_id : str
    recordist : str or None
        None where unknown.
    """

    path: str
    label: str
    recording_id: str
    recordist: str | None


@dataclass(frozen=True)
class Skipped:
    """A file, folder or row of the metadata that is left out, and why."""

    file: str
    reason: str


def find_recordings(raw_dir: Path, metadata: Path | None = None) -> tuple[list[SourceFile], list[Skipped]]:
    """List the labelled audio files of a folder.

    **Without metadata** the folders are the labels. Folders that hold nothing but one folder with audio
    are wrappers (``raw/Voice of Birds/Voice of Birds/…``): the first folder, from `raw_dir` down, that
    has two or more subfolders with audio holds a subfolder per species; whatever lies below one of these,
    at any depth, is of that species. Audio above the species' folders has no label and is skipped. The
    label is the folder's name, in Unicode's composed form, without a trailing ``sound(s)``, ``audio`` or
    ``recording(s)`` (``Andean Guan_sound`` is ``Andean Guan``). Recordists are unknown. Hidden files and
    files that are no audio are ignored; symbolic links are followed, each folder is read once.

    **With metadata** only the files that it names are read. Paths are relative to `raw_dir` or to its
    ``train_audio``; none may climb out of it, but a symbolic link inside may lead anywhere. Accepted
    column names are in `COLUMNS`; other columns are ignored.

    The **recording id**, where metadata gives none, is the ``XC123`` in the file's name, or the name of
    the nearest folder that is one. Without one it is the file's path without its suffix and without a
    trailing ``segment``, ``seg``, ``part``, ``chunk`` or ``clip`` and number (``rook_part2``,
    ``rook-segment-4``), so that the pieces of one recording share an id. A recording has one label: the
    files of an id found under two are skipped.

    Parameters
    ----------
    raw_dir : Path
        Folder of recordings.
    metadata : Path, optional
        CSV, UTF-8, comma-separated.

    Returns
    -------
    files : list of SourceFile
        Sorted by ``(recording_id, path)``.
    skipped : list of Skipped
        Sorted.

    Raises
    ------
    InputError
        If the folder or the CSV is missing or unreadable, or no labelled audio is left.
    """
    raw_dir = Path(raw_dir)
    if not raw_dir.is_dir():
        found = "it is a file" if raw_dir.exists() else "no such folder"
        raise InputError(f"{raw_dir}: {found}; expected a folder of recordings")
    files, skipped = _from_folders(raw_dir) if metadata is None else _from_metadata(raw_dir, Path(metadata))
    files, unprintable = _printable_labels(files)
    files, ambiguous = _one_label_each(files)
    skipped = sorted(skipped + unprintable + ambiguous, key=lambda skip: (skip.file, skip.reason))
    if not files:
        first = f"{skipped[0].file}: {skipped[0].reason}"
        raise InputError(
            f"{metadata or raw_dir}: no file is left of {len(skipped)}, all are skipped; the first: {first}"
        )
    n_recordings = len({file.recording_id for file in files})
    n_labels = len({file.label for file in files})
    log.info(
        "%s: %d files, %d recordings, %d labels; %d skipped", raw_dir, len(files), n_recordings, n_labels, len(skipped)
    )
    return sorted(files, key=lambda file: (file.recording_id, file.path)), skipped


def _printable_labels(files: list[SourceFile]) -> tuple[list[SourceFile], list[Skipped]]:
    """Leave out labels with NUL, escape codes and the like, which break the figures, CSVs and terminals they go to."""
    kept = [file for file in files if file.label.isprintable()]
    reason = "its label {!r} holds characters that cannot be printed: correct it"
    return kept, [Skipped(file.path, reason.format(file.label)) for file in files if not file.label.isprintable()]


def _one_label_each(files: list[SourceFile]) -> tuple[list[SourceFile], list[Skipped]]:
    labels = defaultdict(set)
    for file in files:
        labels[file.recording_id].add(file.label)
    kept, skipped = [], []
    for file in files:
        found = labels[file.recording_id]
        if len(found) == 1:
            kept.append(file)
        else:
            reason = f"recording {file.recording_id} has several labels: {', '.join(sorted(found))}"
            skipped.append(Skipped(file.path, reason))
    return kept, skipped


def _recording_id(path: str) -> str:
    """Return the id of the recording that a file belongs to; see `find_recordings`."""
    *folders, name = path.split("/")
    found = XENO_CANTO_ID.search(name)
    for folder in reversed(folders):
        found = found or XENO_CANTO_ID.fullmatch(folder)
    if found:
        return found[0].upper()
    return SEGMENT_SUFFIX.sub("", _tidy(posixpath.splitext(path)[0]))


def _tidy(text: str) -> str:
    """Return `text` in Unicode's composed form, with single spaces."""
    return " ".join(unicodedata.normalize("NFC", text).split())


def _is_text(path: str) -> bool:
    """Say whether a path is valid Unicode; Linux also allows names that are not."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


# --------------------------------------------------------------------------------------- folders as labels


def _from_folders(raw_dir: Path) -> tuple[list[SourceFile], list[Skipped]]:
    paths, skipped, ignored = _walk(raw_dir)
    if ignored:
        counts = ", ".join(f"{n} {suffix or 'without suffix'}" for suffix, n in ignored.most_common(5))
        log.info("%s: %d files are no audio and are ignored (%s)", raw_dir, ignored.total(), counts)
    if not paths and not skipped:
        raise InputError(
            f"{raw_dir} holds no audio ({ignored.total()} other files); "
            "expected a folder per species with files such as .wav, .flac, .mp3 or .ogg"
        )
    if (raw_dir / "metadata.csv").is_file():
        log.warning("%s has a metadata.csv that is not used: give it with --metadata to know recordists", raw_dir)
    level = _species_level(paths)
    log.info("labels are the names of the folders in %s", raw_dir.joinpath(*level))
    files = []
    for path in paths:
        folders = path.split("/")[:-1]
        if len(folders) <= len(level):
            place = raw_dir.joinpath(*level)
            skipped.append(Skipped(path, f"no label: it lies in no species' folder (these are in {place})"))
            continue
        name = _tidy(folders[len(level)])
        files.append(SourceFile(path, FOLDER_SUFFIX.sub("", name), _recording_id(path), None))
    return files, skipped


def _species_level(paths: Sequence[str]) -> list[str]:
    """Return the folders that lead to the species' folders; see `find_recordings`."""
    folders = {tuple(path.split("/")[:-1]) for path in paths}
    level: list[str] = []
    while True:
        children = {folder[len(level)] for folder in folders if len(folder) > len(level)}
        if len(children) > 1:
            return level
        if not children:  # one chain of folders: the last one is the only species
            return level[:-1]
        level.append(children.pop())


def _walk(raw_dir: Path) -> tuple[list[str], list[Skipped], Counter[str]]:
    """Return the audio below a folder (sorted, relative), what was skipped, and the suffixes of the rest."""
    paths: list[str] = []
    skipped: list[Skipped] = []
    ignored: Counter[str] = Counter()
    visited = {_identity(raw_dir)}
    pending, links = [""], []
    # Linked folders wait until all real ones are read, so that a folder is listed under its own name.
    while pending or links:
        if pending:
            folder = pending.pop()
        else:
            links.sort(reverse=True)
            folder = links.pop()
            identity = _identity(raw_dir / folder)
            if identity in visited:
                skipped.append(_skip(folder, "a link to a folder that is read already"))
                continue
            visited.add(identity)
        try:
            with os.scandir(raw_dir / folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            if not folder:
                raise InputError(f"{raw_dir} cannot be read: {error.strerror}; change its permissions") from error
            skipped.append(_skip(folder, f"the folder cannot be read: {error.strerror}"))
            continue
        for entry in entries:
            if entry.name.startswith("."):
                continue
            path = posixpath.join(folder, entry.name)
            suffix = posixpath.splitext(entry.name)[1].lower()
            try:
                is_folder, exists = entry.is_dir(), Path(entry).exists()
            except OSError as error:
                skipped.append(_skip(path, f"cannot be read: {error.strerror}"))
                continue
            if is_folder and entry.is_symlink():
                links.append(path)
            elif is_folder:
                visited.add(_identity(raw_dir / path))
                pending.append(path)
            elif not exists:
                skipped.append(_skip(path, "a link that leads nowhere"))
            elif suffix in UNREADABLE_SUFFIXES:
                skipped.append(_skip(path, f"{suffix} cannot be read by libsndfile: convert it to .wav or .flac"))
            elif suffix not in AUDIO_SUFFIXES:
                ignored[suffix] += 1
            elif not entry.is_file():
                skipped.append(_skip(path, "neither a file nor a folder"))
            elif not _is_text(path):
                skipped.append(_skip(path, "its name is no valid UTF-8: rename it"))
            else:
                paths.append(path)
    return sorted(paths), skipped, ignored


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _skip(path: str, reason: str) -> Skipped:
    return Skipped(os.fsencode(path).decode("utf-8", "replace"), reason)


# ------------------------------------------------------------------------------------------------ metadata


def _from_metadata(raw_dir: Path, metadata: Path) -> tuple[list[SourceFile], list[Skipped]]:
    rows: dict[str, list[SourceFile]] = defaultdict(list)
    skipped = []
    for place, file, label, recording_id, recordist in _read_rows(metadata):
        if not file or not label:
            empty = " and ".join(name for name, text in (("file", file), ("label", label)) if not text)
            skipped.append(Skipped(file or place, f"{place}: {empty} empty"))
            continue
        path, problem = _resolve(raw_dir, file)
        if problem:
            skipped.append(Skipped(file, f"{place}: {problem}"))
            continue
        rows[path].append(SourceFile(path, label, recording_id or _recording_id(path), recordist))
    files = []
    for path, sources in rows.items():
        labels = sorted({source.label for source in sources})
        if len(labels) > 1:
            skipped.append(Skipped(path, f"{metadata.name} gives it several labels: {', '.join(labels)}"))
            continue
        files.append(sources[0])
        if len(sources) > 1:
            skipped.append(Skipped(path, f"{metadata.name} names it {len(sources)} times: the first row is used"))
    return files, skipped


def _read_rows(metadata: Path) -> Iterator[tuple[str, str, str, str, str | None]]:
    """Yield ``(place, file, label, recording_id, recordist)`` of every row that is not blank."""
    table = _read_table(metadata)
    names = {field: _columns_of(field, table, metadata) for field in COLUMNS}
    texts = {field: table[list(names[field])].agg(" ".join, axis=1) if names[field] else "" for field in COLUMNS}
    is_xeno_canto = names["recording_id"] and names["recording_id"][0] in XENO_CANTO_ID_COLUMNS
    for row in pd.DataFrame(texts, index=table.index).itertuples():
        recording_id = _tidy(row.recording_id)
        if is_xeno_canto and recording_id.isdecimal():
            recording_id = f"XC{recording_id}"
        if XENO_CANTO_ID.fullmatch(recording_id):
            recording_id = recording_id.upper()
        recordist = _tidy(row.recordist)
        if recordist.casefold() in UNKNOWN_RECORDISTS:
            recordist = None
        place = f"{metadata.name}, row {row.Index + 2}"  # the header is row 1
        yield place, row.file.strip(), _tidy(row.label), recording_id, recordist


def _read_table(metadata: Path) -> pd.DataFrame:
    fix = "expected a comma-separated table in UTF-8 with a header such as file,label,recording_id,recordist"
    if not metadata.is_file():
        raise InputError(f"{metadata}: no such file; {fix}")
    try:
        # Blank lines are kept at first, so that the row numbers in messages are those of a spreadsheet.
        table = pd.read_csv(metadata, dtype=str, keep_default_na=False, encoding="utf-8-sig", skip_blank_lines=False)
    except UnicodeDecodeError as error:
        raise InputError(f"{metadata} is not UTF-8 ({error}): save it as UTF-8") from error
    except (ValueError, OSError) as error:  # pandas' own errors are ValueErrors
        raise InputError(f"{metadata} cannot be read ({str(error).strip()}); {fix}") from error
    if not isinstance(table.index, pd.RangeIndex):
        raise InputError(f"{metadata}: its rows have more fields than its header; {fix}")
    table.columns = [str(name).strip().lower() for name in table.columns]
    for name, separator in (("semicolons", ";"), ("tabs", "\t")):
        if len(table.columns) == 1 and separator in table.columns[0]:
            raise InputError(f"{metadata} is separated by {name}: save it with commas")
    table = table.fillna("")
    table = table[(table != "").any(axis=1)]
    if table.empty:
        raise InputError(f"{metadata} has a header and no rows; {fix}")
    return table


def _columns_of(field: str, table: pd.DataFrame, metadata: Path) -> tuple[str, ...]:
    """Return the columns that hold a field; none where an optional field is missing."""
    for names in COLUMNS[field]:
        if names == ("id",) and "gen" not in table.columns:
            continue  # not xeno-canto's, so it may count rows and tell pieces of one recording apart
        if set(names) <= set(table.columns):
            return names
    if field in OPTIONAL_FIELDS:
        return ()
    accepted = ", ".join(" with ".join(names) for names in COLUMNS[field])
    raise InputError(
        f"{metadata} has no column for the {field}: found {', '.join(table.columns)}; expected one of {accepted}"
    )


def _resolve(raw_dir: Path, file: str) -> tuple[str, str | None]:
    """Return the path of a file that the metadata names, relative to `raw_dir`, or why there is none."""
    path = posixpath.normpath(file)
    if posixpath.isabs(path):
        return path, "the path is absolute; expected one relative to the folder of recordings"
    if path == ".." or path.startswith("../"):
        return path, "the path climbs out of the folder of recordings"
    # File systems differ in the Unicode form of names, and spreadsheets may change it.
    for spelling in (path, unicodedata.normalize("NFC", path), unicodedata.normalize("NFD", path)):
        for candidate in (spelling, posixpath.join(BIRDCLEF_FOLDER, spelling)):
            try:
                if (raw_dir / candidate).is_file():
                    return candidate, None
            except OSError as error:
                return path, f"cannot be read: {error.strerror}"
    if (raw_dir / path).is_dir():
        return path, "it is a folder; expected a file"
    return path, "no such file in the folder of recordings"
