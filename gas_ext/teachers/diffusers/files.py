"""Models of diffusers on disk: safetensors weights and configurations; none of their code is run."""

from __future__ import annotations

import json
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from torch import nn

from gas_ext._utils.building import counted
from gas_ext._utils.optional import require
from gas_ext._utils.records import check_record, parse_json, reason_of
from gas_ext.teachers.diffusers.networks import NETWORKS
from gas_ext.teachers.diffusers.parts import Parts, convert, parts_of
from gas_ext.teachers.hub import UNUSED_PARTS, fetch_pipeline, has_variant, parse_hub_reference

_INDEX = "model_index.json"
_LIBRARIES = ("diffusers", "transformers")
_ORIGIN = ("_name_or_path", "is_local", "local_files_only")


def load_model(
    source: str | os.PathLike[str],
    *,
    revision: str | None = None,
    variant: str | None = None,
    dtype: torch.dtype = torch.float32,
) -> Any:
    """Load a pipeline or a network from a folder or the hub; options as for `from_diffusers`."""
    folder = Path(source)
    if not folder.is_dir():
        reference = parse_hub_reference(str(source))
        if folder.exists() or reference is None or reference[1] is not None:
            raise ValueError(
                f"There is no folder {source}, and it is not a name on the hub (owner/name) either; convert "
                "a single file of weights with gas-ext import."
            )
        folder = fetch_pipeline(reference[0], revision, variant)
    if not has_variant(folder, variant):
        raise ValueError(f"{folder} holds no weights of the variant {variant!r}; leave variant out.")
    if (folder / _INDEX).is_file():
        return _load_pipeline(folder, lambda name: dtype, variant)
    if (folder / "config.json").is_file():
        return _load_network(folder, dtype, variant)
    raise ValueError(f"{folder} holds no diffusers model: it has neither {_INDEX} nor config.json.")


def _load_pipeline(folder: Path, dtype_of: Callable[[str], torch.dtype], variant: str | None = None) -> Any:
    """Load a pipeline from a folder, without the network and without the `UNUSED_PARTS`."""
    diffusers = require("diffusers", "diffusers")
    index = _read_json(folder / _INDEX)
    components = {name: entry for name, entry in index.items() if isinstance(entry, list) and len(entry) == 2}
    _check_no_code(folder, index, components)
    parts: dict[str, Any] = {}
    for name, (library, class_name) in components.items():
        if library is None or name in UNUSED_PARTS:
            parts[name] = None  # must be passed explicitly where a pipeline requires it
            continue
        cls = getattr(_library(library), str(class_name), None)
        if isinstance(cls, type) and issubclass(cls, nn.Module):
            parts[name] = _load_module(cls, folder / name, dtype_of(name), variant)
    options = {"requires_safety_checker": False} if "requires_safety_checker" in index else {}
    with _loading(folder):
        return diffusers.DiffusionPipeline.from_pretrained(folder, local_files_only=True, **parts, **options)


def _library(name: str) -> Any:
    """Return where the classes of an entry of the index are: a library, or a pipeline's own module."""
    if name in _LIBRARIES:
        return require(name, "diffusers")
    return getattr(require("diffusers", "diffusers").pipelines, name)


def _load_module(cls: Any, folder: Path, dtype: torch.dtype, variant: str | None = None) -> nn.Module:
    """Load a module if no weight is missing: diffusers would replace missing ones by random numbers."""
    with _loading(folder), counted(_names_in(folder)):
        module, report = cls.from_pretrained(
            folder,
            use_safetensors=True,
            local_files_only=True,
            torch_dtype=dtype,
            variant=variant if has_variant(folder, variant) else None,
            output_loading_info=True,
        )
    missing = sorted(report["missing_keys"])
    if missing:
        raise ValueError(
            f"{folder} lacks weights of its {cls.__name__}, {len(missing)} in all ({missing[0]}, ...); get a "
            "fresh copy."
        )
    convert(module, dtype)  # a version of diffusers may ignore "torch_dtype"
    loaded: nn.Module = module
    return loaded


def _names_in(folder: Path) -> list[str]:
    """Return the names of all tensors in a folder's safetensors files."""
    names: list[str] = []
    for path in folder.glob("*.safetensors"):
        with safe_open(path, framework="pt") as file:
            names += file.keys()
    return names


def _check_no_code(folder: Path, index: Mapping[str, Any], components: Mapping[str, list[Any]]) -> None:
    """Refuse folders with custom classes, whose code older versions of diffusers would run."""
    diffusers = require("diffusers", "diffusers")
    own = [] if isinstance(index.get("_class_name"), str) else [str(index.get("_class_name"))]
    for name, (library, class_name) in components.items():
        if library is None:
            continue
        known = library in _LIBRARIES or hasattr(diffusers.pipelines, str(library))
        if not known or (folder / name / f"{library}.py").exists():
            own.append(f"{library}.{class_name}")
    if own:
        raise ValueError(
            f"{folder} requires running code that comes with it ({', '.join(own)}), which is refused; only "
            "classes of diffusers and transformers are loaded."
        )


def _load_network(folder: Path, dtype: torch.dtype, variant: str | None) -> nn.Module:
    name = _read_json(folder / "config.json").get("_class_name")
    if not isinstance(name, str) or name not in NETWORKS:
        raise ValueError(f"{folder} holds a {name}, but expected a pipeline or one of {', '.join(NETWORKS)}.")
    return _load_module(_own_class(folder, name), folder, dtype, variant)


def _own_class(folder: Path, name: str) -> Any:
    """Return a class of modules or schedulers of diffusers by its name; ValueError for any other."""
    diffusers = require("diffusers", "diffusers")
    cls = getattr(diffusers, name, None)
    if not isinstance(cls, type) or not issubclass(cls, diffusers.ModelMixin | diffusers.SchedulerMixin):
        raise ValueError(f"{folder} names a {name}, which is not a module or scheduler of diffusers.")
    return cls


def save_parts(parts: Parts, folder: Path) -> dict[str, Any]:
    """Write all parts into an empty folder; return what `load_parts` needs in addition."""
    named = {"network": parts.network, "scheduler": parts.scheduler, "vae": parts.vae}
    if parts.pipeline is not None:
        named = dict(parts.pipeline.components)
    named = {name: part for name, part in named.items() if part is not None}
    class_name = type(parts.network).__name__
    if not hasattr(require("diffusers", "diffusers"), class_name):
        raise TypeError(
            f"A {class_name} is not a class of diffusers and cannot be saved to a folder; save the network "
            "yourself."
        )
    for part in named.values():
        backend = getattr(part, "backend_tokenizer", None)
        if backend is not None:  # else the file would depend on how the tokenizer was last called
            backend.no_truncation()
            backend.no_padding()
    with _bars_on_a_terminal_only():
        if parts.pipeline is not None:
            parts.pipeline.save_pretrained(folder / "pipeline", safe_serialization=True)
        else:
            for name, part in named.items():
                part.save_pretrained(folder / name)
    for path in (*folder.rglob("*config.json"), *folder.rglob(_INDEX)):
        _forget_origin(path)
    modules = {name: part for name, part in named.items() if isinstance(part, nn.Module)}
    return {
        "pipeline": parts.pipeline is not None,
        "classes": {name: type(part).__name__ for name, part in named.items()},
        "dtypes": {name: str(module.dtype).removeprefix("torch.") for name, module in modules.items()},
    }


def load_parts(folder: Path, config: Mapping[str, Any]) -> Parts:
    """Rebuild what `save_parts` wrote."""
    dtypes = {name: getattr(torch, dtype) for name, dtype in config["dtypes"].items()}
    if config["pipeline"]:
        return parts_of(_load_pipeline(folder / "pipeline", dtypes.__getitem__))
    loaded: dict[str, Any] = {}
    for name, class_name in config["classes"].items():
        path, cls = folder / name, _own_class(folder, class_name)
        if name in dtypes:
            loaded[name] = _load_module(cls, path, dtypes[name])
        else:
            with _loading(path):
                loaded[name] = cls.from_pretrained(path, local_files_only=True)
    return parts_of(loaded["network"], loaded["scheduler"], loaded.get("vae"))


def _read_json(path: Path) -> dict[str, Any]:
    return check_record(parse_json(path.read_bytes(), path), {}, path)


def _forget_origin(path: Path) -> None:
    """Remove from a configuration where and how it was loaded, so that a copy has the same bits."""
    rest = {key: value for key, value in _read_json(path).items() if key not in _ORIGIN}
    path.write_text(json.dumps(rest, indent=2, sort_keys=True) + "\n")


@contextmanager
def _loading(folder: Path) -> Iterator[None]:
    """Turn errors of diffusers into a ValueError that names the folder, and silence its warnings.

    Newer versions of diffusers call ``torch_dtype`` ``dtype``, which older ones do not accept.
    """
    try:
        with _bars_on_a_terminal_only(), warnings.catch_warnings():
            warnings.filterwarnings("ignore", category=FutureWarning, message=".*torch_dtype.*")
            yield
    except (
        *(OSError, ValueError, TypeError, LookupError, AttributeError, RuntimeError),
        *(ArithmeticError, NameError, SafetensorError),  # a name that a hostile config leaves unbound
    ) as error:
        reason = reason_of(error)
        raise ValueError(f"{folder} cannot be loaded as a diffusers model: {reason}.") from error


@contextmanager
def _bars_on_a_terminal_only() -> Iterator[None]:
    """Keep the progress bars of diffusers and transformers out of log files."""
    modules = [require(f"{library}.utils.logging", "diffusers") for library in _LIBRARIES]
    shown = [] if sys.stderr.isatty() else [module for module in modules if module.is_progress_bar_enabled()]
    for module in shown:
        module.disable_progress_bar()
    try:
        yield
    finally:
        for module in shown:
            module.enable_progress_bar()
