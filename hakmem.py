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

import argparse
import base64
import collections
import contextlib
import csv
import ctypes
import difflib
import fcntl
import functools
import html
import importlib
import importlib.util
import io
import itertools
import json
import keyword
import mmap
import operator
import os
import resource
import shutil
import signal
import stat
import struct
import subprocess
import sys
import threading
import time
import types
import weakref
import zlib
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple, NoReturn, Optional, TypeVar, Union, cast

__all__ = [
    "Buffer", "Comparison", "Config", "HakmemError", "Heatmap", "MemoryPool", "Mode", "Option", "RssMonitor",
    "RssSample", "Snapshot", "SnapshotDiff", "Track", "UnknownOptionError", "ace_log", "aligned_alloc", "alloc_at",
    "big_table", "calloc", "class_table", "config", "default_memory_pool", "free", "free_at", "heap_table", "heatmap",
    "lock_table", "main", "malloc", "memory_snapshot", "memory_stats", "memory_stats_as_nested_dict", "memory_summary",
    "mode", "owner_of", "prometheus_collector", "realloc", "report", "reset_peak_memory_stats", "shard_table",
    "site_rule", "site_rules", "site_table", "snapshot", "tier_table", "total_allocated_bytes", "track", "trim",
    "usable_size",
]  # fmt: skip
__version__ = "0.1.0"

_ABI = 2
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
_RawField = _structure("hak_field", "zzzzzII", ("name", "kind", "unit", "view", "help", "offset", "size"))
_RawRecord = _structure("hak_record", "zPII", ("name", "fields", "nfields", "size"))
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


class _Layout(NamedTuple):
    """One kind of record: its ctypes structure, its fields, and the named tuple that users get."""

    structure: Any
    fields: tuple[_Field, ...]
    record: Callable[..., Any]

    def read(self, raw: ctypes.Structure) -> Any:
        values = (getattr(raw, field.name) for field in self.fields)
        return self.record(*[value.decode() if isinstance(value, bytes) else value for value in values])


def _record(name: str, fields: Iterable[_Field]) -> Any:
    """The named tuple of a record."""
    make: Any = collections.namedtuple
    names = [field.name + "_" * keyword.iskeyword(field.name) for field in fields]
    record = make(name.capitalize(), names, module=__name__)
    for attribute, field in zip(names, fields):  # so that help() of a record has a line for each
        getattr(record, attribute).__doc__ = f"{field.help} ({field.unit})" if field.unit else field.help
    return record


def _layout(described: Any) -> _Layout:
    name = described.name.decode()
    raw_fields = (_RawField * described.nfields).from_address(described.fields)
    fields = tuple(_Field(*[getattr(raw, part).decode() for part in _Field._fields]) for raw in raw_fields)
    structure = _structure(name, [field.kind for field in fields], [field.name for field in fields])
    made = [(getattr(structure, field.name).offset, getattr(structure, field.name).size) for field in fields]
    if made != [(raw.offset, raw.size) for raw in raw_fields] or ctypes.sizeof(structure) != described.size:
        raise ImportError(f"{_mode.path}: the layout of its record {name!r} is not what it says")
    return _Layout(structure, fields, _record(name, fields))


_LAYOUTS = {raw.name.decode(): _layout(raw) for raw in (_RawRecord * _about.nrecords).from_address(_about.records)}
_STATS, _CLASS, _TIER, _OPTION, _OWNER = (_LAYOUTS[name] for name in ("stats", "class", "tier", "option", "owner"))
_HEAP, _LOCK, _SEGMENT, _SHARD = (_LAYOUTS[name] for name in ("heap", "lock", "segment", "shard"))
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
        near = difflib.get_close_matches(str(name), self.options, 1, 0)
        raise UnknownOptionError(f"there is no option {name!r}; the nearest is {near[0]!r}")

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
class _Silent(HakmemError):
    """A process that was asked for something has not answered."""


_HEAD = struct.Struct("=8sIIII12Q")
_COMMAND = struct.Struct("=8sIIQQIIqQ64s")
_DO = {"publish": 1, "detail": 2, "release": 3, "trim": 4, "set": 5}


class _Head(NamedTuple):
    """How each file begins that a process shows itself with: C's hak_live_head_t."""

    magic: bytes
    format: int
    abi: int
    pid: int
    thread: int
    size: int
    text: int
    text_len: int
    words: int
    words_len: int
    counts: int
    sections: int
    seq: int
    published: int
    at_ns: int
    cost_ns: int
    sum: int


class _Section(NamedTuple):
    fields: tuple[_Field, ...]
    record: Any
    row: struct.Struct
    offset: int
    most: int


class _Page:
    """A file in which a process shows itself: what C's section "seen from another process" says of it."""

    def __init__(self, path: str) -> None:
        with open(path, "rb") as file:
            self.memory = mmap.mmap(file.fileno(), 0, prot=mmap.PROT_READ)
        try:
            self._begin()
        except (ValueError, IndexError, StopIteration, struct.error, OverflowError, MemoryError) as error:
            self.memory.close()
            raise HakmemError(f"{path} is not of a form that hakmem {__version__} knows: {error}") from None

    def _begin(self) -> None:
        head = self.head()
        if (head.magic.rstrip(b"\0"), head.format) != (b"hakmem", 1):
            raise ValueError(f"it begins with {head.magic!r}, {head.format}")
        if head.size > len(self.memory):
            raise ValueError("it is cut off")
        lines = [line.split("\t") for line in self._bytes(head.text, head.text_len).decode().splitlines()]
        self.version, self.variant = next(line[1:3] for line in lines if line[0] == "hakmem")
        self.layouts: dict[str, _Section] = {}
        for index, line in enumerate(lines):
            if line[0] == "record":
                own = itertools.takewhile(lambda line: line[0] == "field", lines[index + 1 :])
                size, offset, most = map(int, line[2:5])
                self._describe(line[1], size, offset, most, [field[1:] for field in own])
        if len(self.layouts) != head.sections:
            raise ValueError(f"{len(self.layouts)} of {head.sections} sections are described")

    def _describe(self, name: str, size: int, offset: int, most: int, described: list[list[str]]) -> None:
        form, at, fields = "=", 0, []
        for field, kind, unit, view, place, text, *_newer in described:
            width = struct.calcsize("=" + "QqIQ"["QqIz".index(kind)])
            form += f"{int(place) - at}x{'QqIQ'['QqIz'.index(kind)]}"
            at = int(place) + width
            fields.append(_Field(field, kind, unit, view, text))
        row = struct.Struct(f"{form}{size - at}x")
        self._bytes(offset, size * most)  # it lies within
        self.layouts[name] = _Section(tuple(fields), _record(name, fields), row, offset, most)

    def _bytes(self, offset: int, size: int) -> bytes:
        if offset + size > len(self.memory):
            raise ValueError(f"{size} bytes at {offset}: it is cut off")
        return self.memory[offset : offset + size]

    def head(self) -> _Head:
        return _Head(*_HEAD.unpack_from(self.memory))

    def read(self, timeout: float = 1.0) -> tuple[_Head, dict[str, list[Any]]]:
        """All rows by kind, of one moment. HakmemError if it is not to be had for so many seconds."""
        deadline = time.monotonic() + timeout
        while True:
            head = self.head()
            if not head.seq % 2:
                rows = self._read(head)
                if rows is not None and self.head().seq == head.seq:
                    return head, rows
            if time.monotonic() > deadline:
                raise _Silent("it does not finish what it is publishing; is it stopped?")
            time.sleep(0.0002)

    def _read(self, head: _Head) -> Optional[dict[str, list[Any]]]:
        counts = struct.unpack_from(f"={2 * head.sections}Q", self.memory, head.counts)
        raw, checked = [], sum(counts)
        for count, section in zip(counts[::2], self.layouts.values()):
            if count > section.most:
                return None
            raw.append(self._bytes(section.offset, count * section.row.size))
            checked += sum(memoryview(raw[-1]).cast("Q"))
        if checked % (1 << 64) != head.sum:
            return None
        words = self._bytes(head.words, head.words_len)

        def text(at: int) -> str:
            return words[at : words.index(b"\0", at)].decode(errors="replace")

        read: dict[str, list[Any]] = {}
        for (name, section), rows in zip(self.layouts.items(), raw):
            texts = [index for index, field in enumerate(section.fields) if field.kind == "z"]
            read[name] = made = []
            for values in map(list, section.row.iter_unpack(rows)):
                for index in texts:
                    values[index] = text(values[index])
                made.append(section.record(*values))
        return read


def _status(pid: int) -> dict[str, str]:
    """/proc/PID/status; HakmemError if there is no such process."""
    try:
        with open(f"/proc/{operator.index(pid)}/status", encoding="utf-8", errors="replace") as file:
            return {name: value.strip() for name, _, value in (line.partition(":") for line in file)}
    except (FileNotFoundError, ProcessLookupError):
        raise HakmemError(f"there is no process {pid}") from None


def _shown_files(pid: int, name: str) -> list[str]:
    """Where a process's files of that name can be opened, in which it shows itself."""
    found, link = [], f"/memfd:hakmem-{name} (deleted)"
    for place in os.listdir(f"/proc/{pid}/fd"):
        with contextlib.suppress(FileNotFoundError):
            if os.readlink(f"/proc/{pid}/fd/{place}") == link:
                found.append(f"/proc/{pid}/fd/{place}")
    if not found:  # it may have closed its descriptors; whoever may do anything finds what it maps
        with open(f"/proc/{pid}/maps", encoding="utf-8", errors="replace") as maps:
            found = [f"/proc/{pid}/map_files/{line.split()[0]}" for line in maps if link in line]
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

    def __init__(self, pid: int, fresh: float = 0.05) -> None:
        """fresh: seconds to wait for the state of now; then what was published last will do: age says how old it is."""
        self.pid = pid
        self.status = _status(pid)
        try:
            self.page = self._open()
            with contextlib.suppress(_Silent):
                self.ask("publish", timeout=fresh)
            self.head, self._rows = self.page.read()
        except PermissionError:
            who = _need("psutil", "the name of a user").Process(pid).username()
            raise HakmemError(f"process {pid} belongs to {who}: only that user and root may look into it") from None
        except (FileNotFoundError, ProcessLookupError):
            raise HakmemError(f"process {pid} has just ended") from None
        except _Silent as silent:
            raise HakmemError(f"process {pid} ({self.status['Name']}): {silent}") from None

    def _open(self) -> _Page:
        if self.status["State"].startswith("Z"):
            raise HakmemError(f"process {self.pid} has ended, and its parent has not taken notice yet")
        inside = int(self.status.get("NSpid", str(self.pid)).split()[-1])  # its number in its own container
        pages = []
        for path in _shown_files(self.pid, "stats"):
            with contextlib.suppress(FileNotFoundError):
                page = _Page(path)
                if page.head().pid == inside:  # not what a child has of its parent
                    pages.append(page)
        if pages:
            return max(pages, key=lambda page: page.head().at_ns)
        name = f"process {self.pid} ({self.status['Name']})"
        if not os.path.exists(f"/proc/{self.pid}/exe"):
            raise HakmemError(f"{name} is part of the kernel")
        if _has_library(self.pid):
            how = "start it with HAKMEM_STATS_PAGE=1, or with `python -m hakmem run`"
            raise HakmemError(f"{name} is on hakmem, but cannot be seen: {how}")
        raise HakmemError(f"{name} is not on hakmem")

    @property
    def layouts(self) -> Mapping[str, Any]:
        return self.page.layouts

    @property
    def age(self) -> float:
        """How old the state is, in seconds."""
        return max(time.monotonic_ns() - self.head.at_ns, 0) / 1e9

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
            page = _Page(_shown_files(self.pid, "detail")[0])
            self.page.layouts.update(page.layouts)
            return page.read()[1]
        finally:
            with contextlib.suppress(_Silent):
                self.ask("release", timeout=0.1)

    def ask(self, what: str, name: str = "", value: int = 0, timeout: float = 2.0) -> int:
        """Have it do something; returns what came of it. _Silent if it has not by then."""
        deadline = time.monotonic() + timeout
        for path in _shown_files(self.pid, "command"):
            with open(path, "r+b", buffering=0) as file, mmap.mmap(file.fileno(), 0) as memory:
                while True:
                    with contextlib.suppress(BlockingIOError):
                        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
                        break
                    if time.monotonic() > deadline:
                        raise _Silent("others are asking it")
                    time.sleep(0.001)
                magic, form, look, asked, _done, *_rest = _COMMAND.unpack_from(memory)
                if (magic.rstrip(b"\0"), form) != (b"hakmem", 1):
                    raise HakmemError(f"{path} is not of a form that hakmem {__version__} knows")
                text = name.encode()[:63]
                _COMMAND.pack_into(memory, 0, magic, form, look, asked, _done, _DO[what], 0, value, 0, text)
                word = (ctypes.c_char * len(memory)).from_buffer(memory)
                _command_send(ctypes.addressof(word))
                del word
                pause = 0.0002
                while True:
                    *_begin, done, _what, error, _value, result, _name = _COMMAND.unpack_from(memory)
                    if done == asked + 1:
                        break
                    if time.monotonic() > deadline:
                        raise _Silent("it does not answer before it next allocates; with stats_page=2 it would at once")
                    time.sleep(pause)
                    pause = min(pause * 2, 0.01)
                _raise_code(error, None, (text or what.encode(),))
                return int(result)
        raise _Silent("it takes no commands")

    def options(self) -> list[tuple[Option, Any]]:
        """Each option with its value."""
        options = [Option(row) for row in self._rows["option"]]
        settings = {row.name: row for row in self._rows["setting"]}
        return [
            (option, settings[option.name].text if option.type == "text" else option.typed(settings[option.name].value))
            for option in options
        ]

    def thread_names(self) -> dict[int, str]:
        """None of its own: the system's will do."""
        return {}


def _shown_pids() -> Iterator[int]:
    """The processes that let themselves be seen, and that this user may see."""
    for pid in map(int, filter(str.isdecimal, os.listdir("/proc"))):
        try:
            inside = int(_status(pid).get("NSpid", str(pid)).split()[-1])
            for path in _shown_files(pid, "stats"):
                with open(path, "rb") as file:
                    seen = _Head(*_HEAD.unpack(file.read(_HEAD.size))).pid == inside  # not what it has of its parent
                if seen:
                    yield pid
                    break
        except (OSError, ValueError, struct.error):  # it is another user's, or has just ended
            continue


_Source = Union[_Here, _Process]


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
    return int(_need("psutil", "the size of the process").Process(pid).memory_info().rss)


class _Table(NamedTuple):
    """Rows of plain values; units by column, else each row's own "unit" applies to its numbers."""

    title: str
    rows: list[dict[str, Any]]
    units: dict[str, str]


def _shows(field: _Field, view: str) -> bool:
    return not field.view or view in field.view.split()


def _record_table(title: str, layout: _Layout, records: list[Any], view: str) -> _Table:
    """The fields of the records that a view shows, with the hit rate beside the allocations it is of."""
    shown = [field for field in layout.fields if _shows(field, view)]
    units = {field.name: field.unit for field in shown}
    rows = []
    for record in records:
        values = dict(zip((field.name for field in layout.fields), record))
        row = {field.name: values[field.name] for field in shown}
        if "allocs" in row and "misses" in values:
            cached = row["allocs"] and values.get("classes", 1)  # a tier without classes has no caches
            row["hit_rate"] = 1 - values["misses"] / row["allocs"] if cached else None
        rows.append(row)
    return _Table(title, rows, {**units, "hit_rate": "ratio"})


def _of(source: _Source, kind: str, title: str, view: str) -> _Table:
    return _record_table(title, source.layouts[kind], source.rows(kind), view)


def _counters(source: _Source, view: str) -> _Table:
    """The counters of a view."""
    fields = source.layouts["stats"].fields
    rows = [
        {"counter": field.name, "value": value, "unit": field.unit, "meaning": field.help}
        for field, value in zip(fields, source.rows("stats")[0])
        if view in field.view.split()
    ]
    return _Table("counters", rows, {})


def _tiers(source: _Source, view: str) -> _Table:
    return _of(source, "tier", "tiers", view)


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
    return [_tiers(source, "summary"), counters]


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
    tables = [_tiers(source, "pools"), _classes(source, "pools"), counters._replace(rows=others)]
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


def _in_one(heading: str, tables: Sequence[_Table], fmt: str) -> str:
    """Tables below one another; as JSON, by title."""
    if fmt == "json":
        return json.dumps({table.title: table.rows for table in tables}, indent=1)
    texts = [heading]
    for table in tables:
        texts += [table.title] * (len(tables) > 1) + [_as_text(table, fmt)]
    if fmt == "html":  # where tabulate has escaped what it makes
        texts = [text if text.startswith("<table") else f"<p>{html.escape(text)}</p>" for text in texts]
    text = _Text("\n\n".join(texts))
    text.html = functools.partial(_in_one, heading, tables, "html")
    return text


def report(view: str = "summary", fmt: str = "simple", pid: Optional[int] = None) -> str:
    """A view of the allocator as text, in any format of tabulate: "simple", "github", "html", "tsv" and others.

    "summary": each tier, and the main counters. "pools": where every committed byte is. "classes": the size classes.
    "threads": what each thread's heap holds. "refills", "frees": where blocks came from and went to, by class.
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
    source: _Source = _Process(pid) if pid else _Here()
    try:
        tables = _VIEWS[view](source)
    except (AttributeError, KeyError):
        if not pid:
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


# ---- in the REPL: a block of code, two moments, a picture ----------------------------------------------------
def _memory_of(pid: int) -> tuple[int, int]:
    """Resident bytes of a process, and the most that the kernel remembers; 0 where there is no such figure."""
    status = _status(pid)
    return int(status.get("VmRSS", "0").split()[0]) << 10, int(status.get("VmHWM", "0").split()[0]) << 10


def _with_bytes(row: dict[str, Any]) -> dict[str, Any]:
    """A tier, which knows its bytes, or a class, with its bytes."""
    blocks = {"alloc_bytes": "allocs", "freed_bytes": "frees", "live_bytes": "live_blocks"}
    return {**{of: row[count] * row.get("size", 1) for of, count in blocks.items()}, **row}


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
        self._rss, self._floor = _memory_of(os.getpid())
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
        rss, high = _memory_of(os.getpid())
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


def _pieces(segments: Iterable[Any]) -> list[dict[str, Any]]:
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
    source: _Source = _Process(pid) if pid else _Here()
    about, status = source.about, _status(source.pid)
    at = time.time() - about.get("age", 0)
    kinds = [kind for kind in _Here.tables if kind in source.layouts and kind not in ("segment", "site")]
    records = {kind: [row._asdict() for row in source.rows(kind)] for kind in kinds}
    with contextlib.suppress(_Silent):
        pieces = source.rows("segment")
        records["pieces"] = _pieces(pieces)
        records["site"] = [row._asdict() for row in source.rows("site")]
        if segments:
            records["segment"] = [row._asdict() for row in pieces]
    terms = [field.name for field in source.layouts["stats"].fields if "committed" in field.view.split()]
    pools = {name: records["stats"][0][name] for name in terms}
    values = {"time": at, "pid": source.pid, "command": status["Name"], "rss": _memory_of(source.pid)[0]}
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


_MARKS = [
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
        self._bytes = [0] * len(_MARKS)
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
        return [(mark, size) for mark, size in zip(_MARKS, self._bytes) if size]

    def _outside(self) -> str:
        count, size = self._whales
        return f"{count:,} whales, {_shown(size, 'bytes')}: mappings of their own, not drawn" if count else ""

    def text(self, width: Optional[int] = None, height: Optional[int] = None, plain: Optional[bool] = None) -> str:
        """The picture in so many columns and lines (and a legend); by default as many as the terminal has.

        A line is a superslab, at so many MiB from the first, with the share that blocks have of it, live, cached or in
        transit; of a large process it is several, and a sign may stand for several units: for what most of them are.
        plain: only signs of ASCII; by default where the output's encoding has no others.
        """
        size = shutil.get_terminal_size()
        if plain is None:
            encoding = getattr(sys.stdout, "encoding", None) or "utf-8"
            plain = any("?" in mark.sign.encode(encoding, "replace").decode(encoding) for mark in _MARKS)
        out = [self.heading]
        per, lines = self._lines(max((width or size.columns) - 13, 1), max(height or size.lines - 12, 1))
        for line, marks in lines:
            if len(out) == 1:
                each, first = f"a sign {_shown(per * self.unit, 'bytes')}", line[0]
                out += [f"a line is {len(line) * self._span >> 20} MiB, by MiB from {first:#x}, {each}", ""]
            signs = "".join(_MARKS[mark].plain if plain else _MARKS[mark].sign for mark in marks)
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
            b"PLTE": bytes(itertools.chain.from_iterable(mark.color for mark in _MARKS)),
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
    source: _Source = _Process(pid) if pid else _Here()
    try:
        return Heatmap(source.heading, min(row.slab_bytes for row in source.rows("class")), source.rows("segment"))
    except _Silent as silent:
        raise HakmemError(f"process {pid}: {silent}") from None


def _snapshot_command(options: argparse.Namespace) -> None:
    taken = snapshot(options.pid, options.segments)
    if options.output:
        taken.dump(options.output)
    else:
        print(taken._dumped())  # noqa: SLF001


def _diff_command(options: argparse.Namespace) -> None:
    older, newer = Snapshot.load(options.older), Snapshot.load(options.newer)
    print(newer.compare_to(older, options.by).report(options.fmt))


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
    yield _Sample("hakmem_process_resident_memory_bytes", rss, False, process, _memory_of(source.pid)[0])
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
                samples = list(_samples(_Here() if pid == os.getpid() else _Process(pid, fresh=0.005)))
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


def _exporter_command(options: argparse.Namespace) -> None:
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


def _real_program(command: str) -> str:
    """The path of a command; for a shim of pyenv and its like, of what the shim would start."""
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
    if arguments.pythonmalloc:
        environment["PYTHONMALLOC"] = "malloc"
    library = _library_for_preload(arguments.variant)
    program = _real_program(command[0])
    loader, binary = _loader_of(program)
    others = environment.get("LD_PRELOAD", "").replace(":", " ").split()
    environment["LD_PRELOAD"] = ":".join(dict.fromkeys([library, *others]))
    # the loader tells, without starting the program, whether it takes the library into it
    probe = [loader, "--list", binary]
    listed = subprocess.run(probe, env=environment, capture_output=True, text=True, check=False)
    if library not in listed.stdout:
        raise ValueError(f"{loader} does not preload {library}: {listed.stderr.strip() or 'no reason given'}")
    os.execve(program, [program, *command[1:]], environment)


def _bench(arguments: Sequence[str]) -> NoReturn:
    """Replace this process by the benchmark."""
    path = _beside_us("bench.py", "_bench_workloads")
    if path is None:
        raise OSError(f"the benchmark is not beside {_HERE / 'hakmem.py'}; pip install hakmem, or a checkout, has it")
    os.execv(sys.executable, [sys.executable, str(path), *arguments])


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hakmem", description="Run programs on hakmem, and look at it.")
    commands = parser.add_subparsers(dest="action", required=True, metavar="command")
    run = commands.add_parser("run", help="start a program on hakmem", usage="%(prog)s [options] -- command ...")
    run.add_argument("--variant", help="the library to preload, as build.py --list has them")
    hardened = "find misuse of blocks (-o hardened=2: use after free, too); the same as --variant hardened"
    run.add_argument("--hardened", dest="variant", action="store_const", const="hardened", help=hardened)
    sites = "count blocks by call site: report('sites') in the program; the same as -o sites=1"
    run.add_argument("--sites", dest="option", action="append_const", const="sites=1", default=[], help=sites)
    run.add_argument("-o", dest="option", action="append", default=[], metavar="OPTION=VALUE", help="set an option")
    run.add_argument("--pythonmalloc", action="store_true", help="set PYTHONMALLOC=malloc: objects of Python as well")
    run.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    commands.add_parser("path", help="print the library's path")
    shown = commands.add_parser("config", help="print the options and their values")
    view = commands.add_parser("report", help="print a report on a process")
    view.add_argument("pid", nargs="?", type=int, help="the process; default: the one that prints")
    view.add_argument("view", nargs="?", default="summary", choices=list(_VIEWS), help="default: summary")
    bench = commands.add_parser("bench", help="run the benchmark; `bench --help` has its options", add_help=False)
    bench.add_argument("arguments", nargs=argparse.REMAINDER)
    take = commands.add_parser("snapshot", help="write all records of a process as JSON, for diff")
    take.set_defaults(do=_snapshot_command)
    take.add_argument("pid", type=int)
    take.add_argument("-o", "--output", metavar="FILE", help="default: print it")
    take.add_argument("--segments", action="store_true", help="each slab, run, whale and free stretch by itself")
    diff = commands.add_parser("diff", help="print what changed between two snapshots")
    diff.set_defaults(do=_diff_command)
    diff.add_argument("older")
    diff.add_argument("newer")
    diff.add_argument("--by", default="class", choices=["class", "tier", "pool", "site"], help="default: class")
    export = commands.add_parser("exporter", help="serve the figures of all processes on hakmem to Prometheus")
    export.set_defaults(do=_exporter_command)
    export.add_argument("--port", type=int, default=9464, help="default: 9464; 0: any")
    export.add_argument("--host", default="127.0.0.1", help="default: 127.0.0.1, only this machine")
    for table in (shown, view, diff):
        table.add_argument("--fmt", default="simple", help="json, or a format of tabulate (simple, github, html, ...)")
    return parser


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """The command line; returns the exit status, unless `run` turns the process into another program."""
    given = list(sys.argv[1:] if arguments is None else arguments)
    if given[:1] == ["report"] and given[1:2] and given[1] in _VIEWS:
        given.insert(1, "0")  # the view of this process: pid 0 stands for it
    options = _parser().parse_args(given[:1] if given[:1] == ["bench"] else given)
    try:
        if options.action == "run":
            _run(options)
        if options.action == "bench":  # its options are its own
            _bench(given[1:])
        if options.action == "path":
            print(_mode.path)
        elif "do" in options:
            options.do(options)
        else:
            print(report(getattr(options, "view", "config"), options.fmt, getattr(options, "pid", None)))
        sys.stdout.flush()
    except (ValueError, RuntimeError, OSError, ImportError) as error:
        if not isinstance(error, BrokenPipeError):  # then the reader has seen enough
            print(f"hakmem: {options.action}: {error}", file=sys.stderr)
        if isinstance(error, OSError) and options.action != "run":  # what could not be written is not tried again
            os.dup2(os.open(os.devnull, os.O_WRONLY), 1)
        # as env and nice do: 127 for no such program, 125 for all that is not what a program returned
        return 1 if options.action != "run" else 127 if isinstance(error, FileNotFoundError) else 125
    return 0


if __name__ == "__main__":
    sys.exit(main())
