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
import collections
import ctypes
import difflib
import importlib.util
import itertools
import json
import keyword
import operator
import os
import shutil
import stat
import struct
import subprocess
import sys
import types
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Callable, NamedTuple, NoReturn, Optional

__all__ = [
    "Config", "HakmemError", "Mode", "Option", "UnknownOptionError", "aligned_alloc", "alloc_at", "calloc",
    "class_table", "config", "free", "free_at", "main", "malloc", "memory_stats", "mode", "owner_of", "realloc",
    "report", "tier_table", "trim", "usable_size",
]  # fmt: skip
__version__ = "0.1.0"

_ABI = 1
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
_RawField = _structure("hak_field", "zzzzII", ("name", "kind", "unit", "help", "offset", "size"))
_RawRecord = _structure("hak_record", "zPII", ("name", "fields", "nfields", "size"))
_RawAbout = _structure("hak_about", "IIzzPII", ("abi", "size", "version", "variant", "records", "nrecords", "reserved"))


class Mode(NamedTuple):
    """How this process got its hakmem."""

    how: str  # "preloaded": it serves the whole process; "loaded": only those who call it
    path: str
    variant: str


_EMBEDDED: dict[str, str] = {}  # name: text; `build.py vendor` fills it


def _build_module() -> Any:
    """build.py: the one inside a vendored hakmem.py, else the file, which pip installs under a name of its own."""
    if _EMBEDDED:  # then no file is looked at: a build.py beside a vendored hakmem.py is somebody else's
        module = types.ModuleType("_hakmem_build")
        module.__file__ = __file__
        exec(compile(_EMBEDDED["build.py"], f"{__file__}: build.py", "exec"), vars(module))
        vars(module)["TEXTS"].update(_EMBEDDED)
        return module
    for path in (_HERE / "_hakmem_build.py", _HERE / "build.py"):
        # a project into which hakmem.py was copied as it is may have a build.py of its own
        if path.exists() and "_hakmem_backend.c" in path.read_text(encoding="utf-8", errors="replace"):
            spec: Any = importlib.util.spec_from_file_location("_hakmem_build", path)
            module = importlib.util.module_from_spec(spec)
            spec.loader.exec_module(module)
            return module
    raise OSError(f"no build.py in {_HERE}: pip install hakmem, or take the one file that `build.py vendor` writes")


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
        yield "HAKMEM_LIBRARY", lambda: Path(os.environ["HAKMEM_LIBRARY"])
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
    help: str


class _Layout(NamedTuple):
    """One kind of record: its ctypes structure, its fields, and the named tuple that users get."""

    structure: Any
    fields: tuple[_Field, ...]
    record: Callable[..., Any]

    def read(self, raw: ctypes.Structure) -> Any:
        values = (getattr(raw, field.name) for field in self.fields)
        return self.record(*[value.decode() if isinstance(value, bytes) else value for value in values])


def _layout(described: Any) -> _Layout:
    name = described.name.decode()
    raw_fields = (_RawField * described.nfields).from_address(described.fields)
    fields = tuple(_Field(*[getattr(raw, part).decode() for part in _Field._fields]) for raw in raw_fields)
    structure = _structure(name, [field.kind for field in fields], [field.name for field in fields])
    made = [(getattr(structure, field.name).offset, getattr(structure, field.name).size) for field in fields]
    if made != [(raw.offset, raw.size) for raw in raw_fields] or ctypes.sizeof(structure) != described.size:
        raise ImportError(f"{_mode.path}: the layout of its record {name!r} is not what it says")
    make: Any = collections.namedtuple
    names = [field.name + "_" * keyword.iskeyword(field.name) for field in fields]
    return _Layout(structure, fields, make(name.capitalize(), names, module=__name__))


_LAYOUTS = {raw.name.decode(): _layout(raw) for raw in (_RawRecord * _about.nrecords).from_address(_about.records)}
_STATS, _CLASS, _TIER, _OPTION, _OWNER = (_LAYOUTS[name] for name in ("stats", "class", "tier", "option", "owner"))


# ---- bindings ----------------------------------------------------------------------------------------------
_OUT_OF_MEMORY = 4  # the one code that Python tells from the others, as it has an exception of its own


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
    if result == _OUT_OF_MEMORY:
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
# const struct hak_option *hak_option_table(int *count);
_option_table = _bind("hak_option_table", ctypes.POINTER(_OPTION.structure), [ctypes.POINTER(_code)])
# int hak_option_get(const char *name, int64_t *out);
_option_get = _bind("hak_option_get", _code, [_text, ctypes.POINTER(ctypes.c_int64)], _raise_code)
# int hak_option_set(const char *name, int64_t value);
_option_set = _bind("hak_option_set", _code, [_text, ctypes.c_int64], _raise_code)


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
    """As malloc, for a call site (any number): what rules for sites say applies to the block."""
    return int(_alloc_at(_natural(size, "size"), _natural(site, "site")))


def free_at(pointer: Optional[int], site: int) -> None:
    """As free, from a call site."""
    site = _natural(site, "site")
    usable_size(pointer)  # raises where the C function would abort
    _free_at(_address(pointer), site)


def trim() -> int:
    """Give all unused memory back to the system now; returns how many bytes that was."""
    return int(_trim())


def owner_of(pointer: int) -> Any:
    """The block around an address: its base, size, class, tier, heap and state."""
    raw = _OWNER.structure()
    _owner_of(_address(pointer), raw, ctypes.sizeof(raw))
    return _OWNER.read(raw)


# ---- options -----------------------------------------------------------------------------------------------
class Option:
    """One option: name, env, type, unit, when, default, min, max and help as C declares them, and its value."""

    def __init__(self, declared: Iterable[Any]) -> None:
        self.name, self.env, self.type, self.unit, self.when, self.help, *bounds = declared
        self.default, self.min, self.max = (bool(bound) if self.type == "bool" else bound for bound in bounds)

    @property
    def value(self) -> int:
        """The value now (a bool for switches). Setting it raises ValueError if it is out of bounds or too late."""
        result = ctypes.c_int64()
        _option_get(self.name.encode(), result)
        return bool(result.value) if self.type == "bool" else result.value

    @value.setter
    def value(self, value: int) -> None:
        self.check(value)
        try:
            _option_set(self.name.encode(), value)
        except HakmemError as error:
            raise HakmemError(f"{error}; {self.env} sets it before the program starts") from None

    def check(self, value: Any) -> None:
        """ValueError unless the option takes this value."""
        if not isinstance(value, int) or not self.min <= value <= self.max:
            allowed = "True or False" if self.type == "bool" else f"{self.min} to {self.max} {self.unit}".rstrip()
            raise HakmemError(f"{self.name} = {value!r}: allowed is {allowed}")

    def __repr__(self) -> str:
        value = f"{self.value} {self.unit or self.type}, default {self.default}"
        return f"<hakmem option {self.name} = {value}, {self.env}: {self.help}>"


class Config(Mapping[str, int]):
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
        near = difflib.get_close_matches(name, self.options, 1, 0)
        raise UnknownOptionError(f"there is no option {name!r}; the nearest is {near[0]!r}")

    def __getitem__(self, name: str) -> int:
        return self.option(name).value

    def __setitem__(self, name: str, value: int) -> None:
        self.option(name).value = value

    __getattr__ = __getitem__
    __setattr__ = __setitem__

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
    """A table of C: asked once for its length, once for its rows."""
    count = fill(None, ctypes.sizeof(layout.structure), 0)
    rows = (layout.structure * count)()
    fill(rows, ctypes.sizeof(layout.structure), count)
    return [layout.read(row) for row in rows]


def class_table() -> list[Any]:
    """The size classes, each with its geometry and counters."""
    return _rows(_CLASS, _class_table)


def tier_table() -> list[Any]:
    """The tiers (tiny, l2, l25, whale), each with its bounds and counters."""
    return _rows(_TIER, _tier_table)


# torch.cuda's key, and the counter of hakmem behind it, where there is one
_TORCH_KEYS = {
    "allocated_bytes.{}.current": "live_bytes",
    "allocated_bytes.{}.peak": "peak_live_bytes",
    "allocation.{}.allocated": "allocs",
    "allocation.{}.freed": "frees",
    "allocation.{}.current": "live_blocks",
    "active_bytes.{}.current": "in_use_bytes",
    "active_bytes.{}.peak": "peak_in_use_bytes",
    "cached_bytes.{}.current": "cached_bytes",
    "reserved_bytes.{}.current": "committed_bytes",
}


def memory_stats() -> dict[str, int]:
    """All counters in one flat dict: torch.cuda.memory_stats' keys, by tier and for "all", then C's own names.

    The tiers are read just after the whole, so in a busy process their sum may differ from it by a little.
    """
    whole = _stats()._asdict()
    parts = {"all": whole, **{row.name: row._asdict() for row in tier_table()}}
    keys = itertools.product(_TORCH_KEYS.items(), parts.items())
    named = {key.format(part): values[counter] for (key, counter), (part, values) in keys if counter in values}
    return {**named, **whole}


# ---- tables ------------------------------------------------------------------------------------------------
class _Table(NamedTuple):
    """Rows of plain values; units by column, else each row's own "unit" applies to its numbers."""

    title: str
    rows: list[dict[str, Any]]
    units: dict[str, str]


def _record_table(title: str, layout: _Layout, records: list[Any]) -> _Table:
    """The records of one kind, with their hit rate where they count misses."""
    units = {field.name: field.unit for field in layout.fields}
    rows = [dict(zip(units, record)) for record in records]
    if "misses" in units:
        units["hit_rate"] = "ratio"
        for row in rows:
            row["hit_rate"] = 1 - row["misses"] / row["allocs"] if row["allocs"] else None
    return _Table(title, rows, units)


def _summary() -> list[_Table]:
    import psutil

    counters = [
        {"counter": field.name, "value": value, "unit": field.unit, "meaning": field.help}
        for field, value in zip(_STATS.fields, _stats())
    ]
    resident = {"counter": "process_rss", "value": psutil.Process().memory_info().rss, "unit": "bytes"}
    counters.append({**resident, "meaning": "resident memory of the whole process, whoever allocated it"})
    return [_record_table("tiers", _TIER, tier_table()), _Table("counters", counters, {})]


def _options() -> list[_Table]:
    columns = ["name", "env", "value", "default", "min", "max", "unit", "when", "help"]
    rows = [{column: getattr(option, column) for column in columns} for option in config.options.values()]
    return [_Table("options", rows, {})]


_VIEWS: dict[str, Callable[[], list[_Table]]] = {
    "summary": _summary,
    "classes": lambda: [_record_table("classes", _CLASS, class_table())],
    "config": _options,
}


def _shown(value: Any, unit: str) -> str:
    """A cell as people read it."""
    if isinstance(value, bool) or not isinstance(value, (int, float)):
        return "-" if value is None else str(value)
    if unit != "bytes":
        return f"{value:.1%}" if unit == "ratio" else f"{value:,}"
    if value > 1 << 62:
        return "no limit"
    power = min((max(int(value), 1).bit_length() - 1) // 10, 4)
    inexact = value % (1 << 10 * power) > 0
    return f"{value / (1 << 10 * power):.{int(inexact)}f} {('B', 'KiB', 'MiB', 'GiB', 'TiB')[power]}"


def _as_text(table: _Table, fmt: str) -> str:
    from tabulate import tabulate

    rows, units = table.rows, table.units
    numeric = {column for row in rows for column, value in row.items() if isinstance(value, (int, float))}
    cells = [[_shown(value, units.get(column, row.get("unit", ""))) for column, value in row.items()] for row in rows]
    headers = [column.replace("_", " ") for column in rows[0]]
    alignment = ["right" if column in numeric else "left" for column in rows[0]]
    return tabulate(cells, headers, tablefmt=fmt, disable_numparse=True, colalign=alignment)


def report(view: str = "summary", fmt: str = "simple") -> str:
    """A view of the allocator as text: "summary", "classes" or "config", in any format of tabulate.

    fmt="json" gives the same rows with plain numbers: {"mode": {...}, "view": ..., "tables": {title: [row, ...]}}.
    """
    if view not in _VIEWS:
        raise ValueError(f"no view {view!r}; there are {', '.join(_VIEWS)}")
    if fmt == "json":
        tables = {table.title: table.rows for table in _VIEWS[view]()}
        return json.dumps({"mode": _mode._asdict(), "view": view, "tables": tables}, indent=1)
    from tabulate import tabulate_formats

    if fmt not in tabulate_formats:
        raise ValueError(f"no format {fmt!r}; there are json, {', '.join(tabulate_formats)}")
    heading = f"hakmem {_about.version.decode()} {_mode.variant}, {_mode.how} from {_mode.path}, process {os.getpid()}"
    return "\n\n".join([heading, *[_as_text(table, fmt) for table in _VIEWS[view]()]])


# ---- the command line --------------------------------------------------------------------------------------
def _library_for_preload(variant: Optional[str]) -> str:
    if variant is None or variant == _mode.variant:
        path = _mode.path
    else:
        build = _build_module()
        if "-DHAK_NO_OVERRIDE=1" in build.flags(variant):
            raise ValueError(f"the variant {variant} leaves malloc alone; it is for tests that link it")
        path = str(build.library(variant))
    if set(path) & set(" :"):
        advice = "copy it to a path without spaces and colons, which end a name there, and set HAKMEM_LIBRARY to that"
        raise ValueError(f"LD_PRELOAD cannot name {path!r}: {advice}")
    return path


def _real_program(command: str) -> str:
    """The path of a command; for a shim of pyenv and its like, of what the shim would start."""
    path = shutil.which(command)
    if path is None:
        raise ValueError(f"there is no program {command!r}")
    root = Path(path).absolute().parent
    if root.name == "shims":
        manager = root.parent.name.lstrip(".")
        tool = shutil.which(manager) or shutil.which(manager, path=str(root.parent / "bin"))
        found = tool and subprocess.run([tool, "which", Path(path).name], capture_output=True, text=True, check=False)
        if found and found.returncode == 0 and os.access(found.stdout.strip(), os.X_OK):
            return found.stdout.strip()
    return path


def _loader_of(program: str) -> tuple[str, str]:
    """The dynamic loader of a program, and the program: for a script that of its interpreter."""
    status = os.stat(program)
    if status.st_mode & (stat.S_ISUID | stat.S_ISGID) or "security.capability" in os.listxattr(program):
        raise ValueError(f"{program} is setuid, setgid or has capabilities: the system ignores LD_PRELOAD for it")
    with open(program, "rb") as file:
        start = file.read(4096)
        if start.startswith(b"#!"):
            return _loader_of(os.fsdecode(start[2:].split(b"\n")[0].split()[0]))
        if not start.startswith(b"\x7fELF"):
            raise ValueError(f"{program} is neither an ELF program nor a script with a #! line")
        if start[4] * 32 != struct.calcsize("P") * 8:
            raise ValueError(f"{program} is a {start[4] * 32}-bit program, hakmem is not")
        table, entry_size, entries = struct.unpack_from("=Q14xHH", start, 32)
        for index in range(entries):
            file.seek(table + index * entry_size)
            kind, _, offset, _, _, size = struct.unpack("=IIQQQQ", file.read(40))
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
        if value.lstrip("-").isdigit():
            option.check(int(value))
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
    sys.stdout.flush()
    os.execve(program, [program, *command[1:]], environment)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m hakmem", description="Run programs on hakmem, and look at it.")
    commands = parser.add_subparsers(dest="action", required=True, metavar="run | path | config | report")
    run = commands.add_parser("run", help="start a program on hakmem", usage="%(prog)s [options] -- command ...")
    run.add_argument("--variant", help="the library to preload, as build.py --list has them")
    run.add_argument("-o", dest="option", action="append", default=[], metavar="OPTION=VALUE", help="set an option")
    run.add_argument("--pythonmalloc", action="store_true", help="set PYTHONMALLOC=malloc: objects of Python as well")
    run.add_argument("command", nargs=argparse.REMAINDER, help=argparse.SUPPRESS)
    commands.add_parser("path", help="print the library's path")
    shown = commands.add_parser("config", help="print the options and their values")
    view = commands.add_parser("report", help="print a report on this process")
    view.add_argument("view", nargs="?", default="summary", choices=list(_VIEWS))
    for table in (shown, view):
        table.add_argument("--fmt", default="simple", help="json, or a format of tabulate (simple, github, html, ...)")
    return parser


def main(arguments: Optional[Sequence[str]] = None) -> int:
    """The command line; returns the exit status, unless `run` turns the process into another program."""
    options = _parser().parse_args(arguments)
    try:
        if options.action == "run":
            _run(options)
        print(_mode.path if options.action == "path" else report(getattr(options, "view", "config"), options.fmt))
    except (ValueError, RuntimeError, OSError) as error:
        print(f"hakmem: {options.action}: {error}", file=sys.stderr)
        return 125 if options.action == "run" else 1  # as env and nice do, apart from what programs return
    return 0


if __name__ == "__main__":
    sys.exit(main())
