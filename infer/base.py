"""The network on the patches of a tile -> RawMaps."""

from __future__ import annotations

import torch

from dataloader.infer_loader import TilePatches
from hovernet_cyclic.core.errors import RecipeError
from hovernet_cyclic.core.types import RawMaps, UInt8Array
from infer.stitch import TileStitcher
from models.hovernet.net_desc import HoVerNet, HoVerOutput, patch_shapes, softmax_maps, type_probabilities


class NetworkSegmenter:
    """A network behind a lattice of patches: a Segmenter for images of any size from 1 x 1 px.

    net: on `device` already or moved there; used as it is at each call, so that a network in training can be asked
    between its steps. mode: 'original', 'fast' or 'small'. batch_size: patches at a time; the answer does not depend
    on it (on a GPU: but for rounding). dtype: float32, or bfloat16 or float16 for autocast; maps are float32 anyway.
    """

    def __init__(
        self,
        net: HoVerNet,
        mode: str,
        device: torch.device | str,
        batch_size: int = 8,
        dtype: torch.dtype = torch.float32,
    ) -> None:
        if batch_size < 1:
            raise RecipeError(f"The batch size is {batch_size}: give 1 or more.")
        self.net, self.mode, self.device = net, mode, torch.device(device)
        self.batch_size, self.dtype = batch_size, dtype
        self.net.to(self.device)
        self.net.to(memory_format=torch.channels_last)  # type: ignore[call-overload]

    @torch.inference_mode()
    def raw_maps(self, image: UInt8Array) -> RawMaps:
        """uint8 (H, W, 3) RGB at the network's mpp -> RawMaps of the same (H, W)."""
        shapes = patch_shapes(self.mode)
        patches = TilePatches(image, shapes.input, shapes.output)
        stitcher = TileStitcher(patches.lattice, typed=self.net.nr_types is not None)
        was_training = self.net.training
        self.net.eval()
        try:
            for batch in patches.batches(self.batch_size):
                _place(stitcher, batch.indices, self._answer(batch.images))
        finally:
            self.net.train(was_training)
        return stitcher.raw_maps()

    def _answer(self, images: UInt8Array) -> HoVerOutput:
        """uint8 (B, h, w, 3) RGB -> the network's output, on its device."""
        # Bytes travel, not floats. Seen as (B, 3, h, w) they are channels last in memory already.
        tensor = torch.from_numpy(images).to(self.device).permute(0, 3, 1, 2).float()
        with torch.autocast(self.device.type, self.dtype, enabled=self.dtype != torch.float32):
            output: HoVerOutput = self.net(tensor)
        return output


def _place(stitcher: TileStitcher, indices: range, output: HoVerOutput) -> None:
    np_prob, hv_map, types = softmax_maps(output)
    np_probs, hv_maps = np_prob.cpu().numpy(), hv_map.cpu().numpy()
    if types is None:
        for place, index in enumerate(indices):
            stitcher.place(index, np_probs[place], hv_maps[place], None)
        return
    type_maps, type_probs = types.cpu().numpy(), type_probabilities(output).cpu().numpy()
    for place, index in enumerate(indices):
        stitcher.place(index, np_probs[place], hv_maps[place], type_maps[place], type_probs[place])
