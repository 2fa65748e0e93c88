"""Recipes check themselves, and survive the plain form in which a checkpoint holds them."""

import dataclasses
import json

import pytest
from hypothesis import given
from hypothesis import strategies as st

from hovernet_cyclic.core.errors import RecipeError
from hovernet_cyclic.core.settings import (
    NET_MODES,
    BackEndSettings,
    CandidateSettings,
    DataSettings,
    FrontEndSettings,
    NetSettings,
    PseudoMaskSettings,
    TrainRecipe,
)


def recipe(**changes):
    return TrainRecipe(name="mine", data=DataSettings("folder"), **changes)


def mixed(**back_end):
    data = DataSettings("folder", annotated_tiles=2)
    return TrainRecipe("mine", data, "mixed", back_end=BackEndSettings(batch_size=4, **back_end))


TYPED = DataSettings("folder", type_names=("background", "a", "b"))

unit = st.floats(0, 1)
recipes = st.builds(
    TrainRecipe,
    name=st.text(max_size=8),
    data=st.builds(
        DataSettings,
        reader=st.sampled_from(["demo", "folder", "benchmark"]),
        mpp=st.floats(0.1, 2),
        valid_fraction=unit,
        annotated_tiles=st.none()
        | st.integers(1, 9)
        | st.lists(st.text(max_size=3), min_size=1, max_size=3).map(tuple),
    ),
    front_end=st.builds(FrontEndSettings, batch_size=st.integers(2, 64), pale_fraction=unit),
    back_end=st.builds(
        BackEndSettings,
        batch_size=st.integers(2, 9),
        patch_shape=st.tuples(st.integers(8, 400), st.integers(8, 400)),
        negatives_per_batch=st.integers(0, 1),
    ),
    net=st.builds(NetSettings, mode=st.sampled_from(NET_MODES), nr_types=st.none() | st.integers(2, 9)),
    num_cycles=st.integers(1, 9),
    seed=st.integers(0, 2**32 - 1),
)


typed = st.lists(st.text(max_size=4), min_size=2, max_size=5).map(
    lambda names: TrainRecipe(
        "typed", DataSettings("folder", type_names=tuple(names)), net=NetSettings("fast", len(names))
    )
)


@given(recipes | typed)
def test_a_recipe_survives_its_plain_form_also_as_json(made):
    plain = made.to_dict()
    assert TrainRecipe.from_dict(plain) == made
    assert json.loads(json.dumps(plain)) == plain, "lists, not tuples: equal before and after a file"
    assert TrainRecipe.from_dict(json.loads(json.dumps(plain))) == made


def test_a_recipe_is_frozen():
    with pytest.raises(dataclasses.FrozenInstanceError):
        recipe().seed = 3


@pytest.mark.parametrize(
    ("build", "words"),
    [
        (lambda: DataSettings("zip"), "data.reader is 'zip': use one of demo, folder, benchmark"),
        (lambda: DataSettings("folder", mpp=0), "data.mpp"),
        (lambda: DataSettings("folder", mpp=-0.25), "data.mpp"),
        (lambda: DataSettings("folder", valid_fraction=1.5), "data.valid_fraction"),
        (lambda: DataSettings("folder", valid_fraction=float("nan")), "data.valid_fraction"),
        (lambda: NetSettings("large"), "net.mode is 'large': use one of original, fast, small"),
        (lambda: NetSettings(post_proc="global"), "net.post_proc"),
        (lambda: NetSettings(nr_types=1), "net.nr_types is 1"),
        (lambda: FrontEndSettings(steps_first=0), "front_end.steps_first"),
        (lambda: FrontEndSettings(steps_later=-1), "front_end.steps_later"),
        (lambda: FrontEndSettings(batch_size=1), "front_end.batch_size is 1"),
        (lambda: FrontEndSettings(learning_rate=0), "front_end.learning_rate"),
        (lambda: FrontEndSettings(pool_fraction=1.1), "front_end.pool_fraction"),
        (lambda: FrontEndSettings(pale_fraction=-0.1), "front_end.pale_fraction"),
        (lambda: CandidateSettings(blur_um=0), "candidates.blur_um"),
        (lambda: CandidateSettings(levels=0), "candidates.levels"),
        (lambda: CandidateSettings(lowest_quantile=0.9, highest_quantile=0.5), "not below its highest"),
        (lambda: CandidateSettings(seed_radii_um=(2.0, 0.0)), "candidates.seed_radii_um"),
        (lambda: CandidateSettings(seed_radii_um=3.0), "candidates.seed_radii_um is 3.0: give a tuple"),
        (lambda: CandidateSettings(seed_radii_um=("2",)), "candidates.seed_radii_um"),
        (lambda: CandidateSettings(seed_radii_um=(float("inf"),)), "candidates.seed_radii_um"),
        (lambda: CandidateSettings(min_area_um2=200), "not below its highest"),
        (lambda: PseudoMaskSettings(cam="score_cam"), "pseudo_masks.cam is 'score_cam'"),
        (lambda: PseudoMaskSettings(trust_above=2), "pseudo_masks.trust_above"),
        (lambda: PseudoMaskSettings(dismiss_below=0.9), "pseudo_masks.dismiss_below"),
        (lambda: PseudoMaskSettings(trust_later=0.1), "pseudo_masks.dismiss_below"),
        (lambda: BackEndSettings(steps=0), "back_end.steps"),
        (lambda: BackEndSettings(steps_later=0), "back_end.steps_later"),
        (lambda: BackEndSettings(steps_later=2, widen_rounds=2), "back_end.widen_rounds"),
        (lambda: BackEndSettings(batch_size=0), "back_end.batch_size"),
        (lambda: BackEndSettings(ema_decay=1.1), "back_end.ema_decay"),
        (lambda: BackEndSettings(batch_size=4, negatives_per_batch=4), "back_end.negatives_per_batch"),
        (lambda: BackEndSettings(negatives_per_batch=-1), "back_end.negatives_per_batch"),
        (lambda: BackEndSettings(patch_shape=(0, 64)), "back_end.patch_shape"),
        (lambda: BackEndSettings(patch_shape=(64,)), "back_end.patch_shape"),
        (lambda: BackEndSettings(widen_rounds=-1), "back_end.widen_rounds"),
        (lambda: BackEndSettings(steps=2, widen_rounds=2), "back_end.widen_rounds"),
        (lambda: recipe(supervision="weak"), "supervision is 'weak'"),
        (lambda: DataSettings("folder", annotated_tiles=0), "data.annotated_tiles is 0"),
        (lambda: DataSettings("folder", annotated_tiles=()), "data.annotated_tiles is ()"),
        (lambda: DataSettings("folder", annotated_tiles="tile_1"), "data.annotated_tiles is 'tile_1'"),
        (lambda: BackEndSettings(steps=5, frozen_steps=6), "back_end.frozen_steps is 6"),
        (lambda: BackEndSettings(frozen_steps=-1), "back_end.frozen_steps is -1"),
        (lambda: BackEndSettings(annotated_per_batch=-1), "back_end.annotated_per_batch"),
        (lambda: recipe(supervision="mixed"), "data.annotated_tiles is left out"),
        (lambda: mixed(annotated_per_batch=0), "back_end.annotated_per_batch is 0"),
        (lambda: mixed(annotated_per_batch=4, negatives_per_batch=1), "back_end.annotated_per_batch is 4"),
        (
            lambda: TrainRecipe("a", TYPED, "masks", net=NetSettings(nr_types=4)),
            "nr_types is 4 but data.type_names names 3",
        ),
        (lambda: recipe(num_cycles=0), "num_cycles"),
        (lambda: recipe(seed=-1), "seed is -1"),
        (lambda: recipe(seed=2**32), "seed"),
    ],
)
def test_a_value_that_cannot_work_is_named(build, words):
    with pytest.raises(RecipeError) as caught:
        build()
    sentence = str(caught.value)
    assert words in sentence and sentence.endswith(".") and "\n" not in sentence


@pytest.mark.parametrize(
    "spoil",
    [
        lambda plain: plain.pop("name"),
        lambda plain: plain.update(epochs=3),
        lambda plain: plain["front_end"].update(epochs=3),
        lambda plain: plain["data"].pop("reader"),
        lambda plain: plain.update(data=None),
        lambda plain: plain.update(net="small"),
        lambda plain: plain["net"].update(mode=["small"]),
        lambda plain: plain["front_end"].update(batch_size="many"),
    ],
)
def test_a_plain_form_that_does_not_fit_is_refused(spoil):
    plain = recipe().to_dict()
    spoil(plain)
    with pytest.raises(RecipeError):
        TrainRecipe.from_dict(plain)


def test_a_plain_form_of_before_masks_could_be_learnt_from_is_the_same_recipe():
    plain = recipe().to_dict()
    del plain["data"]["annotated_tiles"], plain["net"]["pretrained"]
    del plain["back_end"]["annotated_per_batch"], plain["back_end"]["frozen_steps"]
    assert TrainRecipe.from_dict(plain) == recipe()


def test_drawn_masks_may_be_all_or_some_and_typed_or_not():
    assert mixed(annotated_per_batch=3).supervision == "mixed"
    for nr_types in (None, 3):
        assert TrainRecipe("a", TYPED, "masks", net=NetSettings(nr_types=nr_types)).net.nr_types == nr_types
    assert TrainRecipe("a", DataSettings("folder"), "masks", net=NetSettings(nr_types=7)).net.nr_types == 7


@pytest.mark.parametrize("settings", [FrontEndSettings(steps_first=5, steps_later=3), BackEndSettings(5, 3)])
def test_the_steps_of_cycles_follow_each_other(settings):
    assert [settings.steps_in(cycle) for cycle in (0, 1, 2, 3)] == [range(0), range(5), range(5, 8), range(8, 11)]


def test_later_cycles_have_as_many_steps_unless_they_are_told():
    assert BackEndSettings(steps=7).steps_in(3) == range(14, 21)
