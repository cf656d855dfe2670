"""`view` of photographs: what is compared, what the page keeps of it, and that the page's own arithmetic agrees."""

import json
import re
import socket
import socketserver
import threading
import urllib.error
import urllib.request

import numpy as np
import pytest
import torch
from PIL import Image
from torch.nn.functional import normalize

import splatlearn
from splatlearn.cli import main
from splatlearn.errors import UserError
from splatlearn.verbs.encode import load
from splatlearn.verbs.similarity import Seen, look
from splatlearn.verbs.similarity_page import Server, build_page, compress
from splatlearn.verbs.similarity_picture import similarity_picture
from tasks import worlds
from verbs.chromium import Chromium, find_chromium
from verbs.run_maker import WIDTH, write_run, write_weights

NAME, TEACHER = "random:vit.tiny", "random:squeezenet.tiny"
SMALL = {"encoder": NAME, "size": (56, 42), "images": 12, "device": "cpu"}


@pytest.fixture(scope="module")
def photos(tmp_path_factory):
    """Three photographs: left half of one colour, right half of another, with noise; the last stands upright."""
    folder, rng = tmp_path_factory.mktemp("photos"), np.random.default_rng(0)
    for number, size in enumerate([(120, 90), (120, 90), (60, 80)]):
        image = rng.integers(0, 40, (size[1], size[0], 3))
        image[:, : size[0] // 2] += np.array([180, 30, 10])
        image[:, size[0] // 2 :] += np.array([10, 60, 200])
        Image.fromarray(image.astype(np.uint8)).save(folder / f"{number}.png")
    return folder


@pytest.fixture(scope="module")
def found(photos):
    return look(str(photos), **SMALL)


def cosines(path, place, size=(56, 42)):
    """(h w) of one photograph with the token at row and column `place` of the first, by numpy alone."""
    encoder = load(NAME, device="cpu")
    grids = [encoder.encode(path.with_name(name), size=size) for name in ("0.png", path.name)]
    first, second = (grid / np.linalg.norm(grid, axis=-1, keepdims=True) for grid in grids)
    return second @ first[place]


class TestLook:
    def test_the_cosine_of_every_patch(self, found, photos):
        assert [photo.name for photo in found.photos] == ["0.png", "1.png", "2.png"]
        assert [photo.size for photo in found.photos] == [(120, 90), (120, 90), (60, 80)]
        (seen,) = found.seen
        assert seen.title == NAME and seen.token((0, 119, 0), (120, 90)) == (0, 3)
        values = seen.similarities((0, 35, 89), (120, 90))
        for name, value in zip(("0.png", "1.png", "2.png"), values):
            np.testing.assert_allclose(value, cosines(photos / name, (2, 1)), atol=1e-5)
        assert float(values[0][2, 1]) == pytest.approx(1)

    def test_sizes_follow_the_photograph_unless_given(self, photos):
        found = look(str(photos / "2.png"), encoder=NAME, images=1)
        assert found.seen[0].grids[0].shape == (32, 24, 32) and found.notes == ()

    def test_a_teacher_beside_the_student(self, photos):
        found = look(str(photos), **{**SMALL, "size": (112, 112)}, teacher=TEACHER)
        assert [seen.title for seen in found.seen] == [NAME, f"teacher {TEACHER}"]
        assert [seen.grids[2].shape[:2] for seen in found.seen] == [(8, 8), (7, 7)]

    def test_a_teacher_as_the_encoder(self, photos, tmp_path):
        options = {"weights": str(write_weights(tmp_path / "w.safetensors")), "width": 0.125}
        given = {**SMALL, "size": (112, 112)}
        (seen,) = look(str(photos), **{**given, "encoder": "teacher:squeezenet"}, encoder_options=options).seen
        (same,) = look(str(photos), **{**given, "encoder": ""}, teacher="squeezenet", teacher_options=options).seen
        assert seen.title == "teacher:squeezenet" and torch.equal(seen.rows, same.rows)

    def test_after_a_projector(self, photos, tmp_path):
        folder = str(write_run(tmp_path / "run", "t"))
        (seen,) = look(str(photos), **{**SMALL, "encoder": folder}, encoder_options={"projector": "t"}).seen
        assert seen.rows.shape[1] == WIDTH
        with pytest.raises(UserError, match=r"--encoder\.projector s: no such projector"):
            look(str(photos), **{**SMALL, "encoder": folder}, encoder_options={"projector": "s"})

    def test_some_of_many_and_those_left_out(self, tmp_path, photos):
        for number in range(5):
            (tmp_path / f"{number}.png").write_bytes((photos / "0.png").read_bytes())
        rotten = bytearray((photos / "1.png").read_bytes())
        rotten[100:300] = bytes(200)
        (tmp_path / "2.png").write_bytes(rotten)
        found = look(str(tmp_path), **{**SMALL, "images": 2})
        assert [photo.name for photo in found.photos] == ["0.png"]
        assert found.notes[0] == "2 of 5 photographs, evenly spaced; --images N takes more"
        assert found.notes[1].startswith("left out: 2.png: an image cannot be read")
        with pytest.raises(UserError, match="no image can be read"):
            look(str(tmp_path / "2.png"), **SMALL)

    def test_a_scene_of_several(self, photos):
        assert [photo.name for photo in look(str(photos), **SMALL, scene="1.png").photos] == ["1.png"]
        with pytest.raises(UserError, match=r"--scene 3.png: .* has no such scene; did you mean"):
            look(str(photos), **SMALL, scene="3.png")

    def test_an_encoder_of_points(self, photos, monkeypatch):
        worlds.register(monkeypatch)
        with pytest.raises(UserError, match="--encoder random:pointwise: 'pointwise' encodes points, and no images"):
            look(str(photos), **{**SMALL, "encoder": "random:pointwise"})


class TestCompress:
    def test_few_channels_lose_next_to_nothing(self):
        rows = normalize(torch.randn(300, 20, generator=torch.Generator().manual_seed(0)), dim=1)
        small = compress(rows)
        kept = small.codes * small.scales
        assert small.codes.dtype == torch.int8 and small.codes.shape == (300, 20)
        assert (kept @ kept.T - rows @ rows.T).abs().max() < 0.03
        assert small.correlation > 0.9995 and small.error < 0.005

    def test_the_loss_is_told(self):
        rows = normalize(torch.randn(300, 64, generator=torch.Generator().manual_seed(0)), dim=1)
        small = compress(rows, 8)
        kept = (small.codes * small.scales) @ (small.codes * small.scales).T
        exact = (rows @ rows.T).double()
        assert small.correlation < 0.9
        whole = np.corrcoef(exact.flatten(), kept.flatten())[0, 1]
        assert small.correlation == pytest.approx(whole, abs=0.03)
        assert small.error == pytest.approx(float((exact - kept).abs().mean()), rel=0.1)

    def test_equal_tokens(self):
        small = compress(torch.tensor([[1.0, 0, 0]]).repeat(5, 1))
        assert small.correlation == 1 and small.error < 1e-6

    @pytest.mark.parametrize("data", ["camvid/val", "rgbd_7scenes_redkitchen"])
    def test_a_real_network(self, shared_data, data):
        weights = shared_data / "weights/imagenet_onnxzoo/resnet50_v2_stages1to3_fp16.npz"
        options = {"weights": str(weights)}
        found = look(str(shared_data / data), teacher="resnet50v2", images=2, teacher_options=options)
        small = compress(found.seen[0].rows)
        assert small.codes.shape[1] == 128 and small.correlation > 0.998 and small.error < 0.006


class TestPicture:
    def test_photographs_above_what_is_seen(self, found):
        picture = similarity_picture(found, (0, 10, 10))
        assert picture.shape == (3, 2 * 326, 3 * 326) and picture.min() >= 0 and picture.max() <= 1
        seen = Seen(title="", grids=[torch.eye(4).reshape(2, 2, 4)])
        photo = found.photos[0]
        alone = similarity_picture(type(found)(photos=[photo], seen=[seen], notes=()), (0, 0, 0))
        below = alone[:, 246 + 120 : 246 + 220, 200:300].mean((1, 2))  # the token that is least alike
        above = alone[:, 246 + 20 : 246 + 100, 20:120].mean((1, 2))  # the chosen one
        assert above[0] > below[0] + 0.1 and (alone[:, :6] == 1).any()

    def test_principal_components(self, found):
        assert not torch.equal(similarity_picture(found, None), similarity_picture(found, (0, 10, 10)))


class TestVerb:
    def test_a_picture_and_a_page(self, photos, tmp_path, capsys):
        words = ["view", str(photos), "--encoder", NAME, "--size", "56,42", "--at", "1,5,6", "--device", "cpu"]
        assert main([*words, "--picture", str(tmp_path / "a.png"), "--page", str(tmp_path / "a.html")]) == 0
        told = capsys.readouterr().out
        assert f"3 photographs as {NAME} see them: {tmp_path / 'a.png'} and {tmp_path / 'a.html'}" in told
        assert "32 of 32 directions in 8 bits: correlation with the exact cosines 1.0000" in told
        assert "photographs: 0 0.png, 1 1.png, 2 2.png" in told
        assert Image.open(tmp_path / "a.png").size == (978, 652)
        page = (tmp_path / "a.html").read_text()
        assert not re.findall(r"https?://|src=\"|@import|url\(", page), "the page needs nothing else"
        data = json.loads(re.search(r'<script id="data" type="application/json">(.*?)</script>', page)[1])
        assert data["at"] == [1, 5, 6] and len(data["networks"][0]["grids"]) == 3

    def test_a_projector_a_teacher_and_a_reader(self, photos, tmp_path, capsys):
        (tmp_path / "f").mkdir()
        (tmp_path / "f" / "frame-000100.color.png").write_bytes((photos / "0.png").read_bytes())
        folder, weights = write_run(tmp_path / "run", "t"), write_weights(tmp_path / "w.safetensors")
        words = ["view", str(tmp_path / "f"), "--size", "112,112", "--device", "cpu", "--encoder", str(folder)]
        assert main([*words, "--page", str(tmp_path / "a.html")]) == 2
        assert "`--data.reader images` reads them as photographs" in capsys.readouterr().err
        words += ["--data.reader", "images", "--page"]
        assert main([*words, str(tmp_path / "a.html"), "--encoder.projector", "t"]) == 0
        assert f"{WIDTH} of {WIDTH} directions" in capsys.readouterr().out
        words[words.index(str(folder))] = "teacher:squeezenet"
        options = ["--encoder.weights", str(weights), "--encoder.width", "0.125"]
        assert main([*words, str(tmp_path / "b.html"), *options]) == 0
        assert "photographs as teacher:squeezenet see" in capsys.readouterr().out

    def test_names_are_text(self, photos, tmp_path):
        evil = "</script><b>.png"
        (tmp_path / "f").mkdir()
        name = evil.replace("/", "_")
        (tmp_path / "f" / name).write_bytes((photos / "0.png").read_bytes())
        page = build_page(look(str(tmp_path / "f"), **SMALL))[0]
        assert name not in page and page.count("</script>") == 2

    @pytest.mark.parametrize(
        ("words", "message"),
        [
            ("--at 3,0,0", "--at 3,0,0: there are photographs 0 to 2"),
            ("--at 2,60,0", "--at 2,60,0: 2.png has 60x80 pixels, from 0,0 on"),
            ("--size 50,50", "--size 50,50: multiples of the patch of 14 pixels of random:vit.tiny are needed"),
            ("--images 0", "--images: 1 or more is needed, got 0"),
            ("--page PHOTOS/a.txt", "a.txt: pages are .html files"),
            ("--picture PHOTOS/0.png", "0.png: already there and not overwritten"),
        ],
    )
    def test_errors(self, photos, tmp_path, capsys, words, message):
        words = words.replace("PHOTOS", str(photos)).split()
        page = [] if "--page" in words else ["--page", str(tmp_path / "a.html")]
        sized = [] if "--size" in words else ["--size", "56,42"]
        assert main(["view", str(photos), "--encoder", NAME, *sized, *page, *words]) == 2
        assert message in capsys.readouterr().err
        assert not list(tmp_path.glob("*.html"))

    def test_what_belongs_together(self, photos, tmp_path):
        with pytest.raises(UserError, match="--page and --at show photographs to networks: give --encoder, --teacher"):
            splatlearn.view(str(photos), page=tmp_path / "a.html")
        with pytest.warns(UserWarning, match="--color and --overlay have no effect: --encoder and --teacher show"):
            splatlearn.view(
                str(photos), encoder=NAME, size=(56, 42), color="rgb", overlay=True, page=tmp_path / "a.html"
            )

    def test_served(self, found):
        server = Server("<p>hällo", "127.0.0.1", 8765)
        other = Server("<p>other", "127.0.0.1", 8765)
        thread = threading.Thread(target=server.wait)
        thread.start()
        try:
            assert server.url != other.url, "the next free port"
            with urllib.request.urlopen(server.url, timeout=60) as answer:
                assert answer.read().decode() == "<p>hällo" and "utf-8" in answer.headers["Content-Type"]
            with pytest.raises(urllib.error.HTTPError, match="404"):
                urllib.request.urlopen(f"{server.url}etc/passwd", timeout=60)
        finally:
            server.stop()
            thread.join()
            other._server.server_close()

    def test_an_address_of_ipv6(self):
        try:
            socket.create_server(("::1", 0), family=socket.AF_INET6).close()
        except OSError as error:
            pytest.skip(f"no IPv6 on this machine ({error})")
        server = Server("<p>six", "::1", 8765)
        thread = threading.Thread(target=server.wait)
        thread.start()
        try:
            assert server.url.startswith("http://[::1]:")
            with urllib.request.urlopen(server.url, timeout=60) as answer:
                assert answer.read().decode() == "<p>six"
        finally:
            server.stop()
            thread.join()

    @pytest.mark.parametrize(("host", "family"), [("::1", socket.AF_INET6), ("nowhere", socket.AF_INET)])
    def test_a_host_that_nobody_knows_is_tried_once(self, monkeypatch, host, family):
        tried = []

        def bind(server):
            tried.append(server.socket.family)
            raise socket.gaierror(socket.EAI_NONAME, "Name or service not known")

        monkeypatch.setattr(socketserver.TCPServer, "server_bind", bind)
        with pytest.raises(UserError, match=rf"--host {host} --port 8765: cannot listen there .*not known"):
            Server("", host, 8765)
        assert tried == [family]


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    if find_chromium() is None:
        pytest.skip("no Chromium on the PATH: apt-get install chromium")
    with Chromium(tmp_path_factory.mktemp("chromium"), (1000, 900)) as browser:
        yield browser


class TestPage:
    @pytest.fixture
    def opened(self, browser, photos, tmp_path):
        """Opens the page of two networks, at a hash; gives what they see."""
        found = look(str(photos), **{**SMALL, "size": (112, 112)}, teacher=TEACHER)

        def open_page(place):
            (tmp_path / "a.html").write_text(build_page(found)[0])
            browser.go("about:blank")
            browser.go(f"file://{tmp_path / 'a.html'}{place}")
            browser.until(lambda: browser.run("document.querySelectorAll('figure').length") == 3, "three photographs")
            return found

        return open_page

    def compared(self, browser, network, photo):
        return np.array(browser.run(f"[...values.get(data.networks[{network}])[{photo}]]"))

    def test_the_page_counts_as_numpy_does(self, browser, opened):
        found = opened("#at=0,34,61")
        browser.until(lambda: browser.run("values !== null"), "values")
        for network, seen in enumerate(found.seen):
            exact = seen.similarities((0, 34, 61), found.photos[0].size)
            small = compress(seen.rows)
            kept = seen.split((small.codes * small.scales).float())
            row, column = seen.token((0, 34, 61), found.photos[0].size)
            for photo, grid in enumerate(kept):
                ours = (grid @ kept[0][row, column]).numpy()
                if photo == 0:
                    ours[row, column] = 1
                theirs = self.compared(browser, network, photo)
                np.testing.assert_allclose(theirs, ours.flatten(), atol=1e-5)
                np.testing.assert_allclose(theirs, exact[photo].flatten(), atol=0.03)

    def test_a_click_and_what_is_drawn(self, browser, opened):
        found = opened("")
        assert browser.run("values === null")
        box = browser.run(
            "(({left, top, width, height}) => [left, top, width, height])"
            "(document.querySelectorAll('.photo')[2].getBoundingClientRect())"
        )
        x, y = box[0] + 0.8 * box[2], box[1] + 0.3 * box[3]
        for kind in ("mousePressed", "mouseReleased"):
            browser.call("Input.dispatchMouseEvent", type=kind, x=x, y=y, button="left", clickCount=1)
        browser.until(lambda: browser.run("values !== null"), "a click")
        chosen = [int(part) for part in browser.run("location.hash").removeprefix("#at=").split(",")]
        assert chosen[0] == 1 and abs(chosen[1] - 96) <= 1 and abs(chosen[2] - 27) <= 1
        exact = found.seen[0].similarities(tuple(chosen), found.photos[1].size)
        np.testing.assert_allclose(self.compared(browser, 0, 2), exact[2].flatten(), atol=0.03)
        pixel = "[...data.networks[0].grids[0].canvas.getContext('2d').getImageData(0, 0, 1, 1).data]"
        alike = browser.run(pixel)
        browser.run("document.querySelector('[value=pca]').click()")
        components = browser.run(pixel)
        assert alike[3] == components[3] == 255 and alike != components
        assert components[:3] == browser.run("[...data.networks[0].grids[0].colors.slice(0, 3)]")
        browser.run("document.querySelector('[value=photo]').click()")
        assert browser.run(pixel)[3] == 0
        assert not [url for url in browser.requested if not url.startswith(("file:", "data:", "about:"))]

    def test_a_place_that_is_not_there(self, browser, opened):
        opened("#at=7,0,0")
        assert browser.run("values === null")
