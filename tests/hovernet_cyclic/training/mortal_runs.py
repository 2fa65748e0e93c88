"""Runs that are killed: a process that imports everything once, and forks children that end themselves at a moment.

mortal_runs.py KIND DATA_DIR LOG_DIR RECIPE.json SEED: goes on with one run, a child at a time, until it is finished. A
child for each stage of each cycle ends by SIGKILL at a random one of the moments there: a step of training, a file
before it is renamed or after, a checkpoint or an archive half written, an image asked of the network. The last child
finishes the run. Prints as JSON where each was, and when.
"""

import json
import os
import random
import signal
import sys
import traceback
from pathlib import Path

import numpy as np
import torch
import torch.utils.tensorboard
from tensorboard.backend.event_processing import event_file_loader  # noqa: F401 - so that no child need import it

from dataloader.augs import load_imgaug
from dataloader.datasets import open_source
from hovernet_cyclic.core.settings import TrainRecipe
from hovernet_cyclic.training import keeper
from hovernet_cyclic.training.cyclic import run_cycles
from hovernet_cyclic.training.optimiser import OneCycleAdamW
from hovernet_cyclic.training.position import Position
from hovernet_cyclic.training.run_dir import RunDir
from hovernet_cyclic.training.supervised import run_supervised
from infer.base import NetworkSegmenter
from models.devices import Device

# of a cycle whose back end has two parts
ORDER = [("front_end", 0), *[(stage, part) for part in (0, 1) for stage in ("pseudo_masks", "back_end")], ("judge", 2)]
MOMENTS = {"front_end": 12, "pseudo_masks": 16, "back_end": 9, "judge": 40}  # about as many as a stage has


class Fate:
    """Counts the moments of a child in one stage, and ends it there. place: file that it leaves word in."""

    def __init__(self, stage, moments, place):
        self.stage, self.left, self.place, self.keeper = stage, moments, place, None

    def moment(self, kind, before_end=lambda: None):
        at = self.keeper.position if self.keeper else Position()
        now, end = [at.cycle, ORDER.index((at.stage, at.part))], [self.stage[0], ORDER.index(self.stage[1:])]
        self.left -= now == end
        if now > end or self.left <= 0:
            before_end()
            self.place.write_text(json.dumps([kind, at.cycle, at.stage, at.part]))
            os.kill(os.getpid(), signal.SIGKILL)

    def around(self, owner, name, kind, *, torn=None):
        """Let owner.name be a moment, before and after it. torn(arguments): leave what it writes half written first."""
        honest = getattr(owner, name)

        def mortal(*arguments, **options):
            self.moment(f"before {kind}", lambda: torn and torn(*arguments))
            answer = honest(*arguments, **options)
            self.moment(f"after {kind}")
            return answer

        setattr(owner, name, mortal)

    def spin(self):
        self.around(OneCycleAdamW, "step", "step")
        self.around(Path, "replace", "rename")
        self.around(NetworkSegmenter, "raw_maps", "image")
        self.around(torch, "save", "save", torn=lambda _, file: file.write(b"PK\3\4 half"))
        self.around(np, "savez_compressed", "archive", torn=lambda file, **_: file.write(b"PK\3\4 half"))
        opened = keeper.Keeper.open.__func__

        def seen(cls, *arguments):
            self.keeper = opened(cls, *arguments)
            return self.keeper

        keeper.Keeper.open = classmethod(seen)


def train(kind, data_dir, log_dir, recipe):
    run = RunDir.open(log_dir, resume=(log_dir / "recipe.json").exists())
    (log_dir / "recipe.json").write_text("{}")
    device = Device(torch.device("cpu"), torch.float32)
    splits = open_source(recipe.data, str(data_dir), with_patches=kind == "cycles")
    if kind == "cycles":
        run_cycles(recipe, splits.train, run, device, quiet=True)
    else:
        run_supervised(recipe, splits.train_annotated, run, device, quiet=True)


def child(arguments, fate, save_every_s):
    """What a forked process does; it never returns."""
    code = 1
    try:
        keeper.SAVE_EVERY_S = save_every_s
        if fate:
            fate.spin()
        train(*arguments)
        code = 0
    except BaseException:
        traceback.print_exc()
    os._exit(code)


def stages(kind, recipe):
    """(cycle, stage, part) of the run, in order."""
    if kind == "masks":
        return [(1, "back_end", 0), (1, "back_end", 1)]
    return [(cycle, *stage) for cycle in range(1, recipe.num_cycles + 1) for stage in ORDER]


def main(kind, data_dir, log_dir, recipe, seed):
    torch.set_num_threads(1)
    load_imgaug()
    chance, deaths = random.Random(int(seed)), []
    recipe = TrainRecipe.from_dict(json.loads(Path(recipe).read_text()))
    place = Path(log_dir).with_name("place.json")
    for stage in [*stages(kind, recipe), None]:
        fate = Fate(stage, chance.randint(1, MOMENTS[stage[1]]), place) if stage else None
        save_every_s = chance.choice([0.0, 0.0, 1e9])  # after each step, or at the end of stages alone
        born = os.fork()
        if born == 0:
            child((kind, Path(data_dir), Path(log_dir), recipe), fate, save_every_s)
        _, status = os.waitpid(born, 0)
        if os.WIFEXITED(status):
            print(json.dumps(deaths))
            return os.WEXITSTATUS(status)
        deaths.append(json.loads(place.read_text()))
    return 3


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
