# /// script
# requires-python = ">=3.11"
# dependencies = ["openai"]
# ///
"""Talks to the gateway as OpenAI's own client does: lists, retrieves, chats, streams, and is refused.

Start ``python docs/examples/gateway.py --config docs/examples/models.toml`` first.
"""

import argparse
import sys

import openai
from openai import OpenAI


def ask(client: OpenAI, model: str, text: str) -> str:
    """Return the whole answer of *model*, after the name under which the answer says it was given."""
    completion = client.chat.completions.create(model=model, messages=[{"role": "user", "content": text}])
    return f"{completion.model}: {completion.choices[0].message.content}"


def stream(client: OpenAI, model: str, text: str) -> None:
    """Print the answer of *model* piece by piece, as it comes."""
    messages = [{"role": "user", "content": text}]
    for chunk in client.chat.completions.create(model=model, messages=messages, stream=True):
        # A chunk that reports the usage has no choices, and the last one of an answer no content.
        for choice in chunk.choices:
            print(choice.delta.content or "", end="", flush=True)
    print()


def refusal(client: OpenAI, model: str, text: str) -> str:
    """Return which exception of the client says that *model* does not answer, and what the exception knows."""
    try:
        return f"not refused, {ask(client, model, text)}"
    except openai.APIStatusError as error:
        return f"{type(error).__name__} {error.status_code} {error.code}"


def main() -> None:
    """Print what the client sees, one kind of request after the other."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--base-url", default="http://127.0.0.1:8000/v1")
    parser.add_argument("--not-ready", metavar="MODEL", help="a model of the gateway's that is not ready, if any")
    arguments = parser.parse_args()
    # The client wants a key. The gateway asks for none.
    client = OpenAI(base_url=arguments.base_url, api_key="none")

    print("models:     ", *(model.id for model in client.models.list()))
    card = client.models.retrieve("bonsai-8b:code")
    # The client keeps the fields that OpenAI's own cards do not have.
    print(f"retrieved:   {card.id}, made of {card.root}, on {card.parent}, {card.max_model_len} tokens")
    print("an adapter: ", ask(client, "bonsai-8b:code", "Sort a list."))
    print("an alias:   ", ask(client, "chat", "Hello!"))
    print("streamed:    ", end="")
    stream(client, "chat", "Count to three.")

    # openai.NotFoundError, openai.BadRequestError and openai.InternalServerError.
    print("unknown:    ", refusal(client, "bonsai-9b", "Hello?"))
    print("too long:   ", refusal(client, card.id, "word " * card.max_model_len))
    if arguments.not_ready is not None:
        print("not ready:  ", refusal(client, arguments.not_ready, "Hello?"))


if __name__ == "__main__":
    try:
        main()
    except openai.APIConnectionError as error:
        sys.exit(f"openai_client.py: nothing answers at {error.request.url}")
