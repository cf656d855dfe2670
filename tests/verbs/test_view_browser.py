"""The page of `view` in headless Chromium: it opens, shows the scene, and its controls change what it shows."""

import socket

import numpy as np
import pytest
import torch

from splatlearn.structures import Points
from splatlearn.verbs import view_page, view_scene
from splatlearn.verbs.view import draw
from splatlearn.verbs.view_scene import Shown, choose_view
from verbs.chromium import Chromium, find_chromium

SIZE = (480, 540)
STAGE = slice(200, 360)
"""Rows of the page between viser's own boxes and their shadows, in whatever font there is: above, its notice that no
GPU draws; below, its panel."""
RED, BLUE, YELLOW = (230, 26, 26), (26, 26, 230), (230, 204, 26)


@pytest.fixture(scope="module")
def browser(tmp_path_factory):
    """One browser for all tests: its start is most of what they take."""
    pytest.importorskip("viser", reason="viser is absent: pip install 'splatlearn[view]'")
    if find_chromium() is None:
        pytest.skip("no Chromium on the PATH: apt-get install chromium")
    with Chromium(tmp_path_factory.mktemp("chromium"), SIZE) as browser:
        yield browser


@pytest.fixture
def opened(browser):
    """Opens the page of a scene; it is ended with the test."""
    pages = []

    def open_page(shown):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            port = free.getsockname()[1]
        page = view_page.Page(shown, choose_view(shown, SIZE, None), "rgb", "127.0.0.1", port)
        pages.append(page)
        browser.go(page.url)
        browser.until(lambda: browser.run("document.querySelectorAll('canvas').length"), "a canvas")
        browser.until(lambda: browser.run(f"{labelled('Color')} != null"), "the control of colours")
        click(browser, "Axes")  # they are as red and blue as what is looked for
        browser.until(lambda: not page.axes.value, "axes off")
        return page

    yield open_page
    browser.go("about:blank")
    for page in pages:
        page.stop()


def balls(unit):
    """A red ball at x = -1 and a blue one at x = 1, times `unit`."""
    generator = torch.Generator().manual_seed(0)
    means = 0.2 * torch.randn(100, 3, generator=generator) + torch.tensor([[-1.0, 0, -0.3], [1, 0, -0.3]]).repeat(50, 1)
    gaussians = view_scene.round_gaussians(unit * means, torch.tensor([RED, BLUE]).repeat(50, 1) / 255, 0.1 * unit)
    return shown_of(gaussians, is_cloud=False)


def floor():
    """Points of a level yellow floor, with two labels."""
    xy = torch.cartesian_prod(torch.arange(20.0), torch.arange(20.0)) * 0.1
    points = Points(
        xyz=torch.cat([xy, torch.zeros(400, 1)], 1), attributes={"color": torch.tensor(YELLOW).expand(400, 3) / 255}
    )
    return shown_of(view_scene.points_as_gaussians(points), is_cloud=True, label=(xy[:, 0] > 0.95).long())


def shown_of(gaussians, is_cloud, **arrays):
    return Shown(
        name="a scene",
        gaussians=gaussians,
        arrays=arrays,
        cameras=view_scene._no_cameras(),
        colored=True,
        is_cloud=is_cloud,
        up=torch.tensor([0.0, 0, 1]),
    )


def labelled(label):
    """JavaScript: the input that has a label."""
    found = f"[...document.querySelectorAll('label')].find(found => found.textContent.trim() == '{label}')"
    return f"document.getElementById(({found})?.htmlFor)"


def click(browser, label):
    browser.run(f"{labelled(label)}.click()")


def choose(browser, label, option):
    """Opens a drop-down and takes an option, as a visitor would."""
    found = f"[...document.querySelectorAll('[role=option]')].find(found => found.textContent.trim() == '{option}')"
    click(browser, label)
    browser.until(lambda: browser.run(f"{found} != null"), f"the option {option}")
    browser.run(f"{found}.click()")


def stage(browser):
    """(h W 3) of the page where nothing but the scene is."""
    return browser.picture()[STAGE].astype(int)


def count(picture, color):
    """Pixels of about a colour; viser shades points by some tens of 255."""
    return int((np.abs(picture - np.asarray(color)).max(-1) < 45).sum())


def shows(browser, colors, at_least=400):
    """Waits until the page shows every one of the colours, in so many pixels each."""
    browser.until(lambda: all(count(stage(browser), color) > at_least for color in colors), f"the colours {colors}")


def lacks(browser, colors):
    """Waits until the page shows next to nothing in any of the colours."""
    browser.until(lambda: all(count(stage(browser), color) < 40 for color in colors), f"no colours {colors}")


def palette(shown, choice):
    """The least and the greatest of the colours, in 255ths."""
    colors = (255 * shown.colors(choice, choose_view(shown, SIZE, None))).round()
    return [tuple(color) for color in colors.unique(dim=0).tolist()]


def test_gaussians(browser, opened):
    shown = balls(1.0)
    page = opened(shown)
    shows(browser, [RED, BLUE])
    choose(browser, "Color", "height")
    lacks(browser, [RED, BLUE])
    assert page.color.value == "height"
    ramp = (255 * shown.colors("height", page.view)).round()
    shows(browser, [tuple(ramp.median(0).values.tolist())], at_least=100)
    click(browser, "Scene")
    browser.until(lambda: (stage(browser) > 250).all(), "a hidden scene")
    assert not page.visible.value
    asked = [address for address in browser.requested if not address.startswith(("data:", "blob:", "about:"))]
    hosts = {address.split("/")[2] for address in asked}
    assert hosts and all(host.startswith("127.0.0.1:") for host in hosts), "the page asks nobody else"


@pytest.mark.parametrize("unit", [1.0, 1e-3])
def test_it_shows_what_our_renderer_draws(browser, opened, unit):
    shown = balls(unit)
    page = opened(shown)
    drawn = (255 * draw(shown, page.view, "rgb").permute(1, 2, 0)).numpy()[STAGE]
    browser.until(lambda: np.abs(stage(browser) - drawn).mean() < 3, "our renderer's picture")


def test_points(browser, opened):
    shown = floor()
    opened(shown)
    shows(browser, [YELLOW])
    choose(browser, "Color", "label")
    shows(browser, palette(shown, "label"))
    lacks(browser, [YELLOW])
