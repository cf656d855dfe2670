"""The reader of photographs as a whole: what it takes, captures in folders, up, `check`, real photographs."""

import pickle

import numpy as np
import pytest
import torch
from PIL import Image

from data.photo_maker import OPENGL, SIZE, lens, save, write_colmap, write_transforms
from data.recording_maker import camera_path, tilted_world, write_scannet, write_seven_scenes
from splatlearn.data.photos import PhotoScene, PhotosConfig, PhotosReader
from splatlearn.data.rgbd import RgbdReader
from splatlearn.data.scene import Rejected, Source, require_known
from splatlearn.errors import BadData, ConfigError, MissingData
from splatlearn.verbs.check import check


def read(folder, **options) -> PhotoScene:
    (scene,) = PhotosReader(PhotosConfig(**options), folder).scenes()
    assert isinstance(scene, PhotoScene)
    return scene


class TestFinding:
    def test_by_what_the_folder_holds(self, tmp_path):
        write_colmap(tmp_path / "set/a", frames=2)
        write_transforms(tmp_path / "set/b", frames=2)
        write_transforms(tmp_path / "broken", frames=2, frames_=0)
        (tmp_path / "broken/transforms.json").write_text("{")
        source = Source(name=str(tmp_path))
        assert [scene.name for scene in source.scenes()] == ["set/a", "set/b"]
        ((name, reason),) = source.reader().skipped
        assert name == "broken" and "not valid JSON" in reason

    def test_readers_do_not_take_each_others_folders(self, tmp_path):
        write_seven_scenes(tmp_path / "7", frames=2)
        write_scannet(tmp_path / "scannet", frames=2)
        write_colmap(tmp_path / "colmap", frames=2)
        takes = [(RgbdReader.accepts(path), PhotosReader.accepts(path)) for path in sorted(tmp_path.iterdir())]
        assert takes == [(True, False), (False, True), (True, False)]

    def test_a_file(self, tmp_path):
        write_transforms(tmp_path, frames=2)
        (scene,) = Source(name=str(tmp_path / "transforms.json")).scenes()
        assert scene.name == tmp_path.name and len(scene.cameras) == 2

    def test_both_layouts(self, tmp_path):
        write_colmap(tmp_path, frames=3)
        write_transforms(tmp_path, frames=2)
        assert len(read(tmp_path).cameras) == 2
        assert len(read(tmp_path, layout="colmap").cameras) == 3

    def test_nothing(self, tmp_path):
        with pytest.raises(BadData, match="no posed photographs found; looked for transforms"):
            PhotosReader(PhotosConfig(), tmp_path).scenes()
        (tmp_path / "sparse").mkdir()
        (tmp_path / "sparse/cameras.bin").write_bytes(b"")
        assert not PhotosReader.accepts(tmp_path), "no images.bin"

    def test_scenes_travel_to_workers(self, tmp_path):
        write_colmap(tmp_path, frames=2)
        scene = read(tmp_path)
        again = pickle.loads(pickle.dumps(scene))
        assert torch.equal(again.frames([1], (24, 18)).images, scene.frames([1], (24, 18)).images)

    def test_stride_and_count(self, tmp_path):
        write_transforms(tmp_path, frames=5)
        assert read(tmp_path, stride=2).cameras["frame"].tolist() == [1, 3, 5]
        assert read(tmp_path, stride=2, max_frames=2).cameras["frame"].tolist() == [1, 3]

    def test_numbers_of_names(self, tmp_path):
        table = write_transforms(tmp_path, frames=3)
        for number, name in enumerate(["left/b10.png", "left/b9.png", "right/b9.png"]):
            (tmp_path / "images" / name).parent.mkdir(exist_ok=True)
            (tmp_path / table["frames"][number]["file_path"]).rename(tmp_path / "images" / name)
            table["frames"][number]["file_path"] = f"images/{name}"
        save(tmp_path, table)
        scene = read(tmp_path)
        names = [photo.name for photo in scene._table.photos]
        assert names == ["images/left/b9.png", "images/left/b10.png", "images/right/b9.png"], "ranks: 9 is there twice"
        assert scene.cameras["frame"].tolist() == [0, 1, 2]

    @pytest.mark.parametrize(
        "options", [{"stride": 0}, {"max_frames": 1}, {"scale": -1.0}, {"scale": float("inf")}, {"up": "1,2"}], ids=str
    )
    def test_options(self, options):
        with pytest.raises(ConfigError):
            Source(name=".", options={"reader": "photos", **options}).reader()


class TestWorld:
    @pytest.mark.parametrize("depth", [False, True])
    def test_up_is_estimated(self, tmp_path, depth):
        table = write_transforms(tmp_path, frames=4, depth=depth, camera=lens().resize((400, 300)))
        for frame, pose in zip(table["frames"], camera_path(4)):
            frame["transform_matrix"] = (tilted_world() @ pose @ OPENGL).tolist()
        save(tmp_path, table)
        scene = read(tmp_path)
        assert scene.up == "estimated" and scene.world_from_source.dtype == np.float64
        up = scene.world_from_source[:3, :3] @ tilted_world()[:3, :3] @ [0, 0, 1]
        # The cameras look 25 degrees down, and share a heading: alone they are off by that.
        assert np.degrees(np.arccos(up[2])) < (1 if depth else 27)
        if depth:
            floor = scene.frames([0, 1], SIZE).to_points().xyz[:, 2].min()
            assert abs(float(floor)) < 0.03

    def test_a_given_up_and_scale(self, tmp_path):
        points = write_colmap(tmp_path)
        scene = read(tmp_path, up="0,0,1", scale=3.0)
        assert (scene.up, scene.metric) == ("known", "known")
        moved = scene.points().xyz.double() - torch.from_numpy(scene.world_from_source[:3, 3])
        assert torch.allclose(moved, torch.from_numpy(3 * points), atol=1e-5)
        assert torch.allclose(scene.cameras.centers.mean(0)[:2], torch.zeros(2), atol=1e-5)
        pixels = [s.cameras.project(s.points().xyz, torch.ones(6).long())[0] for s in (scene, read(tmp_path))]
        assert torch.allclose(*pixels, atol=1e-2), "the photographs see the same"

    def test_no_common_down(self, tmp_path):
        table = write_transforms(tmp_path, frames=2)
        first = np.array(table["frames"][0]["transform_matrix"]) @ np.diag([-1.0, -1, 1, 1])
        table["frames"][1]["transform_matrix"] = first.tolist()
        save(tmp_path, table)
        scene = read(tmp_path)
        assert scene.up == "unknown" and any("give --data.up x,y,z" in note for note in scene.notes)

    def test_the_unit_is_asked_for(self, tmp_path):
        write_colmap(tmp_path, frames=2)
        with pytest.raises(BadData, match=r"--data.scale METRES"):
            require_known([read(tmp_path)], "metric", "gs3 needs metres")


class TestDecoding:
    def test_broken_inside(self, tmp_path):
        """The end is whole and the middle is not: only decoding shows it."""
        write_transforms(tmp_path, frames=3)
        path = tmp_path / "images/0002.png"
        data = bytearray(path.read_bytes())
        data[60:400] = bytes(340)
        path.write_bytes(data)
        scene = read(tmp_path)
        with pytest.raises(Rejected, match=r"an image cannot be read .*images/0002.png: cannot be decoded"):
            scene.frames([1], SIZE)

    def test_empty_depth(self, tmp_path):
        write_transforms(tmp_path, frames=2, depth=True)
        Image.fromarray(np.zeros((72, 96), np.uint16)).save(tmp_path / "depths/0001.png")
        with pytest.raises(Rejected, match=r"no pixel has depth .*depths/0001.png"):
            read(tmp_path, up="known").frames([0], SIZE)


class TestCheck:
    def test_colmap(self, tmp_path):
        write_colmap(tmp_path / "kitchen", frames=4)
        (tmp_path / "kitchen/images/v2.png").unlink()
        report = check(str(tmp_path / "kitchen"), size=SIZE)
        (scene,) = report.scenes
        assert report.reader == "photos" and scene.views and scene.points
        assert (scene.views.count, scene.views.native, scene.points.count) == (3, SIZE, 6)
        assert scene.skipped == {"photograph: the file is missing": ("v2.png",)}
        assert "the scale is unknown" in str(report) and "distortion is removed" in str(report)

    def test_depth(self, tmp_path):
        write_transforms(tmp_path, frames=8, depth=True)
        (scene,) = check(str(tmp_path), data_options={"scale": 1.0}, size=SIZE).scenes
        assert scene.metric == "known" and scene.views and scene.points is None
        assert scene.views.depth_share == 1 and scene.views.overlap[1] > 0.7

    def test_a_damaged_cloud(self, tmp_path):
        write_colmap(tmp_path, frames=2)
        path = tmp_path / "sparse/0/points3D.bin"
        path.write_bytes(path.read_bytes()[:-3])
        with pytest.raises(BadData, match=r"points3D.bin: ends early \(truncated\)"):
            check(str(tmp_path), size=SIZE)


class TestFox:
    def test_real_photographs(self, shared_data):
        scene = read(shared_data / "instant_ngp_fox")
        cameras = scene.cameras
        assert (len(cameras), cameras.width, cameras.height, scene.skipped) == (25, 1080, 1920, ())
        assert (scene.up, scene.metric) == ("estimated", "unknown")
        assert cameras["frame"].tolist()[:3] == [1, 3, 6]
        focal = cameras.intrinsics[0, 0, 0] / 1375.52
        assert 1 < focal < 1.05, "pincushion in the corners: a little is cut"
        with pytest.raises(MissingData, match="has no point cloud"):
            scene.points()

    def test_every_camera_looks_at_the_fox(self, shared_data):
        """The point nearest to all optical axes lies before every camera; with the axes turned, behind."""
        cameras = read(shared_data / "instant_ngp_fox").cameras
        axes, centres = cameras.camera_to_world[:, :3, 2].double(), cameras.centers.double()
        across = torch.eye(3, dtype=torch.float64) - axes[:, :, None] * axes[:, None]
        fox = torch.linalg.solve(across.sum(0), (across @ centres[:, :, None]).sum(0)[:, 0])
        assert ((fox - centres) * axes).sum(1).min() > 1
        assert -cameras.camera_to_world[:, 2, 1].mean() > 0.9, "images' down is the world's down"

    def test_small_is_the_mean_of_large(self, shared_data):
        scene = read(shared_data / "instant_ngp_fox", max_frames=2)
        small = scene.frames([0], (135, 240)).images[0]
        mean = torch.nn.functional.avg_pool2d(scene.images([0])[0][None], 8)[0]
        assert -10 * torch.log10((small - mean).square().mean()) > 38
