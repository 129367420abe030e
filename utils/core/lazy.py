"""Imports that load when they are first used: a command line is parsed before PyTorch is there.

Not with `importlib.util.LazyLoader`, nor with the packages made of it: while PyTorch 2.11 is imported it has Python
look at every module in ``sys.modules``, and each one that is still to be loaded is loaded then, in the middle.
"""

import contextlib
import importlib
import sys
from collections.abc import Iterator
from importlib.abc import Loader, MetaPathFinder
from importlib.machinery import ModuleSpec
from types import ModuleType


class _Later(ModuleType):
    """Stands for a module that is imported when one of its attributes is asked for; is not in ``sys.modules``."""

    def __getattr__(self, name: str) -> object:
        if name.startswith("__"):  # the import system asks for some
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
        if name.split(".")[0] == "utils" and name.count(".") < 2:  # a wing holds no more than a docstring
            return None
        self.names.append(name)
        return ModuleSpec(name, self, is_package=True)  # so that pyarrow.parquet may follow pyarrow

    def create_module(self, spec: ModuleSpec) -> ModuleType:
        return _Later(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        pass


@contextlib.contextmanager
def imported_on_first_use() -> Iterator[None]:
    """Put off what is imported within the block until an attribute of it is asked for.

    Import modules there, not names out of them: ``from utils.models import encoders``, ``import pandas as pd``.
    Readers, linters and editors still see plain imports.
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
