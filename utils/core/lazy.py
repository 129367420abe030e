"""Import modules when they are first used, so that a command line is parsed before PyTorch is loaded.

`importlib.util.LazyLoader` and the packages based on it do not work here. While PyTorch 2.11 is imported, it makes
Python inspect every module in ``sys.modules``; each lazy module is then loaded in the middle of that import.
"""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _Later(ModuleType):
    """A stand-in for a module, which is imported at the first use of an attribute; it is not in ``sys.modules``."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # the import system reads some of these
            raise AttributeError(name)
        return getattr(importlib.import_module(self.__name__), name)

    def __setattr__(self, name: str, value: object) -> None:
        if name.startswith("__") or isinstance(value, _Later):
            super().__setattr__(name, value)
        else:
            setattr(importlib.import_module(self.__name__), name, value)

    def __delattr__(self, name: str) -> None:
        delattr(importlib.import_module(self.__name__), name)


class _LaterLoader(MetaPathFinder, Loader):
    def __init__(self):
        self.names: list[str] = []

    def find_spec(self, name: str, path: object, target: object = None) -> ModuleSpec | None:
        if name.split(".")[0] == "utils" and name.count(".") < 2:  # the file of a wing holds only a docstring
            return None
        self.names.append(name)
        return ModuleSpec(name, self, is_package=True)  # so that pyarrow.parquet may follow pyarrow

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Later(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


@contextlib.contextmanager
def imported_on_first_use() -> Iterator[None]:
    """Delay the imports within the block until an attribute of the module is used.

    Import modules there, not names from them: ``from utils.models import encoders``, ``import pandas as pd``. Readers,
    linters and editors still see plain imports.
    """
    loader = _LaterLoader()
    sys.meta_path.insert(0, loader)
    try:
        yield
    finally:
        sys.meta_path.remove(loader)
        for name in reversed(loader.names):
            parent, _, child = name.rpartition(".")
            if parent:
                del vars(sys.modules[parent])[child]
            del sys.modules[name]
