"""The page in a browser: `python app.py`, then open http://127.0.0.1:7860. Alone: the embedded model and a demo stream."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from data.command_line import Parser, exit_status
from vstream.config import add_flags
from vstream.models import add_model_flags, chosen_model, chosen_settings


def parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = Parser(prog="app.py", description="Watch a stream in the browser and ask about any moment of it.")
    parser.add_argument("--source", help="what every page watches first: a file, a URL or world:?seed=7&seconds=600&speed=1")
    add_model_flags(parser)
    parser.add_argument("--memory", type=Path, metavar="DIR", help="remember streams in this folder; default: in none")
    parser.add_argument("--host", default="127.0.0.1", help="address to listen on (default 127.0.0.1: this computer only)")
    parser.add_argument("--port", type=int, default=7860, help="port to listen on (default 7860)")
    parser.add_argument("--token", help="password of the page; needed for any host but this computer")
    parser.add_argument("--insecure", action="store_true", help="let anybody in who reaches --host")
    parser.add_argument("--allow-private-hosts", action="store_true", help="open URLs of the local network too")
    parser.add_argument(
        "--webhook-host",
        action="append",
        default=[],
        metavar="HOST",
        help="a host that pages may post alerts to; default: none",
    )
    parser.add_argument(
        "--certificate", nargs=2, metavar=("CERT", "KEY"), help="PEM files for https, which remote cameras need"
    )
    add_flags(parser)
    return parser.parse_args(argv)


def main(argv: list[str] | None = None) -> int:
    """Parse, check, load, serve. Returns the exit status."""
    args = parsed(argv)
    return exit_status("app.py", lambda: opened(args))


def opened(args: argparse.Namespace) -> int:
    """The page, until somebody ends it, with 0. Raises VStreamError for what it cannot be opened with."""
    from vstream.ui.serve import check_host, check_port, checked_certificate, serve
    from vstream.ui.studio import DEMO_SOURCE, Studio, check_source
    from vstream.watches import checked_hosts

    check_host(args.host, args.token, args.insecure)
    check_port(args.port)
    webhook_hosts = checked_hosts(args.webhook_host)
    certificate = checked_certificate(args.certificate) if args.certificate else None
    config = chosen_settings(args)
    source = args.source or DEMO_SOURCE
    check_source(source, args.allow_private_hosts)
    studio = Studio(
        chosen_model(args).load(config.gpu_bytes),
        config,
        start_source=source,
        folder=args.memory,
        allow_private_hosts=args.allow_private_hosts,
        webhook_hosts=webhook_hosts,
    )
    serve(studio, args.host, args.port, args.token, certificate)
    return 0


if __name__ == "__main__":
    sys.exit(main())
