"""Clips of recordings without labels, which a student hears together with its labelled clips.

Stage 01 cuts them with ``--unlabelled``. Recordings that share sound, a name or a recordist with the clips that choose
or score the model are left out.
"""

from __future__ import annotations

import hashlib
import itertools
import logging
import tempfile
from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path

import numpy as np

from utils.core import runs
from utils.core.errors import InputError
from utils.core.text import some
from utils.data import landmarks, near_copies, recordings_table, spool
from utils.data.clips import NO_LABEL_ID, Clips, read_clips
from utils.data.recorders import Start
from utils.data.recordists import recordist_key
from utils.data.tags import Tags

log = logging.getLogger(__name__)


class WithUnlabelled:
    """Labelled training clips, and after them unlabelled ones: a data set for ``torch.utils.data.DataLoader``.

    Parameters
    ----------
    labelled : Clips
        Clips of train.
    unlabelled : Clips
        From `read_unlabelled`.
    """

    def __init__(self, labelled: Clips, unlabelled: Clips):
        self.labelled, self.unlabelled = labelled, unlabelled

    def __len__(self) -> int:
        return len(self.labelled) + len(self.unlabelled)

    def __getitem__(self, index: int) -> dict:
        """Return the items of `Clips`; an unlabelled clip has `NO_LABEL_ID`, and ``is_unlabelled``."""
        if index < len(self.labelled):
            return self.labelled[index]
        audio = self.unlabelled.audio(index - len(self.labelled))
        return {"audio": audio, "label_id": NO_LABEL_ID, "split": "train", "index": index, "is_unlabelled": True}


def read_unlabelled(data_dir: Path, train_clips: Clips) -> Clips:
    """Read the clips that stage 01 cut with ``--unlabelled``, without those that must not be heard.

    A recording is left out if it has the name, the sound, nearly the sound, or the recordist of a recording of val or
    test. Recordists count only if the split keeps each of them together.

    Parameters
    ----------
    data_dir : Path
        Output folder of stage 01.
    train_clips : Clips
        The labelled clips; sample rate and clip length must be theirs.

    Raises
    ------
    InputError
        If the clips have labels, another sample rate or another length, or none is left.
    """
    if not (runs.read_record(data_dir) or {"arguments": {}})["arguments"].get("unlabelled"):
        raise InputError(
            f"--unlabelled_dir {data_dir}: it has labels; run 01_data_processing.py with --unlabelled on its recordings"
        )
    clips = read_clips(data_dir, unlabelled=True)
    for what, unit, own, wanted in (
        ("sample rate", "Hz", clips.sample_rate_hz, train_clips.sample_rate_hz),
        ("clip length", "s", clips.clip_seconds, train_clips.clip_seconds),
    ):
        if own != wanted:
            raise InputError(
                f"--unlabelled_dir {data_dir}: its {what} is {own:g} {unit}, that of {train_clips.data_dir} is "
                f"{wanted:g} {unit}; run 01_data_processing.py with the same --sample_rate and --clip_seconds"
            )
    reasons: dict[str, str] = {}
    labelled = read_clips(train_clips.data_dir, fold=train_clips.fold)
    for split in ("val", "test"):
        scored = replace(labelled, table=labelled.table[labelled.table["split"] == split].reset_index(drop=True))
        for recording_id, reason in _known(clips, scored, split).items():
            reasons.setdefault(recording_id, reason)
    if reasons:
        log.warning(
            "%d of %d unlabelled recordings are left out, because they would tell the student of the clips that score "
            "it: %s",
            *(len(reasons), clips.table["recording_id"].nunique()),
            some([f"{name} ({reason})" for name, reason in sorted(reasons.items())]),
        )
    table = clips.table[~clips.table["recording_id"].isin(list(reasons))]
    if table.empty:
        raise InputError(f"--unlabelled_dir {data_dir}: no recording is left; give others than those of val and test")
    log.info("%d unlabelled clips of %d recordings", len(table), table["recording_id"].nunique())
    return replace(clips, table=table.reset_index(drop=True))


def _known(clips: Clips, scored: Clips, split: str) -> dict[str, str]:
    """Return the recordings that must be left out for a split, with the reason."""
    own_rows, rows = (
        {row["recording_id"]: row for row in recordings_table.read_recordings(of.data_dir)} for of in (clips, scored)
    )
    names = set(scored.table["recording_id"])
    people = {person for name in names for person in _recordists(rows.get(name))}
    if not scored.kept_together.startswith("recordist"):
        people = set()
    found = {}
    for name in dict.fromkeys(clips.table["recording_id"]):
        if name in names:
            found[name] = f"its name is in {split}"
        elif shared := _recordists(own_rows.get(name)) & people:
            found[name] = f"its recordist {min(shared)} is in {split}"
    for name, other in _same_sounds(clips, scored).items():
        found.setdefault(name, f"it shares sound with {other} of {split}")
    return found


def _recordists(row: Mapping[str, str] | None) -> set[str]:
    return {recordist_key(text) for text in (row or {}).get("recordist", "").split("|")} - {""}


def _same_sounds(clips: Clips, scored: Clips) -> dict[str, str]:
    """Return the recordings that share sound with a scored one, equal or nearly; see `near_copies`."""
    with tempfile.TemporaryDirectory() as folder:
        own, other = (list(_sounds(of, Path(folder), side)) for of, side in ((clips, "1"), (scored, "2")))
        folders = {sound.path: Path(folder) for sound in [*own, *other]}
        copies = near_copies.find([*own, *other], folders, clips.sample_rate_hz, lambda call, tasks: map(call, tasks))
    linked: dict[str, str] = {}
    for chain in _chains(copies):
        theirs, ours = ([path[2:] for path in sorted(chain) if path.startswith(side)] for side in ("2:", "1:"))
        linked |= dict.fromkeys(ours, theirs[0]) if theirs else {}
    return linked


def _chains(copies: Iterable[near_copies.Copy]) -> list[set[str]]:
    """Return the sets of sounds that a chain of pairs links."""
    chains: list[set[str]] = []
    for copy in copies:
        joined = {copy.path, copy.other}
        for chain in [chain for chain in chains if chain & joined]:
            joined |= chain
            chains.remove(chain)
        chains.append(joined)
    return chains


def _sounds(clips: Clips, folder: Path, side: str) -> Iterable[spool.Spooled]:
    """Write the sound of each recording, as far as its clips hold it, and find its peaks; `side` begins its path."""
    table = clips.table.reset_index(drop=True)
    for recording_id, rows in itertools.groupby(range(len(table)), key=table["recording_id"].__getitem__):
        lengths = {row: round(float(table["duration_s"][row]) * clips.sample_rate_hz) for row in rows}
        samples = np.concatenate([np.rint(clips.audio(row)[:n] * 32768).astype("<i2") for row, n in lengths.items()])
        path = f"{side}:{recording_id}"
        file = folder / spool.pcm_name(path)
        file.write_bytes(samples.tobytes())
        with file.open("rb") as opened:
            peaks = landmarks.find_peaks(opened)
        digest = hashlib.sha256(samples.tobytes()).hexdigest()
        yield spool.Spooled(*(path, len(samples), digest, clips.sample_rate_hz, "mean", (), Tags(), Start(), peaks))
