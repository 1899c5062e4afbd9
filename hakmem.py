"""hakmem: a memory allocator with thread caches, seen from Python.

    >>> import hakmem
    >>> p = hakmem.malloc(100)
    >>> hakmem.owner_of(p).tier, hakmem.usable_size(p) >= 100
    ('tiny', True)
    >>> hakmem.memory_stats()["allocated_bytes.tiny.current"] >= 100
    True
    >>> hakmem.free(p)
    >>> print(hakmem.report("classes"))  # doctest: +SKIP

The functions above allocate from hakmem while the rest of Python stays on the system's allocator. To put a
whole program on hakmem, start it with `python -m hakmem run -- program arguments`; an `import hakmem` inside
such a program attaches to the allocator that serves it.

Options (`HAKMEM_*`, `hakmem.config`), counters, size classes and tiers are declared in _hakmem_backend.c and
read at import: nothing here lists them a second time. `python -m hakmem config` prints the options.
"""

from __future__ import annotations

import collections
import contextlib
import copy
import ctypes
import fcntl
import functools
import importlib
import importlib.util
import io
import itertools
import json
import keyword
import mmap
import operator
import os
import pwd
import re
import resource
import select
import shlex
import signal
import stat
import struct
import sys
import termios
import threading
import time
import tty
import types
import weakref
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Callable, NamedTuple, NoReturn, Optional, TypeVar, Union, cast

if TYPE_CHECKING:
    import argparse

__all__ = [
    "Advice", "Buffer", "ClassSlabs", "Comparison", "Config", "Finding", "HakmemError", "Heatmap", "MemoryPool",
    "Mode", "Option", "RssMonitor", "RssPart", "RssSample", "Snapshot", "SnapshotDiff", "Track", "UnknownOptionError",
    "Why", "ace_log", "aligned_alloc", "alloc_at", "big_table", "calloc", "class_table", "config",
    "default_memory_pool", "doctor", "free", "free_at", "heap_table", "heatmap", "lock_table", "main", "malloc",
    "memory_snapshot", "memory_stats", "memory_stats_as_nested_dict", "memory_summary", "mode", "owner_of",
    "prometheus_collector", "realloc", "report", "reset_peak_memory_stats", "shard_table", "site_rule", "site_rules",
    "site_table", "snapshot", "tier_table", "total_allocated_bytes", "track", "trim", "usable_size", "why",
]  # fmt: skip
__version__ = "0.1.0"

_ABI = 3
_HERE = Path(__file__).resolve().parent


class HakmemError(ValueError):
    """A pointer that is not a live block of hakmem, or a value that an option does not take."""


class UnknownOptionError(HakmemError, KeyError, AttributeError):
    """No option has this name; also a KeyError and an AttributeError, as config has items and attributes."""

    __str__ = ValueError.__str__  # KeyError's would put the sentence in quotes


# ---- the loader --------------------------------------------------------------------------------------------
_C_TYPES = ctypes.c_uint64, ctypes.c_int64, ctypes.c_uint32, ctypes.c_char_p, ctypes.c_void_p
_KINDS: dict[str, Any] = dict(zip("QqIzP", _C_TYPES))


def _structure(name: str, kinds: Iterable[str], fields: Iterable[str]) -> Any:
    return type(name, (ctypes.Structure,), {"_fields_": [(field, _KINDS[kind]) for field, kind in zip(fields, kinds)]})


# the only layouts typed in by hand: they describe all the others
_RawField = _structure("hak_field", "II", ("offset", "size"))
_RawRecord = _structure("hak_record", "zzPPIIII", "name kinds texts fields nfields size texts_len reserved".split())
_RawAbout = _structure("hak_about", "IIzzPII", ("abi", "size", "version", "variant", "records", "nrecords", "reserved"))


class Mode(NamedTuple):
    """How this process got its hakmem."""

    how: str  # "preloaded": it serves the whole process; "loaded": only those who call it
    path: str
    variant: str


_EMBEDDED: dict[str, str] = {}  # name: text; `build.py vendor` fills it


def _beside_us(name: str, mentions: str) -> Optional[Path]:
    """A file of hakmem's beside this one, which pip installs under a name that no other package uses."""
    for path in (_HERE / f"_hakmem_{name}", _HERE / name):
        # a project into which hakmem.py was copied as it is may have one of that name
        if path.exists() and mentions in path.read_text(encoding="utf-8", errors="replace"):
            return path
    return None


def _build_module() -> Any:
    """build.py: the one inside a vendored hakmem.py, else the file."""
    if _EMBEDDED:  # then no file is looked at: a build.py beside a vendored hakmem.py is somebody else's
        module = types.ModuleType("_hakmem_build")
        module.__file__ = __file__
        exec(compile(_EMBEDDED["build.py"], f"{__file__}: build.py", "exec"), vars(module))
        vars(module)["TEXTS"].update(_EMBEDDED)
        return module
    path = _beside_us("build.py", "_hakmem_backend.c")
    if path is None:
        raise OSError(f"no build.py in {_HERE}: pip install hakmem, or take the one file that `build.py vendor` writes")
    spec: Any = importlib.util.spec_from_file_location("_hakmem_build", path)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def _beside() -> Path:
    """The library beside this file; where it was built from source here (a stamp tells), never an old one."""
    path = _HERE / "_hakmem_backend.so"
    if (_HERE / f".{path.name}.stamp").exists():
        _build_module().refresh()
    return path


def _candidates() -> Iterator[tuple[str, Callable[[], Optional[Path]]]]:
    """Where a library may come from, best first, with the function that gives its path (None: already here)."""
    if hasattr(ctypes.CDLL(None), "hak_about"):
        yield "preloaded", lambda: None  # a second instance beside it would know none of its blocks
    elif os.environ.get("HAKMEM_LIBRARY"):
        yield "HAKMEM_LIBRARY", lambda: Path(os.environ["HAKMEM_LIBRARY"]).absolute()  # a bare name is searched for
    else:
        if not _EMBEDDED:
            yield "beside hakmem.py", _beside
        yield "compiled into the user's cache", lambda: _build_module().build_in_cache()


def _described(library: ctypes.CDLL) -> Any:
    """The library's description of itself, if this module speaks its version."""
    library.hak_about.restype = ctypes.POINTER(_RawAbout)
    about = library.hak_about().contents
    if about.abi != _ABI or about.size != ctypes.sizeof(_RawAbout):
        # every ABI begins with its number, the size of this record and the version
        found = f"hakmem {about.version.decode()} with ABI {about.abi}"
        raise OSError(f"is {found}, but hakmem.py {__version__} needs ABI {_ABI}: take both from one version")
    return about


def _mapped_path(function: Any) -> str:
    """The file that this process maps at a C function."""
    address = ctypes.cast(function, ctypes.c_void_p).value or 0
    with open("/proc/self/maps", encoding="utf-8", errors="surrogateescape") as maps:
        for line in maps:
            bounds, *_, path = line.rstrip("\n").split(maxsplit=5)
            low, high = (int(bound, 16) for bound in bounds.split("-"))
            if low <= address < high:
                return path.removesuffix(" (deleted)")
    return "?"


def _load() -> tuple[ctypes.CDLL, Any, Mode]:
    """The first candidate that works; if none does, one ImportError with the reason of each."""
    failures = []
    for source, find in _candidates():
        path = None
        try:
            path = find()
            library = ctypes.CDLL(None if path is None else str(path))
            about = _described(library)
        except (OSError, RuntimeError, AttributeError) as error:
            failures.append(f"\n  {source}: {'' if path is None or str(path) in str(error) else f'{path} '}{error}")
            continue
        how = "preloaded" if path is None else "loaded"
        return library, about, Mode(how, _mapped_path(library.hak_about), about.variant.decode())
    raise ImportError(f"no hakmem library for {_HERE / 'hakmem.py'}; tried{''.join(failures)}")


_lib, _about, _mode = _load()


def mode() -> Mode:
    """Whether hakmem serves the whole process ("preloaded") or only its callers ("loaded"), from which file."""
    return _mode


# ---- records: structures and named tuples, made from what C says of itself ---------------------------------
class _Field(NamedTuple):
    name: str
    kind: str
    unit: str
    view: str  # the views of report() that show it; none: all that show the record. "rises": it never falls
    help: str


def _record(name: str, fields: Iterable[_Field]) -> Any:
    """The named tuple of a record."""
    make: Any = collections.namedtuple
    names = [field.name + "_" * keyword.iskeyword(field.name) for field in fields]
    record = make(name.capitalize(), names, module=__name__)
    for attribute, field in zip(names, fields):  # so that help() of a record has a line for each
        getattr(record, attribute).__doc__ = f"{field.help} ({field.unit})" if field.unit else field.help
    return record


class _Layout:
    """One kind of record: its ctypes structure, its fields, and the named tuple that users get."""

    def __init__(self, name: str, structure: Any, fields: tuple[_Field, ...]) -> None:
        self.name, self.structure, self.fields = name, structure, fields

    @functools.cached_property
    def record(self) -> Any:
        return _record(self.name, self.fields)

    def read(self, raw: ctypes.Structure) -> Any:
        values = (getattr(raw, field.name) for field in self.fields)
        return self.record(*[value.decode() if isinstance(value, bytes) else value for value in values])


def _layout(described: Any) -> _Layout:
    name = described.name.decode()
    raw_fields = (_RawField * described.nfields).from_address(described.fields)
    texts = iter(ctypes.string_at(described.texts, described.texts_len).decode().split("\0"))
    fields = tuple(map(_Field, texts, described.kinds.decode(), texts, texts, texts))
    structure = _structure(name, [field.kind for field in fields], [field.name for field in fields])
    made = [(getattr(structure, field.name).offset, getattr(structure, field.name).size) for field in fields]
    if made != [(raw.offset, raw.size) for raw in raw_fields] or ctypes.sizeof(structure) != described.size:
        raise ImportError(f"{_mode.path}: the layout of its record {name!r} is not what it says")
    return _Layout(name, structure, fields)


_LAYOUTS = {raw.name.decode(): _layout(raw) for raw in (_RawRecord * _about.nrecords).from_address(_about.records)}
_STATS, _CLASS, _TIER, _OPTION, _OWNER = (_LAYOUTS[name] for name in ("stats", "class", "tier", "option", "owner"))
_HEAP, _LOCK, _SEGMENT, _SHARD = (_LAYOUTS[name] for name in ("heap", "lock", "segment", "shard"))
_MAPPING = _LAYOUTS["mapping"]
_BIG, _SITE, _RULE, _POLICY, _DECISION = (_LAYOUTS[name] for name in ("big", "site", "rule", "policy", "decision"))


# ---- bindings ----------------------------------------------------------------------------------------------
def _raise_null(result: Optional[int], function: Any, arguments: tuple[Any, ...]) -> int:
    """errcheck: NULL is out of memory."""
    if result is None:
        raise MemoryError(f"{function.__name__}({', '.join(map(str, arguments))}): out of memory")
    return result


def _raise_code(result: int, _function: Any, arguments: tuple[Any, ...]) -> int:
    """errcheck: codes other than 0 become exceptions with C's text."""
    if not result:
        return 0
    text = _error_text(result).decode()
    if _error_name(result) == b"NOMEM":
        raise MemoryError(text)
    subject = arguments[0].decode() if isinstance(arguments[0], bytes) else hex(arguments[0] or 0)
    raise HakmemError(f"{subject}: {text}")


def _bind(name: str, result: Any, arguments: Sequence[Any], check: Any = None) -> Any:
    function = getattr(_lib, name)
    function.restype, function.argtypes = result, arguments
    if check:
        function.errcheck = check
    return function


_pointer, _size, _code, _site, _text = ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_uint64, ctypes.c_char_p

# const char *hak_error_name(int code);
_error_name = _bind("hak_error_name", _text, [_code])
# const char *hak_error_text(int code);
_error_text = _bind("hak_error_text", _text, [_code])
# void *hak_malloc(size_t size);
_malloc = _bind("hak_malloc", _pointer, [_size], _raise_null)
# void *hak_calloc(size_t count, size_t size);
_calloc = _bind("hak_calloc", _pointer, [_size, _size], _raise_null)
# void *hak_aligned_alloc(size_t align, size_t size);
_aligned_alloc = _bind("hak_aligned_alloc", _pointer, [_size, _size], _raise_null)
# int hak_free_checked(void *p);
_free = _bind("hak_free_checked", _code, [_pointer], _raise_code)
# int hak_realloc_checked(void *p, size_t size, void **out);
_realloc = _bind("hak_realloc_checked", _code, [_pointer, _size, ctypes.POINTER(_pointer)], _raise_code)
# int hak_usable_size_checked(const void *p, size_t *out);
_usable_size = _bind("hak_usable_size_checked", _code, [_pointer, ctypes.POINTER(_size)], _raise_code)
# void *hak_alloc_at(size_t size, uint64_t site);
_alloc_at = _bind("hak_alloc_at", _pointer, [_size, _site], _raise_null)
# void hak_free_at(void *p, uint64_t site);
_free_at = _bind("hak_free_at", None, [_pointer, _site])
# size_t hak_trim(void);
_trim = _bind("hak_trim", _size, [])
# int hak_owner_of(const void *p, struct hak_owner *out, size_t size);
_owner_of = _bind("hak_owner_of", _code, [_pointer, ctypes.POINTER(_OWNER.structure), _size], _raise_code)
# int hak_stats_snapshot(struct hak_stats *out, size_t size);
_stats_snapshot = _bind("hak_stats_snapshot", _code, [ctypes.POINTER(_STATS.structure), _size])
# int hak_class_table(struct hak_class_row *rows, size_t row_size, int max_rows);
_class_table = _bind("hak_class_table", _code, [ctypes.POINTER(_CLASS.structure), _size, _code])
# int hak_tier_table(struct hak_tier_row *rows, size_t row_size, int max_rows);
_tier_table = _bind("hak_tier_table", _code, [ctypes.POINTER(_TIER.structure), _size, _code])
# int hak_heap_table(struct hak_heap_row *rows, size_t row_size, int max_rows);
_heap_table = _bind("hak_heap_table", _code, [ctypes.POINTER(_HEAP.structure), _size, _code])
# int hak_lock_table(struct hak_lock_row *rows, size_t row_size, int max_rows);
_lock_table = _bind("hak_lock_table", _code, [ctypes.POINTER(_LOCK.structure), _size, _code])
# int hak_shard_table(struct hak_shard_row *rows, size_t row_size, int max_rows);
_shard_table = _bind("hak_shard_table", _code, [ctypes.POINTER(_SHARD.structure), _size, _code])
# int hak_big_table(struct hak_big_row *rows, size_t row_size, int max_rows);
_big_table = _bind("hak_big_table", _code, [ctypes.POINTER(_BIG.structure), _size, _code])
# int hak_segment_table(struct hak_segment *rows, size_t row_size, int max_rows);
_segment_table = _bind("hak_segment_table", _code, [ctypes.POINTER(_SEGMENT.structure), _size, _code])
# int hak_mapping_table(struct hak_mapping *rows, size_t row_size, int max_rows);
_mapping_table = _bind("hak_mapping_table", _code, [ctypes.POINTER(_MAPPING.structure), _size, _code])
# int hak_ace_policies(struct hak_policy_row *rows, size_t row_size, int max_rows);
_ace_policies = _bind("hak_ace_policies", _code, [ctypes.POINTER(_POLICY.structure), _size, _code])
# int hak_ace_log(struct hak_decision *rows, size_t row_size, int max_rows);
_ace_log = _bind("hak_ace_log", _code, [ctypes.POINTER(_DECISION.structure), _size, _code])
# void hak_reset_peaks(void);
_reset_peaks = _bind("hak_reset_peaks", None, [])
# const struct hak_option *hak_option_table(int *count);
_option_table = _bind("hak_option_table", ctypes.POINTER(_OPTION.structure), [ctypes.POINTER(_code)])
# int hak_option_get(const char *name, int64_t *out);
_option_get = _bind("hak_option_get", _code, [_text, ctypes.POINTER(ctypes.c_int64)], _raise_code)
# const char *hak_option_text(const char *name);
_option_text = _bind("hak_option_text", _text, [_text])
# int hak_option_parse(const char *name, const char *text, int64_t *out);
_option_parse = _bind("hak_option_parse", _code, [_text, _text, ctypes.POINTER(ctypes.c_int64)], _raise_code)
# int hak_option_set(const char *name, int64_t value);
_option_set = _bind("hak_option_set", _code, [_text, ctypes.c_int64], _raise_code)
# int hak_site_rule(const char *rule);
_site_rule = _bind("hak_site_rule", _code, [_text], _raise_code)
# int hak_site_table(struct hak_site_row *rows, size_t row_size, int max_rows);
_site_table = _bind("hak_site_table", _code, [ctypes.POINTER(_SITE.structure), _size, _code])
# int hak_rule_table(struct hak_rule_row *rows, size_t row_size, int max_rows);
_rule_table = _bind("hak_rule_table", _code, [ctypes.POINTER(_RULE.structure), _size, _code])
# void hak_command_send(struct hak_live_command *command);
_command_send = _bind("hak_command_send", None, [_pointer])
# bool hak_command_withdraw(struct hak_live_command *command);
_command_withdraw = _bind("hak_command_withdraw", ctypes.c_bool, [_pointer])


# ---- blocks ------------------------------------------------------------------------------------------------
def _natural(value: int, what: str) -> int:
    """ctypes would wrap a number that does not fit its C type round without a word."""
    number = operator.index(value)
    if number < 0:
        raise ValueError(f"{what} {number} is negative")
    if number >= 1 << 64:
        raise (MemoryError if what == "size" else ValueError)(f"{what} {number} is too large")
    return number


def _address(pointer: Optional[int]) -> Optional[int]:
    return None if pointer is None else _natural(pointer, "pointer")


def malloc(size: int) -> int:
    """The address of a new block of at least size bytes, which holds anything."""
    return int(_malloc(_natural(size, "size")))


def calloc(count: int, size: int) -> int:
    """The address of a new block for count elements of size bytes, all zero."""
    return int(_calloc(_natural(count, "size"), _natural(size, "size")))


def aligned_alloc(alignment: int, size: int) -> int:
    """The address of a new block that is a multiple of alignment, a power of two."""
    if not alignment or _natural(alignment, "alignment") & (alignment - 1):
        raise ValueError(f"alignment {alignment} is not a power of two")
    return int(_aligned_alloc(alignment, _natural(size, "size")))


def realloc(pointer: Optional[int], size: int) -> Optional[int]:
    """Make a block smaller or larger, and return its new address. As in C, size 0 frees it: the result is None."""
    result = ctypes.c_void_p()
    _realloc(_address(pointer), _natural(size, "size"), result)
    return result.value


def free(pointer: Optional[int]) -> None:
    """Give a block back. HakmemError if there is no such block; None is accepted, as NULL is in C."""
    _free(_address(pointer))


def usable_size(pointer: Optional[int]) -> int:
    """The bytes of a block that may be used: those asked for, rounded up to its size class."""
    result = ctypes.c_size_t()
    _usable_size(_address(pointer), result)
    return result.value


def alloc_at(size: int, site: int) -> int:
    """As malloc, for a call site: any number but 0, which is no site. What site_rule() says of it applies to the block.

    A block of a site with a lifetime, or that is not cached, keeps that when realloc moves it.
    """
    return int(_alloc_at(_natural(size, "size"), _natural(site, "site")))


def free_at(pointer: Optional[int], site: int) -> None:
    """As free; the site says where, and changes nothing: the block knows whose it is."""
    site = _natural(site, "site")
    usable_size(pointer)  # raises where the C function would abort
    _free_at(_address(pointer), site)


def site_rule(
    site: Union[int, str],
    *,
    lifetime: Optional[str] = None,
    retain: Optional[int] = None,
    shard: Optional[int] = None,
    cache: Optional[bool] = None,
) -> None:
    """Say how blocks of a call site are to be treated from now on; without a keyword, as all others again.

    site: a number given to alloc_at(), or where sites are captured (HAKMEM_SITES=1, `run --sites`) "module.so+0x1a2b"
    as site_table() has it, or the name of a function that its module exports (C++: mangled). lifetime: "short" or
    "long", slabs apart from all others', for blocks up to 32 KiB. retain: ms for which a freed block above 1 MiB is
    kept, 0 to 3,600,000; each such block is a mapping of its own. shard: the shard of the page heap, 0 to 65,535.
    cache=False: threads do not cache its blocks, whose slabs are apart, too; not together with a lifetime.

    HakmemError for what is no rule, for a rule for code where sites are not captured, and for a 1,025th rule.
    """
    says = [f"lifetime={lifetime}"] * (lifetime is not None) + ["nocache"] * (cache is False)
    says += [f"{name}={operator.index(n)}" for name, n in (("retain", retain), ("shard", shard)) if n is not None]
    where = site if isinstance(site, str) else str(operator.index(site))
    if not where.isascii() or not where.isprintable() or set(where) & set(":;"):
        raise HakmemError(f"{site!r} is neither the number of a site, nor a module and an offset, nor a function")
    _site_rule(f"{where}:{','.join(says) or 'none'}".encode())


def trim() -> int:
    """Give all unused memory back to the system now; returns how many bytes that was."""
    return int(_trim())


def owner_of(pointer: int) -> Any:
    """The block around an address: its base, size, class, tier, heap and state."""
    raw = _OWNER.structure()
    _owner_of(_address(pointer), raw, ctypes.sizeof(raw))
    return _OWNER.read(raw)


_BUFFERS_DELEGATE = sys.version_info >= (3, 12)  # from there on a class says itself what memoryview() of it gets


class _Byte(ctypes.Union):
    """A byte whose arrays have the format "B"; those of c_ubyte have "<B", with which memoryview can do nothing."""

    _fields_ = (("value", ctypes.c_ubyte),)


def _owner(address: int) -> Any:
    """An object whose end frees a block.

    Of objects that the garbage collector tracks it calls the weak references before the __del__ of others in the
    same cycle, which may still use the memory. A code object it does not track, and that takes weak references.
    """
    owner = _owner.__code__.replace()
    weakref.finalize(owner, _free, address).atexit = False
    return owner


@functools.lru_cache(maxsize=64)
def _buffer_array(kind: Any, size: int) -> Any:
    """The ctypes array for a Buffer; where that has to be the buffer itself, also of its class."""
    array: Any = _Byte * size
    plain = next(base for base in kind.__mro__ if not issubclass(base, ctypes.Array))
    return array if _BUFFERS_DELEGATE else type(plain.__name__, (plain, array), {})


class Buffer:
    """Memory of size bytes (they hold anything) from hakmem, at a multiple of align; close() gives it back.

        with hakmem.Buffer(1 << 20, align=4096) as buffer:
            numbers = numpy.frombuffer(buffer, dtype="f8")  # or memoryview(buffer), or buffer[8:16]

    MemoryError if there is none. A view keeps the memory: it goes back, once, when the buffer is closed or gone and
    no view is left. After close(), everything but close() and closed raises ValueError.

    Before Python 3.12 a class cannot say itself what memoryview() of it gets. There a buffer is a ctypes array, and so
    one of its own views: memoryview(buffer) works after close(), and the memory goes back when the object is gone.
    """

    _memory: Any = None  # what memoryview() gets; None when closed
    _address: int
    __hash__ = object.__hash__  # ctypes arrays have none

    def __new__(cls, size: int, align: int = 16) -> Buffer:
        address = aligned_alloc(align, size)
        owner = _owner(address)
        memory: Any = _buffer_array(cast("Any", cls), size).from_address(address)
        memory.owner = owner
        self: Buffer = object.__new__(cls) if _BUFFERS_DELEGATE else memory
        self._memory = memory if _BUFFERS_DELEGATE else Ellipsis  # not itself: that would be a cycle
        self._address = address
        return self

    def __init__(self, size: int, align: int = 16) -> None:
        """Nothing is left to do; the one of ctypes would take the arguments for elements."""

    def _opened(self) -> Any:
        if self._memory is None:
            raise ValueError("this hakmem.Buffer is closed")
        return self._memory if _BUFFERS_DELEGATE else self

    @property
    def address(self) -> int:
        """Where the memory begins."""
        self._opened()
        return self._address

    @property
    def closed(self) -> bool:
        """Whether close() has been called."""
        return self._memory is None

    def view(self) -> memoryview:
        """The memory as a memoryview of bytes that may be written to."""
        return memoryview(self._opened())

    def close(self) -> None:
        """End the use of the buffer. It may be called again."""
        self._memory = None

    if _BUFFERS_DELEGATE:

        def __buffer__(self, flags: int) -> memoryview:
            return self.view()

    def __len__(self) -> int:
        return self.view().nbytes

    def __getitem__(self, where: Any) -> Any:
        return self.view()[where]

    def __setitem__(self, where: Any, value: Any) -> None:
        self.view()[where] = value

    def __iter__(self) -> Iterator[int]:
        return iter(self.view())

    def __enter__(self) -> Buffer:
        self._opened()
        return self

    def __exit__(self, *_exception: object) -> None:
        self.close()

    def __repr__(self) -> str:
        if self.closed:
            return "<hakmem.Buffer, closed>"
        return f"<hakmem.Buffer of {len(self):,} bytes at {self.address:#x}>"


# ---- options -----------------------------------------------------------------------------------------------
class _Word(int):
    """The value of a mode: a number that is shown, and may be compared, as its word."""

    word: str

    def __new__(cls, number: int, words: Sequence[str]) -> _Word:
        self = super().__new__(cls, number)
        self.word = words[number] if 0 <= number < len(words) else str(int(number))
        return self

    def __eq__(self, other: object) -> bool:
        return self.word == other if isinstance(other, str) else int(self) == other

    __hash__ = int.__hash__

    def __str__(self) -> str:
        return self.word

    __repr__ = __str__

    def __reduce__(self) -> tuple[Any, ...]:
        return int, (int(self),)


class Option:
    """One option: name, env, type, unit, when, default, min, max, help and use as C declares them, and its value."""

    def __init__(self, declared: Iterable[Any]) -> None:
        self.name, self.env, self.type, self.unit, self.when, self.help, self.use, *bounds = declared
        self.words = tuple(self.unit.split("|")) if self.type == "mode" else ()
        self.default, self.min, self.max = map(self.typed, bounds)
        if self.type == "text":  # whose bounds are those of its length
            self.default = ""

    def typed(self, number: int) -> Any:
        """A value as C has it, as a value of Python."""
        return bool(number) if self.type == "bool" else _Word(number, self.words) if self.words else number

    @property
    def value(self) -> Any:
        """The value now: a bool for switches, for modes a number that is equal to its word, too.

        Setting it raises ValueError if it is out of bounds or too late. A text is read as the environment's are: "64M",
        "on".
        """
        if self.type == "text":
            return _option_text(self.name.encode()).decode(errors="replace")
        result = ctypes.c_int64()
        _option_get(self.name.encode(), result)
        return self.typed(result.value)

    @value.setter
    def value(self, value: Union[int, str]) -> None:
        number = self.parse(value) if isinstance(value, str) else self.check(value)
        try:
            _option_set(self.name.encode(), number)
        except HakmemError as error:
            raise HakmemError(f"{error}; {self.env} sets it before the program starts") from None

    def check(self, value: Any) -> int:
        """The value, if the option takes it; else ValueError, with what is allowed."""
        if self.type == "text":
            if isinstance(value, str) and len(value.encode()) <= self.max:
                return len(value.encode())
            raise HakmemError(f"{self.name} = {value!r}: allowed is a text of at most {self.max} bytes")
        if not isinstance(value, int) or not self.min <= value <= self.max:
            allowed = "True or False" if self.type == "bool" else f"{self.min} to {self.max} {self.unit}".rstrip()
            if self.words:
                allowed = f"{', '.join(self.words[:-1])} or {self.words[-1]}"
            if self.min == self.max:
                allowed = f"{self.min} in the {_mode.variant} library; `run --{self.name}` has another"
            raise HakmemError(f"{self.name} = {value!r}: allowed is {allowed}")
        return value

    def parse(self, text: str) -> int:
        """What a text means in the environment ("64M", "on"); ValueError if the option does not take it."""
        result = ctypes.c_int64()
        with contextlib.suppress(HakmemError):
            _option_parse(self.name.encode(), text.encode(), result)
            return result.value
        return self.check(text)  # raises, and says what is allowed

    def __repr__(self) -> str:
        unit = self.type if self.words else self.unit or self.type
        value = f"{self.value} {unit}, default {self.default}"
        return f"<hakmem option {self.name} = {value}, {self.env}: {self.help}>"


def _nearest(name: str, names: Iterable[str]) -> str:
    """The name that was meant, perhaps."""
    import difflib

    return (difflib.get_close_matches(name, names, 1, 0) or ["none"])[0]


class Config(Mapping[str, Any]):
    """The options of the allocator, by attribute or item: config.purge_ms = 500, config["purge_ms"]."""

    options: dict[str, Option]

    def __init__(self) -> None:
        count = ctypes.c_int()
        rows = _option_table(count)
        declared = [_OPTION.read(row) for row in rows[: count.value]]
        vars(self)["options"] = {row.name: Option(row) for row in declared}

    def option(self, name: str) -> Option:
        """The option of this name."""
        if name in self.options:
            return self.options[name]
        raise UnknownOptionError(f"there is no option {name!r}; the nearest is {_nearest(str(name), self.options)!r}")

    def __getitem__(self, name: str) -> Any:
        return self.option(name).value

    def __setitem__(self, name: str, value: int) -> None:
        self.option(name).value = value

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):  # what copy and pickle ask an object that has nothing yet
            raise AttributeError(name)
        return self[name]

    __setattr__ = __setitem__

    def __reduce__(self) -> str:
        return "config"  # there is one

    def __iter__(self) -> Iterator[str]:
        return iter(self.options)

    def __len__(self) -> int:
        return len(self.options)

    def __dir__(self) -> list[str]:
        return [*super().__dir__(), *self.options]

    def __repr__(self) -> str:
        changed = [f"{name}={value}" for name, value in self.items() if value != self.options[name].default]
        return f"<hakmem.Config: {len(self)} options, changed: {', '.join(changed) or 'none'}>"

    def table(self, fmt: str = "simple") -> str:
        """All options with their values, bounds and meaning."""
        return report("config", fmt)


config = Config()


# ---- statistics --------------------------------------------------------------------------------------------
def _stats() -> Any:
    raw = _STATS.structure()
    _stats_snapshot(raw, ctypes.sizeof(raw))
    return _STATS.read(raw)


def _rows(layout: _Layout, fill: Any) -> list[Any]:
    """A table of C: asked for its length first, and again if it has grown when the rows are there."""
    size, room = ctypes.sizeof(layout.structure), 0
    while True:
        rows = (layout.structure * room)()
        count = fill(rows if room else None, size, room)
        if count <= room:
            return [layout.read(row) for row in rows[:count]]
        room = count + (count // 8 if room else 0)


def class_table() -> list[Any]:
    """The size classes, each with its geometry and counters."""
    return _rows(_CLASS, _class_table)


def tier_table() -> list[Any]:
    """The tiers (tiny, l2, l25, whale), each with its bounds and counters."""
    return _rows(_TIER, _tier_table)


def heap_table() -> list[Any]:
    """The heaps that threads have now, each with what it holds and what it has done."""
    return _rows(_HEAP, _heap_table)


def lock_table() -> list[Any]:
    """The locks that threads share, and one row for all claims, with how often each was taken and waited for."""
    return _rows(_LOCK, _lock_table)


def shard_table() -> list[Any]:
    """The shards of the page heap, each with the superslabs, free memory and orphans that it has, in bytes and counts.

    There is one at first (the option shards), and twice as many each time that threads have waited for their locks
    as often as the option shard_threshold says, up to 64.
    """
    return _rows(_SHARD, _shard_table)


def big_table() -> list[Any]:
    """What BigCache knows of each pair of call site and size class: the freed blocks that it keeps, hits and misses.

    Empty until a block above 1 MiB was asked for. A pair without a kept block may be forgotten with its counts.
    """
    return sorted(_rows(_BIG, _big_table))


def site_table() -> list[Any]:
    """The sites that are known, each with what was allocated there and what a rule says of it.

    Where sites are captured (HAKMEM_SITES=1) these are all, and live blocks are known; else those with a rule. "others"
    stands for those beyond 65,535. Bytes are those that callers asked for; a block that realloc has changed belongs to
    realloc's caller.
    """
    return _rows(_SITE, _site_table)


def site_rules() -> list[Any]:
    """The rules for sites that hold, in the order in which their sites got a first one."""
    return _rows(_RULE, _rule_table)


def ace_log() -> list[Any]:
    """The last 256 decisions of ACE, the learning thread, oldest first; none while config.ace is off.

    Each has the time in ms since the process's first call, the policy, the class's block size (0: of no class), the
    target before and after, what was done (applied, kept, undone; in shadow mode, shadow: nothing), the policy's
    measure before and after in millionths, and the evidence: how many windows, of what, and why.
    """
    return _rows(_DECISION, _ace_log)


class _Here:
    """The process itself, as a source of records for tables."""

    layouts: Mapping[str, Any] = _LAYOUTS
    tables: Mapping[str, Callable[[], list[Any]]] = {
        "stats": lambda: [_stats()],
        "class": class_table,
        "tier": tier_table,
        "heap": heap_table,
        "lock": lock_table,
        "shard": shard_table,
        "big": big_table,
        "segment": lambda: sorted(_rows(_SEGMENT, _segment_table)),
        "mapping": lambda: _rows(_MAPPING, _mapping_table),
        "site": site_table,
        "rule": site_rules,
        "policy": lambda: _rows(_POLICY, _ace_policies),
        "decision": ace_log,
    }

    @property
    def pid(self) -> int:
        return os.getpid()

    @property
    def about(self) -> dict[str, Any]:
        return _mode._asdict()

    @property
    def heading(self) -> str:
        return f"hakmem {__version__} {_mode.variant}, {_mode.how} from {_mode.path}, process {self.pid}"

    def rows(self, kind: str) -> list[Any]:
        return self.tables[kind]()

    def options(self) -> list[tuple[Option, Any]]:
        """Each option with its value."""
        return [(option, option.value) for option in config.options.values()]

    def thread_names(self) -> dict[int, str]:
        """Python's names for threads."""
        names = {known.native_id or 0: known.name for known in threading.enumerate()}
        names[os.getpid()] = threading.main_thread().name  # in a child of fork its native_id may be the parent's
        return names


# torch.cuda's key, and the counter of hakmem behind it, where there is one
_TORCH_KEYS = {
    "allocated_bytes.{}.current": "live_bytes",
    "allocated_bytes.{}.peak": "peak_used_bytes",
    "allocated_bytes.{}.allocated": "alloc_bytes",
    "allocated_bytes.{}.freed": "freed_bytes",
    "allocation.{}.current": "live_blocks",
    "allocation.{}.allocated": "allocs",
    "allocation.{}.freed": "frees",
    "active_bytes.{}.current": "in_use_bytes",
    "active_bytes.{}.peak": "peak_in_use_bytes",
    "cached_bytes.{}.current": "cached_bytes",
    "reserved_bytes.{}.current": "committed_bytes",
}


def memory_stats() -> dict[str, int]:
    """All counters in one flat dict: torch.cuda.memory_stats' keys, by tier and for "all", then C's own names.

    "allocated_bytes.tiny.current" is what callers hold, in bytes rounded up to size classes. Its ".peak" counts blocks
    in caches and in transit too, and does not see a change of less than an eighth of what a thread holds of that
    tier (4 KiB at least, 64 KiB at most). "active_bytes" are whole slabs, runs and whales in use. In a busy process
    the tiers, which are read just after the whole, may add up to a little more or less.
    """
    whole = _stats()._asdict()
    parts = {"all": whole, **{row.name: row._asdict() for row in tier_table()}}
    keys = itertools.product(_TORCH_KEYS.items(), parts.items())
    named = {key.format(part): values[counter] for (key, counter), (part, values) in keys if counter in values}
    return {**named, **whole}


def memory_stats_as_nested_dict() -> dict[str, Any]:
    """memory_stats(), with a dict for each part of a key: ["allocated_bytes"]["tiny"]["peak"]."""
    nested: dict[str, Any] = {}
    for key, value in memory_stats().items():
        *path, last = key.split(".")
        place = nested
        for part in path:
            place = place.setdefault(part, {})
        place.setdefault(last, value)  # C's cached_bytes stands in the dict of that name, as its "all"
    return nested


def reset_peak_memory_stats() -> None:
    """Begin all peaks anew, at what is in use now."""
    _reset_peaks()


def memory_snapshot() -> list[dict[str, Any]]:
    """All memory that is committed, as one dict for each slab, run, whale and stretch of free memory, by address.

    Keys as torch.cuda.memory_snapshot's where they mean the same: address, total_size, allocated_size (bytes of
    blocks out of it: live, cached or in transit), then state, tier, block_size, blocks, used_blocks, heap, dirty_bytes.
    Exact when no thread allocates; while some do, a piece that changes hands may be missed or stand there twice.
    """
    pieces = _Here().rows("segment")
    return [{**piece._asdict(), "allocated_size": piece.used_blocks * piece.block_size} for piece in pieces]


class MemoryPool:
    """What this process has from hakmem, under the names that pyarrow.MemoryPool has for it."""

    @property
    def backend_name(self) -> str:
        """The name of the allocator: "hakmem"."""
        return "hakmem"

    def bytes_allocated(self) -> int:
        """Bytes that callers hold now, rounded up to size classes."""
        return int(_stats().live_bytes)

    def max_memory(self) -> int:
        """The most bytes that were held at once, caches included: memory_stats()["allocated_bytes.all.peak"]."""
        return int(_stats().peak_used_bytes)

    def total_bytes_allocated(self) -> int:
        """Bytes of all blocks ever handed out."""
        return int(_stats().alloc_bytes)

    def num_allocations(self) -> int:
        """Blocks ever handed out."""
        return int(_stats().allocs)

    def release_unused(self) -> int:
        """Give unused memory back to the system; returns the bytes (pyarrow's returns nothing)."""
        return trim()

    def print_stats(self) -> None:
        """Print report(), to stdout (pyarrow's goes to stderr)."""
        print(report())

    def __repr__(self) -> str:
        figures = f"bytes_allocated={self.bytes_allocated()} max_memory={self.max_memory()}"
        return f"<hakmem.MemoryPool backend_name={self.backend_name} {figures}>"


_pool = MemoryPool()


def default_memory_pool() -> MemoryPool:
    """The one memory pool that there is."""
    return _pool


def total_allocated_bytes() -> int:
    """default_memory_pool().bytes_allocated(), as in pyarrow."""
    return _pool.bytes_allocated()


# ---- other processes ---------------------------------------------------------------------------------------
class _Unread(HakmemError):
    """A process whose page cannot be read."""


class _Silent(_Unread):
    """A process that was asked for something has not answered."""


class _Ended(HakmemError):
    """There is no such process, or no more."""


class _Denied(HakmemError):
    """A process into which this user may not look."""


class _Unseen(HakmemError):
    """A process on hakmem that does not let itself be seen."""


_HEAD = struct.Struct("=8sIIII12Q")
_COMMAND = struct.Struct("=8s4I4Q2IqQ64s")
_DO = {"publish": 1, "detail": 2, "release": 3, "trim": 4, "set": 5}


# how each file begins that a process shows itself with: C's hak_live_head_t
_Head = collections.namedtuple(
    "_Head",
    "magic format abi pid thread size text text_len words words_len counts sections seq published at_ns cost_ns sum",
)


class _Section(NamedTuple):
    fields: tuple[_Field, ...]
    record: Any
    row: struct.Struct
    offset: int
    most: int


def _printable(text: str) -> str:
    """Text of others without what a terminal would take for a command."""
    return "".join(c if c.isprintable() else "?" for c in text)


@functools.lru_cache(maxsize=8)
def _described_by(text: bytes) -> tuple[str, str, dict[str, _Section]]:
    """Version, variant and sections of a description; fields of a kind that only later versions know are left out."""
    lines = [line.split("\t") for line in text.decode().splitlines()]
    version, variant = next((line[1:3] for line in lines if line[0] == "hakmem"), ("?", "?"))
    sections: dict[str, _Section] = {}
    for index, (word, *words) in enumerate(lines):
        if word != "record":
            continue
        size, offset, most = map(int, words[1:4])
        form, at, fields = "=", 0, []
        for _, name, kind, unit, view, place, about, *_newer in itertools.takewhile(
            lambda line: line[0] == "field", lines[index + 1 :]
        ):
            if kind in _WIDTHS:
                form += f"{int(place) - at}x{'Q' if kind == 'z' else kind}"
                at = int(place) + _WIDTHS[kind]
                fields.append(_Field(name, kind, unit, view, about))
        if size <= 0 or size % 8:
            raise ValueError(f"a row of {size} bytes")
        row = struct.Struct(f"{form}{size - at}x")
        sections[words[0]] = _Section(tuple(fields), _record(words[0], fields), row, offset, most)
    return _printable(version), _printable(variant), sections


_WIDTHS = {"Q": 8, "q": 8, "I": 4, "z": 8}


def _opened(path: str, mode: str) -> Any:
    """A file in which a process shows itself; one that could become shorter, which would kill us, is not taken."""
    file = open(path, mode, buffering=0)  # noqa: SIM115 (the caller's)
    if path.startswith("/proc/") and not fcntl.fcntl(file, fcntl.F_GET_SEALS) & fcntl.F_SEAL_SHRINK:
        file.close()
        raise HakmemError(f"{path} is not of hakmem: it may change its size")
    return file


_DAMAGE = ValueError, IndexError, KeyError, TypeError, struct.error, OverflowError, MemoryError


class _Page:
    """A file in which a process shows itself: what C's section "seen from another process" says of it."""

    def __init__(self, path: str) -> None:
        self.path = path
        with _opened(path, "rb") as file:
            self.inode = os.fstat(file.fileno()).st_ino
            try:
                self.memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
                self._begin()
            except _DAMAGE as error:
                raise _Unread(f"{path} is not of a form that hakmem {__version__} knows: {error}") from None

    def _begin(self) -> None:
        self.first = head = self.head()
        if (head.magic.rstrip(b"\0"), head.format) != (b"hakmem", 1):
            raise ValueError(f"it begins with {head.magic!r}, {head.format}")
        if head.size > len(self.memory):
            raise ValueError("it is cut off")
        self.version, self.variant, layouts = _described_by(self._bytes(head.text, head.text_len))
        self.layouts = dict(layouts)
        if len(layouts) != head.sections:
            raise ValueError(f"{len(layouts)} of {head.sections} sections are described")
        for section in layouts.values():
            if not 0 <= section.offset <= section.offset + section.row.size * section.most <= head.size:
                raise ValueError("it has rows beyond its end")
        if sum(section.row.size * section.most for section in layouts.values()) > head.size:
            raise ValueError("its sections lie upon one another")

    def _bytes(self, offset: int, size: int) -> bytes:
        if not 0 <= offset <= offset + size <= len(self.memory):
            raise ValueError(f"{size} bytes at {offset}: it is cut off")
        return self.memory[offset : offset + size]

    def head(self) -> _Head:
        return _Head(*_HEAD.unpack_from(self.memory))

    def is_there(self) -> bool:
        """Whether the process still has it: it may have ended, or have become another program."""
        with contextlib.suppress(FileNotFoundError):
            return os.stat(self.path).st_ino == self.inode
        return False

    def read(self, timeout: float = 1.0) -> tuple[_Head, dict[str, list[Any]]]:
        """All rows by kind, of one moment. HakmemError if it is not to be had for so many seconds."""
        deadline, wrong = time.monotonic() + timeout, ""
        while True:
            head = self.head()
            if head.seq % 2:
                wrong = "it does not finish what it is publishing; is it stopped?"
            else:
                try:
                    rows = self._read(head)
                    if self.head().seq == head.seq:
                        return head, rows
                except _DAMAGE as error:
                    wrong = f"its page is damaged: {error}"
            if time.monotonic() > deadline:
                raise _Silent(wrong or "it publishes faster than one can read")
            time.sleep(0.0002)

    def _read(self, head: _Head) -> dict[str, list[Any]]:
        if head[: _Head._fields.index("seq")] != self.first[: _Head._fields.index("seq")]:
            raise ValueError("its head has changed")
        counts = struct.unpack(f"={2 * head.sections}Q", self._bytes(head.counts, 16 * head.sections))
        raw, checked = [], sum(counts)
        for count, section in zip(counts[::2], self.layouts.values()):
            if count > section.most:
                raise ValueError("more rows than there is room for")
            raw.append(self._bytes(section.offset, count * section.row.size))
            checked += sum(memoryview(raw[-1]).cast("Q"))
        if checked % (1 << 64) != head.sum:
            raise ValueError("its sum is wrong")
        words = self._bytes(head.words, head.words_len)

        @functools.cache
        def text(at: int) -> str:
            return _printable(words[at : words.index(b"\0", at, at + 4096)].decode(errors="replace"))

        read: dict[str, list[Any]] = {}
        for (name, section), rows in zip(self.layouts.items(), raw):
            texts = [index for index, field in enumerate(section.fields) if field.kind == "z"]
            read[name] = made = []
            for values in map(list, section.row.iter_unpack(rows)):
                for index in texts:
                    values[index] = text(values[index])
                made.append(section.record(*values))
        return read


def _text_of(path: Path) -> str:
    """A file of the system's; "" if it is not there."""
    with contextlib.suppress(OSError):
        return path.read_text(encoding="utf-8", errors="surrogateescape")
    return ""


def _pairs(text: str, between: str = ":") -> dict[str, str]:
    """Lines such as `VmSize: 12 kB`."""
    return {name.strip(): value.strip() for name, _, value in (line.partition(between) for line in text.splitlines())}


def _kib(text: str) -> int:
    """The bytes of "12 kB"."""
    return int(text.partition(" ")[0] or 0) << 10


def _status(pid: int) -> dict[str, str]:
    """/proc/PID/status; HakmemError if there is no such process."""
    text = _text_of(Path(f"/proc/{operator.index(pid)}/status"))
    if not text:
        raise _Ended(f"there is no process {pid}")
    return {name: _printable(value.replace("\t", " ")) for name, value in _pairs(text).items()}


def _living(pid: int, status: Mapping[str, str]) -> str:
    """A process as messages call it; HakmemError for what has ended, or belongs to the kernel."""
    if status["State"][0] in "ZX":
        raise _Ended(f"process {pid} has ended, and its parent has not taken notice yet (a zombie)")
    name = f"process {pid} ({status['Name']})"
    if "VmSize" not in status:
        raise HakmemError(f"{name} is part of the kernel")
    return name


def _inside(pid: int, status: Mapping[str, str]) -> int:
    """The number of a process in its own container."""
    return int(status.get("NSpid", str(pid)).split()[-1])


def _denied(pid: int, status: Mapping[str, str]) -> _Denied:
    """Why this user may not look into a process."""
    uid = int(status["Uid"].split()[1])
    if os.geteuid() == 0:
        return _Denied(f"not even this root may look into process {pid}: the container or the kernel forbids it")
    if uid == os.geteuid():
        why = "it has changed its user, forbidden it (prctl), or closed the file in which it shows itself"
        return _Denied(f"only root may look into process {pid}: {why}")
    return _Denied(f"process {pid} is {_user(uid)}'s: only that user and root may look into it")


@functools.lru_cache(maxsize=256)
def _user(uid: int) -> str:
    """The name of a user, or where there is none the number."""
    try:
        return pwd.getpwuid(uid).pw_name
    except KeyError:
        return str(uid)


def _shown_files(pid: int, name: str, root: Union[str, Path] = "/") -> list[str]:
    """Where a process's files of that name can be opened, in which it shows itself."""
    found, link, proc = [], f"/memfd:hakmem-{name} (deleted)", os.path.join(root, "proc", str(pid))
    for place in os.listdir(f"{proc}/fd"):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f"{proc}/fd/{place}") == link:
                found.append(f"{proc}/fd/{place}")
    if not found:  # it may have closed its descriptors; whoever may do anything finds what it maps
        with open(f"{proc}/maps", encoding="utf-8", errors="replace") as maps:
            found = [f"{proc}/map_files/{line.split()[0]}" for line in maps if link in line]
    return found


def _has_library(pid: int) -> bool:
    """Whether a process maps a library that looks like hakmem."""
    with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as maps:
        return any("hakmem" in line.rpartition("/")[2] and ".so" in line for line in maps)


class _Process:
    """Another process that lets itself be seen, as a source of records for tables.

    HakmemError, with the reason in one line, if it cannot be had: no such process, another user's, not on hakmem, not
    to be seen, or stopped.
    """

    page: _Page
    head: _Head
    _rows: dict[str, list[Any]]
    _asked_at = ""

    def __init__(self, pid: int, fresh: float = 0.05) -> None:
        self.pid = pid
        self.refresh(fresh)

    def refresh(self, fresh: float = 0.05) -> None:
        """Take a reading.

        fresh: seconds to wait for the state of now; then what was published last will do, as age says. 0 asks for none.
        """
        self.status = _status(self.pid)
        try:
            if not hasattr(self, "page") or not self.page.is_there():
                self.page = self._open()
            self.head = self.page.first
            if fresh:
                with contextlib.suppress(_Silent):
                    self.ask("publish", timeout=fresh)
            self.head, self._rows = self.page.read(1.0 if fresh else 0.1)
        except PermissionError:
            raise _denied(self.pid, _status(self.pid)) from None
        except (FileNotFoundError, ProcessLookupError):
            raise _Ended(f"process {self.pid} has just ended") from None
        except _Silent as silent:
            raise _Unread(f"process {self.pid} ({self.status['Name']}): {silent}") from None

    def _open(self) -> _Page:
        name, pages = _living(self.pid, self.status), []
        for path in _shown_files(self.pid, "stats"):
            with contextlib.suppress(FileNotFoundError):
                page = _Page(path)
                if page.first.pid == _inside(self.pid, self.status):  # not of its parent's, or of others that it reads
                    pages.append(page)
        if pages:
            return max(pages, key=lambda page: page.head().at_ns)
        if _has_library(self.pid):
            how = "start it with HAKMEM_STATS_PAGE=1, or with `python -m hakmem run`"
            raise _Unseen(f"{name} is on hakmem, but cannot be seen: {how}")
        raise HakmemError(f"{name} is not on hakmem")

    def stats(self) -> dict[str, int]:
        """The counters by name; none in a page without them."""
        return {name: value for row in self._rows.get("stats", []) for name, value in row._asdict().items()}

    @property
    def rss(self) -> int:
        """Resident bytes, as of the last reading."""
        return _kib(self.status.get("VmRSS", ""))

    @property
    def layouts(self) -> Mapping[str, Any]:
        return self.page.layouts

    @property
    def age(self) -> float:
        """How old the state is, in seconds."""
        return max(time.monotonic_ns() - int(self.head.at_ns), 0) / 1e9

    @property
    def about(self) -> dict[str, Any]:
        page = self.page
        return {"how": "seen", "version": page.version, "variant": page.variant, "pid": self.pid, "age": self.age}

    @property
    def heading(self) -> str:
        seen = f"as it was {_duration(self.age)} ago" if self.age > 0.1 else "as it is"
        return f"hakmem {self.page.version} {self.page.variant}, process {self.pid} ({self.status['Name']}), {seen}"

    def rows(self, kind: str) -> list[Any]:
        if kind in ("segment", "site") and kind not in self._rows:
            self._rows.update(self._detail())
        return self._rows[kind]

    def _detail(self) -> dict[str, list[Any]]:
        self.ask("detail", timeout=5)
        try:
            for path in self._files("detail"):
                page = _Page(path)
                if page.first.pid == self.head.pid:
                    self.page.layouts.update(page.layouts)
                    return page.read()[1]
            raise _Silent("it has no memory, or no descriptor, for that")
        finally:
            with contextlib.suppress(_Silent):
                self.ask("release", timeout=0.1)

    def renew(self) -> tuple[list[Any], list[Any]]:
        """Segments and sites, and the rest as it was just after. _Silent if the process sleeps."""
        self.ask("publish", timeout=1)
        detail = self._detail()
        self.head, self._rows = self.page.read()
        return detail["segment"], detail["site"]

    def ask(self, what: str, name: str = "", value: int = 0, timeout: float = 2.0) -> int:
        """Have it do something; returns what came of it. _Silent if it has not begun by then, and never will."""
        deadline = time.monotonic() + timeout
        for path in self._files("command"):
            with _opened(path, "r+b") as file, mmap.mmap(file.fileno(), _COMMAND.size) as memory:
                magic, form, _look, pid, *_rest = _COMMAND.unpack_from(memory)
                if (magic.rstrip(b"\0"), form) != (b"hakmem", 2):
                    raise HakmemError(f"{path} is not of a form that hakmem {__version__} knows")
                if pid != self.head.pid:  # it asks another process itself, or has just been forked
                    continue
                self._asked_at = path
                self._until(deadline, lambda: self._locks(file), "others are asking it")
                word = (ctypes.c_char * len(memory)).from_buffer(memory)
                try:
                    return self._command(memory, ctypes.addressof(word), deadline, what, name.encode()[:63], value)
                finally:
                    del word
        raise _Silent("it takes no commands")

    def _command(self, memory: Any, at: int, deadline: float, what: str, name: bytes, value: int) -> int:
        def is_done() -> bool:
            asked, _taken, done = _COMMAND.unpack_from(memory)[5:8]
            return bool(asked == done)

        self._until(deadline, lambda: is_done() or _command_withdraw(at), "it is still at what others asked it for")
        begin = _COMMAND.unpack_from(memory)[:8]
        until = time.monotonic_ns() + max(int((deadline - time.monotonic()) * 1e9), 0)
        _COMMAND.pack_into(memory, 0, *begin, until, _DO[what], 0, value, 0, name)
        _command_send(at)
        asleep = "it does nothing before it next allocates (with stats_page=2 it would at once); nothing is queued"
        try:
            self._until(deadline, is_done, asleep)
        except _Silent:
            if _command_withdraw(at):
                if _status(self.pid)["State"][0] in "Tt":
                    raise _Silent("it is stopped; nothing is queued") from None
                if not self.page.is_there():
                    raise _Ended(f"process {self.pid} has just ended") from None
                raise
            self._until(deadline + 10, is_done, f"it has begun with this, and does not end: {what}")
        except BaseException:  # an interrupt
            _command_withdraw(at)
            raise
        *_begin, _what, error, _value, result, _name = _COMMAND.unpack_from(memory)
        if _error_name(error) == b"LATE":
            raise _Silent(asleep)
        _raise_code(error, None, (name or what.encode(),))
        return int(result)

    def _files(self, name: str) -> list[str]:
        """Where such a file can be; that of commands is first looked for where it was, for a server has many files."""
        with contextlib.suppress(OSError):
            if name == "command" and os.readlink(self._asked_at) == "/memfd:hakmem-command (deleted)":
                return [self._asked_at]
        try:
            return _shown_files(self.pid, name)
        except (FileNotFoundError, ProcessLookupError):
            raise _Ended(f"process {self.pid} has just ended") from None

    @staticmethod
    def _locks(file: Any) -> bool:
        with contextlib.suppress(BlockingIOError):
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            return True
        return False

    @staticmethod
    def _until(deadline: float, is_so: Callable[[], bool], otherwise: str) -> None:
        pause = 0.0002
        while not is_so():
            if time.monotonic() > deadline:
                raise _Silent(otherwise)
            time.sleep(pause)
            pause = min(pause * 2, 0.01)

    def options(self) -> list[tuple[Option, Any]]:
        """Each option with its value."""
        ours = [field.name for field in _OPTION.fields]
        options = [Option(getattr(row, name, "") for name in ours) for row in self._rows["option"]]
        settings = {row.name: row for row in self._rows["setting"]}
        values = ((option, settings[option.name]) for option in options)
        return [(option, now.text if option.type == "text" else option.typed(now.value)) for option, now in values]

    def thread_names(self) -> dict[int, str]:
        """None of its own: the system's will do."""
        return {}


def _pids() -> list[int]:
    """All processes of the system, those of the kernel among them."""
    return sorted(int(name) for name in os.listdir("/proc") if name.isdigit())


def _shown_pids() -> Iterator[int]:
    """The processes that let themselves be seen, of those that this user may look into."""
    for pid in _pids():
        with contextlib.suppress(OSError, ValueError, struct.error):  # another's, has just ended, or is unlike ours
            inside = _inside(pid, _status(pid))
            for path in _shown_files(pid, "stats"):
                with _opened(path, "rb") as file:
                    own = _Head(*_HEAD.unpack(file.read(_HEAD.size))).pid == inside  # not what it has of its parent
                if own:
                    yield pid
                    break


_Source = Union[_Here, _Process]


def _source(pid: Optional[int], fresh: float = 0.05) -> _Source:
    """The process of a number, as it shows itself; where there is none the one that asks."""
    return _Process(pid, fresh) if pid else _Here()


def _duration(seconds: float) -> str:
    """A time as people read it."""
    for size, unit in ((86400, "days"), (3600, "h"), (60, "min"), (1, "s")):
        if seconds >= (2 * size if size > 1 else 1):
            return f"{seconds / size:.0f} {unit}" if size > 1 else f"{seconds:.1f} s"
    return f"{seconds * 1000:.0f} ms"


# ---- tables ------------------------------------------------------------------------------------------------
def _need(name: str, what: str) -> Any:
    """A package that only some functions use, imported by them; ImportError says how to get it."""
    try:
        return importlib.import_module(name)
    except ImportError as error:
        package = name.partition(".")[0]
        raise ImportError(f"{what} needs {package}: {sys.executable} -m pip install {package}") from error


def _rss(pid: Optional[int] = None) -> int:
    """Resident bytes of a process, this one or another, whoever allocated them."""
    psutil = _need("psutil", "the size of the process")
    try:
        return int(psutil.Process(pid).memory_info().rss)
    except psutil.Error:
        raise _Ended(f"process {pid} has just ended") from None


def _with_bytes(row: dict[str, Any]) -> dict[str, Any]:
    """A class, of which only blocks are counted, with its bytes; what knows its bytes as it is."""
    counts = {"alloc": "allocs", "freed": "frees", "live": "live_blocks", "cached": "cached_blocks"}
    return {**{f"{of}_bytes": row.get(n, 0) * row["size"] for of, n in counts.items() if "size" in row}, **row}


class _Table(NamedTuple):
    """Rows of plain values; units by column, else each row's own "unit" applies to its numbers."""

    title: str
    rows: list[dict[str, Any]]
    units: dict[str, str]


def _of(source: _Source, kind: str, title: str, view: str) -> _Table:
    """The fields of a kind's records that a view shows, with the hit rate beside the allocations it is of."""
    fields = source.layouts[kind].fields
    shown = [field for field in fields if not field.view or view in field.view.split()]
    rows = []
    for record in source.rows(kind):
        values = dict(zip((field.name for field in fields), record))
        row = {field.name: values[field.name] for field in shown}
        if "allocs" in row and "misses" in values:
            cached = row["allocs"] and values.get("classes", 1)  # a tier without classes has no caches
            row["hit_rate"] = 1 - values["misses"] / row["allocs"] if cached else None
        rows.append(row)
    return _Table(title, rows, {**{field.name: field.unit for field in shown}, "hit_rate": "ratio"})


def _counters(source: _Source, view: str) -> _Table:
    """The counters of a view."""
    fields = source.layouts["stats"].fields
    rows = [
        {"counter": field.name, "value": value, "unit": field.unit, "meaning": field.help}
        for field, value in zip(fields, source.rows("stats")[0])
        if view in field.view.split()
    ]
    return _Table("counters", rows, {})


def _classes(source: _Source, view: str) -> _Table:
    """The classes; but for the list of all of them, only those with something to show."""
    table = _of(source, "class", "classes", view)
    fixed = ("index", "size")
    busy = [row for row in table.rows if any(type(row[key]) is int and row[key] for key in row if key not in fixed)]
    return table if view == "classes" else table._replace(rows=busy)


def _caches(source: _Source) -> list[_Table]:
    """What the stacks of each class may hold, and the bound on all together."""
    counters = _counters(source, "caches")
    for option, value in source.options():
        if option.name == "cache_limit":
            counters.rows.append({"counter": option.name, "value": value, "unit": option.unit, "meaning": option.help})
    return [_classes(source, "caches"), counters]


def _summary(source: _Source) -> list[_Table]:
    counters = _counters(source, "summary")
    meaning = "resident memory of the whole process, whoever allocated it"
    rss = {"counter": "process_rss", "value": _rss(source.pid), "unit": "bytes", "meaning": meaning}
    counters.rows.append(rss)
    return [_of(source, "tier", "tiers", "summary"), counters]


def _pools(source: _Source) -> list[_Table]:
    """Where each committed byte is, then what the figures come from."""
    counters = _counters(source, "pools")
    terms = {field.name for field in source.layouts["stats"].fields if "committed" in field.view.split()}
    whole = sum(row["value"] for row in counters.rows if row["counter"] in terms)
    parts, others = [], []
    for row in counters.rows:
        name, value = row["counter"], row["value"]
        if name in terms:
            share = value / whole if whole else None
            parts.append({"part": name, "bytes": value, "share": share, "meaning": row["meaning"]})
        else:
            others.append(row)
    units = {"bytes": "bytes", "share": "ratio"}
    tables = [_of(source, "tier", "tiers", "pools"), _classes(source, "pools"), counters._replace(rows=others)]
    return [_Table("committed", parts, units), *tables]


def _threads(source: _Source) -> list[_Table]:
    heaps, names = _of(source, "heap", "heaps", "threads"), source.thread_names()
    for row in heaps.rows:
        thread = row["thread"]
        if thread not in names:
            with contextlib.suppress(OSError):  # it may just have ended
                comm = Path(f"/proc/{source.pid}/task/{thread}/comm")
                names[thread] = comm.read_text(encoding="utf-8", errors="replace").rstrip() if thread else "(shared)"
    rows = [{"heap": row.pop("heap"), "name": names.get(row["thread"], ""), **row} for row in heaps.rows]
    return [heaps._replace(rows=rows), _counters(source, "threads")]


def _options(source: _Source) -> list[_Table]:
    columns = ["name", "env", "value", "default", "min", "max", "unit", "when", "help"]
    rows = [
        {**{column: vars(option).get(column) for column in columns}, "value": value}
        for option, value in source.options()
    ]
    return [_Table("options", rows, {})]


def _rule_text(row: Any) -> str:
    """What is said of a site, as HAKMEM_SITE_RULES has it."""
    says = [f"lifetime={row.lifetime}"] * bool(row.lifetime) + ["nocache"] * (not row.cached)
    return ",".join(says + [f"{name}={n}" for name, n in (("retain", row.retain), ("shard", row.shard)) if n >= 0])


def _sites(source: _Source) -> list[_Table]:
    """The sites with the most live bytes, or where these are not known the most bytes; and the rules."""
    met = [row for row in source.rows("site") if row.allocs]
    known = sorted(met, key=lambda row: (row.live_bytes, row.bytes), reverse=True)
    figures = ("allocs", "bytes", "live_blocks", "live_bytes")
    units = {field.name: field.unit for field in source.layouts["site"].fields}
    rows = [
        {
            "site": row.place or str(row.site),
            "function": row.function,
            **{figure: getattr(row, figure) for figure in figures},
            "rule": _rule_text(row),
        }
        for row in known[:_SITES_SHOWN]
    ]
    rules = [{"site": row.where, "rule": _rule_text(row)} for row in source.rows("rule")]
    return [_Table("sites", rows, units), _Table("rules", rules, {}), _counters(source, "sites")]


_SITES_SHOWN = 40


def _ace(source: _Source) -> list[_Table]:
    """The policies, the counters, and what was decided, if anything."""
    policies = _of(source, "policy", "policies", "ace")
    mode = next((str(value) for option, value in source.options() if option.name == "ace"), "")
    policies = policies._replace(rows=[{"ace": mode, **row} for row in policies.rows])
    decisions = _of(source, "decision", "decisions", "ace")
    return [policies, _counters(source, "ace"), *([decisions] if decisions.rows else [])]


def _records(kind: str, title: str, view: str) -> Callable[[_Source], list[_Table]]:
    """A view of the records of one kind, and the counters that go with them."""
    return lambda source: [_of(source, kind, title, view), _counters(source, view)]


_VIEWS: dict[str, Callable[[_Source], list[_Table]]] = {
    "summary": _summary,
    "pools": _pools,
    "classes": lambda source: [_classes(source, "classes")],
    "threads": _threads,
    "frees": lambda source: [_classes(source, "frees"), _counters(source, "frees")],
    "refills": lambda source: [_classes(source, "refills"), _counters(source, "refills")],
    "early": lambda source: [_counters(source, "early")],
    "caches": _caches,
    "bigcache": _records("big", "keys", "bigcache"),
    "locks": _records("lock", "locks", "locks"),
    "shards": _records("shard", "shards", "shards"),
    "sites": _sites,
    "config": _options,
    "ace": _ace,
}


def _shown(value: Any, unit: str) -> str:
    """A cell as people read it."""
    if isinstance(value, (bool, _Word)) or not isinstance(value, (int, float)):
        return "-" if value is None else str(value)
    if unit == "bytes" and value < 0:
        return f"-{_shown(-value, unit)}"
    if unit != "bytes":
        return f"{value:.1%}" if unit == "ratio" else f"{value:,}" if unit else str(value)
    if value > 1 << 62:
        return "no limit"
    power = min((max(int(value), 1).bit_length() - 1) // 10, 4)
    inexact = value % (1 << 10 * power) > 0
    if inexact and value < 1 << 16:
        return f"{value:,} B"  # small enough to be said as it is: 1,025 is not 1.0 KiB
    return f"{value / (1 << 10 * power):.{int(inexact)}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def _as_text(table: _Table, fmt: str) -> str:
    if fmt == "json":
        return json.dumps(table.rows, indent=1)
    tabulate = _need("tabulate", 'every format but "json"')
    if fmt not in tabulate.tabulate_formats:
        raise ValueError(f"no format {fmt!r}; there are json, {', '.join(tabulate.tabulate_formats)}")
    rows, units = table.rows, table.units
    if not rows:
        return f"({table.title}: none)"
    numeric = {column for row in rows for column, value in row.items() if isinstance(value, (int, float))}
    cells = [[_shown(value, units.get(column, row.get("unit", ""))) for column, value in row.items()] for row in rows]
    headers = [column.replace("_", " ") for column in rows[0]]
    alignment = ["right" if column in numeric else "left" for column in rows[0]]
    return str(tabulate.tabulate(cells, headers, tablefmt=fmt, disable_numparse=True, colalign=alignment))


class _Text(str):
    """Tables as text, which Jupyter shows as tables."""

    __slots__ = ("html",)
    html: Callable[[], str]

    def _repr_html_(self) -> str:
        return self.html()


def _in_one(heading: str, tables: Sequence[_Table], fmt: str, notes: Sequence[str] = ()) -> str:
    """Tables below one another; as JSON, by title."""
    if fmt == "json":
        return json.dumps({table.title: table.rows for table in tables}, indent=1)
    texts = [heading]
    for table in tables:
        texts += [table.title] * (len(tables) > 1) + [_as_text(table, fmt)]
    texts += notes
    if fmt == "html":  # where tabulate has escaped what it makes
        import html

        texts = [text if text.startswith("<table") else f"<p>{html.escape(text)}</p>" for text in texts]
    text = _Text("\n\n".join(texts))
    text.html = functools.partial(_in_one, heading, tables, "html", notes)
    return text


def report(view: str = "summary", fmt: str = "simple", pid: Optional[int] = None) -> str:
    """A view of the allocator as text, in any format of tabulate: "simple", "github", "html", "tsv" and others.

    "summary": each tier, and the main counters. "pools": where every committed byte is. "classes": the size classes.
    "threads": what each thread's heap holds. "refills", "frees": where blocks came from and went to, by class.
    "early": calls that were over early, by reason.
    "caches": what the threads' caches may hold, by class, and how often that was changed. "bigcache": freed blocks
    above 1 MiB that are kept, by call site and size class. "locks": how often each was taken and waited for. "shards":
    the parts of the page heap. "sites": the 40 call sites with the most live bytes, and the rules (site_table() has
    all). "config": the options. "ace": what the learning thread may do, and has done. Bytes are shown in KiB, MiB, ...

    fmt="json" has the same rows with plain numbers: {"mode": {...}, "view": ..., "tables": {title: [row, ...]}}.

    pid: of another process that lets itself be seen (HAKMEM_STATS_PAGE=1, `python -m hakmem run`). HakmemError, in one
    line, if it does not, or is not this user's.

    ValueError for a view or format that there is not.
    """
    if view not in _VIEWS:
        raise ValueError(f"no view {view!r}; there are {', '.join(_VIEWS)}")
    source = _source(pid)
    try:
        tables = _VIEWS[view](source)
    except (AttributeError, KeyError, IndexError):
        if isinstance(source, _Here):
            raise
        raise HakmemError(f"{source.heading}: it has no view {view!r}") from None
    if fmt == "json":
        rows = {table.title: table.rows for table in tables}
        return json.dumps({"mode": source.about, "view": view, "tables": rows}, indent=1)
    return _in_one(source.heading, tables, fmt)


def memory_summary(fmt: str = "simple") -> str:
    """memory_stats() as a table: now, at the most, and in and out in all, for the whole and each tier."""
    rows = []
    for metric, parts in memory_stats_as_nested_dict().items():
        for part, values in parts.items() if isinstance(parts, dict) else ():
            columns = {key: values.get(key) for key in ("current", "peak", "allocated", "freed")}
            unit = "bytes" if metric.endswith("bytes") else "blocks"
            rows.append({"metric": metric if part == "all" else "", "of": part, **columns, "unit": unit})
    return _as_text(_Table("memory", rows, {}), fmt)


class RssSample(NamedTuple):
    """What RssMonitor saw at one time: seconds since its start, and bytes.

    rss is the resident memory of the whole process, live what callers of hakmem hold, cached what stands in its
    thread caches, committed the address space that it may touch.
    """

    seconds: float
    rss: int
    live: int
    cached: int
    committed: int


class RssMonitor:
    """Watches the resident memory (RSS) of this process, beside what hakmem believes, every interval seconds.

        with hakmem.RssMonitor(0.05) as monitor:
            work()
        print(monitor.report())

    It samples in a thread of its own (a daemon), and once when it starts and when it stops. A peak between two
    samples is not seen. All samples are kept, some 200 bytes each. A child of os.fork() has the parent's samples, and
    no thread: there it is stopped.
    """

    def __init__(self, interval: float = 0.1) -> None:
        self.interval = float(interval)
        if not 0 < self.interval <= threading.TIMEOUT_MAX:
            raise ValueError(f"interval {interval!r}: a number of seconds above 0 is needed")
        self.samples: list[RssSample] = []
        self._stop = threading.Event()
        self._thread: Optional[threading.Thread] = None
        self._started = 0.0
        self._process = 0
        self._failure: Optional[Exception] = None

    def _sample(self) -> None:
        stats, seconds = _stats(), time.monotonic() - self._started
        self.samples.append(RssSample(seconds, _rss(), stats.live_bytes, stats.cached_bytes, stats.committed_bytes))

    def _watch(self) -> None:
        while not self._stop.wait(self.interval):
            try:
                self._sample()
            except Exception as failure:  # noqa: BLE001, PERF203 (no descriptor left, say: the next time there may be)
                self._failure = failure

    def start(self) -> RssMonitor:
        """Begin to sample; once only."""
        if self._thread:
            raise RuntimeError("this RssMonitor has been started before")
        thread = threading.Thread(target=self._watch, name="hakmem-rss", daemon=True)
        self._started, self._process = time.monotonic(), os.getpid()
        self._sample()
        thread.start()
        self._thread = thread
        return self

    def _is_running(self) -> bool:
        """In a child of fork nothing of the event but this may be used: the thread may have held its lock."""
        return self._thread is not None and self._process == os.getpid() and not self._stop.is_set()

    def stop(self) -> None:
        """Take a last sample, and no more; raises what kept it from sampling. It may be called again."""
        if self._thread and self._is_running():
            self._stop.set()
            self._thread.join()
            self._sample()
            if self._failure:
                raise self._failure

    def __enter__(self) -> RssMonitor:
        return self.start()

    def __exit__(self, *_exception: object) -> None:
        self.stop()

    @property
    def peak(self) -> int:
        """The highest RSS that was seen, in bytes; 0 without samples."""
        return max((sample.rss for sample in self.samples), default=0)

    def report(self, fmt: str = "simple") -> str:
        """Each figure at the start, at the end, at its lowest and its highest, as a table; fmt as for hakmem.report."""
        samples, rows = list(self.samples), []
        for index, name in enumerate(RssSample._fields[1:] if samples else (), 1):
            values = [sample[index] for sample in samples]
            when = samples[values.index(max(values))].seconds
            ends = {"start": values[0], "end": values[-1], "lowest": min(values), "highest": max(values)}
            rows.append({"memory": name, **ends, "highest_at": f"{when:.2f} s", "unit": "bytes"})
        return _as_text(_Table("samples", rows, {}), fmt)

    def to_csv(self, file: Union[str, os.PathLike[str]]) -> None:
        """Write the samples to a file of that name: a line of headings, then seconds and bytes."""
        import csv

        with open(file, "w", encoding="utf-8", newline="") as out:
            csv.writer(out, lineterminator="\n").writerows([RssSample._fields, *self.samples])

    def plot(self, file: Union[str, os.PathLike[str], None] = None) -> Any:
        """Draw the samples over time with matplotlib; into a file if one is named. Returns the axes."""
        pyplot = _need("matplotlib.pyplot", "RssMonitor.plot()")
        figure, axes = pyplot.subplots(layout="constrained")
        seconds = [sample.seconds for sample in self.samples]
        for index, name in enumerate(RssSample._fields[1:], 1):
            axes.plot(seconds, [sample[index] / (1 << 20) for sample in self.samples], label=name)
        axes.set(xlabel="seconds", ylabel="MiB", title=f"process {os.getpid()}")
        axes.set_ylim(bottom=0)
        axes.legend()
        if file is not None:
            figure.savefig(file)
            pyplot.close(figure)
        return axes

    def _repr_png_(self) -> Optional[bytes]:
        if not self.samples or importlib.util.find_spec("matplotlib") is None:
            return None  # Jupyter shows repr() then
        image = io.BytesIO()
        self.plot(cast("Any", image))
        return image.getvalue()

    def __repr__(self) -> str:
        state = "running" if self._is_running() else "stopped"
        return f"<hakmem.RssMonitor every {self.interval} s, {state}, {len(self.samples)} samples, peak {self.peak:,}>"


# ---- doctor ------------------------------------------------------------------------------------------------
class Finding(NamedTuple):
    """One thing that doctor() has found: level is "ok", "note" or "problem"; advice is what to do, "" if it is ok."""

    level: str
    subject: str
    found: str
    advice: str = ""


_ONE = "leave it out of LD_PRELOAD or the build: what it holds is not in hakmem's figures, and hakmem's not in its own"
_ALONE = "one at a time: start it without hakmem, or hakmem alone: python -m hakmem run --hardened -- command"
_OTHERS = (  # names of files begin so; symbols, or texts (with a colon), that are in them; what, which kind, advice
    ("libheaptrack", "", "heaptrack", "profiler", "measure without it: heaptrack --analyze has the figures afterwards"),
    ("_memray memray _inject.", "", "memray", "profiler", "measure without it"),
    ("libjemalloc", "mallctl je_mallctl _rjem_mallctl je_arrow_mallctl <jemalloc>:", "jemalloc", "allocator", _ONE),
    ("libmimalloc", "mi_malloc mimalloc:", "mimalloc", "allocator", _ONE),
    ("libtcmalloc", "tc_malloc MallocExtension_Internal_GetStats tcmalloc:", "tcmalloc", "allocator", _ONE),
    ("librpmalloc", "rpmalloc", "rpmalloc", "allocator", _ONE),
    ("libsnmalloc", "sn_malloc sn_rust_alloc", "snmalloc", "allocator", _ONE),
    ("libtbbmalloc", "scalable_malloc", "tbbmalloc", "allocator", _ONE),
    ("libasan libclang_rt.asan", "__asan_init", "AddressSanitizer", "debugger", _ALONE),
    ("libtsan libclang_rt.tsan", "__tsan_init", "ThreadSanitizer", "debugger", _ALONE),
    ("libhwasan liblsan libclang_rt", "__msan_init __hwasan_init __lsan_init", "a sanitizer", "debugger", _ALONE),
    ("vgpreload_", "", "valgrind", "debugger", "valgrind --soname-synonyms=somalloc=nouserintercepts keeps hakmem's"),
    ("libefence libduma libdmalloc libc_malloc_debug libmemusage", "", "a debugging malloc", "debugger", _ALONE),
    ("libjvm libjli", "JNI_CreateJavaVM", "Java", "runtime", "java -Xmx and -XX:MaxDirectMemorySize bound it"),
    ("libnode", "_ZN2v87Isolate9InContextEv", "V8 (JavaScript)", "runtime", "NODE_OPTIONS=--max-old-space-size=MB"),
    ("libcef chrome chromium electron", "", "Chromium", "runtime", "nothing: PartitionAlloc serves itself"),
    ("libcoreclr libmonosgen", "", ".NET", "runtime", "DOTNET_GCHeapHardLimit bounds it"),
    ("libgo.so", "runtime.mallocgc", "Go", "runtime", "GOMEMLIMIT bounds it; GODEBUG=gctrace=1 shows it"),
    ("libarrow", "", "Arrow", "runtime", "ARROW_DEFAULT_MEMORY_POOL=system makes its pool call malloc"),
    ("libmkl_core", "mkl_malloc", "MKL", "runtime", "MKL_DISABLE_FAST_MM=1 makes it call malloc"),
)  # fmt: skip
_SAYS = {
    "profiler": ", which sees and slows each call",
    "allocator": ", for those who call it by name",
    "debugger": ", which needs a malloc of its own",
    "runtime": ", which has memory of its own beside malloc's",
}
_MARKS = frozenset(mark for other in _OTHERS for mark in other[1].split()) | {"malloc", "hak_about"}
_OPTIONS_OURS = "python -m hakmem config lists what hakmem reads"
_VARIABLES = (  # of other allocators: how they begin, who reads them, and what to do if nobody does
    ("MALLOC_CONF", "jemalloc", _OPTIONS_OURS),
    ("_RJEM_MALLOC_CONF", "jemalloc", _OPTIONS_OURS),
    ("TCMALLOC_", "tcmalloc", _OPTIONS_OURS),
    ("MIMALLOC_", "mimalloc", _OPTIONS_OURS),
    ("MALLOC_ARENA_", "glibc", "unset it: there are no arenas; HAKMEM_CACHE_LIMIT bounds the threads' caches"),
    ("MALLOC_TRIM_THRESHOLD_", "glibc", "set HAKMEM_RETAIN and HAKMEM_PURGE_MS instead"),
    ("MALLOC_TOP_PAD_", "glibc", "set HAKMEM_RETAIN instead"),
    ("MALLOC_MMAP_", "glibc", "set HAKMEM_BIGCACHE instead"),
    ("MALLOC_CHECK_", "glibc", "python -m hakmem run --hardened -- command"),
    ("MALLOC_PERTURB_", "glibc", "python -m hakmem run --hardened -o hardened=2 -- command"),
    ("GLIBC_TUNABLES", "glibc", _OPTIONS_OURS),
)
_ELSEWHERE = "docker podman kubectl ssh systemctl systemd-run flatpak snap srun at batch".split()


class _Object(NamedTuple):
    """A program or library, and what its file says; nothing where that is unreadable, or no ELF file of 64 bits."""

    path: str
    names: set[str]  # its soname, and the file's name
    kind: bytes = b""  # class, byte order and machine
    needed: Sequence[str] = ()
    exports: Iterable[str] = ()  # of _MARKS
    marks: Iterable[str] = ()  # of _MARKS, those of static symbols and texts too

    @property
    def python(self) -> bool:
        return os.path.basename(self.path).startswith(("python", "libpython"))

    @property
    def others(self) -> list[tuple[str, str, str]]:
        """Of _OTHERS what it is or has inside, with kind and advice; not the mimalloc that PYTHONMALLOC chooses."""
        base = os.path.basename(self.path)
        named = [row for row in _OTHERS if base.startswith(tuple(row[0].split()))]
        inside = (row for row in _OTHERS if {*row[1].split()} & {*self.marks})
        return [row[2:] for row in named or inside if not (self.python and row[2] == "mimalloc")]


def _object(path: str, file: Path) -> _Object:
    """What the file says that is mapped as path."""
    there = path.removesuffix(" (deleted)")
    it = _Object(path, {os.path.basename(there)})
    if there != path and "_hakmem_backend" in path:  # a file that cannot be read any more
        return it._replace(exports={"malloc"}, marks={"hak_about"})
    if not os.path.isfile(file):  # to open a device may do something, or wait
        return it
    with contextlib.suppress(OSError, struct.error, IndexError, ValueError), open(file, "rb") as image:

        def part(offset: int, size: int) -> bytes:
            image.seek(offset)
            return image.read(size)

        head, needed, exports, marks = part(0, 64), list[str](), set[str](), set[str]()
        it = it._replace(kind=head[4:6] + head[18:20] if head[:4] == b"\x7fELF" else b"")
        if it.kind[:2] != (b"\2\1" if sys.byteorder == "little" else b"\2\2"):
            return it
        table, size, count = struct.unpack_from("=40xQ10xHH", head)
        sections = [struct.unpack("=4xIQ8xQQI", part(table + i * size, 44)) for i in range(count)]
        for sort, flags, offset, length, link in sections:
            texts = part(*sections[link][2:4]) if sort in (2, 6, 11) else b""
            if sort in (2, 11):  # symbols, and those that the dynamic loader sees
                at = {found.start(): m for m in _MARKS for found in re.finditer(m.encode() + b"\0", texts)}
                symbols = struct.iter_unpack("=IBBHQQ", part(offset, length))
                known = {at[name] for name, _, _, section, *_ in symbols if name in at and section}
                marks |= known
                exports |= known if sort == 11 else set()
            elif sort == 6:  # what the dynamic loader is told
                for tag, value in struct.iter_unpack("=qQ", part(offset, length)):
                    if tag in (1, 14):
                        (needed.append if tag == 1 else it.names.add)(texts[value:].partition(b"\0")[0].decode())
            elif sort == 1 and flags & 7 == 2:  # constants
                texts = part(offset, length)
                marks |= {mark for mark in _MARKS if ":" in mark and mark.encode() in texts}
        it = it._replace(needed=needed, exports=exports, marks=marks)
    return it


class _Patient(NamedTuple):
    """What doctor() looks at: a process, or a command as `run` would start it from this one."""

    pid: int  # 0: a command
    root: Path  # below which the machine's /proc and /sys stand
    proc: Path
    status: dict[str, str]
    arguments: Sequence[str]
    environment: Mapping[str, str]
    objects: Sequence[_Object]  # the program comes first
    mappings: Sequence[str] = ()
    secure: bool = False  # the program has rights that its caller has not: its environment is not believed
    refused: str = ""  # why a command cannot be put on hakmem

    @property
    def files(self) -> Path:
        """The root of the files that the process sees."""
        return self.proc / "root" if self.pid else Path("/")

    def preloads(self) -> dict[str, Optional[_Object]]:
        """What LD_PRELOAD and the machine's list for all programs name, with the library where it is there."""
        asked = "" if self.secure else self.environment.get("LD_PRELOAD", "")
        paths = f"{asked} {_text_of(self.files / 'etc/ld.so.preload')}".replace(":", " ").split()
        names = {path: {os.path.basename(path), os.path.basename(os.path.realpath(path))} for path in paths}
        return {path: next((it for it in self.objects if it.names & names[path]), None) for path in paths}

    @property
    def ours(self) -> list[_Object]:
        """hakmem's libraries in it."""
        return [it for it in self.objects if "hak_about" in it.marks or "_hakmem_backend" in it.path]

    def searched(self) -> list[_Object]:
        """Where the loader looks names up, in that order: the program, what is preloaded, what these need."""
        by_name = {name: it for it in reversed(self.objects[1:]) for name in it.names}
        order = [self.objects[0], *(it for it in self.preloads().values() if it)]
        for it in order:  # it grows meanwhile
            needed = (by_name.get(os.path.basename(name)) for name in it.needed)
            order += [other for other in needed if other and other not in order]
        return order

    def winner(self) -> Optional[_Object]:
        """Whose malloc the program calls, if need be through a profiler's; None: valgrind's, or it is static."""
        traced = any(what == "valgrind" for it in self.objects for what, _, _ in it.others)
        found = (
            it for it in self.searched() if "malloc" in it.exports and "profiler" not in [k for _, k, _ in it.others]
        )
        return None if traced else next(found, None)

    def option(self, name: str) -> Any:
        """What an option of hakmem's is in it."""
        option = config.option(name)
        with contextlib.suppress(ValueError):
            return option.parse(self.environment[option.env]) if option.env in self.environment else option.default
        return option.default


def _born(proc: Path) -> list[str]:
    """When a process was started, which tells it from a later one of its number; [] if it is gone."""
    return _text_of(proc / "stat").rpartition(")")[2].split()[19:20]


def _process(pid: int, root: Path) -> _Patient:
    """A running process; HakmemError or OSError if there is none to look at."""
    proc = root / "proc" / str(pid)
    status = _pairs(_text_of(proc / "status"))
    if not status:
        raise FileNotFoundError
    _living(pid, status)
    try:
        mappings = _text_of(proc / "maps").splitlines()
        variables = [os.fsdecode(entry).partition("=") for entry in (proc / "environ").read_bytes().split(b"\0")]
        auxiliary = (proc / "auxv").read_bytes()
        program = os.readlink(proc / "exe").removesuffix(" (deleted)")
        arguments = os.fsdecode((proc / "cmdline").read_bytes()).split("\0")[:-1]
    except PermissionError:
        raise _denied(pid, status) from None
    secure = dict(struct.iter_unpack("=QQ", auxiliary[: len(auxiliary) // 16 * 16])).get(23) == 1  # AT_SECURE
    rows = [line.split(maxsplit=5) for line in mappings]
    code = dict.fromkeys(row[5] for row in rows if row[5:] and row[5][0] == "/" and "x" in row[1])
    objects = [_object(program, proc / "exe")]
    objects += [_object(path, proc / "root" / path[1:]) for path in code if path.removesuffix(" (deleted)") != program]
    environment = {name: value for name, given, value in variables if given}
    return _Patient(pid, root, proc, status, arguments, environment, objects, mappings, secure)


def _prospect(command: Sequence[str], root: Path) -> _Patient:
    """A command, as `run` would start it here; only the dynamic loader is asked, nothing of it is started."""
    if isinstance(command, str) or not command:
        raise ValueError(f"a command is a list of words, not {command!r}")
    arguments, program = list(command), _real_program(command[0])
    binary, listed, refused = program, "", ""
    for _ in range(4):  # a script is an argument of its interpreter, which `env` finds
        with open(program, "rb") as file:
            line = os.fsdecode(file.readline(256))
        if not line.startswith("#!") or not line[2:].split():
            break
        words = line[2:].split()
        env = os.path.basename(words[0]) == "env"
        words = list(itertools.dropwhile(lambda word: word[0] == "-" or "=" in word, words[1:])) if env else words
        arguments = [*words, program, *arguments[1:]]
        program = _real_program(arguments[0])
    environment = dict(os.environ)
    try:
        _preload(environment, library := _library_for_preload(None))
        loader, binary = _loader_of(program)
        refused = _unfit(_object(program, Path(program)), loader)
        if os.path.basename(program) in _ELSEWHERE:
            refused = f"{program} has its command started by another process, which has an environment of its own"
        if not refused:
            listed, refused = _listed(loader, binary, library, environment)
    except (ValueError, OSError) as error:
        refused = str(error)
    paths = [binary, *(line.split(" => ")[-1].strip().rpartition(" (")[0] for line in listed.splitlines())]
    objects = [_object(path, Path(path)) for path in dict.fromkeys(paths) if path[:1] == "/"]
    proc = root / "proc" / "self"
    return _Patient(0, root, proc, _pairs(_text_of(proc / "status")), arguments, environment, objects, refused=refused)


def _unfit(program: _Object, loader: str) -> str:
    """Why a program cannot have our library, by its kind."""
    if os.path.basename(loader).startswith("ld-musl"):
        return f"{program.path} is linked with musl, hakmem with glibc"
    other = program.kind != _object(_mode.path, Path(_mode.path)).kind
    return f"{program.path} is a program for another processor" if other else ""


def _may_read(patient: _Patient, path: Path) -> bool:
    """Whether a process may read a file below its root, by the modes of the file and its directories."""
    user = patient.status["Uid"].split()[1]
    groups = {patient.status["Gid"].split()[1], *patient.status.get("Groups", "").split()}

    def allows(place: Path, bit: int) -> bool:
        it = place.stat()
        return bool(it.st_mode >> (6 if str(it.st_uid) == user else 3 if str(it.st_gid) in groups else 0) & bit)

    above = itertools.takewhile(lambda place: place != patient.files, path.parents)
    return user == "0" or (allows(path, 4) and all(allows(place, 1) for place in above))


def _why_not(patient: _Patient, path: str) -> tuple[str, str]:
    """Why a process has not got what it preloads, and what to do."""
    program, file, exe = patient.objects[0], patient.files / path.lstrip("/"), str(patient.proc / "exe")
    build = f"link {program.path} with hakmem: cc ... {path}"
    try:
        loader, _ = _loader_of(exe)
        if unfit := _unfit(program, loader):
            return unfit, "build _hakmem_backend.c for that system, or use a program with glibc"
    except (ValueError, OSError) as error:
        return str(error).replace(exe, program.path), build
    if not file.exists():
        return "there is none among its files (container, chroot)", f"docker run -v {path}:{path}:ro ..., or copy it"
    if not _may_read(patient, file):
        return "its user may not read that file", f"install -m 755 {path} /usr/local/lib/ and name it there"
    if _object(path, file).kind != program.kind:
        return "that is no library, or one for another processor", "LD_PRELOAD=$(python -m hakmem path)"
    return "its dynamic loader refused it", f"to see why: LD_PRELOAD={path} {loader} --list {program.path}"


def _check_hakmem(patient: _Patient) -> Iterator[Finding]:
    """Whether hakmem is there, how, and how often."""
    ours, preloads, winner = patient.ours, patient.preloads(), patient.winner()
    start = f"python -m hakmem run -- {shlex.join(patient.arguments)}"
    if not start.isprintable() or len(start) >= 250:
        start = "start its command with: python -m hakmem run -- command"
    if patient.secure and "LD_PRELOAD" in patient.environment:
        advice = "start it from an account that has those rights, or link it with hakmem"
        yield Finding("problem", "LD_PRELOAD", "ignored: the program is setuid, setgid or has capabilities", advice)
    missing = [path for path in preloads if not preloads[path] and not patient.refused]
    for path in missing:
        why, advice = _why_not(patient, path) if patient.pid else ("its loader does not take it", "leave it out")
        level = "problem" if "hakmem" in path else "note"
        yield Finding(level, "LD_PRELOAD", f"it names {path}, which is not there: {why}", advice)
    parent = _text_of(patient.root / "proc" / patient.status.get("PPid", "0") / "environ").replace("\0", "\n")
    if patient.refused:
        advice = "link the program with _hakmem_backend.c, or take one that is linked with glibc dynamically"
        if os.path.basename(patient.arguments[0]) in _ELSEWHERE:
            advice = f"put hakmem into what it starts: {patient.arguments[0]} ... python -m hakmem run -- command"
        yield Finding("problem", "hakmem", f"`run` cannot put it on hakmem: {patient.refused}", advice)
    elif not ours and not missing and "hakmem" in _pairs(parent, "=").get("LD_PRELOAD", "") and not patient.secure:
        found = "not there, though its parent preloads it: the environment was cleared between (sudo, su, env -i)"
        yield Finding("problem", "hakmem", found, f"put it behind that: sudo {start}")
    elif not ours and not missing:
        yield Finding("note", "hakmem", "not there", start)
    for it in ours:
        if it.path.endswith(" (deleted)"):
            yield Finding("note", "hakmem", f"{it.path}: the file was replaced since", "restart the process")
        elif it in preloads.values():
            yield Finding("ok", "hakmem", f"{'preloaded' if patient.pid else 'can be preloaded'}: {it.path}")
        elif it in patient.searched():
            yield Finding("ok", "hakmem", f"linked with the program: {it.path}")
        else:
            vendored = ", a vendored copy's" * (os.path.basename(os.path.dirname(it.path)) == "hakmem")
            yield Finding("note", "hakmem", f"loaded by a module, for those who call it: {it.path}{vendored}", start)
    if len(ours) > 1:
        found = f"{len(ours)} instances: none knows the blocks of another"
        yield Finding("problem", "hakmem", found, "preload one, and unset HAKMEM_LIBRARY")
    if winner and winner not in ours and any(it in ours for it in preloads.values()):
        found = f"hakmem is preloaded, but {winner.path} has a malloc and comes before it"
        advice = "name hakmem first in LD_PRELOAD; build the program without an allocator of its own"
        yield Finding("problem", "malloc", found, advice)


def _check_malloc(patient: _Patient) -> Iterator[Finding]:
    """Whose malloc is called, and what else hands out memory."""
    winner = patient.winner()
    if winner:
        yield Finding("ok", "malloc", f"the program calls that of {winner.path}")
    for it in patient.objects:
        system = os.path.basename(it.path).startswith(("libc.", "libc-", "ld-"))
        if "malloc" in it.exports and it is not winner and not (it in patient.ours or it.others or system):
            found = f"{it.path} has one, too: what it calls itself if it was linked with -Bsymbolic, or opened DEEPBIND"
            yield Finding("note", "malloc", found, "its owner says how to build it without")
        for what, kind, advice in [] if it in patient.ours else it.others:
            says = ", which the program calls" if it is winner and kind == "allocator" else _SAYS[kind]
            level = "problem" if kind == "debugger" and (patient.ours or what == "valgrind") else "note"
            yield Finding(level, "malloc", f"{what} is in {it.path}{says}", advice)


def _check_python(patient: _Patient) -> Iterator[Finding]:
    """What Python does before it calls malloc."""
    if not any(it.python for it in patient.objects):
        return
    words = itertools.takewhile(lambda word: word[:1] == "-" or word == "dev", patient.arguments[1:])
    flags = " ".join(words).replace("-X dev", "-Xdev").split()
    environment = {} if {"-I", "-E"} & set(flags) else patient.environment
    mode = environment.get("PYTHONMALLOC", "")
    modes = "malloc pymalloc mimalloc default debug malloc_debug pymalloc_debug mimalloc_debug".split()
    if any(re.match(r"(lib)?python3\.\d+t\b", os.path.basename(it.path)) for it in patient.objects):
        found = "free-threaded: objects always come from a mimalloc inside Python"
        advice = "the python3 without t has others; arrays and buffers do come from malloc"
        yield Finding("note", "python", found, advice)
    elif mode and mode not in modes:
        yield Finding("problem", "python", f"PYTHONMALLOC={mode}: Python does not start", f"one of {', '.join(modes)}")
    elif "debug" in mode or (not mode and ("-Xdev" in flags or environment.get("PYTHONDEVMODE"))):
        found = "debug hooks (PYTHONMALLOC=debug, -X dev): 32 bytes more for each object, and each is filled"
        yield Finding("note", "python", found, "leave them out to measure: unset PYTHONMALLOC PYTHONDEVMODE")
    elif mode == "mimalloc":
        found = "PYTHONMALLOC=mimalloc: objects come from a mimalloc inside Python"
        yield Finding("note", "python", found, "PYTHONMALLOC=malloc, or python -m hakmem run --pythonmalloc -- command")
    elif mode == "malloc":
        yield Finding("ok", "python", "PYTHONMALLOC=malloc: objects come from malloc")
    else:
        yield Finding("ok", "python", "objects up to 512 bytes are not malloc's (PYTHONMALLOC=malloc changes that)")
    if environment.get("PYTHONMALLOCSTATS"):
        yield Finding("note", "python", "PYTHONMALLOCSTATS writes tables to stderr", "unset PYTHONMALLOCSTATS")


def _check_variables(patient: _Patient) -> Iterator[Finding]:
    """Variables that are wrong, or that nobody reads."""
    by_env = {option.env: option for option in config.options.values()}
    readers = {what for it in patient.objects for what, _, _ in it.others}
    readers |= set() if patient.winner() in patient.ours else {"glibc"}
    hardened = any("hardened" in it.path for it in patient.ours)
    for name, value in patient.environment.items():
        for beginning, who, advice in _VARIABLES:
            if name.startswith(beginning) and who not in readers and (name[0] != "G" or "glibc.malloc" in value):
                yield Finding("note", name, f"it does nothing: {who} reads it, which nobody calls here", advice)
        if name == "HAKMEM_LIBRARY":
            if not (patient.files / value.lstrip("/")).exists():
                yield Finding("problem", name, f"there is no file {value}", "unset HAKMEM_LIBRARY")
        elif name.startswith("HAKMEM_"):
            level, found, advice = "ok", value, ""
            if name not in by_env:
                level, found, advice = "problem", "there is no such option", f"the nearest is {_nearest(name, by_env)}"
            elif patient.secure:
                level, found, advice = "problem", "ignored: the program has rights of its own", f"unset {name}"
            elif not patient.ours:
                level, found, advice = "note", "it does nothing: hakmem is not there", f"unset {name}, or use `run`"
            elif not (name == "HAKMEM_HARDENED" and hardened and value in ("1", "2")):
                try:
                    by_env[name].parse(value)
                except HakmemError as error:
                    level, found, advice = "problem", f"{value!r} is not taken, the default holds", str(error)
            yield Finding(level, name, found, advice)


def _check_machine(patient: _Patient) -> Iterator[Finding]:
    """How the kernel gives memory."""
    path = "/sys/kernel/mm/transparent_hugepage/enabled"
    pages, asked = _text_of(patient.root / path[1:]).partition("[")[2].partition("]")[0], patient.option("huge_pages")
    off = "off in this process (prctl)" * (patient.status.get("THP_enabled") == "0") or "never" * (pages == "never")
    huge = _kib(_pairs(_text_of(patient.proc / "smaps_rollup")).get("AnonHugePages", ""))
    found = (off or pages) + f", and {_shown(huge, 'bytes')} of the process are such" * bool(patient.pid)
    if off and asked:
        yield Finding("note", "huge pages", f"{off}: HAKMEM_HUGE_PAGES does nothing", f"echo madvise > {path}")
    elif not off and pages == "always" and patient.winner() not in patient.ours:
        advice = f"echo madvise > {path}; hakmem keeps its own memory from them"
        yield Finding("note", "huge pages", f"{found}: touching a byte may cost 2 MiB", advice)
    elif pages:
        yield Finding("ok", "huge pages", found)
    memory = _pairs(_text_of(patient.root / "proc/meminfo"))
    mode = _text_of(patient.root / "proc/sys/vm/overcommit_memory").strip()
    if mode == "2":
        limit, left = _kib(memory["CommitLimit"]), _kib(memory["CommitLimit"]) - _kib(memory["Committed_AS"])
        found = f"strict (mode 2): all processes together may commit {_shown(max(left, 0), 'bytes')} more"
        advice = "sysctl vm.overcommit_memory=0, or a larger vm.overcommit_ratio; hakmem's reserve does not count"
        yield Finding("problem" if left < limit // 10 else "note", "overcommit", found, advice)
    elif mode:
        yield Finding("ok", "overcommit", f"vm.overcommit_memory={mode}")


def _limits_of_cgroups(patient: _Patient) -> Iterator[tuple[int, Path]]:
    """The limits on memory of the process's control groups, with their directories."""
    for line in _text_of(patient.proc / "cgroup").splitlines():
        _, controllers, path = line.split(":", 2)
        if not controllers or "memory" in controllers.split(","):
            top = patient.root / "sys/fs/cgroup" / ("memory" if controllers else "")
            group = top / path.lstrip("/")
            above = itertools.takewhile(lambda place: place != top.parent, group.parents)  # noqa: B023 (used at once)
            names = ("memory.max", "memory.high", "memory.limit_in_bytes")
            for place, name in itertools.product([group, *above], names):
                limit = _text_of(place / name).strip()
                if limit.isdigit():
                    yield int(limit), place


def _weighed(subject: str, used: int, limit: int, found: str, advice: str, worth: bool = True) -> Finding:
    level = "problem" if used > 0.9 * limit else "note" if worth else "ok"
    return Finding(level, subject, found, "" if level == "ok" else advice)


def _check_limits(patient: _Patient) -> Iterator[Finding]:
    """What the process may have, against what it has."""
    status = patient.status if patient.pid else {}
    most, used = int(_text_of(patient.root / "proc/sys/vm/max_map_count") or 0), len(patient.mappings)
    if most and used:
        found = f"{used:,} of {most:,} (vm.max_map_count)"
        yield _weighed("mappings", used, most, found, f"sysctl vm.max_map_count={4 * most}", used > most // 2)
    kinds = {"Max address space": ("VmSize", "-v"), "Max data size": ("VmData", "-d")}
    for line in _text_of(patient.proc / "limits").splitlines():
        key, flag = kinds.get(line[:26].strip(), ("", ""))
        if key and not line[26:].startswith("unlimited"):
            limit, used = int(line[26:].partition(" ")[0]), _kib(status.get(key, ""))
            found = f"{_shown(limit, 'bytes')}, of which {_shown(used, 'bytes')} are taken"
            advice = f"ulimit {flag} unlimited, and a control group's limit: an address reserved costs no memory"
            yield _weighed(f"ulimit {flag}", used, limit, found, advice)
    whole = _kib(_pairs(_text_of(patient.root / "proc/meminfo")).get("MemTotal", ""))
    for limit, place in sorted(it for it in _limits_of_cgroups(patient) if it[0] < whole)[:1]:
        stat = _pairs(_text_of(place / "memory.stat"), " ")
        events = _pairs(_text_of(place / "memory.events") + _text_of(place / "memory.oom_control"), " ")
        used, killed = int(stat.get("anon", stat.get("total_rss", 0))), int(events.get("oom_kill", 0))
        kept = patient.option("retain") + patient.option("cache_limit")
        found = f"{_shown(limit, 'bytes')} ({place}), of which {_shown(used, 'bytes')} are used; {killed} were killed"
        if kept > limit // 4:
            found += f"; retain and cache_limit let hakmem keep {_shown(kept, 'bytes')} that are free"
        advice = f"HAKMEM_RETAIN=0 HAKMEM_PURGE_MS=100 HAKMEM_CACHE_LIMIT={max(limit >> 24, 1)}M, or a higher limit"
        yield _weighed("cgroup", limit if killed else used, limit, found, advice, kept > limit // 4)
    if _kib(status.get("VmSwap", "")):
        advice = f"more memory; HAKMEM_RETAIN=0 keeps less; python -m hakmem trim {patient.pid}"
        yield Finding("note", "swap", f"{_shown(_kib(status['VmSwap']), 'bytes')} of it are there", advice)
    if status.get("Seccomp", "0") != "0":
        advice = "allow mmap munmap mremap mprotect madvise futex, and memfd_create ftruncate for HAKMEM_STATS_PAGE"
        yield Finding("note", "seccomp", "its system calls are filtered", advice)


def _check_page(patient: _Patient) -> Iterator[Finding]:
    """Whether its statistics can be read from outside."""
    if not patient.pid or not patient.ours:
        return
    shown = _shown_files(patient.pid, "stats", patient.root)
    if any("/fd/" in path for path in shown):
        yield Finding("ok", "stats page", "there")
    elif shown:
        found = "the process has closed its descriptor, by which others find it"
        yield Finding("problem", "stats page", found, "keep it from closing descriptors that it has not opened")
    elif patient.option("stats_page") and not patient.secure:
        found = "asked for, but not there: no descriptor, no memory, or memfd_create is not allowed"
        yield Finding("problem", "stats page", found, "ulimit -n, seccomp and the control group's limit say which")
    else:
        yield Finding("note", "stats page", "off: nobody else sees its figures", "start it with HAKMEM_STATS_PAGE=1")


_CHECKS = (_check_hakmem, _check_malloc, _check_python, _check_variables, _check_machine, _check_limits, _check_page)


def _examine(target: Union[int, Sequence[str]], root: Path) -> list[Finding]:
    def found(patient: _Patient) -> list[Finding]:
        texts = (map(str, finding) for check in _CHECKS for finding in check(patient))
        return [Finding(*map(_printable, row)) for row in texts]  # of what others chose, too

    if not isinstance(target, int):
        return found(_prospect(target, root))
    proc = root / "proc" / str(target)
    born = _born(proc)
    with contextlib.suppress(FileNotFoundError, ProcessLookupError):  # it may end while we look
        findings = found(_process(target, root))
        if _born(proc) == born:
            return findings
    raise _Ended(f"there is no process {target}, or no longer")


def doctor(target: Union[int, Sequence[str], None] = None) -> list[Finding]:
    """What keeps hakmem from a process, or makes its memory other than it seems; each finding with what to do.

    target: the number of a process; the words of a command, which is not started, for this environment; None for this
    process. HakmemError, in one line, if there is no such process, or it is the kernel's or not this user's;
    FileNotFoundError if there is no such command.
    """
    return _examine(os.getpid() if target is None else target, Path("/"))


# ---- watching: ps, top, watch, trim, set -------------------------------------------------------------------
def _ps(arguments: argparse.Namespace) -> str:
    """Every process on hakmem that this user may look into, and a count of the others."""
    rows, denied = [], 0
    for pid in _pids():
        if pid == os.getpid():
            continue
        names = "user command version rss live cached free age seen".split()
        row: dict[str, Any] = {"pid": pid, **dict.fromkeys(names)}
        try:
            process = _Process(pid, fresh=0)
            if process.head.thread:  # it costs the others a moment
                process.refresh()
            stats = process.stats()
            free = sum(stats.get(f"{part}_bytes", 0) for part in ("slab_free", "free_dirty", "kept_whale"))
            row.update(version=f"{process.page.version} {process.page.variant}", seen="yes", free=free)
            row.update(live=stats.get("live_bytes"), cached=stats.get("cached_bytes"))
            row.update(age=process.age if arguments.fmt == "json" else _duration(process.age))
        except _Denied:
            denied += 1
            continue
        except _Unseen:
            row.update(seen="no: start it with HAKMEM_STATS_PAGE=1")
        except _Unread as error:
            row.update(seen=f"no: {error}")
        except HakmemError:  # not on hakmem, or ended
            continue
        with contextlib.suppress(HakmemError, OSError):  # it may just have ended
            status = _status(pid)
            row.update(user=_user(int(status["Uid"].split()[1])), command=_command_line(pid) or status["Name"])
            rows.append({**row, "rss": _kib(status.get("VmRSS", ""))})
    if arguments.fmt == "json":
        return json.dumps({"processes": rows, "not_looked_into": denied}, indent=1)
    units = dict.fromkeys(("rss", "live", "cached", "free"), "bytes")
    text = _as_text(_Table("processes on hakmem", rows, units), arguments.fmt)
    return text + f"\n\nnot looked into, as only their users and root may: {denied:,}" * (denied > 0)


def _command_line(pid: int, most: int = 40) -> str:
    with open(f"/proc/{pid}/cmdline", "rb") as file:
        text = _printable(file.read(4096).replace(b"\0", b" ").decode(errors="replace")).strip()
    return text if len(text) <= most else f"{text[: most - 3]}..."


# the pages of top: kind of record, what names a row, what is shown as it is, what as how often a second, and by which
# column rows are sorted at first
_PAGES: dict[str, Any] = {
    page: (kind, *(tuple(columns.split()) for columns in (names, shown, rated)), first)
    for page, kind, names, shown, rated, first in (
        ("classes", "class", "size tier", "live_blocks live_bytes cached_bytes slabs", "allocs", "live"),
        ("tiers", "tier", "name", "live_blocks live_bytes cached_bytes transit_bytes", "allocs", "live"),
        ("heaps", "heap", "heap thread", "used_bytes cached_bytes slabs", "allocs remote_frees", "used"),
        ("locks", "lock", "name", "taken contended", "taken contended", "taken/s"),
    )
}


def _heading(name: str) -> str:
    """A column's name, so short that the table fits 80 columns."""
    return {"live_blocks": "blocks", "remote_frees": "remote"}.get(name, name.removesuffix("_bytes"))


def _rate(before: float, now: float, seconds: float) -> Optional[int]:
    return round(max(now - before, 0) / seconds) if seconds > 0 else None


def _interval(page: str, before: _Process, now: _Process) -> _Table:
    """What a page shows of the time between two readings; without a time in between there are no rates."""
    kind, names, shown, rated, _first = _PAGES[page]
    seconds = (now.head.at_ns - before.head.at_ns) / 1e9

    def key(record: Any) -> tuple[Any, ...]:
        return tuple(getattr(record, name) for name in names)

    old = {key(row): row._asdict() for row in before.rows(kind)}
    rows = []
    for record in now.rows(kind):
        values = _with_bytes(record._asdict())
        if not any(values.get(name) for name in (*shown, *rated)):
            continue
        was = old.get(key(record), {})
        row = {_heading(name): values.get(name) for name in (*names, *shown)}
        row.update({f"{_heading(name)}/s": _rate(was.get(name, 0), values.get(name, 0), seconds) for name in rated})
        if kind != "lock":
            allocs, misses = (values.get(name, 0) - was.get(name, 0) for name in ("allocs", "misses"))
            cached = allocs > 0 and seconds > 0 and values.get("classes", 1)  # whales have no caches
            row["hits"] = max(1 - misses / allocs, 0.0) if cached else None
        rows.append(row)
    units = {_heading(name): "bytes" if name.endswith("bytes") else "blocks" for name in shown}
    rates = {f"{_heading(name)}/s": "blocks" for name in rated}
    return _Table(page, rows, {**units, **rates, "size": "bytes", "hits": "ratio"})


def _top_head(before: _Process, now: _Process) -> list[str]:
    """The process as a whole, in lines that fit 80 columns."""
    stats, old = now.stats(), before.stats()
    seconds = (now.head.at_ns - before.head.at_ns) / 1e9

    def size(*names: str) -> str:
        return _shown(sum(stats[name] for name in names), "bytes") if set(names) <= set(stats) else "-"

    def rate(name: str) -> str:
        return _shown(_rate(old.get(name, 0), stats.get(name, 0), seconds) if name in stats else None, "n") + "/s"

    name = f"{now.pid} {now.status['Name']} ({_user(int(now.status['Uid'].split()[1]))})"
    threads = f"{now.status.get('Threads', '?')} threads"
    rss = _shown(now.rss, "bytes")
    live, cached, transit = size("live_bytes"), size("cached_bytes"), size("transit_bytes")
    free, purgeable = size("slab_free_bytes"), size("free_dirty_bytes", "kept_whale_bytes")
    locks, contended = rate("shared_locks"), rate("shared_locks_contended")
    return [
        f"{name}, hakmem {now.page.version} {now.page.variant}, {threads}, {_duration(now.age)} ago",
        f"RSS {rss}   live {live}   cached {cached}   in transit {transit}",
        f"free in slabs {free}   purgeable {purgeable}   whales {size('whale_bytes', 'large_bytes')}",
        f"allocs {rate('allocs')}   misses {rate('cache_misses')}   locks {locks}, contended {contended}",
    ]


def _largest() -> list[int]:
    """The processes that let themselves be seen, that with the most memory first."""
    found = []
    for pid in _shown_pids():
        with contextlib.suppress(HakmemError, OSError):
            found.append((_Process(pid, fresh=0).rss, pid))
    return [pid for _rss, pid in sorted(found, reverse=True)]


def _top(arguments: argparse.Namespace) -> Optional[str]:
    """Live, where there is a terminal for it; else a table for each of n intervals."""
    known = [arguments.pid] if arguments.pid else _largest()
    if not known:
        raise HakmemError(
            "no process lets itself be seen: start one with `python -m hakmem run` or HAKMEM_STATS_PAGE=1"
        )
    process = _Process(known[0])
    live = os.isatty(0) and os.isatty(1) and (os.environ.get("TERM") or "dumb") != "dumb" and not arguments.n
    if live:
        ended = _top_live(arguments, process)
        return f"hakmem: top: {ended}" if ended else None
    for index in range(arguments.n or 1):
        before = copy.copy(process)
        time.sleep(arguments.interval)
        process.refresh()
        table = _sorted(_interval(arguments.page, before, process), arguments.sort or _PAGES[arguments.page][-1])
        gap = "\n" if index else ""
        print(gap + "\n".join([*_top_head(before, process), "", _as_text(table, "simple")]), flush=True)
    return None


def _sorted(table: _Table, column: str, upwards: bool = False) -> _Table:
    """By a column, most first."""
    if table.rows and column not in table.rows[0]:
        raise HakmemError(f"no column {column!r}; there are {', '.join(table.rows[0])}")

    def place(row: dict[str, Any]) -> tuple[bool, Any]:
        return row[column] is not None, row[column] or (row[column] if isinstance(row[column], str) else 0)

    return table._replace(rows=sorted(table.rows, key=place, reverse=not upwards))


_KEYS = """c t h l  classes, tiers, heaps (one for each thread), locks
< >      sort by the column to the left, to the right (arrow keys, too); r: the other way round
p        pause; any other key but q shows on
+ -      show twice as often, half as often
n        the next process
T        trim: the process gives back what it does not use; asks first
? q      this help; quit

purgeable: free memory that is still resident, given back by age (purge_ms) or by trim
misses: blocks that were not in the thread's cache; hits: the share that was, of the last interval
whales: live blocks above 1 MiB; /s: of the last interval; ago: when the process wrote this"""


@contextlib.contextmanager
def _screen() -> Iterator[int]:
    """The terminal, taken over; gives a descriptor that can be read once the window has changed or we are back."""
    before = termios.tcgetattr(0)
    woken, wake = os.pipe()
    os.set_blocking(wake, False)

    def enter(*_signal: Any) -> None:
        tty.setcbreak(0, termios.TCSADRAIN)
        _write_all("\x1b[?1049h\x1b[?25l\x1b[?7l\x1b[2J")  # the other screen, no cursor, no wrapping

    def leave() -> None:
        with contextlib.suppress(OSError, termios.error):  # it may be gone
            _write_all("\x1b[?7h\x1b[?25h\x1b[?1049l")
            termios.tcsetattr(0, termios.TCSADRAIN, before)

    def suspend(number: int, _frame: Any) -> None:
        leave()
        signal.signal(number, signal.SIG_DFL)
        os.kill(os.getpid(), number)  # until somebody sends SIGCONT, whose handler enters again
        signal.signal(number, suspend)

    def end(number: int, _frame: Any) -> NoReturn:
        sys.exit(128 + number)

    handlers: dict[int, Any] = {signal.SIGTSTP: suspend, signal.SIGCONT: enter, signal.SIGWINCH: lambda *_: None}
    handlers.update(dict.fromkeys((signal.SIGTERM, signal.SIGHUP, signal.SIGQUIT), end))
    old = {number: signal.signal(number, handler) for number, handler in handlers.items()}
    old_wake = signal.set_wakeup_fd(wake, warn_on_full_buffer=False)
    try:
        enter()
        yield woken
    finally:
        signal.set_wakeup_fd(old_wake)
        for number, handler in old.items():
            signal.signal(number, handler)
        leave()
        os.close(woken)
        os.close(wake)


def _write_all(text: str) -> None:
    data = text.encode(sys.stdout.encoding or "ascii", "replace")
    while data:
        data = data[os.write(1, data) :]


def _top_live(arguments: argparse.Namespace, process: _Process) -> Optional[_Ended]:
    """Shows a process until somebody quits, or until it ends: then returns how."""
    before, page, upwards = copy.copy(process), arguments.page, False
    column = arguments.sort or _PAGES[page][-1]
    interval, paused, asking, helping, message = arguments.interval, False, False, False, ""
    due = time.monotonic() + min(interval, 0.2)  # the first rates soon

    def frame() -> None:
        columns, lines = os.get_terminal_size(1)
        title = f"every {interval:g} s, by {column}" + ", paused" * paused
        last = f"{message or title}   ?: help, q: quit"
        if asking:
            last = f"Have process {process.pid} give back what it does not use? y/n"
        body = _KEYS.splitlines()
        if not helping:
            table = _sorted(_interval(page, before, process), column, upwards)
            body = [*_top_head(before, process), "", *_as_text(table, "plain").splitlines()]
        shown = [line[: columns - 1] for line in [*body[: lines - 1], *[""] * (lines - 1 - len(body)), last]]
        if not helping and lines > 7:
            shown[5] = f"\x1b[7m{shown[5]:{columns - 1}}\x1b[m"
        _write_all("\x1b[H" + "\r\n".join(line + "\x1b[K" for line in shown))

    try:
        with _screen() as woken:
            while True:
                frame()
                ready = select.select([0, woken], [], [], max(due - time.monotonic(), 0))[0]
                if woken in ready:
                    os.read(woken, 64)
                keys = os.read(0, 64).decode("latin-1") if 0 in ready else ""
                if 0 in ready and not keys:  # nobody is there any more
                    return None
                for key in re.findall(r"\x1b[\[O].|.", keys, re.DOTALL):
                    message = ""
                    if asking:
                        asking = False
                        if key == "y":
                            try:
                                message = f"it gave back {_shown(process.ask('trim'), 'bytes')}"
                            except HakmemError as error:
                                message = str(error)
                        continue
                    if key == "q":
                        return None
                    helping, paused = key == "?" and not helping, key == "p" and not paused
                    asking = key == "T"
                    upwards ^= key == "r"
                    new = next((name for name in _PAGES if name[0] == key), page)
                    if new != page:
                        page, column = new, _PAGES[new][-1]
                    if key in "+=-" and len(key) == 1:
                        interval = min(max(interval * (2 if key == "-" else 0.5), 0.1), 60)
                        due = min(due, time.monotonic() + interval)
                    step = {"<": -1, "\x1b[D": -1, "\x1bOD": -1, ">": 1, "\x1b[C": 1, "\x1bOC": 1}.get(key, 0)
                    names = list((_interval(page, before, process).rows or [{}])[0])
                    if step and names:
                        column = names[(names.index(column) + step) % len(names)]
                    if key == "n":
                        known = _largest()
                        if known:
                            place = known.index(process.pid) + 1 if process.pid in known else 0
                            process = _Process(known[place % len(known)])
                            before, due = copy.copy(process), time.monotonic() + min(interval, 0.2)
                if time.monotonic() >= due:
                    due = max(due + interval, time.monotonic())
                    if not paused:
                        old = copy.copy(process)
                        try:
                            process.refresh()
                            before = old
                        except (_Ended, _Denied):
                            raise
                        except HakmemError as error:
                            message = str(error)
    except _Ended as ended:
        return ended


def _watch(arguments: argparse.Namespace) -> None:
    """A line of counters for each interval, until the process ends."""
    from datetime import datetime, timezone

    process = _Process(arguments.pid)
    counters = [field.name for field in process.layouts["stats"].fields if {"summary", "pools"} & {*field.view.split()}]
    columns = arguments.columns.split(",") if arguments.columns else ["time", "seconds", "rss", *counters]
    known = ["time", "seconds", "age", "rss", *process.stats()]
    for column in columns:
        if column not in known:
            raise HakmemError(f"there is no counter {column!r}; the nearest is {_nearest(column, known)!r}")
    begin = time.monotonic()
    with open(arguments.o, "w", encoding="utf-8") if arguments.o else contextlib.nullcontext(sys.stdout) as out:
        if arguments.fmt == "csv":
            print(*columns, sep=",", file=out, flush=True)
        for line in itertools.count(1):
            seconds = time.monotonic() - begin
            now = datetime.now(timezone.utc).astimezone().isoformat(timespec="milliseconds")
            row = {"time": now, "seconds": round(seconds, 3), "age": round(process.age, 6), "rss": process.rss}
            row.update(process.stats())
            chosen = {column: row.get(column) for column in columns}
            text = json.dumps(chosen) if arguments.fmt == "json" else ",".join(map(str, chosen.values()))
            print(text, file=out, flush=True)
            if line == arguments.n:
                break
            time.sleep(max(line * arguments.interval - (time.monotonic() - begin), 0))
            try:
                process.refresh()
            except _Ended:
                break


def _trim_other(arguments: argparse.Namespace) -> str:
    process = _Process(arguments.pid)
    given = process.ask("trim", timeout=arguments.timeout)
    before = process.rss
    process.refresh()
    after = _shown(process.rss, "bytes")
    return f"gave back {_shown(given, 'bytes')}; RSS {_shown(before, 'bytes')} before, {after} after"


def _set_other(arguments: argparse.Namespace) -> str:
    name, given, text = arguments.setting.partition("=")
    if not given:
        raise HakmemError(f"{arguments.setting}: write option=value")
    process = _Process(arguments.pid)
    options = {option.name: (option, value) for option, value in process.options()}
    if name not in options:
        near = _nearest(name, options)
        raise HakmemError(f"process {process.pid} has no option {name!r}; the nearest is {near!r}")
    option, old = options[name]
    if option.when != "any":
        raise HakmemError(f"{name} can only be set before the program starts: {option.env}={text}")
    if process.page.version == __version__ and name in config.options:
        number = config.option(name).parse(text)
    elif text in option.words:
        number = option.words.index(text)
    elif text.lstrip("-").isdigit():
        number = int(text)
    else:
        raise HakmemError(f"{name} = {text!r}: it is of hakmem {process.page.version}, write a number")
    process.ask("set", name, option.check(number), timeout=arguments.timeout)
    process.refresh()
    new = {option.name: value for option, value in process.options()}[name]
    unit = "" if option.words else f" {option.unit}"
    return f"{name}: {old}{unit} before, {new}{unit} now".replace("  ", " ")


# ---- why RSS is what it is ---------------------------------------------------------------------------------
class RssPart(NamedTuple):
    """A part of RSS: its resident bytes, what share of RSS they are, and what they hold."""

    part: str
    bytes: int
    share: float
    meaning: str


class ClassSlabs(NamedTuple):
    """The slabs of one class by the share of their blocks that is out: live, in a thread's stack, or in transit.

    under_5 to under_100 and full count slabs. free_bytes are resident and in no such block, trim_bytes those of them
    that trim gives back at once; for the rest blocks must be freed. few_blocks are those out of slabs under 25%.
    """

    block_size: int
    slabs: int
    under_5: int
    under_25: int
    under_50: int
    under_100: int
    full: int
    few_blocks: int
    free_bytes: int
    trim_bytes: int


class Advice(NamedTuple):
    """What would give memory back: the part of RSS that it is of, the bytes to expect, and what to do."""

    cause: str
    bytes: int
    do: str


class Why(NamedTuple):
    """Why a process has the RSS that it has, in bytes: parts add up to rss, exactly.

    rounding_bytes is a bound: the program asked for so much less than it holds at most, by what its blocks are rounded
    up to classes. advice begins with what would give back most. notes say what the figures cannot.
    """

    pid: int
    heading: str
    rss: int
    parts: list[RssPart]
    slabs: list[ClassSlabs]
    rounding_bytes: int
    advice: list[Advice]
    notes: list[str]

    def text(self, fmt: str = "simple") -> str:
        """All of it as text, in any format of tabulate; "json" has every row, with plain numbers."""
        if fmt == "json":
            lists = {"parts": self.parts, "slabs": self.slabs, "advice": self.advice}
            rows = {name: [row._asdict() for row in cast("list[Any]", of)] for name, of in lists.items()}
            return json.dumps({**self._asdict(), **rows}, indent=1)
        units = dict.fromkeys(("bytes", "free_bytes", "trim_bytes", "block_size"), "bytes")
        parts = [part._asdict() for part in self.parts if part.bytes]
        slabs = [row._asdict() for row in self.slabs[:10] if row.free_bytes]
        advice = [{"": index, **row._asdict()} for index, row in enumerate(self.advice[:3], 1)]
        found = [
            _Table(f"RSS is {_shown(self.rss, 'bytes')}", parts, {**units, "share": "ratio"}),
            _Table("slabs by the share of their blocks that is out", slabs, units),
            _Table("what would give back most", advice, units),
        ]
        return _in_one(self.heading, [table for table in found if table.rows], fmt, self.notes)

    def __str__(self) -> str:
        return self.text()

    def _repr_html_(self) -> str:
        return self.text("html")


_THEIRS = "not hakmem's: "
_PARTS = {  # what it is, and what to do about it
    "live blocks": ("what the program holds", "the program holds them: {holders}"),
    "cached in stacks": ("freed blocks in threads' stacks", "tls_{tier}=0 at the start, and trim; it costs time"),
    "in transit": ("freed blocks on their way to the thread that owns them", "{trim} takes them there"),
    "free in own slabs": (
        "free blocks of the one slab that a thread has of a class, as other threads have theirs",
        "fewer threads, or enable_tls=0 at the start: all share one heap; it costs time",
    ),
    "free in slabs": ("fragmentation: free blocks of slabs that other blocks hold", "{sparse}"),
    "free": ("free units that have not been given back yet", "{trim} now; a smaller {kept} from now on"),
    "kept whales": ("freed blocks above 1 MiB, kept whole", "{trim} now; a smaller bigcache, or 0, from now on"),
    "metadata": ("hakmem's own tables", "fewer threads, and no capture of sites, need fewer tables"),
    "huge pages": ("never used, resident as parts of huge pages", "huge_pages=0 at the start"),
    _THEIRS + "thread stacks": ("[stack], and what is behind a guard page", "fewer threads, or less on their stacks"),
    _THEIRS + "brk heap": ("another allocator's", "was hakmem preloaded from the start?"),
    _THEIRS + "anonymous mappings": ("mapped by the program or another allocator", "{python}only they can unmap it"),
    _THEIRS + "shared memory": ("shared mappings, memfd, tmpfs", "only the program can give it up"),
    _THEIRS + "code and files": ("mapped files; the system takes what is clean back itself", ""),
    "changed meanwhile": ("came or went (below 0) while this was read, or since the counters were published", ""),
}


class _Area(NamedTuple):
    """A mapping of a process, from /proc/PID/smaps."""

    start: int
    end: int
    mode: str
    path: str
    part: str  # that it is of, if it is not hakmem's
    rss: int = 0
    huge: int = 0


def _areas(pid: int) -> list[_Area]:
    areas = [_Area(0, 0, "", "", "")]
    with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="replace") as lines:
        for line in lines:
            name, *words = line.split(None, 5)
            if name == "Rss:":
                areas[-1] = areas[-1]._replace(rss=int(words[0]) << 10)
            elif name == "AnonHugePages:":
                areas[-1] = areas[-1]._replace(huge=int(words[0]) << 10)
            elif not name.endswith(":"):
                start, end = (int(bound, 16) for bound in name.split("-"))
                area = _Area(start, end, words[0], words[4].rstrip() if len(words) > 4 else "", "")
                areas.append(area._replace(part=_part_of(area, areas[-1])))
    return areas


def _part_of(area: _Area, before: _Area) -> str:
    """What a mapping is that is not hakmem's, by its path and by the mapping before it."""
    path = area.path
    if path.startswith("/memfd:hakmem-"):
        return "metadata"
    if path.startswith(("/memfd:", "/dev/", "/SYSV")):
        return _THEIRS + "shared memory"
    if path == "[heap]":
        return _THEIRS + "brk heap"
    adjoins, empty = area.start == before.end, not path or path.startswith("[anon")
    guard = adjoins and before.mode.startswith("---") and not before.path and before.end - before.start <= 1 << 20
    if path.startswith("[stack") or (empty and guard and area.mode.startswith("rw")):
        return _THEIRS + "thread stacks"
    if empty and not (adjoins and before.path.startswith("/")):  # else variables of a library that begin as zero
        return _THEIRS + "anonymous mappings"
    return _THEIRS + "code and files"


class _Piece(NamedTuple):
    """Memory of hakmem's: a segment, or where there is none a mapping for metadata."""

    start: int
    end: int
    segment: Any


def _pieces(mappings: list[Any], areas: list[_Area], segments: list[Any]) -> list[_Piece]:
    """All that is hakmem's, in order of address, and nothing twice."""
    pieces = [_Piece(row.address, row.address + row.total_size, row) for row in segments]
    for row in mappings:
        end = row.address + row.total_size
        if row.holds == "metadata":
            pieces.append(_Piece(row.address, end, None))
        elif row.holds == "library":
            pieces += [
                _Piece(*area[:2], None) for area in areas if row.address <= area.start < end and "w" in area.mode
            ]
    kept, end = [], 0
    for piece in sorted(pieces, key=operator.itemgetter(0)):
        if piece.start >= end:  # a segment that changed hands may stand there twice
            kept.append(piece)
            end = piece.end
    return kept


_WINDOW = 1 << 16  # OS pages whose state is read at a time
_PRESENT = bytes(range(128, 256))
_HUGE = 2 << 20


def _page_counter(pagemap: int) -> Callable[[int, int], tuple[int, int]]:
    """A function that counts the resident bytes between two addresses, and those that are perhaps only a shared zero.

    Of the 8 bytes that /proc/PID/pagemap has for an OS page the last has bit 7 if it is present, bit 0 if not shared.
    """

    @functools.lru_cache(maxsize=1)
    def window(index: int) -> bytes:
        return os.pread(pagemap, _WINDOW * 8, index * _WINDOW * 8)[7::8]

    def count(start: int, end: int) -> tuple[int, int]:
        first, last, present, doubtful = start // mmap.PAGESIZE, end // mmap.PAGESIZE, 0, 0
        while first < last:
            index, offset = divmod(first, _WINDOW)
            state = window(index)[offset : offset + last - first]
            present += len(state) - len(state.translate(None, _PRESENT))
            doubtful += state.count(0x80)
            first = (index + 1) * _WINDOW
        return present * mmap.PAGESIZE, doubtful * mmap.PAGESIZE

    return count


def _resident(areas: list[_Area], pieces: list[_Piece], count: Any) -> tuple[list[int], list[int], list[int]]:
    """The resident bytes of each piece, of each area what is in no piece, and the pieces where huge pages are."""
    found, rests, in_huge, at = [0] * len(pieces), [area.rss for area in areas], [], 0
    for index, area in enumerate(areas):
        while at < len(pieces) and pieces[at].end <= area.start:
            at += 1
        inside = []
        for place in range(at, len(pieces) if area.rss else at):
            piece = pieces[place]
            if piece.start >= area.end:
                break
            inside.append((place, *count(max(piece.start, area.start), min(piece.end, area.end))))
        # an OS page that was read and never written is present, but not in RSS: it is a zero that all share
        doubtful = sum(doubt for _, _, doubt in inside)
        excess = min(max(sum(present for _, present, _ in inside) - area.rss, 0), doubtful)
        for place, present, doubt in inside:
            resident = present - (excess * doubt // doubtful if doubtful else 0)
            found[place] += resident
            rests[index] -= resident
        in_huge += [place for place, *_ in inside if area.huge]
    return found, rests, in_huge


def _untouched(pid: int, pieces: list[_Piece], places: list[int]) -> dict[int, int]:
    """Bytes of OS pages with zeros only, by the place of the piece; above 1 GiB it looks at every so many 2 MiB."""
    windows = [(at, start) for at in places for start in range(pieces[at].start, pieces[at].end, _HUGE)]
    step, page = len(windows) // 512 + 1, bytes(mmap.PAGESIZE)
    found: dict[int, int] = collections.Counter()
    if windows:
        with open(f"/proc/{pid}/mem", "rb", buffering=0) as memory:
            for at, start in windows[::step]:
                data = os.pread(memory.fileno(), min(_HUGE, pieces[at].end - start), start)
                zeros = sum(data[i : i + len(page)] == page for i in range(0, len(data), len(page)))
                found[at] += zeros * len(page) * step
    return found


def _of_slabs(slabs: list[tuple[Any, int]]) -> tuple[dict[int, int], list[ClassSlabs], int]:
    """Of slabs with their resident bytes: those of blocks that are out, by class; a histogram; those of own slabs."""
    out: dict[int, int] = collections.Counter()
    rows: dict[int, list[int]] = {}
    slabs_of = collections.Counter((slab.block_size, slab.heap) for slab, _ in slabs)
    heaps_of = collections.Counter(size for size, _ in slabs_of)
    own = 0
    for slab, resident in slabs:
        used = min(resident, slab.used_blocks * slab.block_size)
        band = sum(slab.used_blocks >= share * slab.blocks for share in (0.05, 0.25, 0.5, 1))
        row = rows.setdefault(slab.block_size, [0] * 9)
        row[0] += 1
        row[1 + band] += 1
        row[6] += slab.used_blocks * (band < 2)
        trimmed = max(min(slab.free_page_bytes, resident - slab.used_page_bytes), 0)
        row[7] += resident - used
        row[8] += trimmed
        if slab.heap and slabs_of[slab.block_size, slab.heap] == 1 < heaps_of[slab.block_size]:
            own += resident - used - trimmed
        out[slab.block_size] += used
    return out, sorted((ClassSlabs(size, *row) for size, row in rows.items()), key=lambda row: -row.free_bytes), own


def _from_counters(stats: Any, ours: int, of: dict[str, int]) -> None:
    """The parts as the counters bound them, ours being resident: what nobody has touched, in slabs first, is not."""
    whales = min(stats.whale_bytes, of[_THEIRS + "anonymous mappings"])
    of[_THEIRS + "anonymous mappings"] -= whales
    bounds = {
        "free in slabs": stats.slab_free_bytes + stats.slab_tail_bytes,
        "live blocks": stats.live_bytes - stats.whale_bytes,
        "kept whales": stats.kept_whale_bytes,
        "free": stats.free_dirty_bytes,
        "cached in stacks": stats.cached_bytes,
        "in transit": stats.transit_bytes,
    }
    missing = sum(bounds.values()) - ours
    for part, size in bounds.items():
        of[part] = size - min(size, max(missing, 0))
        missing -= size - of[part]
    of["live blocks"] += whales
    of["changed meanwhile"] -= missing


def _advice(why: Why, source: _Source, sites: list[Any], classes: list[Any]) -> list[Advice]:
    """What can be done about each part, with the bytes to expect, most first."""
    there = isinstance(source, _Process)
    options = {option.name: value for option, value in source.options()}
    held = sorted((row for row in sites if row.live_blocks), key=lambda row: -row.live_bytes)
    report = f"`python -m hakmem report {why.pid} sites`" if there else "hakmem.report('sites')"
    ask = "" if options.get("sites") else "start it with `python -m hakmem run --sites`, then "
    cached: dict[str, int] = collections.Counter()
    smaller = dict(zip((row.size for row in classes), [0, *(row.size for row in classes)]))
    for row in classes:
        cached[row.tier] += row.cached_blocks * row.size
    trimmed = sum(row.trim_bytes for row in why.slabs)
    most = sorted(why.slabs, key=lambda row: row.trim_bytes - row.free_bytes)[:3]
    sparse = []
    for row in most[: 1 + sum((row.free_bytes - row.trim_bytes) * 10 > most[0].free_bytes for row in most[1:])]:
        fit = [site for site in held if smaller[row.block_size] < site.live_bytes / site.live_blocks <= row.block_size]
        names = ", ".join(site.place or str(site.site) for site in fit[:3])
        few = f"{row.few_blocks:,} blocks in {row.under_5 + row.under_25:,} of " * (row.few_blocks > 0)
        few += f"{row.slabs:,} slabs"
        sparse.append(f"{row.block_size:,} B ({few}{f', of {names}' * bool(names)})")
    exe = ""
    with contextlib.suppress(OSError):
        exe = os.path.basename(os.readlink(f"/proc/{why.pid}/exe"))
    words = {
        "trim": f"python -m hakmem trim {why.pid}" if there else "hakmem.trim()",
        "holders": ", ".join(f"{row.place or row.site} {_shown(row.live_bytes, 'bytes')}" for row in held[:3])
        or f"{ask}{report} names the call sites",
        "tier": max(cached, key=lambda tier: cached[tier]),
        "sparse": f"the blocks that stay hold slabs{' of ' * bool(sparse)}{'; '.join(sparse)}: "
        "a rule lifetime=long for their sites (HAKMEM_SITE_RULES) sets them apart",
        "kept": f"retain ({_shown(options.get('retain'), 'bytes')}) or purge_ms ({options.get('purge_ms')})",
        "python": "PYTHONMALLOC=malloc brings Python's objects to hakmem; " * exe.startswith("python"),
    }
    causes = [(part.part, part.bytes - trimmed * (part.part == "free in slabs")) for part in why.parts]
    advice = [Advice(name, size, _PARTS[name][1].format(**words)) for name, size in causes if size > 0]
    advice += [Advice("free in slabs", trimmed, f"{words['trim']} gives back OS pages without a block")] * (trimmed > 0)
    return sorted((row for row in advice if row.do), key=lambda row: -row.bytes)


def why(pid: Optional[int] = None) -> Why:
    """Why the resident memory (RSS) of a process is what it is: where each byte is, and what would give most back.

    pid: of another process that lets itself be seen (HAKMEM_STATS_PAGE=1, `python -m hakmem run`); default: this one.
    RSS is that of /proc/PID/smaps, and /proc/PID/pagemap says what of hakmem's memory is resident. A process that
    sleeps, and has no thread that answers (stats_page=2), is judged by its last counters; then notes say so.

    HakmemError, in one line, if it cannot be seen, or is not this user's.
    """
    source = _source(None if pid == os.getpid() else pid)
    pid, notes, answered = source.pid, [], True
    segments: list[Any] = []
    sites: list[Any] = []
    if "mapping" not in source.layouts:
        raise HakmemError(f"{source.heading}: it does not say where its memory is")
    try:
        try:
            seen = source.renew() if isinstance(source, _Process) else (source.rows("segment"), source.rows("site"))
            segments, sites = seen
        except _Silent as silent:
            notes.append(f"Counters, as they were published last, bound the parts of what is resident: {silent}.")
            answered = False
        areas, mappings = _areas(pid), source.rows("mapping")
        pieces = _pieces(mappings, areas, segments)
        try:
            with open(f"/proc/{pid}/pagemap", "rb", buffering=0) as pagemap:
                found, rests, in_huge = _resident(areas, pieces, _page_counter(pagemap.fileno()))
        except OSError as error:
            notes.append(f"Counters bound the parts of what is resident, as the system does not show it: {error}.")
            pieces, answered = _pieces(mappings, areas, []), False
            found, rests, in_huge = _resident(areas, pieces, lambda start, end: (end - start, end - start))
    except (FileNotFoundError, ProcessLookupError):
        raise HakmemError(f"process {pid} has just ended") from None
    of, ours, slabs, huge = dict.fromkeys(_PARTS, 0), 0, [], sum(area.huge for area in areas)
    ranges = [row for row in mappings if row.holds == "blocks"]
    for area, rest in zip(areas, rests):
        if any(row.address <= area.start < row.address + row.total_size for row in ranges):
            ours += rest
        elif rest:
            of[area.part if rest > 0 else "changed meanwhile"] += rest
    untouched: dict[int, int] = {}
    try:
        whole = [at for at in in_huge if pieces[at].segment and pieces[at].end - pieces[at].start == found[at]]
        untouched = _untouched(pid, pieces, whole)
    except OSError as error:
        notes.append(f"{_shown(huge, 'bytes')} are huge pages; what of them was never used is not known: {error}.")
    for at, (_start, _end, row) in enumerate(pieces):
        if row is None:
            of["metadata"] += found[at]
            continue
        clean = found[at] - row.dirty_bytes if row.state in ("free", "at hand") else untouched.get(at, 0)
        never = max(min(clean, found[at], huge), 0)
        huge -= never
        of["huge pages"] += never
        if row.state in ("slab", "orphan"):
            slabs.append((row, found[at] - never))
        else:
            of[{"free": "free", "at hand": "free", "kept whale": "kept whales"}.get(row.state, "live blocks")] += (
                found[at] - never
            )
    out, histogram, own = _of_slabs(slabs)
    stats, classes = source.rows("stats")[0], source.rows("class")
    if answered:
        of["changed meanwhile"] += ours
        of["free in own slabs"] = own
        of["free in slabs"] = sum(row.free_bytes for row in histogram) - own
        of["live blocks"] += sum(out.values())
        for row in classes:
            every = row.live_blocks + row.cached_blocks + row.transit_blocks or 1
            for name, blocks in (("cached in stacks", row.cached_blocks), ("in transit", row.transit_blocks)):
                of[name] += out.get(row.size, 0) * blocks // every
                of["live blocks"] -= out.get(row.size, 0) * blocks // every
    else:
        _from_counters(stats, ours, of)
    rss = sum(area.rss for area in areas)
    parts = [RssPart(name, size, size / rss if rss else 0.0, _PARTS[name][0]) for name, size in of.items()]
    rounding = sum(
        row.live_blocks * (row.size - less) for less, row in zip([0, *(row.size for row in classes)], classes)
    )
    rounding += stats.large_blocks * (64 << 10) + stats.whale_blocks * mmap.PAGESIZE
    notes.append(f"Of the live blocks, at most {_shown(rounding, 'bytes')} come of rounding up to classes: a bound.")
    reasons = Why(pid, source.heading, rss, parts, histogram, rounding, [], notes)
    return reasons._replace(advice=_advice(reasons, source, sites, classes))


# ---- in the REPL: a block of code, two moments, a picture ----------------------------------------------------
def _memory() -> tuple[int, int]:
    """Resident bytes of this process, and the most that the kernel remembers; 0 where there is no such figure."""
    status = _status(os.getpid())
    return _kib(status.get("VmRSS", "")), _kib(status.get("VmHWM", ""))


class _Counters:
    """The counters of this process, read into memory that was there before, so that they do not count themselves."""

    def __init__(self) -> None:
        self.stats = _STATS.structure()
        self.tiers = (_TIER.structure * _tier_table(None, 0, 0))()
        self.classes = (_CLASS.structure * _class_table(None, 0, 0))()

    def read(self) -> None:
        _stats_snapshot(self.stats, ctypes.sizeof(self.stats))
        _tier_table(self.tiers, ctypes.sizeof(_TIER.structure), len(self.tiers))
        _class_table(self.classes, ctypes.sizeof(_CLASS.structure), len(self.classes))


_TRACKED = "allocs", "frees", "misses", "alloc_bytes", "freed_bytes", "live_blocks", "live_bytes"
_tracks: list[Track] = []  # those that count now
_Function = TypeVar("_Function", bound=Callable[..., Any])


class Track:
    """What a block of code allocates, and what it does to the process's memory; hakmem.track() makes one.

        with hakmem.track() as t:
            work()
        print(t)              # or t.report(fmt), t.stats["allocs"]

    It counts the whole process: what other threads do meanwhile, too. Blocks may be nested, each with a Track of its
    own. Before the end of the block it tells what has been until now. As a decorator, @t, it tells of the call that
    ended last. Where hakmem serves the whole process (`run`), blocks that Python itself takes are among the figures;
    else they are those of this module's callers alone.
    """

    def __init__(self, reset_peak: bool = False) -> None:
        self._reset_peak, self._running = reset_peak, False
        self._floor = self._peak = self._bound = 0
        self._figures: dict[str, Any] = {}

    def _see(self, high: int, *, reset: bool = False) -> None:
        """The kernel's mark is of the block if it is above where it stood when the block began, or was reset in it."""
        if high > self._floor:
            self._peak = max(self._peak, high)
        else:
            self._bound = max(self._bound, self._floor)
        self._floor *= not reset

    def __enter__(self) -> Track:
        if self._running:
            raise RuntimeError("this hakmem.Track is counting; nested blocks need one each")
        self._rss, self._floor = _memory()
        self._peak = self._bound = 0
        if self._reset_peak:
            Path("/proc/self/clear_refs").write_text("5", encoding="ascii")
            for other in _tracks:
                other._see(self._floor, reset=True)  # noqa: SLF001
            self._floor = 0
        _tracks.append(self)
        self._running = True
        self._before, self._after = _Counters(), _Counters()
        self._faults, self._began = resource.getrusage(resource.RUSAGE_SELF), time.monotonic()
        self._before.read()
        return self

    def __exit__(self, *_exception: object) -> None:
        try:
            self._measure()
        finally:
            self._running = False
            _tracks.remove(self)

    def __call__(self, function: _Function) -> _Function:
        @functools.wraps(function)
        def tracked(*arguments: Any, **keywords: Any) -> Any:
            call = Track(self._reset_peak)
            try:
                with call:
                    return function(*arguments, **keywords)
            finally:
                vars(self).update(vars(call))

        return cast("_Function", tracked)

    def _measure(self) -> None:
        self._after.read()
        seconds, faults = time.monotonic() - self._began, resource.getrusage(resource.RUSAGE_SELF)
        rss, high = _memory()
        self._see(high)
        peak = max(self._peak, self._rss, rss)
        self._figures = {
            "seconds": round(seconds, 6),
            "minor_faults": faults.ru_minflt - self._faults.ru_minflt,
            "major_faults": faults.ru_majflt - self._faults.ru_majflt,
            "rss_before": self._rss,
            "rss_after": rss,
            "rss_peak": peak,
            "rss_peak_bound": max(peak, self._bound),
        }

    @staticmethod
    def _changed(layout: _Layout, labels: Sequence[str], before: Any, after: Any) -> list[dict[str, Any]]:
        rows = []
        for was, now in zip(before, after):
            old, new = (_with_bytes(layout.read(row)._asdict()) for row in (was, now))
            change = {name: new[name] - old[name] for name in _TRACKED}
            if any(change.values()):
                rows.append({**{label: new[label] for label in labels}, **change})
        return rows

    @property
    def stats(self) -> dict[str, Any]:
        """The figures of the block; RuntimeError before it has begun.

        seconds. minor_faults, major_faults: pages that the kernel had to supply, without and with reading a file.
        rss_before, rss_after, rss_peak: resident bytes of the process; the peak cannot have been above rss_peak_bound,
        which is the same unless the process had been that large before (the kernel's mark, VmHWM, tells no more; it is
        exact to some hundred KiB). Each counter of memory_stats() but the peaks, as the change in the block: allocs,
        frees, alloc_bytes, live_blocks, ... tiers, classes: lists of those of which something changed, as dicts: blocks
        and bytes (rounded up to the class) handed out and taken back, misses of the thread caches, and the net change
        of what callers hold.
        """
        if self._running:
            self._measure()
        if not self._figures:
            raise RuntimeError("this hakmem.Track has counted nothing yet: with hakmem.track() as t: ...")
        before, after = (_STATS.read(each.stats)._asdict() for each in (self._before, self._after))
        return {
            **self._figures,
            **{name: n - before[name] for name, n in after.items() if not name.startswith("peak_")},
            "tiers": self._changed(_TIER, ("name",), self._before.tiers, self._after.tiers),
            "classes": self._changed(_CLASS, ("tier", "size"), self._before.classes, self._after.classes),
        }

    def report(self, fmt: str = "simple") -> str:
        """The figures, then those of each tier and class that was used; fmt as for hakmem.report."""
        stats = self.stats
        bound = _shown(stats["rss_peak_bound"], "bytes")
        known = stats["rss_peak"] == stats["rss_peak_bound"]
        meanings = {
            "seconds": ("s", "time that passed"),
            "allocs": ("blocks", "handed out"),
            "frees": ("blocks", "taken back"),
            "alloc_bytes": ("bytes", "of those handed out, rounded up to their class"),
            "freed_bytes": ("bytes", "of those taken back"),
            "live_blocks": ("blocks", "more that callers hold than before"),
            "live_bytes": ("bytes", "of these"),
            "minor_faults": ("faults", "pages that the process touched and the kernel had to supply"),
            "major_faults": ("faults", "of these, those read from a file or from swap"),
            "rss_before": ("bytes", "resident memory of the process at the start"),
            "rss_after": ("bytes", "and at the end"),
            "rss_peak": ("bytes", "the most in between" if known else f"at least; {bound} at most, as before"),
        }
        rows = [{"counter": name, "value": stats[name], "unit": u, "meaning": m} for name, (u, m) in meanings.items()]
        units = {name: "bytes" if name.endswith("bytes") else "blocks" for name in _TRACKED}
        tables = [_Table(kind, stats[kind], {**units, "size": "bytes"}) for kind in ("tiers", "classes")]
        state = "until now" if self._running else "in all"
        heading = f"hakmem {__version__}, process {os.getpid()}, all threads, a block of code {state}"
        return _in_one(heading, [_Table("block", rows, {}), *tables], fmt)

    def __repr__(self) -> str:
        return self.report() if self._running or self._figures else "<hakmem.Track, nothing counted yet>"

    def _repr_html_(self) -> Optional[str]:
        return self.report("html") if self._running or self._figures else None


def track(reset_peak: bool = False) -> Track:
    """What a block of code allocates: with hakmem.track() as t: ...; print(t).

    reset_peak=True has the kernel begin its mark of the most resident memory (VmHWM, and getrusage's ru_maxrss) anew,
    for whoever reads it, so that the block's own peak is known in any case; OSError where that is forbidden.
    """
    return Track(reset_peak)


class SnapshotDiff(NamedTuple):
    """A row of Snapshot.compare_to(), as tracemalloc's StatisticDiff: sizes in bytes, counts of blocks."""

    name: str
    size: int
    size_diff: int
    count: int  # type: ignore[assignment]
    count_diff: int


class Comparison(list[SnapshotDiff]):
    """What Snapshot.compare_to() finds: a list of SnapshotDiff, what grew most first, that prints as a table."""

    def __init__(self, heading: str, by: str, rows: Iterable[SnapshotDiff]) -> None:
        super().__init__(rows)
        self.heading, self.by = heading, by

    def report(self, fmt: str = "simple") -> str:
        """The rows in which something changed; fmt as for hakmem.report."""
        units = {"size": "bytes", "size_diff": "bytes", "count": "blocks", "count_diff": "blocks"}
        shown = [*units][: 4 if any(row.count or row.count_diff for row in self) else 2]  # pools have no counts
        changed = [row for row in self if row.size_diff or row.count_diff]
        rows = [{self.by: row.name, **{name: getattr(row, name) for name in shown}} for row in changed]
        return _in_one(self.heading, [_Table("changes", rows, units)], fmt)

    def __repr__(self) -> str:
        return self.report()

    def _repr_html_(self) -> str:
        return self.report("html")


class Snapshot:
    """All records of a process at one time; hakmem.snapshot() takes one.

    time (seconds since 1970), pid, command, version and variant (of its hakmem), rss (resident bytes), options,
    pools (where each committed byte is), and records: rows as dicts by kind: "stats", "class", "tier", "heap", "lock",
    ..., "site", and "pieces": slabs, runs, whales and free stretches added up by state, tier and block size. "site" and
    "pieces" (and "segment", each of these by itself, if that was asked for) are missing where the process was asleep.
    """

    time: float
    pid: int
    command: str
    version: str
    variant: str
    rss: int
    options: dict[str, Any]
    pools: dict[str, int]
    records: dict[str, list[dict[str, Any]]]

    def __init__(self, values: Mapping[str, Any]) -> None:
        vars(self).update({name: values[name] for name in Snapshot.__annotations__})

    def _sizes(self, by: str) -> dict[str, tuple[int, int]]:
        """Bytes and blocks by name."""
        records = self.records
        if by == "pool":
            found = [(name, size, 0) for name, size in self.pools.items()]
        elif by == "tier":
            found = [(row["name"], row["live_bytes"], row["live_blocks"]) for row in records["tier"]]
        elif by == "class":
            rows = map(_with_bytes, records["class"])
            named = [{"name": f"{row['tier']} {_shown(row['size'], 'bytes')}", **row} for row in rows]
            named += [row for row in records["tier"] if not row["classes"]]  # whales
            found = [(row["name"], row["live_bytes"], row["live_blocks"]) for row in named]
        elif by != "site":
            raise ValueError(f"by={by!r}: there are class, tier, pool and site")
        elif not self.options.get("sites"):
            raise HakmemError(f"process {self.pid} did not capture sites: start it with HAKMEM_SITES=1")
        elif "site" not in records:
            raise HakmemError(f"the snapshot of process {self.pid} has no sites: it was asleep (stats_page=2 wakes it)")
        else:
            names = [f"{row['place'] or row['site']} {row['function']}".rstrip() for row in records["site"]]
            found = [(name, row["live_bytes"], row["live_blocks"]) for name, row in zip(names, records["site"])]
        sizes: dict[str, tuple[int, int]] = {}
        for name, size, count in found:  # sites may share a name
            before = sizes.get(name, (0, 0))
            sizes[name] = before[0] + operator.index(size), before[1] + operator.index(count)
        return sizes

    def compare_to(self, older: Snapshot, by: str = "class") -> Comparison:
        """What has changed since an older snapshot, in the manner of tracemalloc, but what grew most comes first.

        by: "class" or "tier" (live blocks, and their bytes rounded up to the class), "pool" (where each committed byte
        is; without counts) or "site" (live blocks by call site, and the bytes that were asked for). Print it, or take
        its rows: name, size, size_diff in bytes, count, count_diff in blocks.

        HakmemError if sites were not captured in both, ValueError for another word.
        """
        now, then, none = self._sizes(by), older._sizes(by), (0, 0)
        rows = []
        for name in {**now, **then}:
            (size, count), (old_size, old_count) = now.get(name, none), then.get(name, none)
            rows.append(SnapshotDiff(name, size, size - old_size, count, count - old_count))
        rows.sort(key=lambda row: (-row.size_diff, -row.count_diff, -row.size, row.name))
        first, last = _shown(older.rss, "bytes"), _shown(self.rss, "bytes")
        ids = f"{older.pid} and {self.pid}" if older.pid != self.pid else f"{self.pid} ({self.command})"
        heading = f"hakmem, process {ids}, {self.time - older.time:.1f} s between: RSS from {first} to {last}, by {by}"
        return Comparison(heading, by, rows)

    def _dumped(self) -> str:
        return json.dumps({"hakmem_snapshot": _SNAPSHOT_FORMAT, **vars(self)}, indent=1)

    def dump(self, file: Union[str, os.PathLike[str]]) -> None:
        """Write it to a file of that name, as JSON."""
        Path(file).write_text(self._dumped() + "\n", encoding="utf-8")

    @staticmethod
    def load(file: Union[str, os.PathLike[str]]) -> Snapshot:
        """A snapshot that dump() has written. HakmemError for anything else, OSError if it cannot be read."""
        what = "no snapshot of hakmem"
        with contextlib.suppress(ValueError, TypeError, LookupError, AttributeError, RecursionError):
            values = json.loads(Path(file).read_text(encoding="utf-8"))
            if values["hakmem_snapshot"] == _SNAPSHOT_FORMAT:
                made = Snapshot(values)
                for by in ("class", "tier", "pool"):  # what does not add up is none
                    made._sizes(by)
                if made.time + made.pid + made.rss > 0:
                    return made
            else:
                form, known = values["hakmem_snapshot"], _SNAPSHOT_FORMAT
                what = f"a snapshot of format {form!r}; hakmem {__version__} knows format {known}"
        raise HakmemError(f"{os.fspath(file)} is {what}")

    def __repr__(self) -> str:
        when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(self.time))
        return f"<hakmem.Snapshot of process {self.pid} ({self.command}) at {when}, RSS {_shown(self.rss, 'bytes')}>"


_SNAPSHOT_FORMAT = 1


def _segments_of(segments: Iterable[Any]) -> list[dict[str, Any]]:
    """Segments added up by state, tier and block size."""
    kinds: dict[Any, dict[str, Any]] = {}
    for one in sorted(segments, key=lambda one: (one.state, one.block_size)):
        key = {name: getattr(one, name) for name in ("state", "tier", "block_size")}
        kind = kinds.setdefault(tuple(key.values()), {**key, "segments": 0})
        kind["segments"] += 1
        for name in ("total_size", "blocks", "used_blocks", "dirty_bytes"):
            kind[name] = kind.get(name, 0) + getattr(one, name)
    return list(kinds.values())


def snapshot(pid: Optional[int] = None, segments: bool = False) -> Snapshot:
    """All records of this process, or of another that lets itself be seen, to be kept and compared.

    segments=True keeps each slab, run, whale and free stretch, with its address, instead of sums only. A process that
    is asleep, and has no thread for it (HAKMEM_STATS_PAGE=2), tells neither these nor its sites, after five seconds.
    HakmemError as for hakmem.report.
    """
    source = _source(pid)
    about, status = source.about, _status(source.pid)
    at = time.time() - about.get("age", 0)
    kinds = [kind for kind in _Here.tables if kind in source.layouts and kind not in ("segment", "site")]
    records = {kind: [row._asdict() for row in source.rows(kind)] for kind in kinds}
    with contextlib.suppress(_Silent):
        pieces = source.rows("segment")
        records["pieces"] = _segments_of(pieces)
        records["site"] = [row._asdict() for row in source.rows("site")]
        if segments:
            records["segment"] = [row._asdict() for row in pieces]
    terms = [field.name for field in source.layouts["stats"].fields if "committed" in field.view.split()]
    pools = {name: records["stats"][0][name] for name in terms}
    values = {"time": at, "pid": source.pid, "command": status["Name"], "rss": _kib(status.get("VmRSS", ""))}
    options = {option.name: str(value) if option.words else value for option, value in source.options()}
    version = about.get("version", __version__)
    values.update(version=version, variant=about["variant"], options=options, pools=pools, records=records)
    return Snapshot(values)


class _Mark(NamedTuple):
    """What stands for a unit of 64 KiB in a picture."""

    sign: str
    plain: str  # where the encoding does not have it
    color: tuple[int, int, int]
    meaning: str


_SIGNS = [
    _Mark(" ", " ", (255, 255, 255), "not hakmem's, or changing hands while it was looked at"),
    _Mark("·", ".", (236, 239, 241), "free, no memory behind it: never used, or given back"),
    _Mark("-", "-", (176, 190, 197), "free, was used, and is not or not all given back yet"),
    _Mark("h", "h", (128, 222, 234), "free, at hand of a thread"),
    _Mark("#", "#", (57, 73, 171), "block above 1 MiB"),
    _Mark("k", "k", (206, 147, 216), "freed block above 1 MiB, kept for the next"),
    _Mark("o", "o", (255, 112, 67), "slab of a thread that has ended"),
    *[
        _Mark(sign, str(n + 1), (255 - 28 * n, 236 - 9 * n, 130 - 8 * n), f"slab, up to {n + 1}/8 of its blocks used")
        for n, sign in enumerate("▁▂▃▄▅▆▇█")
    ],
]
_STATES = {"free": 1, "at hand": 3, "run": 4, "whale": 4, "kept whale": 5, "orphan": 6, "slab": 7}


class Heatmap:
    """A picture of the superslabs of a process, a sign for each unit of 64 KiB; hakmem.heatmap() makes one.

    print() it; text() for another size; to_png() for a file. superslabs: a dict from the address of each (4 MiB) to
    its units, 64 small numbers that say which of the marks they are.
    """

    def __init__(self, heading: str, unit: int, segments: Iterable[Any]) -> None:
        self.heading, self.unit, self._span = heading, unit, unit * 64  # a superslab: 64 units, by its definition
        self.superslabs: dict[int, bytearray] = {}
        self.used: collections.Counter[int] = collections.Counter()  # bytes of blocks, by superslab
        self._bytes = [0] * len(_SIGNS)
        self._whales = [0, 0]
        pieces = sorted(segments)
        ours = [piece.address // self._span for piece in pieces if "whale" not in piece.state] or [0]
        for piece in pieces:
            if not ours[0] <= piece.address // self._span <= ours[-1]:
                self._whales = [self._whales[0] + 1, self._whales[1] + piece.total_size]  # a mapping of its own
                continue
            mark = _STATES.get(piece.state, 0) + (piece.state == "free" and piece.dirty_bytes > 0)
            if piece.state == "slab":
                mark += max(8 * piece.used_blocks - 1, 0) // max(piece.blocks, 1)
            self._bytes[mark] += piece.total_size
            share = piece.used_blocks * piece.block_size // max(piece.total_size // unit, 1)
            for at in range(piece.address, piece.address + piece.total_size, unit):
                base = at - at % self._span
                self.superslabs.setdefault(base, bytearray(64))[at % self._span // unit] = mark
                self.used[base] += share

    def _lines(self, across: int, down: int) -> tuple[int, list[tuple[list[int], list[int]]]]:
        """How many units make a sign, and each line's superslabs and signs, if it is to be so wide and so high."""
        bases, per = sorted(self.superslabs), 1
        while across * per // 64 * down < len(bases) or across * per < 64:
            per *= 2
        together, lines = max(-(-len(bases) // down), 1), []
        for line in (bases[first : first + together] for first in range(0, len(bases), together)):
            units = b"".join(self.superslabs[base] for base in line)
            lines.append((line, [_commonest(units[at : at + per]) for at in range(0, len(units), per)]))
        return per, lines

    def _legend(self) -> list[tuple[_Mark, int]]:
        """The marks that there are, with their bytes."""
        return [(mark, size) for mark, size in zip(_SIGNS, self._bytes) if size]

    def _outside(self) -> str:
        count, size = self._whales
        return f"{count:,} whales, {_shown(size, 'bytes')}: mappings of their own, not drawn" if count else ""

    def text(self, width: Optional[int] = None, height: Optional[int] = None, plain: Optional[bool] = None) -> str:
        """The picture in so many columns and lines (and a legend); by default as many as the terminal has.

        A line is a superslab, at so many MiB from the first, with the share that blocks have of it, live, cached or in
        transit; of a large process it is several, and a sign may stand for several units: for what most of them are.
        plain: only signs of ASCII; by default where the output's encoding has no others.
        """
        import shutil

        size = shutil.get_terminal_size()
        if plain is None:
            encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
            plain = any("?" in mark.sign.encode(encoding, "replace").decode(encoding) for mark in _SIGNS)
        out = [self.heading]
        per, lines = self._lines(max((width or size.columns) - 13, 1), max(height or size.lines - 12, 1))
        for line, marks in lines:
            if len(out) == 1:
                each, first = f"a sign {_shown(per * self.unit, 'bytes')}", line[0]
                out += [f"a line is {len(line) * self._span >> 20} MiB, by MiB from {first:#x}, {each}", ""]
            signs = "".join(_SIGNS[mark].plain if plain else _SIGNS[mark].sign for mark in marks)
            share = sum(self.used[base] for base in line) / (len(line) * self._span)
            out.append(f"{line[0] - first >> 20:>7,} {signs} {share:4.0%}")
        out.append("")
        for mark, size_of in self._legend():
            out.append(f"{mark.plain if plain else mark.sign} {_shown(size_of, 'bytes'):>9}  {mark.meaning}")
        return "\n".join([*out, self._outside()]).rstrip()

    def __repr__(self) -> str:
        return self.text()

    def _repr_png_(self) -> bytes:
        lines = [marks for _line, marks in self._lines(1024, 256)[1]] or [[0]]
        across = len(lines[0])
        cell, rows = max(512 // across, 1), []  # a white line between two
        for marks in lines:
            padded = marks + [0] * (across - len(marks))
            row = b"".join(bytes([mark] * (cell - 1 or 1) + [0] * (cell > 1)) for mark in padded)
            rows += [b"\0" + row] * (cell - 1 or 1) + [bytes(len(row) + 1)] * (cell > 1)
        parts = {
            b"IHDR": struct.pack(">IIBBBBB", len(rows[0]) - 1, len(rows), 8, 3, 0, 0, 0),  # 8 bits, of a palette
            b"PLTE": bytes(itertools.chain.from_iterable(mark.color for mark in _SIGNS)),
            b"IDAT": zlib.compress(b"".join(rows)),
            b"IEND": b"",
        }
        chunks = [
            struct.pack(">I", len(data)) + name + data + struct.pack(">I", zlib.crc32(name + data))
            for name, data in parts.items()
        ]
        return b"\x89PNG\r\n\x1a\n" + b"".join(chunks)

    def to_png(self, file: Union[str, os.PathLike[str]]) -> None:
        """Write the picture to a PNG file of that name: 8 by 8 pixels for each unit, less where there are many."""
        Path(file).write_bytes(self._repr_png_())

    def _repr_html_(self) -> str:
        import base64
        import html

        image = base64.b64encode(self._repr_png_()).decode()
        rows = [
            f'<tr><td style="background:rgb{mark.color}">&emsp;</td><td>{_shown(size, "bytes")}</td>'
            f'<td style="text-align:left">{html.escape(mark.meaning)}</td></tr>'
            for mark, size in self._legend()
        ]
        picture = f'<p>{html.escape(self.heading)}</p><img src="data:image/png;base64,{image}">'
        return f"{picture}<table>{''.join(rows)}</table><p>{html.escape(self._outside())}</p>"


def _commonest(units: bytes) -> int:
    """The mark for several units: what most of them are; for slabs as full as these are on average."""
    kind = collections.Counter(min(unit, _STATES["slab"]) for unit in units).most_common(1)[0][0]
    slabs = [unit for unit in units if unit >= _STATES["slab"]]
    return kind if kind < _STATES["slab"] else round(sum(slabs) / len(slabs))


def heatmap(pid: Optional[int] = None) -> Heatmap:
    """A picture of this process's memory, or another's that lets itself be seen: what fills each superslab, how far.

    HakmemError as for hakmem.report, and for a process that is asleep and has no thread for it (HAKMEM_STATS_PAGE=2).
    """
    source = _source(pid)
    try:
        return Heatmap(source.heading, min(row.slab_bytes for row in source.rows("class")), source.rows("segment"))
    except _Silent as silent:
        raise HakmemError(f"process {pid}: {silent}") from None


# ---- Prometheus --------------------------------------------------------------------------------------------
# what is exported of each kind of record: the views that tell which fields (none: all), and those that are labels
_EXPORTED: dict[str, tuple[set[str], dict[str, str]]] = {
    "stats": (set(), {}),
    "tier": (set(), {"tier": "name"}),
    "class": ({"classes", "refills"}, {"tier": "tier", "class": "size"}),
    "lock": (set(), {"lock": "name"}),
    "shard": (set(), {"shard": "shard"}),
}


class _Sample(NamedTuple):
    name: str
    help: str
    rises: bool
    labels: dict[str, str]
    value: float


def _samples(source: _Source) -> Iterator[_Sample]:
    """The figures of a process, under the names that Prometheus wants."""
    about, status = source.about, _status(source.pid)
    process = {"pid": str(source.pid), "command": status["Name"]}
    known = {**process, "version": about.get("version", __version__), "variant": about["variant"]}
    yield _Sample("hakmem_info", "always 1: the version of hakmem", False, known, 1)
    yield _Sample("hakmem_age_seconds", "time since the figures were true", False, process, about.get("age", 0))
    rss = "resident memory of the whole process, whoever allocated it"
    yield _Sample("hakmem_process_resident_memory_bytes", rss, False, process, _kib(status.get("VmRSS", "")))
    for kind, (wanted, named) in _EXPORTED.items():
        ours = {field.name: field for field in _LAYOUTS[kind].fields}  # other versions': what both know, as we know it
        for row in source.rows(kind):
            if kind == "class" and not row.allocs:
                continue
            own = {**process, **{label: str(getattr(row, field)) for label, field in named.items()}}
            for theirs, value in zip(source.layouts[kind].fields, row):
                field = ours.get(theirs.name)
                if field is None or not field.unit or field.name in named.values() or not isinstance(value, int):
                    continue
                views = set(field.view.split())
                if wanted and not wanted & views:
                    continue
                name, labels, text = f"hakmem_{kind}_{field.name}" if named else f"hakmem_{field.name}", own, field.help
                if field.unit == "bytes" and not name.endswith("_bytes"):
                    name += "_bytes"
                if "committed" in views:
                    labels = {**own, "part": field.name.removesuffix("_bytes")}
                    name, text = "hakmem_part_bytes", "what committed bytes are: all parts are hakmem_committed_bytes"
                yield _Sample(name, text, "rises" in views, labels, value)


class _Collector:
    """What prometheus_client registers: figures of processes, read anew at each scrape."""

    def __init__(self, pids: Callable[[], Iterable[int]]) -> None:
        self.pids, self.metrics = pids, _need("prometheus_client.core", "the export to Prometheus")

    def collect(self) -> Iterator[Any]:
        """The families of metrics; a process that cannot be read, or ends meanwhile, has none but hakmem_up 0."""
        families: dict[str, Any] = {}
        for pid in self.pids():
            try:  # a process that works is never behind by more than some ms; one that sleeps need not be waited for
                samples = list(_samples(_source(None if pid == os.getpid() else pid, fresh=0.005)))
            except Exception:  # noqa: BLE001 (what one process shows of itself must not cost the others theirs)
                samples = []
            up = "1 if the figures of the process could be read"
            for sample in [_Sample("hakmem_up", up, False, {"pid": str(pid)}, bool(samples)), *samples]:
                if sample.name not in families:
                    make = self.metrics.CounterMetricFamily if sample.rises else self.metrics.GaugeMetricFamily
                    families[sample.name] = make(sample.name, sample.help, labels=list(sample.labels))
                families[sample.name].add_metric(list(sample.labels.values()), sample.value)
        yield from families.values()


def prometheus_collector(pids: Optional[Iterable[int]] = None) -> Any:
    """A collector for the package prometheus_client: REGISTRY.register(hakmem.prometheus_collector()).

    It exports, at each scrape, this process, or those of pids, which let themselves be seen (HAKMEM_STATS_PAGE=1):
    every counter as hakmem_<name>, with _total if it never falls, its unit, and the labels pid, command, and tier,
    class, lock, shard or part; sizes in bytes. hakmem_up is 0 for a process that cannot be read. ImportError without
    the package.
    """
    chosen = None if pids is None else list(map(operator.index, pids))
    return _Collector(lambda: [os.getpid()] if chosen is None else chosen)


def _exporter(options: argparse.Namespace) -> None:
    """Serve the figures of all processes that may be seen until a signal says that it is enough."""
    if not 0 <= options.port < 1 << 16:
        raise ValueError(f"--port {options.port}: there are 0 to 65535")
    client = _need("prometheus_client", "the exporter")
    registry = client.CollectorRegistry(auto_describe=False)
    registry.register(_Collector(_shown_pids))
    signals = {signal.SIGTERM, signal.SIGINT}
    masked = signal.pthread_sigmask(signal.SIG_BLOCK, signals)  # before there are other threads that could take them
    try:
        server, thread = client.start_http_server(options.port, options.host, registry)
        host = f"[{options.host}]" if ":" in options.host else options.host
        print(f"hakmem exporter at http://{host}:{server.server_port}/metrics", flush=True)
        signal.sigwait(signals)
        server.shutdown()
        server.server_close()
        thread.join()
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, masked)


# ---- the command line --------------------------------------------------------------------------------------
def _library_for_preload(variant: Optional[str]) -> str:
    if variant is None or variant == _mode.variant:
        path, overrides = _mode.path, _mapped_path(_lib.malloc) == _mode.path
    else:
        build = _build_module()
        overrides = "-DHAK_NO_OVERRIDE=1" not in build.flags(variant)
        path = str(build.library(variant)) if overrides else ""
    if not overrides:
        raise ValueError(f"the variant {variant or _mode.variant} leaves malloc alone; it is for tests that link it")
    if set(path) & set(" :"):
        advice = "copy it to a path without spaces and colons, which end a name there, and set HAKMEM_LIBRARY to that"
        raise ValueError(f"LD_PRELOAD cannot name {path!r}: {advice}")
    return path


def _preload(environment: dict[str, str], library: str) -> None:
    """Put the library before what is preloaded already."""
    others = environment.get("LD_PRELOAD", "").replace(":", " ").split()
    environment["LD_PRELOAD"] = ":".join(dict.fromkeys([library, *others]))


def _listed(loader: str, binary: str, library: str, environment: Mapping[str, str]) -> tuple[str, str]:
    """What the loader would map for a program, which is not started; and why the library is not among it, if so."""
    import subprocess

    probe = [loader, "--list", os.path.realpath(binary)]  # else $ORIGIN were the directory of a symbolic link
    done = subprocess.run(probe, env=environment, capture_output=True, text=True, check=False)
    why = f"{loader} does not preload {library}: {done.stderr.strip() or 'no reason given'}"
    return done.stdout, "" if library in done.stdout else why


def _real_program(command: str) -> str:
    """The path of a command; for a shim of pyenv and its like, of what the shim would start."""
    import shutil
    import subprocess

    path = shutil.which(command)
    if path is None:
        raise FileNotFoundError(f"there is no program {command!r}")
    root = Path(path).absolute().parent
    if root.name == "shims":
        manager = root.parent.name.lstrip(".")
        tool = shutil.which(manager) or shutil.which(manager, path=str(root.parent / "bin"))
        found = tool and subprocess.run([tool, "which", Path(path).name], capture_output=True, text=True, check=False)
        if found and found.returncode == 0 and os.access(found.stdout.strip(), os.X_OK):
            return found.stdout.strip()
    return path


def _loader_of(program: str, depth: int = 0) -> tuple[str, str]:
    """The dynamic loader of a program, and the program: for a script that of its interpreter."""
    status = os.stat(program)
    if status.st_mode & (stat.S_ISUID | stat.S_ISGID) or "security.capability" in os.listxattr(program):
        raise ValueError(f"{program} is setuid, setgid or has capabilities: the system ignores LD_PRELOAD for it")
    with open(program, "rb") as file:
        start = file.read(4096)
        if start.startswith(b"#!"):
            interpreter = start[2:].split(b"\n")[0].split()
            if not interpreter or depth == 4:  # as many as Linux follows
                raise ValueError(f"{program}: its #! line leads to no program")
            return _loader_of(os.fsdecode(interpreter[0]), depth + 1)
        if not start.startswith(b"\x7fELF"):
            raise ValueError(f"{program} is neither an ELF program nor a script with a #! line")
        if len(start) < 64:
            raise ValueError(f"{program} is cut off")
        if start[4] * 32 != struct.calcsize("P") * 8:
            raise ValueError(f"{program} is a {start[4] * 32}-bit program, hakmem is not")
        table, entry_size, entries = struct.unpack_from("=Q14xHH", start, 32)
        for index in range(entries):
            file.seek(table + index * entry_size)
            entry = file.read(40)
            if len(entry) < 40:
                raise ValueError(f"{program} is cut off")
            kind, _, offset, _, _, size = struct.unpack("=IIQQQQ", entry)
            if kind == 3:  # PT_INTERP
                file.seek(offset)
                return os.fsdecode(file.read(size).rstrip(b"\0")), program
    raise ValueError(f"{program} is statically linked: no dynamic loader runs that could preload hakmem")


def _snapshot(options: argparse.Namespace) -> Optional[str]:
    taken = snapshot(options.pid, options.segments)
    if not options.output:
        return taken._dumped()  # noqa: SLF001
    taken.dump(options.output)
    return None


def _diff(options: argparse.Namespace) -> str:
    older, newer = Snapshot.load(options.older), Snapshot.load(options.newer)
    return newer.compare_to(older, options.by).report(options.fmt)


def _doctor(options: argparse.Namespace) -> int:
    """Print the findings; the status is 1 if there is a problem."""
    words = options.target
    findings = doctor(int(words[0]) if len(words) == 1 and words[0].isdigit() else words or None)
    rows = [finding._asdict() for finding in findings]
    for row in rows if options.fmt == "simple" else ():  # the advice in a line of its own, to be copied
        advice = row.pop("advice")
        row["found"] += f"\n  -> {advice}" * bool(advice)
    print(_as_text(_Table("findings", rows, {}), options.fmt))
    return int(any(finding.level == "problem" for finding in findings))


def _run(arguments: argparse.Namespace) -> NoReturn:
    """Replace this process by the command, on hakmem."""
    command = arguments.command[1:] if arguments.command[:1] == ["--"] else arguments.command
    if not command:
        raise ValueError("no command given: python -m hakmem run -- program arguments")
    environment = dict(os.environ)
    for setting in arguments.option:
        name, given, value = setting.partition("=")
        if not given:
            raise ValueError(f"-o {setting}: write -o option=value")
        option = config.option(name)
        if name != "hardened" or arguments.variant is None:
            option.parse(value)
        elif value not in ("1", "2"):  # the library in this process may have no choice of a level
            raise ValueError(f"-o {setting}: hardened is 1 or 2")
        environment[option.env] = value
    environment.setdefault(config.option("stats_page").env, "1")  # so that top and the others can see it
    if arguments.pythonmalloc:
        environment["PYTHONMALLOC"] = "malloc"
    library = _library_for_preload(arguments.variant)
    program = _real_program(command[0])
    loader, binary = _loader_of(program)
    _preload(environment, library)
    _, refused = _listed(loader, binary, library, environment)
    if refused:
        raise ValueError(refused)
    os.execve(program, [program, *command[1:]], environment)


def _bench(arguments: Sequence[str]) -> NoReturn:
    """Replace this process by the benchmark."""
    path = _beside_us("bench.py", "_bench_workloads")
    if path is None:
        raise OSError(f"the benchmark is not beside {_HERE / 'hakmem.py'}; pip install hakmem, or a checkout, has it")
    os.execv(sys.executable, [sys.executable, str(path), *arguments])


def _number(kind: Callable[[str], float], least: float, most: float, what: str) -> Callable[[str], Any]:
    """What makes a number of an argument, or says what it should be."""

    def number(text: str) -> Any:
        from argparse import ArgumentTypeError

        with contextlib.suppress(ValueError):
            if least <= kind(text) <= most:
                return kind(text)
        raise ArgumentTypeError(f"{text!r}: {what}")

    return number


_PID = _number(int, 1, float("inf"), "not the number of a process; `python -m hakmem ps` lists them")
_SECONDS = _number(float, 0.01, 86400, "0.01 to 86400 seconds are possible")
_TIMES = _number(int, 1, float("inf"), "1 or more")


def _parser() -> argparse.ArgumentParser:
    """The commands, in the order in which one meets them."""
    from argparse import REMAINDER, SUPPRESS, ArgumentParser

    parser = ArgumentParser(prog="python -m hakmem", description="Run programs on hakmem, and look at them.")
    commands = parser.add_subparsers(dest="action", required=True, metavar="command")

    def add(name: str, do: Callable[[Any], Any], about: str, pid: bool = False, fmt: bool = False) -> ArgumentParser:
        made: ArgumentParser = commands.add_parser(name, help=about, description=f"{about[0].upper()}{about[1:]}.")
        made.set_defaults(do=do)
        if pid:
            made.add_argument("pid", type=_PID, help="the process")
        if fmt:
            made.add_argument("--fmt", default="simple", help="json, or a format of tabulate (simple, html, ...)")
        return made

    run = add("run", _run, "start a program on hakmem")
    run.usage = "%(prog)s [options] -- command ..."
    run.add_argument("--variant", help="the library to preload, as build.py --list has them")
    hardened = "find misuse of blocks (-o hardened=2: use after free, too); the same as --variant hardened"
    run.add_argument("--hardened", dest="variant", action="store_const", const="hardened", help=hardened)
    sites = "count blocks by call site: report('sites') in the program; the same as -o sites=1"
    run.add_argument("--sites", dest="option", action="append_const", const="sites=1", default=[], help=sites)
    run.add_argument("-o", dest="option", action="append", default=[], metavar="OPTION=VALUE", help="set an option")
    run.add_argument("--pythonmalloc", action="store_true", help="set PYTHONMALLOC=malloc: objects of Python as well")
    run.add_argument("command", nargs=REMAINDER, help=SUPPRESS)
    add("ps", _ps, "list the processes on hakmem", fmt=True)
    top = add("top", _top, "show a process, live; the key n shows the next, ? all keys")
    top.add_argument("pid", nargs="?", type=_PID, help="default: the one with the most memory")
    top.add_argument("--page", choices=list(_PAGES), default="classes", help="default: classes")
    top.add_argument("--sort", metavar="COLUMN", help="most first; default: live, used or taken/s")
    add("why", lambda options: why(options.pid).text(options.fmt), "say why a process has its RSS", pid=True, fmt=True)
    view = add("report", lambda options: report(options.view, options.fmt, options.pid), "print a report", fmt=True)
    views = ", ".join(_VIEWS)
    some = _number(int, 0, float("inf"), f"neither the number of a process nor a view: {views}")
    view.add_argument("pid", nargs="?", type=some, help="the process; default: the one that prints")
    view.add_argument("view", nargs="?", default="summary", choices=list(_VIEWS), metavar="view", help=views)
    trim_it = add("trim", _trim_other, "have a process give back what it does not use", pid=True)
    set_it = add("set", _set_other, "change an option of a process", pid=True)
    set_it.add_argument("setting", metavar="OPTION=VALUE")
    watch = add("watch", _watch, "print a process's counters, a line each interval, until it ends", pid=True)
    watch.add_argument("--csv", dest="fmt", action="store_const", const="csv", default="csv", help="the default")
    watch.add_argument("--fmt", choices=("csv", "json"), help="json: one object a line")
    columns = "time, seconds, age, rss and counters; default: all but age, with the counters of summary and pools"
    watch.add_argument("--columns", metavar="A,B,..", help=columns)
    watch.add_argument("-o", metavar="FILE", help="write to a file")
    for command in (top, watch):
        command.add_argument("--interval", type=_SECONDS, default=1.0, metavar="S", help="seconds; default: 1")
        command.add_argument("-n", type=_TIMES, metavar="N", help="so many times, then end")
    for command in (trim_it, set_it):
        begin = "seconds in which it must begin, or nothing will be done; default: 2"
        command.add_argument("--timeout", type=_SECONDS, default=2.0, metavar="S", help=begin)
    take = add("snapshot", _snapshot, "write all records of a process as JSON, for diff", pid=True)
    take.add_argument("-o", "--output", metavar="FILE", help="default: print it")
    take.add_argument("--segments", action="store_true", help="each slab, run, whale and free stretch by itself")
    diff = add("diff", _diff, "print what changed between two snapshots", fmt=True)
    diff.add_argument("older")
    diff.add_argument("newer")
    diff.add_argument("--by", default="class", choices=["class", "tier", "pool", "site"], help="default: class")
    patient = add("doctor", _doctor, "say what is wrong with this machine, a process or a command", fmt=True)
    patient.add_argument("target", nargs="*", help="PID, or -- command ... (it is not started); default: this process")
    export = add("exporter", _exporter, "serve the figures of all processes on hakmem to Prometheus")
    export.add_argument("--port", type=int, default=9464, help="default: 9464; 0: any")
    export.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, only this machine")
    add("config", lambda options: report("config", options.fmt), "print the options and their values", fmt=True)
    add("path", lambda _options: _mode.path, "print the library's path")
    commands.add_parser("bench", help="run the benchmark; `bench --help` has its options", add_help=False)
    return parser


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """The command line; returns the exit status, unless `run` turns the process into another program."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["report"] and given[1:2] and given[1] in _VIEWS:
        given.insert(1, "0")  # the view of this process: pid 0 stands for it
    options = _parser().parse_args(given[:1] if given[:1] == ["bench"] else given)
    try:
        if options.action == "bench":  # its options are its own
            _bench(given[1:])
        done = options.do(options)
        if isinstance(done, str):
            print(done)
        sys.stdout.flush()
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        if not isinstance(error, BrokenPipeError):  # then the reader has seen enough
            said: object = error
            if isinstance(error, OSError) and error.strerror:  # what it is, without its number
                said = f"{error.filename}: {error.strerror}" if error.filename else error.strerror
            print(f"hakmem: {options.action}: {said}", file=sys.stderr)
        if isinstance(error, OSError) and options.action != "run":  # what could not be written is not tried again
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        # as env and nice do: 127 for no such program, 125 for all that is not what a program returned
        return 1 if options.action != "run" else 127 if isinstance(error, FileNotFoundError) else 125
    except KeyboardInterrupt:
        return 130
    return done if isinstance(done, int) else 0


if __name__ == "__main__":
    sys.exit(main())
