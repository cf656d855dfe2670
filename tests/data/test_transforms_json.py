"""transforms.json: axes, cameras, splits, transforms and scales, clouds, bad input."""

import json
import logging

import numpy as np
import pytest
import torch
from PIL import Image

from data.photo_maker import FOCAL, OPENCV, OPENGL, SIZE, lens, photograph, save, truth, write_colmap, write_transforms
from data.recording_maker import camera_path, write_depth
from splatlearn.data.photos import PhotoScene, PhotosConfig, PhotosReader
from splatlearn.errors import BadData, MissingData
from splatlearn.ply import write_ply

PINHOLE = lens("PINHOLE", SIZE, fx=FOCAL, fy=FOCAL, cx=48.0, cy=36.0)
APPLIED = [[1, 0, 0, 0], [0, 0, 1, 0], [0, -1, 0, 0]]
"""What nerfstudio's converter does to the world of COLMAP."""


def scenes(folder, **options) -> list[PhotoScene]:
    found = PhotosReader(PhotosConfig(**{"up": "known", **options}), folder).scenes()
    assert all(isinstance(scene, PhotoScene) for scene in found)
    return found  # type: ignore[return-value]


def read(folder, **options) -> PhotoScene:
    (scene,) = scenes(folder, **options)
    return scene


def message(folder, **options) -> str:
    with pytest.raises(BadData) as caught:
        read(folder, **options)
    return str(caught.value)


@pytest.fixture
def table(tmp_path):
    return write_transforms(tmp_path)


class TestFrames:
    def test_axes(self, tmp_path, table):
        scene = read(tmp_path)
        assert torch.allclose(scene.cameras.camera_to_world.double(), torch.from_numpy(camera_path(4)), atol=1e-6)
        assert (scene.up, scene.metric, scene.split, scene.skipped) == ("known", "unknown", "", ())
        assert scene.cameras["frame"].tolist() == [1, 2, 3, 4]

    @pytest.mark.parametrize("size", [SIZE, (48, 36), (30, 40)])
    def test_colour_is_that_of_the_pinhole(self, tmp_path, table, size):
        frames = read(tmp_path).frames([1, 3], size)
        assert "depth" not in frames and frames.images.shape == (2, 3, size[1], size[0])
        for i, view in enumerate((1, 3)):
            color, _ = truth(camera_path(4)[view], frames.cameras.intrinsics[i].double().numpy(), size)
            assert np.abs(frames.images[i].numpy() - color).mean() < 0.008

    @pytest.mark.parametrize("camera", [lens(), PINHOLE], ids=["bent", "pinhole"])
    @pytest.mark.parametrize("size", [SIZE, (48, 36)])
    def test_depth_lies_on_the_room(self, tmp_path, camera, size):
        write_transforms(tmp_path, depth=True, camera=camera)
        frames = read(tmp_path).frames([2], size)
        _, depth = truth(camera_path(4)[2], frames.cameras.intrinsics[0].double().numpy(), size)
        off = np.abs(frames["depth"][0].numpy() - depth)
        slant = np.abs(np.diff(depth, axis=0)).max() / 2
        assert np.median(off) < 0.02 and off.max() < 3 * slant, "the nearest pixel is off by half a pixel or so"
        assert torch.equal(frames.images[0], read(tmp_path, depth="none").frames([2], size).images[0])

    def test_depth_units(self, tmp_path):
        table = write_transforms(tmp_path, depth=True, camera=PINHOLE)
        plain = read(tmp_path).frames([0], SIZE)["depth"]
        save(tmp_path, {**table, "integer_depth_scale": 0.002})
        assert torch.allclose(read(tmp_path).frames([0], SIZE)["depth"], 2 * plain)
        assert torch.allclose(read(tmp_path, depth_scale=0.003).frames([0], SIZE)["depth"], 3 * plain, atol=1e-5)
        near = read(tmp_path, max_depth=3.0).frames([0], SIZE)["depth"]
        assert near.max() <= 3 and near.eq(0).any()

    def test_scale_makes_metres(self, tmp_path):
        write_transforms(tmp_path, depth=True)
        one, two = read(tmp_path), read(tmp_path, scale=2.5)
        assert (one.metric, two.metric) == ("unknown", "known")
        assert torch.allclose(two.cameras.centers, 2.5 * one.cameras.centers, atol=1e-5)
        assert torch.allclose(two.cameras.world_to_camera[:, :3, :3], one.cameras.world_to_camera[:, :3, :3])
        assert torch.allclose(two.frames([0], SIZE)["depth"], 2.5 * one.frames([0], SIZE)["depth"])

    def test_float_depth_is_in_units_already(self, tmp_path):
        table = write_transforms(tmp_path, depth=True, camera=PINHOLE)
        for frame in table["frames"]:
            np.save(tmp_path / frame["depth_file_path"].replace("png", "npy"), np.full((72, 96), 1.5, np.float32))
            frame["depth_file_path"] = frame["depth_file_path"].replace("png", "npy")
        save(tmp_path, table)
        assert read(tmp_path, scale=2.0).frames([0], SIZE)["depth"].unique().tolist() == [3.0]

    def test_downscaled_photographs(self, tmp_path, table):
        """As users of COLMAP keep them: images_2 beside images, the table unchanged."""
        (tmp_path / "images_2").mkdir()
        for path in (tmp_path / "images").iterdir():
            Image.open(path).resize((48, 36), Image.Resampling.BOX).save(tmp_path / "images_2" / path.name)
        scene, full = read(tmp_path, images="images_2"), read(tmp_path)
        assert (scene.cameras.width, scene.cameras.height) == (48, 36)
        assert torch.allclose(scene.cameras.intrinsics, full.cameras.resize(48, 36).intrinsics, rtol=1e-4)
        assert "4 photographs are not of the size that their cameras say: intrinsics are scaled" in scene.notes
        assert (scene.frames([0], (24, 18)).images - full.frames([0], (24, 18)).images).abs().mean() < 0.01
        save(tmp_path, {key: value for key, value in table.items() if key not in ("w", "h")})
        unsaid = read(tmp_path, images="images_2")
        assert torch.equal(unsaid.cameras.intrinsics, scene.cameras.intrinsics), "the size is that of the listed file"
        (tmp_path / "images").rename(tmp_path / "gone")
        assert "4 x camera: no w and h, and the listed photograph, whose pixels" in message(tmp_path, images="images_2")


class TestCameras:
    def matrix(self, folder, table, **values) -> list[float]:
        kept = {key: value for key, value in table.items() if key == "frames"}
        save(folder, kept | values)
        matrix = read(folder).cameras.intrinsics[0]
        return [round(float(matrix[i]), 3) for i in ((0, 0), (1, 1), (0, 2), (1, 2))]

    def test_angles(self, tmp_path, table):
        """The synthetic scenes give an angle alone; size and middle are the photograph's."""
        angle = 2 * np.arctan(48 / 60)
        assert self.matrix(tmp_path, table, camera_angle_x=angle) == [60, 60, 48, 36]
        assert self.matrix(tmp_path, table, x_fov=np.degrees(angle), w=96.0, h=72.0, cx=40) == [60, 60, 40, 36]
        assert self.matrix(tmp_path, table, fl_x=60, camera_angle_y=2 * np.arctan(36 / 50)) == [60, 50, 48, 36]
        assert self.matrix(tmp_path, table, fl_x=60) == [60, 60, 48, 36]

    def test_of_each_frame(self, tmp_path, table):
        values = [table.pop(key) for key in ("fl_x", "fl_y")]
        for i, frame in enumerate(table["frames"]):
            frame |= {"fl_x": values[0] + i, "fl_y": values[1] + i}
        save(tmp_path, table)
        lenses = [photo.lens for photo in read(tmp_path)._table.photos]
        assert [camera.focal for camera in lenses] == [(80.0 + i, 82.0 + i) for i in range(4)]
        assert all(camera.bend == lens().bend for camera in lenses)

    @pytest.mark.parametrize("words", [{"camera_model": "OPENCV_FISHEYE"}, {"is_fisheye": True}], ids=str)
    def test_fisheye(self, tmp_path, words):
        camera = lens("OPENCV_FISHEYE", SIZE, fx=60, fy=60, cx=48, cy=36, k1=0.05, k2=0.01, k3=0.0, k4=0.002)
        write_transforms(tmp_path, frames=2, camera=camera, **words)
        scene = read(tmp_path)
        color, _ = truth(camera_path(2)[0], scene.cameras.intrinsics[0].double().numpy(), SIZE)
        assert np.abs(scene.images([0])[0].numpy() - color).mean() < 0.01

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"fl_x": 0}, "camera: focal lengths of"),
            ({"fl_x": "wide"}, "camera: fl_x: a number expected, got wide"),
            ({"cx": None}, "camera: cx: a number expected, got None"),
            ({"fl_x": True}, "camera: fl_x: a number expected, got True"),
            ({"fl_x": 10**400}, "camera: fl_x: a number expected, got one of 401 digits"),
            ({"w": float("inf")}, "camera: w, h: pixels expected"),
            ({"h": 0}, "camera: a size in pixels expected, got 96x0"),
            ({"k1": float("nan")}, "camera: a parameter is not finite"),
            ({"k4": 0.1}, "camera: k4 of the model OPENCV is not removed here"),
            ({"camera_model": "EQUIRECTANGULAR"}, "camera: camera_model EQUIRECTANGULAR is not known"),
            ({"camera_model": "FOV"}, "camera: lens distortion of the model FOV is not removed"),
            ({"k1": -90.0, "k2": 0}, "camera: lens distortion that no pinhole image is free of"),
        ],
        ids=str,
    )
    def test_bad_ones_are_told(self, tmp_path, table, change, reason):
        save(tmp_path, table | change)
        assert f"4 x {reason}" in message(tmp_path)
        save(tmp_path, {**table, "frames": [{**table["frames"][0], **change}, *table["frames"][1:]]})
        (skipped,) = read(tmp_path).skipped
        assert skipped.name == "images/0001.png" and reason in skipped.reason

    def test_no_focal_length(self, tmp_path, table):
        save(tmp_path, {"frames": table["frames"]})
        assert "4 x camera: no focal length (fl_x in pixels, or camera_angle_x)" in message(tmp_path)
        save(tmp_path, {"frames": table["frames"], "camera_angle_x": 4.0})
        assert "camera_angle_x: an angle below 180 degrees expected, got 4 radians" in message(tmp_path)


class TestSplits:
    def test_lists_of_names(self, tmp_path, table, caplog):
        names = [frame["file_path"] for frame in table["frames"]]
        lists = {"train_filenames": names[:2], "val_filenames": ["./" + names[2], "images/gone.png"]}
        save(tmp_path, table | lists)
        with caplog.at_level(logging.WARNING):
            train, val = scenes(tmp_path, up="auto")
        assert [(s.name, s.split, len(s.cameras)) for s in (train, val)] == [
            (f"{tmp_path.name}/train", "train", 2),
            (f"{tmp_path.name}/val", "val", 1),
        ]
        assert train.skipped == (("images/0004.png", "in none of train_filenames, val_filenames"),)
        assert "1 names in train_filenames and its like are no frame's (first: images/gone.png)" in caplog.text
        assert np.array_equal(train.world_from_source, val.world_from_source), "one world"
        whole = [train.cameras, val.cameras]
        assert [c["frame"].tolist() for c in whole] == [[1, 2], [3]]

    def test_files_of_the_synthetic_scenes(self, tmp_path, table):
        (tmp_path / "transforms.json").unlink()
        for split, part in (("train", table["frames"][:3]), ("test", table["frames"][3:])):
            frames = [{**frame, "file_path": "./" + frame["file_path"].removesuffix(".png")} for frame in part]
            save(tmp_path, {**table, "frames": frames}, f"transforms_{split}.json")
        test, train = scenes(tmp_path)
        assert (test.split, len(test.cameras), train.split, len(train.cameras)) == ("test", 1, "train", 3)
        assert test.frames([0], SIZE).images.shape == (1, 3, 72, 96)

    def test_lists_of_something_else(self, tmp_path, table):
        save(tmp_path, table | {"train_filenames": "all"})
        assert "train_filenames: a list of names expected" in message(tmp_path)


class TestWorld:
    def test_applied_scale_is_taken_back(self, tmp_path, table):
        for frame in table["frames"]:
            for row in frame["transform_matrix"][:3]:
                row[3] *= 0.25
        save(tmp_path, table | {"applied_scale": 0.25})
        assert torch.allclose(
            read(tmp_path).cameras.camera_to_world.double(), torch.from_numpy(camera_path(4)), atol=1e-6
        )

    def test_the_model_of_colmap_follows_applied_transform(self, tmp_path):
        """As nerfstudio's converter leaves a folder: poses and model in two worlds, and the matrix between them."""
        points = write_colmap(tmp_path, place="colmap/sparse/0")
        applied = np.eye(4)
        applied[:3] = APPLIED
        table = write_transforms(tmp_path, applied_transform=APPLIED)
        for frame, pose in zip(table["frames"], camera_path(4)):
            frame["transform_matrix"] = (applied @ pose @ OPENGL).tolist()
        save(tmp_path, table)
        scene, model = read(tmp_path), read(tmp_path, layout="colmap", model="colmap/sparse/0")
        assert np.allclose(scene.points().xyz.numpy(), points @ applied[:3, :3].T, atol=1e-5)
        view = torch.zeros(6, dtype=torch.int64)
        pixels = [s.cameras.project(s.points().xyz, view)[0] for s in (scene, model)]
        assert torch.allclose(*pixels, atol=1e-2)
        save(tmp_path, {key: value for key, value in table.items() if key != "applied_transform"})
        with pytest.raises(MissingData, match="has no point cloud"):
            read(tmp_path).points()

    @pytest.mark.parametrize("matrix", [[[1, 0], [0, 1]], "x", [[0] * 4] * 3, [[float("nan")] * 4] * 3], ids=str)
    def test_bad_applied_transform(self, tmp_path, table, matrix):
        save(tmp_path, table | {"applied_transform": matrix})
        assert "applied_transform: 3x4 finite numbers with an inverse expected" in message(tmp_path)

    @pytest.mark.parametrize("scale", [0, -1, float("nan"), "big"])
    def test_bad_applied_scale(self, tmp_path, table, scale):
        save(tmp_path, table | {"applied_scale": scale})
        assert "applied_scale: a number" in message(tmp_path)

    def test_cloud(self, tmp_path, table):
        xyz, rgb = np.random.default_rng(0).random((5, 3)), np.arange(15).reshape(5, 3).astype(np.uint8)
        columns = [*zip("xyz", xyz.astype(np.float32).T), *zip(("red", "green", "blue"), rgb.T)]
        write_ply(tmp_path / "sparse_pc.ply", columns)
        save(tmp_path, table | {"ply_file_path": "sparse_pc.ply"})
        points = read(tmp_path, scale=2.0).points()
        assert np.allclose(points.xyz.numpy(), 2 * xyz, atol=1e-6)
        assert np.allclose(points["color"].numpy() * 255, rgb, atol=1e-4)
        for scene in scenes(tmp_path, up="0,1,0"):
            turned = scene.points().xyz.double() - torch.from_numpy(scene.world_from_source[:3, 3])
            assert torch.allclose(turned[:, 2], torch.from_numpy(xyz[:, 1]), atol=1e-5)

    @pytest.mark.parametrize(
        ("name", "note"),
        [("gone.ply", "gone.ply is missing"), ("../x.ply", "../x.ply leads out of the folder"), (3, "3 leads out of")],
    )
    def test_no_cloud(self, tmp_path, table, name, note):
        save(tmp_path, table | {"ply_file_path": name})
        assert any(note in text for text in read(tmp_path).notes)

    def test_bad_clouds(self, tmp_path, table):
        save(tmp_path, table | {"ply_file_path": "a.ply"})
        (tmp_path / "a.ply").write_bytes(b"ply\nformat binary_little_endian 1.0\nelement vertex 1000000000000\n")
        scene = read(tmp_path)
        with pytest.raises(BadData, match=r"a.ply: the header has no line 'end_header'"):
            scene.points()
        write_ply(tmp_path / "a.ply", [("x", np.zeros(3, np.float32))])
        with pytest.raises(BadData, match="vertices with x, y and z expected, y, z missing"):
            scene.points()
        write_ply(tmp_path / "a.ply", [(name, np.zeros(0, np.float32)) for name in "xyz"])
        with pytest.raises(MissingData, match="holds no points"):
            scene.points()


class TestBadTables:
    @pytest.mark.parametrize(
        ("text", "expected"),
        [
            ("", "not valid JSON"),
            ('{"frames": [', "not valid JSON"),
            ("[" * 10000, "not valid JSON"),
            ("[" * 100000, "100000 brackets in 100000 bytes: no table of frames"),
            ("[1, 2]", "an object with a list `frames` expected, got a list"),
            ("{}", "an object with a list `frames` expected, got an empty object"),
            ('{"w": 3, "frames": {}}', "an object with a list `frames` expected, got w, frames"),
            ('{"frames": []}', "`frames` is empty; one entry a photograph expected"),
            (
                '{"frames": [{}, 2, null]}',
                "frames[1]: an object with file_path and transform_matrix expected, got a int",
            ),
            ('{"frames": [{}, {}, {}]}', "got 0 of 3; left out: 3 x no file_path (first: frame 0)"),
            (b"\xff\xfe\x00{", "not valid JSON"),
        ],
    )
    def test_told(self, tmp_path, text, expected):
        (tmp_path / "transforms.json").write_bytes(text if isinstance(text, bytes) else text.encode())
        found = message(tmp_path)
        assert expected in found and str(tmp_path) in found

    def test_too_large(self, tmp_path):
        with (tmp_path / "transforms.json").open("wb") as file:
            file.truncate(21 << 20)
        assert "22020096 bytes; 20971520 at most are read" in message(tmp_path)

    @pytest.mark.parametrize(
        ("change", "reason"),
        [
            ({"transform_matrix": None}, "no transform_matrix"),
            ({"transform_matrix": [[1, 2], [3]]}, "transform_matrix: 4x4 numbers expected"),
            ({"transform_matrix": [[1, 0], [0, 1]]}, "transform_matrix: 4x4 numbers expected, got shape (2, 2)"),
            ({"transform_matrix": "eye"}, "transform_matrix: 4x4 numbers expected"),
            ({"transform_matrix": {"a": 1}}, "transform_matrix: 4x4 numbers expected"),
            ({"transform_matrix": [[10**400] * 4] * 4}, "transform_matrix: 4x4 numbers expected"),
            ({"transform_matrix": (2 * np.eye(4)).tolist()}, "pose: not a rigid motion"),
            ({"transform_matrix": np.diag([1.0, 1, -1, 1]).tolist()}, "pose: not a rigid motion"),
            ({"transform_matrix": np.full((4, 4), np.nan).tolist()}, "pose: not finite"),
            ({"transform_matrix": np.full((4, 4), 1e300).tolist()}, "pose: not a rigid motion"),
            ({"file_path": 3}, "no file_path"),
            ({"file_path": ""}, "no file_path"),
            ({"file_path": "../images/0001.png"}, "its name leads out of the folder"),
            ({"file_path": "/etc/passwd"}, "its name leads out of the folder"),
            ({"file_path": "images/\ud800\0.png"}, "photograph: "),
            ({"file_path": "images/0009.png"}, "photograph: the file is missing"),
            ({"file_path": "images"}, "photograph: no readable image"),
            ({"file_path": "images/0002.png"}, "listed twice: the first usable one is taken"),
            ({"depth_file_path": 7}, "depth_file_path: a name expected, got 7"),
        ],
        ids=str,
    )
    def test_a_frame_is_left_out(self, tmp_path, table, change, reason):
        table["frames"].append({**table["frames"][1], "file_path": "images/0005.png", **change})
        photo = (tmp_path / "images/0002.png").read_bytes()
        (tmp_path / "images/0005.png").write_bytes(photo)
        save(tmp_path, table)
        scene = read(tmp_path)
        assert len(scene.cameras) == 4
        (skipped,) = scene.skipped
        assert reason in skipped.reason and skipped.name.isprintable()

    def test_images(self, tmp_path, table):
        images = tmp_path / "images"
        data = (images / "0001.png").read_bytes()
        (images / "0001.png").write_bytes(data[: len(data) // 2])
        Image.new("RGB", (50, 50)).save(images / "0002.png")
        assert dict(read(tmp_path).skipped) == {
            "images/0001.png": "photograph: the PNG ends early (truncated)",
            "images/0002.png": "photograph is 50x50, which is no resized 96x72 as its camera says",
        }
        (images / "0003.png").write_bytes(b"")
        text = message(tmp_path)
        assert "at least 2 usable photographs expected, got 1 of 4; left out: 1 x photograph" in text

    def test_shapes_that_differ(self, tmp_path, table):
        for frame in table["frames"][:1]:
            frame |= {"w": 72, "h": 96}
        Image.new("RGB", (72, 96)).save(tmp_path / "images/0001.png")
        save(tmp_path, table)
        (skipped,) = read(tmp_path).skipped
        assert skipped.reason == "photograph is 72x96, most are 96x72: one scene has one shape of images"

    def test_depth_maps(self, tmp_path):
        table = write_transforms(tmp_path, frames=5, depth=True)
        del table["frames"][0]["depth_file_path"]
        table["frames"][1]["depth_file_path"] = "../0002.png"
        write_depth(tmp_path / "depths/0003.png", np.ones((40, 40)))
        save(tmp_path, table)
        assert dict(read(tmp_path).skipped) == {
            "images/0001.png": "no depth map, though others have one; --data.depth none takes all photographs, "
            "without depth",
            "images/0002.png": "depth: its name leads out of the folder",
            "images/0003.png": "depth is 40x40, which is no resized 96x72",
        }
        scene = read(tmp_path, depth="none")
        assert len(scene.cameras) == 5 and "depth" not in scene.frames([0], SIZE)

    def test_unread_files_are_noted(self, tmp_path, table):
        table["frames"][0]["mask_path"] = "masks/1.png"
        save(tmp_path, table)
        assert "1 frames name a mask_path: it is not read" in read(tmp_path).notes

    def test_any_flipped_byte_is_read_or_told(self, tmp_path, table):
        rng = np.random.default_rng(1)
        whole = json.dumps({**table, "applied_transform": APPLIED, "train_filenames": ["images/0001.png"]}).encode()
        for _ in range(200):
            data = bytearray(whole)
            for at in rng.integers(len(data), size=2):
                data[at] = rng.integers(32, 127)
            (tmp_path / "transforms.json").write_bytes(data)
            try:
                for scene in scenes(tmp_path):
                    assert torch.isfinite(scene.cameras.world_to_camera).all()
                    assert torch.isfinite(scene.cameras.intrinsics).all()
            except BadData as error:
                assert str(tmp_path) in str(error)


def test_the_makers_picture_is_bent():
    """The tests above would prove nothing of a lens that does not bend."""
    straight, _ = photograph(camera_path(1)[0], PINHOLE)
    bent, _ = photograph(camera_path(1)[0], lens(**OPENCV))
    assert np.abs(straight.astype(float) - bent).mean() > 3
