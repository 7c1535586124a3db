"""What a trial may not change: compared before and after it, told by name, and put back where that can be done.

Watched are the functions and classes of torch, NumPy, Python's own random numbers, what measures and records are made with, and
Probatum itself; hooks on all modules
and all optimizers; how torch computes (default dtype and device, gradients, autocast, determinism, threads, precision); the
global random streams; and what the process has: folder, environment, streams, signal handlers, threads. What a library adds
to itself while it loads is no change.
"""

from __future__ import annotations

import gc
import os
import random
import signal
import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from types import ModuleType
from typing import Any, NamedTuple

import numpy as np
import torch
from torch.nn.modules import module as hooks
from torch.optim import optimizer as optimizers
from torch.overrides import _get_current_function_mode_stack
from torch.utils._python_dispatch import _get_current_dispatch_mode_stack

OPEN = (
    *("torch", "numpy", "random", "math", "builtins", "copy", "functools", "itertools", "time"),
    *("json", "json.encoder", "json.decoder", "pickle", "struct", "zlib"),
    *("scipy.special", "scipy.stats", "sklearn.metrics"),
)
"""Modules whose attributes are watched, one by one."""
BELOW = ("torch.nn", "torch.optim", "torch.autograd", "torch.utils.data", "torch.func", "numpy.random", "probatum")
"""Packages of which every module is."""
LISTENER = "probatum-listens"
"""Name of the thread by which a worker hears from whoever started it."""
TECHNIQUES = "probatum.techniques."
"""Each technique's own affair."""
LOADING = ("TORCH", "TRITON_", "KMP_", "OMP_", "MKL_", "JOBLIB_", "LOKY_", "RAY_", "LIGHTNING_", "PL_")
"""Beginnings of names in the environment that libraries set while they load."""
HOOKS = (
    *("_global_forward_hooks", "_global_forward_pre_hooks", "_global_backward_hooks", "_global_backward_pre_hooks"),
    *("_global_buffer_registration_hooks", "_global_module_registration_hooks", "_global_parameter_registration_hooks"),
)
STEP_HOOKS = ("_global_optimizer_pre_hooks", "_global_optimizer_post_hooks")
SIGNALS = ("SIGINT", "SIGTERM", "SIGHUP", "SIGALRM", "SIGUSR1", "SIGCHLD")
BELONGS = ("pymp", "tqdm", "loky", "QueueManagerThread", "QueueFeederThread", "ExecutorManagerThread")
"""Beginnings of the names of threads that libraries keep for later."""


DRAWN = {"NumPy's global random stream", "Python's random stream"}


class Touched(NamedTuple):
    """What a trial has changed.

    Attributes:
        what: names, in the order in which they are looked at.
        lasting: those of them that could not be put back, so that this process should run nothing more.
        drawn: whether it is nothing but random streams, while libraries were loaded: some draw when they are (Rich 15, which
            scikit-learn 1.9 loads), and a second run tells whose draws they were.
    """

    what: tuple[str, ...] = ()
    lasting: tuple[str, ...] = ()
    drawn: bool = False

    def words(self) -> str:
        """One sentence."""
        shown = ", ".join(self.what[:6]) + (f" and {len(self.what) - 6} more" if len(self.what) > 6 else "")
        return f"it changed what belongs to all trials: {shown}"


class Setting(NamedTuple):
    """One thing with a value.

    Attributes:
        name: what it is.
        get: how it is read.
        put: how it is put back; None = it cannot be.
        shared: whether other threads of a program may change it, too: then it is looked at where there are none.
    """

    name: str
    get: Callable[[], Any]
    put: Callable[[Any], Any] | None
    shared: bool = False


@dataclass
class Untouched:
    """A process as it was before its first trial.

    Example:
        >>> guard = Untouched()
        >>> torch.set_default_dtype(torch.float64)
        >>> guard.look().what
        ('the default dtype',)
        >>> torch.get_default_dtype()
        torch.float32
    """

    _spaces: dict[str, dict[str, Any]] = field(default_factory=dict, init=False, repr=False)
    _classes: dict[type, dict[str, Any]] = field(default_factory=dict, init=False, repr=False)
    _seen: int = field(default=0, init=False)
    _values: dict[str, Any] = field(default_factory=dict, init=False, repr=False)
    _hooks: dict[tuple[str, str], dict[Any, Any]] = field(default_factory=dict, init=False, repr=False)
    _threads: set[threading.Thread] = field(default_factory=set, init=False, repr=False)
    _alone: bool = field(default=True, init=False)

    def __post_init__(self) -> None:
        self.begin()

    def begin(self) -> None:
        """Take what there is for right; modules that joined since are watched from now on."""
        for name, before in self._spaces.items():
            if (module := sys.modules.get(name)) is not None and not _identical(before, vars(module)):
                self._spaces[name] = dict(vars(module))
        for kind, before in self._classes.items():
            if not _identical(before, vars(kind)):
                self._classes[kind] = dict(vars(kind))
        if self._seen != len(sys.modules):
            for name, module in _watched():
                if name not in self._spaces:
                    self._spaces[name] = dict(vars(module))
                    self._classes |= {kind: dict(vars(kind)) for kind in _own_classes(name, module)}
            self._seen = len(sys.modules)
        self._values = {setting.name: setting.get() for setting in SETTINGS}
        self._hooks = {place: dict(found) for place, found in _hooks()}
        self._threads = set(threading.enumerate())
        self._alone = _alone()

    def look(self) -> Touched:
        """What differs now; all of it that can be is put back."""
        what, lasting = list(self._exchanged()), []
        for place, found in _hooks():
            if found != self._hooks[place]:
                what.append(f"{'.'.join(place)} (a hook on everything)")
                found.clear()
                found.update(self._hooks[place])
        for setting in SETTINGS:
            if setting.shared and not self._alone:
                continue
            before, now = self._values[setting.name], setting.get()
            if _same(before, now):
                continue
            what.append(setting.name)
            if setting.put is None:
                lasting.append(setting.name)
                continue
            setting.put(before)
            if not _same(before, setting.get()):
                lasting.append(setting.name)
        for thread in set(threading.enumerate()) - self._threads:
            if thread.is_alive() and not thread.name.startswith(BELONGS):
                what.append(f"a thread that goes on ({thread.name})")
                lasting.append(what[-1])
        drawn = bool(what) and set(what) <= DRAWN and len(sys.modules) > self._seen
        return Touched(tuple(what), tuple(lasting), drawn)

    def _exchanged(self) -> Iterator[str]:
        """Names of attributes that are other objects than before, put back."""
        for name, before in self._spaces.items():
            module = sys.modules.get(name)
            if module is None:
                yield f"the module {name}"
                continue
            now = vars(module)
            if _identical(before, now):
                continue
            for key, value in before.items():
                if now.get(key, _GONE) is not value and not _caches(name, key, value, now.get(key, _GONE)):
                    setattr(module, key, value)
                    yield f"{name}.{key}"
            self._spaces[name] = dict(now)  # what a library added while it loaded
        for kind, before in self._classes.items():
            own = vars(kind)
            if _identical(before, own):
                continue
            for key in list(before.keys() | own.keys()):
                old, new = before.get(key, _GONE), own.get(key, _GONE)
                if new is old or key in _OF_CLASSES or _wrapped(_inherited(kind, key) if old is _GONE else old, new):
                    continue
                if old is _GONE and not callable(new) and not hasattr(new, "__get__"):  # Python's own notes on a class
                    continue
                if key in before:
                    setattr(kind, key, before[key])
                else:
                    delattr(kind, key)
                yield f"{kind.__module__}.{kind.__qualname__}.{key}"
            self._classes[kind] = dict(vars(kind))


_GONE = object()
TORCH = os.path.dirname(torch.__file__) + os.sep
"""Where torch's own code lies."""
_OF_CLASSES = ("__doc__", "__annotations__", "__abstractmethods__", "_abc_impl", "__weakref__", "__dict__")


def _identical(before: Mapping[str, Any], now: Mapping[str, Any]) -> bool:
    """Whether both hold the same objects, or equal ones, under the same names; compared in C, identity first."""
    try:
        return bool(now == before)
    except Exception:  # two that cannot be compared are two
        return False


def _caches(module: str, key: str, before: object, now: object) -> bool:
    """Whether an attribute may come to be another object: a flag or counter that a module keeps for itself."""
    plain = (bool, int, float, str, type(None))
    private = key.startswith("_") or module.startswith("probatum")
    if (module, key) == ("torch", "Storage"):  # it goes with the default dtype
        return True
    loaded = before is None and private  # what is looked for when it is first needed
    return loaded or (private and not callable(before) and isinstance(now, plain)) or _wrapped(before, now)


def _inherited(kind: type, key: str) -> object:
    return next((vars(base)[key] for base in kind.__mro__[1:] if key in vars(base)), _GONE)


def _wrapped(before: object, now: object) -> bool:
    """Whether torch itself has put something around a function of its own, as it does when that is first used."""
    if not _code(now).startswith(TORCH):
        return False
    inner = (getattr(now, name, None) for name in ("__wrapped__", "_torchdynamo_orig_callable"))
    return any(one is before for one in inner)


def _code(value: object) -> str:
    """The file in which a function is written; "" where it is none."""
    code = getattr(value, "__code__", None)
    return "" if code is None else str(code.co_filename)


def _watched() -> Iterator[tuple[str, ModuleType]]:
    for name, module in list(sys.modules.items()):
        own = name in OPEN or any(name == top or name.startswith(f"{top}.") for top in BELOW)
        if own and isinstance(module, ModuleType) and not name.startswith(TECHNIQUES):
            yield name, module


def _own_classes(name: str, module: ModuleType) -> Iterator[type]:
    """Classes that a module defines; of torch itself, tensors too."""
    for value in list(vars(module).values()):
        if isinstance(value, type) and value.__module__ == name and not issubclass(value, tuple):
            yield value
    if name == "torch":
        yield from (torch.Tensor, torch.Generator)


def _hooks() -> Iterator[tuple[tuple[str, str], dict[Any, Any]]]:
    """The dictionaries in which torch keeps hooks on all modules and all optimizers."""
    for module, names in ((hooks, HOOKS), (optimizers, STEP_HOOKS)):
        for name in names:
            found = getattr(module, name, None)
            if found is not None:
                yield (module.__name__, name), found


def _same(a: Any, b: Any) -> bool:
    """Equality of settings, which may be tensors or tuples with arrays."""
    if isinstance(a, torch.Tensor):
        return torch.equal(a, b)
    if isinstance(a, tuple) and isinstance(b, tuple):
        return len(a) == len(b) and all(map(_same, a, b))
    if isinstance(a, np.ndarray):
        return np.array_equal(a, b)
    return a is b or bool(a == b)


def _alone() -> bool:
    """Whether nobody else runs in this process, as in notebooks, servers and the processes of a cluster."""
    own = (threading.current_thread(), threading.main_thread())
    return all(thread in own or thread.name.startswith((LISTENER, *BELONGS)) for thread in threading.enumerate())


def _device() -> str:
    return str(torch.get_default_device())


def _put_device(value: str) -> None:
    torch.set_default_device(None if value == "cpu" else value)


def _put_deterministic(value: tuple[bool, bool]) -> None:
    torch.use_deterministic_algorithms(value[0], warn_only=value[1])


def _autocast() -> tuple[Any, ...]:
    kinds = ("cpu", "cuda")
    return tuple((torch.is_autocast_enabled(kind), torch.get_autocast_dtype(kind)) for kind in kinds)


def _put_autocast(value: tuple[Any, ...]) -> None:
    for kind, (on, dtype) in zip(("cpu", "cuda"), value, strict=True):
        torch.set_autocast_enabled(kind, on)
        torch.set_autocast_dtype(kind, dtype)


def _flags() -> tuple[Any, ...]:
    """Switches of torch's backends."""
    cudnn, cuda = torch.backends.cudnn, torch.backends.cuda
    return (cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cuda.matmul.allow_tf32, torch.backends.mkldnn.enabled)


def _put_flags(value: tuple[Any, ...]) -> None:
    cudnn, cuda = torch.backends.cudnn, torch.backends.cuda
    cudnn.enabled, cudnn.benchmark, cudnn.deterministic, cuda.matmul.allow_tf32, torch.backends.mkldnn.enabled = value


def _flushes() -> bool:
    """Whether numbers below the normal ones are flushed to 0."""
    return float(torch.tensor(1e-310, dtype=torch.float64).mul(1.0)) == 0.0


def _environment() -> dict[str, str]:
    return {name: value for name, value in os.environ.items() if not name.startswith(LOADING)}


def _put_environment(value: dict[str, str]) -> None:
    for name in _environment().keys() - value.keys():
        del os.environ[name]
    os.environ.update(value)


def _folder() -> str:
    try:
        return os.getcwd()
    except FileNotFoundError:
        return ""


def _signals() -> tuple[Any, ...]:
    """Handlers of signals; torch's own, which its DataLoader sets with the first worker process, counts as none."""
    found = (signal.getsignal(getattr(signal, name)) for name in SIGNALS if hasattr(signal, name))
    return tuple(signal.SIG_DFL if _code(handler).startswith(TORCH) else handler for handler in found)


def _put_signals(value: tuple[Any, ...]) -> None:
    if threading.current_thread() is threading.main_thread():
        for name, handler in zip([name for name in SIGNALS if hasattr(signal, name)], value, strict=True):
            if handler is not None and signal.getsignal(getattr(signal, name)) is not handler:
                signal.signal(getattr(signal, name), handler)


def _streams() -> tuple[Any, ...]:
    return sys.stdin, sys.stdout, sys.stderr


def _put_streams(value: tuple[Any, ...]) -> None:
    sys.stdin, sys.stdout, sys.stderr = value


def _descriptors() -> tuple[Any, ...]:
    """Which files the three standard descriptors are; None where one is closed."""
    found: list[tuple[int, int] | None] = []
    for number in range(3):
        try:
            about = os.fstat(number)
            found.append((about.st_dev, about.st_ino))
        except OSError:
            found.append(None)
    return tuple(found)


def _put_path(value: tuple[str, ...]) -> None:
    sys.path[:] = value


def _put_numpy_errors(value: tuple[tuple[str, str], ...]) -> None:
    np.seterr(**dict(value))  # type: ignore[arg-type]


def _put_collector(value: tuple[bool, tuple[int, int, int]]) -> None:
    (gc.enable if value[0] else gc.disable)()
    gc.set_threshold(*value[1])


def _modes() -> tuple[Any, ...]:
    return tuple(map(id, (*_get_current_function_mode_stack(), *_get_current_dispatch_mode_stack())))


SETTINGS = (
    Setting("the default dtype", torch.get_default_dtype, torch.set_default_dtype),
    Setting("the default device", _device, _put_device),
    Setting("whether gradients are taken", torch.is_grad_enabled, torch.set_grad_enabled),
    Setting("inference mode", torch.is_inference_mode_enabled, None),
    Setting("modes of torch that stand around every call", _modes, None),
    Setting("autocast", _autocast, _put_autocast),
    Setting("anomaly detection", torch.is_anomaly_enabled, torch.autograd.set_detect_anomaly),
    Setting(
        "deterministic algorithms",
        lambda: (torch.are_deterministic_algorithms_enabled(), torch.is_deterministic_algorithms_warn_only_enabled()),
        _put_deterministic,
    ),
    Setting("switches of torch.backends", _flags, _put_flags),
    Setting("the precision of matrix products", torch.get_float32_matmul_precision, torch.set_float32_matmul_precision),
    Setting("how tiny numbers are rounded", _flushes, torch.set_flush_denormal),
    Setting("torch's number of threads", torch.get_num_threads, torch.set_num_threads),
    Setting("torch's global random stream", torch.get_rng_state, torch.set_rng_state),
    Setting(
        "NumPy's global random stream",
        lambda: np.random.get_state(),
        lambda state: np.random.set_state(state),
        shared=True,
    ),
    Setting("Python's random stream", random.getstate, random.setstate, shared=True),
    Setting("how NumPy treats errors", lambda: tuple(np.geterr().items()), _put_numpy_errors, shared=True),
    Setting("the working directory", _folder, os.chdir, shared=True),
    Setting("the environment", _environment, _put_environment, shared=True),
    Setting("sys.path", lambda: tuple(sys.path), _put_path, shared=True),
    Setting("standard input and output", _streams, _put_streams, shared=True),
    Setting("the files behind standard input and output", _descriptors, None, shared=True),
    Setting("signal handlers", _signals, _put_signals, shared=True),
    Setting("sys.excepthook", lambda: sys.excepthook, lambda value: setattr(sys, "excepthook", value), shared=True),
    Setting("the recursion limit", sys.getrecursionlimit, sys.setrecursionlimit, shared=True),
    Setting("tracing", lambda: (sys.gettrace(), sys.getprofile()), None, shared=True),
    Setting("the garbage collector", lambda: (gc.isenabled(), gc.get_threshold()), _put_collector, shared=True),
)
