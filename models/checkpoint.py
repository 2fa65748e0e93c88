"""Save, load and recognise checkpoints.

Ours hold tensors and plain values only. Those of hover_net are recognised by what is in them, so that published weights
work as they are: a `.tar` with a 'desc' entry (as hover_net saves it, and converts it from TensorFlow), a state dict
under a name that other trainers use, or a plain one, with or without `module.` and the like before every name.
"""

from __future__ import annotations

import dataclasses
import hashlib
import os
import warnings
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO, NamedTuple

import numpy as np
import torch
from torch import Tensor

from hovernet_cyclic.core.errors import CheckpointError, DamagedCheckpointError
from hovernet_cyclic.core.types import Checkpoint
from models.hovernet.net_desc import HoVerNet

FORMAT_VERSION = 2  # 1 knew no place within a cycle
FORMAT_NAME = "hovernet-cyclic"
PLAIN_TYPES = (Tensor, str, bytes, int, float, bool, type(None))
_SEAL = b"sha256:"
_SEAL_LENGTH = len(_SEAL) + 64
# Where weights lie in a file: hover_net's entry, then those of Lightning and of common training loops.
WEIGHT_ENTRIES = ("desc", "state_dict", "model_state_dict", "model", "net")
# What DataParallel, torch.compile, and a network held by another module put before every name.
PREFIXES = ("module.", "_orig_mod.", "model.", "net.")

StateDict = dict[str, Tensor]


class LoadedNetwork(NamedTuple):
    """A network in eval mode on the CPU, and what its checkpoint says. recipe: TrainRecipe.to_dict(), or None."""

    net: HoVerNet
    mode: str
    nr_types: int | None
    recipe: dict[str, Any] | None


def save_checkpoint(path: str | Path, checkpoint: Checkpoint) -> None:
    """Write `checkpoint` to the disk under a temporary name and rename it.

    Raises CheckpointError where it cannot be written, or holds anything but tensors and plain values.
    """
    path = Path(path)
    partial = path.with_name(f"{path.name}.{os.getpid()}.partial")
    content = {field.name: getattr(checkpoint, field.name) for field in dataclasses.fields(checkpoint)}
    _check_plain(path, content, "checkpoint")
    try:
        with partial.open("wb+") as file:
            torch.save({"format": FORMAT_NAME, **content}, file)
            _seal(file)
        partial.replace(path)
    except (OSError, RuntimeError) as error:
        cause = error.__context__ if isinstance(error.__context__, OSError) else error  # torch hides the disk's own
        reason = getattr(cause, "strerror", None) or str(cause).splitlines()[0]
        raise CheckpointError(f"{path}: cannot be written ({reason}): check the folder and its free space.") from error
    finally:
        partial.unlink(missing_ok=True)


def _check_plain(path: Path, value: Any, name: str) -> None:
    if isinstance(value, Mapping):
        for key, item in value.items():
            _check_plain(path, item, f"{name}.{key}")
    elif isinstance(value, (list, tuple)):
        for item in value:
            _check_plain(path, item, name)
    elif type(value) not in PLAIN_TYPES and not isinstance(value, Tensor):
        kind = type(value).__name__
        raise CheckpointError(f"{path}: {name} is a {kind}: save tensors and plain values (str, int, float, ...) only.")


def load_checkpoint(path: str | Path) -> Checkpoint:
    """Read one of our checkpoints, on the CPU.

    Raises CheckpointError for a file that is missing, torn (then DamagedCheckpointError), no checkpoint of ours, or
    written by a newer version.
    """
    path = Path(path)
    if not _is_whole(path):
        raise DamagedCheckpointError(f"{path}: this file cannot be loaded, it is damaged: copy or download it again.")
    content = read_content(path)
    if content.get("format") != FORMAT_NAME:
        raise CheckpointError(f"{path}: this is not a checkpoint of hovernet-cyclic: give a .tar of one of its runs.")
    return _as_checkpoint(path, content)


def _seal(file: BinaryIO) -> None:
    """Write the SHA-256 of an archive that has just been written behind it, as its comment.

    An archive has checksums of its own, but none of its directory, and torch.load asks for none of them.
    """
    file.seek(-2, os.SEEK_END)
    file.write(_SEAL_LENGTH.to_bytes(2, "little"))  # of the comment, which the archive says where it ends
    file.flush()
    digest = _digest(file, file.tell())
    file.write(_SEAL + digest)
    file.flush()
    os.fsync(file.fileno())  # a name must not reach the disk before what it stands for


def _is_whole(path: Path) -> bool:
    """False where a file is not what its seal says; what has none is left to the reader."""
    try:
        with path.open("rb") as file:
            end = file.seek(0, os.SEEK_END) - _SEAL_LENGTH
            file.seek(max(0, end))
            seal = file.read()
            return not seal.startswith(_SEAL) or seal == _SEAL + _digest(file, end)
    except OSError:
        return True  # reading it says what is wrong


def _digest(file: BinaryIO, end: int) -> bytes:
    """Hexadecimal SHA-256 of the first `end` bytes; the file then stands there."""
    digest = hashlib.sha256()
    file.seek(0)
    while chunk := file.read(min(2**20, end - file.tell())):
        digest.update(chunk)
    return digest.hexdigest().encode()


def _as_checkpoint(path: Path, content: dict[str, Any]) -> Checkpoint:
    version = content.get("format_version")
    if isinstance(version, int) and version > FORMAT_VERSION:
        raise CheckpointError(
            f"{path}: this checkpoint has format {version} and this version reads up to {FORMAT_VERSION}: "
            "update hovernet-cyclic."
        )
    if not isinstance(content.get("recipe"), dict):
        raise CheckpointError(f"{path}: this checkpoint lacks its recipe: train it again.")
    try:
        return Checkpoint(**{name: value for name, value in content.items() if name != "format"})
    except TypeError as error:
        raise CheckpointError(f"{path}: this checkpoint lacks entries or has unknown ones: train it again.") from error


def load_network(path: str | Path, nr_types: int | None = None) -> LoadedNetwork:
    """The network of a checkpoint: ours (the teacher, or else the student) or one of hover_net.

    nr_types: left out, the checkpoint decides. Given, and the checkpoint was made for other types or none, all but the
    branch `tp` is taken over and that branch starts anew. Raises CheckpointError for a file without a HoVer-Net.
    """
    path = Path(path)
    content = read_content(path)
    if content.get("format") != FORMAT_NAME:
        return _rebuild(path, weights_in(path, content), nr_types, None)
    stored = _as_checkpoint(path, content)
    weights = stored.teacher or stored.student
    if weights is None:
        raise CheckpointError(f"{path}: this checkpoint holds no HoVer-Net yet: give the net.tar of the run.")
    return _rebuild(path, clean_weights(path, weights), nr_types, stored.recipe)


def read_content(path: Path) -> dict[str, Any]:
    """The dict in a file, on the CPU. Only tensors and plain values are unpickled: a checkpoint cannot run code.

    Raises CheckpointError for a file that is missing, torn, or holds anything else.
    """
    if path.is_dir():
        raise CheckpointError(f"{path}: this is a folder: give the checkpoint's file in it, such as net.tar.")
    if not path.is_file():
        raise CheckpointError(f"{path}: there is no such file: check the path of the checkpoint.")
    try:
        with torch.serialization.safe_globals(_numpy_values()), warnings.catch_warnings():
            warnings.simplefilter("ignore")  # of what torch finds odd in a file; what it cannot read, it raises
            content = torch.load(path, map_location="cpu", weights_only=True)
    except PermissionError as error:
        raise CheckpointError(f"{path}: you may not read this file: change its rights.") from error
    except Exception as error:  # torn and foreign files fail in many ways, none of them documented
        if "GLOBAL" in str(error):  # what torch calls a class or a function that a pickle wants
            sentence = (
                "it holds Python objects, which could run code: save the network's state_dict() alone and give that."
            )
        else:
            sentence = "it is torn or no checkpoint at all: copy or download it again."
        raise DamagedCheckpointError(f"{path}: this file cannot be loaded, {sentence}") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: this file holds no named weights: give a checkpoint made by training.")
    return content


def _numpy_values() -> list[Any]:
    """What plain NumPy numbers and arrays are unpickled with: hover_net keeps some beside its weights."""
    scalar, array = np.float64(0).__reduce__()[0], np.zeros(1).__reduce__()[0]
    kinds = [type(np.dtype(kind)) for kind in ("f2", "f4", "f8", "i1", "i2", "i4", "i8", "u1", "bool")]
    before_numpy2 = [(scalar, "numpy.core.multiarray.scalar"), (array, "numpy.core.multiarray._reconstruct")]
    return [scalar, array, np.dtype, np.ndarray, *kinds, *before_numpy2]


def weights_in(path: Path, content: Mapping[str, Any]) -> StateDict:
    """The tensors of a file that is not ours, by the network's own names. Raises CheckpointError as `clean_weights`."""
    for entry in WEIGHT_ENTRIES:
        if isinstance(content.get(entry), Mapping) or (entry in content and entry == WEIGHT_ENTRIES[0]):
            return clean_weights(path, content[entry])
    return clean_weights(path, content)


def clean_weights(path: Path, weights: Any) -> StateDict:
    """The tensors of a state dict, without what stands before every name, see PREFIXES.

    Raises CheckpointError, naming the file, where `weights` is no state dict, or holds nan or infinity.
    """
    if not isinstance(weights, Mapping):
        raise CheckpointError(f"{path}: its entry 'desc' holds no weights: give a checkpoint made by training.")
    tensors = {str(name): value for name, value in weights.items() if _is_plain(value)}
    while prefix := next((p for p in PREFIXES if tensors and all(name.startswith(p) for name in tensors)), None):
        tensors = {name.removeprefix(prefix): value for name, value in tensors.items()}
    for name, value in tensors.items():
        if value.is_floating_point() and not value.isfinite().all():
            raise CheckpointError(
                f"{path}: '{name}' holds nan or infinity: its training went astray, give an earlier checkpoint."
            )
    return tensors


def _is_plain(value: Any) -> bool:
    """Whether it is a tensor of real numbers that are all there: no sparse, quantised or shapes-only one."""
    if not isinstance(value, Tensor) or value.layout != torch.strided:
        return False
    return not (value.is_meta or value.is_quantized or value.is_complex())


def recognise(weights: StateDict) -> tuple[str, int | None] | None:
    """(mode, nr_types) of the HoVerNet that a state dict belongs to, or None where it belongs to none."""
    if "conv0./.weight" in weights and "decoder.np.u3.conva.weight" in weights:
        shape = weights["decoder.np.u3.conva.weight"].shape
        mode = {5: "original", 3: "fast"}.get(shape[-1] if shape else 0)
        return None if mode is None else (mode, _outputs(weights.get("decoder.tp.u0.conv.weight")))
    if "stem.conv.weight" in weights and "decoder.np.head.weight" in weights:
        outputs = _outputs(weights.get("decoder.tp.head.weight"))
        return "small", None if outputs is None else outputs // 4  # four pixels of every type
    return None


def _outputs(weight: Tensor | None) -> int | None:
    """Output channels of a convolution; None where there is none, or a tensor that cannot be one."""
    return None if weight is None or weight.ndim != 4 or not weight.numel() else len(weight)


def _rebuild(path: Path, weights: StateDict, nr_types: int | None, recipe: dict[str, Any] | None) -> LoadedNetwork:
    found = recognise(weights)
    if found is None:
        raise CheckpointError(
            f"{path}: these are not the weights of a HoVer-Net (original, fast or small): give a network's "
            "checkpoint, not that of a classifier or of an encoder alone."
        )
    mode, types = found
    if nr_types is not None and nr_types != types:
        weights = {name: value for name, value in weights.items() if not name.startswith("decoder.tp.")}
    net = HoVerNet(mode, types if nr_types is None else nr_types)
    _load(path, net, weights, new_types=net.nr_types != types)
    return LoadedNetwork(net.eval(), mode, net.nr_types, recipe)


def _load(path: Path, net: HoVerNet, weights: StateDict, new_types: bool) -> None:
    """Load by name. new_types: the branch `tp` may be missing. Raises CheckpointError where names or shapes differ."""
    may_lack = ("upsample2x.", "decoder.tp.") if new_types else ("upsample2x.",)  # upsample2x only ever holds ones
    try:
        missing, unknown = net.load_state_dict(weights, strict=False)
    except RuntimeError as error:
        raise CheckpointError(f"{path}: a layer has another shape than in HoVer-Net: give other weights.") from error
    lacking = [name for name in missing if not name.startswith(may_lack)]
    if lacking or unknown:
        first = f"lacks '{lacking[0]}'" if lacking else f"has an unknown '{unknown[0]}'"
        raise CheckpointError(f"{path}: this network {first}: its HoVer-Net was changed, give other weights.")
