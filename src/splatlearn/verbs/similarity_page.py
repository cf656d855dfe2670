"""The page of `view` for photographs: one HTML file that needs nothing else, and what serves it.

Legend: M tokens, C channels, K principal directions.
"""

import base64
import errno
import io
import json
import socket
import sys
from dataclasses import dataclass
from html import escape
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from splatlearn.engine.plots import colormap, encode_png, pca_colors, to_uint8
from splatlearn.errors import UserError
from splatlearn.verbs.similarity import RAMP, Look, Photo, Place, Seen, Similarity
from splatlearn.verbs.similarity_picture import similarity_picture
from splatlearn.verbs.view import tell_address, write_file

TEMPLATE = Path(__file__).with_name("similarity.html")
DIRECTIONS = 128
"""K, so that a token takes 128 bytes (our choice by `Compressed.correlation`: 64 gave 0.995, 256 0.9997)."""
_PROBES, _PORTS = 64, 32


def show_similarity(
    found: Look, at: Place | None, picture: Path | None, page: Path | None, host: str, port: int
) -> Similarity:
    """Writes the picture, the page, or both; without either, serves the page. The arguments are those of `view`.

    Raises:
        ConfigError: `at` is in no photograph.
    """
    if at is not None:
        found.check(at)
    where, notes = [str(path) for path in (picture, page) if path], found.notes
    if picture:
        write_file(picture, encode_png(similarity_picture(found, at)))
    if page or not picture:
        text, lost = build_page(found, at)
        notes = (*notes, *lost)
        if page:
            write_file(page, text.encode())
        else:
            server = Server(text, host, port)
            tell_address(f"{len(found.photos)} photographs", server.url, host)
            server.wait()
            where = [server.url]
    names, titles = (photo.name for photo in found.photos), (seen.title for seen in found.seen)
    return Similarity(tuple(names), tuple(titles), " and ".join(where), notes)


@dataclass(frozen=True, kw_only=True)
class Compressed:
    """Unit vectors in K whole numbers of 8 bits each.

    Args:
        codes: (M K) int8; times the scales they are coordinates along principal directions.
        scales: (K).
        correlation: of the cosines that they give with the exact ones.
        error: mean absolute difference of these.
    """

    codes: Tensor
    scales: Tensor
    correlation: float
    error: float


def compress(rows: Tensor, directions: int = DIRECTIONS) -> Compressed:
    """Keeps the principal directions of unit vectors; no mean is subtracted, as cosines would change by it.

    What is left of a vector is shorter than 1 and not stretched again: what is cut off of two tokens has next to no
    part in their cosine, and stretched vectors gave ten times the difference.

    Args:
        rows: (M C).
        directions: K, or as many as there are channels.
    """
    values = rows.double()
    axes = torch.linalg.eigh(values.T @ values).eigenvectors.flip(1)[:, :directions]
    along = values @ axes
    scales = along.abs().amax(0).clamp(min=1e-12) / 127
    codes = (along / scales).round().to(torch.int8)
    restored = codes * scales
    probes = torch.linspace(0, len(rows) - 1, min(_PROBES, len(rows))).round().long()
    exact, kept = values[probes] @ values.T, restored[probes] @ restored.T
    pair = torch.corrcoef(torch.stack([exact.flatten(), kept.flatten()]))
    return Compressed(
        codes=codes,
        scales=scales,
        correlation=float(pair[0, 1].nan_to_num(1.0)),
        error=float((exact - kept).abs().mean()),
    )


def build_page(found: Look, at: Place | None = None) -> tuple[str, tuple[str, ...]]:
    """The page, and of every network what the page lost of it.

    Args:
        found: what is shown.
        at: the place that is compared with first.
    """
    networks, notes = [], []
    for seen in found.seen:
        small = compress(seen.rows)
        lost = (
            f"{small.codes.shape[1]} of {seen.rows.shape[1]} directions in 8 bits: correlation with the exact cosines "
            f"{small.correlation:.4f}, mean difference {small.error:.4f}"
        )
        networks.append(_network(seen, small, lost))
        notes.append(f"{seen.title}: {lost}")
    ramp = (colormap(torch.linspace(0, 1, 256)[None], RAMP)[:, 0].T * 255).round().to(torch.uint8)
    data = {
        "photos": [{"name": p.name, "size": p.size, "jpeg": _jpeg(p)} for p in found.photos],
        "networks": networks,
        "ramp": _text(ramp),
        "at": at,
    }
    title = escape(" and ".join(seen.title for seen in found.seen))
    text = json.dumps(data).replace("<", "\\u003c")
    return TEMPLATE.read_text().replace("__TITLE__", title).replace("__DATA__", text), tuple(notes)


class Server:
    """Serves one page until it is stopped.

    Args:
        page: the HTML.
        host: address to listen on.
        port: first port that is tried; the next free one is taken.

    Attributes:
        url: where the page is.

    Raises:
        UserError: the address cannot be listened on.
    """

    def __init__(self, page: str, host: str, port: int) -> None:
        body = page.encode()

        class Handler(BaseHTTPRequestHandler):
            """Knows that page alone."""

            def do_GET(self) -> None:
                found = self.path.partition("?")[0] == "/"
                self.send_response(200 if found else 404)
                self.send_header("Content-Type", "text/html; charset=utf-8")
                self.send_header("Content-Length", str(len(body) if found else 0))
                self.end_headers()
                self.wfile.write(body if found else b"")

            def log_message(self, format: str, *args: Any) -> None:
                """Says nothing."""

        self._server = _listening(Handler, host, port)
        self.url = f"http://{f'[{host}]' if ':' in host else host}:{self._server.server_address[1]}/"

    def wait(self) -> None:
        """Serves until Ctrl-C or `stop`."""
        try:
            self._server.serve_forever()
        except KeyboardInterrupt:
            sys.stdout.write("\n")
        self._server.server_close()

    def stop(self) -> None:
        """Ends `wait` in another thread."""
        self._server.shutdown()


def _listening(handler: type[BaseHTTPRequestHandler], host: str, port: int) -> ThreadingHTTPServer:
    """A server at the first free port; another one is only tried where that may help."""

    class Listener(ThreadingHTTPServer):
        """Of the addresses that the host is of."""

        address_family = socket.AF_INET6 if ":" in host else socket.AF_INET

    problem: OSError | None = None
    for tried in range(port, min(port + _PORTS, 65536)):
        try:
            return Listener((host, tried), handler)
        except OSError as error:
            problem = error
            if error.errno not in (errno.EADDRINUSE, errno.EACCES):
                break
    raise UserError(f"--host {host} --port {port}: cannot listen there ({problem})") from problem


def _network(seen: Seen, small: Compressed, note: str) -> dict[str, Any]:
    colors = (pca_colors(seen.rows) * 255).round().to(torch.uint8)
    grids = [
        {"grid": [codes.shape[1], codes.shape[0]], "codes": _text(codes), "pca": _text(color)}
        for codes, color in zip(seen.split(small.codes), seen.split(colors))
    ]
    return {"title": seen.title, "note": note, "scales": small.scales.tolist(), "grids": grids}


def _text(values: Tensor) -> str:
    return base64.b64encode(np.ascontiguousarray(values.numpy()).tobytes()).decode()


def _jpeg(photo: Photo) -> str:
    from PIL import Image

    buffer = io.BytesIO()
    Image.fromarray(to_uint8(photo.shown)).save(buffer, "jpeg", quality=85)
    return base64.b64encode(buffer.getvalue()).decode()
