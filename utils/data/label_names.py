"""Warn of labels that may not be meant as classes."""

import logging
import re
from collections.abc import Mapping

from utils.core.text import counted

log = logging.getLogger(__name__)

NO_SPECIES = re.compile(
    r"mystery( mystery)?|sonus naturalis|soundscapes?|(unknown|unidentified|undetermined|indet|unid)\b.*|"
    r"no ?(birds?|calls?)|noise|background|silence|others?|misc\w*|various|aves|birds?|"
    r".* spp?\.?( .*)?|.*/.*|.* [x×] .*"  # Corvus sp., Parus/Poecile, Anas platyrhynchos x acuta
)
# Texts that pandas and R read from a CSV as missing values.
MISSING = frozenset(
    {"#N/A", "#N/A N/A", "#NA", "-1.#IND", "-1.#QNAN", "-NaN", "-nan", "1.#IND", "1.#QNAN", "<NA>", "N/A", "NA", "NULL"}
    | {"NaN", "None", "n/a", "nan", "null"}
)


def warn_of_odd_labels(n_recordings: Mapping[str, int]) -> None:
    """Warn of labels that name no species, and of labels that other programs read as missing.

    Parameters
    ----------
    n_recordings : mapping of str to int
        Number of recordings per label.
    """
    odd = {label: n for label, n in sorted(n_recordings.items()) if _is_no_species(label)}
    if odd:
        log.warning(
            "%s no species: %s. They are classes like all others; if this is not intended, remove their recordings",
            counted(len(odd), "label names", "labels name"),
            ", ".join(f"{label} ({counted(n, 'recording')})" for label, n in odd.items()),
        )
    missing = sorted(MISSING & n_recordings.keys())
    if missing:
        log.warning(
            "the labels %s are read as missing by pandas and R from the CSVs of results: read these with "
            "keep_default_na=False (pandas) or na.strings=character() (R), or give the classes other names",
            ", ".join(missing),
        )


def _is_no_species(label: str) -> bool:
    return NO_SPECIES.fullmatch(" ".join(label.casefold().replace("_", " ").split())) is not None
