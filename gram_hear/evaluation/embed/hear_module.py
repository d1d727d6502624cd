"""Any module of the HEAR API, by its name: loaded, called, and what it returns checked.

Source of the API: the HEAR benchmark (hearbenchmark.com/hear-api.html).
"""

import hashlib
import importlib
import os
import re
import sys
import traceback
import unicodedata
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import cached_property
from importlib.metadata import version
from pathlib import Path
from types import MappingProxyType, ModuleType
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gram_hear.config import EMBEDDINGS, SOUND_RATES
from gram_hear.devices import find_device
from gram_hear.errors import GramError, ModuleError, reason_of, short, some

FUNCTIONS = ("load_model", "get_scene_embeddings", "get_timestamp_embeddings")
CHANNELS_FIRST = "channels_first"
LONGEST_NAME = 120  # characters of a folder's name; file systems allow 255 bytes
DIGEST = 8  # characters of a hash in a folder's name
LARGEST_SIZE = 2**20  # numbers in an embedding
OURS = "gram_hear"


def load_model(
    name: str,
    model_path: str = "",
    options: Mapping[str, Any] = MappingProxyType({}),
    *,
    device: str = "auto",
) -> "HearModule":
    """Import a HEAR module and load its model.

    The current folder is searched too, as with ``python -m``, but last: a file in it cannot stand
    in for an installed package.

    Args:
        name: the module's dotted name.
        model_path: the first argument of its ``load_model``; with "" it gets none.
        options: keywords of its ``load_model``.
        device: ``"cpu"``, ``"cuda"``, or another of PyTorch's; ``"auto"`` is CUDA, then MPS, then
            the CPU. The model is moved there, and its audio made there, as the original kit does.

    Raises:
        ModuleError: where the module cannot be imported, lacks a function of the API, or its
            model cannot be loaded or lacks an attribute.
        OptionError: for a device that is not there.
    """
    found = find_device(device)
    module = _import(name)
    for function in FUNCTIONS:
        with _foreign(f"Looking for {name}.{function} failed"):
            there = callable(getattr(module, function, None))
        if not there:
            where = getattr(module, "__file__", None) or "built in"
            raise ModuleError(
                f"{name} ({where}) has no function {function}; a HEAR module has "
                f"{', '.join(FUNCTIONS)}."
            )
    given = ", ".join(
        [repr(model_path)] * bool(model_path)
        + [f"{key}={value!r}" for key, value in options.items()]
    )
    with _foreign(f"{name}.load_model({given}) failed"):
        model = module.load_model(*[model_path] * bool(model_path), **options)
    return HearModule(name, model_path, dict(options), module, model, found)


@contextmanager
def _foreign(failure: str, *, memory_is_short: bool = False) -> Iterator[None]:
    """Run other people's code: whatever it raises becomes a ModuleError, with that as its cause.

    This is the one boundary behind which any exception may come. Code that calls ``sys.exit``
    fails too: the run would end as if all were done. Ctrl-C still ends the run.

    Args:
        failure: how the message begins.
        memory_is_short: whether errors that :func:`is_out_of_memory` are left as they are.
    """
    try:
        yield
    except (Exception, SystemExit) as error:
        if memory_is_short and is_out_of_memory(error):
            raise
        raise ModuleError(f"{failure}: {_reason(error)}") from error


def is_ours(name: str) -> bool:
    """Whether the module of this name is gram_hear, or in it."""
    return name.split(".")[0] == OURS


def traceback_of(error: BaseException, name: str) -> str:
    """Return the traceback of other people's code behind an error; "" where there is none.

    Args:
        error: whatever was raised.
        name: of the module. What gram_hear raises on purpose needs no traceback if it was asked
            itself, and one if other people's module called it.
    """
    cause = error.__cause__
    if not isinstance(error, ModuleError) or cause is None:
        return ""
    if is_ours(name) and isinstance(cause, GramError):
        return ""
    return "".join(traceback.format_exception(cause))


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
        with _foreign(f"Importing {name} failed"):
            return importlib.import_module(name)
    except ModuleError as failure:
        error = failure.__cause__
        if not isinstance(error, ModuleNotFoundError):
            raise
        if error.name is not None and f"{name}.".startswith(f"{error.name}."):
            raise ModuleError(
                f"There is no module {error.name!r}; install it, or run in the folder that "
                f"{error.name}.py lies in (here: {here})."
            ) from None
        raise ModuleError(
            f"{name} imports {error.name!r}, which is not there; install it."
        ) from error


def _reason(error: BaseException) -> str:
    """Return an error's kind and the beginning of its message, on one line."""
    if isinstance(error, SystemExit):
        return f"it called sys.exit({error.code!r})"
    # This class survives exceptions that have no text.
    message = " ".join(str(traceback.TracebackException.from_exception(error)).split())
    return f"{type(error).__name__}: {message[:1000]}" if message else type(error).__name__


def is_out_of_memory(error: BaseException) -> bool:
    """Whether an error means that memory ran out, on a GPU or not."""
    if isinstance(error, MemoryError | torch.OutOfMemoryError):
        return True
    if not isinstance(error, RuntimeError):
        return False
    message = _reason(error).lower()
    return "out of memory" in message or "can't allocate memory" in message


@dataclass(eq=False, repr=False)
class HearModule:
    """A HEAR module with its model: numpy in, numpy out, every result checked.

    Attributes:
        name: the module's dotted name.
        model_path: what its ``load_model`` was given, or "".
        options: keywords that its ``load_model`` was given.
        model: what it returned.
        code: the version of the module's code: the SHA-256 of its source, of all .py files where
            it is a package or in one; for gram_hear its version, and the number of its embeddings.
        sample_rate: of the audio that the model takes, in Hz.
        scene_embedding_size, timestamp_embedding_size: d of the embeddings.
        multichannel: whether the model takes (n, channels, samples).
        device: where the audio is made.
    """

    name: str
    model_path: str
    options: dict[str, Any]
    module: ModuleType
    model: Any
    device: torch.device

    def __post_init__(self) -> None:
        name, model = self.name, self.model
        self.code = _code_of(name)  # now: later the file may be another than what was imported
        _refuse_tensorflow(f"{name}.load_model returned", model)
        self.sample_rate = _size(name, model, "sample_rate")
        self.scene_embedding_size = _size(name, model, "scene_embedding_size")
        self.timestamp_embedding_size = _size(name, model, "timestamp_embedding_size")
        with _foreign(f"The model of {name} has no readable multichannel"):
            self.multichannel = bool(getattr(model, "multichannel", None) == CHANNELS_FIRST)
        if isinstance(model, torch.nn.Module):
            with _foreign(f"The model of {name} cannot be moved to {self.device}"):
                model.to(self.device)
        self._warned: set[str] = set()

    # --- identity ---

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
        if is_ours(self.name):
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

    # --- calls ---

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
        function = f"{self.name}.get_scene_embeddings"
        result = self.call("get_scene_embeddings", audio)
        embeddings = self._embeddings(function, result, (len(audio), self.scene_embedding_size))
        _check_finite(function, embeddings, names)
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
        function = f"{self.name}.get_timestamp_embeddings"
        result = self.call("get_timestamp_embeddings", audio)
        if not isinstance(result, tuple | list) or len(result) != 2:
            raise ModuleError(
                f"{function} returned {_kind(result)}; it must return two tensors: embeddings "
                "(n, t, d) and timestamps (n, t)."
            )
        shape = (len(audio), None, self.timestamp_embedding_size)
        embeddings = self._embeddings(function, result[0], shape)
        _check_finite(function, embeddings, names)
        times = self._timestamps(function, result[1], embeddings.shape[:2])
        samples = audio.shape[2 if audio.ndim == 3 and self.multichannel else 1]
        if look_like_seconds(times[0], samples / self.sample_rate):
            self._warn(
                f"{function} returned timestamps that look like seconds (the last one of a clip of "
                f"{samples / self.sample_rate:g} s is {times[0, -1]:g}); they must be milliseconds."
            )
        return embeddings, times

    def call(self, name: str, audio: np.ndarray) -> Any:
        """Return what one of the module's functions that embed returns, unchecked.

        Raises:
            ModuleError, MemoryError, RuntimeError: as for :meth:`scenes`.
        """
        tensor = torch.from_numpy(np.ascontiguousarray(audio, dtype=np.float32))
        failure = f"{self.name}.{name} failed with audio {tuple(tensor.shape)}"
        with _foreign(failure, memory_is_short=True), torch.no_grad():
            return getattr(self.module, name)(tensor.to(self.device), self.model)

    def _embeddings(self, function: str, result: Any, shape: tuple[int | None, ...]) -> np.ndarray:
        """Check embeddings and return them as float32; None in ``shape`` is any size from 1 on."""
        tensor = _tensor(function, result)
        fits = tensor.dim() == len(shape) and all(
            size == wanted if wanted is not None else size > 0
            for size, wanted in zip(tensor.shape, shape, strict=True)
        )
        if not fits:
            wanted = ", ".join("t" if size is None else str(size) for size in shape)
            size = "scene_embedding_size" if len(shape) == 2 else "timestamp_embedding_size"
            raise ModuleError(
                f"{function} returned embeddings of shape {tuple(tensor.shape)}; expected was "
                f"({wanted}): {shape[0]} clips were given, and the model's {size} is {shape[-1]}."
            )
        if not tensor.dtype.is_floating_point:
            raise ModuleError(
                f"{function} returned {tensor.dtype} embeddings; they must be float32."
            )
        if tensor.dtype != torch.float32:
            self._warn(f"{function} returned {tensor.dtype} embeddings; they were made float32.")
        return _on_cpu(function, tensor, torch.float32)

    def _timestamps(self, function: str, result: Any, shape: tuple[int, ...]) -> np.ndarray:
        tensor = _tensor(function, result)
        if tuple(tensor.shape) != shape:
            raise ModuleError(
                f"{function} returned timestamps of shape {tuple(tensor.shape)}; expected was "
                f"{shape}, one for each embedding."
            )
        if tensor.dtype.is_complex or tensor.dtype == torch.bool:
            raise ModuleError(
                f"{function} returned {tensor.dtype} timestamps; they must be float32."
            )
        times = _on_cpu(function, tensor, torch.float64)
        if not np.isfinite(times).all():
            raise ModuleError(f"{function} returned timestamps that are not finite.")
        if (times != times[0]).any():
            clip = int((times != times[0]).any(axis=1).argmax())
            raise ModuleError(
                f"{function} returned other timestamps for clip {clip} than for clip 0, of the "
                "same length; they must be equal."
            )
        if times[0, 0] < 0:
            raise ModuleError(
                f"{function} returned a first timestamp of {times[0, 0]:g} ms; it must not be "
                "negative."
            )
        steps = np.diff(times[0])
        if (steps <= 0).any():
            i = int((steps <= 0).argmax())
            raise ModuleError(
                f"{function} returned timestamps that do not increase: {times[0, i]:g} ms is "
                f"followed by {times[0, i + 1]:g} ms."
            )
        return times

    def _warn(self, message: str) -> None:
        if message not in self._warned:
            self._warned.add(message)
            warnings.warn(message, stacklevel=4)


def look_like_seconds(times: np.ndarray, seconds: float) -> bool:
    """Whether the timestamps of a clip of so many seconds end where they would in seconds."""
    return len(times) > 1 and seconds / 2 < times[-1] <= 1.1 * seconds


def _size(name: str, model: Any, attribute: str) -> int:
    with _foreign(f"The model of {name} has no readable {attribute}"):
        there = hasattr(model, attribute)
        value = getattr(model, attribute) if there else None
    if not there:
        raise ModuleError(
            f"The model of {name}, a {type(model).__name__}, has no attribute {attribute}; it must "
            "have sample_rate, scene_embedding_size and timestamp_embedding_size, all int."
        )
    least, most = SOUND_RATES if attribute == "sample_rate" else (1, LARGEST_SIZE)
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value <= most:
        raise ModuleError(
            f"The model of {name} has {attribute} = {short(value)} ({type(value).__name__}); it "
            f"must be an int from {least} to {most}."
        )
    return value


def _on_cpu(function: str, tensor: Tensor, dtype: torch.dtype) -> np.ndarray:
    """Return a result's values; what went wrong on a GPU shows here."""
    with _foreign(f"{function} failed", memory_is_short=True):
        return tensor.detach().cpu().to(dtype).numpy()  # in two steps: MPS has no float64


def _tensor(function: str, result: Any) -> Tensor:
    _refuse_tensorflow(f"{function} returned", result)
    if not isinstance(result, Tensor):
        raise ModuleError(f"{function} returned {_kind(result)}; it must be a torch.Tensor.")
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


def _check_finite(function: str, embeddings: np.ndarray, names: Sequence[str]) -> None:
    wrong = ~np.isfinite(embeddings).reshape(len(embeddings), -1).all(axis=1)
    if wrong.any():
        called = [names[i] if names else f"clip {i}" for i in wrong.nonzero()[0].tolist()]
        found = some(called, shown=5)
        raise ModuleError(f"{function} returned NaN or infinite values for {found}.")


def _slug(text: str) -> str:
    """Return letters and digits in lower case, and a hyphen for whatever stands between them."""
    plain = unicodedata.normalize("NFKD", text).encode("ascii", "ignore").decode()
    return re.sub(r"[^a-z0-9]+", "-", plain.lower()).strip("-")


def _code_of(name: str) -> str:
    """Return what :attr:`HearModule.code` is, of an imported module."""
    parts = name.split(".")
    if is_ours(name):
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
    try:
        with open(path, "rb") as file:
            return hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise ModuleError(f"{path} cannot be read: {reason_of(error)}.") from error


def _digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:DIGEST]
