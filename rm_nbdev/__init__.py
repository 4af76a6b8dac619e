"""Train language-model reward models from notebooks and see what happens inside them while they train

The door for Python: `from rm_nbdev import Config, train, load_reward_model, score, read_metrics`. Each name is imported
when it is first used, so that `import rm_nbdev` itself loads neither torch nor transformers."""
__version__ = "0.1.0"

import importlib, sys
from types import ModuleType

_MODULES = dict(Config='core.config', train='runs.train', read_metrics='training.metrics',
                load_reward_model='scoring.load', score='scoring.load')  # Name -> module that defines it
__all__ = list(_MODULES)

def __getattr__(name): # PEP 562: called for a name that the package does not have yet
    if name not in _MODULES: raise AttributeError(f'module {__name__!r} has no attribute {name!r}')
    globals()[name] = value = getattr(importlib.import_module(f'.{_MODULES[name]}', __name__), name)
    return value

def __dir__(): return sorted({*globals(), *_MODULES})

class _Package(ModuleType):
    "`rm_nbdev.train` is the function, although torchrun needs a module of that name: importing it must not hide the function"
    def __setattr__(self, name, value):
        if not (name in _MODULES and isinstance(value, ModuleType)): super().__setattr__(name, value)

sys.modules[__name__].__class__ = _Package
