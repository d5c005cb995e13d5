"""Serve docs/dream/ on this computer alone (127.0.0.1), with the weights that tools/export_dream.py made last.

`make dream` exports, then runs this. Python scripts are served too, as text, because the page links to them; nothing
else is. Ctrl-C ends it.
"""

from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from models import settings

PORT = 8000  # another one where it is taken
WEIGHTS = "data/dream/dream.bin"  # served as docs/dream/dream.bin, where there is such a file

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "dream"
URL = "/docs/dream/"


class Handler(SimpleHTTPRequestHandler):
    """The page with its weights, and the scripts."""

    extensions_map = {  # noqa: RUF012 - as in the standard library; a computer's own table may name them otherwise
        "": "application/octet-stream",
        ".html": "text/html; charset=utf-8",
        ".css": "text/css; charset=utf-8",
        ".js": "text/javascript; charset=utf-8",
        ".py": "text/plain; charset=utf-8",
    }

    def __init__(self, *arguments, weights: Path) -> None:
        self.weights = weights
        super().__init__(*arguments, directory=str(ROOT))

    def do_GET(self) -> None:
        """Send a file; whoever asks for the address alone is sent on to the page."""
        if self.path != "/":
            return super().do_GET()
        self.send_response(302)
        self.send_header("Location", URL)
        self.end_headers()

    def translate_path(self, path: str) -> str:
        """Which file is meant. Files that are not for the browser are taken for missing."""
        file = Path(super().translate_path(path))
        if file == PAGE / "dream.bin" and self.weights.exists():
            return str(self.weights)
        hidden = any(part.startswith(".") for part in file.relative_to(ROOT).parts)
        if file.is_relative_to(PAGE) or (file.suffix == ".py" and not hidden):
            return str(file)
        return str(PAGE / "missing")

    def end_headers(self) -> None:
        """Let the browser ask again each time: the weights change."""
        self.send_header("Cache-Control", "no-cache")
        super().end_headers()

    def log_message(self, *_: object) -> None:
        """Say nothing of each request."""


def make_server(port: int, weights: Path) -> ThreadingHTTPServer:
    """A server of the page on `port`, or on any free one where that is taken."""
    handler = partial(Handler, weights=weights)
    try:
        return ThreadingHTTPServer(("127.0.0.1", port), handler)
    except OSError:
        return ThreadingHTTPServer(("127.0.0.1", 0), handler)


def main() -> None:
    """Serve until Ctrl-C."""
    with make_server(PORT, Path(WEIGHTS).resolve()) as server:
        print(f"http://127.0.0.1:{server.server_port}{URL}  (Ctrl-C ends it)", flush=True)
        try:
            server.serve_forever()
        except KeyboardInterrupt:
            print("\nstopped")


if __name__ == "__main__":
    settings.run(main, globals())
