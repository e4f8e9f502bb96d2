"""The hospital's own page: `konsil-site page, page-token`."""

from __future__ import annotations

import argparse
import socket
import sys

from fl_client.commands import Commands
from fl_client.site import Page, Site


def add(commands: Commands) -> None:
    """The commands and their options."""
    shown = commands.add_parser("page", help="the hospital's page for its own people, in a browser, until told to stop")
    shown.set_defaults(run=_page)
    again = commands.add_parser("page-token", help="new tokens for the page and for monitoring; who is logged in is out")
    again.set_defaults(run=_page_token)


def _page(site: Site, options: argparse.Namespace) -> int:
    import uvicorn  # here: the other commands serve nobody

    from fl_client.page.app import page_app
    from fl_client.page.guard import ensure_tokens, is_loopback, token_path

    page = site.page or Page()
    ensure_tokens(site)
    door = listen(page)
    host = f"[{page.host}]" if ":" in page.host else page.host
    print(f"{site.name}'s page: http://{host}:{page.port}/", flush=True)
    print(f"log in with the token in {token_path(site, 'page')}; monitoring: {token_path(site, 'metrics')}", flush=True)
    if not is_loopback(page.host):
        warning = "can be reached from other machines without TLS: put a proxy with TLS in front of it, or set 127.0.0.1"
        print(f"WARNING: page.host {page.host} {warning}", file=sys.stderr)
    config = uvicorn.Config(
        page_app(site, page),
        log_level="warning",
        access_log=False,  # addresses hold pseudonyms
        server_header=False,
        proxy_headers=False,
        limit_concurrency=100,
        timeout_keep_alive=10,
        timeout_graceful_shutdown=2,
        lifespan="off",
    )
    with door:
        uvicorn.Server(config).run(sockets=[door])
    return 0


def listen(page: Page) -> socket.socket:
    """The page's own port. Raises `OSError` in words if it can't be had."""
    family = socket.AF_INET6 if ":" in page.host else socket.AF_INET
    try:
        return socket.create_server((page.host, page.port), family=family)
    except OSError as error:
        raise OSError(f"the page can't listen on {page.host} port {page.port}: {error.strerror or error}") from None


def _page_token(site: Site, options: argparse.Namespace) -> int:
    from fl_client.page.guard import TokenName, new_token, token

    purposes: dict[TokenName, str] = {"page": "to log in", "metrics": "for monitoring, as Authorization: Bearer ..."}
    for name, purpose in purposes.items():
        path = new_token(site, name)
        print(f"{token(site, name)}  {purpose}; in {path}")
    return 0
