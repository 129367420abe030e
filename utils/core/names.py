"""Names of runs and results: composed and parsed here alone, so that no part can be taken for another.

    <data set>[.by-<split>]/<model>[.<variant>]/seed-<n>      birds25.by-clip/whisper-base.blocks-0-3/seed-1

stands below ``runs``, ``validation_results`` and ``analysis_results``; without the model below ``processed_data``. A
data set without ``.by-`` is split by recordist. A fold stands as ``fold-<n>``. A model may have several variants:

blocks-0-3    fine-tuned with these blocks of its base model alone; ``blocks-none`` with no block
after-3       pruned to three blocks after it was fine-tuned
pruned        pruned after it was fine-tuned, to the blocks that stage 05 or the user has chosen
sweep         not a model: what stage 05 has left of one
pretrained    as it was downloaded
all-clips     looked at by the clips of all splits

Results that came with the code stand below ``published`` in these folders. Folders of other names are allowed, such as
``validation_results/whole``; what does not follow the layout is not parsed.
"""

import os
import re
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

from utils.core.errors import UsageError
from utils.core.records import RECORD_NAME

PUBLISHED = "published"
DEFAULT_SPLIT = "recordist"
PRUNED, SWEEP = "pruned", "sweep"
# Folders of all results of a kind, and how deep in them a result lies.
ROOTS = ("runs", "validation_results", "analysis_results", PUBLISHED)
DEPTH = 3
_LAYERS = r"(?:none|\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)"
_VARIANT = rf"blocks-{_LAYERS}|after-\d+|pruned|sweep|pretrained|all-clips"
_NAME = re.compile(
    r"(?P<data_set>[^/.][^/]*?)(?:\.by-(?P<split_by>[a-z_]+))?/"
    rf"(?P<model>[^/.+][^/+]*?)(?P<variants>(?:\.(?:{_VARIANT}))*)/"
    r"(?P<part>seed|fold)-(?P<number>0|[1-9]\d*)"
)


@dataclass(frozen=True)
class Name:
    """What a run or a result is of.

    Attributes
    ----------
    data_set, model : str
        Short names.
    number : int
        Seed or fold.
    variants : tuple of str
        What was done with the model; see this module.
    split_by : str
        What the split of the data keeps together.
    part : {"seed", "fold"}

    Raises
    ------
    UsageError
        If the name would be read as another one.
    """

    data_set: str
    model: str
    number: int
    variants: tuple[str, ...] = ()
    split_by: str = DEFAULT_SPLIT
    part: str = "seed"

    def __post_init__(self):
        if _fields(str(self)) != vars(self):
            raise UsageError(
                f"no result can be called {str(self)!r}: the names of a data set and a model have no slash nor plus, "
                "do not begin with a dot, and do not end like .by-clip or .blocks-0-3"
            )

    def __str__(self) -> str:
        return f"{self.data_folder}/{self.full_model}/{self.part}-{self.number}"

    @property
    def data_folder(self) -> str:
        """The data set with its way of splitting: ``birds25.by-clip``."""
        return self.data_set if self.split_by == DEFAULT_SPLIT else f"{self.data_set}.by-{self.split_by}"

    @property
    def full_model(self) -> str:
        """The model with its variants: ``whisper-base.blocks-0-3``."""
        return ".".join([self.model, *self.variants])

    @property
    def data(self) -> str:
        """The name of the data, below ``processed_data``."""
        return f"{self.data_folder}/{self.part}-{self.number}"

    def without(self, variant: str) -> "Name":
        """Return the name of the model that this was made of."""
        return replace(self, variants=tuple(own for own in self.variants if own != variant))

    def variant(self, name: str) -> "Name":
        """Return the name of what was made of this model."""
        return replace(self, variants=(*self.variants, name))


def parse(text: str) -> Name | None:
    """Return what a name says; None where it does not follow the layout."""
    fields = _fields(text)
    return None if fields is None else Name(**fields)


def _fields(text: str) -> dict | None:
    found = _NAME.fullmatch(text)
    if found is None:
        return None
    return {
        "data_set": found["data_set"],
        "model": found["model"],
        "number": int(found["number"]),
        "variants": tuple(found["variants"].split(".")[1:]),
        "split_by": found["split_by"] or DEFAULT_SPLIT,
        "part": found["part"],
    }


def blocks(layers: str) -> str:
    """Return the variant of a model that is fine-tuned with a layer list of its base model: ``blocks-0-3``."""
    return f"blocks-{layers}"


def after(n_layers: int) -> str:
    """Return the variant of a model that is pruned to a number of blocks after it is fine-tuned: ``after-3``."""
    return f"after-{n_layers}"


# ------------------------------------------------------------------------------------------------ folders


def root_of(folder: Path) -> Path:
    """Return the folder of all results beside this one.

    That is the nearest of `ROOTS` above it; else what its own path says, if it follows the layout; else the folder
    around it.
    """
    folder = Path(folder).resolve()
    parents = folder.parents
    follows = parse("/".join(folder.parts[-DEPTH:])) is not None
    return next((parent for parent in parents[:DEPTH] if parent.name in ROOTS), parents[DEPTH - 1 if follows else 0])


def of_folder(folder: Path) -> str:
    """Return the name of a run or result: its path below `root_of`."""
    folder = Path(folder).resolve()
    return folder.relative_to(root_of(folder)).as_posix()


def of_model(model_dir: str | Path) -> str:
    """Return the name that results of a model go by: that of its run, or of the model folder by itself."""
    folder = Path(model_dir).resolve()
    if not folder.exists():  # a name on the hub
        return folder.name
    return of_folder(folder.parent if folder.name == "model" else folder)


def of_data(data_dir: Path) -> str:
    """Return the name of the data set in an output folder of stage 01, without seed and fold."""
    folder = Path(data_dir).resolve()
    return folder.parent.name if re.fullmatch(r"(seed|fold)-\d+", folder.name) else folder.name


def variant_of(name: str, variant: str) -> str:
    """Return the name of what was made of a run, whether its name follows the layout or not."""
    parsed = parse(name)
    return f"{name}.{variant}" if parsed is None else str(parsed.variant(variant))


def both(first: str, second: str) -> str:
    """Return the name of what compares the layers of two models; like no model's own."""
    ours, theirs = parse(first), parse(second)
    added = theirs.full_model if theirs else second
    if ours is None:
        return f"{first}+{added}"
    return f"{ours.data_folder}/{ours.full_model}+{added}/{ours.part}-{ours.number}"


def result_folders(root: Path, depth: int = DEPTH) -> Iterator[Path]:
    """Yield the folders below a root that have a ``run.json``, by name; none of those that came with the code."""
    for folder in sorted(path for path in Path(root).iterdir() if path.is_dir()):
        if os.path.lexists(folder / RECORD_NAME):
            yield folder
        elif depth > 1 and folder.name != PUBLISHED and not folder.name.startswith("."):
            yield from result_folders(folder, depth - 1)
