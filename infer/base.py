"""The network on the patches of an image, or of a window of a slide -> RawMaps.

Every patch reads as far beyond what it answers for as the network can see (`margin`). The answer at a pixel then
depends on neither the size of patches nor where they begin, as long as they begin in steps of ALIGN px from the origin
of the image or slide: a slide in windows gives what the whole gives, and only at the true border is anything mirrored.
"""

from __future__ import annotations

import copy
import dataclasses
import sys
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from dataloader.infer_loader import TilePatches
from hovernet_cyclic.core.errors import RecipeError
from hovernet_cyclic.core.geometry import Shape
from hovernet_cyclic.core.types import Pixels, RawMaps, UInt8Array, whole_image
from infer.stitch import TileStitcher
from models.checkpoint import LoadedNetwork
from models.devices import Device, free_memory, is_out_of_memory
from models.hovernet.frozen import FrozenNetwork
from models.hovernet.net_desc import (
    HoVerNet,
    HoVerOutput,
    crop_output,
    margin,
    patch_shapes,
    softmax_maps,
    type_probabilities,
)

ALIGN = 64  # px: windows begin here; eight of the coarsest stride, so that blocked kernels meet each pixel alike
# Input px a side: larger ones read less twice, and gain no more from it.
_LARGEST_PATCH = {"original": 1334, "fast": 1232, "small": 2048}
# Bytes of memory at the height of a forward pass by px of input, bfloat16 (float32: twice that), gaps in the heap too.
_BYTES_PER_PX = {"original": 8000, "fast": 6000, "small": 240}


class NetworkSegmenter:
    """A network behind a lattice of patches: a Segmenter for images of any size from 1 x 1 px.

    net: on `device` already or moved there; used as it is at each call, so that a network in training can be asked
    between its steps. mode: 'original', 'fast' or 'small'. batch_size: patches at a time; None: 1 on a CPU, else 4. The
    answer does not depend on it (on a GPU: but for rounding). dtype: float32, or bfloat16 or float16 for autocast; maps
    are float32 anyway. largest_patch: input px a side; None: what the memory that is free allows. Where memory does not
    suffice after all, batches and then patches are halved, which stderr says, and nothing is lost. frozen: the network
    will not be trained any further, so it is asked in a faster form (see models/hovernet/frozen.py).

    margin: how many px of surroundings decide on a pixel.
    """

    def __init__(
        self,
        net: HoVerNet,
        mode: str,
        device: torch.device | str,
        batch_size: int | None = None,
        dtype: torch.dtype = torch.float32,
        largest_patch: int | None = None,
        frozen: bool = False,
    ) -> None:
        if batch_size is not None and batch_size < 1:
            raise RecipeError(f"The batch size is {batch_size}: give 1 or more.")
        self.net, self.mode, self.device, self.dtype = net, mode, torch.device(device), dtype
        self.batch_size = batch_size or (1 if self.device.type == "cpu" else 4)
        self.margin = margin(mode)
        self.net.to(self.device)
        self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]
        self._frozen = FrozenNetwork(net, dtype) if frozen else None
        self._most = max(ALIGN, (largest_patch or self._fitting_patch()) - 2 * self.margin) // 8 * 8

    def _fitting_patch(self) -> int:
        """Input px a side such that a batch takes no more than half of what is free."""
        largest, free = _LARGEST_PATCH[self.mode], free_memory(self.device)
        if free is None:
            return largest
        per_px = _BYTES_PER_PX[self.mode] * (2 if self.dtype == torch.float32 else 1)
        return min(largest, int((free / 2 / self.batch_size / per_px) ** 0.5))

    def cell(self, whole: Shape) -> Shape:
        """(h, w) px that one patch answers for in an image or slide of (H, W) px.

        The fewest patches of about equal size; it depends on nothing but the whole and the memory of this device.
        """
        return _cell_side(whole[0], self._most), _cell_side(whole[1], self._most)

    def raw_maps(self, image: UInt8Array) -> RawMaps:
        """uint8 (H, W, 3) RGB at the network's mpp -> RawMaps of the same (H, W)."""
        return self.begin(whole_image(image))()

    def raw_maps_of(self, pixels: Pixels) -> RawMaps:
        """RawMaps of `pixels.wanted`. `pixels.box` should reach `margin` px further, or to the border of the whole."""
        return self.begin(pixels)()

    def begin(self, pixels: Pixels) -> Callable[[], RawMaps]:
        """As `raw_maps_of`, but a GPU may still be at work on it when this returns: call the answer to wait for it."""
        while True:
            try:
                return self._begin(pixels)
            except (MemoryError, RuntimeError) as error:
                if not is_out_of_memory(error) or not self._shrink(pixels.whole):
                    raise
            if self.device.type == "cuda":
                torch.cuda.empty_cache()

    @torch.inference_mode()
    def _begin(self, pixels: Pixels) -> Callable[[], RawMaps]:
        cell = self.cell(pixels.whole)
        patches = TilePatches(pixels, (cell[0] + 2 * self.margin, cell[1] + 2 * self.margin), cell)
        stitcher = TileStitcher(patches.lattice, self.device)
        image = self._on_device(patches.image)
        was_training = self.net.training
        self.net.eval()
        try:
            for indices in patches.batches(self.batch_size):
                boxes = [patches.lattice.input_box(index) for index in indices]
                batch = torch.stack([image[box.top : box.bottom, box.left : box.right] for box in boxes])
                _place(stitcher, indices, crop_output(self._answer(batch), cell))
        finally:
            self.net.train(was_training)
        return stitcher.fetch()

    def _on_device(self, image: UInt8Array) -> Tensor:
        """uint8 (H, W, 3), as it is, on the device: bytes travel, not floats."""
        tensor = torch.from_numpy(image)
        return tensor.pin_memory().to(self.device, non_blocking=True) if self.device.type == "cuda" else tensor

    def _answer(self, images: Tensor) -> HoVerOutput:
        """uint8 (B, h, w, 3) RGB -> the network's output, both on its device."""
        tensor = images.permute(0, 3, 1, 2)  # channels last in memory
        if self._frozen is not None:
            answer: HoVerOutput = self._frozen(tensor)
            return answer
        tensor = tensor.float()
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            output: HoVerOutput = self.net(tensor)
        return output

    def _shrink(self, whole: Shape) -> bool:
        """Halve the batch, or else the patches; False where both are as small as they can be."""
        if self.batch_size > 1:
            self.batch_size //= 2
            now = f"{self.batch_size} patches at a time"
        else:
            side = max(self.cell(whole)) + 2 * self.margin
            smaller = max(ALIGN, (side // 2 - 2 * self.margin) // 8 * 8)
            if smaller >= side - 2 * self.margin:
                return False
            self._most = smaller
            now = f"patches of {smaller + 2 * self.margin} px in place of {side} px"
        print(f"Memory is short on {self.device}: going on with {now}.", file=sys.stderr)
        return True


class ReferenceSegmenter(NetworkSegmenter):
    """As NetworkSegmenter, on hover_net's own lattice: 256 -> 164 px ('fast'), 270 -> 80 px ('original').

    Published encoders pad with zeros at the border of each patch, and saw that when they were trained. Large patches
    spare nearly every pixel such a border, so that they answer a little differently (docs/speed.md); here they answer
    as there, for about the work of hover_net. What is found depends on where patches begin: not for slides.
    """

    def __init__(
        self,
        net: HoVerNet,
        mode: str,
        device: torch.device | str,
        batch_size: int | None = None,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        super().__init__(net, mode, device, batch_size, dtype, frozen=True)
        shapes = patch_shapes(mode)
        self._shape = shapes.output
        self.margin = (shapes.input[0] - shapes.output[0]) // 2

    def cell(self, whole: Shape) -> Shape:
        """(h, w) px of the usual output, whatever the image."""
        return self._shape

    def _shrink(self, whole: Shape) -> bool:
        return self.batch_size > 1 and super()._shrink(whole)


def usual_precision(mode: str, device: Device) -> Device:
    """The device at the precision of --precision=auto for a network of this mode.

    On a CPU 'small' counts in float32: bfloat16 is four times as fast, but one in thirteen real nuclei then has another
    outline by a pixel or more (docs/speed.md). The larger networks take several times as long in float32.
    """
    exact = mode == "small" and device.torch_device.type == "cpu"
    return dataclasses.replace(device, dtype=torch.float32) if exact else device


def _cell_side(length: int, most: int) -> int:
    if length <= most:
        return -(-length // 8) * 8
    count = -(-length // max(ALIGN, most // ALIGN * ALIGN))
    return -(-length // (count * ALIGN)) * ALIGN


def _place(stitcher: TileStitcher, indices: range, output: HoVerOutput) -> None:
    np_prob, hv_map, types = softmax_maps(output)
    for place, index in enumerate(indices):
        if types is None:
            stitcher.place(index, np_prob[place], hv_map[place])
        else:
            stitcher.place(index, np_prob[place], hv_map[place], types[place], type_probabilities(output)[place])


def segmenters_of(
    loaded: LoadedNetwork, devices: Sequence[Device], batch_size: int | None, largest_patch: int | None = None
) -> list[NetworkSegmenter]:
    """The network on each device, ready for images. largest_patch: see NetworkSegmenter."""
    return [
        NetworkSegmenter(net, loaded.mode, device.torch_device, batch_size, device.dtype, largest_patch, frozen=True)
        for net, device in _nets(loaded, devices)
    ]


def reference_segmenters_of(
    loaded: LoadedNetwork, devices: Sequence[Device], batch_size: int | None
) -> list[NetworkSegmenter]:
    """As `segmenters_of`, on hover_net's own lattice of patches."""
    return [
        ReferenceSegmenter(net, loaded.mode, device.torch_device, batch_size, device.dtype)
        for net, device in _nets(loaded, devices)
    ]


def _nets(loaded: LoadedNetwork, devices: Sequence[Device]) -> list[tuple[HoVerNet, Device]]:
    """A network for each device."""
    return [(loaded.net if i == 0 else copy.deepcopy(loaded.net), device) for i, device in enumerate(devices)]
