"""The command ``python -m bonsai_routing``: checks a configuration file, or shows where a request would go."""

import argparse
import sys
from collections.abc import Sequence

from bonsai_routing._checks import check_tokens
from bonsai_routing.config import RoutingConfig
from bonsai_routing.errors import RoutingError
from bonsai_routing.router import ModelRouter

__all__ = ["main"]


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command with *arguments*, ``None`` for those of the process, and return its exit status."""
    parser = argparse.ArgumentParser(prog="python -m bonsai_routing", description="Checks a configuration file.")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    check = commands.add_parser("check", help="print every problem of a file, or a summary if it has none")
    route = commands.add_parser("route", help="print which models may answer a request, and why the others may not")
    check.set_defaults(run=_check)
    route.set_defaults(run=_route)
    for command in (check, route):
        command.add_argument("file", metavar="FILE", help="a configuration, in TOML or JSON")
    route.add_argument("name", metavar="NAME", help="the id or the alias that is requested")
    route.add_argument("--tokens", type=tokens, metavar="N", help="the context length that the request needs")
    route.add_argument("--key", metavar="K", help="what decides between weights, such as the id of a user")
    options = parser.parse_args(arguments)
    try:
        return 0 if options.run(RoutingConfig.read(options.file), options) else 1
    except RoutingError as error:
        print(error)
        return 1


def tokens(text: str) -> int:
    return check_tokens("--tokens", int(text))


def _check(config: RoutingConfig, options: argparse.Namespace) -> bool:
    counts = f"Endpoints: {len(config.endpoints)}, adapters: {len(config.adapters)}, aliases: {len(config.aliases)}"
    print(f"{options.file} is valid. {counts}, default: {config.default or 'none'}")
    return True


def _route(config: RoutingConfig, options: argparse.Namespace) -> bool:
    able, refused = ModelRouter(config.registry()).candidates(options.name, options.tokens, key=options.key)
    rows = [(str(place), str(each.id), f"{each.max_context_length} tokens") for place, each in enumerate(able, 1)]
    rows += [("-", id, why) for id, why in refused]
    width = max(len(id) for _, id, _ in rows)
    for place, id, text in rows:
        print(f"{place:>2}  {id:{width}}  {text}")
    return bool(able)


if __name__ == "__main__":  # pragma: no cover -- runs in processes of tests/test_command.py
    # A name may have characters that the terminal does not have.
    sys.stdout.reconfigure(errors="backslashreplace")  # type: ignore[union-attr]
    sys.exit(main())
