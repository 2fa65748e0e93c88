"""The loop that both ends train in."""

import torch

from hovernet_cyclic.core.settings import BackEndSettings
from hovernet_cyclic.training.loop import Lesson, teach
from hovernet_cyclic.training.run_dir import RunDir, StageLog


def test_a_stage_notes_how_long_it_waited_for_data(tmp_path, cpu):
    network = torch.nn.Linear(1, 1)
    log = StageLog(RunDir(tmp_path), quiet=True)
    lesson = Lesson(
        curves="back_end",
        network=network,
        batch=lambda step: torch.full((1, 1), float(step)),
        loss=lambda called, batch: {"loss": called(batch).sum()},
        follow=lambda: None,
        settings=BackEndSettings(),
    )
    teach(lesson, range(4, 8), log.stage("cycle 1 back end", cpu))
    log.close()
    ((step, share),) = curve(tmp_path, "back_end/waiting_for_data")
    assert step == 7 and 0 < share <= 1
    assert [step for step, _ in curve(tmp_path, "back_end/loss")] == [4, 5, 6, 7]


def curve(folder, name):
    from tensorboard.backend.event_processing.event_accumulator import EventAccumulator

    events = EventAccumulator(str(folder / "tensorboard"))
    events.Reload()
    return [(event.step, event.value) for event in events.Scalars(name)]
