"""Assign files to recordings: label, recording id and recordist, from a folder tree or a metadata CSV."""

import errno
import functools
import logging
import os
import posixpath
import unicodedata
from collections import Counter, defaultdict
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import soundfile

from utils.core.errors import FAULTS_OF_A_FILE, InputError, machine_fault
from utils.core.text import counted, printable, some, visible
from utils.data.folder_levels import check_level, find_label_level, label_of
from utils.data.metadata import Row, read_rows
from utils.data.named_files import match
from utils.data.recording_ids import XENO_CANTO_ID, name_recordings, tidy
from utils.data.recordists import is_unknown, one_spelling
from utils.data.tags import Tags

log = logging.getLogger(__name__)

# RAW is left out: it has no header, so its format must be known. The rest are the usual spellings of formats that
# libsndfile lists under another name.
AUDIO_SUFFIXES = frozenset(
    {f".{name.lower()}" for name in soundfile.available_formats() if name != "RAW"}
    | {".aif", ".aifc", ".bwf", ".bw64", ".mp2", ".mpga", ".oga", ".opus", ".snd", ".wave"}
    # Formats that FFmpeg decodes: phones, players, and video containers, which often hold only sound.
    | {".3ga", ".3gp", ".3gpp", ".aac", ".ac3", ".amr", ".ape", ".asf", ".awb", ".dsf", ".m4a", ".m4b", ".m4r", ".mka"}
    | {".mkv", ".mov", ".mp4", ".mpc", ".ogx", ".qt", ".spx", ".tta", ".weba", ".webm", ".wma", ".wv"}
)
CONVERT_WITH = dict.fromkeys([".w4v", ".wac"], "convert it with Kaleidoscope, of the recorder's maker,")
# These formats are sound but cannot be decoded; they are reported, not ignored: recorders, players, dictation machines.
UNREADABLE_SUFFIXES = frozenset(
    {".aa", ".aax", ".cda", ".ds2", ".dss", ".dvf", ".m4p", ".mid", ".midi", ".msv", ".w4v", ".wac", ".wvc", ".zc"}
)

BIRDCLEF_FOLDER = "train_audio"  # BirdCLEF's paths are relative to this folder of the data set


@dataclass(frozen=True)
class SourceFile:
    """A file of audio that belongs to a labelled recording.

    Attributes
    ----------
    path : str
        POSIX path, relative to the folder of recordings.
    label : str
        Empty if tables of labels with times give the labels, until the file is cut.
    recording_id : str
    recordist, licence, collection : str or None
        None where unknown. A collection is the source of recordings: an archive, a publisher, a project.
    origin : str or None
        A text that the pieces of one original recording share, whatever their label; see
        `recording_ids.name_recordings`.
    is_named_by_path : bool
        Whether the id is only the path of the file, so that a tag in the file is preferred.
    secondary_labels : tuple of str
        Other species in the recording, by name; it is not known when.
    names : tuple of str
        Names of the file in tables of labels with times.
    """

    path: str
    label: str
    recording_id: str
    recordist: str | None
    origin: str | None = field(default=None, compare=False)
    is_named_by_path: bool = field(default=False, compare=False)
    licence: str | None = None
    collection: str | None = None
    secondary_labels: tuple[str, ...] = ()
    names: tuple[str, ...] = field(default=(), compare=False)


@dataclass(frozen=True)
class Skipped:
    """A file, folder or row of the metadata that is left out, and why."""

    file: str
    reason: str


def find_recordings(
    raw_dir: Path,
    metadata: Path | None = None,
    label_level: int | None = None,
    collection_column: str | None = None,
    covered: Sequence[str] | None = None,
    uses_secondary: bool = False,
    named_after: Collection[str] = (),
) -> tuple[list[SourceFile], list[Skipped]]:
    """List the labelled audio files of a folder.

    **Without metadata** the folders are the labels. Folders that contain only one folder with audio are wrappers
    (``raw/Voice of Birds/Voice of Birds/…``). The first folder, from `raw_dir` down, with at least two subfolders with
    audio holds one subfolder per species. All audio below such a subfolder, at any depth, belongs to its species. If
    the names of the folders contradict this, or another level is possible, `label_level` must set the level; see
    `folder_levels.find_label_level`. Audio above the species' folders has no label and is skipped. The label is the
    folder's name, in Unicode's composed form, without a trailing ``sound(s)``, ``audio`` or ``recording(s)`` (``Andean
    Guan_sound`` is ``Andean Guan``). Recordists are unknown. Hidden files and files that are not audio are ignored.
    Symbolic links are followed; each folder is read once.

    **With metadata** only the files that it names are read; see `metadata.read_rows` for its columns and
    `_Finder` for how a file is found.

    **With tables of labels with times** only the files that these cover are read; see `named_files.match`. Their label
    is empty. Metadata may add what else is known of them.

    The **recording id**, if metadata gives none, follows from the names: `recording_ids.name_recordings`. A recording
    has one label: if an id has two labels, its files are skipped.

    Parameters
    ----------
    raw_dir : Path
        Folder of recordings.
    metadata : Path, optional
        CSV, UTF-8, comma-separated.
    label_level : int, optional
        Level of the folders that are the labels, counted from 1: the folders in `raw_dir`.
    collection_column : str, optional
        Column of the metadata that names the collection; default ``collection``.
    covered : sequence of str, optional
        Names of the files that tables of labels with times cover.
    named_after : collection of str
        Those of them that are the name of a table.
    uses_secondary : bool
        Whether the metadata names other species in a recording.

    Returns
    -------
    files : list of SourceFile
        Sorted by ``(recording_id, path)``.
    skipped : list of Skipped
        Sorted.

    Raises
    ------
    InputError
        If the folder or the CSV is missing, unreadable or ambiguous, or no labelled audio is left.
    """
    raw_dir = Path(raw_dir)
    try:
        if not raw_dir.is_dir():
            found = "it is a file" if raw_dir.exists() else "no such folder"
            raise InputError(f"{raw_dir}: {found}; expected a folder of recordings")
        identity = _identity(raw_dir)
        known, skipped = {}, []
        if metadata is not None:
            rows = read_rows(Path(metadata), collection_column, covered is None, uses_secondary)
            known, skipped = _from_metadata(raw_dir, Path(metadata), rows, covered is None)
        if covered is not None:
            files, others = _from_tables(raw_dir, covered, named_after, known)
            skipped += others
        elif metadata is not None:
            files = list(known.values())
        else:
            files, skipped = _from_folders(raw_dir, label_level)
        if _identity(raw_dir) != identity:  # such as the empty folder that remains after a network disk is unmounted
            raise OSError("it is another folder than a moment ago")
    except OSError as error:
        raise machine_fault(error.filename or raw_dir, error) from error
    files, unprintable = _printable_labels(files)
    files, ambiguous = _one_label_each(_with_printable_names(_with_recording_ids(files)))
    skipped = sorted(skipped + unprintable + ambiguous, key=lambda skip: (skip.file, skip.reason))
    if not files:
        first = f"{skipped[0].file}: {skipped[0].reason}"
        raise InputError(
            f"{metadata or raw_dir}: no file is left of {len(skipped)}, all are skipped; the first: {first}"
        )
    n_recordings = len({file.recording_id for file in files})
    found = [counted(len(files), "file"), counted(n_recordings, "recording")]
    if covered is None:
        found.append(counted(len({file.label for file in files}), "label"))
    log.info("%s: %s; %d skipped", raw_dir, ", ".join(found), len(skipped))
    return sorted(files, key=_order), skipped


def find_audio(raw: Path) -> tuple[Path, list[str], list[Skipped]]:
    """List the sound files of a folder, at any depth, or take one file; labels play no part.

    Parameters
    ----------
    raw : Path
        Folder of recordings, or one recording.

    Returns
    -------
    folder : Path
        Folder of recordings.
    paths : list of str
        POSIX paths relative to it, sorted.
    skipped : list of Skipped
        Sorted.

    Raises
    ------
    InputError
        If it is missing or unreadable, or holds no sound file.
    """
    raw = Path(raw)
    try:
        if raw.is_file():
            suffix = raw.suffix.lower()
            if suffix not in AUDIO_SUFFIXES:
                advice = f"; {CONVERT_WITH.get(suffix, 'convert it')} to .wav or .flac"
                raise InputError(f"{raw} is not a sound file that can be decoded{advice}")
            if not _is_text(raw.name):
                raise InputError(f"{printable(str(raw))}: its name is not valid UTF-8: rename it")
            return raw.parent, [raw.name], []
        if not raw.is_dir():
            raise InputError(f"{raw}: no such folder or file; expected a folder of recordings, or one recording")
        identity = _identity(raw)
        paths, skipped, ignored = _walk(raw)
        if _identity(raw) != identity:
            raise OSError("it is another folder than a moment ago")
    except OSError as error:
        raise machine_fault(error.filename or raw, error) from error
    _log_ignored(raw, ignored)
    if not paths:
        first = f"; the first of {len(skipped)} skipped, {skipped[0].file}: {skipped[0].reason}" if skipped else ""
        raise InputError(f"{raw} holds no audio ({ignored.total()} other files){first}")
    log.info("%s: %s; %d skipped", raw, counted(len(paths), "file"), len(skipped))
    return raw, paths, sorted(skipped, key=lambda skip: (skip.file, skip.reason))


def complete(
    files: Sequence[SourceFile],
    tags_of: Mapping[str, Tags],
    recordist_level: int | None = None,
    same: Sequence[Sequence[str]] = (),
) -> tuple[list[SourceFile], list[Skipped]]:
    """Complete the data of files from their tags, and recordists also from folders; use one spelling per recordist.

    Parameters
    ----------
    files : sequence of SourceFile
        Files from `find_recordings`.
    tags_of : mapping of str to Tags
        Tags by path; files without an entry stay unchanged.
    recordist_level : int, optional
        Level of the folders that are recordists, counted from 1: the folders in the folder of recordings.
    same : sequence of sequence of str
        Names of the same recordist; see `recordists.one_spelling`.

    Returns
    -------
    files : list of SourceFile
        Sorted by ``(recording_id, path)``.
    skipped : list of Skipped
        Files of a recording that has several labels after this.
    """
    known, n_by, others = [], Counter(), Counter()
    for file in files:
        found = tags_of.get(file.path, Tags())
        recordist, source = file.recordist, "table"
        if recordist is None and found.recordist is not None and not is_unknown(found.recordist):
            recordist, source = found.recordist, "tags"
        folders = file.path.split("/")[:-1]
        if recordist is None and recordist_level is not None and len(folders) >= recordist_level:
            name = printable(tidy(folders[recordist_level - 1]))
            recordist, source = None if is_unknown(name) else name, "folders"
        n_by[source] += recordist is not None
        others[found.other_artist] += recordist is None
        if file.is_named_by_path and found.recording_id is not None:
            file = replace(file, recording_id=found.recording_id, origin=None)
            n_by["ids"] += 1
        licence = file.licence or found.licence
        known.append(replace(file, recordist=recordist, is_named_by_path=False, licence=licence))
    log.info(
        "%d of %d files have a recordist: %d from the table, %d from tags of xeno-canto, %d from folders",
        *(n_by["table"] + n_by["tags"] + n_by["folders"], len(files), n_by["table"], n_by["tags"], n_by["folders"]),
    )
    if n_by["ids"]:
        log.info("%d files have their recording id from tags of xeno-canto", n_by["ids"])
    del others[None]
    if +others:
        names = ", ".join(f"{name} ({n})" for name, n in (+others).most_common(5))
        log.warning(
            "%s an artist in tags that are not xeno-canto's (%s): not used, it may be an app or a publisher. If they "
            "are recordists, name them in a metadata table",
            *(counted(others.total(), "file names", "files name"), names),
        )
    spelling = one_spelling([file.recordist for file in known if file.recordist is not None], same)
    known = [replace(file, recordist=spelling.get(file.recordist)) for file in known]
    known, skipped = _one_label_each(known)
    return sorted(known, key=_order), skipped


def check_recordist_level(files: Sequence[SourceFile], level: int, raw_dir: Path) -> None:
    """Raise `InputError` if no file has a folder of this level, or these folders are the labels."""
    folders_of = [tuple(file.path.split("/")[:-1]) for file in files]
    check_level("--recordist_level", level, folders_of, raw_dir)
    named = [(file, own[level - 1]) for file, own in zip(files, folders_of, strict=True) if len(own) >= level]
    if named and all(_as_folder(name) == _as_folder(file.label) for file, name in named):
        raise InputError(
            f"--recordist_level {level}: the folders of this level are the labels, such as {named[0][1]}; give the "
            "level of the recordists or sites, or leave --recordist_level out"
        )


def _order(file: SourceFile) -> tuple[str, str]:
    return file.recording_id, file.path


def _printable_labels(files: list[SourceFile]) -> tuple[list[SourceFile], list[Skipped]]:
    """Skip files whose labels contain control characters, which break figures, CSVs and terminals."""
    kept = [file for file in files if file.label.isprintable()]
    reason = "its label {!r} holds characters that cannot be printed: correct it"
    return kept, [Skipped(file.path, reason.format(file.label)) for file in files if not file.label.isprintable()]


def _with_printable_names(files: list[SourceFile]) -> list[SourceFile]:
    """Write ids and recordists without control characters; `path` stays unchanged, to find the file.

    A person has one name, with or without characters that nobody sees.
    """
    return [
        replace(
            file,
            recording_id=printable(file.recording_id),
            recordist=None if file.recordist is None else printable(visible(file.recordist)),
        )
        for file in files
    ]


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


def _with_recording_ids(files: list[SourceFile]) -> list[SourceFile]:
    """Set the recording ids of files for which the metadata has none."""
    unnamed = [file for file in files if not file.recording_id]
    names = name_recordings([file.path for file in unnamed], [file.label for file in unnamed])
    named = [
        replace(
            file,
            recording_id=name.recording_id,
            origin=name.origin,
            is_named_by_path=not XENO_CANTO_ID.fullmatch(name.recording_id),
        )
        for file, name in zip(unnamed, names, strict=True)
    ]
    return [file for file in files if file.recording_id] + named


def _is_text(path: str) -> bool:
    """Return whether a path is valid Unicode; Linux also allows other names."""
    try:
        path.encode()
    except UnicodeEncodeError:
        return False
    return True


# --------------------------------------------------------------------------------------- folders as labels


def _from_folders(raw_dir: Path, label_level: int | None) -> tuple[list[SourceFile], list[Skipped]]:
    paths, skipped, ignored = _walk(raw_dir)
    _log_ignored(raw_dir, ignored)
    if not paths and not skipped:
        raise InputError(
            f"{raw_dir} holds no audio ({ignored.total()} other files); "
            "expected a folder per species with files such as .wav, .flac, .mp3 or .ogg"
        )
    if (raw_dir / "metadata.csv").is_file():
        log.warning("%s has a metadata.csv that is not used: give it with --metadata to use its recordists", raw_dir)
    folders_of = [tuple(path.split("/")[:-1]) for path in paths]
    if label_level is not None:
        check_level("--label_level", label_level, folders_of, raw_dir)
    level = label_level or find_label_level(folders_of, raw_dir)
    above = {raw_dir.joinpath(*folders[: level - 1]) for folders in folders_of if len(folders) >= level}
    place = min(above, default=raw_dir)
    more = f" and {len(above) - 1} more" if len(above) > 1 else ""
    log.info("labels are the names of the folders in %s%s", place, more)
    files = []
    for path, folders in zip(paths, folders_of, strict=True):
        if len(folders) < level:
            skipped.append(Skipped(path, f"no label: it is not in a species' folder (these are in {place}{more})"))
            continue
        files.append(SourceFile(path, label_of(folders[level - 1]), "", None))
    return files, skipped


def _log_ignored(raw_dir: Path, ignored: Counter[str]) -> None:
    if ignored:
        counts = ", ".join(f"{n} {suffix or 'without suffix'}" for suffix, n in ignored.most_common(5))
        log.info("%s: %s not audio: ignored (%s)", raw_dir, counted(ignored.total(), "file is", "files are"), counts)


def _walk(raw_dir: Path) -> tuple[list[str], list[Skipped], Counter[str]]:
    """Return the audio below a folder (sorted, relative), the skipped files, and the suffixes of all other files."""
    paths: list[str] = []
    skipped: list[Skipped] = []
    ignored: Counter[str] = Counter()
    visited = {_identity(raw_dir)}
    pending, links = [""], []
    # Linked folders are read after all real ones, so that a folder is listed under its own name.
    while pending or links:
        if pending:
            folder = pending.pop()
        else:
            links.sort(reverse=True)
            folder = links.pop()
            identity = _identity(raw_dir / folder)
            if identity in visited:
                skipped.append(_skip(folder, "a link to a folder that has already been read"))
                continue
            visited.add(identity)
        try:
            with os.scandir(raw_dir / folder) as scan:
                entries = sorted(scan, key=lambda entry: entry.name)
        except OSError as error:
            if error.errno not in FAULTS_OF_A_FILE:
                raise
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
                if error.errno not in FAULTS_OF_A_FILE:
                    raise
                skipped.append(_skip(path, f"cannot be read: {error.strerror}"))
                continue
            if not exists and not entry.is_symlink():
                raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(raw_dir / path))
            if is_folder and entry.is_symlink():
                links.append(path)
            elif is_folder:
                visited.add(_identity(raw_dir / path))
                pending.append(path)
            elif not exists:
                skipped.append(_skip(path, "a link without a target"))
            elif suffix in UNREADABLE_SUFFIXES:
                advice = CONVERT_WITH.get(suffix, "convert it")
                skipped.append(_skip(path, f"{suffix} cannot be decoded: {advice} to .wav or .flac"))
            elif suffix not in AUDIO_SUFFIXES:
                ignored[suffix] += 1
            elif not entry.is_file():
                skipped.append(_skip(path, "neither a file nor a folder"))
            elif not _is_text(path):
                skipped.append(_skip(path, "its name is not valid UTF-8: rename it"))
            else:
                paths.append(path)
    return sorted(paths), skipped, ignored


def _identity(folder: Path) -> tuple[int, int]:
    status = folder.stat()
    return status.st_dev, status.st_ino


def _skip(path: str, reason: str) -> Skipped:
    return Skipped(os.fsencode(path).decode("utf-8", "replace"), reason)


# ------------------------------------------------------------------------------------------------ metadata


def _from_metadata(
    raw_dir: Path, metadata: Path, table: Sequence[Row], has_labels: bool
) -> tuple[dict[str, SourceFile], list[Skipped]]:
    """Return the files of a table, by path; without `has_labels`, whatever it names as their label is not used."""
    finder = _Finder(raw_dir, {name for row in table for name in row.names})
    by_column = _find_by_column(finder, table, metadata)
    rows: dict[str, list[SourceFile]] = defaultdict(list)
    skipped, n_unlabelled, n_by_id = [], 0, 0
    spellings: dict[str, str] = {}  # of collections; the first one in the table is used
    for row, (file, paths, problem) in zip(table, by_column, strict=True):
        is_by_id = not paths and row.xeno_canto_id is not None
        if is_by_id:
            paths, problem_of_id = finder.of_id(row.xeno_canto_id, row.names)
            problem = problem_of_id or problem
        file = file or (row.xeno_canto_id if is_by_id else "")
        if not file or (has_labels and not row.label):
            label = row.label if has_labels else "not used"
            empty = " and ".join(name for name, text in (("file", file), ("label", label)) if not text)
            skipped.append(Skipped(file or row.place, f"{row.place}: {empty} empty"))
            n_unlabelled += not label
            continue
        if not paths:
            skipped.append(Skipped(file, f"{row.place}: {problem}"))
            continue
        n_by_id += is_by_id
        recordist = None if is_unknown(row.recordist) else row.recordist
        spelling = spellings.setdefault(row.collection.casefold(), row.collection)
        known = {"licence": row.licence or None, "collection": None if is_unknown(spelling) else spelling}
        label = row.label if has_labels else ""
        for path in paths:
            own = SourceFile(path, label, row.recording_id, recordist, secondary_labels=row.others, **known)
            rows[path].append(own)
    if n_unlabelled:
        log.warning("%s: %d of %d rows have no label and are left out", metadata, n_unlabelled, len(table))
    if n_by_id:
        log.info("%s: the files of %s are found by their xeno-canto id", metadata, counted(n_by_id, "row"))
    files, n_repeated = {}, 0
    for path, sources in rows.items():
        n_repeated += len(sources) > 1
        labels = sorted({source.label for source in sources})
        if len(labels) > 1:
            skipped.append(Skipped(path, f"{metadata.name} gives it several labels: {', '.join(labels)}"))
            continue
        files[path] = sources[0]
        if len(sources) > 1:
            skipped.append(Skipped(path, f"{metadata.name} names it {len(sources)} times: the first row is used"))
    if n_repeated:
        log.warning(
            "%s names %s in several rows: each file is used once, as a whole, with the label of its rows. If "
            "the rows describe sections of a file, each section must be its own file: cut them out first",
            *(metadata, counted(n_repeated, "file")),
        )
    return files, skipped


def _from_tables(
    raw_dir: Path, covered: Sequence[str], named_after: Collection[str], known: Mapping[str, SourceFile]
) -> tuple[list[SourceFile], list[Skipped]]:
    """Return the files that tables of labels with times cover; `known` is what metadata says of files, by path."""
    paths, skipped, _ = _walk(raw_dir)
    path_of, problems = match(covered, paths, raw_dir, AUDIO_SUFFIXES | UNREADABLE_SUFFIXES, named_after)
    names = defaultdict(list)
    for name, path in path_of.items():
        names[path].append(name)
    files = [replace(known.get(path, SourceFile(path, "", "", None)), names=tuple(names[path])) for path in names]
    unused = [path for path in paths if path not in names]
    skipped += [Skipped(path, "no table of --annotations covers it") for path in unused]
    skipped += [Skipped(name, f"named by --annotations: {problem}") for name, problem in problems]
    if unused:
        n_unused = counted(len(unused), "file")
        log.warning("%s: no table of --annotations covers %s: %s", raw_dir, n_unused, printable(some(unused)))
    if problems:
        lines = [f"{name}: {problem}" for name, problem in problems]
        n_problems = counted(len(lines), "file")
        log.warning("--annotations names %s that cannot be used: %s", n_problems, printable(some(lines, 5)))
    if known and (strangers := sorted(names.keys() - known.keys())):
        n_strangers = counted(len(strangers), "file")
        log.warning("--metadata has no row for %s: %s", n_strangers, some(strangers))
    return files, skipped


def _find_by_column(finder: "_Finder", table: Sequence[Row], metadata: Path) -> list[tuple[str, list[str], str | None]]:
    """Return text, paths and problem of the file of every row, from the column with the most existing files."""
    columns = list(table[0].files)
    best, best_column, most = [("", [], "it is not there under its xeno-canto id")] * len(table), None, -1
    for column in columns:
        found = [(row.files[column], *finder.find(row.files[column], row.names)) for row in table]
        n_found = sum(bool(paths) for _, paths, _ in found)
        if n_found > most:
            best, best_column, most = found, column, n_found
    if len(columns) > 1:
        log.info(
            "%s: the files are named by the column %s, of %d names, %d name an existing file (columns with "
            "file names: %s)",
            *(metadata, best_column, len(table), most, ", ".join(columns)),
        )
    return best


class _Finder:
    """Finds the files that a table names.

    A name is a path relative to `raw_dir`, or to its ``train_audio`` as in BirdCLEF. If there is no such file, all
    folders are searched for its last parts, without regard to case; then for any suffix of sound. Of several files, the
    one in a folder with the row's label is used. A path must not leave `raw_dir`, but a symbolic link inside may have
    any target.

    Parameters
    ----------
    raw_dir : Path
    names : set of str
        All labels of the table, in all spellings: a file in the folder of another label is not used.
    """

    def __init__(self, raw_dir: Path, names: set[str]):
        self.raw_dir = raw_dir
        self.names = {_as_folder(name) for name in names} - {""}

    @functools.cached_property
    def _by_name(self) -> tuple[dict[str, list[str]], dict[str, list[str]], dict[str, list[str]]]:
        """All audio by name, by name without suffix, and by xeno-canto id; read at the first use."""
        indices = defaultdict(list), defaultdict(list), defaultdict(list)
        for path in _walk(self.raw_dir)[0]:
            name = _fold(posixpath.basename(path))
            indices[0][name].append(path)
            indices[1][posixpath.splitext(name)[0]].append(path)
            for found in XENO_CANTO_ID.findall(name):
                indices[2][found.upper()].append(path)
        return indices

    def find(self, file: str, names: Sequence[str]) -> tuple[list[str], str | None]:
        """Return the path of a file, relative to `raw_dir`, or none and the reason; `names` are those of its label."""
        if not file or "://" in file:
            return [], "its name is an address" if file else None
        path = posixpath.normpath(file)
        if posixpath.isabs(path):
            return [], "the path is absolute; expected one relative to the folder of recordings"
        spellings = [path, path.replace("\\", "/")] if "\\" in path else [path]
        for spelling in spellings:
            spelling = posixpath.normpath(spelling)
            if spelling == ".." or spelling.startswith("../"):
                return [], "the path leaves the folder of recordings"
            if posixpath.isabs(spelling):
                continue
            # File systems differ in the Unicode form of names, and spreadsheets may change it.
            for form in (spelling, unicodedata.normalize("NFC", spelling), unicodedata.normalize("NFD", spelling)):
                for candidate in (form, posixpath.join(BIRDCLEF_FOLDER, form)):
                    try:
                        if (self.raw_dir / candidate).is_file():
                            return [candidate], None
                    except OSError as error:
                        if error.errno not in FAULTS_OF_A_FILE:
                            raise
                        return [], f"cannot be read: {error.strerror}"
        if (self.raw_dir / path).is_dir():
            return [], "it is a folder; expected a file"
        return self._look_for(_fold(spelling), names)

    def _look_for(self, path: str, names: Sequence[str]) -> tuple[list[str], str | None]:
        by_name, by_stem, _ = self._by_name
        name = posixpath.basename(path)
        stem, suffix = posixpath.splitext(name)
        candidates = [found for found in by_name.get(name, ()) if f"/{_fold(found)}".endswith(f"/{path}")]
        if not candidates:
            same = by_stem.get(stem if suffix in AUDIO_SUFFIXES | UNREADABLE_SUFFIXES else name, [])
            tail = posixpath.join(posixpath.dirname(path), "")
            candidates = [found for found in same if f"/{_fold(posixpath.dirname(found))}/".endswith(f"/{tail}")]
        return self._the_one(candidates, names, "no such file in the folder of recordings")

    def of_id(self, xeno_canto_id: str, names: Sequence[str]) -> tuple[list[str], str | None]:
        """Return the file whose name is only a xeno-canto id; otherwise all pieces that have it in their name."""
        _, by_stem, by_id = self._by_name
        key = xeno_canto_id.casefold()
        candidates = by_stem.get(key, []) + by_stem.get(key.removeprefix("xc"), [])
        if candidates:
            return self._the_one(candidates, names, None)
        return by_id.get(xeno_canto_id, []), None

    def _the_one(self, candidates: list[str], names: Sequence[str], none: str | None) -> tuple[list[str], str | None]:
        own = {_as_folder(name) for name in names}
        in_own = [path for path in candidates if own & {_as_folder(folder) for folder in path.split("/")[:-1]}]
        elsewhere = [
            path for path in candidates if not self.names & {_as_folder(folder) for folder in path.split("/")[:-1]}
        ]
        best = in_own or elsewhere
        if len(best) == 1:
            return best, None
        if best:
            return [], f"several files have this name ({', '.join(sorted(best)[:3])}): give the path"
        if candidates:
            return [], f"no such file; {candidates[0]} is in the folder of another label"
        return [], none


def _fold(text: str) -> str:
    return unicodedata.normalize("NFC", text).casefold()


def _as_folder(name: str) -> str:
    """Return a common spelling of a label and of its folder: ``Turdus_merula`` and ``Turdus merula``."""
    return " ".join(_fold(label_of(name)).replace("_", " ").split())
