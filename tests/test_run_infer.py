import json
import re
import subprocess
import sys
from pathlib import Path

import cv2
import numpy as np
import pytest
import torch
from scipy.io import loadmat

import run_infer
from dataloader.images import write_png
from hovernet_cyclic.core.settings import DataSettings, NetSettings, TrainRecipe
from hovernet_cyclic.core.types import Checkpoint
from models.checkpoint import FORMAT_VERSION, save_checkpoint
from models.hovernet.net_desc import HoVerNet

ROOT = Path(__file__).parents[1]
NUCLEI = [(30, 40, 9), (30, 90, 12), (80, 60, 10), (95, 110, 8)]  # row, column, radius
TYPES = {"1": ["round", [255, 0, 0]], "2": ["long", [0, 0, 255]]}


def eager_network(nr_types=None):
    """A random network that is biased to answer 'nucleus', so that there is something to write."""
    torch.manual_seed(1)
    net = HoVerNet("small", nr_types)
    with torch.no_grad():
        for name, branch in net.decoder.items():
            branch.head.weight *= 0.01
            branch.head.bias.zero_()
            if name == "np":
                branch.head.bias[4:] = 3.0  # channels 4..7 are the four pixels of 'nucleus'
    return net


def checkpoint(path, nr_types=None):
    type_names = ("no label", "first", "second")[:nr_types] if nr_types else ()
    recipe = TrainRecipe(
        "demo", DataSettings("demo", mpp=0.5, type_names=type_names), net=NetSettings("small", nr_types, "local")
    )
    net = eager_network(nr_types)
    save_checkpoint(path, Checkpoint(FORMAT_VERSION, recipe.to_dict(), 2, "done", 0, teacher=net.state_dict()))
    return path


@pytest.fixture(scope="module")
def place(tmp_path_factory):
    """A folder with two networks and two images."""
    folder = tmp_path_factory.mktemp("infer")
    checkpoint(folder / "net.tar")
    checkpoint(folder / "typed.tar", 3)
    (folder / "types.json").write_text(json.dumps(TYPES))
    image = np.full((120, 130, 3), (230, 190, 215), np.uint8)
    for row, column, radius in NUCLEI:
        cv2.circle(image, (column, row), radius, (110, 70, 140), -1)
    write_png(folder / "in" / "first.png", image)
    write_png(folder / "in" / "second.png", image[:50, :70])
    return folder


def command(place, *, net="net.tar", shared=(), own=(), source="in", out="out"):
    return [
        f"--model_path={place / net}",
        "--gpu=cpu",
        *shared,
        "tile",
        f"--input_dir={place / source}",
        f"--output_dir={place / out}",
        *own,
    ]


def written(folder):
    return sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file())


def test_a_folder_from_end_to_end(place, capsys):
    assert run_infer.main(command(place, own=["--save_qupath", "--draw_dot", "--save_raw_map"])) == 0
    kinds = {"geojson": "geojson", "json": "json", "mat": "mat", "overlay": "png", "qupath": "tsv"}
    assert written(place / "out") == [
        f"{kind}/{name}.{end}" for kind, end in kinds.items() for name in ("first", "second")
    ]
    mat = loadmat(place / "out" / "mat" / "first.mat")
    assert mat["inst_map"].shape == (120, 130) and mat["raw_map"].shape == (120, 130, 3)
    assert "inst_type" not in mat
    nuclei = json.loads((place / "out" / "json" / "first.json").read_text())["nuc"]
    assert sorted(map(int, nuclei)) == sorted(mat["inst_uid"].ravel().tolist())
    (feature, *_) = json.loads((place / "out" / "geojson" / "first.geojson").read_text())["features"]
    measured = feature["properties"]["measurements"]
    assert measured["area_um2"] == pytest.approx(measured["area_px"] * 0.25)  # the recipe's 0.5 um/px
    printed = capsys.readouterr()
    assert "give images at 0.5 um/px" in printed.out and "2 of 2 images" in printed.out
    assert "2/2" in printed.err and "nuclei" in printed.err


def test_types_have_the_names_of_the_file_or_of_the_recipe(place):
    def names(out, *shared):
        assert run_infer.main(command(place, net="typed.tar", shared=shared, own=["--save_qupath"], out=out)) == 0
        lines = (place / out / "qupath" / "first.tsv").read_text().splitlines()[1:]
        return {line.split("\t")[3] for line in lines}

    assert names("typed1", "--nr_types=3", "--model_mode=small") <= {"no label", "first", "second"}
    by_file = names("typed2", f"--type_info_path={place / 'types.json'}")
    assert by_file and by_file & {"round", "long"} == by_file - {"nolabel", "no label"}
    assert loadmat(place / "typed2" / "mat" / "first.mat")["inst_type"].dtype == np.int64


def test_a_file_that_names_more_types_is_taken_with_a_word(place, tmp_path, capsys):
    path = tmp_path / "type_info.json"
    path.write_text(json.dumps({**TYPES, "3": ["none", [0, 9, 0]]}))
    assert run_infer.main(command(place, net="typed.tar", shared=[f"--type_info_path={path}"], out="typed3")) == 0
    assert f"{path} names types to 3, the network tells 0 to 2" in capsys.readouterr().out


def test_the_answer_does_not_depend_on_batches_and_workers(place):
    outs = []
    for number, (batch, readers, finishers) in enumerate([(1, 0, 0), (3, 2, 2)]):
        shared = [f"--batch_size={batch}", f"--nr_inference_workers={readers}", f"--nr_post_proc_workers={finishers}"]
        assert run_infer.main(command(place, shared=shared, out=f"same{number}")) == 0
        outs.append(place / f"same{number}")
    assert written(outs[0]) == written(outs[1])
    for name in written(outs[0]):
        if name.endswith(".mat"):  # the file begins with its date
            maps = [loadmat(out / name)["inst_map"] for out in outs]
            np.testing.assert_array_equal(*maps)
        else:
            assert (outs[0] / name).read_bytes() == (outs[1] / name).read_bytes()


def test_post_proc_and_precision_are_the_users_choice(place, capsys):
    shared = ["--post_proc=hovernet", "--precision=fp32"]
    assert run_infer.main(command(place, shared=shared, source="in/second.png", out="other")) == 0
    assert "1 image on cpu, float32, post-processing 'hovernet'" in capsys.readouterr().out
    assert run_infer.main(command(place, source="in/second.png", out="other", own=["--mem_usage=0.2"])) == 0
    printed = capsys.readouterr().out
    assert "post-processing 'local'" in printed and "--mem_usage no longer means anything" in printed


def test_an_image_that_cannot_be_used_is_named_and_makes_the_exit_code_1(place, tmp_path, capsys):
    source = tmp_path / "in"
    write_png(source / "good.png", np.full((40, 40, 3), 200, np.uint8))
    write_png(source / "grey.png", np.arange(1600, dtype=np.uint8).reshape(40, 40))
    (source / "notes.txt").write_text("x")
    assert run_infer.main(command(place, source=source, out=tmp_path / "out")) == 1
    assert {name.split("/")[1].split(".")[0] for name in written(tmp_path / "out")} == {"good"}
    printed = capsys.readouterr()
    closing = printed.err.split("1 image could not be processed:")[1]
    assert str(source / "grey.png") in closing and "notes.txt" in printed.err
    assert "1 of 2 images" in printed.out


BAD = {
    "no model": (["tile", "--input_dir=in", "--output_dir=bad"], "--model_path must be given"),
    "no such model": (["--model_path=none.tar", "tile", "--input_dir=in", "--output_dir=bad"], "none.tar: there is no"),
    "no model at all": (["--model_path=types.json", "tile", "--input_dir=in", "--output_dir=bad"], "types.json: "),
    "no such folder": (["--model_path=net.tar", "tile", "--input_dir=none", "--output_dir=bad"], "none does not exist"),
    "empty folder": (["--model_path=net.tar", "tile", "--input_dir=empty", "--output_dir=bad"], "empty holds no image"),
    "file in the way": (["--model_path=net.tar", "tile", "--input_dir=in", "--output_dir=net.tar/bad"], "net.tar is a"),
    "no folder named": (["--model_path=net.tar", "tile", "--input_dir=", "--output_dir=bad"], "--input_dir is empty"),
    "a name too long": (
        ["--model_path=net.tar", "tile", f"--input_dir={'x' * 5000}", "--output_dir=bad"],
        r"x cannot be used \(File name too long\)",
    ),
    "no output named": (["--model_path=net.tar", "tile", "--input_dir=in", "--output_dir="], "--output_dir is empty"),
    "no slides named": (["--model_path=net.tar", "wsi", "--input_dir=", "--output_dir=bad"], "--input_dir is empty"),
    "no slides' output": (["--model_path=net.tar", "wsi", "--input_dir=in", "--output_dir="], "--output_dir is empty"),
    "a folder for a model": (["--model_path=in", "tile", "--input_dir=in", "--output_dir=bad"], "in: this is a folder"),
    "an image for a model": (
        ["--model_path=in/first.png", "tile", "--input_dir=in", "--output_dir=bad"],
        r"in/first.png: this file cannot be loaded, it is torn or no checkpoint at all",
    ),
    "other mode": (
        ["--model_path=net.tar", "--model_mode=fast", "tile", "--input_dir=in", "--output_dir=bad"],
        r"net.tar: this network has the mode 'small' and --model_mode=fast says otherwise",
    ),
    "other types": (
        ["--model_path=net.tar", "--nr_types=5", "tile", "--input_dir=in", "--output_dir=bad"],
        r"net.tar: this network tells no types and --nr_types=5 says otherwise",
    ),
    "no types": (
        ["--model_path=typed.tar", "--nr_types=0", "tile", "--input_dir=in", "--output_dir=bad"],
        r"typed.tar: this network tells 3 types .* and --nr_types=0 says otherwise",
    ),
    "types of no use": (
        ["--model_path=net.tar", "--type_info_path=types.json", "tile", "--input_dir=in", "--output_dir=bad"],
        "--type_info_path=types.json: this network tells no types",
    ),
    "no type file": (
        ["--model_path=typed.tar", "--type_info_path=none.json", "tile", "--input_dir=in", "--output_dir=bad"],
        "none.json cannot be read",
    ),
    **{
        f"{option}={value}": (
            ["--model_path=net.tar", f"--{option}={value}", "tile", "--input_dir=in", "--output_dir=bad"],
            f"--{option}={value}: ",
        )
        for option, value in [
            ("batch_size", "0"),
            ("batch_size", "-3"),
            ("batch_size", "many"),
            ("batch_size", "1.5"),
            ("nr_inference_workers", "-1"),
            ("nr_post_proc_workers", ""),
            ("nr_types", "x"),
            ("views", "0"),
            ("views", "9"),
            ("views", "four"),
            ("precision", "fp8"),
            ("post_proc", "magic"),
            ("model_mode", "slow"),
            ("gpu", "zero"),
            ("gpu", "99"),
            ("gpu", ""),
        ]
    },
}


@pytest.mark.parametrize("case", BAD)
def test_bad_input_is_one_sentence_and_leaves_no_folder(place, monkeypatch, capsys, case):
    (place / "empty").mkdir(exist_ok=True)
    monkeypatch.chdir(place)
    words, sentence = BAD[case]
    assert run_infer.main(words) == 2
    printed = capsys.readouterr()
    assert printed.out == "" and re.search(sentence, printed.err)
    assert len(printed.err.splitlines()) == 1
    assert not (place / "bad").exists()


HOVER_NET_OPTIONS = ["--nr_types=6", "--type_info_path=type_info.json", "--model_mode=fast", "--nr_inference_workers=8"]


@pytest.mark.parametrize(("mode", "nr_types", "options"), [("fast", 6, HOVER_NET_OPTIONS), ("original", None, [])])
def test_published_checkpoints_just_work(tmp_path, monkeypatch, capsys, mode, nr_types, options):
    """As hover_net converts them ('desc', no counters of batches), with the options of its README or with none."""
    with torch.device("meta"):
        shapes = {name: value.shape for name, value in HoVerNet(mode, nr_types).state_dict().items()}
    one = torch.full((), 0.01)
    weights = {name: one.expand(shape) for name, shape in shapes.items() if not name.endswith("num_batches_tracked")}
    monkeypatch.chdir(tmp_path)
    torch.save({"desc": weights}, "published.tar")
    names = ["nolabe", "neopla", "inflam", "connec", "necros", "no-neo"]
    Path("type_info.json").write_text(json.dumps({i: [name, [i, 0, 0]] for i, name in enumerate(names)}))
    write_png("tiles/one.png", np.full((70, 60, 3), 200, np.uint8))
    shared = ["--model_path=published.tar", "--gpu=cpu", *options]
    own = ["--input_dir=tiles", "--output_dir=out", "--draw_dot", "--save_qupath", "--mem_usage=0.1"]
    assert run_infer.main([*shared, "tile", *own]) == 0
    assert f"HoVer-Net '{mode}', {f'{nr_types} types' if nr_types else 'no types'}" in capsys.readouterr().out
    content = loadmat("out/mat/one.mat")
    assert content["inst_map"].shape == (70, 60) and ("inst_type" in content) == (nr_types is not None)


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        ([], "Give a mode"),
        (["wsi", "--input_dir=a"], "The mode wsi needs --input_dir and --output_dir"),
        (["--region=1,1,1,1", "wsi"], "--region stands after the mode: run_infer.py ... wsi --region"),
        (["wsi", "--draw_dot", "--input_dir=a", "--output_dir=b"], "There is no option --draw_dot of the mode wsi."),
        (["slide"], "The mode is 'slide'"),
        (["--foo", "tile"], "There is no option --foo."),
        (["--batch_size"], "--batch_size requires argument"),
        (["tile", "--input_dir=a"], "needs --input_dir and --output_dir"),
        (["tile", "--input_dir=a", "--output_dir=b", "stray"], "no other words"),
        (["tile", "--model_path=x", "--input_dir=a", "--output_dir=b"], "--model_path stands before the mode"),
        (["--input_dir=a", "tile"], "--input_dir stands after the mode"),
        (["tile", "--foo", "--input_dir=a", "--output_dir=b"], "There is no option --foo of the mode tile."),
    ],
)
def test_a_wrong_command_line_is_told_what_is_wrong_and_the_usage(capsys, words, sentence):
    assert run_infer.main(words) == 2
    printed = capsys.readouterr().err
    assert sentence in printed.splitlines()[0] and "Usage:" in printed


@pytest.mark.parametrize("words", [["--help"], ["--version"], ["tile", "--help"], ["wsi", "--help"]])
def test_help_needs_no_torch(words):
    code = (
        "import sys, run_infer\ntry:\n    code = run_infer.main(sys.argv[1:])\n"
        "except SystemExit as end:\n    code = end.code\n"
        "print('heavy:', *{'torch', 'cv2', 'skimage', 'scipy', 'numpy'} & set(sys.modules))\nsys.exit(code)"
    )
    done = subprocess.run([sys.executable, "-c", code, *words], cwd=ROOT, capture_output=True, text=True, check=True)
    assert done.stdout.splitlines()[-1].split() == ["heavy:"] and len(done.stdout.splitlines()) > 1


def wsi_command(place, *own, shared=(), source="in/first.png", out="slides"):
    return [
        f"--model_path={place / 'typed.tar'}",
        "--gpu=cpu",
        *shared,
        "wsi",
        f"--input_dir={place / source}",
        f"--output_dir={place / out}",
        *own,
    ]


def described(path):
    nuclei = json.loads(path.read_text())["nuc"].values()
    return sorted((one["bbox"], one["contour"], one["type"], one["type_probs"]) for one in nuclei)


def balanced_network(image):
    """A random network, shifted so that it calls a quarter of the image nuclei."""
    from infer.base import NetworkSegmenter

    torch.manual_seed(5)
    net = HoVerNet("small", 3).eval()
    np_prob = NetworkSegmenter(net, "small", "cpu").raw_maps(image).np_prob.astype(np.float64)
    with torch.no_grad():
        net.decoder["np"].head.bias[4:] -= float(np.quantile(np.log(np_prob / (1 - np_prob)), 0.75))
    return net


@pytest.mark.parametrize("views", [1, 4])
def test_a_slide_is_the_tile_it_is(tmp_path, monkeypatch, views):
    """The same image in both modes, with a true network: nucleus for nucleus, whatever the windows and workers."""
    coarse = np.random.default_rng(2).integers(60, 255, (28, 36, 3), dtype=np.uint8)
    image = cv2.resize(coarse, (420, 330), interpolation=cv2.INTER_CUBIC)
    write_png(tmp_path / "in" / "a.png", image)
    recipe = TrainRecipe("demo", DataSettings("demo", mpp=0.5), net=NetSettings("small", 3, "local"))
    weights = balanced_network(image).state_dict()
    save_checkpoint(tmp_path / "net.tar", Checkpoint(FORMAT_VERSION, recipe.to_dict(), 2, "done", 0, teacher=weights))
    shared = [f"--model_path={tmp_path / 'net.tar'}", "--gpu=cpu", "--precision=fp32", f"--views={views}"]
    folders = [f"--input_dir={tmp_path / 'in'}", f"--output_dir={tmp_path / 'tile'}"]
    assert run_infer.main([*shared, "tile", *folders]) == 0
    expected = described(tmp_path / "tile" / "json" / "a.json")
    assert len(expected) > 100, "too few nuclei to tell"
    outs = []
    for number, (patch, workers) in enumerate([(2048, 0), (400, 1)]):
        monkeypatch.setattr("infer.slide_estimate.largest_patch", lambda *_, patch=patch: patch)
        monkeypatch.setattr("infer.slide_estimate.SMALLEST_WINDOW", 256)
        folders = [f"--input_dir={tmp_path / 'in'}", f"--output_dir={tmp_path / f'wsi{number}'}"]
        own = ["--mpp=0.5", "--whole_slide", "--tile_shape=256"]
        assert run_infer.main([*shared, f"--nr_post_proc_workers={workers}", "wsi", *folders, *own]) == 0
        outs.append(tmp_path / f"wsi{number}")
        assert described(outs[-1] / "json" / "a.json") == expected
    for name in written(outs[0]):
        assert len({(out / name).read_bytes() for out in outs}) == 1, f"{name} depends on windows or workers"


def test_slides_from_end_to_end(place, capsys):
    assert run_infer.main(wsi_command(place, "--save_thumb", "--save_mask", "--mpp=0.5", "--chunk_shape=9")) == 0
    kinds = {"geojson": "geojson", "info": "json", "json": "json", "parquet": "parquet"}
    pictures = dict.fromkeys(("density", "mask", "overlay", "thumb", "tissue"), "png")
    made = sorted(f"{kind}/first.{end}" for kind, end in {**kinds, **pictures}.items())
    assert [name for name in written(place / "slides") if not name.split("/")[-1].startswith(".")] == made
    printed = capsys.readouterr()
    assert "--chunk_shape no longer means anything" in printed.out and "slides are read at 0.5 um/px" in printed.out
    assert re.search(r"first +done +[0-9]+", printed.out) and "tile" in printed.err and "nuclei" in printed.err
    assert run_infer.main(wsi_command(place, "--mpp=0.5", "--save_thumb", "--save_mask")) == 0
    assert re.search(r"first +skipped", capsys.readouterr().out)


def test_a_slide_seen_from_other_sides_is_another_result(place, capsys):
    said = {}
    for views in (1, 2, 2):
        assert run_infer.main(wsi_command(place, "--mpp=0.5", shared=[f"--views={views}"], out="views")) == 0
        said[views] = capsys.readouterr().out
        info = json.loads((place / "views" / "info" / "first.json").read_text())
        assert info["identity"]["network"].get("views", 1) == views
    assert re.search(r"first +skipped", said[2])


def test_a_slide_without_a_scale_says_what_to_add(place, capsys):
    assert run_infer.main(wsi_command(place, out="bare")) == 1
    printed = capsys.readouterr().err
    assert "does not say how large its pixels are: add --mpp=" in printed and "Traceback" not in printed
    assert run_infer.main(wsi_command(place, "--dry_run", "--mpp=1.0", out="bare")) == 0
    assert "resampled to 0.5 um/px" in capsys.readouterr().out


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--region=1,2,3"], "--region=1,2,3: give x,y,width,height"),
        (["--region=1,2,0,3"], "--region=1,2,0,3: "),
        (["--mpp=0"], "--mpp=0: give a number above 0"),
        (["--tile_shape=x"], "--tile_shape=x: "),
        (["--max_memory=0.1"], "--max_memory=0.1 is too small"),
        (["--proc_mag=40"], "--proc_mag=40 is 0.25 um/px and the network wants 0.5"),
        (["--input_mask_dir=nowhere"], "--input_mask_dir=nowhere: this folder does not exist"),
        (["--input_mask_dir=.", "--whole_slide"], "exclude each other"),
    ],
)
def test_bad_options_of_slides(place, capsys, words, sentence):
    assert run_infer.main(wsi_command(place, *words, out="bad")) == 2
    printed = capsys.readouterr()
    assert sentence in printed.err and len(printed.err.splitlines()) == 1 and not (place / "bad").exists()


def test_reference_post_processing_is_not_for_slides(place, capsys):
    assert run_infer.main(wsi_command(place, shared=["--post_proc=hovernet"], out="bad")) == 2
    assert "--post_proc=hovernet depends on how a slide is cut" in capsys.readouterr().err


def test_a_folder_that_may_not_be_read_is_named(place, monkeypatch, capsys):
    def refuse(self):
        raise PermissionError(13, "Permission denied", str(self))

    monkeypatch.setattr(Path, "iterdir", refuse)
    assert run_infer.main(command(place)) == 2
    assert capsys.readouterr().err.startswith(f"{place / 'in'} cannot be used (Permission denied): ")


def test_stopped_by_hand(place, monkeypatch, capsys):
    def interrupt(*_):
        raise KeyboardInterrupt

    monkeypatch.setattr("infer.base.NetworkSegmenter.begin", interrupt)
    assert run_infer.main(command(place, out="stopped")) == 130
    assert capsys.readouterr().err.splitlines()[-1].startswith("Stopped.")
    assert not (place / "stopped").exists()


@pytest.mark.parametrize(("asked", "images", "wanted"), [("0", 99, 0), ("3", 1, 3), (None, 3, 0)])
def test_processes_are_as_asked_or_as_worth_it(asked, images, wanted):
    settings = {"nr_post_proc_workers": None if asked is None else int(asked)}
    assert run_infer.finish_workers(settings, images) == wanted
    assert 1 <= run_infer.finish_workers({"nr_post_proc_workers": None}, 400) <= 8
