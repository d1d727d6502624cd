"""Any module of the HEAR API, by its name: loaded, called, and what it returns checked.

Source of the API: the HEAR benchmark (hearbenchmark.com/hear-api.html).
"""

import configparser
import csv
import hashlib
import importlib
import lzma
import os
import pickle
import re
import struct
import subprocess
import sys
import tarfile
import unicodedata
import warnings
import zipfile
import zlib
from collections.abc import Mapping, Sequence
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np
import torch
from safetensors import SafetensorError
from torch import Tensor

from gram_hear.config import EMBEDDINGS
from gram_hear.errors import ModuleError, OptionError

FUNCTIONS = ("load_model", "get_scene_embeddings", "get_timestamp_embeddings")
CHANNELS_FIRST = "channels_first"
LONGEST_NAME = 120  # characters of a folder's name; file systems allow 255 bytes
DIGEST = 8  # characters of a hash in a folder's name
# What the code of others may raise; to leave (KeyboardInterrupt, SystemExit) is not a failure.
FAILURES = (
    ArithmeticError,
    AssertionError,
    AttributeError,
    BufferError,
    EOFError,
    ImportError,
    LookupError,
    NameError,
    OSError,
    ReferenceError,
    RuntimeError,
    StopIteration,
    SyntaxError,
    TypeError,
    ValueError,
    configparser.Error,
    csv.Error,
    lzma.LZMAError,
    pickle.PickleError,
    struct.error,
    subprocess.SubprocessError,
    tarfile.TarError,
    zipfile.BadZipFile,
    zlib.error,
    SafetensorError,
)
OURS = "gram_hear"


def load_model(
    name: str,
    model_path: str = "",
    options: Mapping[str, Any] = MappingProxyType({}),
    *,
    device: str = "auto",
) -> "HearModule":
    """Import a HEAR module and load its model.

    The current folder is searched too, as with ``python -m``, but last: a file in it cannot take
    the place of an installed package.

    Args:
        name: the module's dotted name.
        model_path: the first argument of its ``load_model``; with "" it gets none.
        options: keywords of its ``load_model``.
        device: ``"cpu"``, ``"cuda"``, or another of PyTorch's; ``"auto"`` is CUDA where it is. The
            model is moved there, and its audio made there, as the original kit does.

    Raises:
        ModuleError: where the module cannot be imported, lacks a function of the API, or its
            model cannot be loaded or lacks an attribute.
        OptionError: for a device that is not there.
    """
    place = find_device(device)
    module = _import(name)
    for function in FUNCTIONS:
        if not callable(getattr(module, function, None)):
            raise ModuleError(
                f"{name} ({_where(module)}) has no function {function}; a HEAR module has "
                f"{', '.join(FUNCTIONS)}."
            )
    try:
        model = module.load_model(*[model_path] * bool(model_path), **options)
    except FAILURES as error:
        given = ", ".join(
            [repr(model_path)] * bool(model_path)
            + [f"{key}={value!r}" for key, value in options.items()]
        )
        raise ModuleError(f"{name}.load_model({given}) failed: {_reason(error)}") from error
    return HearModule(name, model_path, dict(options), module, model, place)


def find_device(name: str) -> torch.device:
    """Return a device by PyTorch's name for it; ``"auto"`` is CUDA where it is, else the CPU.

    Raises:
        OptionError: for a device that is not there.
    """
    if name == "auto":
        return torch.device("cuda" if torch.cuda.is_available() else "cpu")
    try:
        device = torch.device(name)
        torch.empty(0, device=device).tolist()  # a device that holds no values, as meta, fails
    except (RuntimeError, AssertionError) as error:
        raise OptionError(
            f"The device {name!r} is not available here ({_reason(error)}). Use 'cpu', or 'auto' "
            "for CUDA where it is."
        ) from error
    return device


def _import(name: str) -> ModuleType:
    if name.endswith(".py") or not all(part.isidentifier() for part in name.split(".")):
        advice = re.sub(r"[/\\]+", ".", name.removesuffix(".py")).strip(".")
        raise ModuleError(
            f"{name!r} is no module's name; give the name that Python imports it by"
            + (f", as {advice}." if all(map(str.isidentifier, advice.split("."))) else ".")
        )
    if (here := os.getcwd()) not in sys.path:
        sys.path.append(here)  # for good: the module may import its neighbours later
    try:
        return importlib.import_module(name)
    except ModuleNotFoundError as error:
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise ModuleError(
                f"There is no module {error.name!r}; install it, or run in the folder that "
                f"{error.name}.py lies in (here: {here})."
            ) from error
        raise ModuleError(
            f"{name} imports {error.name!r}, which is not there; install it."
        ) from error
    except FAILURES as error:
        raise ModuleError(f"Importing {name} failed: {_reason(error)}") from error


def _where(module: ModuleType) -> str:
    return getattr(module, "__file__", None) or "built in"


def _reason(error: BaseException) -> str:
    """Return an error's kind and the first lines of its message."""
    message = str(error).strip()
    return f"{type(error).__name__}: {message[:1000]}" if message else type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error says that memory was short, on a GPU or not."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    message = str(error).lower()
    return isinstance(error, RuntimeError) and (
        "out of memory" in message or "can't allocate memory" in message
    )


class HearModule:
    """A HEAR module with its model: numpy in, numpy out, every result checked.

    Attributes:
        name: the module's dotted name.
        model_path: what its ``load_model`` was given, or "".
        options: keywords that its ``load_model`` was given.
        model: what it returned.
        code: what tells versions of the module's code apart: the SHA-256 of its source, of all .py
            files where it is a package or in one; for gram_hear its version, and the number of
            its embeddings.
        sample_rate: of the audio that the model takes, in Hz.
        scene_embedding_size, timestamp_embedding_size: d of the embeddings.
        multichannel: whether the model takes (n, channels, samples).
        device: where the audio is made.
    """

    def __init__(
        self,
        name: str,
        model_path: str,
        options: dict[str, Any],
        module: ModuleType,
        model: Any,
        device: torch.device,
    ) -> None:
        self.name = name
        self.model_path = model_path
        self.options = options
        self.module = module
        self.code = _code_of(name)  # now: later the file may be another than what was imported
        _refuse_tensorflow(f"{name}.load_model returned", model)
        self.sample_rate = _size(name, model, "sample_rate")
        self.scene_embedding_size = _size(name, model, "scene_embedding_size")
        self.timestamp_embedding_size = _size(name, model, "timestamp_embedding_size")
        self.multichannel = getattr(model, "multichannel", None) == CHANNELS_FIRST
        self.model = model
        self.device = device
        if isinstance(model, torch.nn.Module):
            try:
                model.to(device)
            except FAILURES as error:
                raise ModuleError(
                    f"The model of {name} cannot be moved to {device}: {_reason(error)}"
                ) from error
        self._warned: set[str] = set()

    # --- who it is ---

    @cached_property
    def model_digest(self) -> str:
        """The SHA-256 of the model file, or of a folder's files and their names; "" for neither."""
        path = Path(self.model_path)
        if self.model_path and path.is_file():
            return _hash_file(path)
        return _hash_folder(path, "*") if self.model_path and path.is_dir() else ""

    @cached_property
    def weights(self) -> str:
        """:attr:`model_digest`; for gram_hear, whose models have names, that of what it loaded."""
        if self.name.split(".")[0] == OURS:
            return self.model.source.sha256() or self.model_digest
        return self.model_digest

    @property
    def folder_name(self) -> str:
        """The name of the folder of this module's embeddings, of [A-Za-z0-9._=-].

        ``MODULE-key=value-...`` as the original kit calls it: keys and values in lower case, and
        whatever is neither letter nor digit a hyphen. A model goes between, which the kit leaves
        out: ``-model=`` and its name, for a file (without its suffix) or a folder with 8 digits of
        its content's SHA-256; for a name that had to be changed, with 8 of the name's. A name
        longer than 120 characters is cut, and gets 8 digits of the whole name's.
        """
        parts = [self.name, *([f"model={self._model_name()}"] if self.model_path else [])]
        parts += [f"{_slug(key)}={_slug(str(value))}" for key, value in self.options.items()]
        name = re.sub(r"[^A-Za-z0-9._=-]", "-", "-".join(parts))
        if len(name) > LONGEST_NAME:
            return f"{name[: LONGEST_NAME - DIGEST - 1]}-{_digest(name)}"
        return name

    def _model_name(self) -> str:
        path = Path(self.model_path)
        if self.model_digest:
            called = path.resolve().name if path.is_dir() else path.stem
            return f"{_slug(called)}-{self.model_digest[:DIGEST]}"
        slug = _slug(path.name)
        return slug if slug == self.model_path else f"{slug}-{_digest(self.model_path)}"

    # --- what it says ---

    def scenes(self, audio: np.ndarray, names: Sequence[str] = ()) -> np.ndarray:
        """Embed whole clips.

        Args:
            audio: (n, samples), or with several channels whichever way the model takes them;
                float32 at :attr:`sample_rate`.
            names: what messages call the clips; by default clip 0, clip 1, ...

        Returns:
            (n, d) float32.

        Raises:
            ModuleError: for a result that breaks the API, or a failure of the module.
            MemoryError, RuntimeError: where memory is short, see :func:`is_out_of_memory`.
        """
        place = f"{self.name}.get_scene_embeddings"
        result = self._call("get_scene_embeddings", audio)
        embeddings = self._embeddings(place, result, (len(audio), self.scene_embedding_size))
        _check_finite(place, embeddings, names)
        return embeddings

    def timestamps(
        self, audio: np.ndarray, names: Sequence[str] = ()
    ) -> tuple[np.ndarray, np.ndarray]:
        """Embed clips over time.

        Args:
            audio, names: as for :meth:`scenes`.

        Returns:
            Embeddings (n, t, d) float32 and timestamps (n, t) float64 in milliseconds.

        Raises:
            ModuleError, MemoryError, RuntimeError: as for :meth:`scenes`.
        """
        place = f"{self.name}.get_timestamp_embeddings"
        result = self._call("get_timestamp_embeddings", audio)
        if not isinstance(result, tuple | list) or len(result) != 2:
            raise ModuleError(
                f"{place} returned {_kind(result)}; it must return two tensors: embeddings (n, t, "
                "d) and timestamps (n, t)."
            )
        shape = (len(audio), None, self.timestamp_embedding_size)
        embeddings = self._embeddings(place, result[0], shape)
        _check_finite(place, embeddings, names)
        return embeddings, self._timestamps(place, result[1], embeddings.shape[:2])

    def _call(self, function: str, audio: np.ndarray) -> Any:
        tensor = torch.from_numpy(np.ascontiguousarray(audio, dtype=np.float32)).to(self.device)
        try:
            with torch.no_grad():
                return getattr(self.module, function)(tensor, self.model)
        except FAILURES as error:
            if is_out_of_memory(error):
                raise
            raise ModuleError(
                f"{self.name}.{function} failed with audio {tuple(tensor.shape)}: {_reason(error)}"
            ) from error

    def _embeddings(self, place: str, result: Any, shape: tuple[int | None, ...]) -> np.ndarray:
        """Check embeddings and return them as float32; None in ``shape`` is any size from 1 on."""
        tensor = _tensor(place, result)
        fits = tensor.dim() == len(shape) and all(
            size == wanted if wanted is not None else size > 0
            for size, wanted in zip(tensor.shape, shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("t" if size is None else str(size) for size in shape)
            size = "scene_embedding_size" if len(shape) == 2 else "timestamp_embedding_size"
            raise ModuleError(
                f"{place} returned embeddings of shape {tuple(tensor.shape)}; expected was "
                f"({wanted}): {shape[0]} clips were given, and the model's {size} is {shape[-1]}."
            )
        if not tensor.dtype.is_floating_point:
            raise ModuleError(f"{place} returned {tensor.dtype} embeddings; they must be float32.")
        if tensor.dtype != torch.float32:
            self._warn(f"{place} returned {tensor.dtype} embeddings; they were made float32.")
        return tensor.detach().to("cpu", torch.float32).numpy()

    def _timestamps(self, place: str, result: Any, shape: tuple[int, ...]) -> np.ndarray:
        tensor = _tensor(place, result)
        if tuple(tensor.shape) != shape:
            raise ModuleError(
                f"{place} returned timestamps of shape {tuple(tensor.shape)}; expected was "
                f"{shape}, one for each embedding."
            )
        if tensor.dtype.is_complex or tensor.dtype == torch.bool:
            raise ModuleError(f"{place} returned {tensor.dtype} timestamps; they must be float32.")
        times = tensor.detach().to("cpu", torch.float64).numpy()
        if not np.isfinite(times).all():
            raise ModuleError(f"{place} returned timestamps that are not finite.")
        if (times != times[0]).any():
            clip = int((times != times[0]).any(axis=1).argmax())
            raise ModuleError(
                f"{place} returned other timestamps for clip {clip} than for clip 0, of the same "
                "length; they must be equal."
            )
        if times[0, 0] < 0:
            raise ModuleError(
                f"{place} returned a first timestamp of {times[0, 0]:g} ms; it must not be "
                "negative."
            )
        steps = np.diff(times[0])
        if (steps <= 0).any():
            i = int((steps <= 0).argmax())
            raise ModuleError(
                f"{place} returned timestamps that do not increase: {times[0, i]:g} ms is followed "
                f"by {times[0, i + 1]:g} ms."
            )
        return times

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, stacklevel=4)


def _size(name: str, model: Any, attribute: str) -> int:
    if not hasattr(model, attribute):
        raise ModuleError(
            f"The model of {name}, a {type(model).__name__}, has no attribute {attribute}; it must "
            "have sample_rate, scene_embedding_size and timestamp_embedding_size, all int."
        )
    value = getattr(model, attribute)
    if not isinstance(value, int) or isinstance(value, bool) or value < 1:
        raise ModuleError(
            f"The model of {name} has {attribute} = {value!r} ({type(value).__name__}); it must be "
            "an int above 0."
        )
    return value


def _tensor(place: str, result: Any) -> Tensor:
    _refuse_tensorflow(f"{place} returned", result)
    if not isinstance(result, Tensor):
        raise ModuleError(f"{place} returned {_kind(result)}; it must be a torch.Tensor.")
    return result


def _refuse_tensorflow(what: str, value: Any) -> None:
    if any(
        kind.__module__.split(".")[0] in ("tensorflow", "keras") for kind in type(value).__mro__
    ):
        raise ModuleError(
            f"{what} a {type(value).__name__} of TensorFlow; only modules of PyTorch can be "
            "evaluated here."
        )


def _kind(value: Any) -> str:
    kind = f"{type(value).__module__}.{type(value).__qualname__}".removeprefix("builtins.")
    return f"{kind} of {len(value)}" if isinstance(value, tuple | list) else kind


def _check_finite(place: str, embeddings: np.ndarray, names: Sequence[str]) -> None:
    wrong = ~np.isfinite(embeddings).reshape(len(embeddings), -1).all(axis=1)
    if wrong.any():
        called = [names[i] if names else f"clip {i}" for i in wrong.nonzero()[0].tolist()]
        more = f" and {len(called) - 5} more" if len(called) > 5 else ""
        raise ModuleError(
            f"{place} returned NaN or infinite values for {', '.join(called[:5])}{more}."
        )


def _slug(text: str) -> str:
    """Return letters and digits in lower case, and a hyphen for whatever stands between them."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")


def _code_of(name: str) -> str:
    """Return what :attr:`HearModule.code` is, of an imported module."""
    parts = name.split(".")
    if parts[0] == OURS:
        return f"gram-hear {version('gram-hear')}, embeddings {EMBEDDINGS}"
    # From the outermost package on: its modules import each other. Some are mere folders.
    names = [".".join(parts[: i + 1]) for i in range(len(parts))]
    found = (getattr(sys.modules.get(each), "__file__", None) for each in names)
    path = Path(next((file for file in found if file), ""))
    if not path.is_file():
        return ""
    return _hash_folder(path.parent, "*.py") if path.name == "__init__.py" else _hash_file(path)


def _hash_folder(folder: Path, pattern: str) -> str:
    """Return the SHA-256 of the names and contents of files below a folder."""
    digest = hashlib.sha256()
    for path in sorted(path for path in folder.rglob(pattern) if path.is_file()):
        digest.update(f"{path.relative_to(folder).as_posix()}\0{_hash_file(path)}\n".encode())
    return digest.hexdigest()


def _hash_file(path: Path) -> str:
    digest = hashlib.sha256()
    try:
        with open(path, "rb") as file:
            while block := file.read(2**20):
                digest.update(block)
    except OSError as error:
        raise ModuleError(f"{path} cannot be read: {error.strerror or error}.") from error
    return digest.hexdigest()


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST]
