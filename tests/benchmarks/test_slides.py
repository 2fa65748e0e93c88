import numpy as np

from benchmarks.slides import Threshold, centroids, compare, draw, make, nuclei_in, truth
from hovernet_cyclic.core.types import Box
from infer.slide_outputs import SlideFolder
from infer.slide_plan import SlideRequest
from infer.slides import SlideSettings, list_slides, segment_slides
from infer.type_info import default_type_info


def test_a_slide_with_known_nuclei(tmp_path):
    slide = tmp_path / "known.ome.tif"
    make(slide, 1600, 0.5)
    outputs = SlideFolder(tmp_path / "out", default_type_info(None))
    settings = SlideSettings(SlideRequest(0.25, window=512), outputs, tmp_path / "cache", {}, quiet=True)
    (result,) = segment_slides(list_slides(str(slide)).slides, [Threshold()], settings)
    figures = compare(centroids(tmp_path / "out" / "parquet" / "known.parquet"), truth(slide))
    assert result.state == "done" and figures["true"] == result.nuclei > 100
    assert figures["missed"] == figures["extra"] == figures["doubles"] == 0 and figures["largest_distance_px"] < 1


def test_what_is_drawn_does_not_depend_on_the_tile():
    whole = draw(Box(0, 0, 900, 900), 900, 0.6, 3)
    differs = draw(Box(200, 300, 500, 700), 900, 0.6, 3) != whole[200:500, 300:700]
    assert differs.mean() < 1e-4, "more than OpenCV's smoothing at the edge of what it draws on"
    everywhere = nuclei_in(Box(0, 0, 900, 900), 900, 0.6, 3)
    some = nuclei_in(Box(200, 300, 500, 700), 900, 0.6, 3)
    assert {tuple(one) for one in some} < {tuple(one) for one in everywhere}


def test_faults_would_be_counted():
    true = np.array([[10.0, 10], [50, 50], [90, 90]])
    found = np.array([[10.5, 10], [50, 50], [50, 52], [200, 200]])
    assert compare(found, true) == {
        "true": 3,
        "found": 4,
        "missed": 1,
        "extra": 1,
        "doubles": 1,
        "largest_distance_px": 2.0,
    }
