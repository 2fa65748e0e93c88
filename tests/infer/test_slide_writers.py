import json

import numpy as np
import pyarrow.parquet as pq
import pytest
import shapely

from hovernet_cyclic.core.types import Box, Nucleus
from infer import geoparquet
from infer.geoparquet import GeoParquetStream
from infer.measurements import MEASURES
from infer.nucleus_table import Described
from infer.slide_writers import GeoJsonStream, JsonStream, Level0
from infer.staged_files import StagedFiles
from infer.type_info import default_type_info

HEADER = {"mag": 40.0, "mpp": 0.25, "coordinates": "px"}
MEASURED = (12.0, 10.5, 0.123456, 0.9, 0.25, 0.75)


def squares(count, typed=True):
    """Squares of 4 px at (10 i, 20 i), drawn as `outlines` draws them."""
    described = Described(2 if typed else 0)
    for i in range(count):
        x, y = 10 * i, 20 * i
        contour = np.array([[x, y], [x, y + 3], [x + 3, y + 3], [x + 3, y]], np.int32)
        types = (1, 0.8, np.array([0.2, 0.8], np.float32)) if typed else (None, None, None)
        rings = [[[x, y], [x + 4, y], [x + 4, y + 4], [x, y + 4], [x, y]]]
        if i == 1:
            rings.append([[x + 4, y + 4], [x + 5, y + 4], [x + 5, y + 5], [x + 4, y + 5], [x + 4, y + 4]])
        nucleus = Nucleus(Box(y, x, y + 4, x + 4), (x + 1.5, y + 1.5), contour, *types)
        described.add(nucleus, [np.array(ring, np.int32) for ring in rings], MEASURED, True)
    return described.table()


def streamed(stream, *tables):
    first = 1
    for table in tables:
        stream.add(table, first)
        first += len(table)
    stream.close()


def test_json_is_hover_nets(tmp_path):
    streamed(JsonStream(tmp_path / "a.json", Level0(1.0, 1.0), HEADER), squares(2), squares(1, typed=True))
    content = json.loads((tmp_path / "a.json").read_text())
    assert content["mag"] == 40.0 and content["mpp"] == 0.25 and list(content["nuc"]) == ["1", "2", "3"]
    assert content["nuc"]["2"] == {
        "bbox": [[20, 10], [24, 14]],
        "centroid": [11.5, 21.5],
        "contour": [[10, 20], [10, 23], [13, 23], [13, 20]],
        "type_prob": 0.8,
        "type": 1,
        "type_probs": [0.2, 0.8],
    }


def test_level_0_is_reached_from_pixel_centres_and_from_corners(tmp_path):
    level0 = Level0(2.0, 2.0)
    streamed(JsonStream(tmp_path / "a.json", level0, HEADER), squares(2, typed=False))
    nucleus = json.loads((tmp_path / "a.json").read_text())["nuc"]["2"]
    assert nucleus["bbox"] == [[40, 20], [48, 28]] and nucleus["centroid"] == [23.5, 43.5]
    assert nucleus["contour"][0] == [20.5, 40.5] and nucleus["type"] is None and "type_probs" not in nucleus
    streamed(GeoJsonStream(tmp_path / "a.geojson", level0, default_type_info(None), HEADER), squares(1, False))
    (feature,) = json.loads((tmp_path / "a.geojson").read_text())["features"]
    assert feature["geometry"]["coordinates"] == [[[0, 0], [8, 0], [8, 8], [0, 8], [0, 0]]]


def test_geojson_is_qupaths(tmp_path):
    streamed(
        GeoJsonStream(tmp_path / "a.geojson", Level0(1.0, 1.0), default_type_info(2), HEADER), squares(1), squares(2)
    )
    content = json.loads((tmp_path / "a.geojson").read_text())
    assert content["type"] == "FeatureCollection" and content["hovernet_cyclic"] == HEADER
    first, _, last = content["features"]
    assert first["properties"] == {
        "objectType": "detection",
        "classification": {"name": "type 1", "color": [255, 0, 0]},
        "measurements": {
            "inst_id": 1,
            **dict(zip(MEASURES, (12.0, 10.5, 0.1235, 0.9, 0.25, 0.75), strict=True)),
            "type_prob": 0.8,
            "p(nolabel)": 0.2,
            "p(type 1)": 0.8,
        },
    }
    assert last["geometry"]["type"] == "MultiPolygon" and len(last["geometry"]["coordinates"]) == 2
    for feature in content["features"]:
        assert shapely.from_geojson(json.dumps(feature["geometry"])).is_valid
    streamed(GeoJsonStream(tmp_path / "b.geojson", Level0(1.0, 1.0), default_type_info(None), HEADER))
    assert json.loads((tmp_path / "b.geojson").read_text())["features"] == []


def test_geoparquet(tmp_path, monkeypatch):
    monkeypatch.setattr(geoparquet, "ROWS", 3)
    paths = tmp_path / "a.parquet", tmp_path / "b.parquet"
    streamed(GeoParquetStream(paths[0], Level0(1.0, 1.0), default_type_info(2), HEADER), squares(5), squares(2))
    streamed(
        GeoParquetStream(paths[1], Level0(1.0, 1.0), default_type_info(2), HEADER),
        squares(5),
        squares(1),
        squares(2).take([1]),
    )
    file = pq.ParquetFile(paths[0])
    assert [file.metadata.row_group(i).num_rows for i in range(3)] == [3, 3, 1]
    assert pq.read_table(paths[1]).num_rows == 7
    assert paths[0].read_bytes() == paths[1].read_bytes(), "files depend on how nuclei were handed over"
    rows = file.read().to_pylist()
    shapes = shapely.from_wkb([row["geometry"] for row in rows])
    assert [shape.area for shape in shapes] == [16, 17, 16, 16, 16, 16, 17]
    assert rows[1]["inst_id"] == 2 and rows[1]["bbox"] == {"xmin": 10, "ymin": 20, "xmax": 15, "ymax": 25}
    assert rows[1]["type"] == "type 1" and rows[1]["type_id"] == 1 and rows[1]["p(type 1)"] == pytest.approx(0.8)
    assert (rows[1]["centroid_x"], rows[1]["centroid_y"]) == (12.0, 22.0) and rows[1]["area_um2"] == 12.0
    geo = json.loads(file.metadata.metadata[b"geo"])
    assert geo["version"] == "1.1.0" and geo["primary_column"] == "geometry"
    column = geo["columns"]["geometry"]
    assert column["encoding"] == "WKB" and column["crs"] is None and column["bbox"] == [0, 0, 44, 84]
    assert column["covering"]["bbox"]["xmin"] == ["bbox", "xmin"]


def test_geoparquet_without_types_and_without_nuclei(tmp_path):
    streamed(
        GeoParquetStream(tmp_path / "a.parquet", Level0(1.0, 1.0), default_type_info(None), HEADER), squares(1, False)
    )
    (row,) = pq.read_table(tmp_path / "a.parquet").to_pylist()
    assert row["type"] is None and row["type_id"] is None and row["type_prob"] is None
    streamed(GeoParquetStream(tmp_path / "b.parquet", Level0(1.0, 1.0), default_type_info(None), HEADER))
    file = pq.ParquetFile(tmp_path / "b.parquet")
    assert (
        file.metadata.num_rows == 0 and "bbox" not in json.loads(file.metadata.metadata[b"geo"])["columns"]["geometry"]
    )


def test_files_appear_together_or_not_at_all(tmp_path):
    with StagedFiles() as staged:
        staged.path(tmp_path / "out" / "a.txt").write_text("a")
        staged.path(tmp_path / "out" / "b.txt").write_text("b")
        assert not (tmp_path / "out" / "a.txt").exists()
    assert (tmp_path / "out" / "a.txt").read_text() == "a" and len(list((tmp_path / "out").iterdir())) == 2
    (tmp_path / "out" / ".a.txt.1.tmp").write_text("left by a run that was killed")
    with pytest.raises(OSError, match="full"), StagedFiles() as staged:
        staged.path(tmp_path / "out" / "a.txt").write_text("new")
        raise OSError("full")
    assert (tmp_path / "out" / "a.txt").read_text() == "a" and len(list((tmp_path / "out").iterdir())) == 2
