"""``noise2map app``: the models in a browser."""

import logging
import socket
import webbrowser
from typing import Annotated

import typer

from noise2map.cli import options

logger = logging.getLogger(__name__)


def app(
    models: Annotated[
        list[str] | None,
        typer.Argument(metavar="[MODEL]...", help="Folders, hub ids or shipped names, shown before what is shipped."),
    ] = None,
    host: Annotated[str, typer.Option(help="Address to listen at; 0.0.0.0 lets the whole network in.")] = "127.0.0.1",
    port: Annotated[int, typer.Option(min=0, max=65535, help="Port; 0 for any free one.")] = 7860,
    shipped: Annotated[bool, typer.Option(help="Also offer the shipped models.")] = True,
    browser: Annotated[bool, typer.Option(help="Open the page in a browser.")] = False,
    device: options.Device = "auto",
) -> None:
    """Serve a page on this machine: drop an image, turn the dials, click a pixel, turn the point cloud, download everything.

    Nothing is asked from or sent to the outside. Ends with Ctrl-C.
    """
    _check_address(host, port)
    logger.info("app: loading PyTorch and the models ...")
    from noise2map.app.server import LOOPBACK, AppServer
    from noise2map.app.service import AppService
    from noise2map.cli.launch import hide_progress_of_files

    hide_progress_of_files()
    service = AppService(models or (), device, shipped=shipped)
    try:
        with AppServer(service, host, port) as server:
            logger.info("app: open %s in a browser; Ctrl-C ends it", server.url)
            if host not in (LOOPBACK, "localhost", "::1"):
                logger.warning("app: everyone who reaches %s can use it; there is no password", host)
            if browser:
                webbrowser.open(server.url)
            server.serve_forever()
    except KeyboardInterrupt:
        logger.info("app: ended")
    finally:
        service.close()


def _check_address(host: str, port: int) -> None:
    """Refuses an address that cannot be listened at, before anything is loaded.

    Raises:
        OSError: Naming it.
    """
    try:
        kind, _, _, _, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE)[0]
        with socket.socket(kind, socket.SOCK_STREAM) as one:
            one.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            one.bind(address)
    except OSError as error:
        raise OSError(f"cannot listen at host {host!r}, port {port}: {error.strerror or error}; choose another --port") from error
