"""Fills the registry: the built-in algorithms, then the plug-ins, and keeps the reason of whatever is broken.

A plug-in is an installed package with an entry point in the group `convbench.algorithms`; importing what it
names must register at least one implementation. Importing runs the plug-in's code in this process: one that
crashes or hangs takes the process along, so the parent asks through `probe.py` and hands on what to skip.
Standard library only; array libraries come with the algorithms.
"""

from __future__ import annotations

import ast
import hashlib
import importlib
import importlib.metadata
import pkgutil
import sys
import threading
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from types import CodeType

from convbench import __version__, registry, resources
from convbench.errors import OutputError, RegistrationError
from convbench.registry import Implementation

GROUP = "convbench.algorithms"
BUILT_IN = "convbench.algorithms"
#: What every algorithm imports anyway: a change there is a change of convbench, not of one algorithm.
CONTRACT = tuple(f"convbench.{m}" for m in ("errors", "problem", "registry", "descriptor", "devices"))

Progress = Callable[[str], None]


@dataclass(frozen=True)
class Broken:
    """A built-in module or plug-in that could not be loaded; `origin` is its module or distribution."""

    name: str
    origin: str
    reason: str


@dataclass(frozen=True)
class Origin:
    """Where an implementation came from; `plugin` is None for a built-in one."""

    plugin: str | None
    distribution: str
    version: str


@dataclass
class Catalog:
    """What is registered, by name; what is broken; and where each implementation came from."""

    implementations: dict[str, Implementation]
    broken: list[Broken]
    origins: dict[str, Origin] = field(default_factory=dict)


_lock = threading.RLock()
_broken: dict[str, Broken] = {}
_origins: dict[str, Origin] = {}
_loaded = False


def load(skip: Collection[str] = (), progress: Progress | None = None) -> Catalog:
    """Imports every algorithm once in the life of the process, and says what there is.

    skip: names of plug-ins (or of built-in modules) that are not imported and appear as Broken; a dict gives
    the reason of each. progress: called with "built-in NAME" or "plug-in NAME" before each import. An
    exception while one is imported, SystemExit included, makes it Broken and takes back what it had
    registered; the others are not touched. Later calls import nothing and ignore both arguments; they see
    what was registered since.
    """
    global _loaded
    with _lock:
        if not _loaded:
            reasons = dict(skip) if isinstance(skip, Mapping) else dict.fromkeys(skip, "skipped on request")
            say = progress or (lambda text: None)
            _load_built_in(reasons, say)
            _load_plugins(reasons, say)
            _loaded = True
        return snapshot()


def snapshot() -> Catalog:
    """What is registered now, without importing anything."""
    found = registry.implementations()
    origins = {name: _origins.get(name) or _guessed_origin(row) for name, row in found.items()}
    return Catalog(found, sorted(_broken.values(), key=lambda b: b.name), origins)


def _load_built_in(skip: Mapping[str, str], say: Progress) -> None:
    own = Origin(None, "convbench", __version__)
    for module in _built_in_modules():
        name = module.removeprefix(BUILT_IN + ".")
        if name in skip:
            _broken[name] = Broken(name, module, skip[name])
            continue
        say(f"built-in {name}")
        _guarded(name, module, own, lambda module=module: importlib.import_module(module))  # type: ignore[misc]


def _built_in_modules() -> Iterator[str]:
    """Modules and packages under convbench.algorithms, those whose name begins with `_` left out."""
    package = importlib.import_module(BUILT_IN)
    pending = [(BUILT_IN, list(package.__path__))]
    while pending:
        prefix, path = pending.pop(0)
        for info in sorted(pkgutil.iter_modules(path), key=lambda i: i.name):
            if info.name.startswith("_"):
                continue
            yield f"{prefix}.{info.name}"
            if info.ispkg:
                pending.append((f"{prefix}.{info.name}", [str(Path(p) / info.name) for p in path]))


def _load_plugins(skip: Mapping[str, str], say: Progress) -> None:
    points = sorted(importlib.metadata.entry_points(group=GROUP), key=lambda p: (p.name, p.value))
    for point in points:
        distribution = point.dist.name if point.dist and point.dist.name else "unknown"
        version = (point.dist.version if point.dist else None) or "unknown"
        twins = [p for p in points if p.name == point.name]
        name = point.name if len(twins) == 1 else f"{point.name} ({distribution}: {point.value})"
        origin = Origin(name, distribution, version)
        if name in skip:
            _broken[name] = Broken(name, distribution, skip[name])
            continue
        say(f"plug-in {name}")
        _guarded(name, distribution, origin, lambda point=point: _import_plugin(point))  # type: ignore[misc]


def _import_plugin(point: importlib.metadata.EntryPoint) -> None:
    point.load()
    package = point.module.split(".")[0]
    if not any(type(i).__module__.split(".")[0] == package for i in registry.implementations().values()):
        raise RegistrationError(f"{point.value} registered nothing: decorate its class with @register")


def _guarded(name: str, where: str, origin: Origin, load_one: Callable[[], object]) -> None:
    """Runs one import; what it registered is kept together with its origin, or taken back if it failed."""
    before = set(registry.implementations())
    try:
        load_one()
    except (Exception, SystemExit) as error:  # noqa: BLE001 - whatever a stranger's import raises becomes its reason
        for row in set(registry.implementations()) - before:
            registry.unregister(row)
        kind = "plug-in" if origin.plugin else "built-in algorithm"
        _broken[name] = Broken(name, where, f"{kind} {name} raised on import: {_one_line(error)}")
        return
    for row in set(registry.implementations()) - before:
        _origins[row] = origin


def _one_line(error: BaseException) -> str:
    text = " ".join(str(error).split())
    return f"{type(error).__name__}: {text}" if text else type(error).__name__


def _guessed_origin(implementation: Implementation) -> Origin:
    """For what was registered without `load`: its top-level package, taken for the distribution's name."""
    package = type(implementation).__module__.split(".")[0]
    return Origin(None, package, __version__ if package == "convbench" else _version(package))


def _version(distribution: str) -> str:
    try:
        return importlib.metadata.version(distribution)
    except importlib.metadata.PackageNotFoundError:
        return "unknown"


# ---- source hashes


def source_sha(implementation: Implementation) -> str:
    """Twelve hexadecimal digits of the source that an implementation consists of.

    That is the module of its class and of the classes it derives from, and every module of the same package
    (convbench or the plug-in's) that those import, at the top or inside a function, transitively; the
    contract that all share (CONTRACT) and other packages are left out. A class without a source file is
    identified by the compiled code of its methods. For convbench's rows on a GPU every kernel file counts too.
    Nothing is imported.
    """
    classes = [c for c in type(implementation).__mro__ if c not in (object, Implementation)]
    pending = [c.__module__ for c in classes if not _is_contract(c.__module__)]
    packages = {name.split(".")[0] for name in pending}
    sources: dict[str, bytes] = {}
    while pending:
        name = pending.pop()
        if name in sources:
            continue
        path = _source_path(name)
        if path is None:
            sources[name] = b"".join(_compiled(c) for c in classes if c.__module__ == name)
            continue
        sources[name] = path.read_bytes()
        for other in _imports(sources[name], name, is_package=path.name == "__init__.py"):
            if other.split(".")[0] in packages and not _is_contract(other) and _source_path(other):
                pending.append(other)
    if implementation.device == "cuda" and "convbench" in packages:
        sources |= {f"kernels/cuda/{path.name}": path.read_bytes() for path in _kernels()}
    digest = hashlib.sha256()
    for name in sorted(sources):
        digest.update(name.encode() + b"\0" + hashlib.sha256(sources[name]).digest())
    return digest.hexdigest()[:12]


def _kernels() -> list[Path]:
    """Every file of kernels/cuda that is compiled; none where they are not installed."""
    try:
        root = resources.folder("kernels") / "cuda"
    except OutputError:
        return []
    return sorted(p for p in root.rglob("*.cu*") if p.is_file())


def _is_contract(module: str) -> bool:
    return module == "convbench" or any(module == c or module.startswith(c + ".") for c in CONTRACT)


def _source_path(module: str) -> Path | None:
    """The .py file of a module, or None (no such module, no source); imports nothing."""
    loaded = getattr(sys.modules.get(module), "__file__", None)
    if loaded is None:
        top, *rest = module.split(".")
        root = getattr(sys.modules.get(top), "__file__", None)
        if root is None or not rest:
            return None
        folder = Path(root).parent.joinpath(*rest)
        loaded = folder / "__init__.py" if folder.is_dir() else folder.with_name(folder.name + ".py")
    path = Path(loaded)
    return path if path.suffix == ".py" and path.is_file() else None


def _imports(source: bytes, module: str, is_package: bool) -> Iterator[str]:
    """Names of all modules that a source imports; `from a import b` gives a and a.b, one of which exists."""
    package = module if is_package else module.rpartition(".")[0]
    for node in ast.walk(ast.parse(source)):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            base = node.module or ""
            if node.level:
                parent = package.rsplit(".", node.level - 1)[0] if node.level > 1 else package
                base = f"{parent}.{base}" if base else parent
            yield base
            yield from (f"{base}.{alias.name}" for alias in node.names)


def _compiled(cls: type) -> bytes:
    parts = [cls.__qualname__.encode()]
    for name, value in sorted(vars(cls).items()):
        code = getattr(value, "__code__", None)
        if isinstance(code, CodeType):
            parts.append(name.encode() + code.co_code + repr(code.co_names).encode())
    return b"\0".join(parts)
