"""The recipes: the one file to edit. Each function returns a TrainRecipe; `--recipe=<name>` picks it from RECIPES.

Copy `custom`, change what you like, and run `python run_train.py --recipe=custom --data_dir=<folder>`. What a setting
means, and what it may be, stands in `hovernet_cyclic/core/settings.py`.
"""

from collections.abc import Callable

from hovernet_cyclic.core.settings import (
    BackEndSettings,
    DataSettings,
    FrontEndSettings,
    NetSettings,
    TrainRecipe,
)

# Of image-level runs with the small network: the pseudo masks of a later cycle are worth learning longer from.
SHORT_THEN_LONG = BackEndSettings(steps_later=5400)


def demo() -> TrainRecipe:
    """Tissue that the toolkit draws itself: a look at the whole method in minutes on a CPU."""
    return TrainRecipe(
        name="demo",
        data=DataSettings(reader="demo"),
        front_end=FrontEndSettings(steps_first=200, steps_later=80),
        back_end=BackEndSettings(steps=240, patch_shape=(128, 128)),
        num_cycles=2,
    )


def folder() -> TrainRecipe:
    """Your own images: patches/positive, patches/negative, tiles, and valid/ for scores if you have masks."""
    return TrainRecipe(name="folder", data=DataSettings(reader="folder", mpp=0.25), back_end=SHORT_THEN_LONG)


def benchmark() -> TrainRecipe:
    """MoNuSeg and CoNSeP images with the image-level labels of `patch_labels.csv`."""
    return TrainRecipe(
        name="benchmark",
        data=DataSettings(reader="benchmark", mpp=0.25),
        back_end=SHORT_THEN_LONG,
    )


def benchmark_mixed() -> TrainRecipe:
    """As `benchmark`, and two training images (the first two by name) with their drawn masks."""
    return TrainRecipe(
        name="benchmark_mixed",
        data=DataSettings(reader="benchmark", mpp=0.25, annotated_tiles=2),
        supervision="mixed",
        back_end=SHORT_THEN_LONG,
    )


def benchmark_masks() -> TrainRecipe:
    """The drawn masks of all training images of the benchmark: what image-level labels are measured against."""
    return TrainRecipe(
        name="benchmark_masks",
        data=DataSettings(reader="benchmark", mpp=0.25),
        supervision="masks",
        back_end=BackEndSettings(steps=SHORT_THEN_LONG.steps_in(2).stop),  # as many as both cycles have
        num_cycles=1,
    )


def consep_types() -> TrainRecipe:
    """Nuclei and their types, from CoNSeP's drawn masks and class maps. Tiles 15, 22 and 26 are left to score on."""
    tiles = (2, 3, 4, 5, 7, 11, 12, 13, 16, 21, 25, 27)
    names = ("background", "other", "inflammatory", "epithelial", "spindle")
    return TrainRecipe(
        name="consep_types",
        data=DataSettings(
            reader="benchmark",
            mpp=0.25,
            type_names=names,
            annotated_tiles=tuple(f"train_{number}" for number in tiles),
        ),
        supervision="masks",
        net=NetSettings(nr_types=len(names)),
        back_end=BackEndSettings(steps=2400),
        num_cycles=1,
    )


def monusac() -> TrainRecipe:
    """The paper's MoNuSAC: Kumar's 16 images to learn on, with the labelled patches of MyNP. See docs/datasets.md."""
    return TrainRecipe(
        name="monusac",
        data=DataSettings(reader="monusac", mpp=0.25),
        back_end=SHORT_THEN_LONG,
    )


def ccrcc() -> TrainRecipe:
    """The paper's ccRCC: images of ccrcccrop/Train, with the labelled patches of MyNP."""
    return TrainRecipe(
        name="ccrcc",
        data=DataSettings(reader="ccrcc", mpp=0.25),
        back_end=SHORT_THEN_LONG,
    )


def consep() -> TrainRecipe:
    """The paper's CoNSeP: images of consepcrop/Train (or CoNSeP/Train), with the labelled patches of MyNP."""
    return TrainRecipe(
        name="consep",
        data=DataSettings(reader="consep", mpp=0.25),
        back_end=SHORT_THEN_LONG,
    )


def fast() -> TrainRecipe:
    """A folder of your own with HoVer-Net's own network (pre-activated ResNet-50, 256 -> 164): give it a GPU."""
    return TrainRecipe(
        name="fast",
        data=DataSettings(reader="folder", mpp=0.25),
        net=NetSettings(mode="fast"),
        front_end=FrontEndSettings(steps_first=1500, steps_later=500, learning_rate=3e-4),
        back_end=BackEndSettings(
            steps=3000, steps_later=6000, batch_size=16, negatives_per_batch=4, patch_shape=(164, 164)
        ),
    )


def original() -> TrainRecipe:
    """As `fast`, with the network of the HoVer-Net paper (270 -> 80)."""
    return TrainRecipe(
        name="original",
        data=DataSettings(reader="folder", mpp=0.25),
        net=NetSettings(mode="original"),
        front_end=FrontEndSettings(steps_first=1500, steps_later=500, learning_rate=3e-4),
        back_end=BackEndSettings(
            steps=3000, steps_later=6000, batch_size=16, negatives_per_batch=4, patch_shape=(80, 80)
        ),
    )


def hovernet() -> TrainRecipe:
    """HoVer-Net's own training, on drawn masks of a folder of your own: tiles/ and labels/. Give it a GPU.

    The paper starts from ImageNet: name such weights in net.pretrained, and some `frozen_steps` for the decoders first.
    """
    return TrainRecipe(
        name="hovernet",
        data=DataSettings(reader="folder", mpp=0.25),
        supervision="masks",
        net=NetSettings(mode="fast", pretrained=None),
        back_end=BackEndSettings(
            steps=6000, batch_size=16, patch_shape=(164, 164), learning_rate=3e-4, hv_weight=1.0, frozen_steps=0
        ),
        num_cycles=1,
    )


def custom() -> TrainRecipe:
    """Yours to edit."""
    return TrainRecipe(name="custom", data=DataSettings(reader="folder", mpp=0.25), back_end=SHORT_THEN_LONG)


RECIPES: dict[str, Callable[[], TrainRecipe]] = {
    "demo": demo,
    "folder": folder,
    "benchmark": benchmark,
    "benchmark_mixed": benchmark_mixed,
    "benchmark_masks": benchmark_masks,
    "consep_types": consep_types,
    "monusac": monusac,
    "ccrcc": ccrcc,
    "consep": consep,
    "fast": fast,
    "original": original,
    "hovernet": hovernet,
    "custom": custom,
}
