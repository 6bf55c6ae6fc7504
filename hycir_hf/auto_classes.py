"""HyCIR's classes in transformers' Auto classes, whichever package is imported first.

Each of our modules registers its own class when it is imported. This module imports them once transformers' Auto
classes are there, so that `import hycir_hf` alone loads neither torch nor transformers.
"""

import importlib
import sys
import threading
from types import ModuleType
from typing import Any

_MODULE_OF_AUTO = {
    "transformers.models.auto.configuration_auto": "hycir_hf.configuration_hycir",
    "transformers.models.auto.modeling_auto": "hycir_hf.modeling_hycir",
    "transformers.models.auto.processing_auto": "hycir_hf.processing_hycir",
}


def register() -> None:
    """Register at once if transformers is loaded, or else as soon as its Auto classes are."""
    if "transformers" in sys.modules:  # its import is already paid for
        for module in _MODULE_OF_AUTO.values():
            importlib.import_module(module)
    else:
        sys.meta_path.insert(0, _Registrar())


class _Registrar(threading.local):
    """An import finder that finds nothing itself, but sees when the modules of the two packages have been imported.

    It waits until none of them is half imported: our modules need transformers' and each other whole.
    """

    depth = 0

    def find_spec(self, name: str, path: Any = None, target: Any = None) -> Any:
        """Find a module of the two packages by the other finders, and wrap its execution."""
        if name.partition(".")[0] not in ("transformers", "hycir_hf"):
            return None
        others = [finder for finder in sys.meta_path if finder is not self and hasattr(finder, "find_spec")]
        found = (finder.find_spec(name, path, target) for finder in others)
        spec = next((spec for spec in found if spec is not None), None)
        if spec is not None and spec.loader is not None:
            spec.loader.exec_module = self._counted(spec.loader.exec_module)  # type: ignore[method-assign]
        return spec

    def _counted(self, execute: Any) -> Any:
        def exec_module(module: ModuleType) -> None:
            self.depth += 1
            try:
                execute(module)
            finally:
                self.depth -= 1
            if self.depth == 0:
                self._import_ours()

        return exec_module

    def _import_ours(self) -> None:
        if all(auto in sys.modules for auto in _MODULE_OF_AUTO) and self in sys.meta_path:
            sys.meta_path.remove(self)
        for auto, module in _MODULE_OF_AUTO.items():
            if auto in sys.modules:
                importlib.import_module(module)
