"""Clips on disk: the Parquet schema, its one writer and its one reader.

A row is a clip. A row group holds few clips, so that a data loader that reads in random order decodes only a few
hundred kilobytes per clip.
"""

from __future__ import annotations

import functools
import itertools
import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from utils.core import lazy, runs
from utils.core.errors import InputError, UsageError, is_machine_limit
from utils.core.files import atomic_path, read_json, write_json
from utils.core.text import some
from utils.data import recordings_table
from utils.data.splits import FOLDS, UNIT_NOT_NOTED, Heard, names_of_parts, split_in_fold

with lazy.imported_on_first_use():
    import pandas as pd

log = logging.getLogger(__name__)

SCHEMA_VERSION = 1
CLIPS_PER_ROW_GROUP = 4
LABELS_NAME = "label_mappings.json"
PART_NAMES = "clips-*.parquet"
DATA_STAGE = "01_data_processing"
AGAIN = f"run {DATA_STAGE}.py again with --overwrite"
# Samples: the 25 ms at 16 kHz that wav2vec 2.0, similar models and AST need for their first frame. Whoever needs more
# says so when a model meets its clips.
SHORTEST_CLIP = 400
LARGEST_CLIP = 2**25  # samples; a part holds at least one clip
PCM_SCALE = 32768.0  # int16 full scale: audio in [-1, 1) is PCM / 32768

AUDIO_TYPE = pa.list_(pa.int16())
CLIP_SCHEMA = pa.schema(
    [
        pa.field("clip_id", pa.string(), nullable=False),
        pa.field("recording_id", pa.string(), nullable=False),
        pa.field("group", pa.string(), nullable=False),
        pa.field("source_path", pa.string(), nullable=False),
        pa.field("clip_index", pa.int32(), nullable=False),
        pa.field("start_s", pa.float64(), nullable=False),
        pa.field("duration_s", pa.float32(), nullable=False),
        pa.field("label", pa.string(), nullable=False),
        pa.field("label_id", pa.int32(), nullable=False),
        pa.field("split", pa.string(), nullable=False),
        pa.field("audio", AUDIO_TYPE, nullable=False),
    ]
)
# Of data sets whose labels have times, or that name secondary labels. Other data sets do not have these columns.
LABEL_COLUMNS = ["labels", "secondary_labels"]
ANNOTATED_SCHEMA = pa.schema(
    [*CLIP_SCHEMA, *(pa.field(name, pa.list_(pa.string()), nullable=False) for name in LABEL_COLUMNS)]
)
NO_LABEL_ID = -1  # of a clip of silence; its label is empty
AUDIO_COLUMN = CLIP_SCHEMA.names.index("audio")
AUDIO_LEAF = "audio.list.element"  # name of the column of the samples within Parquet


def part_name(number: int) -> str:
    """Return the file name of a part, such as ``clips-00003.parquet``."""
    return f"clips-{number:05d}.parquet"


def write_part(path: Path, rows: Iterable[dict], sample_rate_hz: int, clip_seconds: float) -> int:
    """Write clips to one Parquet file, atomically and with the same bytes for the same rows.

    Parameters
    ----------
    path : Path
        Final name of the part.
    rows : iterable of dict
        A value for every column of `CLIP_SCHEMA`, or, in each row, of `ANNOTATED_SCHEMA`; ``audio`` is int16 of shape
        (n_samples,). One row group is consumed at a time, so memory does not grow with the part.
    sample_rate_hz : int
        Sample rate of ``audio``.
    clip_seconds : float
        Length of every clip after padding.

    Returns
    -------
    int
        Number of rows written.
    """
    metadata = {
        "schema_version": str(SCHEMA_VERSION),
        "sample_rate_hz": str(sample_rate_hz),
        "clip_seconds": repr(float(clip_seconds)),
    }
    rows = iter(rows)
    first = next(rows, {})
    is_annotated = LABEL_COLUMNS[0] in first
    schema = (ANNOTATED_SCHEMA if is_annotated else CLIP_SCHEMA).with_metadata(metadata)
    texts = [name for name in CLIP_SCHEMA.names if name != "audio"]
    texts += [f"{name}.list.element" for name in LABEL_COLUMNS if is_annotated]
    n_rows = 0
    with (
        atomic_path(path) as partial,
        pq.ParquetWriter(
            partial,
            schema,
            use_dictionary=False,
            # Differences of neighbouring samples are small. This encoding needs 60 % of the size of plain int16, and
            # is the fastest lossless one to write and to read. A general compression does not make it smaller.
            column_encoding={AUDIO_LEAF: "DELTA_BINARY_PACKED"},
            compression={**dict.fromkeys(texts, "zstd"), AUDIO_LEAF: "none"},
            write_statistics=texts,
        ) as writer,
    ):
        group: list[dict] = []
        for row in itertools.chain([first] if first else [], rows):
            group.append(row)
            n_rows += 1
            if len(group) == CLIPS_PER_ROW_GROUP:
                writer.write_table(_as_table(group, schema))
                group = []
        if group:
            writer.write_table(_as_table(group, schema))
    return n_rows


def _as_table(rows: list[dict], schema: pa.Schema) -> pa.Table:
    columns = [_as_array([row[field.name] for row in rows], field.type) for field in schema]
    return pa.Table.from_arrays(columns, schema=schema)


def _as_array(values: Sequence, kind: pa.DataType) -> pa.Array:
    """Do the same as ``pa.array`` without pandas, whose import would take half a second in every process."""
    if pa.types.is_list(kind):
        items = np.concatenate(values) if kind == AUDIO_TYPE else list(itertools.chain.from_iterable(values))
        return pa.ListArray.from_arrays(_as_array(_offsets(values), pa.int32()), _as_array(items, kind.value_type))
    if pa.types.is_string(kind):
        values = [value.encode() for value in values]
        buffers = [_offsets(values), b"".join(values)]
    else:
        buffers = [np.asarray(values, kind.to_pandas_dtype())]
    return pa.Array.from_buffers(kind, len(values), [None, *map(pa.py_buffer, buffers)])


def _offsets(values: Sequence) -> np.ndarray:
    return np.cumsum([0, *map(len, values)], dtype=np.int32)


def write_labels(data_dir: Path, labels: list[str]) -> None:
    """Write ``label_mappings.json``: label ids count from 0 in the order of `labels`."""
    label2id = {label: i for i, label in enumerate(labels)}
    id2label = {str(i): label for i, label in enumerate(labels)}
    write_json(Path(data_dir) / LABELS_NAME, {"label2id": label2id, "id2label": id2label})


def label_maps(labels: list[str]) -> dict[str, dict]:
    """Return the ``id2label`` and ``label2id`` of a model's config."""
    return {"id2label": dict(enumerate(labels)), "label2id": {label: i for i, label in enumerate(labels)}}


def read_labels(data_dir: Path) -> list[str]:
    """Return the labels of a processed data set, by label id."""
    path = Path(data_dir) / LABELS_NAME
    try:
        stored = read_json(path, dict, AGAIN)
        label2id = stored["label2id"]
        if stored == {"label2id": {}, "id2label": {}}:
            raise InputError(
                f"{data_dir} has no labels: {DATA_STAGE}.py cut it with --unlabelled. Give it as --unlabelled_dir, "
                "beside the data set with labels"
            )
        if not all(type(label_id) is int for label_id in label2id.values()):
            raise ValueError("a label id is not a number")
        labels = sorted(label2id, key=label2id.__getitem__)
        if not labels or [label2id[label] for label in labels] != list(range(len(labels))):
            raise ValueError("label ids do not count from 0")
        if odd := [label for label in labels if not label.isprintable()]:
            raise ValueError(f"its labels hold characters that cannot be printed: {some([repr(x) for x in odd], 3)}")
    except (ValueError, KeyError, AttributeError) as error:
        raise InputError(f"{path} cannot be read ({error}); {AGAIN}") from error
    return labels


@dataclass
class Clips:
    """Clips of a processed data set: a table; their audio is read one clip at a time.

    A map-style data set for ``torch.utils.data.DataLoader``, safe to fork.

    Attributes
    ----------
    table : pandas.DataFrame
        One row per clip: all columns except ``audio``, and its place (``part``, ``row_group``, ``row``). Where the data
        set is annotated, ``labels`` and ``secondary_labels`` hold tuples of str.
    labels : list of str
        All labels of the data set, by label id, also those without clips here.
    sample_rate_hz : int
    clip_seconds : float
    data_dir : Path
    fold : int or None
        The fold that is tested, where the data set is divided into folds.
    """

    table: pd.DataFrame
    labels: list[str]
    sample_rate_hz: int
    clip_seconds: float
    data_dir: Path
    fold: int | None = None

    def __post_init__(self):
        self._parts: dict[int, pq.ParquetFile] = {}
        self._group_read: tuple[tuple[int, int], list[np.ndarray]] | None = None
        self._locations = self.table[["part", "row_group", "row"]].to_numpy()
        self._label_ids = self.table["label_id"].to_numpy()
        self._splits = self.table["split"].to_numpy()

    def __len__(self) -> int:
        return len(self._locations)

    def __getitem__(self, index: int) -> dict:
        """Return ``audio`` (float32 (n_samples,) in [-1, 1)) of a clip, and what `without_audio` returns."""
        return {"audio": self.audio(index), **self.without_audio(index)}

    def without_audio(self, index: int) -> dict:
        """Return ``label_id``, ``split`` and ``index`` of a clip.

        In an annotated data set also its rows of `targets` and `is_known`: ``target`` and ``is_known``.
        """
        own = {"target": self.targets[index], "is_known": self.is_known[index]} if self.is_annotated else {}
        return {
            "label_id": int(self._label_ids[index]),
            "split": self._splits[index],
            "index": int(index),
            **own,
        }

    def __getstate__(self) -> dict:
        # Open files are not sent to the workers of a data loader; each worker opens its own.
        return {**self.__dict__, "_parts": {}, "_group_read": None}

    @property
    def is_annotated(self) -> bool:
        """Whether a clip can have several labels or none, and labels that are not known to be in it."""
        return LABEL_COLUMNS[0] in self.table

    @functools.cached_property
    def targets(self) -> np.ndarray:
        """Float32 of shape (n_clips, n_classes): 1 where a clip has the label, 0 elsewhere; all 0 in silence."""
        if not self.is_annotated:
            return np.eye(len(self.labels), dtype=np.float32)[self._label_ids]
        return self._holds("labels").astype(np.float32)

    @functools.cached_property
    def is_known(self) -> np.ndarray:
        """Bool of shape (n_clips, n_classes): False for secondary labels, which may or may not be in the clip."""
        if not self.is_annotated:
            return np.ones((len(self), len(self.labels)), bool)
        return ~self._holds("secondary_labels")

    def _holds(self, column: str) -> np.ndarray:
        ids = {label: i for i, label in enumerate(self.labels)}
        holds = np.zeros((len(self), len(self.labels)), bool)
        for own, labels in zip(holds, self.table[column], strict=True):
            own[[ids[label] for label in labels]] = True
        return holds

    @property
    def kept_together(self) -> str:
        """The unit that the split keeps on one side; ``recording`` also if no recordist is known."""
        record = runs.read_record(self.data_dir) or {}
        return str(record.get("metrics", {}).get("kept_together", UNIT_NOT_NOTED))

    @functools.cached_property
    def heard_in_train(self) -> Heard | None:
        """Count these clips, of one split, by whether their recordist is in train; None if that is not known."""
        return recordings_table.heard_in_train(self.table["recording_id"], self.data_dir, self.fold)

    def cutting(self) -> dict[str, object]:
        """Return how stage 01 cut recordings into these clips, and how it padded short ones.

        Returns
        -------
        dict
            ``remainder``: ``pad`` or ``drop``; ``least_seconds`` and ``least_rest_seconds``: the shortest recording,
            and the shortest rest of a longer one, that gave a clip; ``channel``: value of ``--channel``; ``fill``:
            ``repeat``, from the start.
        """
        record = runs.read_record(self.data_dir) or {"arguments": {}}
        least_s = record["arguments"].get("min_seconds", 0.0)
        return {
            "remainder": record["arguments"].get("remainder", "pad"),
            "least_seconds": least_s,
            "least_rest_seconds": record["arguments"].get("min_remainder_seconds", least_s),
            "channel": record["arguments"].get("channel", "mean"),
            "fill": "repeat",
        }

    def without_silence(self) -> Clips:
        """Return the clips that have a label; unchanged if not annotated.

        Raises
        ------
        InputError
            If all clips are silence.
        """
        if not self.is_annotated:
            return self
        table = self.table[self.table["label_id"] != NO_LABEL_ID]
        if table.empty:
            raise InputError(
                f"all {len(self)} clips of {self.data_dir} here are silence, and none has a label; choose another "
                f"split, or run {DATA_STAGE}.py with tables that name labels"
            )
        if n_silent := len(self) - len(table):
            log.info("%d of %d clips are silence and are left out: a label is needed here", n_silent, len(self))
        return replace(self, table=table.reset_index(drop=True))

    def with_one_label(self) -> Clips:
        """Return the clips that have a label, each with its first one alone; see `without_silence`."""
        labelled = self.without_silence()
        return replace(labelled, table=labelled.table.drop(columns=LABEL_COLUMNS, errors="ignore"))

    def drawn(self, n_clips: int, seed: int | np.random.Generator) -> Clips:
        """Return some of the clips, drawn without their labels, in their order; all if there are no more."""
        if len(self) <= n_clips:
            return self
        chosen = np.random.default_rng(seed).choice(len(self), n_clips, replace=False)
        return replace(self, table=self.table.iloc[np.sort(chosen)])

    def only(self, indices: range) -> Clips:
        """Return some of the clips, in their order."""
        return replace(self, table=self.table.iloc[indices.start : indices.stop])

    def audio(self, index: int) -> np.ndarray:
        """Return the samples of a clip, float32 of shape (n_samples,), in [-1, 1)."""
        part, row_group, row = (int(value) for value in self._locations[index])
        if self._group_read is None or self._group_read[0] != (part, row_group):
            self._group_read = (part, row_group), self._read_group(part, row_group)
        return self._group_read[1][row].astype(np.float32) / np.float32(PCM_SCALE)

    def _read_group(self, part: int, row_group: int) -> list[np.ndarray]:
        path = self.data_dir / part_name(part)
        try:
            if part not in self._parts:
                self._parts[part] = pq.ParquetFile(path)
            column = self._parts[part].read_row_group(row_group, columns=["audio"], use_threads=False)["audio"]
        except (OSError, pa.ArrowException) as error:
            if is_machine_limit(error):
                raise
            raise InputError(f"{path} cannot be read ({error}); {AGAIN}") from error
        rows = [row.values.to_numpy(zero_copy_only=False) for chunk in column.chunks for row in chunk]
        if any(len(row) != round(self.clip_seconds * self.sample_rate_hz) or row.dtype != np.int16 for row in rows):
            raise InputError(
                f"{path}, audio of row group {row_group}: clips of {sorted({len(row) for row in rows})} samples or "
                f"without a number; expected {self.clip_seconds:g} s at {self.sample_rate_hz} Hz; {AGAIN}"
            )
        return rows


def read_clips(
    data_dir: Path,
    split: str | None = None,
    max_clips_per_class: int | None = None,
    seed: int = 0,
    fold: int | None = None,
    unlabelled: bool = False,
) -> Clips:
    """Open the clips of a processed data set; only their table is read.

    Parameters
    ----------
    data_dir : Path
        Output folder of stage 01.
    split : {"train", "val", "test"}, optional
        Only this split. None selects all.
    max_clips_per_class : int, optional
        Keep at most this many clips per class and split, drawn without replacement.
    seed : int
        Seed of that draw.
    fold : int, optional
        The fold to test, from 1, if the data set is divided into folds; see `splits.split_in_fold`.
    unlabelled : bool
        The data set was cut with ``--unlabelled``: it has no labels, and all its clips are silence.

    Returns
    -------
    Clips
        In the order of the parts: by ``recording_id``, then ``clip_index``.

    Raises
    ------
    InputError
        If a part is missing, damaged or has another schema, or no clip is left.
    UsageError
        If `fold` does not fit the data set.
    """
    data_dir = Path(data_dir)
    paths = sorted(data_dir.glob(PART_NAMES))
    if not paths:
        raise InputError(f"{data_dir} has no {PART_NAMES}; run {DATA_STAGE}.py first")
    tables, formats = [], {}
    for number, path in enumerate(paths):
        if path.name != part_name(number):
            raise InputError(f"{data_dir / part_name(number)} is missing; {AGAIN}")
        table, formats[path.name] = _read_part_table(path)
        tables.append(table.assign(part=number))
    if len({tuple(table.columns) for table in tables}) > 1:
        raise InputError(f"only some parts of {data_dir} have the columns {' and '.join(LABEL_COLUMNS)}; {AGAIN}")
    if len(set(formats.values())) > 1:
        raise InputError(f"the parts of {data_dir} differ in sample rate or clip length: {formats}; {AGAIN}")
    table, labels = pd.concat(tables, ignore_index=True), [] if unlabelled else read_labels(data_dir)
    sample_rate_hz, clip_seconds = next(iter(formats.values()))
    _check_rows(table, labels, round(clip_seconds * sample_rate_hz) / sample_rate_hz, data_dir)
    if fold is not None or split is not None:
        table["split"] = _splits_in_fold(table["split"], fold, data_dir)
    found = table["split"].value_counts().to_dict()
    if split is not None:
        table = table[table["split"] == split]
    if table.empty:
        raise InputError(
            f"{data_dir} has no clips of the split {split!r}; it has {found}: "
            f"choose another split or run {DATA_STAGE}.py with other fractions"
        )
    if max_clips_per_class is not None:
        shuffled = table.iloc[np.random.default_rng(seed).permutation(len(table))]
        table = shuffled.groupby(["label_id", "split"]).head(max_clips_per_class).sort_index()
    return Clips(table.reset_index(drop=True), labels, sample_rate_hz, clip_seconds, data_dir, fold)


def _splits_in_fold(names: pd.Series, fold: int | None, data_dir: Path) -> pd.Series:
    """Return the split of each clip when `fold` is tested; the splits themselves where there are no folds."""
    n_folds = len(set(names) & set(FOLDS))
    if n_folds == 0 and fold is None:
        return names
    if fold is None:
        raise UsageError(f"{data_dir} is divided into {n_folds} folds: say which one is tested, --fold 1 to {n_folds}")
    _check_fold(fold, n_folds, data_dir)
    return names.map({name: split_in_fold(name, fold, n_folds) for name in set(names)})


def _check_fold(fold: int, n_folds: int, data_dir: Path) -> None:
    if n_folds == 0:
        raise UsageError(
            f"--fold {fold}: {data_dir} has no folds; leave --fold out, or run {DATA_STAGE}.py with --folds"
        )
    if fold > n_folds:
        raise UsageError(f"--fold {fold}: {data_dir} has {n_folds} folds; expected 1 to {n_folds}")


def _read_part_table(path: Path) -> tuple[pd.DataFrame, tuple[int, float]]:
    try:
        with pq.ParquetFile(path) as file:
            clip_format = _clip_format(path, file.schema_arrow)
            names = [name for name in file.schema_arrow.names if name != "audio"]
            table = file.read(columns=names).to_pandas()
            groups = [file.metadata.row_group(i) for i in range(file.num_row_groups)]
            sizes = [group.num_rows for group in groups]
            n_samples = [group.column(AUDIO_COLUMN).num_values for group in groups]
    except (OSError, pa.ArrowException, ValueError) as error:
        if is_machine_limit(error):
            raise
        raise InputError(f"{path} cannot be read ({error}); {AGAIN}") from error
    for name in LABEL_COLUMNS:
        if name in table:
            table[name] = [tuple(labels) for labels in table[name]]
    table["row_group"] = np.repeat(np.arange(len(sizes)), sizes)
    table["row"] = np.concatenate([np.arange(size) for size in sizes]) if sizes else []
    wanted = np.array(sizes) * round(clip_format[0] * clip_format[1])
    if (wanted != n_samples).any():
        row_group = int(np.argmax(wanted != n_samples))
        raise InputError(
            f"{path}, audio of row group {row_group}: {n_samples[row_group]} samples in {sizes[row_group]} clips of "
            f"{clip_format[1]:g} s at {clip_format[0]} Hz; expected {wanted[row_group]}; {AGAIN}"
        )
    return table, clip_format


def _clip_format(path: Path, schema: pa.Schema) -> tuple[int, float]:
    """Return the sample rate and the clip length from a part's schema, after checking the whole schema."""
    metadata = {
        key.decode(errors="replace"): value.decode(errors="replace") for key, value in (schema.metadata or {}).items()
    }
    version = metadata.get("schema_version")
    if version != str(SCHEMA_VERSION):
        found = "no schema_version in its metadata" if version is None else f"clips of schema_version {version!r}"
        raise InputError(f"{path} has {found}; this version of the program reads {SCHEMA_VERSION}: {AGAIN}")
    expected = ANNOTATED_SCHEMA if {*LABEL_COLUMNS} & {*schema.names} else CLIP_SCHEMA
    if not schema.equals(expected, check_metadata=False):
        found, wanted = (
            some([_described(field) for field in own if not any(field.equals(other) for other in others)], 3)
            for own, others in ((schema, expected), (expected, schema))
        )
        raise InputError(
            f"{path} has the columns {found or 'too few, or in another order'}; "
            f"expected {wanted or ', '.join(expected.names)}; {AGAIN}"
        )
    try:
        sample_rate_hz, clip_seconds = int(metadata["sample_rate_hz"]), float(metadata["clip_seconds"])
    except (KeyError, ValueError):
        sample_rate_hz, clip_seconds = 0, 0.0
    if sample_rate_hz < 1 or not 0.5 < sample_rate_hz * clip_seconds < LARGEST_CLIP + 0.5:
        names = ("sample_rate_hz", "clip_seconds")
        found = ", ".join(f"{name} {metadata.get(name, 'none')}" for name in names)
        raise InputError(
            f"{path} has the metadata {found}; expected a whole number of Hz and a number of seconds that give a clip "
            f"of 1 to {LARGEST_CLIP} samples; {AGAIN}"
        )
    return sample_rate_hz, clip_seconds


def _described(field: pa.Field) -> str:
    return f"{field.name} ({field.type}{', may be missing' if field.nullable else ''})"


def _check_rows(table: pd.DataFrame, labels: list[str], clip_s: float, data_dir: Path) -> None:
    """Refuse clips that stage 01 never writes; name the first by file, row and column."""
    label_ids = table["label_id"].to_numpy()
    inside = (label_ids >= 0) & (label_ids < len(labels))
    label_of = np.array([*labels, ""], dtype=object)[np.where(inside, label_ids, len(labels))]
    is_annotated = LABEL_COLUMNS[0] in table
    if is_annotated:
        inside = inside | (label_ids == NO_LABEL_ID)
    start_s, duration_s = table["start_s"].to_numpy(), table["duration_s"].to_numpy()
    group_ids, split_ids = pd.factorize(table["group"])[0], pd.factorize(table["split"])[0]
    split_of_group = np.zeros(len(table), int)
    split_of_group[group_ids[::-1]] = split_ids[::-1]  # split of the first clip of each group
    split_names = names_of_parts(len(set(table["split"]) & set(FOLDS)) or None)
    rules = {
        "clip_id": (~table["clip_id"].duplicated().to_numpy(), "an id that no other clip has"),
        "clip_index": (table["clip_index"].to_numpy() >= 0, "0 or more"),
        "start_s": (np.isfinite(start_s) & (start_s >= 0), "a number of at least 0"),
        "duration_s": ((duration_s > 0) & (duration_s <= np.float32(clip_s)), f"above 0 and {clip_s:g} or less"),
        "label_id": (
            inside,
            f"0 to {len(labels) - 1}, as {LABELS_NAME} has {len(labels)} labels"
            + is_annotated * f"; or {NO_LABEL_ID} in silence",
        ),
        "label": (
            ~inside | (label_of == table["label"].to_numpy()),
            f"the label that {LABELS_NAME} has for its label_id",
        ),
        "split": (table["split"].isin(split_names).to_numpy(), " or ".join(split_names)),
        "group": (split_of_group[group_ids] == split_ids, "a group whose clips are all of one split"),
        **(_rules_of_label_lists(table, set(labels)) if is_annotated else {}),
    }
    for column, (is_good, expected) in rules.items():
        if not is_good.all():
            bad = table.iloc[int(np.argmin(is_good))]
            within = table[table["part"] == bad["part"]].index.get_loc(bad.name)
            raise InputError(
                f"{data_dir / part_name(bad['part'])}, row {within}, {column}: found {bad[column]!r} in "
                f"{(~is_good).sum()} clip(s); expected {expected}; {AGAIN}"
            )


def _rules_of_label_lists(table: pd.DataFrame, labels: set[str]) -> dict[str, tuple[np.ndarray, str]]:
    """Return, for the columns of an annotated data set, which rows are good, and what a good row is."""
    rows = list(zip(table["label"], table["labels"], table["secondary_labels"], strict=True))
    is_good = [sorted({*own} & labels) == [*own] and (label in own if own else label == "") for label, own, _ in rows]
    is_good_secondary = [sorted({*others} & labels - {*own}) == [*others] for _, own, others in rows]
    return {
        "labels": (np.array(is_good), f"labels of {LABELS_NAME} by name, one of them the label; none in silence"),
        "secondary_labels": (
            np.array(is_good_secondary),
            f"labels of {LABELS_NAME} by name that are not among the labels",
        ),
    }


def data_input(data_dir: Path, fold: int | None = None) -> runs.Input:
    """Describe and check a processed data set as the input of a stage; see `runs.folder_input`.

    Its digest names the fold that is tested, if there is one: another fold is other data to train and to test on.
    """
    data = runs.folder_input(data_dir, stages=[DATA_STAGE])
    if fold is None:
        return data
    n_folds = (runs.read_record(data_dir) or {}).get("arguments", {}).get("folds") or 0
    _check_fold(fold, n_folds, data_dir)
    return replace(data, sha256=f"{data.sha256}/fold-{fold}-of-{n_folds}")
