"""A conversation: one session keeps what was said in its cache, so each turn computes only what is new.

python examples/chat_loop.py [MODEL]
"""

import sys

import edgerun


def main(model: str = "smollm2") -> None:
    with edgerun.load(model) as loaded:
        session = loaded.session()
        messages = [{"role": "system", "content": "You are a helpful assistant. Answer in one sentence."}]
        print("Ask something; an empty line ends.")
        for question in iter(read_question, ""):
            messages.append({"role": "user", "content": question})
            answer = session.chat(messages, max_tokens=200)
            for piece in answer:
                print(piece.text, end="", flush=True)
            messages.append({"role": "assistant", "content": answer.text})
            timings = answer.timings
            print(f"\n[{timings.cached_tokens} of {timings.prompt_tokens} prompt tokens were in the cache]")


def read_question() -> str:
    try:
        return input("> ").strip()
    except EOFError:
        return ""


if __name__ == "__main__":
    main(*sys.argv[1:])
