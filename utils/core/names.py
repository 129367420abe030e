"""Names of runs and results. Only this module composes and parses them, so that no part can be mistaken for another.

    <data set>[.by-<split>]/<model>[.<variant>]/[fold-<k>.]seed-<n>      birds34/whisper-base.blocks-0-3/fold-2.seed-1

The name stands below ``runs``, ``validation_results`` and ``analysis_results``. A data set without ``.by-`` is split by
recordist. ``fold-all`` holds the pooled results of all folds. Below ``processed_data`` the data set of several folds
is ``birds34/folds``, and that of one split ``birds34/seed-1``. A model may have several variants:

blocks-0-3    fine-tuned with only these blocks of its base model; ``blocks-none`` has no block
after-3       pruned to three blocks after fine-tuning
ffn-50        narrower: each block keeps 50 % of the units of its feed-forward network
pruned        pruned after fine-tuning, to the blocks that stage 05 or the user has chosen
sweep         not a model: the results of a pruning search of stage 05
thresholds    not a model: the thresholds that stage 03 fits
pretrained    the downloaded model, without fine-tuning
all-clips     analysed on the clips of all splits
repaired      its kept blocks are fitted to the states of the whole model
healed        all its layers are trained again after it was pruned
taught        it has learned from a teacher; ``repaired.taught`` is healed with a teacher
frozen        only the head is trained: a new one, or after ``repaired`` that of the whole model
onnx          exported, as files; float32, float16 and int8 are their results

Results that came with the code stand below ``published`` in these folders. Other folder names are allowed, such as
``validation_results/whole``; a name that does not follow the layout is not parsed.
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
ALL_FOLDS = "all"
PRUNED, SWEEP, FROZEN, THRESHOLDS, EXPORTED = "pruned", "sweep", "frozen", "thresholds", "onnx"
REPAIRED, HEALED, TAUGHT = "repaired", "healed", "taught"
# Root folders of the results, and the depth of a result below its root.
OF_RESULTS = ("validation_results", "analysis_results")
ROOTS = ("runs", *OF_RESULTS, PUBLISHED)
DEPTH = 3
CHECKPOINT_SUFFIXES = (".pt", ".pth", ".safetensors")  # of other programs
PRECISIONS = ("float32", "float16", "int8")  # of exported files
_LAYERS = r"(?:none|\d+(?:-\d+)?(?:,\d+(?:-\d+)?)*)"
_VARIANT = rf"blocks-{_LAYERS}|after-\d+|ffn-\d+|pruned|sweep|thresholds|pretrained|all-clips|frozen|repaired|healed|"
_VARIANT += "|".join((TAUGHT, EXPORTED, *PRECISIONS))
_NAME = re.compile(
    r"(?P<data_set>[^/.][^/]*?)(?:\.by-(?P<split_by>[a-z_]+))?/"
    rf"(?P<model>[^/.+][^/+]*?)(?P<variants>(?:\.(?:{_VARIANT}))*)/"
    r"(?:fold-(?P<fold>all|[1-9]\d*)\.)?seed-(?P<seed>0|[1-9]\d*)"
)


@dataclass(frozen=True)
class Name:
    """The parsed name of a run or a result.

    Attributes
    ----------
    data_set, model : str
        Short names.
    seed : int
        Seed of the training, and of the split if there are no folds.
    variants : tuple of str
        Changes to the model; see the docstring of this module.
    split_by : str
        The unit that the split keeps together, such as the recordist.
    fold : str or None
        Number of the fold that is tested; ``all`` for the pooled results of all folds.

    Raises
    ------
    UsageError
        If the composed name would be parsed as a different one.
    """

    data_set: str
    model: str
    seed: int
    variants: tuple[str, ...] = ()
    split_by: str = DEFAULT_SPLIT
    fold: str | None = None

    def __post_init__(self):
        if _fields(str(self)) != vars(self):
            raise UsageError(
                f"no result can be called {str(self)!r}: a name of a data set or model contains no slash and no plus, "
                "does not begin with a dot, and does not end like .by-clip or .blocks-0-3"
            )

    def __str__(self) -> str:
        return f"{self.data_folder}/{self.full_model}/{self.part}"

    @property
    def part(self) -> str:
        """The last part: ``seed-1`` or ``fold-2.seed-1``."""
        return f"seed-{self.seed}" if self.fold is None else f"fold-{self.fold}.seed-{self.seed}"

    @property
    def data_folder(self) -> str:
        """The data set with the unit of its split: ``birds25.by-clip``."""
        return self.data_set if self.split_by == DEFAULT_SPLIT else f"{self.data_set}.by-{self.split_by}"

    @property
    def full_model(self) -> str:
        """The model with its variants: ``whisper-base.blocks-0-3``."""
        return ".".join([self.model, *self.variants])

    @property
    def data(self) -> str:
        """The name of the data, below ``processed_data``."""
        return f"{self.data_folder}/seed-{self.seed}" if self.fold is None else f"{self.data_folder}/folds"

    def without(self, variant: str) -> "Name":
        """Return the name of the model without a variant: the model from which this one was made."""
        return replace(self, variants=tuple(own for own in self.variants if own != variant))

    def variant(self, name: str) -> "Name":
        """Return the name of a variant of this model."""
        return replace(self, variants=(*self.variants, name))


def parse(text: str) -> Name | None:
    """Parse a name; None if it does not follow the layout."""
    fields = _fields(text)
    return None if fields is None else Name(**fields)


def _fields(text: str) -> dict | None:
    found = _NAME.fullmatch(text)
    if found is None:
        return None
    return {
        "data_set": found["data_set"],
        "model": found["model"],
        "seed": int(found["seed"]),
        "variants": tuple(found["variants"].split(".")[1:]),
        "split_by": found["split_by"] or DEFAULT_SPLIT,
        "fold": found["fold"],
    }


def blocks(layers: str) -> str:
    """Return the variant of a model that is fine-tuned with some blocks of its base model: ``blocks-0-3``."""
    return f"blocks-{layers}"


def after(n_layers: int) -> str:
    """Return the variant of a model that is pruned to a number of blocks after fine-tuning: ``after-3``."""
    return f"after-{n_layers}"


def narrower(ffn_share: float) -> str:
    """Return the variant of a model that keeps a share of the units of its feed-forward networks: ``ffn-50``."""
    return f"ffn-{round(100 * ffn_share)}"


# ------------------------------------------------------------------------------------------------ folders


def root_of(folder: Path) -> Path:
    """Return the root folder to which a result folder belongs.

    It is the nearest folder above that is named in `ROOTS`. Without one, it follows from the path of the folder if that
    path follows the layout; otherwise it is the parent folder.
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
    """Return the name of the results of a model: the name of its run, or the name of a model folder outside a run.

    That of a checkpoint of another program is its name without the suffix. That of an exported file is the name of its
    folder with its precision as a variant; of a renamed one, the name of its folder and its own.
    """
    folder = Path(model_dir).resolve()
    if folder.is_file() and folder.suffix in CHECKPOINT_SUFFIXES:
        return folder.stem
    if folder.is_file():
        name = of_folder(folder.parent)
        return variant_of(name, folder.stem) if folder.stem in PRECISIONS else f"{name}.{folder.stem}"
    if not folder.exists():  # a model on the hub
        return folder.name
    return of_folder(folder.parent if folder.name == "model" else folder)


def of_data(data_dir: Path) -> str:
    """Return the name of the data set in an output folder of stage 01, without its last part."""
    folder = Path(data_dir).resolve()
    return folder.parent.name if re.fullmatch(r"seed-\d+|folds", folder.name) else folder.name


def variant_of(name: str, variant: str) -> str:
    """Return the name of a variant of a run, whether or not the name of the run follows the layout."""
    parsed = parse(name)
    return f"{name}.{variant}" if parsed is None else str(parsed.variant(variant))


def both(first: str, second: str) -> str:
    """Return the name of a comparison of the layers of two models; it differs from the name of every model."""
    ours, theirs = parse(first), parse(second)
    added = theirs.full_model if theirs else second
    if ours is None:
        return f"{first}+{added}"
    return f"{ours.data_folder}/{ours.full_model}+{added}/{ours.part}"


def result_folders(root: Path, depth: int = DEPTH) -> Iterator[Path]:
    """Yield the folders below a root that have a ``run.json``, by name, without the published ones.

    A folder below the root that cannot be read is passed over. It may belong to somebody else, or be deleted meanwhile:
    the root of a result is any folder, where `ROOTS` does not name it.
    """
    try:
        folders = sorted(path for path in Path(root).iterdir() if path.is_dir())
    except OSError:
        if depth == DEPTH:
            raise
        return
    for folder in folders:
        if os.path.lexists(folder / RECORD_NAME):
            yield folder
        elif depth > 1 and folder.name != PUBLISHED and not folder.name.startswith("."):
            yield from result_folders(folder, depth - 1)
